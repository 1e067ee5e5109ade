//! A cache of checked pairs: the same bytes need no second signature check, only a
//! check of their dates. It keeps a digest, the chain and the fields of the leaf,
//! never a key.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest::{Context, SHA256};
use rustls::pki_types::CertificateDer;

use super::{Bundle, BundleError, Facts, Freshness, Secret};
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::time::Timestamp;

/// The pair that was last checked, for each of the latest lineages. Clones share the cache.
#[derive(Clone, Debug, Default)]
pub struct BundleCache(Arc<Mutex<Latest>>);

/// A pair is checked several times in one pass, and seldom between two.
const LATEST: usize = 1000;

#[derive(Debug, Default)]
struct Latest {
    pairs: BTreeMap<Lineage, Accepted>,
    /// In the order in which they came.
    order: VecDeque<Lineage>,
}

impl Latest {
    fn insert(&mut self, lineage: &Lineage, pair: Accepted) {
        if self.pairs.insert(lineage.clone(), pair).is_none() {
            self.order.push_back(lineage.clone());
        }
        if self.order.len() > LATEST
            && let Some(oldest) = self.order.pop_front()
        {
            self.pairs.remove(&oldest);
        }
    }
}

#[derive(Debug)]
struct Accepted {
    digest: [u8; 32],
    chain: Arc<[CertificateDer<'static>]>,
    facts: Arc<Facts>,
}

impl BundleCache {
    /// Adds a pair that was just issued and checked.
    pub fn accept(&self, lineage: &Lineage, bundle: &Bundle) {
        let digest = digest(&bundle.key_pem, &bundle.chain_pem());
        self.lock().insert(lineage, Accepted::of(digest, bundle));
    }

    /// The stored pair of `lineage`, checked as [`Bundle::new`] does with
    /// [`Freshness::Stored`].
    ///
    /// # Errors
    /// Those of [`Bundle::new`].
    pub fn bundle(
        &self,
        lineage: &Lineage,
        key_pem: Secret,
        chain_pem: &str,
        identifiers: &BTreeSet<Identifier>,
        now: Timestamp,
    ) -> Result<Bundle, BundleError> {
        let digest = digest(&key_pem, chain_pem);
        let mut known = self.lock();
        if let Some(accepted) = known.pairs.get(lineage)
            && accepted.digest == digest
            && accepted.facts.identifiers == *identifiers
        {
            accepted.facts.check_dates(now, Freshness::Stored)?;
            return Ok(Bundle {
                key_pem,
                chain: accepted.chain.clone(),
                facts: accepted.facts.clone(),
                oddities: Arc::default(),
            });
        }
        let bundle = Bundle::new(key_pem, chain_pem, identifiers, now, Freshness::Stored)?;
        known.insert(lineage, Accepted::of(digest, &bundle));
        Ok(bundle)
    }

    fn lock(&self) -> MutexGuard<'_, Latest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Accepted {
    fn of(digest: [u8; 32], bundle: &Bundle) -> Self {
        Self {
            digest,
            chain: bundle.chain.clone(),
            facts: bundle.facts.clone(),
        }
    }
}

/// SHA-256 over key and chain, with the key's length in front to separate them.
fn digest(key_pem: &Secret, chain_pem: &str) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    let key = key_pem.expose().as_bytes();
    context.update(&key.len().to_be_bytes());
    context.update(key);
    context.update(chain_pem.as_bytes());
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn made(name: &str, now: Timestamp) -> (Secret, String, BTreeSet<Identifier>, Lineage) {
        let at = |instant: Timestamp| {
            time::OffsetDateTime::from_unix_timestamp(instant.seconds()).unwrap()
        };
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = at(now);
        params.not_after = at(now + Duration::from_secs(86_400));
        let chain = params.self_signed(&key).unwrap().pem();
        let identifier = Identifier::parse(name).unwrap();
        let lineage = Lineage::of(&identifier);
        let key = Secret::new(key.serialize_pem());
        (key, chain, [identifier].into(), lineage)
    }

    #[test]
    fn cache_keeps_the_latest_pairs_and_no_more() {
        let (known, now) = (
            BundleCache::default(),
            Timestamp::from_seconds(1_800_000_000),
        );
        let (key, chain, names, _) = made("example.com", now);
        let first = known.bundle(
            &Lineage::of(&"a.example".parse().unwrap()),
            key,
            &chain,
            &names,
            now,
        );
        for number in 0..2 * LATEST {
            let lineage = Lineage::parse(&format!("n{number}")).unwrap();
            known.accept(&lineage, first.as_ref().unwrap());
        }
        let kept = known.lock();
        assert_eq!((kept.pairs.len(), kept.order.len()), (LATEST, LATEST));
        assert!(
            kept.pairs
                .contains_key(&Lineage::parse(&format!("n{}", 2 * LATEST - 1)).unwrap())
        );
    }

    #[test]
    fn known_pair_passes_until_expiry() {
        let (known, now) = (
            BundleCache::default(),
            Timestamp::from_seconds(1_800_000_000),
        );
        let (key, chain, names, lineage) = made("example.com", now);
        let first = known.bundle(&lineage, key.clone(), &chain, &names, now);
        let again = known.bundle(&lineage, key.clone(), &chain, &names, now);
        assert_eq!(again.unwrap().chain_pem(), first.unwrap().chain_pem());
        let later = now + Duration::from_secs(86_401);
        let expired = known.bundle(&lineage, key, &chain, &names, later);
        assert!(matches!(expired, Err(BundleError::Expired(_))));
    }

    #[test]
    fn known_pair_with_other_key_or_names_is_checked_again() {
        let (known, now) = (
            BundleCache::default(),
            Timestamp::from_seconds(1_800_000_000),
        );
        let (key, chain, names, lineage) = made("example.com", now);
        let bundle = |key: &Secret, names: &BTreeSet<Identifier>| {
            known.bundle(&lineage, key.clone(), &chain, names, now)
        };
        bundle(&key, &names).unwrap();
        let (other_key, _, other_names, _) = made("example.org", now);
        let mismatch = bundle(&other_key, &names).unwrap_err();
        assert_eq!(mismatch, BundleError::KeyMismatch);
        let error = bundle(&key, &other_names).unwrap_err();
        assert!(matches!(error, BundleError::Names { .. }), "{error}");
        bundle(&key, &names).unwrap();
    }
}
