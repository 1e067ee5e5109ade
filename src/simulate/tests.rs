//! A small fleet through all scenarios; the large ones are the program's.

use super::*;

fn plan(seed: u64) -> Plan {
    Plan {
        seed,
        nodes: 2,
        certificates: 10,
        days: 60,
        scenarios: Scenario::all().collect(),
    }
}

#[test]
fn a_small_fleet_never_serves_an_expired_second() {
    for seed in 0..2 {
        let (score, timeline) = simulate(&plan(seed)).unwrap();
        assert_eq!(score.broken(), Vec::<String>::new(), "{score:?}");
        // Something must have happened.
        assert!(score.due_renewals > 25, "{score:?}");
        assert!(timeline.events.len() == 6, "{timeline:?}");
    }
}

#[test]
fn where_nothing_goes_wrong_every_order_is_inside_its_window_also_of_160_hours() {
    let calm = Plan {
        nodes: 1,
        scenarios: vec![],
        ..plan(1)
    };
    let (score, timeline) = simulate(&calm).unwrap();
    // 17 or 18 of them are the short-lived one's, in windows of 3.2 hours.
    assert!(score.orders > 10 + 17, "{score:?}");
    assert_eq!(score.orders, score.due_renewals);
    assert_eq!(timeline.outside_window, 0);
    // After three days no window of 3.2 hours is open any more.
    let outages = Plan {
        scenarios: vec![Scenario::Outages],
        ..calm
    };
    assert!(simulate(&outages).unwrap().1.outside_window > 0);
}

#[test]
fn a_ca_that_is_down_for_two_weeks_costs_no_second_of_45_days() {
    let plan = Plan {
        nodes: 1,
        certificates: 6,
        days: 90,
        scenarios: vec![Scenario::LongOutage],
        // From day 20 on, so that every renewal falls into it.
        ..plan(12)
    };
    let (score, timeline) = simulate(&plan).unwrap();
    assert_eq!(score.broken(), Vec::<String>::new(), "{score:?}");
    assert_eq!(timeline.events.len(), 1);
    assert!(timeline.outside_window >= 6, "{timeline:?}");
    assert!(score.worst_recovery_seconds > 0, "{score:?}");
}

#[test]
fn the_same_seed_gives_the_same_story_and_another_another() {
    let (one, again) = (simulate(&plan(7)).unwrap(), simulate(&plan(7)).unwrap());
    assert_eq!(one, again);
    assert_eq!(plot(&one.0, &one.1), plot(&again.0, &again.1));
    let mut other = simulate(&plan(8)).unwrap();
    other.0.seed = 7;
    assert_ne!(one, other);
}
