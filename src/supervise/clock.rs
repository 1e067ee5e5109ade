//! Watches this machine's clock. After a start, a jump of the clock, or a suspend, each CA
//! is probed for its time; else a wrong clock would be reported only hours later, when a
//! step is due. Nothing is ordered here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::agenda::Agenda;
use crate::acme::Issuer;
use crate::manage::Services;
use crate::manage::clock::query_time;
use crate::renew::clock::decided_at;
use crate::renew::policy::{CLOCK_ALARM, CLOCK_READING, FIRST_TIME_PROBE};
use crate::time::{Clock, Timestamp};

/// The state of the clock, and the CAs to probe for their time.
pub(super) struct Watch {
    /// A past reading of the wall clock and the monotonic clock, which advance together.
    seen: Option<(Timestamp, Duration)>,
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

struct TimeReply {
    ca: String,
    issuer: Arc<dyn Issuer>,
    answered: bool,
}

/// The first CAs that have not sent a date yet. A fallback CA needs no probe before it is
/// used.
fn without_reply(agenda: &Agenda) -> BTreeSet<String> {
    let replied = |replied: bool| {
        let some = agenda.managed();
        let some = some.filter(move |one| one.issuer.clocks().is_some() == replied);
        some.map(|one| one.wanted.ca.clone())
            .collect::<BTreeSet<_>>()
    };
    &replied(false) - &replied(true)
}

impl Watch {
    pub(super) fn new(clock: &dyn Clock) -> Self {
        Self {
            seen: clock.monotonic().map(|monotonic| (clock.wall(), monotonic)),
            first_check_at: None,
            jumped: false,
            pending: BTreeSet::new(),
            next_at: Duration::ZERO,
            probes: JoinSet::new(),
        }
    }

    /// Schedules the first probe, when the loop starts.
    pub(super) fn begin(&mut self, clock: &dyn Clock) {
        self.first_check_at = clock.monotonic().map(|now| now + FIRST_TIME_PROBE);
    }

    /// The time until the next probe, or until the next check for jumps.
    pub(super) fn pause(&self, clock: &dyn Clock) -> Duration {
        let probes = !self.pending.is_empty() && self.probes.is_empty();
        let next = self.first_check_at.or(probes.then_some(self.next_at));
        match (next, clock.monotonic()) {
            (Some(next), Some(now)) => next.saturating_sub(now),
            _ => CLOCK_READING,
        }
    }

    /// Detects jumps, and probes the pending CAs at most once a minute.
    pub(super) fn look(&mut self, services: &Arc<Services>, agenda: &Agenda) {
        let clock = services.clock.as_ref();
        let (Some((wall, before)), Some(monotonic)) = (self.seen, clock.monotonic()) else {
            return;
        };
        if self.first_check_at.is_some_and(|at| at <= monotonic) {
            self.first_check_at = None;
            self.pending = without_reply(agenda);
        }
        let (now, expected) = (clock.wall(), wall + monotonic.saturating_sub(before));
        let cas = || -> BTreeMap<_, _> { agenda.managed().flat_map(|one| one.cas()).collect() };
        if now.apart(expected) > CLOCK_ALARM {
            // The supervisor reports a clock that was set back.
            if now > expected {
                tracing::warn!(
                    "the clock jumped ahead, to {now}: it was set, or the machine was suspended; probing the CA for its time"
                );
            }
            self.seen = Some((now, monotonic));
            (self.first_check_at, self.jumped) = (None, true);
            self.pending = cas().into_keys().cloned().collect();
            // The reply to an earlier probe says nothing about this clock.
            self.probes = JoinSet::new();
            services.probes.restart();
        }
        if self.pending.is_empty() || !self.probes.is_empty() || monotonic < self.next_at {
            return;
        }
        self.next_at = monotonic + CLOCK_READING;
        for (ca, issuer) in cas() {
            if self.pending.contains(ca) {
                let (services, ca, issuer) = (services.clone(), ca.clone(), issuer.clone());
                self.probes.spawn(async move {
                    let answered = query_time(&services, &ca, issuer.as_ref()).await;
                    TimeReply {
                        ca,
                        issuer,
                        answered,
                    }
                });
            }
        }
    }

    /// Waits for the end of a probe, and returns whether decisions must be repeated: after a
    /// jump, and when the CA's clock decides instead of ours. `None` without a probe in
    /// progress.
    pub(super) async fn answered(&mut self, clock: &dyn Clock) -> Option<bool> {
        let reply = match self.probes.join_next().await? {
            Ok(reply) => reply,
            Err(error) => {
                tracing::error!("the time probe of a CA failed unexpectedly: {error}");
                return Some(false);
            }
        };
        if reply.answered && self.pending.remove(&reply.ca) {
            tracing::info!("the time probe of {} succeeded", reply.ca);
        }
        let ours = clock.wall();
        let theirs = reply
            .issuer
            .clocks()
            .map_or(ours, |dated| dated.at_ca(ours));
        let corrects = decided_at(None, ours, theirs) != ours;
        Some(reply.answered && (self.jumped || corrects))
    }
}
