//! SHA-256 fingerprints, shown in hexadecimal. They identify certificates and other
//! bytes; they are never secret.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

/// A SHA-256 digest, of a certificate's DER or of other bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// The fingerprint of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let hash = digest(&SHA256, bytes);
        let digits = hash.as_ref().iter().map(|byte| format!("{byte:02x}"));
        Self(digits.collect())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
