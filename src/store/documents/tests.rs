//! The contract of [`Documents`] as tests that each kind of server passes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;

use super::memory::MemoryDocuments;
use super::{Documents, DocumentsError, Notice, Version};

/// Checks the contract on empty documents.
pub(super) async fn check(documents: Arc<dyn Documents>) {
    versions_are_compared(documents.as_ref()).await;
    list_has_what_begins_with_its_prefix(documents.as_ref()).await;
    one_of_many_writers_wins(documents.clone()).await;
    content_is_kept_to_the_byte(documents.as_ref()).await;
    version_is_never_repeated(documents.as_ref()).await;
    assert!(documents.time().await.unwrap().seconds() > 1_700_000_000);
}

fn is_conflict<T>(result: Result<T, DocumentsError>) -> bool {
    matches!(result, Err(DocumentsError::Conflict))
}

async fn versions_are_compared(documents: &dyn Documents) {
    let unknown = Version("7".into());
    assert_eq!(documents.read("a/one").await.unwrap(), None);
    let written = documents.write("a/one", b"x", Some(&unknown)).await;
    assert!(is_conflict(written));
    let first = documents.write("a/one", b"first", None).await.unwrap();
    assert!(is_conflict(documents.write("a/one", b"x", None).await));
    let second = documents.write("a/one", b"second", Some(&first)).await;
    let second = second.unwrap();
    assert_ne!(first, second);
    let written = documents.write("a/one", b"x", Some(&first)).await;
    assert!(is_conflict(written));
    assert!(is_conflict(documents.remove("a/one", &first).await));
    let stored = documents.read("a/one").await.unwrap().unwrap();
    assert_eq!(stored.content, b"second");
    assert_eq!(stored.version, second);
    documents.remove("a/one", &second).await.unwrap();
    assert_eq!(documents.read("a/one").await.unwrap(), None);
    assert!(is_conflict(documents.remove("a/one", &second).await));
    let written = documents.write("a/one", b"x", Some(&second)).await;
    assert!(is_conflict(written));
    let again = documents.write("a/one", b"again", None).await.unwrap();
    assert_ne!(again, second, "the version of a removed document");
    documents.remove("a/one", &again).await.unwrap();
}

async fn list_has_what_begins_with_its_prefix(documents: &dyn Documents) {
    let mut expected = BTreeSet::new();
    for number in 0..30 {
        let key = format!("list/n{number}.example.com");
        documents.write(&key, b"x", None).await.unwrap();
        expected.insert(key);
    }
    documents.write("lisz/other", b"x", None).await.unwrap();
    let listed = documents.list("list/").await.unwrap();
    assert_eq!(listed.keys().cloned().collect::<BTreeSet<_>>(), expected);
    for (key, version) in &listed {
        let read = documents.read(key).await.unwrap().unwrap();
        assert_eq!(read.version, *version, "{key}");
    }
    assert!(documents.list("nothing/").await.unwrap().is_empty());
}

async fn one_of_many_writers_wins(documents: Arc<dyn Documents>) {
    let mut version = documents.write("race", b"0", None).await.unwrap();
    for round in 0..10 {
        let writers = (0..5).map(|writer| {
            let (documents, version) = (documents.clone(), version.clone());
            let content = format!("{round} {writer}");
            tokio::spawn(async move {
                let written = documents.write("race", content.as_bytes(), Some(&version));
                written.await.map(|version| (version, content))
            })
        });
        let mut won = Vec::new();
        for writer in writers.collect::<Vec<_>>() {
            match writer.await.unwrap() {
                Err(DocumentsError::Conflict) => {}
                written => won.push(written.unwrap()),
            }
        }
        assert_eq!(won.len(), 1, "{won:?}");
        let stored = documents.read("race").await.unwrap().unwrap();
        assert_eq!(stored.version, won[0].0);
        assert_eq!(stored.content, won[0].1.as_bytes());
        version = stored.version;
    }
}

async fn content_is_kept_to_the_byte(documents: &dyn Documents) {
    let every: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    for content in [&b""[..], &every] {
        let key = "bytes/_wildcard_.xn--bcher-kva.example.com";
        let version = documents.write(key, content, None).await.unwrap();
        let read = documents.read(key).await.unwrap().unwrap();
        assert_eq!(read.content, content);
        documents.remove(key, &version).await.unwrap();
    }
}

async fn version_is_never_repeated(documents: &dyn Documents) {
    let mut versions = Vec::new();
    for _ in 0..2 {
        let mut version = documents.write("same", b"same", None).await.unwrap();
        for _ in 0..2 {
            assert!(!versions.contains(&version), "{version:?}");
            versions.push(version.clone());
            let written = documents.write("same", b"same", Some(&version)).await;
            version = written.unwrap();
        }
        documents.remove("same", &version).await.unwrap();
        versions.push(version);
    }
    for version in versions {
        let written = documents.write("same", b"x", Some(&version)).await;
        assert!(is_conflict(written), "{version:?}");
    }
    assert!(!documents.list("").await.unwrap().contains_key("same"));
}

/// Checks that a watch of one machine tells of each write of another, and of no other key.
pub(super) async fn check_watch(one: &dyn Documents, other: &dyn Documents) {
    const WITHIN: Duration = Duration::from_secs(20);
    let (notices, mut seen) = watch::channel(Notice::Nothing);
    let checked = async {
        // A server may tell nothing before the first change that it has seen itself.
        let mut known = other.write("key", b"first", None).await.unwrap();
        while *seen.borrow_and_update() != Notice::Newest(Some(known.clone())) {
            let pause = tokio::time::sleep(Duration::from_millis(50));
            tokio::select! { _ = seen.changed() => {}, () = pause => {} }
            if *seen.borrow() == Notice::Nothing {
                known = other.write("key", b"again", Some(&known)).await.unwrap();
            }
        }
        for _ in 0..2 {
            other.write("beside", b"x", None).await.unwrap();
            known = other.write("key", b"x", Some(&known)).await.unwrap();
            seen.changed().await.unwrap();
            let newest = Notice::Newest(Some(known.clone()));
            assert_eq!(*seen.borrow_and_update(), newest);
            let beside = other.read("beside").await.unwrap().unwrap().version;
            other.remove("beside", &beside).await.unwrap();
        }
        other.remove("key", &known).await.unwrap();
        seen.changed().await.unwrap();
        assert_eq!(*seen.borrow_and_update(), Notice::Newest(None));
    };
    let watching = async {
        one.watch("key", &notices).await;
        panic!("the watch has ended");
    };
    tokio::select! {
        checked = tokio::time::timeout(WITHIN, checked) => checked.expect("a change is not seen"),
        () = watching => {}
    }
}

#[tokio::test]
async fn memory_documents_tell_of_changes() {
    let documents = MemoryDocuments::default();
    documents.tells.store(true, Ordering::SeqCst);
    check_watch(&documents, &documents).await;
}

#[tokio::test]
async fn memory_documents_keep_contract() {
    check(Arc::new(MemoryDocuments::default())).await;
}
