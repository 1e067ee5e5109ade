//! The directories of an output: created, and kept open to the configured readers. They
//! stay this process's own.

use std::io::ErrorKind;
use std::path::Path;

use super::{DIRECTORY, Output, OutputError, at};
use crate::deploy::owner::Owner;
use crate::files::beneath::Directory;

impl Output {
    /// The output itself, created if it is missing. One that exists is the administrator's:
    /// it keeps its owner and mode, unless it is as we make it.
    pub(super) fn top(&self) -> Result<Directory, OutputError> {
        let create = at("create", &self.root);
        let parent = self.root.parent().unwrap_or(Path::new("/"));
        let top = match Directory::open(&self.root) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let parent = Directory::make(parent, 0o755).map_err(at("create", parent))?;
                let name = self.root.file_name().unwrap_or_default().to_string_lossy();
                return self.make(&parent, &name);
            }
            top => top.map_err(create)?,
        };
        // The process that made it may have been killed before it flushed the name. The
        // parent of a user's own directory may not be flushable.
        let _ = Directory::open(parent).and_then(|parent| parent.sync());
        let found = top.stat().map_err(at("open", &self.root))?;
        let is_as_made = found.st_mode & 0o7776 == DIRECTORY;
        if is_as_made && (is_ours(found.st_uid) || self.owner.is_given(found.st_uid)) {
            self.open_to_readers(&top)?;
        }
        Ok(top)
    }

    /// A directory of ours, created if it is missing.
    pub(super) fn shared(&self, parent: &Directory, name: &str) -> Result<Directory, OutputError> {
        let path = parent.path().join(name);
        let open = at("open", &path);
        let found = match parent.child(name) {
            Err(error) if error.kind() == ErrorKind::NotFound => return self.make(parent, name),
            found => found.map_err(&open)?,
        };
        let above = parent.stat().map_err(&open)?;
        let found = found.belongs_to(&[self.owner.user, Some(above.st_uid)]);
        let found = found.map_err(&open)?;
        let _ = parent.sync();
        self.open_to_readers(&found)?;
        Ok(found)
    }

    /// Creates a shared directory, and renames it last: an unfinished directory after a
    /// crash would look like the user's own, and stay closed to every consumer.
    fn make(&self, parent: &Directory, name: &str) -> Result<Directory, OutputError> {
        let path = parent.path().join(name);
        let aside = format!(".{name}.new-{}", std::process::id());
        parent.prune(&aside).map_err(at("remove", &path))?;
        let made = parent.make_child(&aside, 0o700);
        let made = made.map_err(at("create", &path))?;
        self.give_directory(&made)?;
        made.sync().map_err(at("flush", &path))?;
        match parent.rename_new(&aside, name) {
            // Another process was faster, and may have opened its own.
            Err(_) if parent.child(name).is_ok() => {
                parent.prune(&aside).map_err(at("remove", &path))?;
            }
            named => named.map_err(at("create", &path))?,
        }
        parent.sync().map_err(at("flush", &path))?;
        parent.child(name).map_err(at("open", &path))
    }

    /// The mode of a directory. A configured owner without a group of its own passes
    /// through with the rights of all users, which do not include listing it.
    fn directory_mode(&self) -> u32 {
        let passes = self.owner.is_another_user() && self.owner.group.is_none();
        DIRECTORY | u32::from(passes)
    }

    /// Sets group and mode of a new directory, which stays ours.
    pub(super) fn give_directory(&self, directory: &Directory) -> Result<(), OutputError> {
        let owner = Owner {
            user: None,
            group: self.owner.group,
        };
        let opened = directory.opened();
        let given = opened.and_then(|opened| {
            owner.apply_or_warn(&opened, directory.path(), self.directory_mode())
        });
        given.map_err(at("set the mode of", directory.path()))
    }

    /// Lets the configured readers into an existing directory: rights are added, never
    /// taken. A directory that an earlier version gave to the owner is reclaimed.
    fn open_to_readers(&self, directory: &Directory) -> Result<(), OutputError> {
        if self.owner == Owner::default() {
            return Ok(());
        }
        let failed = at("set the owner of", directory.path());
        let found = directory.stat().map_err(&failed)?;
        let group = self.owner.group.filter(|group| *group != found.st_gid);
        let mode = found.st_mode & 0o7777 | self.directory_mode();
        let is_closed = mode != found.st_mode & 0o7777 || group.is_some();
        let is_reclaimed = self.owner.is_given(found.st_uid);
        if !(is_reclaimed || is_closed && is_ours(found.st_uid)) {
            return Ok(());
        }
        let user = is_reclaimed.then(|| rustix::process::geteuid().as_raw());
        let (owner, opened) = (Owner { user, group }, directory.opened());
        let opened = opened.map_err(&failed)?;
        let given = owner.apply_or_warn(&opened, directory.path(), mode);
        given.map_err(failed)
    }
}

fn is_ours(user: u32) -> bool {
    user == rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::path::PathBuf;

    use super::*;
    use crate::files;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn unfinished_directory_is_replaced_and_the_users_own_stays() {
        let directory = tempfile::tempdir().unwrap();
        let root: PathBuf = directory.path().join("certs");
        let output = Output::new(root.clone());
        let aside = format!(".certs.new-{}", std::process::id());
        let aside = root.with_file_name(aside);
        files::new_directory(&aside, 0o700).unwrap();
        output.top().unwrap();
        assert_eq!((mode(&root), aside.exists()), (DIRECTORY, false));
        // A directory of the user's own keeps its mode.
        std::fs::set_permissions(&root, PermissionsExt::from_mode(0o755)).unwrap();
        output.top().unwrap();
        assert_eq!(mode(&root), 0o755);
    }

    #[test]
    fn directory_that_another_process_has_just_made_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let output = Output::new(directory.path().join("certs"));
        let top = output.top().unwrap();
        // Both processes have found none, and the other one was faster.
        let theirs = output.make(&top, "archive").unwrap();
        let ours = output.make(&top, "archive").unwrap();
        let number = |directory: &Directory| directory.stat().unwrap().st_ino;
        assert_eq!(number(&ours), number(&theirs));
        theirs.make_child("example.com", 0o700).unwrap();
        assert_eq!(top.names().unwrap(), ["archive"]);
    }

    #[test]
    fn existing_directories_are_opened_to_the_group_and_reclaimed_from_the_owner() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: the output's group: only root may chown");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let root: PathBuf = directory.path().join("certs");
        let live = root.join("live");
        let found = |path: &Path| {
            let found = std::fs::metadata(path).unwrap();
            (found.uid(), found.gid(), found.mode() & 0o7777)
        };
        let open = |user, group| {
            let output = Output::new(root.clone()).owned_by(Owner { user, group });
            let top = output.top().unwrap();
            output.shared(&top, "live").unwrap();
        };
        open(None, None);
        let of_root = found(&live);
        open(None, Some(8765));
        assert_eq!(found(&live), (0, 8765, 0o2750));
        assert_eq!(found(&root), (0, 8765, 0o2750));
        // An earlier version gave it to the owner.
        std::os::unix::fs::chown(&live, Some(4_000_321), None).unwrap();
        std::os::unix::fs::chown(&root, Some(4_000_321), Some(of_root.1)).unwrap();
        open(Some(4_000_321), None);
        assert_eq!(found(&live), (0, 8765, 0o2751));
        assert_eq!(found(&root), (0, of_root.1, 0o2751));
        // The output itself may be the user's own.
        std::os::unix::fs::chown(&root, Some(4_000_321), None).unwrap();
        std::fs::set_permissions(&root, PermissionsExt::from_mode(0o700)).unwrap();
        open(Some(4_000_321), None);
        assert_eq!(found(&root), (4_000_321, of_root.1, 0o700));
        std::os::unix::fs::chown(&live, Some(4_000_322), None).unwrap();
        let output = Output::new(root.clone());
        let top = output.top().unwrap();
        let refused = output.shared(&top, "live").unwrap_err();
        assert!(refused.is_refusal(), "{refused}");
        std::os::unix::fs::chown(&live, Some(0), None).unwrap();
        // Rights are added, never taken.
        std::fs::set_permissions(&live, PermissionsExt::from_mode(0o755)).unwrap();
        open(None, Some(8765));
        assert_eq!(found(&live), (0, 8765, 0o2755));
    }
}
