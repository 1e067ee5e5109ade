//! Which certificates there are: those that are configured, and those whose settings are
//! stored with them. It orders nothing.

use std::path::PathBuf;

use super::Call;
use crate::config::{
    CertificateSettings, Directory, Purpose, Remembered, Settings, Sources, shared_file,
};
use crate::deploy::target::{DeployTarget, NAME};
use crate::failure::Failure;
use crate::identifier::Lineage;
use crate::store::fs::FileStore;
use crate::store::{Store, StoreError};

/// The settings of one call, or every error of its configuration.
pub(super) fn settings(call: &Call, purpose: &Purpose) -> Result<Settings, Failure> {
    call.sources
        .settings(purpose)
        .map_err(Failure::configuration)
}

/// Opens the store.
pub(super) fn open_store(directory: PathBuf) -> Result<FileStore, Failure> {
    FileStore::open(directory).map_err(|error| Failure::of("store", &error.into()))
}

/// A command that works on a certificate that was taken over once does not take it
/// from `certs run`; a configuration that names it does.
pub(super) fn still_imported(
    settings: &CertificateSettings,
    kept: Option<&str>,
) -> CertificateSettings {
    let mut settings = settings.clone();
    let kept = kept.and_then(|json| serde_json::from_str::<CertificateSettings>(json).ok());
    let kept = kept.and_then(|kept| kept.imported);
    settings.imported = settings.imported.or(kept);
    settings
}

/// Keeps the settings that made a certificate, for [`recall`].
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

/// What is stored of a certificate that is configured no more: its settings,
/// or why they are not to be had.
pub(super) type Recalled = (Lineage, Result<CertificateSettings, Failure>);

/// Every stored certificate that `configured` does not name, with the settings
/// that made it. One that is damaged holds up no other.
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

/// Adds the certificates that were taken over from another client and are not
/// configured: they were taken over to be kept. One that cannot be kept is
/// told and holds up no other.
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
                // Another's file is the other's.
                let others = &configured.certificates;
                while let Some((path, whose)) = shared_file(&settings, others.iter()) {
                    tracing::error!(%lineage, "{}: {whose} is written there, and this one is not; hint: put {NAME} into the path", path.display());
                    let leads_there = |spec: &DeployTarget| {
                        spec.for_lineage(&lineage).writes().as_ref() == Some(&path)
                    };
                    settings.deploy.retain(|spec| !leads_there(spec));
                }
                configured.certificates.push(settings);
            }
            Err(failure) => tracing::error!(%lineage, "it is not kept: {}", failure.in_a_line()),
        }
    }
    Ok(())
}

/// The settings of every stored certificate that `configured` does not name, as they
/// are stored, where that can be read.
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
    let (record, _) = record.ok_or_else(|| corrupt("record", "it is gone".to_owned()))?;
    Ok(Remembered::Record {
        lineage: lineage.clone(),
        names: record.identifiers.into_iter().collect(),
        directory: record.ca.parse::<Directory>().ok(),
        profile: record.profile,
    })
}

/// `settings` with every stored certificate beside those that are configured: what this
/// process may be asked to work on.
pub(super) async fn all_known(sources: &Sources, settings: &Settings) -> Result<Settings, Failure> {
    // What is configured no more can still be renewed by a command.
    let mut known = settings.clone();
    let stored = recall(sources, settings).await?.into_iter();
    known
        .certificates
        .extend(stored.filter_map(|(_, stored)| stored.ok()));
    // What this process is told may say otherwise of them than the command that
    // renews them.
    known.certificates.extend(as_stored(settings).await);
    Ok(known)
}
