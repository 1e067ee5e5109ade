//! Whether a server's process reads the published pair, and may. A server that may not continues
//! with the previous pair, and rarely reports that where an operator looks. This module
//! never changes a mode or an owner. The kernel shows numbers as this process has them, and
//! the root of a container in a user namespace is root only over the files of its own users.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::mounts;

/// CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: a process with either may read all files.
const OVERRIDE: u64 = 1 << 1 | 1 << 2;

/// The user, groups and capabilities by which the kernel checks a process's access.
#[derive(Debug, PartialEq, Eq)]
struct FileAccess {
    user: u32,
    groups: Vec<u32>,
    overrides: bool,
    /// The ids of its user namespace, if that is not ours.
    namespace: Option<IdMaps>,
}

/// What /proc/PID/uid_map and gid_map have: see user_namespaces(7).
#[derive(Debug, Default, PartialEq, Eq)]
struct IdMaps {
    users: Vec<[u64; 3]>,
    groups: Vec<[u64; 3]>,
}

impl IdMaps {
    /// Those of process `pid`; `None` if it is in our user namespace.
    fn of(pid: u32) -> Option<Self> {
        let read = |pid: &str, map: &str| std::fs::read_to_string(format!("/proc/{pid}/{map}"));
        let map = |map: &str| {
            let theirs = read(&pid.to_string(), map).ok()?;
            (theirs != read("self", map).ok()?).then(|| ranges(&theirs))
        };
        let (users, groups) = (map("uid_map"), map("gid_map"));
        (users.is_some() || groups.is_some()).then(|| Self {
            users: users.unwrap_or_default(),
            groups: groups.unwrap_or_default(),
        })
    }

    /// Whether its root is root over a file of this user and group.
    fn have(&self, user: u32, group: u32) -> bool {
        inside(&self.users, user).is_some() && inside(&self.groups, group).is_some()
    }
}

/// The lines of a map: the first number inside, the first outside, and how many there are.
fn ranges(map: &str) -> Vec<[u64; 3]> {
    let lines = map.lines().filter_map(|line| {
        let numbers = line.split_whitespace().map(|number| number.parse().ok());
        let numbers: Option<Vec<u64>> = numbers.collect();
        numbers?.try_into().ok()
    });
    lines.collect()
}

/// The number inside the namespace of what is `outside` here.
fn inside(map: &[[u64; 3]], outside: u32) -> Option<u64> {
    let outside = u64::from(outside);
    map.iter().find_map(|[first, here, count]| {
        let at = outside.checked_sub(*here)?;
        (at < *count).then(|| first.saturating_add(at))
    })
}

/// A mount in the way of process `pid`, or the first file in `live` that it may not read, with the numbers of user and
/// group, since names differ between containers; `None` when it may read all, or when
/// /proc or a file does not exist. What this process may not examine is said to be so.
#[must_use]
pub(crate) fn obstacle(pid: u32, program: &str, live: &Path) -> Option<String> {
    let unknown = |path: &Path, error: &io::Error| {
        let (path, is_absent) = (path.display(), error.kind() == io::ErrorKind::NotFound);
        (!is_absent)
            .then(|| format!("whether {program} may read the pair is unknown: {path}: {error}"))
    };
    let stays = mounts::obstacle(&mounts::of_process(pid), program, live);
    if stays.is_some() {
        return stays;
    }
    let status = PathBuf::from(format!("/proc/{pid}/status"));
    let access = match std::fs::read_to_string(&status) {
        Ok(status) => FileAccess::of(&status, IdMaps::of(pid))?,
        Err(error) => return unknown(&status, &error),
    };
    for name in ["fullchain.pem", "privkey.pem"] {
        let path = live.join(name);
        let found = match std::fs::canonicalize(&path) {
            Ok(found) => found,
            Err(error) => return unknown(&path, &error),
        };
        // The server's container may have other directories above the output.
        let steps = found.ancestors().take(4);
        let Some(closed) = steps.into_iter().find(|step| !access.may_open(step)) else {
            continue;
        };
        let there = std::fs::metadata(closed).ok()?;
        let own = |maps: &IdMaps| inside(&maps.users, access.user);
        let own = access.namespace.as_ref().and_then(own);
        let own = own.map_or(String::new(), |own| {
            format!(", which is {own} in its user namespace")
        });
        return Some(format!(
            "{program} (uid {}{own}, gid {}) may not read {}: {} is {:04o} of {}:{}; give it a group that reads it with [output] group",
            access.user,
            access.groups.first()?,
            path.display(),
            closed.display(),
            there.mode() & 0o7777,
            there.uid(),
            there.gid()
        ));
    }
    None
}

impl FileAccess {
    /// Reads proc_pid_status(5).
    fn of(status: &str, namespace: Option<IdMaps>) -> Option<Self> {
        let field = |name: &str| {
            let mut lines = status.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        };
        // The numbers are real, effective, saved, file system; the last one decides.
        let fourth = |text: &str| text.split_whitespace().nth(3)?.parse().ok();
        let mut groups = vec![fourth(field("Gid")?)?];
        let others = field("Groups")?.split_whitespace();
        groups.extend(others.filter_map(|group| group.parse::<u32>().ok()));
        let effective = u64::from_str_radix(field("CapEff")?.trim(), 16).ok()?;
        Some(Self {
            user: fourth(field("Uid")?)?,
            groups,
            overrides: effective & OVERRIDE != 0,
            namespace,
        })
    }

    /// Whether it may read a file, or pass through a directory.
    fn may_open(&self, path: &Path) -> bool {
        let Ok(there) = std::fs::metadata(path) else {
            return true;
        };
        let bit = if there.is_dir() { 0o1 } else { 0o4 };
        let shift = match there.uid() == self.user {
            true => 6,
            false if self.groups.contains(&there.gid()) => 3,
            false => 0,
        };
        let has_it = |maps: &IdMaps| maps.have(there.uid(), there.gid());
        let overrides = self.overrides && self.namespace.as_ref().is_none_or(has_it);
        overrides || there.mode() >> shift & bit != 0
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const STATUS: &str = "Name:\tnginx\nUid:\t101\t101\t101\t101\nGid:\t102\t102\t102\t102\nGroups:\t102 7 \nCapEff:\t0000000000000000\n";

    #[test]
    fn reads_user_groups_and_capabilities() {
        let access = FileAccess::of(STATUS, None).unwrap();
        let groups = vec![102, 102, 7];
        let wanted = FileAccess {
            user: 101,
            groups,
            overrides: false,
            namespace: None,
        };
        assert_eq!(access, wanted);
        let root = STATUS.replace("0000000000000000", "000001ffffffffff");
        assert!(FileAccess::of(&root, None).unwrap().overrides);
        assert_eq!(FileAccess::of("Name:\tx\n", None), None);
    }

    #[test]
    fn root_of_a_user_namespace_is_root_over_its_own_users() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("privkey.pem");
        std::fs::write(&file, "x").unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        let owner = std::fs::metadata(&file).unwrap();
        let may = |first: u32, groups: &str| {
            let maps = IdMaps {
                users: ranges(&format!("  0 {first} 65536\n")),
                groups: ranges(groups),
            };
            let root = STATUS.replace("101", &(owner.uid() + 1).to_string());
            let root = root.replace("0000000000000000", "000001ffffffffff");
            FileAccess::of(&root, Some(maps)).unwrap().may_open(&file)
        };
        let all = "0 0 4294967295\n";
        assert!(!may(owner.uid() + 1, all));
        assert!(!may(owner.uid(), "0 3000000000 2\n"));
        assert!(may(owner.uid(), all));
        assert_eq!(inside(&ranges("0 100000 65536\n5 7 1"), 100_033), Some(33));
        assert_eq!(inside(&ranges("0 100000 65536\n5 7 1"), 7), Some(5));
        assert_eq!(inside(&ranges("0 100000 65536\n"), 0), None);
        assert_eq!(IdMaps::of(std::process::id()), None);
    }

    #[test]
    fn modes_apply_to_user_group_and_others_in_turn() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("privkey.pem");
        std::fs::write(&file, "x").unwrap();
        let owner = std::fs::metadata(&file).unwrap();
        let (user, group) = (owner.uid(), owner.gid());
        let may = |mode: u32, user: u32, groups: &[u32]| {
            std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
            let groups = groups.to_vec();
            let access = FileAccess {
                user,
                groups,
                overrides: false,
                namespace: None,
            };
            access.may_open(&file)
        };
        assert!(may(0o400, user, &[]));
        assert!(may(0o640, user + 1, &[4000, group]));
        assert!(!may(0o640, user + 1, &[group + 1]));
        // For the owner only the owner's bits count.
        assert!(!may(0o044, user, &[group]));
        assert!(may(0o644, user + 1, &[group + 1]));
    }

    #[test]
    fn own_process_may_read_its_files() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["fullchain.pem", "privkey.pem"] {
            std::fs::write(directory.path().join(name), "x").unwrap();
        }
        assert_eq!(obstacle(std::process::id(), "test", directory.path()), None);
    }

    #[test]
    fn file_that_cannot_be_examined_is_not_taken_for_readable() {
        let directory = tempfile::tempdir().unwrap();
        let live = directory.path().join("live");
        let of_us = |live: &Path| obstacle(std::process::id(), "test", live);
        assert_eq!(of_us(&live), None);
        std::fs::write(&live, "").unwrap();
        let found = of_us(&live).unwrap();
        assert!(found.contains("is unknown"), "{found}");
    }
}
