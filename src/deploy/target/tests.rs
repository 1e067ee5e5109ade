//! Targets: short and long forms survive a round trip, and errors name the invalid key.

use super::*;

mod reference;

fn keys(pairs: &[(&str, &[&str])]) -> TargetKeys {
    let pairs = pairs.iter();
    pairs
        .map(|(key, values)| {
            let values = values.iter().map(|value| (*value).to_owned());
            ((*key).to_owned(), values.collect())
        })
        .collect()
}

#[test]
fn short_form_is_read_back_and_stored_as_written() {
    for text in [
        "nginx",
        "nginx:/run/nginx.pid",
        "haproxy:/run/haproxy/admin.sock",
        "haproxy:127.0.0.1:9999",
        "haproxy:[::1]:9999",
        "coturn",
        "coturn:/run/turnserver.pid",
        "dovecot",
        "postfix",
        "envoy:/etc/envoy/sds.yaml",
        "traefik:/etc/traefik/tls.yaml",
        "caddy",
        "caddy:localhost:2020",
        "caddy:/run/caddy/admin.sock",
        "file:/srv/tls/{name}.pem",
        "directory:/srv/tls",
        "systemd:nginx.service",
        "docker:web",
        "docker:web:USR1",
        "exec:/usr/local/bin/hook",
        "https://hooks.example/x?y",
    ] {
        let spec = text.parse::<DeployTarget>().unwrap();
        assert_eq!(spec.short_form(), text);
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(json, format!("{text:?}"));
        assert_eq!(serde_json::from_str::<DeployTarget>(&json).unwrap(), spec);
    }
    for (text, wanted) in [
        ("haproxy:ipv4@127.0.0.1:9999", "haproxy:127.0.0.1:9999"),
        ("haproxy:unix@/run/h.sock", "haproxy:/run/h.sock"),
        (
            "caddy:unix//run/caddy/admin.sock",
            "caddy:/run/caddy/admin.sock",
        ),
    ] {
        assert_eq!(text.parse::<DeployTarget>().unwrap().short_form(), wanted);
    }
    for text in [
        "",
        "haproxy:abns@h",
        "nginx:",
        "apache",
        "haproxy",
        "exec:hook",
        "exec",
        "systemd",
        "docker:a/b",
        "docker:web:",
        "webhook:https://x",
        "ftp://x",
        "envoy",
    ] {
        assert!(text.parse::<DeployTarget>().is_err(), "{text}");
    }
}

#[test]
fn secrets_of_a_target_are_shown_nowhere() {
    let urls = [
        "https://u:TOKEN@h.example/TOKEN?TOKEN",
        "http://h.example/TOKEN",
    ];
    for url in urls {
        let spec = url.parse::<DeployTarget>().unwrap();
        let shown = format!("{spec} {spec:?} {}", spec.target().name());
        assert!(
            shown.contains("h.example") && !shown.contains("TOKEN"),
            "{shown}"
        );
    }
    for mistyped in [
        "htps://h/TOKEN",
        "https:/h/TOKEN",
        "slack:TOKEN",
        "webhook:https://h/TOKEN",
    ] {
        let error = mistyped.parse::<DeployTarget>().unwrap_err();
        assert!(!error.contains("TOKEN"), "{error}");
    }
    let address = "tcp://u:TOKEN@h:2375";
    for (kind, given) in [
        ("webhook", keys(&[("url", &["//h/TOKEN"])])),
        ("caddy", keys(&[("admin", &["http://u:TOKEN@h:2019"])])),
        (
            "docker",
            keys(&[("container", &["web"]), ("host", &[address])]),
        ),
    ] {
        let error = DeployTarget::long(kind, given).unwrap_err().message;
        assert!(!error.contains("TOKEN"), "{error}");
    }
}

#[test]
fn long_form_is_stored_whole_and_an_invalid_key_is_named() {
    let command = keys(&[("command", &["/bin/hook", "-x"]), ("timeout", &["5"])]);
    let spec = DeployTarget::long("exec", command).unwrap();
    let json = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<DeployTarget>(&json).unwrap(), spec);
    for (kind, given, wrong) in [
        ("apache", keys(&[]), Some("kind")),
        ("nginx", keys(&[("socket", &["/x"])]), Some("socket")),
        ("haproxy", keys(&[]), None),
        (
            "exec",
            keys(&[("command", &["/x"]), ("timeout", &["0"])]),
            Some("timeout"),
        ),
        (
            "docker",
            keys(&[("container", &["a?b"])]),
            Some("container"),
        ),
        (
            "docker",
            keys(&[("container", &["a"]), ("accept_raw_socket", &["yes"])]),
            Some("accept_raw_socket"),
        ),
        (
            "haproxy",
            keys(&[("socket", &["/a", "/b"])]),
            Some("socket"),
        ),
        (
            "file",
            keys(&[("path", &["/a"]), ("format", &["jks"])]),
            Some("format"),
        ),
        (
            "file",
            keys(&[("path", &["/a"]), ("format", &["pkcs12"])]),
            Some("format"),
        ),
        (
            "file",
            keys(&[("path", &["/a"]), ("mode", &["0999"])]),
            Some("mode"),
        ),
        (
            "file",
            keys(&[("path", &["/a"]), ("group", &["no such group"])]),
            Some("group"),
        ),
    ] {
        let error = DeployTarget::long(kind, given).unwrap_err();
        assert_eq!(error.key.as_deref(), wrong, "{}", error.message);
    }
}

/// A kind's example as a table of the configuration, without its header.
pub(super) fn long_form(kind: &TargetKind) -> String {
    let keys = kind.example.lines().map(|line| format!("{line}\n"));
    format!("kind = \"{}\"\n{}", kind.name, keys.collect::<String>())
}

/// The documentation of a kind.
pub(super) fn meaning(kind: &TargetKind) -> String {
    let meaning = &kind.described()["description"];
    meaning.as_str().unwrap_or_default().to_owned()
}

/// The target of a kind's example.
pub(super) fn example_of(kind: &TargetKind) -> DeployTarget {
    let example: toml::Table = toml::from_str(&long_form(kind)).unwrap();
    let mut keys = TargetKeys::new();
    for (key, value) in example {
        let values = match value {
            toml::Value::Array(values) => values,
            value => vec![value],
        };
        let text = |value: &toml::Value| value.as_str().map_or(value.to_string(), str::to_owned);
        keys.insert(key, values.iter().map(text).collect());
    }
    let named = keys.remove("kind").unwrap();
    assert_eq!(named, [kind.name]);
    DeployTarget::long(kind.name, keys).unwrap()
}

/// Targets that earlier versions stored are read and stored byte for byte.
#[test]
fn long_form_keeps_what_was_written() {
    for stored in [
        r#"{"kind":"docker","keys":{"accept_raw_socket":["false"],"container":["web"],"host":["tcp://proxy:2375"],"signal":["HUP"]}}"#,
        r#"{"kind":"docker","keys":{"command":["/bin/x","-y"],"container":["web"]}}"#,
        r#"{"kind":"exec","keys":{"command":["/bin/hook","-x"],"timeout":["1m"]}}"#,
        r#"{"kind":"exec","keys":{"command":["/bin/hook"],"timeout":["60"]}}"#,
        r#"{"kind":"file","keys":{"format":["pkcs12"],"group":["root"],"mode":["640"],"owner":["0"],"password_file":["/p"],"path":["/a"]}}"#,
        r#"{"kind":"directory","keys":{"owner":["root"],"path":["/srv/{name}"]}}"#,
        r#"{"kind":"haproxy","keys":{"certificate":["/a.pem"],"socket":["/s"]}}"#,
        r#"{"kind":"systemd","keys":{"bus":["unix:path=/bus"],"unit":["nginx"]}}"#,
        r#"{"kind":"webhook","keys":{"secret_file":["/s"],"url":["https://x"]}}"#,
    ] {
        let target: DeployTarget = serde_json::from_str(stored).unwrap();
        assert_eq!(serde_json::to_string(&target).unwrap(), stored);
    }
    let parse = |stored: &str| serde_json::from_str::<DeployTarget>(stored).unwrap();
    let one = parse(r#"{"kind":"exec","keys":{"command":["/x"],"timeout":["1m"]}}"#);
    let same = parse(r#"{"kind":"exec","keys":{"command":["/x"],"timeout":["60s"]}}"#);
    assert_ne!(one, same);
    assert_eq!(one.answers_within(), same.answers_within());
    let short = parse(r#"{"kind":"nginx","keys":{"pid_file":["/p"]}}"#);
    assert_eq!(serde_json::to_string(&short).unwrap(), r#""nginx:/p""#);
}

#[test]
fn unknown_word_suggests_the_nearest_known_one() {
    let message = |text: &str| text.parse::<DeployTarget>().unwrap_err();
    assert_eq!(
        message("ngnix"),
        "unknown deploy target `ngnix`; did you mean `nginx`?"
    );
    assert_eq!(
        message("hapoxy:/run/a.sock"),
        "unknown deploy target `hapoxy`; did you mean `haproxy`?"
    );
    assert_eq!(message("apache:web"), "unknown deploy target `apache`");
    assert_eq!(message("haproxy"), "`haproxy`: haproxy needs `socket`");
    let long = |kind: &str, given| DeployTarget::long(kind, keys(given)).unwrap_err().message;
    assert_eq!(
        long("haproxy", &[("sokcet", &["/s"])]),
        "haproxy has no key `sokcet`; did you mean `socket`?"
    );
    assert_eq!(
        long("systmd", &[]),
        "unknown deploy target `systmd`; did you mean `systemd`?"
    );
}

/// A path missing from a kind's [`Paths`] would be relative to the working directory.
#[test]
fn relative_path_of_every_kind_starts_at_its_file() {
    for kind in DeployTarget::kinds() {
        let shown = reference::keys_of(kind);
        let example: toml::Table = toml::from_str(&long_form(kind)).unwrap();
        let mut given = TargetKeys::new();
        for key in &shown {
            let value = match (key.value, example.get(&key.name)) {
                ("path", _) => format!("{NAME}-{}", key.name),
                (_, Some(toml::Value::String(text))) => text.clone(),
                _ => continue,
            };
            given.insert(key.name.clone(), vec![value]);
        }
        if kind.name == "exec" {
            given.insert("command".into(), vec!["/bin/hook".into()]);
        }
        let target = DeployTarget::long(kind.name, given).unwrap();
        let located = target.located(|path| Path::new("/base").join(path));
        let lineage = Lineage::parse("example.com").unwrap();
        let named = located.for_lineage(&lineage).keys();
        let paths = shown.iter().filter(|key| key.value == "path");
        let mut written = 0;
        for key in paths {
            let path = &named[&key.name][0];
            assert!(path.starts_with("/base/"), "{}: {path}", kind.name);
            written += usize::from(path.contains("example.com-"));
        }
        let writes = usize::from(located.writes().is_some());
        assert_eq!(
            written, writes,
            "{}: {{name}} is replaced in what it writes",
            kind.name
        );
    }
}

#[test]
fn every_kind_is_described_and_its_example_is_read() {
    let names: Vec<&str> = DeployTarget::kinds().map(|kind| kind.name).collect();
    let distinct: std::collections::BTreeSet<_> = names.iter().collect();
    assert_eq!(distinct.len(), names.len());
    for kind in DeployTarget::kinds() {
        assert!(meaning(kind).len() > 40, "{}", kind.name);
        for key in reference::keys_of(kind) {
            assert!(!key.meaning.is_empty(), "{}: {}", kind.name, key.name);
        }
        assert_eq!(example_of(kind).kind(), kind.name);
    }
}
