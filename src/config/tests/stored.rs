//! What is stored with a certificate: every key that has a part in making it.

use super::*;

/// Keys whose value belongs to a process, so that a certificate need not keep it.
const OF_THE_PROCESS: &[(&str, &str)] = &[
    ("data_dir", "it is where the certificate is stored"),
    ("store", "where a machine shares certificates"),
    ("seal_key_file", "the key of a machine's fleet"),
    ("seal_key_exec", "the key of a machine's fleet"),
    ("node", "the name of a machine"),
    ("role", "what a machine does for its fleet"),
    ("log_format", "the messages of one process"),
    ("admin.listen", "the endpoints of one process"),
    ("admin.hosts", "the endpoints of one process"),
    ("proxy", "the network of one process, with credentials"),
    ("drain", "how a process ends"),
    ("harden", "the sandbox of one process"),
    ("verify.every", "when a process looks"),
    ("verify.within", "how long a process waits"),
    ("renew.schedule", "when a process works"),
    ("renew.deploy", "when a process works"),
    ("docker.host", "the discovery of a process"),
    ("docker.accept_raw_socket", "the discovery of a process"),
    ("docker.grace", "the discovery of a process"),
    ("docker.allow", "the discovery of a process"),
    ("docker.limit", "the discovery of a process"),
];

/// A value of `key` that is not its default, and what it needs.
fn sample<'s>(key: &'s str, root: &'s str, hmac: &'s str) -> Vec<(&'s str, &'s str)> {
    let and = |value, more: &[(&'s str, &'s str)]| [&[(key, value)], more].concat();
    match key {
        "ca" | "fallback_ca" => and("https://other.internal/dir", &[]),
        "ca_root" => and(root, &[]),
        "email" => and("a@example.com", &[]),
        "agree_tos" | "reuse_key" | "partial" => and("true", &[]),
        "eab_kid" => and("kid", &[("eab_hmac_file", hmac)]),
        "eab_hmac_file" => and(hmac, &[("eab_kid", "kid")]),
        "fallback_eab_kid" => {
            let ca = ("fallback_ca", "https://other.internal/dir");
            and("kid", &[("fallback_eab_hmac_file", hmac), ca])
        }
        "fallback_eab_hmac_file" => {
            let ca = ("fallback_ca", "https://other.internal/dir");
            and(hmac, &[("fallback_eab_kid", "kid"), ca])
        }
        "challenge" => and("http-01", &[]),
        "experimental" => and("dns-persist-01", &[("challenge", "dns-persist-01")]),
        "http_listen" | "tls_listen" => and("127.0.0.1:8080", &[]),
        "dns" => and("self", &[]),
        "dns_listen" => and("127.0.0.1:5353", &[("dns", "self")]),
        "resolver" => and("192.0.2.53:5353", &[("dns", "self")]),
        "webroot" | "output_dir" => and("/", &[]),
        "key" => and("rsa-2048", &[]),
        "lifetime" => and("30d", &[]),
        "deploy" => and("coturn", &[]),
        "verify" => and("example.com:443", &[]),
        "output.owner" | "output.group" => and("1234", &[]),
        "output.links" => and("true", &[]),
        _ => and("text", &[]),
    }
}

#[test]
fn every_key_is_stored_with_the_certificate_or_named_as_the_process_s() {
    let directory = tempfile::tempdir().unwrap();
    let [root, hmac] = ["root", "hmac"].map(|name| directory.path().join(name));
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&root, made.cert.pem()).unwrap();
    std::fs::write(&hmac, "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA").unwrap();
    let (root, hmac) = (root.to_str().unwrap(), hmac.to_str().unwrap());
    let only = |given: &[(&str, &str)]| {
        let mut case = Case::new("").set("CERTS_DOMAINS", "a.internal");
        case = case.set("CERTS_CA", "https://ca.internal/dir");
        for (name, value) in given {
            let key = keys().find(|key| key.name == *name).unwrap();
            case = case.set(&key.variable(), value);
        }
        let sources = case.sources();
        let entries = sources.settings(&Purpose::All);
        let mut settings = entries.unwrap_or_else(|problems| {
            panic!("{given:?}: {}", messages(&problems).join("\n"));
        });
        settings.certificates.remove(0)
    };
    let plain = only(&[]);
    for key in keys() {
        if OF_THE_PROCESS.iter().any(|(name, _)| *name == key.name) {
            continue;
        }
        let given = sample(key.name, root, hmac);
        let settings = only(&given);
        // It is the default.
        assert!(
            settings != plain || key.name == "challenge",
            "{} is not kept",
            key.name
        );
        let json = serde_json::to_string(&settings).unwrap();
        let stored = Remembered::Whole(Box::new(serde_json::from_str(&json).unwrap()));
        let elsewhere = Case::new("").set("CERTS_OUTPUT_DIR", "/elsewhere");
        let kept = elsewhere.sources().remembered(&stored).unwrap();
        assert_eq!(kept, settings, "{}", key.name);
    }
}

#[test]
fn stored_targets_stay_and_none_is_there_twice() {
    let table = |name: &str, keys: &str| format!("[deploy.{name}]\n{keys}\n");
    let nginx = table(
        "web",
        "kind = 'nginx'\npid_file = '/run/a.pid'\ntimeout = '9m'",
    );
    let copy = table("copy", "kind = 'file'\npath = '/srv/copy.pem'");
    let of = |file: &str, stored: &[&str]| {
        let plain = Case::new("").set("CERTS_DOMAINS", "a.internal");
        let plain = plain.set("CERTS_CA", "https://ca.internal/dir");
        let mut made = plain.settings(&Purpose::All).certificates.remove(0);
        made.deploy = stored.iter().map(|spec| spec.parse().unwrap()).collect();
        let mut case = Case::new(file).set("CERTS_CA", "https://ca.internal/dir");
        case.options.names(&["a.internal".to_owned()]);
        let sources = case.sources();
        let sources = sources.with_stored(&Remembered::Whole(Box::new(made)));
        let deploy = sources
            .settings(&Purpose::Named)
            .unwrap()
            .certificates
            .remove(0)
            .deploy
            .clone();
        serde_json::to_string(&deploy).unwrap()
    };
    let both = format!("{nginx}{copy}");
    let web = r#"{"kind":"nginx","keys":{"pid_file":["/run/a.pid"],"timeout":["9m"]}}"#;
    for (file, stored, deploy) in [
        // Its own targets.
        (
            &*copy,
            &["nginx:/run/a.pid"][..],
            r#"["nginx:/run/a.pid"]"#.to_owned(),
        ),
        // One of them is a table of today.
        (
            &both,
            &["nginx:/run/a.pid", "coturn"],
            format!(r#"[{web},"coturn"]"#),
        ),
        (&both, &["coturn", "coturn"], r#"["coturn"]"#.to_owned()),
        // Tables alone, or none.
        (
            &both,
            &["nginx:/run/a.pid"],
            format!(r#"["file:/srv/copy.pem",{web}]"#),
        ),
        (&both, &[], format!(r#"["file:/srv/copy.pem",{web}]"#)),
    ] {
        assert_eq!(of(file, stored), deploy, "{stored:?} {file}");
    }
}
