//! Whether a server's process may read what was published for it. A server that
//! may not goes on with what it has, and seldom says so where anybody looks.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Reads past all modes.
const OVERRIDE: u64 = 1 << 1 | 1 << 2;

/// Whom the kernel takes a process for when it opens a file.
#[derive(Debug, PartialEq, Eq)]
struct Reader {
    user: u32,
    groups: Vec<u32>,
    overrides: bool,
}

/// The first of the files in `live` that process `pid` may not read, told with
/// numbers, since names differ between containers; `None` when it may, or that is
/// not to be seen.
#[must_use]
pub fn obstacle(pid: u32, program: &str, live: &Path) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let reader = Reader::of(&status)?;
    for name in ["fullchain.pem", "privkey.pem"] {
        let path = live.join(name);
        let found = std::fs::canonicalize(&path).ok()?;
        // Whatever stands above the output may be another in its container.
        let steps = found.ancestors().take(4);
        let Some(closed) = steps.into_iter().find(|step| !reader.may_open(step)) else {
            continue;
        };
        let there = std::fs::metadata(closed).ok()?;
        return Some(format!(
            "{program} (uid {}, gid {}) may not read {}: {} is {:04o} of {}:{}; give it a group that reads it with [output] group",
            reader.user,
            reader.groups.first()?,
            path.display(),
            closed.display(),
            there.mode() & 0o7777,
            there.uid(),
            there.gid()
        ));
    }
    None
}

impl Reader {
    /// Reads proc_pid_status(5).
    fn of(status: &str) -> Option<Self> {
        let field = |name: &str| {
            let mut lines = status.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        };
        // Real, effective, saved, and that of the file system, which counts.
        let fourth = |text: &str| text.split_whitespace().nth(3)?.parse().ok();
        let mut groups = vec![fourth(field("Gid")?)?];
        let others = field("Groups")?.split_whitespace();
        groups.extend(others.filter_map(|group| group.parse::<u32>().ok()));
        let effective = u64::from_str_radix(field("CapEff")?.trim(), 16).ok()?;
        Some(Self {
            user: fourth(field("Uid")?)?,
            groups,
            overrides: effective & OVERRIDE != 0,
        })
    }

    /// Whether it may read a file, or pass through a directory.
    fn may_open(&self, path: &Path) -> bool {
        let Ok(there) = std::fs::metadata(path) else {
            return true;
        };
        let bit = if there.is_dir() { 0o1 } else { 0o4 };
        let shift = if there.uid() == self.user {
            6
        } else if self.groups.contains(&there.gid()) {
            3
        } else {
            0
        };
        self.overrides || there.mode() >> shift & bit != 0
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const STATUS: &str = "Name:\tnginx\nUid:\t101\t101\t101\t101\nGid:\t102\t102\t102\t102\nGroups:\t102 7 \nCapEff:\t0000000000000000\n";

    #[test]
    fn reads_who_it_is() {
        let reader = Reader::of(STATUS).unwrap();
        let groups = vec![102, 102, 7];
        let wanted = Reader {
            user: 101,
            groups,
            overrides: false,
        };
        assert_eq!(reader, wanted);
        let root = STATUS.replace("0000000000000000", "000001ffffffffff");
        assert!(Reader::of(&root).unwrap().overrides);
        assert_eq!(Reader::of("Name:\tx\n"), None);
    }

    #[test]
    fn modes_are_read_for_user_group_and_others_in_turn() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("privkey.pem");
        std::fs::write(&file, "x").unwrap();
        let owner = std::fs::metadata(&file).unwrap();
        let (user, group) = (owner.uid(), owner.gid());
        let may = |mode: u32, user: u32, groups: &[u32]| {
            std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
            let groups = groups.to_vec();
            let reader = Reader {
                user,
                groups,
                overrides: false,
            };
            reader.may_open(&file)
        };
        assert!(may(0o400, user, &[]));
        assert!(may(0o640, user + 1, &[4000, group]));
        assert!(!may(0o640, user + 1, &[group + 1]));
        // The owner is judged as such alone.
        assert!(!may(0o044, user, &[group]));
        assert!(may(0o644, user + 1, &[group + 1]));
    }

    #[test]
    fn this_process_may_read_its_own() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["fullchain.pem", "privkey.pem"] {
            std::fs::write(directory.path().join(name), "x").unwrap();
        }
        assert_eq!(obstacle(std::process::id(), "test", directory.path()), None);
    }
}
