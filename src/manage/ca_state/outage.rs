//! A CA that is unreachable: one certificate of all that need it finds out whether it
//! answers again, and the others leave it alone.

use std::time::Duration;

use super::intended::Intended;
use super::shared::change;
use crate::acme::{AcmeError, Cause, Issuer};
use crate::ca_state::Outage;
use crate::manage::error::ManageError;
use crate::manage::probes::{STEPPED_BACK, WORKS, Work};
use crate::manage::services::Services;
use crate::renew::outage::{LONGEST_PAUSE, after_request, after_silence, is_waited_for};
use crate::time::Timestamp;

/// A certificate with an order asks within minutes; after so long there is none.
const NO_ORDERS_AFTER: Duration = Duration::from_secs(3600);

/// For so long a certificate with a token for its order asks before those without.
const OTHERS_FIRST: Duration = Duration::from_secs(300);

/// Lets one certificate for all ask a CA that is unreachable, when it is time: first one
/// whose `order`, unless it is begun already, the ledger has a token for. That the CA is at
/// work again is told by an order alone: without one, the others would wait on for nothing.
///
/// # Errors
/// [`ManageError::Down`] while it does not answer.
pub(crate) async fn reach(
    services: &Services,
    ca: &str,
    issuer: &dyn Issuer,
    order: Option<Intended<'_>>,
) -> Result<(), ManageError> {
    catch_up(services, ca).await?;
    claim(services, ca, issuer, Work::Orders, order).await?;
    Ok(())
}

/// The same for a renewal window: while orders find no CA there, and within an hour of
/// the time at which one would, windows are not asked for at all, and by one for all where
/// they are not to be had. Says whether this one asks for all.
///
/// # Errors
/// [`ManageError::Down`] while they are not to be asked for.
pub(crate) async fn reach_windows(
    services: &Services,
    ca: &str,
    issuer: &dyn Issuer,
) -> Result<bool, ManageError> {
    catch_up(services, ca).await?;
    let (known, _) = services.store.ca_state(ca).await?;
    let now = services.clock.now();
    if let Some(outage) = &known.outage
        && !outage.answered
        && (is_waited_for(outage, now) || is_just_over(outage, now))
    {
        return Err(down(ca, outage, outage.probe_at));
    }
    if known.windowless.is_none() {
        return Ok(false);
    }
    claim(services, ca, issuer, Work::Windows, None).await
}

/// Stores the silence that could not be stored before. While it still cannot be, nothing
/// that the CA gave could be kept either.
///
/// # Errors
/// What the store says; the CA is not to be asked then.
async fn catch_up(services: &Services, ca: &str) -> Result<(), ManageError> {
    let unsaved = services.probes.unsaved(ca);
    if unsaved == [None, None] {
        return Ok(());
    }
    let saved = change(services, ca, |state| {
        for (work, outage) in WORKS.into_iter().zip(&unsaved) {
            if let (known @ None, Some(outage)) = (work.of(state), outage) {
                *known = Some(outage.clone());
            }
        }
    });
    saved.await?;
    let saved = WORKS.into_iter().zip(&unsaved);
    let saved = saved.filter_map(|(work, outage)| outage.as_ref().map(|_| work));
    services.probes.forgets(ca, &saved.collect::<Vec<_>>());
    Ok(())
}

/// Whether an order is about to ask: later on there is none.
fn is_just_over(outage: &Outage, now: Timestamp) -> bool {
    outage.probe_at <= now && now.since(outage.probe_at) < NO_ORDERS_AFTER
}

/// Lets one ask for all when it is time, and says whether this one has.
async fn claim(
    services: &Services,
    ca: &str,
    issuer: &dyn Issuer,
    work: Work,
    order: Option<Intended<'_>>,
) -> Result<bool, ManageError> {
    let (now, random) = (services.clock.now(), services.random.as_ref());
    let again_at = services.probes.again_at(ca);
    let claimed = change(services, ca, |state| {
        let Some(outage) = work.of(state).clone() else {
            return Ok(false);
        };
        let longest = LONGEST_PAUSE * 6 / 5;
        let is_sound = outage.probe_at <= now && now.since(outage.probe_at) <= longest;
        let last = match is_sound {
            true => outage.probe_at,
            // Another machine has dated it by a clock that is wrong, or ours is.
            false => now + longest,
        };
        let steps_back = again_at > now && again_at <= last + STEPPED_BACK;
        if is_waited_for(&outage, now) {
            let last = outage.probe_at + STEPPED_BACK;
            return Err(down(ca, &outage, outage.probe_at.max(again_at.min(last))));
        }
        if steps_back {
            return Err(down(ca, &outage, again_at));
        }
        let others_first = outage.probe_at + OTHERS_FIRST;
        let order = order.as_ref().filter(|_| now < others_first);
        if let Some(until) = order.and_then(|order| order.refused_until(state, ca, now)) {
            return Err(down(ca, &outage, until.min(others_first)));
        }
        // A pass that comes meanwhile waits for the time after this one.
        let next = after_silence(Some(&outage), outage.last.clone(), now, random);
        *work.of(state) = Some(next);
        Ok(true)
    });
    if !claimed.await?? {
        return Ok(false);
    }
    let Err(error) = issuer.probe().await else {
        // Its directory is there; whether it does this work shows with what is asked
        // next. Until then the others go on waiting.
        services.probes.well(ca);
        let there = change(services, ca, |state| {
            if let Some(outage) = work.of(state) {
                outage.answered = true;
            }
        });
        there.await?;
        return Ok(true);
    };
    Err(still_silent(services, ca, work, error).await?)
}

/// Notes a probe that failed, and returns what this process waits for.
async fn still_silent(
    services: &Services,
    ca: &str,
    work: Work,
    error: AcmeError,
) -> Result<ManageError, ManageError> {
    let (now, random) = (services.clock.now(), services.random.as_ref());
    tracing::warn!("{ca} does not answer still: {error}");
    let asked = match &error.cause {
        Cause::RateLimited { retry_after, .. } => *retry_after,
        _ => None,
    };
    let outage = change(services, ca, |state| {
        let outage = work.of(state).take()?;
        let last = error.to_string();
        // Another machine may have dated it meanwhile, by a clock that is wrong.
        let outage = match outage.probe_at > now && !is_waited_for(&outage, now) {
            true => after_silence(Some(&outage), last, now, random),
            false => Outage { last, ..outage },
        };
        let outage = asked.map_or(outage.clone(), |asked| after_request(outage, asked, now));
        let again_at = outage.probe_at + STEPPED_BACK;
        services.probes.in_vain(ca, outage.probe_at);
        let down = down(ca, &outage, again_at);
        *work.of(state) = Some(outage);
        Some(down)
    });
    Ok(outage.await?.unwrap_or(ManageError::Acme(error)))
}

/// The CA has issued, or judged: it is there, and its windows may be.
pub(crate) async fn answers(services: &Services, ca: &str) {
    let now = services.clock.now();
    services.probes.forgets(ca, &[Work::Orders]);
    let before = change(services, ca, |state| {
        // The next one asks whether there are windows again, for all.
        if let Some(silent) = &mut state.windowless {
            silent.probe_at = silent.probe_at.min(now);
        }
        state.outage.take()
    });
    match before.await {
        Ok(None) => {}
        Ok(Some(outage)) => {
            tracing::info!("{ca} answers again, after {}", since(&outage, services))
        }
        Err(error) => tracing::warn!("that {ca} answers could not be noted: {error}"),
    }
}

/// The CA has told a renewal window.
pub(crate) async fn tells_windows(services: &Services, ca: &str) {
    services.probes.forgets(ca, &[Work::Windows]);
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
                "{ca} tells renewal windows again, after {}",
                since(&silent, services)
            );
        }
        Err(error) => tracing::warn!("that {ca} tells its windows could not be noted: {error}"),
    }
}

/// The CA has not answered when it was asked for that work: it is left alone for a while.
pub(crate) async fn is_silent(services: &Services, ca: &str, work: Work, last: &str) {
    let (now, random) = (services.clock.now(), services.random.as_ref());
    let noted = change(services, ca, |state| {
        let known = work.of(state);
        let begun = known.as_ref();
        if begun.is_none_or(|outage| !is_waited_for(outage, now)) {
            *known = Some(after_silence(begun, last.to_owned(), now, random));
        }
    });
    match noted.await {
        Ok(()) => services.probes.forgets(ca, &[work]),
        Err(error) => {
            tracing::warn!("that {ca} does not answer could not be noted: {error}");
            let outage = after_silence(None, last.to_owned(), now, random);
            services.probes.keeps(ca, work, outage);
        }
    }
}

/// `until` is when this process looks again.
fn down(ca: &str, outage: &Outage, until: Timestamp) -> ManageError {
    ManageError::Down {
        ca: ca.to_owned(),
        since: outage.since,
        until,
        last: outage.last.clone(),
    }
}

fn since(outage: &Outage, services: &Services) -> String {
    let silent = services.clock.now().since(outage.since);
    let minutes = silent.as_secs() / 60;
    match minutes {
        0..120 => format!("{minutes} min"),
        _ => format!("{} h", minutes / 60),
    }
}
