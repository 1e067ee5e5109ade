//! Documents that are older than what a machine knows, damaged, missing, or of another fleet.

use super::*;
use crate::ca_state::CaState;
use crate::fingerprint::Fingerprint;
use crate::store::documents::Version;

const AT: &str = "certificates/example.com";

async fn content(documents: &MemoryDocuments, key: &str) -> Vec<u8> {
    documents.read(key).await.unwrap().unwrap().content
}

/// Puts `content` there, as somebody with write access to the store could.
async fn put(documents: &MemoryDocuments, key: &str, content: &[u8]) {
    let version = documents.read(key).await.unwrap().map(|it| it.version);
    documents
        .write(key, content, version.as_ref())
        .await
        .unwrap();
}

fn keys(documents: &MemoryDocuments, prefix: &str) -> Vec<String> {
    let all = documents.backup().into_keys();
    all.filter(|key| key.starts_with(prefix)).collect()
}

#[tokio::test]
async fn older_certificate_replaces_no_newer_one() {
    let documents = MemoryDocuments::default();
    let (one, serving) = (
        machine(&documents, "one"),
        machine_as(&documents, "serving", Role::Serve),
    );
    let (first, bundle) = issued(&record("example.com"), 1);
    let lineage = first.lineage.clone();
    let revision = one.save(&first, Revision(0), Some(&bundle)).await.unwrap();
    let old = content(&documents, AT).await;
    let (second, bundle) = issued(&first, 2);
    let revision = one.save(&second, revision, Some(&bundle)).await.unwrap();
    turn(&one).await;
    turn(&serving).await;
    put(&documents, AT, &old).await;
    let refused = serving.sync(&lineage).await;
    assert!(
        matches!(refused, Err(StoreError::Older { .. })),
        "{refused:?}"
    );
    assert_eq!(content(&documents, AT).await, old, "nothing is overwritten");
    one.sync(&lineage).await.unwrap();
    let stored = one.shared().load(&lineage).await.unwrap().unwrap().0;
    assert_eq!(stored.issued, second.issued);
    // One that was deleted comes back under the name of a later one.
    one.delete(&lineage, revision).await.unwrap();
    let (later, bundle) = issued(&record("example.com"), 1);
    one.save(&later, Revision(0), Some(&bundle)).await.unwrap();
    put(&documents, AT, &old).await;
    one.sync(&lineage).await.unwrap();
    for store in [&*one as &dyn Store, one.shared()] {
        let kept = store.load(&lineage).await.unwrap().unwrap().0;
        assert_eq!(kept.issued, later.issued);
    }
}

#[tokio::test(start_paused = true)]
async fn older_account_and_older_state_of_a_ca_are_replaced() {
    let documents = MemoryDocuments::default();
    let one = machine(&documents, "one");
    let [before, after] = ["before", "after"].map(|key| Secret::new(format!("{key:?}")));
    one.create_account(CA, &before).await.unwrap();
    let account = keys(&documents, "accounts/").remove(0);
    let old = content(&documents, &account).await;
    one.save_account(CA, &after, &before).await.unwrap();
    for content in [&old[..], b"\x01damaged"] {
        put(&documents, &account, content).await;
        assert_eq!(one.account(CA).await.unwrap(), Some(after.clone()));
        assert_eq!(one.shared().account(CA).await.unwrap(), Some(after.clone()));
    }
    // A removed one does not come back, from the store or from another machine's copy.
    let other = machine(&documents, "other");
    assert_eq!(other.account(CA).await.unwrap(), Some(after.clone()));
    one.delete_account(CA, &after).await.unwrap();
    assert_eq!(other.account(CA).await.unwrap(), None);
    put(&documents, &account, &old).await;
    assert_eq!(one.account(CA).await.unwrap(), None);

    let mut state = CaState::default();
    let first = one.save_ca_state(CA, &state, Revision(0)).await.unwrap();
    let cas = keys(&documents, "cas/").remove(0);
    let old = content(&documents, &cas).await;
    state.note_revoked_key(Fingerprint::of(b"key"));
    let second = one.save_ca_state(CA, &state, first).await.unwrap();
    for content in [&old[..], b"\x01damaged"] {
        put(&documents, &cas, content).await;
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(one.ca_state(CA).await.unwrap(), (state.clone(), second));
        assert_eq!(one.shared().ca_state(CA).await.unwrap().1, second);
    }
}

#[tokio::test]
async fn damaged_document_is_refused_by_commands_and_put_back_by_a_machine_that_has_it() {
    let documents = MemoryDocuments::default();
    let (one, serving) = (
        machine(&documents, "one"),
        machine_as(&documents, "serving", Role::Serve),
    );
    let (record, bundle) = issued(&record("example.com"), 1);
    let lineage = record.lineage.clone();
    one.save(&record, Revision(0), Some(&bundle)).await.unwrap();
    turn(&one).await;
    turn(&serving).await;
    let sealed = content(&documents, AT).await;
    let mut damaged = sealed.clone();
    damaged[30] ^= 1;
    let beside = "certificates/other.example.com";
    for (key, bytes) in [(AT, damaged.clone()), (beside, sealed)] {
        put(&documents, key, &bytes).await;
        let command = machine(&documents, "command");
        command.serve_command();
        for machine in [&command, &serving] {
            let refused = machine.sync_all().await.unwrap().refused;
            let is_damaged = |error: &StoreError| matches!(error, StoreError::Corrupt { .. });
            let mut names = refused.iter().filter(|(_, error)| is_damaged(error));
            assert!(names.any(|(lineage, _)| key.ends_with(lineage.as_str())));
        }
        assert_eq!(content(&documents, key).await, bytes);
    }
    let version = documents.read(beside).await.unwrap().unwrap().version;
    documents.remove(beside, &version).await.unwrap();
    assert!(serving.load(&lineage).await.unwrap().is_some());
    // The machine that serves tells the one that can put it back.
    turn(&serving).await;
    turn(&one).await;
    let stored = serving.shared().load(&lineage).await.unwrap().unwrap().0;
    assert_eq!(stored.issued, record.issued);
}

#[tokio::test]
async fn missing_pair_is_put_back_for_a_machine_that_needs_it() {
    let documents = MemoryDocuments::default();
    let one = machine(&documents, "one");
    let (record, bundle) = issued(&record("example.com"), 1);
    let lineage = record.lineage.clone();
    one.save(&record, Revision(0), Some(&bundle)).await.unwrap();
    turn(&one).await;
    let pair = keys(&documents, "pairs/").remove(0);
    for is_damaged in [false, true] {
        match is_damaged {
            true => put(&documents, &pair, b"\x01damaged").await,
            false => {
                let version: Version = documents.read(&pair).await.unwrap().unwrap().version;
                documents.remove(&pair, &version).await.unwrap();
            }
        }
        let fresh = machine(&documents, "fresh");
        for machine in [&fresh, &fresh, &one, &one, &fresh] {
            turn(machine).await;
        }
        let copied = fresh.own.bundle(&lineage, Generation(1)).await.unwrap();
        assert_eq!(copied.unwrap().1, bundle.chain_pem(), "{is_damaged}");
    }
}

#[tokio::test]
async fn store_of_another_fleet_with_this_key_is_refused() {
    let (ours, theirs) = (MemoryDocuments::default(), MemoryDocuments::default());
    let directory = tempfile::tempdir().unwrap();
    let open = |documents: &MemoryDocuments| {
        let documents: Arc<dyn Documents> = Arc::new(documents.clone());
        let shared = SharedStore::new(documents, Seal::new(ONE).unwrap(), "one".into());
        NodeStore::open(directory.path().to_owned(), shared, Role::Full).unwrap()
    };
    let (record, bundle) = issued(&record("example.com"), 1);
    let lineage = record.lineage.clone();
    let one = open(&ours);
    one.save(&record, Revision(0), Some(&bundle)).await.unwrap();
    assert!(matches!(one.follow().await, Followed::Turn(_)));
    let other = machine(&theirs, "other");
    turn(&other).await;
    // A document of one fleet is of no use in the other.
    let sealed = content(&ours, AT).await;
    put(&theirs, AT, &sealed).await;
    let loaded = other.shared().load(&lineage).await;
    assert!(matches!(loaded, Err(StoreError::Corrupt { .. })));
    let before = theirs.backup();
    let misled = open(&theirs);
    match misled.follow().await {
        Followed::Down(StoreError::OtherFleet, true) => {}
        followed => panic!("{followed:?}"),
    }
    assert!(misled.load(&lineage).await.unwrap().is_some());
    assert_eq!(theirs.backup(), before);
    // A new machine was the first after our store was wiped: it joins us.
    ours.restore(BTreeMap::default());
    let fresh = machine(&ours, "fresh");
    turn(&fresh).await;
    for _ in 0..2 {
        assert!(matches!(one.follow().await, Followed::Turn(_)));
        turn(&fresh).await;
    }
    let synced = fresh.sync(&lineage).await;
    assert!(fresh.load(&lineage).await.unwrap().is_some(), "{synced:?}");
    // Without its number, a fleet with certificates is not begun again.
    let version = ours.read("fleet").await.unwrap().unwrap().version;
    ours.remove("fleet", &version).await.unwrap();
    let late = machine(&ours, "late");
    assert!(matches!(late.follow().await, Followed::Down(..)));
    assert!(matches!(one.follow().await, Followed::Turn(_)));
    turn(&late).await;
    put(&ours, "fleet", b"\x01damaged").await;
    assert!(matches!(one.follow().await, Followed::Turn(_)));
    turn(&late).await;
}

#[tokio::test]
async fn deletion_that_loses_is_not_remembered() {
    let documents = MemoryDocuments::default();
    let one = machine(&documents, "one");
    let record = record("example.com");
    let lineage = &record.lineage;
    let revision = one.save(&record, Revision(0), None).await.unwrap();
    let id = one.copied(lineage).unwrap().id;
    documents.keeps.store(true, Ordering::SeqCst);
    one.shared().delete(lineage, revision).await.unwrap_err();
    assert!(!one.shared().was_deleted(lineage, id).await.unwrap());
    let new = Lineage::parse("new").unwrap();
    one.shared()
        .rename(lineage, &new, revision)
        .await
        .unwrap_err();
    assert!(!one.shared().was_deleted(lineage, id).await.unwrap());
    documents.keeps.store(false, Ordering::SeqCst);
    one.shared().rename(lineage, &new, revision).await.unwrap();
    assert!(one.shared().was_deleted(lineage, id).await.unwrap());
    one.shared().rename(&new, lineage, revision).await.unwrap();
    assert!(!one.shared().was_deleted(lineage, id).await.unwrap());
}

#[tokio::test]
async fn new_machine_takes_its_own_certificates_first_and_the_rest_later() {
    const ALL: usize = 90;
    let documents = MemoryDocuments::default();
    let one = machine(&documents, "one");
    for number in 0..ALL {
        let record = record(&format!("n{number}.example.com"));
        one.shared().save(&record, Revision(0), None).await.unwrap();
    }
    let fresh = machine(&documents, "fresh");
    let own: Lineage = Lineage::parse("n89.example.com").unwrap();
    let joined = fresh.join([own.clone()].into()).await.unwrap();
    assert_eq!(joined, [(own, Change::Stored)]);
    for more in [64, ALL - 65] {
        let soon = tokio::time::timeout(Duration::from_secs(1), fresh.until_due());
        soon.await.unwrap();
        assert_eq!(turn(&fresh).await.changed.len(), more);
    }
    assert!(turn(&fresh).await.changed.is_empty());
}

#[tokio::test(start_paused = true)]
async fn machine_that_is_gone_for_a_week_is_forgotten() {
    const NOW: i64 = 1_800_000_000;
    let documents = MemoryDocuments::default();
    let [one, gone, late] = ["one", "gone", "late"].map(|name| machine(&documents, name));
    for machine in [&one, &gone, &late] {
        turn(machine).await;
    }
    let old = NOW - 8 * 24 * 3600;
    let describe = async |machine: &Machine, name: &str| {
        let described = machine.describe(|process| described(name, process, old));
        described.await.unwrap();
    };
    describe(&gone, "gone").await;
    for _ in 0..3 {
        // Its clock is wrong, and it is there.
        describe(&late, "late").await;
        turn(&one).await;
        tokio::time::advance(Duration::from_secs(24 * 3600)).await;
    }
    assert_eq!(keys(&documents, "nodes/"), ["nodes/late"]);
}

#[tokio::test(start_paused = true)]
async fn machines_with_one_name_are_distinguished() {
    const NOW: i64 = 1_800_000_000;
    let documents = MemoryDocuments::default();
    let (one, twin) = (machine(&documents, "web"), machine(&documents, "web"));
    turn(&one).await;
    turn(&twin).await;
    let describe = async |machine: &Machine, number: u64| {
        let described = machine.describe(|_| described("web", number, NOW));
        described.await.unwrap();
        let nodes = one.shared().nodes().await.unwrap();
        nodes[0].rival.clone()
    };
    assert_eq!(describe(&one, 1).await, None);
    // Both see it: the second one at once, the first at its next description.
    assert_eq!(describe(&twin, 2).await.as_deref(), Some("host-1"));
    tokio::time::advance(Duration::from_secs(300)).await;
    assert_eq!(describe(&one, 1).await.as_deref(), Some("host-2"));
    // The other one has got a name of its own meanwhile.
    tokio::time::advance(Duration::from_secs(300)).await;
    assert_eq!(describe(&one, 1).await, None);
}

#[tokio::test]
async fn settings_that_a_pass_has_copied_are_reported_by_the_next_look() {
    let documents = MemoryDocuments::default();
    let (one, other) = (machine(&documents, "one"), machine(&documents, "other"));
    let record = record("example.com");
    let lineage = record.lineage.clone();
    one.save(&record, Revision(0), None).await.unwrap();
    one.save_options(&lineage, "{}").await.unwrap();
    turn(&one).await;
    turn(&other).await;
    // No other machine knows of these settings yet.
    let settings = r#"{"names": ["example.com"]}"#;
    one.save_options(&lineage, settings).await.unwrap();
    let share = other.share(&lineage, true).await.unwrap();
    assert!(
        other
            .options(&lineage)
            .await
            .unwrap()
            .unwrap()
            .contains("names")
    );
    drop(share);
    let stored = [(lineage, Change::Stored)];
    assert_eq!(turn(&other).await.changed, stored);
    assert_eq!(turn(&other).await.changed, []);
}
