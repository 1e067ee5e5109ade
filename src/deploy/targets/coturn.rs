//! coturn, which reloads its certificate at SIGUSR2; its SIGHUP rotates the log.

use rustix::process::Signal;

use crate::deploy::signalled::{Reload, Signalled};
use crate::deploy::target_settings::prelude::*;

const RELOAD: Reload = Reload {
    target: Settings::KIND,
    pid_files: &[
        "/run/turnserver/turnserver.pid",
        "/run/turnserver.pid",
        "/var/run/turnserver.pid",
    ],
    program: "turnserver",
    signal: Signal::USR2,
    speaks_tls_at_once: true,
};

settings! {
    /// coturn reloads the pair at SIGUSR2. Name its TLS port with `verify`, such as
    /// `verify = ["turn.example.com:5349"]`; without it, every port on which coturn listens is verified.
    struct Settings {
        /// The pid file of its process
        #[schemars(extend("x-default" = "the usual places below /run and /var/run"))]
        pid_file: Option<PathKey>,
    }
}

impl TargetSettings for Settings {
    const KIND: &'static str = "coturn";
    const SHORT: ShortForm = ShortForm::Keys(&["pid_file"]);
    const EXAMPLE: &'static str = r#"pid_file = "/run/turnserver/turnserver.pid""#;
    const STAGE: DeployStage = DeployStage::AllCertificates;

    fn invalid_key(&self) -> Option<InvalidTarget> {
        None
    }

    fn rights(&self) -> Rights {
        Rights::over(Processes::Controls)
    }

    fn target(&self) -> Arc<dyn Target> {
        let (reload, pid_file) = (&RELOAD, self.pid_file.clone());
        Arc::new(Signalled { reload, pid_file })
    }
}
