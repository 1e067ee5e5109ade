//! Converts another client's account to our stored form. Its key may be PEM, DER,
//! or a JSON Web Key (RFC 7517, RFC 7518 section 6). Nothing is sent: the CA looks
//! up an account without a URL by its key at the first use (RFC 8555 section 7.3).

use aws_lc_rs::rsa;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;
use zeroize::Zeroizing;

use super::account::{self, StoredAccount};
use super::jws::{AccountKey, decode, encode};
use crate::certificate::Secret;

/// 8192 bits in base64url, twice the largest accepted key: arithmetic with longer
/// numbers would take too long.
const LONGEST_NUMBER: usize = 1366;

/// Another client's account key, as stored there.
#[derive(Clone, Copy)]
pub enum ForeignKey<'a> {
    /// PKCS#8, PKCS#1 or SEC1 in PEM.
    Pem(&'a str),
    /// The same in DER.
    Der(&'a [u8]),
    /// A private JSON Web Key.
    Jwk(&'a str),
}

/// Another client's account, in our form.
pub struct ForeignAccount {
    /// The stored form.
    pub credentials: Secret,
    /// The kind of key, for display.
    pub kind: String,
}

impl ForeignAccount {
    /// The same account, with the e-mail address that the CA has of it.
    #[must_use]
    pub fn with_email(mut self, email: Option<&str>) -> Self {
        if let Ok(mut stored) = account::read(&self.credentials) {
            stored.email = email.map(str::to_owned);
            self.credentials = stored.to_json().unwrap_or(self.credentials);
        }
        self
    }
}

/// The account with `key` at `ca`. Without `url`, the CA looks it up at the first use.
///
/// # Errors
/// Why the account cannot be used; never the key.
pub fn foreign_account(
    ca: &str,
    key: ForeignKey<'_>,
    url: Option<&str>,
) -> Result<ForeignAccount, String> {
    let unusable = || {
        "the key is damaged, or neither ECDSA P-256 or P-384 nor RSA of 2048 to 4096 bits"
            .to_owned()
    };
    let key = read(key).ok_or_else(unusable)?;
    if let Some(url) = url
        && super::exchange::https(url).is_err()
    {
        return Err("the account's URL is not an https:// URL".to_owned());
    }
    let credentials = StoredAccount {
        id: url.map(str::to_owned),
        key_pkcs8: Secret::new(encode(&key.to_pkcs8().map_err(|_| unusable())?)),
        directory: Some(ca.to_owned()),
        email: None,
        is_foreign: url.is_none(),
        next_key_pkcs8: None,
    };
    Ok(ForeignAccount {
        credentials: credentials.to_json().map_err(|_| unusable())?,
        kind: key.kind(),
    })
}

/// Whether both stored accounts have the same key.
#[must_use]
pub fn is_same_account(one: &Secret, other: &Secret) -> bool {
    let key = |credentials| Some(account::read(credentials).ok()?.key_pkcs8);
    key(one).is_some_and(|one| Some(one) == key(other))
}

pub(super) fn read(key: ForeignKey<'_>) -> Option<AccountKey> {
    match key {
        ForeignKey::Pem(text) => {
            let key = PrivateKeyDer::from_pem_slice(text.as_bytes()).ok()?;
            from_der(key.secret_der())
        }
        ForeignKey::Der(der) => from_der(der),
        ForeignKey::Jwk(text) => from_jwk(&serde_json::from_str(text).ok()?),
    }
}

fn from_der(der: &[u8]) -> Option<AccountKey> {
    let pkcs1 = || AccountKey::from_rsa(rsa::KeyPair::from_der(der).ok()?);
    let pkcs8 = AccountKey::from_pkcs8(der);
    pkcs8.or_else(pkcs1).or_else(|| AccountKey::from_sec1(der))
}

fn from_jwk(jwk: &Value) -> Option<AccountKey> {
    let number = |name: &str| {
        let text = jwk[name].as_str()?.trim_end_matches('=');
        let text = Some(text).filter(|text| text.len() <= LONGEST_NUMBER);
        Some(Zeroizing::new(decode(text?)?))
    };
    match jwk["kty"].as_str()? {
        "RSA" => {
            let [n, e, d] = [number("n")?, number("e")?, number("d")?];
            let (n, e) = (without_zeros(&n), without_zeros(&e));
            let components = rsa::KeyPairComponents {
                public_key: rsa::PublicKeyComponents { n, e },
                d: d.as_slice(),
                p: &number("p")?,
                q: &number("q")?,
                dP: &number("dp")?,
                dQ: &number("dq")?,
                qInv: &number("qi")?,
            };
            AccountKey::from_rsa(rsa::KeyPair::from_components(&components).ok()?)
        }
        "EC" => {
            let point = [&[4][..], &number("x")?, &number("y")?].concat();
            AccountKey::from_point(jwk["crv"].as_str()?, &number("d")?, &point)
        }
        _ => None,
    }
}

fn without_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.get(zeros..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::encoding::{AsBigEndian, AsDer};
    use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
    use serde_json::json;

    const CA: &str = "https://ca.example/dir";

    fn kind(key: ForeignKey<'_>) -> Result<String, String> {
        foreign_account(CA, key, None).map(|account| account.kind)
    }

    #[test]
    fn key_is_read_in_every_form() {
        let rsa =
            rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048)
                .unwrap();
        let p256 = rcgen::KeyPair::generate().unwrap();
        for (key, expected) in [(&rsa, "RSA 2048"), (&p256, "ECDSA P-256")] {
            let (pem, der) = (key.serialize_pem(), key.serialize_der());
            assert_eq!(kind(ForeignKey::Pem(&pem)).as_deref(), Ok(expected));
            assert_eq!(kind(ForeignKey::Der(&der)).as_deref(), Ok(expected));
        }
        // SEC1, the form of clients in Go.
        let pair = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
        let sec1: aws_lc_rs::encoding::EcPrivateKeyRfc5915Der<'_> =
            pair.private_key().as_der().unwrap();
        let expected = Ok("ECDSA P-384");
        assert_eq!(kind(ForeignKey::Der(sec1.as_ref())).as_deref(), expected);
        let point = pair.public_key().as_ref();
        let private: aws_lc_rs::encoding::EcPrivateKeyBin<'_> =
            pair.private_key().as_be_bytes().unwrap();
        let jwk = json!({
            "kty": "EC", "crv": "P-384", "d": encode(private.as_ref()),
            "x": encode(&point[1..49]), "y": encode(&point[49..]),
        });
        assert_eq!(kind(ForeignKey::Jwk(&jwk.to_string())).as_deref(), expected);
    }

    #[test]
    fn invalid_or_unsupported_key_is_refused() {
        for key in [
            ForeignKey::Pem(""),
            ForeignKey::Pem("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
            ForeignKey::Der(&[]),
            ForeignKey::Jwk("[]"),
            ForeignKey::Jwk(
                r#"{"kty": "RSA", "n": "AA", "e": "AQAB", "d": "AA", "p": "", "q": 7}"#,
            ),
            ForeignKey::Jwk(r#"{"kty": "EC", "crv": "P-256", "d": "AA", "x": "AA", "y": "AA"}"#),
            ForeignKey::Jwk(r#"{"kty": "OKP"}"#),
        ] {
            assert!(kind(key).unwrap_err().contains("damaged"));
        }
        let too_large = include_bytes!("fixtures/rsa-8192.der");
        assert!(kind(ForeignKey::Der(too_large)).is_err());
        let p256 = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let plain = foreign_account(CA, ForeignKey::Pem(&p256), Some("http://ca.example/1"));
        assert!(plain.is_err());
    }

    #[test]
    fn accounts_are_the_same_only_with_the_same_key() {
        let account = |pem: &str, url| {
            let account = foreign_account(CA, ForeignKey::Pem(pem), url);
            account.unwrap().credentials
        };
        let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let known = account(&pem, Some("https://ca.example/1"));
        assert!(is_same_account(&known, &account(&pem, None)));
        assert!(!is_same_account(&known, &account(&other, None)));
        let nothing = Secret::new("{}".to_owned());
        assert!(!is_same_account(&nothing, &nothing));
    }
}
