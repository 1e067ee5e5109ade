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
fn the_same_seed_gives_the_same_story_and_another_another() {
    let one = simulate(&plan(7)).unwrap();
    assert_eq!(one, simulate(&plan(7)).unwrap());
    assert_ne!(one, simulate(&plan(8)).unwrap());
    assert_eq!(plot(&one.0, &one.1), plot(&one.0, &one.1));
}
