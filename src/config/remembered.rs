//! What is stored of a certificate, said again as a source of its own: it
//! stands where the file would name it.

use super::layer::CertificateLayer;
use super::problem::{Given, Place};
use super::read::Entry;
use super::{CertificateSettings, Directory};
use crate::identifier::{Identifier, Lineage};

/// A stored certificate.
#[derive(Clone, Debug)]
pub enum Remembered {
    /// With the settings of the command that made it.
    Whole(Box<CertificateSettings>),
    /// With what its record says.
    Record {
        /// Its name.
        lineage: Lineage,
        /// What it is for.
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
        let place = Place::Stored(lineage.to_string());
        Self {
            layer: CertificateLayer::remembered(stored, &place),
            lineage: lineage.clone(),
            names: names.clone(),
            place,
            is_a_label: false,
        }
    }
}

impl CertificateLayer {
    fn remembered(stored: &Remembered, place: &Place) -> Self {
        fn given<T>(place: &Place, value: T) -> Option<Given<T>> {
            let place = place.clone();
            Some(Given { value, place })
        }
        let whole = match stored {
            Remembered::Whole(whole) => whole,
            Remembered::Record {
                directory, profile, ..
            } => {
                return Self {
                    ca: directory.clone().and_then(|ca| given(place, ca)),
                    profile: profile.clone().and_then(|profile| given(place, profile)),
                    ..Self::default()
                };
            }
        };
        let ca = whole.ca.clone();
        let (fallback, second) = (whole.fallback.clone(), whole.fallback.clone());
        let (fallback_eab_kid, fallback_eab_hmac_file) = second.map_or((None, None), |second| {
            (second.eab_kid, second.eab_hmac_file)
        });
        Self {
            ca: given(place, ca.directory),
            root: ca.root.and_then(|value| given(place, value)),
            email: ca.email.and_then(|value| given(place, value)),
            agree_tos: given(place, ca.agree_tos),
            eab_kid: ca.eab_kid.and_then(|value| given(place, value)),
            eab_hmac_file: ca.eab_hmac_file.and_then(|value| given(place, value)),
            preferred_chain: ca.preferred_chain.and_then(|value| given(place, value)),
            fallback: fallback.and_then(|second| given(place, second.directory)),
            fallback_eab_kid: fallback_eab_kid.and_then(|value| given(place, value)),
            fallback_eab_hmac_file: fallback_eab_hmac_file.and_then(|value| given(place, value)),
            stored_challenge: given(place, whole.challenge.clone()),
            profile: whole.profile.clone().and_then(|value| given(place, value)),
            key: given(place, whole.key),
            reuse_key: given(place, whole.reuse_key),
            partial: given(place, whole.partial),
            stored_deploy: given(place, whole.deploy.clone()),
            verify: given(place, whole.verify.clone()),
            ..Self::default()
        }
    }
}
