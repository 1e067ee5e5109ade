//! The outage of a CA: one certificate probes it on behalf of all, and the others wait.
//! Orders and windows are not sent here.

use std::time::Duration;

use super::intended::Intended;
use super::shared::change;
use crate::acme::{AcmeError, Cause, Issuer};
use crate::ca_state::Outage;
use crate::manage::error::ManageError;
use crate::manage::probes::{OPERATIONS, Operation, STEP_BACK};
use crate::manage::services::Services;
use crate::renew::reachability::{
    LONGEST_PAUSE, after_failed_probe, after_retry_after, is_waited_for,
};
use crate::time::{Timestamp, length};

/// A certificate with an order probes within minutes; after this time no order is waiting.
const NO_ORDERS_AFTER: Duration = Duration::from_secs(3600);

/// For this time a certificate with a token for its order probes before those without.
const OTHERS_FIRST: Duration = Duration::from_secs(300);

/// Lets one certificate probe an unreachable CA when a probe is due. A certificate whose
/// `order` is pending already or has a token comes first, since only an order shows that
/// the CA issues again.
///
/// # Errors
/// [`ManageError::Unreachable`] during the outage.
pub(crate) async fn reach(
    services: &Services,
    ca: &str,
    issuer: &dyn Issuer,
    order: Option<Intended<'_>>,
) -> Result<(), ManageError> {
    store_unsaved(services, ca).await?;
    claim(services, ca, issuer, Operation::Orders, order).await?;
    Ok(())
}

/// Lets one certificate request a renewal window on behalf of all while windows are
/// unavailable, and none while orders meet an outage or their probe is less than an hour
/// overdue. Returns whether this certificate probes for all.
///
/// # Errors
/// [`ManageError::Unreachable`] while no window may be requested.
pub(crate) async fn reach_windows(
    services: &Services,
    ca: &str,
    issuer: &dyn Issuer,
) -> Result<bool, ManageError> {
    store_unsaved(services, ca).await?;
    let (known, _) = services.store.ca_state(ca).await?;
    let now = services.clock.now();
    if let Some(outage) = &known.outage
        && !outage.answered
        && (is_waited_for(outage, now) || is_recently_due(outage, now))
    {
        return Err(unreachable(ca, outage, outage.probe_at));
    }
    if known.windowless.is_none() {
        return Ok(false);
    }
    claim(services, ca, issuer, Operation::Windows, None).await
}

/// Stores an outage that could not be stored before. While the store fails, no certificate
/// could be stored either.
///
/// # Errors
/// Those of the store; the CA is not contacted then.
async fn store_unsaved(services: &Services, ca: &str) -> Result<(), ManageError> {
    let unsaved = services.probes.unsaved(ca);
    if unsaved == [None, None] {
        return Ok(());
    }
    let saved = change(services, ca, |state| {
        for (work, outage) in OPERATIONS.into_iter().zip(&unsaved) {
            if let (known @ None, Some(outage)) = (work.of(state), outage) {
                *known = Some(outage.clone());
            }
        }
    });
    saved.await?;
    let saved = OPERATIONS.into_iter().zip(&unsaved);
    let saved = saved.filter_map(|(work, outage)| outage.as_ref().map(|_| work));
    services.probes.forget(ca, &saved.collect::<Vec<_>>());
    Ok(())
}

/// Whether an order may still be about to probe.
fn is_recently_due(outage: &Outage, now: Timestamp) -> bool {
    outage.probe_at <= now && now.since(outage.probe_at) < NO_ORDERS_AFTER
}

/// Claims and sends the due probe, and returns whether this certificate has probed.
async fn claim(
    services: &Services,
    ca: &str,
    issuer: &dyn Issuer,
    work: Operation,
    order: Option<Intended<'_>>,
) -> Result<bool, ManageError> {
    let (now, random) = (services.clock.now(), services.random.as_ref());
    let retry_at = services.probes.retry_at(ca);
    let claimed = change(services, ca, |state| {
        let Some(outage) = work.of(state).clone() else {
            return Ok(false);
        };
        let longest = LONGEST_PAUSE * 6 / 5;
        let is_sound = outage.probe_at <= now && now.since(outage.probe_at) <= longest;
        let last = match is_sound {
            true => outage.probe_at,
            // The probe was dated by another machine's wrong clock, or our clock is wrong.
            false => now + longest,
        };
        let steps_back = retry_at > now && retry_at <= last + STEP_BACK;
        if is_waited_for(&outage, now) {
            let last = outage.probe_at + STEP_BACK;
            return Err(unreachable(
                ca,
                &outage,
                outage.probe_at.max(retry_at.min(last)),
            ));
        }
        if steps_back {
            return Err(unreachable(ca, &outage, retry_at));
        }
        let others_first = outage.probe_at + OTHERS_FIRST;
        let order = order.as_ref().filter(|_| now < others_first);
        if let Some(until) = order.and_then(|order| order.refused_until(state, ca, now)) {
            return Err(unreachable(ca, &outage, until.min(others_first)));
        }
        // Another pass meanwhile waits for the probe after this one.
        let next = after_failed_probe(Some(&outage), outage.last.clone(), now, random);
        *work.of(state) = Some(next);
        Ok(true)
    });
    if !claimed.await?? {
        return Ok(false);
    }
    let Err(error) = issuer.probe().await else {
        // The directory is reachable; only the next request shows whether this operation
        // works. Until then the others keep waiting.
        services.probes.succeeded(ca);
        let there = change(services, ca, |state| {
            if let Some(outage) = work.of(state) {
                outage.answered = true;
            }
        });
        there.await?;
        return Ok(true);
    };
    Err(note_failed_probe(services, ca, work, error, now).await?)
}

/// Notes a failed probe, and returns the outage that this process waits for. `now` is the
/// reading before the probe, which dated the outage.
async fn note_failed_probe(
    services: &Services,
    ca: &str,
    work: Operation,
    error: AcmeError,
    now: Timestamp,
) -> Result<ManageError, ManageError> {
    let random = services.random.as_ref();
    tracing::warn!("{ca} is still unreachable: {error}");
    let asked = match &error.cause {
        Cause::RateLimited { retry_after, .. } => *retry_after,
        _ => None,
    };
    let outage = change(services, ca, |state| {
        let outage = work.of(state).take()?;
        let last = error.to_string();
        // Another machine with a wrong clock may have dated the probe meanwhile.
        let outage = match outage.probe_at > now && !is_waited_for(&outage, now) {
            true => after_failed_probe(Some(&outage), last, now, random),
            false => Outage { last, ..outage },
        };
        let outage = asked.map_or(outage.clone(), |asked| {
            after_retry_after(outage, asked, now)
        });
        let retry_at = outage.probe_at + STEP_BACK;
        services.probes.failed(ca, outage.probe_at);
        let down = unreachable(ca, &outage, retry_at);
        *work.of(state) = Some(outage);
        Some(down)
    });
    Ok(outage.await?.unwrap_or(ManageError::Acme(error)))
}

/// Notes that the CA has issued or refused: its outage ends, and its windows are probed.
pub(crate) async fn note_available(services: &Services, ca: &str) {
    let now = services.clock.now();
    services.probes.forget(ca, &[Operation::Orders]);
    let before = change(services, ca, |state| {
        // The next certificate probes the windows on behalf of all.
        if let Some(silent) = &mut state.windowless {
            silent.probe_at = silent.probe_at.min(now);
        }
        state.outage.take()
    });
    match before.await {
        Ok(None) => {}
        Ok(Some(outage)) => {
            tracing::info!(
                "{ca} is reachable again, after {}",
                lasted(&outage, services)
            )
        }
        Err(error) => tracing::warn!("the end of the outage of {ca} could not be stored: {error}"),
    }
}

/// Notes that the CA has sent a renewal window.
pub(crate) async fn note_windows(services: &Services, ca: &str) {
    services.probes.forget(ca, &[Operation::Windows]);
    let before = change(services, ca, |state| {
        if let Some(outage) = &mut state.outage {
            outage.answered = true;
        }
        state.windowless.take()
    });
    match before.await {
        Ok(None) => {}
        Ok(Some(silent)) => {
            tracing::info!(
                "{ca} sends renewal windows again, after {}",
                lasted(&silent, services)
            );
        }
        Err(error) => tracing::warn!("the windows of {ca} could not be noted: {error}"),
    }
}

/// Notes that the CA was unreachable for `work`: requests pause until the next probe.
pub(crate) async fn note_outage(services: &Services, ca: &str, work: Operation, last: &str) {
    let (now, random) = (services.clock.now(), services.random.as_ref());
    let noted = change(services, ca, |state| {
        let known = work.of(state);
        let begun = known.as_ref();
        if begun.is_none_or(|outage| !is_waited_for(outage, now)) {
            *known = Some(after_failed_probe(begun, last.to_owned(), now, random));
        }
    });
    match noted.await {
        Ok(()) => services.probes.forget(ca, &[work]),
        Err(error) => {
            tracing::warn!("the outage of {ca} could not be stored: {error}");
            let outage = after_failed_probe(None, last.to_owned(), now, random);
            services.probes.keep_unsaved(ca, work, outage);
        }
    }
}

/// The error of an outage; this process retries at `until`.
fn unreachable(ca: &str, outage: &Outage, until: Timestamp) -> ManageError {
    ManageError::Unreachable {
        ca: ca.to_owned(),
        since: outage.since,
        until,
        last: outage.last.clone(),
    }
}

fn lasted(outage: &Outage, services: &Services) -> String {
    length(services.clock.now().since(outage.since))
}
