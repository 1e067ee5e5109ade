//! Reads the three sources and lists the certificates that they name;
//! [`super::combine`] then makes the settings of each.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::arguments::Options;
use super::check::{self, KnownCa};
use super::environment::{self, Variables};
use super::keys::{CertificateLayer, Layer};
use super::layer::{Raw, Value, from_home, identifiers, lineage};
use super::origin::Origin;
use super::problem::{ConfigProblem, Given, Problems, SettingOrigin};
use super::read::{self, Document, Entry, Strength};
use super::remembered::Remembered;
use super::{CertificateSettings, Settings};
use crate::challenge::ChallengeSettings;
use crate::files::named;
use crate::files::trust::{self, Untrusted};
use crate::identifier::Identifier;
use crate::lineage::{Known, Lineage, Meant, meant};
use crate::net::proxy::Proxies;
use crate::net::roots::SystemRoots;

/// The data directory of root, and of the user that owns it.
pub(crate) const USUAL_DATA_DIR: &str = "/var/lib/certs";

/// In the working directory.
const HERE: &str = "certs.toml";
const USUAL_FILE: &str = "/etc/certs/certs.toml";

/// Which certificates a command is about.
#[derive(Clone, Debug)]
pub(crate) enum Purpose {
    /// The certificate that the command line names, else all of them. Having none is an
    /// error.
    Named,
    /// All certificates of the file, the environment and the command line.
    All,
}

/// The three sources, read and not yet combined.
#[derive(Clone, Debug)]
pub(crate) struct Sources {
    pub(super) problems: Problems,
    pub(super) options: Layer,
    pub(super) named: Option<Entry>,
    pub(super) variables: Variables,
    pub(super) domains: Vec<Entry>,
    pub(super) document: Document,
    pub(super) file: Option<PathBuf>,
    pub(super) default_data_dir: Option<PathBuf>,
    /// The address of Docker's API: `DOCKER_HOST`, as Docker's own programs read it.
    pub(super) docker_host: Option<String>,
    /// The proxies of the environment.
    pub(super) proxies: Proxies,
    /// The roots of this machine, where the environment says.
    pub(super) roots: SystemRoots,
    /// Whether the certificate's own name was given.
    pub(crate) names_a_lineage: bool,
    /// Whether orders go to staging directories, which have other accounts.
    pub(crate) rehearses: bool,
    /// What is ignored, such as a file that was not read, for the log.
    pub(crate) warnings: Vec<String>,
}

impl Sources {
    /// Reads all three. [`Self::settings`] reports their problems.
    pub(crate) fn read(options: &Options, environment: &BTreeMap<String, String>) -> Self {
        let mut problems = Problems::default();
        let mut warning = None;
        let (file, document) = file(options, environment, &mut problems, &mut warning);
        let variables = environment::read(environment, &mut problems);
        let name = variables.name.as_ref();
        let name = name.and_then(|name| lineage(name, &mut problems));
        let groups = variables.domains.iter();
        let mut domains: Vec<Entry> = groups
            .filter_map(|group| group_of(group, None, &mut problems))
            .collect();
        match (domains.as_mut_slice(), &name) {
            ([only], Some(name)) => only.rename(&name.value),
            ([_, _, ..], Some(name)) => problems.add(
                &name.origin,
                "it names one certificate, and CERTS_DOMAINS has several",
                "leave it out, or write [[certificate]] tables with their own `name`",
            ),
            _ => {}
        }
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
            docker_host: environment.get("DOCKER_HOST").cloned(),
            proxies: Proxies::of(environment),
            roots: SystemRoots::of(environment),
            names_a_lineage: false,
            rehearses: false,
            warnings: warning.into_iter().collect(),
        };
        let given = options.lineage.as_ref();
        let given = given.and_then(|name| lineage(name, &mut sources.problems));
        // CERTS_NAME belongs to CERTS_DOMAINS, if that is set.
        let given = given.or(name.filter(|_| sources.domains.is_empty()));
        sources.names_a_lineage = given.is_some();
        sources.named = sources.name(options, given);
        // Beside an error they would only hide it.
        if sources.problems.is_empty() {
            let shared = [
                &sources.variables.layer.shared,
                &sources.document.layer.shared,
            ];
            let ignored = shared.map(CertificateLayer::ignored).concat();
            sources.warnings.extend(ignored);
        }
        sources
    }

    /// Combines them.
    ///
    /// # Errors
    /// Every problem of all sources.
    pub(crate) fn settings(&self, purpose: &Purpose) -> Result<Settings, Vec<ConfigProblem>> {
        let mut problems = self.problems.clone();
        let entries = self.entries(purpose, &mut problems);
        let mut settings = self.process(&mut problems);
        let index = self.index();
        for entry in &entries {
            let mut certificate = self.checked(entry, &mut problems);
            certificate.origin = Some(match index.has(&entry.lineage) {
                true => Origin::Configuration,
                false => Origin::Command,
            });
            if let Some(last) = settings.certificates.last() {
                certificate.share(last);
            }
            settings.certificates.push(certificate);
        }
        check::copies(&settings.certificates, &entries, &mut problems);
        self.contradictions_of_fleet(&mut problems);
        problems.or(settings)
    }

    /// The settings of a certificate that is stored and not configured: its stored
    /// settings replace a table of the file.
    ///
    /// What only prevents an order is kept with it: it is deployed and looked at.
    ///
    /// # Errors
    /// Every problem of the sources with that certificate.
    pub(crate) fn remembered(
        &self,
        stored: &Remembered,
    ) -> Result<CertificateSettings, Vec<ConfigProblem>> {
        let (mut problems, mut found) = (Problems::default(), Problems::default());
        let entry = Entry::remembered(stored);
        let mut certificate = self.certificate(&entry, &mut problems);
        let proves = |challenge: &ChallengeSettings| {
            let mut names = certificate.names.iter();
            names.all(|name| challenge.check_name(name).is_ok())
        };
        // A challenge of this process is for the certificates whose names it can prove.
        let [options, variables, own, file] = self.layers_of(&entry);
        let own = self.challenge(&[own, options, variables, file]);
        if !proves(&certificate.challenge) && proves(&own) {
            certificate.challenge = own;
        }
        self.check(&certificate, &entry, &mut found);
        certificate.cannot_order = check::cannot_order(&certificate, found);
        if let Remembered::Whole(whole) = stored {
            certificate.imported.clone_from(&whole.imported);
            certificate.origin = whole.origin;
            certificate.orphaned.clone_from(&whole.orphaned);
        }
        problems.or(certificate)
    }

    /// A contradiction in the certificate's own table prevents only its order: the others
    /// are renewed all the same.
    pub(super) fn checked(&self, entry: &Entry, problems: &mut Problems) -> CertificateSettings {
        let mut found = Problems::default();
        self.options.shared.contradictions(problems);
        match entry.strength {
            Strength::Label => entry.layer.contradictions(problems),
            Strength::Table | Strength::Stored => entry.layer.contradictions(&mut found),
        }
        let mut certificate = self.certificate(entry, problems);
        self.check(&certificate, entry, problems);
        certificate.cannot_order = check::cannot_order(&certificate, found);
        certificate
    }

    fn check(&self, certificate: &CertificateSettings, entry: &Entry, problems: &mut Problems) {
        let layers = self.layers_of(entry);
        let known = match layers.iter().any(|layer| layer.hides_its_ca()) {
            true => KnownCa::No,
            false if self.rehearses => KnownCa::Rehearsed,
            false => KnownCa::Yes,
        };
        let data_dir = || self.process(&mut Problems::default()).data_dir;
        check::certificate(certificate, &entry.origin, known, &data_dir, problems);
    }

    /// Whether the file or the environment has a certificate of that name.
    pub(crate) fn configures(&self, lineage: &Lineage) -> bool {
        self.configured(lineage).is_some()
    }

    /// The same, for these names.
    pub(crate) fn configures_names(&self, lineage: &Lineage, names: &[Identifier]) -> bool {
        let known = self.configured(lineage);
        known.is_some_and(|known| known.names == names)
    }

    /// Whether the name of a certificate was given, and does not follow from its names.
    pub(crate) fn names_itself(&self, lineage: &Lineage) -> bool {
        let named = self.named.iter().flat_map(|entry| self.each_key(entry));
        let mut all = self.configured_entries().chain(named);
        all.any(|entry| entry.lineage == *lineage && entry.is_named)
    }

    /// The certificates of the file and the environment.
    pub(crate) fn known(&self) -> Vec<Known> {
        let known = self.configured_entries().map(|entry| {
            let names: BTreeSet<Identifier> = entry.names.iter().cloned().collect();
            Known {
                lineage: entry.lineage.clone(),
                wanted: names.clone(),
                issued: names,
                is_second: entry.is_second,
                // They are those of the settings.
                kinds: Vec::new(),
            }
        });
        known.collect()
    }

    /// The settings of the whole process, without certificates and their problems.
    ///
    /// # Errors
    /// Every problem of reading the sources.
    pub(crate) fn process_settings(&self) -> Result<Settings, Vec<ConfigProblem>> {
        let mut problems = self.problems.clone();
        let settings = self.process(&mut problems);
        problems.or(settings)
    }

    /// The certificate of the command line. Names that are all of a configured
    /// certificate mean that one, whole: a command never makes it smaller.
    fn name(&mut self, options: &Options, lineage: Option<Given<Lineage>>) -> Option<Entry> {
        if options.names.is_empty() {
            // CERTS_NAME alone does not select a certificate.
            options.lineage.as_ref()?;
            return lineage.and_then(|lineage| self.by_lineage(lineage));
        }
        if let [name] = options.names.as_slice()
            && let Raw::Text(text) = &name.value
            && let Ok(only) = Lineage::parse(text)
            && lineage.is_none()
            && let Some(entry) = self.configured(&only)
        {
            return Some(entry);
        }
        let origin = SettingOrigin::Option("NAME".to_owned());
        let group = Value::new(Raw::List(options.names.clone()), &origin);
        let mut entry = group_of(&group, lineage.map(|given| given.value), &mut self.problems)?;
        if let (false, Meant::Known(lineage)) = (entry.is_named, meant(&entry.names, &self.known()))
        {
            entry.lineage = lineage.clone();
        }
        if let Some(known) = self.configured(&entry.lineage)
            && entry.names.iter().all(|name| known.names.contains(name))
        {
            entry.names.clone_from(&known.names);
        }
        Some(entry)
    }

    fn by_lineage(&mut self, lineage: Given<Lineage>) -> Option<Entry> {
        if let Some(entry) = self.configured(&lineage.value) {
            return Some(entry);
        }
        if let [only] = self.domains.as_mut_slice() {
            only.rename(&lineage.value);
            return None;
        }
        let message = format!("unknown certificate `{}`", lineage.value);
        let hint = "give its names too, or configure it";
        self.problems.add(&lineage.origin, message, hint);
        None
    }

    /// The configured certificate; the names of the environment are stronger than those
    /// of the file.
    fn configured(&self, lineage: &Lineage) -> Option<Entry> {
        let mut all = self.configured_entries();
        all.find(|entry| entry.lineage == *lineage)
    }

    /// The certificates that `purpose` selects. A later source replaces a certificate of
    /// the same name, and never adds a second one.
    fn entries(&self, purpose: &Purpose, problems: &mut Problems) -> Vec<Entry> {
        if let (Purpose::Named, Some(named)) = (purpose, &self.named) {
            return self.each_key(&self.with_own(named)).collect();
        }
        let mut entries = self.document.entries.clone();
        let mut places: BTreeMap<Lineage, usize> = BTreeMap::new();
        for (place, entry) in entries.iter().enumerate() {
            places.entry(entry.lineage.clone()).or_insert(place);
        }
        let own = self.own_layers();
        let mut seen = BTreeSet::new();
        for entry in &self.domains {
            if !seen.insert(entry.lineage.clone()) {
                let message = format!("two certificates are named `{}`", entry.lineage);
                let hint = "put another name first in one of them";
                problems.add(&entry.origin, message, hint);
            }
        }
        for entry in self.domains.iter().chain(&self.named) {
            let mut entry = entry.clone();
            if let Some(layer) = own.get(&entry.lineage) {
                entry.layer = layer.clone();
            }
            let place = *places.entry(entry.lineage.clone()).or_insert(entries.len());
            match entries.get_mut(place) {
                Some(old) => *old = entry,
                None => entries.push(entry),
            }
        }
        if entries.is_empty() && matches!(purpose, Purpose::Named) && problems.is_empty() {
            let hint = "certs issue example.com, CERTS_DOMAINS=\"example.com www.example.com\", or [[certificate]] in certs.toml";
            problems.add(&SettingOrigin::Nowhere, "no name is given", hint);
        }
        let each: Vec<Entry> = entries.iter().flat_map(|one| self.each_key(one)).collect();
        for entry in each.iter().filter(|entry| entry.is_second) {
            if places.contains_key(&entry.lineage) {
                let message = format!(
                    "`{}` is the certificate for the other key too",
                    entry.lineage
                );
                let hint = "give this one another `name`, or leave one of the key types out";
                problems.add(&entry.origin, message, hint);
            }
        }
        each
    }

    /// The keys that the file sets for each certificate alone.
    fn own_layers(&self) -> BTreeMap<Lineage, CertificateLayer> {
        let all = self.document.entries.iter();
        let all = all.flat_map(|entry| self.each_key(entry));
        let mut layers = BTreeMap::new();
        for entry in all {
            layers.entry(entry.lineage).or_insert(entry.layer);
        }
        layers
    }

    /// `entry`, with the keys that the file sets for this certificate alone.
    pub(super) fn with_own(&self, entry: &Entry) -> Entry {
        let all = self.document.entries.iter();
        let mut all = all.flat_map(|entry| self.each_key(entry));
        let known = all.find(|known| known.lineage == entry.lineage);
        Entry {
            layer: known.map_or_else(|| entry.layer.clone(), |known| known.layer),
            ..entry.clone()
        }
    }
}

impl Entry {
    fn rename(&mut self, lineage: &Lineage) {
        (self.lineage, self.is_named) = (lineage.clone(), true);
    }
}

fn group_of(group: &Value, lineage: Option<Lineage>, problems: &mut Problems) -> Option<Entry> {
    let names = identifiers(group, problems);
    let is_named = lineage.is_some();
    let lineage = lineage.or_else(|| names.first().map(Lineage::of))?;
    Some(Entry {
        origin: group.origin.clone(),
        names,
        lineage,
        is_named,
        layer: CertificateLayer::default(),
        strength: Strength::Table,
        is_second: false,
    })
}

/// The named file, else the first of the usual files that exists. Root obeys none that
/// another user can change; other users read what they name.
fn file(
    options: &Options,
    environment: &BTreeMap<String, String>,
    problems: &mut Problems,
    warning: &mut Option<String>,
) -> (Option<PathBuf>, Document) {
    let set = |file: &&String| !file.is_empty();
    let variable = environment.get("CERTS_CONFIG").filter(set);
    let named = match (&options.config, variable) {
        (Some(file), _) => Some((file, SettingOrigin::Option("--config".to_owned()))),
        (None, Some(file)) => Some((file, SettingOrigin::Variable("CERTS_CONFIG".to_owned()))),
        (None, None) => None,
    };
    let (file, origin) = match named {
        Some((file, origin)) => (file.as_str(), origin),
        None if is_own(HERE, warning) => (HERE, SettingOrigin::Nowhere),
        None if !is_absent(USUAL_FILE) => (USUAL_FILE, SettingOrigin::Nowhere),
        None => return (None, Document::default()),
    };
    let found = from_home(Path::new(file));
    let file = found.to_str().unwrap_or(file);
    match named::read(&found) {
        Ok(source) => {
            let document = read::read(file, source.expose(), problems);
            (Some(file.into()), document)
        }
        Err(error) => {
            let message = format!("{}: {error}", file.escape_debug());
            let hint = error.hint();
            let hint = hint.unwrap_or("name a readable file in TOML".to_owned());
            problems.add(&origin, message, hint);
            (None, Document::default())
        }
    }
}

/// Whether `file` of the working directory exists, and only root and our own user can
/// change either: any directory can be the working directory.
fn is_own(file: &str, warning: &mut Option<String>) -> bool {
    let own = |path: &Path| trust::resolve(path).map(drop);
    let refused: Option<Untrusted> = own(Path::new(".")).and_then(|()| own(file.as_ref())).err();
    let there = !is_absent(file);
    *warning = refused.filter(|_| there).map(|error| {
        let hint = error.hint();
        format!("./{file} is not read: {error}; hint: {hint}, or change to another directory")
    });
    there && warning.is_none()
}

/// A file that may not be examined is there.
impl Sources {
    /// The same with this data directory, if none is configured.
    pub(crate) fn with_default_data_dir(mut self, data_dir: &Path) -> Self {
        self.default_data_dir = Some(data_dir.to_owned());
        self
    }
}

fn is_absent(file: &str) -> bool {
    let found = std::fs::symlink_metadata(file);
    found.is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

fn default_data_dir(environment: &BTreeMap<String, String>) -> Option<PathBuf> {
    let user = rustix::process::geteuid();
    // The user of the service has the same one as root.
    let is_ours = std::fs::metadata(USUAL_DATA_DIR).is_ok_and(|found| found.uid() == user.as_raw());
    if user.is_root() || is_ours {
        return Some(USUAL_DATA_DIR.into());
    }
    let set = |name: &str| environment.get(name).filter(|path| !path.is_empty());
    let base = set("XDG_DATA_HOME").map(PathBuf::from);
    let base = base.or_else(|| Some(Path::new(set("HOME")?).join(".local/share")));
    base.map(|base| base.join("certs"))
}
