//! This machine's clock under watch. One that was set, or a machine that was suspended,
//! makes each CA be asked for the time at once: else a wrong clock would be told when
//! something is due, hours later. Nothing is ordered here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::SWEEP;
use super::agenda::Agenda;
use crate::acme::Issuer;
use crate::manage::Parts;
use crate::manage::skew::{ALARM, ask};
use crate::time::{Clock, Timestamp};

/// What is known of the clock, and who is asked about it.
pub(super) struct Watch {
    /// What it showed once, beside the clock that nobody sets: they go on together.
    seen: Option<Seen>,
    /// CAs that have not answered since it jumped.
    doubted: BTreeSet<String>,
    asked: Option<Duration>,
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
}

impl Seen {
    fn now(clock: &dyn Clock) -> Option<Self> {
        let steady = clock.steady()?;
        let wall = clock.wall();
        Some(Self { wall, steady })
    }

    /// How far somebody has set the one ahead, or the other stood still; and how far the
    /// one was set back.
    fn jumps(&self, now: &Self) -> [Duration; 2] {
        let wanted = self.wall + now.steady.saturating_sub(self.steady);
        [now.wall.since(wanted), wanted.since(now.wall)]
    }
}

/// Each CA that anything managed is from, or may come to be from.
fn asked_of(agenda: &Agenda) -> BTreeMap<&String, &Arc<dyn Issuer>> {
    let mut cas = BTreeMap::new();
    for one in agenda.managed() {
        let second = one.fallback.as_ref();
        let second = second.map(|second| (&second.ca, &second.issuer));
        cas.extend([(&one.wanted.ca, &one.issuer)].into_iter().chain(second));
    }
    cas
}

impl Watch {
    pub(super) fn new(clock: &dyn Clock) -> Self {
        Self {
            seen: Seen::now(clock),
            doubted: BTreeSet::new(),
            asked: None,
            questions: JoinSet::new(),
        }
    }

    /// Asks who is to be asked, once a minute at most.
    pub(super) fn look(&mut self, parts: &Arc<Parts>, agenda: &Agenda) {
        let (Some(before), Some(now)) = (self.seen, Seen::now(parts.clock.as_ref())) else {
            return;
        };
        let [ahead, back] = before.jumps(&now);
        if ahead > ALARM {
            // Of one that was set back tells who looks at everything again.
            tracing::warn!(
                "the clock went ahead, to {}: it was set, or the machine was suspended; the CA is asked for the time",
                now.wall
            );
        }
        if ahead.max(back) > ALARM {
            self.seen = Some(now);
            self.doubted = asked_of(agenda).into_keys().cloned().collect();
        }
        let lately = |asked: Duration| now.steady.saturating_sub(asked) < SWEEP;
        if self.doubted.is_empty() || !self.questions.is_empty() || self.asked.is_some_and(lately) {
            return;
        }
        self.asked = Some(now.steady);
        for (ca, issuer) in asked_of(agenda) {
            if let (true, Some(since)) = (self.doubted.contains(ca), self.seen) {
                let (parts, ca, issuer) = (parts.clone(), ca.clone(), issuer.clone());
                self.questions.spawn(async move {
                    let answered = ask(&parts, &ca, issuer.as_ref()).await;
                    Answer {
                        ca,
                        since,
                        answered,
                    }
                });
            }
        }
    }

    /// Returns when a CA has answered or not, and says whether it has; `None` while none is
    /// asked.
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
        Some(holds)
    }
}
