//! Imports a certificate that another client has issued as a new generation: under the
//! lease, by compare-and-swap, and never over a newer certificate. It contacts neither
//! the CA nor the server, so a later pass must deploy and verify it.

use super::deploy::FILES;
use super::error::ManageError;
use crate::certificate::Bundle;
use crate::deploy::Outlet;
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::random::Random;
use crate::record::{Failures, Generation, Issued, Record, Renewal, Revision};
use crate::renew::window::share_of_life;
use crate::store::Store;
use crate::time::Timestamp;

/// A certificate that another client has issued.
pub(crate) struct ImportedCertificate {
    /// The name to store it under.
    pub lineage: Lineage,
    /// The directory URL of the CA that issued it.
    pub ca: String,
    /// The profile that it was ordered with.
    pub profile: Option<String>,
    /// The pair.
    pub bundle: Bundle,
    /// The settings for its renewals, for [`Store::save_options`].
    pub options: String,
    /// Whether the operator gave these settings, so that they replace stored ones too.
    pub insists: bool,
}

/// The result of an import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ImportOutcome {
    /// It was stored as this generation and will be renewed at this instant.
    Stored(Generation, Timestamp),
    /// It is stored already, or a newer one is.
    Here {
        /// The stored generation.
        generation: Generation,
        /// Whether the stored generation is newer.
        newer: bool,
        /// Whether its settings for renewals were replaced.
        resettled: bool,
    },
    /// The stored certificate has these other names.
    OtherNames(Vec<Identifier>),
}

/// Imports and publishes `imported`; a second import changes nothing.
///
/// # Errors
/// When the lineage is leased by another process, or the store or the output cannot be
/// written. The next import publishes a pair that was stored but not published.
pub(crate) async fn store_imported(
    store: &dyn Store,
    output: &dyn Outlet,
    imported: &ImportedCertificate,
    now: Timestamp,
    random: &dyn Random,
) -> Result<ImportOutcome, ManageError> {
    let lineage = &imported.lineage;
    let _lease = store.lease(lineage).await?;
    let stored = store.load(lineage).await?;
    let mut outcome = preview(stored.as_ref().map(|(record, _)| record), imported, random);
    match outcome {
        ImportOutcome::Stored(generation, at) => {
            // Options left by a failed command belong to no certificate.
            let waits = stored
                .as_ref()
                .is_none_or(|(record, _)| record.issued.is_none());
            if waits || store.options(lineage).await?.is_none() {
                store.save_options(lineage, &imported.options).await?;
            }
            let (record, revision) = stored.unzip();
            let record = record_of(record, imported, generation, at, now);
            let revision = revision.unwrap_or(Revision::default());
            store
                .save(&record, revision, Some(&imported.bundle))
                .await?;
            output.publish(lineage, generation, &imported.bundle)?;
        }
        ImportOutcome::Here {
            generation,
            newer,
            ref mut resettled,
        } => {
            if !newer && output.live(lineage).is_none() {
                output.publish(lineage, generation, &imported.bundle)?;
            }
            *resettled = resettle(store, imported).await?;
        }
        ImportOutcome::OtherNames(_) => {}
    }
    Ok(outcome)
}

async fn resettle(store: &dyn Store, imported: &ImportedCertificate) -> Result<bool, ManageError> {
    let (lineage, options) = (&imported.lineage, &imported.options);
    if !imported.insists || store.options(lineage).await?.as_ref() == Some(options) {
        return Ok(false);
    }
    store.save_options(lineage, options).await?;
    Ok(true)
}

/// The result of an import beside `record`; nothing is written.
#[must_use]
pub(crate) fn preview(
    record: Option<&Record>,
    imported: &ImportedCertificate,
    random: &dyn Random,
) -> ImportOutcome {
    let facts = imported.bundle.facts();
    let here = |generation, newer| ImportOutcome::Here {
        generation,
        newer,
        resettled: false,
    };
    let stored = |generation| ImportOutcome::Stored(generation, share_of_life(facts, random));
    let Some(record) = record else {
        return stored(Generation(1));
    };
    if let Some(issued) = &record.issued
        && issued.facts.fingerprint == facts.fingerprint
    {
        return here(issued.generation, false);
    }
    if record.identifiers != facts.identifiers {
        return ImportOutcome::OtherNames(record.identifiers.iter().cloned().collect());
    }
    match &record.issued {
        None => stored(Generation(1)),
        Some(issued) if facts.not_before > issued.facts.not_before => {
            stored(issued.generation.next())
        }
        Some(issued) => here(issued.generation, true),
    }
}

fn record_of(
    before: Option<Record>,
    imported: &ImportedCertificate,
    generation: Generation,
    at: Timestamp,
    now: Timestamp,
) -> Record {
    let (facts, ca) = (imported.bundle.facts(), &imported.ca);
    let fresh = || {
        let names = facts.identifiers.clone();
        let mut record = Record::new(imported.lineage.clone(), names, ca.clone());
        record.profile.clone_from(&imported.profile);
        record
    };
    let mut record = before.unwrap_or_else(fresh);
    // A pending order, or a failure, was for the certificate that is imported now.
    (record.order, record.failures) = (None, Failures::default());
    record.deployment_failures = Failures::default();
    record
        .deployed
        .insert(FILES.to_owned(), Generation::default());
    record.issued = Some(Issued {
        generation,
        facts: facts.clone(),
        ca: ca.clone(),
        at: now,
        // The first pass requests the CA's window.
        renewal: Some(Renewal {
            at,
            window: None,
            refresh_at: facts.renewal_id.as_ref().map(|_| now),
            asked: None,
        }),
        renewable_from: None,
        early: 0,
        deploy_at: None,
        instead_of: None,
    });
    record
}

#[cfg(test)]
mod tests;
