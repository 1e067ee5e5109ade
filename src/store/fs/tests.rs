//! The file store: the contract, concurrent writers, modes and damaged files.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use super::*;
use crate::identifier::Identifier;
use crate::store::tests::check;

fn record(name: &str) -> Record {
    let identifier = Identifier::parse(name).unwrap();
    Record::new(
        Lineage::of(&identifier),
        BTreeSet::from([identifier]),
        "https://ca".into(),
    )
}

fn store() -> (tempfile::TempDir, FileStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path().join("data")).unwrap();
    (directory, store)
}

#[test]
fn remove_old_keeps_newest_pairs_and_other_files() {
    let directory = tempfile::tempdir().unwrap();
    let names = ["0001", "0002", "0003", "0004", "record.json", ".new-0005"];
    for name in names {
        std::fs::create_dir(directory.path().join(name)).unwrap();
    }
    let cut_off = directory.path().join(".record.json.new-4711");
    std::fs::write(&cut_off, "a key").unwrap();
    remove_old(directory.path(), Generation(4), None);
    assert!(!cut_off.exists());
    let left = names.map(|name| directory.path().join(name).exists());
    assert_eq!(left, [false, true, true, true, true, true]);
}

#[tokio::test]
async fn file_store_keeps_contract() {
    let directory = tempfile::tempdir().unwrap();
    let created = std::cell::Cell::new(0);
    check(|| {
        created.set(created.get() + 1);
        FileStore::open(directory.path().join(created.get().to_string())).unwrap()
    })
    .await;
}

#[test]
fn save_lets_one_of_many_writers_win() {
    let (_directory, store) = store();
    let store = Arc::new(store);
    let writers: Vec<_> = (0..8)
        .map(|_| {
            let store = store.clone();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .build()
                    .unwrap();
                runtime
                    .block_on(store.save(&record("example.com"), Revision(0), None))
                    .is_ok()
            })
        })
        .collect();
    let winners = writers
        .into_iter()
        .map(|writer| writer.join().unwrap())
        .filter(|won| *won)
        .count();
    assert_eq!(winners, 1);
}

#[tokio::test]
async fn stored_files_are_private_to_owner() {
    let (directory, store) = store();
    let secret = Secret::new("{}".into());
    store.create_account("https://ca", &secret).await.unwrap();
    store
        .save(&record("example.com"), Revision(0), None)
        .await
        .unwrap();
    let lineage = record("example.com").lineage;
    store.save_options(&lineage, "{}").await.unwrap();
    let mut open = vec![directory.path().join("data")];
    while let Some(path) = open.pop() {
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(
            metadata.permissions().mode() & 0o077,
            0,
            "{}",
            path.display()
        );
        if metadata.is_dir() {
            open.extend(
                std::fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
    }
}

#[test]
fn open_makes_only_empty_directory_private() {
    let directory = tempfile::tempdir().unwrap();
    for (name, used, mode) in [("new", false, 0o700), ("used", true, 0o755)] {
        let root = directory.path().join(name);
        std::fs::create_dir(&root).unwrap();
        std::fs::set_permissions(&root, PermissionsExt::from_mode(0o755)).unwrap();
        if used {
            std::fs::write(root.join("a file"), "").unwrap();
        }
        FileStore::open(root.clone()).unwrap();
        let found = std::fs::metadata(&root).unwrap().permissions().mode();
        assert_eq!(found & 0o777, mode, "{name}");
    }
}

#[tokio::test]
async fn load_names_damaged_record_and_keeps_file() {
    let (directory, store) = store();
    let record = record("example.com");
    store.save(&record, Revision(0), None).await.unwrap();
    let path = directory
        .path()
        .join("data/records/example.com/record.json");
    for damage in ["", "{\"revision\":"] {
        std::fs::write(&path, damage).unwrap();
        let error = store.load(&record.lineage).await.unwrap_err().to_string();
        assert!(error.contains("record.json"), "{error}");
        assert!(store.save(&record, Revision(0), None).await.is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), damage);
    }
}

#[tokio::test]
async fn data_of_a_ca_is_found_under_another_spelling_of_its_url() {
    use crate::ca_state::{CaState, Outage};
    const CA: &str = "https://ca.test/dir";
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path().to_owned()).unwrap();
    let spelled = "https://user:pw@CA.test:443/dir#top";
    let credentials = |id: &str| {
        Secret::new(format!(
            r#"{{"id":"{id}","key_pkcs8":"AA","directory":"{spelled}"}}"#
        ))
    };
    store
        .create_account(spelled, &credentials("1"))
        .await
        .unwrap();
    let outage: Outage = serde_json::from_value(serde_json::json!({
        "since": "2027-01-01T00:00:00Z", "probe_at": "2027-01-01T00:00:00Z", "probes": 1, "last": "down",
    }))
    .unwrap();
    let known = CaState {
        outage: Some(outage),
        ..CaState::default()
    };
    let none = Revision::default();
    store.save_ca_state(spelled, &known, none).await.unwrap();

    let found = store.account(CA).await.unwrap().unwrap();
    assert_eq!(found.expose(), credentials("1").expose());
    store.create_account(CA, &credentials("2")).await.unwrap();
    let (changed, before) = (credentials("3"), credentials("1"));
    store.save_account(CA, &changed, &before).await.unwrap();
    let accounts = directory.path().join("accounts").read_dir().unwrap();
    assert_eq!(accounts.count(), 1);
    let (state, revision) = store.ca_state(CA).await.unwrap();
    assert_eq!(state, known);
    let ended = CaState::default();
    store.save_ca_state(CA, &ended, revision).await.unwrap();
    assert_eq!(store.ca_state(CA).await.unwrap().0, ended);
    for other in ["https://ca.test/Dir", "https://ca.test:8443/dir"] {
        assert!(store.account(other).await.unwrap().is_none(), "{other}");
    }
}

#[tokio::test]
async fn together_is_what_each_has_alone() {
    let (directory, store) = store();
    for name in ["b.example", "a.example", "c.example"] {
        let saved = store.save(&record(name), Revision(0), None).await;
        saved.unwrap();
    }
    let lineage = |name: &str| Lineage::parse(name).unwrap();
    { store.save_options(&lineage("a.example"), "{}").await }.unwrap();
    // Options without a record make no certificate.
    { store.save_options(&lineage("d.example"), "{}").await }.unwrap();
    let records = directory.path().join("data/records");
    std::fs::write(records.join("c.example/record.json"), "{").unwrap();
    std::fs::write(records.join("not a name"), "").unwrap();
    std::fs::write(records.join("e.example"), "").unwrap();
    let all = store.together(|one| one).unwrap();
    let names: Vec<_> = all.iter().map(|one| one.lineage.as_str()).collect();
    assert_eq!(names, ["a.example", "b.example", "c.example", "e.example"]);
    for one in all {
        let alone = store.load(&one.lineage).await;
        let shown = |read: Result<Option<(Record, Revision)>, StoreError>| {
            read.map(Option::unwrap).map_err(|error| error.to_string())
        };
        if one.lineage.as_str() == "e.example" {
            assert!(one.record.is_err() && alone.is_err());
            continue;
        }
        assert_eq!(shown(one.record.map(Some)), shown(alone));
        let options = store.options(&one.lineage).await.unwrap();
        assert_eq!(one.options.unwrap(), options);
        let again = store.one(one.lineage.clone()).unwrap();
        assert_eq!(again.options.unwrap(), options);
    }
    assert!(store.one(lineage("d.example")).is_none());
}

#[tokio::test]
async fn many_are_read_side_by_side_and_keep_their_order() {
    let (directory, store) = store();
    let first = record("n0000.example");
    store.save(&first, Revision(0), None).await.unwrap();
    let records = directory.path().join("data/records");
    let names: Vec<String> = (0..450).map(|n| format!("n{n:04}.example")).collect();
    let json = std::fs::read_to_string(records.join("n0000.example/record.json")).unwrap();
    for name in &names[1..] {
        let directory = records.join(name);
        std::fs::create_dir(&directory).unwrap();
        let own = json.replace("n0000.example", name);
        std::fs::write(directory.join("record.json"), own).unwrap();
    }
    let all = store.together(|one| one.record.unwrap().0).unwrap();
    let read: Vec<_> = all.iter().map(|one| one.lineage.as_str()).collect();
    assert_eq!(read, names);
    // A name is held once in memory.
    assert!(all.iter().all(|one| {
        let Some(Identifier::Dns(name)) = one.identifiers.first() else {
            return false;
        };
        std::ptr::eq(name.as_str(), one.lineage.as_str())
    }));
    // A failure of one reader is that of all.
    let failed = std::panic::catch_unwind(|| {
        store.together(|one| assert_ne!(one.lineage.as_str(), names[449]))
    });
    assert!(failed.is_err());
}

#[tokio::test]
async fn newer_format_is_refused_for_every_write() {
    let (directory, store) = store();
    let record = record("a.example");
    let revision = store.save(&record, Revision(0), None).await.unwrap();
    let state = CaState::default();
    { store.save_ca_state("https://ca", &state, Revision(0)).await }.unwrap();
    let data = directory.path().join("data");
    let files = [
        data.join("records/a.example/record.json"),
        store.path_of("authorities", "https://ca"),
    ];
    let newer = files.clone().map(|file| {
        let text = std::fs::read_to_string(&file).unwrap();
        let newer = text.replacen("\"format\": 1", "\"format\": 2", 1);
        std::fs::write(&file, &newer).unwrap();
        newer
    });
    let lineage = &record.lineage;
    let refused = |error: StoreError| assert!(matches!(error, StoreError::Newer { found: 2, .. }));
    refused(store.load(lineage).await.unwrap_err());
    refused(store.save(&record, revision, None).await.unwrap_err());
    refused(store.save_options(lineage, "{}").await.unwrap_err());
    refused(store.delete(lineage, Revision(0)).await.unwrap_err());
    let to = Lineage::parse("b.example").unwrap();
    refused(store.rename(lineage, &to, revision).await.unwrap_err());
    refused(store.ca_state("https://ca").await.unwrap_err());
    refused({ store.save_ca_state("https://ca", &state, Revision(1)).await }.unwrap_err());
    assert_eq!(
        files.map(|file| std::fs::read_to_string(file).unwrap()),
        newer
    );
}
