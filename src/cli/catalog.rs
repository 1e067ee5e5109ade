//! The known certificates: those of the configuration, and stored ones with their stored
//! settings. It orders nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::Path;

use super::inventory::Inventory;
pub(super) use super::inventory::{existing_store, open_store};
use crate::config::{
    CertificateSettings, Configured, OutputSettings, Recollection, Remembered, Settings, Sources,
    USUAL_DATA_DIR,
};
use crate::deploy::confirmed::{Confirmed, Right};
use crate::failure::{Failure, hint_for};
use crate::files::trust;
use crate::lineage::Lineage;
use crate::store::{Store, StoreError};

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
    let stored =
        stored.and_then(|json| CertificateSettings::stored_as(&settings.lineage, json).ok());
    if let Some(stored) = stored {
        let lasting = stored.asked_by().filter(|origin| origin.lasts());
        settings.origin = lasting.or(settings.origin);
        if settings.imported.is_none() {
            settings.imported.clone_from(&stored.imported);
        }
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
pub(super) fn recall(sources: &Sources, configured: &Settings) -> Result<Vec<Recalled>, Failure> {
    let stored = Inventory::read(&configured.data_dir)?.unconfigured(configured);
    let mut recollection = Recollection::new(sources);
    let mut denial = Denial::new(sources, configured)?;
    let recalled = stored.into_iter().map(|one| {
        let lineage = one.lineage;
        let stored = one.settings.map_err(Failure::on(lineage.as_str()));
        let settings = stored.and_then(|stored| {
            let mut settings = recollection.of(&stored)?;
            denial.deny(&mut settings);
            Ok(settings)
        });
        (lineage, settings)
    });
    Ok(recalled.collect())
}

/// The sources of a command with what is stored of the certificate `lineage` that it names:
/// it keeps what the command does not set.
pub(super) async fn with_stored(
    sources: &Sources,
    data_dir: &Path,
    lineage: &Lineage,
) -> Result<Sources, Failure> {
    let Some(store) = existing_store(data_dir.to_owned())? else {
        return Ok(sources.clone());
    };
    let stored = store.options(lineage).await;
    let stored = stored.map_err(Failure::on(lineage.as_str()))?;
    // Damaged settings are replaced by those of the command.
    let stored = stored.and_then(|json| CertificateSettings::stored_as(lineage, &json).ok());
    Ok(stored.map_or_else(
        || sources.clone(),
        |stored| {
            let stored = Remembered::Whole(Box::new(stored));
            sources.clone().with_stored(&stored)
        },
    ))
}

/// Denies what only the store names to the certificates of a command.
pub(super) fn deny_stored(sources: &Sources, settings: &mut Settings) -> Result<(), Failure> {
    let mut denial = Denial::new(sources, settings)?;
    for certificate in &mut settings.certificates {
        denial.deny(certificate);
    }
    Ok(())
}

/// The rights that the administrator has confirmed for stored certificates.
pub(super) fn confirmed(settings: &Settings) -> Result<Confirmed, Failure> {
    read_confirmed(&Confirmed::file_for(&settings.data_dir))
}

fn read_confirmed(file: &Path) -> Result<Confirmed, Failure> {
    Confirmed::read(file).map_err(|error| {
        let (shown, text) = (file.display(), error.to_string());
        let (why, hint) = match (error.kind(), text.split_once("; hint: ")) {
            (ErrorKind::InvalidData, _) => (text.as_str(), format!(
                "move {shown} away; then repeat certs issue as root with the options of each certificate that certs status shows as denied"
            )),
            (_, Some((why, hint))) => (why, hint.to_owned()),
            (_, None) => (text.as_str(), hint_for(file, &error)),
        };
        let message = format!("the confirmed rights in {shown} cannot be used: {why}");
        Failure::output(message, &hint)
    })
}

/// Rights that a certificate lacks, as a user reads them.
pub(super) fn lacking(rights: &BTreeSet<Right>) -> Vec<String> {
    rights.iter().map(ToString::to_string).collect()
}

/// Whether a certificate that was made with these settings has all rights that they need.
pub(super) fn is_permitted(
    sources: &Sources,
    process: &Settings,
    made_with: &CertificateSettings,
) -> Result<bool, Failure> {
    let mut usual = Denial::without_confirmed(sources, process);
    Ok(usual.lacks(made_with).is_empty()
        || Denial::new(sources, process)?.lacks(made_with).is_empty())
}

/// The right that `certs delete` lacks to remove the files of a certificate that was made
/// with these settings.
pub(super) fn denied_output(
    sources: &Sources,
    configured: &Settings,
    made_with: &CertificateSettings,
) -> Result<Option<Right>, Failure> {
    let mut settings = made_with.clone();
    Denial::new(sources, configured)?.deny(&mut settings);
    let mut output = settings.output.iter().flat_map(OutputSettings::rights);
    Ok(output.find(|right| settings.unconfirmed.contains(right)))
}

/// Denies the rights that only the store names.
pub(super) struct Denial<'s> {
    sources: &'s Sources,
    configured: Configured,
    /// Those of the usual output.
    usual: BTreeSet<Right>,
    confirmed: Confirmed,
    /// What the sources alone make of a certificate from each CA that no table is for.
    own: BTreeMap<String, CertificateSettings>,
}

impl<'s> Denial<'s> {
    /// But for what is confirmed beside the data directory.
    pub(super) fn new(sources: &'s Sources, process: &Settings) -> Result<Self, Failure> {
        Ok(Self {
            confirmed: confirmed(process)?,
            ..Self::without_confirmed(sources, process)
        })
    }

    /// Also what is confirmed.
    pub(super) fn without_confirmed(sources: &'s Sources, process: &Settings) -> Self {
        Self {
            sources,
            configured: sources.index(),
            usual: process.output.rights().collect(),
            confirmed: Confirmed::default(),
            own: BTreeMap::new(),
        }
    }

    pub(super) fn deny(&mut self, settings: &mut CertificateSettings) {
        let mut denied = settings.rights();
        denied.retain(|right| !self.confirmed.has(right) && !self.usual.contains(right));
        if !denied.is_empty() {
            let own = self.own_rights(settings);
            denied.retain(|right| !own.contains(right));
        }
        // A change would be memory for this one alone.
        if settings.unconfirmed != denied {
            settings.unconfirmed = denied;
        }
    }

    /// The rights that these stored settings lack.
    pub(super) fn lacks(&mut self, settings: &CertificateSettings) -> BTreeSet<Right> {
        let mut settings = settings.clone();
        self.deny(&mut settings);
        settings.unconfirmed.clone()
    }

    /// The rights that the sources alone grant to the certificate, whatever is stored.
    fn own_rights(&mut self, of: &CertificateSettings) -> BTreeSet<Right> {
        if self.configured.has(&of.lineage) {
            return self.sources.own_settings(of).rights();
        }
        let ca = of.ca.directory.identity().to_owned();
        let own = self.own.entry(ca);
        let own = own.or_insert_with(|| self.sources.own_settings(of));
        CertificateSettings {
            lineage: of.lineage.clone(),
            ..own.clone()
        }
        .rights()
    }
}

/// Those of `rights` that may be confirmed. A program that another user can change does not
/// run, and must not once its directory is mended.
pub(super) fn trusted(mut rights: BTreeSet<Right>) -> BTreeSet<Right> {
    rights.retain(|right| {
        let refused = right
            .program()
            .and_then(|program| trust::resolve(program).err());
        let refused = refused.filter(|error| !error.is_absent());
        if let Some(error) = &refused {
            tracing::warn!(
                "not confirmed: the right to {right}: {error}; hint: {}, then repeat this command",
                error.hint()
            );
        }
        refused.is_none()
    });
    rights
}

/// Confirms the rights of certificates that a command stores, for later runs. They are the
/// caller's own words.
///
/// # Errors
/// When the confirmed ones cannot be read: then no later run would have these.
pub(super) fn confirm(data_dir: &Path, rights: BTreeSet<Right>) -> Result<(), Failure> {
    let rights = trusted(rights);
    if rights.is_empty() {
        return Ok(());
    }
    let file = Confirmed::file_for(data_dir);
    read_confirmed(&file)?;
    if let Err(error) = Confirmed::add(&file, rights) {
        tracing::warn!(
            "{} cannot be written: {error}; hint: later runs deny what only the store names: put it into the configuration, or repeat this command as root",
            file.display()
        );
    }
    Ok(())
}

/// The stored settings of every certificate that `configured` does not name, if they are
/// readable.
pub(super) fn as_stored(sources: &Sources, configured: &Settings) -> Vec<CertificateSettings> {
    let stored = Inventory::read(&configured.data_dir).unwrap_or_default();
    let mut denial = Denial::without_confirmed(sources, configured);
    denial.confirmed = confirmed(configured).unwrap_or_default();
    let stored = stored.unconfigured(configured).into_iter();
    let stored = stored.filter_map(|one| match one.settings {
        Ok(Remembered::Whole(mut settings)) => {
            denial.deny(&mut settings);
            Some(*settings)
        }
        _ => None,
    });
    stored.collect()
}

/// `settings` with all stored certificates added: those that this process may have to
/// work on.
pub(super) fn all_known(sources: &Sources, settings: &Settings) -> Result<Settings, Failure> {
    // A command can still renew a certificate that is no longer configured.
    let mut known = settings.clone();
    let stored = recall(sources, settings)?.into_iter();
    let stored = stored.filter_map(|(_, stored)| stored.ok());
    // This process's environment and options may differ from those of the command.
    let raw = as_stored(sources, settings);
    let all = stored.chain(raw).map(CertificateSettings::stripped);
    known.certificates.extend(all);
    Ok(known)
}
