//! The result of a pass: shown on the board, logged if it is new, and turned into the
//! instant of the next pass. No pass is launched here.

use std::time::Duration;

use super::agenda::{Agenda, RECHECK};
use super::pass::Finished;
use crate::lineage::Lineage;
use crate::manage::status::status;
use crate::manage::{ManageError, Outcome, Services};
use crate::observe::{Board, Status};
use crate::record::Record;
use crate::renew::decide::{Next, next};
use crate::time::Timestamp;

/// The longest pause while another process holds the lease; the shortest is a quarter.
const ELSEWHERE: Duration = Duration::from_secs(20);
/// The longest spacing between window requests that are due at one instant: the first one
/// finds out for all whether windows are available.
const APART: Duration = Duration::from_secs(10);
/// The number of passes in a row without the lease after which a message is logged.
const LONG_ELSEWHERE: u32 = 50;
/// The longest pause after a pass that found nothing due.
const LONGEST_REST: Duration = Duration::from_secs(86_400);

/// When the next pass over a certificate is due.
pub(super) enum Recheck {
    At(Timestamp),
    /// At the end of its CA's outage, or at this instant to probe the CA.
    WhenAnswered(Timestamp),
    /// After a failure without a stored time for the retry.
    Undated,
    /// After this pause, since another process holds the lease.
    Elsewhere(Duration),
}

/// Shows the result of `pass`, replies to a waiting caller, and returns when the next pass
/// is due.
pub(super) fn report(
    services: &Services,
    board: &Board,
    agenda: &mut Agenda,
    pass: Finished,
) -> Recheck {
    show(services, board, agenda, &pass);
    count(agenda, &pass);
    let recheck = match &pass.ended {
        Ok(outcome) => after_success(services, &pass, outcome),
        Err(error) => after_failure(services, agenda, &pass, error),
    };
    if let Some(reply) = pass.reply {
        // The waiting caller may have ended meanwhile.
        let _ = reply.send(pass.ended);
    }
    recheck
}

/// Posts the status of a managed certificate, and logs an alarm when it gets worse.
fn show(services: &Services, board: &Board, agenda: &mut Agenda, pass: &Finished) {
    let lineage = &pass.lineage;
    let Some(record) = &pass.record else { return };
    if !agenda.get(lineage).is_some_and(|kept| kept.managed) {
        return;
    }
    let shown = status(record, pass.at, services.random.as_ref());
    let level = alarm_level(&shown);
    let alarmed = agenda.change(lineage, |kept| std::mem::replace(&mut kept.alarmed, level));
    if alarmed.is_some_and(|alarmed| level > alarmed) {
        let error = pass.ended.as_ref().err();
        let why = shown.last_error.clone();
        let why = why.or_else(|| error.map(ToString::to_string));
        tracing::error!(%lineage, "{}", alarm(&shown, level, why));
    }
    board.post(shown);
}

/// Counts results that repeat from pass to pass.
fn count(agenda: &mut Agenda, pass: &Finished) {
    agenda.change(&pass.lineage, |kept| {
        kept.deployed = pass.ended.is_ok();
        kept.outages = match &pass.ended {
            Err(error) if error.is_outage() => kept.outages.saturating_add(1),
            Err(ManageError::Unreachable { .. }) => kept.outages,
            _ => 0,
        };
        kept.elsewhere = match pass.is_elsewhere() {
            true => kept.elsewhere.saturating_add(1),
            false => 0,
        };
    });
}

/// Converts an `instant` of the pass's clock to ours; the pause is the same by either.
fn by_our_clock(services: &Services, pass: &Finished, instant: Timestamp) -> Timestamp {
    services.clock.now() + instant.since(pass.at)
}

fn after_success(services: &Services, pass: &Finished, outcome: &Outcome) -> Recheck {
    if outcome.issued {
        let lineage = &pass.lineage;
        tracing::info!(%lineage, generation = %outcome.generation, not_after = %outcome.not_after, "issued");
    }
    // Bounded, since an instant computed while a clock was years ahead would delay the pass
    // as long.
    let next = outcome.next.min(pass.at + LONGEST_REST);
    let apart = spacing(services, outcome, pass.record.as_ref());
    Recheck::At(by_our_clock(services, pass, next) + apart)
}

fn after_failure(
    services: &Services,
    agenda: &mut Agenda,
    pass: &Finished,
    error: &ManageError,
) -> Recheck {
    let (lineage, now, random) = (&pass.lineage, pass.at, services.random.as_ref());
    // A failure was logged when it happened, and an outage by the certificate that met it.
    let waits = matches!(
        error,
        ManageError::BackingOff { .. }
            | ManageError::NotDeployed { .. }
            | ManageError::Unreachable { .. }
            | ManageError::NotDueAtCa { .. }
    );
    let elsewhere = agenda.get(lineage).map_or(0, |kept| kept.elsewhere);
    if !waits && (elsewhere == 0 || elsewhere == LONG_ELSEWHERE) {
        log_failure(lineage, error);
    }
    let record = pass.record.as_ref();
    let next = record.map(|record| next(record, now, random));
    let ours = |instant| by_our_clock(services, pass, instant);
    match (error.waits_until(), next) {
        _ if elsewhere > 0 => {
            // Random, since many certificates may wait for the same process.
            let drawn = random.below(ELSEWHERE.as_secs() * 3 / 4 + 1);
            Recheck::Elsewhere(ELSEWHERE / 4 + Duration::from_secs(drawn))
        }
        (Some(until), _) if matches!(error, ManageError::Unreachable { .. }) => {
            Recheck::WhenAnswered(ours(until.min(now + RECHECK)))
        }
        (Some(until), _) => Recheck::At(ours(agenda.queue_for_token(lineage, error, until, now))),
        (None, Some(Next::Wait(until))) => Recheck::At(ours(until.min(now + RECHECK))),
        _ => Recheck::Undated,
    }
}

/// A random delay for a due window request, since the first request finds out for all
/// certificates. Nothing else is delayed.
fn spacing(services: &Services, outcome: &Outcome, record: Option<&Record>) -> Duration {
    let issued = record.and_then(|record| record.issued.as_ref());
    let asked_at = issued.and_then(|issued| issued.renewal.as_ref()?.refresh_at);
    let (Some(due), true) = (outcome.renewal, asked_at == Some(outcome.next)) else {
        return Duration::ZERO;
    };
    let most = APART.min(due.since(outcome.next)).as_millis();
    let most = u64::try_from(most).unwrap_or(u64::MAX);
    Duration::from_millis(services.random.below(most))
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

pub(super) fn log_failure(lineage: &Lineage, error: &ManageError) {
    tracing::error!(%lineage, "{error}; hint: {}", error.hint());
}
