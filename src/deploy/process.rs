//! A server's process, found by its pid file and held by a pidfd: a signal cannot reach
//! another process that later has the same number.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::DeployCause;
use super::keys::values::PathKey;
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
    /// The process of `pid_file`, else of the first of `usual` that exists.
    pub(super) fn find(pid_file: Option<&PathKey>, usual: &[&str]) -> Result<Self, DeployCause> {
        let usual = || usual.iter().map(PathBuf::from).collect();
        let files: Vec<PathBuf> = pid_file.map_or_else(usual, |file| vec![file.to_path_buf()]);
        let Some(file) = files.iter().find(|file| file.exists()) else {
            let searched = files.iter().map(|file| file.display().to_string());
            let searched = searched.collect::<Vec<_>>().join(", ");
            return Err(DeployCause::NoPidFile(searched));
        };
        let path = file.display().to_string();
        let Some(pid) = read_pid(file) else {
            return Err(DeployCause::PidFile(path));
        };
        match open(pid) {
            Ok((handle, command_line)) => Ok(Self {
                pid,
                handle,
                command_line,
                path,
            }),
            Err(_) => Err(DeployCause::NotRunning { path, pid }),
        }
    }

    /// The file name of its program.
    pub(super) fn program(&self) -> String {
        let program = self.command_line.split(|byte| *byte == 0).next();
        let program = String::from_utf8_lossy(program.unwrap_or_default());
        let name = Path::new(program.as_ref()).file_name();
        name.unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The error for a process of another program than `wanted`.
    pub(super) fn other_program(&self, wanted: &str) -> DeployCause {
        let title = String::from_utf8_lossy(&self.command_line).replace('\0', " ");
        let program = title.chars().take(60).collect::<String>();
        DeployCause::OtherProgram {
            path: self.path.clone(),
            pid: self.pid,
            program: program.trim_end().escape_debug().to_string(),
            wanted: wanted.to_owned(),
        }
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<(), DeployCause> {
        pidfd_send_signal(&self.handle, signal).map_err(|error| DeployCause::Signal {
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
        let fifo = fifo.display().to_string();
        std::thread::spawn(move || sender.send(Process::find(None, &[&fifo])));
        let found = receiver.recv_timeout(std::time::Duration::from_secs(20));
        let error = found.expect("it waits for ever").unwrap_err();
        assert!(matches!(error, DeployCause::PidFile(_)), "{error}");
    }
}
