//! The sandbox of a process that holds private keys and talks to the network.
//! Every command disables core files, ptrace and new privileges before it reads a
//! name. `certs run`, `certs renew` of root in another user's data directory, and the
//! embedded CA's server drop much more once their sockets are bound and their directories
//! are known: capabilities, files outside the configured paths, new listeners, and most
//! system calls, `execve` among them.
//!
//! A kernel that lacks a mechanism causes a log message, never a failed command;
//! the other mechanisms still apply. Restrictions are never lifted.

mod capabilities;
pub(crate) mod helper;
mod landlock;
mod paths;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod seccomp;
mod user;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};
use rustix::thread::set_no_new_privs;

use crate::config::{CertificateSettings, Settings};
use crate::deploy::Target;
use crate::deploy::confirmed::Confirmed;
use crate::deploy::helper::{Helper, Permits};
use crate::deploy::owner::{self, Owner};
use crate::deploy::target::DeployTarget;
use crate::failure::{Check, Failure};
use crate::files::{self, DirectoryOwner};
use crate::program::Runner;
use crate::store::place::StorePlace;
use paths::{Paths, open_answers, permitted, specs};
use user::{DOCKER_RELAY, ServiceUser};

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

/// Raises the limit of open files to the most that is allowed: the usual 1,024 are for
/// programs that cannot handle more.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!("cannot raise the limit of open files: {error}");
    }
}

/// The restrictions in force. The default has none.
#[derive(Default)]
pub(crate) struct Sandbox {
    /// Deploys to servers that this process may not reload itself.
    helper: Option<Arc<Helper>>,
    /// The accessible paths, if the kernel enforces them.
    paths: Option<Paths>,
    /// Whether this process was root and is another user now.
    gave_up_root: bool,
    /// The socket by which the helper process relays Docker's API.
    docker_relay: Option<PathBuf>,
}

impl Sandbox {
    /// The target of `spec`, reloaded by this process or by the helper process.
    pub(crate) fn target(&self, spec: &DeployTarget) -> Arc<dyn Target> {
        match &self.helper {
            Some(helper) if self.is_for_helper(spec) => helper.target(spec),
            _ => spec.target(),
        }
    }

    /// Whether the helper process still serves, to be asked again and again.
    pub(crate) fn check(&self) -> Option<Check> {
        let helper = self.helper.clone()?;
        let why = "the helper process is gone: no server is reloaded; hint: restart certs run";
        Some(Arc::new(move || helper.has_ended().then_some(why)))
    }

    /// The socket to use instead of Docker's own.
    pub(crate) fn docker_relay(&self) -> Option<&Path> {
        self.docker_relay.as_deref()
    }

    /// Starts programs that this process may not start.
    pub(crate) fn runner(&self) -> Option<Arc<dyn Runner>> {
        let helper = self.helper.clone()?;
        Some(Arc::new(helper))
    }

    /// The first target: files that only the helper can give to the owner of the output.
    pub(crate) fn file_owner(&self) -> Option<Arc<dyn Target>> {
        let helper = self.helper.as_ref().filter(|_| self.gave_up_root)?;
        Some(helper.file_owner())
    }

    /// The helper process keeps root's right to files that are not ours.
    fn is_for_helper(&self, spec: &DeployTarget) -> bool {
        spec.needs_helper() || self.gave_up_root && spec.uses_files()
    }

    /// Whether the sandbox allows all paths of `settings`. It never widens: a new
    /// path needs a restart.
    pub(crate) fn covers(&self, settings: &CertificateSettings) -> Result<(), Failure> {
        let Some(paths) = &self.paths else {
            return Ok(());
        };
        let lineage = &settings.lineage;
        let specs = settings.deploy.iter();
        let specs = specs.filter(|spec| !self.is_for_helper(spec));
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
        let answers = settings.challenge.writes_in().into_iter().map(directory_of);
        let output = settings
            .output
            .as_ref()
            .map(|output| output.directory.clone());
        let output = output.filter(|output| output.is_absolute());
        let mut written = answers.chain(output).chain(written);
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
/// certificates. Call it after all sockets are bound and before another thread starts: the
/// user, capabilities, Landlock and seccomp apply to the calling thread and its children.
///
/// # Errors
/// When this process is root, and its files cannot be given to the user that it becomes.
pub(crate) fn confine(
    surroundings: &Surroundings<'_>,
    settings: &Settings,
    known: &Settings,
) -> Result<Sandbox, Failure> {
    let confirmed = Confirmed::file_for(&settings.data_dir);
    if let Err(error) = Confirmed::prepare(&confirmed) {
        tracing::debug!("{}: {error}", confirmed.display());
    }
    let permits = Permits {
        programs: programs(settings),
        targets: Vec::from_iter(permitted(settings).collect::<BTreeSet<_>>()),
        confirmed,
        outputs: outputs(known),
        docker: paths::docker_socket(settings).filter(|_| settings.gives_up_root),
    };
    let relay = permits
        .docker
        .is_some()
        .then(|| settings.data_dir.join(DOCKER_RELAY));
    let owner = DirectoryOwner::of(&settings.data_dir);
    let bind = |path: &Path| {
        let _acting = owner.act();
        bind(path)
    };
    let relayed = relay.as_deref().map(bind).transpose().map_err(|error| {
        Failure::store(format!("{DOCKER_RELAY} in the data directory: {error}"))
    })?;
    let environment = surroundings.environment;
    let helper = helper::start(environment, settings, &permits, relayed);
    // After its start: the helper process and its programs keep the usual limit.
    raise_open_files();
    let Some(helper) = helper else {
        return Ok(Sandbox::default());
    };
    // A directory created now needs no right on its parent later.
    specs(known).for_each(|spec| spec.prepare());
    let user = successor(settings, known)?;
    let mut paths = Paths::of(surroundings, known, may_read_all(known, user.as_ref()));
    if user.is_some() {
        paths.leave_to_helper(known);
    }
    let confined = restrict(settings, &paths, user.as_ref())?;
    Ok(Sandbox {
        helper: Some(helper),
        paths: confined.then_some(paths),
        gave_up_root: user.is_some(),
        docker_relay: relay,
    })
}

/// Whether `certs run` with these settings is root and becomes another user.
pub(crate) fn gives_up_root(settings: &Settings) -> bool {
    settings.harden && user::may_change()
}

/// The programs that present challenge answers.
fn programs(settings: &Settings) -> BTreeSet<PathBuf> {
    let certificates = settings.certificates.iter();
    let certificates = certificates.map(|one| &one.challenge);
    let all = certificates.chain([&settings.challenge]);
    let programs = all.filter_map(|challenge| challenge.program());
    programs.map(Path::to_owned).collect()
}

/// The outputs with their owners.
fn outputs(settings: &Settings) -> BTreeMap<PathBuf, Owner> {
    let own = settings
        .certificates
        .iter()
        .map(|one| settings.output_of(one));
    let all = own.chain([settings.output.clone()]);
    all.map(|output| {
        let owner = Owner {
            user: { output.owner.as_deref() }.and_then(|user| owner::user(user).ok()),
            group: { output.group.as_deref() }.and_then(|group| owner::group(group).ok()),
        };
        (output.directory, owner)
    })
    .collect()
}

/// The user that this process becomes if it is root, with all files that it needs.
fn successor(settings: &Settings, known: &Settings) -> Result<Option<ServiceUser>, Failure> {
    if !gives_up_root(settings) {
        if rustix::process::geteuid().is_root() {
            tracing::warn!(
                "the process stays root: it lacks CAP_SETUID, CAP_SETGID or CAP_CHOWN; hint: start certs run as another user, or with these capabilities"
            );
        }
        return Ok(None);
    }
    let (data, outputs) = (&settings.data_dir, outputs(known));
    for directory in outputs.keys().chain([data]) {
        if !paths::may_resolve(directory, &[&paths::real(data)]) {
            let refused = format!("{} cannot be given to another user", directory.display());
            return Err(Failure::store(refused));
        }
    }
    let unread = |error| Failure::store(format!("{}: {error}", data.display()));
    let groups = outputs
        .values()
        .filter_map(|owner| owner.group_alone().group);
    let user = { ServiceUser::of(data).map_err(unread)? }.in_groups(groups);
    let shared = { settings.fleet.store.as_ref() }.and_then(StorePlace::directory);
    user.take_over(data, shared, outputs.keys())?;
    for directory in open_answers(known) {
        if let Err(error) = directory.and_then(|directory| user.open_answers(&directory)) {
            tracing::warn!("the webroot: {error}");
        }
    }
    Ok(Some(user))
}

/// Binds a socket of ours.
fn bind(path: &Path) -> std::io::Result<UnixListener> {
    files::remove_if_there(path)?;
    UnixListener::bind(path)
}

/// Whether only Landlock keeps this process, or the `user` that it becomes, from any file.
fn may_read_all(settings: &Settings, user: Option<&ServiceUser>) -> bool {
    let needed = [&settings.data_dir, &settings.output.directory];
    match user {
        Some(user) => !needed.into_iter().all(|path| user.can_reach(path)),
        None => rustix::process::geteuid().is_root(),
    }
}

/// The same for a server that reloads no other server, so it needs no helper process.
///
/// # Errors
/// As for [`confine`].
pub(crate) fn confine_alone(
    surroundings: &Surroundings<'_>,
    settings: &Settings,
) -> Result<(), Failure> {
    raise_open_files();
    if !settings.harden {
        return Ok(());
    }
    let user = successor(settings, settings)?;
    let paths = Paths::of(
        surroundings,
        settings,
        may_read_all(settings, user.as_ref()),
    );
    restrict(settings, &paths, user.as_ref()).map(drop)
}

/// Applies all restrictions; whether the kernel enforces `paths`.
fn restrict(
    settings: &Settings,
    paths: &Paths,
    user: Option<&ServiceUser>,
) -> Result<bool, Failure> {
    if let Some(threads) = threads().filter(|threads| *threads != 1) {
        if user.is_some() {
            let message = format!("root cannot be given up: {threads} threads are running");
            return Err(Failure::unexpected(message));
        }
        tracing::warn!("{threads} threads are running: only one of them is sandboxed");
    }
    // Files for other users get their modes explicitly.
    rustix::process::umask(Mode::from_raw_mode(0o077));
    match user {
        None => capabilities::drop_all_but_needed(settings, paths),
        Some(user) => {
            let changed = capabilities::drop_bounds();
            let changed = changed
                .map_err(Into::into)
                .and_then(|()| user.replace_root());
            let changed = changed.and_then(|()| Ok(capabilities::drop_all_but_search(paths)?));
            // Half a change is none: root with its files given away.
            changed.map_err(|error| {
                Failure::unexpected(format!("root cannot be given up: {error}"))
            })?;
        }
    }
    let confined = landlock::enter(paths);
    restrict_calls();
    Ok(confined)
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use seccomp::restrict_calls;

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn restrict_calls() {
    tracing::info!("system calls are not restricted: unsupported processor architecture");
}

fn threads() -> Option<usize> {
    const PAUSE: Duration = Duration::from_millis(5);
    const TRIES: usize = 200;
    let running = || Some(std::fs::read_dir("/proc/self/task").ok()?.count());
    // A thread that was joined, such as a reader of records, is listed a moment longer.
    for _ in 0..TRIES {
        if running()? == 1 {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    running()
}
