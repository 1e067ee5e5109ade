//! Hands the newest generation over and proves that it is served. What fails
//! here is tried again by the next pass; it never leads to a second order.

use std::time::Duration;

use super::issue::Held;
use super::{Certificate, ManageError, Parts};
use crate::certificate::{Bundle, Freshness};
use crate::deploy::verify::verify;
use crate::record::{Generation, Issued, Served};

/// How long an endpoint may go on showing the old certificate.
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
    publish(parts, held, &issued).await?;
    held.record
        .deployed
        .insert(FILES.to_owned(), issued.generation);
    for target in &certificate.targets {
        let name = target.name().to_owned();
        if held.record.deployed.get(&name) == Some(&issued.generation)
            && all_served(held, issued.generation)
        {
            continue;
        }
        target.check().await?;
        target.apply().await?;
        held.record.deployed.insert(name, issued.generation);
        held.save(parts.store.as_ref(), None).await?;
    }
    prove(parts, certificate, held, &issued).await?;
    held.save(parts.store.as_ref(), None).await
}

/// Puts the stored pair where consumers read it; repeating it changes nothing.
///
/// # Errors
/// When the stored pair is damaged or expired, or the output is not writable.
pub async fn publish(parts: &Parts, held: &Held, issued: &Issued) -> Result<(), ManageError> {
    let lineage = &held.record.lineage;
    let stored = parts.store.bundle(lineage, issued.generation).await?;
    let (key, chain) = stored
        .ok_or_else(|| ManageError::Halted("the newest pair is missing in the store".into()))?;
    let now = parts.clock.now();
    let bundle = Bundle::new(
        key,
        &chain,
        &issued.facts.identifiers,
        now,
        Freshness::Stored,
    )
    .map_err(ManageError::Stored)?;
    parts.output.publish(lineage, issued.generation, &bundle)?;
    Ok(())
}

fn all_served(held: &Held, generation: Generation) -> bool {
    held.record
        .served
        .values()
        .all(|served| served.generation == generation)
}

async fn prove(
    parts: &Parts,
    certificate: &Certificate,
    held: &mut Held,
    issued: &Issued,
) -> Result<(), ManageError> {
    for endpoint in &certificate.endpoints {
        for identifier in &issued.facts.identifiers {
            verify(
                endpoint,
                identifier,
                &issued.facts.fingerprint,
                parts.clock.as_ref(),
                PROOF_WITHIN,
            )
            .await?;
        }
        let seen = Served {
            generation: issued.generation,
            at: parts.clock.now(),
        };
        held.record.served.insert(endpoint.to_string(), seen);
        held.save(parts.store.as_ref(), None).await?;
    }
    Ok(())
}
