//! The reader of Traefik's state, with valid and invalid files.

use super::super::tests::{invalid, laid_out};
use super::super::{Tool, read as read_any};
use super::*;

fn state(certificates: &Value) -> String {
    let account = serde_json::json!({
        "Email": "me@a.example", "KeyType": "4096", "PrivateKey": "AAAA",
        "Registration": {"body": {"status": "valid"}, "uri": "https://ca.example/acct/1"},
    });
    serde_json::json!({
        "le": {"Account": account, "Certificates": certificates},
        "empty": {"Account": null, "Certificates": null},
        "lost": {"Account": {"Registration": null}, "Certificates": []},
    })
    .to_string()
}

#[test]
fn resolvers_have_account_and_certificates() {
    let pem = |text: &str| BASE64_STANDARD.encode(text);
    let certificates = serde_json::json!([
        {"domain": {"main": "a.example", "sans": ["b.example"]}, "certificate": pem("chain"), "key": pem("key"), "Store": "default"},
        {"domain": {"main": "c.example"}, "certificate": "!", "key": pem("key")},
        {"domain": {"main": 7}}, 7,
    ]);
    let directory = laid_out(&[("acme.json", &state(&certificates))]);
    for path in [
        directory.path().to_owned(),
        directory.path().join("acme.json"),
    ] {
        let found = read_any(Tool::Traefik, &path).unwrap();
        let one = &found.certificates[0];
        assert_eq!(
            (one.lineage.as_str(), one.chain_pem.as_str()),
            ("a.example", "chain")
        );
        assert_eq!(
            (one.key_pem.expose(), one.account.as_deref()),
            ("key", Some("le"))
        );
        assert_eq!(found.accounts[0].ca, IssuingCa::Host("ca.example".into()));
        assert!(
            matches!(&found.accounts[0].key, ImportedKey::Base64(key) if key.expose() == "AAAA")
        );
        let subjects: Vec<String> = invalid(&found)
            .into_iter()
            .map(|(subject, _)| subject)
            .collect();
        assert_eq!(
            subjects,
            ["c.example", "a certificate", "a certificate", "lost"]
        );
    }
}

#[test]
fn invalid_acme_json_is_refused() {
    for text in ["", "[]", "7", "{", "\u{0}"] {
        let directory = laid_out(&[("acme.json", text)]);
        assert!(
            read_any(Tool::Traefik, directory.path()).is_err(),
            "{text:?}"
        );
    }
    assert!(read_any(Tool::Traefik, Path::new("/nowhere/at/all")).is_err());
}
