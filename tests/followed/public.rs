//! Hints that name Let's Encrypt, followed at a CA that answers at its staging URL behind a proxy.

use std::process::Command;

use crate::followed::printed_command;
use crate::support::embedded::EmbeddedCa;
use crate::support::proxy::{Manner, Proxy};
use crate::support::{assert_says, certs, run};
use crate::takeover::{letsencrypt, pair};

const NAME: &str = "a.example.com";

#[test]
fn hints_that_name_lets_encrypt_are_followed() {
    let mut own = String::new();
    let ca = EmbeddedCa::with(|settings| {
        own = settings.base_url.replace("https://", "");
        settings.base_url = "https://acme-staging-v02.api.letsencrypt.org".to_owned();
    });
    let proxy = Proxy::start(Manner::To(own));
    let listen = format!("127.0.0.1:{}", ca.http_port);
    let (url, root) = (proxy.url(""), ca.path("root.pem"));
    // A machine that reaches and trusts that CA.
    let on = |mut command: Command, code| {
        command.env("CERTS_PROXY", &url).env("CERTS_CA_ROOT", &root);
        run(command.env("CERTS_HTTP_LISTEN", &listen), code)
    };
    let verb = |words: &[&str]| {
        let mut command = certs(&ca.path(""));
        command.args(words);
        command
    };
    // A CA without a staging directory.
    let zerossl = ["--ca", "zerossl", "--agree-tos", "--email", "a@example.com"];
    let printed = on(
        verb(&[&["issue", NAME, "--dry-run"], &zerossl[..]].concat()),
        2,
    );
    let words = printed_command(&printed, "hint: certs ", " tests names");
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    assert_says(
        &on(verb(&words), 0),
        &["dry run: a.example.com would be issued"],
    );
    // A certificate whose user has agreed to nothing.
    let source = ca.path("letsencrypt");
    letsencrypt(&source, &[(NAME, "", &pair(&[NAME], 60))]);
    run(
        &mut verb(&["import", "certbot", source.to_str().unwrap()]),
        0,
    );
    let printed = on(verb(&["renew", "--dry-run"]), 2);
    let words = "repeat the command with CERTS_AGREE_TOS=true in its environment";
    assert_says(&printed, &[words]);
    let agreed = |words: &[&str]| {
        let mut command = verb(words);
        command.env("CERTS_AGREE_TOS", "true");
        on(command, 0)
    };
    assert_says(&agreed(&["renew", "--dry-run"]), &["would be issued"]);
    // A command without a dry run.
    let mut command = verb(&["reload"]);
    let printed = run(command.env("CERTS_DRY_RUN", "true"), 2);
    for before in ["hint: use certs ", "or certs "] {
        let after = if before.starts_with('h') { "," } else { "\n" };
        let words = printed_command(&printed, before, after);
        let words = words.iter().map(|word| word.replace("NAME", NAME));
        let words: Vec<String> = words.collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        assert_says(&agreed(&words), &["would be issued"]);
    }
}
