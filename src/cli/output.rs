//! What the user reads: messages, and how a failure becomes a hint and an exit
//! code. Results go to standard output, everything else to standard error.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tracing::Level;
use tracing_subscriber::fmt::MakeWriter;

use super::args::Global;
use crate::acme::Cause;
use crate::config::{LogFormat, Problem};
use crate::manage::{ManageError, STORE_HINT};

/// A failure as the user sees it: an exit code, and what to tell with what to
/// do about it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    told: Vec<(String, String)>,
}

impl Failure {
    /// What nobody foresaw.
    pub(crate) fn unexpected(message: String) -> Self {
        let hint = "run again with -v and report what it says";
        Self {
            code: 1,
            told: vec![(message, hint.into())],
        }
    }

    /// What was promised, and was not so.
    pub(crate) fn broken(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            code: 1,
            told: vec![(message.into(), hint.into())],
        }
    }

    /// Bad usage, configuration or surroundings; nothing was sent.
    pub(crate) fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            code: 2,
            told: vec![(message.into(), hint.into())],
        }
    }

    /// The store or an output could not be used.
    pub(crate) fn store(message: String) -> Self {
        Self {
            code: 8,
            told: vec![(message, STORE_HINT.into())],
        }
    }

    /// Some of what another client keeps could not be taken over.
    pub(crate) fn left_behind(message: String) -> Self {
        let hint = "each is named above with its reason; import again once that is mended: the others stay";
        Self {
            code: 8,
            told: vec![(message, hint.into())],
        }
    }

    /// The sidecar went away while it worked for us.
    pub(crate) fn interrupted(subject: &str, error: &dyn fmt::Display) -> Self {
        let message = format!("{subject}: the running `certs run` did not answer: {error}");
        Self {
            code: 1,
            told: vec![(message, ManageError::Stopped.hint())],
        }
    }

    /// A configuration with errors; nothing was sent or written.
    pub(crate) fn configuration(problems: Vec<Problem>) -> Self {
        let told = problems
            .into_iter()
            .map(|problem| {
                let message = format!("{}{}", problem.place, problem.message);
                (message, problem.hint)
            })
            .collect();
        Self { code: 2, told }
    }

    /// The failure of working on `subject`.
    pub(crate) fn of(subject: &str, error: &ManageError) -> Self {
        let code = match error {
            ManageError::Acme(acme) => acme_code(&acme.cause),
            ManageError::Bundle { .. } | ManageError::Down { .. } => 3,
            ManageError::KeptOtherwise { .. }
            | ManageError::NotDueThere { .. }
            | ManageError::NoWayBack { .. } => 2,
            ManageError::BackingOff { .. } | ManageError::OutOfBudget { .. } => 6,
            ManageError::Stored(_) | ManageError::Store(_) | ManageError::Output(_) => 8,
            ManageError::Deploy(_) | ManageError::Verify(_) | ManageError::NotHandedOver { .. } => {
                7
            }
            ManageError::Key(_) | ManageError::Halted(_) | ManageError::Stopped => 1,
        };
        Self {
            code,
            told: vec![(format!("{subject}: {error}"), error.hint())],
        }
    }

    /// The exit code alone, where all was told when it happened.
    pub(crate) fn told_already(&self) -> Self {
        Self {
            code: self.code,
            told: Vec::new(),
        }
    }

    /// The first line of what went wrong.
    pub(crate) fn summary(&self) -> &str {
        self.told
            .first()
            .and_then(|(message, _)| message.lines().next())
            .unwrap_or_default()
    }

    /// Tells it on standard error.
    pub(crate) fn tell(&self, terminal: &Terminal) {
        let mut text = String::new();
        for (message, hint) in &self.told {
            if terminal.format == LogFormat::Json {
                let fields = serde_json::json!({"message": message, "hint": hint});
                let json = serde_json::json!({"level": "ERROR", "fields": fields});
                text.push_str(&format!("{json}\n"));
                continue;
            }
            text.push_str(&format!("{} {message}\n", terminal.paint("error:", RED)));
            text.push_str(&format!("{} {hint}\n", terminal.paint("hint:", CYAN)));
        }
        terminal.write(text.as_bytes());
    }

    /// Every message with its hint, for a log.
    pub(crate) fn in_a_line(&self) -> String {
        let told = self.told.iter();
        let told = told.map(|(message, hint)| format!("{message}; hint: {hint}"));
        told.collect::<Vec<_>>().join("; ")
    }

    /// Tells it and gives the exit code.
    pub(crate) fn report(self, terminal: &Terminal) -> ExitCode {
        self.tell(terminal);
        ExitCode::from(self.code)
    }
}

const RED: &str = "\x1b[1;31m";
const CYAN: &str = "\x1b[36m";

fn acme_code(cause: &Cause) -> u8 {
    match cause {
        Cause::Unreachable(_) | Cause::Protocol(_) | Cause::TimedOut(_) => 3,
        Cause::Refused(_) | Cause::NoChallenge { .. } => 4,
        Cause::NotProven(_) => 5,
        Cause::RateLimited { .. } => 6,
        Cause::Solver(_) | Cause::Journal(_) => 8,
    }
}

/// Standard error, shared by messages and by the line that shows progress:
/// a message takes that line away, and it comes back after it.
#[derive(Clone, Debug)]
pub(crate) struct Terminal {
    progress: bool,
    colour: bool,
    format: LogFormat,
    line: Arc<Mutex<String>>,
}

impl Terminal {
    /// Standard error as it is; `NO_COLOR` is honoured.
    pub(crate) fn new(
        environment: &BTreeMap<String, String>,
        global: &Global,
        format: LogFormat,
    ) -> Self {
        let set = |name: &str| environment.get(name).is_some_and(|value| !value.is_empty());
        let dumb = environment.get("TERM").is_some_and(|term| term == "dumb");
        let text = format == LogFormat::Text;
        let is_terminal = io::stderr().is_terminal() && !dumb && text;
        let progress = is_terminal && !global.quiet;
        Self {
            format,
            progress,
            colour: is_terminal && !set("NO_COLOR"),
            line: Arc::default(),
        }
    }

    /// Whether somebody is looking who wants to see progress.
    pub(crate) fn shows_progress(&self) -> bool {
        self.progress
    }

    fn paint(&self, text: &str, colour: &str) -> String {
        if self.colour {
            format!("{colour}{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// Shows `line` below all messages; an empty one shows nothing.
    pub(crate) fn show(&self, line: String) {
        if self.progress {
            let mut shown = self.line.lock().unwrap_or_else(PoisonError::into_inner);
            *shown = line;
            // A terminal that has gone away has nobody to tell.
            let _ = write!(io::stderr(), "\r\x1b[K{shown}");
        }
    }

    /// Writes whole lines.
    fn write(&self, text: &[u8]) {
        let shown = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stderr = io::stderr().lock();
        let (clear, again) = if shown.is_empty() {
            ("", "")
        } else {
            ("\r\x1b[K", shown.as_str())
        };
        // A standard error that is closed has nobody to tell.
        let _ = stderr
            .write_all(clear.as_bytes())
            .and_then(|()| stderr.write_all(text))
            .and_then(|()| stderr.write_all(again.as_bytes()))
            .and_then(|()| stderr.flush());
    }
}

impl Write for &Terminal {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        Terminal::write(self, text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Terminal {
    type Writer = &'a Self;
    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

/// Prints a result. A reader that has gone away (`certs status | head`) is no
/// reason to stop the work.
pub(crate) fn say(result: impl fmt::Display) {
    let _ = writeln!(io::stdout(), "{result}");
}

/// Messages go to standard error, results to standard output.
pub(crate) fn start_logging(global: &Global, terminal: &Terminal) {
    let level = match (global.quiet, global.verbose) {
        (true, _) => Level::ERROR,
        (false, 0) => Level::INFO,
        (false, 1) => Level::DEBUG,
        (false, _) => Level::TRACE,
    };
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(terminal.clone())
        .with_target(false);
    // A second subscriber exists in tests only; the first one stays.
    let _ = match terminal.format {
        LogFormat::Text => builder.with_ansi(terminal.colour).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}
