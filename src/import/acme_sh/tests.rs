//! The reader of acme.sh's state, with valid and invalid files.

use super::super::tests::{found, invalid, laid_out, remark_lines};
use super::super::{Tool, read as read_any};
use super::*;

fn conf(more: &str) -> String {
    format!("Le_Domain='a.example'\nLe_Alt='b.example'\nLe_API='https://ca.example/dir'\n{more}\n")
}

fn only(more: &str) -> (ImportedCertificate, Vec<String>) {
    let directory = laid_out(&[
        ("a.example_ecc/a.example.conf", &conf(more)),
        ("a.example_ecc/a.example.key", "key"),
        ("a.example_ecc/fullchain.cer", "chain"),
    ]);
    let mut found = read_any(Tool::AcmeSh, directory.path()).unwrap();
    let remarks = remark_lines(&found, directory.path());
    (found.certificates.pop().unwrap(), remarks)
}

fn encoded(text: &str) -> String {
    format!(
        "__ACME_BASE64__START_{}__ACME_BASE64__END_",
        BASE64_STANDARD.encode(text)
    )
}

#[test]
fn acme_sh_certificate_is_read_with_settings() {
    let reload = encoded("/usr/local/bin/reload");
    let (one, remarks) = only(&format!(
        "Le_Webroot='no'\nLe_HTTPPort='5002'\nLe_ReloadCmd='{reload}'\nLe_Preferred_Chain='{}'",
        encoded("Some Root")
    ));
    assert_eq!(one.lineage.as_str(), "a.example");
    assert_eq!(
        (one.key_pem.expose(), one.chain_pem.as_str()),
        ("key", "chain")
    );
    assert_eq!(
        one.ca,
        IssuingCa::Directory("https://ca.example/dir".into())
    );
    let expected = RenewalSettings {
        http01: Some(Http01::Listen(Some("0.0.0.0:5002".parse().unwrap()))),
        reuse_key: true,
        preferred_chain: Some("Some Root".into()),
        programs: vec!["/usr/local/bin/reload".into()],
        ..RenewalSettings::default()
    };
    assert_eq!((one.renewal, remarks), (expected, vec![]));
    let (one, _) = only("Le_Webroot='/srv/www'\nLe_ForceNewDomainKey='1'");
    assert_eq!(one.renewal.http01, Some(Http01::Webroot("/srv/www".into())));
    assert!(!one.renewal.reuse_key);
}

#[test]
fn unsupported_settings_are_reported() {
    let (one, remarks) = only(&format!(
        "Le_Webroot='dns_cf'\nLe_PreHook='{}'\nLe_ReloadCmd='{}'\nLe_RenewHook='__ACME_BASE64__START_!'\n\
         Le_RealKeyPath='/etc/nginx/key.pem'",
        encoded("true"),
        encoded("service nginx force-reload")
    ));
    assert_eq!(one.renewal.http01, None);
    insta::assert_snapshot!(remarks.join("\n"));
}

#[test]
fn rsa_and_ecdsa_of_one_name_are_two_certificates() {
    let certificate = |directory: &str| {
        let conf = (format!("{directory}/a.example.conf"), conf(""));
        let key = (format!("{directory}/a.example.key"), "key".to_owned());
        [
            conf,
            key,
            (format!("{directory}/fullchain.cer"), "chain".to_owned()),
        ]
    };
    let files = [certificate("a.example"), certificate("a.example_ecc")].concat();
    let files: Vec<(&str, &str)> = files
        .iter()
        .map(|(path, text)| (path.as_str(), text.as_str()))
        .collect();
    let found = found(Tool::AcmeSh, &files);
    let names: Vec<&str> = found
        .certificates
        .iter()
        .map(|one| one.lineage.as_str())
        .collect();
    assert_eq!(names, ["a.example", "a.example-ecc"]);
}

#[test]
fn invalid_entries_are_reported_and_others_read() {
    let found = found(
        Tool::AcmeSh,
        &[
            ("nokey.example/nokey.example.conf", &conf("")),
            ("noca.example/noca.example.conf", "Le_Domain='noca.example'"),
            ("bad.example/bad.example.conf", "Le_Domain='../x'"),
            ("null.example/null.example.conf", "\0"),
            ("http.header", ""),
            ("ca/ca.example/dir/account.key", "pem"),
            (
                "ca/ca.example/dir/ca.conf",
                "ACCOUNT_URL='https://ca.example/acct/1'\nCA_EMAIL='me@a.example'\n",
            ),
            ("ca/old.example/account.key", "pem"),
            ("ca/odd.example/dir/account.key", "pem"),
            ("ca/odd.example/dir/ca.conf", "\0"),
        ],
    );
    let accounts: Vec<_> = found
        .accounts
        .iter()
        .map(|one| (&one.ca, one.url.as_deref()))
        .collect();
    let directory = IssuingCa::Directory("https://ca.example/dir".into());
    let host = IssuingCa::Host("old.example".into());
    assert_eq!(
        accounts,
        [
            (&directory, Some("https://ca.example/acct/1")),
            (&host, None)
        ]
    );
    let lines: Vec<String> = invalid(&found)
        .into_iter()
        .map(|(subject, why)| format!("{subject}: {why}"))
        .collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn account_belongs_to_the_ca_on_its_port() {
    let account = |servers: &[&str], place: &str, url: Option<&str>| {
        let servers = servers.iter().map(|server| (*server).to_owned()).collect();
        ca_of(place, url, &servers)
    };
    let directory = |url: &str| IssuingCa::Directory(url.to_owned());
    let both = [
        "https://ca.example:14000/dir",
        "https://ca.example:15000/dir",
    ];
    for (server, url) in [
        (both[0], None),
        (both[1], Some("https://ca.example:15000/account/1")),
    ] {
        assert_eq!(account(&both, "ca.example/dir", url), directory(server));
    }
    let elsewhere = ["https://ca.example/directory"];
    let url = Some("https://ca.example:14000/account/1");
    assert_eq!(
        account(&elsewhere, "ca.example/dir", url),
        directory(both[0])
    );
    let other = Some("https://accounts.example:1/1");
    let plain = directory("https://ca.example/dir");
    assert_eq!(account(&elsewhere, "ca.example/dir", other), plain);
    assert_eq!(
        account(&["https://ca.example:1"], "ca.example", None),
        directory("https://ca.example:1")
    );
    assert_eq!(
        account(&elsewhere, "ca.example", None),
        IssuingCa::Host("ca.example".into())
    );
}
