//! This machine's clock under watch. A start, a clock that was set, and a machine that was
//! suspended make each CA be asked for the time: else a wrong clock would be told when
//! something is due, hours later. Nothing is ordered here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::agenda::{Agenda, SWEEP};
use crate::acme::Issuer;
use crate::manage::clock::{ALARM, ask};
use crate::manage::{Certificate, Services};
use crate::renew::skew::decided_at;
use crate::time::{Clock, Timestamp};

/// So long after a start what has to be done is asking anyhow.
const FIRST_AFTER: Duration = Duration::from_secs(5);

/// What is known of the clock, and the CAs that are asked about it.
pub(super) struct Watch {
    /// What it showed once, beside the clock that cannot be set: they go on together.
    seen: Option<Seen>,
    /// When those CAs are asked that have not replied since the start.
    begins: Option<Duration>,
    /// Whether it has jumped, so that what was decided is to be decided again.
    jumped: bool,
    /// CAs that are to be asked, and have not answered yet.
    doubted: BTreeSet<String>,
    /// Before then no CA is asked.
    again_at: Duration,
    questions: JoinSet<Answer>,
}

/// Two clocks at one instant.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    wall: Timestamp,
    steady: Duration,
}

struct Answer {
    ca: String,
    since: Seen,
    answered: bool,
    /// Whether its clock shows a time that is decided by, instead of ours.
    corrects: bool,
}

impl Seen {
    fn now(clock: &dyn Clock) -> Option<Self> {
        let steady = clock.steady()?;
        let wall = clock.wall();
        Some(Self { wall, steady })
    }

    /// How far the one was set ahead, or the other stood still; and how far the
    /// one was set back.
    fn jumps(&self, now: &Self) -> [Duration; 2] {
        let wanted = self.wall + now.steady.saturating_sub(self.steady);
        [now.wall.since(wanted), wanted.since(now.wall)]
    }
}

/// Each CA that anything managed is from, or may come to be from, with the way to it.
fn cas(agenda: &Agenda) -> impl Iterator<Item = (&String, &Arc<dyn Issuer>)> {
    agenda.managed().flat_map(|one| {
        let second = one.fallback.as_ref();
        let second = second.map(|second| (&second.ca, &second.issuer));
        [Some((&one.wanted.ca, &one.issuer)), second]
            .into_iter()
            .flatten()
    })
}

/// Those that something is to be from, and that have not said yet what time it is. The
/// fallback CA has no work until there is need of it.
fn unheard(agenda: &Agenda) -> BTreeSet<String> {
    let heard = |one: &&Arc<Certificate>| one.issuer.dated().is_some();
    let (heard, unheard): (Vec<_>, Vec<_>) = agenda.managed().partition(heard);
    let [heard, unheard] = [heard, unheard].map(|some| {
        let cas = some.into_iter().map(|one| one.wanted.ca.clone());
        cas.collect::<BTreeSet<_>>()
    });
    &unheard - &heard
}

/// Whether what is decided goes by the clock of the CA that `issuer` asks, since ours is another.
fn corrects(issuer: &dyn Issuer, clock: &dyn Clock) -> bool {
    let ours = clock.wall();
    let there = issuer.dated().map(|dated| dated.there(ours));
    there.is_some_and(|theirs| decided_at(None, ours, theirs) != ours)
}

impl Watch {
    pub(super) fn new(clock: &dyn Clock) -> Self {
        Self {
            seen: Seen::now(clock),
            begins: None,
            jumped: false,
            doubted: BTreeSet::new(),
            again_at: Duration::ZERO,
            questions: JoinSet::new(),
        }
    }

    /// What is to be done is begun now.
    pub(super) fn begin(&mut self, clock: &dyn Clock) {
        self.begins = clock.steady().map(|now| now + FIRST_AFTER);
    }

    /// How long there is nothing to look at, but for jumps.
    pub(super) fn pause(&self, clock: &dyn Clock) -> Duration {
        let asks = !self.doubted.is_empty() && self.questions.is_empty();
        let next = self.begins.or(asks.then_some(self.again_at));
        match (next, clock.steady()) {
            (Some(next), Some(now)) => next.saturating_sub(now),
            _ => SWEEP,
        }
    }

    /// Asks the CAs that are to be asked, once a minute at most.
    pub(super) fn look(&mut self, services: &Arc<Services>, agenda: &Agenda) {
        let (Some(before), Some(now)) = (self.seen, Seen::now(services.clock.as_ref())) else {
            return;
        };
        if self.begins.is_some_and(|begins| begins <= now.steady) {
            self.begins = None;
            self.doubted = unheard(agenda);
        }
        let [ahead, back] = before.jumps(&now);
        if ahead > ALARM {
            // One that was set back is told where everything is looked at again.
            tracing::warn!(
                "the clock went ahead, to {}: it was set, or the machine was suspended; the CA is asked for the time",
                now.wall
            );
        }
        if ahead.max(back) > ALARM {
            self.seen = Some(now);
            (self.begins, self.jumped) = (None, true);
            self.doubted = cas(agenda).map(|(ca, _)| ca.clone()).collect();
        }
        if self.doubted.is_empty() || !self.questions.is_empty() || now.steady < self.again_at {
            return;
        }
        self.again_at = now.steady + SWEEP;
        for (ca, issuer) in cas(agenda).collect::<BTreeMap<_, _>>() {
            if let (true, Some(since)) = (self.doubted.contains(ca), self.seen) {
                let (services, ca, issuer) = (services.clone(), ca.clone(), issuer.clone());
                self.questions.spawn(async move {
                    let answered = ask(&services, &ca, issuer.as_ref()).await;
                    Answer {
                        ca,
                        since,
                        answered,
                        corrects: corrects(issuer.as_ref(), services.clock.as_ref()),
                    }
                });
            }
        }
    }

    /// Returns when a CA has answered or not, and says whether something may be to be decided
    /// again; `None` while none is asked.
    pub(super) async fn answered(&mut self) -> Option<bool> {
        let answer = match self.questions.join_next().await? {
            Ok(answer) => answer,
            Err(error) => {
                tracing::error!(
                    "a question for the time has failed in a way nobody foresaw: {error}"
                );
                return Some(false);
            }
        };
        let holds = answer.answered && self.seen == Some(answer.since);
        if holds && self.doubted.remove(&answer.ca) {
            tracing::info!("{} was asked for the time", answer.ca);
        }
        Some(holds && (self.jumped || answer.corrects))
    }
}
