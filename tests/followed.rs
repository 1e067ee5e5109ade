//! Hints are followed to the letter: each failure is provoked, what its hint says is done, and the same command
//! succeeds. Hints about servers are followed where these servers are tested.

mod accounts;
mod orders;
mod public;
mod revocations;
mod running;
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
const ROWS: [Row<'_>; 43] = [
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
    (
        "fallback_ca = 'letsencrypt-staging' A",
        "name a CA whose certificates are trusted, such as zerossl",
        "email = 'a@b.example'\nfallback_ca = 'zerossl' A",
    ),
    (
        "ca = 'https://ca.internal/dir'\nca_root = '/etc/passwd' A",
        "name a PEM file with --ca-root",
        "ca = 'https://ca.internal/dir'\nca_root = 'ROOT' A",
    ),
    (
        "[[certificate]]\nnames = [MANY]",
        "public CAs take 100 at most: make two certificates",
        "[[certificate]]\nnames = [HALF]\n[[certificate]]\nnames = [REST]",
    ),
    (
        "[[certificate]]\nnames = [5]",
        "a DNS name or an IP address belongs here",
        "[[certificate]]\nnames = ['5.example.com']",
    ),
    (
        "[[certificate]]\nnames = 'a.example.com'\ndns = 'rfc2163'\n[dns.rfc2136]\nserver = '192.0.2.53'",
        "did you mean rfc2136?",
        "[[certificate]]\nnames = 'a.example.com'\ndns = 'rfc2136'\n[dns.rfc2136]\nserver = '192.0.2.53'",
    ),
    (
        "[[certificate]]\nnames = 'a.example.com'\ndns = 'none-such'",
        "exec runs a program of yours, self needs none",
        "[[certificate]]\nnames = 'a.example.com'\ndns = 'self'",
    ),
    (
        "[[certificate]]\nnames = 'a.example.com'\ndns = 'rfc2136'\n[dns.rfc2136]\nserver = 'no address!'",
        "config/dns.toml and docs/dns.md show each provider's credentials",
        "[[certificate]]\nnames = 'a.example.com'\ndns = 'rfc2136'\n[dns.rfc2136]\nserver = '192.0.2.53'",
    ),
    (
        "[[certificate]]\nnames = 'a.example.com'\ndns = 'rfc2136'\n[dns.rfc2136]\naddress = '192.0.2.53'",
        "the keys of rfc2136: server, ",
        "[[certificate]]\nnames = 'a.example.com'\ndns = 'rfc2136'\n[dns.rfc2136]\nserver = '192.0.2.53'",
    ),
    (
        "[[certificate]]\nnames = 'a.example.com'\ndns = 'mine'\n[dns]\nmine = '192.0.2.53'",
        "write [dns.NAME] above the credentials, with provider = \"…\"",
        "[[certificate]]\nnames = 'a.example.com'\ndns = 'mine'\n[dns.mine]\nprovider = 'rfc2136'\nserver = '192.0.2.53'",
    ),
    (
        "ca = 'https://ca.internal/dir'\ndns = 'self'\n[[certificate]]\nnames = '192.0.2.1'",
        "use --challenge http-01 for addresses",
        "ca = 'https://ca.internal/dir'\ndns = 'self'\n[[certificate]]\nnames = '192.0.2.1'\nchallenge = 'http-01'",
    ),
    (
        "[[certificate]]\nnames = 'a.example.com'\ndns = 'rfc2136'\n[dns.rfc2136]\nserver_file = '/etc'",
        "name a readable file",
        "[[certificate]]\nnames = 'a.example.com'\ndns = 'rfc2136'\n[dns.rfc2136]\nserver_file = 'SERVER'",
    ),
];

/// The printed command between `before` and `after`, as a shell reads its words.
pub(crate) fn printed_command(printed: &str, before: &str, after: &str) -> Vec<String> {
    let rest = printed.split_once(before);
    let (_, rest) = rest.unwrap_or_else(|| panic!("no `{before}` in {printed}"));
    let command = rest.split_once(after);
    let (command, _) = command.unwrap_or_else(|| panic!("no `{after}` in {rest}"));
    let words = command.split_whitespace();
    words
        .map(|word| word.trim_matches('\'').to_owned())
        .collect()
}

/// The printed path after `before`.
fn place<'p>(printed: &'p str, before: &str) -> &'p str {
    let rest = printed.split_once(before);
    let (_, rest) = rest.unwrap_or_else(|| panic!("no `{before}` in {printed}"));
    rest.split([',', ';', '\n']).next().unwrap_or_default()
}

#[test]
fn hints_of_a_configuration_lead_to_a_valid_one() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("certs.toml");
    let (root, server) = (
        directory.path().join("root.pem"),
        directory.path().join("server"),
    );
    let made = rcgen::generate_simple_self_signed(["ca.internal".to_owned()]).unwrap();
    std::fs::write(&root, made.cert.pem()).unwrap();
    std::fs::write(&server, "192.0.2.53\n").unwrap();
    let names = |range: std::ops::Range<u32>| {
        let names = range.map(|n| format!("'n{n}.example.com'"));
        names.collect::<Vec<_>>().join(", ")
    };
    let check = |text: &str, code| {
        let text = text
            .replace("MANY", &names(0..101))
            .replace("HALF", &names(0..50))
            .replace("REST", &names(50..101))
            .replace("ROOT", root.to_str().unwrap())
            .replace("SERVER", server.to_str().unwrap())
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
    // Variables: one that does not exist, and a file that cannot be read.
    for (variable, value, words, right) in [
        (
            "CERTS_EMIAL",
            "a@b.example",
            "did you mean CERTS_EMAIL?",
            ("CERTS_EMAIL", "a@b.example"),
        ),
        (
            "CERTS_EMAIL_FILE",
            "/etc",
            "name a readable file",
            ("CERTS_EMAIL_FILE", server.to_str().unwrap()),
        ),
    ] {
        let check = |variable: &str, value: &str, code| {
            let mut command = certs(directory.path());
            command.args(["config", "check", "--config"]).arg(&file);
            run(command.env(variable, value), code)
        };
        let printed = check(variable, value, 2);
        assert!(printed.contains(words), "{variable}: {printed}");
        if variable.ends_with("FILE") {
            std::fs::write(&server, "a@b.example\n").unwrap();
        }
        check(right.0, right.1, 0);
    }
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
    let keep = printed_command(&printed, "renews it once, certs ", " keeps it");
    run(certs(&ca.path("")).args(keep).current_dir(ca.path("")), 0);
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
