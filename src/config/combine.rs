//! The strongest source wins, key by key; the defaults stand here.

use std::path::{Path, PathBuf};

use super::labels::{DockerSettings, GRACE, LIMIT};
use super::layer::{CertificateLayer, Layer};
use super::problem::{Given, Place, Problems};
use super::read::Entry;
use super::resolve::Sources;
use super::{
    AdminListen, CaSettings, CertificateSettings, DEPLOY_HINT, DeployWhen, LogFormat,
    OutputSettings, RenewSettings, Settings,
};
use crate::challenge::{ChallengeSettings, http01, webroot};
use crate::deploy::owner;
use crate::deploy::spec::Spec;

impl Sources {
    fn layers(&self) -> [&Layer; 3] {
        [&self.options, &self.variables.layer, &self.document.layer]
    }

    /// What is said for one certificate, the strongest first.
    pub(super) fn layers_of<'a>(&'a self, entry: &'a Entry) -> [&'a CertificateLayer; 4] {
        let (options, variables) = (&self.options.shared, &self.variables.layer.shared);
        let (own, file) = (&entry.layer, &self.document.layer.shared);
        match entry.is_a_label {
            true => [own, options, variables, file],
            false => [options, variables, own, file],
        }
    }

    /// The files that are named, whether or not a certificate has use for them
    /// yet.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let shared = self.layers().map(|layer| &layer.shared);
        let own = self.document.entries.iter().map(|entry| &entry.layer);
        let layers = shared.into_iter().chain(own);
        let files = layers.flat_map(|layer| [&layer.root, &layer.eab_hmac_file]);
        let said = files.flatten();
        said.map(|given| self.absolute(given)).collect()
    }

    /// How messages look, also while something else is wrong.
    #[must_use]
    pub fn log_format(&self) -> LogFormat {
        value(pick(&self.layers(), |layer| &layer.log_format)).unwrap_or_default()
    }

    /// What holds for the whole process.
    pub(super) fn process(&self, problems: &mut Problems) -> Settings {
        let layers = self.layers();
        let path = |given: Option<&Given<PathBuf>>| given.map(|given| self.absolute(given));
        let data_dir = path(pick(&layers, |layer| &layer.data_dir))
            .or_else(|| self.default_data_dir.clone())
            .unwrap_or_else(|| {
                let message = "there is no place for the private state";
                problems.add(&Place::Nowhere, message, "give --data-dir DIR");
                PathBuf::new()
            });
        let schedule = value(pick(&layers, |layer| &layer.schedule));
        let when = pick(&layers, |layer| &layer.deploy_when);
        if let (Some(when), None) = (when, &schedule)
            && when.value == DeployWhen::OnSchedule
        {
            let hint = "add [renew] schedule = \"30 3 * * *\"";
            problems.add(&when.place, "there is no schedule to deploy on", hint);
        }
        let directory = path(pick(&layers, |layer| &layer.output_dir));
        let (owner, group) = (
            pick(&layers, |layer| &layer.output_owner),
            pick(&layers, |layer| &layer.output_group),
        );
        exists(owner, owner::user, problems);
        exists(group, owner::group, problems);
        Settings {
            file: self.file.clone(),
            output: OutputSettings {
                directory: directory.unwrap_or_else(|| data_dir.join("public")),
                owner: value(owner),
                group: value(group),
            },
            data_dir,
            log_format: self.log_format(),
            harden: value(pick(&layers, |layer| &layer.harden)).unwrap_or(true),
            admin_listen: match value(pick(&layers, |layer| &layer.admin_listen)) {
                None => Some(([127, 0, 0, 1], 9180).into()),
                Some(AdminListen::At(address)) => Some(address),
                Some(AdminListen::Off) => None,
            },
            renew: RenewSettings {
                schedule,
                deploy: value(when).unwrap_or_default(),
            },
            challenge: self.challenge(&[
                &self.options.shared,
                &self.variables.layer.shared,
                &self.document.layer.shared,
            ]),
            docker: self.docker(),
            certificates: Vec::new(),
        }
    }

    /// Without a host there are no labels.
    fn docker(&self) -> Option<DockerSettings> {
        let layers = self.layers();
        let grace = value(pick(&layers, |layer| &layer.docker_grace));
        let raw = value(pick(&layers, |layer| &layer.docker_accepts_raw));
        let shared = [
            &self.options.shared,
            &self.variables.layer.shared,
            &self.document.layer.shared,
        ];
        // What is wrong with them is told with the certificates.
        let mut deploy = self.deploy(&shared, &mut Problems::default());
        let tables = self.document.targets.values();
        for table in tables.map(|spec| self.located(spec)) {
            if !deploy.contains(&table) {
                deploy.push(table);
            }
        }
        Some(DockerSettings {
            host: value(pick(&layers, |layer| &layer.docker_host))?.0,
            accept_raw_socket: raw.unwrap_or_default(),
            grace: grace.map_or(GRACE, |grace| grace.0),
            allow: value(pick(&layers, |layer| &layer.docker_allow)).unwrap_or_default(),
            limit: value(pick(&layers, |layer| &layer.docker_limit))
                .map_or(LIMIT, |limit| limit.get().into()),
            deploy,
        })
    }

    /// One certificate, complete.
    pub(super) fn certificate(
        &self,
        entry: &Entry,
        problems: &mut Problems,
    ) -> CertificateSettings {
        let layers = self.layers_of(entry);
        let path = |given: Option<&Given<PathBuf>>| given.map(|given| self.absolute(given));
        let root = path(pick(&layers, |layer| &layer.root));
        let fallback = pick(&layers, |layer| &layer.fallback).map(|directory| CaSettings {
            directory: directory.value.clone(),
            root: root.clone(),
            email: value(pick(&layers, |layer| &layer.email)),
            agree_tos: value(pick(&layers, |layer| &layer.agree_tos)).unwrap_or_default(),
            eab_kid: value(pick(&layers, |layer| &layer.fallback_eab_kid)),
            eab_hmac_file: path(pick(&layers, |layer| &layer.fallback_eab_hmac_file)),
            preferred_chain: None,
        });
        CertificateSettings {
            lineage: entry.lineage.clone(),
            names: entry.names.clone(),
            fallback,
            ca: CaSettings {
                directory: value(pick(&layers, |layer| &layer.ca)).unwrap_or_default(),
                root,
                email: value(pick(&layers, |layer| &layer.email)),
                agree_tos: value(pick(&layers, |layer| &layer.agree_tos)).unwrap_or_default(),
                eab_kid: value(pick(&layers, |layer| &layer.eab_kid)),
                eab_hmac_file: path(pick(&layers, |layer| &layer.eab_hmac_file)),
                preferred_chain: value(pick(&layers, |layer| &layer.preferred_chain)),
            },
            profile: value(pick(&layers, |layer| &layer.profile)),
            key: value(pick(&layers, |layer| &layer.key)).unwrap_or_default(),
            reuse_key: value(pick(&layers, |layer| &layer.reuse_key)).unwrap_or_default(),
            partial: value(pick(&layers, |layer| &layer.partial)).unwrap_or_default(),
            challenge: self.challenge(&layers),
            deploy: self.deploy(&layers, problems),
            verify: value(pick(&layers, |layer| &layer.verify)).unwrap_or_default(),
            imported: None,
        }
    }

    /// The strongest source that says how decides, whichever way it says.
    fn challenge(&self, layers: &[&CertificateLayer]) -> ChallengeSettings {
        for layer in layers {
            if let Some(stored) = &layer.stored_challenge {
                return stored.value.clone();
            }
            if let Some(directory) = &layer.webroot {
                let directory = self.absolute(directory);
                return ChallengeSettings::Webroot(webroot::Settings::new(directory));
            }
            if let Some(addresses) = &layer.http_listen {
                let addresses = addresses.value.clone();
                return ChallengeSettings::Listen(http01::Settings::new(addresses));
            }
        }
        let kind = pick(layers, |layer| &layer.challenge);
        kind.map(|kind| kind.value.into()).unwrap_or_default()
    }

    /// Named tables stand for every certificate that does not say otherwise.
    fn deploy(&self, layers: &[&CertificateLayer], problems: &mut Problems) -> Vec<Spec> {
        let targets = &self.document.targets;
        let mut says = layers
            .iter()
            .filter(|layer| layer.deploy.is_some() || layer.stored_deploy.is_some());
        let said = says.next();
        if let Some(stored) = said.and_then(|layer| layer.stored_deploy.as_ref()) {
            // With all their keys, as they were located when they were stored.
            return stored.value.clone();
        }
        let Some(given) = said.and_then(|layer| layer.deploy.as_ref()) else {
            return targets.values().map(|spec| self.located(spec)).collect();
        };
        let mut specs: Vec<Spec> = Vec::new();
        for word in &given.value {
            let spec = match targets.get(&word.value) {
                Some(named) => Ok(self.located(named)),
                None => word.value.parse().map(|value| {
                    let place = word.place.clone();
                    self.located(&Given { value, place })
                }),
            };
            match spec {
                Ok(spec) if specs.contains(&spec) => {
                    let message = format!("`{spec}` is given twice");
                    problems.add(&word.place, message, "give it once");
                }
                Ok(spec) => specs.push(spec),
                Err(message) => problems.add(&word.place, message, DEPLOY_HINT),
            }
        }
        specs
    }

    fn located(&self, spec: &Given<Spec>) -> Spec {
        let located = spec.value.clone().located(|path| {
            self.absolute(&Given {
                value: path.to_owned(),
                place: spec.place.clone(),
            })
        });
        match &self.docker_host {
            Some(host) => located.at_docker(host),
            None => located,
        }
    }

    /// A relative path of the file starts at the file, any other here.
    fn absolute(&self, given: &Given<PathBuf>) -> PathBuf {
        let base = match (&given.place, &self.file) {
            (Place::Line { .. }, Some(file)) => file.parent().unwrap_or(Path::new("")),
            _ => Path::new(""),
        };
        let path = base.join(&given.value);
        std::path::absolute(&path).unwrap_or(path)
    }
}

impl CertificateLayer {
    /// Whether its CA is not known, because of a mistake that is told already.
    pub(super) fn hides_its_ca(&self) -> bool {
        ["ca", "agree_tos", "fallback_ca"]
            .iter()
            .any(|key| self.broken.contains(*key))
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
        problems.add(&given.place, message, "name one that exists, or its number");
    }
}

fn pick<'a, L, T>(layers: &[&'a L], of: impl Fn(&L) -> &Option<Given<T>>) -> Option<&'a Given<T>> {
    layers.iter().find_map(|layer| of(layer).as_ref())
}

fn value<T: Clone>(given: Option<&Given<T>>) -> Option<T> {
    given.map(|given| given.value.clone())
}
