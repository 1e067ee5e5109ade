//! Postfix, whose master process reloads the configuration at HUP.

use rustix::process::Signal;

use crate::deploy::signalled::{Reload, Signalled};
use crate::deploy::target_settings::prelude::*;

const RELOAD: Reload = Reload {
    target: Settings::KIND,
    pid_files: &["/var/spool/postfix/pid/master.pid"],
    program: "master",
    signal: Signal::HUP,
    speaks_tls_at_once: false,
};

settings! {
    /// Postfix reloads the pair when its master process gets HUP. Verify it with
    /// `verify = ["smtp://mail.example.com:25"]`, which speaks STARTTLS.
    struct Settings {
        /// The pid file of its master process
        #[schemars(extend("default" = "/var/spool/postfix/pid/master.pid"))]
        pid_file: Option<PathKey>,
    }
}

impl TargetSettings for Settings {
    const KIND: &'static str = "postfix";
    const SHORT: ShortForm = ShortForm::Keys(&["pid_file"]);
    const EXAMPLE: &'static str = "";
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
