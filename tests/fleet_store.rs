//! The settings of a fleet's store, and a store that cannot be used: what is said, and with which exit code.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::support::clock::Clocks;
use crate::support::embedded::EmbeddedCa;
use crate::support::{Running, certs, free_port, run, until};

const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n";
/// What `certs config serve-key` prints for it.
const SERVE_KEY: &str = "serve:YvRhgfQ5IZeJlWI38UbYNjYUHZs6QMHs+oxjjNyMwII=\n";
const SEALED: &str = "seal_key_file = 'seal.key'\n";

fn write_key(path: &Path, key: &str, mode: u32) {
    std::fs::write(path, key).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// A directory with a valid key for each role.
fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    write_key(&directory.path().join("seal.key"), KEY, 0o600);
    write_key(&directory.path().join("serve.key"), SERVE_KEY, 0o600);
    directory
}

/// `certs VERB` with a configuration of these lines.
fn configured(directory: &Path, verb: &[&str], lines: &str) -> Command {
    let file = directory.join("certs.toml");
    std::fs::write(&file, lines).unwrap();
    let mut command = certs(directory);
    command.args(verb).arg("--config").arg(file);
    command
}

/// What `certs config check` says of an invalid configuration.
fn refused(directory: &Path, lines: &str) -> String {
    let said = run(&mut configured(directory, &["config", "check"], lines), 2);
    assert!(
        said.contains("hint: ") && !said.contains("hidden"),
        "{said}"
    );
    said
}

fn assert_in(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "no `{word}` in: {said}");
    }
}

#[test]
fn every_error_of_a_fleet_is_reported_at_once() {
    let directory = directory();
    let lines = "store = 'etcds://user:hidden@etcd.example.com:99999/certs'\nseal_key_file = 'absent.key'\n\
        node = '../web'\nrole = 'server'\n";
    let said = refused(directory.path(), lines);
    let all = [
        "certs.toml:1: store etcds://etcd.example.com:99999/certs: invalid port of etcd.example.com",
        "hint: write etcd://HOST:PORT/PREFIX, or etcds:// with TLS",
        "certs.toml:2: the sealing key ",
        "absent.key: No such file or directory",
        "hint: copy the fleet's key there",
        "certs.toml:3: invalid name `../web`",
        "certs.toml:4: unknown role `server`",
    ];
    assert_in(&said, &all);
    // A command says the same, and so does the environment.
    let said = run(&mut configured(directory.path(), &["run"], lines), 2);
    assert_in(&said, &all);
    let mut command = configured(directory.path(), &["config", "check"], "");
    let said = run(command.env("CERTS_STORE", "s3://b/x"), 2);
    assert_in(&said, &["CERTS_STORE: store s3://b/x: invalid bucket `b`"]);
}

#[test]
fn invalid_store_is_named_with_its_form() {
    let directory = directory();
    let lines = |store: &str| format!("store = '{store}'\n{SEALED}");
    for (store, words, right) in [
        (
            "s4://bucket/x",
            &[
                "unknown store `s4://`",
                "hint: write s3://BUCKET/PREFIX, etcd://",
            ][..],
            "s3://bucket/x",
        ),
        (
            "etdc://10.0.0.5/x",
            &["did you mean etcd://?"],
            "etcd://10.0.0.5/x",
        ),
        ("S3://bucket/x", &["did you mean s3://?"], "s3://bucket/x"),
        ("s3:/bucket/x", &["write s3://"], "s3://bucket/x"),
        ("s3:///x", &["no bucket"], "s3://bucket/x"),
        (
            "s3://b/x",
            &[
                "invalid bucket `b`",
                "hint: write s3://BUCKET/PREFIX, such as",
            ],
            "s3://example-certs/production",
        ),
        (
            "s3://key:hidden@bucket/x",
            &["it has credentials", "hint: leave them out"],
            "s3://bucket/x",
        ),
        (
            "s3://bucket/a//b",
            &["invalid prefix `a//b`", "single slashes"],
            "s3://bucket/a/b",
        ),
        (
            "etcd://10.0.0.5/a b",
            &["invalid prefix `a b`"],
            "etcd://10.0.0.5/a-b",
        ),
        (
            "etcd://10.0.0.5:port/p",
            &["invalid port of 10.0.0.5"],
            "etcd://10.0.0.5:2379,10.0.0.6/p",
        ),
        ("etcd://etcd/", &["no prefix"], "etcd://etcd/certs"),
        (
            "etcd://u@etcd/p",
            &[
                "names a user and no password",
                "hint: write USER:PASSWORD@ before HOST",
            ],
            "etcd://u:x@etcd/p",
        ),
        (
            "etcd://u:hidden@etcd.example.com/p",
            &["not in a private network", "hint: write etcds://"],
            "etcds://u:x@etcd.example.com/p",
        ),
        (
            "postgres://me:hidden@db.example.com/c?sslmode=disable",
            &["in a private network", "hint: write sslmode="],
            "postgres://me:x@db.example.com/c?sslmode=require",
        ),
        (
            "postgres://me:hidden@db:port/c",
            &["port", "hint: write postgres://"],
            "postgres://me:x@db:5432/c",
        ),
        (
            "postgres://10.0.0.5/c",
            &["names no user"],
            "postgres://me@10.0.0.5/c",
        ),
        (
            "postgres://me@db/c?prefix=../x",
            &["invalid prefix `../x`"],
            "postgres://me@db/c?prefix=x",
        ),
        (
            "certs.toml",
            &["it is not a directory", "all machines mount"],
            "shared",
        ),
    ] {
        let said = refused(directory.path(), &lines(store));
        assert_in(&said, words);
        assert_in(&said, &["certs.toml:1: "]);
        // As the hint says.
        run(
            &mut configured(directory.path(), &["config", "check"], &lines(right)),
            0,
        );
    }
    for (variable, value, words, right) in [
        (
            "AWS_ENDPOINT_URL",
            "http://s3.example.com",
            [
                "AWS_ENDPOINT_URL: plain http",
                "hint: write https://HOST:PORT",
            ],
            "https://s3.example.com",
        ),
        (
            "AWS_REGION",
            "eu.1",
            ["invalid AWS_REGION", "hint: set it to the region"],
            "eu-central-1",
        ),
    ] {
        let check = |value| {
            let mut command = configured(
                directory.path(),
                &["config", "check"],
                &lines("s3://bucket/x"),
            );
            command.env(variable, value);
            command
        };
        assert_in(&run(&mut check(value), 2), &words);
        run(&mut check(right), 0);
    }
}

#[test]
fn sealing_key_that_cannot_be_used_is_named() {
    let directory = directory();
    let path = |name: &str| directory.path().join(name);
    write_key(&path("open.key"), KEY, 0o644);
    write_key(&path("short.key"), "c2hvcnQ=\n", 0o600);
    write_key(&path("blank.key"), "# none\n\n", 0o600);
    std::fs::create_dir(path("directory.key")).unwrap();
    for (name, words) in [
        (
            "absent.key",
            &["No such file", "hint: copy the fleet's key"][..],
        ),
        (
            "open.key",
            &["every user can read it (mode 0644)", "hint: chmod 600"],
        ),
        ("short.key", &["not 32 bytes in base64", "hint: each line"]),
        ("blank.key", &["not 32 bytes in base64", "hint: each line"]),
        ("directory.key", &["directory", "hint: it must be a file"]),
    ] {
        let lines = format!("store = 'shared'\nseal_key_file = '{name}'\n");
        let said = refused(directory.path(), &lines);
        assert_in(&said, words);
        assert_in(&said, &["certs.toml:2: the sealing key "]);
        // As the hint says.
        let _ = std::fs::remove_dir(path(name));
        write_key(&path(name), KEY, 0o600);
        run(
            &mut configured(directory.path(), &["config", "check"], &lines),
            0,
        );
    }
}

#[test]
fn contradictions_of_a_fleet_are_refused() {
    let directory = directory();
    let hmac = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA";
    std::fs::write(directory.path().join("eab.key"), hmac).unwrap();
    let whole = "store = 'shared'\nseal_key_file = 'serve.key'\nrole = 'serve'\n";
    let too_much = "store = 'shared'\nseal_key_file = 'seal.key'\nrole = 'serve'\n";
    let with_account = format!("{whole}eab_kid = 'kid'\neab_hmac_file = 'eab.key'\n");
    for (lines, words, right) in [
        (
            "store = 'shared'\n",
            &[
                "certs.toml:1: neither seal_key_file nor seal_key_exec is set",
                "hint: openssl rand -base64 32 > FILE makes a key once",
            ][..],
            whole,
        ),
        (
            SEALED,
            &[
                "certs.toml:1: a sealing key without a store",
                "leave the sealing key out",
            ],
            "",
        ),
        (
            "\nrole = 'serve'\n",
            &[
                "certs.toml:2: role = \"serve\" without a store",
                "leave role out",
            ],
            "",
        ),
        (
            too_much,
            &[
                "certs.toml:2: the sealing key",
                "opens the accounts of the fleet",
                "config serve-key on a machine of role full prints",
            ],
            whole,
        ),
        (
            &with_account,
            &[
                "certs.toml:5: eab_hmac_file beside role",
                "leave eab_hmac_file out",
            ],
            whole,
        ),
    ] {
        assert_in(&refused(directory.path(), lines), words);
        run(
            &mut configured(directory.path(), &["config", "check"], right),
            0,
        );
    }
    // A machine that would order for itself is not started.
    run(
        &mut configured(directory.path(), &["run"], "role = 'serve'\n"),
        2,
    );
    // What is valid creates nothing.
    let lines = format!("{whole}http_listen = ['127.0.0.1:0']\n");
    run(
        &mut configured(directory.path(), &["config", "check"], &lines),
        0,
    );
    assert!(!directory.path().join("shared").exists());
}

/// The command as that of a machine of a fleet with this store.
fn join<'c>(ca: &EmbeddedCa, command: &'c mut Command, store: &Path) -> &'c mut Command {
    write_key(&ca.path("seal.key"), KEY, 0o600);
    command
        .env("CERTS_STORE", store)
        .env("CERTS_SEAL_KEY_FILE", ca.path("seal.key"))
}

#[test]
fn unreachable_store_is_named_with_what_helps() {
    let ca = EmbeddedCa::start();
    for (store, words) in [
        (
            "etcd://user:hidden@127.0.0.1:1/certs",
            &["etcd://127.0.0.1:1/certs", "hint: check HOST:PORT in store"][..],
        ),
        (
            "postgres://me:hidden@127.0.0.1:1/certs",
            &[
                "postgres://127.0.0.1:1/certs",
                "hint: check HOST:PORT in store",
            ],
        ),
    ] {
        let said = run(
            join(&ca, &mut ca.issue(&["example.com"]), store.as_ref()),
            8,
        );
        assert_in(&said, words);
        assert_in(&said, &["the shared store"]);
        assert!(
            !said.contains("hidden") && !said.contains("directory's owner"),
            "{said}"
        );
    }
}

#[test]
fn directory_that_is_missing_begins_no_fleet_of_its_own() {
    let ca = EmbeddedCa::start();
    let orders = || ca.script.count(crate::support::faults::Endpoint::NewOrder);
    let shared = ca.path("mnt/certs");
    let refused = |command: &mut Command| {
        let said = run(join(&ca, command, &shared), 8);
        let place = format!("{}: the directory is missing", shared.display());
        assert_in(
            &said,
            &[&place, "hint: mount the shared directory", "make it once"],
        );
        assert!(!ca.path("mnt").exists());
    };
    refused(&mut ca.issue(&["example.com"]));
    refused(certs(&ca.path("")).arg("run"));
    assert_eq!(orders(), 0);
    // As the hint says; an empty directory begins a fleet.
    std::fs::create_dir_all(&shared).unwrap();
    run(join(&ca, &mut ca.issue(&["example.com"]), &shared), 0);
    // Nor does a machine of the fleet, while the directory is not mounted.
    let aside = ca.path("aside");
    std::fs::rename(ca.path("mnt"), &aside).unwrap();
    refused(certs(&ca.path("")).arg("run"));
    refused(&mut ca.issue(&["example.com", "--force"]));
    let status = run(join(&ca, certs(&ca.path("")).arg("status"), &shared), 0);
    assert_in(&status, &["example.com", "the directory is missing"]);
    std::fs::rename(&aside, ca.path("mnt")).unwrap();
    run(join(&ca, certs(&ca.path("")).arg("renew"), &shared), 0);
    assert_eq!(orders(), 1);
}

#[test]
fn damaged_document_is_refused_and_stored_again_as_the_hint_says() {
    let ca = EmbeddedCa::start();
    let shared = ca.path("shared");
    std::fs::create_dir(&shared).unwrap();
    let issue = |code| {
        run(
            join(&ca, &mut ca.issue(&["example.com", "--force"]), &shared),
            code,
        )
    };
    issue(0);
    let document = shared.join("certificates/example.com");
    let newest = || {
        let files = std::fs::read_dir(&document).unwrap();
        files.map(|file| file.unwrap().path()).max().unwrap()
    };
    let content = std::fs::read(newest()).unwrap();
    for (at, byte, words) in [
        (
            1,
            b'{',
            &[
                "certs did not write it",
                "hint: remove this document from the store",
            ][..],
        ),
        (
            0,
            b'{',
            &[
                "certs did not write it",
                "hint: remove this document from the store",
            ],
        ),
        (
            1,
            2,
            &["is of format 2", "hint: update certs on this machine"],
        ),
        (
            40,
            0,
            &[
                "it was changed, or belongs to another name",
                "hint: remove this document",
            ],
        ),
    ] {
        let mut changed = content.clone();
        changed[at] = if changed[at] == byte { 1 } else { byte };
        std::fs::write(newest(), &changed).unwrap();
        let said = issue(8);
        assert_in(&said, words);
        let place = format!(
            "certificates/example.com of the shared store {}",
            shared.display()
        );
        assert_in(&said, &[&place]);
        assert_eq!(
            std::fs::read(newest()).unwrap(),
            changed,
            "nothing is overwritten"
        );
    }
    std::fs::remove_dir_all(&document).unwrap();
    issue(0);
}

#[test]
fn machine_with_a_wrong_clock_serves_and_says_so() {
    let Some(clocks) = Clocks::find("a wrong clock in a fleet") else {
        return;
    };
    let ca = EmbeddedCa::start();
    let shared = ca.path("shared");
    std::fs::create_dir(&shared).unwrap();
    run(join(&ca, &mut ca.issue(&["example.com"]), &shared), 0);
    clocks.set_ahead(300);
    let mut command = certs(&ca.path("two"));
    command
        .args(["run", "--agree-tos"])
        .env("CERTS_NODE", "two")
        .env("CERTS_CA", ca.server.directory_url())
        .env("CERTS_CA_ROOT", ca.path("root.pem"))
        .env("CERTS_HTTP_LISTEN", format!("127.0.0.1:{}", free_port()))
        .env("CERTS_ADMIN_LISTEN", "off");
    let log = ca.path("two.log");
    let file = std::fs::File::create(&log).unwrap();
    std::fs::create_dir_all(ca.path("two")).unwrap();
    let command = clocks.preload(join(&ca, &mut command, &shared));
    let mut two = Running::start_logging(command, file.into());
    let log = || std::fs::read_to_string(&log).unwrap();
    until("the machine", || log().contains("ready"));
    assert_in(
        &log(),
        &[
            "this machine's clock says",
            "that of the shared store",
            "hint: set this machine's clock",
        ],
    );
    assert!(ca.path("two/out/live/example.com/fullchain.pem").exists());
    two.signal(Signal::TERM);
    assert_eq!(two.exit_code(), Some(0));
    assert_eq!(
        ca.script.count(crate::support::faults::Endpoint::NewOrder),
        1
    );
}
