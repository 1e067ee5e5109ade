//! Dovecot, whose master process reloads the configuration and its certificates at HUP.

use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::deploy::Target;
use crate::deploy::keys::values::PathKey;
use crate::deploy::signalled::{Reload, Signalled};
use crate::deploy::target_settings::{
    self, DeployStage, InvalidTarget, Paths, Processes, Rights, ShortForm, TargetSettings, Writes,
};

pub(in crate::deploy) const DOVECOT: Reload = Reload {
    target: "dovecot",
    pid_files: &["/run/dovecot/master.pid", "/var/run/dovecot/master.pid"],
    programs: &["dovecot"],
    signal: Signal::HUP,
    speaks_tls_at_once: false,
};

/// Dovecot reloads the pair when its master process gets HUP. Verify it with
/// `verify = ["imap://mail.example.com:143"]` or `pop3://…:110`, which speak STARTTLS, or with the host and port of
/// IMAPS.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// The pid file of its master process
    #[schemars(extend("default" = "/run/dovecot/master.pid"))]
    pid_file: Option<PathKey>,
}

impl TargetSettings for Settings {
    const NAME: &'static str = "dovecot";
    const SHORT: ShortForm = ShortForm::Where("pid_file");
    const EXAMPLE: &'static str = r#"kind = "dovecot""#;

    fn check(&self) -> Result<(), InvalidTarget> {
        Ok(())
    }

    fn rights(&self) -> Rights {
        Rights {
            processes: Processes::Controls,
            connects_to: None,
            reads: None,
            writes: Writes::Nothing,
        }
    }

    fn stage(&self) -> DeployStage {
        DeployStage::Server
    }

    fn coalesces(&self) -> bool {
        true
    }

    fn deadline(&self) -> Duration {
        target_settings::DEADLINE
    }

    fn paths(&mut self) -> Paths<'_> {
        Paths {
            read: self.pid_file.as_mut().into_iter().collect(),
            written: None,
        }
    }

    fn target(&self, _: String) -> Arc<dyn Target> {
        Arc::new(Signalled::new(&DOVECOT, self.pid_file.as_deref().cloned()))
    }
}
