//! One dead name and the others: what is issued, what is tried again, and that
//! neither disturbs the other.

use super::*;
use crate::record::Record;

const DEAD: &str = "a.example.com";
const WELL: [&str; 2] = ["b.example.com", "c.example.com"];
const MINUTE: Duration = Duration::from_secs(60);

fn name(text: &str) -> Identifier {
    Identifier::parse(text).unwrap()
}

fn certificate(house: &House, partial: bool) -> Certificate {
    // The dead one is the first: the certificate is named after it.
    let mut certificate = house.certificate(DEAD);
    certificate.wanted.identifiers.extend(WELL.map(name));
    certificate.wanted.partial = partial;
    certificate
}

async fn keep(house: &House, certificate: &Certificate) -> Handle {
    let (mut supervisor, handle) = Supervisor::new(house.services.clone(), house.board.clone());
    supervisor.keep(vec![certificate.clone()]).await.unwrap();
    tokio::spawn(supervisor.run());
    handle
}

async fn record(house: &House) -> Record {
    let lineage = Lineage::parse(DEAD).unwrap();
    house
        .services
        .store
        .load(&lineage)
        .await
        .unwrap()
        .unwrap()
        .0
}

fn bury(house: &House, dead: &[&str]) {
    *house.signer.dead.lock().unwrap() = dead.iter().map(|text| name(text)).collect();
}

/// How many names each order was for.
fn asked(house: &House) -> Vec<usize> {
    let asked = house.signer.asked.lock().unwrap();
    asked.iter().map(BTreeSet::len).collect()
}

#[tokio::test]
async fn a_dead_name_is_left_out_tried_again_and_brought_back() {
    let house = House::new();
    bury(&house, &[DEAD]);
    let handle = keep(&house, &certificate(&house, true)).await;
    house.until("issued", |all| all[0].is_ready()).await;
    assert_eq!(asked(&house), [3, 2], "once more, at once");
    let shown = house.board.all().remove(0);
    assert_eq!(shown.identifiers.len(), 3, "what is wanted stays wanted");
    let [left_out] = shown.left_out.as_slice() else {
        panic!("{shown:?}");
    };
    assert_eq!(
        (left_out.identifier.clone(), left_out.reason.as_str()),
        (name(DEAD), "nobody there")
    );
    let again = left_out.retry_at.unwrap();
    assert!(again >= START + Duration::from_secs(54) && again <= START + Duration::from_secs(66));
    assert_eq!(shown.next_at, again);
    let text = house
        .services
        .metrics
        .render(&house.board, house.clock.now());
    let gauge = "certs_certificate_left_out_names{name=\"a.example.com\"} 1";
    assert!(text.contains(gauge), "{text}");

    // 1, 10, 100 minutes, then daily; and the valid one stays as it is.
    let issued = record(&house).await.issued;
    for _ in 0..30 {
        house.clock.advance(MINUTE);
        house.settle(&handle, house.board.all().len()).await;
    }
    assert_eq!(asked(&house)[2..], [3, 3]);
    for _ in 0..60 {
        house.clock.advance(MINUTE * 60);
        house.settle(&handle, house.board.all().len()).await;
    }
    let tries = asked(&house)[4..].to_vec();
    assert!((3..=4).contains(&tries.len()), "{tries:?}");
    assert!(tries.iter().all(|names| *names == 3), "{tries:?}");
    let kept = record(&house).await;
    let constant = |issued: &Option<crate::record::Issued>| {
        let issued = issued.clone().unwrap();
        (issued.generation, issued.facts, issued.renewal.unwrap().at)
    };
    assert_eq!(constant(&kept.issued), constant(&issued));
    assert_eq!(
        kept.failures.count, 0,
        "the renewal is not held up: {kept:?}"
    );

    bury(&house, &[]);
    let orders = house.orders();
    for _ in 0..27 {
        house.clock.advance(MINUTE * 60);
        house.settle(&handle, house.board.all().len()).await;
    }
    house
        .until("whole", |all| {
            all[0].is_ready() && all[0].left_out.is_empty()
        })
        .await;
    assert_eq!(house.orders(), orders + 1);
    let healed = record(&house).await;
    assert_eq!(healed.issued.unwrap().facts.identifiers.len(), 3);
    assert_eq!(healed.quarantine, None);
}

#[tokio::test]
async fn without_leave_nothing_is_left_out_and_nothing_is_issued_for_none() {
    let house = House::new();
    bury(&house, &[DEAD]);
    let failed = pass(
        &house.services,
        &certificate(&house, false),
        Trigger::Requested,
    )
    .await;
    assert!(matches!(failed, Err(ManageError::Acme(_))), "{failed:?}");
    bury(&house, &[DEAD, WELL[0], WELL[1]]);
    let failed = pass(
        &house.services,
        &certificate(&house, true),
        Trigger::Requested,
    )
    .await;
    assert!(matches!(failed, Err(ManageError::Acme(_))), "{failed:?}");
    assert_eq!(asked(&house), [3, 3]);
    assert_eq!(record(&house).await.quarantine, None);
    // A second one that dies between the two orders: no third order.
    bury(&house, &[DEAD]);
    house
        .signer
        .refusals
        .lock()
        .unwrap()
        .insert(WELL[0].into(), 1);
    let failed = pass(
        &house.services,
        &certificate(&house, true),
        Trigger::Requested,
    )
    .await;
    assert!(matches!(failed, Err(ManageError::Acme(_))), "{failed:?}");
    assert_eq!(asked(&house)[2..], [3, 2]);
}

#[tokio::test]
async fn a_name_that_is_served_is_dropped_only_when_the_renewal_is_late_for_it() {
    let house = House::new();
    let handle = keep(&house, &certificate(&house, true)).await;
    house.until("issued", |all| all[0].is_ready()).await;
    let due = house.board.all()[0].next_at;
    bury(&house, &[WELL[1]]);
    house.clock.set(due);
    house.settle(&handle, house.board.all().len()).await;
    for _ in 0..24 * 4 {
        house.clock.advance(MINUTE * 60);
        house.settle(&handle, house.board.all().len()).await;
    }
    let first = record(&house).await.issued.unwrap();
    assert_eq!(
        first.generation,
        Generation(1),
        "it is good for all of them still"
    );
    for _ in 0..24 * 3 {
        house.clock.advance(MINUTE * 60);
        house.settle(&handle, house.board.all().len()).await;
    }
    let second = record(&house).await.issued.unwrap();
    assert_eq!(second.generation, Generation(2));
    assert_eq!(second.facts.identifiers, [DEAD, WELL[0]].map(name).into());
    assert!(house.board.all()[0].is_ready());
}

#[tokio::test]
async fn tries_that_fail_cost_the_ledger_no_certificate() {
    const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
    let house = House::new();
    bury(&house, &[DEAD]);
    let mut certificate = certificate(&house, true);
    certificate.wanted.ca = LETS_ENCRYPT.into();
    let handle = keep(&house, &certificate).await;
    drop(certificate);
    house.until("issued", |all| all[0].is_ready()).await;
    for _ in 0..24 * 6 {
        house.clock.advance(MINUTE * 60);
        house.settle(&handle, house.board.all().len()).await;
    }
    assert!(house.orders() >= 8, "{} orders", house.orders());
    let (state, _) = house.services.store.ca_state(LETS_ENCRYPT).await.unwrap();
    let now = house.clock.now();
    let spent = &state.spent[&crate::ca_state::Limit::DuplicateCertificates];
    let full: Vec<_> = spent.iter().filter(|(_, at)| **at > now).collect();
    // The one certificate that there is takes 33.6 hours to be forgotten.
    assert!(full.is_empty(), "{full:?}");
}
