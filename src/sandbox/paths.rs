//! The files that a sidecar needs: those that its settings name, for writing and
//! reading, and those that the system's resolver reads.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::config::Settings;
use crate::deploy::docker::Api;
use crate::deploy::target::DeployTarget;

/// Read by the resolver (it loads modules at the first look-up), for time zones
/// and for user names. Whole directories, because their files may be replaced
/// while we run.
const SYSTEM: [&str; 14] = [
    "/etc",
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    "/nix/store",
    "/gnu/store",
    "/run/systemd/resolve",
    "/run/resolvconf",
    "/run/NetworkManager",
    "/run/connman",
    "/run/nscd",
    "/var/lib/sss",
    "/sys/devices/system/cpu",
];

/// The environment and configuration files of this process.
pub(crate) struct Surroundings<'a> {
    /// Its environment.
    pub(crate) environment: &'a BTreeMap<String, String>,
    /// The files of its configuration.
    pub(crate) files: Vec<PathBuf>,
}

/// Accessible directories, each with everything below it.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    pub(super) written: BTreeSet<PathBuf>,
    pub(super) read: BTreeSet<PathBuf>,
    /// Of `written`: the private state.
    pub(super) data: PathBuf,
    /// Of `written`: the directory shared with a proxy.
    pub(super) output: PathBuf,
    /// Named files, which may be read again at any time.
    pub(super) files: BTreeSet<PathBuf>,
    /// Sockets to connect to.
    pub(super) sockets: BTreeSet<PathBuf>,
}

impl Paths {
    pub(super) fn of(surroundings: &Surroundings<'_>, settings: &Settings) -> Self {
        let environment = &surroundings.environment;
        let mut files = files(environment, settings);
        files.extend(surroundings.files.iter().cloned());
        let mut read: BTreeSet<PathBuf> = SYSTEM.iter().map(PathBuf::from).collect();
        let resolver = real(Path::new("/etc/resolv.conf"));
        read.extend(resolver.parent().map(Path::to_owned));
        let libraries = environment.get("LD_LIBRARY_PATH");
        read.extend(libraries.into_iter().flat_map(std::env::split_paths));
        // The directory, because the file may be replaced by rename.
        for file in files.iter().flat_map(|file| [file.clone(), real(file)]) {
            read.extend(file.parent().map(Path::to_owned));
        }
        // A configuration file may appear after the start.
        read.extend(settings.file.is_none().then(|| real(Path::new("."))));
        // The root directory would lift the restriction.
        read.retain(|directory| directory.components().count() > 1);
        let (data, output) = (real(&settings.data_dir), real(&settings.output.directory));
        let named = [data.clone(), output.clone()].into_iter();
        let named = named.chain(answers(settings).map(real));
        let named = named.chain(published(settings));
        let mut written: BTreeSet<_> = named.filter_map(|path| existing_or_parent(&path)).collect();
        written.extend(copy_directories(settings));
        for directory in [&data, &output] {
            written.extend(linked_from(directory));
        }
        Self {
            written,
            read,
            data,
            output,
            files,
            sockets: specs(settings)
                .filter_map(|spec| spec.rights().connects_to)
                .chain(docker_socket(settings))
                .collect(),
        }
    }

    pub(super) fn may_write(&self, path: &Path) -> bool {
        within(&self.written, path)
    }

    pub(super) fn may_read(&self, path: &Path) -> bool {
        self.may_write(path) || within(&self.read, path)
    }
}

/// A missing path counts as within: the code that needs it reports the error.
fn within(directories: &BTreeSet<PathBuf>, path: &Path) -> bool {
    let Ok(path) = std::fs::canonicalize(path) else {
        return true;
    };
    path.ancestors()
        .any(|directory| directories.contains(directory))
}

/// All deploy targets, with each certificate's name in their paths, including those
/// that a container's label may name later.
pub(super) fn specs(settings: &Settings) -> impl Iterator<Item = DeployTarget> {
    let docker = settings.docker.iter();
    let from_labels = docker.flat_map(|docker| docker.deploy.iter().cloned());
    let certificates = settings.certificates.iter().flat_map(|one| {
        let specs = one.deploy.iter();
        specs.map(|spec| spec.for_lineage(&one.lineage))
    });
    certificates.chain(from_labels.filter(|spec| !spec.has_directory_for_each()))
}

/// The socket of Docker's API, if labels are read.
fn docker_socket(settings: &Settings) -> Option<PathBuf> {
    let api = Api::at(&settings.docker.as_ref()?.host).ok()?;
    api.socket().map(Path::to_owned)
}

/// The outputs of stored certificates, where these are published already: what only the
/// store says must not open a directory to the process that writes the store.
fn published(settings: &Settings) -> impl Iterator<Item = PathBuf> {
    settings.certificates.iter().filter_map(|one| {
        let output = real(&settings.output_of(one).directory);
        let live = output.join("live").join(one.lineage.as_str());
        live.is_symlink().then_some(output)
    })
}

/// The directories for challenge answers.
fn answers(settings: &Settings) -> impl Iterator<Item = &Path> {
    let certificates = settings.certificates.iter().map(|one| &one.challenge);
    let all = certificates.chain([&settings.challenge]);
    all.filter_map(|challenge| challenge.writes_in())
}

fn files(environment: &BTreeMap<String, String>, settings: &Settings) -> BTreeSet<PathBuf> {
    let named = environment.iter().filter_map(|(name, value)| {
        let is_ours = name.starts_with("CERTS_") && name.ends_with("_FILE");
        (is_ours && !value.is_empty()).then(|| PathBuf::from(value))
    });
    let certificates = settings.certificates.iter();
    named
        .chain(certificates.flat_map(|one| {
            let beside = one.deploy.iter().filter_map(|spec| spec.rights().reads);
            one.ca_files().cloned().chain(beside)
        }))
        .chain(settings.file.clone())
        .map(|file| std::path::absolute(&file).unwrap_or(file))
        .collect()
}

/// The targets of links directly below `directory`: part of the state may be on
/// another disk.
fn linked_from(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()))
        .filter_map(|entry| std::fs::canonicalize(entry.path()).ok())
        .filter(|target| target.is_dir())
        .collect()
}

/// The directory, or its parent if it must be created. A more distant ancestor
/// would allow too much.
fn existing_or_parent(directory: &Path) -> Option<PathBuf> {
    let is_allowed = |parent: &&Path| parent.is_dir() && parent.parent().is_some();
    let found = match directory.is_dir() {
        true => Some(directory),
        false => directory.parent().filter(is_allowed),
    };
    if found.is_none() {
        warn_outside(directory);
    }
    found.map(Path::to_owned)
}

/// The directories of the deploy targets' copies, without their parents. A parent, or
/// the root directory, would allow too much.
fn copy_directories(settings: &Settings) -> BTreeSet<PathBuf> {
    let mut directories: BTreeSet<_> = specs(settings)
        .filter_map(|spec| Some(real(&spec.writes_in()?)))
        .collect();
    directories.retain(|directory| {
        let is_there = directory.is_dir() && directory.components().count() > 1;
        if !is_there {
            warn_outside(directory);
        }
        is_there
    });
    directories
}

fn warn_outside(directory: &Path) {
    tracing::warn!(
        "{} does not exist and is outside the sandbox; hint: create it and restart certs run",
        directory.display()
    );
}

/// `path` with links resolved as far as it exists.
fn real(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or(path.to_owned());
    std::fs::canonicalize(&absolute).unwrap_or_else(|_| {
        let mut ancestors = absolute.ancestors();
        let there = ancestors.find(|ancestor| ancestor.is_dir());
        let there = there.unwrap_or(&absolute);
        let rest = absolute.strip_prefix(there).unwrap_or(Path::new(""));
        let there = std::fs::canonicalize(there).unwrap_or(there.to_owned());
        there.join(rest)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_directory_allows_its_parent_only() {
        let directory = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(directory.path()).unwrap();
        for (name, wanted) in [("", Some(&root)), ("a", Some(&root)), ("a/b", None)] {
            let found = existing_or_parent(&real(&root.join(name)));
            assert_eq!(found.as_ref(), wanted, "{name}");
        }
        assert_eq!(existing_or_parent(Path::new("/absent")), None);
    }

    #[test]
    fn copy_directories_are_allowed_without_their_parents() {
        use crate::config::{Options, Purpose, Sources};
        let directory = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(directory.path()).unwrap();
        let file = root.join("certs.toml");
        let shown = root.display();
        let config = format!(
            "data_dir = '{shown}/data'\nemail = 'a@example.com'\nagree_tos = true\n\
             [deploy.java]\nkind = 'directory'\npath = '{shown}/java'\n\
             [deploy.each]\nkind = 'file'\npath = '{shown}/each/{{name}}/pair.pem'\n\
             [deploy.absent]\nkind = 'file'\npath = '{shown}/absent/deep/pair-{{name}}.pem'\n\
             [[certificate]]\nnames = ['a.example.com']\n[[certificate]]\nnames = ['b.example.com']\n"
        );
        std::fs::write(&file, config).unwrap();
        std::fs::create_dir(root.join("absent")).unwrap();
        let each = ["a", "b"].map(|name| root.join(format!("each/{name}.example.com")));
        for directory in &each {
            std::fs::create_dir_all(directory).unwrap();
        }
        let mut options = Options::default();
        options.config(file.to_str());
        let settings = Sources::read(&options, &[].into()).settings(&Purpose::All);
        let settings = settings.unwrap();
        assert_eq!(copy_directories(&settings), BTreeSet::from(each.clone()));
        // Directories of our own are created before the sandbox.
        specs(&settings).for_each(|spec| spec.prepare());
        let [one, other] = each;
        let wanted = BTreeSet::from([one, other, root.join("java")]);
        assert_eq!(copy_directories(&settings), wanted);
    }

    #[test]
    fn path_is_resolved_before_it_is_compared() {
        let directory = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(directory.path()).unwrap();
        let [inside, outside] = ["inside", "outside"].map(|name| root.join(name));
        std::fs::create_dir_all(inside.join("deep")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
        let paths = BTreeSet::from([inside.clone()]);
        for (path, wanted) in [
            (inside.join("deep"), true),
            (inside.join("link"), false),
            (inside.join("deep/../../outside"), false),
            (outside.join("absent"), true),
        ] {
            assert_eq!(within(&paths, &path), wanted, "{}", path.display());
        }
        let linked = linked_from(&inside);
        assert_eq!(linked, [outside]);
    }
}
