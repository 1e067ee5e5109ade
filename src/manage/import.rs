//! A certificate that another client has issued becomes a generation of ours: under
//! its lease, by compare-and-swap, never in the place of a newer one, and without
//! asking its CA. Its server is not asked either, so that it counts as
//! deployed only once a pass has verified it.

use super::deploy::FILES;
use super::error::ManageError;
use crate::certificate::{Bundle, Facts};
use crate::deploy::Outlet;
use crate::identifier::{Identifier, Lineage};
use crate::random::Random;
use crate::record::{Failures, Generation, Issued, Record, Renewal, Revision};
use crate::renew::window::share_of_life;
use crate::store::Store;
use crate::time::Timestamp;

/// A certificate that another client has issued.
pub(crate) struct Foreign {
    /// What it will be called.
    pub lineage: Lineage,
    /// The directory URL of the CA that has issued it.
    pub ca: String,
    /// The profile that it was asked for with.
    pub profile: Option<String>,
    /// The pair.
    pub bundle: Bundle,
    /// How it is renewed, for [`Store::save_options`].
    pub options: String,
    /// Whether the owner has said that, so that it holds for one that is here, too.
    pub insists: bool,
}

/// What becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It is this generation now, to be renewed then.
    Stored(Generation, Timestamp),
    /// It is here already, or a newer one is.
    Here {
        /// Which one.
        generation: Generation,
        /// Whether that is a newer one.
        newer: bool,
        /// Whether it is renewed in another way from here on.
        resettled: bool,
    },
    /// What is here is for other names.
    OtherNames(Vec<Identifier>),
}

/// Takes it over and publishes it; taking it once more changes nothing.
///
/// # Errors
/// When the lineage is being worked on, or the store or the output cannot be written.
/// What was stored by then is published by the next try.
pub(crate) async fn take(
    store: &dyn Store,
    output: &dyn Outlet,
    foreign: &Foreign,
    now: Timestamp,
    random: &dyn Random,
) -> Result<Taken, ManageError> {
    let lineage = &foreign.lineage;
    let _lease = store.lease(lineage).await?;
    let stored = store.load(lineage).await?;
    let mut taken = preview(stored.as_ref().map(|(record, _)| record), foreign, random);
    match taken {
        Taken::Stored(generation, at) => {
            // Those of a command that came to nothing are no certificate's.
            let waits = stored
                .as_ref()
                .is_none_or(|(record, _)| record.issued.is_none());
            if waits || store.options(lineage).await?.is_none() {
                store.save_options(lineage, &foreign.options).await?;
            }
            let (record, revision) = stored.unzip();
            let record = record_of(record, foreign, generation, at, now);
            let revision = revision.unwrap_or(Revision::default());
            store.save(&record, revision, Some(&foreign.bundle)).await?;
            output.publish(lineage, generation, &foreign.bundle)?;
        }
        Taken::Here {
            generation,
            newer,
            ref mut resettled,
        } => {
            if !newer && output.live(lineage).is_none() {
                output.publish(lineage, generation, &foreign.bundle)?;
            }
            *resettled = resettle(store, foreign).await?;
        }
        Taken::OtherNames(_) => {}
    }
    Ok(taken)
}

async fn resettle(store: &dyn Store, foreign: &Foreign) -> Result<bool, ManageError> {
    let (lineage, options) = (&foreign.lineage, &foreign.options);
    if !foreign.insists || store.options(lineage).await?.as_ref() == Some(options) {
        return Ok(false);
    }
    store.save_options(lineage, options).await?;
    Ok(true)
}

/// What would become of it beside `record`; nothing is written.
#[must_use]
pub(crate) fn preview(record: Option<&Record>, foreign: &Foreign, random: &dyn Random) -> Taken {
    let facts = foreign.bundle.facts();
    let here = |generation, newer| Taken::Here {
        generation,
        newer,
        resettled: false,
    };
    let stored = |generation| Taken::Stored(generation, share_of_life(facts, random));
    let Some(record) = record else {
        return stored(Generation(1));
    };
    if let Some(issued) = &record.issued
        && issued.facts.fingerprint == facts.fingerprint
    {
        return here(issued.generation, false);
    }
    if record.identifiers != facts.identifiers {
        return Taken::OtherNames(record.identifiers.iter().cloned().collect());
    }
    match &record.issued {
        None => stored(Generation(1)),
        Some(issued) if is_newer(facts, &issued.facts) => stored(issued.generation.next()),
        Some(issued) => here(issued.generation, true),
    }
}

fn is_newer(one: &Facts, other: &Facts) -> bool {
    one.not_before > other.not_before
}

fn record_of(
    before: Option<Record>,
    foreign: &Foreign,
    generation: Generation,
    at: Timestamp,
    now: Timestamp,
) -> Record {
    let (facts, ca) = (foreign.bundle.facts(), &foreign.ca);
    let fresh = || {
        let names = facts.identifiers.clone();
        let mut record = Record::new(foreign.lineage.clone(), names, ca.clone());
        record.profile.clone_from(&foreign.profile);
        record
    };
    let mut record = before.unwrap_or_else(fresh);
    // What was under way or failed was for want of this one.
    (record.order, record.failures) = (None, Failures::default());
    record.handover = Failures::default();
    record
        .deployed
        .insert(FILES.to_owned(), Generation::default());
    record.issued = Some(Issued {
        generation,
        facts: facts.clone(),
        ca: ca.clone(),
        at: now,
        // Until the CA is asked for its window, which the first pass does.
        renewal: Some(Renewal {
            at,
            window: None,
            refresh_at: facts.renewal_id.as_ref().map(|_| now),
            asked: None,
        }),
        renewable_from: None,
        early: 0,
        handover_at: None,
        instead_of: None,
    });
    record
}

#[cfg(test)]
mod tests;
