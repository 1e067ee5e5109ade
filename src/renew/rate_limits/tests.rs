//! The arithmetic of the rate limits: reserves, refills and subjects.

use proptest::prelude::*;

use super::rules::HOUR;
use super::*;

const DAY: Duration = Duration::from_secs(86_400);
const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

fn names(texts: &[&str]) -> BTreeSet<Identifier> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn order(
    state: &mut CaState,
    texts: &[&str],
    counted: Counted,
    priority: Priority,
    now: Timestamp,
) -> Result<(), Refusal> {
    spend(state, LETS_ENCRYPT, &names(texts), counted, priority, now)
}

#[test]
fn routine_order_leaves_the_reserve_and_urgent_order_spends_it() {
    let mut state = CaState::default();
    let again = |state: &mut CaState, priority, now| {
        order(state, &["example.com"], Counted::Again, priority, now)
    };
    for _ in 0..3 {
        again(&mut state, Priority::Routine, NOW).unwrap();
    }
    let refusal = again(&mut state, Priority::Routine, NOW).unwrap_err();
    assert_eq!(refusal.limit, Limit::DuplicateCertificates);
    assert_eq!(refusal.subject, "example.com");
    let before = state.clone();
    assert!(
        again(
            &mut state,
            Priority::Routine,
            refusal.until - Duration::from_secs(1)
        )
        .is_err()
    );
    assert_eq!(state, before, "a refusal spends nothing");
    again(&mut state, Priority::Urgent, NOW).unwrap();
    assert!(again(&mut state, Priority::Urgent, NOW).is_err());
    again(&mut state, Priority::Forced, NOW).unwrap();
    let refusal = again(&mut state, Priority::Forced, NOW).unwrap_err();
    // Five in seven days: one token refills in a fifth of them.
    assert_eq!(refusal.until, NOW + DAY * 7 / 5);
    again(&mut state, Priority::Forced, refusal.until).unwrap();
}

#[test]
fn wrong_clock_leaves_no_bucket_empty_for_ever() {
    let mut state = CaState::default();
    let later = NOW + DAY * 365;
    for _ in 0..5 {
        order(
            &mut state,
            &["example.com"],
            Counted::Again,
            Priority::Forced,
            later,
        )
        .unwrap();
    }
    let refusal = order(
        &mut state,
        &["example.com"],
        Counted::Again,
        Priority::Forced,
        NOW,
    );
    let until = refusal.unwrap_err().until;
    assert!(until <= NOW + DAY * 7);
    let again = |state: &mut CaState, at| {
        order(
            state,
            &["example.com"],
            Counted::Again,
            Priority::Forced,
            at,
        )
    };
    assert!(again(&mut state, NOW + DAY).is_err());
    again(&mut state, until).unwrap();
}

#[test]
fn exempt_order_spends_nothing() {
    let mut state = CaState::default();
    for _ in 0..1000 {
        order(
            &mut state,
            &["example.com"],
            Counted::Exempt,
            Priority::Routine,
            NOW,
        )
        .unwrap();
    }
    assert_eq!(state, CaState::default());
}

#[test]
fn names_are_counted_by_registered_domain() {
    let counted = |text: &str| registered(&text.parse().unwrap());
    assert_eq!(counted("a.b.example.co.uk"), "example.co.uk");
    assert_eq!(counted("*.example.com"), "example.com");
    assert_eq!(counted("team.github.io"), "team.github.io");
    assert_eq!(counted("192.0.2.7"), "192.0.2.7");
    assert_eq!(counted("2001:db8:1:2:3::4"), "2001:db8:1:2::/64");
    let mut state = CaState::default();
    for n in 0..40 {
        let (one, other) = (format!("a{n}.example.com"), format!("b{n}.example.com"));
        order(
            &mut state,
            &[&one, &other],
            Counted::New,
            Priority::Routine,
            NOW,
        )
        .unwrap();
    }
    let refused = |texts: &[&str], state: &mut CaState| {
        order(state, texts, Counted::New, Priority::Routine, NOW)
            .unwrap_err()
            .subject
    };
    assert_eq!(
        refused(&["new.example.com", "example.org"], &mut state),
        "example.com"
    );
    order(
        &mut state,
        &["example.org"],
        Counted::New,
        Priority::Routine,
        NOW,
    )
    .unwrap();
}

#[test]
fn failed_order_refunds_its_certificate() {
    let mut state = CaState::default();
    let name = names(&["example.com"]);
    for _ in 0..200 {
        spend(
            &mut state,
            LETS_ENCRYPT,
            &name,
            Counted::New,
            Priority::Routine,
            NOW,
        )
        .unwrap();
        refund(&mut state, LETS_ENCRYPT, &name, Counted::New);
    }
    let left: Vec<u32> = left(&state, LETS_ENCRYPT, &name, NOW)
        .iter()
        .map(|left| left.tokens)
        .collect();
    assert_eq!(left, [100, 50, 5, 5, 1152]);
    for _ in 0..4 {
        failed(&mut state, LETS_ENCRYPT, &name, NOW);
    }
    let again = |state: &mut CaState, priority| {
        spend(state, LETS_ENCRYPT, &name, Counted::Again, priority, NOW)
    };
    let refusal = again(&mut state, Priority::Routine).unwrap_err();
    assert_eq!(refusal.limit, Limit::FailedValidations);
    again(&mut state, Priority::Forced).unwrap();
}

#[test]
fn consecutive_failures_end_with_a_success_and_not_by_the_hour() {
    let (mut state, name) = (CaState::default(), names(&["example.com"]));
    let hourly = |state: &mut CaState, hours: u32| {
        failed(state, LETS_ENCRYPT, &name, NOW + HOUR * hours);
        let left = left(state, LETS_ENCRYPT, &name, NOW + HOUR * (hours + 1));
        (left[3].tokens, left[4].tokens)
    };
    for hour in 0..922 {
        hourly(&mut state, hour);
    }
    // One token refills each day.
    assert_eq!(hourly(&mut state, 922), (5, 1152 - 923 + 38));
    let spend = |state: &mut CaState, priority| {
        let later = NOW + HOUR * 971;
        order(state, &["example.com"], Counted::Again, priority, later)
    };
    for hour in 923..970 {
        hourly(&mut state, hour);
    }
    let refusal = spend(&mut state, Priority::Routine).unwrap_err();
    assert_eq!(refusal.limit, Limit::ConsecutiveFailures);
    spend(&mut state, Priority::Forced).unwrap();
    validated(&mut state, &name);
    spend(&mut state, Priority::Routine).unwrap();
}

#[test]
fn eleventh_account_is_refused() {
    let mut state = CaState::default();
    for _ in 0..10 {
        register(&mut state, LETS_ENCRYPT, NOW).unwrap();
    }
    let refusal = register(&mut state, LETS_ENCRYPT, NOW).unwrap_err();
    assert_eq!(refusal.limit, Limit::NewAccounts);
    assert_eq!(refusal.until, NOW + HOUR * 3 / 10);
    register(&mut state, LETS_ENCRYPT, refusal.until).unwrap();
}

#[test]
fn unknown_ca_has_no_limits() {
    assert!(rules("https://ca.internal/dir").is_empty());
    assert_eq!(
        rules("https://acme-v02.api.letsencrypt.org/directory"),
        LETS_ENCRYPT
    );
}

proptest! {
    /// A bucket grants at most its capacity at once, and its refill on top.
    #[test]
    fn bucket_grants_no_more_than_capacity_and_refill(
        steps in prop::collection::vec((0_u64..40_000, any::<bool>()), 1..300),
    ) {
        let (mut state, mut now, mut granted) = (CaState::default(), NOW, Vec::new());
        for (pause, reserved) in steps {
            now = now + Duration::from_secs(pause);
            let priority = if reserved { Priority::Forced } else { Priority::Routine };
            match order(&mut state, &["example.com"], Counted::Again, priority, now) {
                Ok(()) => granted.push(now),
                Err(refusal) => prop_assert!(refusal.until > now),
            }
            let since = |start: Timestamp| granted.iter().filter(|at| **at > start).count();
            let spent = now.since(NOW).as_secs_f64() / (7.0 * 86_400.0) * 5.0;
            prop_assert!(granted.len() as f64 <= 5.0 + spent);
            prop_assert!(since(now - DAY) <= 5);
        }
    }
}
