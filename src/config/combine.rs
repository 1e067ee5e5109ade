//! Combines the sources: the strongest one wins, key by key. The table of keys does
//! that for most keys; this module does it for the keys that make a setting together.

use std::path::PathBuf;

use super::docker::{DockerSettings, GRACE, LIMIT};
use super::key::KeyTable;
use super::keys::{CertificateLayer, Layer};
use super::layer::{NONE, absolute, of_home};
use super::problem::{Given, Problems, SettingOrigin};
use super::read::{Entry, Strength};
use super::resolve::Sources;
use super::{
    CaSettings, CertificateSettings, ConfigProblem, DEPLOY_HINT, DeployWhen, LogFormat,
    OutputSettings, Settings, SharedSettings,
};
use crate::deploy::owner;
use crate::deploy::target::DeployTarget;
use crate::store::place::FleetSettings;

impl Sources {
    pub(super) fn layers(&self) -> [&Layer; 3] {
        [&self.options, &self.variables.layer, &self.document.layer]
    }

    /// The layers that hold for one certificate, the strongest first.
    pub(super) fn layers_of<'a>(&'a self, entry: &'a Entry) -> [&'a CertificateLayer; 4] {
        let (options, variables) = (&self.options.shared, &self.variables.layer.shared);
        let (own, file) = (&entry.layer, &self.document.layer.shared);
        match entry.strength {
            Strength::Label => [own, options, variables, file],
            Strength::Table => [options, variables, own, file],
            Strength::Stored => [options, variables, file, own],
        }
    }

    /// The CA and the account that hold for all certificates, and whether a source names
    /// the CA.
    ///
    /// # Errors
    /// Every problem of reading the sources.
    pub(crate) fn ca_settings(&self) -> Result<(CaSettings, bool), Vec<ConfigProblem>> {
        let layers = self.shared_layers();
        let directory = pick(&layers, |layer| &layer.ca);
        let ca = CaSettings {
            directory: value(directory).unwrap_or_default(),
            root: value(pick(&layers, |layer| &layer.root)),
            email: value(pick(&layers, |layer| &layer.email)),
            agree_tos: value(pick(&layers, |layer| &layer.agree_tos)).unwrap_or_default(),
            eab_kid: value(pick(&layers, |layer| &layer.eab_kid)),
            eab_hmac_file: value(pick(&layers, |layer| &layer.eab_hmac_file)),
            preferred_chain: None,
        };
        self.problems.clone().or((ca, directory.is_some()))
    }

    /// The named files, whether or not a certificate uses them yet.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let shared = self.shared_layers();
        let own = self.document.entries.iter().map(|entry| &entry.layer);
        let layers = shared.into_iter().chain(own);
        let files = layers.flat_map(|layer| [&layer.root, &layer.eab_hmac_file]);
        files.flatten().map(|given| given.value.clone()).collect()
    }

    /// The format of messages, also when the rest of the configuration is invalid.
    pub(crate) fn log_format(&self) -> LogFormat {
        value(pick(&self.layers(), |layer| &layer.log_format)).unwrap_or_default()
    }

    /// Whether this machine shares its certificates with others.
    pub(crate) fn is_in_fleet(&self) -> bool {
        pick(&self.layers(), |layer| &layer.store).is_some()
    }

    /// This machine's own directory, and how it takes part in a fleet; what is invalid is
    /// reported with the other settings.
    pub(crate) fn fleet(&self) -> (PathBuf, FleetSettings) {
        let settings = self.process(&mut Problems::default());
        (settings.data_dir, settings.fleet)
    }

    /// The settings of the whole process, without certificates.
    pub(super) fn process(&self, problems: &mut Problems) -> Settings {
        let layers = self.layers();
        let data_dir = value(pick(&layers, |layer| &layer.data_dir))
            .or_else(|| self.default_data_dir.clone())
            .unwrap_or_else(|| {
                let message = "no directory for the private state found";
                problems.add(&SettingOrigin::Nowhere, message, "give --data-dir DIR");
                PathBuf::new()
            });
        let mut settings = Settings::new(data_dir);
        Layer::apply(&layers, &mut settings);
        let when = pick(&layers, |layer| &layer.deploy_when);
        if let (Some(when), None) = (when, &settings.renew.schedule)
            && when.value == DeployWhen::OnSchedule
        {
            let hint = "add [renew] schedule = \"30 3 * * *\"";
            problems.add(&when.origin, "deployment on schedule has no schedule", hint);
        }
        let (user, group) = (
            pick(&layers, |layer| &layer.output_owner),
            pick(&layers, |layer| &layer.output_group),
        );
        exists(user, owner::user, problems);
        exists(group, owner::group, problems);
        if let Some((message, hint)) = settings.fleet.key_fault() {
            let origins = [
                pick(&layers, |layer| &layer.seal_key_exec).map(|given| &given.origin),
                pick(&layers, |layer| &layer.store).map(|given| &given.origin),
            ];
            let origin = origins.into_iter().flatten().next();
            problems.add(origin.unwrap_or(&SettingOrigin::Nowhere), message, hint);
        }
        settings.file.clone_from(&self.file);
        settings.proxies = self.proxies.clone();
        if let Some(proxy) = pick(&layers, |layer| &layer.proxy) {
            settings.proxies = settings.proxies.with(proxy.value.clone());
        }
        settings.roots = self.roots.clone();
        settings.resolver = value(pick(&self.shared_layers(), |layer| &layer.resolver));
        settings.fleet.resolver = settings.resolver;
        settings.challenge = self.challenge(&self.shared_layers());
        settings.docker = self.docker();
        settings
    }

    pub(super) fn shared_layers(&self) -> [&CertificateLayer; 3] {
        self.layers().map(|layer| &layer.shared)
    }

    /// `None` when no host is set: then labels are not read.
    fn docker(&self) -> Option<DockerSettings> {
        let layers = self.layers();
        let grace = value(pick(&layers, |layer| &layer.docker_grace));
        let raw = value(pick(&layers, |layer| &layer.docker_accepts_raw));
        // Their problems are reported with the certificates.
        let mut deploy = self.deploy(&self.shared_layers(), &mut Problems::default());
        for table in self.tables() {
            if !deploy.contains(&table) {
                deploy.push(table);
            }
        }
        Some(DockerSettings {
            host: value(pick(&layers, |layer| &layer.docker_host))?,
            accept_raw_socket: raw.unwrap_or_default(),
            grace: grace.map_or(GRACE, |grace| grace.0),
            allow: value(pick(&layers, |layer| &layer.docker_allow)).unwrap_or_default(),
            limit: value(pick(&layers, |layer| &layer.docker_limit))
                .map_or(LIMIT, |limit| limit.get().into()),
            deploy,
        })
    }

    /// The complete settings of one certificate.
    pub(super) fn certificate(
        &self,
        entry: &Entry,
        problems: &mut Problems,
    ) -> CertificateSettings {
        let layers = self.layers_of(entry);
        let mut settings = CertificateSettings::new(entry.lineage.clone(), entry.names.clone());
        CertificateLayer::apply(&layers, &mut settings);
        settings.is_second = entry.is_second;
        settings.request = value(pick(&layers, |layer| &layer.request));
        // A stored one ends by that word.
        let own: &mut SharedSettings = &mut settings;
        for text in [&mut own.profile, &mut own.ca.preferred_chain] {
            text.take_if(|text| text == NONE);
        }
        settings.lifetime.take_if(|lifetime| lifetime.is_none());
        let fallback = pick(&layers, |layer| &layer.fallback);
        settings.fallback = fallback.map(|directory| CaSettings {
            directory: directory.value.clone(),
            eab_kid: value(pick(&layers, |layer| &layer.fallback_eab_kid)),
            eab_hmac_file: value(pick(&layers, |layer| &layer.fallback_eab_hmac_file)),
            preferred_chain: None,
            ..settings.ca.clone()
        });
        settings.challenge = self.challenge(&layers);
        self.check_draft(&layers, problems);
        settings.deploy = self.deploy(&layers, problems);
        if entry.strength == Strength::Stored && pick(&layers, |layer| &layer.deploy).is_none() {
            let stored = std::mem::take(&mut settings.deploy);
            settings.deploy = self.stored_targets(stored);
        }
        settings.output = Some(self.output(entry));
        settings
    }

    /// Where a certificate is published. A stored certificate stays in its tree, which a
    /// server reads, whatever the environment of this process says; an option moves it, and
    /// so does each source of a command that names it again.
    fn output(&self, entry: &Entry) -> OutputSettings {
        // Their problems are reported with the process's settings.
        let process = self.process(&mut Problems::default());
        let mut output = process.output;
        if let Some(stored) = &entry.layer.stored_output {
            let (owner, group, links) = (output.owner, output.group, output.links);
            output = stored.value.clone();
            // The readers of the files are the configuration's, if it names them.
            output.owner = owner.or(output.owner);
            output.group = group.or(output.group);
            output.links = links.or(output.links);
            let layers = self.layers();
            let layers = match entry.strength {
                Strength::Stored => layers.as_slice(),
                _ => &layers[..1],
            };
            if let Some(given) = pick(layers, |layer| &layer.output_dir) {
                output.directory.clone_from(&given.value);
            }
        }
        // The data directory may be moved.
        if let Ok(below) = output.directory.strip_prefix(&process.data_dir) {
            output.directory = below.to_owned();
        }
        output
    }

    /// A certificate without targets of its own is deployed to all named tables.
    fn deploy(&self, layers: &[&CertificateLayer], problems: &mut Problems) -> Vec<DeployTarget> {
        let targets = &self.document.targets;
        let mut set = layers
            .iter()
            .filter(|layer| layer.deploy.is_some() || layer.stored_deploy.is_some());
        let strongest = set.next();
        if let Some(stored) = strongest.and_then(|layer| layer.stored_deploy.as_ref()) {
            // Stored targets are complete, and their paths are absolute already.
            return stored.value.clone();
        }
        let Some(given) = strongest.and_then(|layer| layer.deploy.as_ref()) else {
            return self.tables();
        };
        let mut specs: Vec<DeployTarget> = Vec::new();
        for word in &given.value {
            let spec = match targets.get(&word.value) {
                Some(named) => Ok(self.located(named)),
                None => {
                    let spec = of_home(&word.value).parse();
                    spec.map(|spec| self.located(&Given::new(spec, &word.origin)))
                }
            };
            match spec {
                Ok(spec) if specs.contains(&spec) => {
                    let message = format!("`{spec}` is given twice");
                    problems.add(&word.origin, message, "give it once");
                }
                Ok(spec) => specs.push(spec),
                Err(message) => problems.add(&word.origin, message, DEPLOY_HINT),
            }
        }
        specs
    }

    /// The stored targets of a certificate, with the keys that the tables of today have for the
    /// same ones. If all of them are tables it has no targets of its own, and has every table.
    fn stored_targets(&self, stored: Vec<DeployTarget>) -> Vec<DeployTarget> {
        let tables = self.tables();
        let of_today = |one: &DeployTarget| {
            let is_same = |other: &&DeployTarget| other.to_string() == one.to_string();
            let is_only = stored.iter().filter(is_same).count() == 1;
            let mut same = tables.iter().filter(is_same);
            match (tables.contains(one), same.next(), same.next()) {
                (true, ..) => Some(one.clone()),
                (false, Some(table), None) if is_only => Some(table.clone()),
                _ => None,
            }
        };
        if stored.iter().all(|one| of_today(one).is_some()) {
            return tables;
        }
        let mut all = Vec::new();
        for one in &stored {
            let one = of_today(one).unwrap_or(one.clone());
            if !all.contains(&one) {
                all.push(one);
            }
        }
        all
    }

    /// The targets of all tables of the file.
    pub(crate) fn tables(&self) -> Vec<DeployTarget> {
        let tables = self.document.targets.values();
        tables.map(|spec| self.located(spec)).collect()
    }

    fn located(&self, spec: &Given<DeployTarget>) -> DeployTarget {
        let located = spec.value.clone();
        let located = located.located(|path| absolute(&spec.origin, path));
        match &self.docker_host {
            Some(host) => located.at_docker(host),
            None => located,
        }
    }
}

impl CertificateLayer {
    /// Whether its CA is unknown because of a problem that is reported already.
    pub(super) fn hides_its_ca(&self) -> bool {
        let keys = ["ca", "agree_tos", "fallback_ca"];
        keys.iter().any(|key| self.invalid.contains(*key))
    }
}

fn exists(
    given: Option<&Given<String>>,
    find: fn(&str) -> Result<u32, String>,
    problems: &mut Problems,
) {
    if let Some(given) = given
        && let Err(message) = find(&given.value)
    {
        let hint = "name one that exists, or its number";
        problems.add(&given.origin, message, hint);
    }
}

pub(super) fn pick<'a, L, T>(
    layers: &[&'a L],
    of: impl Fn(&L) -> &Option<Given<T>>,
) -> Option<&'a Given<T>> {
    layers.iter().find_map(|layer| of(layer).as_ref())
}

fn value<T: Clone>(given: Option<&Given<T>>) -> Option<T> {
    given.map(|given| given.value.clone())
}
