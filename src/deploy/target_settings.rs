//! The settings of a deploy target: its keys and forms, the rights that it needs, and its
//! stage. In the sandbox a target has these rights and no others.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub(crate) use super::keys::InvalidTarget;

use super::Target;
use super::keys::values::PathKey;
use super::keys::{self, TargetKeys};
use super::owner::Owner;

/// The placeholder for the certificate's name in a written path.
pub(crate) const NAME: &str = "{name}";

/// The usual deadline of a check or a reload.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// The settings of a kind of target. No method has a default, so that a new target answers
/// every question. Its keys are its fields; the comments of the type and its fields are
/// the documentation for users.
pub(crate) trait TargetSettings: Serialize + DeserializeOwned + JsonSchema {
    /// The kind's name.
    const NAME: &'static str;
    /// Its short form.
    const SHORT: ShortForm;
    /// A table below `[deploy.NAME]`, for its documentation.
    #[cfg_attr(not(test), allow(dead_code, reason = "a test writes docs/targets.md"))]
    const EXAMPLE: &'static str;

    /// Refuses keys that are invalid or contradict each other.
    ///
    /// # Errors
    /// The key, and why it is refused.
    fn check(&self) -> Result<(), InvalidTarget>;

    /// Its rights beyond reading the output.
    fn rights(&self) -> Rights;

    /// The stage in which it is deployed.
    fn stage(&self) -> DeployStage;

    /// Whether one reload loads all certificates, so that they share it.
    fn coalesces(&self) -> bool;

    /// The deadline of a check or a reload.
    fn deadline(&self) -> Duration;

    /// Its paths, to make them absolute.
    fn paths(&mut self) -> Paths<'_>;

    /// The target itself. `name` is its short form.
    fn target(&self, name: String) -> Arc<dyn Target>;
}

/// The short form of a kind; each text is a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShortForm {
    /// `KIND[:WHERE]`.
    Where(&'static str),
    /// `KIND:WHERE[:MORE]`.
    WhereAnd(&'static str, &'static str),
    /// The URL alone.
    Url(&'static str),
}

impl ShortForm {
    /// Its first key.
    #[must_use]
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Where(key) | Self::WhereAnd(key, _) | Self::Url(key) => key,
        }
    }
}

/// The rights of a target beyond reading the output; the sandbox grants no others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rights {
    /// Its rights over processes, which in a sidecar only the helper process has.
    pub processes: Processes,
    /// The Unix socket that it connects to.
    pub connects_to: Option<PathBuf>,
    /// The file that it reads.
    pub reads: Option<PathBuf>,
    /// The files that it writes.
    pub writes: Writes,
}

/// The rights of a target over processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Processes {
    /// None.
    Untouched,
    /// It finds, signals or starts the processes of a server, or requests that of systemd.
    Controls,
    /// It starts a program that the configuration names.
    RunsProgram,
}

/// The files that a target writes beside the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Writes {
    /// None.
    Nothing,
    /// A file of its own, with this owner.
    File(PathBuf, Owner),
    /// A file of the server, which keeps its owner.
    ServersFile(PathBuf),
    /// A directory of generations with this owner, created if it is missing.
    Directory(PathBuf, Owner),
}

impl Writes {
    pub(super) fn path(&self) -> Option<&Path> {
        match self {
            Self::Nothing => None,
            Self::File(path, _) | Self::ServersFile(path) | Self::Directory(path, _) => Some(path),
        }
    }
}

/// The stage in which a target is deployed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeployStage {
    /// A copy for a consumer: written before the servers reload, since they may read it.
    Copy,
    /// A server.
    Server,
}

/// All paths among a target's keys.
#[derive(Debug, Default)]
pub(crate) struct Paths<'a> {
    /// The paths that are only read or connected to.
    pub read: Vec<&'a mut PathKey>,
    /// The path that is written; [`NAME`] in it is replaced by the certificate's name.
    pub written: Option<&'a mut PathKey>,
}

/// Reads and checks the settings of one kind.
pub(super) fn read<T: TargetSettings>(keys: TargetKeys) -> Result<T, InvalidTarget> {
    let settings: T = keys::read(T::NAME, keys)?;
    settings.check()?;
    Ok(settings)
}
