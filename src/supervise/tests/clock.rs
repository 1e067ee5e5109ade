//! A wall clock that is set beside a monotonic clock: one time probe goes to the CA, and an
//! unreachable CA gets no more probes than during any outage.

use super::fallback::{FOREVER, TwoCas};
use super::*;
use crate::time::fake::SetClock;

const MINUTE: Duration = Duration::from_secs(60);

/// Gives the machine a clock that can be set.
fn watched(fixture: &mut Fixture) -> Arc<SetClock> {
    let clock = Arc::new(SetClock::new(fixture.clock.clone()));
    fixture.services.clock = clock.clone();
    clock
}

#[tokio::test]
async fn clock_jump_probes_the_ca_once() {
    let mut fixture = Fixture::new();
    let clock = watched(&mut fixture);
    let handle = fixture.start(&names(3)).await;
    let ready = |all: &[Status]| all.iter().all(Status::is_ready);
    fixture.until("issued", ready).await;
    let probes = || fixture.signer.probes.load(Ordering::SeqCst);
    let (before, orders) = (probes(), fixture.orders());
    let mut asked = 0;
    let hour = 3600;
    // Small steps add up.
    for (seconds, asks) in [
        (240, 0),
        (-240, 0),
        (0, 0),
        (360, 1),
        (-360, 1),
        (200, 0),
        (200, 1),
        (24 * hour, 1),
        (-24 * hour - 400, 1),
    ] {
        clock.by(seconds);
        for _ in 0..5 {
            fixture.clock.advance(MINUTE);
            fixture.settle(&handle, 3).await;
        }
        asked += asks;
        assert_eq!(probes(), before + asked, "{seconds} s");
    }
    assert_eq!(fixture.orders(), orders);
}

/// Waits until the loop sleeps and no probe is in progress. A command would cause another
/// iteration.
async fn sleeps(fixture: &Fixture) {
    let mut quiet = 0;
    for _ in 0..1_000_000 {
        if quiet == 5 {
            return;
        }
        let idle = fixture.clock.has_sleeper() && Arc::strong_count(&fixture.signer) == 2;
        quiet = if idle { quiet + 1 } else { 0 };
        tokio::task::yield_now().await;
    }
    panic!("the loop does not sleep: {:#?}", fixture.board.all());
}

#[tokio::test]
async fn clock_set_back_between_two_readings_is_detected_within_two_minutes() {
    let mut fixture = Fixture::new();
    let clock = watched(&mut fixture);
    let handle = fixture.start(&names(1)).await;
    fixture.until("issued", |all| all[0].is_ready()).await;
    let probes = || fixture.signer.probes.load(Ordering::SeqCst);
    let (before, orders) = (probes(), fixture.orders());
    let year = 365 * 86_400;
    let mut asked = 0;
    // One iteration of the loop reads the clock a few times.
    for readings in 0..12 {
        for seconds in [-year, year] {
            clock.by_after(seconds, readings);
            let mut minutes = 0;
            while minutes < 2 {
                minutes += usize::from(!clock.is_pending());
                fixture.clock.advance(MINUTE);
                sleeps(&fixture).await;
            }
            asked += 1;
            assert_eq!(probes(), before + asked, "{seconds} s after {readings}");
        }
    }
    assert_eq!(fixture.orders(), orders);
    drop(handle);
}

#[tokio::test]
async fn start_probes_a_ca_without_reply_once() {
    let mut fixture = Fixture::new();
    watched(&mut fixture);
    let handle = fixture.start(&names(3)).await;
    let ready = |all: &[Status]| all.iter().all(Status::is_ready);
    fixture.until("issued", ready).await;
    handle.stop().await;
    let (begun, orders) = (
        fixture.signer.probes.load(Ordering::SeqCst),
        fixture.orders(),
    );
    let probes = || fixture.signer.probes.load(Ordering::SeqCst) - begun;
    for (undated, down, asked) in [(false, 0, 0), (true, 0, 1), (true, 2, 3)] {
        let before = probes();
        fixture.signer.undated.store(undated, Ordering::SeqCst);
        let silent = &fixture.signer.failed_probes;
        silent.store(begun + before + down, Ordering::SeqCst);
        let handle = fixture.start(&names(3)).await;
        fixture.settle(&handle, 3).await;
        fixture.clock.advance(Duration::from_millis(4900));
        fixture.settle(&handle, 3).await;
        assert_eq!(probes(), before, "due steps contact the CA first");
        fixture.clock.advance(Duration::from_millis(100));
        fixture.settle(&handle, 3).await;
        assert_eq!(probes(), before + asked.min(1));
        for _ in 0..30 {
            fixture.clock.advance(MINUTE);
            fixture.settle(&handle, 3).await;
        }
        assert_eq!(probes(), before + asked, "{undated}, {down}");
        handle.stop().await;
    }
    assert_eq!(fixture.orders(), orders);
}

#[tokio::test]
async fn start_probes_no_fallback_ca_and_one_reply_serves_all_clients() {
    let mut two = TwoCas::new();
    watched(&mut two.fixture);
    two.fallback.undated.store(true, Ordering::SeqCst);
    let handle = two.start(&names(1)).await;
    two.fixture.until("issued", |all| all[0].is_ready()).await;
    two.pass(&handle, 10).await;
    assert_eq!(two.fallback.probes.load(Ordering::SeqCst), 0);
    // Another client of the first CA has had no reply of its own.
    let mut other = two.fixture.certificate("other.example.com");
    other.issuer = two.fallback.clone();
    handle.stop().await;
    let services = two.fixture.services.clone();
    let (mut supervisor, handle) = Supervisor::new(services, two.fixture.board.clone());
    let managed = vec![two.certificate(&names(1)[0]), other];
    supervisor.keep(managed).await.unwrap();
    tokio::spawn(supervisor.run());
    two.fixture
        .until("issued", |all| all.iter().all(Status::is_ready))
        .await;
    two.pass(&handle, 10).await;
    assert_eq!(two.fallback.probes.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn time_probe_of_unreachable_ca_repeats_until_it_replies() {
    let mut fixture = Fixture::new();
    let clock = watched(&mut fixture);
    let handle = fixture.start(&names(3)).await;
    let ready = |all: &[Status]| all.iter().all(Status::is_ready);
    fixture.until("issued", ready).await;
    let (begun, orders) = (
        fixture.signer.probes.load(Ordering::SeqCst),
        fixture.orders(),
    );
    let probes = || fixture.signer.probes.load(Ordering::SeqCst) - begun;
    fixture
        .signer
        .failed_probes
        .store(begun + 4, Ordering::SeqCst);
    clock.by(3600);
    for minute in 1..=30 {
        fixture.clock.advance(MINUTE);
        fixture.settle(&handle, 3).await;
        assert!(probes() <= minute, "{} in {minute} minutes", probes());
    }
    // Four failed probes, and none after the first success.
    assert_eq!(probes(), 5);
    assert_eq!(fixture.orders(), orders);
}

#[tokio::test]
async fn time_probe_accepts_a_refusal_as_reply() {
    let mut fixture = Fixture::new();
    let clock = watched(&mut fixture);
    let handle = fixture.start(&names(3)).await;
    let ready = |all: &[Status]| all.iter().all(Status::is_ready);
    fixture.until("issued", ready).await;
    let before = fixture.signer.probes.load(Ordering::SeqCst);
    fixture.signer.limits_probes.store(true, Ordering::SeqCst);
    clock.by(3600);
    for _ in 0..30 {
        fixture.clock.advance(MINUTE);
        fixture.settle(&handle, 3).await;
    }
    assert_eq!(fixture.signer.probes.load(Ordering::SeqCst), before + 1);
}

#[tokio::test]
async fn clock_jump_probes_the_fallback_ca_separately() {
    let mut two = TwoCas::new();
    let clock = watched(&mut two.fixture);
    let handle = two.start(&names(3)).await;
    let ready = |all: &[Status]| all.iter().all(Status::is_ready);
    two.fixture.until("issued", ready).await;
    let signers = [&two.fixture.signer, &two.fallback];
    let probes = || signers.map(|signer| signer.probes.load(Ordering::SeqCst));
    let (before, orders) = (probes(), two.fixture.orders());
    clock.by(3600);
    two.pass(&handle, 5).await;
    assert_eq!(probes(), before.map(|probes| probes + 1));
    // While one CA is down, the other has replied and gets no further probe.
    for (down, there) in [(0, 1), (1, 0)] {
        let before = probes();
        let silent = &signers[down].failed_probes;
        silent.store(FOREVER, Ordering::SeqCst);
        clock.by(3600);
        two.pass(&handle, 5).await;
        assert_eq!(probes()[there], before[there] + 1);
        let failed = probes()[down];
        assert!(failed > before[down], "the CA that is down got no probe");
        silent.store(0, Ordering::SeqCst);
        two.pass(&handle, 10).await;
        let answered = probes();
        assert!(answered[down] > failed, "it got no further probe");
        two.pass(&handle, 10).await;
        assert_eq!(probes(), answered);
    }
    assert_eq!(two.fixture.orders(), orders);
    assert_eq!(two.fallback.orders.load(Ordering::SeqCst), 0);
}
