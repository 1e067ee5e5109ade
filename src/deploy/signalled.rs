//! Servers that load their certificates again at a signal and give no sign of
//! success: coturn (SIGUSR2; its SIGHUP rotates the log), Dovecot and Postfix
//! (HUP to the master process).

use std::net::SocketAddr;
use std::path::PathBuf;

use async_trait::async_trait;
use rustix::process::Signal;

use super::process::Process;
use super::{Delivery, DeployError, Target, reader};
use crate::net::sockets::listened_on_by;

/// What is known of one kind.
#[derive(Debug)]
struct Kind {
    name: &'static str,
    pid_files: &'static [&'static str],
    programs: &'static [&'static str],
    signal: Signal,
}

const COTURN: Kind = Kind {
    name: "coturn",
    pid_files: &[
        "/run/turnserver/turnserver.pid",
        "/run/turnserver.pid",
        "/var/run/turnserver.pid",
    ],
    programs: &["turnserver"],
    signal: Signal::USR2,
};
const DOVECOT: Kind = Kind {
    name: "dovecot",
    pid_files: &["/run/dovecot/master.pid", "/var/run/dovecot/master.pid"],
    programs: &["dovecot"],
    signal: Signal::HUP,
};
const POSTFIX: Kind = Kind {
    name: "postfix",
    pid_files: &["/var/spool/postfix/pid/master.pid"],
    programs: &["master"],
    signal: Signal::HUP,
};

/// A running server of such a kind.
#[derive(Debug)]
pub struct Signalled {
    kind: &'static Kind,
    pid_files: Vec<PathBuf>,
}

impl Signalled {
    /// The coturn of `pid_file`, or of the usual places.
    #[must_use]
    pub fn coturn(pid_file: Option<PathBuf>) -> Self {
        Self::new(&COTURN, pid_file)
    }

    /// The Dovecot of `pid_file`, or of the usual places.
    #[must_use]
    pub fn dovecot(pid_file: Option<PathBuf>) -> Self {
        Self::new(&DOVECOT, pid_file)
    }

    /// The Postfix of `pid_file`, or of the usual place.
    #[must_use]
    pub fn postfix(pid_file: Option<PathBuf>) -> Self {
        Self::new(&POSTFIX, pid_file)
    }

    fn new(kind: &'static Kind, pid_file: Option<PathBuf>) -> Self {
        let usual = || kind.pid_files.iter().map(PathBuf::from).collect();
        let pid_files = pid_file.map_or_else(usual, |file| vec![file]);
        Self { kind, pid_files }
    }

    fn process(&self) -> Result<Process, DeployError> {
        Process::running(self.kind.name, &self.pid_files, self.kind.programs)
    }
}

#[async_trait]
impl Target for Signalled {
    fn name(&self) -> &str {
        self.kind.name
    }

    async fn check(&self, _: &Delivery) -> Result<(), DeployError> {
        self.process().map(drop)
    }

    async fn apply(&self, _: &Delivery) -> Result<(), DeployError> {
        self.process()?.signal(self.kind.name, self.kind.signal)
    }

    /// Not of mail servers: most of their ports speak TLS only when asked to.
    async fn listens_on(&self) -> Option<Vec<SocketAddr>> {
        if self.kind.name != COTURN.name {
            return None;
        }
        listened_on_by(self.process().ok()?.pid)
    }

    async fn obstacle(&self, delivery: &Delivery) -> Option<String> {
        let process = self.process().ok()?;
        reader::obstacle(process.pid, self.kind.name, &delivery.live)
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[tokio::test]
    async fn signals_nobody_that_is_another_program() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        for target in [
            Signalled::coturn(Some(file.clone())),
            Signalled::dovecot(Some(file.clone())),
            Signalled::postfix(Some(file.clone())),
        ] {
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
