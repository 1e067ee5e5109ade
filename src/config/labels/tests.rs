//! Labels: what they may request, what they may not, and how refusals are reported.

use super::*;
use crate::config::docker::{GRACE, Grace, LIMIT};
use crate::config::{Options, Purpose};

const FILE: &str = "email = 'a@example.com'\nagree_tos = true\ndeploy = 'web'\nprofile = 'file'\n\
    [docker]\nhost = 'tcp://proxy:2375'\nlimit = 3\n";
const TABLES: &str = "[[certificate]]\nnames = ['a.example.com', 'b.example.com']\n";

/// Sources with this file and this environment.
fn sources(file: &str, environment: &[(&str, &str)]) -> Sources {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("certs.toml");
    std::fs::write(&path, file.replace("deploy = 'web'\n", "")).unwrap();
    let mut options = Options::default();
    options.config(path.to_str());
    options.text("data_dir", Some("/data"));
    let environment = environment.iter().copied();
    let environment = environment.map(|(key, value)| (key.to_owned(), value.to_owned()));
    Sources::read(&options, &environment.collect())
}

fn request(container: &str, names: &str, keys: &[(&str, &str)]) -> Request {
    let keys = keys.iter().copied();
    Request {
        container: container.to_owned(),
        created: 0,
        label: "certs.domains".to_owned(),
        names: names.split(' ').map(|name| name.parse().unwrap()).collect(),
        keys: keys
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
    }
}

fn granted(sources: &Sources, requests: &[Request]) -> (Vec<CertificateSettings>, Vec<String>) {
    let settings = sources.settings(&Purpose::All).unwrap();
    let granted = sources.granted(&requests.iter().collect::<Vec<_>>(), &settings);
    let certificates = granted.certificates.into_iter();
    let refused = granted.refused.iter();
    (
        certificates.collect(),
        refused
            .map(|one| format!("{}{}", one.origin, one.message))
            .collect(),
    )
}

#[test]
fn label_wins_over_defaults_and_loses_to_table() {
    let environment = [
        ("CERTS_EMAIL", "all@example.com"),
        ("CERTS_VERIFY", "proxy:443"),
    ];
    let file = format!("{FILE}[deploy.web]\nkind = 'exec'\ncommand = '/bin/true'\n{TABLES}");
    let sources = sources(&file, &environment);
    let requests = [
        request(
            "web",
            "c.example.com",
            &[
                ("email", "own@example.com"),
                ("profile", "label"),
                ("deploy", "web, nginx"),
            ],
        ),
        request("plain", "d.example.com", &[("challenge", "http-01")]),
        request("taken", "a.example.com c.example.com", &[]),
        request("same", "b.example.com a.example.com", &[]),
    ];
    let (certificates, refused) = granted(&sources, &requests);
    let [web, plain] = certificates.as_slice() else {
        panic!("{certificates:?}");
    };
    assert_eq!(
        web.ca.email.as_deref(),
        Some("all@example.com"),
        "the account's"
    );
    assert_eq!(web.profile.as_deref(), Some("label"));
    assert_eq!((web.deploy.len(), web.verify.len()), (2, 1));
    assert_eq!(plain.ca.email.as_deref(), Some("all@example.com"));
    assert_eq!(plain.profile.as_deref(), Some("file"));
    assert_eq!(plain.deploy.len(), 1, "all tables");
    // The configuration has a certificate for the same set of names already: only the
    // other request is reported.
    assert_eq!(
        refused,
        [
            "container taken, certs.domains: the configuration has a certificate a.example.com, for a.example.com, b.example.com"
        ]
    );
}

#[test]
fn account_has_one_address_and_another_one_is_reported() {
    let sources = sources(FILE, &[]);
    let mail = |email| [("email", email)];
    let requests = [
        request("one", "c.example.com", &mail("one@example.com")),
        request("plain", "e.example.com", &[]),
        request("other", "f.example.com", &mail("two@example.com")),
    ];
    let settings = sources.settings(&Purpose::All).unwrap();
    let granted = sources.granted(&requests.iter().collect::<Vec<_>>(), &settings);
    let emails = granted
        .certificates
        .iter()
        .map(|one| one.ca.email.as_deref());
    let emails: BTreeSet<_> = emails.collect();
    assert_eq!(emails, [Some("one@example.com")].into());
    let remarks: Vec<_> = granted.remarks.iter().map(ConfigProblem::shown).collect();
    let [(message, _)] = remarks.as_slice() else {
        panic!("{remarks:?}")
    };
    assert_eq!(
        message,
        "container other, certs.email: two@example.com is not used: all certificates share one account at the CA, and c.example.com has one@example.com"
    );
    // Another CA has an account of its own.
    let test = [("email", "two@example.com"), ("ca", "letsencrypt-staging")];
    let requests = [requests[0].clone(), request("test", "g.example.com", &test)];
    let granted = sources.granted(&requests.iter().collect::<Vec<_>>(), &settings);
    assert_eq!(granted.remarks, []);
    assert_eq!(
        granted.certificates[1].ca.email.as_deref(),
        Some("two@example.com")
    );
    assert!(
        granted.certificates[1]
            .ca
            .directory
            .to_string()
            .contains("staging")
    );
}

#[test]
fn label_cannot_run_or_reach_what_is_not_named() {
    let sources = sources(FILE, &[("CERTS_DOCKER_ALLOW", "*.example.com, 192.0.2.1")]);
    for deploy in [
        "exec:/bin/sh",
        "https://evil.example.com",
        "haproxy:/run/other.sock",
        "docker:db:KILL",
        "file:/etc/passwd",
        "directory:/",
        "systemd:ssh.service",
        "nginx:/tmp/pid",
        "web",
    ] {
        let (certificates, refused) = granted(
            &sources,
            &[request("web", "a.example.com", &[("deploy", deploy)])],
        );
        assert!(certificates.is_empty(), "{deploy}");
        assert!(
            refused[0].starts_with("container web, certs.deploy: a label cannot deploy to"),
            "{refused:?}"
        );
    }
    for (names, fine) in [
        ("a.example.com", true),
        ("deep.a.example.com", true),
        ("example.com", false),
        ("badexample.com", false),
        ("a.example.com example.org", false),
        ("a.example.com.example.org", false),
    ] {
        assert_eq!(
            granted(&sources, &[request("web", names, &[])]).0.len() == 1,
            fine,
            "{names}"
        );
    }
}

#[test]
fn invalid_label_is_reported_and_not_counted() {
    let sources = sources(FILE, &[]);
    let requests = [
        request("odd", "a.example.com", &[("email", "nobody")]),
        request("inner", "wiki.internal", &[]),
        request("one", "b.example.com", &[]),
        request("two", "b.example.com c.example.com", &[]),
        request("three", "d.example.com", &[]),
        request("four", "e.example.com", &[]),
        request("five", "f.example.com", &[]),
    ];
    let (certificates, refused) = granted(&sources, &requests);
    assert_eq!(certificates.len(), 3);
    insta::assert_snapshot!(refused.join("\n"), @r"
    container odd, certs.email: invalid e-mail address `nobody`
    container inner, certs.domains: `wiki.internal` cannot get a certificate from a public CA: `.internal` is reserved for private use
    container four, certs.domains: containers request more than 3 certificates
    container five, certs.domains: containers request more than 3 certificates
    ");
    let none = self::sources(
        "email = 'a@example.com'\n[docker]\nhost = 'tcp://proxy'\n",
        &[],
    );
    let (_, refused) = granted(&none, &requests[2..3]);
    assert!(
        refused[0].starts_with("container one, certs.domains: the terms of service"),
        "{refused:?}"
    );
}

#[test]
fn docker_keys_are_read_and_need_host() {
    let docker = |file: &str| {
        let settings = sources(file, &[]).settings(&Purpose::All).unwrap();
        settings.docker
    };
    assert_eq!(docker("[docker]\ngrace = '1d'\n"), None);
    let all = docker("[docker]\nhost = 'unix:///run/proxy.sock'\ngrace = '12h'\nallow = 'example.com'\nlimit = 7\naccept_raw_socket = true\n").unwrap();
    assert_eq!(
        (all.grace.as_secs(), all.limit, all.accept_raw_socket),
        (43_200, 7, true)
    );
    assert_eq!(all.allow.len(), 1);
    let json = serde_json::to_string(&all).unwrap();
    assert_eq!(serde_json::from_str::<DockerSettings>(&json).unwrap(), all);
    let least = docker("[docker]\nhost = 'tcp://proxy'\n").unwrap();
    assert_eq!(
        (least.grace, least.limit, least.accept_raw_socket),
        (GRACE, LIMIT, false)
    );
    let wrong = "[docker]\nhost = 'ssh://proxy'\ngrace = '7 days'\nallow = ['a b']\nlimit = 0\naccept_raw_socket = 'no'\nlabels = true\n";
    let problems = sources(wrong, &[]).settings(&Purpose::All).unwrap_err();
    let messages = problems
        .iter()
        .map(|one| format!("{}\n  hint: {}", one.message, one.hint));
    insta::assert_snapshot!(messages.collect::<Vec<_>>().join("\n"), @r"
    `ssh://proxy`: it is neither http:// nor https://
      hint: write tcp://HOST:2375, or unix:///PATH
    invalid duration `7 days`
      hint: write 7d, 12h or 30m
    `a b` is not a valid DNS name: it contains a space, `,` or `;`
      hint: a name belongs here, or *.example.com for all below it
    `0`: number would be zero for non-zero type
      hint: a number from 1 to 65535
    the value is neither true nor false
      hint: write true or false
    unknown key `labels`
      hint: known here: host, accept_raw_socket, grace, allow, limit
    ");
}

#[test]
fn label_cannot_share_file() {
    let one = "[deploy.pair]\nkind = 'file'\npath = '/etc/proxy/site.pem'\n";
    let each = one.replace("site.pem", "{name}.pem");
    let requests = [
        request("web", "c.example.com", &[]),
        request("other", "d.example.com", &[]),
    ];
    let (certificates, refused) =
        granted(&sources(&format!("{FILE}{one}{TABLES}"), &[]), &requests);
    assert!(certificates.is_empty(), "{certificates:?}");
    assert_eq!(
        refused[0],
        "container web, certs.domains: /etc/proxy/site.pem: a.example.com is written there"
    );
    // Two labels cannot share a file either.
    let (certificates, refused) = granted(&sources(&format!("{FILE}{one}"), &[]), &requests);
    assert_eq!((certificates.len(), refused.len()), (1, 1));
    let (certificates, _) = granted(&sources(&format!("{FILE}{each}{TABLES}"), &[]), &requests);
    assert_eq!(certificates.len(), 2);
}

#[test]
fn label_may_use_defaults_of_all() {
    let environment = [("CERTS_DEPLOY", "exec:/bin/true")];
    let table = "[deploy.web]\nkind = 'nginx'\n";
    let settings = sources(&format!("{FILE}{table}"), &environment).settings(&Purpose::All);
    let mut may_come = settings.unwrap().docker.unwrap().deploy.into_iter();
    assert_eq!(may_come.next().unwrap().to_string(), "exec:/bin/true");
    assert_eq!(may_come.next().unwrap().to_string(), "nginx");
}

#[test]
fn grace_needs_unit() {
    for (text, seconds) in [
        ("0s", Some(0)),
        ("90m", Some(5400)),
        ("7d", Some(604_800)),
        ("366d", Some(31_622_400)),
        ("367d", None),
        ("7", None),
        ("d", None),
        ("-1d", None),
        ("1w", None),
        ("7dd", None),
        ("9999999999d", None),
        ("7µ", None),
    ] {
        assert_eq!(
            text.parse::<Grace>().ok().map(|grace| grace.0.as_secs()),
            seconds,
            "{text}"
        );
    }
}
