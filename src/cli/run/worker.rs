//! The sidecar's end of the control socket: the supervisor does a command's work.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

use crate::challenge::protocol::Protocol;
use crate::cli::busy::when_free;
use crate::cli::factory::Factory;
use crate::cli::issue::may_order;
use crate::config::CertificateSettings;
use crate::control::{Done, Task, Worker};
use crate::failure::Failure;
use crate::lineage::Lineage;
use crate::manage::delete::delete;
use crate::observe::Board;
use crate::record::Renaming;
use crate::store::StoreError;
use crate::supervise::Handle;

/// The sandbox of a process never widens.
const APART_HINT: &str = "stop `certs run`, repeat this command, and start `certs run` again: it then answers for this certificate";

pub(super) struct Sidecar {
    pub(super) handle: Handle,
    pub(super) factory: Arc<Factory>,
    /// The challenge listeners of this process.
    pub(super) listens: Vec<Protocol>,
    pub(super) board: Board,
    /// Reads the store again, and answers when that is done.
    pub(super) reload: mpsc::Sender<oneshot::Sender<()>>,
}

impl Sidecar {
    /// Manages what the store has now.
    pub(super) async fn restock(&self) {
        let (reply, reloaded) = oneshot::channel();
        if self.reload.send(reply).await.is_ok() && reloaded.await.is_ok() {
            self.handle.ping().await;
        }
    }

    /// Refuses an output that a command names and this process does not write to.
    fn check_output(
        &self,
        settings: &CertificateSettings,
        stored: Option<&CertificateSettings>,
    ) -> Result<(), Failure> {
        if settings.output.is_none() {
            return Ok(());
        }
        let (wanted, own) = (
            self.factory.output_root(Some(settings)),
            self.factory.output_root(stored),
        );
        if wanted == own {
            return Ok(());
        }
        let (wanted, own) = (wanted.display(), own.display());
        Err(Failure::usage(
            format!(
                "{}: the running certs run writes to {own}, and {wanted} is outside its sandbox; nothing was ordered",
                settings.lineage
            ),
            "leave out --output-dir; or stop certs run, repeat this command, and start certs run again",
        ))
    }

    /// The settings that a certificate was made with, if they can be read.
    async fn stored(&self, lineage: &Lineage) -> Result<Option<CertificateSettings>, Failure> {
        let stored = match self.factory.services.store.options(lineage).await {
            Err(StoreError::Corrupt { .. }) => None,
            stored => stored.map_err(Failure::on(lineage.as_str()))?,
        };
        Ok(stored.and_then(|json| CertificateSettings::stored_as(lineage, &json).ok()))
    }
}

#[async_trait]
impl Worker for Sidecar {
    async fn work(&self, settings: &CertificateSettings, task: Task) -> Result<Done, Failure> {
        let factory = &self.factory;
        let store = factory.services.store.as_ref();
        let wanted = settings.challenge.listens();
        let mut lacking = wanted.iter().map(|one| one.protocol);
        if let Some(protocol) = lacking.find(|protocol| !self.listens.contains(protocol))
            && may_order(store, settings, task).await
        {
            return Err(Failure::usage(
                format!(
                    "{}: the running `certs run` has no listener for {}",
                    settings.lineage,
                    protocol.challenge()
                ),
                match protocol {
                    Protocol::Http => "use --webroot with its directory, or stop `certs run` first",
                    Protocol::Dns => APART_HINT,
                    Protocol::Tls => {
                        "set tls_listen and challenge = \"tls-alpn-01\" in its configuration and restart it, or stop it first"
                    }
                },
            ));
        }
        let Task::Pass(trigger) = task else {
            return factory.work(settings, task).await;
        };
        let stored = self.stored(&settings.lineage).await?;
        self.check_output(settings, stored.as_ref())?;
        if self.handle.manages(&settings.lineage).await {
            // The settings of `certs run` apply, not those of the command.
            let pass = self.handle.work(factory.certificate(settings)?, trigger);
            return factory.done(settings, pass.await).await;
        }
        // Nor does its output, but a stored certificate stays in its own.
        let mut settings = settings.clone();
        settings.output = stored.map_or(Some(factory.output().clone()), |stored| {
            stored.output.clone()
        });
        if let Err(mut failure) = factory.sandbox.covers(&settings) {
            failure.replace("this process started", "`certs run` started");
            return Err(failure.with_hint(APART_HINT));
        }
        let certificate = factory.certificate(&settings)?;
        factory.publish_by(&settings)?;
        let pass = self.handle.work(certificate, trigger);
        let done = factory.remembering(&settings, pass).await;
        self.restock().await;
        done
    }

    async fn delete(&self, lineage: &Lineage, keep_files: bool) -> Result<bool, Failure> {
        let services = &self.factory.services;
        let stored = self.stored(lineage).await?;
        let output = self.factory.emptied(stored.as_ref());
        let output = (!keep_files).then_some(&output);
        let (store, others) = (services.store.as_ref(), services.output.as_ref());
        // As a request for a pass waits for the pass in progress.
        let deleted = when_free(|| delete(store, lineage, output, others)).await;
        let (was_there, lease) = deleted.map_err(Failure::on(lineage.as_str()))?;
        // No pass may order it again before the supervisor has forgotten it.
        self.restock().await;
        drop(lease);
        Ok(was_there)
    }

    async fn not_renewable(&self) -> BTreeMap<Lineage, String> {
        self.board.obstacles().not_renewable
    }

    async fn rename(&self, renaming: &Renaming) -> Result<(), Failure> {
        let before = self.stored(&renaming.from).await?;
        let stored = match before {
            Some(stored) => Some(stored),
            None => self.stored(&renaming.to).await?,
        };
        let leases = self.factory.rename(renaming, stored.as_ref()).await?;
        // No pass may order the old name before the supervisor has forgotten it.
        self.restock().await;
        drop(leases);
        Ok(())
    }
}
