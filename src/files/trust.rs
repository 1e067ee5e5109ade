//! The one rule for a file, program or directory that this process obeys: only root and our
//! own user may be able to change where its path leads. Each part of the path counts, from
//! `/` on; links are resolved one by one, and the owner of the link itself counts too.
//!
//! - The owner is root or our own user.
//! - Its group and all users may not write it. For root there is no exception: a process
//!   with group 0 need not be root. For other users their own group is one: many systems
//!   give each user a group, and a umask that lets it write.
//! - In a sticky directory such as `/tmp` only the owner of an entry can replace it, so that
//!   an entry of root's or ours may be there. A missing one may not: any user could make it.
//! - In a container no process writes through a read-only mount, whatever the mode: a ConfigMap
//!   of Kubernetes has mode 0777. systemd's units see mounts that others write.
//!
//! It reads owners and modes, and changes none. What passed can change only by root or by
//! ourselves, so that using the path afterwards is safe. [`super::beneath`] holds the links
//! of a path to the same rule, without the exceptions for a group and a mount.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Stat, StatVfsMountFlags, lstat, statvfs};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid, getuid};
use thiserror::Error;

use crate::text::{printable, shell_word};

/// The bits of a mode with which users other than the owner change a file.
const OTHERS: u32 = 0o022;
const OTHER_USERS: u32 = 0o002;

/// Why a path may not be obeyed: the part of it that another user can change.
#[derive(Debug, Error)]
#[error("{} {fault}", shown(.part))]
pub(crate) struct Untrusted {
    part: PathBuf,
    fault: Fault,
}

#[derive(Debug, Error)]
enum Fault {
    #[error("belongs to user {0}, and not to root{us}", us = or_to_us())]
    Owner(u32),
    #[error("can be changed by its group or by all users (mode {0:04o})")]
    Writable(u32),
    #[error("cannot be examined: {0}")]
    Unreadable(io::Error),
}

fn shown(path: &Path) -> String {
    printable(&path.display().to_string())
}

fn or_to_us() -> String {
    match geteuid() {
        root if root.is_root() => String::new(),
        user => format!(" or to user {}", user.as_raw()),
    }
}

impl Untrusted {
    /// The command that makes that part trusted.
    #[must_use]
    pub(crate) fn hint(&self) -> String {
        let part = shell_word(&self.part.to_string_lossy());
        match &self.fault {
            Fault::Owner(_) => format!("chown root: {part}"),
            Fault::Writable(_) => format!("chmod go-w {part}"),
            Fault::Unreadable(_) => "name an existing file that this user may read".to_owned(),
        }
    }

    /// Whether there is no such path.
    #[must_use]
    pub(crate) fn is_absent(&self) -> bool {
        matches!(&self.fault, Fault::Unreadable(error) if error.kind() == io::ErrorKind::NotFound)
    }
}

/// Whether `owner` is root or our own user.
#[must_use]
pub(crate) fn is_ours(owner: u32) -> bool {
    owner == 0 || owner == geteuid().as_raw()
}

/// The same for a link to follow: while root acts as another user, only root counts.
#[must_use]
pub(super) fn is_own(owner: u32) -> bool {
    owner == 0 || owner == getuid().as_raw()
}

/// The path that `path` leads to, if it may be obeyed.
///
/// # Errors
/// The first part that another user can change.
pub(crate) fn resolve(path: &Path) -> Result<PathBuf, Untrusted> {
    Walk::new(None).along(path)
}

/// The same, where a part may also belong to `user`.
///
/// # Errors
/// The first part that a user other than root, ourselves and `user` can change.
pub(crate) fn resolve_for(path: &Path, user: Option<u32>) -> Result<PathBuf, Untrusted> {
    let mut walk = Walk::new(None);
    walk.user = user;
    walk.along(path)
}

/// The same for a socket, whose peer's user the caller then checks: the directory of the
/// socket may also belong to `holder` and may be open to others, as servers have them.
///
/// # Errors
/// The first part that a user other than root, ourselves and `holder` can change.
pub(crate) fn resolve_socket(path: &Path, holder: u32) -> Result<PathBuf, Untrusted> {
    Walk::new(Some(holder)).along(path)
}

/// Whether only root and we can change the names of root and ours in this directory.
#[must_use]
pub(super) fn is_ours_alone(directory: &Stat) -> bool {
    is_own(directory.st_uid) && !is_open(directory.st_mode, true)
}

/// Whether users other than its owner can change what has that mode. In a sticky directory
/// that the path only passes, they cannot replace the next part.
fn is_open(mode: u32, is_passed: bool) -> bool {
    const STICKY: u32 = 0o1000;
    let is_directory = FileType::from_raw_mode(mode) == FileType::Directory;
    mode & OTHERS != 0 && !(is_passed && is_directory && mode & STICKY != 0)
}

/// The steps of a path, and of the links in it, one after the other.
pub(super) struct Steps {
    /// The next one last.
    rest: Vec<OsString>,
    links: usize,
}

impl Steps {
    /// Those of `path`, the first of which is `/`.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let (rest, links) = (Vec::new(), 0);
        let mut steps = Self { rest, links };
        steps.push(&std::path::absolute(path)?);
        Ok(steps)
    }

    /// `/`, `..` or a name.
    pub(super) fn next(&mut self) -> Option<OsString> {
        self.rest.pop()
    }

    /// How many there still are.
    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    /// Goes on along the target of a link, as often as the kernel does (path_resolution(7)).
    pub(super) fn follow(&mut self, target: &Path) -> io::Result<()> {
        const MOST_LINKS: usize = 40;
        self.push(target);
        self.links += 1;
        match self.links > MOST_LINKS {
            true => Err(Errno::LOOP.into()),
            false => Ok(()),
        }
    }

    fn push(&mut self, path: &Path) {
        let steps = path.components().rev();
        let steps = steps.filter(|step| *step != Component::CurDir);
        self.rest
            .extend(steps.map(|step| step.as_os_str().to_owned()));
    }
}

/// The path that `real` leads to by `step`; no part of `real` is a link.
pub(super) fn stepped(real: &Path, step: &OsStr) -> PathBuf {
    match step == ".." {
        true => real.parent().unwrap_or(real).to_owned(),
        false => real.join(step),
    }
}

/// A walk along a path.
struct Walk {
    /// The owner of a socket's directory.
    holder: Option<u32>,
    /// A further trusted user.
    user: Option<u32>,
    /// The path so far, without links.
    real: PathBuf,
    /// Whether the directory of the next part lets others make entries.
    is_shared: bool,
}

impl Walk {
    fn new(holder: Option<u32>) -> Self {
        Self {
            holder,
            user: None,
            real: PathBuf::new(),
            is_shared: false,
        }
    }

    fn along(mut self, path: &Path) -> Result<PathBuf, Untrusted> {
        let mut steps = Steps::new(path).map_err(|error| unreadable(path, error))?;
        while let Some(step) = steps.next() {
            self.real = stepped(&self.real, &step);
            let failed = |error| unreadable(&self.real, error);
            let found = lstat(&self.real).map_err(|error| failed(error.into()))?;
            if FileType::from_raw_mode(found.st_mode) != FileType::Symlink {
                self.check(&found, steps.left())?;
                continue;
            }
            self.check_owner(&found)?;
            if is_descriptor(&self.real) {
                return Ok(self.real);
            }
            let target = std::fs::read_link(&self.real).map_err(failed)?;
            steps.follow(&target).map_err(failed)?;
            self.real.pop();
        }
        Ok(self.real)
    }

    /// Checks a part that `left` others follow.
    fn check(&mut self, found: &Stat, left: usize) -> Result<(), Untrusted> {
        let is_socket = self.holder.is_some() && left == 0;
        let is_its_directory = self.holder.is_some() && left == 1;
        if is_socket {
            return Ok(());
        }
        self.check_owner(found)?;
        let mut mode = found.st_mode;
        // What is written to `/dev/null` is not read from it.
        let is_device = FileType::from_raw_mode(mode) == FileType::CharacterDevice;
        if mode & OTHERS != 0 && (is_device || is_read_only(&self.real)) {
            mode &= !OTHERS;
        } else if !geteuid().is_root() && found.st_gid == getegid().as_raw() {
            mode &= !OTHERS | OTHER_USERS;
        }
        self.is_shared = mode & OTHERS != 0;
        match is_open(mode, left > 0) && !is_its_directory {
            true => Err(self.fault(Fault::Writable(found.st_mode & 0o7777))),
            false => Ok(()),
        }
    }

    /// In a directory that is open to others, `holder` is a user like any other: there its
    /// entry may be older than the server's.
    fn check_owner(&self, found: &Stat) -> Result<(), Untrusted> {
        let owner = found.st_uid;
        let is_holder = self.holder == Some(owner) && !self.is_shared;
        match is_ours(owner) || is_holder || self.user == Some(owner) {
            true => Ok(()),
            false => Err(self.fault(Fault::Owner(owner))),
        }
    }

    fn fault(&self, fault: Fault) -> Untrusted {
        let part = self.real.clone();
        Untrusted { part, fault }
    }
}

fn unreadable(part: &Path, error: io::Error) -> Untrusted {
    let (part, fault) = (part.to_owned(), Fault::Unreadable(error));
    Untrusted { part, fault }
}

/// Whether this is a descriptor that a process of root's or ours has open, such as
/// `/dev/stdin`: that process opened it, and its link names no path.
fn is_descriptor(link: &Path) -> bool {
    link.starts_with("/proc") && link.parent().is_some_and(|parent| parent.ends_with("fd"))
}

/// systemd shows a unit with `ProtectSystem=` all files read-only, and other processes write
/// them: where it runs, a mount says nothing.
fn is_read_only(path: &Path) -> bool {
    let is_with_systemd = Path::new("/run/systemd/system").exists();
    !is_with_systemd
        && statvfs(path).is_ok_and(|mount| mount.f_flag.contains(StatVfsMountFlags::RDONLY))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            std::fs::create_dir_all(tree.at("a/b")).unwrap();
            std::fs::write(tree.at("a/b/file"), "").unwrap();
            tree.set("a", 0o755);
            tree.set("a/b", 0o755);
            tree.set("a/b/file", 0o755);
            tree
        }

        fn at(&self, path: &str) -> PathBuf {
            self.0.path().join(path)
        }

        fn set(&self, path: &str, mode: u32) {
            let mode = PermissionsExt::from_mode(mode);
            std::fs::set_permissions(self.at(path), mode).unwrap();
        }

        fn give(&self, path: &str, user: u32) {
            std::os::unix::fs::lchown(self.at(path), Some(user), Some(user)).unwrap();
        }

        /// The part at fault, and the hint.
        fn fault(&self, path: &str) -> Option<(PathBuf, String)> {
            let refused = resolve(&self.at(path)).err()?;
            Some((refused.part.clone(), refused.hint()))
        }
    }

    #[test]
    fn each_part_of_the_path_counts() {
        let tree = Tree::new();
        assert_eq!(resolve(&tree.at("a/b/file")).unwrap(), tree.at("a/b/file"));
        assert_eq!(
            resolve(&tree.at("a/../a/b/file")).unwrap(),
            tree.at("a/b/file")
        );
        for part in ["a", "a/b", "a/b/file"] {
            for mode in [0o757, 0o777, 0o1777] {
                tree.set(part, mode);
                let found = tree.fault("a/b/file");
                let is_sticky_directory = mode == 0o1777 && part != "a/b/file";
                assert_eq!(found.is_none(), is_sticky_directory, "{part} {mode:o}");
                if let Some((at, hint)) = found {
                    assert_eq!(at, tree.at(part));
                    assert_eq!(hint, format!("chmod go-w {}", at.display()));
                }
            }
            tree.set(part, 0o755);
        }
        let absent = resolve(&tree.at("a/none")).unwrap_err();
        assert!(absent.is_absent(), "{absent}");
    }

    #[test]
    fn sticky_directory_is_trusted_for_its_entries_only() {
        let tree = Tree::new();
        tree.set("a/b", 0o1777);
        assert!(tree.fault("a/b/file").is_none());
        assert!(tree.fault("a/b").is_some());
        assert!(tree.fault("a/b/none").is_some());
    }

    #[test]
    fn groups_of_root_count_as_others() {
        let tree = Tree::new();
        tree.set("a", 0o775);
        let is_root = geteuid().is_root();
        assert_eq!(tree.fault("a/b/file").is_some(), is_root);
    }

    #[test]
    fn links_and_owners_count() {
        let tree = Tree::new();
        symlink("b/file", tree.at("a/link")).unwrap();
        symlink(tree.at("a/link"), tree.at("link")).unwrap();
        symlink("loop", tree.at("loop")).unwrap();
        assert_eq!(resolve(&tree.at("link")).unwrap(), tree.at("a/b/file"));
        assert!(tree.fault("loop").is_some());
        if !geteuid().is_root() {
            return println!("SKIPPED: owners need root");
        }
        for part in ["a", "a/link", "a/b", "a/b/file", "link"] {
            tree.give(part, 4321);
            let (at, hint) = tree.fault("link").unwrap();
            assert_eq!(at, tree.at(part));
            assert_eq!(hint, format!("chown root: {}", at.display()));
            tree.give(part, 0);
        }
        assert!(tree.fault("link").is_none());
    }

    #[test]
    fn descriptors_of_our_own_are_trusted() {
        let file = tempfile::tempfile().unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&file);
        let path = format!("/proc/self/fd/{number}");
        assert!(resolve(Path::new(&path)).is_ok());
        assert!(resolve(Path::new("/proc/self/fd/99999")).is_err());
        assert!(resolve(Path::new("/dev/null")).is_ok());
    }

    #[test]
    fn socket_may_be_in_a_directory_of_its_server() {
        if !geteuid().is_root() {
            return println!("SKIPPED: owners need root");
        }
        let tree = Tree::new();
        let socket = tree.at("a/b/file");
        let may = |holder| resolve_socket(&socket, holder).is_ok();
        tree.give("a/b", 4321);
        tree.set("a/b", 0o2775);
        assert!(may(4321));
        assert!(!may(4322));
        // Another user could have made the directory first.
        tree.set("a", 0o1777);
        assert!(!may(4321));
        tree.set("a", 0o777);
        assert!(!may(4321));
        tree.set("a", 0o755);
        chown(tree.at("a"), Some(4322), None).unwrap();
        assert!(!may(4321));
    }
}
