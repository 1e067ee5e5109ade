//! The disk of a node, as the proxy reads it. A key and a chain are two files, so
//! the writer must publish both together: a crash or a full disk may come before
//! each write.

use std::collections::BTreeMap;

use crate::certificate::{Facts, Secret};
use crate::lineage::Lineage;
use crate::record::Generation;

/// The files of a lineage in one folder.
#[derive(Clone, Default)]
pub(super) struct PairFiles {
    pub(super) key: Option<Secret>,
    pub(super) chain: Option<(Generation, Facts)>,
}

/// A key and a chain as read, which may not belong together.
#[derive(Clone)]
pub(super) struct PairRead {
    pub(super) generation: Generation,
    pub(super) facts: Facts,
    pub(super) key_pem: Secret,
}

impl PairRead {
    /// Whether it is a certificate and no placeholder.
    pub(super) fn is_real(&self) -> bool {
        self.generation > Generation(0)
    }
}

#[derive(Default)]
pub(super) struct Disk {
    /// The proxy does not read it; it is emptied when a process starts.
    pub(super) staging: BTreeMap<Lineage, PairFiles>,
    /// The targets of `live/NAME`. Only [`Self::rename`] may write there.
    pub(super) live: BTreeMap<Lineage, PairFiles>,
}

impl Disk {
    pub(super) fn staged(&mut self, lineage: &Lineage) -> &mut PairFiles {
        self.staging.entry(lineage.clone()).or_default()
    }

    /// Makes the staged files live in one step.
    pub(super) fn rename(&mut self, lineage: &Lineage) {
        if let Some(files) = self.staging.remove(lineage) {
            self.live.insert(lineage.clone(), files);
        }
    }

    /// Both live files of `lineage`, if both exist.
    pub(super) fn read(&self, lineage: &Lineage) -> Option<PairRead> {
        let PairFiles { key, chain } = self.live.get(lineage)?.clone();
        let (generation, facts) = chain?;
        let key_pem = key?;
        Some(PairRead {
            generation,
            facts,
            key_pem,
        })
    }
}
