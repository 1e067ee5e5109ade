//! The stored settings of a certificate, as a source: they replace a table of the file.

use super::key::KeyTable;
use super::keys::CertificateLayer;
use super::problem::{Given, SettingOrigin};
use super::read::{Entry, Strength};
use super::{CertificateSettings, DirectoryUrl};
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
        directory: Option<DirectoryUrl>,
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
        let origin = SettingOrigin::Stored(lineage.to_string());
        Self {
            layer: CertificateLayer::remembered(stored, &origin),
            lineage: lineage.clone(),
            names: names.clone(),
            origin,
            is_named: true,
            strength: Strength::Table,
            is_second: matches!(stored, Remembered::Whole(whole) if whole.is_second),
        }
    }
}

impl CertificateLayer {
    fn remembered(stored: &Remembered, origin: &SettingOrigin) -> Self {
        fn given<T: Clone>(origin: &SettingOrigin, value: Option<&T>) -> Option<Given<T>> {
            value.map(|value| Given::new(value.clone(), origin))
        }
        match stored {
            Remembered::Record {
                directory, profile, ..
            } => Self {
                ca: given(origin, directory.as_ref()),
                profile: given(origin, profile.as_ref()),
                ..Self::default()
            },
            Remembered::Whole(whole) => {
                let fallback = whole.fallback.as_ref();
                let hmac_file = fallback.and_then(|ca| ca.eab_hmac_file.as_ref());
                Self {
                    fallback: given(origin, fallback.map(|ca| &ca.directory)),
                    fallback_eab_kid: given(origin, fallback.and_then(|ca| ca.eab_kid.as_ref())),
                    fallback_eab_hmac_file: given(origin, hmac_file),
                    request: given(origin, whole.request.as_ref()),
                    stored_challenge: given(origin, Some(&whole.challenge)),
                    stored_deploy: given(origin, Some(&whole.deploy)),
                    stored_output: given(origin, whole.output.as_ref()),
                    ..Self::holding(whole, origin)
                }
            }
        }
    }
}
