//! Seals what a shared store gets: AES-256-GCM under keys that the store never sees. The fleet
//! and the name of the document are authenticated with its content, so that a sealed document
//! is of no use elsewhere. Two keys are derived from one secret (HKDF-SHA-256): one for the
//! accounts, and one for all else, which is all that a machine of role serve needs.

use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;

use crate::certificate::{Secret, SecretBytes};

const KEY: usize = 32;
/// The first bytes of a key's digest tell which of several keys has sealed a document.
const ID: usize = 8;
const FORMAT: u8 = 1;
/// Before the key of a machine that only serves.
const SERVE: &str = "serve:";
/// The documents that have the key of accounts.
const ACCOUNTS: &str = "accounts/";
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
    #[error("a key after `serve:` opens no accounts")]
    NoAccounts,
    #[error("it is too long")]
    TooLong,
    #[error("it was changed, or belongs to another name or fleet")]
    Opened,
}

/// A document's name, and the number of its fleet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'n> {
    pub(super) fleet: u64,
    pub(super) name: &'n str,
}

/// The current keys first; the others only open what they have sealed.
#[derive(Clone, Debug)]
pub(crate) struct Seal {
    keys: Vec<Keys>,
}

/// What is derived from one secret.
#[derive(Clone, Debug)]
struct Keys {
    accounts: Option<Key>,
    certificates: Key,
}

#[derive(Clone, Debug)]
struct Key {
    id: [u8; ID],
    key: Arc<RandomizedNonceKey>,
}

impl Seal {
    /// From the lines of a key file.
    ///
    /// # Errors
    /// When a line is not a key, or there is none.
    pub(crate) fn new(file: &str) -> Result<Self, SealError> {
        let keys: Vec<_> = lines(file).map(Keys::of).collect::<Result<_, _>>()?;
        match keys.is_empty() {
            true => Err(SealError::Key),
            false => Ok(Self { keys }),
        }
    }

    /// Whether it opens the accounts of the fleet.
    pub(super) fn opens_accounts(&self) -> bool {
        self.keys.iter().all(|keys| keys.accounts.is_some())
    }

    /// Whether no line does.
    pub(super) fn opens_no_account(&self) -> bool {
        self.keys.iter().all(|keys| keys.accounts.is_none())
    }

    /// Seals `content` as that of the document at `place`.
    ///
    /// # Errors
    /// For more than 64 GiB, and for an account without its key.
    pub(super) fn seal(&self, place: Place<'_>, content: &[u8]) -> Result<Vec<u8>, SealError> {
        let key = self.keys[0].of_place(place).ok_or(SealError::NoAccounts)?;
        let head = [&[FORMAT][..], &key.id].concat();
        let mut sealed = content.to_vec();
        let aad = authenticated(&head, place);
        let nonce = key.key.seal_in_place_append_tag(aad, &mut sealed);
        let nonce = nonce.map_err(|_| SealError::TooLong)?;
        Ok([&head[..], nonce.as_ref(), &sealed].concat())
    }

    /// The content of the document at `place`.
    ///
    /// # Errors
    /// When it was sealed otherwise, or changed.
    pub(super) fn open(&self, place: Place<'_>, sealed: &[u8]) -> Result<SecretBytes, SealError> {
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
        let mut keys = self.keys.iter().filter_map(|keys| keys.of_place(place));
        let key = keys.find(|key| key.id[..] == head[1..]).ok_or_else(|| {
            let number = head[1..].iter().map(|byte| format!("{byte:02x}"));
            SealError::OtherKey(number.collect())
        })?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError::Opened)?;
        let mut content = content.to_vec();
        let opened = key
            .key
            .open_in_place(nonce, authenticated(head, place), &mut content);
        let length = opened.map_err(|_| SealError::Opened)?.len();
        content.truncate(length);
        Ok(SecretBytes::new(content))
    }
}

/// The lines of a key file for a machine of role serve: keys that open no accounts.
///
/// # Errors
/// As those of [`Seal::new`].
pub(super) fn serve_lines(file: &str) -> Result<Secret, SealError> {
    Seal::new(file)?;
    let mut kept = String::new();
    for line in lines(file) {
        match line.starts_with(SERVE) {
            true => kept += line,
            false => {
                let key = derived(&decoded(line)?, "certificates")?;
                kept += &format!("{SERVE}{}", STANDARD.encode(key.expose()));
            }
        }
        kept.push('\n');
    }
    Ok(Secret::new(kept))
}

fn lines(file: &str) -> impl Iterator<Item = &str> {
    let lines = file.lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn authenticated(head: &[u8], place: Place<'_>) -> Aad<Vec<u8>> {
    let fleet = place.fleet.to_be_bytes();
    Aad::from([head, &fleet, place.name.as_bytes()].concat())
}

impl Keys {
    fn of(line: &str) -> Result<Self, SealError> {
        if let Some(line) = line.strip_prefix(SERVE) {
            return Ok(Self {
                accounts: None,
                certificates: Key::new(&decoded(line)?)?,
            });
        }
        let secret = decoded(line)?;
        Ok(Self {
            accounts: Some(Key::new(&derived(&secret, "accounts")?)?),
            certificates: Key::new(&derived(&secret, "certificates")?)?,
        })
    }

    fn of_place(&self, place: Place<'_>) -> Option<&Key> {
        match place.name.starts_with(ACCOUNTS) {
            true => self.accounts.as_ref(),
            false => Some(&self.certificates),
        }
    }
}

impl Key {
    fn new(bytes: &SecretBytes) -> Result<Self, SealError> {
        let bytes = bytes.expose();
        let mut id = [0; ID];
        id.copy_from_slice(&digest(&SHA256, bytes).as_ref()[..ID]);
        let key = RandomizedNonceKey::new(&AES_256_GCM, bytes).map_err(|_| SealError::Key)?;
        let key = Arc::new(key);
        Ok(Self { id, key })
    }
}

fn decoded(line: &str) -> Result<SecretBytes, SealError> {
    let bytes = SecretBytes::new(STANDARD.decode(line).map_err(|_| SealError::Key)?);
    match bytes.expose().len() {
        KEY => Ok(bytes),
        _ => Err(SealError::Key),
    }
}

/// The key for `purpose` that `secret` makes.
fn derived(secret: &SecretBytes, purpose: &str) -> Result<SecretBytes, SealError> {
    let made = Salt::new(HKDF_SHA256, b"certs sealing key").extract(secret.expose());
    let purpose = [purpose.as_bytes()];
    let mut key = vec![0; KEY];
    let filled = made.expand(&purpose, HKDF_SHA256);
    filled
        .and_then(|made| made.fill(&mut key))
        .map_err(|_| SealError::Key)?;
    Ok(SecretBytes::new(key))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) const ONE: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    const TWO: &str = "YWJjZGVmMDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODk=";

    fn at(name: &str) -> Place<'_> {
        Place { fleet: 7, name }
    }

    #[test]
    fn sealed_document_opens_under_its_name_and_in_its_fleet_only() {
        let seal = Seal::new(ONE).unwrap();
        let a = at("pairs/a");
        let sealed = seal.seal(a, b"secret").unwrap();
        let other = seal.seal(a, b"secret").unwrap();
        assert_ne!(sealed, other, "a new nonce each time");
        assert!(!sealed.windows(6).any(|part| part == b"secret"));
        assert_eq!(seal.open(a, &sealed).unwrap().expose(), b"secret");
        assert_eq!(seal.open(at("pairs/b"), &sealed), Err(SealError::Opened));
        let elsewhere = Place { fleet: 8, ..a };
        assert_eq!(seal.open(elsewhere, &sealed), Err(SealError::Opened));
        for index in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[index] ^= 1;
            assert!(seal.open(a, &changed).is_err(), "byte {index}");
            assert!(seal.open(a, &sealed[..index]).is_err(), "cut at {index}");
        }
    }

    #[test]
    fn first_byte_that_is_no_format_is_not_of_a_newer_version() {
        let seal = Seal::new(ONE).unwrap();
        let mut sealed = seal.seal(at("a"), b"secret").unwrap();
        for (first, error) in [
            (2, SealError::Format(2)),
            (15, SealError::Format(15)),
            (0, SealError::Foreign),
            (b'{', SealError::Foreign),
            (0x81, SealError::Foreign),
        ] {
            sealed[0] = first;
            assert_eq!(seal.open(at("a"), &sealed), Err(error));
        }
        assert_eq!(seal.open(at("a"), b""), Err(SealError::Opened));
    }

    #[test]
    fn key_is_rotated() {
        let a = at("a");
        let sealed = Seal::new(ONE).unwrap().seal(a, b"secret").unwrap();
        let both = Seal::new(&format!("# new\n{TWO}\n\n{ONE}\n")).unwrap();
        assert_eq!(both.open(a, &sealed).unwrap().expose(), b"secret");
        let other = Seal::new(TWO).unwrap();
        assert!(matches!(
            other.open(a, &sealed),
            Err(SealError::OtherKey(_))
        ));
        let again = both.seal(a, b"secret").unwrap();
        assert_eq!(other.open(a, &again).unwrap().expose(), b"secret");
    }

    #[test]
    fn key_of_serving_machine_opens_no_account() {
        let file = format!("{TWO}\n{ONE}\n");
        let full = Seal::new(&file).unwrap();
        let lines = serve_lines(&file).unwrap();
        assert!(!lines.expose().contains(ONE) && lines.expose().lines().count() == 2);
        assert_eq!(serve_lines(lines.expose()).unwrap(), lines, "it stays so");
        let serving = Seal::new(lines.expose()).unwrap();
        let (pair, account) = (at("pairs/a"), at("accounts/a"));
        assert!(full.opens_accounts() && serving.opens_no_account());
        let sealed = full.seal(pair, b"pair").unwrap();
        assert_eq!(serving.open(pair, &sealed).unwrap().expose(), b"pair");
        let sealed = serving.seal(pair, b"back").unwrap();
        assert_eq!(full.open(pair, &sealed).unwrap().expose(), b"back");
        let sealed = full.seal(account, b"account").unwrap();
        assert_eq!(full.open(account, &sealed).unwrap().expose(), b"account");
        let refused = serving.open(account, &sealed);
        assert!(matches!(refused, Err(SealError::OtherKey(_))));
        assert_eq!(serving.seal(account, b"x"), Err(SealError::NoAccounts));
        // One whole line beside it opens some.
        let (whole, _) = file.split_once('\n').unwrap();
        let mixed = Seal::new(&format!("{}{whole}\n", lines.expose())).unwrap();
        assert!(!mixed.opens_accounts() && !mixed.opens_no_account());
    }

    #[test]
    fn weak_keys_are_refused() {
        for file in [
            "",
            "# none",
            "secret",
            "c2hvcnQ=",
            "serve:",
            "serve:c2hvcnQ=",
        ] {
            assert_eq!(Seal::new(file).unwrap_err(), SealError::Key, "{file}");
        }
    }
}
