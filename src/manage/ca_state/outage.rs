//! A CA that does not answer: one of all who want something of it finds out whether it
//! does again, and the others leave it alone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{Intended, change};
use crate::acme::{Cause, Issuer};
use crate::ca_state::{Authority, Outage};
use crate::manage::{ManageError, Parts};
use crate::renew::outage::{LONGEST_PAUSE, after_request, after_silence, is_waited_for};
use crate::time::Timestamp;

/// Who has an order asks within minutes; after so long nobody has one.
const NOBODY_ORDERS: Duration = Duration::from_secs(3600);

/// For so long who has a token for its order asks before who has none.
const OTHERS_FIRST: Duration = Duration::from_secs(300);

/// What is asked of a CA. It may do the one and not the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// To issue.
    Orders,
    /// To tell when to renew.
    Windows,
}

const WORKS: [Work; 2] = [Work::Orders, Work::Windows];

impl Work {
    /// Since when it does not.
    fn of(self, authority: &mut Authority) -> &mut Option<Outage> {
        match self {
            Self::Orders => &mut authority.outage,
            Self::Windows => &mut authority.windowless,
        }
    }
}

/// After a probe in vain, this much longer than anybody else.
const STEPPED_BACK: Duration = Duration::from_secs(20);

/// What this process knows of each CA's silence beside what is stored. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Probed(Arc<Mutex<BTreeMap<String, Known>>>);

#[derive(Debug, Default)]
struct Known {
    /// When it may probe again where it has probed in vain. Who is cut off from a CA
    /// steps back behind the others, or it would be the one that asks each time, and
    /// keep all of them waiting.
    again_at: Option<Timestamp>,
    /// Silence at each of [`WORKS`] that could not be stored, as on a full disk: it is kept
    /// here, or each certificate of this machine would ask.
    unsaved: [Option<Outage>; 2],
}

impl Probed {
    fn known<T>(&self, ca: &str, change: impl FnOnce(&mut Known) -> T) -> T {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(known.entry(ca.to_owned()).or_default())
    }

    fn again_at(&self, ca: &str) -> Timestamp {
        let at = self.known(ca, |known| known.again_at);
        at.unwrap_or(Timestamp::from_seconds(i64::MIN))
    }

    fn in_vain(&self, ca: &str, probe_at: Timestamp) {
        self.known(ca, |known| known.again_at = Some(probe_at + STEPPED_BACK));
    }

    fn well(&self, ca: &str) {
        self.known(ca, |known| known.again_at = None);
    }

    fn unsaved(&self, ca: &str) -> [Option<Outage>; 2] {
        self.known(ca, |known| known.unsaved.clone())
    }

    fn keeps(&self, ca: &str, work: Work, outage: Outage) {
        self.known(ca, |known| {
            known.unsaved[work as usize].get_or_insert(outage);
        });
    }

    fn forgets(&self, ca: &str, works: &[Work]) {
        self.known(ca, |known| {
            for work in works {
                known.unsaved[*work as usize] = None;
            }
        });
    }
}

/// Lets nobody ask a CA that does not answer, but one certificate for all when
/// it is time: first one whose `order`, unless it is begun already, the ledger has a token
/// for. That the CA is at work again is told by an order alone: without one, the others
/// would wait on for nothing.
///
/// # Errors
/// [`ManageError::Down`] while it does not answer.
pub(crate) async fn reach(
    parts: &Parts,
    ca: &str,
    issuer: &dyn Issuer,
    order: Option<Intended<'_>>,
) -> Result<(), ManageError> {
    catch_up(parts, ca).await?;
    claim(parts, ca, issuer, Work::Orders, order).await?;
    Ok(())
}

/// The same for a renewal window: while orders find no CA there, and within an hour of
/// the time at which one would, windows are not asked for at all, and by one for all where
/// they are not to be had. Says whether this one asks for all.
///
/// # Errors
/// [`ManageError::Down`] while they are not to be asked for.
pub(crate) async fn reach_windows(
    parts: &Parts,
    ca: &str,
    issuer: &dyn Issuer,
) -> Result<bool, ManageError> {
    catch_up(parts, ca).await?;
    let (known, _) = parts.store.authority(ca).await?;
    let now = parts.clock.now();
    if let Some(outage) = &known.outage
        && !outage.answered
        && (is_waited_for(outage, now) || is_just_over(outage, now))
    {
        return Err(down(ca, outage, outage.probe_at));
    }
    if known.windowless.is_none() {
        return Ok(false);
    }
    claim(parts, ca, issuer, Work::Windows, None).await
}

/// Stores the silence that could not be stored before. While it still cannot be, nothing
/// that the CA gave could be kept either.
///
/// # Errors
/// What the store says; the CA is not to be asked then.
async fn catch_up(parts: &Parts, ca: &str) -> Result<(), ManageError> {
    let unsaved = parts.probed.unsaved(ca);
    if unsaved == [None, None] {
        return Ok(());
    }
    let saved = change(parts, ca, |authority| {
        for (work, outage) in WORKS.into_iter().zip(&unsaved) {
            if let (known @ None, Some(outage)) = (work.of(authority), outage) {
                *known = Some(outage.clone());
            }
        }
    });
    saved.await?;
    let saved = WORKS.into_iter().zip(&unsaved);
    let saved = saved.filter_map(|(work, outage)| outage.as_ref().map(|_| work));
    parts.probed.forgets(ca, &saved.collect::<Vec<_>>());
    Ok(())
}

/// Whether an order is about to ask: later on nobody has any.
fn is_just_over(outage: &Outage, now: Timestamp) -> bool {
    outage.probe_at <= now && now.since(outage.probe_at) < NOBODY_ORDERS
}

/// Lets one ask for all when it is time, and says whether this one has.
async fn claim(
    parts: &Parts,
    ca: &str,
    issuer: &dyn Issuer,
    work: Work,
    order: Option<Intended<'_>>,
) -> Result<bool, ManageError> {
    let (now, random) = (parts.clock.now(), parts.random.as_ref());
    let again_at = parts.probed.again_at(ca);
    let claimed = change(parts, ca, |authority| {
        let Some(outage) = work.of(authority).clone() else {
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
        if let Some(until) = order.and_then(|order| order.refused_until(authority, ca, now)) {
            return Err(down(ca, &outage, until.min(others_first)));
        }
        // Whoever comes meanwhile waits for the time after this one.
        let next = after_silence(Some(&outage), outage.last.clone(), now, random);
        *work.of(authority) = Some(next);
        Ok(true)
    });
    if !claimed.await?? {
        return Ok(false);
    }
    let Err(error) = issuer.probe().await else {
        // Its directory is there; whether it does this work shows with what is asked
        // next. Until then the others go on waiting.
        parts.probed.well(ca);
        let there = change(parts, ca, |authority| {
            if let Some(outage) = work.of(authority) {
                outage.answered = true;
            }
        });
        there.await?;
        return Ok(true);
    };
    tracing::warn!("{ca} does not answer still: {error}");
    let asked = match &error.cause {
        Cause::RateLimited { retry_after, .. } => *retry_after,
        _ => None,
    };
    let outage = change(parts, ca, |authority| {
        let outage = work.of(authority).take()?;
        let last = error.to_string();
        // Another machine may have dated it meanwhile, by a clock that is wrong.
        let outage = match outage.probe_at > now && !is_waited_for(&outage, now) {
            true => after_silence(Some(&outage), last, now, random),
            false => Outage { last, ..outage },
        };
        let outage = asked.map_or(outage.clone(), |asked| after_request(outage, asked, now));
        let again_at = outage.probe_at + STEPPED_BACK;
        parts.probed.in_vain(ca, outage.probe_at);
        let down = down(ca, &outage, again_at);
        *work.of(authority) = Some(outage);
        Some(down)
    });
    Err(outage.await?.unwrap_or(ManageError::Acme(error)))
}

/// The CA has issued, or judged: it is there, and its windows may be.
pub(crate) async fn answers(parts: &Parts, ca: &str) {
    let now = parts.clock.now();
    parts.probed.forgets(ca, &[Work::Orders]);
    let before = change(parts, ca, |authority| {
        // The next one asks whether there are windows again, for all.
        if let Some(silent) = &mut authority.windowless {
            silent.probe_at = silent.probe_at.min(now);
        }
        authority.outage.take()
    });
    match before.await {
        Ok(None) => {}
        Ok(Some(outage)) => tracing::info!("{ca} answers again, after {}", since(&outage, parts)),
        Err(error) => tracing::warn!("that {ca} answers could not be noted: {error}"),
    }
}

/// The CA has told a renewal window.
pub(crate) async fn tells_windows(parts: &Parts, ca: &str) {
    parts.probed.forgets(ca, &[Work::Windows]);
    let before = change(parts, ca, |authority| {
        if let Some(outage) = &mut authority.outage {
            outage.answered = true;
        }
        authority.windowless.take()
    });
    match before.await {
        Ok(None) => {}
        Ok(Some(silent)) => {
            tracing::info!(
                "{ca} tells renewal windows again, after {}",
                since(&silent, parts)
            );
        }
        Err(error) => tracing::warn!("that {ca} tells its windows could not be noted: {error}"),
    }
}

/// The CA has not answered when it was asked for that work: it is left alone for a while.
pub(crate) async fn is_silent(parts: &Parts, ca: &str, work: Work, last: &str) {
    let (now, random) = (parts.clock.now(), parts.random.as_ref());
    let noted = change(parts, ca, |authority| {
        let known = work.of(authority);
        let begun = known.as_ref();
        if begun.is_none_or(|outage| !is_waited_for(outage, now)) {
            *known = Some(after_silence(begun, last.to_owned(), now, random));
        }
    });
    match noted.await {
        Ok(()) => parts.probed.forgets(ca, &[work]),
        Err(error) => {
            tracing::warn!("that {ca} does not answer could not be noted: {error}");
            let outage = after_silence(None, last.to_owned(), now, random);
            parts.probed.keeps(ca, work, outage);
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

fn since(outage: &Outage, parts: &Parts) -> String {
    let silent = parts.clock.now().since(outage.since);
    let minutes = silent.as_secs() / 60;
    match minutes {
        0..120 => format!("{minutes} min"),
        _ => format!("{} h", minutes / 60),
    }
}
