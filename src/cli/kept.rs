//! The origin of a certificate decides how long it is kept. One that a command or an import
//! made is kept until it is deleted. One that the configuration or a label made is kept while
//! that names it, and is orphaned afterwards: shown, looked at, and no longer renewed.

use std::collections::{BTreeMap, BTreeSet};

use super::catalog::{as_stored, existing_store, recall, remember};
use super::labels::Labels;
use super::meant;
use crate::config::{CertificateSettings, Origin, Settings, Sources, shared_file};
use crate::control;
use crate::deploy::target::{DeployTarget, NAME};
use crate::failure::Failure;
use crate::identifier::Identifier;
use crate::lineage::{Lineage, second_of};
use crate::observe::RequestedBy;
use crate::record::Record;
use crate::store::Store;

/// A stored certificate that nothing keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Orphan {
    pub(super) settings: CertificateSettings,
    /// Why nothing keeps it.
    pub(super) why: &'static str,
}

/// Why nothing keeps the certificate of these stored settings; `None` if something does.
/// Settings of an earlier version do not name an origin: they count as made by a command,
/// so that nothing in use expires.
pub(super) fn orphaned(
    sources: &Sources,
    settings: &CertificateSettings,
    requested_by: Option<&RequestedBy>,
) -> Option<&'static str> {
    let is_requested = requested_by.is_some_and(|requested| !requested.stopped);
    if settings.orphaned.as_deref() == Some(KEY_DROPPED) && !is_configured(sources, settings) {
        return Some(KEY_DROPPED);
    }
    match (settings.asked_by(), requested_by) {
        _ if is_configured(sources, settings) || is_requested => None,
        (Some(origin), _) if origin.lasts() => None,
        // Another machine may have it in its configuration, or in a container there.
        (Some(origin), _) if sources.is_in_fleet() && origin != Origin::Install => None,
        (Some(Origin::Install), _) => Some(UNFINISHED),
        (Some(Origin::Configuration), _) if names_its_first(sources, settings) => {
            Some(KEY_NOT_CONFIGURED)
        }
        (Some(Origin::Configuration), _) => Some("the configuration no longer names it"),
        (Some(_), _) | (None, Some(_)) => Some("no container requests it any more"),
        (None, None) => None,
    }
}

/// Whether the configuration names the certificate, or one of the same names.
pub(super) fn is_configured(sources: &Sources, settings: &CertificateSettings) -> bool {
    let names: BTreeSet<&Identifier> = settings.names.iter().collect();
    let mut known = sources.known().into_iter();
    known.any(|one| {
        let same = one.is_second == settings.is_second;
        one.lineage == settings.lineage || same && one.wanted.iter().eq(names.iter().copied())
    })
}

/// Whether the configuration has one key for the names of this certificate for the second.
fn names_its_first(sources: &Sources, settings: &CertificateSettings) -> bool {
    let names: BTreeSet<&Identifier> = settings.names.iter().collect();
    let mut known = sources.known().into_iter();
    settings.is_second && known.any(|one| one.wanted.iter().eq(names.iter().copied()))
}

/// The certificates for the second keys of those whose settings have one key now, with these.
pub(super) async fn dropped_keys(settings: &Settings) -> Result<Vec<(Lineage, Lineage)>, Failure> {
    let stored = meant::stored(&settings.data_dir).await?;
    let single = settings.certificates.iter();
    let by_command = |one: &&CertificateSettings| one.origin == Some(Origin::Command);
    let single = single.filter(by_command);
    let single = single.filter(|one| !one.is_second && one.key.second().is_none());
    let dropped = single.filter_map(|one| {
        let first = stored.iter().find(|known| known.lineage == one.lineage)?;
        let second = second_of(first, &stored)?;
        Some((one.lineage.clone(), second.lineage.clone()))
    });
    Ok(dropped.collect())
}

/// Marks the certificates of keys that a command has dropped: nothing keeps them any more.
pub(super) async fn orphan_dropped(
    settings: &Settings,
    dropped: Vec<(Lineage, Lineage)>,
) -> Result<(), Failure> {
    let Some(store) = existing_store(settings.data_dir.clone())? else {
        return Ok(());
    };
    for (first, second) in dropped {
        let made_with = async |lineage: &Lineage| {
            let stored = store.options(lineage).await;
            let stored = stored.map_err(Failure::on(lineage.as_str()))?;
            Ok::<_, Failure>(
                stored.and_then(|json| CertificateSettings::stored_as(lineage, &json).ok()),
            )
        };
        let is_single = made_with(&first).await?;
        let is_single = is_single.is_some_and(|first| first.key.second().is_none());
        let Some(mut own) = made_with(&second).await?.filter(|_| is_single) else {
            continue;
        };
        own.orphaned = Some(KEY_DROPPED.to_owned());
        remember(&store, &own).await?;
        tracing::warn!(lineage = %second, "{}", notice(&second, KEY_DROPPED));
    }
    Ok(())
}

/// The stored certificates that `certs run` does not manage.
#[derive(Debug, Default)]
pub(super) struct NotKept {
    /// Those that nothing keeps: they are only looked at.
    pub(super) orphans: Vec<Orphan>,
    /// Those that cannot be used, and why.
    pub(super) unusable: BTreeMap<Lineage, String>,
}

impl NotKept {
    fn refuse(&mut self, lineage: Lineage, failure: &Failure) {
        let why = failure.in_a_line();
        tracing::error!(%lineage, "the stored certificate is not managed: {why}");
        self.unusable.insert(lineage, why);
    }
}

/// Adds the stored certificates that `certs run` keeps and no configuration names, and
/// returns the others. An unusable one does not affect them.
pub(super) async fn keep_stored(
    sources: &Sources,
    configured: &mut Settings,
    labels: &Labels,
) -> Result<NotKept, Failure> {
    let requests = labels.requests();
    let granted = labels.certificates(sources, configured);
    let granted: BTreeSet<&Lineage> = granted.iter().map(|one| &one.lineage).collect();
    let whole = as_stored(sources, configured).await;
    let mut not_kept = NotKept::default();
    for (lineage, settings) in recall(sources, configured).await? {
        let mut settings = match settings {
            // The options of this process are for others; an import leaves room for them, and
            // a certificate of another machine.
            Ok(settings) if settings.imported.is_some() || sources.is_in_fleet() => settings,
            Ok(settings) => {
                let mut whole = whole.iter().filter(|one| one.lineage == lineage);
                let cannot_order = settings.cannot_order.clone();
                CertificateSettings {
                    cannot_order,
                    ..whole.next().cloned().unwrap_or(settings)
                }
            }
            Err(failure) => {
                not_kept.refuse(lineage, &failure);
                continue;
            }
        };
        let record = match record(configured, &lineage).await {
            Ok(record) => record,
            Err(failure) => {
                not_kept.refuse(lineage, &failure);
                continue;
            }
        };
        let is_issued = record
            .as_ref()
            .is_some_and(|record| record.issued.is_some());
        let is_ordered = record.is_some_and(|record| record.order.is_some());
        match orphaned(sources, &settings, requests.get(&lineage)) {
            _ if granted.contains(&lineage) => {}
            // It may go on at this moment.
            Some(UNFINISHED) => {
                tracing::info!(%lineage, "not managed: {UNFINISHED}; hint: {}", finish(&lineage));
            }
            Some(why) if is_issued => {
                let before = settings.orphaned.replace(why.to_owned());
                if before.as_deref() != Some(why) {
                    mark(configured, &settings).await;
                }
                not_kept.orphans.push(Orphan { settings, why });
            }
            None if is_issued || is_ordered => {
                let settings = without_shared_files(settings, configured);
                configured.certificates.push(settings);
            }
            _ => {
                tracing::warn!(%lineage, "not managed, because no certificate exists yet; hint: certs issue retries, certs delete {lineage} forgets it");
            }
        }
    }
    Ok(not_kept)
}

/// Stores that `certs run` does not keep the certificate: commands may not see the
/// configuration of the sidecar.
async fn mark(configured: &Settings, settings: &CertificateSettings) {
    let marked = async {
        if let Some(store) = existing_store(configured.data_dir.clone())? {
            remember(&store, settings).await?;
        }
        Ok::<_, Failure>(())
    };
    if let Err(failure) = marked.await {
        tracing::warn!("{}", failure.in_a_line());
    }
}

async fn record(configured: &Settings, lineage: &Lineage) -> Result<Option<Record>, Failure> {
    let Some(store) = existing_store(configured.data_dir.clone())? else {
        return Ok(None);
    };
    let stored = store.load(lineage).await;
    let stored = stored.map_err(Failure::on(lineage.as_str()))?;
    Ok(stored.map(|(record, _)| record))
}

/// Two certificates must not write the same file.
fn without_shared_files(
    mut settings: CertificateSettings,
    configured: &Settings,
) -> CertificateSettings {
    let lineage = settings.lineage.clone();
    while let Some((path, owner)) = shared_file(&settings, configured.certificates.iter()) {
        tracing::error!(%lineage, "{}: not written, because {owner} is written there; hint: put {NAME} into the path", path.display());
        let writes_it =
            |spec: &DeployTarget| spec.for_lineage(&lineage).writes().as_ref() == Some(&path);
        settings.deploy.retain(|spec| !writes_it(spec));
    }
    settings
}

/// Why nothing keeps the certificate, as a command sees it. The sidecar knows its own
/// configuration; a command without any relies on what the sidecar found last.
pub(super) fn orphaned_for_command(
    sources: &Sources,
    settings: &CertificateSettings,
    requested_by: Option<&RequestedBy>,
    sidecar_runs: bool,
) -> Option<String> {
    let is_unfinished = settings.asked_by() == Some(Origin::Install);
    if !is_unfinished && (sidecar_runs || sources.known().is_empty()) {
        return settings.orphaned.clone();
    }
    orphaned(sources, settings, requested_by).map(str::to_owned)
}

/// Takes the orphaned certificates out of `settings`, and says so.
pub(super) async fn skip_orphans(
    sources: &Sources,
    settings: &mut Settings,
) -> Result<(), Failure> {
    let requests = Labels::open(&settings.data_dir)?.requests();
    let sidecar_runs = control::is_running(&settings.data_dir).await?;
    settings.certificates.retain(|one| {
        let lineage = &one.lineage;
        let why = orphaned_for_command(sources, one, requests.get(lineage), sidecar_runs);
        if let Some(why) = &why {
            tracing::warn!(%lineage, "{}", notice(lineage, why));
        }
        why.is_none()
    });
    Ok(())
}

/// Why nothing keeps the certificate of an install that has failed, or was cut off.
const UNFINISHED: &str = "its installation in nginx has not ended";

/// Why nothing keeps the certificate for a second key: the command, or the configuration, has
/// one key for its names.
const KEY_DROPPED: &str = "certs issue no longer requests its key";
const KEY_NOT_CONFIGURED: &str = "the configuration no longer names its key";

/// The next thing to do then.
fn finish(lineage: &Lineage) -> String {
    format!(
        "certs install nginx --domain {lineage} ends it, certs delete {lineage} removes the certificate"
    )
}

/// What an operator reads about an orphaned certificate.
pub(super) fn notice(lineage: &Lineage, why: &str) -> String {
    if why == UNFINISHED {
        return format!("not renewed: {why}; hint: {}", finish(lineage));
    }
    let keep = match why {
        KEY_DROPPED => "certs issue with its names and both types in --key keeps it",
        KEY_NOT_CONFIGURED => "both types in `key` of the configuration keep it",
        _ => "certs issue with its names keeps it",
    };
    format!(
        "orphaned, and renewed no more: {why}; hint: certs renew {lineage} renews it once, {keep}, certs delete {lineage} removes it"
    )
}
