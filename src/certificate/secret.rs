//! Text and bytes that must never be shown: keys and tokens.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use zeroize::Zeroizing;

thread_local! {
    /// Whether [`shown`] is at work.
    static HIDDEN: Cell<bool> = const { Cell::new(false) };
}

/// `value` for a reader: "(…)" stands for each [`Secret`] in it.
///
/// # Errors
/// That `value` is not JSON.
pub(crate) fn shown(value: &impl Serialize) -> serde_json::Result<Value> {
    HIDDEN.set(true);
    let json = serde_json::to_value(value);
    HIDDEN.set(false);
    json
}

/// Secret text: `Debug` hides it, and the drop of the last clone wipes it. Clones share
/// one text. It is stored as it is; [`shown`] hides it.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(Arc<Zeroizing<String>>);

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = if HIDDEN.get() { "(…)" } else { self.expose() };
        serializer.serialize_str(text)
    }
}

impl Secret {
    /// Takes ownership of the text.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Arc::new(Zeroizing::new(text)))
    }

    /// The text itself, for the code that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Secret bytes, hidden and wiped like [`Secret`].
#[derive(Clone, PartialEq, Eq)]
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    /// Takes ownership of the bytes.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes themselves, for the code that needs them.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretBytes(…)")
    }
}
