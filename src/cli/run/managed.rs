//! The certificates of `certs run`: those of the configuration, and those that containers
//! request. An invalid configuration is refused as a whole, and the old one stays.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::challenge::ChallengeSettings;
use crate::cli::Call;
use crate::cli::catalog::keep_imported;
use crate::cli::factory::Factory;
use crate::cli::labels::Labels;
use crate::cli::meant;
use crate::config::{CertificateSettings, Purpose, Settings, Sources};
use crate::discovery::Listing;
use crate::failure::Failure;
use crate::manage::Certificate;
use crate::observe::Board;

/// The configured certificates, and those that containers request.
pub(super) struct ManagedCertificates<'a> {
    pub(super) call: &'a Call,
    pub(super) sources: Sources,
    pub(super) at_start: Settings,
    pub(super) configured: Settings,
    pub(super) labels: Labels,
    pub(super) factory: Arc<Factory>,
    pub(super) board: Board,
    /// The containers' certificates that the supervisor manages.
    pub(super) requested: Vec<CertificateSettings>,
    /// Whether the service manager bound the challenge listener.
    pub(super) socket_activated: bool,
}

impl ManagedCertificates<'_> {
    /// Reads the configuration again; an invalid one changes nothing.
    pub(super) async fn reload(&mut self) -> Result<Vec<Certificate>, Failure> {
        let sources = Sources::read(&self.call.options, &self.call.environment);
        let read = meant::settings(&sources, &Purpose::All).await;
        let mut read = read.map_err(|failure| {
            let files = sources.files();
            self.factory.sandbox.cause(failure, &files)
        })?;
        keep_imported(&sources, &mut read).await?;
        if !self.socket_activated && !covers(self.at_start.http_listen(), read.http_listen()) {
            let message = "the addresses of the challenge listener change only at a restart";
            return Err(Failure::usage(message, "restart certs run"));
        }
        if !same_process(&self.at_start, &read) {
            tracing::warn!(
                "listeners, directories, the schedule and the Docker host change only at a restart"
            );
        }
        if read.docker.is_none() {
            // Discovery stops only at a restart: do not drop its certificates before.
            read.docker.clone_from(&self.configured.docker);
        }
        // First, so that an invalid configuration changes nothing.
        certificates(&self.factory, &read)?;
        (self.sources, self.configured) = (sources, read);
        let certificates = self.certificates()?;
        self.remember().await;
        Ok(certificates)
    }

    /// Applies a whole list of containers; `None` if the certificates are unchanged.
    pub(super) async fn listed(&mut self, listing: &Listing) -> Option<Vec<Certificate>> {
        let now = self.factory.services.clock.now();
        if !self
            .labels
            .apply(listing, &self.sources, &self.configured, now)
        {
            return None;
        }
        let requested = self.labels.certificates(&self.sources, &self.configured);
        if requested == self.requested {
            // Only the requesting containers have changed.
            self.board.set_requests(self.labels.requests());
            return None;
        }
        match self.certificates() {
            Ok(certificates) => {
                self.remember().await;
                Some(certificates)
            }
            Err(failure) => {
                let failure = failure.in_a_line();
                tracing::error!("the containers' previous certificates stay: {failure}");
                None
            }
        }
    }

    /// All certificates. An invalid one from a label does not affect the others.
    pub(super) fn certificates(&mut self) -> Result<Vec<Certificate>, Failure> {
        let mut all = certificates(&self.factory, &self.configured)?;
        self.requested = self.labels.certificates(&self.sources, &self.configured);
        for settings in &self.requested {
            match self.factory.certificate(settings) {
                Ok(certificate) => all.push(certificate),
                Err(failure) => tracing::error!("{}: {}", settings.lineage, failure.in_a_line()),
            }
        }
        self.board.set_requests(self.labels.requests());
        Ok(all)
    }

    async fn remember(&self) {
        let settings = with_labels(&self.sources, &self.configured, &self.labels);
        self.factory.remember_all(&settings).await;
    }
}

/// The configured certificates and those that containers request.
pub(super) fn with_labels(sources: &Sources, configured: &Settings, labels: &Labels) -> Settings {
    let mut settings = configured.clone();
    let requested = labels.certificates(sources, configured);
    settings.certificates.extend(requested);
    settings
}

/// Whether the listener bound at the start serves all `needed` addresses.
fn covers(bound: Option<Vec<SocketAddr>>, needed: Option<Vec<SocketAddr>>) -> bool {
    match (bound, needed) {
        (_, None) => true,
        (None, Some(_)) => false,
        // An empty list means port 80 of every address.
        (Some(bound), Some(needed)) if bound.is_empty() || needed.is_empty() => bound == needed,
        (Some(bound), Some(needed)) => needed.iter().all(|address| bound.contains(address)),
    }
}

/// Whether the settings are equal apart from certificates and label rules.
fn same_process(one: &Settings, other: &Settings) -> bool {
    let fixed = |settings: &Settings| {
        let mut fixed = settings.clone();
        fixed.certificates.clear();
        if let Some(docker) = &mut fixed.docker {
            // These rules are applied to every list.
            (docker.grace, docker.limit) = Default::default();
            docker.allow.clear();
            docker.deploy.clear();
        }
        fixed.challenge = ChallengeSettings::default();
        fixed
    };
    fixed(one) == fixed(other)
}

fn certificates(factory: &Factory, settings: &Settings) -> Result<Vec<Certificate>, Failure> {
    let certificates = settings.certificates.iter();
    let built = certificates.map(|settings| factory.certificate(settings));
    built.collect()
}
