//! Many certificates: their passes, and the orders of a CA with known limits.

use super::*;
use crate::renew::policy::{MANY, RESTING_PAUSE};

#[tokio::test]
async fn few_orders_at_a_time_go_to_a_ca_with_known_limits() {
    let fixture = Fixture::new();
    let certificates: Vec<Certificate> = { names(40).into_iter() }
        .map(|name| {
            let mut certificate = fixture.certificate(&name);
            certificate.wanted.ca = "https://acme-v02.api.letsencrypt.org/directory".into();
            certificate
        })
        .collect();
    let (mut supervisor, _handle) =
        Supervisor::new(fixture.services.clone(), fixture.board.clone());
    supervisor.keep(certificates).await.unwrap();
    tokio::spawn(supervisor.run());
    let enough = |all: &[Status]| all.iter().filter(|one| one.is_ready()).count() >= 30;
    fixture.until("issued", enough).await;
    assert_eq!(fixture.signer.most.load(Ordering::SeqCst), ORDERING);
}

#[tokio::test]
async fn update_starts_a_pass_over_what_has_changed_alone() {
    let fixture = Fixture::new();
    let handle = fixture.start(&names(3)).await;
    fixture
        .until("issued", |all| all.iter().all(|s| s.is_ready()))
        .await;
    fixture.settle(&handle, 3).await;
    let lineages: Vec<Lineage> = { names(3).into_iter() }
        .map(|name| Lineage::parse(&name).unwrap())
        .collect();
    // Each pass takes the lease, whose file it makes.
    let leases = fixture.directory.path().join("data/leases");
    for lineage in &lineages {
        std::fs::remove_file(leases.join(lineage.as_str())).unwrap();
    }
    // As `certs run` reads them: the second was changed by another process.
    for (number, lineage) in lineages.iter().enumerate() {
        let (mut record, revision) = fixture.services.store.load(lineage).await.unwrap().unwrap();
        if number == 1 {
            record.failures.last = Some("another process".into());
            { fixture.services.store.save(&record, revision, None).await }.unwrap();
        }
        let random = SeededRandom::new(1);
        fixture
            .board
            .post_read(status(&record, fixture.clock.now(), &random));
    }
    let mut certificates: Vec<Certificate> = { names(3).into_iter() }
        .map(|name| fixture.certificate(&name))
        .collect();
    for certificate in &mut certificates {
        certificate.shared = { fixture.certificate("n0.example.com") }.shared;
    }
    handle.update(certificates).await;
    fixture.settle(&handle, 3).await;
    let has_passed = |lineage: &Lineage| leases.join(lineage.as_str()).exists();
    let passed: Vec<bool> = lineages.iter().map(has_passed).collect();
    assert_eq!(passed, [false, true, false]);
}

#[tokio::test]
async fn many_certificates_at_rest_get_their_passes_one_after_the_other() {
    let fixture = Fixture::new();
    let names = names(MANY + 20);
    let handle = fixture.start(&names).await;
    fixture
        .until("issued", |all| all.iter().all(|s| s.is_ready()))
        .await;
    handle.stop().await;
    let of_command = |name: &String| {
        let mut certificate = fixture.certificate(name);
        certificate.keeper = Keeper::Command;
        certificate
    };
    let (mut supervisor, _handle) =
        Supervisor::new(fixture.services.clone(), fixture.board.clone());
    let certificates = names.iter().map(of_command).collect();
    supervisor.keep(certificates).await.unwrap();
    let now = fixture.clock.now();
    let due = |name: &String| {
        let lineage = Lineage::parse(name).unwrap();
        supervisor.agenda.get(&lineage).unwrap().due
    };
    let mut later: Vec<_> = names.iter().map(due).filter(|due| *due > now).collect();
    later.sort();
    assert_eq!(later.len(), 20);
    assert_eq!(later.last(), Some(&(now + RESTING_PAUSE * 20)));
}
