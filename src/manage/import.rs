//! Imports a certificate that another client has issued as a new generation: under the
//! lease, by compare-and-swap, and never over a newer certificate. It contacts neither
//! the CA nor the server, so a later pass must deploy and verify it.

use super::error::ManageError;
use super::proof::FILES;
use crate::certificate::Bundle;
use crate::deploy::Outlet;
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::random::Random;
use crate::record::{Failures, Generation, Issued, Record, Renewal};
use crate::renew::window::share_of_life;
use crate::store::Store;
use crate::time::Timestamp;

/// A certificate that another client has issued.
pub(crate) struct ImportedPair {
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
pub(crate) enum Imported {
    /// It was stored as this generation and will be renewed at this instant.
    Stored(Generation, Timestamp),
    /// It is stored already, or a newer one is.
    Present {
        /// The stored generation.
        generation: Generation,
        /// Whether the stored generation is newer.
        newer: bool,
        /// Whether its settings for renewals were replaced.
        has_new_settings: bool,
    },
    /// The stored certificate has these other names.
    OtherNames(Vec<Identifier>),
}

/// Imports and publishes `pair`; a second import changes nothing.
///
/// # Errors
/// When the lineage is leased by another process, or the store or the output cannot be
/// written. The next import publishes a pair that was stored but not published.
pub(crate) async fn import_pair(
    store: &dyn Store,
    output: &dyn Outlet,
    pair: &ImportedPair,
    now: Timestamp,
    random: &dyn Random,
) -> Result<Imported, ManageError> {
    let (lineage, options) = (&pair.lineage, &pair.options);
    let _lease = store.lease(lineage).await?;
    let stored = store.load(lineage).await?;
    let record = stored.as_ref().map(|(record, _)| record);
    let mut imported = preview(record, pair, random);
    match &mut imported {
        Imported::Stored(generation, at) => {
            // Options left by a failed command belong to no certificate.
            let is_new = record.is_none_or(|record| record.issued.is_none());
            if is_new || store.options(lineage).await?.is_none() {
                store.save_options(lineage, options).await?;
            }
            let (record, revision) = stored.unzip();
            let record = record_of(record, pair, *generation, *at, now);
            let revision = revision.unwrap_or_default();
            store.save(&record, revision, Some(&pair.bundle)).await?;
            output.publish(lineage, *generation, &pair.bundle)?;
        }
        Imported::Present {
            generation,
            newer,
            has_new_settings,
        } => {
            if !*newer && output.live(lineage)?.is_none() {
                output.publish(lineage, *generation, &pair.bundle)?;
            }
            if pair.insists && store.options(lineage).await?.as_ref() != Some(options) {
                store.save_options(lineage, options).await?;
                *has_new_settings = true;
            }
        }
        Imported::OtherNames(_) => {}
    }
    Ok(imported)
}

/// The result of an import beside `record`; nothing is written.
#[must_use]
pub(crate) fn preview(
    record: Option<&Record>,
    pair: &ImportedPair,
    random: &dyn Random,
) -> Imported {
    let facts = pair.bundle.facts();
    let stored = |generation| Imported::Stored(generation, share_of_life(facts, random));
    let present = |issued: &Issued, newer| Imported::Present {
        generation: issued.generation,
        newer,
        has_new_settings: false,
    };
    let issued = record.and_then(|record| record.issued.as_ref());
    match (record, issued) {
        (_, Some(issued)) if issued.facts.fingerprint == facts.fingerprint => {
            present(issued, false)
        }
        (Some(record), _) if record.identifiers != facts.identifiers => {
            Imported::OtherNames(record.identifiers.iter().cloned().collect())
        }
        (_, None) => stored(Generation(1)),
        (_, Some(issued)) if facts.not_before > issued.facts.not_before => {
            stored(issued.generation.next())
        }
        (_, Some(issued)) => present(issued, true),
    }
}

fn record_of(
    before: Option<Record>,
    pair: &ImportedPair,
    generation: Generation,
    at: Timestamp,
    now: Timestamp,
) -> Record {
    let (facts, ca) = (pair.bundle.facts(), &pair.ca);
    let mut record = before.unwrap_or_else(|| Record {
        profile: pair.profile.clone(),
        ..Record::new(pair.lineage.clone(), facts.identifiers.clone(), ca.clone())
    });
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
        terms: None,
    });
    record
}

#[cfg(test)]
mod tests;
