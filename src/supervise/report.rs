//! The result of a pass: shown on the board, logged if it is new, and turned into the
//! instant of the next pass. No pass is launched here.

use std::time::Duration;

use super::pass::{Finished, Recheck, is_elsewhere, is_overtaken, log_failure};
use super::supervisor::Supervisor;
use crate::manage::status::status;
use crate::manage::{ManageError, Outcome};
use crate::observe::{ProofState, Status};
use crate::renew::decide::{Next, next};
use crate::renew::look::{look_at, sooner};
use crate::renew::policy::{LEASED_PAUSE, LONG_LEASED, LONGEST_RECHECK, RECHECK, WINDOW_SPREAD};
use crate::time::Timestamp;

impl Supervisor {
    /// Shows the result of `pass`, replies to a waiting caller, and returns when the next
    /// pass is due.
    pub(super) fn report(&mut self, pass: Finished) -> Recheck {
        self.show(&pass);
        self.count(&pass);
        let recheck = match &pass.ended {
            Ok(outcome) => self.after_success(&pass, outcome),
            Err(error) => self.after_failure(&pass, error),
        };
        if let Some(reply) = pass.reply {
            // The waiting caller may have ended meanwhile.
            let _ = reply.send(pass.ended);
        }
        recheck
    }

    /// Posts the status of a managed certificate, and logs an alarm when it gets worse.
    fn show(&mut self, pass: &Finished) {
        let lineage = &pass.lineage;
        let Some(record) = &pass.record else { return };
        if !self.agenda.get(lineage).is_some_and(|entry| entry.managed) {
            return;
        }
        let shown = status(record, pass.at, self.services.random.as_ref());
        let entry = self.agenda.get(lineage);
        let orphaned = entry.is_some_and(|entry| entry.certificate.is_orphaned());
        // What no endpoint serves any more may expire.
        let level = match orphaned && shown.proof.state != ProofState::Proven {
            true => 0,
            false => alarm_level(&shown),
        };
        let before = self.agenda.change(lineage, |entry| {
            std::mem::replace(&mut entry.alarmed, level)
        });
        if before.is_some_and(|before| level > before) {
            let error = pass.ended.as_ref().err();
            let why =
                orphaned.then(|| "it is orphaned, and an endpoint still serves it".to_owned());
            let why = why.or_else(|| shown.last_error.clone());
            let why = why.or_else(|| error.map(ToString::to_string));
            tracing::error!(%lineage, "{}", alarm(&shown, level, why));
        }
        self.board.post(shown);
    }

    /// Counts results that repeat from pass to pass.
    fn count(&mut self, pass: &Finished) {
        self.agenda.change(&pass.lineage, |entry| {
            entry.deployed = pass.ended.is_ok() && !entry.certificate.is_orphaned();
            entry.outages = match &pass.ended {
                Err(error) if error.is_outage() => entry.outages.saturating_add(1),
                Err(ManageError::Unreachable { .. }) => entry.outages,
                _ => 0,
            };
            entry.elsewhere = match is_elsewhere(&pass.ended) || is_overtaken(&pass.ended) {
                true => entry.elsewhere.saturating_add(1),
                false => 0,
            };
        });
    }

    /// Converts an `instant` of the pass's clock to ours; the pause is the same by either.
    fn by_our_clock(&self, pass: &Finished, instant: Timestamp) -> Timestamp {
        self.services.clock.now() + instant.since(pass.at)
    }

    /// When an endpoint is looked at again. A pass that has just ended is not repeated at
    /// once, whatever its record says.
    fn look_at(&self, pass: &Finished) -> Option<Timestamp> {
        let every = self.services.looks?.every;
        let at = match self.board.is_unlooked(&pass.lineage) {
            true => pass.at,
            false => look_at(pass.record.as_ref()?, every, pass.at)?,
        };
        Some(at.max(pass.at + sooner(every)))
    }

    fn after_success(&self, pass: &Finished, outcome: &Outcome) -> Recheck {
        if outcome.issued {
            let lineage = &pass.lineage;
            tracing::info!(%lineage, generation = %outcome.generation, not_after = %outcome.not_after, "issued");
        }
        // Bounded, since an instant computed while a clock was years ahead would delay the
        // pass as long.
        let next = outcome.next.min(pass.at + LONGEST_RECHECK);
        let next = self.by_our_clock(pass, next) + self.spacing(pass, outcome);
        let look = self.look_at(pass).map(|at| self.by_our_clock(pass, at));
        Recheck::at(look.map_or(next, |look| next.min(look)))
    }

    fn after_failure(&mut self, pass: &Finished, error: &ManageError) -> Recheck {
        let (lineage, now, random) = (&pass.lineage, pass.at, self.services.random.clone());
        // A failure was logged when it happened, an outage by the certificate that met it, and a
        // wrong clock by its alarm.
        let was_logged = matches!(
            error,
            ManageError::BackingOff { .. }
                | ManageError::NotDeployed { .. }
                | ManageError::Unreachable { .. }
                | ManageError::NotDueAtCa { .. }
        );
        let elsewhere = self.agenda.get(lineage).map_or(0, |entry| entry.elsewhere);
        if !was_logged && (elsewhere == 0 || elsewhere == LONG_LEASED) {
            log_failure(lineage, error);
        }
        if elsewhere == 1 && is_overtaken(&pass.ended) {
            // With the newer record.
            tracing::debug!(%lineage, "{error}; the pass begins again");
            return Recheck::at(self.services.clock.now());
        }
        if elsewhere > 0 {
            // Random, since many certificates may wait for the same process.
            let drawn = Duration::from_secs(random.below(LEASED_PAUSE.as_secs() * 3 / 4 + 1));
            return Recheck::at(self.services.clock.now() + LEASED_PAUSE / 4 + drawn);
        }
        let record = pass.record.as_ref();
        let next = record.map(|record| next(record, now, random.as_ref()));
        let waits_for_ca = matches!(error, ManageError::Unreachable { .. });
        let at = match (error.waits_until(), next) {
            (Some(until), _) if !waits_for_ca => {
                Some(self.agenda.queue_for_token(lineage, error, until, now))
            }
            (Some(until), _) | (None, Some(Next::Wait(until))) => Some(until.min(now + RECHECK)),
            _ if matches!(error, ManageError::CannotOrder(_)) => Some(now + RECHECK),
            _ => None,
        };
        let at = at.map(|at| self.look_at(pass).map_or(at, |look| at.min(look)));
        Recheck {
            at: at.map(|at| self.by_our_clock(pass, at)),
            waits_for_ca,
        }
    }

    /// A random delay for a due window request, since the first request finds out for all
    /// certificates. Nothing else is delayed.
    fn spacing(&self, pass: &Finished, outcome: &Outcome) -> Duration {
        let issued = pass
            .record
            .as_ref()
            .and_then(|record| record.issued.as_ref());
        let refresh_at = issued.and_then(|issued| issued.renewal.as_ref()?.refresh_at);
        let (Some(due), true) = (outcome.renewal, refresh_at == Some(outcome.next)) else {
            return Duration::ZERO;
        };
        let most = WINDOW_SPREAD.min(due.since(outcome.next)).as_millis();
        let most = u64::try_from(most).unwrap_or(u64::MAX);
        Duration::from_millis(self.services.random.below(most))
    }
}

/// The level of the alarm: 0 none, 1 overdue, 2 critical.
pub(super) fn alarm_level(shown: &Status) -> usize {
    match shown {
        Status { critical: true, .. } => 2,
        Status { overdue: true, .. } => 1,
        _ => 0,
    }
}

pub(super) fn alarm(shown: &Status, level: usize, why: Option<String>) -> String {
    let what = if level == 2 { "critical" } else { "overdue" };
    let why = why.unwrap_or_else(|| "no known failure".into());
    let end = shown.not_after.map(|at| at.to_string()).unwrap_or_default();
    format!(
        "{what}: the certificate expires at {end} and is not renewed: {why}; hint: certs status shows what it waits for; certs issue with the same names retries at once"
    )
}
