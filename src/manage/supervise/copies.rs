//! What somebody else takes away: copies are for other programs, and in their reach.
//! A glance at each once a minute, beside the loop: a volume may be slow.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::SWEEP;
use super::agenda::Agenda;
use crate::identifier::Lineage;
use crate::manage::Certificate;
use crate::time::Timestamp;

/// The glances that are under way.
#[derive(Default)]
pub(super) struct Copies {
    looking: JoinSet<Vec<Lineage>>,
    looked: Option<Timestamp>,
    /// Whether there are any.
    any: bool,
}

impl Copies {
    /// From here on there are those of `certificates`.
    pub(super) fn are_those_of(&mut self, certificates: &[Certificate]) {
        self.any = certificates.iter().any(has_copies);
    }

    /// Looks for the copies of what is handed over, if it is time.
    pub(super) fn look(&mut self, agenda: &Agenda, now: Timestamp) {
        let looked = self.looked.get_or_insert(now);
        let recently = *looked <= now && now < *looked + SWEEP;
        if !self.any || recently || !self.looking.is_empty() {
            return;
        }
        self.looked = Some(now);
        let kept = agenda.handed_over().filter(|one| has_copies(one));
        let copied: Vec<Arc<Certificate>> = kept.cloned().collect();
        if !copied.is_empty() {
            self.looking.spawn(gone(copied));
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

async fn gone(copied: Vec<Arc<Certificate>>) -> Vec<Lineage> {
    let mut gone = Vec::new();
    for certificate in copied {
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
