//! Hints are followed to the letter: each failure is provoked, what its hint says is done, and the same command
//! succeeds. Hints about servers are followed where these servers are tested.

mod servers;

use std::path::Path;
use std::process::Command;

use crate::support::embedded::EmbeddedCa;
use crate::support::{certs, run};

const A: &str = "\n[[certificate]]\nnames = 'a.example.com'\n";
const BOTH: &str =
    "\n[[certificate]]\nnames = 'a.example.com'\n[[certificate]]\nnames = 'b.example.com'\n";
const LOAD: &str = "/etc/haproxy/a.pem";

/// A configuration, the words of the message or hint that say what to write, and the configuration with that.
type Row<'r> = (&'r str, &'r str, &'r str);

/// The words between backquotes or after the colon of a hint are written as they stand.
const ROWS: [Row<'_>; 32] = [
    (
        "emial = 'a@b.example' A",
        "did you mean `email`?",
        "email = 'a@b.example' A",
    ),
    (
        "ca = 'letsencript' A",
        "did you mean letsencrypt?",
        "ca = 'letsencrypt' A",
    ),
    (
        "deploy = 'ngnix' A",
        "did you mean `nginx`?",
        "deploy = 'nginx' A",
    ),
    (
        "[[certificate]]\nnames = ['a.example.com', 'a.example.com']",
        "give each name once",
        "A",
    ),
    (
        "webroot = '/'\nhttp_listen = '127.0.0.1:80' A",
        "keep the one that answers on port 80",
        "webroot = '/' A",
    ),
    (
        "[[certificate]]\nnames = '1.1.1.1'",
        "add profile = \"shortlived\"",
        "profile = \"shortlived\"\n[[certificate]]\nnames = '1.1.1.1'",
    ),
    (
        "[[certificate]]\nnames = '*.example.com'",
        "--dns self needs none",
        "dns = 'self'\n[[certificate]]\nnames = '*.example.com'",
    ),
    (
        "[[certificate]]\nnames = '*.example.com'",
        "or list the names one by one",
        "BOTH",
    ),
    (
        "[renew]\ndeploy = 'on-schedule' A",
        "add [renew] schedule = \"30 3 * * *\"",
        "[renew]\nschedule = \"30 3 * * *\"\ndeploy = 'on-schedule' A",
    ),
    (
        "admin = 'off' A",
        "write [admin] above its keys",
        "[admin]\nlisten = 'off' A",
    ),
    (
        "[admin]\nlisten = '9180' A",
        "write 127.0.0.1:9180, or off",
        "[admin]\nlisten = '127.0.0.1:9180' A",
    ),
    (
        "[verify]\nevery = 'often' A",
        "write 10m, 1h or 30s",
        "[verify]\nevery = '10m' A",
    ),
    (
        "fallback_ca = 'letsencrypt' A",
        "name another CA, or leave fallback_ca out",
        "A",
    ),
    (
        "ca = 'embedded'\nca_root = '/x' A",
        "leave it out, or name another CA",
        "ca = 'embedded' A",
    ),
    (
        "[docker]\nhost = 'localhost:2375' A",
        "write tcp://HOST:2375, or unix:///PATH",
        "[docker]\nhost = 'tcp://localhost:2375' A",
    ),
    (
        "[output]\nowner = 'no-such-user' A",
        "name one that exists, or its number",
        "[output]\nowner = '1000' A",
    ),
    (
        "deploy = 'file:/srv/x.pem' BOTH",
        "put {name} into the path",
        "deploy = 'file:/srv/{name}.pem' BOTH",
    ),
    (
        "[[certificate]]\nnames = 'a.example.com'\n[[certificate]]\nnames = ['a.example.com', 'b.example.com']",
        "give one of them a `name`",
        "[[certificate]]\nnames = 'a.example.com'\n[[certificate]]\nname = 'two'\nnames = ['a.example.com', 'b.example.com']",
    ),
    (
        "[deploy.h]\nkind = 'haproxy'\nsocket = '/s'\ncertificate = '@web/x' A",
        "write the file of its `load` line",
        "[deploy.h]\nkind = 'haproxy'\nsocket = '/s'\ncertificate = 'LOAD' A",
    ),
    (
        "[deploy.h]\nkind = 'haproxi'\nsocket = '/s' A",
        "did you mean `haproxy`?",
        "[deploy.h]\nkind = 'haproxy'\nsocket = '/s' A",
    ),
    (
        "[deploy.h]\nkind = 'nginx'\ntimeout = 'soon' A",
        "write a timeout from 1s to 60m",
        "[deploy.h]\nkind = 'nginx'\ntimeout = '60m' A",
    ),
    (
        "[[certificate]]\nnames = 'a.example.com'\ndns = 'rfc2136'",
        "or server or server_file in [dns.rfc2136]",
        "[[certificate]]\nnames = 'a.example.com'\ndns = 'rfc2136'\n[dns.rfc2136]\nserver = '192.0.2.53'",
    ),
    (
        "dns = 'rfc2136'\n[dns.rfc2136]\nserver = '192.0.2.53' A",
        "put the key below [[certificate]]",
        "[dns.rfc2136]\nserver = '192.0.2.53' A\ndns = 'rfc2136'",
    ),
    (
        "deploy = 'web'\n[deploy.web]\nkind = 'nginx' A",
        "put the key below [[certificate]]",
        "[deploy.web]\nkind = 'nginx' A\ndeploy = 'web'",
    ),
    (
        "email = 'nobody' A",
        "for example admin@example.com",
        "email = 'admin@example.com' A",
    ),
    (
        "reuse_key = yes A",
        "this is TOML: key = value, texts in quotes",
        "reuse_key = true A",
    ),
    (
        "key = 'rsa' A",
        "write ecdsa-p256, ecdsa-p384, rsa-2048, rsa-3072 or rsa-4096",
        "key = 'rsa-3072' A",
    ),
    (
        "[[certificate]]\nnames = 'a_b.example.com'",
        "letters, digits and hyphens",
        "[[certificate]]\nnames = 'a-b.example.com'",
    ),
    (
        "[[certificate]]\nnames = 'a.internal'",
        "or a private CA: --ca https://…",
        "ca = 'https://ca.internal/dir'\n[[certificate]]\nnames = 'a.internal'",
    ),
    (
        "http_listen = 'localhost' A",
        "an address such as 0.0.0.0:80 belongs here",
        "http_listen = '0.0.0.0:80' A",
    ),
    (
        "verify = 'example.com' A",
        "for example example.com:443",
        "verify = 'example.com:443' A",
    ),
    (
        "[renew]\nschedule = 'daily' A",
        "for example 30 3 * * * for",
        "[renew]\nschedule = '30 3 * * *' A",
    ),
];

#[test]
fn hints_of_a_configuration_lead_to_a_valid_one() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("certs.toml");
    let check = |text: &str, code| {
        let text = text
            .replace(" A", A)
            .replace(" BOTH", BOTH)
            .replace("LOAD", LOAD);
        let text = match text.as_str() {
            "A" => A.to_owned(),
            "BOTH" => BOTH.to_owned(),
            _ => text,
        };
        std::fs::write(&file, format!("agree_tos = true\n{text}\n")).unwrap();
        let mut command = certs(directory.path());
        run(
            command.args(["config", "check", "--config"]).arg(&file),
            code,
        )
    };
    for (before, words, after) in ROWS {
        let printed = check(before, 2);
        assert!(
            printed.contains(words),
            "{before}: no `{words}` in {printed}"
        );
        check(after, 0);
    }
    // Without `agree_tos` in the file, the message names it.
    std::fs::write(&file, A).unwrap();
    let mut command = certs(directory.path());
    let printed = run(command.args(["config", "check", "--config"]).arg(&file), 2);
    assert!(printed.contains("or agree_tos = true"), "{printed}");
    check("A", 0);
}

/// The commands of a hint, each up to the end of its phrase.
fn commands(printed: &str, before: &str) -> Vec<String> {
    let (_, hint) = printed
        .split_once(before)
        .unwrap_or_else(|| panic!("no `{before}` in {printed}"));
    let hint = hint.split(['\n', ',', ';']).next().unwrap();
    hint.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn hints_of_commands_lead_to_their_success() {
    let ca = EmbeddedCa::start();
    let verb = |arguments: &[&str], code| run(certs(&ca.path("")).args(arguments), code);
    for name in ["a.example.com", "b.example.com"] {
        run(&mut ca.issue(&[name]), 0);
    }
    // An unknown certificate: the list has the known ones.
    let printed = verb(&["status", "absent.example.com"], 2);
    let list = commands(&printed, "hint: certs ");
    let listed = verb(&[&list[0]], 0);
    assert!(listed.contains("a.example.com"), "{listed}");
    // A name that is taken.
    let printed = verb(&["rename", "a.example.com", "b.example.com"], 2);
    assert!(
        printed.contains("choose another name: certs status lists"),
        "{printed}"
    );
    assert!(!verb(&["list"], 0).contains("shop"));
    verb(&["rename", "a.example.com", "shop"], 0);
    // A damaged record is moved away.
    let record = ca.path("data/records/shop/record.json");
    assert!(record.exists(), "{record:?}");
    std::fs::write(&record, "{").unwrap();
    let printed = run(&mut ca.issue(&["a.example.com", "--name", "shop"]), 8);
    let words = "or move it away: certs makes a new one";
    assert!(printed.contains(words), "{printed}");
    std::fs::rename(&record, ca.path("away")).unwrap();
    run(&mut ca.issue(&["a.example.com", "--name", "shop"]), 0);
    // What nothing keeps is kept by the command.
    let table = |names: &[&str]| {
        let tables = names
            .iter()
            .map(|name| format!("[[certificate]]\nnames = '{name}'\n"));
        let text = format!(
            "ca = '{}'\nca_root = '{}'\nagree_tos = true\nhttp_listen = '127.0.0.1:{}'\n{}",
            ca.server.directory_url(),
            ca.path("root.pem").display(),
            ca.http_port,
            tables.collect::<String>()
        );
        std::fs::write(ca.path("certs.toml"), text).unwrap();
    };
    let renew = || run(certs(&ca.path("")).arg("renew").current_dir(ca.path("")), 0);
    table(&["c.example.com", "d.example.com"]);
    renew();
    table(&["d.example.com"]);
    let printed = renew();
    let words = "certs issue with its names keeps it";
    assert!(
        printed.contains("orphaned") && printed.contains(words),
        "{printed}"
    );
    run(ca.issue(&["c.example.com"]).current_dir(ca.path("")), 0);
    let printed = renew();
    assert!(!printed.contains("orphaned"), "{printed}");
}

/// The data directory of an earlier package is moved by the printed commands.
#[test]
fn old_place_of_the_data_is_left_by_the_printed_commands() {
    let ca = EmbeddedCa::start();
    let place = ca.path("var");
    let inside = place.join("data");
    std::fs::create_dir(&place).unwrap();
    let of = |command: &mut Command, data: &Path| {
        command.env("CERTS_DATA_DIR", data);
        command.output().unwrap()
    };
    let made = of(&mut ca.issue(&["a.example.com"]), &inside);
    assert!(made.status.success(), "{made:?}");
    let status = || of(certs(&ca.path("")).arg("status"), &place);
    let refused = status();
    assert_eq!(refused.status.code(), Some(2));
    let printed = crate::support::text(&refused);
    let (_, moves) = printed.split_once("move them: ").unwrap();
    let moved = Command::new("sh")
        .args(["-c", moves.trim()])
        .output()
        .unwrap();
    assert!(moved.status.success(), "{moves}: {moved:?}");
    let shown = status();
    assert!(shown.status.success() && crate::support::text(&shown).contains("a.example.com"));
}
