//! Signed requests: flattened JWS (RFC 7515) as RFC 8555 section 6.2 narrows
//! it, and the HS256 binding of section 7.3.4.
//!
//! It verifies signatures only. The caller checks the nonce, the URL, and that
//! the key belongs to an account.

use std::collections::BTreeMap;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, RSA_PKCS1_2048_8192_SHA256,
    RsaPublicKeyComponents, UnparsedPublicKey,
};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use x509_parser::public_key::PublicKey as Spki;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::problem::ErrorType::{self, BadPublicKey, Malformed};
use super::problem::{ALGORITHMS, Problem, ensure};
use crate::certificate::SecretBytes;

/// A public key as a JWK, of the kinds that may sign requests. Its JSON is
/// the canonical one of RFC 7638.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "serde_json::Value", into = "serde_json::Value")]
pub(super) struct Jwk(Key);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Key {
    P256(Vec<u8>),
    P384(Vec<u8>),
    /// Modulus and exponent.
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
}

impl TryFrom<serde_json::Value> for Jwk {
    type Error = Problem;

    fn try_from(jwk: serde_json::Value) -> Result<Self, Problem> {
        let text = |name: &str| jwk[name].as_str().unwrap_or("");
        let bytes = |name: &str| decode(text(name));
        let key = match (text("kty"), text("crv")) {
            ("EC", "P-256") => Key::P256(point(&bytes("x")?, &bytes("y")?, 32)?),
            ("EC", "P-384") => Key::P384(point(&bytes("x")?, &bytes("y")?, 48)?),
            ("RSA", _) => {
                let (n, e) = (bytes("n")?, bytes("e")?);
                // RFC 7518 section 6.3.1: no leading zero octets.
                let is_supported = (256..=512).contains(&n.len())
                    && n.first() != Some(&0)
                    && matches!(e.as_slice(), [1, 0, 1] | [3]);
                let detail = "an RSA key has 2048 to 4096 bits and the exponent 65537 or 3";
                ensure(is_supported, BadPublicKey, detail)?;
                Key::Rsa { n, e }
            }
            _ => {
                let detail = "the key must be P-256, P-384 or RSA";
                return Err(Problem::new(BadPublicKey, detail));
            }
        };
        let is_public = ["d", "p", "q", "k"].iter().all(|name| jwk[name].is_null());
        ensure(is_public, BadPublicKey, "the JWK holds a private key")?;
        Ok(Self(key))
    }
}

fn point(x: &[u8], y: &[u8], length: usize) -> Result<Vec<u8>, Problem> {
    let is_complete = x.len() == length && y.len() == length;
    let detail = "a coordinate of the key has the wrong length";
    ensure(is_complete, BadPublicKey, detail)?;
    Ok([&[4], x, y].concat())
}

impl From<Jwk> for serde_json::Value {
    fn from(jwk: Jwk) -> Self {
        let elliptic = |curve: &str, point: &[u8]| {
            let (x, y) = point[1..].split_at((point.len() - 1) / 2);
            serde_json::json!({"crv": curve, "kty": "EC", "x": encode(x), "y": encode(y)})
        };
        match &jwk.0 {
            Key::P256(point) => elliptic("P-256", point),
            Key::P384(point) => elliptic("P-384", point),
            Key::Rsa { n, e } => {
                serde_json::json!({"e": encode(e), "kty": "RSA", "n": encode(n)})
            }
        }
    }
}

impl Jwk {
    /// RFC 7638: the members in alphabetical order, which is how
    /// `serde_json`'s map has them.
    pub(super) fn thumbprint(&self) -> String {
        let canonical = serde_json::Value::from(self.clone()).to_string();
        encode(digest(&SHA256, canonical.as_bytes()).as_ref())
    }

    /// Whether `spki`, of a certificate or a request, is this key.
    pub(super) fn is_key_of(&self, spki: &SubjectPublicKeyInfo<'_>) -> bool {
        match (&self.0, spki.parsed()) {
            (Key::P256(point) | Key::P384(point), Ok(Spki::EC(other))) => point == other.data(),
            (Key::Rsa { n, e }, Ok(Spki::RSA(other))) => {
                let strip = |bytes: &[u8]| {
                    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
                    bytes[zeros..].to_vec()
                };
                *n == strip(other.modulus) && *e == strip(other.exponent)
            }
            _ => false,
        }
    }

    fn verifies(&self, algorithm: &str, message: &[u8], signature: &[u8]) -> bool {
        let verified = match (&self.0, algorithm) {
            (Key::P256(point), "ES256") => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature)
            }
            (Key::P384(point), "ES384") => {
                UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point).verify(message, signature)
            }
            (Key::Rsa { n, e }, "RS256") => {
                let key = RsaPublicKeyComponents { n, e };
                key.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
            }
            _ => return false,
        };
        verified.is_ok()
    }
}

/// A JWS in its flattened form. An unprotected header or several signatures
/// are unknown fields here, and refused.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Jws {
    protected: String,
    payload: String,
    signature: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Header {
    alg: String,
    pub(super) nonce: Option<String>,
    pub(super) url: Option<String>,
    pub(super) jwk: Option<Jwk>,
    pub(super) kid: Option<String>,
    crit: Option<serde_json::Value>,
}

impl Jws {
    pub(super) fn parse(body: &[u8]) -> Result<Self, Problem> {
        serde_json::from_slice(body)
            .map_err(|_| Problem::malformed("the body is not a valid flattened JWS"))
    }

    /// The protected header, with one of [`ALGORITHMS`].
    pub(super) fn header(&self) -> Result<Header, Problem> {
        let header = self.any_header()?;
        let is_supported = ALGORITHMS.contains(&header.alg.as_str());
        let detail = "the signature algorithm is not supported";
        ensure(is_supported, ErrorType::BadSignatureAlgorithm, detail)?;
        let is_signed_once = header.jwk.is_some() != header.kid.is_some();
        let detail = "a request has either a jwk or a kid";
        ensure(is_signed_once, Malformed, detail)?;
        Ok(header)
    }

    fn any_header(&self) -> Result<Header, Problem> {
        let json: serde_json::Value = serde_json::from_slice(&decode(&self.protected)?)
            .map_err(|_| Problem::malformed("the protected header is not JSON"))?;
        // The key is parsed first, since it has its own error type.
        if let Some(jwk) = json.get("jwk") {
            Jwk::try_from(jwk.clone())?;
        }
        let header: Header = serde_json::from_value(json).map_err(|_| {
            Problem::malformed("a field of the protected header is missing or invalid")
        })?;
        let is_plain = header.crit.is_none();
        ensure(is_plain, Malformed, "critical extensions are not supported")?;
        Ok(header)
    }

    /// The payload, if `key` signed it.
    pub(super) fn verify(&self, header: &Header, key: &Jwk) -> Result<Vec<u8>, Problem> {
        let signature = decode(&self.signature)?;
        let is_valid = key.verifies(&header.alg, self.message().as_bytes(), &signature);
        ensure(is_valid, Malformed, "the signature is invalid")?;
        decode(&self.payload)
    }

    /// Checks an external account binding for `url` and `account`, signed with one of
    /// the HMAC `keys`.
    pub(super) fn verify_binding(
        &self,
        url: &str,
        account: &Jwk,
        keys: &BTreeMap<String, SecretBytes>,
    ) -> Result<(), Problem> {
        let header = self.any_header()?;
        let is_binding = header.alg == "HS256" && header.nonce.is_none() && header.jwk.is_none();
        let detail = "an external account binding has alg HS256, a kid and no nonce";
        ensure(is_binding, Malformed, detail)?;
        let is_for_url = header.url.as_deref() == Some(url);
        let detail = "the external account binding is for another URL";
        ensure(is_for_url, Malformed, detail)?;
        let refused = |detail| Problem::new(ErrorType::Unauthorized, detail);
        let key = keys.get(&header.kid.unwrap_or_default());
        let key = key.ok_or_else(|| refused("unknown external account"))?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, key.expose());
        let signature = decode(&self.signature)?;
        hmac::verify(&key, self.message().as_bytes(), &signature)
            .map_err(|_| refused("the signature of the external account binding is invalid"))?;
        let bound: serde_json::Value = serde_json::from_slice(&decode(&self.payload)?)
            .map_err(|_| Problem::malformed("the external account binding has no valid JWK"))?;
        let is_for_account = Jwk::try_from(bound)? == *account;
        let detail = "the external account binding is for another account key";
        ensure(is_for_account, Malformed, detail)
    }

    fn message(&self) -> String {
        format!("{}.{}", self.protected, self.payload)
    }
}

/// Base64url without padding; anything else is malformed.
pub(super) fn decode(text: &str) -> Result<Vec<u8>, Problem> {
    BASE64_URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| Problem::malformed("a field is not base64url without padding"))
}

pub(super) fn encode(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thumbprint_matches_the_example_of_rfc_7638() {
        let jwk = serde_json::json!({
            "kty": "RSA", "e": "AQAB", "alg": "RS256", "kid": "2011-04-29",
            "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
        });
        assert_eq!(
            Jwk::try_from(jwk).unwrap().thumbprint(),
            "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
        );
    }

    fn signed(alg: &str, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> (Jws, Header) {
        let header = serde_json::json!({"alg": alg, "kid": "of the test"}).to_string();
        let (protected, payload) = (encode(header.as_bytes()), encode(b"payload"));
        let signature = encode(&sign(format!("{protected}.{payload}").as_bytes()));
        let jws = Jws {
            protected,
            payload,
            signature,
        };
        let header = jws.header().unwrap();
        (jws, header)
    }

    #[test]
    fn algorithm_verifies_only_with_its_own_key_type() {
        use aws_lc_rs::rand::SystemRandom;
        use aws_lc_rs::signature::{self, EcdsaKeyPair, KeyPair};
        let random = SystemRandom::new();
        let elliptic = |curve, algorithm| {
            let der = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
            let pair = EcdsaKeyPair::from_pkcs8(algorithm, der.as_ref()).unwrap();
            let point = &pair.public_key().as_ref()[1..];
            let (x, y) = point.split_at(point.len() / 2);
            let jwk =
                serde_json::json!({"kty": "EC", "crv": curve, "x": encode(x), "y": encode(y)});
            (pair, Jwk::try_from(jwk).unwrap())
        };
        let (p256, p256_jwk) = elliptic("P-256", &signature::ECDSA_P256_SHA256_FIXED_SIGNING);
        let (p384, p384_jwk) = elliptic("P-384", &signature::ECDSA_P384_SHA384_FIXED_SIGNING);
        let rsa = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
        let public = rsa.public_key();
        let bytes =
            |number: aws_lc_rs::io::Positive<'_>| encode(number.big_endian_without_leading_zero());
        let rsa_jwk = serde_json::json!({"kty": "RSA", "n": bytes(public.modulus()), "e": bytes(public.exponent())});
        let rsa_jwk = Jwk::try_from(rsa_jwk).unwrap();
        let by_curve = |pair: &EcdsaKeyPair, message: &[u8]| {
            pair.sign(&random, message).unwrap().as_ref().to_vec()
        };
        let all = [
            (
                signed("ES256", |message| by_curve(&p256, message)),
                &p256_jwk,
            ),
            (
                signed("ES384", |message| by_curve(&p384, message)),
                &p384_jwk,
            ),
            (
                signed("RS256", |message| {
                    let mut out = vec![0; rsa.public_modulus_len()];
                    let padding = &signature::RSA_PKCS1_SHA256;
                    rsa.sign(padding, &random, message, &mut out).unwrap();
                    out
                }),
                &rsa_jwk,
            ),
        ];
        for ((jws, header), key) in &all {
            assert_eq!(jws.verify(header, key).unwrap(), b"payload");
            for (_, other) in all.iter().filter(|(_, other)| other != key) {
                assert!(jws.verify(header, other).is_err(), "{}", header.alg);
            }
            let mut changed = jws.clone();
            changed.payload = encode(b"another");
            assert!(changed.verify(header, key).is_err(), "{}", header.alg);
        }
    }

    #[test]
    fn jwk_is_refused_when_weak_unsupported_or_private() {
        let short = encode(&[0xff; 128]);
        for jwk in [
            serde_json::json!({"kty": "RSA", "e": "AQAB", "n": short}),
            serde_json::json!({"kty": "OKP", "crv": "Ed25519", "x": encode(&[1; 32])}),
            serde_json::json!({"kty": "EC", "crv": "P-256", "x": encode(&[1; 31]), "y": encode(&[1; 32])}),
            serde_json::json!({"kty": "EC", "crv": "P-256", "x": encode(&[1; 32]), "y": encode(&[1; 32]), "d": "AA"}),
            serde_json::json!("text"),
        ] {
            let problem = Jwk::try_from(jwk.clone()).unwrap_err();
            assert_eq!(problem.kind, ErrorType::BadPublicKey, "{jwk}");
        }
    }
}
