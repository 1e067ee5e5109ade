//! What is read of certbot's state, and what is said of the rest.

use super::super::fixture::{broken, found, laid_out, told};
use super::super::read as read_any;
use super::*;

const ACCOUNT: &str = "accounts/ca.example/acme/dir/4d2";

fn conf(more: &str) -> String {
    format!(
        "version = 5.8.0\narchive_dir = /etc/letsencrypt/archive/a\n# Options used in the renewal process\n\
         [renewalparams]\naccount = 4d2\nserver = https://ca.example/acme/dir\n{more}\n"
    )
}

fn only(more: &str) -> (Certificate, Vec<String>) {
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
    let told = told(&found, directory.path());
    (found.certificates.pop().unwrap(), told)
}

#[test]
fn a_lineage_is_read_with_its_settings() {
    let (one, told) = only(
        "authenticator = standalone\nhttp01_port = 5002\nhttp01_address = 127.0.0.1\nreuse_key = True\n\
         preferred_chain = Some Root\nallow_subset_of_names = True\nrequired_profile = shortlived\n\
         installer = nginx\nrenew_hook = /usr/local/bin/tell",
    );
    assert_eq!(one.lineage.as_str(), "a.example");
    assert_eq!(
        (one.key_pem.expose(), one.chain_pem.as_str()),
        ("key", "chain")
    );
    assert_eq!(one.ca, Ca::Directory("https://ca.example/acme/dir".into()));
    assert_eq!(one.account.as_deref(), Some("4d2"));
    let expected = Renewal {
        proof: Some(Proof::Listen(Some("127.0.0.1:5002".parse().unwrap()))),
        reuse_key: true,
        partial: true,
        preferred_chain: Some("Some Root".into()),
        profile: Some("shortlived".into()),
        nginx: true,
        programs: vec!["/usr/local/bin/tell".into()],
    };
    assert_eq!(one.renewal, expected);
    assert_eq!(
        told,
        ["by hand: your servers: where they name ROOT/live/a.example/, name LIVE/ instead"]
    );
}

#[test]
fn authenticators_become_proofs_or_are_explained() {
    let proof = |more: &str| {
        let (one, told) = only(more);
        (one.renewal.proof, told.join("\n"))
    };
    let webroot = Some(Proof::Webroot("/srv/www".into()));
    for more in [
        "authenticator = webroot\nwebroot_path = /srv/www,\n[[webroot_map]]\na.example = /srv/www",
        "authenticator = webroot\n[[webroot_map]]\na.example = /srv/www\nb.example = /srv/www",
    ] {
        assert_eq!(proof(more).0, webroot, "{more}");
    }
    assert_eq!(
        proof("authenticator = standalone").0,
        Some(Proof::Listen(None))
    );
    for (more, words) in [
        (
            "authenticator = webroot\nwebroot_path = /a, /b",
            "2 directories",
        ),
        ("authenticator = webroot\nwebroot_path = a", "1 directories"),
        (
            "authenticator = dns-cloudflare",
            "dns-cloudflare: DNS-01 is not answered",
        ),
        ("authenticator = nginx", "certs install nginx"),
        (
            "authenticator = manual\x1b[2J",
            "manual\\u{1b}[2J has no counterpart",
        ),
    ] {
        let (none, told) = proof(more);
        assert_eq!(none, None, "{more}");
        assert!(told.contains(words), "{more}: {told}");
    }
}

#[test]
fn every_setting_without_a_counterpart_is_named() {
    let (_, told) = only(
        "pre_hook = systemctl stop nginx\npost_hook = systemctl start nginx\nrenew_hook = systemctl reload nginx\n\
         installer = apache\nmust_staple = True\nautorenew = False",
    );
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn the_hooks_of_all_are_those_of_each() {
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
fn what_is_broken_is_named_and_the_rest_is_read() {
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
    let broken: Vec<String> = broken(&found)
        .into_iter()
        .map(|(subject, why)| format!("{subject}: {why}"))
        .collect();
    insta::assert_snapshot!(broken.join("\n"));
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
        Ca::Directory("https://ca.example/acme/dir".into())
    );
    assert_eq!(account.url.as_deref(), Some("https://ca.example/7"));
    assert_eq!(account.email.as_deref(), Some("me@a.example"));
    assert!(matches!(&account.key, AccountKey::Jwk(key) if key.expose() == "{}"));
    assert_eq!(found.accounts[1].url, None);
    assert_eq!(
        broken(&found),
        [("account 2".to_owned(), "regr.json is no JSON".to_owned())]
    );
}

#[test]
fn another_directory_is_none_of_certbots() {
    let directory = laid_out(&[("certificates/a.json", "{}")]);
    let error = read_any(Tool::Certbot, directory.path()).unwrap_err();
    assert!(
        error.ends_with("is no directory of certbot: it has no renewal/"),
        "{error}"
    );
}

#[test]
fn the_account_of_a_ca_that_has_moved_is_found_behind_its_link() {
    let directory = laid_out(&[
        ("renewal/README", ""),
        ("accounts/old.example/dir/4d2/private_key.json", "{}"),
        ("accounts/ca.example/acme/dir", "-> ../../old.example/dir"),
        // In a circle.
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
