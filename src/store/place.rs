//! Where the machines of a fleet share their certificates, and how this machine opens it.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};

use super::StoreError;
use super::documents::directory::DirectoryDocuments;
use super::documents::{
    self, Documents, DocumentsError, NamedDocuments, ServerSettings, StoreKind, settings_hint,
};
use super::node::{NodeStore, Role};
use super::seal::{self, Seal};
use super::shared::SharedStore;
use crate::certificate::Secret;
use crate::failure::Advised;
use crate::files;
use crate::net::dns::ServerAddress;
use crate::net::dns::lookup::Resolver;
use crate::net::url::SecretUrl;
use crate::program::Call;
use crate::text::nearest;

/// The longest name of a machine, as of a host.
const LONGEST_NAME: usize = 64;
/// How long the program of the sealing key may take.
const KEY_WITHIN: Duration = Duration::from_secs(30);
const NO_KEY_HINT: &str = "openssl rand -base64 32 > FILE makes a key once; give the file to each machine with mode 0600, and name it in seal_key_file";
const WHOLE_KEY_HINT: &str = "set role = \"serve\" on this machine, or give it the whole key in seal_key_file or seal_key_exec";
const SERVE_HINT: &str = "certs config serve-key on a machine of role full prints the key for it";
const BOTH_HINT: &str = "leave seal_key_file or seal_key_exec out, also of the environment";
const PROGRAM_HINT: &str = "write seal_key_exec = [\"/usr/local/bin/seal-key\", \"ARGUMENT\"], with the program's absolute path";
const CALL_HINT: &str = "call the program of seal_key_exec by hand, and correct what it reports";

/// A store that machines share: `s3://…`, `etcd://…`, `postgres://…`, or a directory. Its text may hold a
/// password, and shows its origin only.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct StorePlace(Kind);

#[derive(Clone, PartialEq, Eq)]
enum Kind {
    Directory(PathBuf),
    Server(SecretUrl),
}

impl StorePlace {
    /// The directory, if it is one.
    #[must_use]
    pub fn directory(&self) -> Option<&PathBuf> {
        match &self.0 {
            Kind::Directory(directory) => Some(directory),
            Kind::Server(_) => None,
        }
    }

    /// Whether it is a bucket.
    pub(crate) fn is_s3(&self) -> bool {
        self.kind() == StoreKind::S3
    }

    /// The same place, with a directory that `absolute` completes.
    #[must_use]
    pub fn completed(self, absolute: impl FnOnce(PathBuf) -> PathBuf) -> Self {
        match self.0 {
            Kind::Directory(directory) => Self(Kind::Directory(absolute(directory))),
            kind @ Kind::Server(_) => Self(kind),
        }
    }

    /// What is wrong with it as far as that is seen from here, and what to do: nothing is sent
    /// or created.
    pub(crate) fn check(&self) -> Result<(), (String, &'static str)> {
        match &self.0 {
            Kind::Directory(root) if root.exists() && !root.is_dir() => Err((
                "it is not a directory".to_owned(),
                "name a directory that all machines mount",
            )),
            Kind::Directory(_) => Ok(()),
            Kind::Server(url) => of_server(url, Resolver::default()).map(drop),
        }
    }

    fn documents(&self, node: &str, resolver: Resolver) -> io::Result<Arc<dyn Documents>> {
        let (kind, place) = (self.kind(), self.to_string());
        let documents: Arc<dyn Documents> = match &self.0 {
            Kind::Directory(root) => {
                let opened = DirectoryDocuments::open(root.clone(), node);
                Arc::new(opened.map_err(|error| kind.explained(&place, error))?)
            }
            Kind::Server(url) => of_server(url, resolver)
                .map_err(|(message, hint)| io::Error::other(Advised { message, hint }))?,
        };
        Ok(Arc::new(NamedDocuments {
            documents,
            kind,
            place,
        }))
    }

    fn kind(&self) -> StoreKind {
        match &self.0 {
            Kind::Directory(_) => StoreKind::Directory,
            Kind::Server(url) if url.expose().starts_with("s3:") => StoreKind::S3,
            Kind::Server(url) if url.expose().starts_with("etcd") => StoreKind::Etcd,
            Kind::Server(_) => StoreKind::Postgres,
        }
    }
}

/// The documents of a server; nothing is sent yet.
fn of_server(
    url: &SecretUrl,
    resolver: Resolver,
) -> Result<Arc<dyn Documents>, (String, &'static str)> {
    let settings = ServerSettings::of_this_process(url.expose().to_owned(), resolver);
    documents::of_server(settings).map_err(|message| {
        let hint = settings_hint(url.expose(), &message);
        (message, hint)
    })
}

/// The URL without user, password and query; its origin only where it is unclear what these are.
fn shown(url: &SecretUrl) -> String {
    let whole = url.expose();
    let place = whole.split_once("://").and_then(|(scheme, rest)| {
        let (user, rest) = rest.rsplit_once('@').unwrap_or(("", rest));
        let place = rest.split('?').next()?.trim_end_matches('/');
        let is_clear = !user.contains('?') && place.chars().all(|one| !one.is_control());
        is_clear.then(|| format!("{scheme}://{place}"))
    });
    place.unwrap_or_else(|| url.origin())
}

/// The schemes of URLs.
const SCHEMES: [&str; 5] = ["s3", "etcd", "etcds", "postgres", "postgresql"];

impl FromStr for StorePlace {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let Some((scheme, rest)) = text.split_once("://") else {
            let scheme = text.split_once(':').map(|(scheme, _)| scheme);
            return match scheme.filter(|scheme| SCHEMES.contains(scheme)) {
                Some(scheme) => Err(format!("the slashes are missing: write {scheme}://")),
                None if text.is_empty() => Err("an empty store".to_owned()),
                None => Ok(Self(Kind::Directory(text.into()))),
            };
        };
        let url = SecretUrl::new(text.to_owned());
        let (host, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        match scheme {
            "etcd" | "etcds" if host.is_empty() => Err("no host of etcd".to_owned()),
            "etcd" | "etcds" if prefix.trim_matches('/').is_empty() => {
                Err("no prefix: another program may use the same etcd".to_owned())
            }
            "s3" if host.is_empty() => Err("no bucket".to_owned()),
            known if SCHEMES.contains(&known) => Ok(Self(Kind::Server(url))),
            unknown => {
                let meant = nearest(&unknown.to_ascii_lowercase(), SCHEMES);
                let meant = meant.map(|meant| format!("; did you mean {meant}://?"));
                let (unknown, meant) = (unknown.escape_debug(), meant.unwrap_or_default());
                Err(format!("unknown store `{unknown}://`{meant}"))
            }
        }
    }
}

impl TryFrom<String> for StorePlace {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl Serialize for StorePlace {
    /// As it is shown.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for StorePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Directory(directory) => directory.display().fmt(f),
            Kind::Server(url) => shown(url).fmt(f),
        }
    }
}

impl fmt::Debug for StorePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The name of this machine in its fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeName(String);

impl NodeName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = String;
    /// Takes letters, digits and `-._`, since it is part of a key.
    fn from_str(text: &str) -> Result<Self, String> {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        let is_valid = (1..=LONGEST_NAME).contains(&text.len())
            && text.bytes().all(known)
            && !text.starts_with('.');
        match is_valid {
            true => Ok(Self(text.to_owned())),
            false => Err(format!("invalid name `{}`", text.escape_debug())),
        }
    }
}

/// How this machine takes part in a fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetSettings {
    /// The store that its machines share; `None`: this machine is on its own.
    pub store: Option<StorePlace>,
    /// The file with the keys that seal what the store gets.
    pub seal_key_file: Option<PathBuf>,
    /// Instead of a file, the program that prints them, and its arguments.
    #[serde(default)]
    pub seal_key_exec: Option<Vec<String>>,
    /// This machine's name; `None`: its host name.
    pub node: Option<NodeName>,
    /// What this machine does.
    pub role: Role,
    /// Looks up the hosts of the store's servers, instead of the system's resolver.
    #[serde(default)]
    pub(crate) resolver: Option<ServerAddress>,
}

impl FleetSettings {
    /// Opens the fleet's store for the machine with its own state in `data_dir`; `None` for a
    /// machine on its own. The store is not reached yet.
    ///
    /// # Errors
    /// When the sealing key or a directory cannot be used.
    pub async fn open(&self, data_dir: PathBuf) -> Result<Option<NodeStore>, StoreError> {
        let shared = self.shared().await?;
        let node = shared.map(|shared| NodeStore::open(data_dir, shared, self.role));
        node.transpose()
    }

    /// The store that the machines share, without this machine's copy.
    ///
    /// # Errors
    /// As those of [`open`](Self::open).
    pub async fn shared(&self) -> Result<Option<SharedStore>, StoreError> {
        let Some(place) = &self.store else {
            return Ok(None);
        };
        let seal = self.seal().await?;
        let node = self.node_name();
        let documents = place.documents(&node, Resolver::new(self.resolver));
        let documents = documents.map_err(|source| StoreError::Io {
            operation: "open",
            subject: "the shared store".to_owned(),
            source,
        })?;
        Ok(Some(SharedStore::new(documents, seal, node)))
    }

    /// What is wrong with the settings of the fleet's sealing key, and what helps.
    #[must_use]
    pub fn key_fault(&self) -> Option<(&'static str, &'static str)> {
        self.store.as_ref().and_then(|_| self.source_fault())
    }

    fn source_fault(&self) -> Option<(&'static str, &'static str)> {
        let is_absolute = |argv: &Vec<String>| {
            { argv.first() }.is_some_and(|program| Path::new(program).is_absolute())
        };
        match (&self.seal_key_file, &self.seal_key_exec) {
            (None, None) => Some((
                "neither seal_key_file nor seal_key_exec is set",
                NO_KEY_HINT,
            )),
            (Some(_), Some(_)) => Some(("seal_key_file and seal_key_exec are both set", BOTH_HINT)),
            (None, Some(argv)) if !is_absolute(argv) => Some((
                "seal_key_exec names no program by its absolute path",
                PROGRAM_HINT,
            )),
            _ => None,
        }
    }

    /// The lines of a key file for a machine of role serve, which open no accounts.
    ///
    /// # Errors
    /// As those of [`open`](Self::open).
    pub async fn serve_key(&self) -> Result<Secret, StoreError> {
        let keys = self.keys().await?;
        self.usable(&keys)?;
        let lines = seal::serve_lines(keys.expose());
        lines.map_err(|error| self.invalid(error.to_string(), CALL_HINT))
    }

    async fn seal(&self) -> Result<Seal, StoreError> {
        let keys = self.keys().await?;
        self.of_role(self.usable(&keys)?)
    }

    /// Refuses a key that opens more or less than the role of this machine needs: one that only
    /// serves must not be able to order.
    fn of_role(&self, seal: Seal) -> Result<Seal, StoreError> {
        match self.role {
            Role::Full if !seal.opens_accounts() => {
                let detail = "it is that of a machine of role serve, and opens no accounts";
                Err(self.invalid(detail.to_owned(), WHOLE_KEY_HINT))
            }
            Role::Serve if !seal.opens_no_account() => {
                let detail = "it opens the accounts of the fleet, and this machine only serves";
                Err(self.invalid(detail.to_owned(), SERVE_HINT))
            }
            Role::Full | Role::Serve => Ok(seal),
        }
    }

    /// Whether a key file can be used; no program is run.
    pub(crate) fn check_seal(&self) -> Result<(), StoreError> {
        match (self.source_fault(), &self.seal_key_file) {
            (None, Some(file)) => {
                let seal = self.usable(&self.keys_in(file)?)?;
                self.of_role(seal).map(drop)
            }
            _ => Ok(()),
        }
    }

    fn usable(&self, keys: &Secret) -> Result<Seal, StoreError> {
        let hint = "each line is a key of 32 bytes in base64, as openssl rand -base64 32 makes it";
        Seal::new(keys.expose()).map_err(|error| self.invalid(error.to_string(), hint))
    }

    fn keys_in(&self, file: &Path) -> Result<Secret, StoreError> {
        let (keys, metadata) = files::read_short(file).map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::NotFound => {
                    "copy the fleet's key there; openssl rand -base64 32 > FILE makes one for a new fleet"
                }
                _ => "it must be a file that the user of certs may read: chown and chmod 600",
            };
            self.invalid(error.to_string(), hint)
        })?;
        let mode = metadata.mode() & 0o7777;
        if mode & 0o007 != 0 {
            let hint = "chmod 600, and make a new key if others may have read it";
            return Err(self.invalid(format!("every user can read it (mode {mode:04o})"), hint));
        }
        Ok(Secret::new(keys))
    }

    fn invalid(&self, detail: String, hint: &'static str) -> StoreError {
        let program = { self.seal_key_exec.as_ref() }.and_then(|argv| argv.first().cloned());
        let file = { self.seal_key_file.as_ref() }.map(|file| file.display().to_string());
        StoreError::Seal {
            from: file.or(program).unwrap_or_default(),
            detail,
            hint,
        }
    }

    async fn keys(&self) -> Result<Secret, StoreError> {
        let argv = self.seal_key_exec.as_deref().unwrap_or_default();
        if let Some((detail, hint)) = self.source_fault() {
            return Err(self.invalid(detail.to_owned(), hint));
        }
        match (&self.seal_key_file, argv) {
            (None, [program, arguments @ ..]) => {
                let call = Call {
                    program: program.into(),
                    arguments: arguments.to_vec(),
                };
                let printed = call.secret(KEY_WITHIN).await;
                printed.map_err(|error| self.invalid(error.to_string(), CALL_HINT))
            }
            (file, _) => self.keys_in(file.as_deref().unwrap_or(Path::new(""))),
        }
    }

    /// The name of this machine.
    #[must_use]
    pub fn node_name(&self) -> String {
        if let Some(node) = &self.node {
            return node.as_str().to_owned();
        }
        let host: Result<NodeName, _> = host_name().parse();
        host.map_or_else(|_| "node".to_owned(), |host| host.as_str().to_owned())
    }
}

/// The name of this machine's host.
#[must_use]
pub fn host_name() -> String {
    // Read once, when the store is opened: the sandbox hides the file later.
    static HOST: OnceLock<String> = OnceLock::new();
    let host = HOST.get_or_init(|| {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        host.trim().to_owned()
    });
    host.clone()
}

impl From<DocumentsError> for io::Error {
    fn from(error: DocumentsError) -> Self {
        match error {
            DocumentsError::Unanswered(error) | DocumentsError::Failed(error) => error,
            DocumentsError::Conflict => Self::other("another process was faster"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_show_no_password() {
        let shown = |text: &str| text.parse::<StorePlace>().map(|place| place.to_string());
        assert_eq!(shown("/srv/certs").unwrap(), "/srv/certs");
        let etcd = shown("etcd://user:secret@10.0.0.1:2379/certs").unwrap();
        assert!(
            !etcd.contains("secret") && etcd.contains("10.0.0.1:2379"),
            "{etcd}"
        );
        let many = shown("etcds://user:secret@10.0.0.1:2379,10.0.0.2:2379/certs").unwrap();
        assert!(
            !many.contains("secret") && many.contains("10.0.0.2:2379"),
            "{many}"
        );
        let postgres = shown("postgres://user:secret@db/certs?prefix=a").unwrap();
        assert_eq!(postgres, "postgres://db/certs");
        assert_eq!(shown("s3://bucket/certs/").unwrap(), "s3://bucket/certs");
        for unclear in [
            "postgres://user:sec@ret/hidden?x@db/certs",
            "postgres://db/certs?password=hidden@x",
            "postgres://user:hidden/x@db/certs",
        ] {
            let shown = shown(unclear).unwrap();
            assert!(!shown.contains("hidden"), "{shown}");
        }
        for (text, error) in [
            ("", "an empty store"),
            ("etcd:///certs", "no host of etcd"),
            (
                "etcd://10.0.0.1:2379",
                "no prefix: another program may use the same etcd",
            ),
            (
                "ectd://10.0.0.1/x",
                "unknown store `ectd://`; did you mean etcd://?",
            ),
            (
                "postgre://10.0.0.1/x",
                "unknown store `postgre://`; did you mean postgres://?",
            ),
            ("file:///srv", "unknown store `file://`"),
            ("s3:/bucket/x", "the slashes are missing: write s3://"),
            ("s3:///x", "no bucket"),
        ] {
            assert_eq!(shown(text).unwrap_err(), error, "{text}");
        }
    }

    #[tokio::test]
    async fn sealing_key_is_of_a_file_or_of_a_program() {
        let directory = tempfile::tempdir().unwrap();
        let argv = |all: &[&str]| Some(all.iter().map(|one| (*one).to_owned()).collect());
        let settings = FleetSettings {
            store: Some(directory.path().display().to_string().parse().unwrap()),
            seal_key_exec: argv(&["/bin/echo", crate::store::seal::tests::ONE]),
            ..FleetSettings::default()
        };
        assert!(settings.shared().await.unwrap().is_some());
        let file = Some(directory.path().join("absent"));
        for (seal_key_file, seal_key_exec, said) in [
            (None, None, "neither seal_key_file nor seal_key_exec"),
            (file.clone(), settings.seal_key_exec.clone(), "both set"),
            (None, argv(&["echo", "secret"]), "absolute path"),
            (None, argv(&[]), "absolute path"),
            (
                None,
                argv(&["/bin/echo", "secret"]),
                "/bin/echo: the sealing key is not",
            ),
            (
                None,
                argv(&["/bin/sh", "-c", "echo secret; echo why >&2; exit 1"]),
                "why",
            ),
            (None, argv(&["/absent/program"]), "/absent/program"),
            (file, None, "No such file"),
        ] {
            let settings = FleetSettings {
                seal_key_file,
                seal_key_exec,
                ..settings.clone()
            };
            let error = settings.shared().await.unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
            assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        }
    }

    #[test]
    fn names_of_machines_are_parts_of_keys() {
        for name in ["web-1", "i-0abc.eu-central-1.compute.internal", "a_b"] {
            assert_eq!(name.parse::<NodeName>().unwrap().as_str(), name);
        }
        for name in ["", "../x", "a/b", ".hidden", "a b", &"n".repeat(65)] {
            assert!(name.parse::<NodeName>().is_err(), "{name}");
        }
    }
}
