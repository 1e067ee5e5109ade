//! The known certificates: those of the configuration, and stored ones with their stored
//! settings. It orders nothing.

use std::path::PathBuf;

use super::Call;
use crate::config::{
    CertificateSettings, Directory, Purpose, Remembered, Settings, Sources, shared_file,
};
use crate::deploy::target::{DeployTarget, NAME};
use crate::failure::Failure;
use crate::lineage::Lineage;
use crate::store::fs::FileStore;
use crate::store::{Store, StoreError};

/// The settings of one call, or all errors of its configuration.
pub(super) fn settings(call: &Call, purpose: &Purpose) -> Result<Settings, Failure> {
    call.sources
        .settings(purpose)
        .map_err(Failure::configuration)
}

/// Opens the store.
pub(super) fn open_store(directory: PathBuf) -> Result<FileStore, Failure> {
    FileStore::open(directory).map_err(|error| Failure::of("store", &error.into()))
}

/// Keeps the mark of an imported certificate: `certs run` manages it until a
/// configuration names it, whatever other commands do with it.
pub(super) fn still_imported(
    settings: &CertificateSettings,
    stored: Option<&str>,
) -> CertificateSettings {
    let mut settings = settings.clone();
    let stored = stored.and_then(|json| serde_json::from_str::<CertificateSettings>(json).ok());
    let stored = stored.and_then(|stored| stored.imported);
    settings.imported = settings.imported.or(stored);
    settings
}

/// Stores the settings of a certificate, for [`recall`].
pub(super) async fn remember(
    store: &dyn Store,
    settings: &CertificateSettings,
) -> Result<(), Failure> {
    let lineage = &settings.lineage;
    let failed = |error: StoreError| Failure::of(lineage.as_str(), &error.into());
    let json = serde_json::to_string_pretty(settings)
        .map_err(|error| Failure::unexpected(error.to_string()))?;
    if store.options(lineage).await.map_err(failed)?.as_ref() == Some(&json) {
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
    let Some(store) = FileStore::existing(configured.data_dir.clone()) else {
        return Ok(Vec::new());
    };
    let lineages = store.list().await;
    let lineages = lineages.map_err(|error| Failure::of("stored certificates", &error.into()))?;
    let named = |lineage: &Lineage| {
        let mut all = configured.certificates.iter();
        all.any(|certificate| certificate.lineage == *lineage)
    };
    let mut recalled = Vec::new();
    for lineage in lineages.into_iter().filter(|lineage| !named(lineage)) {
        let settings = match remembered(&store, &lineage).await {
            Ok(stored) => {
                let settings = sources.remembered(&stored);
                settings.map_err(Failure::configuration)
            }
            Err(error) => Err(Failure::of(lineage.as_str(), &error.into())),
        };
        recalled.push((lineage, settings));
    }
    Ok(recalled)
}

/// Adds the certificates that were imported from another client and are not
/// configured. An unusable one is logged and does not affect the others.
pub(super) async fn keep_imported(
    sources: &Sources,
    configured: &mut Settings,
) -> Result<(), Failure> {
    let stored = as_stored(configured).await;
    let is_imported = |lineage: &Lineage| {
        let mut all = stored.iter();
        all.any(|one| one.lineage == *lineage && one.imported.is_some())
    };
    let recalled = recall(sources, configured).await?.into_iter();
    for (lineage, settings) in recalled.filter(|(lineage, _)| is_imported(lineage)) {
        match settings {
            Ok(mut settings) => {
                // Two certificates must not write the same file.
                let others = &configured.certificates;
                while let Some((path, owner)) = shared_file(&settings, others.iter()) {
                    tracing::error!(%lineage, "{}: not written, because {owner} is written there; hint: put {NAME} into the path", path.display());
                    let writes_it = |spec: &DeployTarget| {
                        spec.for_lineage(&lineage).writes().as_ref() == Some(&path)
                    };
                    settings.deploy.retain(|spec| !writes_it(spec));
                }
                configured.certificates.push(settings);
            }
            Err(failure) => {
                tracing::error!(%lineage, "the imported certificate is not managed: {}", failure.in_a_line())
            }
        }
    }
    Ok(())
}

/// The stored settings of every certificate that `configured` does not name, if they are
/// readable.
pub(super) async fn as_stored(configured: &Settings) -> Vec<CertificateSettings> {
    let Some(store) = FileStore::existing(configured.data_dir.clone()) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for lineage in store.list().await.unwrap_or_default() {
        if let Ok(Remembered::Whole(settings)) = remembered(&store, &lineage).await {
            found.push(*settings);
        }
    }
    let named = |one: &CertificateSettings| {
        let mut all = configured.certificates.iter();
        all.any(|certificate| certificate.lineage == one.lineage)
    };
    found.retain(|one| !named(one));
    found
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
        directory: record.ca.parse::<Directory>().ok(),
        profile: record.profile,
    })
}

/// `settings` with all stored certificates added: those that this process may have to
/// work on.
pub(super) async fn all_known(sources: &Sources, settings: &Settings) -> Result<Settings, Failure> {
    // A command can still renew a certificate that is no longer configured.
    let mut known = settings.clone();
    let stored = recall(sources, settings).await?.into_iter();
    known
        .certificates
        .extend(stored.filter_map(|(_, stored)| stored.ok()));
    // This process's environment and options may differ from those of the command.
    known.certificates.extend(as_stored(settings).await);
    Ok(known)
}
