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

/// A key of its own and a certificate of `subject` for `names`, signed by `issuer`.
fn signed(
    subject: &str,
    names: Vec<rcgen::SanType>,
    key: KeyPair,
    issuer: Option<&Issuer<'static, KeyPair>>,
) -> (String, Issuer<'static, KeyPair>) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    if names.is_empty() {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }
    params.subject_alt_names = names;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, subject);
    let at = |t: Timestamp| time::OffsetDateTime::from_unix_timestamp(t.seconds()).unwrap();
    (params.not_before, params.not_after) = (at(NOW), at(NOW + days(90)));
    let made = match issuer {
        Some(issuer) => params.signed_by(&key, issuer),
        None => params.self_signed(&key),
    };
    (made.unwrap().pem(), Issuer::new(params, key))
}

fn dns(name: &str) -> rcgen::SanType {
    rcgen::SanType::DnsName(name.try_into().unwrap())
}

/// The key and the PEM of a leaf for `names`, of its intermediate, and of its root.
fn hierarchy(names: Vec<rcgen::SanType>) -> (Secret, [String; 3]) {
    let key = || KeyPair::generate().unwrap();
    let (root_pem, root) = signed("Root", vec![], key(), None);
    let (intermediate_pem, intermediate) = signed("Intermediate", vec![], key(), Some(&root));
    let leaf_key = key();
    let secret = Secret::new(leaf_key.serialize_pem());
    let (leaf, _) = signed("Leaf", names, leaf_key, Some(&intermediate));
    (secret, [leaf, intermediate_pem, root_pem])
}

#[test]
fn chain_is_built_whatever_the_order_and_unrelated_ones() {
    let (key, [leaf, intermediate, root]) = hierarchy(vec![dns("example.com")]);
    let (_, [other_leaf, other, _]) = hierarchy(vec![dns("example.com")]);
    let right = format!("{leaf}{intermediate}{root}");
    for (given, kept) in [
        (right.clone(), &right),
        (format!("{root}{intermediate}{leaf}"), &right),
        (format!("{intermediate}{leaf}{root}"), &right),
        (
            format!("{leaf}{leaf}{intermediate}{intermediate}{root}"),
            &right,
        ),
        (
            format!("{other}{leaf}{other_leaf}{intermediate}{root}"),
            &right,
        ),
        (
            format!("{leaf}{other}{intermediate}"),
            &format!("{leaf}{intermediate}"),
        ),
    ] {
        let names = set(&["example.com"]);
        let bundle = Bundle::new(key.clone(), &given, &names, NOW, Freshness::Issued).unwrap();
        let blocks = |pem: &str| pem.matches("BEGIN").count();
        assert_eq!(blocks(&bundle.chain_pem()), blocks(kept));
        assert!(kept.replace("\r\n", "\n") == bundle.chain_pem());
        assert_eq!(bundle.oddities().is_empty(), given == *kept);
    }
    let unrelated = format!("{leaf}{other}{other_leaf}");
    let error = refused(&key, &unrelated, &["example.com"], NOW, Freshness::Issued);
    assert_eq!(error, BundleError::Link(2));
}

#[test]
fn further_names_of_the_leaf_are_no_reason_to_refuse_it() {
    for further in [
        dns("www.example.com"),
        dns("_mta.example.com"),
        rcgen::SanType::Rfc822Name("me@example.com".try_into().unwrap()),
        rcgen::SanType::URI("spiffe://example.com/web".try_into().unwrap()),
    ] {
        let (key, [leaf, ..]) = hierarchy(vec![further, dns("example.com")]);
        let names = set(&["example.com"]);
        let bundle = Bundle::new(key.clone(), &leaf, &names, NOW, Freshness::Issued).unwrap();
        assert_eq!(bundle.facts().identifiers, names);
        let [oddity] = bundle.oddities() else {
            panic!("{:?}", bundle.oddities());
        };
        assert!(oddity.contains("example.com"), "{oddity}");
        let missing = refused(&key, &leaf, &["a.example.com"], NOW, Freshness::Issued);
        assert!(matches!(missing, BundleError::Names { .. }), "{missing}");
    }
}

#[test]
fn issuers_of_every_kind_of_key_are_verified() {
    let rsa = || KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA512, rcgen::RsaKeySize::_2048);
    let of = |algorithm| KeyPair::generate_for(algorithm);
    for key in [
        || KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512),
        || KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
        || KeyPair::generate_for(&rcgen::PKCS_ED25519),
    ] {
        check_issuer(key().unwrap(), key().unwrap());
    }
    check_issuer(rsa().unwrap(), of(&rcgen::PKCS_RSA_SHA256).unwrap());
}

/// An issuer with `key` is accepted, and another of the same name with `other` is not.
fn check_issuer(key: KeyPair, other: KeyPair) {
    let (pem, issuer) = signed("Root", vec![], key, None);
    let (unrelated, _) = signed("Root", vec![], other, None);
    let leaf_key = KeyPair::generate().unwrap();
    let secret = Secret::new(leaf_key.serialize_pem());
    let (leaf, _) = signed("Leaf", vec![dns("example.com")], leaf_key, Some(&issuer));
    let names = set(&["example.com"]);
    let chain = format!("{leaf}{pem}");
    let bundle = Bundle::new(secret.clone(), &chain, &names, NOW, Freshness::Issued).unwrap();
    assert_eq!(bundle.chain().len(), 2);
    let chain = format!("{leaf}{unrelated}");
    let error = refused(&secret, &chain, &["example.com"], NOW, Freshness::Issued);
    assert_eq!(error, BundleError::Link(1));
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
