//! The files that a sidecar needs: those that its settings name, for writing and
//! reading, and those that the system's resolver reads.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::config::Settings;
use crate::deploy::confirmed::Confirmed;
use crate::deploy::docker::Api;
use crate::deploy::target::DeployTarget;
use crate::files::beneath::{self, REFUSED_HINT};
use crate::net::aws;
use crate::net::dns::lookup::Resolver;
use crate::store::place::StorePlace;

/// Read by the resolver (it loads modules at the first look-up), for time zones
/// and for user names. Whole directories, because their files may be replaced
/// while we run.
const SYSTEM: [&str; 13] = [
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

/// The files of /etc that the resolver, the C library and TLS read. Links lead to one of [`SYSTEM`].
const ETC: [&str; 21] = [
    "resolv.conf",
    "hosts",
    "hostname",
    "host.conf",
    "nsswitch.conf",
    "gai.conf",
    "services",
    "protocols",
    "networks",
    "passwd",
    "group",
    "localtime",
    "timezone",
    "ld.so.cache",
    "ld.so.conf",
    "nscd.conf",
    // The roots that CAs and the programming interfaces of DNS providers are verified with.
    "ssl/certs",
    "ssl/cert.pem",
    "ssl/ca-bundle.pem",
    "pki/tls/certs",
    "pki/ca-trust/extracted",
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
    pub(super) fn of(
        surroundings: &Surroundings<'_>,
        settings: &Settings,
        reads_all: bool,
    ) -> Self {
        let environment = &surroundings.environment;
        let mut files = files(environment, settings);
        files.extend(surroundings.files.iter().cloned());
        let mut read: BTreeSet<PathBuf> = SYSTEM.iter().map(PathBuf::from).collect();
        let resolver = real(Path::new("/etc/resolv.conf"));
        read.extend(
            resolver
                .parent()
                .filter(|parent| *parent != Path::new("/etc"))
                .map(Path::to_owned),
        );
        read.extend(etc(&resolver, reads_all));
        let libraries = environment.get("LD_LIBRARY_PATH");
        read.extend(libraries.into_iter().flat_map(std::env::split_paths));
        // The directory, because the file may be replaced by rename.
        for file in files.iter().flat_map(|file| [file.clone(), real(file)]) {
            read.extend(file.parent().map(Path::to_owned));
        }
        // Commands confirm rights after the start.
        let confirmed = Confirmed::file_for(&settings.data_dir);
        read.extend(confirmed.parent().map(Path::to_owned));
        // A configuration file may appear after the start.
        read.extend(settings.file.is_none().then(|| real(Path::new("."))));
        // The root directory would lift the restriction.
        read.retain(|directory| directory.components().count() > 1);
        let (data, output) = (real(&settings.data_dir), real(&settings.output.directory));
        let ours = [data.as_path(), output.as_path()];
        let named = [&settings.data_dir, &settings.output.directory].map(PathBuf::as_path);
        let named = named
            .into_iter()
            .chain(answers(settings))
            .chain(
                { settings.fleet.store.as_ref() }
                    .and_then(StorePlace::directory)
                    .map(PathBuf::as_path),
            )
            .map(Path::to_owned);
        let named = named.chain(published(settings));
        let named = named.filter(|path| may_resolve(path, &ours));
        let named = named.map(|path| real(&path));
        let mut written: BTreeSet<_> = named.filter_map(|path| existing_or_parent(&path)).collect();
        written.extend(copy_directories(settings));
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

    /// Denies what only the helper process uses, once this process is another user.
    pub(super) fn leave_to_helper(&mut self, settings: &Settings) {
        let own = Self {
            written: BTreeSet::new(),
            ..self.clone()
        };
        let copies = copy_directories(settings);
        let is_own =
            |path: &PathBuf| !copies.contains(path) || *path == own.data || *path == own.output;
        self.written.retain(is_own);
        self.sockets.clear();
    }

    pub(super) fn may_write(&self, path: &Path) -> bool {
        within(&self.written, path)
    }

    pub(super) fn may_read(&self, path: &Path) -> bool {
        self.may_write(path) || within(&self.read, path)
    }
}

/// What is read of /etc. A DHCP client replaces a `resolv.conf` that is a plain file by a
/// rename, which a rule for the file would not outlive: then it is the whole directory, of
/// which an unprivileged process reads only what every user may read.
fn etc(resolver: &Path, reads_all: bool) -> Vec<PathBuf> {
    let etc = Path::new("/etc");
    let is_replaced = resolver == etc.join("resolv.conf") && !is_mount_point(resolver);
    match is_replaced && !reads_all {
        true => vec![etc.to_owned()],
        false => ETC.map(|name| etc.join(name)).to_vec(),
    }
}
/// Whether a file is mounted there, as in a container: it can only be written in place.
fn is_mount_point(file: &Path) -> bool {
    let device = |path: &Path| std::fs::metadata(path).map(|found| found.dev()).ok();
    device(file) != file.parent().and_then(device)
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

/// All configured targets, those that a label may name among them.
pub(super) fn permitted(settings: &Settings) -> impl Iterator<Item = DeployTarget> {
    let docker = settings.docker.iter();
    let from_labels = docker.flat_map(|docker| docker.deploy.iter().cloned());
    specs(settings).chain(from_labels)
}

/// The socket of Docker's API, if labels are read.
pub(super) fn docker_socket(settings: &Settings) -> Option<PathBuf> {
    let api = Api::at(&settings.docker.as_ref()?.host, &Resolver::default()).ok()?;
    api.socket().map(Path::to_owned)
}

/// The outputs of certificates that were made with another.
fn published(settings: &Settings) -> impl Iterator<Item = PathBuf> {
    let all = settings.certificates.iter();
    all.map(|one| settings.output_of(one).directory)
}

/// The directories for challenge answers.
fn answers(settings: &Settings) -> impl Iterator<Item = &Path> {
    let certificates = settings.certificates.iter().map(|one| &one.challenge);
    let all = certificates.chain([&settings.challenge]);
    all.flat_map(|challenge| challenge.writes_in())
}

/// The open directories of challenge answers, which are created.
pub(super) fn open_answers(settings: &Settings) -> impl Iterator<Item = std::io::Result<File>> {
    let certificates = settings.certificates.iter().map(|one| &one.challenge);
    let all = certificates.chain([&settings.challenge]);
    all.flat_map(|challenge| challenge.open_answers())
}

fn files(environment: &BTreeMap<String, String>, settings: &Settings) -> BTreeSet<PathBuf> {
    let named = environment.iter().filter_map(|(name, value)| {
        let is_ours = name.starts_with("CERTS_") && name.ends_with("_FILE")
            || aws::FILES.contains(&name.as_str());
        (is_ours && !value.is_empty()).then(|| PathBuf::from(value))
    });
    let home = environment.get("HOME").filter(|home| !home.is_empty());
    let of_s3 = { settings.fleet.store.as_ref() }.is_some_and(StorePlace::is_s3);
    let shared = home.filter(|_| of_s3);
    let shared = shared.map(|home| Path::new(home).join(aws::SHARED_IN_HOME));
    let certificates = settings.certificates.iter();
    named
        .chain(shared)
        .chain(certificates.flat_map(|one| {
            let beside = one.deploy.iter().filter_map(|spec| spec.rights().reads);
            one.ca_files().cloned().chain(beside)
        }))
        .chain(settings.file.clone())
        .chain(settings.roots.named().cloned())
        .map(|file| std::path::absolute(&file).unwrap_or(file))
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
        .filter_map(|spec| spec.writes_in())
        .filter(|directory| may_resolve(directory, &[]))
        .map(|directory| real(&directory))
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

/// Whether no other user, and not the sandbox itself, can lead the path elsewhere. Below
/// `ours` this process makes and moves links, also those that root made.
pub(super) fn may_resolve(path: &Path, ours: &[&Path]) -> bool {
    let refused = beneath::refused_way(path, ours);
    if let Some(refused) = &refused {
        tracing::warn!("{refused}, and stays outside the sandbox; hint: {REFUSED_HINT}");
    }
    refused.is_none()
}

fn warn_outside(directory: &Path) {
    tracing::warn!(
        "{} does not exist and is outside the sandbox; hint: create it and restart certs run",
        directory.display()
    );
}

/// `path` with links resolved as far as it exists.
pub(super) fn real(path: &Path) -> PathBuf {
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
        // A link that another user can replace leads nowhere.
        let open = |mode| {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(root.join("each"), mode).unwrap();
        };
        std::fs::rename(&each[0], root.join("elsewhere")).unwrap();
        std::os::unix::fs::symlink("../elsewhere", &each[0]).unwrap();
        open(0o777);
        assert_eq!(
            copy_directories(&settings),
            BTreeSet::from([each[1].clone()])
        );
        open(0o755);
        std::fs::remove_file(&each[0]).unwrap();
        std::fs::rename(root.join("elsewhere"), &each[0]).unwrap();
        // Directories of our own are created before the sandbox.
        specs(&settings).for_each(|spec| spec.prepare());
        let [one, other] = each;
        let wanted = BTreeSet::from([one, other, root.join("java")]);
        assert_eq!(copy_directories(&settings), wanted);
    }

    #[test]
    fn tokens_of_a_role_stay_readable() {
        use crate::config::{Options, Purpose, Sources};
        let mut options = Options::default();
        options.text("data_dir", Some("/data"));
        options.text("ca", Some("https://ca.internal/dir"));
        options.names(&["a.internal".into()]);
        let settings = Sources::read(&options, &[].into()).settings(&Purpose::Named);
        let variables = [
            ("AWS_WEB_IDENTITY_TOKEN_FILE", "/run/pod/token"),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "/run/task/token"),
            ("CERTS_DNS_HETZNER_API_TOKEN_FILE", "/run/hetzner"),
            ("AWS_SHARED_CREDENTIALS_FILE", "/run/aws/credentials"),
            ("AWS_CONFIG_FILE", "/root/.aws/config"),
            ("HOME", "/home/certs"),
        ];
        let environment = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let (environment, mut settings) = (environment.into(), settings.unwrap());
        let found = files(&environment, &settings);
        let wanted = [
            "/run/pod/token",
            "/run/task/token",
            "/run/hetzner",
            "/run/aws/credentials",
        ];
        let mut wanted: BTreeSet<_> = wanted.map(PathBuf::from).into();
        assert_eq!(found, wanted);
        settings.fleet.store = Some("s3://bucket/certs".parse().unwrap());
        wanted.insert("/home/certs/.aws/credentials".into());
        assert_eq!(files(&environment, &settings), wanted);
        // Other stores have no credentials there.
        settings.fleet.store = Some("etcd://etcd/certs".parse().unwrap());
        wanted.remove(Path::new("/home/certs/.aws/credentials"));
        assert_eq!(files(&environment, &settings), wanted);
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
    }
}
