//! Rules for stored data: any record and any state of a CA yields a decision, and
//! survives a round trip through the store.

use std::time::Duration;

use super::{DAY, NOW, stored};
use crate::ca_state::{CaState, Counted};
use crate::random::SeededRandom;
use crate::record::Record;
use crate::renew::decide::{Next, delayed_until, due, next, replaces};
use crate::renew::rate_limits::{Priority, counts_as, rules, spend};
use crate::renew::reachability::is_waited_for;
use crate::time::Timestamp;

const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
const MOMENT: Duration = Duration::from_millis(1);

/// A record, or the state of a CA.
pub fn record(json: &[u8]) {
    if let Ok(record) = serde_json::from_slice::<Record>(json) {
        assert_eq!(stored(&record), record);
        for now in instants(&record) {
            decided(&record, now);
        }
    }
    if let Ok(state) = serde_json::from_slice::<CaState>(json) {
        assert_eq!(stored(&state), state);
        counted(&state);
    }
}

fn decided(record: &Record, now: Timestamp) {
    let random = SeededRandom::new(1);
    let (ca, names) = (&record.ca, &record.identifiers);
    let _ = (delayed_until(record, now), replaces(record, ca, names, now));
    let _ = counts_as(record, ca, names, None, now);
    match next(record, now, &random) {
        Next::Wait(until) => assert!(until > now, "waits until {until} at {now}"),
        Next::Draw(renewal) => {
            let mut drawn = record.clone();
            let Some(issued) = drawn.issued.as_mut() else {
                panic!("a draw without a certificate");
            };
            let _ = due(issued, &renewal);
            issued.renewal = Some(renewal);
            let again = next(&drawn, now, &random);
            assert!(!matches!(again, Next::Draw(_)), "a second draw");
            assert_eq!(stored(&drawn), drawn);
        }
        Next::RefreshWindow | Next::Issue { .. } | Next::Deploy | Next::Revoke | Next::Halt => {}
    }
}

/// Every instant in the record, and its neighbours.
fn instants(record: &Record) -> Vec<Timestamp> {
    let mut named = vec![NOW, Timestamp::from_seconds(0)];
    named.extend(record.failures.retry_at);
    named.extend(record.deployment_failures.retry_at);
    named.extend(
        record
            .revocation
            .iter()
            .filter_map(|it| it.failures.retry_at),
    );
    if let Some(issued) = &record.issued {
        named.extend([issued.at, issued.facts.not_before, issued.facts.not_after]);
        named.extend(issued.renewable_from.into_iter().chain(issued.deploy_at));
        if let Some(renewal) = &issued.renewal {
            named.extend([renewal.at, due(issued, renewal)]);
            named.extend(renewal.refresh_at);
        }
    }
    let around = |at: Timestamp| [at - MOMENT, at, at + MOMENT];
    named.into_iter().flat_map(around).collect()
}

fn counted(state: &CaState) {
    if let Some(outage) = &state.outage {
        let _ = is_waited_for(outage, NOW);
    }
    let names = super::facts().identifiers;
    for priority in [Priority::Routine, Priority::Urgent, Priority::Forced] {
        let mut spent = state.clone();
        let rules = rules(LETS_ENCRYPT);
        match spend(&mut spent, rules, &names, Counted::New, priority, NOW) {
            Ok(()) => assert_eq!(stored(&spent), spent),
            Err(refusal) => {
                assert!(refusal.until > NOW, "{refusal:?}");
                // The longest window of any CA's limits.
                assert!(refusal.until <= NOW + DAY * 8, "{refusal:?}");
            }
        }
    }
}
