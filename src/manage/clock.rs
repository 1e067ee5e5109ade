//! The clock of a pass, by the rule in [`crate::renew::clock`], and the alarm for a wrong
//! clock. No clock is ever set here.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::ca_state::{Operation, note_outage, reach};
use super::error::ManageError;
use super::services::{Certificate, Services};
use crate::acme::{Issuer, OutsideValidity};
use crate::record::Record;
use crate::renew::clock::{Evidence, decided_at};
use crate::renew::policy::{CLOCK_ALARM, CLOCK_ALARM_PAUSE, OLDEST_READING};
use crate::time::{Clock, Timestamp};

/// Raises an alarm for a wrong clock, once an hour.
#[derive(Debug, Default)]
pub(crate) struct Skew {
    last_alarm: Mutex<Option<Timestamp>>,
}

impl Skew {
    /// The alarm to report when the CA's clock shows `theirs` and ours shows `ours`;
    /// `None` when the clocks agree, or after an alarm within the last hour.
    pub(crate) fn observe(&self, ours: Timestamp, theirs: Timestamp) -> Option<String> {
        let apart = ours.apart(theirs);
        if apart <= CLOCK_ALARM {
            self.is_new(None);
            return None;
        }
        let direction = if ours > theirs { "ahead of" } else { "behind" };
        let minutes = apart.as_secs() / 60;
        self.is_new(Some(ours)).then(|| {
            format!(
                "this machine's clock is {minutes} minutes {direction} the CA's ({ours}, there {theirs})"
            )
        })
    }

    /// The alarm to report when the CA is unreachable because its certificate is not
    /// valid by our clock.
    pub(crate) fn outside(&self, outside: OutsideValidity) -> Option<String> {
        let message =
            || format!("this machine's clock or the CA's certificate is wrong: {outside}");
        self.is_new(Some(outside.ours())).then(message)
    }

    /// Whether an alarm `at` that time follows none within the last hour; `None` ends the
    /// alarm.
    fn is_new(&self, at: Option<Timestamp>) -> bool {
        let mut last = self
            .last_alarm
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // A clock that is set back must not suppress the alarm.
        let is_known = last
            .zip(at)
            .is_some_and(|(last, at)| at >= last && at.since(last) < CLOCK_ALARM_PAUSE);
        if !is_known {
            *last = at;
        }
        !is_known
    }
}

/// The clock of one pass: this machine's, corrected by the last reply of its first CA or,
/// without a usable one, of its fallback CA. So all machines of a fleet store and decide by
/// one time, even if one clock is wrong.
pub(crate) struct PassClock {
    wall: Arc<dyn Clock>,
    issuers: Vec<Arc<dyn Issuer>>,
    evidence: Mutex<Option<Evidence>>,
}

impl PassClock {
    pub(crate) fn new(wall: Arc<dyn Clock>, certificate: &Certificate) -> Self {
        Self {
            wall,
            issuers: certificate
                .cas()
                .map(|(_, issuer)| issuer.clone())
                .collect(),
            evidence: Mutex::default(),
        }
    }

    /// Uses the dates of the issued certificate to tell which of two clocks is wrong.
    pub(crate) fn use_evidence(&self, record: &Record) {
        let mut evidence = self.evidence.lock().unwrap_or_else(PoisonError::into_inner);
        *evidence = Evidence::of(record);
    }
}

#[async_trait]
impl Clock for PassClock {
    fn now(&self) -> Timestamp {
        let ours = self.wall.now();
        let mut replies = self.issuers.iter().filter_map(|issuer| issuer.clocks());
        // If our clock was set back since the reply, the two cannot be compared.
        let reply =
            replies.find(|reply| reply.ours <= ours && ours.since(reply.ours) <= OLDEST_READING);
        let evidence = *self.evidence.lock().unwrap_or_else(PoisonError::into_inner);
        reply.map_or(ours, |reply| decided_at(evidence, ours, reply.at_ca(ours)))
    }

    fn wall(&self) -> Timestamp {
        self.wall.wall()
    }

    fn monotonic(&self) -> Option<Duration> {
        self.wall.monotonic()
    }

    async fn sleep(&self, length: Duration) {
        self.wall.sleep(length).await;
    }
}

/// The CA's own time by its last reply; ours before the first one.
pub(super) fn ca_time(issuer: &dyn Issuer, clock: &dyn Clock) -> Timestamp {
    let reply = issuer.clocks();
    reply.map_or_else(|| clock.now(), |reply| reply.at_ca(clock.wall()))
}

/// Probes the CA for its time, which the reply shows to the observer, and returns whether
/// the CA replied, even with a refusal. A CA in a known outage is probed only at the
/// shared instant, by one certificate on behalf of all.
pub(crate) async fn query_time(services: &Services, ca: &str, issuer: &dyn Issuer) -> bool {
    let error = match reach(services, ca, issuer, Operation::Window).await {
        // The shared probe has just succeeded.
        Ok(true) => return true,
        // Not `time`: after a clock was set back, a cached reply may look recent.
        Ok(false) => match issuer.probe().await {
            Ok(()) => return true,
            Err(error) => ManageError::from(error),
        },
        Err(error) => error,
    };
    if error.is_outage() {
        tracing::warn!(
            "the time probe of {ca} failed: {error}; hint: nothing is due; certs status shows when the next probe is"
        );
        note_outage(services, ca, Operation::Window, &error.to_string()).await;
        return false;
    }
    tracing::debug!("the time of {ca} is unknown: {error}");
    matches!(error, ManageError::Acme(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skew_alarm_repeats_hourly_until_clock_is_right() {
        let skew = Skew::default();
        let ours = Timestamp::from_seconds(1_800_000_000);
        let minutes = |n: u64| Duration::from_secs(60 * n);
        assert_eq!(skew.observe(ours, ours + minutes(5)), None);
        let printed = skew.observe(ours, ours + minutes(6)).unwrap();
        assert!(printed.contains("6 minutes behind the CA's"), "{printed}");
        assert_eq!(skew.observe(ours + minutes(59), ours), None);
        let printed = skew.observe(ours + minutes(60), ours).unwrap();
        assert!(
            printed.contains("60 minutes ahead of the CA's"),
            "{printed}"
        );
        assert_eq!(skew.observe(ours, ours), None);
        assert!(skew.observe(ours, ours - minutes(30)).is_some());
        // Set back by a year, the clock is still wrong, and the hour starts again.
        let back = ours - minutes(60 * 24 * 365);
        assert!(skew.observe(back, ours).is_some());
        // An alarm over the CA's certificate shares the same hour.
        let not_yet = |ours| OutsideValidity::NotYetValid {
            ours,
            begin: ours + minutes(1),
        };
        assert_eq!(skew.outside(not_yet(back)), None);
        let printed = skew.outside(not_yet(back + minutes(60))).unwrap();
        assert!(
            printed.contains("this machine's clock or the CA's"),
            "{printed}"
        );
        assert_eq!(skew.observe(back + minutes(61), ours), None);
    }
}
