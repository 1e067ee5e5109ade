//! Rules for pairs under `fuzz/`: a pair that passes is for the requested names, key
//! and instant, and reads back unchanged.

use std::sync::OnceLock;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::{Bundle, Facts, Freshness, KeyType, Secret, SigningRequest};
use crate::time::Timestamp;

/// One certificate in DER, or the PEM of a key and its chain, or a signing request in both.
pub(crate) fn pair(bytes: &[u8], now: Timestamp) {
    if let Ok(request) = SigningRequest::read(bytes) {
        assert!(!request.names().is_empty());
        assert_eq!(request.to_string().parse(), Ok(request));
    }
    if let Ok(facts) = Facts::of(&CertificateDer::from(bytes)) {
        coherent(&facts);
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let Some(Ok(leaf)) = CertificateDer::pem_slice_iter(bytes).next() else {
        return;
    };
    let Ok(facts) = Facts::of(&leaf) else {
        return;
    };
    coherent(&facts);
    let read = |key: &Secret, text: &str, freshness| {
        Bundle::new(key.clone(), text, &facts.identifiers, now, freshness)
    };
    assert!(read(unrelated_key(), text, Freshness::Any).is_err());
    let key = Secret::new(text.to_owned());
    for freshness in [Freshness::Any, Freshness::Stored, Freshness::Issued] {
        let Ok(bundle) = read(&key, text, freshness) else {
            continue;
        };
        if bundle.chain().first() != Some(&leaf) {
            // Another certificate of the text is the one of its key.
            continue;
        }
        assert_eq!(bundle.facts(), &facts);
        assert!(freshness == Freshness::Any || facts.not_after >= now);
        assert_eq!(
            bundle.chain_pem(),
            bundle.leaf_pem() + &bundle.issuers_pem()
        );
        match read(&key, &bundle.chain_pem(), freshness) {
            Ok(again) => assert_eq!(again.chain(), bundle.chain()),
            Err(error) => panic!("its own PEM is refused: {error}"),
        }
        let mut others = facts.identifiers.clone();
        others.pop_first();
        let fewer = Bundle::new(key.clone(), text, &others, now, freshness);
        let fewer = fewer.map(|bundle| bundle.facts().identifiers.clone());
        assert!(fewer.is_ok_and(|names| names == others));
    }
}

/// The fields of a leaf must survive the record.
fn coherent(facts: &Facts) {
    let json = serde_json::to_vec(facts);
    let json = json.unwrap_or_else(|error| panic!("it cannot be stored: {error}"));
    assert_eq!(
        serde_json::from_slice::<Facts>(&json).ok().as_ref(),
        Some(facts)
    );
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if let Some(id) = &facts.renewal_id {
        assert!(id.bytes().all(allowed), "{id}");
        assert_eq!(id.matches('.').count(), 1, "{id}");
    }
    let _ = facts.lifetime();
}

/// A key that matches no seed.
fn unrelated_key() -> &'static Secret {
    static KEY: OnceLock<Secret> = OnceLock::new();
    KEY.get_or_init(|| match KeyType::EcdsaP256.generate() {
        Ok(key) => key,
        Err(error) => panic!("no key: {error}"),
    })
}
