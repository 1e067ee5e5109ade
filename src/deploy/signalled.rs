//! Servers that reload their certificates at a signal and report no success. Each is a
//! constant in its own file below `targets/`.

use async_trait::async_trait;
use rustix::process::Signal;

use super::keys::values::PathKey;
use super::process::{Process, Server};
use super::{Delivery, DeployCause, Target, key_access};
use crate::net::sockets::{ListenAddress, listened_on_by};

/// How to find and reload one such server.
#[derive(Debug)]
pub(super) struct Reload {
    /// The target's name.
    pub(super) target: &'static str,
    /// The usual paths of its pid file.
    pub(super) pid_files: &'static [&'static str],
    /// The name of its program.
    pub(super) program: &'static str,
    /// The signal at which it reloads certificates.
    pub(super) signal: Signal,
    /// Whether its ports speak TLS from the first byte; most ports of a mail server need
    /// STARTTLS.
    pub(super) speaks_tls_at_once: bool,
}

/// A running server of that kind.
#[derive(Debug)]
pub(super) struct Signalled {
    pub(super) reload: &'static Reload,
    /// Its pid file, if that is not at a usual path.
    pub(super) pid_file: Option<PathKey>,
}

impl Signalled {
    fn process(&self) -> Result<Process, DeployCause> {
        let server = Server {
            target: self.reload.target,
            programs: &[self.reload.program],
            pid_files: self.reload.pid_files,
        };
        Process::find(self.pid_file.as_ref(), &server)
    }
}

#[async_trait]
impl Target for Signalled {
    fn name(&self) -> String {
        self.reload.target.to_owned()
    }

    async fn check(&self, _: &Delivery) -> Result<(), DeployCause> {
        self.process().map(drop)
    }

    async fn apply(&self, _: &Delivery) -> Result<(), DeployCause> {
        self.process()?.signal(self.reload.signal)
    }

    async fn listens_on(&self) -> Option<Vec<ListenAddress>> {
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
    use super::super::target::DeployTarget;
    use super::*;

    #[tokio::test]
    async fn signal_reaches_no_process_of_another_program() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        for kind in ["coturn", "dovecot", "postfix"] {
            let target = format!("{kind}:{}", file.display());
            let target = target.parse::<DeployTarget>().unwrap().target();
            let _ = std::fs::remove_file(&file);
            let absent = target.apply(&sample()).await.unwrap_err();
            assert!(matches!(absent, DeployCause::NoPidFile(_)), "{absent}");
            // The signal would have ended this process.
            std::fs::write(&file, format!("  {}\n", std::process::id())).unwrap();
            let other = target.check(&sample()).await.unwrap_err();
            assert!(matches!(other, DeployCause::OtherProgram { .. }), "{other}");
            assert!(target.apply(&sample()).await.is_err());
        }
    }
}
