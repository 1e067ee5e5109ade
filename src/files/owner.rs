//! Work as the owner of a directory. Root's commands in the directory of a service's
//! user leave files that this user can read, and reach no file that this user cannot: a
//! link that the user has placed there leads root nowhere.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use rustix::process::{Gid, Uid, getegid, geteuid, getgroups};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

use super::{accounts, trust};

/// The owner of a directory, if this process is root and the directory is another user's.
#[derive(Clone, Debug, Default)]
pub(crate) struct DirectoryOwner(Option<Arc<Owner>>);

#[derive(Debug)]
struct Owner {
    user: Uid,
    group: Gid,
    /// Its other groups, by the table of this system. Root's own groups do not stay: they
    /// open root's keys.
    groups: Vec<Gid>,
    /// Whether a directory above lets only root pass. Else the right to search would
    /// open to this user what is closed to it alone.
    is_below_roots: bool,
}

impl DirectoryOwner {
    /// The owner of `directory`, or of the nearest parent that exists: the first user but
    /// root on the way there, since that user can replace all that follows. Name a directory
    /// that the administrator has configured: below it that owner can place links.
    #[must_use]
    pub(crate) fn of(directory: &Path) -> Self {
        let nearest = directory.ancestors();
        let nearest = { nearest }.find_map(|path| std::fs::canonicalize(path).ok());
        let path = nearest.filter(|_| geteuid().is_root()).unwrap_or_default();
        let way: Vec<&Path> = path.ancestors().collect();
        let way = way.into_iter().rev();
        let mut way = way.filter_map(|part| std::fs::symlink_metadata(part).ok());
        let foreign = way.find(|found| found.uid() != 0);
        Self(foreign.map(|found| {
            let (user, group) = (found.uid(), found.gid());
            let groups = accounts::groups_of(user);
            let above = path.ancestors().skip(1);
            let closed = above.filter_map(|above| std::fs::metadata(above).ok());
            let all = [&[group], groups.as_slice()].concat();
            let mut closed = closed
                .filter(|above| !may_search(above, user, &all))
                .peekable();
            Arc::new(Owner {
                is_below_roots: closed.peek().is_some() && closed.all(|above| is_roots(&above)),
                user: Uid::from_raw(user),
                group: Gid::from_raw(group),
                groups: groups.into_iter().map(Gid::from_raw).collect(),
            })
        }))
    }

    /// Whether both belong to the same user.
    #[must_use]
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let user = |one: &Self| one.0.as_deref().map(|owner| owner.user);
        user(self) == user(other)
    }

    /// Checks that only root and the owner of `directory` can lead its path elsewhere:
    /// it is used again and again.
    ///
    /// # Errors
    /// [`io::ErrorKind::PermissionDenied`] with the part that another user can change, and a
    /// hint.
    pub(crate) fn checked(directory: &Path) -> io::Result<Self> {
        let owner = Self::of(directory);
        let user = owner.0.as_deref().map(|owner| owner.user.as_raw());
        match trust::resolve_for(directory, user) {
            Err(error) if geteuid().is_root() && !error.is_absent() => {
                let (shown, hint) = (directory.display(), error.hint());
                let message = format!("root does not work in {shown}: {error}; hint: {hint}");
                Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
            }
            _ => Ok(owner),
        }
    }

    /// Acts as this user until the result is dropped. It must be dropped in the same thread,
    /// before anything is awaited.
    #[must_use]
    pub(crate) fn act(&self) -> ActingAs {
        // Within another such work, the outer one ends it.
        let Some(owner) = self.0.as_deref().filter(|_| geteuid().is_root()) else {
            return ActingAs(None);
        };
        let before = Before {
            group: getegid(),
            groups: getgroups().unwrap_or_default(),
        };
        // A process without that right goes on as it is.
        let switched = set_thread_groups(&owner.groups)
            .and_then(|()| set_thread_res_gid(None, owner.group, None))
            .and_then(|()| set_thread_res_uid(None, owner.user, None));
        if switched.is_err() {
            let _ = before.restore();
            return ActingAs(None);
        }
        if owner.is_below_roots
            && let Err(error) = keep_search()
        {
            tracing::warn!("cannot search the directories of root: {error}");
        }
        ActingAs(Some(before))
    }
}

/// Whether the directory is root's, and no other user may search it.
fn is_roots(directory: &Metadata) -> bool {
    directory.uid() == 0 && directory.mode() & 0o001 == 0 && {
        directory.gid() == 0 || directory.mode() & 0o010 == 0
    }
}

/// Whether a user with `groups` may search the directory; see path_resolution(7).
#[must_use]
pub(crate) fn may_search(directory: &Metadata, user: u32, groups: &[u32]) -> bool {
    let class = match directory.uid() == user {
        true => 0o100,
        false if groups.contains(&directory.gid()) => 0o010,
        false => 0o001,
    };
    directory.mode() & class != 0
}

/// The right to search the directories above, of all capabilities. It writes nothing.
fn keep_search() -> rustix::io::Result<()> {
    let own = capabilities(None)?;
    let effective = CapabilitySet::DAC_READ_SEARCH & own.permitted;
    set_capabilities(None, CapabilitySets { effective, ..own })
}

/// Ends the work as another user when it is dropped.
#[derive(Debug)]
pub(crate) struct ActingAs(Option<Before>);

/// The groups of root's thread.
#[derive(Debug)]
struct Before {
    group: Gid,
    groups: Vec<Gid>,
}

impl Before {
    fn restore(&self) -> rustix::io::Result<()> {
        set_thread_res_uid(None, Uid::ROOT, None)?;
        set_thread_res_gid(None, self.group, None)?;
        set_thread_groups(&self.groups)
    }
}

impl Drop for ActingAs {
    fn drop(&mut self) {
        let back = self.0.as_ref().map_or(Ok(()), Before::restore);
        if let Err(error) = back {
            tracing::error!("cannot act as root again: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    #[test]
    fn right_to_search_stays_below_directories_of_root_alone() {
        if !geteuid().is_root() {
            eprintln!("SKIPPED: acting as another user: needs root");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let secret = directory.path().join("secret");
        std::fs::write(&secret, "").unwrap();
        std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
        let theirs = directory.path().join("theirs");
        std::fs::create_dir(&theirs).unwrap();
        chown(&theirs, Some(1234), Some(1235)).unwrap();
        // Of a group that the user may have got in another way than by the table.
        for (mode, group, reads) in [(0o700, 0, true), (0o750, 4000, false)] {
            chown(directory.path(), Some(0), Some(group)).unwrap();
            let mode = PermissionsExt::from_mode(mode);
            std::fs::set_permissions(directory.path(), mode).unwrap();
            let owner = DirectoryOwner::of(&theirs);
            let _acting = owner.act();
            assert_eq!(std::fs::read(&secret).is_ok(), reads, "{group}");
        }
    }

    #[test]
    fn root_acts_as_owner_and_follows_no_link_to_its_own_files() {
        if !geteuid().is_root() {
            eprintln!("SKIPPED: acting as another user: needs root");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let open = PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(directory.path(), open).unwrap();
        let (theirs, roots) = (
            directory.path().join("theirs"),
            directory.path().join("roots"),
        );
        for path in [&theirs, &roots] {
            std::fs::create_dir(path).unwrap();
        }
        symlink(&roots, theirs.join("link")).unwrap();
        chown(&theirs, Some(1234), Some(1235)).unwrap();
        let owner = DirectoryOwner::of(&theirs.join("not/there/yet"));
        {
            let _acting = owner.act();
            std::fs::write(theirs.join("file"), "").unwrap();
            assert!(std::fs::write(theirs.join("link/file"), "").is_err());
        }
        let made = std::fs::metadata(theirs.join("file")).unwrap();
        assert_eq!((made.uid(), made.gid()), (1234, 1235));
        assert!(geteuid().is_root() && getegid().is_root());
        assert!(DirectoryOwner::of(&roots).0.is_none());
        // What follows on the way can be replaced by the first other user.
        std::fs::create_dir(theirs.join("roots")).unwrap();
        let way = DirectoryOwner::of(&theirs.join("roots"));
        assert_eq!(way.0.unwrap().user.as_raw(), 1234);
    }
}
