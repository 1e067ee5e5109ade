//! Servers that reload their certificates at a signal and report no success. Each is a
//! constant in its own file below `targets/`.

use std::net::SocketAddr;
use std::path::PathBuf;

use async_trait::async_trait;
use rustix::process::Signal;

use super::process::Process;
use super::{Delivery, DeployError, Target, key_access};
use crate::net::sockets::listened_on_by;

/// How to find and reload one such server.
#[derive(Debug)]
pub(super) struct Reload {
    /// The target's name.
    pub(super) target: &'static str,
    /// The usual paths of its pid file.
    pub(super) pid_files: &'static [&'static str],
    /// The possible names of its program.
    pub(super) programs: &'static [&'static str],
    /// The signal at which it reloads certificates.
    pub(super) signal: Signal,
    /// Whether its ports speak TLS from the first byte; most ports of a mail server need
    /// STARTTLS.
    pub(super) speaks_tls_at_once: bool,
}

/// A running server of that kind.
#[derive(Debug)]
pub(super) struct Signalled {
    reload: &'static Reload,
    pid_files: Vec<PathBuf>,
}

impl Signalled {
    /// The server of `pid_file`, else of the usual pid files.
    #[must_use]
    pub(super) fn new(reload: &'static Reload, pid_file: Option<PathBuf>) -> Self {
        let usual = || reload.pid_files.iter().map(PathBuf::from).collect();
        let pid_files = pid_file.map_or_else(usual, |file| vec![file]);
        Self { reload, pid_files }
    }

    fn process(&self) -> Result<Process, DeployError> {
        let Reload {
            target, programs, ..
        } = self.reload;
        Process::running(target, &self.pid_files, programs)
    }
}

#[async_trait]
impl Target for Signalled {
    fn name(&self) -> &str {
        self.reload.target
    }

    async fn check(&self, _: &Delivery) -> Result<(), DeployError> {
        self.process().map(drop)
    }

    async fn apply(&self, _: &Delivery) -> Result<(), DeployError> {
        let process = self.process()?;
        process.signal(self.reload.target, self.reload.signal)
    }

    async fn listens_on(&self) -> Option<Vec<SocketAddr>> {
        if !self.reload.speaks_tls_at_once {
            return None;
        }
        listened_on_by(self.process().ok()?.pid)
    }

    async fn obstacle(&self, delivery: &Delivery) -> Option<String> {
        let process = self.process().ok()?;
        key_access::obstacle(process.pid, self.reload.target, &delivery.live)
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::super::targets::{coturn::COTURN, dovecot::DOVECOT, postfix::POSTFIX};
    use super::*;

    #[tokio::test]
    async fn signal_reaches_no_process_of_another_program() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        for reload in [&COTURN, &DOVECOT, &POSTFIX] {
            let target = Signalled::new(reload, Some(file.clone()));
            let _ = std::fs::remove_file(&file);
            let absent = target.apply(&sample()).await.unwrap_err();
            assert!(matches!(absent, DeployError::NoPidFile { .. }), "{absent}");
            // The signal would have ended this process.
            std::fs::write(&file, format!("  {}\n", std::process::id())).unwrap();
            let other = target.check(&sample()).await.unwrap_err();
            assert!(matches!(other, DeployError::OtherProgram { .. }), "{other}");
            assert!(target.apply(&sample()).await.is_err());
        }
    }
}
