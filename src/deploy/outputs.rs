//! The outputs of one process: the usual one, and those of certificates that were made with
//! another. Each certificate is published in its own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use super::Outlet;
use super::output::{Output, OutputError};
use crate::certificate::Bundle;
use crate::files::DirectoryOwner;
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::record::Generation;
use crate::time::Timestamp;

/// An output, and the owner that its files get from its directory.
pub(crate) type Owned = (Arc<Output>, DirectoryOwner);

/// The usual output, and the others by certificate.
#[derive(Debug)]
pub(crate) struct Outputs {
    usual: Owned,
    own: RwLock<BTreeMap<Lineage, Owned>>,
}

impl Outputs {
    /// Every certificate is published in `usual`, of which `owner` is the owner.
    #[must_use]
    pub(crate) fn new(usual: Output, owner: DirectoryOwner) -> Self {
        let usual = Arc::new(usual);
        Self {
            usual: (usual, owner),
            own: RwLock::default(),
        }
    }

    /// The directory with the live pairs of the usual output.
    #[must_use]
    pub(crate) fn live_path_of_all(&self) -> PathBuf {
        self.usual.0.live_path_of_all()
    }

    /// Publishes `lineage` in `own` from now on.
    pub(crate) fn set(&self, lineage: Lineage, own: Owned) {
        let mut all = self.own.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(lineage, own);
    }

    /// Gives what is published of `lineage` to the readers that are configured now.
    pub(crate) fn open_published(&self, lineage: &Lineage) -> Result<(), OutputError> {
        let (output, _) = self.of(lineage);
        match output.has_readers() {
            true => self.within(lineage, |own| own.open_published(lineage)),
            false => Ok(()),
        }
    }

    /// The output of `lineage`, and the owner that its files get.
    fn of(&self, lineage: &Lineage) -> Owned {
        let own = self.own.read().unwrap_or_else(PoisonError::into_inner);
        own.get(lineage).unwrap_or(&self.usual).clone()
    }

    /// Works in the output of `lineage`, as its owner.
    fn within<T>(&self, lineage: &Lineage, work: impl FnOnce(&Output) -> T) -> T {
        let (output, owner) = self.of(lineage);
        let _acting = owner.act();
        work(&output)
    }
}

impl Outlet for Outputs {
    fn prepare(&self) {
        let _acting = self.usual.1.act();
        self.usual.0.prepare();
    }

    fn publish(
        &self,
        lineage: &Lineage,
        generation: Generation,
        bundle: &Bundle,
    ) -> Result<(), OutputError> {
        self.within(lineage, |own| own.publish(lineage, generation, bundle))
    }

    fn live(&self, lineage: &Lineage) -> Result<Option<Generation>, OutputError> {
        self.within(lineage, |own| own.live(lineage))
    }

    fn live_of_all(
        &self,
        lineages: &[Lineage],
    ) -> BTreeMap<Lineage, Result<Option<Generation>, OutputError>> {
        let mut by_output: BTreeMap<usize, (Owned, Vec<&Lineage>)> = BTreeMap::new();
        for lineage in lineages {
            let own = self.of(lineage);
            let address = Arc::as_ptr(&own.0) as usize;
            let group = by_output.entry(address);
            group.or_insert((own, Vec::new())).1.push(lineage);
        }
        let groups = by_output.into_values();
        let live = groups.flat_map(|((output, owner), group)| {
            let _acting = owner.act();
            let live = group.into_iter().map(|one| (one.clone(), output.live(one)));
            live.collect::<Vec<_>>()
        });
        live.collect()
    }

    fn is_live(&self, lineage: &Lineage, generation: Generation, bundle: &Bundle) -> bool {
        self.within(lineage, |own| own.is_live(lineage, generation, bundle))
    }

    fn placeholder(
        &self,
        lineage: &Lineage,
        identifiers: &BTreeSet<Identifier>,
        now: Timestamp,
    ) -> Result<bool, OutputError> {
        self.within(lineage, |own| own.placeholder(lineage, identifiers, now))
    }

    fn led_here(&self, lineage: &Lineage, names: &BTreeSet<Identifier>) -> BTreeSet<Identifier> {
        self.within(lineage, |own| own.led_here(lineage, names))
    }

    fn restore_links(&self, lineage: &Lineage, names: &BTreeSet<Identifier>) {
        self.within(lineage, |own| own.restore_links(lineage, names));
    }

    fn live_path(&self, lineage: &Lineage) -> PathBuf {
        self.within(lineage, |own| own.live_path(lineage))
    }
}
