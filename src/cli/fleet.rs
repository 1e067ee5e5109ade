//! This machine in its fleet: the store is opened and compared before a command reads what is
//! stored.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::Call;
use super::args::Verb;
use super::catalog::open_store;
use super::factory::{emptied, outputs_for};
use super::output::say;
use crate::ca_state::CaState;
use crate::config::{CertificateSettings, Purpose, Settings};
use crate::control;
use crate::failure::{Advised, Failure};
use crate::lineage::Lineage;
use crate::manage::delete::delete;
use crate::store::fs::FileStore;
use crate::store::node::{Change, NodeStore, Role, known_ca_states};
use crate::store::place::FleetSettings;
use crate::store::shared::fleet::FleetNode;
use crate::store::{Store, StoreError};
use crate::time::Timestamp;

/// `certs status` shows its table without the fleet rather than wait longer.
const STATUS_WITHIN: Duration = Duration::from_secs(5);

impl Call {
    /// Opens the store of the fleet, and brings this machine's copy up to date, if `verb`
    /// works on certificates and no `certs run` does it. Returns what `verb` has failed at,
    /// whatever else it does: a document of the store that is refused.
    pub(super) async fn join_fleet(&mut self, verb: &Verb) -> Result<Option<Failure>, Failure> {
        let (data_dir, fleet) = self.sources.fleet();
        let is_run = matches!(verb, Verb::Run(_));
        if fleet.store.is_none() || !works(verb) {
            return Ok(None);
        }
        let may_follow = matches!(verb, Verb::Run(_) | Verb::Renew(_) | Verb::Reload { .. });
        if fleet.role == Role::Serve && !may_follow {
            return Err(Failure::usage(
                "this machine only serves the certificates of its fleet (role = \"serve\")",
                "run this command on a machine of role full",
            ));
        }
        // The accounts of the fleet are not those of `certs run` alone.
        let is_shared = matches!(verb, Verb::Account(_));
        if !is_run && !is_shared && control::is_running(&data_dir).await? {
            return Ok(None);
        }
        let problems = self.sources.fleet_problems();
        if !problems.is_empty() {
            return Err(problems.into());
        }
        let node = open(&fleet, &data_dir).await?;
        let mut refused = Vec::new();
        let joined = match is_run {
            true => node.join(self.configured()).await,
            false => {
                node.serve_command();
                node.sync_all().await.map(|synced| {
                    refused = synced.refused;
                    synced.changed
                })
            }
        };
        match joined {
            Ok(changed) => self.drop_deleted(&node, changed).await?,
            Err(error) if may_follow && is_unreachable(&error) => {
                tracing::error!("{}", cannot_reach(&error));
            }
            Err(error) => return Err(of_fleet(error)),
        }
        self.fleet = Some(Arc::new(node));
        let mut refused = refused.into_iter();
        let refused = refused.find(|(lineage, _)| is_about_all_or(verb, lineage));
        Ok(refused.map(|(_, error)| of_fleet(error)))
    }

    /// The certificates of this machine's configuration.
    fn configured(&self) -> BTreeSet<Lineage> {
        let configured = self.sources.settings(&Purpose::All);
        let all = configured.into_iter().flat_map(|it| it.certificates);
        all.map(|one| one.lineage.clone()).collect()
    }

    /// Deletes what was deleted on other machines.
    async fn drop_deleted(
        &self,
        node: &NodeStore,
        changed: Vec<(Lineage, Change)>,
    ) -> Result<(), Failure> {
        for (lineage, _) in changed.iter().filter(|(_, it)| *it == Change::Deleted) {
            let settings = self.sources.process_settings()?;
            let renamed = node.renamed_to(lineage);
            let options = node.options(lineage).await.ok().flatten();
            let made_with =
                options.and_then(|json| CertificateSettings::stored_as(lineage, &json).ok());
            let output = emptied(made_with.as_ref(), &settings);
            let others = outputs_for(&settings)?;
            let deleted = delete(node, lineage, Some(&output), &others).await;
            deleted.map_err(Failure::on(lineage.as_str()))?;
            say_gone(lineage, renamed.as_ref());
        }
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

/// Whether `verb` is for many certificates, `lineage` among them.
fn is_about_all_or(verb: &Verb, lineage: &Lineage) -> bool {
    let names = match verb {
        Verb::Renew(renew) => &renew.names,
        Verb::Reload { names } => names,
        _ => return false,
    };
    names.is_empty() || names.iter().any(|name| name == lineage.as_str())
}

/// Prints the sealing key for a machine of role serve.
pub(super) async fn print_serve_key(call: &Call) -> Result<(), Failure> {
    let (_, fleet) = call.sources.fleet();
    let key = fleet.serve_key().await;
    let key = key.map_err(of_fleet)?;
    key.expose().lines().for_each(say);
    Ok(())
}

/// Says what another machine has done with a certificate.
pub(super) fn say_gone(lineage: &Lineage, renamed: Option<&Lineage>) {
    match renamed {
        Some(to) => tracing::info!(%lineage, "renamed to {to} by another machine of the fleet"),
        None => tracing::info!(%lineage, "deleted by another machine of the fleet"),
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

async fn open(fleet: &FleetSettings, data_dir: &Path) -> Result<NodeStore, Failure> {
    let opened = fleet.open(data_dir.to_owned()).await;
    let opened = opened.map_err(of_fleet)?;
    opened.ok_or_else(|| Failure::unexpected("no store of a fleet is set"))
}

/// A fleet as its store shows it.
#[derive(Default)]
pub(super) struct View {
    pub(super) nodes: Vec<FleetNode>,
    /// The states of CAs.
    pub(super) states: BTreeMap<String, CaState>,
}

/// The machines of the fleet, and the states of `cas`; none for a machine on its own. A store
/// that cannot be read is said, and hides no certificate: this machine's copies have what it
/// knew last.
pub(super) async fn view(
    settings: &Settings,
    own: Option<&FileStore>,
    cas: BTreeSet<String>,
) -> View {
    let fleet = &settings.fleet;
    let mut view = View::default();
    if let (Some(_), Some(own)) = (&fleet.store, own) {
        view.states = known_ca_states(own);
    }
    let read = async {
        let Some(shared) = fleet.shared().await? else {
            return Ok(());
        };
        let read = tokio::time::timeout(STATUS_WITHIN, async {
            view.nodes = shared.nodes().await?;
            for ca in cas {
                let (state, _) = shared.ca_state(&ca).await?;
                view.states.insert(ca, state);
            }
            Ok(())
        });
        let late = |_| StoreError::Io {
            operation: "read",
            subject: "the machines of the fleet".to_owned(),
            source: std::io::Error::other(Advised {
                message: format!("no answer within {} s", STATUS_WITHIN.as_secs()),
                hint: "check that this machine reaches the store of its fleet",
            }),
        };
        read.await.map_err(late)?
    };
    let read: Result<(), StoreError> = read.await;
    if let Err(error) = read {
        tracing::warn!("{}", of_fleet(error).in_a_line());
    }
    view
}

/// The generation of `lineage` that each machine's servers were last seen to serve.
pub(super) fn served(nodes: &[FleetNode], lineage: &Lineage) -> BTreeMap<String, Option<u64>> {
    let each = nodes.iter();
    let each = each.map(|node| (node.node.clone(), node.served.get(lineage).copied()));
    each.collect()
}

/// The machines that were seen to serve it.
pub(super) fn lines(served: &BTreeMap<String, Option<u64>>) -> impl Iterator<Item = String> {
    let seen = served.iter();
    seen.filter_map(|(machine, generation)| {
        Some(format!("{machine} serves generation {}", (*generation)?))
    })
}

/// Prints a line for each machine.
pub(super) fn show(nodes: &[FleetNode], now: Timestamp) {
    for node in nodes {
        let (name, role, version) = (&node.node, &node.role, &node.version);
        let (seen, kept) = (node.seen.seen_at(now), node.certificates);
        say(format_args!(
            "machine {name}: {role}, version {version}, {kept} certificates, last seen {seen}"
        ));
        if let Some(rival) = &node.rival {
            let host = &node.host;
            say(format_args!(
                "machine {name}: two machines have this name, the hosts {host} and {rival}; give each its own --node"
            ));
        }
    }
}

fn is_unreachable(error: &StoreError) -> bool {
    use std::io::ErrorKind::{PermissionDenied, Unsupported};
    let is_refused = |kind| matches!(kind, PermissionDenied | Unsupported);
    matches!(error, StoreError::Io { source, .. } if !is_refused(source.kind()))
}

pub(super) fn cannot_reach(error: &StoreError) -> String {
    let hint = error.hint_of_shared().map(|hint| format!("; hint: {hint}"));
    format!(
        "the store of the fleet cannot be used: {error}; this machine serves what it has, and orders nothing meanwhile{}",
        hint.unwrap_or_default()
    )
}

/// The failure of a command whose fleet's store cannot be used.
fn of_fleet(error: StoreError) -> Failure {
    const STORE: &str = "the fleet's store";
    match (error.hint_of_shared(), &error) {
        (Some(hint), StoreError::Seal { .. }) => Failure::usage(format!("{STORE}: {error}"), hint),
        (Some(hint), _) => Failure::output(format!("{STORE}: {error}"), hint),
        (None, _) => Failure::on(STORE)(error),
    }
}
