//! The reader of lego's state, with valid and invalid files.

use super::super::tests::{found, invalid, laid_out};
use super::super::{Tool, read as read_any};
use super::*;

const ABOUT: &str =
    r#"{"domain": "*.a.example", "certUrl": "https://ca.example:14000/cert/7", "x": 1}"#;

#[test]
fn certificates_and_accounts_are_read() {
    let found = found(
        Tool::Lego,
        &[
            ("certificates/_.a.example.json", ABOUT),
            ("certificates/_.a.example.key", "key"),
            (
                "certificates/_.a.example.crt",
                "-----BEGIN CERTIFICATE-----\nleaf\n",
            ),
            ("certificates/_.a.example.issuer.crt", "issuer"),
            (
                "accounts/ca.example_14000/me@a.example/account.json",
                r#"{"email": "me@a.example", "registration": {"uri": "https://ca.example:14000/acct/1"}}"#,
            ),
            (
                "accounts/ca.example_14000/me@a.example/keys/me@a.example.key",
                "pem",
            ),
            (
                "accounts/ca.example_14000/you@a.example/account.json",
                r#"{"registration": null}"#,
            ),
            (
                "accounts/ca.example_14000/you@a.example/keys/you@a.example.key",
                "pem",
            ),
        ],
    );
    let one = &found.certificates[0];
    assert_eq!(one.lineage.as_str(), "_wildcard_.a.example");
    assert_eq!(one.ca, IssuingCa::Host("ca.example:14000".into()));
    assert_eq!(one.chain_pem, "-----BEGIN CERTIFICATE-----\nleaf\nissuer");
    let [first, second] = found.accounts.as_slice() else {
        panic!("{:?}", found.accounts);
    };
    assert_eq!(
        first.url.as_deref(),
        Some("https://ca.example:14000/acct/1")
    );
    assert_eq!(
        (&second.ca, &second.url),
        (&IssuingCa::Host("ca.example:14000".into()), &None)
    );
}

#[test]
fn invalid_entries_are_reported_and_others_read() {
    let found = found(
        Tool::Lego,
        &[
            ("certificates/1.json", ABOUT),
            ("certificates/2.json", "["),
            ("certificates/3.json", r#"{"domain": 7}"#),
            (
                "certificates/4.json",
                r#"{"domain": "../x", "certUrl": "https://c/1"}"#,
            ),
            (
                "certificates/5.json",
                r#"{"domain": "a.example", "certUrl": "http://c/1"}"#,
            ),
            ("certificates/6.json", "-> /etc/hostname"),
            (
                "accounts/host/email/account.json",
                r#"{"registration": []}"#,
            ),
        ],
    );
    assert!(found.certificates.is_empty());
    let lines: Vec<String> = invalid(&found)
        .into_iter()
        .map(|(subject, why)| format!("{subject}: {why}"))
        .collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn directory_without_certificates_is_refused() {
    let directory = laid_out(&[("renewal/a.conf", "")]);
    assert!(read_any(Tool::Lego, directory.path()).is_err());
}
