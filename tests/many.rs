//! Thousands of stored certificates on one machine: what a start and a status cost must grow with their
//! number, not with its square. Work is counted in system calls and in CPU time, never by a clock on the wall.

use std::path::Path;
use std::process::Command;

use crate::support::embedded::EmbeddedCa;
use crate::support::sidecar::{Sidecar, configured};
use crate::support::strace::Strace;
use crate::support::{certs, free_port, run, until};

const FIRST: &str = "n0.example.com";

/// Stores `count` certificates: copies of the first, each under a name of its own.
fn multiplied(ca: &EmbeddedCa, count: usize) {
    let data = ca.path("data");
    if !data.join("records").join(FIRST).exists() {
        run(&mut ca.issue(&[FIRST]), 0);
    }
    let records = data.join("records");
    for number in 1..count {
        let name = format!("copy{number}");
        let (from, to) = (records.join(FIRST), records.join(&name));
        if to.exists() {
            continue;
        }
        copied(&from, &to);
        let archive = ca.path("out/archive");
        copied(&archive.join(FIRST), &archive.join(&name));
        let live = ca.path("out/live").join(&name);
        std::os::unix::fs::symlink(format!("../archive/{name}/0001"), live).unwrap();
    }
}

fn copied(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copied(&entry.path(), &to),
            false => _ = std::fs::copy(entry.path(), to).unwrap(),
        }
    }
}

/// The number of system calls that read files, of one successful run.
fn reads(strace: &Strace, command: &Command) -> usize {
    let also = [
        "read",
        "statx",
        "newfstatat",
        "fstat",
        "readlink",
        "readlinkat",
        "close",
    ];
    let calls = strace.record(command, &also, &[]);
    let about_files = |name: &str| also.contains(&name) || name.starts_with("open");
    let also_users = |name: &str| name.starts_with("setres") || name == "setgroups";
    calls
        .iter()
        .filter(|call| about_files(&call.name) || also_users(&call.name))
        .count()
}

#[test]
fn status_reads_each_certificate_once() {
    let Some(strace) = Strace::find("the calls of a status of many certificates") else {
        return;
    };
    let ca = EmbeddedCa::start();
    multiplied(&ca, 20);
    let mut status = certs(&ca.path(""));
    status.args(["status", "--json"]);
    let few = reads(&strace, &status);
    multiplied(&ca, 120);
    let many = reads(&strace, &status);
    // The directory and two files, each opened, looked at, read to its end and closed.
    let each = (many - few) as f64 / 100.0;
    assert!(each <= 16.0, "{each} calls for each further certificate");
    // One of them costs the same among many.
    status.arg(FIRST);
    let one = reads(&strace, &status);
    assert!(one < few + 20, "{one} calls for one, {few} for 20");
    let printed = run(&mut status, 0);
    let rows: Vec<serde_json::Value> = serde_json::from_str(&printed).unwrap();
    assert_eq!(rows.len(), 1);
}

/// The CPU seconds of `certs run` with `count` stored certificates until it is ready.
fn start(ca: &EmbeddedCa, count: usize) -> f64 {
    multiplied(ca, count);
    let admin = free_port();
    let mut command = configured(ca, &[], admin);
    // The files of this test stay root's.
    command
        .env_remove("CERTS_DOMAINS")
        .env("CERTS_HARDEN", "off");
    let sidecar = Sidecar::start_as(ca, &mut command, admin);
    until("readiness", || sidecar.readiness() == 200);
    let used = sidecar.cpu_seconds();
    sidecar.stop();
    used
}

#[test]
fn start_costs_no_more_for_each_of_many_certificates() {
    let ca = EmbeddedCa::start();
    let (few, many) = (start(&ca, 150), start(&ca, 1200));
    // Eight times as many: a start that compares each with each takes up to 64 times as long.
    assert!(many < 20.0 * few, "{few} s for 150, {many} s for 1200");
}

#[test]
fn configuration_of_many_certificates_is_read_without_comparing_each_with_each() {
    let ca = EmbeddedCa::start();
    let check = |count: usize| {
        let names: Vec<String> = (0..count).map(|n| format!("n{n}.example.com")).collect();
        let file = ca.path("many.toml");
        std::fs::write(&file, {
            let tables = names.iter();
            let tables = tables.map(|name| format!("[[certificate]]\nnames = \"{name}\"\n"));
            tables.collect::<String>()
        })
        .unwrap();
        let mut check = certs(&ca.path(""));
        check.args(["config", "check", "--config", file.to_str().unwrap()]);
        check.env("CERTS_DOMAINS", names.join("; "));
        check.env("CERTS_AGREE_TOS", "true");
        cpu_seconds(&check)
    };
    let (few, many) = (check(100), check(800));
    assert!(many < 20.0 * few, "{few} s for 100, {many} s for 800");
}

/// The CPU seconds of a command that succeeds.
fn cpu_seconds(command: &Command) -> f64 {
    let mut shell = Command::new("bash");
    shell.args(["-c", "\"$0\" \"$@\" >/dev/null || exit 99; times"]);
    shell.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let said = run(&mut shell, 0);
    // The second line is about the children: `0m0.012s 0m0.004s`.
    let seconds = said.lines().nth(1).unwrap().split_whitespace().map(|part| {
        let (minutes, seconds) = part.trim_end_matches('s').split_once('m').unwrap();
        minutes.parse::<f64>().unwrap() * 60.0 + seconds.parse::<f64>().unwrap()
    });
    seconds.sum()
}

#[test]
fn record_of_a_newer_format_is_refused_and_kept() {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&[FIRST]), 0);
    let record = ca.path(&format!("data/records/{FIRST}/record.json"));
    let ours = std::fs::read_to_string(&record).unwrap();
    assert!(ours.starts_with("{\n  \"format\": 1,\n"), "{ours}");
    let newer = ours.replacen("\"format\": 1", "\"format\": 2", 1);
    let strange = "{\"format\": 3, \"lines\": []}".to_owned();
    let options = ca.path(&format!("data/records/{FIRST}/options.json"));
    let before = std::fs::read_to_string(&options).unwrap();
    for refused in [newer, strange] {
        std::fs::write(&record, &refused).unwrap();
        for command in [
            &["status"][..],
            &["renew", FIRST],
            &["delete", FIRST, "--yes"],
        ] {
            let mut asked = certs(&ca.path(""));
            let said = run(asked.args(command), 8);
            assert!(said.contains("of format"), "{command:?}: {said}");
            assert!(said.contains("a newer one"), "{command:?}: {said}");
        }
        let said = run(&mut ca.issue(&[FIRST, "--force"]), 8);
        assert!(said.contains("of format"), "{said}");
        assert_eq!(std::fs::read_to_string(&record).unwrap(), refused);
        assert_eq!(std::fs::read_to_string(&options).unwrap(), before);
    }
    // Without a format it is of an earlier version, and gets one when it is saved.
    std::fs::write(&record, ours.replacen("\n  \"format\": 1,", "", 1)).unwrap();
    run(&mut ca.issue(&[FIRST, "--force"]), 0);
    let saved = std::fs::read_to_string(&record).unwrap();
    assert!(saved.starts_with("{\n  \"format\": 1,\n"), "{saved}");
}
