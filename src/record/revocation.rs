//! The revocation of stored certificates: what is intended, until the CA has done it, and
//! what is done. RFC 5280 section 5.3.1, RFC 8555 section 7.6.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Failures, Generation, Record};
use crate::certificate::Secret;
use crate::time::Timestamp;

/// Why a certificate is revoked: the reasons that a subscriber may give.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // the names are RFC 5280's
pub enum RevocationReason {
    #[default]
    Unspecified,
    KeyCompromise,
    AffiliationChanged,
    Superseded,
    CessationOfOperation,
}

impl RevocationReason {
    /// All of them, with their numbers.
    pub const ALL: [(Self, u8, &'static str); 5] = [
        (Self::Unspecified, 0, "unspecified"),
        (Self::KeyCompromise, 1, "keycompromise"),
        (Self::AffiliationChanged, 3, "affiliationchanged"),
        (Self::Superseded, 4, "superseded"),
        (Self::CessationOfOperation, 5, "cessationofoperation"),
    ];

    /// The number of RFC 5280.
    #[must_use]
    pub fn code(self) -> u8 {
        let mut all = Self::ALL.into_iter();
        all.find(|(reason, ..)| *reason == self)
            .map_or(0, |(_, code, _)| code)
    }
}

impl fmt::Display for RevocationReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all = Self::ALL.into_iter();
        let name = all.find(|(reason, ..)| reason == self);
        f.write_str(name.map_or("", |(_, _, name)| name))
    }
}

impl FromStr for RevocationReason {
    type Err = String;

    /// Reads a name in any case, with or without hyphens, or a number.
    fn from_str(text: &str) -> Result<Self, String> {
        let plain = text.to_lowercase().replace(['-', '_'], "");
        let mut all = Self::ALL.into_iter();
        let found = all.find(|(_, code, name)| plain == *name || plain == code.to_string());
        found.map(|(reason, ..)| reason).ok_or_else(|| {
            let all = Self::ALL.map(|(_, code, name)| format!("{name} ({code})"));
            format!(
                "unknown reason `{}`; write one of {}",
                text.escape_debug(),
                all.join(", ")
            )
        })
    }
}

/// Certificates that are to be revoked. It is stored before the first step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// The reason.
    pub reason: RevocationReason,
    /// The newest generation at the request: a later one replaces it.
    pub generation: Generation,
    /// The directory URL of the CA that issued it.
    pub ca: String,
    /// The certificates that the CA has not revoked yet. They are kept here, since old
    /// generations leave the store.
    pub certificates: BTreeMap<Generation, ToRevoke>,
    /// Whether to revoke before a replacement is served.
    pub at_once: bool,
    /// The failed requests.
    #[serde(default)]
    pub failures: Failures,
}

/// A certificate to revoke.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToRevoke {
    /// Its chain, leaf first.
    pub chain_pem: String,
    /// Its key, which signs the request if the key is compromised.
    pub key_pem: Secret,
}

/// A revoked certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// When the CA confirmed it.
    pub at: Timestamp,
    /// The reason.
    pub reason: RevocationReason,
}

impl Record {
    /// Whether the newest certificate is revoked or is to be revoked: it must be replaced, by
    /// one with a new key.
    #[must_use]
    pub fn must_replace(&self) -> bool {
        let pending = self.revocation.as_ref();
        self.issued.as_ref().is_some_and(|issued| {
            let newest = issued.generation;
            self.revoked.contains_key(&newest)
                || pending.is_some_and(|pending| newest <= pending.generation)
        })
    }

    /// Notes that the CA has revoked `generation`.
    pub(crate) fn note_revoked(&mut self, generation: Generation, at: Timestamp) {
        let Some(pending) = &mut self.revocation else {
            return;
        };
        let reason = pending.reason;
        pending.certificates.remove(&generation);
        if pending.certificates.is_empty() {
            self.revocation = None;
        }
        self.revoked.insert(generation, Revoked { at, reason });
        let newest = self.issued.as_ref().map(|issued| issued.generation);
        let is_stored =
            |one: &Generation| newest.is_none_or(|newest| one.0 + Generation::KEPT >= newest.0);
        self.revoked.retain(|generation, _| is_stored(generation));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_is_read_by_name_and_by_number() {
        for (text, reason) in [
            ("keycompromise", RevocationReason::KeyCompromise),
            ("keyCompromise", RevocationReason::KeyCompromise),
            ("key-compromise", RevocationReason::KeyCompromise),
            ("1", RevocationReason::KeyCompromise),
            ("4", RevocationReason::Superseded),
            ("0", RevocationReason::Unspecified),
        ] {
            assert_eq!(text.parse(), Ok(reason), "{text}");
        }
        for text in ["", "2", "6", "cacompromise", "key compromise", "01"] {
            let error = text.parse::<RevocationReason>().unwrap_err();
            assert!(error.contains("superseded (4)"), "{error}");
        }
        for (reason, code, name) in RevocationReason::ALL {
            assert_eq!((reason.code(), reason.to_string().as_str()), (code, name));
            let json = serde_json::to_string(&reason).unwrap();
            assert_eq!(json, format!("\"{name}\""));
        }
    }
}
