//! The unprivileged user that a sidecar started by root becomes. Its files are given to that
//! user first: by descriptors, without following links, and only what `certs` makes.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Uid, chmodat, chownat, fchmod, fchown, fstat, mkdirat,
    openat,
};
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, capabilities, set_keep_capabilities, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use crate::failure::Failure;
use crate::files::accounts::{NO_ACCOUNT, service_account};
use crate::files::beneath::{Directory, names_in};
use crate::files::{is_leftover, may_search};
use crate::lineage::Lineage;
use crate::text::printable;

/// The socket of the helper process in the data directory, for Docker's API.
pub(super) const DOCKER_RELAY: &str = "docker.sock";
/// What `certs` makes in the data directory.
const STATE: [&str; 9] = [
    "copies.json",
    "records",
    "leases",
    "accounts",
    "authorities",
    "ca",
    "labels.json",
    "admin.sock",
    DOCKER_RELAY,
];
/// What is there by default, and has rules of its own: the output, and a volume's directory.
const BESIDE: [&str; 2] = ["public", "lost+found"];
/// What the machines of a fleet make in a directory that they share.
const FLEET: [&str; 9] = [
    "accounts",
    "cas",
    "certificates",
    "challenges",
    "deleted",
    "fleet",
    "leases",
    "nodes",
    "pairs",
];
/// What `certs` makes in the output directory.
const OUTPUT: [&str; 2] = ["live", "archive"];
/// The names below them: certificates, generations, and the files of a pair.
const SHAPE: [fn(&str) -> bool; 3] = [
    |name| Lineage::parse(name).is_ok(),
    |name| name.bytes().all(|byte| byte.is_ascii_digit()) || name.starts_with(".new-"),
    |name| name.ends_with(".pem"),
];
const PRIVATE: Mode = Mode::from_raw_mode(0o700);
const SHARED: Mode = Mode::from_raw_mode(0o2750);
/// The directory of challenge answers of a service.
const ANSWERS: Mode = Mode::from_raw_mode(0o2775);

/// The user that a sidecar started by root becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServiceUser {
    user: u32,
    group: u32,
    /// Other groups whose files it may use.
    groups: Vec<u32>,
    has_account: bool,
}

impl ServiceUser {
    /// The owner of `data_dir` if that is not root, else the account `certs`, else a number
    /// without an account.
    pub(super) fn of(data_dir: &Path) -> io::Result<Self> {
        let found = std::fs::metadata(data_dir)?;
        let (user, group) = match found.uid() {
            0 | NO_ACCOUNT => service_account().unwrap_or((NO_ACCOUNT, NO_ACCOUNT)),
            owner => (owner, found.gid()),
        };
        Ok(Self {
            user,
            group: if group == 0 { user } else { group },
            groups: Vec::new(),
            has_account: user != NO_ACCOUNT,
        })
    }

    /// Also a member of `groups`, except of root's.
    pub(super) fn in_groups(mut self, groups: impl Iterator<Item = u32>) -> Self {
        self.groups.extend(groups.filter(|group| *group != 0));
        self
    }

    /// Whether it may search all directories above `path`.
    pub(super) fn can_reach(&self, path: &Path) -> bool {
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let groups = [&[self.group], self.groups.as_slice()].concat();
        path.ancestors().skip(1).all(|above| {
            std::fs::metadata(above).is_ok_and(|found| may_search(&found, self.user, &groups))
        })
    }

    /// Gives it the state in `data_dir`, the directory `shared` and the pairs in `outputs`.
    ///
    /// # Errors
    /// When a file is not one that `certs` makes, or cannot be given.
    pub(super) fn take_over<'a>(
        &self,
        data_dir: &Path,
        shared: Option<&PathBuf>,
        outputs: impl Iterator<Item = &'a PathBuf>,
    ) -> Result<(), Failure> {
        let failed = |path: &Path, error: io::Error| {
            let (path, user) = (path.display(), self.user);
            Failure::store(format!("{path} cannot be given to user {user}: {error}"))
        };
        let other = self.give_state(data_dir);
        if let Some(other) = other.map_err(|error| failed(data_dir, error))? {
            let (path, other) = (data_dir.display(), printable(&other.to_string_lossy()));
            return Err(Failure::usage(
                format!("{path} is not the data directory of certs alone: it has `{other}`"),
                "give certs a directory of its own with --data-dir, or move that file elsewhere",
            ));
        }
        if let Some(directory) = shared {
            let given = open_directory(directory).and_then(|root| self.give_shared(&root));
            given.map_err(|error| failed(directory, error))?;
        }
        for output in outputs {
            match open_directory(output).and_then(|pairs| self.give_pairs(&pairs)) {
                // Made by the first publication, or the reason why that fails.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                given => given.map_err(|error| failed(output, error))?,
            }
        }
        Ok(())
    }

    /// Gives it the data directory, unless that has a file of another program: then nothing
    /// is given, and the file's name is returned.
    fn give_state(&self, data_dir: &Path) -> io::Result<Option<OsString>> {
        let state = open_directory(data_dir)?;
        if fstat(&state)?.st_uid == self.user {
            return Ok(None);
        }
        let (known, others) = partition(&state, &STATE)?;
        if let Some(other) = others.into_iter().next() {
            return Ok(Some(other));
        }
        self.give_all(&state, known)?;
        // An earlier version made it 0755.
        fchmod(&state, PRIVATE)?;
        self.give(&state)?;
        Ok(None)
    }

    /// Gives it a directory that the machines of a fleet share.
    fn give_shared(&self, root: &OwnedFd) -> io::Result<()> {
        if !self.is_roots_alone(root)? {
            return Ok(());
        }
        let (known, _) = partition(root, &FLEET)?;
        self.give_all(root, known)?;
        self.give(root)
    }

    /// Gives it the pairs in `output`, which may be a directory of other files, too.
    fn give_pairs(&self, output: &OwnedFd) -> io::Result<()> {
        for name in OUTPUT {
            match mkdirat(output, name, SHARED) {
                Ok(()) => chmodat(output, name, SHARED, AtFlags::empty())?,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if !self.is_roots_alone(output)? {
            // What is not a pair may be another program's, renamed by the user of this directory.
            return OUTPUT
                .iter()
                .try_for_each(|name| self.give_pairs_below(output, name.as_ref(), &SHAPE));
        }
        let (known, others) = partition(output, &OUTPUT)?;
        self.give_all(output, known)?;
        match others.is_empty() {
            true => self.give(output),
            false => Ok(()),
        }
    }

    /// Gives it `name` in `parent` and those entries below whose names are of `shape`.
    fn give_pairs_below(
        &self,
        parent: &OwnedFd,
        name: &OsStr,
        shape: &[fn(&str) -> bool],
    ) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let entry = openat(parent, name, flags, Mode::empty())?;
        let found = fstat(&entry)?;
        let kind = FileType::from_raw_mode(found.st_mode);
        if let Some((next, rest)) = shape.split_first() {
            let is_roots = kind == FileType::Directory && found.st_uid == 0;
            if !is_roots || found.st_mode & 0o022 != 0 {
                return Ok(());
            }
            let directory = openat(&entry, ".", DIRECTORY, Mode::empty())?;
            let names = names_in(&directory)?.into_iter();
            for name in names.filter(|name| name.to_str().is_some_and(next)) {
                self.give_pairs_below(&directory, &name, rest)?;
            }
        }
        match kind {
            FileType::Directory | FileType::RegularFile => self.give(&entry),
            _ => Ok(()),
        }
    }

    /// Whether only root could put the entries of `directory` there.
    fn is_roots_alone(&self, directory: &OwnedFd) -> io::Result<bool> {
        let found = fstat(directory)?;
        let is_roots = found.st_uid == 0 || found.st_uid == NO_ACCOUNT && self.has_account;
        Ok(is_roots && found.st_mode & 0o022 == 0)
    }

    /// Gives it the entries with these names and all below, if only root could put them
    /// there: another user may have moved a file of root's into its own directory.
    fn give_all(&self, directory: &OwnedFd, names: Vec<OsString>) -> io::Result<()> {
        if !self.is_roots_alone(directory)? {
            return Ok(());
        }
        for name in names {
            let named = |error: io::Error| {
                io::Error::new(error.kind(), format!("{}: {error}", name.display()))
            };
            self.give_below(directory, &name).map_err(named)?;
        }
        Ok(())
    }

    /// Lets it write in a directory of challenge answers: one of root's is given to it, and
    /// one of a service opened to its group.
    pub(super) fn open_answers(&self, directory: &File) -> io::Result<()> {
        match fstat(directory)?.st_uid {
            0 => self.chown(directory),
            owner if owner == self.user => Ok(()),
            _ => {
                fchown(directory, None, Some(Gid::from_raw(self.group)))?;
                Ok(fchmod(directory, ANSWERS)?)
            }
        }
    }

    /// Gives it `name` in `parent` and everything below; a missing one is none. Links stay
    /// whose they are.
    fn give_below(&self, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let entry = match openat(parent, name, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(()),
            opened => opened?,
        };
        let found = fstat(&entry)?;
        if FileType::from_raw_mode(found.st_mode) == FileType::Symlink {
            return Ok(());
        }
        if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
            // Of the same directory: a name may mean another one by now.
            let directory = openat(&entry, ".", DIRECTORY, Mode::empty())?;
            self.give_all(&directory, names_in(&directory)?)?;
        }
        self.give(&entry)
    }

    /// Gives it what belongs to root, or to no account.
    fn give(&self, entry: &OwnedFd) -> io::Result<()> {
        let found = fstat(entry)?;
        let is_directory = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
        // Another user's file stays that user's: the consumer's, or one that is not ours.
        if found.st_uid != 0 && found.st_uid != NO_ACCOUNT || found.st_uid == self.user {
            return Ok(());
        }
        if !is_directory && found.st_nlink != 1 {
            return Err(io::Error::other("it has a second hard link"));
        }
        self.chown(entry)
    }

    /// A group other than root's stays: it is the consumers'.
    fn chown(&self, entry: impl AsFd) -> io::Result<()> {
        let is_roots = fstat(&entry)?.st_gid == 0;
        let group = is_roots.then(|| Gid::from_raw(self.group));
        let user = Some(Uid::from_raw(self.user));
        Ok(chownat(&entry, "", user, group, AtFlags::EMPTY_PATH)?)
    }

    /// Makes the calling thread, and those that it starts later, this user's. No capability
    /// stays effective.
    pub(super) fn replace_root(&self) -> io::Result<()> {
        let (user, group) = (Uid::from_raw(self.user), Gid::from_raw(self.group));
        let groups = self.groups.iter().map(|group| Gid::from_raw(*group));
        set_thread_groups(&groups.collect::<Vec<_>>())?;
        set_thread_res_gid(group, group, group)?;
        // The permitted ones stay until the caller has tried out which are needed.
        set_keep_capabilities(true)?;
        set_thread_res_uid(user, user, user)?;
        let hint = match self.has_account {
            true => "",
            false => "; hint: create the user `certs`, so that no other service has its number",
        };
        tracing::info!("the user is {} from now on, not root{hint}", self.user);
        Ok(())
    }
}

/// Whether this process is root and may become another user.
pub(super) fn may_change() -> bool {
    let needed = CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::CHOWN;
    let may = capabilities(None).is_ok_and(|own| own.effective.contains(needed));
    rustix::process::geteuid().is_root() && may && has_other_users()
}

/// Whether this user namespace has the number without an account; see user_namespaces(7).
fn has_other_users() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.lines().any(|line| {
        let numbers: Vec<u32> = line.split_whitespace().flat_map(str::parse).collect();
        matches!(numbers[..], [first, _, count] if first <= NO_ACCOUNT && NO_ACCOUNT - first < count)
    })
}

/// The entries with these names and those that a crash left of them, and the others.
fn partition(directory: &OwnedFd, known: &[&str]) -> io::Result<(Vec<OsString>, Vec<OsString>)> {
    let found = names_in(directory)?.into_iter();
    let found = found.filter(|found| !BESIDE.iter().any(|beside| found == beside));
    Ok(found.partition(|found| {
        let found = found.to_string_lossy();
        let is_known = |name: &&str| found == **name || is_leftover(&found, name);
        known.iter().any(is_known)
    }))
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    // Through no link that another user can place.
    Ok(Directory::open(path)?.opened()?.into())
}
