//! coturn, which reloads its certificate at SIGUSR2; its SIGHUP rotates the log.

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

pub(in crate::deploy) const COTURN: Reload = Reload {
    target: "coturn",
    pid_files: &[
        "/run/turnserver/turnserver.pid",
        "/run/turnserver.pid",
        "/var/run/turnserver.pid",
    ],
    programs: &["turnserver"],
    signal: Signal::USR2,
    speaks_tls_at_once: true,
};

/// coturn reloads the pair at SIGUSR2. Name its TLS port with `verify`, such as
/// `verify = ["turn.example.com:5349"]`; without it, every port on which coturn listens is verified.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// The pid file of its process
    #[schemars(extend("x-default" = "the usual places below /run and /var/run"))]
    pid_file: Option<PathKey>,
}

impl TargetSettings for Settings {
    const NAME: &'static str = "coturn";
    const SHORT: ShortForm = ShortForm::Where("pid_file");
    const EXAMPLE: &'static str = r#"kind = "coturn"
pid_file = "/run/turnserver/turnserver.pid""#;

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
        Arc::new(Signalled::new(&COTURN, self.pid_file.as_deref().cloned()))
    }
}
