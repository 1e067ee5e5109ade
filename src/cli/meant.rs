//! Which certificate is meant: the same names in any order are the same certificate, and
//! it keeps the name under which it is stored, in whatever order a command or the
//! configuration lists them.

use std::collections::BTreeSet;
use std::path::Path;

use super::catalog::existing_store;
use crate::config::{CertificateSettings, Purpose, Settings, Sources};
use crate::failure::Failure;
use crate::identifier::Identifier;
use crate::lineage::{Known, Lineage, Meant, meant};
use crate::store::Store;

/// The settings for `purpose`, with each certificate under its stored name.
pub(super) async fn settings(sources: &Sources, purpose: &Purpose) -> Result<Settings, Failure> {
    let mut settings = sources.settings(purpose)?;
    let stored = stored(&settings.data_dir).await?;
    let mut taken: BTreeSet<Lineage> = lineages(&settings).collect();
    for certificate in &mut settings.certificates {
        let own = certificate.lineage.clone();
        if sources.names_itself(&own) {
            continue;
        }
        let is_free = |one: &&Known| one.lineage == own || !taken.contains(&one.lineage);
        let free: Vec<Known> = stored.iter().filter(is_free).cloned().collect();
        match meant(&certificate.names, &free) {
            Meant::Known(lineage) => certificate.lineage = lineage.clone(),
            Meant::Lacks(stored) if stored.lineage == own && sources.configures(&own) => {
                let names: BTreeSet<_> = certificate.names.iter().collect();
                let lacks = stored.issued.iter().filter(|name| !names.contains(name));
                let lacks = list(lacks, ", ");
                tracing::warn!(lineage = %own, "the configuration no longer has {lacks}: the next certificate lacks it");
            }
            Meant::Lacks(_) | Meant::New => {}
        }
        taken.insert(certificate.lineage.clone());
    }
    Ok(settings)
}

fn lineages(settings: &Settings) -> impl Iterator<Item = Lineage> {
    let all = settings.certificates.iter();
    all.map(|one| one.lineage.clone())
}

/// Refuses names of the command line that lack some of a known certificate's names: a
/// server may need these.
pub(super) async fn check_command(sources: &Sources, settings: &Settings) -> Result<(), Failure> {
    let [certificate] = settings.certificates.as_slice() else {
        return Ok(());
    };
    let lineage = &certificate.lineage;
    if sources.names_a_lineage || sources.configures_names(lineage, &certificate.names) {
        return Ok(());
    }
    let mut known = sources.known();
    known.extend(stored(&settings.data_dir).await?);
    match meant(&certificate.names, &known) {
        Meant::Lacks(other) => Err(refusal(certificate, other, &known)),
        Meant::Known(_) | Meant::New => Ok(()),
    }
}

fn refusal(certificate: &CertificateSettings, other: &Known, known: &[Known]) -> Failure {
    let requested: BTreeSet<&Identifier> = certificate.names.iter().collect();
    let missing = other.issued.iter().filter(|name| !requested.contains(name));
    let missing: Vec<&Identifier> = missing.collect();
    let names = list(&certificate.names, " ");
    let all = list(certificate.names.iter().chain(missing.iter().copied()), " ");
    let (lacking, lineage) = (list(missing, ", "), &other.lineage);
    let is_free = |new: &Lineage| known.iter().all(|one| one.lineage != *new);
    let mut new = certificate.names.iter().map(Lineage::of);
    let new = new.find(is_free);
    let new = new.map_or("NAME".to_owned(), |new| new.to_string());
    Failure::usage(
        format!(
            "the certificate {lineage} also has {lacking}, which the command lacks; nothing was ordered"
        ),
        format!(
            "for all of these names in one certificate: certs issue {all}; for a second certificate: certs issue {names} --name {new}; to take {lacking} out of {lineage}: certs issue {names} --name {lineage}"
        ),
    )
}

fn list<'n>(names: impl IntoIterator<Item = &'n Identifier>, between: &str) -> String {
    let names = names.into_iter().map(ToString::to_string);
    names.collect::<Vec<_>>().join(between)
}

/// The stored certificates. An unreadable record is reported where it is used.
pub(super) async fn stored(data_dir: &Path) -> Result<Vec<Known>, Failure> {
    let Some(store) = existing_store(data_dir.to_owned())? else {
        return Ok(Vec::new());
    };
    let listed = store.list().await.map_err(Failure::on("store"))?;
    let mut known = Vec::new();
    for lineage in listed {
        if let Ok(Some((record, _))) = store.load(&lineage).await {
            let issued = record.issued.map(|issued| issued.facts.identifiers);
            known.push(Known {
                lineage,
                wanted: record.identifiers,
                issued: issued.unwrap_or_default(),
            });
        }
    }
    Ok(known)
}
