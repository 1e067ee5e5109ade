//! The certificate of an install: ordered through nginx by the code of `certs issue`.

use std::path::PathBuf;

use super::super::catalog::as_stored;
use super::super::{Call, issue, meant};
use super::Work;
use super::draft::make_webroot;
use crate::challenge::{ChallengeKind, ChallengeSettings, webroot};
use crate::config::{CertificateSettings, MOST_NAMES, Options, Origin, Purpose, Settings, Sources};
use crate::deploy::target::DeployTarget;
use crate::failure::Failure;
use crate::identifier::Identifier;
use crate::install::plan::InstallPlan;
use crate::lineage::Lineage;
use crate::manage::Trigger;
use crate::text::shell_word;

impl Work<'_> {
    /// The command with these names, as for `certs issue`.
    fn naming(&self, names: &[String]) -> Call {
        self.naming_with(self.call.options.clone(), names)
    }

    fn naming_with(&self, mut options: Options, names: &[String]) -> Call {
        let call = self.call;
        let names = names.iter().filter(|name| Identifier::parse(name).is_ok());
        options.names(&names.cloned().collect::<Vec<_>>());
        Call {
            json: false,
            sources: Sources::read(&options, &call.environment),
            options,
            fleet: call.fleet.clone(),
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

    /// Whether names are proven by DNS, and not through nginx.
    pub(super) fn is_by_dns(&self) -> bool {
        is_by_dns(self.settings.challenge.kind())
    }

    /// Refuses an order that must fail, before anything is changed.
    pub(super) fn check_challenge(&self, plan: &InstallPlan) -> Result<(), Failure> {
        let name = &plan.name;
        let kind = self.settings.challenge.kind();
        if kind == ChallengeKind::TlsAlpn01 && self.options.keys.gives("challenge") {
            return Err(Failure::usage(
                format!(
                    "{name}: tls-alpn-01 is answered on port 443, which nginx has; nothing was changed or ordered"
                ),
                "leave --challenge out: nginx answers http-01 on port 80; or prove the names by --dns PROVIDER",
            ));
        }
        let is_wild = Identifier::parse(name).is_ok_and(|name| name.is_wildcard());
        if !is_wild || is_by_dns(kind) {
            return Ok(());
        }
        let word = shell_word(name);
        Err(Failure::usage(
            format!(
                "{name}: nginx cannot answer challenges for a wildcard; nothing was changed or ordered"
            ),
            format!(
                "prove it by DNS: add --dns PROVIDER and --agree-tos to this command (--dns self needs no provider); or certs issue {word} --dns PROVIDER --agree-tos, and then this command again"
            ),
        ))
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
        for certificate in &mut settings.certificates {
            let is_other = is_by_dns(certificate.challenge.kind());
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
        let all = meant::settings(&self.call.sources, &Purpose::All)
            .await
            .ok()?;
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

    /// The options of this command that a stored certificate is not made with, as given.
    pub(super) async fn unused(&self, lineage: &Lineage, names: &[String]) -> String {
        let (keys, options) = (&self.options.keys, &self.call.options);
        let stored = as_stored(&self.call.sources, self.settings);
        let Some(stored) = stored.iter().find(|one| one.lineage == *lineage) else {
            return String::new();
        };
        let stored = made_with(stored);
        let is_made_with = async |names_of_keys: &[&str]| {
            let options = options.with_only(keys, names_of_keys);
            let settings = meant::named(&self.naming_with(options, names).sources).await;
            let made = settings.map(|one| one.certificates.iter().map(made_with).collect());
            made.is_ok_and(|made: Vec<_>| made.contains(&stored))
        };
        let given: Vec<&str> = keys.names().filter(|name| *name != "webroot").collect();
        if given.is_empty() || is_made_with(&given).await {
            return String::new();
        }
        let mut unused = Vec::new();
        for name in given {
            if name != "agree_tos" && !is_made_with(&[name]).await {
                unused.extend(options.given(&[name]));
            }
        }
        unused.concat()
    }

    /// One pass with these settings, which are stored.
    pub(super) async fn pass(&self, settings: &Settings) -> Result<(), Failure> {
        self.pass_by(settings, Trigger::Requested).await
    }

    /// The same, which orders nothing.
    pub(super) async fn redeployed(&self, settings: &Settings) -> Result<(), Failure> {
        self.pass_by(settings, Trigger::Redeploy).await
    }

    async fn pass_by(&self, settings: &Settings, trigger: Trigger) -> Result<(), Failure> {
        let all = settings.certificates.iter().flat_map(|one| &one.names);
        let names: Vec<String> = all.map(ToString::to_string).collect();
        issue::pass(&self.naming(&names), settings, trigger).await
    }
}

/// Whether it proves names by records, wildcards among them.
fn is_by_dns(kind: ChallengeKind) -> bool {
    !matches!(kind, ChallengeKind::Http01 | ChallengeKind::TlsAlpn01)
}

/// What a certificate is made with, without what is noted about it.
fn made_with(settings: &CertificateSettings) -> Option<serde_json::Value> {
    let mut plain = settings.clone();
    plain.names.clear();
    (plain.origin, plain.orphaned) = (None, None);
    plain.unconfirmed.clear();
    serde_json::to_value(plain).ok()
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
