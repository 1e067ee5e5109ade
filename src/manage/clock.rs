//! This machine's clock against the CA's: a wrong clock renews too late or too
//! early, and breaks TLS itself. The `Date` of every reply says how late it is
//! there, in whole seconds and after the time that the reply took.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::ca_state::{NEWEST, is_silent, reach_windows};
use super::error::ManageError;
use super::probes::Work;
use super::services::{Certificate, Services};
use crate::acme::{Issuer, Untimely};
use crate::certificate::Facts;
use crate::record::Record;
use crate::renew::skew::{Evidence, decided_at, is_due_at};
use crate::time::{Clock, Timestamp};

/// From here on the operator must set the clock.
pub(crate) const ALARM: Duration = Duration::from_secs(300);
const TELL_AGAIN_AFTER: Duration = Duration::from_secs(3600);

/// Raises an alarm for a clock that is wrong, once an hour.
#[derive(Debug, Default)]
pub(crate) struct Skew {
    told: Mutex<Option<Timestamp>>,
}

impl Skew {
    /// What to tell when the CA's clock shows `theirs` and ours shows `ours`;
    /// `None` when they agree, or it was told within the hour.
    pub(crate) fn observe(&self, ours: Timestamp, theirs: Timestamp) -> Option<String> {
        let (ahead, behind) = (ours.since(theirs), theirs.since(ours));
        if ahead.max(behind) <= ALARM {
            *self.told() = None;
            return None;
        }
        let (apart, direction) = if ahead > behind {
            (ahead, "ahead of")
        } else {
            (behind, "behind")
        };
        let minutes = apart.as_secs() / 60;
        let told = || {
            format!(
                "this machine's clock is {minutes} minutes {direction} the CA's ({ours}, there {theirs})"
            )
        };
        self.is_news(ours).then(told)
    }

    /// The same when the CA cannot be asked, since by our clock its certificate does not
    /// hold.
    pub(crate) fn outside(&self, untimely: Untimely) -> Option<String> {
        let told = || format!("this machine's clock is wrong, or the CA: {untimely}");
        self.is_news(untimely.ours()).then(told)
    }

    /// Whether it was not told within the hour; from now on it was.
    fn is_news(&self, ours: Timestamp) -> bool {
        let mut told = self.told();
        // A clock that is set back must not silence it.
        let is_known = told.is_some_and(|at| ours >= at && ours.since(at) < TELL_AGAIN_AFTER);
        if !is_known {
            *told = Some(ours);
        }
        !is_known
    }

    fn told(&self) -> MutexGuard<'_, Option<Timestamp>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When what only our clock says is due is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

/// A reply that is older does not correct our clock any more.
const CORRECTS_FOR: Duration = Duration::from_secs(86_400);

/// The clock of one pass: this machine's, corrected by what the CA's last reply has
/// shown, so that what is written down for a whole fleet, and what is decided, has
/// one time, whichever machine's clock is wrong.
pub(crate) struct Corrected {
    wall: Arc<dyn Clock>,
    issuers: Vec<Arc<dyn Issuer>>,
    evidence: Mutex<Option<Evidence>>,
}

impl Corrected {
    pub(crate) fn new(wall: Arc<dyn Clock>, certificate: &Certificate) -> Self {
        let second = certificate.fallback.as_ref();
        let second = second.map(|second| second.issuer.clone());
        let issuers = [Some(certificate.issuer.clone()), second];
        Self {
            wall,
            issuers: issuers.into_iter().flatten().collect(),
            evidence: Mutex::default(),
        }
    }

    /// What is issued shows which of two clocks is wrong.
    pub(crate) fn knows(&self, record: &Record) {
        let mut evidence = self.evidence.lock().unwrap_or_else(PoisonError::into_inner);
        *evidence = Evidence::of(record);
    }
}

#[async_trait]
impl Clock for Corrected {
    fn now(&self) -> Timestamp {
        let ours = self.wall.now();
        let issuers = self.issuers.iter();
        let heard = issuers.filter_map(|issuer| issuer.dated()).find(|dated| {
            // One that was set since has made it a reply of another time.
            dated.ours <= ours && ours.since(dated.ours) <= CORRECTS_FOR
        });
        let evidence = *self.evidence.lock().unwrap_or_else(PoisonError::into_inner);
        heard.map_or(ours, |dated| decided_at(evidence, ours, dated.there(ours)))
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

/// Lets no order through that is due only because our clock is ahead: it is
/// held against the CA's as it is now.
///
/// # Errors
/// [`ManageError::NotDueThere`]; and what a CA says instead of telling the time: an
/// order that is written down now would be finished when it answers again, due or not.
pub(super) async fn due_there(
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
    let theirs = dated.there(ours);
    let at = decided_at(Evidence::of(record), ours, theirs);
    let due = match is_due_at(record, at) {
        Ok(()) => return Ok(()),
        Err(due) => due,
    };
    Err(ManageError::NotDueThere {
        ca: ca.to_owned(),
        ours,
        theirs,
        until: services.clock.now() + due.since(at).min(LOOK_AGAIN),
    })
}

/// What the CA's clock shows: its limits are counted by it. Ours, where it
/// does not tell or does not answer.
pub(super) async fn there(issuer: &dyn Issuer, clock: &dyn Clock) -> Timestamp {
    match issuer.time(NEWEST).await {
        Ok(Some(dated)) => dated.there(clock.wall()),
        Ok(None) => clock.now(),
        Err(error) => {
            tracing::debug!("what time it is at the CA cannot be told: {error}");
            clock.now()
        }
    }
}

/// Asks the CA for the time, which its reply shows to the observer, and says whether
/// there was one, if only a refusal. A CA that is known to be unreachable is left alone
/// until one certificate probes it for all.
pub(crate) async fn ask(services: &Services, ca: &str, issuer: &dyn Issuer) -> bool {
    let error = match reach_windows(services, ca, issuer).await {
        // By this very question.
        Ok(true) => return true,
        // Not by `time`: a clock that was set back may have come by an old reply again.
        Ok(false) => match issuer.probe().await {
            Ok(()) => return true,
            Err(error) => ManageError::from(error),
        },
        Err(error) => error,
    };
    tracing::debug!("what time it is at {ca} cannot be told: {error}");
    if error.is_outage() {
        tracing::warn!(
            "{ca} was asked for the time and does not answer: {error}; hint: nothing is due; it is asked again, and certs status tells when"
        );
        is_silent(services, ca, Work::Windows, &error.to_string()).await;
        return false;
    }
    matches!(error, ManageError::Acme(_))
}

/// Whether the clocks are so near each other that waiting is no failure.
pub(super) fn is_slight(error: &ManageError) -> bool {
    let ManageError::NotDueThere { ours, theirs, .. } = error else {
        return false;
    };
    ours.since(*theirs) <= ALARM
}

/// When a new certificate with these `facts` was signed, for judging its dates and dating
/// what comes of it: by the CA's clock, but where ours alone fits the day that it begins
/// on. What dates the replies is not what signs; a proxy in between may be wrong.
pub(super) fn when_signed(
    issuer: &dyn Issuer,
    record: &Record,
    clock: &dyn Clock,
    facts: Option<&Facts>,
) -> Timestamp {
    let ours = clock.wall();
    let theirs = issuer.dated().map_or(ours, |dated| dated.there(ours));
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
    if ours.since(theirs).max(theirs.since(ours)) <= BELIEVED {
        theirs
    } else {
        decided_at(evidence, ours, theirs)
    }
}

/// Whether it may have been signed a moment ago at `clock`. There are CAs that let all of a day
/// begin at its midnight.
fn may_have_signed(clock: Timestamp, facts: &Facts) -> bool {
    facts.not_before <= clock + ALARM && clock.since(facts.not_before) <= BACKDATED
}

/// How long before its signing a certificate of a sound CA begins at most.
const BACKDATED: Duration = Duration::from_secs(25 * 3600);

/// What is believed of a CA's clock without any further sign.
const BELIEVED: Duration = Duration::from_secs(2 * 86_400);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::Fingerprint;

    /// Of 90 days, from `begins` on.
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
    fn of_two_clocks_the_one_that_fits_the_certificate_tells_when_it_was_signed() {
        let now = Timestamp::from_seconds(1_800_000_000);
        let hours = |n: u64| Duration::from_secs(3600 * n);
        let evidence = Evidence {
            not_before: now - hours(24 * 60),
            stored: now - hours(24 * 60),
        };
        // As Let's Encrypt dates them, a CA's midnight, and a signer that is ahead a little.
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
        // An hour back, as usual, it was signed for five minutes: where ours is an hour
        // behind, that is no longer life.
        let short = Facts {
            not_after: now + Duration::from_secs(300),
            ..facts(now - hours(1))
        };
        assert_eq!(signed_at(now - hours(1), now, None, Some(&short)), now);
        // What fits neither is as old as it is by the CA's clock.
        let old = facts(now - hours(24 * 80));
        assert_eq!(signed_at(now - hours(1), now, None, Some(&old)), now);
    }

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
        // So does one that lets nobody ask, by the same hour.
        let not_yet = |ours| Untimely::NotYet {
            ours,
            begin: ours + minutes(1),
        };
        assert_eq!(skew.outside(not_yet(back)), None);
        let told = skew.outside(not_yet(back + minutes(60))).unwrap();
        assert!(told.contains("this machine's clock is wrong"), "{told}");
        assert_eq!(skew.observe(back + minutes(61), ours), None);
    }
}
