//! The reader of Caddy's state, with valid and invalid files.

use super::super::Tool;
use super::super::tests::{found, invalid};
use super::*;

const PLACE: &str = "certificates/ca.example-dir/wildcard_.a.example/wildcard_.a.example";

fn about(ca: &str) -> String {
    format!(
        r#"{{"sans": ["*.a.example"], "issuer_data": {{"ca": {ca}, "account": "https://ca.example/1"}}}}"#
    )
}

#[test]
fn certificates_and_accounts_are_read() {
    let users = "acme/ca.example-dir/users";
    let found = found(
        Tool::Caddy,
        &[
            (
                &format!("{PLACE}.json"),
                &about(r#""https://ca.example/dir""#),
            ),
            (&format!("{PLACE}.key"), "key"),
            (&format!("{PLACE}.crt"), "chain"),
            ("certificates/local/localhost/localhost.json", "{}"),
            (
                &format!("{users}/me@a.example/me.json"),
                r#"{"location": "https://ca.example/1", "contact": ["mailto:me@a.example"]}"#,
            ),
            (&format!("{users}/me@a.example/me.key"), "pem"),
            (
                &format!("{users}/default/default.json"),
                r#"{"contact": 7}"#,
            ),
            (&format!("{users}/default/default.key"), "pem"),
            ("acme/other-dir/users/default/default.json", "{}"),
        ],
    );
    let one = &found.certificates[0];
    assert_eq!(one.lineage.as_str(), "_wildcard_.a.example");
    assert_eq!(
        one.ca,
        IssuingCa::Directory("https://ca.example/dir".into())
    );
    let known = found
        .accounts
        .iter()
        .find(|account| account.url.is_some())
        .unwrap();
    assert_eq!(one.account.as_ref(), Some(&known.name));
    assert_eq!(known.email.as_deref(), Some("me@a.example"));
    assert_eq!(found.accounts.len(), 2);
    let subjects: Vec<&str> = found
        .remarks
        .iter()
        .map(|remark| remark.subject.as_str())
        .collect();
    assert_eq!(
        subjects,
        ["certificates/local", "account default (other-dir)", "Caddy"]
    );
}

#[test]
fn invalid_entries_are_reported_and_others_read() {
    let found = found(
        Tool::Caddy,
        &[
            (&format!("{PLACE}.json"), &about("7")),
            ("certificates/c/absent.example/other", ""),
            ("certificates/c/json.example/json.example.json", "{"),
        ],
    );
    let lines: Vec<String> = invalid(&found)
        .into_iter()
        .map(|(subject, why)| format!("{subject}: {why}"))
        .collect();
    insta::assert_snapshot!(lines.join("\n"));
}
