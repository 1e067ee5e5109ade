//! The sandbox of a process that holds private keys and talks to the network.
//! Every command disables core files, ptrace and new privileges before it reads a
//! name. `certs run` and the embedded CA's server drop much more once their sockets
//! are bound and their directories are known: capabilities, files outside the
//! configured paths, new listeners, and most system calls, `execve` among them.
//!
//! A kernel that lacks a mechanism causes a log message, never a failed command;
//! the other mechanisms still apply. Restrictions are never lifted.

mod capabilities;
pub(crate) mod helper;
mod landlock;
mod paths;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod seccomp;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::set_no_new_privs;

use crate::config::{CertificateSettings, Settings};
use crate::deploy::Target;
use crate::deploy::helper::Helper;
use crate::deploy::target::DeployTarget;
use crate::failure::Failure;
use paths::{Paths, specs};

pub(crate) use paths::Surroundings;

/// Drops the rights that no command needs; call it before any thread starts.
pub(crate) fn harden() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let core = "cannot disable core files, which may contain keys";
    // Denies ptrace by the same user, too; /proc shows our memory to root only.
    let memory = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    for (failure, done) in [
        ("cannot set no_new_privs", set_no_new_privs(true)),
        (core, setrlimit(Resource::Core, none)),
        ("cannot hide memory from other processes", memory),
    ] {
        if let Err(error) = done {
            tracing::warn!("{failure}: {error}");
        }
    }
}

/// The restrictions in force. The default has none.
#[derive(Default)]
pub(crate) struct Sandbox {
    /// Deploys to servers that this process may not reload itself.
    helper: Option<Arc<Helper>>,
    /// The accessible paths, if the kernel enforces them.
    paths: Option<Paths>,
}

impl Sandbox {
    /// The target of `spec`, reloaded by this process or by the helper process.
    pub(crate) fn target(&self, spec: &DeployTarget) -> Arc<dyn Target> {
        match &self.helper {
            Some(helper) if spec.needs_helper() => helper.target(spec),
            _ => spec.target(),
        }
    }

    /// Whether the sandbox allows all paths of `settings`. It never widens: a new
    /// path needs a restart.
    pub(crate) fn covers(&self, settings: &CertificateSettings) -> Result<(), Failure> {
        let Some(paths) = &self.paths else {
            return Ok(());
        };
        let lineage = &settings.lineage;
        let specs = settings.deploy.iter();
        let written = specs.clone().filter_map(|spec| {
            let spec = spec.for_lineage(lineage);
            let directory = spec.writes_in()?;
            // A missing directory is created in its parent.
            let is_created = spec.writes().as_ref() == Some(&directory);
            Some(match is_created {
                true => directory_of(&directory),
                false => directory,
            })
        });
        let read = specs.filter_map(|spec| spec.rights().reads);
        let answers = settings.challenge.writes_in().map(directory_of);
        let output = settings
            .output
            .as_ref()
            .map(|output| output.directory.clone());
        let output = output.filter(|output| output.is_absolute());
        let mut written = answers.into_iter().chain(output).chain(written);
        let mut read = settings.ca_files().cloned().chain(read);
        let outside = written
            .find(|path| !paths.may_write(path))
            .or_else(|| read.find(|path| !paths.may_read(path)));
        outside.map_or(Ok(()), |path| Err(outside_sandbox(&path)))
    }

    /// `failure`, or its cause if one of `files` is outside the sandbox.
    pub(crate) fn cause(&self, failure: Failure, files: &[PathBuf]) -> Failure {
        let mut files = files.iter();
        let paths = self.paths.as_ref();
        let outside = paths.and_then(|paths| files.find(|path| !paths.may_read(path)));
        outside.map_or(failure, |path| outside_sandbox(path))
    }
}

/// `path` if it is a directory, else its parent.
fn directory_of(path: &Path) -> PathBuf {
    let parent = path.parent().filter(|_| !path.is_dir());
    parent.unwrap_or(path).to_owned()
}

fn outside_sandbox(path: &Path) -> Failure {
    Failure::usage(
        format!(
            "{} is outside the sandbox: it was not configured when this process started",
            path.display()
        ),
        "configure it and restart certs run, or start it with --harden off",
    )
}

/// Drops all rights that `known` does not need; `known` is `settings` and the stored
/// certificates. Call it after all sockets are bound and before another thread starts:
/// capabilities, Landlock and seccomp apply to the calling thread and its children.
pub(crate) fn confine(
    surroundings: &Surroundings<'_>,
    settings: &Settings,
    known: &Settings,
) -> Sandbox {
    let programs = specs(known).filter(DeployTarget::runs_program);
    let programs = Vec::from_iter(programs.collect::<BTreeSet<_>>());
    let Some(helper) = helper::start(surroundings.environment, settings, &programs) else {
        return Sandbox::default();
    };
    // A directory created now needs no right on its parent later.
    specs(known).for_each(|spec| spec.prepare());
    let paths = Paths::of(surroundings, known);
    let confined = restrict(surroundings, settings, &paths);
    Sandbox {
        helper: Some(helper),
        paths: confined.then_some(paths),
    }
}

/// The same for a server that reloads no other server, so it needs no helper process.
pub(crate) fn confine_alone(surroundings: &Surroundings<'_>, settings: &Settings) {
    if settings.harden {
        restrict(surroundings, settings, &Paths::of(surroundings, settings));
    }
}

/// Applies all restrictions; whether the kernel enforces `paths`.
fn restrict(surroundings: &Surroundings<'_>, settings: &Settings, paths: &Paths) -> bool {
    if let Some(threads) = threads().filter(|threads| *threads != 1) {
        tracing::warn!("{threads} threads are running: only one of them is sandboxed");
    }
    // Files for other users get their modes explicitly.
    rustix::process::umask(Mode::from_raw_mode(0o077));
    capabilities::drop_all_but_needed(settings, paths);
    let confined = landlock::enter(paths, notifies_abstractly(surroundings));
    restrict_calls();
    confined
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use seccomp::restrict_calls;

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn restrict_calls() {
    tracing::info!("system calls are not restricted: unsupported processor architecture");
}

fn threads() -> Option<usize> {
    Some(std::fs::read_dir("/proc/self/task").ok()?.count())
}

/// Whether the service manager listens on an abstract socket.
fn notifies_abstractly(surroundings: &Surroundings<'_>) -> bool {
    let socket = surroundings.environment.get("NOTIFY_SOCKET");
    socket.is_some_and(|socket| socket.starts_with('@'))
}
