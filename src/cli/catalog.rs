//! The known certificates: those of the configuration, and stored ones with their stored
//! settings. It orders nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::config::{
    CertificateSettings, DirectoryUrl, OutputSettings, Remembered, Settings, Sources,
    USUAL_DATA_DIR,
};
use crate::deploy::confirmed::{Confirmed, Right};
use crate::failure::Failure;
use crate::lineage::Lineage;
use crate::store::fs::FileStore;
use crate::store::{Store, StoreError};

pub(super) fn open_store(directory: PathBuf) -> Result<FileStore, Failure> {
    check_old_place(&directory)?;
    FileStore::open(directory).map_err(Failure::on("store"))
}

/// The store, for reading; `None` if nothing is stored.
pub(super) fn existing_store(directory: PathBuf) -> Result<Option<FileStore>, Failure> {
    check_old_place(&directory)?;
    FileStore::existing(directory).map_err(Failure::on("store"))
}

/// Earlier packages kept the data directory one level below.
fn check_old_place(directory: &Path) -> Result<(), Failure> {
    let (old, shown) = (directory.join("data"), directory.display());
    let is_old = old.join("records").is_dir() && !directory.join("records").is_dir();
    if !is_old {
        return Ok(());
    }
    let old = old.display();
    Err(Failure::usage(
        format!("{shown} has no certificates, but {old} does: an earlier package kept them there"),
        format!("stop certs run and move them: mv {old}/* {shown}/ && rmdir {old}"),
    ))
}

/// Where else certificates may be, for a command that found none in `data_dir`.
pub(super) fn none_in(data_dir: &Path) -> String {
    let shown = data_dir.display();
    let usual = Path::new(USUAL_DATA_DIR);
    let other = match data_dir != usual && usual.try_exists().unwrap_or(true) {
        true => format!("; root's data directory is {USUAL_DATA_DIR}"),
        false => String::new(),
    };
    format!("no certificate is stored in {shown}{other}")
}

/// Keeps the marks of a certificate that a command or an import made: it is managed until
/// it is deleted, whatever names it meanwhile.
pub(super) fn still_imported(
    settings: &CertificateSettings,
    stored: Option<&str>,
) -> CertificateSettings {
    let mut settings = settings.clone();
    let stored = stored.and_then(|json| serde_json::from_str::<CertificateSettings>(json).ok());
    if let Some(stored) = stored {
        let lasting = stored.asked_by().filter(|origin| origin.lasts());
        settings.origin = lasting.or(settings.origin);
        settings.imported = settings.imported.or(stored.imported);
    }
    settings
}

/// Stores the settings of a certificate, for [`recall`].
pub(super) async fn remember(
    store: &dyn Store,
    settings: &CertificateSettings,
) -> Result<(), Failure> {
    let lineage = &settings.lineage;
    let failed = Failure::on::<StoreError>(lineage.as_str());
    let stored = store.options(lineage).await.map_err(&failed)?;
    let settings = &still_imported(settings, stored.as_deref());
    let json = serde_json::to_string_pretty(settings)?;
    if stored.as_ref() == Some(&json) {
        return Ok(());
    }
    store.save_options(lineage, &json).await.map_err(failed)
}

/// A stored certificate that is no longer configured: its settings, or why they are
/// unusable.
pub(super) type Recalled = (Lineage, Result<CertificateSettings, Failure>);

/// Every stored certificate that `configured` does not name, with its stored
/// settings. A damaged one does not affect the others.
pub(super) async fn recall(
    sources: &Sources,
    configured: &Settings,
) -> Result<Vec<Recalled>, Failure> {
    let stored = unconfigured(configured).await;
    let stored = stored.map_err(Failure::on("store"))?;
    let confirmed = confirmed(configured)?;
    let recalled = stored.into_iter().map(|(lineage, stored)| {
        let stored = stored.map_err(Failure::on(lineage.as_str()));
        let settings = stored.and_then(|stored| {
            let mut settings = sources.remembered(&stored)?;
            deny_unconfirmed(sources, configured, &confirmed, &mut settings);
            Ok(settings)
        });
        (lineage, settings)
    });
    Ok(recalled.collect())
}

/// The rights that the administrator has confirmed for stored certificates.
fn confirmed(settings: &Settings) -> Result<Confirmed, Failure> {
    let file = Confirmed::file_for(&settings.data_dir);
    Confirmed::read(&file).map_err(|error| Failure::store(format!("{}: {error}", file.display())))
}

/// The right that `certs delete` lacks to remove the files of a certificate that was made
/// with these settings.
pub(super) fn denied_output(
    sources: &Sources,
    configured: &Settings,
    made_with: &CertificateSettings,
) -> Result<Option<Right>, Failure> {
    let mut settings = made_with.clone();
    deny_unconfirmed(sources, configured, &confirmed(configured)?, &mut settings);
    let mut output = settings.output.iter().flat_map(OutputSettings::rights);
    Ok(output.find(|right| settings.unconfirmed.contains(right)))
}

/// Denies the rights that only the store names.
fn deny_unconfirmed(
    sources: &Sources,
    configured: &Settings,
    confirmed: &Confirmed,
    settings: &mut CertificateSettings,
) {
    // The same without what is stored: the rights that the configuration grants.
    let bare = Remembered::Record {
        lineage: settings.lineage.clone(),
        names: settings.names.clone(),
        directory: Some(settings.ca.directory.clone()),
        profile: None,
    };
    let own = sources.remembered(&bare);
    let own = own.map_or_else(|_| BTreeSet::new(), |own| own.rights());
    let usual: BTreeSet<Right> = configured.output.rights().collect();
    settings.unconfirmed = settings.rights();
    settings
        .unconfirmed
        .retain(|right| !confirmed.has(right) && !own.contains(right) && !usual.contains(right));
}

/// Confirms the rights of certificates that a command stores, for later runs. They are the
/// caller's own words.
pub(super) fn confirm(data_dir: &Path, rights: BTreeSet<Right>) {
    if rights.is_empty() {
        return;
    }
    let file = Confirmed::file_for(data_dir);
    if let Err(error) = Confirmed::add(&file, rights) {
        tracing::warn!(
            "{} cannot be written: {error}; hint: later runs deny what only the store names: put it into the configuration, or repeat this command as root",
            file.display()
        );
    }
}

/// The stored settings of every certificate that `configured` does not name, if they are
/// readable.
pub(super) async fn as_stored(
    sources: &Sources,
    configured: &Settings,
) -> Vec<CertificateSettings> {
    let stored = unconfigured(configured).await.unwrap_or_default();
    let confirmed = confirmed(configured).unwrap_or_default();
    let stored = stored.into_iter().filter_map(|(_, stored)| match stored {
        Ok(Remembered::Whole(mut settings)) => {
            deny_unconfirmed(sources, configured, &confirmed, &mut settings);
            Some(*settings)
        }
        _ => None,
    });
    stored.collect()
}

/// What is stored of every certificate that `configured` does not name.
async fn unconfigured(
    configured: &Settings,
) -> Result<Vec<(Lineage, Result<Remembered, StoreError>)>, StoreError> {
    let Some(store) = FileStore::existing(configured.data_dir.clone())? else {
        return Ok(Vec::new());
    };
    let certificates = configured.certificates.iter();
    let named: BTreeSet<&Lineage> = certificates.map(|one| &one.lineage).collect();
    let mut found = Vec::new();
    for lineage in store.list().await? {
        if !named.contains(&lineage) {
            let stored = remembered(&store, &lineage).await;
            found.push((lineage, stored));
        }
    }
    Ok(found)
}

async fn remembered(store: &FileStore, lineage: &Lineage) -> Result<Remembered, StoreError> {
    let corrupt = |what: &str, detail: String| StoreError::Corrupt {
        subject: format!("the stored {what} of {lineage}"),
        detail,
    };
    if let Some(json) = store.options(lineage).await? {
        let settings = serde_json::from_str(&json);
        let settings = settings.map_err(|error| corrupt("options", error.to_string()))?;
        return Ok(Remembered::Whole(Box::new(settings)));
    }
    let record = store.load(lineage).await?;
    let (record, _) = record.ok_or_else(|| corrupt("record", "no such file".to_owned()))?;
    Ok(Remembered::Record {
        lineage: lineage.clone(),
        names: record.identifiers.into_iter().collect(),
        directory: record.ca.parse::<DirectoryUrl>().ok(),
        profile: record.profile,
    })
}

/// `settings` with all stored certificates added: those that this process may have to
/// work on.
pub(super) async fn all_known(sources: &Sources, settings: &Settings) -> Result<Settings, Failure> {
    // A command can still renew a certificate that is no longer configured.
    let mut known = settings.clone();
    let stored = recall(sources, settings).await?.into_iter();
    let stored = stored.filter_map(|(_, stored)| stored.ok());
    // This process's environment and options may differ from those of the command.
    let raw = as_stored(sources, settings).await;
    let all = stored.chain(raw).map(CertificateSettings::stripped);
    known.certificates.extend(all);
    Ok(known)
}
