//! A clock that is wrong by an hour, a day or ten years, in either direction:
//! nobody orders for it, and nothing expires for it.

use super::*;

const HOUR: Duration = Duration::from_secs(3600);
const TEN_YEARS: Duration = Duration::from_secs(3652 * 86_400);

/// Sets this machine's clock by `seconds`, and not the CA's.
fn set_by(house: &House, seconds: i64) {
    let now = house.clock.now().seconds();
    house.clock.set(Timestamp::from_seconds(now + seconds));
    *house.signer.ahead.lock().unwrap() += seconds;
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap()
}

#[tokio::test]
async fn a_clock_that_is_ahead_orders_nothing_before_its_time() {
    for (ahead, before) in [
        (HOUR, HOUR / 2),
        (DAY, DAY / 2),
        (TEN_YEARS, DAY),
        (TEN_YEARS, DAY * 59),
    ] {
        let house = House::new();
        let handle = house.start(&names(3)).await;
        house
            .until("issued", |all| all.iter().all(|s| s.is_ready()))
            .await;
        let first = house.board.all().iter().map(|s| s.next_at).min().unwrap();
        house.clock.set(first - before);
        house.settle(&handle, house.board.all().len()).await;
        set_by(&house, seconds(ahead));
        house.settle(&handle, house.board.all().len()).await;
        // Also when it is started so, and time goes on.
        handle.stop().await;
        let handle = house.start(&names(3)).await;
        for _ in 0..10 {
            house.clock.advance(before / 20);
            house.settle(&handle, house.board.all().len()).await;
        }
        assert_eq!(house.orders(), 3, "{ahead:?} ahead");
        // Its time comes by the CA's clock.
        house.clock.advance(before);
        house.settle(&handle, house.board.all().len()).await;
        house.clock.advance(HOUR * 3);
        house.settle(&handle, house.board.all().len()).await;
        assert!(house.orders() > 3, "{ahead:?} ahead");
        assert!(house.orders() <= 6, "{ahead:?} ahead");
    }
}

#[tokio::test]
async fn a_clock_that_is_behind_lets_nothing_grow_old() {
    for behind in [HOUR, DAY, TEN_YEARS] {
        let house = House::new();
        let handle = house.start(&names(1)).await;
        house.until("issued", |all| all[0].is_ready()).await;
        let due = house.board.all()[0].next_at;
        house.clock.set(due - DAY * 2);
        house.settle(&handle, house.board.all().len()).await;
        set_by(&house, -seconds(behind));
        house.settle(&handle, house.board.all().len()).await;
        assert_eq!(house.orders(), 1, "{behind:?} behind");
        for _ in 0..50 {
            house.clock.advance(HOUR);
            house.settle(&handle, house.board.all().len()).await;
        }
        assert_eq!(house.orders(), 2, "{behind:?} behind");
        let lineage = Lineage::parse("n0.example.com").unwrap();
        let stored = house
            .services
            .store
            .load(&lineage)
            .await
            .unwrap()
            .unwrap()
            .0;
        assert_eq!(stored.issued.unwrap().generation, Generation(2));
    }
}

#[tokio::test]
async fn after_a_suspend_what_is_due_is_renewed_once() {
    let house = House::new();
    let handle = house.start(&names(4)).await;
    house
        .until("issued", |all| all.iter().all(|s| s.is_ready()))
        .await;
    // Both clocks went on meanwhile.
    house.clock.set(START + DAY * 70);
    for _ in 0..30 {
        house.settle(&handle, house.board.all().len()).await;
        house.clock.advance(HOUR);
    }
    house.settle(&handle, house.board.all().len()).await;
    assert_eq!(house.orders(), 8);
}

#[tokio::test]
async fn a_ca_whose_clock_is_wrong_makes_nobody_order() {
    for wrong in [DAY * 2, TEN_YEARS] {
        let house = House::new();
        let handle = house.start(&names(1)).await;
        house.until("issued", |all| all[0].is_ready()).await;
        *house.signer.ahead.lock().unwrap() = -seconds(wrong);
        for _ in 0..48 {
            house.clock.advance(HOUR);
            house.settle(&handle, house.board.all().len()).await;
        }
        assert_eq!(house.orders(), 1, "{wrong:?}");
    }
}

#[tokio::test]
async fn what_a_ca_counts_is_dated_by_its_own_clock() {
    const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
    let house = House::new();
    set_by(&house, seconds(DAY));
    let (mut supervisor, _handle) = Supervisor::new(house.services.clone(), house.board.clone());
    let mut certificate = house.certificate("n0.example.com");
    certificate.wanted.ca = LETS_ENCRYPT.into();
    supervisor.keep(vec![certificate]).await.unwrap();
    tokio::spawn(supervisor.run());
    house
        .until("issued", |all| all[0].generation_issued.is_some())
        .await;
    let known = house.services.store.ca_state(LETS_ENCRYPT).await.unwrap().0;
    let limit = crate::ca_state::Limit::CertificatesPerDomain;
    // One of fifty comes back within the week's fiftieth part.
    let back = known.spent[&limit]["example.com"].since(house.signer.there());
    assert!(!back.is_zero() && back < HOUR * 4, "{back:?}");
}

#[tokio::test]
async fn what_a_fleet_shares_is_dated_by_one_clock_and_waited_for_by_ours() {
    for wrong in [seconds(DAY), -seconds(DAY), seconds(TEN_YEARS)] {
        let house = House::new();
        set_by(&house, wrong);
        let refusals = &house.signer.refusals;
        refusals.lock().unwrap().insert("n0.example.com".into(), 1);
        let handle = house.start(&names(1)).await;
        house
            .until("refused", |all| all[0].last_error.is_some())
            .await;
        let lineage = house.certificate("n0.example.com").wanted.lineage;
        let (record, _) = house.services.store.load(&lineage).await.unwrap().unwrap();
        let again = record.failures.retry_at.unwrap();
        let pause = again.since(house.signer.there());
        assert!(!pause.is_zero() && pause < HOUR, "{wrong}: {pause:?}");
        // The minute passes by our clock as well.
        house.clock.advance(HOUR);
        house.settle(&handle, 1).await;
        house.until("issued", |all| all[0].is_ready()).await;
        let (record, _) = house.services.store.load(&lineage).await.unwrap().unwrap();
        let stored = record.issued.unwrap().at;
        let there = house.signer.there();
        assert!(there.since(stored).max(stored.since(there)) <= HOUR);
    }
}
