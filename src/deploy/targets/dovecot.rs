//! Dovecot, whose master process reloads the configuration and its certificates at HUP.

use rustix::process::Signal;

use crate::deploy::signalled::{Reload, Signalled};
use crate::deploy::target_settings::prelude::*;

const RELOAD: Reload = Reload {
    target: Settings::KIND,
    pid_files: &["/run/dovecot/master.pid", "/var/run/dovecot/master.pid"],
    program: "dovecot",
    signal: Signal::HUP,
    speaks_tls_at_once: false,
};

settings! {
    /// Dovecot reloads the pair when its master process gets HUP. Verify it with
    /// `verify = ["imap://mail.example.com:143"]` or `pop3://…:110`, which speak STARTTLS, or with the host and port of
    /// IMAPS.
    struct Settings {
        /// The pid file of its master process
        #[schemars(extend("default" = "/run/dovecot/master.pid"))]
        pid_file: Option<PathKey>,
    }
}

impl TargetSettings for Settings {
    const KIND: &'static str = "dovecot";
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
