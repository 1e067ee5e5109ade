//! Seals what a shared store gets: AES-256-GCM under a key that the store never sees. The
//! name of the document is authenticated with its content, so that a sealed document is of
//! no use under another name.

use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;

use crate::certificate::SecretBytes;

const KEY: usize = 32;
/// The first bytes of a key's digest tell which of several keys has sealed a document.
const ID: usize = 8;
const FORMAT: u8 = 1;
/// Any other first byte than those up to here is not that of a format: a text begins with more.
const LAST_FORMAT: u8 = 15;

/// Why a document cannot be opened, or a key cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum SealError {
    #[error("the sealing key is not 32 bytes in base64, in a line of its own")]
    Key,
    #[error("it was written by a newer version of certs (format {0}), or changed")]
    Format(u8),
    #[error("certs did not write it, or it was changed")]
    Foreign,
    #[error("it was sealed with another key (its number is {0})")]
    OtherKey(String),
    #[error("it is too long")]
    TooLong,
    #[error("it was changed, or belongs to another name")]
    Opened,
}

/// The current key first; the others only open what they have sealed.
#[derive(Clone, Debug)]
pub(crate) struct Seal {
    keys: Arc<[([u8; ID], RandomizedNonceKey)]>,
}

impl Seal {
    /// From the lines of a key file.
    ///
    /// # Errors
    /// When a line is not a key, or there is none.
    pub(crate) fn new(file: &str) -> Result<Self, SealError> {
        let lines = file.lines().map(str::trim);
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys: Vec<_> = lines.map(read_key).collect::<Result<_, _>>()?;
        match keys.is_empty() {
            true => Err(SealError::Key),
            false => Ok(Self { keys: keys.into() }),
        }
    }

    /// Seals `content` as that of the document `name`.
    ///
    /// # Errors
    /// For more than 64 GiB.
    pub(super) fn seal(&self, name: &str, content: &[u8]) -> Result<Vec<u8>, SealError> {
        let (id, key) = &self.keys[0];
        let head = [&[FORMAT][..], id].concat();
        let mut sealed = content.to_vec();
        let aad = Aad::from([&head, name.as_bytes()].concat());
        let nonce = key.seal_in_place_append_tag(aad, &mut sealed);
        let nonce = nonce.map_err(|_| SealError::TooLong)?;
        Ok([&head[..], nonce.as_ref(), &sealed].concat())
    }

    /// The content of the document `name`.
    ///
    /// # Errors
    /// When it was sealed otherwise, or changed.
    pub(super) fn open(&self, name: &str, sealed: &[u8]) -> Result<SecretBytes, SealError> {
        let (&format, _) = sealed.split_first().ok_or(SealError::Opened)?;
        match format {
            FORMAT => {}
            newer if (FORMAT..=LAST_FORMAT).contains(&newer) => {
                return Err(SealError::Format(newer));
            }
            _ => return Err(SealError::Foreign),
        }
        let (head, rest) = sealed.split_at_checked(1 + ID).ok_or(SealError::Opened)?;
        let (nonce, content) = rest.split_at_checked(NONCE_LEN).ok_or(SealError::Opened)?;
        let mut keys = self.keys.iter().filter(|(id, _)| id[..] == head[1..]);
        let (_, key) = keys.next().ok_or_else(|| {
            let number = head[1..].iter().map(|byte| format!("{byte:02x}"));
            SealError::OtherKey(number.collect())
        })?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError::Opened)?;
        let aad = Aad::from([head, name.as_bytes()].concat());
        let mut content = content.to_vec();
        let opened = key.open_in_place(nonce, aad, &mut content);
        let length = opened.map_err(|_| SealError::Opened)?.len();
        content.truncate(length);
        Ok(SecretBytes::new(content))
    }
}

fn read_key(line: &str) -> Result<([u8; ID], RandomizedNonceKey), SealError> {
    let bytes = SecretBytes::new(STANDARD.decode(line).map_err(|_| SealError::Key)?);
    let bytes = bytes.expose();
    if bytes.len() != KEY {
        return Err(SealError::Key);
    }
    let mut id = [0; ID];
    id.copy_from_slice(&digest(&SHA256, bytes).as_ref()[..ID]);
    let key = RandomizedNonceKey::new(&AES_256_GCM, bytes).map_err(|_| SealError::Key)?;
    Ok((id, key))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) const ONE: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    const TWO: &str = "YWJjZGVmMDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODk=";

    #[test]
    fn sealed_document_opens_under_its_name_only() {
        let seal = Seal::new(ONE).unwrap();
        let sealed = seal.seal("pairs/a", b"secret").unwrap();
        let other = seal.seal("pairs/a", b"secret").unwrap();
        assert_ne!(sealed, other, "a new nonce each time");
        assert!(!sealed.windows(6).any(|part| part == b"secret"));
        assert_eq!(seal.open("pairs/a", &sealed).unwrap().expose(), b"secret");
        assert_eq!(seal.open("pairs/b", &sealed), Err(SealError::Opened));
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(seal.open("pairs/a", &changed).is_err(), "byte {at}");
            assert!(seal.open("pairs/a", &sealed[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn first_byte_that_is_no_format_is_not_of_a_newer_version() {
        let seal = Seal::new(ONE).unwrap();
        let mut sealed = seal.seal("a", b"secret").unwrap();
        for (first, error) in [
            (2, SealError::Format(2)),
            (15, SealError::Format(15)),
            (0, SealError::Foreign),
            (b'{', SealError::Foreign),
            (0x81, SealError::Foreign),
        ] {
            sealed[0] = first;
            assert_eq!(seal.open("a", &sealed), Err(error));
        }
        assert_eq!(seal.open("a", b""), Err(SealError::Opened));
    }

    #[test]
    fn key_is_rotated() {
        let sealed = Seal::new(ONE).unwrap().seal("a", b"secret").unwrap();
        let both = Seal::new(&format!("# new\n{TWO}\n\n{ONE}\n")).unwrap();
        assert_eq!(both.open("a", &sealed).unwrap().expose(), b"secret");
        let other = Seal::new(TWO).unwrap();
        assert!(matches!(
            other.open("a", &sealed),
            Err(SealError::OtherKey(_))
        ));
        let again = both.seal("a", b"secret").unwrap();
        assert_eq!(other.open("a", &again).unwrap().expose(), b"secret");
    }

    #[test]
    fn weak_keys_are_refused() {
        for file in ["", "# none", "secret", "c2hvcnQ="] {
            assert_eq!(Seal::new(file).unwrap_err(), SealError::Key, "{file}");
        }
    }
}
