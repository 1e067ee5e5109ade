//! The user and group that own written files, by name or number. Names are looked up in
//! the files below /etc only: a static binary has no other way, and a directory service
//! must not decide which user reads a key.

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{Gid, OFlags, Uid};
use serde::{Deserialize, Serialize};

/// The owner of written files; `None` keeps the process's own user or group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    /// The user's number.
    pub user: Option<u32>,
    /// The group's number.
    pub group: Option<u32>,
}

impl Owner {
    /// Changes the owner of `file`, if this names one.
    fn chown(self, file: &File) -> io::Result<()> {
        if self == Self::default() {
            return Ok(());
        }
        let (user, group) = (self.user.map(Uid::from_raw), self.group.map(Gid::from_raw));
        Ok(rustix::fs::fchown(file, user, group)?)
    }

    /// Changes the owner of the file or directory at `path`, then its mode: chown clears
    /// the set-group-id bit. Without the right to chown, it warns, and the file stays the
    /// process's own.
    ///
    /// # Errors
    /// When the mode cannot be set: a key must not be open to others. Also when `path` is
    /// a symbolic link or has a second hard link: the directory's owner could make us
    /// chown any file.
    pub(crate) fn apply_or_warn(self, path: &Path, mode: u32) -> io::Result<()> {
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
        let mut options = File::options();
        let file = options
            .read(true)
            .custom_flags(flags.cast_signed())
            .open(path)?;
        let found = file.metadata()?;
        if !found.is_dir() && (!found.is_file() || found.nlink() != 1) {
            return Err(io::Error::other(
                "the file has a second hard link, or is not a regular file",
            ));
        }
        if let Err(error) = self.chown(&file) {
            tracing::warn!(
                "the owner of {} could not be changed: {error}; hint: run as root or with CAP_CHOWN",
                path.display()
            );
        }
        file.set_permissions(PermissionsExt::from_mode(mode))?;
        let found = file.metadata()?.permissions().mode() & 0o7777;
        // A directory may inherit the set-group-id bit from its parent.
        match found & !0o2000 == mode & !0o2000 {
            true => Ok(()),
            false => Err(io::Error::other(format!(
                "its mode is {found:04o} instead of {mode:04o}"
            ))),
        }
    }
}

/// The number of a user, from its name or number.
pub(crate) fn user(text: &str) -> Result<u32, String> {
    number(text, "user", Path::new("/etc/passwd"))
}

/// The number of a group, from its name or number.
pub(crate) fn group(text: &str) -> Result<u32, String> {
    number(text, "group", Path::new("/etc/group"))
}

fn number(text: &str, kind: &str, table: &Path) -> Result<u32, String> {
    // The largest number means "no change" to chown(2).
    if let Some(number) = text.parse().ok().filter(|number| *number != u32::MAX) {
        return Ok(number);
    }
    let found = std::fs::read_to_string(table)
        .map_err(|error| format!("{}: {error}", table.display()))?
        .lines()
        .find_map(|line| third_field(line, text));
    found.ok_or_else(|| format!("no {kind} `{}` in {}", text.escape_debug(), table.display()))
}

fn third_field(line: &str, name: &str) -> Option<u32> {
    let mut fields = line.split(':');
    (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_is_found_by_name_and_number() {
        assert_eq!((user("root"), group("root")), (Ok(0), Ok(0)));
        assert_eq!(user("1234"), Ok(1234));
        for text in ["", "4294967295", "-1", "root:x", "no such user"] {
            assert!(user(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn chown_refuses_symbolic_and_hard_links() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("other"), "x").unwrap();
        let mode = |name: &str| std::fs::metadata(path(name)).unwrap().mode() & 0o7777;
        let before = mode("other");
        std::os::unix::fs::symlink(path("other"), path("link")).unwrap();
        std::fs::write(path("ours"), "x").unwrap();
        let owner = Owner::default();
        assert!(owner.apply_or_warn(&path("link"), 0o604).is_err());
        owner.apply_or_warn(&path("ours"), 0o640).unwrap();
        std::fs::hard_link(path("other"), path("second")).unwrap();
        assert!(owner.apply_or_warn(&path("second"), 0o604).is_err());
        assert_eq!((mode("other"), mode("ours")), (before, 0o640));
        assert!(owner.apply_or_warn(&path("absent"), 0o640).is_err());
    }
}
