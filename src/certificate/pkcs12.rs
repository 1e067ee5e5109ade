//! A pair as a PKCS#12 key store (RFC 7292) for Java and software on it: PBES2 with
//! AES-256 and HMAC-SHA-256, which Java 8u301 and later read. It also serves where
//! JKS is requested, as Java itself writes PKCS#12 since version 9.

use std::num::NonZeroU32;

use aws_lc_rs::cipher::{AES_256, PaddedBlockEncryptingKey, UnboundCipherKey};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::pbkdf2::{PBKDF2_HMAC_SHA256, derive};
use aws_lc_rs::{hmac, rand};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use zeroize::Zeroizing;

use super::{Bundle, Secret};

const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const NULL: &[u8] = &[0x05, 0x00];
const OBJECT_IDENTIFIER: u8 = 0x06;
const BMP_STRING: u8 = 0x1e;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const IMPLICIT_0: u8 = 0x80;
const EXPLICIT_0: u8 = 0xa0;

/// The arcs 1.2.840.113549 and 2.16.840.1.101.3.4.
const PKCS: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d];
const NIST: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04];
const DATA: &[u8] = &[1, 7, 1];
const ENCRYPTED_DATA: &[u8] = &[1, 7, 6];

/// The rounds of each key derivation, as many as Java's own default.
const ROUNDS: u16 = 10_000;

impl Bundle {
    /// The store's bytes, with the key under `alias`.
    ///
    /// # Errors
    /// A message, if the key is not PKCS#8.
    pub fn pkcs12(&self, alias: &str, password: &Secret) -> Result<Zeroizing<Vec<u8>>, String> {
        let key = PrivatePkcs8KeyDer::from_pem_slice(self.key_pem.expose().as_bytes());
        let key = key.map_err(|error| format!("the key is not PKCS#8: {error}"))?;
        let key = Zeroizing::new(key);
        let store = store(
            key.secret_pkcs8_der(),
            &self.chain,
            alias,
            password.expose(),
        );
        let store = store.map_err(|_| "aws-lc cannot encrypt the key store")?;
        Ok(Zeroizing::new(store))
    }
}

fn store(
    key: &[u8],
    chain: &[impl AsRef<[u8]>],
    alias: &str,
    password: &str,
) -> Result<Vec<u8>, Unspecified> {
    // Readers find the key's certificate by an identifier that both have.
    let mut attributes = [
        attribute(&[1, 9, 20], &der(BMP_STRING, &[&utf16(alias)])),
        attribute(&[1, 9, 21], &der(OCTET_STRING, &[alias.as_bytes()])),
    ];
    attributes.sort();
    let attributes = der(SET, &[&attributes.concat()]);
    let mut certificates = Vec::new();
    for (at, certificate) in chain.iter().enumerate() {
        let octets = der(OCTET_STRING, &[certificate.as_ref()]);
        let value = [oid(PKCS, &[1, 9, 22, 1]), der(EXPLICIT_0, &[&octets])].concat();
        let attributes = if at == 0 { &*attributes } else { &[] };
        certificates.extend(bag(3, &value, attributes));
    }
    let (algorithm, octets) = encrypt(&der(SEQUENCE, &[&certificates]), password)?;
    let octets = der(IMPLICIT_0, &[&octets]);
    let certificates = der(SEQUENCE, &[&oid(PKCS, DATA), &algorithm, &octets]);
    let certificates = der(SEQUENCE, &[&der(INTEGER, &[&[0]]), &certificates]);

    let (algorithm, octets) = encrypt(key, password)?;
    let key = [algorithm, der(OCTET_STRING, &[&octets])].concat();
    let key = der(SEQUENCE, &[&bag(2, &key, &attributes)]);

    let safe = der(
        SEQUENCE,
        &[
            &content(ENCRYPTED_DATA, &certificates),
            &content(DATA, &der(OCTET_STRING, &[&key])),
        ],
    );
    let mac = mac(&safe, password)?;
    let safe = content(DATA, &der(OCTET_STRING, &[&safe]));
    Ok(der(SEQUENCE, &[&der(INTEGER, &[&[3]]), &safe, &mac]))
}

/// A value in DER: `tag`, length and `parts`.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = (content.len() as u64).to_be_bytes();
    let zeros = length.iter().take(7).take_while(|octet| **octet == 0);
    let length = &length[zeros.count()..];
    let mut value = vec![tag];
    if content.len() >= 0x80 {
        value.push(0x80 | length.len() as u8);
    }
    value.extend(length);
    value.extend(content);
    value
}

fn oid(arc: &[u8], rest: &[u8]) -> Vec<u8> {
    der(OBJECT_IDENTIFIER, &[arc, rest])
}

fn algorithm(name: &[u8], parameters: &[u8]) -> Vec<u8> {
    der(SEQUENCE, &[name, parameters])
}

/// A `ContentInfo` of the type `kind`.
fn content(kind: &[u8], value: &[u8]) -> Vec<u8> {
    der(SEQUENCE, &[&oid(PKCS, kind), &der(EXPLICIT_0, &[value])])
}

/// A `SafeBag`: 2 is an encrypted key, 3 a certificate.
fn bag(kind: u8, value: &[u8], attributes: &[u8]) -> Vec<u8> {
    let value = der(EXPLICIT_0, &[&der(SEQUENCE, &[value])]);
    let kind = oid(PKCS, &[1, 12, 10, 1, kind]);
    der(SEQUENCE, &[&kind, &value, attributes])
}

fn attribute(kind: &[u8], value: &[u8]) -> Vec<u8> {
    der(SEQUENCE, &[&oid(PKCS, kind), &der(SET, &[value])])
}

/// `plain`, encrypted by PBES2 (RFC 8018): the algorithm and the octets.
fn encrypt(plain: &[u8], password: &str) -> Result<(Vec<u8>, Vec<u8>), Unspecified> {
    let (mut salt, mut key) = ([0; 32], Zeroizing::new([0; 32]));
    rand::fill(&mut salt)?;
    let rounds = NonZeroU32::new(ROUNDS.into()).ok_or(Unspecified)?;
    derive(
        PBKDF2_HMAC_SHA256,
        rounds,
        &salt,
        password.as_bytes(),
        &mut *key,
    );
    let key = UnboundCipherKey::new(&AES_256, &*key)?;
    // With room for the padding: a larger vector would leave the plain text behind.
    let mut octets = Zeroizing::new(Vec::with_capacity(plain.len() + 16));
    octets.extend_from_slice(plain);
    let context = PaddedBlockEncryptingKey::cbc_pkcs7(key)?.encrypt(&mut *octets)?;
    let octets = std::mem::take(&mut *octets);
    let salt = der(OCTET_STRING, &[&salt]);
    let rounds = der(INTEGER, &[&ROUNDS.to_be_bytes()]);
    let hash = algorithm(&oid(PKCS, &[2, 9]), NULL);
    let derivation = der(SEQUENCE, &[&salt, &rounds, &hash]);
    let derivation = algorithm(&oid(PKCS, &[1, 5, 12]), &derivation);
    let vector = der(OCTET_STRING, &[(&context).try_into()?]);
    let cipher = algorithm(&oid(NIST, &[1, 42]), &vector);
    let parameters = der(SEQUENCE, &[&derivation, &cipher]);
    Ok((algorithm(&oid(PKCS, &[1, 5, 13]), &parameters), octets))
}

/// The `MacData` over `safe`. Its key is derived by RFC 7292, appendix B.2: one block,
/// since the key is as long as the digest.
fn mac(safe: &[u8], password: &str) -> Result<Vec<u8>, Unspecified> {
    let mut salt = [0; 32];
    rand::fill(&mut salt)?;
    let units = password.encode_utf16().chain([0]);
    let length = (2 * units.clone().count()).next_multiple_of(64);
    let password = units.flat_map(u16::to_be_bytes).cycle().take(length);
    let mut first = Zeroizing::new(Vec::with_capacity(128 + length));
    first.extend([3; 64]);
    first.extend(salt.iter().cycle().take(64));
    first.extend(password);
    let mut key = digest(&SHA256, &first);
    for _ in 1..ROUNDS {
        key = digest(&SHA256, key.as_ref());
    }
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_ref());
    let mac = der(OCTET_STRING, &[hmac::sign(&key, safe).as_ref()]);
    let hash = algorithm(&oid(NIST, &[2, 1]), NULL);
    let rounds = der(INTEGER, &[&ROUNDS.to_be_bytes()]);
    let salt = der(OCTET_STRING, &[&salt]);
    Ok(der(
        SEQUENCE,
        &[&der(SEQUENCE, &[&hash, &mac]), &salt, &rounds],
    ))
}

/// The content of a BMPString.
fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io;
    use std::path::Path;
    use std::process::{Command, Output};

    use aws_lc_rs::cipher::{DecryptionContext, PaddedBlockDecryptingKey};
    use proptest::prelude::{ProptestConfig, prop_assert_eq};
    use rcgen::{CertificateParams, Issuer, KeyPair};
    use rustls::pki_types::CertificateDer;

    use super::super::{Freshness, KeyType};
    use super::*;
    use crate::identifier::Identifier;
    use crate::time::Timestamp;

    /// A pair with a chain of two.
    fn pair(key_type: KeyType) -> Bundle {
        let names = BTreeSet::from([Identifier::parse("example.com").unwrap()]);
        let key = key_type.generate().unwrap();
        let pair = KeyPair::from_pem(key.expose()).unwrap();
        let mut authority = CertificateParams::default();
        let name = &mut authority.distinguished_name;
        name.push(rcgen::DnType::CommonName, "root");
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority_key = KeyPair::generate().unwrap();
        let root = authority.self_signed(&authority_key).unwrap();
        let leaf = CertificateParams::new(vec!["example.com".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&pair, &Issuer::new(authority, authority_key));
        let chain = leaf.unwrap().pem() + &root.pem();
        let now = Timestamp::from_seconds(1_800_000_000);
        Bundle::new(key, &chain, &names, now, Freshness::Any).unwrap()
    }

    /// The values in `der` and their tags, one after the other.
    fn values(mut der: &[u8]) -> Vec<(u8, &[u8])> {
        let mut values = Vec::new();
        while let [tag, length, rest @ ..] = der {
            let (length, rest) = match length & 0x80 {
                0 => (usize::from(*length), rest),
                _ => {
                    let (octets, rest) = rest.split_at(usize::from(length & 0x7f));
                    let length = octets
                        .iter()
                        .fold(0, |sum, octet| sum << 8 | usize::from(*octet));
                    (length, rest)
                }
            };
            let (value, rest) = rest.split_at(length);
            values.push((*tag, value));
            der = rest;
        }
        values
    }

    /// The content of the value at `path`: an index at each depth.
    fn at<'a>(der: &'a [u8], path: &[usize]) -> &'a [u8] {
        path.iter().fold(der, |der, index| values(der)[*index].1)
    }

    fn number(octets: &[u8]) -> u32 {
        octets
            .iter()
            .fold(0, |sum, octet| sum << 8 | u32::from(*octet))
    }

    /// Decrypts PBES2 with PBKDF2, HMAC-SHA-256 and AES-256-CBC.
    fn decrypted(algorithm: &[u8], octets: &[u8], password: &str) -> Option<Vec<u8>> {
        let derivation = at(algorithm, &[1, 0, 1]);
        let (salt, rounds) = (at(derivation, &[0]), number(at(derivation, &[1])));
        let mut key = [0; 32];
        let rounds = NonZeroU32::new(rounds).unwrap();
        derive(
            PBKDF2_HMAC_SHA256,
            rounds,
            salt,
            password.as_bytes(),
            &mut key,
        );
        let key = UnboundCipherKey::new(&AES_256, &key).unwrap();
        let vector: [u8; 16] = at(algorithm, &[1, 1, 1]).try_into().unwrap();
        let context = DecryptionContext::Iv128(vector.into());
        let mut octets = octets.to_vec();
        let key = PaddedBlockDecryptingKey::cbc_pkcs7(key).unwrap();
        let plain = key.decrypt(&mut octets, context).ok()?;
        Some(plain.to_vec())
    }

    /// Whether `mac_data` is that of `safe` (RFC 7292, appendix B.2).
    fn is_authentic(mac_data: &[u8], safe: &[u8], password: &str) -> bool {
        let (mac, salt) = (at(mac_data, &[0, 1]), at(mac_data, &[1]));
        let rounds = number(at(mac_data, &[2]));
        let password: Vec<u8> = (password.encode_utf16().chain([0]))
            .flat_map(u16::to_be_bytes)
            .collect();
        let mut block = vec![3; 64];
        for part in [salt, &password] {
            let length = part.len().div_ceil(64) * 64;
            block.extend(part.iter().cycle().take(length));
        }
        for _ in 0..rounds {
            block = digest(&SHA256, &block).as_ref().to_vec();
        }
        hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, &block), safe, mac).is_ok()
    }

    /// What a key store holds.
    struct Held {
        /// PKCS#8.
        key: Vec<u8>,
        /// Leaf first.
        chain: Vec<Vec<u8>>,
        /// Of the key and of its certificate.
        aliases: Vec<String>,
    }

    /// Reads a store; `None` if `password` does not fit.
    fn held(store: &[u8], password: &str) -> Option<Held> {
        let safe = at(store, &[0, 1, 1, 0]);
        is_authentic(at(store, &[0, 2]), safe, password).then_some(())?;
        let certificates = at(safe, &[0, 0, 1, 0, 1]);
        let plain = decrypted(at(certificates, &[1]), at(certificates, &[2]), password)?;
        let (mut chain, mut aliases) = (Vec::new(), Vec::new());
        let mut named = |bag: &[u8]| {
            let attributes = values(bag).get(2).map_or(&[][..], |(_, set)| *set);
            for (_, attribute) in values(attributes) {
                if at(attribute, &[0]) == [PKCS, &[1, 9, 20]].concat() {
                    let units = at(attribute, &[1, 0]).chunks(2);
                    let units: Vec<u16> = units.map(|unit| number(unit) as u16).collect();
                    aliases.push(String::from_utf16(&units).unwrap());
                }
            }
        };
        for (_, bag) in values(at(&plain, &[0])) {
            chain.push(at(bag, &[1, 0, 1, 0]).to_vec());
            named(bag);
        }
        let bag = at(safe, &[0, 1, 1, 0, 0, 0]);
        named(bag);
        let key = decrypted(at(bag, &[1, 0, 0]), at(bag, &[1, 0, 1]), password)?;
        Some(Held {
            key,
            chain,
            aliases,
        })
    }

    #[test]
    fn the_reader_of_these_tests_reads_a_store_of_openssl() {
        let made = include_bytes!("pkcs12/openssl.p12");
        assert!(held(made, "wrong").is_none());
        let read = held(made, "päss").unwrap();
        assert_eq!(read.aliases, ["example.com"; 2]);
        let key = PrivatePkcs8KeyDer::from(read.key.as_slice());
        let key = KeyPair::try_from(&key).unwrap();
        let leaf = x509_parser::parse_x509_certificate(&read.chain[0])
            .unwrap()
            .1;
        let public = &leaf.public_key().subject_public_key.data;
        assert_eq!(key.public_key_raw(), &**public);
    }

    #[test]
    fn pkcs12_needs_its_password_and_holds_the_pair() {
        for key_type in [KeyType::EcdsaP256, KeyType::EcdsaP384, KeyType::Rsa2048] {
            let bundle = pair(key_type);
            let key = PrivatePkcs8KeyDer::from_pem_slice(bundle.key_pem().expose().as_bytes());
            for text in ["changeit", "", "päss", "пароль 🔑", &"long".repeat(200)] {
                let made = bundle.pkcs12("exämple.com", &Secret::new(text.to_owned()));
                let made = made.unwrap();
                assert!(held(&made, "wrong").is_none(), "{text}");
                let read = held(&made, text).unwrap();
                assert_eq!(read.aliases, ["exämple.com"; 2]);
                assert_eq!(read.key, key.as_ref().unwrap().secret_pkcs8_der());
                let chain: Vec<_> = bundle.chain().iter().map(|one| one.to_vec()).collect();
                assert_eq!(read.chain, chain);
            }
        }
    }

    /// What `program` answers; `None` and a line when this machine has no such program.
    fn run(program: &str, arguments: &[&str]) -> Option<Output> {
        match Command::new(program).args(arguments).output() {
            Ok(output) => Some(output),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                eprintln!("SKIPPED: key stores read by {program}: there is no {program}");
                None
            }
            Err(error) => panic!("{program}: {error}"),
        }
    }

    fn openssl(store: &Path, password: &Path) -> Option<Output> {
        let password = format!("file:{}", password.display());
        let store = store.to_str().unwrap();
        run(
            "openssl",
            &["pkcs12", "-nodes", "-passin", &password, "-in", store],
        )
    }

    /// Checks that `openssl` reads `bundle` back from `store`; false without `openssl`.
    fn reads_back(bundle: &Bundle, alias: &str, store: &Path, password: &Path) -> bool {
        let Some(output) = openssl(store, password) else {
            return false;
        };
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let friendly = format!("friendlyName: {alias}\n");
        assert_eq!(text.matches(&friendly).count(), 2, "{text}");
        let mut chain = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
            chain.push(certificate.unwrap());
        }
        assert_eq!(chain, bundle.chain());
        let key = |pem: &str| KeyPair::from_pem(pem).unwrap().public_key_raw().to_vec();
        let (_, pem) = text.split_once("-----BEGIN PRIVATE KEY-----").unwrap();
        let pem = format!("-----BEGIN PRIVATE KEY-----{pem}");
        assert_eq!(key(&pem), key(bundle.key_pem().expose()));
        true
    }

    #[test]
    fn pkcs12_is_read_by_openssl_with_its_password_only() {
        let directory = tempfile::tempdir().unwrap();
        let [store, password, wrong] =
            ["p12", "password", "wrong"].map(|file| directory.path().join(file));
        std::fs::write(&wrong, "wrong\n").unwrap();
        for key_type in [KeyType::EcdsaP256, KeyType::EcdsaP384, KeyType::Rsa2048] {
            let bundle = pair(key_type);
            for text in ["changeit", "", "päss", "пароль 🔑", &"long".repeat(200)] {
                let made = bundle.pkcs12("example.com", &Secret::new(text.to_owned()));
                std::fs::write(&store, &*made.unwrap()).unwrap();
                std::fs::write(&password, format!("{text}\n")).unwrap();
                if !reads_back(&bundle, "example.com", &store, &password) {
                    return;
                }
                let refused = openssl(&store, &wrong).unwrap();
                let error = String::from_utf8_lossy(&refused.stderr).into_owned();
                assert!(
                    !refused.status.success() && error.contains("invalid password"),
                    "{error}"
                );
            }
        }
    }

    #[test]
    fn pkcs12_is_read_by_keytool() {
        let directory = tempfile::tempdir().unwrap();
        let [store, copy, password] =
            ["p12", "copy", "password"].map(|file| directory.path().join(file));
        let bundle = pair(KeyType::Rsa2048);
        let made = bundle.pkcs12("example.com", &Secret::new("changeit".to_owned()));
        std::fs::write(&store, &*made.unwrap()).unwrap();
        std::fs::write(&password, "changeit\n").unwrap();
        let [from, to] = [&store, &copy].map(|path| path.to_str().unwrap());
        let mut arguments = vec!["-importkeystore", "-srckeystore", from, "-destkeystore", to];
        arguments.extend(["-srcstorepass", "changeit", "-deststorepass", "changeit"]);
        let Some(output) = run("keytool", &arguments) else {
            return;
        };
        assert!(output.status.success(), "{output:?}");
        // Java wrote the copy from what it read: key, alias and chain.
        reads_back(&bundle, "example.com", &copy, &password);
        arguments[6] = "another";
        assert!(!run("keytool", &arguments).unwrap().status.success());
    }

    #[test]
    fn pkcs12_refuses_key_that_is_not_pkcs8() {
        let mut bundle = pair(KeyType::EcdsaP256);
        let sec1 = bundle
            .key_pem
            .expose()
            .replace("PRIVATE KEY", "EC PRIVATE KEY");
        bundle.key_pem = Secret::new(sec1);
        let error = bundle.pkcs12("a", &Secret::new(String::new())).unwrap_err();
        assert!(error.starts_with("the key is not PKCS#8: "), "{error}");
    }

    proptest::proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn pkcs12_of_any_password_and_size_is_read_by_openssl(
            text in "\\PC{0,80}",
            padding in proptest::collection::vec(proptest::num::u8::ANY, 0..300),
        ) {
            // RFC 5280 lets a certificate hold any octets in an extension, so that every
            // length of a value occurs.
            let mut params = CertificateParams::default();
            let extension = rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 1], padding);
            params.custom_extensions.push(extension);
            let key = KeyPair::generate().unwrap();
            let leaf = params.self_signed(&key).unwrap();
            let made = store(key.serialized_der(), &[leaf.der()], "a", &text).unwrap();
            let read = held(&made, &text).unwrap();
            prop_assert_eq!(read.key, key.serialized_der());
            prop_assert_eq!(&read.chain, &[leaf.der().to_vec()]);
            let directory = tempfile::tempdir().unwrap();
            let [store, password] = ["p12", "password"].map(|file| directory.path().join(file));
            std::fs::write(&store, made).unwrap();
            std::fs::write(&password, format!("{text}\n")).unwrap();
            if let Some(output) = openssl(&store, &password) {
                let read = String::from_utf8_lossy(&output.stdout).into_owned();
                let certificate = CertificateDer::from_pem_slice(read.as_bytes()).ok();
                prop_assert_eq!(certificate.as_ref(), Some(leaf.der()), "{:?}", output);
            }
        }
    }
}
