//! A clock that is set beside one that nobody sets: the CA is asked for the time, by one
//! question, and a CA that is down by no more than it is asked anyhow.

use super::*;
use crate::time::set::SetClock;

const MINUTE: Duration = Duration::from_secs(60);

/// From now on the machine's clock is one that can be set.
fn watched(house: &mut House) -> Arc<SetClock> {
    let clock = Arc::new(SetClock::new(house.clock.clone()));
    house.parts.clock = clock.clone();
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
