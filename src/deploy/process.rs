//! A server's process, found by its pid file and held by a pidfd: a signal cannot reach
//! another process that later has the same number. Title and pid file are not believed:
//! the kernel must show that the process is the server ([`Identity`]), and the pid file
//! must be from root, from us, or from the process's own user.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::DeployCause;
use super::identity::Identity;
use super::keys::values::PathKey;
use crate::files::{self, trust};

/// The first process of a PID namespace, whose number no other process gets.
const FIRST: u32 = 1;

/// The servers that a target reloads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Server<'a> {
    /// The target's name.
    pub(super) target: &'a str,
    /// The names of its program.
    pub(super) programs: &'a [&'a str],
    /// The usual paths of its pid file.
    pub(super) pid_files: &'a [&'a str],
}

/// A running process of a server.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: u32,
    handle: OwnedFd,
    /// Its command line, with a zero byte after each argument.
    pub(super) command_line: Vec<u8>,
    identity: Identity,
    /// The pid file that names it.
    path: String,
}

impl Process {
    /// The process of `pid_file`, else of the first of the usual ones that exists.
    pub(super) fn find(
        pid_file: Option<&PathKey>,
        server: &Server<'_>,
    ) -> Result<Self, DeployCause> {
        let usual = || server.pid_files.iter().map(PathBuf::from).collect();
        let files: Vec<PathBuf> = pid_file.map_or_else(usual, |file| vec![file.to_path_buf()]);
        let Some(file) = files.iter().find(|file| file.try_exists().unwrap_or(true)) else {
            let searched = files.iter().map(|file| file.display().to_string());
            let searched = searched.collect::<Vec<_>>().join(", ");
            return Err(DeployCause::NoPidFile(searched));
        };
        let path = file.display().to_string();
        let Some((pid, written)) = read_pid(file) else {
            return Err(DeployCause::PidFile(path));
        };
        let Ok(found) = Self::open(pid, path.clone()) else {
            return Err(DeployCause::NotRunning { path, pid });
        };
        if !found.identity.runs(server.programs) {
            return Err(found.other_program(server.target));
        }
        let fault = found.identity.fault();
        match fault.or_else(|| found.foreign(&written)) {
            None => Ok(found),
            Some(detail) => Err(DeployCause::UntrustedProcess { path, pid, detail }),
        }
    }

    /// Opens the handle before it reads the identity: if the process lives afterwards, both
    /// belong to it.
    fn open(pid: u32, path: String) -> io::Result<Self> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let number = number.ok_or(io::ErrorKind::InvalidInput)?;
        let handle = pidfd_open(number, PidfdFlags::empty())?;
        let found = Self {
            pid,
            handle,
            command_line: std::fs::read(format!("/proc/{pid}/cmdline"))?,
            identity: Identity::of(pid)?,
            path,
        };
        match found.has_ended()? {
            true => Err(io::ErrorKind::NotFound.into()),
            false => Ok(found),
        }
    }

    fn has_ended(&self) -> io::Result<bool> {
        let mut handles = [PollFd::new(&self.handle, PollFlags::IN)];
        let now = Timespec::default();
        Ok(poll(&mut handles, Some(&now))? > 0)
    }

    /// Why its pid file, with these attributes, does not speak of this process.
    fn foreign(&self, file: &Metadata) -> Option<String> {
        let (writer, user) = (file.uid(), self.identity.user());
        if self.pid == FIRST || writer == user {
            return None;
        }
        if !trust::is_ours(writer) {
            return Some(format!(
                "the pid file belongs to user {writer}, and the process to user {user}"
            ));
        }
        // Its own user did not write the file: root did, for a server that gave up its
        // rights, or for a server that has ended and whose number this process got.
        let is_later = |written| self.identity.is_younger_than(written);
        let is_stale = !trust::is_ours(user) && file.modified().is_ok_and(is_later);
        is_stale.then(|| {
            format!("user {user} started it after the pid file was written, which is stale")
        })
    }

    /// The error for a process of another program than `wanted`.
    pub(super) fn other_program(&self, wanted: &str) -> DeployCause {
        let title = String::from_utf8_lossy(&self.command_line).replace('\0', " ");
        let title = title.trim_end().to_owned();
        let program = match self.identity.program() {
            Some(program) => format!("{} ({title})", program.display()),
            None => title,
        };
        let program = program.chars().take(80).collect::<String>();
        let elsewhere = match self.pid {
            FIRST => "; it is the first of another PID namespace, such as that of a container",
            _ => "",
        };
        DeployCause::OtherProgram {
            path: self.path.clone(),
            pid: self.pid,
            program: program.escape_debug().to_string(),
            wanted: format!("{wanted}{elsewhere}"),
        }
    }

    /// Its program, if we may run it: it runs as root or as our own user, and only they can
    /// change that file. In another mount namespace the same path is another program.
    pub(super) fn trusted_program(&self) -> Option<PathBuf> {
        let mounts = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
        let is_here = mounts(&self.pid.to_string())? == mounts("self")?;
        if !is_here || !trust::is_ours(self.identity.user()) {
            return None;
        }
        let program = trust::resolve(&self.identity.program_on_disk()?);
        program
            .inspect_err(|error| tracing::debug!("not run: {error}"))
            .ok()
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<(), DeployCause> {
        pidfd_send_signal(&self.handle, signal).map_err(|error| DeployCause::Signal {
            pid: self.pid,
            detail: io::Error::from(error).to_string(),
        })
    }
}

/// The number in a pid file, and the attributes of that very file.
fn read_pid(file: &Path) -> Option<(u32, Metadata)> {
    let (text, found) = files::read_short(file).ok()?;
    // Postfix pads its number, and Dovecot adds a line end. The first process of a PID
    // namespace has number 1.
    let pid = text.trim().parse().ok().filter(|pid| *pid > 0)?;
    Some((pid, found))
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
        std::thread::spawn(move || {
            let server = Server {
                target: "nginx",
                programs: &["nginx"],
                pid_files: &[&fifo],
            };
            let _ = sender.send(Process::find(None, &server));
        });
        let found = receiver.recv_timeout(std::time::Duration::from_secs(20));
        let error = found.expect("it waits for ever").unwrap_err();
        assert!(matches!(error, DeployCause::PidFile(_)), "{error}");
    }

    #[test]
    fn number_of_another_namespace_is_named_as_the_cause() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("nginx.pid");
        std::fs::write(&file, "1\n").unwrap();
        let file = file.display().to_string();
        let server = Server {
            target: "nginx",
            programs: &["nginx"],
            pid_files: &[&file],
        };
        match Process::find(None, &server).unwrap_err() {
            error @ DeployCause::OtherProgram { .. } => {
                let error = error.to_string();
                let said = ", not nginx; it is the first of another PID namespace, such as that of a container";
                assert!(error.ends_with(said), "{error}");
            }
            error => println!("SKIPPED: the first process cannot be examined: {error}"),
        }
    }
}
