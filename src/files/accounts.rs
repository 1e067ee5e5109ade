//! The users and groups of this system, from the files below /etc alone: a static binary
//! has no other way, and a directory service must not decide which user reads a key.

use std::io;

/// A user or a group.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) number: u32,
    /// A user's own.
    pub(crate) group: Option<u32>,
}

pub(crate) const USERS: &str = "/etc/passwd";
pub(crate) const GROUPS: &str = "/etc/group";

/// The accounts of [`USERS`] or [`GROUPS`], without lines that have no number.
pub(crate) fn accounts(table: &str) -> io::Result<impl Iterator<Item = Account>> {
    Ok(parse(&std::fs::read_to_string(table)?).into_iter())
}

/// The users; none if they cannot be read.
pub(crate) fn users() -> impl Iterator<Item = Account> {
    accounts(USERS).into_iter().flatten()
}

fn parse(table: &str) -> Vec<Account> {
    let lines = table.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?.to_owned(), fields.nth(1)?.parse().ok()?);
        // A group has its members there.
        let group = fields.next().and_then(|group| group.parse().ok());
        Some(Account {
            name,
            number,
            group,
        })
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_lines_with_a_number() {
        let account = |name: &str, number, group| Account {
            name: name.to_owned(),
            number,
            group,
        };
        let users = "root:x:0:0::/:\ninvalid\n+::::::\nweb:x:33:34:web:/:\n";
        let wanted = [account("root", 0, Some(0)), account("web", 33, Some(34))];
        assert_eq!(parse(users), wanted);
        let groups = "web:x:34:root,web\nalone:x:35:\nshort:x:36\n";
        let wanted = [("web", 34), ("alone", 35), ("short", 36)];
        let wanted = wanted.map(|(name, number)| account(name, number, None));
        assert_eq!(parse(groups), wanted);
    }
}
