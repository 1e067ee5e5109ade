//! The reader of certbot's state, with valid and invalid files.

use super::super::tests::{found, invalid, laid_out, remark_lines};
use super::super::{Tool, read as read_any};
use super::*;

const ACCOUNT: &str = "accounts/ca.example/acme/dir/4d2";

fn conf(more: &str) -> String {
    format!(
        "version = 5.8.0\narchive_dir = /etc/letsencrypt/archive/a\n# Options used in the renewal process\n\
         [renewalparams]\naccount = 4d2\nserver = https://ca.example/acme/dir\n{more}\n"
    )
}

fn only(more: &str) -> (ImportedCertificate, Vec<String>) {
    let directory = laid_out(&[
        ("renewal/a.example.conf", &conf(more)),
        ("archive/a.example/privkey1.pem", "key"),
        ("archive/a.example/fullchain1.pem", "chain"),
        (
            "live/a.example/privkey.pem",
            "-> ../../archive/a.example/privkey1.pem",
        ),
        (
            "live/a.example/fullchain.pem",
            "-> ../../archive/a.example/fullchain1.pem",
        ),
    ]);
    let mut found = read_any(Tool::Certbot, directory.path()).unwrap();
    let remarks = remark_lines(&found, directory.path());
    (found.certificates.pop().unwrap(), remarks)
}

#[test]
fn lineage_is_read_with_settings() {
    let (one, remarks) = only(
        "authenticator = standalone\nhttp01_port = 5002\nhttp01_address = 127.0.0.1\nreuse_key = True\n\
         preferred_chain = Some Root\nallow_subset_of_names = True\nrequired_profile = shortlived\n\
         installer = nginx\nrenew_hook = /usr/local/bin/reload",
    );
    assert_eq!(one.lineage.as_str(), "a.example");
    assert_eq!(
        (one.key_pem.expose(), one.chain_pem.as_str()),
        ("key", "chain")
    );
    assert_eq!(
        one.ca,
        IssuingCa::Directory("https://ca.example/acme/dir".into())
    );
    assert_eq!(one.account.as_deref(), Some("4d2"));
    let expected = RenewalSettings {
        http01: Some(Http01::Listen(Some("127.0.0.1:5002".parse().unwrap()))),
        reuse_key: true,
        partial: true,
        preferred_chain: Some("Some Root".into()),
        profile: Some("shortlived".into()),
        nginx: true,
        programs: vec!["/usr/local/bin/reload".into()],
    };
    assert_eq!(one.renewal, expected);
    assert_eq!(
        remarks,
        ["manual: your servers: replace ROOT/live/a.example/ by LIVE/ in their configuration"]
    );
}

#[test]
fn authenticators_are_imported_or_reported() {
    let http01 = |more: &str| {
        let (one, remarks) = only(more);
        (one.renewal.http01, remarks.join("\n"))
    };
    let webroot = Some(Http01::Webroot("/srv/www".into()));
    for more in [
        "authenticator = webroot\nwebroot_path = /srv/www,\n[[webroot_map]]\na.example = /srv/www",
        "authenticator = webroot\n[[webroot_map]]\na.example = /srv/www\nb.example = /srv/www",
    ] {
        assert_eq!(http01(more).0, webroot, "{more}");
    }
    let (each, remarks) = http01(
        "authenticator = webroot\nwebroot_path = /srv/b,\n[[webroot_map]]\na.example = /srv/a\nb.example = /srv/b",
    );
    let of_each = [("a.example", "/srv/a"), ("b.example", "/srv/b")];
    let of_each = of_each.map(|(name, root)| (Identifier::parse(name).unwrap(), root.into()));
    assert_eq!(each, Some(Http01::Webroots(of_each.into())), "{remarks}");
    assert_eq!(
        http01("authenticator = standalone").0,
        Some(Http01::Listen(None))
    );
    for (more, words) in [
        (
            "authenticator = webroot\nwebroot_path = /a, /b",
            "2 directories",
        ),
        ("authenticator = webroot\nwebroot_path = a", "1 directories"),
        (
            "authenticator = dns-cloudflare",
            "dns-cloudflare: credentials of DNS providers are not taken",
        ),
        ("authenticator = nginx", "certs install nginx"),
        (
            "authenticator = manual\x1b[2J",
            "manual\\u{1b}[2J has no counterpart",
        ),
    ] {
        let (none, remarks) = http01(more);
        assert_eq!(none, None, "{more}");
        assert!(remarks.contains(words), "{more}: {remarks}");
    }
}

#[test]
fn unsupported_settings_are_reported() {
    let (_, remarks) = only(
        "pre_hook = systemctl stop nginx\npost_hook = systemctl start nginx\nrenew_hook = systemctl reload nginx\n\
         installer = apache\nmust_staple = True\nautorenew = False",
    );
    insta::assert_snapshot!(remarks.join("\n"));
}

#[test]
fn long_text_of_the_source_cuts_no_hint() {
    let long = "x".repeat(5000);
    let (_, remarks) = only(&format!("authenticator = {long}\ninstaller = {long}"));
    let ends = ["another server uses that port", "--deploy systemd:UNIT"];
    for end in ends {
        assert!(remarks.iter().any(|one| one.ends_with(end)), "{remarks:?}");
    }
}

#[test]
fn global_hooks_apply_to_each_certificate() {
    let found = found(
        Tool::Certbot,
        &[
            ("renewal/a.example.conf", &conf("renew_hook = /x")),
            ("renewal/b.example.conf", &conf("")),
            ("live/a.example/privkey.pem", ""),
            ("live/a.example/fullchain.pem", ""),
            ("live/b.example/privkey.pem", ""),
            ("live/b.example/fullchain.pem", ""),
            ("renewal-hooks/deploy/1-nginx", ""),
            ("renewal-hooks/deploy/1-nginx~", ""),
            ("renewal-hooks/pre/stop", ""),
        ],
    );
    let programs: Vec<Vec<String>> = found
        .certificates
        .iter()
        .map(|one| {
            let names = one
                .renewal
                .programs
                .iter()
                .map(|path| path.file_name().unwrap());
            names
                .map(|name| name.to_string_lossy().into_owned())
                .collect()
        })
        .collect();
    assert_eq!(programs, [vec!["1-nginx", "x"], vec!["1-nginx"]]);
    assert_eq!(found.remarks[0].subject, "renewal-hooks/pre");
}

#[test]
fn invalid_entries_are_reported_and_others_read() {
    let found = found(
        Tool::Certbot,
        &[
            ("renewal/good.example.conf", &conf("")),
            ("live/good.example/privkey.pem", ""),
            ("live/good.example/fullchain.pem", ""),
            ("renewal/nokey.example.conf", &conf("")),
            ("live/nokey.example/fullchain.pem", ""),
            ("renewal/away.example.conf", &conf("")),
            ("live/away.example/privkey.pem", "-> /etc/hostname"),
            ("renewal/cut.example.conf", &conf("")),
            (
                "live/cut.example/privkey.pem",
                "-> ../../archive/cut.example/privkey3.pem",
            ),
            ("renewal/nonsense.example.conf", "\u{1b}[2J nonsense"),
            ("renewal/null.example.conf", "server = \0"),
            ("renewal/noserver.example.conf", "[renewalparams]\n"),
            ("renewal/..conf", &conf("")),
            ("renewal/a b.conf", &conf("")),
            ("renewal/README", ""),
        ],
    );
    assert_eq!(found.certificates.len(), 1);
    let lines: Vec<String> = invalid(&found)
        .into_iter()
        .map(|(subject, why)| format!("{subject}: {why}"))
        .collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn accounts_are_found_below_their_ca() {
    let found = found(
        Tool::Certbot,
        &[
            ("renewal/README", ""),
            (&format!("{ACCOUNT}/private_key.json"), "{}"),
            (
                &format!("{ACCOUNT}/regr.json"),
                r#"{"body": {"contact": ["mailto:me@a.example"]}, "uri": "https://ca.example/7"}"#,
            ),
            ("accounts/other.example/dir/1/private_key.json", "{}"),
            ("accounts/other.example/dir/2/private_key.json", "{}"),
            ("accounts/other.example/dir/2/regr.json", "7 8"),
        ],
    );
    let account = &found.accounts[0];
    assert_eq!(
        account.ca,
        IssuingCa::Directory("https://ca.example/acme/dir".into())
    );
    assert_eq!(account.url.as_deref(), Some("https://ca.example/7"));
    assert_eq!(account.email.as_deref(), Some("me@a.example"));
    assert!(matches!(&account.key, ImportedKey::Jwk(key) if key.expose() == "{}"));
    assert_eq!(found.accounts[1].url, None);
    assert_eq!(
        invalid(&found),
        [(
            "account 2".to_owned(),
            "invalid JSON in regr.json".to_owned()
        )]
    );
}

#[test]
fn directory_without_renewal_is_refused() {
    let directory = laid_out(&[("certificates/a.json", "{}")]);
    let error = read_any(Tool::Certbot, directory.path()).unwrap_err();
    assert!(
        error.ends_with("is not a directory of certbot: no renewal/ found"),
        "{error}"
    );
}

#[test]
fn account_of_moved_ca_is_found_through_link() {
    let directory = laid_out(&[
        ("renewal/README", ""),
        ("accounts/old.example/dir/4d2/private_key.json", "{}"),
        ("accounts/ca.example/acme/dir", "-> ../../old.example/dir"),
        // A link to its own directory.
        ("accounts/old.example/dir/self", "-> ."),
    ]);
    let found = read_any(Tool::Certbot, directory.path()).unwrap();
    let accounts = found.accounts.iter();
    let mut cas: Vec<String> = accounts
        .map(|one| format!("{:?} {}", one.ca, one.name))
        .collect();
    cas.sort();
    assert_eq!(cas[0], "Directory(\"https://ca.example/acme/dir\") 4d2");
    assert!(
        cas.iter()
            .any(|ca| ca.contains("https://old.example/dir\"")),
        "{cas:?}"
    );
}
