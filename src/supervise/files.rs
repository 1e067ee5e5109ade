//! Checks once a minute whether the live files and their copies still exist, since other
//! programs can remove them. The checks run beside the loop, since a volume may be slow.
//! Nothing is written here.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::agenda::Agenda;
use crate::deploy::Outlet;
use crate::deploy::output::OutputError;
use crate::lineage::Lineage;
use crate::manage::Certificate;
use crate::record::Generation;
use crate::renew::policy::CLOCK_READING;
use crate::time::Timestamp;

/// The checks in progress.
#[derive(Default)]
pub(super) struct Files {
    looking: JoinSet<Vec<Lineage>>,
    looked: Option<Timestamp>,
    /// Whether there are files to check.
    any: bool,
    /// The last certificate of the check before; `None`: the next one is about the first.
    last: Option<Lineage>,
}

/// A check is about so many certificates at most: a minute's work must not grow with all.
const EACH: usize = 1000;

impl Files {
    /// Watches the copies of `certificates` and the files of `output` from now on.
    pub(super) fn watch(&mut self, certificates: &[Certificate], output: &dyn Outlet) {
        self.any = output.is_shared() || certificates.iter().any(has_copies);
    }

    /// Starts a check of the deployed files, if one is due.
    pub(super) fn look(&mut self, agenda: &Agenda, output: &Arc<dyn Outlet>, now: Timestamp) {
        let looked = self.looked.get_or_insert(now);
        let recently = *looked <= now && now < *looked + CLOCK_READING;
        if !self.any || recently || !self.looking.is_empty() {
            return;
        }
        self.looked = Some(now);
        let shared = output.is_shared();
        let (deployed, last) = agenda.deployed_after(self.last.as_ref(), EACH);
        let deployed = deployed.into_iter();
        let deployed = deployed.filter(|one| shared || has_copies(one));
        let deployed: Vec<Arc<Certificate>> = deployed.cloned().collect();
        self.last = last;
        if !deployed.is_empty() {
            self.looking.spawn(gone(deployed, output.clone()));
        }
    }

    /// Waits for a check, and returns the certificates whose files are missing.
    pub(super) async fn gone(&mut self) -> Vec<Lineage> {
        match self.looking.join_next().await {
            // The next pass reports a failed check.
            Some(looked) => looked.unwrap_or_default(),
            None => std::future::pending().await,
        }
    }
}

fn has_copies(certificate: &Certificate) -> bool {
    let mut targets = certificate.targets.iter();
    targets.any(|target| target.copy_of(&certificate.wanted.lineage).is_some())
}

/// Files that cannot be looked at are not missing.
fn is_missing(lineage: &Lineage, live: Result<Option<Generation>, OutputError>) -> bool {
    match live {
        Ok(live) => live.is_none(),
        Err(error) => {
            tracing::warn!(%lineage, "the live files cannot be examined: {error}");
            false
        }
    }
}

async fn gone(deployed: Vec<Arc<Certificate>>, output: Arc<dyn Outlet>) -> Vec<Lineage> {
    let lineages: Vec<Lineage> = deployed
        .iter()
        .map(|one| one.wanted.lineage.clone())
        .collect();
    let live = tokio::task::spawn_blocking(move || {
        if !output.is_shared() {
            return Vec::new();
        }
        let live = output.live_of_all(&lineages).into_iter();
        let gone = live.filter_map(|(lineage, live)| is_missing(&lineage, live).then_some(lineage));
        gone.collect()
    });
    // The next pass checks again after a failure.
    let mut gone: Vec<Lineage> = live.await.unwrap_or_default();
    for lineage in &gone {
        tracing::warn!(%lineage, "the live files are missing and are published again");
    }
    for certificate in deployed {
        let lineage = &certificate.wanted.lineage;
        for target in &certificate.targets {
            if target.is_gone(lineage).await {
                tracing::warn!(%lineage, "{} is missing and is written again", target.name());
                gone.push(lineage.clone());
                break;
            }
        }
    }
    gone
}
