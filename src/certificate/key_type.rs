//! The key type of a certificate, so that its renewal gets a key of the same type.

use x509_parser::public_key::PublicKey;

use super::{Bundle, KeyType, parse};

impl Bundle {
    /// The type of its key; `None` if this program does not generate that type.
    #[must_use]
    pub fn key_type(&self) -> Option<KeyType> {
        let leaf = parse(0, self.chain.first()?).ok()?;
        let name = match leaf.public_key().parsed().ok()? {
            PublicKey::RSA(key) => format!("rsa-{}", key.key_size()),
            PublicKey::EC(point) => format!("ecdsa-p{}", point.key_size()),
            _ => return None,
        };
        name.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Freshness;
    use super::*;
    use crate::identifier::Identifier;
    use crate::time::{Clock, SystemClock};

    #[test]
    fn key_type_recognises_generated_keys() {
        let now = SystemClock.now();
        for key_type in [
            KeyType::EcdsaP256,
            KeyType::EcdsaP384,
            KeyType::Rsa2048,
            KeyType::Rsa3072,
        ] {
            let pem = key_type.generate().unwrap();
            let key = rcgen::KeyPair::from_pem(pem.expose()).unwrap();
            let params = rcgen::CertificateParams::new(vec!["example.com".to_owned()]).unwrap();
            let chain = params.self_signed(&key).unwrap().pem();
            let names = [Identifier::parse("example.com").unwrap()].into();
            let bundle = Bundle::new(pem, &chain, &names, now, Freshness::Any).unwrap();
            assert_eq!(bundle.key_type(), Some(key_type));
        }
    }
}
