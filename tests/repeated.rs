//! A command that names a stored certificate again keeps what it does not set.

use std::fs;

use serde_json::Value;

use crate::support::embedded::EmbeddedCa;
use crate::support::{certs, run};
use crate::targets::script;

const NAME: &str = "shop.example.com";

/// The stored settings.
fn options(ca: &EmbeddedCa) -> Value {
    let file = ca.path(&format!("data/records/{NAME}/options.json"));
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

#[test]
fn repeated_issue_keeps_stored_options_until_a_command_sets_or_drops_them() {
    let ca = EmbeddedCa::start();
    let seen = ca.path("seen");
    let hook = script(&ca.path("hook"), &format!("echo >>{}", seen.display()));
    let runs = || {
        fs::read_to_string(&seen)
            .unwrap_or_default()
            .lines()
            .count()
    };
    let more = ["--key", "rsa-2048", "--email", "a@example.com"];
    let mut first = ca.issue(&[NAME, &hook]);
    run(first.args(more), 0);
    let made = options(&ca);
    // Only the name: its CA, its challenge and its hook are stored.
    let again = |more: &[&str], code| {
        let mut command = certs(&ca.path(""));
        run(command.args(["issue", NAME]).args(more), code)
    };
    again(&[], 0);
    assert_eq!(options(&ca), made);
    again(&["--force"], 0);
    assert_eq!((options(&ca), runs()), (made.clone(), 2));
    again(&["--force", "--key", "ecdsa-p256"], 0);
    let changed = options(&ca);
    assert_eq!((changed["key"].as_str(), runs()), (Some("ecdsa-p256"), 3));
    assert_eq!(changed["deploy"], made["deploy"]);
    // A table of the file is for the certificates that have no targets of their own.
    let (file, table) = (ca.path("certs.toml"), ca.path("table"));
    let path = table.display();
    let copy = format!("[deploy.copy]\nkind = 'file'\npath = '{path}'\n");
    fs::write(&file, &copy).unwrap();
    let file = file.to_str().unwrap();
    again(&["--force", "--config", file], 0);
    assert!(!table.exists());
    assert_eq!((&options(&ca)["deploy"], runs()), (&made["deploy"], 4));
    // The same target is not there twice, and has the keys of its table.
    let program = ca.path("hook");
    let program = program.display();
    let hook = format!("[deploy.hook]\nkind = 'exec'\ncommand = '{program}'\ntimeout = '9m'\n");
    fs::write(file, copy + &hook).unwrap();
    again(&["--force", "--config", file, "--deploy", "none"], 0);
    again(&["--force", "--deploy", &format!("exec:{program}")], 0);
    assert_eq!(runs(), 5);
    again(&["--force", "--config", file], 0);
    // It is a table, so that the certificate has all of them.
    let deploy = options(&ca)["deploy"].as_array().map(Vec::len);
    assert_eq!((deploy, runs()), (Some(2), 6));
    assert!(table.exists() && options(&ca)["deploy"].to_string().contains("9m"));
    let runs = || runs() - 2;
    again(&["--force", "--deploy", "none"], 0);
    assert_eq!(
        (&options(&ca)["deploy"], runs()),
        (&Value::Array(vec![]), 4)
    );
    // What belongs to a CA does not go to another one.
    let printed = again(&["--ca", "letsencrypt", "--http-listen", "127.0.0.1:0"], 2);
    assert!(printed.contains("terms of service"), "{printed}");
}

#[test]
fn repeated_issue_confirms_nothing_that_only_the_store_names() {
    let ca = EmbeddedCa::start();
    let seen = ca.path("seen");
    script(&ca.path("planted"), &format!("echo >>{}", seen.display()));
    run(&mut ca.issue(&[NAME]), 0);
    let made = options(&ca);
    let plant = |key: &str, value: Value| {
        let mut options = made.clone();
        options[key] = value;
        let file = ca.path(&format!("data/records/{NAME}/options.json"));
        fs::write(file, options.to_string()).unwrap();
    };
    let planted = format!("exec:{}", ca.path("planted").display());
    plant("deploy", [planted].as_slice().into());
    for _ in 0..2 {
        let printed = run(&mut ca.issue(&[NAME, "--force"]), 7);
        assert!(printed.contains("nor confirmed"), "{printed}");
    }
    let webroot = serde_json::json!({ "webroot": ca.path("") });
    let output = serde_json::json!({ "directory": "/", "owner": "0", "group": null });
    for (key, value) in [("output", output), ("challenge", webroot)] {
        plant(key, value);
        let mut command = certs(&ca.path(""));
        command
            .env_remove("CERTS_OUTPUT_DIR")
            .args(["issue", NAME, "--force"]);
        let printed = run(&mut command, 2);
        assert!(printed.contains("nor confirmed"), "{key}: {printed}");
    }
    assert!(!seen.exists());
    let confirmed = fs::read_to_string(ca.path("data.confirmed/rights.json")).unwrap_or_default();
    assert!(!confirmed.contains("planted"), "{confirmed}");
}

#[test]
fn rollback_is_shown_and_ends_when_a_command_requests_a_name_that_it_lacks() {
    const OTHER: &str = "www.example.com";
    let ca = EmbeddedCa::start();
    let verb = |arguments: &[&str], code| run(certs(&ca.path("")).args(arguments), code);
    run(&mut ca.issue(&[NAME]), 0);
    let printed = verb(&["rollback", NAME], 2);
    assert!(
        printed.contains("generation 0001 is live, and none before it is stored"),
        "{printed}"
    );
    assert!(printed.contains("hint: certs renew"), "{printed}");
    run(&mut ca.issue(&[NAME, OTHER]), 0);
    verb(&["rollback", NAME], 0);
    let printed = verb(&["status"], 0);
    assert!(
        printed.contains("rolled back to generation 0001, valid to "),
        "{printed}"
    );
    let json: Value = serde_json::from_str(&verb(&["status", "--json"], 0)).unwrap();
    assert_eq!(json[0]["rolled_back_to"]["generation"], 1);
    // One more step back does not exist; the hint names the step that does.
    let printed = verb(&["rollback", NAME], 2);
    assert_eq!(
        printed.matches(&format!("{NAME}: ")).count(),
        1,
        "{printed}"
    );
    let hint = format!("hint: certs reload {NAME} for the newest, 0002");
    assert!(printed.contains(&hint), "{printed}");
    let live = || fs::read_link(ca.path(&format!("out/live/{NAME}"))).unwrap();
    // Nothing is requested here.
    verb(&["renew"], 0);
    assert!(live().ends_with("0001"));
    let printed = run(&mut ca.issue(&[OTHER, NAME]), 0);
    assert!(
        printed.contains("the rollback to generation 0001 ends"),
        "{printed}"
    );
    assert!(live().ends_with("0002"), "{printed}");
    assert!(!verb(&["status"], 0).contains("rolled back"));
    // The same names keep a rollback.
    run(&mut ca.issue(&[OTHER, NAME, "--force"]), 0);
    verb(&["rollback", NAME], 0);
    run(&mut ca.issue(&[OTHER, NAME]), 0);
    assert!(live().ends_with("0002"));
    let printed = verb(&["rollback", NAME, "--to", "7"], 2);
    assert!(
        printed.contains("generation 0007 is not stored"),
        "{printed}"
    );
    let hint = format!("hint: certs rollback {NAME} --to 1, or certs reload {NAME}");
    assert!(printed.contains(&hint), "{printed}");
}
