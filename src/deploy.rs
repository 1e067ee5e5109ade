//! Deployment: files for consumers, the reload of a server, and the handshake that
//! verifies which certificate it serves. A reload that returned success verifies nothing:
//! nginx accepts the signal and may continue with the previous pair.

pub(crate) mod coalesce;
pub(crate) mod confirmed;
mod copy;
mod dbus;
pub(crate) mod docker;
pub mod endpoint;
pub(crate) mod helper;
mod identity;
pub(crate) mod key_access;
pub(crate) mod keys;
mod mounts;
pub(crate) mod output;
pub(crate) mod outputs;
pub(crate) mod owner;
mod process;
pub(crate) mod proxy_protocol;
pub(crate) mod removal;
mod signalled;
pub mod starttls;
pub(crate) mod target;
pub(crate) mod target_settings;
pub(crate) mod targets;
pub mod verify;
mod watched;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use self::output::OutputError;
use crate::certificate::Bundle;
use crate::files::beneath::REFUSED_HINT;
use crate::fingerprint::Fingerprint;
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::net::dns::lookup::Resolver;
use crate::net::sockets::ListenAddress;
use crate::program::NOT_STARTED_HINT;
use crate::record::Generation;
use crate::text::printable;
use crate::time::Timestamp;

/// Where consumers find the live pair of each certificate: always one whole generation,
/// the last that was published.
///
/// It is written on the serving thread: five small files beside our own state, in an
/// order that tests replay call by call. A volume that hangs there blocks the record too,
/// and the watchdog notices that.
pub trait Outlet: Send + Sync {
    /// Creates the directory if possible; the first publication reports an error.
    fn prepare(&self) {}

    /// Makes `bundle` the live pair. Repeating it changes nothing.
    ///
    /// # Errors
    /// When it cannot be written; the previous pair stays live.
    fn publish(
        &self,
        lineage: &Lineage,
        generation: Generation,
        bundle: &Bundle,
    ) -> Result<(), OutputError>;

    /// The live generation; `None` when there is none, when its files are missing or
    /// empty, or when `certs` did not write them.
    ///
    /// # Errors
    /// When it cannot be seen whether there is one.
    fn live(&self, lineage: &Lineage) -> Result<Option<Generation>, OutputError>;

    /// The same for many certificates, with as few changes of the user as outputs.
    fn live_of_all(
        &self,
        lineages: &[Lineage],
    ) -> BTreeMap<Lineage, Result<Option<Generation>, OutputError>> {
        let each = lineages.iter();
        each.map(|one| (one.clone(), self.live(one))).collect()
    }

    /// Whether `bundle` is the live pair, byte for byte.
    fn is_live(&self, lineage: &Lineage, generation: Generation, bundle: &Bundle) -> bool;

    /// Publishes a self-signed pair as generation 0 if no generation is live, so that a
    /// proxy can start. Returns whether it did.
    ///
    /// # Errors
    /// When it cannot be generated or written.
    fn placeholder(
        &self,
        lineage: &Lineage,
        identifiers: &BTreeSet<Identifier>,
        now: Timestamp,
    ) -> Result<bool, OutputError>;

    /// The directory to name in a proxy's configuration.
    fn live_path(&self, lineage: &Lineage) -> PathBuf;

    /// Those of `names` that a server finds at `lineage`, and not at another certificate.
    fn led_here(&self, _lineage: &Lineage, names: &BTreeSet<Identifier>) -> BTreeSet<Identifier> {
        names.clone()
    }

    /// Restores what is missing of the links for the further `names` of a live certificate.
    fn restore_links(&self, _lineage: &Lineage, _names: &BTreeSet<Identifier>) {}

    /// Whether another program may remove its files: then their existence is checked
    /// between passes.
    fn is_shared(&self) -> bool {
        true
    }
}

/// A published pair, as a target sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// The certificate's name.
    pub lineage: Lineage,
    /// The names in it.
    pub names: BTreeSet<Identifier>,
    /// Its generation in the lineage.
    pub generation: Generation,
    /// The fingerprint of the leaf.
    pub fingerprint: Fingerprint,
    /// The leaf's last valid second.
    pub not_after: Timestamp,
    /// The directory of its files.
    pub live: PathBuf,
    /// Whether the target must load it now, even if that costs the server much.
    pub urgent: bool,
    /// Looks up the host of the target.
    #[serde(default)]
    pub(crate) resolver: Resolver,
}

/// A server that loads certificates from the output, or a copy for one. The caller adds
/// its name to its errors: [`DeployCause::of`].
#[async_trait]
pub trait Target: Send + Sync {
    /// Its name in records and messages.
    fn name(&self) -> String;

    /// Checks that it would load the files on disk; changes nothing.
    async fn check(&self, delivery: &Delivery) -> Result<(), DeployCause>;

    /// What [`Target::check`] does, in words for a waiting user.
    fn check_phase(&self) -> String {
        format!("checking {}", self.name())
    }

    /// Makes it load the files on disk. May be repeated. [`verify`] finds out whether it
    /// did.
    async fn apply(&self, delivery: &Delivery) -> Result<(), DeployCause>;

    /// The addresses on which it listens, verified when no endpoint is configured; `None`
    /// when this process cannot see them.
    async fn listens_on(&self) -> Option<Vec<ListenAddress>> {
        None
    }

    /// The file that it writes itself for `lineage`, and that another program may remove.
    fn copy_of(&self, _lineage: &Lineage) -> Option<PathBuf> {
        None
    }

    /// Whether that file is missing, by a quick check.
    async fn is_gone(&self, lineage: &Lineage) -> bool {
        let Some(copy) = self.copy_of(lineage) else {
            return false;
        };
        let found = tokio::fs::metadata(copy).await;
        found.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
    }

    /// Why it may not have loaded the pair, as far as this process can see. Called when
    /// the verification has failed.
    async fn obstacle(&self, _delivery: &Delivery) -> Option<String> {
        None
    }
}

/// Why a target was not reloaded, or does not load the pair.
#[derive(Debug, Error)]
#[error("{target}: {cause}")]
pub struct DeployError {
    target: String,
    cause: DeployCause,
}

impl DeployError {
    /// The next thing to do.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        self.cause.hint()
    }

    /// Whether something is in the way of a copy that `certs` did not make.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self.cause, DeployCause::Foreign { .. })
    }
}

/// The cause of a [`DeployError`], without the name of the target.
#[derive(Clone, Debug, Error, Serialize, Deserialize)]
#[allow(missing_docs)] // each message is its own documentation
pub enum DeployCause {
    #[error("no pid file among {0}")]
    NoPidFile(String),
    #[error("no process number in the pid file {0}")]
    PidFile(String),
    #[error("the process {pid} of {path} is not running")]
    NotRunning { path: String, pid: u32 },
    #[error("the process {pid} of {path} is `{program}`, not {wanted}")]
    OtherProgram {
        path: String,
        pid: u32,
        program: String,
        wanted: String,
    },
    #[error("the process {pid} of {path} is not trusted: {detail}")]
    UntrustedProcess {
        path: String,
        pid: u32,
        detail: String,
    },
    #[error("{0}")]
    Untrusted(String),
    #[error("process {pid} cannot be signalled: {detail}")]
    Signal { pid: u32, detail: String },
    #[error("the helper process does not answer: {0}")]
    Helper(String),
    #[error("the right to {0} is stored, but neither configured nor confirmed")]
    Unconfirmed(String),
    #[error("the server's configuration is invalid: {0}")]
    Check(String),
    #[error("{0}")]
    Unreachable(String),
    #[error("the pair is refused: {0}")]
    Refused(String),
    #[error("{0}")]
    NotStarted(String),
    #[error("{0}")]
    Program(String),
    #[error("{0}")]
    Unsafe(String),
    #[error("{0} generations of its workers still serve old connections")]
    Draining(usize),
    #[error("{path} could not be written: {detail}")]
    Write { path: String, detail: String },
    #[error("{path} was not written: {detail}")]
    Foreign { path: String, detail: String },
    #[error("the pair below {path} cannot be used: {detail}")]
    Pair { path: String, detail: String },
    #[error("the secret in {path} cannot be used: {detail}")]
    Secret { path: String, detail: String },
}

impl DeployCause {
    /// The error of the target with the name `target`.
    #[must_use]
    pub fn of(self, target: String) -> DeployError {
        let cause = self;
        DeployError { target, cause }
    }

    /// Unreachable, as another program reports it.
    fn unreachable(detail: &str) -> Self {
        Self::Unreachable(printable(detail))
    }

    fn hint(&self) -> &'static str {
        match self {
            Self::NoPidFile(_) => {
                "start the server, or name its pid file, as in --deploy nginx:/path/to/nginx.pid; in containers share the PID namespace"
            }
            Self::PidFile(_) => "restart the server, which writes its pid file, or name another",
            Self::NotRunning { .. } => {
                "start the server, or share its PID namespace if it runs in another container; the certificate is stored, and the next run deploys it"
            }
            Self::OtherProgram { .. } => {
                "the pid file is stale, of another program, or of another PID namespace such as that of a container: name the right one, or share that namespace"
            }
            Self::UntrustedProcess { .. } => {
                "name the pid file that the server itself writes, and restart the server, which then writes a new one"
            }
            Self::Untrusted(_) => {
                "let only root change what is named above: `chown root:` and `chmod go-w`, and check its content first"
            }
            Self::Signal { .. } => "run as the server's user or as root, or with CAP_KILL",
            Self::Helper(_) => {
                "restart certs run; with CERTS_HARDEN=off no helper process is needed"
            }
            Self::Unconfirmed(_) => {
                "as root, or as the user of certs run, repeat certs issue with this target: it confirms it, and orders nothing before it is due"
            }
            Self::Pair { .. } => {
                "the server keeps the pair that it has; the next pass publishes the stored pair again"
            }
            Self::Check(_) => "fix what it reports; the server keeps serving the pair that it has",
            Self::Unreachable(_) => {
                "check that it runs and that this process may connect to it; the deployment is retried"
            }
            Self::Refused(_) => "fix what it reports; it keeps serving the pair that it has",
            Self::NotStarted(_) => NOT_STARTED_HINT,
            Self::Program(_) => {
                "run it by hand with RENEWED_LINEAGE and RENEWED_DOMAINS set; the deployment is retried"
            }
            Self::Unsafe(_) => {
                "put a filtering proxy in between that allows the container's name and signal alone, or accept it with `accept_raw_socket = true` in its [deploy.NAME]"
            }
            Self::Draining(_) => {
                "the reload is retried when they have ended; worker_shutdown_timeout in nginx.conf bounds how long that takes"
            }
            Self::Write { .. } => "check the directory's owner, mode and free space",
            Self::Foreign { .. } => REFUSED_HINT,
            Self::Secret { .. } => "write the secret into that file, readable for certs",
        }
    }
}

/// Does work that may wait for a slow volume on another thread, always to its end:
/// abandoned work could overwrite a newer pair with an older one.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DeployCause> + Send + 'static,
) -> Result<T, DeployCause> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|stopped| Err(DeployCause::Unreachable(stopped.to_string())))
}

/// A delivery for tests.
#[cfg(test)]
pub(crate) fn sample() -> Delivery {
    let name = Identifier::parse("example.com").unwrap();
    Delivery {
        lineage: Lineage::of(&name),
        names: BTreeSet::from([name]),
        generation: Generation(7),
        fingerprint: Fingerprint::of(b"leaf"),
        not_after: Timestamp::from_seconds(1_900_000_000),
        live: PathBuf::from("/certs/live/example.com"),
        urgent: false,
        resolver: Resolver::default(),
    }
}
