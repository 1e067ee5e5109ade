//! Two to ten processes at once on one store, and a process that is stopped in the middle of an order while
//! another one starts. There is one order and one certificate, and the late process reports why it stops.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use certs::ca::Validation;
use certs::identifier::Identifier;
use certs::lineage::Lineage;
use certs::random::{Random, SeededRandom};
use certs::record::{Record, Revision};
use certs::store::fs::FileStore;
use certs::store::{Store, StoreError};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, Signal};

use crate::support::embedded::EmbeddedCa;
use crate::support::faults::{Endpoint, Fault, Which};
use crate::support::oracle::Oracle;
use crate::support::{Running, by_depth, certs, run, text, until};

/// A CA without validation, since each process has its own listener.
fn ca() -> EmbeddedCa {
    EmbeddedCa::with(|settings| settings.validation = Validation::AlwaysValid)
}

fn issue(ca: &EmbeddedCa, names: &[&str]) -> Command {
    let mut command = certs(&ca.path(""));
    command
        .args(["issue", "--agree-tos", "--ca", &ca.server.directory_url()])
        .arg("--ca-root")
        .arg(ca.path("root.pem"))
        .args(["--http-listen", "127.0.0.1:0"])
        .args(names);
    command
}

fn spawn(mut command: Command) -> Child {
    let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    piped.spawn().unwrap()
}

/// Runs `number` of them at once. Exactly one orders; the others find the certificate not due or the lease
/// taken.
fn race(ca: &EmbeddedCa, name: &str, number: u64, command: impl Fn() -> Command) {
    let done = |endpoint| ca.script.committed(endpoint);
    let (orders, certificates) = (done(Endpoint::NewOrder), done(Endpoint::Finalize));
    let racing: Vec<Child> = (0..number).map(|_| spawn(command())).collect();
    let mut successes = 0;
    for child in racing {
        let output = child.wait_with_output().unwrap();
        let printed = text(&output);
        match output.status.code() {
            Some(0) => successes += 1,
            Some(8) => assert!(
                printed.contains("is being worked on by another process")
                    && printed.contains("hint:"),
                "{printed}"
            ),
            code => panic!("{code:?}: {printed}"),
        }
    }
    assert!(successes > 0, "{name}: no process succeeded");
    let (orders, certificates) = (
        done(Endpoint::NewOrder) - orders,
        done(Endpoint::Finalize) - certificates,
    );
    assert_eq!((orders, certificates), (1, 1), "{name}: {number} at once");
    let oracle = Oracle::new(&ca.path(""), &[name]);
    oracle
        .settled()
        .unwrap_or_else(|why| panic!("{name}: {why}"));
}

#[test]
fn concurrent_first_contacts_create_one_account() {
    let ca = ca();
    let names: Vec<String> = (0..6).map(|n| format!("n{n}.example.com")).collect();
    // Each process requests the directory before it looks for an account.
    ca.script
        .add(Endpoint::Directory, Which::Every, Fault::Held);
    let racing: Vec<Child> = names
        .iter()
        .map(|name| spawn(issue(&ca, &[name])))
        .collect();
    until("six requests for the directory", || {
        ca.script.count(Endpoint::Directory) == 6
    });
    ca.script.clear();
    for child in racing {
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    }
    assert_eq!(ca.script.accounts(), 1);
}

/// Rounds of a race for a new certificate, or for one that is made due.
fn rounds(asked: u64) {
    let (mut ca, dice) = (ca(), SeededRandom::new(3));
    for round in 0..asked {
        if round % 10 == 0 {
            // Covers the case without a store and an account.
            ca = self::ca();
        }
        let name = format!("r{round}.example.com");
        let number = 2 + dice.below(9);
        race(&ca, &name, number, || issue(&ca, &[&name]));
        if round % 2 == 1 {
            make_due(&ca, &name);
            race(&ca, &name, number, || renew(&ca, &name));
        }
    }
}

fn renew(ca: &EmbeddedCa, name: &str) -> Command {
    let mut command = certs(&ca.path(""));
    command.args(["renew", name]);
    command
}

/// Sets the stored instant of renewal to the past.
fn make_due(ca: &EmbeddedCa, name: &str) {
    let path = ca.path("data/records").join(name).join("record.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut stored: serde_json::Value = serde_json::from_str(&text).unwrap();
    let issued = &mut stored["record"]["issued"];
    issued["renewal"]["at"] = "2026-01-01T00:00:00Z".into();
    issued["renewable_from"] = serde_json::Value::Null;
    std::fs::write(&path, stored.to_string()).unwrap();
}

#[test]
fn racing_processes_make_one_order_per_certificate() {
    let asked = by_depth(6, 200, 1_000);
    rounds(asked);
    eprintln!("races of 2 to 10 processes: {asked} rounds");
}

#[test]
fn process_without_port_80_reports_it_and_orders_nothing() {
    let ca = EmbeddedCa::start();
    let racing: Vec<Child> = (0..6).map(|_| spawn(ca.issue(&["example.com"]))).collect();
    let mut codes = Vec::new();
    for child in racing {
        let output = child.wait_with_output().unwrap();
        let printed = text(&output);
        let code = output.status.code().unwrap();
        assert!([0, 2, 8].contains(&code), "{code}: {printed}");
        assert!(code == 0 || printed.contains("hint:"), "{printed}");
        codes.push(code);
    }
    assert!(codes.contains(&0), "{codes:?}");
    assert_eq!(ca.script.committed(Endpoint::NewOrder), 1, "{codes:?}");
    let oracle = Oracle::new(&ca.path(""), &["example.com"]);
    oracle.settled().unwrap();
}

/// Whether one of many workers changed a record.
fn work(store: &FileStore, lineage: &Lineage, round: u64, leased: bool) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let lease = match store.lease(lineage).await {
            Err(StoreError::Leased { .. }) if leased => return false,
            lease => leased.then(|| lease.unwrap()),
        };
        let stored = store.load(lineage).await.unwrap();
        let (mut record, revision) = stored.unwrap_or_else(|| {
            let names = [Identifier::parse(lineage.as_str()).unwrap()].into();
            let fresh = Record::new(lineage.clone(), names, "https://ca".into());
            (fresh, Revision(0))
        });
        let ours = Some(round.to_string());
        if record.profile == ours {
            return false;
        }
        record.profile = ours;
        let saved = store.save(&record, revision, None).await;
        drop(lease);
        match saved {
            Ok(_) => true,
            Err(StoreError::Conflict { .. }) if !leased => false,
            Err(error) => panic!("{error}"),
        }
    })
}

#[test]
fn concurrent_writers_have_exactly_one_winner_in_a_thousand_rounds() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path().join("data")).unwrap();
    let (store, dice) = (Arc::new(store), SeededRandom::new(5));
    let lineage = Lineage::parse("example.com").unwrap();
    for round in 0..1_000 {
        // In turn with a lease, and by compare-and-swap alone.
        let (number, leased) = (2 + dice.below(9), round % 2 == 0);
        let barrier = Arc::new(Barrier::new(usize::try_from(number).unwrap()));
        let workers = (0..number).map(|_| {
            let (store, lineage, barrier) = (store.clone(), lineage.clone(), barrier.clone());
            std::thread::spawn(move || {
                barrier.wait();
                work(&store, &lineage, round, leased)
            })
        });
        let workers = workers.collect::<Vec<_>>().into_iter();
        let winners = workers
            .filter(|_| true)
            .map(|worker| worker.join().unwrap());
        assert_eq!(winners.filter(|won| *won).count(), 1, "round {round}");
    }
}

#[test]
fn released_lease_is_free_while_starting_child_inherits_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path().join("data")).unwrap();
    let lineage = Lineage::parse("example.com").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(async {
        let lease = store.lease(&lineage).await.unwrap();
        // Imitates a child between fork and exec: the same open file under another number.
        let file = directory.path().join("data/leases/example.com");
        let its = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let mut its = its.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == file));
        let number = its.next().unwrap().file_name();
        let number = number.to_str().unwrap().parse().unwrap();
        let ourselves = rustix::process::getpid();
        let ourselves = rustix::process::pidfd_open(ourselves, PidfdFlags::empty()).unwrap();
        let flags = PidfdGetfdFlags::empty();
        let inherited = rustix::process::pidfd_getfd(&ourselves, number, flags).unwrap();
        drop(lease);
        assert!(store.lease(&lineage).await.is_ok());
        drop(inherited);
    });
}

/// A process that is stopped while the CA is about to sign.
struct StoppedProcess {
    ca: EmbeddedCa,
    child: Running,
    log: PathBuf,
}

impl StoppedProcess {
    fn in_the_middle_of_an_order() -> Self {
        let ca = ca();
        ca.script
            .add(Endpoint::Finalize, Which::Nth(1), Fault::Held);
        let log = ca.path("stopped.log");
        let file = std::fs::File::create(&log).unwrap();
        let child = Running::start_logging(&mut issue(&ca, &["example.com"]), file.into());
        until("an order", || ca.script.count(Endpoint::Finalize) == 1);
        child.signal(Signal::STOP);
        let stat = format!("/proc/{}/stat", child.id());
        let is_stopped = || std::fs::read_to_string(&stat).unwrap().contains(") T ");
        until("the stopped state", is_stopped);
        // The CA signs, but its reply is not read.
        ca.script.clear();
        until("the CA", || ca.script.committed(Endpoint::Finalize) == 1);
        Self { ca, child, log }
    }

    /// Continues the process, and returns its output.
    fn continue_to_end(&mut self, code: i32) -> String {
        self.child.signal(Signal::CONT);
        until("the process's end", || self.child.has_ended());
        let printed = std::fs::read_to_string(&self.log).unwrap();
        assert_eq!(self.child.exit_code(), Some(code), "{printed}");
        printed
    }
}

fn settled_with_one_order(ca: &EmbeddedCa) {
    let done = |endpoint| ca.script.committed(endpoint);
    assert_eq!((done(Endpoint::NewOrder), done(Endpoint::Finalize)), (1, 1));
    let oracle = Oracle::new(&ca.path(""), &["example.com"]);
    oracle.settled().unwrap();
}

#[test]
fn stopped_process_keeps_lease_and_finishes() {
    let mut stopped = StoppedProcess::in_the_middle_of_an_order();
    let printed = run(&mut issue(&stopped.ca, &["example.com"]), 8);
    assert!(
        printed.contains("is being worked on by another process"),
        "{printed}"
    );
    // In the full form longer than any request deadline.
    std::thread::sleep(Duration::from_secs(by_depth(0, 0, 60)));
    stopped.continue_to_end(0);
    settled_with_one_order(&stopped.ca);
}

#[test]
fn process_with_lost_lease_is_refused_when_it_continues() {
    let mut stopped = StoppedProcess::in_the_middle_of_an_order();
    // Imitates an operator that deletes the lock of a stopped process as stale.
    std::fs::remove_file(stopped.ca.path("data/leases/example.com")).unwrap();
    let printed = run(&mut issue(&stopped.ca, &["example.com"]), 0);
    let oracle = Oracle::new(&stopped.ca.path(""), &["example.com"]);
    let before = oracle.settled();
    let before = before.unwrap_or_else(|why| panic!("{why}: {printed}"));
    let printed = stopped.continue_to_end(8);
    let is_named = printed.contains("was changed by another process") && printed.contains("hint:");
    assert!(is_named, "{printed}");
    settled_with_one_order(&stopped.ca);
    let after = oracle.settled().unwrap();
    assert_eq!(after, before, "the late process has overwritten the record");
}
