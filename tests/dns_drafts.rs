//! The challenges of drafts, DNS-ACCOUNT-01 and DNS-PERSIST-01, against Pebble and a real BIND.

use std::process::Command;

use crate::support::bind::Bind;
use crate::support::{Pebble, certs, run};

struct Lab {
    bind: Bind,
    pebble: Pebble,
}

impl Lab {
    fn start() -> Option<Self> {
        let bind = Bind::start()?;
        let pebble = Pebble::start_asking(0, Some(bind.server()))?;
        Some(Self { bind, pebble })
    }

    fn issue(&self, challenge: &str, arguments: &[&str]) -> Command {
        let mut command = certs(&self.pebble.path(""));
        command.args(["issue", "--agree-tos", "--challenge", challenge]);
        command.args(["--ca", &self.pebble.directory_url(), "--ca-root"]);
        command.arg(self.pebble.path("root.pem")).args(arguments);
        command.env("CERTS_RESOLVER", self.bind.server().to_string());
        command
    }

    fn renew(&self, code: i32) -> String {
        run(
            certs(&self.pebble.path("")).args(["renew", "--force"]),
            code,
        )
    }
}

#[test]
fn draft_is_refused_unless_it_is_listed_as_experimental() {
    let directory = tempfile::tempdir().unwrap();
    for (challenge, more) in [
        ("dns-account-01", &["--dns", "self"][..]),
        ("dns-persist-01", &[]),
    ] {
        let mut command = certs(directory.path());
        command.args([
            "issue",
            "a.example.com",
            "--ca",
            "https://ca.internal/dir",
            "--challenge",
            challenge,
        ]);
        command.args(more);
        let printed = run(&mut command, 2);
        assert!(
            printed.contains(&format!("{challenge} is experimental")),
            "{printed}"
        );
        assert!(
            printed.contains(&format!("--experimental {challenge}")),
            "{printed}"
        );
        // Another draft is not meant.
        let other = if challenge == "dns-account-01" {
            "dns-persist-01"
        } else {
            "dns-account-01"
        };
        run(command.env("CERTS_EXPERIMENTAL", other), 2);
    }
}

#[test]
fn record_of_the_account_proves_wildcards_by_dns_account_01() {
    let Some(lab) = Lab::start() else {
        return;
    };
    let names = [
        "example.com",
        "*.example.com",
        "--dns",
        "rfc2136",
        "--experimental",
        "dns-account-01",
    ];
    let mut command = lab.issue("dns-account-01", &names);
    let printed = run(lab.bind.configure(&mut command), 0);
    assert!(printed.contains("issued; generation 0001"), "{printed}");
    let printed = lab.renew(0);
    assert!(printed.contains("issued; generation 0002"), "{printed}");
    // All of them below one label of the account, and none at the name of DNS-01.
    let log = lab.bind.log().replace('\'', "");
    let changed: Vec<&str> = log
        .lines()
        .filter(|line| line.contains(" an RR at "))
        .collect();
    assert_eq!(changed.len(), 8, "{log}");
    let name = changed[0]
        .split(" an RR at ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap();
    let label = name.strip_suffix("._acme-challenge.example.com").unwrap();
    assert_eq!((label.len(), &label[..1]), (17, "_"), "{label}");
    assert!(changed.iter().all(|line| line.contains(name)), "{log}");
    assert_eq!(lab.bind.values(name), "");
}

#[test]
fn one_record_proves_names_for_good_by_dns_persist_01() {
    let Some(lab) = Lab::start() else {
        return;
    };
    let experimental = ["--experimental", "dns-persist-01"];
    let name = "_validation-persist.example.com";
    let names = ["example.com", "*.example.com", "alias.example.com"];
    let mut command = lab.issue("dns-persist-01", &names);
    command.args(experimental);
    // What to create is printed, for all names at once.
    let printed = run(&mut command, 5);
    let value = |name: &str| {
        let start = format!("{name}.  3600  IN  TXT  \"");
        let (_, rest) = printed
            .split_once(&start)
            .unwrap_or_else(|| panic!("{printed}"));
        rest.split('"').next().unwrap().to_owned()
    };
    let wanted = value(name);
    assert!(
        wanted.starts_with("pebble.test; accounturi=https://localhost:"),
        "{wanted}"
    );
    assert!(wanted.ends_with("; policy=wildcard"), "{wanted}");
    let other = value("_validation-persist.alias.example.com");
    assert_eq!(format!("{other}; policy=wildcard"), wanted);
    assert!(
        printed.contains("hint: create the record once"),
        "{printed}"
    );
    // A record that does not fit is named with the reason.
    for (found, words) in [
        (
            "other.example; accounturi=x",
            "no record there names this CA",
        ),
        (
            "pebble.test; accounturi=https://localhost/other; policy=wildcard",
            "that of another account",
        ),
        (&other, "lacks policy=wildcard"),
        (
            &format!("{wanted}; persistUntil=1500000000"),
            "it ended at 2017-07-14",
        ),
    ] {
        lab.bind.change(&format!("delete {name} TXT"));
        lab.bind.change(&format!("add {name} 1 TXT \"{found}\""));
        let printed = run(&mut command, 5);
        assert!(printed.contains(words), "{found}: {printed}");
    }
    // One that ends soon proves the names, and the hint says how it lasts.
    let soon = time::OffsetDateTime::now_utc().unix_timestamp() + 86_400;
    lab.bind.change(&format!("delete {name} TXT"));
    let ending = format!("{wanted}; persistUntil={soon}");
    lab.bind.change(&format!("add {name} 1 TXT \"{ending}\""));
    lab.bind.change(&format!(
        "add _validation-persist.alias.example.com 1 TXT \"{other}\""
    ));
    let printed = run(&mut command, 0);
    assert!(printed.contains("issued; generation 0001"), "{printed}");
    let hint = "hint: give it a later persistUntil, or none";
    assert!(printed.contains(hint), "{printed}");
    lab.bind.change(&format!("delete {name} TXT"));
    lab.bind.change(&format!("add {name} 1 TXT \"{wanted}\""));
    // Renewals need no option, no credentials and no change of DNS.
    let before = lab.bind.log().matches(" an RR at ").count();
    let printed = lab.renew(0);
    assert!(printed.contains("issued; generation 0002"), "{printed}");
    assert!(!printed.contains(hint), "{printed}");
    assert_eq!(lab.bind.log().matches(" an RR at ").count(), before);
    lab.bind.change(&format!("delete {name} TXT"));
    let printed = lab.renew(5);
    assert!(printed.contains(&wanted), "{printed}");
}
