//! The certificates of the file and the environment, found by name and by the names in them
//! in one step each: a question about every stored certificate must not read them all.

use std::collections::{BTreeMap, BTreeSet};

use super::CertificateSettings;
use super::resolve::Sources;
use crate::identifier::Identifier;
use crate::lineage::Lineage;

/// An index of the configured certificates.
#[derive(Clone, Debug, Default)]
pub(crate) struct Configured {
    /// Whether the name of each was given, and does not follow from its names.
    named: BTreeMap<Lineage, bool>,
    /// The names in them, and whether it is the certificate for the second key.
    names: BTreeSet<(bool, BTreeSet<Identifier>)>,
    /// The one of the command line, if its name was given.
    of_command: BTreeSet<Lineage>,
    /// Whether other machines share the store.
    pub(crate) is_in_fleet: bool,
}

impl Sources {
    /// The index of the certificates that the file and the environment configure.
    pub(crate) fn index(&self) -> Configured {
        let mut index = Configured {
            is_in_fleet: self.is_in_fleet(),
            ..Configured::default()
        };
        for entry in self.configured_entries() {
            let names = entry.names.iter().cloned().collect();
            index.names.insert((entry.is_second, names));
            // The stronger one is the first.
            let named = index.named.entry(entry.lineage);
            *named.or_default() |= entry.is_named;
        }
        let named = self.named.iter().flat_map(|entry| self.each_key(entry));
        let named = named.filter(|entry| entry.is_named);
        index.of_command = named.map(|entry| entry.lineage).collect();
        index
    }
}

impl Configured {
    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.named.is_empty()
    }

    /// Whether the file or the environment has a certificate of that name.
    pub(crate) fn has(&self, lineage: &Lineage) -> bool {
        self.named.contains_key(lineage)
    }

    /// Whether the name of a certificate was given, and does not follow from its names.
    pub(crate) fn names_itself(&self, lineage: &Lineage) -> bool {
        self.of_command.contains(lineage) || self.named.get(lineage) == Some(&true)
    }

    /// Whether the configuration names the certificate, or one of the same names.
    pub(crate) fn names(&self, settings: &CertificateSettings) -> bool {
        self.has(&settings.lineage) || self.has_names(settings, settings.is_second)
    }

    /// Whether the configuration has one key for the names of this certificate for the second.
    pub(crate) fn names_first_of(&self, settings: &CertificateSettings) -> bool {
        settings.is_second && self.has_names(settings, false)
    }

    fn has_names(&self, of: &CertificateSettings, is_second: bool) -> bool {
        let names = || of.names.iter().cloned().collect();
        !self.is_empty() && self.names.contains(&(is_second, names()))
    }
}
