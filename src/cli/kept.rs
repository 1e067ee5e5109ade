//! The origin of a certificate decides how long it is kept. One that a command or an import
//! made is kept until it is deleted. One that the configuration or a label made is kept while
//! that names it, and is orphaned afterwards: shown, looked at, and no longer renewed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::catalog::{Denial, existing_store, remember};
use super::inventory::{Inventory, StoredCertificate};
use super::labels::Labels;
use super::meant;
use crate::config::{
    CertificateSettings, Configured, Origin, Recollection, Remembered, Settings, Sources, written,
};
use crate::control;
use crate::deploy::target::{DeployTarget, NAME};
use crate::failure::Failure;
use crate::identifier::Identifier;
use crate::lineage::{ByName, Lineage, reissue};
use crate::observe::RequestedBy;
use crate::store::{Store, StoreError};

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
    configured: &Configured,
    settings: &CertificateSettings,
    requested_by: Option<&RequestedBy>,
) -> Option<&'static str> {
    let is_requested = requested_by.is_some_and(|requested| !requested.stopped);
    if settings.orphaned.as_deref() == Some(KEY_DROPPED) && !configured.names(settings) {
        return Some(KEY_DROPPED);
    }
    match (settings.asked_by(), requested_by) {
        _ if configured.names(settings) || is_requested => None,
        (Some(origin), _) if origin.lasts() => None,
        // Another machine may have it in its configuration, or in a container there.
        (Some(origin), _) if configured.is_in_fleet && origin != Origin::Install => None,
        (Some(Origin::Install), _) => Some(UNFINISHED),
        (Some(Origin::Configuration), _) if configured.names_first_of(settings) => {
            Some(KEY_NOT_CONFIGURED)
        }
        (Some(Origin::Configuration), _) => Some("the configuration no longer names it"),
        (Some(_), _) | (None, Some(_)) => Some("no container requests it any more"),
        (None, None) => None,
    }
}

/// The certificates for the second keys of those whose settings have one key now, with these.
pub(super) async fn dropped_keys(settings: &Settings) -> Result<Vec<(Lineage, Lineage)>, Failure> {
    let stored = meant::stored(&settings.data_dir)?;
    let index = ByName::new(&stored);
    let single = settings.certificates.iter();
    let by_command = |one: &&CertificateSettings| one.origin == Some(Origin::Command);
    let single = single.filter(by_command);
    let single = single.filter(|one| !one.is_second && one.key.second().is_none());
    let dropped = single.filter_map(|one| {
        let second = index.second_of(index.named(&one.lineage)?)?;
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
        tracing::warn!(lineage = %second, "{}", notice(&second, &own.names, KEY_DROPPED));
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
    /// The settings of all of them, without what is denied: a command may still renew one.
    pub(super) known: Vec<CertificateSettings>,
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
    stored: Inventory,
) -> Result<NotKept, Failure> {
    let requests = labels.requests();
    let granted = labels.certificates(sources, configured);
    let granted: BTreeSet<Lineage> = granted.into_iter().map(|one| one.lineage).collect();
    let index = sources.index();
    let mut recall = Recall {
        is_in_fleet: index.is_in_fleet,
        recollection: Recollection::new(sources),
        denial: Denial::new(sources, configured)?,
    };
    let mut files = Files::of(&configured.certificates);
    let (mut not_kept, mut marked) = (NotKept::default(), Vec::new());
    for one in stored.unconfigured(configured) {
        let lineage = one.lineage.clone();
        let whole = recall.whole(&one);
        let settings = recall.settings(one.settings, &lineage, whole.as_ref());
        let record = one.record.map_err(Failure::on(lineage.as_str()));
        let (settings, record) = match settings.and_then(|settings| Ok((settings, record?))) {
            Ok(both) => both,
            Err(failure) => {
                not_kept.refuse(lineage, &failure);
                not_kept.known.extend(whole);
                continue;
            }
        };
        match orphaned(&index, &settings, requests.get(&lineage)) {
            _ if granted.contains(&lineage) => continue,
            // It may go on at this moment.
            Some(UNFINISHED) => {
                tracing::info!(%lineage, "not managed: {UNFINISHED}; hint: {}", finish(&lineage));
            }
            Some(why) if record.is_issued => {
                let mut settings = settings.clone();
                let before = settings.orphaned.clone();
                settings.orphaned = Some(why.to_owned());
                if before.as_deref() != Some(why) {
                    marked.push(settings.clone());
                }
                not_kept.orphans.push(Orphan { settings, why });
            }
            None if record.is_issued || record.is_ordered => {
                configured.certificates.push(files.add(settings));
                continue;
            }
            _ => {
                let retry = reissue(&lineage, &settings.names);
                tracing::warn!(%lineage, "not managed, because no certificate exists yet; hint: {retry} retries, certs delete {lineage} forgets it");
            }
        }
        not_kept.known.extend(whole);
        not_kept.known.push(settings);
    }
    let known = std::mem::take(&mut not_kept.known).into_iter();
    not_kept.known = known.map(CertificateSettings::stripped).collect();
    mark(configured, &marked).await;
    Ok(not_kept)
}

/// Makes the settings of stored certificates.
struct Recall<'s> {
    is_in_fleet: bool,
    recollection: Recollection<'s>,
    denial: Denial<'s>,
}

impl Recall<'_> {
    /// The settings as they are stored, without what is denied.
    fn whole(&mut self, stored: &StoredCertificate) -> Option<CertificateSettings> {
        let mut whole = stored.whole()?.clone();
        self.denial.deny(&mut whole);
        Some(whole)
    }

    fn settings(
        &mut self,
        stored: Result<Remembered, StoreError>,
        lineage: &Lineage,
        whole: Option<&CertificateSettings>,
    ) -> Result<CertificateSettings, Failure> {
        let stored = stored.map_err(Failure::on(lineage.as_str()))?;
        let mut settings = self.recollection.of(&stored)?;
        self.denial.deny(&mut settings);
        // The options of this process are for others; an import leaves room for them, and a
        // certificate of another machine.
        let takes_options = settings.imported.is_some() || self.is_in_fleet;
        let Some(whole) = whole.filter(|_| !takes_options) else {
            return Ok(settings);
        };
        let mut whole = whole.clone();
        if settings.cannot_order.is_some() {
            whole.cannot_order.clone_from(&settings.cannot_order);
        }
        Ok(whole)
    }
}

/// The files that certificates are written to, and whose each is: two certificates must not
/// write the same one.
struct Files(BTreeMap<PathBuf, Lineage>);

impl Files {
    fn of(certificates: &[CertificateSettings]) -> Self {
        let all = certificates.iter();
        let all = all.flat_map(|one| written(one).map(|path| (path, one.lineage.clone())));
        Self(all.collect())
    }

    /// The settings without those that another certificate writes.
    fn add(&mut self, mut settings: CertificateSettings) -> CertificateSettings {
        let lineage = settings.lineage.clone();
        let paths: Vec<PathBuf> = written(&settings).collect();
        for path in paths {
            let owner = self.0.entry(path.clone());
            let owner = owner.or_insert_with(|| lineage.clone());
            if *owner == lineage {
                continue;
            }
            tracing::error!(%lineage, "{}: not written, because {owner} is written there; hint: put {NAME} into the path", path.display());
            let writes_it =
                |spec: &DeployTarget| spec.for_lineage(&lineage).writes().as_ref() == Some(&path);
            settings.deploy.retain(|spec| !writes_it(spec));
        }
        settings
    }
}

/// Stores that `certs run` does not keep these certificates: commands may not see the
/// configuration of the sidecar.
async fn mark(configured: &Settings, orphans: &[CertificateSettings]) {
    let marked = async {
        if orphans.is_empty() {
            return Ok(());
        }
        if let Some(store) = existing_store(configured.data_dir.clone())? {
            for settings in orphans {
                remember(&store, settings).await?;
            }
        }
        Ok::<_, Failure>(())
    };
    if let Err(failure) = marked.await {
        tracing::warn!("{}", failure.in_a_line());
    }
}

/// Why nothing keeps the certificate, as a command sees it. The sidecar knows its own
/// configuration; a command without any relies on what the sidecar found last.
pub(super) fn orphaned_for_command(
    configured: &Configured,
    settings: &CertificateSettings,
    requested_by: Option<&RequestedBy>,
    sidecar_runs: bool,
) -> Option<String> {
    let is_unfinished = settings.asked_by() == Some(Origin::Install);
    if !is_unfinished && (sidecar_runs || configured.is_empty()) {
        return settings.orphaned.clone();
    }
    orphaned(configured, settings, requested_by).map(str::to_owned)
}

/// Takes the orphaned certificates out of `settings`, and says so.
pub(super) async fn skip_orphans(
    sources: &Sources,
    settings: &mut Settings,
) -> Result<(), Failure> {
    let requests = Labels::open(&settings.data_dir)?.requests();
    let sidecar_runs = control::is_running(&settings.data_dir).await?;
    let index = sources.index();
    settings.certificates.retain(|one| {
        let lineage = &one.lineage;
        let why = orphaned_for_command(&index, one, requests.get(lineage), sidecar_runs);
        if let Some(why) = &why {
            tracing::warn!(%lineage, "{}", notice(lineage, &one.names, why));
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
pub(super) fn notice<'n>(
    lineage: &Lineage,
    names: impl IntoIterator<Item = &'n Identifier>,
    why: &str,
) -> String {
    if why == UNFINISHED {
        return format!("not renewed: {why}; hint: {}", finish(lineage));
    }
    let again = reissue(lineage, names);
    let keep = match why {
        KEY_DROPPED => "certs issue with its names and both types in --key keeps it".to_owned(),
        KEY_NOT_CONFIGURED => "both types in `key` of the configuration keep it".to_owned(),
        _ => format!("{again} keeps it"),
    };
    format!(
        "orphaned, and renewed no more: {why}; hint: certs renew {lineage} renews it once, {keep}, certs delete {lineage} removes it"
    )
}
