//! The sidecar's end of the control socket: the supervisor does a command's work.

use std::sync::Arc;

use async_trait::async_trait;

use crate::cli::factory::Factory;
use crate::cli::issue::may_order;
use crate::config::CertificateSettings;
use crate::control::{Done, Task, Worker};
use crate::failure::Failure;
use crate::supervise::Handle;

pub(super) struct Sidecar {
    pub(super) handle: Handle,
    pub(super) factory: Arc<Factory>,
    /// Whether this process has an HTTP-01 listener.
    pub(super) listens: bool,
}

#[async_trait]
impl Worker for Sidecar {
    async fn work(&self, settings: &CertificateSettings, task: Task) -> Result<Done, Failure> {
        let factory = &self.factory;
        let store = factory.services.store.as_ref();
        let wants_listener = settings.challenge.http_listen().is_some();
        if wants_listener && !self.listens && may_order(store, settings, task).await {
            return Err(Failure::usage(
                format!(
                    "{}: the running `certs run` has no challenge listener",
                    settings.lineage
                ),
                "use --webroot with its directory, or stop `certs run` first",
            ));
        }
        let Task::Pass(trigger) = task else {
            return factory.work(settings, task).await;
        };
        let certificate = factory.certificate(settings)?;
        let is_kept = self.handle.manages(&settings.lineage).await;
        let pass = self.handle.work(certificate, trigger);
        if is_kept {
            // The settings of `certs run` apply, not those of the command.
            return factory.done(settings, pass.await);
        }
        factory.remembering(settings, pass).await
    }
}
