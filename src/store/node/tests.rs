//! Tests of machines that share documents in memory, each with a directory of its own.

mod past;
mod place;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tempfile::TempDir;

use super::{Change, Copied, Followed, NodeStore, Role, Turn};
use crate::certificate::Secret;
use crate::lineage::Lineage;
use crate::record::{Generation, Revision, Served};
use crate::store::documents::Documents;
use crate::store::documents::memory::MemoryDocuments;
use crate::store::seal::{Seal, tests::ONE};
use crate::store::shared::SharedStore;
use crate::store::shared::fleet::{FleetNode, SharedAnswer};
use crate::store::tests::{issued, record};
use crate::store::{Store, StoreError};
use crate::time::Timestamp;
use crate::time::fake::RuntimeClock;

const CA: &str = "https://ca";

/// A machine that is gone when dropped.
struct Machine {
    store: NodeStore,
    _directory: TempDir,
}

impl std::ops::Deref for Machine {
    type Target = NodeStore;
    fn deref(&self) -> &NodeStore {
        &self.store
    }
}

fn machine_as(documents: &MemoryDocuments, name: &str, role: Role) -> Machine {
    let directory = tempfile::tempdir().unwrap();
    let documents: Arc<dyn Documents> = Arc::new(documents.clone());
    let shared = SharedStore::new(documents, Seal::new(ONE).unwrap(), name.to_owned());
    let shared = shared.with_clock(Arc::new(RuntimeClock::new()));
    Machine {
        store: NodeStore::open(directory.path().to_owned(), shared, role).unwrap(),
        _directory: directory,
    }
}

fn machine(documents: &MemoryDocuments, name: &str) -> Machine {
    machine_as(documents, name, Role::Full)
}

async fn turn(machine: &Machine) -> Turn {
    match machine.follow().await {
        Followed::Turn(turn) => turn,
        Followed::Down(error, _) => panic!("{error}"),
    }
}

#[tokio::test]
async fn node_store_keeps_contract() {
    let directories = std::sync::Mutex::new(Vec::new());
    let make = || {
        let Machine { store, _directory } = machine(&MemoryDocuments::default(), "one");
        directories.lock().unwrap().push(_directory);
        store
    };
    crate::store::tests::check(make).await;
}

#[tokio::test]
async fn certificate_of_one_machine_reaches_the_others_without_its_deployments() {
    let documents = MemoryDocuments::default();
    let (one, other) = (machine(&documents, "one"), machine(&documents, "other"));
    assert!(turn(&one).await.promoted);
    assert!(
        !turn(&other).await.promoted,
        "one machine does the scheduled work"
    );
    let (mut record, bundle) = issued(&record("example.com"), 1);
    let lineage = record.lineage.clone();
    record
        .served
        .insert("web:443".into(), Served::none(Timestamp::from_seconds(1)));
    one.save(&record, Revision(0), Some(&bundle)).await.unwrap();
    one.save_options(&lineage, "{}").await.unwrap();
    turn(&one).await;
    assert_eq!(
        turn(&other).await.changed,
        [(lineage.clone(), Change::Stored)]
    );
    let (copy, revision) = other.load(&lineage).await.unwrap().unwrap();
    assert!(copy.served.is_empty() && copy.issued == record.issued);
    assert_eq!(
        other.options(&lineage).await.unwrap().as_deref(),
        Some("{}")
    );
    let pair = other.own.bundle(&lineage, Generation(1)).await.unwrap();
    assert_eq!(pair.unwrap().1, bundle.chain_pem());
    // What a machine knows of its own servers costs the store nothing.
    let calls = documents.calls.load(Ordering::SeqCst);
    let mut own = copy.clone();
    own.deployed.insert("nginx".into(), Generation(1));
    other.save(&own, revision, None).await.unwrap();
    assert_eq!(documents.calls.load(Ordering::SeqCst), calls);
    assert!(
        turn(&other).await.changed.is_empty(),
        "its own deployments stay"
    );
    assert_eq!(
        other.load(&lineage).await.unwrap().unwrap().0.deployed,
        own.deployed
    );
}

#[tokio::test]
async fn stale_machine_is_refused_and_learns_the_newer_state() {
    let documents = MemoryDocuments::default();
    let (one, other) = (machine(&documents, "one"), machine(&documents, "other"));
    let mut first = record("example.com");
    let revision = one.save(&first, Revision(0), None).await.unwrap();
    turn(&other).await;
    let (mut stale, before) = other.load(&first.lineage).await.unwrap().unwrap();
    first.profile = Some("classic".into());
    one.save(&first, revision, None).await.unwrap();
    stale.profile = Some("other".into());
    let refused = other.save(&stale, before, None).await;
    assert!(
        matches!(refused, Err(StoreError::Conflict { .. })),
        "{refused:?}"
    );
    let (learned, _) = other.load(&first.lineage).await.unwrap().unwrap();
    assert_eq!(learned.profile, first.profile);
}

#[tokio::test]
async fn lease_of_one_machine_keeps_the_others_from_an_order() {
    let documents = MemoryDocuments::default();
    let (one, other) = (machine(&documents, "one"), machine(&documents, "other"));
    turn(&one).await;
    turn(&other).await;
    let record = record("example.com");
    one.save(&record, Revision(0), None).await.unwrap();
    let lineage = &record.lineage;
    assert!(
        other.share(lineage, false).await.unwrap().is_none(),
        "not the issuer"
    );
    let lease = other.share(lineage, true).await.unwrap();
    assert!(lease.is_some(), "a user's own request waits for no issuer");
    assert!(
        other.load(lineage).await.unwrap().is_some(),
        "the newest state"
    );
    assert!(one.share(lineage, false).await.unwrap().is_none());
    let refused = one.share(lineage, true).await;
    assert!(matches!(refused, Err(StoreError::Leased { .. })));
    drop(lease);
    // It is released in the background.
    tokio::task::yield_now().await;
    assert!(one.share(lineage, false).await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn issuer_that_is_gone_is_replaced_after_a_minute() {
    let documents = MemoryDocuments::default();
    let (one, other) = (machine(&documents, "one"), machine(&documents, "other"));
    turn(&one).await;
    turn(&other).await;
    for _ in 0..10 {
        tokio::time::advance(Duration::from_secs(15)).await;
        turn(&one).await;
        assert!(!turn(&other).await.promoted);
    }
    for _ in 0..3 {
        tokio::time::advance(Duration::from_secs(15)).await;
        assert!(!turn(&other).await.promoted);
    }
    tokio::time::advance(Duration::from_secs(15)).await;
    assert!(turn(&other).await.promoted);
    // The first one was suspended meanwhile.
    assert!(one.is_issuer());
    turn(&one).await;
    assert!(!one.is_issuer());
    // One that leaves makes room at once, and one that is being drained too.
    other.resign().await;
    assert!(!other.is_issuer() && !turn(&other).await.promoted);
    assert!(turn(&one).await.promoted);
    one.leave().await;
    assert!(!one.is_issuer());
    let third = machine(&documents, "third");
    assert!(turn(&third).await.promoted);
}

#[tokio::test]
async fn wiped_and_restored_stores_get_the_newer_state_back() {
    let documents = MemoryDocuments::default();
    let (one, other) = (machine(&documents, "one"), machine(&documents, "other"));
    let (first, bundle) = issued(&record("example.com"), 1);
    let lineage = first.lineage.clone();
    let revision = one.save(&first, Revision(0), Some(&bundle)).await.unwrap();
    turn(&one).await;
    turn(&other).await;
    let yesterday = documents.backup();
    let (second, bundle) = issued(&first, 2);
    one.save(&second, revision, Some(&bundle)).await.unwrap();
    turn(&one).await;
    turn(&other).await;
    for backup in [yesterday, Default::default()] {
        documents.restore(backup);
        // The machine with the older state is faster.
        other.sync_all().await.unwrap();
        one.sync_all().await.unwrap();
        let shared = one.shared().load(&lineage).await.unwrap().unwrap().0;
        assert_eq!(shared.issued, second.issued);
        assert!(
            one.shared()
                .bundle(&lineage, Generation(2))
                .await
                .unwrap()
                .is_some()
        );
        let (copy, _) = other.load(&lineage).await.unwrap().unwrap();
        assert_eq!(copy.issued, second.issued);
    }
    assert!(
        documents
            .backup()
            .keys()
            .all(|key| !key.starts_with("deleted/"))
    );
}

#[tokio::test]
async fn deletion_reaches_the_others_and_a_missing_document_does_not_delete() {
    let documents = MemoryDocuments::default();
    let (one, other) = (machine(&documents, "one"), machine(&documents, "other"));
    let (record, bundle) = issued(&record("example.com"), 1);
    let lineage = record.lineage.clone();
    let revision = one.save(&record, Revision(0), Some(&bundle)).await.unwrap();
    turn(&one).await;
    turn(&other).await;
    assert!(one.delete(&lineage, revision).await.unwrap());
    turn(&one).await;
    assert_eq!(
        turn(&other).await.changed,
        [(lineage.clone(), Change::Deleted)]
    );
    let (_, revision) = other.load(&lineage).await.unwrap().unwrap();
    assert!(other.delete(&lineage, revision).await.unwrap());
    assert!(turn(&one).await.changed.is_empty());
    // The same name again is another certificate.
    one.save(&record, Revision(0), Some(&bundle)).await.unwrap();
    turn(&one).await;
    assert_eq!(turn(&other).await.changed, [(lineage, Change::Stored)]);
}

#[tokio::test]
async fn machine_that_joins_brings_its_certificates_and_its_account() {
    let documents = MemoryDocuments::default();
    let (one, other) = (machine(&documents, "one"), machine(&documents, "other"));
    let (own, bundle) = issued(&record("example.com"), 3);
    one.own
        .save(&own, Revision(0), Some(&bundle))
        .await
        .unwrap();
    let account = Secret::new(format!(r#"{{"directory": "{CA}"}}"#));
    one.own.create_account(CA, &account).await.unwrap();
    turn(&one).await;
    turn(&other).await;
    let (copy, _) = other.load(&own.lineage).await.unwrap().unwrap();
    assert_eq!(copy.issued, own.issued);
    assert_eq!(other.account(CA).await.unwrap(), Some(account.clone()));
    assert_eq!(one.account(CA).await.unwrap(), Some(account));
    let serving = machine_as(&documents, "serving", Role::Serve);
    assert!(!turn(&serving).await.promoted);
    assert!(serving.load(&own.lineage).await.unwrap().is_some());
    assert_eq!(serving.account(CA).await.unwrap(), None);
    assert!(serving.share(&own.lineage, false).await.unwrap().is_none());
    let refused = serving.share(&own.lineage, true).await;
    assert!(matches!(refused, Err(StoreError::OnlyServes)));
}

#[tokio::test]
async fn unreachable_store_stops_orders_and_not_deployments() {
    let documents = MemoryDocuments::default();
    let one = machine(&documents, "one");
    let (record, bundle) = issued(&record("example.com"), 1);
    let revision = one.save(&record, Revision(0), Some(&bundle)).await.unwrap();
    turn(&one).await;
    documents.is_down.store(true, Ordering::SeqCst);
    assert!(matches!(one.follow().await, Followed::Down(_, true)));
    assert!(
        matches!(one.follow().await, Followed::Down(_, false)),
        "said once"
    );
    let (mut copy, _) = one.load(&record.lineage).await.unwrap().unwrap();
    copy.deployed.insert("nginx".into(), Generation(1));
    one.save(&copy, revision, None).await.unwrap();
    assert!(one.share(&record.lineage, true).await.is_err());
    documents.is_down.store(false, Ordering::SeqCst);
    assert!(turn(&one).await.changed.is_empty());
}

fn described(name: &str, process: u64, seen: i64) -> FleetNode {
    FleetNode {
        node: name.to_owned(),
        process,
        version: "1".into(),
        role: "full".into(),
        seen: Timestamp::from_seconds(seen),
        certificates: 0,
        served: BTreeMap::new(),
        host: format!("host-{process}"),
        rival: None,
    }
}

/// Follows the fleet until the future is dropped.
async fn run(machine: &Machine) {
    loop {
        turn(machine).await;
        let seen = 1_800_000_000;
        let name = machine.shared.node().to_owned();
        let described = machine.describe(|process| described(&name, process, seen));
        described.await.unwrap();
        machine.until_due().await;
    }
}

/// Two idle machines, and the calls of each so far.
async fn idle(certificates: usize, tells: bool) -> [(Machine, MemoryDocuments); 2] {
    let documents = MemoryDocuments::default();
    documents.tells.store(tells, Ordering::SeqCst);
    let both = ["one", "other"].map(|name| {
        let documents = documents.of_another_machine();
        (machine(&documents, name), documents)
    });
    for (machine, _) in &both {
        turn(machine).await;
    }
    for number in 0..certificates {
        let key = format!("certificates/n{number}");
        let version = documents.write(&key, b"", None).await.unwrap().0;
        let copied = Copied {
            id: 1,
            revision: Revision(1),
            stamp: 1,
            version,
        };
        for (machine, _) in &both {
            let lineage = Lineage::parse(&format!("n{number}")).unwrap();
            let mut copies = machine.copies.lock().unwrap();
            copies.certificates.insert(lineage, copied.clone());
        }
    }
    both
}

#[tokio::test(start_paused = true)]
async fn idle_machine_calls_the_store_five_times_a_minute_whatever_it_keeps() {
    for (certificates, tells, hours) in [(10, false, 1), (10, true, 1), (100_000, false, 24)] {
        let both = idle(certificates, tells).await;
        let idle = async {
            // What the start has cost does not count.
            tokio::time::sleep(Duration::from_secs(300)).await;
            let calls = [0, 1].map(|of| both[of].1.calls.swap(0, Ordering::SeqCst));
            assert!(calls.into_iter().all(|calls| calls > 0));
            tokio::time::sleep(Duration::from_secs(hours * 3600)).await;
        };
        tokio::select! {
            () = run(&both[0].0) => {}
            () = run(&both[1].0) => {}
            () = idle => {}
        }
        for (_, documents) in &both {
            let calls = documents.calls.load(Ordering::SeqCst);
            let at_most = hours * 60 * 5;
            let with = format!("{hours} h with {certificates}, notices: {tells}");
            assert!(u64::from(calls) <= at_most, "{calls} in {with}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn machine_with_notices_sees_them_at_once_and_replaces_the_issuer() {
    let [(one, _), (other, documents)] = idle(0, true).await;
    let while_idle = async |seconds| {
        tokio::select! {
            () = run(&one) => {}
            () = run(&other) => {}
            () = tokio::time::sleep(Duration::from_secs(seconds)) => {}
        }
    };
    while_idle(300).await;
    assert!(one.is_issuer() && !other.is_issuer());
    let record = record("example.com");
    one.save(&record, Revision(0), None).await.unwrap();
    let before = documents.calls.load(Ordering::SeqCst);
    while_idle(1).await;
    assert!(other.load(&record.lineage).await.unwrap().is_some());
    let calls = documents.calls.load(Ordering::SeqCst) - before;
    assert!(calls <= 5, "{calls}: no machine wakes itself");
    // The issuer is gone.
    let since = tokio::time::Instant::now();
    let replaced = async {
        while !other.is_issuer() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! { () = run(&other) => {} () = replaced => {} }
    assert!(
        since.elapsed() <= Duration::from_secs(62),
        "{:?}",
        since.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn answer_of_one_machine_is_seen_by_the_others_within_a_second() {
    let documents = MemoryDocuments::default();
    let (one, other) = (machine(&documents, "one"), machine(&documents, "other"));
    let answer = SharedAnswer {
        kind: "http-01".into(),
        identifier: "2001:db8::1".into(),
        token: "t".repeat(22),
        content: "t.thumbprint".into(),
    };
    other.claim().await.unwrap();
    assert_eq!(other.answers().await.unwrap(), []);
    one.put_answer(&answer).await.unwrap();
    one.put_answer(&answer).await.unwrap();
    // The CA asks at once, in a flood of other requests.
    let calls = documents.calls.load(Ordering::SeqCst);
    let flood = (0..1000).map(|_| other.answers());
    for answers in futures_util::future::join_all(flood).await {
        assert_eq!(answers.unwrap(), std::slice::from_ref(&answer));
    }
    let calls = documents.calls.load(Ordering::SeqCst) - calls;
    assert!(calls <= 2, "a list and a read, not {calls}");
    one.remove_answer(&answer).await.unwrap();
    one.remove_answer(&answer).await.unwrap();
    assert_eq!(other.answers().await.unwrap(), []);
}

#[tokio::test]
async fn document_of_another_fleet_is_refused_and_stays() {
    let documents = MemoryDocuments::default();
    let one = machine(&documents, "one");
    one.save(&record("example.com"), Revision(0), None)
        .await
        .unwrap();
    turn(&one).await;
    let before = documents.backup();
    let directory = tempfile::tempdir().unwrap();
    let key = "YWJjZGVmMDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODk=";
    let shared: Arc<dyn Documents> = Arc::new(documents.clone());
    let shared = SharedStore::new(shared, Seal::new(key).unwrap(), "foreign".into());
    let foreign = NodeStore::open(directory.path().to_owned(), shared, Role::Full).unwrap();
    let lineage = Lineage::parse("example.com").unwrap();
    let writes = documents.writes();
    assert!(matches!(
        foreign.sync(&lineage).await,
        Err(StoreError::OtherKey { .. })
    ));
    assert!(matches!(foreign.follow().await, Followed::Down(..)));
    assert_eq!(documents.backup(), before);
    assert_eq!(documents.writes(), writes, "not even a probe");
}

#[tokio::test]
async fn certificate_counts_more_than_an_order_that_has_brought_none() {
    let documents = MemoryDocuments::default();
    let (one, other) = (machine(&documents, "one"), machine(&documents, "other"));
    let failed = record("example.com");
    let (own, bundle) = issued(&failed, 1);
    one.save(&failed, Revision(0), None).await.unwrap();
    other
        .own
        .save(&own, Revision(0), Some(&bundle))
        .await
        .unwrap();
    turn(&other).await;
    let (kept, _) = other.load(&own.lineage).await.unwrap().unwrap();
    assert_eq!(kept.issued, own.issued);
    turn(&one).await;
    let (copy, _) = one.load(&own.lineage).await.unwrap().unwrap();
    assert_eq!(copy.issued, own.issued);
}

#[tokio::test]
async fn deleted_certificate_gives_way_to_a_new_one_of_its_name() {
    let documents = MemoryDocuments::default();
    let (one, other) = (machine(&documents, "one"), machine(&documents, "other"));
    let (old, bundle) = issued(&record("example.com"), 1);
    let revision = one.save(&old, Revision(0), Some(&bundle)).await.unwrap();
    turn(&one).await;
    turn(&other).await;
    // The other machine is off meanwhile.
    one.delete(&old.lineage, revision).await.unwrap();
    one.save(&record("example.com"), Revision(0), None)
        .await
        .unwrap();
    turn(&one).await;
    assert_eq!(
        turn(&other).await.changed,
        [(old.lineage.clone(), Change::Deleted)]
    );
    let (_, revision) = other.load(&old.lineage).await.unwrap().unwrap();
    other.delete(&old.lineage, revision).await.unwrap();
    turn(&other).await;
    let (new, _) = other.load(&old.lineage).await.unwrap().unwrap();
    assert_eq!(new.issued, None);
}

#[tokio::test]
async fn restored_store_that_counts_again_takes_no_late_write() {
    let documents = MemoryDocuments::default();
    let (one, other) = (machine(&documents, "one"), machine(&documents, "other"));
    let mut first = record("example.com");
    let revision = one.save(&first, Revision(0), None).await.unwrap();
    turn(&one).await;
    turn(&other).await;
    let yesterday = documents.backup();
    first.profile = Some("one".into());
    let revision = one.save(&first, revision, None).await.unwrap();
    documents.restore(yesterday);
    let (mut theirs, before) = other.load(&first.lineage).await.unwrap().unwrap();
    theirs.profile = Some("other".into());
    other.save(&theirs, before, None).await.unwrap();
    first.profile = Some("late".into());
    let late = one.save(&first, revision, None).await;
    assert!(matches!(late, Err(StoreError::Conflict { .. })), "{late:?}");
}

#[tokio::test]
async fn command_leaves_neither_lease_nor_unannounced_change() {
    let documents = MemoryDocuments::default();
    let (one, other) = (machine(&documents, "one"), machine(&documents, "other"));
    turn(&other).await;
    one.serve_command();
    one.sync_all().await.unwrap();
    let record = record("example.com");
    let lease = one.share(&record.lineage, false).await.unwrap();
    assert!(lease.is_some(), "a command of a timer waits for no issuer");
    one.save(&record, Revision(0), None).await.unwrap();
    drop(lease);
    one.announce().await;
    assert!(
        documents
            .backup()
            .keys()
            .all(|key| !key.starts_with("leases/"))
    );
    let changed = turn(&other).await.changed;
    assert_eq!(changed, [(record.lineage, Change::Stored)]);
    assert!(!other.is_command.load(Ordering::SeqCst) && other.is_issuer());
}

#[tokio::test]
async fn renamed_certificate_is_known_by_its_new_name() {
    let documents = MemoryDocuments::default();
    let (one, other) = (machine(&documents, "one"), machine(&documents, "other"));
    let (record, bundle) = issued(&record("example.com"), 1);
    let (from, to) = (record.lineage.clone(), Lineage::parse("new").unwrap());
    let revision = one.save(&record, Revision(0), Some(&bundle)).await.unwrap();
    turn(&one).await;
    turn(&other).await;
    assert_eq!(other.renamed_to(&from), None);
    one.rename(&from, &to, revision).await.unwrap();
    turn(&one).await;
    let changed = turn(&other).await.changed;
    assert!(
        changed.contains(&(from.clone(), Change::Deleted)),
        "{changed:?}"
    );
    assert_eq!(other.renamed_to(&from), Some(to));
}

#[tokio::test(start_paused = true)]
async fn change_waits_for_a_pass_that_ends_soon() {
    let documents = MemoryDocuments::default();
    let (one, other) = (machine(&documents, "one"), machine(&documents, "other"));
    turn(&one).await;
    turn(&other).await;
    let record = record("example.com");
    one.save(&record, Revision(0), None).await.unwrap();
    turn(&one).await;
    let pass = other.lease(&record.lineage).await.unwrap();
    let ends = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        drop(pass);
    };
    let (turned, ()) = tokio::join!(turn(&other), ends);
    assert_eq!(turned.changed, [(record.lineage, Change::Stored)]);
}
