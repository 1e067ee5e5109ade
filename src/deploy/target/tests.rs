//! What is written of a server is read back, and what is wrong is named.

use super::*;

#[test]
fn what_is_written_is_read_back() {
    for text in [
        "nginx",
        "nginx:/run/nginx.pid",
        "haproxy:/run/haproxy/admin.sock",
        "coturn",
        "coturn:/run/turnserver.pid",
        "dovecot",
        "postfix",
        "envoy:/etc/envoy/sds.yaml",
        "traefik:/etc/traefik/tls.yaml",
        "caddy",
        "caddy:localhost:2020",
        "file:/srv/tls/{name}.pem",
        "directory:/srv/tls",
        "systemd:nginx.service",
        "docker:web",
        "docker:web:USR1",
        "exec:/usr/local/bin/hook",
        "https://hooks.example/x?y",
    ] {
        let spec = text.parse::<Spec>().unwrap();
        assert_eq!(spec.to_string(), text);
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(json, format!("{text:?}"));
        assert_eq!(serde_json::from_str::<Spec>(&json).unwrap(), spec);
    }
    for text in [
        "",
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
        assert!(text.parse::<Spec>().is_err(), "{text}");
    }
}

#[test]
fn a_long_form_is_stored_whole_and_wrong_keys_are_named() {
    let keys = |pairs: &[(&str, &[&str])]| -> Keys {
        let pairs = pairs.iter();
        pairs
            .map(|(key, values)| {
                let values = values.iter().map(|value| (*value).to_owned());
                ((*key).to_owned(), values.collect())
            })
            .collect()
    };
    let command = keys(&[("command", &["/bin/hook", "-x"]), ("timeout", &["5"])]);
    let spec = Spec::long("exec", command).unwrap();
    let json = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<Spec>(&json).unwrap(), spec);
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
        let error = Spec::long(kind, given).unwrap_err();
        assert_eq!(error.key.as_deref(), wrong, "{}", error.message);
    }
}
