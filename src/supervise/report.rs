//! How a pass ended: shown on the board, told where it is news, and turned into the
//! instant of the next one.

use std::time::Duration;

use super::agenda::{Agenda, LOOK_AGAIN};
use super::pass::Finished;
use crate::identifier::Lineage;
use crate::manage::status::status;
use crate::manage::{ManageError, Outcome, Services};
use crate::observe::{Board, Status};
use crate::record::Record;
use crate::renew::decide::{Next, next};
use crate::time::Timestamp;

/// While another process works on it, at most; a quarter of it at least.
const ELSEWHERE: Duration = Duration::from_secs(20);
/// Looks that can wait are so far apart, at most, in a fleet whose certificates are
/// looked at at one instant: the first has done by then what all would come for.
const APART: Duration = Duration::from_secs(10);
/// Looks in a row that found another process at work, until the owner is told.
const LONG_ELSEWHERE: u32 = 50;
/// After a look that found nothing to do, at most.
const LONGEST_REST: Duration = Duration::from_secs(86_400);

/// When a certificate is looked at again.
pub(super) enum Again {
    At(Timestamp),
    /// When its CA answers, or else to see whether it does.
    Answered(Timestamp),
    /// After a failure that the record could not date.
    Undated,
    /// After that time, since another process works on it.
    Elsewhere(Duration),
}

/// Shows how `pass` ended, answers the caller that waits for it, and says when the
/// certificate is to be looked at again.
pub(super) fn report(
    services: &Services,
    board: &Board,
    agenda: &mut Agenda,
    pass: Finished,
) -> Again {
    show(services, board, agenda, &pass);
    count(agenda, &pass);
    let again = match &pass.ended {
        Ok(outcome) => after_success(services, &pass, outcome),
        Err(error) => after_failure(services, agenda, &pass, error),
    };
    if let Some(reply) = pass.reply {
        // A caller that waited may have gone away meanwhile.
        let _ = reply.send(pass.ended);
    }
    again
}

/// Posts the state of what is managed, with an alarm when it has become worse.
fn show(services: &Services, board: &Board, agenda: &mut Agenda, pass: &Finished) {
    let lineage = &pass.lineage;
    let Some(record) = &pass.record else { return };
    if !agenda.get(lineage).is_some_and(|kept| kept.managed) {
        return;
    }
    let shown = status(record, pass.at, services.random.as_ref());
    let level = alarm_level(&shown);
    let told = agenda.change(lineage, |kept| std::mem::replace(&mut kept.told, level));
    if told.is_some_and(|told| level > told) {
        let error = pass.ended.as_ref().err();
        let why = shown.last_error.clone();
        let why = why.or_else(|| error.map(ToString::to_string));
        tracing::error!(%lineage, "{}", alarm(&shown, level, why));
    }
    board.post(shown);
}

/// Counts what repeats from pass to pass.
fn count(agenda: &mut Agenda, pass: &Finished) {
    agenda.change(&pass.lineage, |kept| {
        kept.whole = pass.ended.is_ok();
        kept.silences = match &pass.ended {
            Err(error) if error.is_outage() => kept.silences.saturating_add(1),
            Err(ManageError::Down { .. }) => kept.silences,
            _ => 0,
        };
        kept.elsewhere = match pass.is_elsewhere() {
            true => kept.elsewhere.saturating_add(1),
            false => 0,
        };
    });
}

/// `instant` of the pass's clock by ours: the time to wait is the same by either.
fn by_our_clock(services: &Services, pass: &Finished, instant: Timestamp) -> Timestamp {
    services.clock.now() + instant.since(pass.at)
}

fn after_success(services: &Services, pass: &Finished, outcome: &Outcome) -> Again {
    if outcome.issued {
        let lineage = &pass.lineage;
        tracing::info!(%lineage, generation = %outcome.generation, not_after = %outcome.not_after, "issued");
    }
    // A clock that was years ahead for a moment would put it off as long.
    let next = outcome.next.min(pass.at + LONGEST_REST);
    let apart = apart(services, outcome, pass.record.as_ref());
    Again::At(by_our_clock(services, pass, next) + apart)
}

fn after_failure(
    services: &Services,
    agenda: &mut Agenda,
    pass: &Finished,
    error: &ManageError,
) -> Again {
    let (lineage, now, random) = (&pass.lineage, pass.at, services.random.as_ref());
    // What waits after a failure was told when it failed, and an
    // outage by the certificate that met it.
    let waits = matches!(
        error,
        ManageError::BackingOff { .. }
            | ManageError::NotHandedOver { .. }
            | ManageError::Down { .. }
            | ManageError::NotDueThere { .. }
    );
    let elsewhere = agenda.get(lineage).map_or(0, |kept| kept.elsewhere);
    if !waits && (elsewhere == 0 || elsewhere == LONG_ELSEWHERE) {
        tell(lineage, error);
    }
    let record = pass.record.as_ref();
    let next = record.map(|record| next(record, now, random));
    let ours = |instant| by_our_clock(services, pass, instant);
    match (error.waits_until(), next) {
        _ if elsewhere > 0 => {
            // Many wait for the same one: not all come back at once.
            let drawn = random.below(ELSEWHERE.as_secs() * 3 / 4 + 1);
            Again::Elsewhere(ELSEWHERE / 4 + Duration::from_secs(drawn))
        }
        (Some(until), _) if matches!(error, ManageError::Down { .. }) => {
            Again::Answered(ours(until.min(now + LOOK_AGAIN)))
        }
        (Some(until), _) => Again::At(ours(agenda.in_line(lineage, error, until, now))),
        (None, Some(Next::Wait(until))) => Again::At(ours(until.min(now + LOOK_AGAIN))),
        _ => Again::Undated,
    }
}

/// How much later than at its instant the question for a window may come: the first
/// pass asks it for the whole fleet. Nothing else is put off.
fn apart(services: &Services, outcome: &Outcome, record: Option<&Record>) -> Duration {
    let issued = record.and_then(|record| record.issued.as_ref());
    let asked_at = issued.and_then(|issued| issued.renewal.as_ref()?.refresh_at);
    let (Some(due), true) = (outcome.renewal, asked_at == Some(outcome.next)) else {
        return Duration::ZERO;
    };
    let most = APART.min(due.since(outcome.next)).as_millis();
    let most = u64::try_from(most).unwrap_or(u64::MAX);
    Duration::from_millis(services.random.below(most))
}

/// How bad it is: 1 late, 2 critical.
pub(super) fn alarm_level(shown: &Status) -> usize {
    match shown {
        Status { critical: true, .. } => 2,
        Status { late: true, .. } => 1,
        _ => 0,
    }
}

pub(super) fn alarm(shown: &Status, level: usize, why: Option<String>) -> String {
    let what = if level == 2 { "critical" } else { "late" };
    let why = why.unwrap_or_else(|| "no failure is known".into());
    let end = shown.not_after.map(|at| at.to_string()).unwrap_or_default();
    format!(
        "{what}: it ends at {end} and is not renewed: {why}; hint: certs status tells what it waits for; certs issue with the same names tries at once"
    )
}

pub(super) fn tell(lineage: &Lineage, error: &ManageError) {
    tracing::error!(%lineage, "{error}; hint: {}", error.hint());
}
