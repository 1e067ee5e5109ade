//! The user and group that the output belongs to, by name or number. Names are
//! looked up in the files under /etc only: a static binary has no other way,
//! and a directory service must not decide who reads a key.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{Gid, Uid};
use serde::{Deserialize, Serialize};

/// Who shall own the output; what is `None` stays the process's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The user's number.
    pub user: Option<u32>,
    /// The group's number.
    pub group: Option<u32>,
}

impl Owner {
    /// Gives `path` to this owner; nothing is done where none is named.
    ///
    /// # Errors
    /// As the system has them: only root may give files away.
    pub fn take(self, path: &Path) -> io::Result<()> {
        if self == Self::default() {
            return Ok(());
        }
        let (user, group) = (self.user.map(Uid::from_raw), self.group.map(Gid::from_raw));
        Ok(rustix::fs::chown(path, user, group)?)
    }
}

impl Owner {
    /// The same, and its mode after it: giving a file away takes its set-group-id
    /// bit. Whoever may not give it away goes on with a file that is his own.
    ///
    /// # Errors
    /// When it has not got the mode: a key must not be open to others.
    pub fn take_or_warn(self, path: &Path, mode: u32) -> io::Result<()> {
        if let Err(error) = self.take(path) {
            tracing::warn!(
                "the owner of {} stays: {error}; hint: it takes root, or CAP_CHOWN, to give a file away",
                path.display()
            );
        }
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode))?;
        let found = std::fs::metadata(path)?.permissions().mode() & 0o7777;
        // A directory may have a bit that it has from its parent.
        match found & !0o2000 == mode & !0o2000 {
            true => Ok(()),
            false => Err(io::Error::other(format!(
                "its mode is {found:04o}, and not {mode:04o}"
            ))),
        }
    }
}

/// The number of a user, given by name or number.
///
/// # Errors
/// When there is no such user, in words.
pub fn user(text: &str) -> Result<u32, String> {
    number(text, "user", Path::new("/etc/passwd"))
}

/// The number of a group, given by name or number.
///
/// # Errors
/// When there is no such group, in words.
pub fn group(text: &str) -> Result<u32, String> {
    number(text, "group", Path::new("/etc/group"))
}

fn number(text: &str, kind: &str, table: &Path) -> Result<u32, String> {
    // The last number stands for "leave as it is" in chown(2).
    if let Some(number) = text.parse().ok().filter(|number| *number != u32::MAX) {
        return Ok(number);
    }
    let found = std::fs::read_to_string(table)
        .map_err(|error| format!("{}: {error}", table.display()))?
        .lines()
        .find_map(|line| third_field(line, text));
    found.ok_or_else(|| {
        format!(
            "there is no {kind} `{}` in {}",
            text.escape_debug(),
            table.display()
        )
    })
}

fn third_field(line: &str, name: &str) -> Option<u32> {
    let mut fields = line.split(':');
    (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_and_numbers() {
        assert_eq!((user("root"), group("root")), (Ok(0), Ok(0)));
        assert_eq!(user("1234"), Ok(1234));
        for text in ["", "4294967295", "-1", "root:x", "no such user"] {
            assert!(user(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_owner_that_is_not_named_changes_nothing() {
        assert!(Owner::default().take(Path::new("/absent")).is_ok());
        let named = Owner {
            user: None,
            group: Some(0),
        };
        assert!(named.take(Path::new("/absent")).is_err());
    }
}
