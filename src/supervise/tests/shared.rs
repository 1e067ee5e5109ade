//! Many certificates of one server share its reloads and the requests for windows.

use super::*;
use crate::deploy::coalesce::{Coalesced, Gate};
use crate::deploy::target_settings::DeployStage;

#[tokio::test(start_paused = true)]
async fn twenty_certificates_of_one_server_share_its_reloads() {
    let fixture = Fixture::new();
    let target = Arc::new(CountingTarget::default());
    let coalesced = Arc::new(Coalesced::new(
        target.clone(),
        DeployStage::AllCertificates,
        Gate::default(),
    ));
    let certificates = names(20).into_iter().map(|name| {
        let mut certificate = fixture.certificate(&name);
        certificate.targets = vec![coalesced.clone()];
        certificate
    });
    let certificates: Vec<_> = certificates.collect();
    let (mut supervisor, handle) = Supervisor::new(fixture.services.clone(), fixture.board.clone());
    supervisor.keep(certificates.clone()).await.unwrap();
    tokio::spawn(supervisor.run());
    let asked = |trigger| {
        let works = certificates
            .iter()
            .map(|one| handle.work(one.clone(), trigger));
        futures_util::future::join_all(works)
    };
    for ended in asked(Trigger::Scheduled).await {
        ended.unwrap();
    }
    let issued = target.reloads.load(Ordering::SeqCst);
    for ended in asked(Trigger::Redeploy).await {
        ended.unwrap();
    }
    let again = target.reloads.load(Ordering::SeqCst) - issued;
    assert!((1..=3).contains(&again), "{again} reloads");
    assert!((1..=6).contains(&issued), "{issued} reloads");
    let most = fixture.signer.most.load(Ordering::SeqCst);
    assert!((ORDERING..=20).contains(&most), "{most} orders at a time");
}

#[tokio::test]
async fn window_requests_due_at_one_instant_are_spread_over_seconds() {
    let fixture = Fixture::new();
    let window = Window {
        start: START + DAY * 60,
        end: START + DAY * 62,
    };
    *fixture.signer.window.lock().unwrap() = Some(window);
    let handle = fixture.start(&names(8)).await;
    fixture
        .until("issued", |all| all.iter().all(|status| status.is_ready()))
        .await;
    fixture.settle(&handle, 8).await;
    // The signer asks for the next request a day later.
    let due = START + DAY;
    let mut asked = BTreeMap::new();
    for second in 0..=10 {
        fixture.clock.set(due + Duration::from_secs(second));
        fixture.settle(&handle, 8).await;
        for name in names(8) {
            let lineage = fixture.certificate(&name).wanted.lineage;
            let stored = fixture.services.store.load(&lineage).await.unwrap();
            let renewal = stored.unwrap().0.issued.unwrap().renewal.unwrap();
            let at = renewal.asked.unwrap();
            if at >= due {
                asked.entry(lineage).or_insert(at);
            }
        }
    }
    assert_eq!(asked.len(), 8, "{asked:?}");
    let instants: BTreeSet<Timestamp> = asked.values().copied().collect();
    assert!(instants.len() >= 4, "all at once: {asked:?}");
}
