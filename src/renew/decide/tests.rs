//! Decisions over whole lifetimes, and that any record has an answer.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::certificate::Facts;
use crate::fingerprint::Fingerprint;
use crate::lineage::Lineage;
use crate::random::SeededRandom;
use crate::record::{Generation, Served, Window};
use crate::renew::window::{Moment, accept, latest, redraw};

const START: Timestamp = Timestamp::from_seconds(1_800_000_000);
const AT_START: Moment = Moment {
    now: START,
    spread: Duration::from_secs(300),
};
const HOUR: u64 = 3600;
const DAY: u64 = 86_400;

fn names() -> BTreeSet<Identifier> {
    BTreeSet::from([Identifier::parse("example.com").unwrap()])
}

fn facts(not_before: Timestamp, life: u64) -> Facts {
    Facts {
        identifiers: names(),
        not_before,
        not_after: not_before + Duration::from_secs(life.saturating_sub(1)),
        fingerprint: Fingerprint::of(b""),
        renewal_id: Some("a.b".into()),
    }
}

fn record(life: u64) -> Record {
    let identifier = Identifier::parse("example.com").unwrap();
    let mut record = Record::new(Lineage::of(&identifier), names(), "https://ca".into());
    issue(&mut record, START, life);
    record
}

fn issue(record: &mut Record, at: Timestamp, life: u64) {
    let generation = record
        .issued
        .as_ref()
        .map_or(Generation(0), |i| i.generation)
        .next();
    record.issued = Some(Issued {
        generation,
        facts: facts(at, life),
        ca: record.ca.clone(),
        at,
        renewal: None,
        renewable_from: None,
        early: 0,
        deploy_at: None,
        instead_of: None,
        terms: None,
    });
}

#[test]
fn each_lifetime_sees_one_renewal_at_the_right_share() {
    for (life, share) in [(90 * DAY, 66.6), (45 * DAY, 66.6), (160 * HOUR, 50.0)] {
        let (mut record, random, mut now) = (record(life), SeededRandom::new(life), START);
        let mut renewals = 0;
        while renewals < 5 {
            match next(&record, now, &random) {
                Next::Wait(until) => now = until,
                Next::Draw(renewal) => record.issued.as_mut().unwrap().renewal = Some(renewal),
                Next::Issue(Plan {
                    replaces, urgent, ..
                }) => {
                    let begun = record.issued.as_ref().unwrap().facts.not_before;
                    let spent = now.since(begun).as_secs_f64()
                        / Duration::from_secs(life).as_secs_f64()
                        * 100.0;
                    assert!(
                        (spent - share).abs() < 1.1,
                        "{life}: renewed after {spent} %"
                    );
                    assert_eq!((replaces.as_deref(), urgent), (Some("a.b"), false));
                    issue(&mut record, now, life);
                    renewals += 1;
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn certificate_of_160_hours_is_renewed_inside_its_window() {
    let random = SeededRandom::new(1);
    for round in 0..200 {
        let mut record = record(160 * HOUR);
        let facts = record.issued.as_ref().unwrap().facts.clone();
        let start = START + Duration::from_secs(79 * HOUR);
        let window = accept(start, start + Duration::from_secs(11_520), &facts).unwrap();
        let renewal = redraw(None, Some(window.clone()), None, &facts, AT_START, &random);
        record.issued.as_mut().unwrap().renewal = Some(renewal);
        let Next::Wait(until) = next(&record, START, &random) else {
            panic!("{round}")
        };
        assert!((window.start..window.end).contains(&until), "{round}");
        assert!(matches!(
            next(&record, until, &random),
            Next::Issue(Plan { urgent: false, .. })
        ));
    }
}

#[test]
fn stored_instant_survives_a_refresh_and_an_unreachable_ca() {
    let (facts, random) = (facts(START, 90 * DAY), SeededRandom::new(3));
    let at = |days: u64| START + Duration::from_secs(days * DAY);
    let window = accept(at(60), at(62), &facts);
    let first = redraw(None, window.clone(), Some(at(1)), &facts, AT_START, &random);
    for answer in [window, None] {
        let again = redraw(Some(&first), answer, Some(at(2)), &facts, AT_START, &random);
        assert_eq!((again.at, &again.window), (first.at, &first.window));
    }
    let moved = redraw(
        Some(&first),
        accept(at(10), at(11), &facts),
        None,
        &facts,
        AT_START,
        &random,
    );
    assert!((at(10)..at(11)).contains(&moved.at));
    assert_eq!(accept(at(2), at(1), &facts), None);
    assert_eq!(accept(at(1), at(91), &facts), None);
}

#[test]
fn past_window_means_soon_and_is_drawn_once() {
    let (facts, random) = (facts(START, 90 * DAY), SeededRandom::new(9));
    let past = accept(START - Duration::from_secs(DAY), START, &facts);
    let mut seen = BTreeSet::new();
    for _ in 0..50 {
        let drawn = redraw(None, past.clone(), None, &facts, AT_START, &random);
        assert!((START..START + AT_START.spread).contains(&drawn.at));
        let later = Moment {
            now: drawn.at,
            ..AT_START
        };
        let redrawn = redraw(Some(&drawn), past.clone(), None, &facts, later, &random);
        assert_eq!(redrawn.at, drawn.at);
        seen.insert(drawn.at);
    }
    assert!(seen.len() > 40, "they are not spread");
}

#[test]
fn past_window_is_urgent_and_expired_certificate_is_ordered_again() {
    let random = SeededRandom::new(4);
    let mut past = record(90 * DAY);
    let window = Window {
        start: START,
        end: START + Duration::from_secs(60),
    };
    past.issued.as_mut().unwrap().renewal = Some(Renewal {
        at: START,
        window: Some(window),
        refresh_at: None,
        asked: None,
    });
    let now = START + Duration::from_secs(DAY);
    assert!(matches!(
        next(&past, now, &random),
        Next::Issue(Plan { urgent: true, .. })
    ));
    let expired = record(90 * DAY);
    assert!(matches!(
        next(&expired, START + Duration::from_secs(91 * DAY), &random),
        Next::Issue { .. }
    ));
}

#[test]
fn deployment_ignores_the_backoff_of_orders() {
    let (mut record, random) = (record(90 * DAY), SeededRandom::new(5));
    record.failures.retry_at = Some(START + Duration::from_secs(DAY));
    record.served.insert(
        "h:443".into(),
        Served {
            generation: Generation(0),
            ..Served::none(START)
        },
    );
    assert_eq!(next(&record, START, &random), Next::Deploy);
    record.served.insert(
        "h:443".into(),
        Served {
            generation: Generation(1),
            ..Served::none(START)
        },
    );
    record.deployed.insert("nginx".into(), Generation(0));
    assert_eq!(next(&record, START, &random), Next::Deploy);
    record.deployed.insert("nginx".into(), Generation(1));
    assert!(matches!(next(&record, START, &random), Next::Draw(_)));
}

#[test]
fn window_requested_in_the_future_is_requested_again() {
    let (mut record, random) = (record(90 * DAY), SeededRandom::new(8));
    let hours = |hours| START + Duration::from_secs(hours * HOUR);
    let mut by_a_clock = |ahead| {
        record.issued.as_mut().unwrap().renewal = Some(Renewal {
            at: hours(60 * 24),
            window: None,
            refresh_at: Some(hours(ahead + 6)),
            asked: Some(hours(ahead)),
        });
        next(&record, START, &random)
    };
    assert_eq!(by_a_clock(0), Next::Wait(hours(6)));
    assert_eq!(by_a_clock(1), Next::RefreshWindow);
    assert_eq!(by_a_clock(18), Next::RefreshWindow);
}

#[test]
fn deployment_waits_for_its_window_and_its_own_backoff() {
    let (mut record, random) = (record(90 * DAY), SeededRandom::new(8));
    record.deployed.insert("nginx".into(), Generation(0));
    record.issued.as_mut().unwrap().renewal = Some(Renewal {
        at: START + Duration::from_secs(60 * DAY),
        window: None,
        refresh_at: None,
        asked: None,
    });
    let opens = START + Duration::from_secs(HOUR);
    record.issued.as_mut().unwrap().deploy_at = Some(opens);
    assert_eq!(next(&record, START, &random), Next::Wait(opens));
    assert_eq!(next(&record, opens, &random), Next::Deploy);
    let again = opens + Duration::from_secs(15);
    record.deployment_failures.retry_at = Some(again);
    assert_eq!(next(&record, opens, &random), Next::Wait(again));
    assert_eq!(next(&record, again, &random), Next::Deploy);
}

#[test]
fn window_that_is_always_past_causes_no_loop() {
    let (mut record, random) = (record(90 * DAY), SeededRandom::new(9));
    let issued = record.issued.as_mut().unwrap();
    issued.renewable_from = Some(START + Duration::from_secs(HOUR));
    issued.renewal = Some(Renewal {
        at: START,
        window: Some(Window {
            start: START - Duration::from_secs(DAY),
            end: START,
        }),
        refresh_at: None,
        asked: None,
    });
    let from = START + Duration::from_secs(HOUR);
    assert_eq!(next(&record, START, &random), Next::Wait(from));
    assert!(matches!(next(&record, from, &random), Next::Issue { .. }));
}

proptest! {
    #[test]
    fn every_record_has_an_answer_and_no_wait_is_too_long(
        begun in any::<i32>(), life in any::<u32>(), now in any::<i32>(), drawn in any::<i32>(),
        refresh in proptest::option::of(any::<i32>()), retry in proptest::option::of(any::<i32>()), has_renewal in any::<bool>(),
    ) {
        let seconds = |s: i32| Timestamp::from_seconds(s.into());
        let mut record = record(DAY);
        issue(&mut record, seconds(begun), life.into());
        record.failures.retry_at = retry.map(seconds);
        let renewal = Renewal { at: seconds(drawn), window: None, refresh_at: refresh.map(seconds), asked: None };
        record.issued.as_mut().unwrap().renewal = has_renewal.then_some(renewal);
        let (now, facts) = (seconds(now), record.issued.as_ref().unwrap().facts.clone());
        if let Next::Wait(until) = next(&record, now, &SeededRandom::new(0)) {
            prop_assert!(until > now);
            let longest = latest(&facts).max(retry.map_or(until, seconds));
            prop_assert!(until <= longest || retry.is_some());
            if retry.is_none() {
                prop_assert!(until <= latest(&facts));
            }
        }
    }
}

#[test]
fn renewal_proceeds_while_deployment_keeps_failing() {
    let (mut record, random) = (record(90 * DAY), SeededRandom::new(3));
    record.deployed.insert("nginx".into(), Generation(0));
    let Next::Deploy = next(&record, START, &random) else {
        panic!("a stored certificate is deployed first");
    };
    let issued = record.issued.as_mut().unwrap();
    let at = share_of_life(&issued.facts, &random);
    issued.renewal = Some(Renewal {
        at,
        window: None,
        refresh_at: None,
        asked: None,
    });
    record.deployment_failures.count = 1;
    record.deployment_failures.retry_at = Some(at + Duration::from_secs(HOUR));
    assert!(matches!(next(&record, at, &random), Next::Issue { .. }));
    // After its backoff the deployment comes first again: the CA may be down.
    record.deployment_failures.retry_at = Some(at);
    assert_eq!(next(&record, at, &random), Next::Deploy);
}

#[test]
fn delayed_until_reports_a_step_that_backs_off() {
    let later = START + Duration::from_secs(HOUR);
    let mut never = record(90 * DAY);
    never.issued = None;
    assert_eq!(
        delayed_until(&never, START),
        None,
        "it is due, and nothing delays it"
    );
    never.failures.retry_at = Some(later);
    let issuance = Some(Delayed::Issuance(later));
    assert_eq!(delayed_until(&never, START), issuance);

    let mut fresh = record(90 * DAY);
    fresh.failures.retry_at = Some(later);
    assert_eq!(delayed_until(&fresh, START), None, "no order is needed");
    fresh
        .identifiers
        .insert(Identifier::parse("www.example.com").unwrap());
    assert_eq!(delayed_until(&fresh, START), issuance);

    let mut unverified = record(90 * DAY);
    unverified.deployed.insert("nginx".into(), Generation(0));
    unverified.issued.as_mut().unwrap().deploy_at = Some(later);
    assert_eq!(
        delayed_until(&unverified, START),
        None,
        "the deployment window is not a failure"
    );
    unverified.deployment_failures.retry_at = Some(later);
    let deployment = Some(Delayed::Deployment(later));
    assert_eq!(delayed_until(&unverified, START), deployment);
    unverified.deployed.clear();
    assert_eq!(delayed_until(&unverified, START), None);
}

#[test]
fn replaced_certificate_is_revoked_once_its_successor_is_verified() {
    use crate::record::{Failures, Revocation, RevocationReason};
    let random = SeededRandom::new(1);
    let mut record = record(90 * DAY);
    record.issued.as_mut().unwrap().renewal = Some(Renewal {
        at: START + Duration::from_secs(60 * DAY),
        window: None,
        refresh_at: None,
        asked: None,
    });
    record.served.insert("a:443".into(), Served::none(START));
    let set_served = |record: &mut Record, generation| {
        record.served.get_mut("a:443").unwrap().generation = Generation(generation);
    };
    set_served(&mut record, 1);
    assert!(matches!(next(&record, START, &random), Next::Wait(_)));
    record.revocation = Some(Revocation {
        reason: RevocationReason::KeyCompromise,
        generation: Generation(1),
        ca: "https://ca".into(),
        certificates: std::collections::BTreeMap::default(),
        at_once: false,
        failures: Failures::default(),
    });
    // First a replacement, which may spend the reserve.
    let Next::Issue(plan) = next(&record, START, &random) else {
        panic!("no replacement is ordered");
    };
    assert!(plan.urgent);
    // Nothing is revoked while its order backs off.
    let retry_at = START + Duration::from_secs(60);
    record.failures.retry_at = Some(retry_at);
    assert_eq!(next(&record, START, &random), Next::Wait(retry_at));
    record.failures.retry_at = None;
    let renewal = record.issued.as_ref().unwrap().renewal.clone();
    issue(&mut record, START, 90 * DAY);
    record.issued.as_mut().unwrap().renewal = renewal;
    assert_eq!(next(&record, START, &random), Next::Deploy);
    set_served(&mut record, 2);
    assert_eq!(next(&record, START, &random), Next::Revoke);
    // A failure is retried later, and nothing else is held up.
    let pause = START + Duration::from_secs(HOUR);
    let pending = record.revocation.as_mut().unwrap();
    pending.failures.retry_at = Some(pause);
    assert_eq!(next(&record, START, &random), Next::Wait(pause));
    assert_eq!(next(&record, pause, &random), Next::Revoke);
    // At once means before any other step.
    let pending = record.revocation.as_mut().unwrap();
    (pending.at_once, pending.generation) = (true, Generation(2));
    assert_eq!(next(&record, pause, &random), Next::Revoke);
    record.note_revoked(Generation(2), pause);
    record.revocation = None;
    let Next::Issue(plan) = next(&record, pause, &random) else {
        panic!("a revoked certificate is not replaced");
    };
    assert!(plan.urgent);
}
