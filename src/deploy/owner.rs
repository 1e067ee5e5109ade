//! The user and group that own written files, by name or number. Names are looked up in
//! the files below /etc only: a static binary has no other way, and a directory service
//! must not decide which user reads a key.

use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{Gid, Uid};
use serde::{Deserialize, Serialize};

const USERS: &str = "/etc/passwd";

/// The owner of written files; `None` keeps the process's own user or group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    /// The user's number.
    pub user: Option<u32>,
    /// The group's number.
    pub group: Option<u32>,
}

impl Owner {
    /// Whether it names a user other than the process's own.
    pub(super) fn is_another_user(self) -> bool {
        let own = rustix::process::geteuid().as_raw();
        self.user.is_some_and(|user| user != own)
    }

    /// Whether `user` is that other user.
    pub(super) fn is_given(self, user: u32) -> bool {
        self.is_another_user() && self.user == Some(user)
    }

    /// Whether a file of `user` and `group` already has this owner.
    pub(super) fn is_of(self, user: u32, group: u32) -> bool {
        self.user.is_none_or(|own| own == user) && self.group.is_none_or(|own| own == group)
    }

    /// The same with the group of that user in /etc/passwd, if no group is named.
    pub(super) fn with_own_group(self) -> Self {
        let other = self.user.filter(|_| self.is_another_user());
        let own = || group_of(other?, &std::fs::read_to_string(USERS).ok()?);
        Self {
            group: self.group.or_else(own),
            ..self
        }
    }

    /// The group that gets access, without the user.
    pub(crate) fn group_alone(self) -> Self {
        let group = self.with_own_group().group;
        Self { user: None, group }
    }

    /// Changes the owner of `file`, if this names one.
    fn chown(self, file: &File) -> io::Result<()> {
        if self == Self::default() {
            return Ok(());
        }
        let (user, group) = (self.user.map(Uid::from_raw), self.group.map(Gid::from_raw));
        Ok(rustix::fs::fchown(file, user, group)?)
    }

    /// Changes the owner of an open file or directory that we made, then its mode: chown
    /// clears the set-group-id bit. Without the right to chown, it warns about `path`, and
    /// the file stays the process's own.
    ///
    /// # Errors
    /// When the mode cannot be set: a key must not be open to others.
    pub(crate) fn apply_or_warn(self, file: &File, path: &Path, mode: u32) -> io::Result<()> {
        if let Err(error) = self.chown(file) {
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
    number(text, "user", Path::new(USERS))
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

/// The fourth field of the first line whose third field is `user`.
fn group_of(user: u32, table: &str) -> Option<u32> {
    let fields = |line: &str| {
        let mut fields = line.split(':').skip(2);
        let numbers = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(numbers)
    };
    let mut lines = table.lines().filter_map(fields);
    lines.find_map(|(number, group): (u32, u32)| (number == user).then_some(group))
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
    fn owner_without_group_gets_the_users_own() {
        let table = "root:x:0:0::/:\ninvalid\nweb:x:33:34:web:/:\nother:x:33:99::/:\n";
        assert_eq!(group_of(33, table), Some(34));
        assert_eq!(group_of(34, table), None);
        let owner = |user, group| Owner { user, group };
        let other = rustix::process::geteuid().as_raw() + 4_000_000;
        for kept in [
            owner(None, None),
            owner(Some(other), Some(7)),
            owner(Some(other), None),
        ] {
            assert_eq!(kept.with_own_group(), kept);
        }
    }
}
