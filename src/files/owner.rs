//! Work as the user who owns a directory. Root's commands in the directory of a service's
//! user leave files that this user can read, and reach no file that this user cannot: a
//! link that the user has placed there leads root nowhere.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::{Gid, Uid, getegid, geteuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_thread_res_gid,
    set_thread_res_uid,
};

/// The owner of a directory, if this process is root and the directory is another user's.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DirectoryOwner(Option<Owner>);

#[derive(Clone, Copy, Debug)]
struct Owner {
    user: Uid,
    group: Gid,
    /// Whether this user may search all directories above.
    reaches_it: bool,
}

impl DirectoryOwner {
    /// The owner of `directory`, or of the nearest parent that exists. Name a directory that
    /// the administrator has configured: below it that owner can place links.
    #[must_use]
    pub(crate) fn of(directory: &Path) -> Self {
        let mut found = directory.ancestors();
        let found = found.find_map(|path| Some((path, std::fs::metadata(path).ok()?)));
        let foreign = found.filter(|(_, found)| geteuid().is_root() && found.uid() != 0);
        Self(foreign.map(|(path, found)| {
            let (user, group) = (found.uid(), found.gid());
            let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
            Owner {
                reaches_it: path.ancestors().skip(1).all(|above| {
                    std::fs::metadata(above).is_ok_and(|above| may_search(&above, user, &[group]))
                }),
                user: Uid::from_raw(user),
                group: Gid::from_raw(group),
            }
        }))
    }

    /// Acts as this user until the result is dropped. It must be dropped in the same thread,
    /// before anything is awaited.
    #[must_use]
    pub(crate) fn act(self) -> ActingAs {
        // Within another such work, the outer one ends it.
        let Some(owner) = self.0.filter(|_| geteuid().is_root()) else {
            return ActingAs(None);
        };
        let before = getegid();
        // A process without that right goes on as it is.
        let switched = set_thread_res_gid(None, owner.group, None)
            .and_then(|()| set_thread_res_uid(None, owner.user, None));
        if switched.is_err() {
            let _ = set_thread_res_gid(None, before, None);
        } else if !owner.reaches_it
            && let Err(error) = keep_search()
        {
            tracing::warn!("cannot search the directories of root: {error}");
        }
        ActingAs(switched.is_ok().then_some(before))
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
pub(crate) struct ActingAs(Option<Gid>);

impl Drop for ActingAs {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let back = set_thread_res_uid(None, Uid::ROOT, None)
                .and_then(|()| set_thread_res_gid(None, group, None));
            if let Err(error) = back {
                tracing::error!("cannot act as root again: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    #[test]
    fn root_acts_as_owner_and_follows_no_link_to_its_own_files() {
        if !geteuid().is_root() {
            eprintln!("SKIPPED: acting as another user: needs root");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
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
    }
}
