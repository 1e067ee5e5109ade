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

const PID_FILES: [&str; 3] = [
    "/run/nginx.pid",
    "/run/nginx/nginx.pid",
    "/var/run/nginx.pid",
];
/// Not worth a handshake that only fills its log.
const PLAIN_HTTP: u16 = 80;
const MASTER: &str = "nginx: master process ";
const CHECK_WITHIN: Duration = Duration::from_secs(10);
/// Of what nginx says; its first errors are the ones that matter.
const SHOWN: usize = 2000;

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
    arguments: Vec<String>,
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
                    arguments,
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
        let run = tokio::process::Command::new(&program)
            .args(&master.arguments)
            .arg("-t")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = match tokio::time::timeout(CHECK_WITHIN, run).await {
            Ok(Ok(output)) if output.status.success() => return Ok(()),
            Ok(Ok(output)) => String::from_utf8_lossy(&output.stderr)
                .chars()
                .take(SHOWN)
                .collect(),
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
            source: error.into(),
        })
    }

    fn listens_on(&self) -> Option<Vec<SocketAddr>> {
        let mut found = listened_on_by(self.master().ok()?.pid)?;
        found.retain(|address| address.port() != PLAIN_HTTP);
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
