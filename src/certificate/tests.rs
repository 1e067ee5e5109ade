//! What a bundle accepts and refuses.

use super::*;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

struct TestPair {
    key: Secret,
    leaf: String,
    issuer: String,
}

fn make(names: &[&str], not_before: Timestamp, not_after: Timestamp) -> TestPair {
    let at = |t: Timestamp| time::OffsetDateTime::from_unix_timestamp(t.seconds()).unwrap();
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name
        .push(rcgen::DnType::CommonName, "Test CA");
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate().unwrap();
    let mut params =
        CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap();
    params.not_before = at(not_before);
    params.not_after = at(not_after);
    params.use_authority_key_identifier_extension = true;
    let leaf = params.signed_by(&key, &issuer).unwrap();
    TestPair {
        key: Secret::new(key.serialize_pem()),
        leaf: leaf.pem(),
        issuer: ca_certificate.pem(),
    }
}

fn set(names: &[&str]) -> BTreeSet<Identifier> {
    names
        .iter()
        .map(|name| Identifier::parse(name).unwrap())
        .collect()
}

fn days(n: u64) -> Duration {
    Duration::from_secs(n * 86_400)
}

#[test]
fn certificate_without_a_name_is_reported_so() {
    let pair = make(&[], NOW, NOW + days(90));
    let wanted = set(&["example.com"]);
    let refused = Bundle::new(pair.key, &pair.leaf, &wanted, NOW, Freshness::Issued);
    assert_eq!(
        refused.unwrap_err().to_string(),
        "the certificate is for no name, but example.com were requested"
    );
}

#[test]
fn bundle_accepts_valid_pair_unchanged() {
    let names = ["example.com", "192.0.2.1"];
    let pair = make(&names, NOW, NOW + days(90));
    let chain = format!("{}{}", pair.leaf, pair.issuer);
    let bundle = Bundle::new(
        pair.key.clone(),
        &chain,
        &set(&names),
        NOW,
        Freshness::Issued,
    )
    .unwrap();
    assert_eq!(bundle.chain().len(), 2);
    let renewal_id = bundle.facts().renewal_id.clone().unwrap();
    assert_eq!(renewal_id.split('.').count(), 2);
    let again = Bundle::new(
        pair.key,
        &bundle.chain_pem(),
        &set(&names),
        NOW,
        Freshness::Stored,
    )
    .unwrap();
    assert_eq!(again.facts(), bundle.facts());
    assert_eq!(
        bundle.chain_pem(),
        format!("{}{}", bundle.leaf_pem(), bundle.issuers_pem())
    );
}

fn refused(
    key: &Secret,
    chain: &str,
    names: &[&str],
    now: Timestamp,
    freshness: Freshness,
) -> BundleError {
    Bundle::new(key.clone(), chain, &set(names), now, freshness).unwrap_err()
}

#[test]
fn bundle_refuses_each_mismatch() {
    let good = make(&["example.com"], NOW, NOW + days(90));
    let other = make(&["example.com"], NOW, NOW + days(90));
    let check =
        |key: &Secret, chain: &str| refused(key, chain, &["example.com"], NOW, Freshness::Issued);
    assert_eq!(check(&other.key, &good.leaf), BundleError::KeyMismatch);
    assert_eq!(check(&good.key, ""), BundleError::Chain);
    let no_key = Secret::new("x".into());
    assert_eq!(check(&no_key, &good.leaf), BundleError::Key);
    let wrong_chain = format!("{}{}", good.leaf, other.issuer);
    assert_eq!(check(&good.key, &wrong_chain), BundleError::Link(1));
    for names in [&["example.org"][..], &["example.com", "a.example.com"]] {
        let error = refused(&good.key, &good.leaf, names, NOW, Freshness::Any);
        assert!(matches!(error, BundleError::Names { .. }), "{error}");
    }
}

#[test]
fn bundle_refuses_invalid_dates() {
    let pair = make(&["example.com"], NOW, NOW + days(90));
    let check = |now, freshness| refused(&pair.key, &pair.leaf, &["example.com"], now, freshness);
    assert!(matches!(
        check(NOW + days(91), Freshness::Stored),
        BundleError::Expired(_)
    ));
    assert!(matches!(
        check(NOW - days(1), Freshness::Issued),
        BundleError::NotYetValid(_)
    ));
    assert!(matches!(
        check(NOW + days(46), Freshness::Issued),
        BundleError::TooShort { .. }
    ));
}

#[test]
fn debug_of_bundle_hides_key() {
    let pair = make(&["example.com"], NOW, NOW + days(90));
    let bundle = Bundle::new(
        pair.key,
        &pair.leaf,
        &set(&["example.com"]),
        NOW,
        Freshness::Issued,
    )
    .unwrap();
    assert!(!format!("{bundle:?}").contains("PRIVATE"));
}
