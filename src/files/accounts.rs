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
    /// A group's.
    members: Vec<String>,
}

/// The account of the service, if the package or the administrator has made it.
const SERVICE: &str = "certs";
/// Without that account: the number that the image has, too.
pub(crate) const NO_ACCOUNT: u32 = 65_532;
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

/// The user and group of the service's account; `None` if there is no such account.
#[must_use]
pub(crate) fn service_account() -> Option<(u32, u32)> {
    let mut named = users().filter(|user| user.name == SERVICE && user.number != 0);
    named.find_map(|user| Some((user.number, user.group.filter(|group| *group != 0)?)))
}

/// The user that a process started by root becomes, if no file says otherwise.
#[must_use]
pub(crate) fn service_user() -> u32 {
    service_account().map_or(NO_ACCOUNT, |(user, _)| user)
}

/// The groups of which the user with this number is a member besides its own, without
/// root's.
#[must_use]
pub(crate) fn groups_of(user: u32) -> Vec<u32> {
    let names: Vec<String> = users()
        .filter(|known| known.number == user)
        .map(|known| known.name)
        .collect();
    let groups = accounts(GROUPS).into_iter().flatten();
    let is_member = |group: &Account| group.members.iter().any(|member| names.contains(member));
    let groups = groups.filter(|group| group.number != 0 && is_member(group));
    groups.map(|group| group.number).collect()
}

fn parse(table: &str) -> Vec<Account> {
    let lines = table.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?.to_owned(), fields.nth(1)?.parse().ok()?);
        // Of a user the own group, of a group its members.
        let next = fields.next().unwrap_or_default();
        let members = next.split(',').filter(|member| !member.is_empty());
        Some(Account {
            name,
            number,
            group: next.parse().ok(),
            members: members.map(str::to_owned).collect(),
        })
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_lines_with_a_number() {
        let account = |name: &str, number, group, members: &[&str]| Account {
            name: name.to_owned(),
            number,
            group,
            members: members.iter().map(|member| (*member).to_owned()).collect(),
        };
        let users = "root:x:0:0::/:\ninvalid\n+::::::\nweb:x:33:34:web:/:\n";
        let wanted = [
            account("root", 0, Some(0), &["0"]),
            account("web", 33, Some(34), &["34"]),
        ];
        assert_eq!(parse(users), wanted);
        let groups = "web:x:34:root,web\nalone:x:35:\nshort:x:36\n";
        let wanted = [
            account("web", 34, None, &["root", "web"]),
            account("alone", 35, None, &[]),
            account("short", 36, None, &[]),
        ];
        assert_eq!(parse(groups), wanted);
    }
}
