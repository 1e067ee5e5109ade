//! The commands that hints name work as they are written, on the same files; and the names that commands take.

use std::process::Command;

use certs::identifier::Identifier;
use certs::lineage::Lineage;
use certs::record::{Record, Revision};
use certs::store::{Store, fs::FileStore};

use crate::support::embedded::EmbeddedCa;
use crate::support::{NOBODY, certs, run};

/// The command without any variable for its files.
fn bare(ca: &EmbeddedCa, arguments: &[&str]) -> Command {
    let mut command = certs(&ca.path(""));
    command
        .env_remove("CERTS_DATA_DIR")
        .env_remove("CERTS_OUTPUT_DIR");
    command.args(arguments);
    command
}

#[test]
fn hints_repeat_the_options_that_choose_files() {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&["shop.example.com"]), 0);
    let (data, out) = (ca.path("data"), ca.path("out"));
    let (data, out) = (data.display().to_string(), out.display().to_string());
    let printed = run(
        &mut bare(&ca, &["status", "absent.example.com", "--data-dir", &data]),
        2,
    );
    assert!(
        printed.contains(&format!("hint: certs --data-dir {data} status lists")),
        "{printed}"
    );
    let printed = run(
        &mut bare(&ca, &["--data-dir", "/tmp/it's", "status", "absent"]),
        2,
    );
    assert!(
        printed.contains(r"certs --data-dir '/tmp/it'\''s' status"),
        "{printed}"
    );
    let printed = run(certs(&ca.path("")).args(["status", "absent"]), 2);
    assert!(printed.contains("hint: certs status lists"), "{printed}");
    // The hint is the command that does it.
    let places = ["--data-dir", &data, "--output-dir", &out];
    let mut delete = bare(&ca, &places);
    let printed = run(delete.args(["delete", "shop.example.com"]), 2);
    let (_, hint) = printed.split_once("to delete it: certs ").unwrap();
    let hint: Vec<&str> = hint.split_whitespace().collect();
    assert_eq!(hint[..4], places);
    run(&mut bare(&ca, &hint), 0);
    assert!(!ca.path("data/records/shop.example.com").exists());
}

#[test]
fn refusal_of_fewer_names_suggests_a_name_that_is_free() {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&["a.example.com", "b.example.com"]), 0);
    run(
        &mut ca.issue(&["d.example.com", "--name", "b.example.com"]),
        0,
    );
    let printed = run(&mut ca.issue(&["b.example.com"]), 2);
    let (_, rest) = printed
        .split_once("for a second certificate: certs issue ")
        .unwrap();
    let (suggested, _) = rest.split_once(';').unwrap();
    let suggested: Vec<&str> = suggested.split_whitespace().collect();
    assert_eq!(suggested, ["b.example.com", "--name", "b.example.com-2"]);
    run(&mut ca.issue(&suggested), 0);
    assert!(ca.path("out/live/b.example.com-2").exists());
}

#[test]
fn every_command_takes_a_lineage_or_a_name_of_the_certificate() {
    let ca = EmbeddedCa::start();
    let verb = |arguments: &[&str], code| run(certs(&ca.path("")).args(arguments), code);
    let both = ["a.example.com", "b.example.com", "--name", "shop"];
    run(&mut ca.issue(&both), 0);
    run(
        &mut ca.issue(&["b.example.com", "c.example.com", "--name", "second"]),
        0,
    );
    for name in ["shop", "a.example.com", "A.example.com"] {
        let printed = verb(&["status", name, "--json"], 0);
        assert!(printed.contains(r#""name":"shop""#), "{name}: {printed}");
    }
    let all = verb(&["list", "--json"], 0);
    let shared = verb(&["status", "b.example.com", "--json"], 0);
    for name in ["shop", "second"] {
        assert!(
            all.contains(name) && shared.contains(name),
            "{all} {shared}"
        );
    }
    let printed = verb(&["delete", "b.example.com", "--yes"], 2);
    assert!(
        printed.contains("second, shop; nothing was deleted"),
        "{printed}"
    );
    verb(&["delete", "a.example.com", "--yes"], 0);
    verb(&["status", "shop"], 2);
    verb(&["delete", "b.example.com", "--yes"], 0);
    assert_eq!(verb(&["list", "--json"], 0).trim(), "[]");
}

#[tokio::test]
async fn reload_before_the_first_issuance_names_the_command_that_issues() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path().join("data")).unwrap();
    let name = Identifier::parse("a.example.com").unwrap();
    let record = Record::new(
        Lineage::of(&name),
        [name].into(),
        "https://ca.invalid".into(),
    );
    store.save(&record, Revision(0), None).await.unwrap();
    for verb in ["reload", "rollback"] {
        let mut command = certs(directory.path());
        let printed = run(
            command
                .args([verb, "a.example.com"])
                .env("CERTS_AGREE_TOS", "true"),
            2,
        );
        assert!(
            printed.contains("nothing is issued yet"),
            "{verb}: {printed}"
        );
        assert!(
            printed.contains("hint: certs renew a.example.com issues it"),
            "{verb}: {printed}"
        );
    }
}

/// `[output] group` is the remedy for a key that a server's user cannot read: the next command of any kind
/// opens what is published already.
#[test]
fn output_group_opens_published_files_to_it() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can give files to another group");
        return;
    }
    let readable = |ca: &EmbeddedCa| {
        let key = ca.path("out/live/a.example.com/privkey.pem");
        let mut cat = Command::new("cat");
        let read = cat.arg(key).uid(NOBODY).gid(4242).output().unwrap();
        read.status.success()
    };
    for verb in [&["renew"][..], &["reload"], &["issue"]] {
        let ca = EmbeddedCa::start();
        std::fs::set_permissions(ca.path(""), PermissionsExt::from_mode(0o755)).unwrap();
        run(&mut ca.issue(&["a.example.com"]), 0);
        assert!(!readable(&ca));
        let mut command = match verb {
            ["issue"] => ca.issue(&["a.example.com"]),
            verb => {
                let mut command = certs(&ca.path(""));
                command.args(verb);
                command
            }
        };
        run(command.env("CERTS_OUTPUT_GROUP", "4242"), 0);
        assert!(readable(&ca), "{verb:?}");
        for path in [
            "out",
            "out/live",
            "out/archive",
            "out/archive/a.example.com",
        ] {
            let mode = std::fs::metadata(ca.path(path))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o7777, 0o2750, "{path}");
        }
    }
}
