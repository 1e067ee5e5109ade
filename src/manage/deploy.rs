//! Hands the newest generation over and proves that it is served. What fails
//! here is tried again by the next pass; it never leads to a second order.

use std::time::Duration;

use super::issue::Held;
use super::{Certificate, ManageError, Parts};
use crate::certificate::Bundle;
use crate::deploy::verify::{Place, verify};
use crate::identifier::Lineage;
use crate::record::{Failures, Generation, Issued, Served};

/// How long the endpoints may go on showing the old certificate, all in all.
const PROOF_WITHIN: Duration = Duration::from_secs(30);

/// The output itself, in [`crate::record::Record::deployed`].
pub const FILES: &str = "files";

/// Publishes, checks, applies and proves the newest generation.
///
/// # Errors
/// The first failure; each step that succeeded is stored.
pub async fn deploy(
    parts: &Parts,
    certificate: &Certificate,
    held: &mut Held,
) -> Result<(), ManageError> {
    let Some(issued) = held.record.issued.clone() else {
        return Ok(());
    };
    let published = publish(parts, held, &issued).await;
    parts.metrics.deployment(FILES, published.is_ok());
    published?;
    let deployed = &mut held.record.deployed;
    deployed.insert(FILES.to_owned(), issued.generation);
    let ended = match tell(parts, certificate, held, &issued).await {
        Ok(()) => prove(parts, certificate, held, &issued).await,
        Err(error) => Err(error),
    };
    for target in &certificate.targets {
        parts.metrics.deployment(target.name(), ended.is_ok());
    }
    ended?;
    held.record.handover = Failures::default();
    held.save(parts, None).await
}

/// Tells each target that has not been seen to serve the newest generation.
async fn tell(
    parts: &Parts,
    certificate: &Certificate,
    held: &mut Held,
    issued: &Issued,
) -> Result<(), ManageError> {
    for target in &certificate.targets {
        let name = target.name().to_owned();
        let told = held.record.deployed.get(&name) == Some(&issued.generation);
        if told && all_served(held, issued.generation) {
            continue;
        }
        let lineage = &held.record.lineage;
        parts.phase(lineage, &format!("telling {name} to load it"));
        target.check().await?;
        target.apply().await?;
        held.record.deployed.insert(name, issued.generation);
        held.save(parts, None).await?;
    }
    Ok(())
}

/// Puts the stored pair where consumers read it; repeating it changes nothing.
///
/// # Errors
/// When the stored pair is damaged or expired, or the output is not writable.
pub async fn publish(parts: &Parts, held: &Held, issued: &Issued) -> Result<(), ManageError> {
    let lineage = &held.record.lineage;
    let bundle = stored(parts, lineage, issued).await?;
    parts.output.publish(lineage, issued.generation, &bundle)?;
    Ok(())
}

/// The generation whose files stand where consumers read them: what is on disk
/// counts, not what was once written there.
pub async fn on_disk(parts: &Parts, lineage: &Lineage, issued: Option<&Issued>) -> Generation {
    let live = parts.output.live(lineage).unwrap_or_default();
    let Some(issued) = issued.filter(|issued| issued.generation == live) else {
        return live;
    };
    match stored(parts, lineage, issued).await {
        Ok(bundle) if !parts.output.is_live(lineage, live, &bundle) => {
            tracing::warn!(%lineage, generation = %live, "the published files are not as they were written");
            Generation::default()
        }
        // With nothing to mend them from, they are left as they are.
        _ => live,
    }
}

/// The pair of a stored generation, loadable and not expired.
pub(super) async fn stored(
    parts: &Parts,
    lineage: &Lineage,
    issued: &Issued,
) -> Result<Bundle, ManageError> {
    let stored = parts.store.bundle(lineage, issued.generation).await?;
    let (key, chain) = stored
        .ok_or_else(|| ManageError::Halted("the newest pair is missing in the store".into()))?;
    let (names, now) = (&issued.facts.identifiers, parts.clock.now());
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
    issued: &Issued,
) -> Result<(), ManageError> {
    let places = places(certificate).await;
    if places.is_empty() && !certificate.targets.is_empty() {
        tracing::warn!(lineage = %held.record.lineage, "nothing proves that it is served: name an endpoint with --verify HOST:PORT");
    }
    let end = parts.clock.now() + PROOF_WITHIN;
    for place in places {
        let phase = format!("waiting for {place} to serve it");
        parts.phase(&held.record.lineage, &phase);
        for identifier in &issued.facts.identifiers {
            let within = end.since(parts.clock.now());
            let (wanted, clock) = (&issued.facts.fingerprint, parts.clock.as_ref());
            let prover = parts.prover.as_ref();
            if let Err(error) = verify(prover, &place, identifier, wanted, clock, within).await {
                // What was seen there before is seen there no more.
                held.record
                    .served
                    .entry(place.to_string())
                    .and_modify(|served| {
                        served.generation = Generation::default();
                    });
                return Err(error.into());
            }
        }
        let seen = Served {
            generation: issued.generation,
            at: parts.clock.now(),
            not_after: Some(issued.facts.not_after),
        };
        held.record.served.insert(place.to_string(), seen);
        held.save(parts, None).await?;
    }
    Ok(())
}
