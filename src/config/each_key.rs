//! The certificates of an entry with two keys: each is an entry of its own.

use super::read::Entry;
use super::resolve::Sources;

impl Sources {
    /// The entry, and after it the one of its second key if it has two.
    pub(super) fn each_key(&self, entry: &Entry) -> impl Iterator<Item = Entry> {
        let layers = self.layers_of(entry);
        let types = layers.iter().find_map(|layer| layer.key.as_ref());
        let second = types.and_then(|types| types.value.second());
        let has_request = layers.iter().any(|layer| layer.request.is_some());
        let second = second.filter(|_| !entry.is_second && !has_request);
        let second = second.map(|key| Entry {
            lineage: entry.lineage.beside(key.kind()),
            is_second: true,
            ..entry.clone()
        });
        std::iter::once(entry.clone()).chain(second)
    }

    /// The entries of the file and the environment, one for each certificate; those of the
    /// environment are stronger.
    pub(super) fn configured_entries(&self) -> impl Iterator<Item = Entry> {
        let all = self.domains.iter().chain(&self.document.entries);
        all.flat_map(|entry| self.each_key(entry))
    }
}
