//! This machine's clock against the CA's: a wrong clock renews too late or too
//! early, and breaks TLS itself. The `Date` of every reply says how late it is
//! there, in whole seconds and after the time that the reply took.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::{Certificate, ManageError, Parts};
use crate::acme::Issuer;
use crate::record::Record;
use crate::renew::skew::{decided_at, is_due_at};
use crate::time::Timestamp;

/// From here on somebody must set the clock.
const ALARM: Duration = Duration::from_secs(300);
const TELL_AGAIN_AFTER: Duration = Duration::from_secs(3600);

/// Raises an alarm for a clock that is wrong, once an hour.
#[derive(Debug, Default)]
pub struct Skew {
    told: Mutex<Option<Timestamp>>,
}

impl Skew {
    /// What to tell when the CA's clock shows `theirs` and ours shows `ours`;
    /// `None` when they agree, or it was told within the hour.
    pub fn observe(&self, ours: Timestamp, theirs: Timestamp) -> Option<String> {
        let (ahead, behind) = (ours.since(theirs), theirs.since(ours));
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if ahead.max(behind) <= ALARM {
            *told = None;
            return None;
        }
        // A clock that is set back must not silence it.
        if told.is_some_and(|at| ours >= at && ours.since(at) < TELL_AGAIN_AFTER) {
            return None;
        }
        *told = Some(ours);
        let (apart, direction) = if ahead > behind {
            (ahead, "ahead of")
        } else {
            (behind, "behind")
        };
        let minutes = apart.as_secs() / 60;
        Some(format!(
            "this machine's clock is {minutes} minutes {direction} the CA's ({ours}, there {theirs})"
        ))
    }
}

/// A reply that is older says nothing of what the clock shows now.
const NEWEST: Duration = Duration::from_secs(60);
/// When what only our clock says is due is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

/// When `record` is looked at, by a clock that is not behind: where the CA's
/// last reply shows that ours is, by the CA's.
pub(super) async fn not_behind(
    certificate: &Certificate,
    record: &Record,
    ours: Timestamp,
) -> Timestamp {
    let dated = certificate.issuer.time(None).await;
    let at = dated.map_or(ours, |dated| decided_at(record, ours, dated.there(ours)));
    at.max(ours)
}

/// Lets no order through that is due only because our clock is ahead: it is
/// held against the CA's as it is now.
///
/// # Errors
/// [`ManageError::NotDueThere`]; and what a CA that has told the time before says
/// instead of telling it: an order that is written down now would be finished
/// when it answers again, due or not.
pub(super) async fn due_there(
    parts: &Parts,
    ca: &str,
    issuer: &dyn Issuer,
    record: &Record,
) -> Result<(), ManageError> {
    if record.issued.is_none() {
        return Ok(());
    }
    let Some(dated) = issuer.time(Some(NEWEST)).await else {
        if record.order.is_none() && issuer.time(None).await.is_some() {
            issuer.probe().await?;
        }
        return Ok(());
    };
    let ours = parts.clock.now();
    let theirs = dated.there(ours);
    let at = decided_at(record, ours, theirs);
    let due = match is_due_at(record, at) {
        Ok(()) => return Ok(()),
        Err(due) => due,
    };
    Err(ManageError::NotDueThere {
        ca: ca.to_owned(),
        ours,
        theirs,
        until: ours + due.since(at).min(LOOK_AGAIN),
    })
}

/// What the CA's clock shows: its limits are counted by it. Ours, where it
/// does not tell or does not answer.
pub(super) async fn there(issuer: &dyn Issuer, ours: Timestamp) -> Timestamp {
    let dated = issuer.time(Some(NEWEST)).await;
    dated.map_or(ours, |dated| dated.there(ours))
}

/// Whether the clocks are so near each other that waiting is no failure.
pub(super) fn is_slight(error: &ManageError) -> bool {
    let ManageError::NotDueThere { ours, theirs, .. } = error else {
        return false;
    };
    ours.since(*theirs) <= ALARM
}

/// When a certificate was signed, for judging its dates: by the CA's clock, where
/// it is to be believed.
pub(super) async fn when_signed(
    issuer: &dyn Issuer,
    record: &Record,
    ours: Timestamp,
) -> Timestamp {
    let dated = issuer.time(None).await;
    let theirs = dated.map_or(ours, |dated| dated.there(ours));
    if ours.since(theirs).max(theirs.since(ours)) <= BELIEVED {
        theirs
    } else {
        decided_at(record, ours, theirs)
    }
}

/// What is believed of a CA's clock without any further sign.
const BELIEVED: Duration = Duration::from_secs(2 * 86_400);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_clock_is_told_once_an_hour_until_it_is_right() {
        let skew = Skew::default();
        let ours = Timestamp::from_seconds(1_800_000_000);
        let minutes = |n: u64| Duration::from_secs(60 * n);
        assert_eq!(skew.observe(ours, ours + minutes(5)), None);
        let told = skew.observe(ours, ours + minutes(6)).unwrap();
        assert!(told.contains("6 minutes behind the CA's"), "{told}");
        assert_eq!(skew.observe(ours + minutes(59), ours), None);
        let told = skew.observe(ours + minutes(60), ours).unwrap();
        assert!(told.contains("60 minutes ahead of the CA's"), "{told}");
        assert_eq!(skew.observe(ours, ours), None);
        assert!(skew.observe(ours, ours - minutes(30)).is_some());
        // Set back by a year: it is wrong still, and the hour counts anew.
        let back = ours - minutes(60 * 24 * 365);
        assert!(skew.observe(back, ours).is_some());
    }
}
