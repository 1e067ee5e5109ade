//! The user and group that own written files, by name or number.

use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{Gid, Uid};
use serde::{Deserialize, Serialize};

use crate::files::accounts;

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
        let own = || {
            let mut users = accounts::users().filter(|user| Some(user.number) == other);
            users.find_map(|user| user.group)
        };
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
    number(text, "user", accounts::USERS)
}

/// The number of a group, from its name or number.
pub(crate) fn group(text: &str) -> Result<u32, String> {
    number(text, "group", accounts::GROUPS)
}

fn number(text: &str, kind: &str, table: &str) -> Result<u32, String> {
    // The largest number means "no change" to chown(2).
    if let Some(number) = text.parse().ok().filter(|number| *number != u32::MAX) {
        return Ok(number);
    }
    let all = accounts::accounts(table).map_err(|error| format!("{table}: {error}"))?;
    let mut named = all.filter(|account| account.name == text);
    let found = named.next().map(|account| account.number);
    found.ok_or_else(|| format!("no {kind} `{}` in {table}", text.escape_debug()))
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
        let owner = |user, group| Owner { user, group };
        let own = rustix::process::geteuid().as_raw();
        let other = own + 4_000_000;
        let mut others = accounts::users().filter(|user| user.number != own && user.number != 0);
        if let Some(user) = others.next() {
            let found = owner(Some(user.number), None).with_own_group();
            assert_eq!(found.group, user.group);
        }
        for kept in [
            owner(None, None),
            owner(Some(other), Some(7)),
            owner(Some(other), None),
        ] {
            assert_eq!(kept.with_own_group(), kept);
        }
    }
}
