//! This machine in its fleet: the store is opened and compared before a command reads what is
//! stored.

use std::path::Path;
use std::sync::Arc;

use super::Call;
use super::args::Verb;
use super::catalog::open_store;
use crate::config::Settings;
use crate::control;
use crate::failure::Failure;
use crate::store::node::{NodeStore, Role};
use crate::store::place::FleetSettings;
use crate::store::shared::fleet::FleetNode;
use crate::store::{Store, StoreError};

impl Call {
    /// Opens the store of the fleet, and brings this machine's copy up to date, if `verb`
    /// works on certificates and no `certs run` does it.
    pub(super) async fn join_fleet(&mut self, verb: &Verb) -> Result<(), Failure> {
        let (data_dir, fleet) = self.sources.fleet();
        let is_run = matches!(verb, Verb::Run(_));
        if fleet.store.is_none() || !works(verb) {
            return Ok(());
        }
        if !is_run && fleet.role == Role::Serve && !matches!(verb, Verb::Reload { .. }) {
            return Err(Failure::usage(
                "this machine only serves the certificates of its fleet (role = \"serve\")",
                "run this command on a machine of role full",
            ));
        }
        if !is_run && control::is_running(&data_dir).await? {
            return Ok(());
        }
        let node = open(&fleet, &data_dir)?;
        match node.sync_all().await {
            Ok(_) => {}
            Err(error) if is_run && is_unreachable(&error) => {
                tracing::error!("{}", cannot_reach(&fleet, &error));
            }
            Err(error) => return Err(of_fleet(&fleet, error)),
        }
        self.fleet = Some(Arc::new(node));
        Ok(())
    }

    /// The store of this process.
    pub(super) fn store(&self, settings: &Settings) -> Result<Arc<dyn Store>, Failure> {
        match &self.fleet {
            Some(fleet) => Ok(fleet.clone()),
            None => Ok(Arc::new(open_store(settings.data_dir.clone())?)),
        }
    }
}

/// Whether `verb` changes certificates.
fn works(verb: &Verb) -> bool {
    matches!(
        verb,
        Verb::Issue(_)
            | Verb::Csr(_)
            | Verb::Run(_)
            | Verb::Renew(_)
            | Verb::Reload { .. }
            | Verb::Rollback { .. }
            | Verb::Delete(_)
            | Verb::Rename(_)
            | Verb::Revoke(_)
            | Verb::Account(_)
            | Verb::Import(_)
            | Verb::Install(_)
    )
}

fn open(fleet: &FleetSettings, data_dir: &Path) -> Result<NodeStore, Failure> {
    let opened = fleet.open(data_dir.to_owned());
    let opened = opened.map_err(|error| of_fleet(fleet, error))?;
    opened.ok_or_else(|| Failure::unexpected("no store of a fleet is set"))
}

/// The machines of the fleet as its store knows them; `None` for a machine on its own.
pub(super) async fn nodes(
    fleet: &FleetSettings,
    data_dir: &Path,
) -> Option<Result<Vec<FleetNode>, StoreError>> {
    fleet.store.as_ref()?;
    match fleet.open(data_dir.to_owned()) {
        Ok(node) => Some(node?.shared().nodes().await),
        Err(error) => Some(Err(error)),
    }
}

fn is_unreachable(error: &StoreError) -> bool {
    let refused = |source: &std::io::Error| source.kind() == std::io::ErrorKind::PermissionDenied;
    matches!(error, StoreError::Io { source, .. } if !refused(source))
}

pub(super) fn cannot_reach(fleet: &FleetSettings, error: &StoreError) -> String {
    let place = fleet.store.as_ref().map(ToString::to_string);
    format!(
        "the store of the fleet at {} cannot be used: {error}; this machine serves what it has, and orders nothing meanwhile",
        place.unwrap_or_default()
    )
}

/// The failure of a command whose fleet's store cannot be used.
fn of_fleet(fleet: &FleetSettings, error: StoreError) -> Failure {
    let place = fleet.store.as_ref().map(ToString::to_string);
    let hint = match &error {
        StoreError::Corrupt { detail, .. } if detail.contains("another key") => {
            "seal_key_file must hold the key of this fleet's other machines; two fleets must not share a prefix"
        }
        StoreError::Corrupt { detail, .. } if detail.contains("newer version") => {
            "update certs on this machine"
        }
        StoreError::Corrupt { detail, .. } if detail.contains("seal_key_file") => {
            "make a key once (openssl rand -base64 32), give it to each machine with mode 0600, and name its file in seal_key_file"
        }
        StoreError::Corrupt { detail, .. } if detail.contains("can read it") => {
            "chmod 600 the file: it opens every key of the fleet"
        }
        StoreError::Corrupt { subject, .. } if !subject.contains("shared store") => {
            "openssl rand -base64 32 makes a key; each line holds one, the current one first"
        }
        StoreError::Corrupt { .. } => "restore the store from a backup, or remove this document",
        _ => "check that this machine reaches the store and may write there",
    };
    let place = place.unwrap_or_default();
    Failure::output(format!("the fleet's store at {place}: {error}"), hint)
}
