//! A server's process, found by its pid file and held by a pidfd: a signal cannot reach
//! another process that later has the same number.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::DeployError;
use crate::files;

/// A running process.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: u32,
    handle: OwnedFd,
    /// Its command line, with a zero byte after each argument.
    pub(super) command_line: Vec<u8>,
    /// The pid file that names it.
    path: String,
}

impl Process {
    /// The process of the first of `files` that exists.
    pub(super) fn find(target: &str, files: &[PathBuf]) -> Result<Self, DeployError> {
        let target = target.to_owned();
        let Some(file) = files.iter().find(|file| file.exists()) else {
            let searched = files.iter().map(|file| file.display().to_string());
            let searched = searched.collect::<Vec<_>>().join(", ");
            return Err(DeployError::NoPidFile { target, searched });
        };
        let path = file.display().to_string();
        let Some(pid) = read_pid(file) else {
            return Err(DeployError::PidFile { target, path });
        };
        match open(pid) {
            Ok((handle, command_line)) => Ok(Self {
                pid,
                handle,
                command_line,
                path,
            }),
            Err(_) => Err(DeployError::NotRunning { target, path, pid }),
        }
    }

    /// The process of the first of `files` that exists, if its program is one of
    /// `programs`.
    pub(super) fn running(
        target: &str,
        files: &[PathBuf],
        programs: &[&str],
    ) -> Result<Self, DeployError> {
        let found = Self::find(target, files)?;
        let program = found.command_line.split(|byte| *byte == 0).next();
        let program = String::from_utf8_lossy(program.unwrap_or_default());
        let name = Path::new(program.as_ref()).file_name();
        if name.is_some_and(|name| programs.iter().any(|known| name == *known)) {
            return Ok(found);
        }
        Err(found.other_program(target))
    }

    /// The error for a process of another program.
    pub(super) fn other_program(&self, target: &str) -> DeployError {
        let title = String::from_utf8_lossy(&self.command_line).replace('\0', " ");
        let program = title.chars().take(60).collect::<String>();
        DeployError::OtherProgram {
            target: target.to_owned(),
            path: self.path.clone(),
            pid: self.pid,
            program: program.trim_end().escape_debug().to_string(),
        }
    }

    pub(super) fn signal(&self, target: &str, signal: Signal) -> Result<(), DeployError> {
        pidfd_send_signal(&self.handle, signal).map_err(|error| DeployError::Signal {
            target: target.to_owned(),
            pid: self.pid,
            detail: io::Error::from(error).to_string(),
        })
    }
}

/// Opens the handle before it reads the identity: in this order both belong to one
/// process.
fn open(pid: u32) -> io::Result<(OwnedFd, Vec<u8>)> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let number = number.ok_or(io::ErrorKind::InvalidInput)?;
    let handle = pidfd_open(number, PidfdFlags::empty())?;
    Ok((handle, std::fs::read(format!("/proc/{pid}/cmdline"))?))
}

fn read_pid(file: &Path) -> Option<u32> {
    let text = files::read_short(file).ok()?;
    // Postfix pads its number, and Dovecot adds a line end. The first process of a PID
    // namespace has number 1.
    text.trim().parse().ok().filter(|pid| *pid > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pid_file_that_is_a_pipe_does_not_block() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("nginx.pid");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status();
        assert!(made.unwrap().success());
        let (sender, receiver) = std::sync::mpsc::channel();
        // Opening a pipe like a file would wait for a writer.
        std::thread::spawn(move || sender.send(Process::find("nginx", &[fifo])));
        let found = receiver.recv_timeout(std::time::Duration::from_secs(20));
        let error = found.expect("it waits for ever").unwrap_err();
        assert!(matches!(error, DeployError::PidFile { .. }), "{error}");
    }
}
