//! What another process takes away: the live files and their copies are for other
//! programs, and in their reach. A glance at each once a minute, beside the loop: a
//! volume may be slow.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::agenda::{Agenda, SWEEP};
use crate::deploy::Outlet;
use crate::identifier::Lineage;
use crate::manage::Certificate;
use crate::time::Timestamp;

/// The glances that are under way.
#[derive(Default)]
pub(super) struct Files {
    looking: JoinSet<Vec<Lineage>>,
    looked: Option<Timestamp>,
    /// Whether there are any.
    any: bool,
}

impl Files {
    /// From here on there are those of `certificates`, and what lies in `output`.
    pub(super) fn are_those_of(&mut self, certificates: &[Certificate], output: &dyn Outlet) {
        self.any = output.is_shared() || certificates.iter().any(has_copies);
    }

    /// Looks for the files of what is handed over, if it is time.
    pub(super) fn look(&mut self, agenda: &Agenda, output: &Arc<dyn Outlet>, now: Timestamp) {
        let looked = self.looked.get_or_insert(now);
        let recently = *looked <= now && now < *looked + SWEEP;
        if !self.any || recently || !self.looking.is_empty() {
            return;
        }
        self.looked = Some(now);
        let shared = output.is_shared();
        let kept = agenda.handed_over();
        let kept = kept.filter(|one| shared || has_copies(one));
        let kept: Vec<Arc<Certificate>> = kept.cloned().collect();
        if !kept.is_empty() {
            self.looking.spawn(gone(kept, output.clone()));
        }
    }

    /// Those whose copies are gone, once that is known.
    pub(super) async fn gone(&mut self) -> Vec<Lineage> {
        match self.looking.join_next().await {
            // One that has failed is told by the next pass.
            Some(looked) => looked.unwrap_or_default(),
            None => std::future::pending().await,
        }
    }
}

fn has_copies(certificate: &Certificate) -> bool {
    let mut targets = certificate.targets.iter();
    targets.any(|target| target.has_copies())
}

async fn gone(kept: Vec<Arc<Certificate>>, output: Arc<dyn Outlet>) -> Vec<Lineage> {
    let lineages: Vec<Lineage> = kept.iter().map(|one| one.wanted.lineage.clone()).collect();
    let live = tokio::task::spawn_blocking(move || {
        let looked = lineages.into_iter();
        looked
            .filter(|lineage| output.is_shared() && output.live(lineage).is_none())
            .collect()
    });
    // One that could not be looked at is looked at by the next pass.
    let mut gone: Vec<Lineage> = live.await.unwrap_or_default();
    for lineage in &gone {
        tracing::warn!(%lineage, "what was live is gone, and is published again");
    }
    for certificate in kept {
        let lineage = &certificate.wanted.lineage;
        for target in &certificate.targets {
            if target.is_gone(lineage).await {
                tracing::warn!(%lineage, "{} is gone, and is written again", target.name());
                gone.push(lineage.clone());
                break;
            }
        }
    }
    gone
}
