//! A pair as a PKCS#12 key store (RFC 7292) for Java and software on it: PBES2 with
//! AES-256 and HMAC-SHA-256, which Java 8u301 and later read. It also serves where
//! JKS is requested, as Java itself writes PKCS#12 since version 9.

use p12_keystore::{Certificate, KeyStore, KeyStoreEntry, PrivateKey, PrivateKeyChain};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use zeroize::Zeroizing;

use super::{Bundle, Secret};

impl Bundle {
    /// The store's bytes, with the key under `alias`.
    ///
    /// # Errors
    /// A message, if the key is not PKCS#8.
    pub fn pkcs12(&self, alias: &str, password: &Secret) -> Result<Zeroizing<Vec<u8>>, String> {
        let shown = |error: p12_keystore::error::Error| error.to_string();
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.expose().as_bytes());
        let key = key.map_err(|error| error.to_string())?;
        let key = PrivateKey::from_der(key.secret_der()).map_err(shown)?;
        let chain = self.chain.iter().map(|one| Certificate::from_der(one));
        let chain = chain.collect::<Result<Vec<_>, _>>().map_err(shown)?;
        let mut store = KeyStore::new();
        // The alias also serves as the identifier that ties the key to its certificate.
        let chain = PrivateKeyChain::new(alias, key, chain);
        store.add_entry(alias, KeyStoreEntry::PrivateKeyChain(chain));
        let written = store.writer(password.expose()).write();
        written.map(Zeroizing::new).map_err(shown)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use p12_keystore::Pkcs12ImportPolicy;

    use super::super::{Freshness, KeyType};
    use super::*;
    use crate::identifier::Identifier;
    use crate::time::Timestamp;

    #[test]
    fn pkcs12_needs_password_and_holds_pair() {
        let names = BTreeSet::from([Identifier::parse("example.com").unwrap()]);
        for key_type in [KeyType::EcdsaP256, KeyType::Rsa2048] {
            let pem = key_type.generate().unwrap();
            let key = rcgen::KeyPair::from_pem(pem.expose()).unwrap();
            let made = rcgen::CertificateParams::new(vec!["example.com".to_owned()]).unwrap();
            let leaf = made.self_signed(&key).unwrap().pem();
            let now = Timestamp::from_seconds(1_800_000_000);
            let bundle = Bundle::new(pem, &leaf, &names, now, Freshness::Any).unwrap();
            let password = Secret::new("päss".to_owned());
            let store = bundle.pkcs12("example.com", &password).unwrap();
            let policy = Pkcs12ImportPolicy::Strict;
            assert!(KeyStore::from_pkcs12(&store, "wrong", policy).is_err());
            let read = KeyStore::from_pkcs12(&store, "päss", policy).unwrap();
            let (alias, chain) = read.private_key_chain().unwrap();
            assert_eq!(alias, "example.com");
            assert_eq!(chain.certs()[0].as_der(), bundle.chain()[0].as_ref());
            assert_eq!(chain.key().as_der(), key.serialize_der());
        }
    }
}
