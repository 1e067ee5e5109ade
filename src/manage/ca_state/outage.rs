//! The outage of a CA: one request probes it on behalf of all, and the others wait. The
//! requests themselves are not sent here.

use super::intended::Intended;
use super::shared::change;
use crate::acme::{AcmeError, Cause, Issuer};
use crate::ca_state::{CaState, Outage};
use crate::manage::error::ManageError;
use crate::manage::services::Services;
use crate::renew::policy::{ORDERS_FIRST, STEP_BACK};
use crate::renew::reachability::{after_failed_probe, after_retry_after, is_waited_for};
use crate::time::{Timestamp, length};

/// A request that an outage may stop.
pub(crate) enum Operation<'o> {
    /// An order; `None` if it is pending at the CA already.
    Order(Option<Intended<'o>>),
    /// A renewal window, or the CA's time.
    Window,
}

impl Operation<'_> {
    /// Whether it may be sent during `outage`. Orders go on while only windows are
    /// unavailable, and windows once the directory answers.
    fn passes(&self, outage: &Outage) -> bool {
        match self {
            Self::Order(_) => outage.windows_only,
            Self::Window => !outage.windows_only && outage.answered,
        }
    }

    /// Until when another request should probe first: only an order shows that the CA
    /// issues again, and an order needs a token.
    fn yields_until(
        &self,
        outage: &Outage,
        state: &CaState,
        ca: &str,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let latest = outage.probe_at + ORDERS_FIRST;
        let until = match self {
            // A probe that a wrong clock has dated is no reason to wait.
            _ if outage.probe_at > now || latest <= now => None,
            Self::Order(intended) => intended.as_ref()?.refused_until(state, ca, now),
            Self::Window => (!outage.windows_only).then_some(latest),
        };
        until.map(|until| until.min(latest))
    }
}

/// Lets `operation` go to the CA, unless an outage stops it. When a probe is due, this
/// request probes the CA for all others; then it returns true.
///
/// # Errors
/// [`ManageError::Unreachable`] during the outage, and those of the store: while an outage
/// cannot be stored, no certificate could be stored either.
pub(crate) async fn reach(
    services: &Services,
    ca: &str,
    issuer: &dyn Issuer,
    operation: Operation<'_>,
) -> Result<bool, ManageError> {
    if let Some(unsaved) = services.probes.of(ca, |known| known.unsaved.clone()) {
        change(services, ca, |state| {
            state.outage.get_or_insert_with(|| unsaved.clone());
        })
        .await?;
        services.probes.of(ca, |known| known.unsaved = None);
    }
    let (now, random) = (services.clock.now(), services.random.as_ref());
    let stopwatch = services.clock.stopwatch();
    let retry_at = services.probes.of(ca, |known| known.retry_at);
    let retry_at = now + retry_at.saturating_sub(stopwatch);
    let claimed = change(services, ca, |state| {
        let Some(outage) = state
            .outage
            .as_ref()
            .filter(|outage| !operation.passes(outage))
        else {
            return Ok(None);
        };
        if is_waited_for(outage, now) {
            return Err(unreachable(ca, outage, outage.probe_at.max(retry_at)));
        }
        let until = operation.yields_until(outage, state, ca, now);
        if let Some(until) = until.or((retry_at > now).then_some(retry_at)) {
            return Err(unreachable(ca, outage, until));
        }
        // Another pass meanwhile waits for the probe after this one.
        let next = after_failed_probe(Some(outage), outage.last.clone(), now, random);
        state.outage = Some(next.clone());
        Ok(Some(next))
    });
    let Some(outage) = claimed.await?? else {
        return Ok(false);
    };
    if let Err(error) = issuer.probe().await {
        return Err(note_failed_probe(services, ca, outage, error, now).await?);
    }
    // The directory is reachable; only the next request shows whether this operation
    // works. Until then the others keep waiting.
    services.probes.of(ca, |known| known.retry_at = stopwatch);
    change(services, ca, |state| {
        if let Some(outage) = &mut state.outage {
            outage.answered = true;
        }
    })
    .await?;
    Ok(true)
}

/// Notes a failed probe, and returns the `outage` that this process waits for. `now` is the
/// reading before the probe, which dated the outage.
async fn note_failed_probe(
    services: &Services,
    ca: &str,
    mut outage: Outage,
    error: AcmeError,
    now: Timestamp,
) -> Result<ManageError, ManageError> {
    tracing::warn!("{ca} is still unreachable: {error}");
    outage.last = error.to_string();
    if let Cause::RateLimited {
        retry_after: Some(asked),
        ..
    } = error.cause
    {
        outage = after_retry_after(outage, asked, now);
    }
    let pause = outage.probe_at.since(now) + STEP_BACK;
    let retry_at = services.clock.stopwatch() + pause;
    services.probes.of(ca, |known| known.retry_at = retry_at);
    change(services, ca, |state| {
        if let Some(known) = &mut state.outage {
            known.clone_from(&outage);
        }
    })
    .await?;
    Ok(unreachable(ca, &outage, now + pause))
}

/// Notes that `operation` got an answer from the CA. An order ends every outage, a window
/// only one of windows.
pub(crate) async fn note_available(services: &Services, ca: &str, operation: Operation<'_>) {
    services.probes.of(ca, |known| known.unsaved = None);
    let ended = change(services, ca, |state| {
        let is_order = matches!(operation, Operation::Order(_));
        state
            .outage
            .take_if(|outage| is_order || outage.windows_only)
    });
    match ended.await {
        Ok(None) => {}
        Ok(Some(outage)) => {
            let lasted = length(services.clock.now().since(outage.since));
            tracing::info!("{ca} is available again, after {lasted}");
        }
        Err(error) => tracing::warn!("the end of the outage of {ca} could not be stored: {error}"),
    }
}

/// Notes that the CA was unreachable for `operation`: requests pause until the next probe.
pub(crate) async fn note_outage(
    services: &Services,
    ca: &str,
    operation: Operation<'_>,
    last: &str,
) {
    let (now, random) = (services.clock.now(), services.random.as_ref());
    let windows_only = matches!(operation, Operation::Window);
    let begun = |before: Option<&Outage>| Outage {
        windows_only,
        ..after_failed_probe(before, last.to_owned(), now, random)
    };
    let noted = change(services, ca, |state| match &mut state.outage {
        // The next windows wait for a probe.
        Some(outage) if windows_only && !outage.windows_only => outage.answered = false,
        Some(outage) if outage.windows_only == windows_only => {
            if !is_waited_for(outage, now) {
                *outage = begun(Some(outage));
            }
        }
        known => *known = Some(begun(None)),
    });
    let unsaved = match noted.await {
        Ok(()) => None,
        Err(error) => {
            tracing::warn!("the outage of {ca} could not be stored: {error}");
            Some(begun(None))
        }
    };
    services.probes.of(ca, |known| known.unsaved = unsaved);
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
