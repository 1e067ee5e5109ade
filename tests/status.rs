//! `certs status` of what a data directory holds, written as a sidecar would.

use certs::authority::{Authority, Outage};
use certs::identifier::{Identifier, Lineage};
use certs::record::{Record, Revision};
use certs::renew::ledger::{LETS_ENCRYPT, Priority, spend};
use certs::store::{Store, fs::FileStore};
use certs::time::{Clock, SystemClock};

use crate::support::{certs, run};

const CA: &str = "https://acme-v02.api.letsencrypt.org/directory";

#[tokio::test]
async fn what_the_ca_allows_and_whether_it_answers_is_shown() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path().join("data")).unwrap();
    let name = Identifier::parse("shop.example.co.uk").unwrap();
    let record = Record::new(Lineage::of(&name), [name.clone()].into(), CA.into());
    store.save(&record, Revision(0), None).await.unwrap();
    let mut authority = Authority::default();
    let now = SystemClock.now();
    for _ in 0..3 {
        let (names, counted) = (&record.identifiers, certs::authority::Counted::New);
        spend(
            &mut authority,
            LETS_ENCRYPT,
            names,
            counted,
            Priority::Routine,
            now,
        )
        .unwrap();
    }
    authority.outage = Some(Outage {
        since: now,
        probes: 2,
        probe_at: now,
        asked: false,
        last: "nobody there".into(),
    });
    let saved = store.save_authority(CA, &authority, Revision(0));
    saved.await.unwrap();

    let told = run(certs(directory.path()).arg("status"), 0);
    for words in [
        "297 of 300 new orders (all at ",
        "47 of 50 certificates per domain of example.co.uk (all at ",
        "2 of 5 duplicate certificates of shop.example.co.uk (all at ",
        "its CA has not answered since ",
        ", and is asked again at ",
    ] {
        assert!(told.contains(words), "no `{words}` in {told}");
    }
    let json = run(certs(directory.path()).args(["status", "--json"]), 0);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let budget = json[0]["budget"].as_array().unwrap();
    let left: Vec<_> = budget.iter().map(|left| left["tokens"].clone()).collect();
    assert_eq!(left, [297, 47, 2, 5, 1152]);
    assert_eq!(json[0]["outage"]["probes"], 2);
}
