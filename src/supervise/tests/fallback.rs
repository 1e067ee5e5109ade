//! The fallback CA: when it issues, and the return to the first CA.

use super::*;
use crate::manage::FallbackCa;

const FALLBACK: &str = "https://fallback";
pub(super) const FOREVER: usize = usize::MAX / 2;

/// A fixture with a fallback CA.
pub(super) struct TwoCas {
    pub(super) fixture: Fixture,
    pub(super) fallback: Arc<Signer>,
}

impl TwoCas {
    pub(super) fn new() -> Self {
        let fixture = Fixture::new();
        let fallback = Arc::new(Signer::new(fixture.clock.clone()));
        Self { fixture, fallback }
    }

    pub(super) fn certificate(&self, name: &str) -> Certificate {
        let mut certificate = self.fixture.certificate(name);
        certificate.fallback = Some(FallbackCa {
            ca: FALLBACK.into(),
            issuer: self.fallback.clone(),
        });
        certificate
    }

    pub(super) async fn start(&self, names: &[String]) -> Handle {
        let (mut supervisor, handle) =
            Supervisor::new(self.fixture.services.clone(), self.fixture.board.clone());
        let certificates = names.iter().map(|name| self.certificate(name)).collect();
        supervisor.keep(certificates).await.unwrap();
        tokio::spawn(supervisor.run());
        handle
    }

    fn orders(&self) -> (usize, usize) {
        let fallback = self.fallback.orders.load(Ordering::SeqCst);
        (self.fixture.orders(), fallback)
    }

    /// Advances the clock minute by minute, and waits for all passes due in each.
    pub(super) async fn pass(&self, handle: &Handle, minutes: usize) {
        for _ in 0..minutes {
            self.fixture.clock.advance(Duration::from_secs(60));
            self.settle(handle).await;
        }
    }

    async fn settle(&self, handle: &Handle) {
        let managed = self.fixture.board.all().len();
        self.fixture.settle(handle, managed).await;
    }

    /// Makes the first CA unreachable.
    fn take_first_down(&self) {
        let signer = &self.fixture.signer;
        signer.outages.store(FOREVER, Ordering::SeqCst);
        signer.failed_probes.store(FOREVER, Ordering::SeqCst);
    }

    fn bring_first_back(&self) {
        let signer = &self.fixture.signer;
        signer.outages.store(0, Ordering::SeqCst);
        signer.failed_probes.store(0, Ordering::SeqCst);
    }

    fn issued_by(&self) -> Option<String> {
        self.fixture.board.all()[0].issued_by.clone()
    }
}

#[tokio::test]
async fn outage_near_expiry_uses_fallback_and_next_renewal_returns_to_first() {
    let two = TwoCas::new();
    let handle = two.start(&names(1)).await;
    two.fixture.until("issued", |all| all[0].is_ready()).await;
    assert_eq!(two.issued_by().as_deref(), Some("https://ca"));
    two.take_first_down();
    // Due after 60 days, critical after 75.
    two.fixture.clock.set(START + DAY * 74);
    two.settle(&handle).await;
    two.pass(&handle, 30).await;
    assert_eq!(two.orders().1, 0, "there is enough time left");
    two.fixture.clock.set(START + DAY * 75 + DAY / 2);
    two.settle(&handle).await;
    two.pass(&handle, 10).await;
    assert_eq!(two.orders().1, 1);
    let shown = two.fixture.board.all().remove(0);
    assert_eq!(shown.issued_by.as_deref(), Some(FALLBACK));
    assert!(shown.is_ready() && shown.last_error.is_none(), "{shown:?}");

    // The fallback's certificate is not replaced before it is due.
    two.bring_first_back();
    let asked = two.orders();
    two.pass(&handle, 60).await;
    for day in 1..50 {
        two.fixture
            .clock
            .set(START + DAY * 76 + DAY * u32::try_from(day).unwrap());
        two.settle(&handle).await;
    }
    assert_eq!(two.orders(), asked);
    two.fixture.clock.set(shown.next_at);
    two.fixture
        .until("from the first again", |all| {
            all[0].issued_by.as_deref() == Some("https://ca")
        })
        .await;
    assert_eq!(two.orders(), (asked.0 + 1, 1));
}

#[tokio::test]
async fn three_failures_without_certificate_use_fallback() {
    let two = TwoCas::new();
    let refusals = &two.fixture.signer.refusals;
    refusals
        .lock()
        .unwrap()
        .insert("n0.example.com".into(), FOREVER);
    let handle = two.start(&names(1)).await;
    two.settle(&handle).await;
    // Retries after 1 and 10 minutes, and not before.
    two.pass(&handle, 9).await;
    assert_eq!(two.orders(), (2, 0));
    two.pass(&handle, 8).await;
    two.fixture.until("issued", |all| all[0].is_ready()).await;
    assert_eq!(two.orders(), (3, 1));
    assert_eq!(two.issued_by().as_deref(), Some(FALLBACK));
}

#[tokio::test]
async fn half_hour_outage_without_certificate_uses_fallback_also_over_a_restart() {
    let two = TwoCas::new();
    two.take_first_down();
    let handle = two.start(&names(3)).await;
    two.settle(&handle).await;
    two.pass(&handle, 15).await;
    handle.stop().await;
    let handle = two.start(&names(3)).await;
    two.settle(&handle).await;
    two.pass(&handle, 12).await;
    assert_eq!(two.orders().1, 0);
    two.pass(&handle, 10).await;
    two.fixture
        .until("all", |all| all.iter().all(|s| s.is_ready()))
        .await;
    assert_eq!(two.orders().1, 3);
}

#[tokio::test]
async fn outage_of_both_cas_probes_each_rarely_and_first_reachable_issues() {
    let two = TwoCas::new();
    two.take_first_down();
    two.fallback.outages.store(FOREVER, Ordering::SeqCst);
    two.fallback.failed_probes.store(FOREVER, Ordering::SeqCst);
    let handle = two.start(&names(4)).await;
    two.settle(&handle).await;
    two.pass(&handle, 180).await;
    let (first, fallback) = two.orders();
    let asked = |signer: &Signer| signer.probes.load(Ordering::SeqCst);
    let (here, there) = (asked(&two.fixture.signer), asked(&two.fallback));
    assert!(first <= 8 && fallback <= 8, "{first} and {fallback} orders");
    assert!(
        (30..=180).contains(&here) && (20..=180).contains(&there),
        "{here} and {there} probes"
    );
    two.bring_first_back();
    two.pass(&handle, 15).await;
    two.fixture
        .until("all", |all| all.iter().all(|s| s.is_ready()))
        .await;
    assert_eq!(two.issued_by().as_deref(), Some("https://ca"));
    assert_eq!(two.orders(), (first + 4, fallback));
}

#[tokio::test]
async fn interrupted_order_at_fallback_is_resumed_there() {
    let two = TwoCas::new();
    let refusals = &two.fixture.signer.refusals;
    refusals
        .lock()
        .unwrap()
        .insert("n0.example.com".into(), FOREVER);
    let handle = two.start(&names(1)).await;
    // Its first order at the fallback CA meets an outage.
    two.fallback.outages.store(1, Ordering::SeqCst);
    two.settle(&handle).await;
    for _ in 0..20 {
        if two.orders().1 == 0 {
            two.pass(&handle, 1).await;
        }
    }
    assert_eq!(two.orders().1, 1);
    let lineage = Lineage::parse("n0.example.com").unwrap();
    let stored = two
        .fixture
        .services
        .store
        .load(&lineage)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(stored.0.order.unwrap().ca, FALLBACK);
    handle.stop().await;
    let handle = two.start(&names(1)).await;
    two.settle(&handle).await;
    two.pass(&handle, 5).await;
    two.fixture.until("issued", |all| all[0].is_ready()).await;
    assert_eq!(two.orders(), (3, 2));
}

#[tokio::test]
async fn first_ca_to_recover_serves_all_waiting_certificates() {
    let two = TwoCas::new();
    two.take_first_down();
    two.fallback.outages.store(FOREVER, Ordering::SeqCst);
    two.fallback.failed_probes.store(FOREVER, Ordering::SeqCst);
    let handle = two.start(&names(10)).await;
    two.settle(&handle).await;
    two.pass(&handle, 90).await;
    assert!(two.fixture.board.all().iter().all(|s| !s.is_ready()));
    two.fallback.outages.store(0, Ordering::SeqCst);
    two.fallback.failed_probes.store(0, Ordering::SeqCst);
    // One certificate probes for all.
    two.pass(&handle, 8).await;
    let shown = two.fixture.board.all();
    let served = shown.iter().filter(|s| s.is_ready()).count();
    assert_eq!(served, 10, "{shown:#?}");
}
