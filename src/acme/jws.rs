//! Signed requests (RFC 8555 section 6.2; RFC 7515 flattened JSON): ES256 with
//! the account's key, and HS256 for the external account binding (section
//! 7.3.4).
//!
//! The key lives in PKCS#8 and in memory; it is never shown.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::error::{KeyRejected, Unspecified};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use serde_json::{Value, json};

/// The key that an account is known by at its CA.
pub(super) struct AccountKey {
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

/// How a request names its signer.
#[derive(Clone, Copy)]
pub(super) enum Signer<'a> {
    /// By the key itself, before there is an account.
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

    pub(super) fn from_pkcs8(der: &[u8]) -> Result<Self, KeyRejected> {
        Ok(Self {
            pair: EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der)?,
            random: SystemRandom::new(),
        })
    }

    /// The SHA-256 thumbprint (RFC 7638) in base64url.
    pub(super) fn thumbprint(&self) -> String {
        // serde_json sorts the members, as the RFC wants them.
        encode(digest(&SHA256, self.jwk().to_string().as_bytes()).as_ref())
    }

    fn jwk(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        // An uncompressed point: 0x04, then both coordinates.
        let (x, y) = point.get(1..).unwrap_or_default().split_at(point.len() / 2);
        json!({"crv": "P-256", "kty": "EC", "x": encode(x), "y": encode(y)})
    }

    /// Proves to the CA that this key belongs to the customer `key_id` there.
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

impl Signer<'_> {
    /// The body of a POST to `url`; without `payload` it is a POST-as-GET.
    pub(super) fn sign(
        self,
        url: &str,
        nonce: &str,
        payload: Option<&Value>,
    ) -> Result<Vec<u8>, Unspecified> {
        let mut protected = json!({"alg": "ES256", "nonce": nonce, "url": url});
        let key = match self {
            Self::Key(key) => {
                protected["jwk"] = key.jwk();
                key
            }
            Self::Account(key, id) => {
                protected["kid"] = id.into();
                key
            }
        };
        let head = encode(protected.to_string().as_bytes());
        let body = payload.map_or_else(String::new, |value| encode(value.to_string().as_bytes()));
        let signed = format!("{head}.{body}");
        let signature = key.pair.sign(&key.random, signed.as_bytes())?;
        let jws =
            json!({"protected": head, "payload": body, "signature": encode(signature.as_ref())});
        Ok(jws.to_string().into_bytes())
    }
}

/// Base64url without padding.
pub(super) fn encode(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
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
    fn a_request_verifies_with_the_key_that_it_carries() {
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
    fn a_post_as_get_has_an_empty_payload_and_names_the_account() {
        let signed = Signer::Account(&key(), "https://ca/1").sign("https://ca/x", "n", None);
        let jws: Value = serde_json::from_slice(&signed.unwrap()).unwrap();
        assert_eq!(jws["payload"], "");
        let (protected, ..) = parts(&jws);
        assert_eq!(protected["kid"], "https://ca/1");
        assert!(protected.get("jwk").is_none());
    }

    #[test]
    fn a_binding_is_the_customers_hmac_over_the_key() {
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
    fn the_thumbprint_hashes_the_members_in_order() {
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
