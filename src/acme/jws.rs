//! Signed requests (RFC 8555 section 6.2; RFC 7515 flattened JSON). The account's
//! key signs with ES256, an imported key also with ES384 or RS256. HS256 signs the
//! external account binding (section 7.3.4).
//!
//! The key exists in PKCS#8 and in memory; it is never shown.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, KeyPair, RSA_PKCS1_SHA256,
};
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use serde_json::{Value, json};
use zeroize::Zeroizing;

/// The key of an account, by its algorithm (RFC 7518 section 3.1).
pub(super) enum AccountKey {
    Ecdsa(&'static Curve, EcdsaKeyPair),
    Rs256(rsa::KeyPair),
}

/// A curve of ECDSA.
pub(super) struct Curve {
    name: &'static str,
    algorithm: &'static str,
    signing: &'static EcdsaSigningAlgorithm,
}

const CURVES: &[Curve] = &[
    Curve {
        name: "P-256",
        algorithm: "ES256",
        signing: &ECDSA_P256_SHA256_FIXED_SIGNING,
    },
    Curve {
        name: "P-384",
        algorithm: "ES384",
        signing: &ECDSA_P384_SHA384_FIXED_SIGNING,
    },
];

/// The RSA sizes that CAs accept from accounts, in bytes of the modulus.
const RSA_SIZES: std::ops::RangeInclusive<usize> = 256..=512;

/// How a request identifies its signer.
#[derive(Clone, Copy)]
pub(super) enum Signer<'a> {
    /// By the key itself, before the account exists.
    Key(&'a AccountKey),
    /// By the account's URL.
    Account(&'a AccountKey, &'a str),
}

impl AccountKey {
    /// A new P-256 key in PKCS#8.
    pub(super) fn generate() -> Result<Vec<u8>, Unspecified> {
        let document =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())?;
        Ok(document.as_ref().to_vec())
    }

    /// Reads a key of [`Self::generate`] or [`Self::to_pkcs8`]: P-256, P-384, or RSA
    /// of 2048 to 4096 bits.
    pub(super) fn from_pkcs8(der: &[u8]) -> Option<Self> {
        Self::ecdsa(|curve| EcdsaKeyPair::from_pkcs8(curve.signing, der).ok())
            .or_else(|| Self::from_rsa(rsa::KeyPair::from_pkcs8(der).ok()?))
    }

    /// Reads a P-256 or P-384 key in SEC1 (RFC 5915) or PKCS#8.
    pub(super) fn from_sec1(der: &[u8]) -> Option<Self> {
        Self::ecdsa(|curve| EcdsaKeyPair::from_private_key_der(curve.signing, der).ok())
    }

    /// A key of a private number and its public point on the named curve (RFC 7518
    /// section 6.2.1.1).
    pub(super) fn from_point(name: &str, number: &[u8], point: &[u8]) -> Option<Self> {
        Self::ecdsa(|Curve { signing, .. }| {
            EcdsaKeyPair::from_private_key_and_public_key(signing, number, point).ok()
        })
        .filter(|key| matches!(key, Self::Ecdsa(curve, _) if curve.name == name))
    }

    /// The key on the first curve on which `read` finds one.
    fn ecdsa(read: impl Fn(&Curve) -> Option<EcdsaKeyPair>) -> Option<Self> {
        let pair = |curve| Some(Self::Ecdsa(curve, read(curve)?));
        CURVES.iter().find_map(pair)
    }

    /// An RSA key of a size that CAs accept.
    pub(super) fn from_rsa(pair: rsa::KeyPair) -> Option<Self> {
        let is_accepted = RSA_SIZES.contains(&pair.public_modulus_len());
        is_accepted.then_some(Self::Rs256(pair))
    }

    /// The stored form.
    pub(super) fn to_pkcs8(&self) -> Result<Zeroizing<Vec<u8>>, Unspecified> {
        let bytes = match self {
            Self::Ecdsa(_, pair) => pair.to_pkcs8v1()?.as_ref().to_vec(),
            Self::Rs256(pair) => AsDer::<Pkcs8V1Der<'_>>::as_der(pair)?.as_ref().to_vec(),
        };
        Ok(Zeroizing::new(bytes))
    }

    /// The SHA-256 thumbprint (RFC 7638) in base64url.
    pub(super) fn thumbprint(&self) -> String {
        thumbprint(&self.jwk())
    }

    /// The kind of key, for display.
    pub(super) fn kind(&self) -> String {
        match self {
            Self::Ecdsa(curve, _) => format!("ECDSA {}", curve.name),
            Self::Rs256(pair) => format!("RSA {}", pair.public_modulus_len() * 8),
        }
    }

    fn algorithm(&self) -> &'static str {
        match self {
            Self::Ecdsa(curve, _) => curve.algorithm,
            Self::Rs256(_) => "RS256",
        }
    }

    fn jwk(&self) -> Value {
        match self {
            Self::Ecdsa(curve, pair) => {
                let point = pair.public_key().as_ref();
                // An uncompressed point: 0x04, then both coordinates.
                let (x, y) = point.get(1..).unwrap_or_default().split_at(point.len() / 2);
                json!({"crv": curve.name, "kty": "EC", "x": encode(x), "y": encode(y)})
            }
            Self::Rs256(pair) => {
                let public = pair.public_key();
                let (n, e) = (public.modulus(), public.exponent());
                json!({
                    "e": encode(e.big_endian_without_leading_zero()), "kty": "RSA",
                    "n": encode(n.big_endian_without_leading_zero()),
                })
            }
        }
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Unspecified> {
        let random = SystemRandom::new();
        match self {
            Self::Ecdsa(_, pair) => Ok(pair.sign(&random, message)?.as_ref().to_vec()),
            Self::Rs256(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)?;
                Ok(signature)
            }
        }
    }

    /// The external account binding: this key belongs to the CA's customer `key_id`.
    pub(super) fn bind(&self, key_id: &str, secret: &[u8], url: &str) -> Value {
        let protected = json!({"alg": "HS256", "kid": key_id, "url": url});
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let (head, body) = (
            encode(protected.to_string().as_bytes()),
            encode(self.jwk().to_string().as_bytes()),
        );
        let tag = hmac::sign(&key, format!("{head}.{body}").as_bytes());
        json!({"protected": head, "payload": body, "signature": encode(tag.as_ref())})
    }
}

fn thumbprint(jwk: &Value) -> String {
    // serde_json sorts the members, as RFC 7638 requires.
    encode(digest(&SHA256, jwk.to_string().as_bytes()).as_ref())
}

impl Signer<'_> {
    /// The body of a POST to `url`; without `payload` it is a POST-as-GET.
    pub(super) fn sign(
        self,
        url: &str,
        nonce: &str,
        payload: Option<&Value>,
    ) -> Result<Vec<u8>, Unspecified> {
        let (key, name, signer) = match self {
            Self::Key(key) => (key, "jwk", key.jwk()),
            Self::Account(key, id) => (key, "kid", id.into()),
        };
        let protected = json!({"alg": key.algorithm(), "nonce": nonce, "url": url, name: signer});
        let body = payload.map_or_else(String::new, |value| encode(value.to_string().as_bytes()));
        Ok(signed(key, &protected, &body)?.to_string().into_bytes())
    }
}

/// The inner request of a key change (RFC 8555 section 7.3.5): the new key signs the account
/// and its old key.
pub(super) fn key_change(
    new: &AccountKey,
    old: &AccountKey,
    account: &str,
    url: &str,
) -> Result<Value, Unspecified> {
    let protected = json!({"alg": new.algorithm(), "jwk": new.jwk(), "url": url});
    let payload = json!({"account": account, "oldKey": old.jwk()});
    signed(new, &protected, &encode(payload.to_string().as_bytes()))
}

/// A flattened JWS.
fn signed(key: &AccountKey, protected: &Value, body: &str) -> Result<Value, Unspecified> {
    let head = encode(protected.to_string().as_bytes());
    let signature = key.sign(format!("{head}.{body}").as_bytes())?;
    Ok(json!({"protected": head, "payload": body, "signature": encode(&signature)}))
}

/// Base64url without padding.
pub(super) fn encode(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// Whether `text` is in the alphabet of base64url, and not empty.
pub(super) fn is_base64url(text: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    !text.is_empty() && text.bytes().all(is_letter)
}

/// The bytes of base64url text without padding.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    BASE64_URL_SAFE_NO_PAD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

    fn key() -> AccountKey {
        AccountKey::from_pkcs8(&AccountKey::generate().unwrap()).unwrap()
    }

    fn parts(jws: &Value) -> (Value, String, Vec<u8>) {
        let text = |name: &str| jws[name].as_str().unwrap().to_owned();
        let protected = decode(&text("protected")).unwrap();
        (
            serde_json::from_slice(&protected).unwrap(),
            format!("{}.{}", text("protected"), text("payload")),
            decode(&text("signature")).unwrap(),
        )
    }

    #[test]
    fn request_verifies_with_its_own_key() {
        let key = key();
        let payload = json!({"a": 1});
        let signed = Signer::Key(&key).sign("https://ca/x", "n", Some(&payload));
        let jws = serde_json::from_slice(&signed.unwrap()).unwrap();
        let (protected, signed, signature) = parts(&jws);
        assert_eq!(
            (&protected["nonce"], &protected["url"]),
            (&"n".into(), &"https://ca/x".into())
        );
        let mut point = vec![4];
        for coordinate in ["x", "y"] {
            point.extend(decode(protected["jwk"][coordinate].as_str().unwrap()).unwrap());
        }
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
        public.verify(signed.as_bytes(), &signature).unwrap();
    }

    #[test]
    fn imported_key_signs_by_its_own_algorithm() {
        use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED, RSA_PKCS1_2048_8192_SHA256};
        let p384 = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
        let rsa = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).unwrap();
        for (key, alg, kind) in [
            (AccountKey::Ecdsa(&CURVES[1], p384), "ES384", "ECDSA P-384"),
            (AccountKey::from_rsa(rsa).unwrap(), "RS256", "RSA 2048"),
        ] {
            // The stored form is the same key.
            let stored = AccountKey::from_pkcs8(&key.to_pkcs8().unwrap()).unwrap();
            assert_eq!((stored.jwk(), stored.kind().as_str()), (key.jwk(), kind));
            let signed = Signer::Key(&stored)
                .sign("https://ca/x", "n", None)
                .unwrap();
            let (protected, signed, signature) = parts(&serde_json::from_slice(&signed).unwrap());
            assert_eq!(protected["alg"], alg);
            let member = |name: &str| decode(protected["jwk"][name].as_str().unwrap()).unwrap();
            if alg == "RS256" {
                let (n, e) = (member("n"), member("e"));
                let public = aws_lc_rs::rsa::PublicKeyComponents { n: &n, e: &e };
                public
                    .verify(&RSA_PKCS1_2048_8192_SHA256, signed.as_bytes(), &signature)
                    .unwrap();
            } else {
                let point = [vec![4], member("x"), member("y")].concat();
                let public = UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point);
                public.verify(signed.as_bytes(), &signature).unwrap();
            }
        }
        let too_large = rsa::KeyPair::from_pkcs8(include_bytes!("fixtures/rsa-8192.der"));
        assert!(AccountKey::from_rsa(too_large.unwrap()).is_none());
    }

    /// The example of RFC 7638 section 3.1.
    #[test]
    fn thumbprint_of_rsa_key_matches_the_rfc() {
        let n = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw";
        let jwk = json!({"e": "AQAB", "kty": "RSA", "n": n});
        assert_eq!(
            thumbprint(&jwk),
            "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
        );
    }

    #[test]
    fn post_as_get_has_an_empty_payload_and_the_accounts_url() {
        let signed = Signer::Account(&key(), "https://ca/1").sign("https://ca/x", "n", None);
        let jws: Value = serde_json::from_slice(&signed.unwrap()).unwrap();
        assert_eq!(jws["payload"], "");
        let (protected, ..) = parts(&jws);
        assert_eq!(protected["kid"], "https://ca/1");
        assert!(protected.get("jwk").is_none());
    }

    #[test]
    fn binding_is_the_customers_hmac_over_the_key() {
        let key = key();
        let jws = key.bind("customer", b"secret", "https://ca/new-account");
        let (protected, signed, tag) = parts(&jws);
        assert_eq!(
            protected,
            json!({"alg": "HS256", "kid": "customer", "url": "https://ca/new-account"})
        );
        let secret = hmac::Key::new(hmac::HMAC_SHA256, b"secret");
        hmac::verify(&secret, signed.as_bytes(), &tag).unwrap();
        let payload = decode(jws["payload"].as_str().unwrap()).unwrap();
        assert_eq!(
            serde_json::from_slice::<Value>(&payload).unwrap(),
            key.jwk()
        );
    }

    #[test]
    fn thumbprint_hashes_the_members_in_order() {
        let key = key();
        let jwk = key.jwk();
        let text = format!(
            r#"{{"crv":"P-256","kty":"EC","x":{},"y":{}}}"#,
            jwk["x"], jwk["y"]
        );
        assert_eq!(
            key.thumbprint(),
            encode(digest(&SHA256, text.as_bytes()).as_ref())
        );
    }
}
