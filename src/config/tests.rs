//! The configuration as a whole: precedence, refusals, and that the examples and the
//! schema have the same keys as the reader.

mod challenge;
mod dns;
mod reference;
mod stored;
mod verify;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use super::key::{Default as DefaultValue, Key, Scope, ValueType};
use super::keys::{NAMING, SECTIONS, keys};
use super::problem::{Problems, SettingOrigin};
use super::*;
use crate::certificate::KeyType;
use crate::challenge::{ChallengeSettings, http01, webroot};

impl Options {
    /// `--key TEXT --key TEXT`.
    pub(super) fn list(&mut self, name: &str, texts: &[&str]) {
        if let Some(key) = keys().find(|key| key.name == name) {
            let value = layer::Value::list(texts.iter().copied(), &SettingOrigin::option(key));
            self.values.push((key, value));
        }
    }
}

struct Case {
    options: Options,
    environment: BTreeMap<String, String>,
    directory: tempfile::TempDir,
}

impl Case {
    fn new(file: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("certs.toml");
        std::fs::write(&path, file).unwrap();
        let mut options = Options::default();
        options.config(path.to_str());
        options.text("data_dir", Some("/data"));
        Self {
            options,
            environment: BTreeMap::new(),
            directory,
        }
    }

    fn set(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    fn sources(&self) -> Sources {
        Sources::read(&self.options, &self.environment)
    }

    fn settings(&self, purpose: &Purpose) -> Settings {
        self.sources().settings(purpose).unwrap_or_else(|problems| {
            panic!("{}", messages(&problems).join("\n"));
        })
    }

    fn problems(&self, purpose: &Purpose) -> Vec<String> {
        messages(&self.sources().settings(purpose).unwrap_err())
    }
}

fn messages(problems: &[ConfigProblem]) -> Vec<String> {
    assert!(problems.iter().all(|problem| !problem.hint.is_empty()));
    problems
        .iter()
        .map(|problem| match &problem.origin {
            SettingOrigin::Line { line, .. } => format!("{line}: {}", problem.message),
            origin => format!("{origin}{}", problem.message),
        })
        .collect()
}

const TWO: &str = "email = 'a@example.com'\nagree_tos = true\nkey = 'ecdsa-p384'\nprofile = 'of the file'\n\
    [[certificate]]\nnames = ['example.com', 'www.example.com']\nverify = 'example.com:443'\n\
    [[certificate]]\nnames = ['10.0.0.1']\nname = 'inside'\nca = 'https://ca.internal/dir'\nkey = 'rsa-2048'\n";

#[test]
fn certificate_table_overrides_file_and_is_overridden_by_environment() {
    let mut case = Case::new(TWO);
    let settings = case.settings(&Purpose::All);
    let [first, second] = settings.certificates.as_slice() else {
        panic!("{settings:?}");
    };
    assert_eq!(first.key_type(), KeyType::EcdsaP384);
    assert_eq!(first.verify.len(), 1);
    assert_eq!(second.lineage.as_str(), "inside");
    assert_eq!(second.key_type(), KeyType::Rsa2048);
    assert_eq!(second.profile.as_deref(), Some("of the file"));
    assert_eq!(second.ca.directory.identity(), "https://ca.internal/dir");

    case = case
        .set("CERTS_KEY", "rsa-3072")
        .set("CERTS_PROFILE", "of the environment");
    case.options.text("key", Some("rsa-4096"));
    for certificate in case.settings(&Purpose::All).certificates {
        assert_eq!(certificate.key_type(), KeyType::Rsa4096);
        assert_eq!(certificate.profile.as_deref(), Some("of the environment"));
    }
}

#[test]
fn command_with_some_names_means_whole_configured_certificate() {
    let named = |names: &[&str]| {
        let mut case = Case::new(TWO);
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        case.options.names(&names);
        let mut settings = case.settings(&Purpose::Named);
        assert_eq!(settings.certificates.len(), 1);
        settings.certificates.remove(0)
    };
    let example = named(&["example.com"]);
    assert_eq!(example.names.len(), 2);
    assert_eq!(example.verify.len(), 1);
    assert_eq!(named(&["inside"]).names.len(), 1);
    assert_eq!(named(&["inside"]).key_type(), KeyType::Rsa2048);
    let more = named(&["example.com", "new.example.com"]);
    assert_eq!(more.names.len(), 2);
    assert!(more.names.contains(&"new.example.com".parse().unwrap()));
    assert_eq!(more.verify.len(), 1, "it is that certificate still");
    let other = named(&["other.example.com"]);
    assert_eq!(
        (other.key_type(), other.verify.len()),
        (KeyType::EcdsaP384, 0)
    );
}

#[test]
fn environment_alone_configures_container() {
    let case = Case::new("")
        .set(
            "CERTS_DOMAINS",
            "example.com www.example.com; api.example.com",
        )
        .set("CERTS_EMAIL", "a@example.com")
        .set("CERTS_AGREE_TOS", "true")
        .set("CERTS_DEPLOY", "nginx")
        .set("CERTS_ADMIN_LISTEN", "off")
        .set("CERTS_OUTPUT_DIR", "/certs");
    let settings = case.settings(&Purpose::All);
    assert_eq!(settings.certificates.len(), 2);
    assert_eq!(settings.admin_listen, None);
    assert_eq!(settings.output.directory, Path::new("/certs"));
    assert_eq!(settings.certificates[1].deploy, ["nginx".parse().unwrap()]);
    assert_eq!(case.settings(&Purpose::Named).certificates.len(), 2);
}

#[test]
fn stored_settings_hold_below_environment() {
    let file = "ca = 'https://ca.internal/dir'\n[[certificate]]\nnames = 'a.internal'\n\
        [deploy.proxy]\nkind = 'haproxy'\nsocket = '/run/haproxy.sock'\ncertificate = '/etc/haproxy/a.pem'\n";
    let mut stored = Case::new(file)
        .settings(&Purpose::All)
        .certificates
        .remove(0);
    stored.key = KeyType::Rsa2048.into();
    // The second has keys that its short form cannot express.
    stored.deploy.push("nginx:/run/nginx.pid".parse().unwrap());
    assert_eq!(stored.deploy.len(), 2);
    let remembered = Remembered::Whole(Box::new(stored.clone()));
    let kept = |case: &Case| case.sources().remembered(&remembered);
    assert_eq!(kept(&Case::new("")).unwrap(), stored);
    let overridden = Case::new("").set("CERTS_KEY", "rsa-4096");
    assert_eq!(kept(&overridden).unwrap().key_type(), KeyType::Rsa4096);
    let overridden = Case::new("").set("CERTS_DEPLOY", "coturn");
    assert_eq!(
        kept(&overridden).unwrap().deploy,
        ["coturn".parse().unwrap()]
    );
}

#[test]
fn stored_settings_that_became_invalid_have_own_problems() {
    let mut stored = Case::new("agree_tos = true\n[[certificate]]\nnames = 'a.example.com'\n")
        .settings(&Purpose::All)
        .certificates
        .remove(0);
    stored.challenge = ChallengeSettings::Webroot(webroot::Settings::new("/nowhere/at/all".into()));
    let case = Case::new("");
    let remembered = |stored: &CertificateSettings| {
        let stored = Remembered::Whole(Box::new(stored.clone()));
        case.sources()
            .remembered(&stored)
            .unwrap()
            .cannot_order
            .clone()
    };
    let cause = remembered(&stored).unwrap();
    assert!(cause.why.contains("/nowhere/at/all"), "{cause:?}");
    assert!(!cause.only_when_due, "{cause:?}");
    stored.names = vec!["*.example.com".parse().unwrap()];
    stored.challenge = ChallengeSettings::default();
    let cause = remembered(&stored).unwrap();
    assert!(
        cause.only_when_due && cause.hint.contains("certs delete a.example.com"),
        "{cause:?}"
    );
    stored.names = vec!["a.example.com".parse().unwrap()];
    assert_eq!(remembered(&stored), None);
    assert!(case.settings(&Purpose::All).certificates.is_empty());
}

#[test]
fn deploy_tables_serve_every_certificate_without_deploy() {
    let case = Case::new(
        "agree_tos = true\n[deploy.web]\nkind = 'nginx'\npid_file = 'nginx.pid'\n[deploy.other]\nkind = 'nginx'\n\
         [[certificate]]\nnames = 'a.example.com'\n[[certificate]]\nnames = 'b.example.com'\ndeploy = 'web'\n\
         [[certificate]]\nnames = 'c.example.com'\ndeploy = []\n",
    );
    let deploy = |index: usize| {
        let settings = case.settings(&Purpose::All);
        let specs = settings.certificates[index].deploy.iter();
        specs.map(ToString::to_string).collect::<Vec<_>>()
    };
    // A relative path starts at the file.
    let web = format!(
        "nginx:{}",
        case.directory.path().join("nginx.pid").display()
    );
    assert_eq!(deploy(0), ["nginx", &web]);
    assert_eq!(deploy(1), [web]);
    assert!(deploy(2).is_empty());
}

#[test]
fn settings_survive_json_round_trip() {
    let settings = Case::new(TWO).settings(&Purpose::All);
    let json = serde_json::to_string(&settings).unwrap();
    assert_eq!(serde_json::from_str::<Settings>(&json).unwrap(), settings);
}

#[test]
fn problems_are_reported_at_once_with_line() {
    let case = Case::new(
        "emial = 'a@example.com'\nagree_tos = 'yes'\nkey = 'dsa'\nwebroot = '/srv'\nhttp_listen = ['0.0.0.0:80',\n 'nowhere']\n\
         [renew]\nschedule = 'daily'\n[admin]\nlisten = 9180\n[outptu]\nowner = 'a'\n\
         [[certificate]]\nnames = ['a..b', 'example.com']\nverify = 7\ndata_dir = '/x'\n\
         [[certificate]]\nname = 'empty'\n\
         [[certificate]]\nnames = ['example.com', 'example.com']\nname = '../x'\n",
    )
    .set("CERTS_CA", "http://ca.example/dir")
    .set("CERTS_WEBROT", "/srv");
    let problems = case.problems(&Purpose::All);
    let expected = [
        "1: unknown key `emial`",
        "2: the value is neither true nor false",
        "3: unknown key type `dsa`",
        "5: webroot and http_listen exclude each other",
        "6: `nowhere`: invalid socket address syntax",
        "8: `daily`: a cron expression has 5 or 6 fields, not 1",
        "10: the value is not a text",
        "11: unknown key `outptu`",
        "14: `a..b` is not a valid DNS name: it has an empty label",
        "15: the value is not a text",
        "16: unknown key `data_dir`",
        "17: the certificate has no names",
        "19: two certificates are named `example.com`",
        "19: example.com is given twice",
        "21: `../x` is not a valid name of a certificate",
        "CERTS_CA: unknown CA `http://ca.example/dir`: a directory is read over https only",
        "CERTS_WEBROT: unknown variable",
    ];
    for line in expected {
        assert!(
            problems.contains(&line.to_owned()),
            "no `{line}` in {problems:#?}"
        );
    }
}

#[test]
fn contradictory_or_unissuable_settings_are_refused() {
    let refused = |file: &str, words: &str| {
        let problems = Case::new(file).problems(&Purpose::All);
        let found = problems.iter().any(|problem| problem.contains(words));
        assert!(found, "no `{words}` for {file:?}: {problems:#?}");
    };
    let one = "\n[[certificate]]\nnames = ['example.com']\n";
    refused(one, "terms of service of letsencrypt");
    refused(
        "agree_tos = true\n[[certificate]]\nnames = 'db.internal'",
        "public CA",
    );
    refused(
        "agree_tos = true\n[[certificate]]\nnames = '*.example.com'",
        "wildcard",
    );
    refused(
        "agree_tos = true\n[[certificate]]\nnames = '8.8.8.8'",
        "one profile only",
    );
    refused(
        &format!("ca = 'embedded'\nca_root = 'x'{one}"),
        "does not use ca_root",
    );
    refused(
        &format!("ca = 'https://ca'\nca_root = '/absent'{one}"),
        "the root /absent",
    );
    refused(
        &format!("ca = 'https://ca'\neab_kid = 'kid'{one}"),
        "eab_hmac_file",
    );
    refused(
        &format!("ca = 'https://ca'\nwebroot = '/absent'{one}"),
        "not a directory",
    );
    refused(
        &format!("ca = 'https://ca'\ndeploy = ['apache:web']{one}"),
        "apache",
    );
    refused(&format!("challenge = 'dns-0'{one}"), "dns-0");
    refused(
        &format!("agree_tos = true\nfallback_ca = 'google-staging'{one}"),
        "is a staging directory",
    );
    refused(
        &format!(
            "agree_tos = true\nfallback_ca = 'https://acme-v02.api.letsencrypt.org/directory'{one}"
        ),
        "is the same as the CA",
    );
    refused(
        "ca = 'https://ca'\nagree_tos = true\nfallback_ca = 'zerossl'\n[[certificate]]\nnames = 'db.internal'",
        "public CA",
    );
    refused(
        &format!("ca = 'https://ca'\nfallback_ca = 'zerossl'{one}"),
        "terms of service of zerossl",
    );
    refused("renew = { deploy = 'on-schedule' }", "no schedule");
    refused(
        "[output]\ngroup = 'no-such-group-here'",
        "no-such-group-here",
    );
    refused("[deploy.web]\nkind = 'haproxy'", "haproxy");
    refused(
        "[deploy.web]\npid_file = '/run/nginx.pid'",
        "without `kind`",
    );
    refused("[certificate]\nnames = ['example.com']", "not a list");
    let mut case = Case::new("");
    case.options.names(&["a.internal".into()]);
    case.options.text("ca", Some("embedded"));
    assert_eq!(
        case.settings(&Purpose::Named).certificates.len(),
        1,
        "any name is allowed there"
    );
}

#[test]
fn invalid_toml_is_reported_once_a_line() {
    let problems =
        Case::new("email = 'a@example.com'\nagree_tos =\nkey = = 1\n").problems(&Purpose::All);
    let lines: Vec<&str> = problems
        .iter()
        .filter_map(|message| message.split(':').next())
        .collect();
    assert_eq!(lines, ["2", "3"], "{problems:#?}");
    let twice =
        Case::new("email = 'a@example.com'\nemail = 'b@example.com'\n").problems(&Purpose::All);
    assert_eq!(twice.len(), 1, "{twice:?}");
    assert!(twice[0].starts_with("2: "), "{twice:?}");
}

#[test]
fn named_file_must_exist() {
    let case = Case::new("").set("CERTS_CONFIG", "/absent/certs.toml");
    assert!(
        case.sources().settings(&Purpose::All).is_ok(),
        "the option wins"
    );
    let sources = Sources::read(&Options::default(), &case.environment);
    let problems = messages(&sources.settings(&Purpose::All).unwrap_err());
    assert!(
        problems[0].starts_with("CERTS_CONFIG: /absent/certs.toml: "),
        "{problems:?}"
    );
}

#[test]
fn schema_has_exactly_the_keys_that_are_read() {
    let schema: Value = serde_json::from_str(&schema()).unwrap();
    let (mut everywhere, mut own) = (BTreeSet::new(), BTreeSet::new());
    everywhere.insert("certificate");
    own.extend(NAMING.map(|key| key.name));
    for key in keys() {
        match key.section() {
            Some((section, name)) => {
                everywhere.insert(section);
                assert!(properties(table(&schema, section)).contains(name));
            }
            None => {
                everywhere.insert(key.name);
                own.extend((key.scope == Scope::Certificate).then_some(key.name));
            }
        }
    }
    assert_eq!(properties(&schema), everywhere);
    assert_eq!(properties(&schema["$defs"]["Certificate"]), own);
    let sections = SECTIONS.map(|(section, _)| table(&schema, section));
    for closed in [&schema, &schema["$defs"]["Certificate"]]
        .into_iter()
        .chain(sections)
    {
        assert_eq!(closed["additionalProperties"], false, "{closed:#}");
    }
}

/// The table of a section; a key may have its name too.
fn table<'s>(schema: &'s Value, section: &str) -> &'s Value {
    let property = &schema["properties"][section];
    property["anyOf"].get(1).unwrap_or(property)
}

fn properties(schema: &Value) -> BTreeSet<&str> {
    let keys = schema["properties"].as_object().unwrap().keys();
    keys.map(String::as_str).collect()
}

#[test]
fn keys_have_unique_names_and_docs() {
    let mut seen = BTreeSet::new();
    for key in keys().chain(&NAMING) {
        assert!(!key.doc.is_empty(), "{}", key.name);
        assert!(seen.insert(key.variable()), "{}", key.name);
        let section = key.section().map(|(section, _)| section);
        let known = section.is_none_or(|name| SECTIONS.iter().any(|(known, _)| *known == name));
        assert!(known, "{}: no such section", key.name);
    }
}

/// The line of the file that sets `key` to `value`.
fn line(key: &Key, value: &str) -> String {
    match key.value_type {
        ValueType::Boolean | ValueType::Number => format!("{} = {value}\n", key.name),
        _ => format!("{} = '{value}'\n", key.name),
    }
}

#[test]
fn defaults_of_table_are_those_that_apply() {
    let table = "[[certificate]]\nnames = 'a.internal'\n";
    let least = "ca = 'https://ca.internal/dir'\ndocker.host = 'tcp://proxy'\n";
    let without = Case::new(&format!("{least}{table}")).settings(&Purpose::All);
    let mut tried = 0;
    for key in keys().filter(|key| key.name != "ca") {
        if let DefaultValue::Value(value) = key.default {
            let set = Case::new(&format!("{least}{}{table}", line(key, value)));
            let mut set = set.settings(&Purpose::All);
            set.file.clone_from(&without.file);
            assert_eq!(set, without, "{}", key.name);
            tried += 1;
        }
    }
    assert_eq!(tried, 16);
    assert_eq!(DirectoryUrl::default().to_string(), "letsencrypt");
}

#[test]
fn choices_take_every_word() {
    for key in keys() {
        let ValueType::Choice(words) = key.value_type else {
            continue;
        };
        for word in words() {
            let mut problems = Problems::default();
            read::read("certs.toml", &line(key, word), &mut problems);
            assert!(problems.is_empty(), "{} = {word}", key.name);
        }
    }
}

#[test]
fn examples_are_read_without_problem() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut read = 0;
    for entry in std::fs::read_dir(examples).unwrap() {
        let path = entry.unwrap().path();
        // The others are of servers, which the black-box tests start with them.
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let source = std::fs::read_to_string(&path).unwrap();
        let case = Case::new(&source);
        let root = rcgen::generate_simple_self_signed(["ca.internal".to_owned()]).unwrap();
        let place = case.directory.path().join("private-ca-root.pem");
        std::fs::write(place, root.cert.pem()).unwrap();
        let settings = case.settings(&Purpose::All);
        let any = !settings.certificates.is_empty() || settings.docker.is_some();
        assert!(any, "{}", path.display());
        read += 1;
    }
    assert_eq!(read, 6);
}

#[test]
fn annotated_example_has_every_key() {
    let example = include_str!("../../config/certs.toml");
    let on: String = example
        .lines()
        .map(|line| {
            line.strip_prefix('#')
                .filter(|rest| {
                    rest.starts_with(|c: char| c.is_ascii_lowercase())
                        || rest.starts_with("[deploy.")
                })
                .unwrap_or(line)
        })
        .map(|line| format!("{line}\n"))
        .collect();
    for key in keys().chain(&NAMING) {
        let key = key.name.rsplit('.').next().unwrap();
        assert!(
            on.lines().any(|line| line.starts_with(&format!("{key} = "))
                || line.starts_with(&format!("[{key}."))),
            "{key} is not in config/certs.toml"
        );
    }
    let mut problems = Problems::default();
    read::read("certs.toml", &on, &mut problems);
    // Both ways of answering HTTP-01 are shown, and only they exclude each other.
    let problems = messages(&problems.sorted());
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("exclude each other"), "{problems:?}");
}

proptest::proptest! {
    #[test]
    fn reader_never_panics(text in "(\\PC|\n|\\[|\\]|=|'){0,80}") {
        read::read("certs.toml", &text, &mut Problems::default());
    }
}

#[test]
fn command_with_some_names_means_whole_certificate_of_environment() {
    let mut case = Case::new("agree_tos = true\n").set(
        "CERTS_DOMAINS",
        "example.com www.example.com; api.example.com",
    );
    case.options.names(&["example.com".to_owned()]);
    let settings = case.settings(&Purpose::Named);
    let [only] = settings.certificates.as_slice() else {
        panic!("{settings:?}");
    };
    assert_eq!(only.names.len(), 2, "{only:?}");
    assert!(case.sources().configures(&only.lineage));
    case.options.names(&["other.example.com".to_owned()]);
    let settings = case.settings(&Purpose::Named);
    assert!(!case.sources().configures(&settings.certificates[0].lineage));
}

#[test]
fn certs_name_belongs_to_certs_domains() {
    let case = || Case::new("agree_tos = true\n").set("CERTS_NAME", "shop");
    let lineages = |settings: Settings| -> Vec<String> {
        let certificates = settings.certificates.iter();
        certificates.map(|one| one.lineage.to_string()).collect()
    };
    let one = case().set("CERTS_DOMAINS", "example.com www.example.com");
    assert_eq!(lineages(one.settings(&Purpose::All)), ["shop"]);
    assert_eq!(lineages(one.settings(&Purpose::Named)), ["shop"]);
    let mut other = case().set("CERTS_DOMAINS", "example.com");
    other.options.names(&["other.example.com".to_owned()]);
    assert_eq!(
        lineages(other.settings(&Purpose::Named)),
        ["other.example.com"]
    );
    let mut alone = case();
    assert!(alone.settings(&Purpose::All).certificates.is_empty());
    alone.options.names(&["example.com".to_owned()]);
    assert_eq!(lineages(alone.settings(&Purpose::Named)), ["shop"]);
    let several = case().set("CERTS_DOMAINS", "a.example.com; b.example.com");
    assert!(several.problems(&Purpose::All)[0].starts_with("CERTS_NAME: "));
}
