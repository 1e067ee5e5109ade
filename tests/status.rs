//! `certs status` of a data directory written as a sidecar would.

use std::process::Command;

use certs::ca_state::{CaState, Limit, Outage};
use certs::identifier::Identifier;
use certs::lineage::Lineage;
use certs::record::{Record, Revision};
use certs::renew::rate_limits::{LETS_ENCRYPT, Priority, spend};
use certs::store::{Store, fs::FileStore};
use certs::time::{Clock, SystemClock};

use crate::support::{certs, run};

const CA: &str = "https://acme-v02.api.letsencrypt.org/directory";

#[tokio::test]
async fn status_shows_ca_limits_and_reachability() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path().join("data")).unwrap();
    let name = Identifier::parse("shop.example.co.uk").unwrap();
    let record = Record::new(Lineage::of(&name), [name.clone()].into(), CA.into());
    store.save(&record, Revision(0), None).await.unwrap();
    let mut state = CaState::default();
    let now = SystemClock.now();
    for _ in 0..3 {
        let (names, counted) = (&record.identifiers, certs::ca_state::Counted::New);
        spend(
            &mut state,
            LETS_ENCRYPT,
            names,
            counted,
            Priority::Routine,
            now,
        )
        .unwrap();
    }
    state.outage = Some(Outage {
        since: now,
        probes: 2,
        probe_at: now + std::time::Duration::from_secs(90),
        by_retry_after: false,
        answered: false,
        windows_only: false,
        last: "no route".into(),
    });
    let saved = store.save_ca_state(CA, &state, Revision(0));
    saved.await.unwrap();

    let printed = run(certs(directory.path()).arg("status"), 0);
    for words in [
        "297 of 300 new orders, all at ",
        "47 of 50 certificates per registered domain of example.co.uk, all at ",
        "2 of 5 certificates for the same names of shop.example.co.uk, all at ",
        "its CA has been unreachable since ",
        "; next probe at ",
        "Z (in ",
    ] {
        assert!(printed.contains(words), "no `{words}` in {printed}");
    }
    let json = run(certs(directory.path()).args(["status", "--json"]), 0);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let budget = json[0]["budget"].as_array().unwrap();
    let left: Vec<_> = budget.iter().map(|left| left["tokens"].clone()).collect();
    assert_eq!(left, [297, 47, 2, 5, 1152]);
    assert_eq!(json[0]["outage"]["probes"], 2);

    // A probe of the past is not announced.
    state.outage.as_mut().unwrap().probe_at = now;
    let saved = store.save_ca_state(CA, &state, Revision(1));
    saved.await.unwrap();
    let printed = run(certs(directory.path()).arg("status"), 0);
    assert!(
        printed.contains("; the next order or renewal probes it"),
        "{printed}"
    );

    // Then only the windows are unavailable. After the CA answers the probe, the next request shows whether it
    // has windows.
    let mut revision = Revision(2);
    for (answered, shown) in [(false, true), (true, false)] {
        let outage = state.outage.as_mut().unwrap();
        (outage.windows_only, outage.answered) = (true, answered);
        let saved = store.save_ca_state(CA, &state, revision);
        revision = saved.await.unwrap();
        let printed = run(certs(directory.path()).arg("status"), 0);
        let words = "its CA has not provided renewal windows or the time since ";
        assert_eq!(printed.contains(words), shown, "{printed}");
        assert!(!printed.contains("has been unreachable"), "{printed}");
    }
}

#[tokio::test]
async fn own_rate_limit_exits_6_with_retry_time() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: an exhausted rate limit: a network namespace needs root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path().join("data")).unwrap();
    let mut state = CaState::default();
    // The limit is full again in three hours: no token is left, and the next one comes in 36 seconds.
    let full_at = SystemClock.now() + std::time::Duration::from_secs(3 * 3600);
    let spent = [(String::new(), full_at)].into();
    std::sync::Arc::make_mut(&mut state.spent).insert(Limit::NewOrders, spent);
    let saved = store.save_ca_state(CA, &state, Revision(0));
    saved.await.unwrap();

    // The CA is unreachable from this namespace, and no request is needed.
    let certs = certs(directory.path());
    let mut command = Command::new("unshare");
    command.args(["--net", "--"]).arg(certs.get_program());
    for (name, value) in certs.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    command.args(["issue", "example.com", "--agree-tos", "--ca", CA]);
    command.arg("--webroot").arg(directory.path());
    let printed = run(&mut command, 6);
    let near = [0, 36, 37].map(|seconds| {
        let until = SystemClock.now() + std::time::Duration::from_secs(seconds);
        until.to_string()[.."2026-01-01T00:00".len()].to_owned()
    });
    assert!(
        printed.contains(
            "the rate limit for new orders is used up (as counted here): no order before "
        ) && near.iter().any(|until| printed.contains(until)),
        "{near:?}: {printed}"
    );
    assert!(
        printed.contains("Z (in 3") && printed.contains("hint: "),
        "{printed}"
    );
}

#[tokio::test]
async fn stored_text_cannot_steer_the_terminal() {
    const ESCAPES: &str = "\x1b]0;pwn\x07\u{9b}2J\u{202e}\nforged  line";
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let store = FileStore::open(data.clone()).unwrap();
    let name = Identifier::parse("a.example.com").unwrap();
    let lineage = Lineage::of(&name);
    let ca = format!("https://ca.invalid/{ESCAPES}");
    let mut record = Record::new(lineage.clone(), [name].into(), ca);
    record.failures.last = Some(ESCAPES.into());
    store.save(&record, Revision(0), None).await.unwrap();
    let made = certs(directory.path())
        .args(["config", "check", "--json"])
        .env("CERTS_DOMAINS", "a.example.com")
        .args(["--config", "/dev/null"])
        .env("CERTS_AGREE_TOS", "true")
        .output()
        .unwrap();
    let made: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    let mut options = made["certificates"][0].clone();
    options["profile"] = ESCAPES.into();
    options["orphaned"] = ESCAPES.into();
    options["deploy"] = serde_json::json!([format!("file:/srv/{ESCAPES}/cert.pem")]);
    let json = options.to_string();
    store.save_options(&lineage, &json).await.unwrap();

    for arguments in [
        &["status"][..],
        &["status", "a.example.com"],
        &["status", "a.example.com", "--json"],
        &["renew"],
        &["renew", "--json"],
        &["renew", "--log-format", "json"],
        &["delete", "a.example.com"],
        &["delete", "a.example.com", "--yes"],
    ] {
        let output = certs(directory.path()).args(arguments).output().unwrap();
        let printed = crate::support::text(&output);
        let steers = |letter: char| letter.is_control() && letter != '\n' || letter == '\u{202e}';
        assert!(!printed.contains(steers), "{arguments:?}: {printed:?}");
        assert!(!printed.contains("\nforged"), "{arguments:?}: {printed:?}");
    }
}
