//! Hands a generation over and proves that it is served: check, switch, tell,
//! prove, and back to what was served before when that fails. It is tried again
//! by the next pass; it never leads to a second order.

use std::time::Duration;

use super::issue::Held;
use super::{Certificate, ManageError, Parts};
use crate::certificate::{Bundle, Facts, Freshness};
use crate::deploy::verify::{Looks, Place, VerifyError};
use crate::deploy::{Delivery, DeployError, Target};
use crate::identifier::Lineage;
use crate::record::{Failures, Generation, Served, TakenBack};
use crate::renew::window::latest;

/// How long the endpoints may go on showing the old certificate, all in all.
const PROOF_WITHIN: Duration = Duration::from_secs(30);

/// The output itself, in [`crate::record::Record::deployed`].
pub const FILES: &str = "files";

/// What is handed over.
#[derive(Clone)]
struct Pair {
    generation: Generation,
    facts: Facts,
    bundle: Bundle,
}

/// Publishes, checks, applies and proves the generation that shall be served: the
/// newest, or an earlier one on the owner's word. What fails is taken back while
/// what was served before is good for long enough.
///
/// # Errors
/// The first failure; each step that succeeded is stored.
pub async fn deploy(
    parts: &Parts,
    certificate: &Certificate,
    held: &mut Held,
) -> Result<(), ManageError> {
    let now = parts.clock.now();
    let wanted = held.record.to_be_served(now);
    let Some((generation, facts)) = wanted.map(|(which, facts)| (which, facts.clone())) else {
        return Ok(());
    };
    let lineage = held.record.lineage.clone();
    let bundle = stored(parts, &lineage, generation, &facts).await?;
    let pair = Pair {
        generation,
        facts,
        bundle,
    };
    let before = to_go_back_to(parts, certificate, held, generation).await;
    let ended = transact(parts, certificate, held, &pair, before.as_ref()).await;
    for (_, target) in certificate.named_targets() {
        parts.metrics.deployment(target.name(), ended.is_ok());
    }
    if let (Err(error), Some(before)) = (&ended, before)
        && parts.output.live(&lineage) == Some(pair.generation)
        && is_about_a_server(error)
    {
        let hint = error.hint();
        tracing::error!(%lineage, "{error}; hint: {hint}");
        take_back(parts, certificate, held, &before).await;
        note_taken_back(held, pair.generation, error.to_string());
    }
    ended?;
    held.record.handover = Failures::default();
    (held.record.going_back_to, held.record.taken_back) = (None, None);
    held.save(parts, None).await
}

async fn transact(
    parts: &Parts,
    certificate: &Certificate,
    held: &mut Held,
    pair: &Pair,
    before: Option<&Pair>,
) -> Result<(), ManageError> {
    let carefully = before.is_some();
    if carefully {
        // A server that could not be told, or would not start again as it is, is
        // found before anything is touched.
        let delivery = delivery(parts, held, pair, false);
        for (_, target) in certificate.named_targets() {
            target.check(&delivery).await?;
        }
    }
    let going_back_to = before.map(|before| before.generation);
    if held.record.going_back_to != going_back_to {
        held.record.going_back_to = going_back_to;
        held.save(parts, None).await?;
    }
    let published = parts
        .output
        .publish(&held.record.lineage, pair.generation, &pair.bundle);
    parts.metrics.deployment(FILES, published.is_ok());
    published?;
    let deployed = &mut held.record.deployed;
    deployed.insert(FILES.to_owned(), pair.generation);
    tell(parts, certificate, held, pair, carefully).await?;
    prove(parts, certificate, held, pair).await
}

/// Tells each target that has not been seen to serve the pair. With nothing to go
/// back to, one that fails holds up no other.
async fn tell(
    parts: &Parts,
    certificate: &Certificate,
    held: &mut Held,
    pair: &Pair,
    carefully: bool,
) -> Result<(), ManageError> {
    let delivery = delivery(parts, held, pair, !carefully);
    let mut failed: Option<DeployError> = None;
    for (name, target) in certificate.named_targets() {
        let told = held.record.deployed.get(&name) == Some(&pair.generation);
        if told && all_served(held, pair.generation) {
            continue;
        }
        let lineage = &held.record.lineage;
        parts.phase(lineage, &format!("telling {name} to load it"));
        match tell_one(target.as_ref(), &delivery).await {
            Ok(()) => {
                held.record.deployed.insert(name, pair.generation);
                held.save(parts, None).await?;
            }
            Err(error) if carefully => return Err(error.into()),
            Err(error) => {
                if let Some(first) = failed.replace(error) {
                    tracing::error!(%lineage, "{first}; hint: {}", first.hint());
                }
            }
        }
    }
    failed.map_or(Ok(()), |error| Err(error.into()))
}

async fn tell_one(target: &dyn Target, delivery: &Delivery) -> Result<(), DeployError> {
    target.check(delivery).await?;
    target.apply(delivery).await
}

fn delivery(parts: &Parts, held: &Held, pair: &Pair, urgent: bool) -> Delivery {
    let lineage = held.record.lineage.clone();
    Delivery {
        live: parts.output.live_path(&lineage),
        lineage,
        names: pair.facts.identifiers.clone(),
        generation: pair.generation,
        fingerprint: pair.facts.fingerprint.clone(),
        not_after: pair.facts.not_after,
        urgent,
    }
}

/// What is live now, or was before a switch that was never proven, if servers may
/// go on with it for a good while: then a hand-over that fails is no reason to leave any of them with something else. A
/// failure that lasts must not let it run out, so that from its last tenth on the
/// newest stays, whoever cannot load it.
async fn to_go_back_to(
    parts: &Parts,
    certificate: &Certificate,
    held: &Held,
    generation: Generation,
) -> Option<Pair> {
    if certificate.targets.is_empty() {
        return None;
    }
    let lineage = &held.record.lineage;
    let before = match parts.output.live(lineage)? {
        live if live == generation => held.record.going_back_to?,
        live => live,
    };
    if before == generation || before == Generation::default() {
        return None;
    }
    let (key, chain) = parts.store.bundle(lineage, before).await.ok()??;
    let (facts, now) = (Facts::of_chain(&chain).ok()?, parts.clock.now());
    if latest(&facts) <= now {
        return None;
    }
    let names = &facts.identifiers;
    let bundle = Bundle::new(key, &chain, names, now, Freshness::Stored).ok()?;
    Some(Pair {
        generation: before,
        facts,
        bundle,
    })
}

/// Whether what failed is a server, and not our own store.
fn is_about_a_server(error: &ManageError) -> bool {
    matches!(error, ManageError::Deploy(_) | ManageError::Verify(_))
}

/// Makes `before` live again, for every server that was told of another. What
/// fails here is told; the failure that led here is the one to act on.
async fn take_back(parts: &Parts, certificate: &Certificate, held: &mut Held, before: &Pair) {
    let lineage = held.record.lineage.clone();
    tracing::warn!(%lineage, generation = %before.generation, "the hand-over has failed: the generation that was served before goes live again");
    let published = parts
        .output
        .publish(&lineage, before.generation, &before.bundle);
    if let Err(error) = published {
        tracing::error!(%lineage, "it could not be published again: {error}");
        return;
    }
    let deployed = &mut held.record.deployed;
    deployed.insert(FILES.to_owned(), before.generation);
    // Each server, also the one that failed: what it has loaded is not known.
    for (name, _) in certificate.named_targets() {
        deployed.insert(name, Generation::default());
    }
    for served in held.record.served.values_mut() {
        served.generation = Generation::default();
    }
    let told = tell(parts, certificate, held, before, false).await;
    let proven = prove(parts, certificate, held, before).await;
    match told.and(proven) {
        Ok(()) if held.record.served.is_empty() => {
            tracing::info!(%lineage, generation = %before.generation, "it was handed over again");
        }
        Ok(()) => {
            tracing::info!(%lineage, generation = %before.generation, "it is proven served again");
        }
        Err(error) => {
            tracing::error!(%lineage, "it is not proven served again: {error}; hint: {}", error.hint());
        }
    }
}

/// Each try costs a server two reloads: one that has failed in the same way before
/// is not hurried.
fn note_taken_back(held: &mut Held, generation: Generation, why: String) {
    let known = held.record.taken_back.take();
    let known = known.filter(|known| known.generation == generation && known.why == why);
    held.record.taken_back = Some(TakenBack {
        generation,
        why,
        times: known.map_or(1, |known| known.times.saturating_add(1)),
    });
}

/// The generation whose files stand where consumers read them: what is on disk
/// counts, not what was once written there.
pub async fn on_disk(
    parts: &Parts,
    lineage: &Lineage,
    wanted: Option<(Generation, &Facts)>,
) -> Generation {
    let live = parts.output.live(lineage).unwrap_or_default();
    let Some((generation, facts)) = wanted.filter(|(generation, _)| *generation == live) else {
        return live;
    };
    match stored(parts, lineage, generation, facts).await {
        Ok(bundle) if !parts.output.is_live(lineage, live, &bundle) => {
            tracing::warn!(%lineage, generation = %live, "the published files are not as they were written");
            Generation::default()
        }
        // With nothing to mend them from, they are left as they are.
        _ => live,
    }
}

/// The pair of a stored generation, loadable and not expired.
pub(crate) async fn stored(
    parts: &Parts,
    lineage: &Lineage,
    generation: Generation,
    facts: &Facts,
) -> Result<Bundle, ManageError> {
    let stored = parts.store.bundle(lineage, generation).await?;
    let missing = || ManageError::Halted(format!("the pair {generation} is missing in the store"));
    let (key, chain) = stored.ok_or_else(missing)?;
    let (names, now) = (&facts.identifiers, parts.clock.now());
    let pair = parts.known.bundle(lineage, key, &chain, names, now);
    pair.map_err(ManageError::Stored)
}

fn all_served(held: &Held, generation: Generation) -> bool {
    held.record
        .served
        .values()
        .all(|served| served.generation == generation)
}

/// The places where `certificate` must be seen; none when the user named no
/// endpoint and no target shows where it listens.
#[must_use]
pub async fn places(certificate: &Certificate) -> Vec<Place> {
    if !certificate.endpoints.is_empty() {
        return certificate
            .endpoints
            .iter()
            .cloned()
            .map(Place::Named)
            .collect();
    }
    let mut found = Vec::new();
    for target in &certificate.targets {
        if let Some(addresses) = target.listens_on().await {
            found.push(Place::Found(target.name().to_owned(), addresses));
        }
    }
    found
}

async fn prove(
    parts: &Parts,
    certificate: &Certificate,
    held: &mut Held,
    pair: &Pair,
) -> Result<(), ManageError> {
    let places = places(certificate).await;
    let listens = |known: &&String| places.iter().any(|place| place.to_string() == **known);
    if let Some(gone) = held.record.served.keys().find(|known| !listens(known)) {
        return Err(VerifyError::gone(gone, &held.record.lineage).into());
    }
    if places.is_empty() && !certificate.targets.is_empty() {
        tracing::warn!(lineage = %held.record.lineage, "nothing proves that it is served: name an endpoint with --verify HOST:PORT");
    }
    let begun = parts.clock.stopwatch();
    let looks = Looks {
        prover: parts.prover.as_ref(),
        wanted: &pair.facts.fingerprint,
        clock: parts.clock.as_ref(),
        end: begun + PROOF_WITHIN,
    };
    for place in places {
        let phase = format!("waiting for {place} to serve it");
        parts.phase(&held.record.lineage, &phase);
        if let Err(error) = looks.prove(&place, &pair.facts.identifiers).await {
            // What was seen there before is seen there no more.
            let known = held.record.served.entry(place.to_string());
            known.and_modify(|served| served.generation = Generation::default());
            let obstacle = obstacle(certificate, &delivery(parts, held, pair, false)).await;
            let waited = parts.clock.stopwatch().saturating_sub(begun);
            return Err(error.after(waited).because(obstacle).into());
        }
        let seen = Served {
            generation: pair.generation,
            at: parts.clock.now(),
            not_after: Some(pair.facts.not_after),
        };
        held.record.served.insert(place.to_string(), seen);
        let is_new = held.record.going_back_to != Some(pair.generation);
        if is_new && all_served(held, pair.generation) {
            held.record.going_back_to = None;
        }
        held.save(parts, None).await?;
    }
    Ok(())
}

/// What keeps a server from loading the pair, as far as it is to be seen.
async fn obstacle(certificate: &Certificate, delivery: &Delivery) -> Option<String> {
    for target in &certificate.targets {
        if let Some(obstacle) = target.obstacle(delivery).await {
            return Some(obstacle);
        }
    }
    None
}
