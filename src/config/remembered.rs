//! The stored settings of a certificate, as a source: they replace a table of the file.

use super::key::KeyTable;
use super::keys::CertificateLayer;
use super::problem::{Given, Origin};
use super::read::Entry;
use super::{CertificateSettings, Directory};
use crate::identifier::Identifier;
use crate::lineage::Lineage;

/// A stored certificate.
#[derive(Clone, Debug)]
pub(crate) enum Remembered {
    /// With the settings of the command that made it.
    Whole(Box<CertificateSettings>),
    /// With the fields of its record.
    Record {
        /// Its name.
        lineage: Lineage,
        /// The names in it.
        names: Vec<Identifier>,
        /// Its CA.
        directory: Option<Directory>,
        /// Its profile.
        profile: Option<String>,
    },
}

impl Entry {
    pub(super) fn remembered(stored: &Remembered) -> Self {
        let (lineage, names) = match stored {
            Remembered::Whole(settings) => (&settings.lineage, &settings.names),
            Remembered::Record { lineage, names, .. } => (lineage, names),
        };
        let origin = Origin::Stored(lineage.to_string());
        Self {
            layer: CertificateLayer::remembered(stored, &origin),
            lineage: lineage.clone(),
            names: names.clone(),
            origin,
            is_a_label: false,
        }
    }
}

impl CertificateLayer {
    fn remembered(stored: &Remembered, origin: &Origin) -> Self {
        fn given<T>(origin: &Origin, value: T) -> Option<Given<T>> {
            let origin = origin.clone();
            Some(Given { value, origin })
        }
        let whole = match stored {
            Remembered::Whole(whole) => whole,
            Remembered::Record {
                directory, profile, ..
            } => {
                return Self {
                    ca: directory.clone().and_then(|ca| given(origin, ca)),
                    profile: profile.clone().and_then(|profile| given(origin, profile)),
                    ..Self::default()
                };
            }
        };
        let (fallback, fallback_eab_kid, fallback_eab_hmac_file) = match whole.fallback.clone() {
            Some(ca) => (Some(ca.directory), ca.eab_kid, ca.eab_hmac_file),
            None => (None, None, None),
        };
        Self {
            fallback: fallback.and_then(|value| given(origin, value)),
            fallback_eab_kid: fallback_eab_kid.and_then(|value| given(origin, value)),
            fallback_eab_hmac_file: fallback_eab_hmac_file.and_then(|value| given(origin, value)),
            stored_challenge: given(origin, whole.challenge.clone()),
            stored_deploy: given(origin, whole.deploy.clone()),
            ..Self::holding(whole, origin)
        }
    }
}
