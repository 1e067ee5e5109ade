//! A small fleet through all scenarios; large fleets are run by `certs simulate`.

use super::kill::{KillPoint, KillSwitch};
use super::scenario::Event;
use super::script::Script;
use super::*;

fn plan(seed: u64) -> SimulationPlan {
    SimulationPlan {
        seed,
        nodes: 2,
        certificates: 5,
        days: 60,
        scenarios: Scenario::all().collect(),
    }
}

fn calm() -> SimulationPlan {
    SimulationPlan {
        nodes: 1,
        scenarios: vec![],
        ..plan(1)
    }
}

/// The score of `plan` with only `events` at its nodes.
fn play_with(plan: &SimulationPlan, events: Vec<Vec<Event>>) -> Score {
    let mut script = Script::new(plan);
    script.at_a_node = events;
    fleet::play_by(plan, script).unwrap().0
}

#[test]
fn small_fleet_never_serves_an_expired_second() {
    let (score, timeline) = simulate(&plan(0)).unwrap();
    assert_eq!(score.broken(), Vec::<String>::new(), "{score:?}");
    // The scenarios must have done something.
    assert!(score.due_renewals > 25, "{score:?}");
    assert!(timeline.events.len() == 6, "{timeline:?}");
    assert!(score.events["crashes"] > 4, "{score:?}");
    let stores = score
        .events
        .iter()
        .filter(|(name, _)| name.starts_with("store-"));
    let stores: Vec<u64> = stores.map(|(_, count)| *count).collect();
    assert!(stores.len() == 7 && !stores.contains(&0), "{score:?}");
}

#[test]
fn calm_fleet_orders_inside_every_window_of_160_hour_certificates_too() {
    let (score, timeline) = simulate(&calm()).unwrap();
    // 17 or 18 of them are the short-lived one's, in windows of 3.2 hours.
    assert!(score.orders > 5 + 17, "{score:?}");
    assert_eq!(score.orders, score.due_renewals);
    assert_eq!(timeline.outside_window, 0);
    // After three days no window of 3.2 hours is open any more.
    let outages = SimulationPlan {
        scenarios: vec![Scenario::Outages],
        ..calm()
    };
    assert!(simulate(&outages).unwrap().1.outside_window > 0);
}

#[test]
fn unreachable_ca_gets_at_most_one_probe_a_minute() {
    let plan = SimulationPlan {
        days: 30,
        scenarios: vec![Scenario::Outages],
        ..plan(4)
    };
    let (score, _) = simulate(&plan).unwrap();
    assert_eq!(score.broken(), Vec::<String>::new(), "{score:?}");
    assert_eq!(score.requests_a_minute_while_down, 1, "{score:?}");
}

#[test]
fn full_disk_does_not_add_requests_to_an_unreachable_ca() {
    let plan = SimulationPlan {
        certificates: 20,
        days: 4,
        scenarios: vec![Scenario::Outages, Scenario::FullDisks],
        ..calm()
    };
    let event = |scenario, begins| Event {
        scenario,
        begins,
        lasts: HOUR * 20,
    };
    let mut script = Script::new(&plan);
    script.at_the_ca = vec![event(Scenario::Outages, DAY)];
    script.at_a_node = vec![vec![event(Scenario::FullDisks, DAY - SECOND)]];
    let (score, _) = fleet::play_by(&plan, script).unwrap();
    assert_eq!(score.broken(), Vec::<String>::new(), "{score:?}");
    // Each certificate sends one request before the outage is known, then none.
    assert!(score.requests_a_minute_while_down <= 1, "{score:?}");
}

#[test]
fn calm_fleet_reloads_once_per_proxy_and_certificate() {
    let two = SimulationPlan {
        nodes: 2,
        // The last order is not followed by the other machine within the plan of 60 days.
        days: 50,
        ..calm()
    };
    let (score, _) = simulate(&two).unwrap();
    assert_eq!(score.reloads, 2 * score.orders, "{score:?}");
    assert_eq!(score.reloads_at_most, score.reloads, "{score:?}");
}

#[test]
fn outage_of_two_weeks_expires_no_certificate_of_45_days() {
    let plan = SimulationPlan {
        nodes: 1,
        certificates: 2,
        scenarios: vec![Scenario::LongOutage],
        // Before day 30, so that every renewal falls into it.
        ..plan(12)
    };
    let (score, timeline) = simulate(&plan).unwrap();
    assert_eq!(score.broken(), Vec::<String>::new(), "{score:?}");
    assert_eq!(score.requests_a_minute_while_down, 1, "{score:?}");
    assert_eq!(timeline.events.len(), 1);
    assert!(timeline.outside_window >= 2, "{timeline:?}");
    assert!(score.worst_recovery_seconds > 0, "{score:?}");
}

#[test]
fn clock_wrong_by_an_hour_a_day_or_ten_years_costs_no_order_and_no_second() {
    let plan = SimulationPlan {
        nodes: 1,
        certificates: 6,
        scenarios: vec![Scenario::Clocks],
        ..plan(7)
    };
    // Each of the six errors twice.
    let (score, _) = simulate(&plan).unwrap();
    assert_eq!(score.broken(), Vec::<String>::new(), "{score:?}");
    assert_eq!(score.events["clocks"], 12, "{score:?}");
    assert_eq!(score.duplicate_certificates, 0);
}

#[test]
fn revoked_certificates_are_replaced_within_refresh_and_spread() {
    let plan = SimulationPlan {
        nodes: 1,
        scenarios: vec![Scenario::MassRevocation],
        days: 20,
        ..plan(1)
    };
    let (score, _) = simulate(&plan).unwrap();
    assert_eq!(score.broken(), Vec::<String>::new(), "{score:?}");
    assert_eq!(score.events["mass-revocation"], 1, "{score:?}");
    assert!(score.revoked_seconds_served > 0, "{score:?}");
    assert!(score.revoked_seconds_served <= 27_000, "{score:?}");
    let took = score.recovery_seconds["mass-revocation"];
    assert_eq!(took, score.revoked_seconds_served, "{score:?}");
}

#[test]
fn revocation_reaches_a_certificate_stored_by_a_killed_process() {
    let plan = SimulationPlan {
        certificates: 2,
        days: 4,
        scenarios: vec![Scenario::MassRevocation],
        ..calm()
    };
    for moments in 0..4 {
        let mut script = Script::new(&plan);
        // Before and after the first pair is shared, and before and after it is copied.
        let (moment, left) = (KillPoint::Pair, moments);
        script.first_ends = Some(KillSwitch { moment, left });
        script.at_the_ca = vec![Event {
            scenario: Scenario::MassRevocation,
            begins: DAY,
            lasts: Duration::ZERO,
        }];
        let (score, _) = fleet::play_by(&plan, script).unwrap();
        assert_eq!(score.broken(), Vec::<String>::new(), "{score:?}");
        assert!(score.revoked_seconds_served > 0, "{score:?}");
    }
}

#[test]
fn fleet_recovers_in_time_after_each_fault_of_the_ca() {
    // The first certificates are delayed from the first second on.
    for (scenario, lasts, at_least) in [
        (Scenario::RateLimits, HOUR * 3, 1),
        (Scenario::UselessCertificates, HOUR * 4, 3600),
        (Scenario::FailedValidations, HOUR * 12, 3600),
        (Scenario::Outages, HOUR * 24, 1),
    ] {
        let plan = SimulationPlan {
            certificates: 2,
            days: 5,
            scenarios: vec![scenario],
            ..calm()
        };
        let mut script = Script::new(&plan);
        script.at_the_ca = vec![Event {
            scenario,
            begins: Duration::ZERO,
            lasts,
        }];
        let (score, _) = fleet::play_by(&plan, script).unwrap();
        let late = score.broken();
        let late = late.iter().filter(|what| what.contains("to recover after"));
        assert_eq!(late.count(), 0, "{score:?}");
        assert_eq!(score.certificates_never_issued, 0, "{score:?}");
        let name = scenario.to_string();
        assert_eq!(score.events[&name], 1, "{score:?}");
        assert!(score.recovery_seconds[&name] >= at_least, "{score:?}");
    }
}

#[test]
fn deaf_proxy_is_reloaded_again_when_it_recovers() {
    let deaf = Event {
        scenario: Scenario::DeafProxies,
        begins: DAY * 2,
        lasts: DAY * 3,
    };
    let plan = SimulationPlan {
        days: 6,
        scenarios: vec![Scenario::DeafProxies],
        ..calm()
    };
    let score = play_with(&plan, vec![vec![deaf]]);
    assert_eq!(score.broken(), Vec::<String>::new(), "{score:?}");
    // The renewal of the one that lives for 160 hours waited for it.
    assert!(score.recovery_seconds["deaf-proxies"] > 0, "{score:?}");
}

#[test]
fn lease_expires_while_its_machine_is_suspended() {
    let frozen = Event {
        scenario: Scenario::Suspensions,
        begins: SECOND,
        lasts: HOUR,
    };
    let plan = SimulationPlan {
        nodes: 2,
        certificates: 4,
        days: 2,
        scenarios: vec![Scenario::Suspensions],
        ..plan(1)
    };
    let score = play_with(&plan, vec![vec![frozen], vec![]]);
    assert_eq!(score.broken(), Vec::<String>::new(), "{score:?}");
    assert!(score.leases_run_out > 0, "{score:?}");
    // The short-lived one is not due within two days.
    assert_eq!(score.orders, 4, "{score:?}");
}

#[test]
fn machine_without_store_loses_its_lease() {
    let cut = Event {
        scenario: Scenario::StoreCuts,
        begins: SECOND,
        lasts: HOUR,
    };
    let plan = SimulationPlan {
        nodes: 2,
        certificates: 4,
        days: 2,
        scenarios: vec![Scenario::StoreCuts],
        ..plan(1)
    };
    let score = play_with(&plan, vec![vec![cut], vec![]]);
    assert_eq!(score.broken(), Vec::<String>::new(), "{score:?}");
    assert!(score.orders >= 4, "{score:?}");
}

#[test]
fn many_names_of_one_domain_are_ordered_within_the_limits() {
    let plan = SimulationPlan {
        certificates: 62,
        days: 7,
        ..calm()
    };
    let (score, _) = simulate(&plan).unwrap();
    assert_eq!(score.broken(), Vec::<String>::new(), "{score:?}");
    // 40 at once, then one every 3 h 22 min: all within three days.
    assert!(score.orders > 62, "{score:?}");
    assert_eq!(score.due_renewals, score.orders, "{score:?}");
}

#[test]
fn score_reports_each_broken_promise() {
    let (good, _) = simulate(&SimulationPlan { days: 2, ..calm() }).unwrap();
    assert_eq!(good.broken(), Vec::<String>::new());
    let broken = |change: fn(&mut Score)| {
        let mut score = good.clone();
        change(&mut score);
        score.broken()
    };
    for change in [
        (|score| score.placeholder_seconds_served = 1) as fn(&mut Score),
        |score| score.certificates_never_issued = 1,
        |score| score.most_orders_for_one_renewal = 3,
        |score| score.reloads *= 2,
        |score| score.requests_a_minute_while_down = 5,
        |score| {
            let late = ("rate-limits".to_owned(), 5401);
            score.recovery_seconds = [late].into();
        },
    ] {
        assert_eq!(broken(change).len(), 1, "{:?}", broken(change));
    }
}

#[test]
fn same_seed_gives_the_same_score_and_another_seed_another() {
    let short = |seed| SimulationPlan {
        days: 12,
        ..plan(seed)
    };
    let (one, again) = (simulate(&short(7)).unwrap(), simulate(&short(7)).unwrap());
    assert_eq!(one, again);
    assert_eq!(plot(&one.0, &one.1), plot(&again.0, &again.1));
    let mut other = simulate(&short(8)).unwrap();
    other.0.plan.seed = 7;
    assert_ne!(one, other);
}
