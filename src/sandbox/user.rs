//! The unprivileged user that a sidecar started by root becomes. Its files are given to that
//! user first: by descriptors, without following links, and only what `certs` makes.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Uid, chmodat, chownat, fstat, mkdirat, openat,
    statat,
};
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, capabilities, set_keep_capabilities, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use crate::failure::Failure;
use crate::files::is_leftover;

/// Its account, if the package or the administrator has made it.
const ACCOUNT: &str = "certs";
/// Without that account: the number that the image has, too.
const NO_ACCOUNT: u32 = 65_532;
/// What `certs` makes in the data directory.
const STATE: [&str; 7] = [
    "records",
    "leases",
    "accounts",
    "authorities",
    "ca",
    "labels.json",
    "admin.sock",
];
/// What `certs` makes in the output directory.
const OUTPUT: [&str; 2] = ["live", "archive"];
const SHARED: Mode = Mode::from_raw_mode(0o2750);

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
        let account = account(ACCOUNT);
        let (user, group) = match found.uid() {
            0 | NO_ACCOUNT => account.unwrap_or((NO_ACCOUNT, NO_ACCOUNT)),
            owner => (owner, found.gid()),
        };
        Ok(Self {
            user,
            group: if group == 0 { user } else { group },
            groups: Vec::new(),
            has_account: user != NO_ACCOUNT,
        })
    }

    /// Also a member of `group`, except of root's.
    pub(super) fn in_group(mut self, group: Option<u32>) -> Self {
        self.groups.extend(group.filter(|group| *group != 0));
        self
    }

    /// Whether it may search all directories above `path`.
    pub(super) fn can_reach(&self, path: &Path) -> bool {
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        path.ancestors().skip(1).all(|above| {
            std::fs::metadata(above).is_ok_and(|found| {
                let is_member = found.gid() == self.group || self.groups.contains(&found.gid());
                let class = match found.uid() == self.user {
                    true => 0o100,
                    false if is_member => 0o010,
                    false => 0o001,
                };
                found.mode() & class != 0
            })
        })
    }

    /// Gives it the state in `data_dir` and the pairs in `output`.
    ///
    /// # Errors
    /// When a file is not one that `certs` makes, or cannot be given.
    pub(super) fn take_over(&self, data_dir: &Path, output: &Path) -> Result<(), Failure> {
        let failed = |path: PathBuf| {
            move |error: io::Error| {
                Failure::store(format!(
                    "{} cannot be given to user {}: {error}",
                    path.display(),
                    self.user
                ))
            }
        };
        let state = open_directory(data_dir).map_err(failed(data_dir.to_owned()))?;
        let is_ours = self.give_known(&state, &STATE);
        let is_ours = is_ours.map_err(failed(data_dir.to_owned()))?;
        let mode = fstat(&state).map_or(0, |found| found.st_mode);
        if !is_ours && mode & 0o077 != 0 {
            return Err(Failure::usage(
                format!(
                    "{} has files of other programs and is open to other users",
                    data_dir.display()
                ),
                "give certs a directory of its own with --data-dir, or make this one private: chmod 700",
            ));
        }
        self.give(&state).map_err(failed(data_dir.to_owned()))?;
        let pairs = match open_directory(output) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened.map_err(failed(output.to_owned()))?,
        };
        let given = self.give_pairs(&pairs);
        given.map_err(failed(output.to_owned()))
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
        match self.give_known(output, &OUTPUT)? {
            true => self.give(output),
            false => Ok(()),
        }
    }

    /// Gives it the entries with these names, and those that a crash left of them; whether
    /// there are no others.
    fn give_known(&self, directory: &OwnedFd, known: &[&str]) -> io::Result<bool> {
        let (mine, others): (Vec<_>, Vec<_>) =
            names_in(directory)?.into_iter().partition(|found| {
                let is_known = |name: &&str| found == name || is_leftover(found, name);
                known.iter().any(is_known)
            });
        for name in mine {
            let named = |error: io::Error| io::Error::new(error.kind(), format!("{name}: {error}"));
            self.give_below(directory, &name).map_err(named)?;
            self.give_linked(directory, &name).map_err(named)?;
        }
        Ok(others.is_empty())
    }

    /// Gives it the directory of challenge answers below `webroot`, which is created.
    pub(super) fn answer_below(&self, webroot: &Path) -> io::Result<()> {
        let directory = crate::challenge::webroot::answers_below(webroot)?;
        if fstat(&directory)?.st_uid == 0 {
            self.chown(&directory)?;
        }
        Ok(())
    }

    /// Gives it `name` in `parent` and everything below; a missing one is none. Links stay
    /// whose they are.
    fn give_below(&self, parent: &OwnedFd, name: &str) -> io::Result<()> {
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
            for name in names_in(&directory)? {
                self.give_below(&directory, &name)?;
            }
        }
        self.give(&entry)
    }

    /// Gives it the directory that a link of root's leads to: that part is on another disk.
    fn give_linked(&self, parent: &OwnedFd, name: &str) -> io::Result<()> {
        let link = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let is_link = FileType::from_raw_mode(link.st_mode) == FileType::Symlink;
        if !is_link || link.st_uid != 0 {
            return Ok(());
        }
        let target = openat(parent, name, DIRECTORY, Mode::empty())?;
        self.give_below(&target, ".")
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

/// The user and group of an account, by its name or number.
fn account(named: &str) -> Option<(u32, u32)> {
    let table = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    account_in(&table, named)
}

fn account_in(table: &str, named: &str) -> Option<(u32, u32)> {
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, number, group, ..] = fields[..] else {
            return None;
        };
        let (user, group) = (number.parse().ok()?, group.parse().ok()?);
        let is_meant = name == named || number == named;
        (is_meant && user != 0 && group != 0).then_some((user, group))
    })
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(openat(rustix::fs::CWD, path, DIRECTORY, Mode::empty())?)
}

fn names_in(directory: impl AsFd) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    Ok(names)
}
