//! The outage of a CA: one request probes it on behalf of all, and the others wait. The
//! requests themselves are not sent here.

use super::intended::Intended;
use super::shared::change;
use crate::acme::{AcmeError, Cause, Issuer};
use crate::ca_state::{CaState, Outage};
use crate::manage::error::ManageError;
use crate::manage::services::Services;
use crate::renew::policy::{ORDERS_FIRST, STEP_BACK, TOKENS_FIRST};
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
    /// Whether an outage that it meets concerns windows alone.
    fn is_for_windows(&self) -> bool {
        matches!(self, Self::Window)
    }

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
        // A probe that a wrong clock has dated delays nothing.
        let until_others = |first| {
            let latest = outage.probe_at + first;
            (outage.probe_at <= now && now < latest).then_some(latest)
        };
        match self {
            Self::Order(intended) => {
                let latest = until_others(TOKENS_FIRST)?;
                let until = intended.as_ref()?.refused_until(state, ca, now)?;
                Some(until.min(latest))
            }
            Self::Window if outage.windows_only => None,
            Self::Window => until_others(ORDERS_FIRST),
        }
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
        change(services, ca, |state| note(&mut state.outage, &unsaved)).await?;
        services.probes.of(ca, |known| {
            known.unsaved.take_if(|newest| *newest == unsaved);
        });
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
        if let Some(known) = same_outage(&mut state.outage, &outage) {
            known.answered = true;
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
        retry_after: Some(retry_after),
        ..
    } = error.cause
    {
        outage = after_retry_after(outage, retry_after, now);
    }
    let pause = outage.probe_at.since(now) + STEP_BACK;
    let retry_at = services.clock.stopwatch() + pause;
    services.probes.of(ca, |known| known.retry_at = retry_at);
    change(services, ca, |state| {
        if let Some(known) = same_outage(&mut state.outage, &outage) {
            let since = known.since.min(outage.since);
            // Another pass may have claimed the next probe meanwhile.
            if known.probe_at <= outage.probe_at || !is_waited_for(known, now) {
                known.clone_from(&outage);
            }
            known.since = since;
        }
    })
    .await?;
    Ok(unreachable(ca, &outage, now + pause))
}

/// The stored outage, if it still concerns the same operations as `outage`.
fn same_outage<'s>(stored: &'s mut Option<Outage>, outage: &Outage) -> Option<&'s mut Outage> {
    let stored = stored.as_mut();
    stored.filter(|known| known.windows_only == outage.windows_only)
}

/// Notes `outage` where none is `known`; one of orders replaces one of windows.
fn note(known: &mut Option<Outage>, outage: &Outage) {
    if known
        .as_ref()
        .is_none_or(|known| known.windows_only && !outage.windows_only)
    {
        *known = Some(outage.clone());
    }
}

/// Notes that `operation` got an answer from the CA, which ends its outage. After an order
/// the next request for a window probes the windows.
pub(crate) async fn note_available(services: &Services, ca: &str, operation: Operation<'_>) {
    let (now, is_for_windows) = (services.clock.now(), operation.is_for_windows());
    let ends = |outage: &mut Outage| outage.windows_only == is_for_windows;
    services.probes.of(ca, |known| {
        known.unsaved.take_if(ends);
    });
    let ended = change(services, ca, |state| {
        if let Some(outage) = state.outage.as_mut().filter(|outage| outage.windows_only) {
            outage.probe_at = outage.probe_at.min(now);
        }
        state.outage.take_if(ends)
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
    let windows_only = operation.is_for_windows();
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
    let noted = noted.await;
    if let Err(error) = &noted {
        tracing::warn!("the outage of {ca} could not be stored: {error}");
    }
    services.probes.of(ca, |known| match noted {
        Ok(()) => {
            // A stored outage of orders stands for one of windows, too.
            let unsaved = &mut known.unsaved;
            unsaved.take_if(|outage| outage.windows_only || !windows_only);
        }
        Err(_) => note(&mut known.unsaved, &begun(None)),
    });
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
