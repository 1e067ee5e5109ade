//! Hints about accounts, each followed by commands without any variable for their files.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::followed::printed_command;
use crate::support::embedded::EmbeddedCa;
use crate::support::faults::{Endpoint, Fault, Which};
use crate::support::{assert_says, certs, run};

const NAME: &str = "a.example.com";

/// The command on the files of `ca`, which its options name.
fn bare(ca: &EmbeddedCa, words: &[&str]) -> Command {
    let mut command = certs(&ca.path(""));
    command
        .env_remove("CERTS_DATA_DIR")
        .env_remove("CERTS_OUTPUT_DIR");
    command.args(words).arg("--data-dir").arg(ca.path("data"));
    command.arg("--output-dir").arg(ca.path("out"));
    command
}

/// The printed command, with these values for its placeholders and further options.
fn follow(command: &[String], file: &str, more: &[&str], code: i32) -> String {
    let words = command.iter().map(|word| match word.as_str() {
        "NAME" => NAME,
        "FILE" => file,
        word => word,
    });
    let mut command = certs(Path::new("/"));
    for variable in ["CERTS_DATA_DIR", "CERTS_OUTPUT_DIR"] {
        command.env_remove(variable);
    }
    run(command.args(words).args(more), code)
}

/// The file of the only account.
fn stored(directory: &Path) -> PathBuf {
    let mut files = std::fs::read_dir(directory.join("data/accounts")).unwrap();
    files.next().unwrap().unwrap().path()
}

fn read(file: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

/// Ends the account of the printed command, whose own hint has the answer to its question.
fn deactivate(command: &[String]) {
    let printed = follow(command, "", &[], 2);
    let yes = printed_command(&printed, "to deactivate it: certs ", "\n");
    follow(&yes, "", &[], 0);
}

#[test]
fn hints_about_accounts_lead_to_an_account() {
    let ca = EmbeddedCa::start();
    let (url, root) = (ca.server.directory_url(), ca.path("root.pem"));
    let at_ca = ["--ca", &url, "--ca-root", root.to_str().unwrap()];
    let account = |words: &[&str], code| {
        let words = [&["account"], words, &at_ca].concat();
        run(&mut bare(&ca, &words), code)
    };
    let keys = ["one", "two", "none"].map(|name| ca.path(name).display().to_string());
    for key in &keys[..2] {
        std::fs::write(key, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
    }
    std::fs::write(&keys[2], "no key").unwrap();
    // No account: the printed command takes a key.
    let none = account(&["show"], 2);
    let import = printed_command(&none, "; certs ", " takes an existing key");
    follow(&import, &keys[0], &[], 0);
    // An account that is there is shown, and ended for another one.
    let printed = account(&["import", &keys[1]], 2);
    let show = printed_command(&printed, "hint: certs ", " shows it");
    follow(&show, "", &[], 0);
    let end = printed_command(&printed, "; certs ", " ends it");
    deactivate(&end);
    account(&["import", &keys[1]], 0);
    // An invalid key is replaced by a valid one.
    let printed = account(&["import", &keys[2]], 2);
    assert_says(&printed, &["hint: give the account's private key in PEM"]);
    std::fs::copy(&keys[1], &keys[2]).unwrap();
    account(&["import", &keys[2]], 0);
    account(&["show"], 0);
    deactivate(&end);
    // The order that is to register an account is refused: the next one registers the stored key.
    let refusal = Fault::problem(403, "unauthorized", "not now");
    ca.script.add(Endpoint::NewAccount, Which::Every, refusal);
    let listen = format!("--http-listen=127.0.0.1:{}", ca.http_port);
    let more = ["--agree-tos", &listen];
    let issue = printed_command(&none, "hint: certs ", " registers one");
    follow(&issue, "", &more, 4);
    ca.script.clear();
    let printed = account(&["show"], 2);
    let issue = printed_command(&printed, "the first order registers it: certs ", "\n");
    follow(&issue, "", &more, 0);
    // A change of its key that was cut off, to one that the CA does not have, is completed.
    std::fs::write(
        &keys[0],
        rcgen::KeyPair::generate().unwrap().serialize_pem(),
    )
    .unwrap();
    let mut import = certs(&ca.path("elsewhere"));
    run(
        import.args(["account", "import", &keys[0], "--ca", &url]),
        0,
    );
    let (file, other) = (stored(&ca.path("")), stored(&ca.path("elsewhere")));
    let mut own = read(&file);
    own["next_key_pkcs8"] = read(&other)["key_pkcs8"].take();
    std::fs::write(&file, own.to_string()).unwrap();
    let printed = account(&["show"], 0);
    let complete = printed_command(&printed, "interrupted; hint: certs ", " completes it");
    follow(&complete, "", &[], 0);
    assert!(!account(&["show"], 0).contains("interrupted"));
}

#[test]
fn hints_about_one_of_two_accounts_name_its_ca() {
    let (ca, other) = (EmbeddedCa::start(), EmbeddedCa::start());
    run(&mut ca.issue(&[NAME]), 0);
    run(
        &mut other.issue_below(&ca.path(""), &["other.example.com"]),
        0,
    );
    let renew = |code| run(&mut bare(&ca, &["renew", NAME, "--force"]), code);
    let refuse = |kind: &str| {
        let refusal = Fault::problem(403, kind, "see https://ca.test/terms/2");
        ca.script.add(Endpoint::NewOrder, Which::Every, refusal);
    };
    refuse("userActionRequired");
    let agree = printed_command(&renew(4), "new terms: certs ", "; then try again");
    follow(&agree, "", &[], 0);
    ca.script.clear();
    refuse("unauthorized");
    let printed = renew(4);
    let show = printed_command(&printed, "revoked: certs ", " shows it");
    let shown = follow(&show, "", &[], 0);
    assert!(!shown.contains(&other.server.directory_url()), "{shown}");
    deactivate(&printed_command(&printed, "and certs ", " forgets it"));
    ca.script.clear();
    renew(0);
    assert_eq!((ca.script.accounts(), other.script.accounts()), (2, 1));
}

#[test]
fn damaged_account_is_named_and_moved_away() {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&[NAME]), 0);
    let file = stored(&ca.path(""));
    std::fs::write(&file, "{").unwrap();
    for (words, code) in [(&["account", "show"][..], 8), (&["renew", "--force"], 8)] {
        let printed = run(&mut bare(&ca, words), code);
        let named = format!("{} is damaged", file.display());
        assert_says(
            &printed,
            &[&named, "or move it away: certs makes a new one"],
        );
    }
    std::fs::rename(&file, ca.path("away")).unwrap();
    run(&mut bare(&ca, &["renew", "--force"]), 0);
}

/// The address of the configuration would be sent again.
#[test]
fn changed_email_is_changed_in_the_configuration_too() {
    let ca = EmbeddedCa::start();
    let write = |email: &str| {
        let text = format!(
            "ca = '{}'\nca_root = '{}'\nagree_tos = true\nemail = '{email}'\nhttp_listen = '127.0.0.1:{}'\n\
             [[certificate]]\nnames = '{NAME}'\n",
            ca.server.directory_url(),
            ca.path("root.pem").display(),
            ca.http_port
        );
        std::fs::write(ca.path("certs.toml"), text).unwrap();
    };
    let verb = |words: &[&str]| {
        let mut command = certs(&ca.path(""));
        run(command.args(words).current_dir(ca.path("")), 0)
    };
    write("a@example.com");
    verb(&["renew"]);
    let update = ["account", "update", "--email", "b@example.com"];
    let printed = verb(&update);
    assert_says(&printed, &["hint: change `email` there"]);
    write("b@example.com");
    verb(&["renew", "--force"]);
    let shown = verb(&["account", "show"]);
    assert_says(&shown, &["mailto:b@example.com"]);
    assert!(!verb(&update).contains("hint: "));
}
