//! Imports of another client's certificate beside the stored ones.

use std::time::Duration;

use super::*;
use crate::certificate::{Freshness, Secret};
use crate::deploy::output::Output;
use crate::manage::status::status;
use crate::observe::status::Action;
use crate::random::SeededRandom;
use crate::record::PendingOrder;
use crate::record::Revision;
use crate::renew::decide::{Next, next};
use crate::store::StoreError;
use crate::store::memory::MemoryStore;

const START: Timestamp = Timestamp::from_seconds(1_800_000_000);
const DAY: Duration = Duration::from_secs(86_400);
const HERE: Imported = Imported::Present {
    generation: Generation(1),
    newer: false,
    has_new_settings: false,
};
const NEWER: Imported = Imported::Present {
    generation: Generation(1),
    newer: true,
    has_new_settings: false,
};
const CA: &str = "https://ca.example/dir";

fn foreign(names: &[&str], not_before: Timestamp) -> ImportedPair {
    let at =
        |instant: Timestamp| time::OffsetDateTime::from_unix_timestamp(instant.seconds()).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = rcgen::CertificateParams::new(names.clone()).unwrap();
    (params.not_before, params.not_after) = (at(not_before), at(not_before + DAY * 90));
    let chain = params.self_signed(&key).unwrap().pem();
    let names = names
        .iter()
        .map(|name| Identifier::parse(name).unwrap())
        .collect();
    let key = Secret::new(key.serialize_pem());
    ImportedPair {
        lineage: Lineage::parse("a.example").unwrap(),
        ca: CA.to_owned(),
        profile: Some("tlsserver".to_owned()),
        bundle: Bundle::new(key, &chain, &names, START, Freshness::Stored).unwrap(),
        options: "{\"of\": \"the client\"}".to_owned(),
        insists: false,
    }
}

struct Fixture {
    _directory: tempfile::TempDir,
    store: MemoryStore,
    output: Output,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let output = Output::new(directory.path().join("out"));
        let store = MemoryStore::default();
        Self {
            _directory: directory,
            store,
            output,
        }
    }

    async fn take(&self, foreign: &ImportedPair) -> Result<Imported, ManageError> {
        import_pair(
            &self.store,
            &self.output,
            foreign,
            START,
            &SeededRandom::new(1),
        )
        .await
    }

    async fn record(&self) -> (Record, Revision) {
        let lineage = Lineage::parse("a.example").unwrap();
        self.store.load(&lineage).await.unwrap().unwrap()
    }
}

#[tokio::test]
async fn import_stores_first_generation_live_but_unverified_and_not_due() {
    let (fixture, one) = (Fixture::new(), foreign(&["a.example"], START - DAY));
    let Imported::Stored(Generation(1), at) = fixture.take(&one).await.unwrap() else {
        panic!("it was not stored");
    };
    let (record, revision) = fixture.record().await;
    assert_eq!(
        (record.ca.as_str(), record.profile.as_deref()),
        (CA, Some("tlsserver"))
    );
    let issued = record.issued.as_ref().unwrap();
    assert_eq!(
        (issued.ca.as_str(), &issued.facts),
        (CA, one.bundle.facts())
    );
    assert_eq!(
        fixture.output.live(&one.lineage).unwrap(),
        Some(Generation(1))
    );
    let options = fixture.store.options(&one.lineage).await.unwrap();
    assert_eq!(options.as_ref(), Some(&one.options));
    // The next step is its deployment; the renewal comes later.
    let shown = status(&record, START, &SeededRandom::new(1));
    assert_eq!((shown.proven, shown.next_action), (false, Action::Deploy));
    let mut proven = record.clone();
    proven.deployed.insert(FILES.to_owned(), Generation(1));
    assert_eq!(next(&proven, START, &SeededRandom::new(1)), Next::Wait(at));
    assert!(at > START + DAY * 50 && at < START + DAY * 65);
    // A second import changes nothing.
    assert_eq!(fixture.take(&one).await.unwrap(), HERE);
    assert_eq!(fixture.record().await, (record, revision));
}

#[tokio::test]
async fn import_replaces_stored_options_when_the_operator_gave_them() {
    let (fixture, mut one) = (Fixture::new(), foreign(&["a.example"], START));
    fixture.take(&one).await.unwrap();
    one.options = "another way".to_owned();
    assert_eq!(fixture.take(&one).await.unwrap(), HERE);
    let options = fixture.store.options(&one.lineage).await.unwrap();
    assert_ne!(options.as_ref(), Some(&one.options));
    one.insists = true;
    for has_new_settings in [true, false] {
        let taken = fixture.take(&one).await.unwrap();
        assert!(
            matches!(taken, Imported::Present { has_new_settings: now, .. } if now == has_new_settings)
        );
        let options = fixture.store.options(&one.lineage).await.unwrap();
        assert_eq!(options.as_ref(), Some(&one.options));
    }
}

#[tokio::test]
async fn import_publishes_pair_left_unpublished_by_a_crash() {
    let (fixture, one) = (Fixture::new(), foreign(&["a.example"], START));
    fixture.take(&one).await.unwrap();
    std::fs::remove_dir_all(fixture.output.live_path_of_all()).unwrap();
    assert_eq!(fixture.take(&one).await.unwrap(), HERE);
    assert_eq!(
        fixture.output.live(&one.lineage).unwrap(),
        Some(Generation(1))
    );
}

#[tokio::test]
async fn import_keeps_newer_certificate_and_replaces_older_one() {
    let (fixture, one) = (Fixture::new(), foreign(&["a.example"], START - DAY));
    fixture.take(&one).await.unwrap();
    fixture
        .store
        .save_options(&one.lineage, "the user's")
        .await
        .unwrap();
    let older = foreign(&["a.example"], START - DAY * 2);
    assert_eq!(fixture.take(&older).await.unwrap(), NEWER);
    let newer = foreign(&["a.example"], START);
    let taken = fixture.take(&newer).await.unwrap();
    assert!(
        matches!(taken, Imported::Stored(Generation(2), _)),
        "{taken:?}"
    );
    assert_eq!(
        fixture.output.live(&one.lineage).unwrap(),
        Some(Generation(2))
    );
    let options = fixture.store.options(&one.lineage).await.unwrap();
    assert_eq!(options.as_deref(), Some("the user's"));
    let others = foreign(&["a.example", "b.example"], START + DAY);
    let taken = fixture.take(&others).await.unwrap();
    assert!(matches!(taken, Imported::OtherNames(names) if names.len() == 1));
    assert_eq!(
        fixture.output.live(&one.lineage).unwrap(),
        Some(Generation(2))
    );
}

#[tokio::test]
async fn import_completes_record_that_waits_for_its_first_certificate() {
    let (fixture, one) = (Fixture::new(), foreign(&["a.example"], START));
    let names = one.bundle.facts().identifiers.clone();
    let mut record = Record::new(one.lineage.clone(), names.clone(), CA.to_owned());
    record.failures.count = 3;
    record.order = Some(PendingOrder {
        ca: CA.to_owned(),
        identifiers: names,
        profile: None,
        not_after: None,
        terms: None,
        key_pem: Secret::new(String::new()),
        url: None,
        replaces: None,
        begun: START,
        counted: crate::ca_state::Counted::default(),
    });
    fixture
        .store
        .save(&record, Revision(0), None)
        .await
        .unwrap();
    fixture
        .output
        .placeholder(&one.lineage, &record.identifiers, START)
        .unwrap();
    let before = fixture.store.save_options(&one.lineage, "{}");
    before.await.unwrap();
    fixture.take(&one).await.unwrap();
    let options = fixture.store.options(&one.lineage).await.unwrap();
    assert_eq!(options.as_ref(), Some(&one.options));
    let (record, _) = fixture.record().await;
    assert_eq!((record.order, record.failures), (None, Failures::default()));
    assert_eq!(
        fixture.output.live(&one.lineage).unwrap(),
        Some(Generation(1))
    );
}

#[tokio::test]
async fn import_fails_while_another_process_holds_the_lease() {
    let (fixture, one) = (Fixture::new(), foreign(&["a.example"], START));
    let lease = fixture.store.lease(&one.lineage).await.unwrap();
    let error = fixture.take(&one).await.unwrap_err();
    assert!(
        matches!(error, ManageError::Store(StoreError::Leased { .. })),
        "{error}"
    );
    drop(lease);
    fixture.take(&one).await.unwrap();
}
