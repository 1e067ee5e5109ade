//! This machine's clock compared with the CA's: a wrong clock renews too late or too
//! early, and breaks TLS itself. The `Date` of every reply shows the CA's time, in
//! whole seconds and late by the duration of the reply. Clocks are never set here.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::ca_state::{NEWEST, note_outage, reach_windows};
use super::error::ManageError;
use super::probes::Operation;
use super::services::{Certificate, Services};
use crate::acme::{Issuer, OutsideValidity};
use crate::certificate::Facts;
use crate::record::Record;
use crate::renew::clock::{Evidence, decided_at, is_due_at};
use crate::time::{Clock, Timestamp};

/// The clock skew above which the operator must set the clock.
pub(crate) const ALARM: Duration = Duration::from_secs(300);
const ALARM_INTERVAL: Duration = Duration::from_secs(3600);

/// Raises an alarm for a wrong clock, once an hour.
#[derive(Debug, Default)]
pub(crate) struct Skew {
    last_alarm: Mutex<Option<Timestamp>>,
}

impl Skew {
    /// The alarm to report when the CA's clock shows `theirs` and ours shows `ours`;
    /// `None` when the clocks agree, or after an alarm within the last hour.
    pub(crate) fn observe(&self, ours: Timestamp, theirs: Timestamp) -> Option<String> {
        let (ahead, behind) = (ours.since(theirs), theirs.since(ours));
        if ahead.max(behind) <= ALARM {
            *self.last_alarm() = None;
            return None;
        }
        let (apart, direction) = if ahead > behind {
            (ahead, "ahead of")
        } else {
            (behind, "behind")
        };
        let minutes = apart.as_secs() / 60;
        let message = || {
            format!(
                "this machine's clock is {minutes} minutes {direction} the CA's ({ours}, there {theirs})"
            )
        };
        self.is_new(ours).then(message)
    }

    /// The alarm to report when the CA is unreachable because its certificate is not
    /// valid by our clock.
    pub(crate) fn outside(&self, outside: OutsideValidity) -> Option<String> {
        let message =
            || format!("this machine's clock or the CA's certificate is wrong: {outside}");
        self.is_new(outside.ours()).then(message)
    }

    /// Whether no alarm was reported within the last hour; records this one if so.
    fn is_new(&self, ours: Timestamp) -> bool {
        let mut last_alarm = self.last_alarm();
        // A clock that is set back must not suppress the alarm.
        let is_known = last_alarm.is_some_and(|at| ours >= at && ours.since(at) < ALARM_INTERVAL);
        if !is_known {
            *last_alarm = Some(ours);
        }
        !is_known
    }

    fn last_alarm(&self) -> MutexGuard<'_, Option<Timestamp>> {
        self.last_alarm
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pause before a renewal that is due only by our clock is checked again.
const RECHECK: Duration = Duration::from_secs(3600);

/// The age up to which a reply corrects our clock.
const CORRECTION_LIFETIME: Duration = Duration::from_secs(86_400);

/// The clock of one pass: this machine's, corrected by the CA's last reply. So all
/// machines of a fleet store and decide by one time, even if one clock is wrong.
pub(crate) struct CorrectedClock {
    wall: Arc<dyn Clock>,
    issuers: Vec<Arc<dyn Issuer>>,
    evidence: Mutex<Option<Evidence>>,
}

impl CorrectedClock {
    pub(crate) fn new(wall: Arc<dyn Clock>, certificate: &Certificate) -> Self {
        let fallback = certificate.fallback.as_ref();
        let fallback = fallback.map(|fallback| fallback.issuer.clone());
        let issuers = [Some(certificate.issuer.clone()), fallback];
        Self {
            wall,
            issuers: issuers.into_iter().flatten().collect(),
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
impl Clock for CorrectedClock {
    fn now(&self) -> Timestamp {
        let ours = self.wall.now();
        let issuers = self.issuers.iter();
        let reply = issuers.filter_map(|issuer| issuer.clocks()).find(|dated| {
            // If our clock was set back since the reply, the two cannot be compared.
            dated.ours <= ours && ours.since(dated.ours) <= CORRECTION_LIFETIME
        });
        let evidence = *self.evidence.lock().unwrap_or_else(PoisonError::into_inner);
        reply.map_or(ours, |dated| decided_at(evidence, ours, dated.at_ca(ours)))
    }

    fn wall(&self) -> Timestamp {
        self.wall.wall()
    }

    fn steady(&self) -> Option<Duration> {
        self.wall.steady()
    }

    async fn sleep(&self, length: Duration) {
        self.wall.sleep(length).await;
    }
}

/// Checks a due order by the CA's current clock too, in case our clock is ahead.
///
/// # Errors
/// [`ManageError::NotDueAtCa`]; and the CA's error if it does not tell the time, since
/// an order stored now would be resumed after the outage, due or not.
pub(super) async fn check_due_at_ca(
    services: &Services,
    ca: &str,
    issuer: &dyn Issuer,
    record: &Record,
) -> Result<(), ManageError> {
    if record.issued.is_none() {
        return Ok(());
    }
    let dated = match issuer.time(NEWEST).await {
        Ok(Some(dated)) => dated,
        Err(error) if record.order.is_none() => return Err(error.into()),
        Ok(None) | Err(_) => return Ok(()),
    };
    let ours = services.clock.wall();
    let theirs = dated.at_ca(ours);
    let at = decided_at(Evidence::of(record), ours, theirs);
    let due = match is_due_at(record, at) {
        Ok(()) => return Ok(()),
        Err(due) => due,
    };
    Err(ManageError::NotDueAtCa {
        ca: ca.to_owned(),
        ours,
        theirs,
        until: services.clock.now() + due.since(at).min(RECHECK),
    })
}

/// The CA's time, by which the CA counts its rate limits; our time, if the CA is
/// unreachable or sends no date.
pub(super) async fn ca_time(issuer: &dyn Issuer, clock: &dyn Clock) -> Timestamp {
    match issuer.time(NEWEST).await {
        Ok(Some(dated)) => dated.at_ca(clock.wall()),
        Ok(None) => clock.now(),
        Err(error) => {
            tracing::debug!("the CA's time is unknown: {error}");
            clock.now()
        }
    }
}

/// Probes the CA for its time, which the reply shows to the observer, and returns whether
/// the CA replied, even with a refusal. A CA in a known outage is probed only at the
/// shared instant, by one certificate on behalf of all.
pub(crate) async fn query_time(services: &Services, ca: &str, issuer: &dyn Issuer) -> bool {
    let error = match reach_windows(services, ca, issuer).await {
        // The shared probe has just succeeded.
        Ok(true) => return true,
        // Not `time`: after a clock was set back, a cached reply may look recent.
        Ok(false) => match issuer.probe().await {
            Ok(()) => return true,
            Err(error) => ManageError::from(error),
        },
        Err(error) => error,
    };
    tracing::debug!("the time of {ca} is unknown: {error}");
    if error.is_outage() {
        tracing::warn!(
            "the time probe of {ca} failed: {error}; hint: nothing is due; certs status shows when the next probe is"
        );
        note_outage(services, ca, Operation::Windows, &error.to_string()).await;
        return false;
    }
    matches!(error, ManageError::Acme(_))
}

/// Whether the clocks differ so little that waiting is not a failure.
pub(super) fn is_slight_skew(error: &ManageError) -> bool {
    let ManageError::NotDueAtCa { ours, theirs, .. } = error else {
        return false;
    };
    ours.since(*theirs) <= ALARM
}

/// When a new certificate with these `facts` was signed: by the CA's clock, unless only
/// our clock fits its first day. The date of a reply may come from a wrong proxy, not
/// from the signer.
pub(super) fn when_signed(
    issuer: &dyn Issuer,
    record: &Record,
    clock: &dyn Clock,
    facts: Option<&Facts>,
) -> Timestamp {
    let ours = clock.wall();
    let theirs = issuer.clocks().map_or(ours, |dated| dated.at_ca(ours));
    signed_at(ours, theirs, Evidence::of(record), facts)
}

fn signed_at(
    ours: Timestamp,
    theirs: Timestamp,
    evidence: Option<Evidence>,
    facts: Option<&Facts>,
) -> Timestamp {
    match facts.map(|facts| [theirs, ours].map(|clock| may_have_signed(clock, facts))) {
        Some([true, _]) => return theirs,
        Some([false, true]) => return ours,
        _ => {}
    }
    if ours.since(theirs).max(theirs.since(ours)) <= TRUSTED_SKEW {
        theirs
    } else {
        decided_at(evidence, ours, theirs)
    }
}

/// Whether the certificate may have been signed just before `clock`. Some CAs date all
/// certificates of a day from its midnight.
fn may_have_signed(clock: Timestamp, facts: &Facts) -> bool {
    facts.not_before <= clock + ALARM && clock.since(facts.not_before) <= BACKDATED
}

/// The longest time by which a CA backdates a certificate.
const BACKDATED: Duration = Duration::from_secs(25 * 3600);

/// The clock skew up to which the CA's clock is trusted without further evidence.
const TRUSTED_SKEW: Duration = Duration::from_secs(2 * 86_400);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fingerprint::Fingerprint;

    /// The facts of a certificate of 90 days from `begins`.
    fn facts(begins: Timestamp) -> Facts {
        Facts {
            identifiers: Default::default(),
            not_before: begins,
            not_after: begins + Duration::from_secs(90 * 86_400),
            fingerprint: Fingerprint::of(b""),
            renewal_id: None,
        }
    }

    #[test]
    fn signed_at_follows_the_clock_that_fits_the_certificate() {
        let now = Timestamp::from_seconds(1_800_000_000);
        let hours = |n: u64| Duration::from_secs(3600 * n);
        let evidence = Evidence {
            not_before: now - hours(24 * 60),
            stored: now - hours(24 * 60),
        };
        // Let's Encrypt's backdating, a CA that dates from midnight, and a signer slightly ahead.
        for begins in [
            now - hours(1),
            now - hours(20),
            now + Duration::from_secs(2),
        ] {
            let facts = facts(begins);
            for evidence in [None, Some(evidence)] {
                for wrong in [hours(24 * 3), hours(24 * 40), hours(24 * 3652)] {
                    for wrong in [now + wrong, now - wrong] {
                        let signed = [(wrong, now), (now, wrong)]
                            .map(|(ours, theirs)| signed_at(ours, theirs, evidence, Some(&facts)));
                        assert_eq!(signed, [now; 2], "{begins}: {wrong}: {evidence:?}");
                    }
                }
            }
        }
        // A lifetime of five minutes, backdated by an hour: a clock that is an hour behind must
        // not lengthen it.
        let short = Facts {
            not_after: now + Duration::from_secs(300),
            ..facts(now - hours(1))
        };
        assert_eq!(signed_at(now - hours(1), now, None, Some(&short)), now);
        // A certificate that fits neither clock is dated by the CA's.
        let old = facts(now - hours(24 * 80));
        assert_eq!(signed_at(now - hours(1), now, None, Some(&old)), now);
    }

    #[test]
    fn skew_alarm_repeats_hourly_until_clock_is_right() {
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
        // Set back by a year, the clock is still wrong, and the hour starts again.
        let back = ours - minutes(60 * 24 * 365);
        assert!(skew.observe(back, ours).is_some());
        // An alarm over the CA's certificate shares the same hour.
        let not_yet = |ours| OutsideValidity::NotYetValid {
            ours,
            begin: ours + minutes(1),
        };
        assert_eq!(skew.outside(not_yet(back)), None);
        let told = skew.outside(not_yet(back + minutes(60))).unwrap();
        assert!(told.contains("this machine's clock or the CA's"), "{told}");
        assert_eq!(skew.observe(back + minutes(61), ours), None);
    }
}
