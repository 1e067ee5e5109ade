//! A clock that is wrong by an hour, a day or ten years, in either direction, causes no
//! order and lets no certificate expire.

use super::fallback::TwoCas;
use super::*;

const HOUR: Duration = Duration::from_secs(3600);
const TEN_YEARS: Duration = Duration::from_secs(3652 * 86_400);

/// Sets this machine's clock by `seconds`, and not the CA's.
fn set_by(fixture: &Fixture, seconds: i64) {
    let now = fixture.clock.now().seconds();
    fixture.clock.set(Timestamp::from_seconds(now + seconds));
    *fixture.signer.ahead.lock().unwrap() += seconds;
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap()
}

#[tokio::test]
async fn clock_ahead_orders_nothing_early() {
    for (ahead, before) in [
        (HOUR, HOUR / 2),
        (DAY, DAY / 2),
        (TEN_YEARS, DAY),
        (TEN_YEARS, DAY * 59),
    ] {
        let fixture = Fixture::new();
        let handle = fixture.start(&names(3)).await;
        fixture
            .until("issued", |all| all.iter().all(|s| s.is_ready()))
            .await;
        let first = fixture.board.all().iter().map(|s| s.next_at).min().unwrap();
        fixture.clock.set(first - before);
        fixture.settle(&handle, fixture.board.all().len()).await;
        set_by(&fixture, seconds(ahead));
        fixture.settle(&handle, fixture.board.all().len()).await;
        // Also after a start with the wrong clock.
        handle.stop().await;
        let handle = fixture.start(&names(3)).await;
        for _ in 0..10 {
            fixture.clock.advance(before / 20);
            fixture.settle(&handle, fixture.board.all().len()).await;
        }
        assert_eq!(fixture.orders(), 3, "{ahead:?} ahead");
        // The renewal is due by the CA's clock.
        fixture.clock.advance(before);
        fixture.settle(&handle, fixture.board.all().len()).await;
        fixture.clock.advance(HOUR * 3);
        fixture.settle(&handle, fixture.board.all().len()).await;
        assert!(fixture.orders() > 3, "{ahead:?} ahead");
        assert!(fixture.orders() <= 6, "{ahead:?} ahead");
    }
}

#[tokio::test]
async fn clock_behind_lets_nothing_expire() {
    for behind in [HOUR, DAY, TEN_YEARS] {
        let fixture = Fixture::new();
        let handle = fixture.start(&names(1)).await;
        fixture.until("issued", |all| all[0].is_ready()).await;
        let due = fixture.board.all()[0].next_at;
        fixture.clock.set(due - DAY * 2);
        fixture.settle(&handle, fixture.board.all().len()).await;
        set_by(&fixture, -seconds(behind));
        fixture.settle(&handle, fixture.board.all().len()).await;
        assert_eq!(fixture.orders(), 1, "{behind:?} behind");
        for _ in 0..50 {
            fixture.clock.advance(HOUR);
            fixture.settle(&handle, fixture.board.all().len()).await;
        }
        assert_eq!(fixture.orders(), 2, "{behind:?} behind");
        let lineage = Lineage::parse("n0.example.com").unwrap();
        let stored = fixture
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
async fn suspend_renews_each_due_certificate_once() {
    let fixture = Fixture::new();
    let handle = fixture.start(&names(4)).await;
    fixture
        .until("issued", |all| all.iter().all(|s| s.is_ready()))
        .await;
    // Both clocks advanced during the suspend.
    fixture.clock.set(START + DAY * 70);
    for _ in 0..30 {
        fixture.settle(&handle, fixture.board.all().len()).await;
        fixture.clock.advance(HOUR);
    }
    fixture.settle(&handle, fixture.board.all().len()).await;
    assert_eq!(fixture.orders(), 8);
}

#[tokio::test]
async fn wrong_clock_of_ca_causes_no_order() {
    for wrong in [DAY * 2, TEN_YEARS] {
        let fixture = Fixture::new();
        let handle = fixture.start(&names(1)).await;
        fixture.until("issued", |all| all[0].is_ready()).await;
        *fixture.signer.ahead.lock().unwrap() = -seconds(wrong);
        for _ in 0..48 {
            fixture.clock.advance(HOUR);
            fixture.settle(&handle, fixture.board.all().len()).await;
        }
        assert_eq!(fixture.orders(), 1, "{wrong:?}");
    }
}

#[tokio::test]
async fn rate_limits_are_dated_by_the_clock_of_the_ca() {
    const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
    let fixture = Fixture::new();
    set_by(&fixture, seconds(DAY));
    let (mut supervisor, _handle) =
        Supervisor::new(fixture.services.clone(), fixture.board.clone());
    let mut certificate = fixture.certificate("n0.example.com");
    certificate.wanted.ca = LETS_ENCRYPT.into();
    supervisor.keep(vec![certificate]).await.unwrap();
    tokio::spawn(supervisor.run());
    fixture
        .until("issued", |all| all[0].generation_issued.is_some())
        .await;
    let known = fixture
        .services
        .store
        .ca_state(LETS_ENCRYPT)
        .await
        .unwrap()
        .0;
    let limit = crate::ca_state::Limit::CertificatesPerDomain;
    // One of fifty tokens returns within a fiftieth of a week.
    let back = known.spent[&limit]["example.com"].since(fixture.signer.there());
    assert!(!back.is_zero() && back < HOUR * 4, "{back:?}");
}

#[tokio::test]
async fn shared_state_is_dated_by_the_ca_and_waited_for_by_our_clock() {
    for wrong in [seconds(DAY), -seconds(DAY), seconds(TEN_YEARS)] {
        let fixture = Fixture::new();
        set_by(&fixture, wrong);
        let refusals = &fixture.signer.refusals;
        refusals.lock().unwrap().insert("n0.example.com".into(), 1);
        let handle = fixture.start(&names(1)).await;
        fixture
            .until("refused", |all| all[0].last_error.is_some())
            .await;
        let lineage = fixture.certificate("n0.example.com").wanted.lineage;
        let (record, _) = fixture
            .services
            .store
            .load(&lineage)
            .await
            .unwrap()
            .unwrap();
        let again = record.failures.retry_at.unwrap();
        let pause = again.since(fixture.signer.there());
        assert!(!pause.is_zero() && pause < HOUR, "{wrong}: {pause:?}");
        // The pause is the same by our clock.
        fixture.clock.advance(HOUR);
        fixture.settle(&handle, 1).await;
        fixture.until("issued", |all| all[0].is_ready()).await;
        let (record, _) = fixture
            .services
            .store
            .load(&lineage)
            .await
            .unwrap()
            .unwrap();
        let stored = record.issued.unwrap().at;
        let there = fixture.signer.there();
        assert!(there.apart(stored) <= HOUR);
    }
}

#[tokio::test]
async fn order_due_by_our_clock_alone_fails_unless_the_skew_is_slight() {
    let minute = Duration::from_secs(60);
    for (ahead, before, slight) in [
        (HOUR * 20, HOUR * 10, false),
        (minute * 4, minute * 2, true),
    ] {
        let fixture = Fixture::new();
        let certificate = fixture.certificate("n0.example.com");
        let run = || pass(&fixture.services, &certificate, Trigger::Scheduled);
        let due = run().await.unwrap().renewal.unwrap();
        fixture.clock.set(due - before);
        set_by(&fixture, seconds(ahead));
        // As in a new process, the first reply comes after the decision.
        fixture.signer.undated.store(true, Ordering::SeqCst);
        match run().await {
            Ok(outcome) => {
                assert!(slight && !outcome.issued);
                let pause = outcome.next.since(fixture.signer.there());
                assert!(pause.abs_diff(before).as_secs() < 1, "{pause:?}");
            }
            Err(error) => {
                assert!(!slight && error.exit_code() == 2, "{error}");
                assert!(error.hint().contains("NTP"), "{}", error.hint());
                let text = error.to_string();
                assert!(text.contains("due by this machine's clock"), "{text}");
            }
        }
        assert_eq!(fixture.orders(), 1, "{ahead:?}");
    }
}

#[tokio::test]
async fn first_ca_decides_although_the_reply_of_its_fallback_is_newer() {
    // In the second case the last reply of the first CA is too old to correct our clock, but
    // the order goes to the first CA.
    for age in [Duration::from_secs(50), DAY + HOUR] {
        let two = TwoCas::new();
        let certificate = two.certificate("n0.example.com");
        let services = &two.fixture.services;
        let run = || pass(services, &certificate, Trigger::Scheduled);
        let due = run().await.unwrap().renewal.unwrap();
        two.fixture.clock.set(due - HOUR * 10);
        *two.fixture.signer.reply_age.lock().unwrap() = age;
        *two.fallback.ahead.lock().unwrap() = -seconds(HOUR * 20);
        let outcome = run().await.unwrap();
        assert!(!outcome.issued, "{age:?}");
        assert!(age > DAY || outcome.next <= due, "{}", outcome.next);
        assert_eq!(two.fixture.orders(), 1, "{age:?}");
        assert_eq!(two.fallback.orders.load(Ordering::SeqCst), 0);
    }
}
