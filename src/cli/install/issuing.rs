//! The certificate of an install: ordered through nginx by the code of `certs issue`.

use std::path::PathBuf;

use super::super::catalog::as_stored;
use super::super::{Call, issue, meant};
use super::Work;
use super::draft::make_webroot;
use crate::challenge::{ChallengeKind, ChallengeSettings, webroot};
use crate::config::{CertificateSettings, MOST_NAMES, Origin, Purpose, Settings, Sources};
use crate::deploy::target::DeployTarget;
use crate::failure::Failure;
use crate::identifier::Identifier;
use crate::install::plan::InstallPlan;
use crate::lineage::Lineage;
use crate::manage::Trigger;

impl Work<'_> {
    /// The command with these names, as for `certs issue`.
    fn naming(&self, names: &[String]) -> Call {
        let call = self.call;
        let names = names.iter().filter(|name| {
            let parsed = Identifier::parse(name);
            parsed.is_ok_and(|name| !name.is_wildcard())
        });
        let mut options = call.options.clone();
        options.names(&names.cloned().collect::<Vec<_>>());
        Call {
            json: false,
            sources: Sources::read(&options, &call.environment),
            options,
            environment: call.environment.clone(),
            // The result of the install is the only one.
            terminal: call.terminal.clone().without_results(),
        }
    }

    /// The settings of the certificate, if it shall be ordered: an option of `certs issue` says
    /// so, or the terms of service are agreed to.
    pub(super) async fn wanted(&self, plan: &InstallPlan) -> Result<Option<Settings>, Failure> {
        make_webroot(&plan.webroot)?;
        let call = self.naming(&plan.names);
        let is_asked = self.options.keys.gives_besides(&["webroot"]);
        let settings = async {
            let mut settings = meant::named(&call.sources).await?;
            meant::check_command(&call.sources, &settings).await?;
            // One certificate is installed: that of the first key.
            settings.certificates.retain(|one| !one.is_second);
            Ok(settings)
        };
        match settings.await {
            Err(failure) if is_asked => Err(failure),
            Err(_) => Ok(None),
            Ok(settings) => {
                let agreed = settings.certificates.iter().all(|one| one.ca.agree_tos);
                Ok((is_asked || agreed).then_some(settings))
            }
        }
    }

    /// Refuses more names than public CAs take, before anything is changed.
    pub(super) fn check_count(&self, plan: &InstallPlan) -> Result<(), Failure> {
        let (ca, _) = self.call.sources.ca_settings()?;
        let count = plan.names.len();
        if count <= MOST_NAMES || !ca.directory.is_public() {
            return Ok(());
        }
        let name = &plan.name;
        Err(Failure::usage(
            format!(
                "{name}: its blocks have {count} names, and public CAs take {MOST_NAMES} at most in one certificate; nothing was changed or ordered"
            ),
            format!(
                "move names to a server block of their own, and run this command for each block; or obtain {name} and up to {} of the others with certs issue, and then run this command again",
                MOST_NAMES - 1
            ),
        ))
    }

    /// Orders the certificate, and stores it without a deployment. Returns the settings with
    /// which it is deployed later.
    pub(super) async fn ordered(
        &self,
        mut settings: Settings,
        plan: &InstallPlan,
    ) -> Result<Settings, Failure> {
        let given = |name: &&str| self.options.keys.gives(name);
        for certificate in &mut settings.certificates {
            let is_other = certificate.challenge.kind() != ChallengeKind::Http01
                && ["challenge", "dns"].iter().any(given);
            if !is_other && !self.options.keys.gives("http_listen") {
                let webroot = webroot::Settings::new(plan.webroot.clone());
                certificate.challenge = ChallengeSettings::Webroot(webroot);
            }
        }
        let mut first = settings.clone();
        for certificate in &mut first.certificates {
            certificate.deploy.clear();
            certificate.verify.clear();
        }
        self.pass(&unfinished(first)).await?;
        Ok(settings)
    }

    /// Deploys it to nginx and verifies it. Returns the settings with which it is renewed.
    pub(super) async fn deployed(
        &self,
        mut settings: Settings,
        pid_file: Option<PathBuf>,
    ) -> Result<Settings, Failure> {
        let spec = pid_file.map_or("nginx".to_owned(), |file| {
            format!("nginx:{}", file.display())
        });
        let target: DeployTarget = spec.parse().map_err(Failure::unexpected)?;
        for certificate in &mut settings.certificates {
            if !certificate
                .deploy
                .iter()
                .any(|one| matches!(one, DeployTarget::Nginx(_)))
            {
                certificate.deploy.push(target.clone());
            }
        }
        self.pass(&unfinished(settings.clone())).await?;
        Ok(settings)
    }

    /// The settings of a certificate that a configuration names.
    pub(super) async fn configured(&self, lineage: &Lineage) -> Option<CertificateSettings> {
        let sources = &self.call.sources;
        if !sources.configures(lineage) {
            return None;
        }
        let all = meant::settings(sources, &Purpose::All).await.ok()?;
        let mut all = all.certificates.into_iter();
        all.find(|one| one.lineage == *lineage)
    }

    /// The settings of a stored certificate that is not kept yet, or deployed nowhere.
    pub(super) async fn to_keep(&self, lineage: &Lineage) -> Option<Settings> {
        let is_meant = |one: &CertificateSettings| {
            let is_unfinished = one.origin == Some(Origin::Install);
            one.lineage == *lineage && (is_unfinished || one.deploy.is_empty())
        };
        let stored = as_stored(&self.call.sources, self.settings);
        let mut found = stored.into_iter().find(is_meant)?;
        if found.origin == Some(Origin::Install) {
            found.origin = Some(Origin::Command);
        }
        let mut settings = self.settings.clone();
        settings.certificates = vec![found];
        Some(settings)
    }

    /// One pass with these settings, which are stored.
    pub(super) async fn pass(&self, settings: &Settings) -> Result<(), Failure> {
        let all = settings.certificates.iter().flat_map(|one| &one.names);
        let names: Vec<String> = all.map(ToString::to_string).collect();
        issue::pass(&self.naming(&names), settings, Trigger::Requested).await
    }
}

/// The settings until the install has ended: what fails is continued by no other command.
fn unfinished(mut settings: Settings) -> Settings {
    for certificate in &mut settings.certificates {
        if certificate.origin == Some(Origin::Command) {
            certificate.origin = Some(Origin::Install);
        }
    }
    settings
}
