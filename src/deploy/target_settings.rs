//! What the settings of a deploy target answer: its keys and forms, the rights that it
//! needs, when it is deployed to. The sandbox leaves a target these rights and no more.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use super::keys::InvalidTarget;

use super::Target;
use super::keys::values::PathKey;
use super::keys::{self, TargetKeys};
use super::owner::Owner;

/// What stands for the certificate's own name in a path that is written.
pub const NAME: &str = "{name}";

/// How long a check or a reload may take where a target does not say otherwise.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// What the settings of a kind of target say of it. Nothing has a default: a new target
/// answers every question. Its keys are its fields, and the comments of both are their
/// documentation for users.
pub trait TargetSettings: Serialize + DeserializeOwned + JsonSchema {
    /// The kind's name.
    const NAME: &'static str;
    /// How it is written in short.
    const SHORT: ShortForm;
    /// A table below `[deploy.NAME]`, for its documentation.
    const EXAMPLE: &'static str;

    /// Refuses keys that are invalid, or not possible together.
    ///
    /// # Errors
    /// The key, and why.
    fn check(&self) -> Result<(), InvalidTarget>;

    /// What it needs beyond reading the output.
    fn rights(&self) -> Rights;

    /// When it is deployed to.
    fn stage(&self) -> DeployStage;

    /// Whether one reload loads every certificate, so that several share it.
    fn coalesces(&self) -> bool;

    /// How long a check or a reload may take.
    fn deadline(&self) -> Duration;

    /// Its paths, to be changed.
    fn paths(&mut self) -> Paths<'_>;

    /// The target itself. `name` is its short form.
    fn target(&self, name: String) -> Arc<dyn Target>;
}

/// How a kind is written in short; each text is a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShortForm {
    /// `KIND[:WHERE]`.
    Where(&'static str),
    /// `KIND:WHERE[:MORE]`.
    WhereAnd(&'static str, &'static str),
    /// The URL alone.
    Url(&'static str),
}

impl ShortForm {
    /// The key that stands first in it.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Where(key) | Self::WhereAnd(key, _) | Self::Url(key) => key,
        }
    }
}

/// What a target needs beyond reading the output: the sandbox leaves it this and no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rights {
    /// What it does to processes, which a sidecar leaves to the helper process.
    pub processes: Processes,
    /// The Unix socket that it connects to.
    pub connects_to: Option<PathBuf>,
    /// The file that it reads.
    pub reads: Option<PathBuf>,
    /// What it writes.
    pub writes: Writes,
}

/// What a target does to processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processes {
    /// Nothing.
    Untouched,
    /// It finds, signals or starts those of a server, or asks systemd to.
    Controls,
    /// It starts a program that the configuration names.
    RunsProgram,
}

/// What a target writes, beside the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Writes {
    /// Nothing.
    Nothing,
    /// A file of its own, given to this owner.
    File(PathBuf, Owner),
    /// A file of the server, whose owner stays.
    ServersFile(PathBuf),
    /// A directory of generations, given to this owner and made where it is missing.
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

/// When a target is deployed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeployStage {
    /// It is a copy for a consumer: written before any server reloads, which may read it.
    Copy,
    /// It is a server.
    Server,
}

/// All paths among a target's keys.
#[derive(Debug, Default)]
pub struct Paths<'a> {
    /// Those that are only read or connected to.
    pub read: Vec<&'a mut PathKey>,
    /// The one that is written: [`NAME`] in it stands for the certificate's name.
    pub written: Option<&'a mut PathKey>,
}

/// The settings of one kind, checked.
pub(super) fn read<T: TargetSettings>(keys: TargetKeys) -> Result<T, InvalidTarget> {
    let settings: T = keys::read(T::NAME, keys)?;
    settings.check()?;
    Ok(settings)
}
