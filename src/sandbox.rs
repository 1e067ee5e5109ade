//! What this process gives up: it holds private keys and talks to the world.
//! Before it reads a single name nothing may look into it any more, and nothing
//! that it starts may gain a privilege. `certs run` gives up far more, once its
//! sockets are bound and its directories are known: capabilities, files outside
//! of them, new listeners, and most system calls, `execve` among them; so does
//! the embedded CA as a server.
//!
//! A kernel that refuses one of these keeps no name from its certificate: it is
//! told, and the others hold. Nothing here is ever taken back.

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
use rustix::io;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::set_no_new_privs;

use crate::config::{CertificateSettings, Settings};
use crate::deploy::Target;
use crate::deploy::helper::Helper;
use crate::deploy::target::DeployTarget;
use crate::failure::Failure;
use paths::{Paths, specs};

pub(crate) use paths::Surroundings;

/// Gives up what no command needs, before any thread is started.
pub(crate) fn harden() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    for (what, done) in [
        ("new privileges are not given up", set_no_new_privs(true)),
        (
            "keys may end in a core file",
            setrlimit(Resource::Core, none),
        ),
        ("other processes may look in", not_dumpable()),
    ] {
        if let Err(error) = done {
            tracing::warn!("{what}: {error}");
        }
    }
}

/// No core file, no ptrace by the same user, and /proc shows our memory to root
/// alone.
fn not_dumpable() -> io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

/// What is left within reach. By default everything is.
#[derive(Default)]
pub(crate) struct Reach {
    /// Deploys to servers, where this process may not do so itself.
    helper: Option<Arc<Helper>>,
    /// Where files may be touched, when the kernel sees to it.
    paths: Option<Paths>,
}

impl Reach {
    /// The server of `spec`, deployed to from here or by the helper process.
    pub(crate) fn target(&self, spec: &DeployTarget) -> Arc<dyn Target> {
        match &self.helper {
            Some(helper) if spec.needs_helper() => helper.target(spec),
            _ => spec.target(),
        }
    }

    /// Whether the paths of `settings` are within reach: what has been given up
    /// does not come back, so that a new path needs a new process.
    pub(crate) fn covers(&self, settings: &CertificateSettings) -> Result<(), Failure> {
        let Some(paths) = &self.paths else {
            return Ok(());
        };
        let lineage = &settings.lineage;
        let written = settings.deploy.iter().map(|spec| spec.for_lineage(lineage));
        let written = written.filter_map(|spec| {
            let directory = spec.writes_in()?;
            // One that is not there yet is made in what is around it.
            let is_made = spec.writes().as_ref() == Some(&directory);
            Some(if is_made {
                directory_of(&directory)
            } else {
                directory
            })
        });
        let read = settings
            .deploy
            .iter()
            .filter_map(|spec| spec.rights().reads);
        let answers = settings.challenge.writes_in().map(directory_of);
        let mut written = answers.into_iter().chain(written);
        let mut read = settings.ca_files().cloned().chain(read);
        let beyond = written
            .find(|path| !paths.may_write(path))
            .or_else(|| read.find(|path| !paths.may_read(path)));
        match beyond {
            None => Ok(()),
            Some(path) => Err(out_of_reach(&path)),
        }
    }

    /// What `failure` comes from, if one of `files` is out of reach.
    pub(crate) fn behind(&self, failure: Failure, files: &[PathBuf]) -> Failure {
        let Some(paths) = &self.paths else {
            return failure;
        };
        let beyond = files.iter().find(|path| !paths.may_read(path));
        beyond.map_or(failure, |path| out_of_reach(path))
    }
}

/// Where a file that need not be there yet is written.
fn directory_of(path: &Path) -> PathBuf {
    let directory = match path.is_dir() {
        true => path,
        false => path.parent().unwrap_or(path),
    };
    directory.to_owned()
}

fn out_of_reach(path: &Path) -> Failure {
    Failure::usage(
        format!(
            "{} is out of reach of this process, which gave up all that was not configured when it started",
            path.display()
        ),
        "configure it and restart certs run, or start it with --harden off",
    )
}

/// Gives up all that `known` does not need: `settings` and what is stored beside them. All
/// sockets are bound by now, and no thread beside this one is started: capabilities and what
/// Landlock and seccomp allow are each thread's own, passed on to new ones only.
pub(crate) fn confine(
    surroundings: &Surroundings<'_>,
    settings: &Settings,
    known: &Settings,
) -> Reach {
    let programs = specs(known).filter(DeployTarget::runs_program);
    let programs: BTreeSet<DeployTarget> = programs.collect();
    let programs: Vec<DeployTarget> = programs.into_iter().collect();
    let Some(helper) = helper::start(surroundings.environment, settings, &programs) else {
        return Reach::default();
    };
    // While it still may: what is there need not be made in what is around it.
    specs(known).for_each(|spec| spec.prepare());
    let paths = Paths::of(surroundings, known);
    let confined = give_up(surroundings, settings, &paths);
    Reach {
        helper: Some(helper),
        paths: confined.then_some(paths),
    }
}

/// The same for a server that tells no other one.
pub(crate) fn confine_alone(surroundings: &Surroundings<'_>, settings: &Settings) {
    if settings.harden {
        give_up(surroundings, settings, &Paths::of(surroundings, settings));
    }
}

/// Whether `paths` are now all that is within reach.
fn give_up(surroundings: &Surroundings<'_>, settings: &Settings, paths: &Paths) -> bool {
    if let Some(threads) = threads().filter(|threads| *threads != 1) {
        tracing::warn!("{threads} threads run already: what is given up now, only one gives up");
    }
    // What is shared with other users has its mode set by name.
    rustix::process::umask(Mode::from_raw_mode(0o077));
    capabilities::drop_all_but_needed(settings, paths);
    let confined = landlock::enter(paths, notifies_abstractly(surroundings));
    restrict_calls();
    confined
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use seccomp::allow_only_needed as restrict_calls;

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn restrict_calls() {
    tracing::info!("system calls are not restricted: those of this processor are not known");
}

fn threads() -> Option<usize> {
    Some(std::fs::read_dir("/proc/self/task").ok()?.count())
}

/// Whether the service manager is told through a socket that has no file.
fn notifies_abstractly(surroundings: &Surroundings<'_>) -> bool {
    let socket = surroundings.environment.get("NOTIFY_SOCKET");
    socket.is_some_and(|socket| socket.starts_with('@'))
}
