//! A failing name beside valid ones: its exclusion, its retries, and that they do not
//! delay the renewal of the others.

use super::*;
use crate::record::Record;

const FAILING: &str = "a.example.com";
const VALID: [&str; 2] = ["b.example.com", "c.example.com"];
const MINUTE: Duration = Duration::from_secs(60);

fn name(text: &str) -> Identifier {
    Identifier::parse(text).unwrap()
}

fn certificate(fixture: &Fixture, partial: bool) -> Certificate {
    // The failing name is the first, so it names the certificate.
    let mut certificate = fixture.certificate(FAILING);
    let all = [name(FAILING)].into_iter().chain(VALID.map(name));
    certificate.wanted.identifiers = all.collect();
    certificate.wanted.partial = partial;
    certificate
}

async fn keep(fixture: &Fixture, certificate: &Certificate) -> Handle {
    let (mut supervisor, handle) = Supervisor::new(fixture.services.clone(), fixture.board.clone());
    supervisor.keep(vec![certificate.clone()]).await.unwrap();
    tokio::spawn(supervisor.run());
    handle
}

async fn record(fixture: &Fixture) -> Record {
    let lineage = Lineage::parse(FAILING).unwrap();
    fixture
        .services
        .store
        .load(&lineage)
        .await
        .unwrap()
        .unwrap()
        .0
}

fn fail_names(fixture: &Fixture, failing: &[&str]) {
    *fixture.signer.invalid_names.lock().unwrap() = failing.iter().map(|text| name(text)).collect();
}

/// The number of names in each order.
fn asked(fixture: &Fixture) -> Vec<usize> {
    let asked = fixture.signer.asked.lock().unwrap();
    asked.iter().map(BTreeSet::len).collect()
}

#[tokio::test]
async fn failing_name_is_excluded_retried_and_restored() {
    let fixture = Fixture::new();
    fail_names(&fixture, &[FAILING]);
    let handle = keep(&fixture, &certificate(&fixture, true)).await;
    fixture.until("issued", |all| all[0].is_ready()).await;
    assert_eq!(asked(&fixture), [3, 2], "a second order at once");
    let shown = fixture.board.all().remove(0);
    assert_eq!(shown.identifiers.len(), 3, "the name stays wanted");
    let [excluded] = shown.excluded.as_slice() else {
        panic!("{shown:?}");
    };
    assert_eq!(
        (excluded.identifier.clone(), excluded.reason.as_str()),
        (name(FAILING), "no answer on port 80")
    );
    let again = excluded.retry_at.unwrap();
    assert!(again >= START + Duration::from_secs(54) && again <= START + Duration::from_secs(66));
    assert_eq!(shown.next_at, again);
    let text = fixture
        .services
        .metrics
        .render(&fixture.board, fixture.clock.now());
    let gauge = "certs_certificate_left_out_names{name=\"a.example.com\"} 1";
    assert!(text.contains(gauge), "{text}");

    retries_leave_the_certificate(&fixture, &handle).await;

    fail_names(&fixture, &[]);
    let orders = fixture.orders();
    for _ in 0..27 {
        fixture.clock.advance(MINUTE * 60);
        fixture.settle(&handle, fixture.board.all().len()).await;
    }
    fixture
        .until("whole", |all| {
            all[0].is_ready() && all[0].excluded.is_empty()
        })
        .await;
    assert_eq!(fixture.orders(), orders + 1);
    let restored = record(&fixture).await;
    assert_eq!(restored.issued.unwrap().facts.identifiers.len(), 3);
    assert_eq!(restored.excluded, None);
}

/// Retries come after 1, 10 and 100 minutes, then daily; the valid certificate stays.
async fn retries_leave_the_certificate(fixture: &Fixture, handle: &Handle) {
    let issued = record(fixture).await.issued;
    for _ in 0..30 {
        fixture.clock.advance(MINUTE);
        fixture.settle(handle, fixture.board.all().len()).await;
    }
    assert_eq!(asked(fixture)[2..], [3, 3]);
    for _ in 0..60 {
        fixture.clock.advance(MINUTE * 60);
        fixture.settle(handle, fixture.board.all().len()).await;
    }
    let tries = asked(fixture)[4..].to_vec();
    assert!((3..=4).contains(&tries.len()), "{tries:?}");
    assert!(tries.iter().all(|names| *names == 3), "{tries:?}");
    let stored = record(fixture).await;
    let constant = |issued: &Option<crate::record::Issued>| {
        let issued = issued.clone().unwrap();
        (issued.generation, issued.facts, issued.renewal.unwrap().at)
    };
    assert_eq!(constant(&stored.issued), constant(&issued));
    assert_eq!(
        stored.failures.count, 0,
        "the renewal is not delayed: {stored:?}"
    );
}

#[tokio::test]
async fn partial_off_excludes_nothing_and_all_names_failing_issues_nothing() {
    let fixture = Fixture::new();
    fail_names(&fixture, &[FAILING]);
    let failed = pass(
        &fixture.services,
        &certificate(&fixture, false),
        Trigger::Requested,
    )
    .await;
    assert!(matches!(failed, Err(ManageError::Acme(_))), "{failed:?}");
    fail_names(&fixture, &[FAILING, VALID[0], VALID[1]]);
    let failed = pass(
        &fixture.services,
        &certificate(&fixture, true),
        Trigger::Requested,
    )
    .await;
    assert!(matches!(failed, Err(ManageError::Acme(_))), "{failed:?}");
    assert_eq!(asked(&fixture), [3, 3]);
    assert_eq!(record(&fixture).await.excluded, None);
    // Another name that fails in the second order causes no third order.
    fail_names(&fixture, &[FAILING]);
    fixture
        .signer
        .refusals
        .lock()
        .unwrap()
        .insert(VALID[0].into(), 1);
    let failed = pass(
        &fixture.services,
        &certificate(&fixture, true),
        Trigger::Requested,
    )
    .await;
    assert!(matches!(failed, Err(ManageError::Acme(_))), "{failed:?}");
    assert_eq!(asked(&fixture)[2..], [3, 2]);
}

#[tokio::test]
async fn served_name_is_excluded_only_when_the_renewal_is_overdue() {
    let fixture = Fixture::new();
    let handle = keep(&fixture, &certificate(&fixture, true)).await;
    fixture.until("issued", |all| all[0].is_ready()).await;
    let due = fixture.board.all()[0].next_at;
    fail_names(&fixture, &[VALID[1]]);
    fixture.clock.set(due);
    fixture.settle(&handle, fixture.board.all().len()).await;
    for _ in 0..24 * 4 {
        fixture.clock.advance(MINUTE * 60);
        fixture.settle(&handle, fixture.board.all().len()).await;
    }
    let first = record(&fixture).await.issued.unwrap();
    assert_eq!(
        first.generation,
        Generation(1),
        "it is still valid for all names"
    );
    for _ in 0..24 * 3 {
        fixture.clock.advance(MINUTE * 60);
        fixture.settle(&handle, fixture.board.all().len()).await;
    }
    let second = record(&fixture).await.issued.unwrap();
    assert_eq!(second.generation, Generation(2));
    assert_eq!(
        second.facts.identifiers,
        [FAILING, VALID[0]].map(name).into()
    );
    assert!(fixture.board.all()[0].is_ready());
}

#[tokio::test]
async fn failed_retries_spend_no_certificate_tokens() {
    const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
    let fixture = Fixture::new();
    fail_names(&fixture, &[FAILING]);
    let mut certificate = certificate(&fixture, true);
    certificate.wanted.ca = LETS_ENCRYPT.into();
    let handle = keep(&fixture, &certificate).await;
    drop(certificate);
    fixture.until("issued", |all| all[0].is_ready()).await;
    for _ in 0..24 * 6 {
        fixture.clock.advance(MINUTE * 60);
        fixture.settle(&handle, fixture.board.all().len()).await;
    }
    assert!(fixture.orders() >= 8, "{} orders", fixture.orders());
    let (state, _) = fixture.services.store.ca_state(LETS_ENCRYPT).await.unwrap();
    let now = fixture.clock.now();
    let spent = &state.spent[&crate::ca_state::Limit::DuplicateCertificates];
    let full: Vec<_> = spent.iter().filter(|(_, at)| **at > now).collect();
    // The token of the one certificate returns within 33.6 hours.
    assert!(full.is_empty(), "{full:?}");
}
