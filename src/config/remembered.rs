//! The stored settings of a certificate, as a source: they replace a table of the file.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;

use super::key::KeyTable;
use super::keys::CertificateLayer;
use super::problem::{Given, SettingOrigin};
use super::read::{Entry, Strength};
use super::{CertificateSettings, DirectoryUrl, SharedSettings};
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

/// Reads the stored settings of many certificates. Those that differ only by their names are
/// read once, and share their memory.
#[derive(Debug, Default)]
pub(crate) struct StoredSettings(Mutex<BTreeMap<String, Arc<SharedSettings>>>);

/// Further kinds of settings are read, and not kept.
const MOST_KINDS: usize = 1000;

impl StoredSettings {
    /// Reads what is stored for `lineage`, as [`CertificateSettings::stored_as`] does.
    ///
    /// # Errors
    /// When it is damaged.
    pub(crate) fn read(
        &self,
        lineage: &Lineage,
        json: &str,
    ) -> serde_json::Result<CertificateSettings> {
        let whole = |json| CertificateSettings::stored_as(lineage, json);
        let Some((names, rest)) = split(json) else {
            return whole(json);
        };
        let names = names.into_iter().map(|name| lineage.share(name)).collect();
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = kinds.get(rest) {
            return Ok(CertificateSettings {
                lineage: lineage.clone(),
                names,
                shared: shared.clone(),
            });
        }
        let settings = whole(json)?;
        if kinds.len() < MOST_KINDS {
            kinds.insert(rest.to_owned(), settings.shared.clone());
        }
        Ok(settings)
    }
}

/// The names in stored settings, and all that follows them, if the text is as we write it: no
/// line break is inside a string.
fn split(json: &str) -> Option<(Vec<Identifier>, &str)> {
    #[derive(Deserialize)]
    struct Head {
        names: Vec<Identifier>,
    }
    let (name, names) = json.strip_prefix("{\n  \"lineage\": ")?.split_once('\n')?;
    names.strip_prefix("  \"names\": [\n")?;
    let (names, rest) = names.split_once("\n  ],\n")?;
    let head: Head = serde_json::from_str(&format!("{{\"lineage\": {name}{names}]}}")).ok()?;
    Some((head.names, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(names: &[&str], email: &str) -> (Lineage, String) {
        let names: Vec<Identifier> = names.iter().map(|name| name.parse().unwrap()).collect();
        let lineage = Lineage::of(&names[0]);
        let mut settings = CertificateSettings::new(lineage.clone(), names);
        settings.ca.email = Some(email.to_owned());
        (lineage, serde_json::to_string_pretty(&settings).unwrap())
    }

    #[test]
    fn stored_settings_share_memory_and_are_read_as_one_by_one() {
        let all = StoredSettings::default();
        let tricky = "a@example.com\"\n  ],\n";
        let cases = [
            stored(&["a.example"], "a@example.com"),
            stored(&["b.example", "*.b.example"], "a@example.com"),
            stored(&["c.example"], tricky),
        ];
        let read = cases.each_ref().map(|(lineage, json)| {
            let read = all.read(lineage, json).unwrap();
            assert_eq!(read, CertificateSettings::stored_as(lineage, json).unwrap());
            read
        });
        assert!(Arc::ptr_eq(&read[0].shared, &read[1].shared));
        assert!(!Arc::ptr_eq(&read[0].shared, &read[2].shared));
        // Written by a person, in another order, or with one change.
        let (lineage, json) = &cases[0];
        let compact = serde_json::from_str::<serde_json::Value>(json).unwrap();
        assert_eq!(all.read(lineage, &compact.to_string()).unwrap(), read[0]);
        let changed = json.replace("a@example.com", "b@example.com");
        let changed = all.read(lineage, &changed).unwrap();
        assert_eq!(changed.ca.email.as_deref(), Some("b@example.com"));
        assert!(all.read(lineage, &json.replace("a.example", "-")).is_err());
        // A change of one is none of the others.
        let mut own = read[0].clone();
        own.partial = true;
        assert!(!read[1].partial && !read[0].partial);
    }
}
