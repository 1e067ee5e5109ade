//! The contract of [`Store`] as tests that each implementation passes.

use std::collections::BTreeSet;

use super::{Store, StoreError};
use crate::ca_state::{CaState, Limit};
use crate::certificate::{Bundle, Facts, Freshness, Secret};
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::record::{Generation, Issued, Record, Revision};
use crate::time::Timestamp;

/// Checks the contract on stores from `make`, each of them empty.
pub(super) async fn check<S: Store>(make: impl Fn() -> S) {
    save_refuses_stale_revision_and_keeps_record(make()).await;
    save_stores_record_and_pair_both_or_neither(make()).await;
    save_never_replaces_generation(make()).await;
    save_keeps_three_pairs_and_rollback_generation(make()).await;
    lease_excludes_until_dropped(make()).await;
    accounts_and_options_are_separate_and_replaceable(make()).await;
    ca_state_is_compared_and_swapped(make()).await;
    delete_removes_one_certificate_by_its_revision(make()).await;
    rename_moves_all_of_one_certificate(make()).await;
}

async fn rename_moves_all_of_one_certificate(store: impl Store) {
    let (old, other) = (record("old.example.com"), record("other.example.com"));
    let (old, bundle) = issued(&old, 1);
    let revision = store.save(&old, Revision(0), Some(&bundle)).await.unwrap();
    store.save(&other, Revision(0), None).await.unwrap();
    store.save_options(&old.lineage, "{}").await.unwrap();
    let new = Lineage::parse("new").unwrap();
    let taken = store.rename(&old.lineage, &other.lineage, revision).await;
    assert!(matches!(taken, Err(StoreError::Taken { .. })));
    let stale = store.rename(&old.lineage, &new, Revision(0)).await;
    assert!(matches!(stale, Err(StoreError::Conflict { .. })));
    store.rename(&old.lineage, &new, revision).await.unwrap();
    let (moved, same) = store.load(&new).await.unwrap().unwrap();
    assert_eq!((&moved.lineage, same), (&new, revision));
    assert_eq!(store.options(&new).await.unwrap().as_deref(), Some("{}"));
    let pair = store.bundle(&new, Generation(1)).await.unwrap();
    assert!(pair.is_some());
    assert!(store.load(&old.lineage).await.unwrap().is_none());
    assert!(store.options(&old.lineage).await.unwrap().is_none());
    store.save(&moved, revision, None).await.unwrap();
    store.save(&old, Revision(0), Some(&bundle)).await.unwrap();
}

async fn delete_removes_one_certificate_by_its_revision(store: impl Store) {
    let (gone, kept) = (record("gone.example.com"), record("kept.example.com"));
    let (gone, bundle) = issued(&gone, 1);
    let revision = store.save(&gone, Revision(0), Some(&bundle)).await.unwrap();
    store.save(&kept, Revision(0), None).await.unwrap();
    store.save_options(&gone.lineage, "{}").await.unwrap();
    for stale in [Revision(0), Revision(revision.0 + 1)] {
        let refused = store.delete(&gone.lineage, stale).await;
        assert!(matches!(refused, Err(StoreError::Conflict { .. })));
        assert!(store.load(&gone.lineage).await.unwrap().is_some());
    }
    assert!(store.delete(&gone.lineage, revision).await.unwrap());
    assert!(store.load(&gone.lineage).await.unwrap().is_none());
    assert!(store.options(&gone.lineage).await.unwrap().is_none());
    let pair = store.bundle(&gone.lineage, Generation(1)).await.unwrap();
    assert!(pair.is_none());
    assert!(!store.delete(&gone.lineage, Revision(0)).await.unwrap());
    assert_eq!(store.list().await.unwrap(), [kept.lineage]);
    // The name may be used again, from its first generation.
    store.save(&gone, Revision(0), Some(&bundle)).await.unwrap();
}

pub(super) fn record(name: &str) -> Record {
    let identifier = Identifier::parse(name).unwrap();
    Record::new(
        Lineage::of(&identifier),
        BTreeSet::from([identifier]),
        "https://ca".into(),
    )
}

pub(super) fn issued(record: &Record, generation: u64) -> (Record, Bundle) {
    let names: Vec<String> = record.identifiers.iter().map(ToString::to_string).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let bundle = Bundle::new(
        Secret::new(made.signing_key.serialize_pem()),
        &made.cert.pem(),
        &record.identifiers,
        Timestamp::from_seconds(1_800_000_000),
        Freshness::Any,
    )
    .unwrap();
    let mut record = record.clone();
    let facts: Facts = bundle.facts().clone();
    record.issued = Some(Issued {
        generation: Generation(generation),
        facts,
        ca: record.ca.clone(),
        at: Timestamp::from_seconds(1_800_000_000),
        renewal: None,
        renewable_from: None,
        early: 0,
        deploy_at: None,
        instead_of: None,
        terms: None,
    });
    (record, bundle)
}

async fn save_refuses_stale_revision_and_keeps_record(store: impl Store) {
    let mut record = record("example.com");
    assert_eq!(store.load(&record.lineage).await.unwrap(), None);
    let first = store.save(&record, Revision(0), None).await.unwrap();
    record.profile = Some("short".into());
    let second = store.save(&record, first, None).await.unwrap();
    for stale in [Revision(0), first, Revision(second.0 + 1)] {
        let refused = store.save(&self::record("example.com"), stale, None).await;
        assert!(matches!(refused, Err(StoreError::Conflict { found, .. }) if found == second.0));
    }
    let loaded = store.load(&record.lineage).await.unwrap();
    assert_eq!(loaded, Some((record.clone(), second)));
    let other = self::record("a.example.com");
    store.save(&other, Revision(0), None).await.unwrap();
    let listed = store.list().await.unwrap();
    assert_eq!(listed, vec![other.lineage, record.lineage], "sorted");
}

async fn save_stores_record_and_pair_both_or_neither(store: impl Store) {
    let fresh = record("example.com");
    let (record, bundle) = issued(&fresh, 1);
    let (lineage, first) = (record.lineage.clone(), Generation(1));
    let stale = store.save(&record, Revision(7), Some(&bundle)).await;
    assert!(matches!(stale, Err(StoreError::Conflict { .. })));
    assert_eq!(store.bundle(&lineage, first).await.unwrap(), None);
    assert_eq!(store.load(&lineage).await.unwrap(), None);
    store
        .save(&record, Revision(0), Some(&bundle))
        .await
        .unwrap();
    let stored = store.bundle(&lineage, first).await.unwrap();
    assert_eq!(stored, Some((bundle.key_pem().clone(), bundle.chain_pem())));
    assert_eq!(store.bundle(&lineage, Generation(2)).await.unwrap(), None);
}

async fn save_never_replaces_generation(store: impl Store) {
    let fresh = record("example.com");
    let (record, bundle) = issued(&fresh, 1);
    let revision = store
        .save(&record, Revision(0), Some(&bundle))
        .await
        .unwrap();
    let (again, other) = issued(&fresh, 1);
    let refused = store.save(&again, revision, Some(&other)).await;
    assert!(matches!(
        refused,
        Err(StoreError::GenerationExists { generation, .. }) if generation == Generation(1)
    ));
    let stored = store.bundle(&record.lineage, Generation(1)).await.unwrap();
    assert_eq!(stored.unwrap().0, *bundle.key_pem());
}

async fn save_keeps_three_pairs_and_rollback_generation(store: impl Store) {
    let mut record = record("example.com");
    record.rollback_to = Some(Generation(2));
    let mut revision = Revision::default();
    for generation in 1..=6 {
        let (record, bundle) = issued(&record, generation);
        revision = store.save(&record, revision, Some(&bundle)).await.unwrap();
    }
    for (generation, kept) in [(1, false), (2, true), (3, false), (4, true), (6, true)] {
        let found = store.bundle(&record.lineage, Generation(generation)).await;
        assert_eq!(found.unwrap().is_some(), kept, "{generation}");
    }
}

async fn lease_excludes_until_dropped(store: impl Store) {
    let lineage = record("example.com").lineage;
    let first = store.lease(&lineage).await.unwrap();
    let second = store.lease(&lineage).await;
    assert!(matches!(second, Err(StoreError::Leased { .. })));
    let other = store.lease(&record("a.example.com").lineage).await;
    assert!(other.is_ok(), "a lease is for one lineage");
    drop(first);
    // A server hears of the drop a little later.
    while matches!(store.lease(&lineage).await, Err(StoreError::Leased { .. })) {
        tokio::task::yield_now().await;
    }
}

async fn accounts_and_options_are_separate_and_replaceable(store: impl Store) {
    for text in ["1", "2"] {
        let secret = Secret::new(text.into());
        let created = store.create_account("https://ca", &secret).await.unwrap();
        assert_eq!(created.expose(), "1", "the first account stays");
    }
    let mut before = Secret::new("1".into());
    for text in ["3", "4"] {
        let (ca, secret) = ("https://ca", Secret::new(text.into()));
        store.save_account(ca, &secret, &before).await.unwrap();
        let stale = store.save_account(ca, &before, &before).await;
        assert!(matches!(stale, Err(StoreError::AccountChanged { .. })));
        assert!(store.delete_account(ca, &before).await.is_err());
        assert_eq!(store.account(ca).await.unwrap().as_ref(), Some(&secret));
        before = secret;
    }
    store.delete_account("https://ca", &before).await.unwrap();
    assert_eq!(store.account("https://ca").await.unwrap(), None);
    assert_eq!(store.account("https://other").await.unwrap(), None);
    let lineage = record("example.com").lineage;
    assert_eq!(store.options(&lineage).await.unwrap(), None);
    for json in ["{}", "{\"key\":1}"] {
        store.save_options(&lineage, json).await.unwrap();
        let stored = store.options(&lineage).await.unwrap();
        assert_eq!(stored.as_deref(), Some(json));
    }
    let other = record("a.example.com").lineage;
    assert_eq!(store.options(&other).await.unwrap(), None);
    assert!(
        store.list().await.unwrap().is_empty(),
        "options alone make no certificate"
    );
}

async fn ca_state_is_compared_and_swapped(store: impl Store) {
    let (nothing, none) = store.ca_state("https://one").await.unwrap();
    assert_eq!((&nothing, none), (&CaState::default(), Revision(0)));
    let mut spent = nothing.clone();
    let at = Timestamp::from_seconds(1_800_000_000);
    let bucket = std::sync::Arc::make_mut(&mut spent.spent)
        .entry(Limit::NewOrders)
        .or_default();
    bucket.insert("account".into(), at);
    let first = store.save_ca_state("https://one", &spent, none).await;
    let first = first.unwrap();
    for stale in [none, Revision(first.0 + 1)] {
        let refused = store.save_ca_state("https://one", &nothing, stale).await;
        assert!(matches!(refused, Err(StoreError::Conflict { .. })));
    }
    assert_eq!(store.ca_state("https://one").await.unwrap(), (spent, first));
    assert_eq!(store.ca_state("https://two").await.unwrap().1, none);
}
