//! The disk of a node, as the proxy reads it. A key and a chain are two files, so
//! the writer must publish both together: a crash or a full disk may come before
//! each write.

use std::collections::BTreeMap;

use crate::certificate::{Facts, Secret};
use crate::lineage::Lineage;
use crate::record::Generation;

/// The folder of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Folder {
    /// The proxy does not read it.
    Staging,
    /// The target of `live/NAME`.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "a program that writes there is wrong")
    )]
    Live,
}

/// A file of a pair.
#[derive(Clone)]
pub(super) enum File {
    Key(Secret),
    Chain(Generation, Facts),
}

/// The files of one folder.
#[derive(Clone, Default)]
struct Files {
    key: Option<Secret>,
    chain: Option<(Generation, Facts)>,
}

/// A key and a chain as read, which may not belong together.
#[derive(Clone)]
pub(super) struct Found {
    pub(super) generation: Generation,
    pub(super) facts: Facts,
    pub(super) key_pem: Secret,
}

/// The whole disk.
#[derive(Default)]
pub(super) struct Disk {
    staging: BTreeMap<Lineage, Files>,
    live: BTreeMap<Lineage, Files>,
}

impl Disk {
    pub(super) fn write(&mut self, folder: Folder, lineage: &Lineage, file: File) {
        let folders = match folder {
            Folder::Staging => &mut self.staging,
            Folder::Live => &mut self.live,
        };
        let files = folders.entry(lineage.clone()).or_default();
        match file {
            File::Key(key) => files.key = Some(key),
            File::Chain(generation, facts) => files.chain = Some((generation, facts)),
        }
    }

    /// Makes the staged files live in one step.
    pub(super) fn rename(&mut self, lineage: &Lineage) {
        if let Some(files) = self.staging.remove(lineage) {
            self.live.insert(lineage.clone(), files);
        }
    }

    /// Removes staged files when a process starts.
    pub(super) fn sweep(&mut self) {
        self.staging.clear();
    }

    /// Both live files of `lineage`, if both exist.
    pub(super) fn read(&self, lineage: &Lineage) -> Option<Found> {
        let (generation, facts, key_pem) = self.live(lineage)?;
        Some(Found {
            generation,
            facts: facts.clone(),
            key_pem: key_pem.clone(),
        })
    }

    /// The generation that is live, its leaf and the key beside it.
    pub(super) fn live(&self, lineage: &Lineage) -> Option<(Generation, &Facts, &Secret)> {
        let files = self.live.get(lineage)?;
        let (generation, facts) = files.chain.as_ref()?;
        Some((*generation, facts, files.key.as_ref()?))
    }

    /// Every lineage with a live pair or file.
    pub(super) fn names(&self) -> Vec<Lineage> {
        self.live.keys().cloned().collect()
    }
}
