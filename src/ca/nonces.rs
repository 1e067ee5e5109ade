//! Random texts: nonces, each valid for one request (RFC 8555 section 6.5), and
//! tokens and names that an attacker must not guess. Nothing is stored on disk.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Mutex;

use super::jws::encode;
use super::lock;

/// The largest number of unused nonces; the oldest are dropped first.
const OUTSTANDING: usize = 10_000;

#[derive(Default)]
pub(super) struct Nonces(Mutex<(BTreeSet<String>, VecDeque<String>)>);

impl Nonces {
    pub(super) fn issue(&self) -> String {
        let nonce = unguessable();
        let mut issued = lock(&self.0);
        let (unused, by_age) = &mut *issued;
        unused.insert(nonce.clone());
        by_age.push_back(nonce.clone());
        if by_age.len() > OUTSTANDING
            && let Some(oldest) = by_age.pop_front()
        {
            unused.remove(&oldest);
        }
        nonce
    }

    /// Whether `nonce` was issued and is unused; it is used now.
    pub(super) fn take(&self, nonce: &str) -> bool {
        lock(&self.0).0.remove(nonce)
    }
}

/// 128 bits of the system's randomness in base64url.
pub(super) fn unguessable() -> String {
    encode(&random_bytes())
}

pub(super) fn random_bytes() -> [u8; 16] {
    let mut bytes = [0; 16];
    // aws-lc aborts the process instead of returning an error.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonce_is_valid_once_and_the_oldest_are_dropped() {
        let nonces = Nonces::default();
        let first = nonces.issue();
        assert!(nonces.take(&first));
        assert!(!nonces.take(&first));
        let old = nonces.issue();
        for _ in 0..OUTSTANDING {
            nonces.issue();
        }
        assert!(!nonces.take(&old));
        assert!(!nonces.take("of another server"));
    }
}
