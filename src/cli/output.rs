//! What the user reads: messages, and how a failure becomes a hint and an exit
//! code.

use std::process::ExitCode;

use tracing::Level;

use super::args::{Global, LogFormat};
use crate::acme::Cause;
use crate::manage::ManageError;

/// A failure as the user sees it.
#[derive(Debug)]
pub(super) struct Failure {
    code: u8,
    message: String,
    hint: Option<String>,
}

impl Failure {
    pub(super) fn unexpected(message: String) -> Self {
        Self {
            code: 1,
            message,
            hint: None,
        }
    }

    /// Bad usage, configuration or surroundings; nothing was sent.
    pub(super) fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            code: 2,
            message: message.into(),
            hint: Some(hint.into()),
        }
    }

    /// The failure of working on `subject`.
    pub(super) fn of(subject: &str, error: &ManageError) -> Self {
        let (code, hint): (u8, String) = match error {
            ManageError::Acme(acme) => (acme_code(&acme.cause), acme.cause.hint().into()),
            ManageError::Bundle { .. } => (3, "nothing was published; what was served before is still served".into()),
            ManageError::BackingOff { .. } => (6, "wait until then; the certificate in use is untouched".into()),
            ManageError::Stored(_) | ManageError::Store(_) | ManageError::Output(_) => {
                (8, "check the directory's owner, mode and free space; nothing that is served was changed".into())
            }
            ManageError::Deploy(deploy) => (7, deploy.hint().to_string()),
            ManageError::Verify(verify) => (7, verify.hint().to_string()),
            ManageError::Key(_) | ManageError::Halted(_) => (1, "run again with -v and report what it says".into()),
        };
        Self {
            code,
            message: format!("{subject}: {error}"),
            hint: Some(hint),
        }
    }

    /// Tells it on standard error.
    pub(super) fn report(self) -> ExitCode {
        eprintln!("error: {}", self.message);
        if let Some(hint) = self.hint {
            eprintln!("hint: {hint}");
        }
        ExitCode::from(self.code)
    }
}

fn acme_code(cause: &Cause) -> u8 {
    match cause {
        Cause::Unreachable(_) | Cause::Protocol(_) | Cause::TimedOut(_) => 3,
        Cause::Refused(_) | Cause::NoChallenge { .. } => 4,
        Cause::NotProven(_) => 5,
        Cause::RateLimited { .. } => 6,
        Cause::Solver(_) | Cause::Journal(_) => 8,
    }
}

/// Messages go to standard error, results to standard output.
pub(super) fn start_logging(global: &Global) {
    let level = match (global.quiet, global.verbose) {
        (true, _) => Level::ERROR,
        (false, 0) => Level::INFO,
        (false, 1) => Level::DEBUG,
        (false, _) => Level::TRACE,
    };
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_target(false);
    // A second subscriber exists in tests only; the first one stays.
    let _ = match global.log_format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}
