//! `certs rename`.

use std::path::Path;
use std::process::Command;

use certs::lineage::Lineage;
use certs::record::Renaming;
use certs::store::{Store, fs::FileStore};

use crate::followed::printed_command;
use crate::support::embedded::EmbeddedCa;
use crate::support::faults::Endpoint;
use crate::support::sidecar::Sidecar;
use crate::support::strace::{Strace, is_about, points};
use crate::support::{by_depth, certs, loads, run, until};

const NAME: &str = "example.com";

fn verb(ca: &EmbeddedCa, arguments: &[&str]) -> Command {
    let mut command = certs(&ca.path(""));
    command.args(arguments);
    command
}

/// Where the names are that are not hidden.
fn places(ca: &EmbeddedCa) -> Vec<String> {
    let mut found = Vec::new();
    for part in ["data/records", "out/live", "out/archive"] {
        let entries = std::fs::read_dir(ca.path(part)).into_iter().flatten();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        // A killed process may leave a hidden one.
        let names = names.filter(|name| !name.starts_with('.'));
        found.extend(names.map(|name| format!("{part}/{name}")));
    }
    found.sort();
    found
}

fn of(name: &str) -> [String; 3] {
    ["data/records", "out/archive", "out/live"].map(|part| format!("{part}/{name}"))
}

#[test]
fn rename_moves_record_and_files_and_orders_nothing() {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&[NAME, "--reuse-key"]), 0);
    run(&mut ca.issue(&[NAME, "--force"]), 0);
    let printed = run(&mut verb(&ca, &["rename", NAME, "shop"]), 0);
    assert!(printed.contains("renamed to shop"), "{printed}");
    assert_eq!(places(&ca), of("shop"));
    loads(&ca.path("out/live/shop"));
    let printed = run(&mut verb(&ca, &["status", "shop"]), 0);
    // Its settings and earlier generations came along.
    assert!(printed.contains("reuse_key: true"), "{printed}");
    assert!(printed.contains("lineage: shop"), "{printed}");
    run(&mut verb(&ca, &["rollback", "shop"]), 0);
    loads(&ca.path("out/live/shop"));
    run(&mut verb(&ca, &["reload", "shop"]), 0);
    // The same names are the same certificate.
    let printed = run(&mut ca.issue(&[NAME]), 0);
    assert!(printed.contains("shop: not due"), "{printed}");
    assert_eq!(ca.script.committed(Endpoint::NewOrder), 2);
    let printed = run(&mut verb(&ca, &["renew", "--force"]), 0);
    assert!(
        printed.contains("shop: issued; generation 0003"),
        "{printed}"
    );
    assert_eq!(places(&ca), of("shop"));
    // And back, by a name in it.
    let back = ["rename", NAME, NAME, "--json"];
    let printed = run(&mut verb(&ca, &back), 0);
    assert!(printed.contains(r#""renamed_from":"shop""#), "{printed}");
    assert_eq!(places(&ca), of(NAME));
}

#[test]
fn rename_keeps_a_link_and_names_readers() {
    let ca = EmbeddedCa::start();
    let copy = format!("file:{}", ca.path("copy-{name}.pem").display());
    let hook = ca.path("hook");
    crate::support::make_script(&hook, "true\n");
    let hook = format!("exec:{}", hook.display());
    run(
        &mut ca.issue(&[NAME, "--deploy", &copy, "--deploy", &hook]),
        0,
    );
    let printed = run(&mut verb(&ca, &["rename", NAME, "shop", "--keep-link"]), 0);
    assert!(printed.contains("deployed to exec:"), "{printed}");
    assert!(printed.contains("copy-example.com.pem"), "{printed}");
    loads(&ca.path("out/live/example.com"));
    let link = std::fs::read_link(ca.path("out/live/example.com")).unwrap();
    assert_eq!(link, Path::new("shop"));
    // The next pass writes the copy under the new name, with the rights of before.
    run(&mut verb(&ca, &["renew"]), 0);
    assert!(ca.path("copy-shop.pem").exists());
    run(&mut verb(&ca, &["renew", "--force"]), 0);
    loads(&ca.path("out/live/example.com"));
    let printed = run(&mut verb(&ca, &["rename", "shop", "store"]), 0);
    assert!(
        printed.contains("hint: --keep-link keeps a link"),
        "{printed}"
    );
    assert!(!ca.path("out/live/shop").exists());
    run(
        &mut verb(&ca, &["rename", "store", "shop", "--keep-link"]),
        0,
    );
    let link = std::fs::read_link(ca.path("out/live/store")).unwrap();
    assert_eq!(link, Path::new("shop"));
}

#[test]
fn rename_refuses_names_that_are_taken_or_configured() {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&[NAME]), 0);
    run(&mut ca.issue(&["other.example.com"]), 0);
    std::fs::create_dir(ca.path("out/archive/left")).unwrap();
    let before = places(&ca);
    for (new, words) in [
        ("other.example.com", "stored already"),
        ("left", "out/archive/left exists"),
        (NAME, "has that name already"),
        ("../x", "not a valid name"),
        ("Shop", "not a valid name"),
    ] {
        let printed = run(&mut verb(&ca, &["rename", NAME, new]), 2);
        assert!(printed.contains(words), "{new}: {printed}");
    }
    run(&mut verb(&ca, &["rename", "absent.example.com", "new"]), 2);
    let mut named = verb(&ca, &["rename", "shop", "new"]);
    run(&mut verb(&ca, &["rename", NAME, "shop"]), 0);
    let variables = [("CERTS_DOMAINS", NAME), ("CERTS_NAME", "shop")];
    let printed = run(named.envs(variables), 2);
    assert!(
        printed.contains("the configuration names it shop"),
        "{printed}"
    );
    let hint = "hint: change `name` there after certs delete, or leave `name` out";
    assert!(printed.contains(hint), "{printed}");
    // Without it, the configuration's certificate is the renamed one.
    run(
        verb(&ca, &["rename", "shop", NAME]).env("CERTS_DOMAINS", NAME),
        0,
    );
    assert_eq!(places(&ca), before);
    // What is left of another name is removed.
    let printed = run(&mut verb(&ca, &["rename", NAME, "left"]), 2);
    let delete = printed_command(&printed, "what is left of it: certs ", "\n");
    run(certs(&ca.path("")).args(delete), 0);
    run(&mut verb(&ca, &["rename", NAME, "left"]), 0);
}

#[test]
fn rename_is_done_by_a_running_sidecar() {
    let ca = EmbeddedCa::start();
    let sidecar = Sidecar::start(&ca, &[NAME]);
    until("the sidecar", || sidecar.readiness() == 200);
    run(&mut verb(&ca, &["rename", NAME, "shop"]), 0);
    assert_eq!(places(&ca), of("shop"));
    until("readiness", || sidecar.readiness() == 200);
    // The configuration's certificate is the renamed one.
    let mut renew = verb(&ca, &["renew", "shop", "--force"]);
    let printed = run(renew.env("CERTS_AGREE_TOS", "true"), 0);
    assert!(
        printed.contains("shop: issued; generation 0002"),
        "{printed}"
    );
    assert_eq!(places(&ca), of("shop"));
    assert_eq!(ca.script.committed(Endpoint::NewOrder), 2);
    assert!(!sidecar.log().contains("orphaned"), "{}", sidecar.log());
    sidecar.stop();
}

#[test]
fn rename_killed_at_any_call_is_finished_by_the_next() {
    let Some(strace) = Strace::find_with_arguments("killed renames") else {
        return;
    };
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&[NAME]), 0);
    let rename = verb(&ca, &["rename", NAME, "shop"]);
    let calls = strace.calls(&rename);
    let (data, output) = (ca.path("data"), ca.path("out"));
    let about = |call: &_| is_about(call, &[data.as_path(), output.as_path()] as &[&Path]);
    let points = points(&calls, about);
    assert!(points.len() > 30, "{points:?}");
    run(&mut verb(&ca, &["rename", "shop", NAME]), 0);
    for point in points.iter().step_by(by_depth(9, 1, 1)) {
        strace.kill_at(&rename, point);
        // Whichever name it has, a whole pair is live under it, and a pass goes on.
        let live = ["shop", NAME].map(|name| ca.path("out/live").join(name));
        let live: Vec<_> = live.iter().filter(|live| live.exists()).collect();
        assert!(!live.is_empty(), "{point:?}");
        live.iter().for_each(|live| loads(live));
        run(&mut verb(&ca, &["renew"]), 0);
        let again = verb(&ca, &["rename", NAME, "shop"]).output().unwrap();
        // A kill after the last step has finished it.
        let code = again.status.code();
        assert!(matches!(code, Some(0 | 2)), "{point:?}: {again:?}");
        assert_eq!(places(&ca), of("shop"), "{point:?}");
        run(&mut verb(&ca, &["rename", "shop", NAME]), 0);
        assert_eq!(places(&ca), of(NAME), "{point:?}");
    }
    assert_eq!(ca.script.committed(Endpoint::NewOrder), 1);
}

#[tokio::test]
async fn interrupted_rename_is_finished_by_the_printed_command() {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&[NAME]), 0);
    let store = FileStore::open(ca.path("data")).unwrap();
    let [from, to] = [NAME, "shop"].map(|name| Lineage::parse(name).unwrap());
    let (mut record, revision) = store.load(&from).await.unwrap().unwrap();
    record.renaming = Some(Renaming {
        from,
        to,
        keep_link: true,
    });
    store.save(&record, revision, None).await.unwrap();
    let printed = run(&mut verb(&ca, &["status"]), 0);
    let finish = printed_command(&printed, "was interrupted; hint: certs ", " finishes it");
    run(certs(&ca.path("")).args(finish), 0);
    let printed = run(&mut verb(&ca, &["status"]), 0);
    assert!(
        printed.contains("shop") && !printed.contains("hint: certs rename"),
        "{printed}"
    );
    loads(&ca.path("out/live/example.com"));
}
