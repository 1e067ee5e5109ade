//! Unguessable texts: nonces, each good for one request (RFC 8555 section
//! 6.5), and the tokens and names that a stranger must not be able to guess.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use super::jws::encode;

/// Nonces that are out and not used yet; the oldest fall out first.
const OUTSTANDING: usize = 10_000;

#[derive(Default)]
pub(super) struct Nonces(Mutex<(BTreeSet<String>, VecDeque<String>)>);

impl Nonces {
    /// A new one.
    pub(super) fn give(&self) -> String {
        let nonce = unguessable();
        let mut out = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (unused, by_age) = &mut *out;
        unused.insert(nonce.clone());
        by_age.push_back(nonce.clone());
        if by_age.len() > OUTSTANDING
            && let Some(oldest) = by_age.pop_front()
        {
            unused.remove(&oldest);
        }
        nonce
    }

    /// Whether `nonce` was given and not taken before; it is used up then.
    pub(super) fn take(&self, nonce: &str) -> bool {
        let mut out = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        out.0.remove(nonce)
    }
}

/// 128 bits of the system's randomness in base64url.
pub(super) fn unguessable() -> String {
    encode(&random_bytes())
}

pub(super) fn random_bytes() -> [u8; 16] {
    let mut bytes = [0; 16];
    // aws-lc aborts the process rather than fail here.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_good_once_and_the_oldest_fall_out() {
        let nonces = Nonces::default();
        let first = nonces.give();
        assert!(nonces.take(&first));
        assert!(!nonces.take(&first));
        let old = nonces.give();
        for _ in 0..OUTSTANDING {
            nonces.give();
        }
        assert!(!nonces.take(&old));
        assert!(!nonces.take("of another server"));
    }
}
