//! Watches this machine's clock. After a start, a jump of the clock, or a suspend, each CA
//! is probed for its time; else a wrong clock would be reported only hours later, when a
//! step is due. Nothing is ordered here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::agenda::{Agenda, SWEEP};
use crate::acme::Issuer;
use crate::manage::clock::{ALARM, query_time};
use crate::manage::{Certificate, Services};
use crate::renew::clock::decided_at;
use crate::time::{Clock, Timestamp};

/// The pause before the first probe: after a start, due steps contact the CAs anyway.
const FIRST_CHECK_AFTER: Duration = Duration::from_secs(5);

/// The state of the clock, and the CAs to probe for their time.
pub(super) struct Watch {
    /// A past reading of the wall clock and the steady clock, which advance together.
    seen: Option<Seen>,
    /// When the CAs that have not replied since the start are probed.
    first_check_at: Option<Duration>,
    /// Whether the clock has jumped, so that decisions must be repeated.
    jumped: bool,
    /// The CAs to probe that have not replied yet.
    pending: BTreeSet<String>,
    /// The earliest time of the next probe.
    next_at: Duration,
    probes: JoinSet<TimeReply>,
}

/// Two clocks at one instant.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    wall: Timestamp,
    steady: Duration,
}

struct TimeReply {
    ca: String,
    since: Seen,
    answered: bool,
    /// Whether the CA's time replaces ours in decisions.
    corrects: bool,
}

impl Seen {
    fn now(clock: &dyn Clock) -> Option<Self> {
        let steady = clock.steady()?;
        let wall = clock.wall();
        Some(Self { wall, steady })
    }

    /// How far the wall clock jumped ahead, by being set or by a suspend; and how far it
    /// was set back.
    fn jumps(&self, now: &Self) -> [Duration; 2] {
        let wanted = self.wall + now.steady.saturating_sub(self.steady);
        [now.wall.since(wanted), wanted.since(now.wall)]
    }
}

/// The first and fallback CAs of all managed certificates, with their clients.
fn cas(agenda: &Agenda) -> impl Iterator<Item = (&String, &Arc<dyn Issuer>)> {
    agenda.managed().flat_map(|one| {
        let fallback = one.fallback.as_ref();
        let fallback = fallback.map(|fallback| (&fallback.ca, &fallback.issuer));
        [Some((&one.wanted.ca, &one.issuer)), fallback]
            .into_iter()
            .flatten()
    })
}

/// The first CAs that have not sent a date yet. A fallback CA needs no probe before it is
/// used.
fn without_reply(agenda: &Agenda) -> BTreeSet<String> {
    let has_reply = |one: &&Arc<Certificate>| one.issuer.clocks().is_some();
    let (with, without): (Vec<_>, Vec<_>) = agenda.managed().partition(has_reply);
    let [with, without] = [with, without].map(|some| {
        let cas = some.into_iter().map(|one| one.wanted.ca.clone());
        cas.collect::<BTreeSet<_>>()
    });
    &without - &with
}

/// Whether decisions follow the clock of the CA behind `issuer`, since ours differs.
fn corrects(issuer: &dyn Issuer, clock: &dyn Clock) -> bool {
    let ours = clock.wall();
    let there = issuer.clocks().map(|reading| reading.at_ca(ours));
    there.is_some_and(|theirs| decided_at(None, ours, theirs) != ours)
}

impl Watch {
    pub(super) fn new(clock: &dyn Clock) -> Self {
        Self {
            seen: Seen::now(clock),
            first_check_at: None,
            jumped: false,
            pending: BTreeSet::new(),
            next_at: Duration::ZERO,
            probes: JoinSet::new(),
        }
    }

    /// Schedules the first probe, when the loop starts.
    pub(super) fn begin(&mut self, clock: &dyn Clock) {
        self.first_check_at = clock.steady().map(|now| now + FIRST_CHECK_AFTER);
    }

    /// The time until the next probe, or until the next check for jumps.
    pub(super) fn pause(&self, clock: &dyn Clock) -> Duration {
        let asks = !self.pending.is_empty() && self.probes.is_empty();
        let next = self.first_check_at.or(asks.then_some(self.next_at));
        match (next, clock.steady()) {
            (Some(next), Some(now)) => next.saturating_sub(now),
            _ => SWEEP,
        }
    }

    /// Detects jumps, and probes the pending CAs at most once a minute.
    pub(super) fn look(&mut self, services: &Arc<Services>, agenda: &Agenda) {
        let (Some(before), Some(now)) = (self.seen, Seen::now(services.clock.as_ref())) else {
            return;
        };
        if self
            .first_check_at
            .is_some_and(|begins| begins <= now.steady)
        {
            self.first_check_at = None;
            self.pending = without_reply(agenda);
        }
        let [ahead, back] = before.jumps(&now);
        if ahead > ALARM {
            // The supervisor reports a clock that was set back.
            tracing::warn!(
                "the clock jumped ahead, to {}: it was set, or the machine was suspended; probing the CA for its time",
                now.wall
            );
        }
        if ahead.max(back) > ALARM {
            self.seen = Some(now);
            (self.first_check_at, self.jumped) = (None, true);
            self.pending = cas(agenda).map(|(ca, _)| ca.clone()).collect();
        }
        if self.pending.is_empty() || !self.probes.is_empty() || now.steady < self.next_at {
            return;
        }
        self.next_at = now.steady + SWEEP;
        for (ca, issuer) in cas(agenda).collect::<BTreeMap<_, _>>() {
            if let (true, Some(since)) = (self.pending.contains(ca), self.seen) {
                let (services, ca, issuer) = (services.clone(), ca.clone(), issuer.clone());
                self.probes.spawn(async move {
                    let answered = query_time(&services, &ca, issuer.as_ref()).await;
                    TimeReply {
                        ca,
                        since,
                        answered,
                        corrects: corrects(issuer.as_ref(), services.clock.as_ref()),
                    }
                });
            }
        }
    }

    /// Waits for the end of a probe, and returns whether decisions must be repeated; `None`
    /// without a probe in progress.
    pub(super) async fn answered(&mut self) -> Option<bool> {
        let answer = match self.probes.join_next().await? {
            Ok(answer) => answer,
            Err(error) => {
                tracing::error!("the time probe of a CA failed unexpectedly: {error}");
                return Some(false);
            }
        };
        let holds = answer.answered && self.seen == Some(answer.since);
        if holds && self.pending.remove(&answer.ca) {
            tracing::info!("the time probe of {} succeeded", answer.ca);
        }
        Some(holds && (self.jumped || answer.corrects))
    }
}
