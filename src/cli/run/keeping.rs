//! What `certs run` keeps: what is configured, and what containers ask for beside it. A
//! configuration that is wrong is refused whole, and the old one stays.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::challenge::ChallengeSettings;
use crate::cli::Call;
use crate::cli::catalog::keep_imported;
use crate::cli::factory::Factory;
use crate::cli::labels::Labels;
use crate::config::{CertificateSettings, Purpose, Settings, Sources};
use crate::discovery::Listing;
use crate::failure::Failure;
use crate::manage::Certificate;
use crate::observe::Board;

/// What is configured, and what containers ask for beside it.
pub(super) struct Keeping<'a> {
    pub(super) call: &'a Call,
    pub(super) sources: Sources,
    pub(super) at_start: Settings,
    pub(super) configured: Settings,
    pub(super) labels: Labels,
    pub(super) factory: Arc<Factory>,
    pub(super) board: Board,
    /// What containers asked for when it was managed last.
    pub(super) asked: Vec<CertificateSettings>,
    pub(super) handed: bool,
}

impl Keeping<'_> {
    /// The configuration as it is now; the old one stays when it is wrong.
    pub(super) async fn reload(&mut self) -> Result<Vec<Certificate>, Failure> {
        let sources = Sources::read(&self.call.options, &self.call.environment);
        let read = sources.settings(&Purpose::All);
        let mut read = read.map_err(|problems| {
            let failure = Failure::configuration(problems);
            self.factory.sandbox.cause(failure, &sources.files())
        })?;
        keep_imported(&sources, &mut read).await?;
        if !self.handed && !covers(self.at_start.http_listen(), read.http_listen()) {
            let message = "where challenges are answered changes with a restart only";
            return Err(Failure::usage(message, "restart certs run"));
        }
        if !same_process(&self.at_start, &read) {
            tracing::warn!(
                "listeners, directories, the schedule and the Docker host change with a restart only"
            );
        }
        if read.docker.is_none() {
            // A container that asked by a label is not dropped without a word.
            read.docker.clone_from(&self.configured.docker);
        }
        // Before anything is taken over: a wrong one is refused whole.
        certificates(&self.factory, &read)?;
        (self.sources, self.configured) = (sources, read);
        let certificates = self.certificates()?;
        self.remember().await;
        Ok(certificates)
    }

    /// What a whole list of containers asks for; `None` when that is as before.
    pub(super) async fn listed(&mut self, listing: &Listing) -> Option<Vec<Certificate>> {
        let now = self.factory.services.clock.now();
        if !self
            .labels
            .take(listing, &self.sources, &self.configured, now)
        {
            return None;
        }
        let asked = self.labels.certificates(&self.sources, &self.configured);
        if asked == self.asked {
            // Another asks for it, or none for a moment: it is renewed as before.
            self.board.ask(self.labels.asked());
            return None;
        }
        match self.certificates() {
            Ok(certificates) => {
                self.remember().await;
                Some(certificates)
            }
            Err(failure) => {
                tracing::error!("what was asked for before stays: {}", failure.in_a_line());
                None
            }
        }
    }

    /// All of them. One that a label asks for and cannot be had holds up no other.
    pub(super) fn certificates(&mut self) -> Result<Vec<Certificate>, Failure> {
        let mut all = certificates(&self.factory, &self.configured)?;
        self.asked = self.labels.certificates(&self.sources, &self.configured);
        for settings in &self.asked {
            match self.factory.certificate(settings) {
                Ok(certificate) => all.push(certificate),
                Err(failure) => {
                    tracing::error!("{}: {}", settings.lineage, failure.in_a_line());
                }
            }
        }
        self.board.ask(self.labels.asked());
        Ok(all)
    }

    async fn remember(&self) {
        let settings = with_labels(&self.sources, &self.configured, &self.labels);
        self.factory.remember_all(&settings).await;
    }
}

/// What is configured together with what containers ask for.
pub(super) fn with_labels(sources: &Sources, configured: &Settings, labels: &Labels) -> Settings {
    let mut settings = configured.clone();
    let asked = labels.certificates(sources, configured);
    settings.certificates.extend(asked);
    settings
}

/// Whether what is listened to since the start is all that is needed now.
fn covers(bound: Option<Vec<SocketAddr>>, needed: Option<Vec<SocketAddr>>) -> bool {
    match (bound, needed) {
        (_, None) => true,
        (None, Some(_)) => false,
        // None at all stands for port 80 of every address.
        (Some(bound), Some(needed)) if bound.is_empty() || needed.is_empty() => bound == needed,
        (Some(bound), Some(needed)) => needed.iter().all(|address| bound.contains(address)),
    }
}

/// Whether all but the certificates is as it was.
fn same_process(one: &Settings, other: &Settings) -> bool {
    let fixed = |settings: &Settings| {
        let mut fixed = settings.clone();
        fixed.certificates.clear();
        if let Some(docker) = &mut fixed.docker {
            // What may be asked for is read with every list.
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
    let wanted = settings.certificates.iter();
    wanted
        .map(|settings| factory.certificate(settings))
        .collect()
}
