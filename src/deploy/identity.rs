//! What the kernel knows of a process: its users, its program and its start. A process
//! chooses its title itself, and /proc/PID belongs to its effective user alone, so that
//! neither says that it is a server.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SETUID_OR_SETGID: u32 = 0o6000;
/// What the kernel adds to the path of a program that an upgrade has replaced.
const DELETED: &str = " (deleted)";

/// The identity of a running process.
#[derive(Debug)]
pub(super) struct Identity {
    /// Real, effective, saved, and that for files. See proc_pid_status(5).
    users: [u32; 4],
    groups: [u32; 4],
    /// `None` if the kernel does not show it to this process.
    program: Option<Program>,
    /// The file name by which the program was started, at most 15 letters.
    started_as: String,
    /// When it started, since the machine did.
    started: Duration,
}

/// The file that a process runs.
#[derive(Debug)]
struct Program {
    path: PathBuf,
    mode: u32,
    /// Device and inode.
    file: (u64, u64),
}

impl Identity {
    /// Reads /proc of `pid`, which the caller holds by a pidfd.
    ///
    /// # Errors
    /// When the process has ended, or is a thread of the kernel.
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}"));
        let (status, stat) = (read("status")?, read("stat")?);
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        Ok(Self {
            users: four(&status, "Uid:").ok_or_else(invalid)?,
            groups: four(&status, "Gid:").ok_or_else(invalid)?,
            program: Program::of(pid)?,
            started_as: read("comm")?.trim_end().to_owned(),
            started: started_at(&stat).ok_or_else(invalid)?,
        })
    }

    /// Its real user.
    pub(super) fn user(&self) -> u32 {
        self.users[0]
    }

    /// Whether it runs a program with one of these names, such as `nginx` or
    /// `nginx-debug` for `nginx`.
    ///
    /// A process that has more capabilities than this one, as in a container without
    /// CAP_SYS_PTRACE, does not show its program. Then the name by which it was started
    /// must do. A user can choose that name, but only for a process of its own, or for a
    /// setuid program. The first gains nothing by a signal that its owner can send anyhow.
    /// The second keeps its caller as real user, which [`Self::fault`] sees, unless it
    /// gives that up; such a one (`sudo`) gets a signal that ends it. No program is run.
    pub(super) fn runs(&self, names: &[&str]) -> bool {
        let name = match &self.program {
            Some(program) => program.path.file_name().unwrap_or_default(),
            None => self.started_as.as_ref(),
        };
        let name = name.to_string_lossy();
        let letters = |letter: char| !letter.is_ascii_alphanumeric();
        names.contains(&name.split(letters).next().unwrap_or_default())
    }

    /// Its program, for messages.
    pub(super) fn program(&self) -> Option<&Path> {
        Some(&self.program.as_ref()?.path)
    }

    /// Why it may run with the rights of another user than the one that started it.
    pub(super) fn fault(&self) -> Option<String> {
        let differ = |ids: &[u32; 4]| ids.iter().any(|id| *id != ids[0]);
        if differ(&self.users) || differ(&self.groups) {
            let (users, groups) = (shown(&self.users), shown(&self.groups));
            return Some(format!(
                "its user ids (real, effective, saved, files) are {users}, and its group ids {groups}; those of a server are equal"
            ));
        }
        let program = self.program.as_ref()?;
        let path = program.path.display();
        let is_special = program.mode & SETUID_OR_SETGID != 0;
        is_special.then(|| format!("its program {path} is setuid or setgid"))
    }

    /// Whether it started after `written`, the time of its pid file, by more than the
    /// clock's error.
    pub(super) fn is_younger_than(&self, written: SystemTime) -> bool {
        const ERROR: Duration = Duration::from_secs(10);
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let machine = stat.lines().find_map(|line| line.strip_prefix("btime "));
        let Some(machine) = machine.and_then(|seconds| seconds.trim().parse().ok()) else {
            return false;
        };
        let started = UNIX_EPOCH + Duration::from_secs(machine) + self.started;
        started > written + ERROR
    }

    /// The path of its program, if that still is the file that it runs.
    pub(super) fn program_on_disk(&self) -> Option<PathBuf> {
        let program = self.program.as_ref()?;
        let found = std::fs::metadata(&program.path).ok()?;
        let is_same = (found.dev(), found.ino()) == program.file;
        is_same.then(|| program.path.clone())
    }
}

impl Program {
    fn of(pid: u32) -> io::Result<Option<Self>> {
        let link = format!("/proc/{pid}/exe");
        let path = match std::fs::read_link(&link) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
            path => path?,
        };
        // The file itself, also if it has been replaced or is in another mount namespace.
        let found = std::fs::metadata(&link)?;
        let text = path.to_string_lossy();
        let path = text.strip_suffix(DELETED).map(PathBuf::from);
        Ok(Some(Self {
            path: path.unwrap_or_else(|| text.as_ref().into()),
            mode: found.mode(),
            file: (found.dev(), found.ino()),
        }))
    }
}

fn four(status: &str, name: &str) -> Option<[u32; 4]> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let numbers: Option<Vec<u32>> = line.split_whitespace().map(|id| id.parse().ok()).collect();
    numbers?.try_into().ok()
}

fn shown(ids: &[u32; 4]) -> String {
    ids.map(|id| id.to_string()).join(", ")
}

/// A number of proc_pid_stat(5).
pub(super) fn field(stat: &str, number: usize) -> Option<u64> {
    // The program's name, in brackets, may have any character. Field 3 follows it.
    let fields = stat.rsplit_once(')')?.1;
    fields.split_whitespace().nth(number - 3)?.parse().ok()
}

/// When a process started, in hundredths of a second since the machine did.
pub(super) fn ticks_at_start(stat: &str) -> Option<u64> {
    const STARTED: usize = 22;
    field(stat, STARTED)
}

fn started_at(stat: &str) -> Option<Duration> {
    ticks_at_start(stat).map(|ticks| Duration::from_millis(ticks.saturating_mul(10)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(users: [u32; 4], path: &str, mode: u32) -> Identity {
        let path = PathBuf::from(path);
        let file = (0, 0);
        Identity {
            users,
            groups: [7; 4],
            program: Some(Program { path, mode, file }),
            started_as: "nginx".to_owned(),
            started: Duration::ZERO,
        }
    }

    #[test]
    fn ids_and_program_reveal_other_rights() {
        let of = |users, mode| identity(users, "/usr/sbin/nginx", mode).fault();
        assert_eq!(of([0; 4], 0o755), None);
        assert_eq!(of([1000; 4], 0o755), None);
        for users in [[1000, 0, 0, 0], [0, 1000, 0, 1000], [0, 0, 1000, 0]] {
            assert!(of(users, 0o755).unwrap().contains("user ids"));
        }
        for mode in [0o4755, 0o2755] {
            assert!(of([0; 4], mode).unwrap().contains("setuid or setgid"));
        }
    }

    #[test]
    fn program_has_the_name_and_not_the_title() {
        let runs = |path: &str| identity([0; 4], path, 0o755).runs(&["nginx"]);
        for path in [
            "/usr/sbin/nginx",
            "/usr/sbin/nginx-debug",
            "/opt/nginx/sbin/nginx.old",
        ] {
            assert!(runs(path), "{path}");
        }
        for path in ["/usr/bin/su", "/usr/bin/nginxx", "/nginx/sh", "/"] {
            assert!(!runs(path), "{path}");
        }
        let mut hidden = identity([0; 4], "/", 0o755);
        hidden.program = None;
        assert!(hidden.runs(&["nginx"]) && hidden.fault().is_none());
        assert!(!hidden.runs(&["master"]));
    }

    #[test]
    fn own_process_is_read() {
        let own = Identity::of(std::process::id()).unwrap();
        assert_eq!(own.fault(), None);
        assert_eq!(own.user(), rustix::process::getuid().as_raw());
        assert_eq!(own.program_on_disk(), std::env::current_exe().ok());
        assert!(own.is_younger_than(UNIX_EPOCH));
        assert!(!own.is_younger_than(SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40)));
    }

    #[test]
    fn process_is_known_by_its_start() {
        let stat = format!("7 (a) b) S {} 4711 0", vec!["0"; 18].join(" "));
        assert_eq!(ticks_at_start(&stat), Some(4711));
        assert_eq!(ticks_at_start("7 (x) S 0"), None);
    }
}
