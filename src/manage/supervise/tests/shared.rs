//! What many certificates of one server share.

use super::*;
use crate::deploy::merge::Merged;

#[tokio::test(start_paused = true)]
async fn twenty_certificates_of_one_server_share_its_reloads() {
    let house = House::new();
    let told = Arc::new(Told::default());
    let merged = Arc::new(Merged::new(told.clone(), true));
    let certificates = names(20).into_iter().map(|name| {
        let mut certificate = house.certificate(&name);
        certificate.targets = vec![merged.clone()];
        certificate
    });
    let certificates: Vec<_> = certificates.collect();
    let (mut supervisor, handle) = Supervisor::new(house.parts.clone(), house.board.clone());
    supervisor.keep(certificates.clone()).await.unwrap();
    tokio::spawn(supervisor.run());
    let asked = |urge| {
        let works = certificates
            .iter()
            .map(|one| handle.work(one.clone(), urge));
        futures_util::future::join_all(works)
    };
    for ended in asked(Urge::Due).await {
        ended.unwrap();
    }
    let issued = told.0.load(Ordering::SeqCst);
    for ended in asked(Urge::Reload).await {
        ended.unwrap();
    }
    let again = told.0.load(Ordering::SeqCst) - issued;
    assert!((1..=3).contains(&again), "{again} reloads");
    assert!((1..=6).contains(&issued), "{issued} reloads");
    assert_eq!(house.signer.most.load(Ordering::SeqCst), ORDERING);
}
