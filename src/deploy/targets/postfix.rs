//! Postfix, whose master process reloads the configuration at HUP.

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

pub(in crate::deploy) const POSTFIX: Reload = Reload {
    target: "postfix",
    pid_files: &["/var/spool/postfix/pid/master.pid"],
    programs: &["master"],
    signal: Signal::HUP,
    speaks_tls_at_once: false,
};

/// Postfix reloads the pair when its master process gets HUP. Verify it with
/// `verify = ["smtp://mail.example.com:25"]`, which speaks STARTTLS.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// The pid file of its master process
    #[schemars(extend("default" = "/var/spool/postfix/pid/master.pid"))]
    pid_file: Option<PathKey>,
}

impl TargetSettings for Settings {
    const NAME: &'static str = "postfix";
    const SHORT: ShortForm = ShortForm::Where("pid_file");
    const EXAMPLE: &'static str = r#"kind = "postfix""#;

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
        Arc::new(Signalled::new(&POSTFIX, self.pid_file.as_deref().cloned()))
    }
}
