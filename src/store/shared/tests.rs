//! Tests of the shared store on documents in memory.

use std::sync::atomic::Ordering;

use super::*;
use crate::identifier::Identifier;
use crate::store::documents::memory::MemoryDocuments;
use crate::store::node::{NodeStore, Role};
use crate::store::seal::tests::ONE;
use crate::time::Timestamp;

fn store(documents: &MemoryDocuments) -> SharedStore {
    let documents: Arc<dyn Documents> = Arc::new(documents.clone());
    SharedStore::new(documents, Seal::new(ONE).unwrap(), "node".to_owned())
}

fn record(name: &str) -> Record {
    let name = Identifier::parse(name).unwrap();
    Record::new(Lineage::of(&name), [name].into(), "https://ca".into())
}

#[tokio::test]
async fn shared_store_keeps_contract() {
    crate::store::tests::check(|| store(&MemoryDocuments::default())).await;
}

#[tokio::test]
async fn write_whose_reply_is_lost_is_done_once() {
    let documents = MemoryDocuments::default();
    let (store, one) = (store(&documents), record("example.com"));
    store.claim(None, false).await.unwrap();
    documents.lost.store(1, Ordering::SeqCst);
    let first = store.save(&one, Revision(0), None).await.unwrap();
    documents.lost.store(1, Ordering::SeqCst);
    assert_eq!(store.save(&one, first, None).await.unwrap(), Revision(2));
    assert_eq!(store.load(&one.lineage).await.unwrap().unwrap().1.0, 2);
    documents.lost.store(1, Ordering::SeqCst);
    assert!(store.delete(&one.lineage, Revision(2)).await.unwrap());
    assert_eq!(store.list().await.unwrap(), []);
}

#[tokio::test]
async fn rename_that_was_interrupted_changes_nothing() {
    let documents = MemoryDocuments::default();
    let (store, one) = (store(&documents), record("old.example.com"));
    let first = store.save(&one, Revision(0), None).await.unwrap();
    let (stored, _) = store.certificate(&one.lineage).await.unwrap();
    let copy_of = Some(one.lineage.clone());
    let copy = Certificate { copy_of, ..stored };
    let to = Lineage::parse("new").unwrap();
    store.documents.swap(&at(&to), &copy, None).await.unwrap();
    // The process was killed here.
    assert_eq!(store.load(&to).await.unwrap(), None);
    let old = std::slice::from_ref(&one.lineage);
    assert_eq!(store.list().await.unwrap(), old);
    let (_, version) = store.certificate(&one.lineage).await.unwrap();
    let mut other = record("other.example.com");
    other.lineage = to.clone();
    store.save(&other, Revision(0), None).await.unwrap();
    // The rename goes on, too late.
    let version = version.unwrap();
    let removed = store.documents.remove(&at(&one.lineage), &version).await;
    assert!(!removed.unwrap(), "the name was taken meanwhile");
    let again = store.rename(&one.lineage, &to, first).await;
    assert!(matches!(again, Err(StoreError::Taken { .. })));
    let free = Lineage::parse("free").unwrap();
    store.rename(&one.lineage, &free, first).await.unwrap();
    assert!(store.load(&free).await.unwrap().is_some());
    assert_eq!(store.list().await.unwrap(), [free, to]);
}

#[tokio::test]
async fn document_under_another_name_is_refused() {
    let documents = MemoryDocuments::default();
    let (store, one) = (store(&documents), record("one.example.com"));
    store.save(&one, Revision(0), None).await.unwrap();
    let sealed = documents.read(&at(&one.lineage)).await.unwrap().unwrap();
    let two = record("two.example.com").lineage;
    let content = &sealed.content;
    documents.write(&at(&two), content, None).await.unwrap();
    let loaded = store.load(&two).await;
    assert!(
        matches!(loaded, Err(StoreError::Corrupt { .. })),
        "{loaded:?}"
    );
    let text = String::from_utf8_lossy(content).into_owned();
    assert!(
        !text.contains("example.com"),
        "names are sealed too: {text}"
    );
}

#[tokio::test]
async fn machine_whose_lease_has_ended_cannot_save() {
    #[derive(Serialize)]
    struct Ended {
        node: String,
        holder: u64,
        until: Timestamp,
    }
    let documents = MemoryDocuments::default();
    let directory = tempfile::tempdir().unwrap();
    let machine = |name: &str| {
        let root = directory.path().join(name);
        NodeStore::open(root, store(&documents), Role::Full).unwrap()
    };
    let (paused, other) = (machine("paused"), machine("other"));
    let mut record = record("example.com");
    paused.save(&record, Revision(0), None).await.unwrap();
    let ended = Ended {
        node: "paused".to_owned(),
        holder: 1,
        until: Timestamp::from_seconds(1),
    };
    let key = format!("leases/{}", record.lineage);
    let sealed = &paused.shared().documents;
    sealed.swap(&key, &ended, None).await.unwrap().unwrap();
    let _lease = other.share(&record.lineage, true).await.unwrap().unwrap();
    record.profile = Some("late".to_owned());
    let late = paused.save(&record, Revision(1), None).await;
    assert!(matches!(late, Err(StoreError::Conflict { .. })), "{late:?}");
}
