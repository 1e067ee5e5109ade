//! What is stored and may not be read is never taken for nothing: each command fails with exit 8, names the path,
//! and says how to run it.

use std::fs::{Permissions, create_dir, rename, set_permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use certs::identifier::Identifier;
use certs::lineage::Lineage;
use certs::record::{Record, Revision};
use certs::store::{Store, fs::FileStore};

use crate::support::embedded::EmbeddedCa;
use crate::support::{NOBODY, as_nobody, certs, run};

/// A data directory with a record of each name.
async fn stored(directory: &Path, names: &[&str]) {
    let store = FileStore::open(directory.join("data")).unwrap();
    for name in names {
        let name = Identifier::parse(name).unwrap();
        let (lineage, ca) = (Lineage::of(&name), "https://ca.invalid/directory".into());
        let record = Record::new(lineage, [name].into(), ca);
        store.save(&record, Revision(0), None).await.unwrap();
    }
}

/// Every command that reads the store.
const COMMANDS: &[&[&str]] = &[
    &["status"],
    &["status", "a.example.com"],
    &["status", "--json"],
    &["renew"],
    &["renew", "a.example.com"],
    &["reload"],
    &["rollback", "a.example.com"],
    &["issue", "a.example.com", "--agree-tos", "--ca", "embedded"],
    &[
        "run",
        "--admin-listen",
        "off",
        "--http-listen",
        "127.0.0.1:0",
    ],
    &["install", "nginx", "--undo"],
];

fn fails(mut command: Command, words: &[&str]) {
    let printed = run(&mut command, 8);
    for words in words.iter().chain(&["hint: "]) {
        assert!(
            printed.contains(words),
            "no `{words}` of {command:?}: {printed}"
        );
    }
}

#[tokio::test]
async fn commands_exit_8_when_another_user_owns_the_data_directory() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: a data directory of another user: needs root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    stored(directory.path(), &["a.example.com"]).await;
    let data = directory.path().join("data");
    let shown = data.display().to_string();
    for (owner, hint) in [(0, "sudo certs"), (12_345, "sudo -u '#12345' certs")] {
        chown(&data, Some(owner), Some(owner)).unwrap();
        for arguments in COMMANDS {
            let mut command = certs(directory.path());
            command.args(*arguments);
            fails(
                as_nobody(&command, directory.path()),
                &[&shown, "Permission denied", hint],
            );
        }
    }
}

#[tokio::test]
async fn commands_exit_8_when_the_records_cannot_be_reached() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    for spoil in [
        (|data| std::fs::write(data, "").unwrap()) as fn(&Path),
        |data| symlink(data, data).unwrap(),
        |data| {
            create_dir(data).unwrap();
            symlink("records", data.join("records")).unwrap();
        },
    ] {
        spoil(&data);
        for arguments in &COMMANDS[..9] {
            let mut command = certs(directory.path());
            command.args(*arguments);
            fails(command, &[&data.display().to_string()]);
        }
        match data.is_dir() {
            true => std::fs::remove_dir_all(&data).unwrap(),
            false => std::fs::remove_file(&data).unwrap(),
        }
    }
}

#[tokio::test]
async fn one_unreadable_record_does_not_hide_the_others() {
    let directory = tempfile::tempdir().unwrap();
    stored(directory.path(), &["a.example.com", "b.example.com"]).await;
    let broken = directory.path().join("data/records/b.example.com");
    for spoil in [
        (|broken| symlink("record.json", broken.join("record.json")).unwrap()) as fn(&Path),
        |broken| {
            rename(broken, broken.with_file_name("moved")).unwrap();
            symlink("b.example.com", broken).unwrap();
        },
    ] {
        let _ = std::fs::remove_file(broken.join("record.json"));
        spoil(&broken);
        for verb in ["status", "renew", "reload"] {
            let mut command = certs(directory.path());
            fails(
                {
                    command.arg(verb);
                    command
                },
                &[
                    "a.example.com",
                    &broken.display().to_string(),
                    "symbolic link",
                ],
            );
        }
    }
}

#[test]
fn nothing_stored_is_no_failure() {
    let directory = tempfile::tempdir().unwrap();
    for verb in ["status", "renew", "reload"] {
        run(certs(directory.path()).arg(verb), 0);
    }
    assert!(
        !directory.path().join("data").exists(),
        "a reader made the data directory"
    );
}

#[test]
fn root_leaves_files_to_the_owner_of_the_data_directory() {
    use std::os::unix::fs::MetadataExt;
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: a data directory of another user: needs root");
        return;
    }
    let ca = EmbeddedCa::start();
    let (data, output) = (ca.path("data"), ca.path("data/public"));
    set_permissions(ca.path(""), Permissions::from_mode(0o755)).unwrap();
    create_dir(&data).unwrap();
    chown(&data, Some(NOBODY), Some(NOBODY)).unwrap();
    let at_output = |mut command: Command| {
        command.env("CERTS_OUTPUT_DIR", &output);
        command
    };
    run(&mut at_output(ca.issue(&["example.com"])), 0);
    let mut open = vec![data.clone()];
    let mut seen = 0;
    while let Some(path) = open.pop() {
        let found = path.symlink_metadata().unwrap();
        assert_eq!(
            (found.uid(), found.gid()),
            (NOBODY, NOBODY),
            "{}",
            path.display()
        );
        seen += 1;
        if found.is_dir() {
            open.extend(
                std::fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
    }
    assert!(seen > 15, "{seen} files");
    // The service's own user renews it, as a timer does, and root finds the result.
    let mut renew = at_output(certs(&ca.path("")));
    renew.args(["renew", "--force"]);
    let printed = run(&mut as_nobody(&renew, &ca.path("")), 0);
    assert!(printed.contains("generation 0002"), "{printed}");
    let printed = run(&mut at_output(ca.issue(&["example.com", "--force"])), 0);
    assert!(printed.contains("generation 0003"), "{printed}");
    // A link of that user leads root nowhere.
    let (records, roots) = (data.join("records/example.com"), ca.path("roots"));
    rename(&records, &roots).unwrap();
    symlink(&roots, &records).unwrap();
    set_permissions(&roots, Permissions::from_mode(0o700)).unwrap();
    chown(&roots, Some(0), Some(0)).unwrap();
    run(&mut at_output(ca.issue(&["example.com", "--force"])), 8);
    assert!(!roots.join("0004").exists());
}

#[test]
fn state_at_the_place_of_an_earlier_package_is_named() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(directory.path().join("data/data/records")).unwrap();
    for verb in ["status", "renew", "reload"] {
        let printed = run(certs(directory.path()).arg(verb), 2);
        assert!(
            printed.contains("an earlier package kept them there"),
            "{printed}"
        );
        assert!(
            printed.contains("hint: stop certs run and move them: mv "),
            "{printed}"
        );
    }
}
