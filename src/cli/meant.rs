//! Which certificate is meant: the same names in any order are the same certificate, and
//! it keeps the name under which it is stored, in whatever order a command or the
//! configuration lists them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::catalog::{deny_stored, existing_store, with_stored};
use super::inventory::Inventory;
use crate::config::{CertificateSettings, Purpose, Settings, Sources};
use crate::failure::Failure;
use crate::identifier::Identifier;
use crate::lineage::{ByName, Known, Lineage, Meant, meant};
use crate::text::shell_word;

/// The settings of the certificate that a command names, else of all of them. What is
/// stored of it holds unless the command sets it, and only as far as it is confirmed.
pub(super) async fn named(sources: &Sources) -> Result<Settings, Failure> {
    let (Some((own, names)), Ok(process)) = (sources.named(), sources.process_settings()) else {
        return settings(sources, &Purpose::Named).await;
    };
    let data_dir = process.data_dir;
    let stored = stored(&data_dir)?;
    let lineage = match meant(names, &stored) {
        Meant::Known(lineage) if !sources.names_itself(own) => lineage,
        _ => own,
    };
    if sources.configures(own) || sources.configures(lineage) {
        return settings(sources, &Purpose::Named).await;
    }
    let with_stored = with_stored(sources, &data_dir, lineage).await?;
    let mut settings = settings(&with_stored, &Purpose::Named).await?;
    deny_stored(sources, &mut settings)?;
    Ok(settings)
}

/// The settings for `purpose`, with each certificate under its stored name.
pub(super) async fn settings(sources: &Sources, purpose: &Purpose) -> Result<Settings, Failure> {
    let mut settings = sources.settings(purpose)?;
    if !settings.certificates.is_empty() {
        let stored = Inventory::read(&settings.data_dir)?;
        relate(sources, &mut settings, &stored);
    }
    Ok(settings)
}

/// Gives each certificate of `settings` the name under which it is stored.
pub(super) fn relate(sources: &Sources, settings: &mut Settings, stored: &Inventory) {
    if settings.certificates.is_empty() {
        return;
    }
    let (known, index) = (stored.known(), sources.index());
    let stored = ByName::new(&known);
    let mut taken: BTreeSet<Lineage> = lineages(settings).collect();
    let mut names_of_first = BTreeMap::new();
    let mut is_turned = false;
    for certificate in &mut settings.certificates {
        let own = certificate.lineage.clone();
        if certificate.is_second {
            // It follows its first certificate.
            if is_turned {
                certificate.key = certificate.key.turned();
            }
            certificate.lineage = second(certificate, &stored, &names_of_first, &taken);
            taken.insert(certificate.lineage.clone());
            continue;
        }
        if index.names_itself(&own) {
            is_turned = keep_order(certificate, &stored);
            continue;
        }
        let is_free = |one: &&Known| one.lineage == own || !taken.contains(&one.lineage);
        let near = stored.near(&certificate.names);
        let free: Vec<Known> = near.filter(is_free).cloned().collect();
        match meant(&certificate.names, &free) {
            Meant::Known(lineage) => certificate.lineage = lineage.clone(),
            Meant::Lacks(stored) if stored.lineage == own && index.has(&own) => {
                let names: BTreeSet<_> = certificate.names.iter().collect();
                let lacks = stored.issued.iter().filter(|name| !names.contains(name));
                let lacks = list(lacks, ", ");
                tracing::warn!(lineage = %own, "the configuration no longer has {lacks}: the next certificate lacks it");
            }
            Meant::Lacks(_) | Meant::New => {}
        }
        is_turned = keep_order(certificate, &stored);
        taken.insert(certificate.lineage.clone());
        let names: BTreeSet<Identifier> = certificate.names.iter().cloned().collect();
        names_of_first.insert(names, certificate.lineage.clone());
    }
}

/// Keeps the kinds of keys of two stored certificates, in whatever order they are requested:
/// a server reads each by its name. Returns whether they are turned.
fn keep_order(certificate: &mut CertificateSettings, stored: &ByName<'_>) -> bool {
    let requested = certificate.key.kinds(false);
    let first = stored.named(&certificate.lineage);
    let Some(first) = first.filter(|one| requested.len() == 2 && one.kinds != requested) else {
        return false;
    };
    let Some(second) = stored.second_of(first) else {
        return false;
    };
    let lineage = certificate.lineage.clone();
    certificate.key = certificate.key.turned();
    let (kinds, key) = (&first.kinds, certificate.key);
    tracing::warn!(%lineage, "the order of the two keys is kept: {lineage} has the {} key, {} the {} one; hint: write {key}", kinds[0], second.lineage, kinds[1]);
    true
}

/// The name of the certificate for the second key: it follows the first one, unless one for
/// the second key of the same names is stored.
fn second(
    certificate: &CertificateSettings,
    stored: &ByName<'_>,
    firsts: &BTreeMap<BTreeSet<Identifier>, Lineage>,
    taken: &BTreeSet<Lineage>,
) -> Lineage {
    let names: BTreeSet<Identifier> = certificate.names.iter().cloned().collect();
    let own = &certificate.lineage;
    let is_its = |one: &&Known| one.is_second && (one.wanted == names || one.issued == names);
    let near = stored.near(&certificate.names);
    let its: Vec<&Lineage> = near.filter(is_its).map(|one| &one.lineage).collect();
    let kind = certificate.key_type().kind();
    let first = firsts.get(&names).map(|first| first.beside(kind));
    let expected = first.unwrap_or_else(|| own.clone());
    let is_stored = its.contains(&&expected);
    // Not that of a certificate of its own, which only has the name.
    let is_free = |name: &Lineage| stored.named(name).is_none_or(|one| one.is_second);
    let numbered = (2..).map_while(|number| Lineage::parse(&format!("{expected}-{number}")).ok());
    match its.into_iter().find(|one| !taken.contains(*one)) {
        Some(renamed) if !is_stored => renamed.clone(),
        _ if is_free(&expected) => expected,
        _ => numbered.into_iter().find(is_free).unwrap_or(expected),
    }
}

fn lineages(settings: &Settings) -> impl Iterator<Item = Lineage> {
    let all = settings.certificates.iter();
    all.map(|one| one.lineage.clone())
}

/// Refuses names of the command line that lack some of a known certificate's names: a
/// server may need these.
pub(super) async fn check_command(sources: &Sources, settings: &Settings) -> Result<(), Failure> {
    let mut firsts = settings.certificates.iter().filter(|one| !one.is_second);
    let (Some(certificate), None) = (firsts.next(), firsts.next()) else {
        return Ok(());
    };
    let lineage = &certificate.lineage;
    if sources.names_a_lineage {
        refuse_second(certificate, &stored(&settings.data_dir)?)?;
    }
    if sources.names_a_lineage || sources.configures_names(lineage, &certificate.names) {
        return Ok(());
    }
    let mut known = sources.known();
    known.extend(stored(&settings.data_dir)?);
    match meant(&certificate.names, &known) {
        Meant::Lacks(other) => Err(refusal(certificate, other, &known)),
        Meant::Known(_) | Meant::New => Ok(()),
    }
}

/// Refuses the name of the certificate for the second key of its names: a third one would be
/// made beside it.
fn refuse_second(certificate: &CertificateSettings, stored: &[Known]) -> Result<(), Failure> {
    let lineage = &certificate.lineage;
    let (mut firsts, index) = (stored.iter(), ByName::new(stored));
    let of = firsts.find(|one| { index.second_of(one) }.is_some_and(|it| it.lineage == *lineage));
    let Some(first) = of else {
        return Ok(());
    };
    let (first, names) = (&first.lineage, list(&certificate.names, " "));
    Err(Failure::usage(
        format!(
            "{lineage} is the certificate for the other key of {first}, and is issued with it; nothing was ordered"
        ),
        format!(
            "for both: certs issue {names} --name {first}; to renew this one alone: certs renew {lineage}; for a further certificate: another --name"
        ),
    ))
}

/// The other one of the two certificates for two keys of the same names.
pub(super) async fn other_key(
    data_dir: &Path,
    lineage: &Lineage,
) -> Result<Option<Lineage>, Failure> {
    let stored = stored(data_dir)?;
    let (firsts, index) = (stored.iter(), ByName::new(&stored));
    let mut pairs =
        firsts.filter_map(|first| Some((&first.lineage, &index.second_of(first)?.lineage)));
    let pair = pairs.find(|(first, second)| *first == lineage || *second == lineage);
    Ok(pair.map(|(first, second)| if first == lineage { second } else { first }.clone()))
}

fn refusal(certificate: &CertificateSettings, other: &Known, known: &[Known]) -> Failure {
    let requested: BTreeSet<&Identifier> = certificate.names.iter().collect();
    let missing = other.issued.iter().filter(|name| !requested.contains(name));
    let missing: Vec<&Identifier> = missing.collect();
    let words = |names: Vec<&Identifier>| {
        let words = names.into_iter().map(|name| shell_word(&name.to_string()));
        words.collect::<Vec<_>>().join(" ")
    };
    let names = words(certificate.names.iter().collect());
    let all = certificate.names.iter().chain(missing.iter().copied());
    let all = words(all.collect());
    let (lacking, lineage) = (list(missing, ", "), &other.lineage);
    let is_free = |new: &Lineage| known.iter().all(|one| one.lineage != *new);
    let own = certificate.names.iter().map(Lineage::of);
    let numbered = (2..).map_while(|number| Lineage::parse(&format!("{lineage}-{number}")).ok());
    let new = own.chain(numbered).find(is_free);
    let new = new.map_or("new".to_owned(), |new| new.to_string());
    let hint = match &certificate.request {
        None => format!(
            "for all of these names in one certificate: certs issue {all}; for a second certificate: certs issue {names} --name {new}; to take {lacking} out of {lineage}: certs issue {names} --name {lineage}"
        ),
        Some(_) => format!(
            "for all of these names in one certificate: make a new signing request for {all}, then certs csr FILE; for a second certificate: certs csr FILE --name {new}; to take {lacking} out of {lineage}: certs csr FILE --name {lineage}"
        ),
    };
    Failure::usage(
        format!(
            "the certificate {lineage} also has {lacking}, which the command lacks; nothing was ordered"
        ),
        hint,
    )
}

fn list<'n>(names: impl IntoIterator<Item = &'n Identifier>, between: &str) -> String {
    let names = names.into_iter().map(ToString::to_string);
    names.collect::<Vec<_>>().join(between)
}

/// The stored certificates that `name` selects: that of this lineage, else those with this
/// name in them. A damaged one is selected by its lineage.
///
/// # Errors
/// When there is none.
pub(super) async fn selected(data_dir: &Path, name: &str) -> Result<Vec<Lineage>, Failure> {
    if let (Ok(lineage), Some(store)) = (Lineage::parse(name), existing_store(data_dir.to_owned())?)
        && store.has(&lineage)
    {
        return Ok(vec![lineage]);
    }
    let identifier = Identifier::parse(name).ok();
    let identifier = identifier.as_ref();
    let has = |one: &Known| identifier.is_some_and(|it| one.wanted.contains(it));
    let stored = stored(data_dir)?.into_iter();
    let selected: Vec<Lineage> = stored.filter(has).map(|one| one.lineage).collect();
    match selected.is_empty() {
        true => Err(unknown(name)),
        false => Ok(selected),
    }
}

/// The failure when no certificate has that name.
pub(super) fn unknown(name: &str) -> Failure {
    Failure::usage(
        format!("unknown certificate {}", name.escape_debug()),
        "certs status lists the stored ones; certs issue obtains a new one",
    )
}

/// The one stored certificate that `name` selects, for a command after which it is `done`.
///
/// # Errors
/// When there is none, or several.
pub(super) async fn one(data_dir: &Path, name: &str, done: &str) -> Result<Lineage, Failure> {
    match selected(data_dir, name).await?.as_slice() {
        [only] => Ok(only.clone()),
        several => {
            let several: Vec<_> = several.iter().map(ToString::to_string).collect();
            let several = several.join(", ");
            Err(Failure::usage(
                format!("several certificates have {name}: {several}; nothing was {done}"),
                "name one of them by its own name",
            ))
        }
    }
}

/// The stored certificates. An unreadable record is reported where it is used.
pub(super) fn stored(data_dir: &Path) -> Result<Vec<Known>, Failure> {
    Ok(Inventory::read(data_dir)?.known())
}
