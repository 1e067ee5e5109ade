//! A clock that is set beside one that nobody sets: the CA is asked for the time, by one
//! question, and a CA that is down by no more than it is asked anyhow.

use super::fallback::{FOR_EVER, Two};
use super::*;
use crate::time::set::SetClock;

const MINUTE: Duration = Duration::from_secs(60);

/// From now on the machine's clock is one that can be set.
fn watched(house: &mut House) -> Arc<SetClock> {
    let clock = Arc::new(SetClock::new(house.clock.clone()));
    house.services.clock = clock.clone();
    clock
}

#[tokio::test]
async fn a_clock_that_jumps_by_what_is_an_alarm_makes_the_ca_be_asked_once() {
    let mut house = House::new();
    let clock = watched(&mut house);
    let handle = house.start(&names(3)).await;
    let ready = |all: &[Status]| all.iter().all(Status::is_ready);
    house.until("issued", ready).await;
    let probes = || house.signer.probes.load(Ordering::SeqCst);
    let (before, orders) = (probes(), house.orders());
    let mut asked = 0;
    let hour = 3600;
    // Little by little is as much.
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
            house.clock.advance(MINUTE);
            house.settle(&handle, 3).await;
        }
        asked += asks;
        assert_eq!(probes(), before + asked, "{seconds} s");
    }
    assert_eq!(house.orders(), orders);
}

#[tokio::test]
async fn a_clock_that_is_set_back_between_two_readings_is_seen_within_two_minutes_too() {
    let mut house = House::new();
    let clock = watched(&mut house);
    let handle = house.start(&names(1)).await;
    house.until("issued", |all| all[0].is_ready()).await;
    let probes = || house.signer.probes.load(Ordering::SeqCst);
    let (before, orders) = (probes(), house.orders());
    let year = 365 * 86_400;
    let mut asked = 0;
    // A look reads it a few times.
    for readings in 0..12 {
        for seconds in [-year, year] {
            clock.by_after(seconds, readings);
            for _ in 0..3 {
                house.clock.advance(MINUTE);
                // A word to it would be another look.
                for _ in 0..2_000 {
                    tokio::task::yield_now().await;
                }
            }
            asked += 1;
            assert_eq!(probes(), before + asked, "{seconds} s after {readings}");
        }
    }
    assert_eq!(house.orders(), orders);
    drop(handle);
}

#[tokio::test]
async fn after_a_start_a_ca_that_was_not_heard_of_is_asked_once() {
    let mut house = House::new();
    watched(&mut house);
    let handle = house.start(&names(3)).await;
    let ready = |all: &[Status]| all.iter().all(Status::is_ready);
    house.until("issued", ready).await;
    handle.stop().await;
    let (begun, orders) = (house.signer.probes.load(Ordering::SeqCst), house.orders());
    let probes = || house.signer.probes.load(Ordering::SeqCst) - begun;
    for (unheard, down, asked) in [(false, 0, 0), (true, 0, 1), (true, 2, 3)] {
        let before = probes();
        house.signer.unheard.store(unheard, Ordering::SeqCst);
        let silent = &house.signer.silent_probes;
        silent.store(begun + before + down, Ordering::SeqCst);
        let handle = house.start(&names(3)).await;
        house.settle(&handle, 3).await;
        house.clock.advance(Duration::from_millis(4900));
        house.settle(&handle, 3).await;
        assert_eq!(probes(), before, "what is to be done asks first");
        house.clock.advance(Duration::from_millis(100));
        house.settle(&handle, 3).await;
        assert_eq!(probes(), before + asked.min(1));
        for _ in 0..30 {
            house.clock.advance(MINUTE);
            house.settle(&handle, 3).await;
        }
        assert_eq!(probes(), before + asked, "{unheard}, {down}");
        handle.stop().await;
    }
    assert_eq!(house.orders(), orders);
}

#[tokio::test]
async fn after_a_start_who_stands_in_is_left_alone_and_one_client_has_heard_for_all() {
    let mut two = Two::new();
    watched(&mut two.house);
    two.second.unheard.store(true, Ordering::SeqCst);
    let handle = two.start(&names(1)).await;
    two.house.until("issued", |all| all[0].is_ready()).await;
    two.pass(&handle, 10).await;
    assert_eq!(two.second.probes.load(Ordering::SeqCst), 0);
    // Another client of the first has not heard it itself.
    let other = Certificate {
        issuer: two.second.clone(),
        ..two.house.certificate("other.example.com")
    };
    handle.stop().await;
    let services = two.house.services.clone();
    let (mut supervisor, handle) = Supervisor::new(services, two.house.board.clone());
    let kept = vec![two.certificate(&names(1)[0]), other];
    supervisor.keep(kept).await.unwrap();
    tokio::spawn(supervisor.run());
    two.house
        .until("issued", |all| all.iter().all(Status::is_ready))
        .await;
    two.pass(&handle, 10).await;
    assert_eq!(two.second.probes.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_ca_that_is_down_is_asked_for_the_time_by_one_for_all_until_it_answers() {
    let mut house = House::new();
    let clock = watched(&mut house);
    let handle = house.start(&names(3)).await;
    let ready = |all: &[Status]| all.iter().all(Status::is_ready);
    house.until("issued", ready).await;
    let (begun, orders) = (house.signer.probes.load(Ordering::SeqCst), house.orders());
    let probes = || house.signer.probes.load(Ordering::SeqCst) - begun;
    house
        .signer
        .silent_probes
        .store(begun + 4, Ordering::SeqCst);
    clock.by(3600);
    for minute in 1..=30 {
        house.clock.advance(MINUTE);
        house.settle(&handle, 3).await;
        assert!(probes() <= minute, "{} in {minute} minutes", probes());
    }
    // Four in vain, and no more after the one that was not.
    assert_eq!(probes(), 5);
    assert_eq!(house.orders(), orders);
}

#[tokio::test]
async fn a_refusal_is_dated_too_and_nobody_asks_again() {
    let mut house = House::new();
    let clock = watched(&mut house);
    let handle = house.start(&names(3)).await;
    let ready = |all: &[Status]| all.iter().all(Status::is_ready);
    house.until("issued", ready).await;
    let before = house.signer.probes.load(Ordering::SeqCst);
    house.signer.limits_probes.store(true, Ordering::SeqCst);
    clock.by(3600);
    for _ in 0..30 {
        house.clock.advance(MINUTE);
        house.settle(&handle, 3).await;
    }
    assert_eq!(house.signer.probes.load(Ordering::SeqCst), before + 1);
}

#[tokio::test]
async fn who_stands_in_is_asked_for_the_time_too_and_answers_for_itself_alone() {
    let mut two = Two::new();
    let clock = watched(&mut two.house);
    let handle = two.start(&names(3)).await;
    let ready = |all: &[Status]| all.iter().all(Status::is_ready);
    two.house.until("issued", ready).await;
    let signers = [&two.house.signer, &two.second];
    let probes = || signers.map(|signer| signer.probes.load(Ordering::SeqCst));
    let (before, orders) = (probes(), two.house.orders());
    clock.by(3600);
    two.pass(&handle, 5).await;
    assert_eq!(probes(), before.map(|probes| probes + 1));
    // One of them is down: the other has answered, and is left alone.
    for (down, there) in [(0, 1), (1, 0)] {
        let before = probes();
        let silent = &signers[down].silent_probes;
        silent.store(FOR_EVER, Ordering::SeqCst);
        clock.by(3600);
        two.pass(&handle, 5).await;
        assert_eq!(probes()[there], before[there] + 1);
        let in_vain = probes()[down];
        assert!(in_vain > before[down], "the one that is down was not asked");
        silent.store(0, Ordering::SeqCst);
        two.pass(&handle, 10).await;
        let answered = probes();
        assert!(answered[down] > in_vain, "it was not asked again");
        two.pass(&handle, 10).await;
        assert_eq!(probes(), answered);
    }
    assert_eq!(two.house.orders(), orders);
    assert_eq!(two.second.orders.load(Ordering::SeqCst), 0);
}
