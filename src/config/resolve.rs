//! The one place where the three sources become [`Settings`].

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::check;
use super::environment::{self, Variables};
use super::layer::{CertificateLayer, Layer, Value, parsed};
use super::options::Options;
use super::problem::{Given, Place, Problem, Problems};
use super::read::{self, Document, Entry};
use super::{
    AdminListen, CaSettings, CertificateSettings, ChallengeSettings, DEPLOY_HINT, Directory,
    OutputSettings, RenewSettings, Settings,
};
use crate::deploy::spec::Spec;
use crate::identifier::{Identifier, Lineage};

const USUAL_FILES: [&str; 2] = ["certs.toml", "/etc/certs/certs.toml"];

/// Which certificates a command is about.
#[derive(Clone, Debug)]
pub enum Purpose {
    /// The one that the command line names; all of them when it names none,
    /// and an error when there are none.
    Named,
    /// Every one of the file, the environment and the command line.
    All,
    /// Those, and what is stored and configured no more.
    Stored(Vec<Remembered>),
}

/// A stored certificate.
#[derive(Clone, Debug)]
pub enum Remembered {
    /// With the settings of the command that made it.
    Whole(Box<CertificateSettings>),
    /// With what its record says.
    Record {
        /// Its name.
        lineage: Lineage,
        /// What it is for.
        names: Vec<Identifier>,
        /// Its CA.
        directory: Option<Directory>,
        /// Its profile.
        profile: Option<String>,
    },
}

/// The three sources, read and not yet combined.
#[derive(Clone, Debug)]
pub struct Sources {
    problems: Problems,
    options: Layer,
    named: Option<Entry>,
    variables: Variables,
    domains: Vec<Entry>,
    document: Document,
    file: Option<PathBuf>,
    default_data_dir: Option<PathBuf>,
}

impl Sources {
    /// Reads all three. What is wrong with them is told by [`Self::settings`].
    #[must_use]
    pub fn read(options: &Options, environment: &BTreeMap<String, String>) -> Self {
        let mut problems = Problems::default();
        let (file, document) = file(options, environment, &mut problems);
        let variables = environment::read(environment, &mut problems);
        let domains = variables
            .domains
            .iter()
            .filter_map(|group| group_of(group, None, &mut problems))
            .collect();
        let layer = options.layer(&mut problems);
        let mut sources = Self {
            problems,
            options: layer,
            named: None,
            variables,
            domains,
            document,
            file,
            default_data_dir: default_data_dir(environment),
        };
        sources.named = sources.name(options);
        sources
    }

    /// Combines them.
    ///
    /// # Errors
    /// Every problem of all sources.
    pub fn settings(&self, purpose: &Purpose) -> Result<Settings, Vec<Problem>> {
        let mut problems = self.problems.clone();
        let entries = self.entries(purpose, &mut problems);
        let mut settings = self.process(&mut problems);
        for entry in &entries {
            let certificate = self.certificate(entry, &mut problems);
            check::certificate(&certificate, &entry.place, &mut problems);
            settings.certificates.push(certificate);
        }
        if problems.is_empty() {
            Ok(settings)
        } else {
            Err(problems.sorted())
        }
    }

    /// What holds for the whole process; the certificates are left out, and
    /// whatever is wrong with them alone.
    ///
    /// # Errors
    /// Every problem of reading the sources.
    pub fn process_settings(&self) -> Result<Settings, Vec<Problem>> {
        let mut problems = self.problems.clone();
        let settings = self.process(&mut problems);
        if problems.is_empty() {
            Ok(settings)
        } else {
            Err(problems.sorted())
        }
    }

    /// How messages look, also while something else is wrong.
    #[must_use]
    pub fn log_format(&self) -> super::LogFormat {
        pick(&self.layers(), |layer| &layer.log_format)
            .map(|given| given.value)
            .unwrap_or_default()
    }

    fn layers(&self) -> [&Layer; 3] {
        [&self.options, &self.variables.layer, &self.document.layer]
    }

    fn process(&self, problems: &mut Problems) -> Settings {
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
            && when.value == super::DeployWhen::OnSchedule
        {
            let hint = "add [renew] schedule = \"30 3 * * *\"";
            problems.add(&when.place, "there is no schedule to deploy on", hint);
        }
        let directory = path(pick(&layers, |layer| &layer.output_dir));
        Settings {
            file: self.file.clone(),
            output: OutputSettings {
                directory: directory.unwrap_or_else(|| data_dir.join("public")),
                owner: value(pick(&layers, |layer| &layer.output_owner)),
                group: value(pick(&layers, |layer| &layer.output_group)),
            },
            data_dir,
            log_format: self.log_format(),
            admin_listen: match value(pick(&layers, |layer| &layer.admin_listen)) {
                None => Some(([127, 0, 0, 1], 9180).into()),
                Some(AdminListen::At(address)) => Some(address),
                Some(AdminListen::Off) => None,
            },
            renew: RenewSettings {
                schedule,
                deploy: value(when).unwrap_or_default(),
            },
            certificates: Vec::new(),
        }
    }

    /// The certificate of the command line. Names that are all of a configured
    /// certificate mean that one, whole: a command never makes it smaller.
    fn name(&mut self, options: &Options) -> Option<Entry> {
        let hint = "letters a to z, digits, `.`, `_` and `-`";
        let lineage = options
            .lineage
            .as_ref()
            .and_then(|value| parsed::<Lineage>(value, hint, &mut self.problems));
        if options.names.is_empty() {
            return lineage.and_then(|lineage| self.by_lineage(lineage));
        }
        if let [
            Value {
                value: super::layer::Raw::Text(text),
                ..
            },
        ] = options.names.as_slice()
            && let Ok(only) = Lineage::parse(text)
            && lineage.is_none()
            && let Some(entry) = self.configured(&only)
        {
            return Some(entry.clone());
        }
        let group = Given {
            value: super::layer::Raw::List(options.names.clone()),
            place: Place::Option("NAME".to_owned()),
        };
        let mut entry = group_of(&group, lineage.map(|given| given.value), &mut self.problems)?;
        if let Some(known) = self.configured(&entry.lineage)
            && entry.names.iter().all(|name| known.names.contains(name))
        {
            entry.names.clone_from(&known.names);
        }
        Some(entry)
    }

    fn by_lineage(&mut self, lineage: Given<Lineage>) -> Option<Entry> {
        if let Some(entry) = self.configured(&lineage.value) {
            return Some(entry.clone());
        }
        if let [only] = self.domains.as_mut_slice() {
            only.lineage = lineage.value;
            return None;
        }
        let message = format!("there is no certificate `{}` to name", lineage.value);
        let hint = "give its names too, or configure it";
        self.problems.add(&lineage.place, message, hint);
        None
    }

    fn configured(&self, lineage: &Lineage) -> Option<&Entry> {
        let mut all = self.document.entries.iter();
        all.find(|entry| entry.lineage == *lineage)
    }

    /// Whom `purpose` is about; a later source renames, it never doubles.
    fn entries(&self, purpose: &Purpose, problems: &mut Problems) -> Vec<Entry> {
        if let (Purpose::Named, Some(named)) = (purpose, &self.named) {
            return vec![self.with_own(named)];
        }
        let mut entries = self.document.entries.clone();
        let mut seen = BTreeSet::new();
        for entry in &self.domains {
            if !seen.insert(entry.lineage.clone()) {
                let message = format!("there are two certificates `{}`", entry.lineage);
                problems.add(
                    &entry.place,
                    message,
                    "put another name first in one of them",
                );
            }
        }
        for entry in self.domains.iter().chain(&self.named) {
            let entry = self.with_own(entry);
            match entries.iter_mut().find(|old| old.lineage == entry.lineage) {
                Some(old) => *old = entry,
                None => entries.push(entry),
            }
        }
        if let Purpose::Stored(remembered) = purpose {
            for entry in remembered.iter().map(Entry::remembered) {
                if entries.iter().all(|known| known.lineage != entry.lineage) {
                    entries.push(entry);
                }
            }
        }
        if entries.is_empty() && matches!(purpose, Purpose::Named) && problems.is_empty() {
            let hint = "certs issue example.com, CERTS_DOMAINS=\"example.com www.example.com\", or [[certificate]] in certs.toml";
            problems.add(&Place::Nowhere, "no name is given", hint);
        }
        entries
    }

    fn with_own(&self, entry: &Entry) -> Entry {
        let mut entry = entry.clone();
        if let Some(known) = self.configured(&entry.lineage) {
            entry.layer = known.layer.clone();
        }
        entry
    }

    fn certificate(&self, entry: &Entry, problems: &mut Problems) -> CertificateSettings {
        let layers = [
            &self.options.shared,
            &self.variables.layer.shared,
            &entry.layer,
            &self.document.layer.shared,
        ];
        let path = |given: Option<&Given<PathBuf>>| given.map(|given| self.absolute(given));
        CertificateSettings {
            lineage: entry.lineage.clone(),
            names: entry.names.clone(),
            ca: CaSettings {
                directory: value(pick(&layers, |layer| &layer.ca)).unwrap_or_default(),
                root: path(pick(&layers, |layer| &layer.root)),
                email: value(pick(&layers, |layer| &layer.email)),
                agree_tos: value(pick(&layers, |layer| &layer.agree_tos)).unwrap_or_default(),
                eab_kid: value(pick(&layers, |layer| &layer.eab_kid)),
                eab_hmac_file: path(pick(&layers, |layer| &layer.eab_hmac_file)),
                preferred_chain: value(pick(&layers, |layer| &layer.preferred_chain)),
            },
            profile: value(pick(&layers, |layer| &layer.profile)),
            key: value(pick(&layers, |layer| &layer.key)).unwrap_or_default(),
            reuse_key: value(pick(&layers, |layer| &layer.reuse_key)).unwrap_or_default(),
            challenge: self.challenge(&layers),
            deploy: self.deploy(pick(&layers, |layer| &layer.deploy), problems),
            verify: value(pick(&layers, |layer| &layer.verify)).unwrap_or_default(),
        }
    }

    /// The strongest source that says how decides, whichever way it says.
    fn challenge(&self, layers: &[&CertificateLayer]) -> ChallengeSettings {
        for layer in layers {
            if let Some(webroot) = &layer.webroot {
                return ChallengeSettings::Webroot(self.absolute(webroot));
            }
            if let Some(addresses) = &layer.http_listen {
                return ChallengeSettings::Listen(addresses.value.clone());
            }
        }
        ChallengeSettings::Listen(Vec::new())
    }

    /// Named tables stand for every certificate that does not say otherwise.
    fn deploy(
        &self,
        given: Option<&Given<Vec<Given<String>>>>,
        problems: &mut Problems,
    ) -> Vec<Spec> {
        let Some(given) = given else {
            return self.document.targets.values().cloned().collect();
        };
        let mut specs: Vec<Spec> = Vec::new();
        for word in &given.value {
            let named = self.document.targets.get(&word.value).cloned();
            match named.map_or_else(|| word.value.parse(), Ok) {
                Ok(spec) if specs.contains(&spec) => {
                    let message = format!("`{spec}` is given twice");
                    problems.add(&word.place, message, "give it once");
                }
                Ok(Spec::Nginx { pid_file }) => specs.push(Spec::Nginx {
                    pid_file: pid_file.map(|value| {
                        let place = word.place.clone();
                        self.absolute(&Given { value, place })
                    }),
                }),
                Err(message) => problems.add(&word.place, message, DEPLOY_HINT),
            }
        }
        specs
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

impl Entry {
    fn remembered(stored: &Remembered) -> Self {
        let (lineage, names) = match stored {
            Remembered::Whole(settings) => (&settings.lineage, &settings.names),
            Remembered::Record { lineage, names, .. } => (lineage, names),
        };
        let place = Place::Stored(lineage.to_string());
        Self {
            layer: CertificateLayer::remembered(stored, &place),
            lineage: lineage.clone(),
            names: names.clone(),
            place,
        }
    }
}

impl CertificateLayer {
    fn remembered(stored: &Remembered, place: &Place) -> Self {
        fn given<T>(place: &Place, value: T) -> Option<Given<T>> {
            let place = place.clone();
            Some(Given { value, place })
        }
        let whole = match stored {
            Remembered::Whole(whole) => whole,
            Remembered::Record {
                directory, profile, ..
            } => {
                return Self {
                    ca: directory.clone().and_then(|ca| given(place, ca)),
                    profile: profile.clone().and_then(|profile| given(place, profile)),
                    ..Self::default()
                };
            }
        };
        let ca = whole.ca.clone();
        let words = whole.deploy.iter().map(ToString::to_string);
        let words = words.filter_map(|word| given(place, word)).collect();
        let (listen, webroot) = match whole.challenge.clone() {
            ChallengeSettings::Listen(addresses) => (given(place, addresses), None),
            ChallengeSettings::Webroot(path) => (None, given(place, path)),
        };
        Self {
            ca: given(place, ca.directory),
            root: ca.root.and_then(|value| given(place, value)),
            email: ca.email.and_then(|value| given(place, value)),
            agree_tos: given(place, ca.agree_tos),
            eab_kid: ca.eab_kid.and_then(|value| given(place, value)),
            eab_hmac_file: ca.eab_hmac_file.and_then(|value| given(place, value)),
            preferred_chain: ca.preferred_chain.and_then(|value| given(place, value)),
            webroot,
            http_listen: listen,
            profile: whole.profile.clone().and_then(|value| given(place, value)),
            key: given(place, whole.key),
            reuse_key: given(place, whole.reuse_key),
            deploy: given(place, words),
            verify: given(place, whole.verify.clone()),
        }
    }
}

fn pick<'a, L, T>(layers: &[&'a L], of: impl Fn(&L) -> &Option<Given<T>>) -> Option<&'a Given<T>> {
    layers.iter().find_map(|layer| of(layer).as_ref())
}

fn value<T: Clone>(given: Option<&Given<T>>) -> Option<T> {
    given.map(|given| given.value.clone())
}

fn group_of(group: &Value, lineage: Option<Lineage>, problems: &mut Problems) -> Option<Entry> {
    let hint = "a DNS name or an IP address belongs here";
    let names = super::layer::list::<Identifier>(group, hint, problems)?.value;
    let lineage = lineage.or_else(|| names.first().map(Lineage::of))?;
    Some(Entry {
        place: group.place.clone(),
        names,
        lineage,
        layer: CertificateLayer::default(),
    })
}

/// The file that was named, or the first of the usual ones that is there.
fn file(
    options: &Options,
    environment: &BTreeMap<String, String>,
    problems: &mut Problems,
) -> (Option<PathBuf>, Document) {
    let variable = environment
        .get("CERTS_CONFIG")
        .filter(|file| !file.is_empty());
    let named = match (&options.config, variable) {
        (Some(file), _) => Some((file.clone(), Place::Option("--config".to_owned()))),
        (None, Some(file)) => Some((file.clone(), Place::Variable("CERTS_CONFIG".to_owned()))),
        (None, None) => None,
    };
    let candidates = match named {
        Some((file, place)) => vec![(file, Some(place))],
        None => USUAL_FILES.map(|file| (file.to_owned(), None)).to_vec(),
    };
    for (file, place) in candidates {
        match std::fs::read_to_string(&file) {
            Ok(source) => {
                let document = read::read(&file, &source, problems);
                return (Some(file.into()), document);
            }
            Err(error) if error.kind() == ErrorKind::NotFound && place.is_none() => {}
            Err(error) => {
                let message = format!("{}: {error}", file.escape_debug());
                let place = place.unwrap_or(Place::Nowhere);
                problems.add(&place, message, "name a readable file in TOML");
                break;
            }
        }
    }
    (None, Document::default())
}

fn default_data_dir(environment: &BTreeMap<String, String>) -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some("/var/lib/certs".into());
    }
    let set = |name: &str| environment.get(name).filter(|path| !path.is_empty());
    let base = set("XDG_DATA_HOME").map(PathBuf::from);
    let base = base.or_else(|| Some(Path::new(set("HOME")?).join(".local/share")));
    base.map(|base| base.join("certs"))
}
