//! The CA that stands in: when it is asked, and that the first one is again.

use super::*;
use crate::manage::FallbackCa;

const SECOND: &str = "https://second";
pub(super) const FOR_EVER: usize = usize::MAX / 2;

/// A house with a CA of the second choice.
pub(super) struct Two {
    pub(super) house: House,
    pub(super) second: Arc<Signer>,
}

impl Two {
    pub(super) fn new() -> Self {
        let house = House::new();
        let second = Arc::new(Signer::new(house.clock.clone()));
        Self { house, second }
    }

    pub(super) fn certificate(&self, name: &str) -> Certificate {
        Certificate {
            fallback: Some(FallbackCa {
                ca: SECOND.into(),
                issuer: self.second.clone(),
            }),
            ..self.house.certificate(name)
        }
    }

    pub(super) async fn start(&self, names: &[String]) -> Handle {
        let (mut supervisor, handle) =
            Supervisor::new(self.house.services.clone(), self.house.board.clone());
        let certificates = names.iter().map(|name| self.certificate(name)).collect();
        supervisor.keep(certificates).await.unwrap();
        tokio::spawn(supervisor.run());
        handle
    }

    fn orders(&self) -> (usize, usize) {
        let second = self.second.orders.load(Ordering::SeqCst);
        (self.house.orders(), second)
    }

    /// Lets `minutes` pass, each with all that is to be done in it.
    pub(super) async fn pass(&self, handle: &Handle, minutes: usize) {
        for _ in 0..minutes {
            self.house.clock.advance(Duration::from_secs(60));
            self.settle(handle).await;
        }
    }

    async fn settle(&self, handle: &Handle) {
        let kept = self.house.board.all().len();
        self.house.settle(handle, kept).await;
    }

    /// From here on the first choice is down.
    fn first_is_down(&self) {
        let signer = &self.house.signer;
        signer.silences.store(FOR_EVER, Ordering::SeqCst);
        signer.silent_probes.store(FOR_EVER, Ordering::SeqCst);
    }

    fn first_is_back(&self) {
        let signer = &self.house.signer;
        signer.silences.store(0, Ordering::SeqCst);
        signer.silent_probes.store(0, Ordering::SeqCst);
    }

    fn issued_by(&self) -> Option<String> {
        self.house.board.all()[0].issued_by.clone()
    }
}

#[tokio::test]
async fn near_the_end_of_a_life_an_outage_goes_to_the_second_and_the_next_cycle_to_the_first() {
    let two = Two::new();
    let handle = two.start(&names(1)).await;
    two.house.until("issued", |all| all[0].is_ready()).await;
    assert_eq!(two.issued_by().as_deref(), Some("https://ca"));
    two.first_is_down();
    // Due after 60 days, critical after 75.
    two.house.clock.set(START + DAY * 74);
    two.settle(&handle).await;
    two.pass(&handle, 30).await;
    assert_eq!(two.orders().1, 0, "there is time still");
    two.house.clock.set(START + DAY * 75 + DAY / 2);
    two.settle(&handle).await;
    two.pass(&handle, 10).await;
    assert_eq!(two.orders().1, 1);
    let shown = two.house.board.all().remove(0);
    assert_eq!(shown.issued_by.as_deref(), Some(SECOND));
    assert!(shown.is_ready() && shown.last_error.is_none(), "{shown:?}");

    // It is as good as any other: nobody orders before it is due.
    two.first_is_back();
    let asked = two.orders();
    two.pass(&handle, 60).await;
    for day in 1..50 {
        two.house
            .clock
            .set(START + DAY * 76 + DAY * u32::try_from(day).unwrap());
        two.settle(&handle).await;
    }
    assert_eq!(two.orders(), asked);
    two.house.clock.set(shown.next_at);
    two.house
        .until("from the first again", |all| {
            all[0].issued_by.as_deref() == Some("https://ca")
        })
        .await;
    assert_eq!(two.orders(), (asked.0 + 1, 1));
}

#[tokio::test]
async fn with_nothing_usable_three_failures_lead_to_the_second() {
    let two = Two::new();
    let refusals = &two.house.signer.refusals;
    refusals
        .lock()
        .unwrap()
        .insert("n0.example.com".into(), FOR_EVER);
    let handle = two.start(&names(1)).await;
    two.settle(&handle).await;
    // After 1 and 10 minutes more, and not before.
    two.pass(&handle, 9).await;
    assert_eq!(two.orders(), (2, 0));
    two.pass(&handle, 8).await;
    two.house.until("issued", |all| all[0].is_ready()).await;
    assert_eq!(two.orders(), (3, 1));
    assert_eq!(two.issued_by().as_deref(), Some(SECOND));
}

#[tokio::test]
async fn with_nothing_usable_half_an_hour_leads_to_the_second_also_over_a_restart() {
    let two = Two::new();
    two.first_is_down();
    let handle = two.start(&names(3)).await;
    two.settle(&handle).await;
    two.pass(&handle, 15).await;
    handle.stop().await;
    let handle = two.start(&names(3)).await;
    two.settle(&handle).await;
    two.pass(&handle, 12).await;
    assert_eq!(two.orders().1, 0);
    two.pass(&handle, 10).await;
    two.house
        .until("all", |all| all.iter().all(|s| s.is_ready()))
        .await;
    assert_eq!(two.orders().1, 3);
}

#[tokio::test]
async fn when_both_are_down_each_is_asked_now_and_then_and_the_first_to_come_back_issues() {
    let two = Two::new();
    two.first_is_down();
    two.second.silences.store(FOR_EVER, Ordering::SeqCst);
    two.second.silent_probes.store(FOR_EVER, Ordering::SeqCst);
    let handle = two.start(&names(4)).await;
    two.settle(&handle).await;
    two.pass(&handle, 180).await;
    let (first, second) = two.orders();
    let asked = |signer: &Signer| signer.probes.load(Ordering::SeqCst);
    let (here, there) = (asked(&two.house.signer), asked(&two.second));
    assert!(first <= 8 && second <= 8, "{first} and {second} orders");
    assert!(
        (30..=180).contains(&here) && (20..=180).contains(&there),
        "{here} and {there} probes"
    );
    two.first_is_back();
    two.pass(&handle, 15).await;
    two.house
        .until("all", |all| all.iter().all(|s| s.is_ready()))
        .await;
    assert_eq!(two.issued_by().as_deref(), Some("https://ca"));
    assert_eq!(two.orders(), (first + 4, second));
}

#[tokio::test]
async fn an_order_cut_off_at_the_second_is_resumed_there() {
    let two = Two::new();
    let refusals = &two.house.signer.refusals;
    refusals
        .lock()
        .unwrap()
        .insert("n0.example.com".into(), FOR_EVER);
    let handle = two.start(&names(1)).await;
    // Its first order there is lost on the way.
    two.second.silences.store(1, Ordering::SeqCst);
    two.settle(&handle).await;
    for _ in 0..20 {
        if two.orders().1 == 0 {
            two.pass(&handle, 1).await;
        }
    }
    assert_eq!(two.orders().1, 1);
    let lineage = Lineage::parse("n0.example.com").unwrap();
    let stored = two
        .house
        .services
        .store
        .load(&lineage)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(stored.0.order.unwrap().ca, SECOND);
    handle.stop().await;
    let handle = two.start(&names(1)).await;
    two.settle(&handle).await;
    two.pass(&handle, 5).await;
    two.house.until("issued", |all| all[0].is_ready()).await;
    assert_eq!(two.orders(), (3, 2));
}

#[tokio::test]
async fn of_two_that_are_down_the_one_that_answers_first_serves_all_who_wait() {
    let two = Two::new();
    two.first_is_down();
    two.second.silences.store(FOR_EVER, Ordering::SeqCst);
    two.second.silent_probes.store(FOR_EVER, Ordering::SeqCst);
    let handle = two.start(&names(10)).await;
    two.settle(&handle).await;
    two.pass(&handle, 90).await;
    assert!(two.house.board.all().iter().all(|s| !s.is_ready()));
    two.second.silences.store(0, Ordering::SeqCst);
    two.second.silent_probes.store(0, Ordering::SeqCst);
    // One finds out, and the others need not.
    two.pass(&handle, 8).await;
    let shown = two.house.board.all();
    let served = shown.iter().filter(|s| s.is_ready()).count();
    assert_eq!(served, 10, "{shown:#?}");
}
