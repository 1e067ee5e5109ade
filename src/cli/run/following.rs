//! The sidecar in its fleet: it puts into effect what other machines have changed, and tells
//! them of itself.

use std::sync::Arc;

use super::worker::Sidecar;
use crate::cli::fleet::{cannot_reach, say_gone};
use crate::control::Worker;
use crate::lineage::Lineage;
use crate::observe::Board;
use crate::store::node::{Change, Followed, NodeStore};
use crate::store::place::{FleetSettings, host_name};
use crate::store::shared::fleet::FleetNode;
use crate::time::{Clock, SystemClock};

/// The served generations that a machine tells the others of, at most.
const SHOWN: usize = 200;

/// Follows the fleet until the process ends.
pub(super) async fn follow(node: Arc<NodeStore>, settings: FleetSettings, sidecar: Arc<Sidecar>) {
    loop {
        match node.follow().await {
            Followed::Down(error, true) => tracing::error!("{}", cannot_reach(&error)),
            Followed::Down(error, false) => tracing::debug!("the fleet's store: {error}"),
            Followed::Turn(turn) => {
                sidecar.apply(&node, turn.changed).await;
                if turn.promoted {
                    sidecar.handle.take_over().await;
                }
                let board = &sidecar.board;
                let described = node.describe(|process| describe(&settings, process, board));
                if let Err(error) = described.await {
                    tracing::debug!("this machine is not described to its fleet: {error}");
                }
            }
        }
        node.until_due().await;
    }
}

impl Sidecar {
    /// Puts what has changed elsewhere into effect here.
    async fn apply(&self, node: &NodeStore, changed: Vec<(Lineage, Change)>) {
        let (mut updated, mut is_new) = (Vec::new(), false);
        for (lineage, change) in changed {
            match change {
                Change::None => {}
                Change::Updated => updated.push(lineage),
                Change::Stored => {
                    is_new = true;
                    updated.push(lineage);
                }
                Change::Deleted => {
                    let renamed = node.renamed_to(&lineage);
                    match self.delete(&lineage, false).await {
                        Ok(_) => say_gone(&lineage, renamed.as_ref()),
                        Err(failure) => tracing::error!(%lineage, "{}", failure.in_a_line()),
                    }
                }
            }
        }
        if is_new {
            self.restock().await;
        }
        if !updated.is_empty() {
            self.handle.requeue(updated).await;
        }
    }
}

fn describe(settings: &FleetSettings, process: u64, board: &Board) -> FleetNode {
    let all = board.all();
    let served = all.iter();
    let served = served.filter_map(|one| Some((one.name.clone(), one.generation_served?.0)));
    FleetNode {
        node: settings.node_name(),
        process,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        role: settings.role.name().to_owned(),
        seen: SystemClock.now(),
        certificates: all.len(),
        served: served.take(SHOWN).collect(),
        host: host_name(),
        rival: None,
    }
}
