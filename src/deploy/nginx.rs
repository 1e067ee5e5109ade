//! nginx: `nginx -t` where its program can be reached, then HUP to the master
//! process that the pid file names.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{DeployError, Target};
use crate::sockets::listened_on_by;
use crate::text::printable_lines;

const PID_FILES: [&str; 3] = [
    "/run/nginx.pid",
    "/run/nginx/nginx.pid",
    "/var/run/nginx.pid",
];
/// Not worth a handshake that only fills its log.
const PLAIN_HTTP: u16 = 80;
const MASTER: &str = "nginx: master process ";
const CHECK_WITHIN: Duration = Duration::from_secs(10);

/// A running nginx.
#[derive(Debug)]
pub struct Nginx {
    name: String,
    pid_files: Vec<PathBuf>,
}

/// A master process that was found, held by its pidfd: a signal cannot reach
/// another process that was given the same number since.
struct Master {
    pid: u32,
    handle: rustix::fd::OwnedFd,
    /// What it was started with; `None` when its title is cut off.
    arguments: Option<Vec<String>>,
}

impl Nginx {
    /// The nginx of `pid_file`, or of the usual places.
    #[must_use]
    pub fn new(pid_file: Option<PathBuf>) -> Self {
        Self {
            name: "nginx".to_owned(),
            pid_files: pid_file.map_or_else(
                || PID_FILES.iter().map(PathBuf::from).collect(),
                |file| vec![file],
            ),
        }
    }

    fn master(&self) -> Result<Master, DeployError> {
        let target = self.name.clone();
        let Some(file) = self.pid_files.iter().find(|file| file.exists()) else {
            let searched = self
                .pid_files
                .iter()
                .map(|file| file.display().to_string())
                .collect::<Vec<_>>();
            return Err(DeployError::NoPidFile {
                target,
                searched: searched.join(", "),
            });
        };
        let path = file.display().to_string();
        let pid = read_pid(file).ok_or_else(|| DeployError::PidFile {
            target: target.clone(),
            path: path.clone(),
        })?;
        let gone = || DeployError::NotRunning {
            target: target.clone(),
            path: path.clone(),
            pid,
        };
        // The handle first, then the identity: in this order both are of one process.
        let number = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(gone)?;
        let handle = pidfd_open(number, PidfdFlags::empty()).map_err(|_| gone())?;
        let title = std::fs::read(format!("/proc/{pid}/cmdline")).map_err(|_| gone())?;
        let used = title.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
        let is_whole = room_for_title(pid).is_none_or(|room| used < room);
        let title = String::from_utf8_lossy(&title).replace('\0', " ");
        match title.trim_end().strip_prefix(MASTER) {
            Some(command) => {
                let arguments = command
                    .split_whitespace()
                    .skip(1)
                    .map(str::to_owned)
                    .collect();
                Ok(Master {
                    pid,
                    handle,
                    arguments: Some(arguments).filter(|_| is_whole),
                })
            }
            None => {
                let program = title
                    .chars()
                    .take(60)
                    .collect::<String>()
                    .trim_end()
                    .escape_debug()
                    .to_string();
                Err(DeployError::OtherProgram {
                    target,
                    path,
                    pid,
                    program,
                })
            }
        }
    }
}

/// How long a title may get: nginx writes it over its arguments and its
/// environment, and cuts off what does not fit. `None` when that is not to be
/// seen. See proc_pid_stat(5).
fn room_for_title(pid: u32) -> Option<usize> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    room_in(&stat)
}

fn room_in(stat: &str) -> Option<usize> {
    const ARG_START: usize = 48;
    const ENV_END: usize = 51;
    // The program's name, in brackets, may hold anything. After it comes field 3.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<usize>().ok();
    let room = field(ENV_END)?.checked_sub(field(ARG_START)?)?;
    (room > 0).then(|| room - 1)
}

fn read_pid(file: &Path) -> Option<u32> {
    let text = std::fs::read_to_string(file).ok()?;
    text.trim().parse().ok().filter(|pid| *pid > 1)
}

#[async_trait]
impl Target for Nginx {
    fn name(&self) -> &str {
        &self.name
    }

    async fn check(&self) -> Result<(), DeployError> {
        let master = self.master()?;
        // In another container's file system there is nothing to run; the
        // handshake after the reload still tells.
        let Ok(program) = std::fs::read_link(format!("/proc/{}/exe", master.pid)) else {
            return Ok(());
        };
        let Some(arguments) = &master.arguments else {
            return Ok(());
        };
        let run = tokio::process::Command::new(&program)
            .args(arguments)
            .arg("-t")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = match tokio::time::timeout(CHECK_WITHIN, run).await {
            Ok(Ok(output)) if output.status.success() => return Ok(()),
            Ok(Ok(output)) => printable_lines(&String::from_utf8_lossy(&output.stderr)),
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("`nginx -t` did not end within {CHECK_WITHIN:?}"),
        };
        Err(DeployError::Check {
            target: self.name.clone(),
            output,
        })
    }

    async fn apply(&self) -> Result<(), DeployError> {
        let master = self.master()?;
        pidfd_send_signal(&master.handle, Signal::HUP).map_err(|error| DeployError::Signal {
            target: self.name.clone(),
            pid: master.pid,
            detail: std::io::Error::from(error).to_string(),
        })
    }

    async fn listens_on(&self) -> Option<Vec<SocketAddr>> {
        let mut found = listened_on_by(self.master().ok()?.pid)?;
        found.retain(|address| address.port() != PLAIN_HTTP);
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_that_fills_its_room_may_be_cut_off() {
        let stat = |start: u32, end: u32| {
            let before = vec!["0"; 44].join(" ");
            format!("7 (a) b) S {before} {start} 0 0 {end} 0")
        };
        assert_eq!(room_in(&stat(1000, 1100)), Some(99));
        assert_eq!(room_in(&stat(0, 0)), None);
        assert_eq!(room_in("7 (x) S 0"), None);
        assert!(room_for_title(std::process::id()).is_some_and(|room| room > 10));
    }

    #[tokio::test]
    async fn signals_nobody_that_is_not_nginx() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("nginx.pid");
        let nginx = Nginx::new(Some(file.clone()));
        let mut errors = vec![nginx.apply().await.unwrap_err()];
        for content in [
            "",
            "x",
            "0",
            "1",
            "-1",
            "4194305",
            &std::process::id().to_string(),
        ] {
            std::fs::write(&file, content).unwrap();
            errors.push(nginx.apply().await.unwrap_err());
        }
        assert!(matches!(
            errors.first(),
            Some(DeployError::NoPidFile { .. })
        ));
        assert!(matches!(
            errors[6],
            DeployError::NotRunning { pid: 4_194_305, .. }
        ));
        // HUP would have ended this process.
        assert!(matches!(
            errors.last(),
            Some(DeployError::OtherProgram { .. })
        ));
    }
}
