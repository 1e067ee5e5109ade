//! Checks of whole certificates: each key alone is valid, and the CA would still refuse
//! the order, or two settings contradict each other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::problem::{Origin, Problems};
use super::read::Entry;
use super::{CaSettings, CertificateSettings};
use crate::deploy::target::{DeployTarget, NAME};
use crate::identifier::Identifier;
use crate::lineage::Lineage;

/// The most names that public CAs accept in one certificate.
const MOST_NAMES: usize = 100;

/// Adds every problem that prevents the issuance of `wanted`, which comes from `origin`.
/// It reads the files that `wanted` names and no others. `ca_is_known` is false if
/// another problem hides which CA is meant.
pub(super) fn certificate(
    wanted: &CertificateSettings,
    origin: &Origin,
    ca_is_known: bool,
    problems: &mut Problems,
) {
    names(wanted, origin, problems);
    if ca_is_known {
        public_names(
            &wanted.ca,
            wanted.profile.as_deref(),
            wanted,
            origin,
            problems,
        );
        ca(&wanted.ca, origin, problems);
        if let Some(ca) = &wanted.fallback {
            fallback(ca, wanted, origin, problems);
        }
    }
    if let Err(unfit) = wanted.challenge.check() {
        problems.add(&Origin::Nowhere, unfit.message, unfit.hint);
    }
}

/// Two certificates must not be written to one file.
pub(super) fn copies(all: &[CertificateSettings], entries: &[Entry], problems: &mut Problems) {
    let mut written = BTreeMap::new();
    for (certificate, entry) in all.iter().zip(entries) {
        for spec in certificate.deploy.iter().filter(|spec| spec.is_for_one()) {
            let Some(path) = spec.writes() else { continue };
            let first = written.entry(path.clone()).or_insert(&certificate.lineage);
            if *first != &certificate.lineage {
                let message = format!(
                    "{}: {first} and {} would both be written there",
                    path.display(),
                    certificate.lineage
                );
                let hint = format!("put {NAME} into the path, or give each its own `deploy`");
                problems.add(&entry.origin, message, hint);
            }
        }
    }
}

/// A file that both `certificate` and one of `others` are written to, and that other
/// certificate.
pub(crate) fn shared_file<'a>(
    certificate: &CertificateSettings,
    others: impl Iterator<Item = &'a CertificateSettings>,
) -> Option<(PathBuf, Lineage)> {
    let files = |one: &CertificateSettings| -> BTreeSet<PathBuf> {
        let specs = one.deploy.iter().map(|spec| spec.for_lineage(&one.lineage));
        let specs = specs.filter(DeployTarget::is_for_one);
        specs.filter_map(|spec| spec.writes()).collect()
    };
    let ours = files(certificate);
    let mut others = others.filter(|other| other.lineage != certificate.lineage);
    others.find_map(|other| {
        let theirs = files(other);
        let both = ours.intersection(&theirs).next()?;
        Some((both.clone(), other.lineage.clone()))
    })
}

fn names(wanted: &CertificateSettings, origin: &Origin, problems: &mut Problems) {
    let mut seen = BTreeSet::new();
    for name in &wanted.names {
        if !seen.insert(name) {
            let message = format!("{name} is given twice");
            problems.add(origin, message, "give each name once");
        }
        if let Err(unfit) = wanted.challenge.check_name(name) {
            problems.add(origin, unfit.message, unfit.hint);
        }
    }
}

/// A fallback CA issues the same names without a profile: each CA has profiles of its
/// own.
fn fallback(
    fallback: &CaSettings,
    wanted: &CertificateSettings,
    origin: &Origin,
    problems: &mut Problems,
) {
    let directory = &fallback.directory;
    if directory.is_staging() {
        let message = format!("the fallback CA {directory} is a staging directory");
        let hint = "name a CA whose certificates are trusted, such as zerossl";
        problems.add(origin, message, hint);
        return;
    }
    if directory.identity() == wanted.ca.directory.identity() {
        let message = format!("the fallback CA {directory} is the same as the CA");
        problems.add(origin, message, "name another CA, or leave fallback_ca out");
        return;
    }
    public_names(fallback, None, wanted, origin, problems);
    ca(fallback, origin, problems);
}

fn public_names(
    ca: &CaSettings,
    profile: Option<&str>,
    wanted: &CertificateSettings,
    origin: &Origin,
    problems: &mut Problems,
) {
    if !ca.directory.is_public() {
        return;
    }
    for error in wanted
        .names
        .iter()
        .filter_map(|name| name.require_public().err())
    {
        let hint = "use a public name, or a private CA: --ca https://…";
        problems.add(origin, error.to_string(), hint);
    }
    if wanted.names.len() > MOST_NAMES {
        let message = format!("{} names in one certificate", wanted.names.len());
        let hint = format!("public CAs take {MOST_NAMES} at most: make two certificates");
        problems.add(origin, message, hint);
    }
    let address = wanted
        .names
        .iter()
        .find(|name| matches!(name, Identifier::Ip(_)));
    if let Some(address) = address
        && ca.directory.is_letsencrypt()
        && profile != Some("shortlived")
    {
        let message = format!("{address}: Let's Encrypt signs addresses in one profile only");
        problems.add(
            origin,
            message,
            "add profile = \"shortlived\" (--profile shortlived)",
        );
    }
}

fn ca(ca: &CaSettings, origin: &Origin, problems: &mut Problems) {
    if ca.directory.is_public() && !ca.agree_tos {
        let message = format!("the terms of service of {} are not agreed to", ca.directory);
        let hint = "read them, then add --agree-tos, CERTS_AGREE_TOS=true or agree_tos = true";
        problems.add(&Origin::Nowhere, message, hint);
    }
    if ca.directory.is_embedded() {
        let useless = [
            ("ca_root", ca.root.is_some()),
            ("eab_kid", ca.eab_kid.is_some()),
            ("eab_hmac_file", ca.eab_hmac_file.is_some()),
        ];
        for (key, _) in useless.iter().filter(|(_, given)| *given) {
            let message = format!("the embedded CA does not use {key}");
            problems.add(origin, message, "leave it out, or name another CA");
        }
        return;
    }
    if let Err(message) = ca.read_root() {
        problems.add(&Origin::Nowhere, message, "name a PEM file with --ca-root");
    }
    if let Err(message) = ca.read_binding() {
        let hint = "the CA gives both: a key identifier, and an HMAC key to put into a file";
        problems.add(&Origin::Nowhere, message, hint);
    }
}
