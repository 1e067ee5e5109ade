//! The unprivileged user of the service.

/// Its account, if the package or the administrator has made it.
const ACCOUNT: &str = "certs";
/// Without that account: the number that the image has, too.
pub(crate) const NO_ACCOUNT: u32 = 65_532;

/// The user and group of the account; `None` if there is no such account.
#[must_use]
pub(crate) fn service_account() -> Option<(u32, u32)> {
    account(ACCOUNT)
}

/// The user that a process started by root becomes, if no file says otherwise.
#[must_use]
pub(crate) fn service_user() -> u32 {
    service_account().map_or(NO_ACCOUNT, |(user, _)| user)
}

/// The user and group of an account, by its name or number.
fn account(named: &str) -> Option<(u32, u32)> {
    let table = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    account_in(&table, named)
}

fn account_in(table: &str, named: &str) -> Option<(u32, u32)> {
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, number, group, ..] = fields[..] else {
            return None;
        };
        let (user, group) = (number.parse().ok()?, group.parse().ok()?);
        let is_meant = name == named || number == named;
        (is_meant && user != 0 && group != 0).then_some((user, group))
    })
}
