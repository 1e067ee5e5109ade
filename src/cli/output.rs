//! Output for the user: results on standard output; messages, hints and logs on
//! standard error; a failure's exit code.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use tracing::Level;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{ConfigProblem, LogFormat};
use crate::failure::Failure;

impl From<Vec<ConfigProblem>> for Failure {
    /// An invalid configuration; nothing was sent or written.
    fn from(problems: Vec<ConfigProblem>) -> Self {
        Self::new(2, problems.iter().map(ConfigProblem::shown).collect())
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::unexpected(error)
    }
}

impl Failure {
    /// Shows the messages on standard error.
    pub(super) fn show(&self, terminal: &Terminal) {
        let shown = self
            .messages()
            .map(|(message, hint)| match terminal.format {
                LogFormat::Json => {
                    let fields = serde_json::json!({"message": message, "hint": hint});
                    let json = serde_json::json!({"level": "ERROR", "fields": fields});
                    format!("{json}\n")
                }
                LogFormat::Text => {
                    let (error, advice) =
                        (terminal.paint("error:", RED), terminal.paint("hint:", CYAN));
                    format!("{error} {message}\n{advice} {hint}\n")
                }
            });
        terminal.write(shown.collect::<String>().as_bytes());
    }

    /// Shows the messages and returns the exit code.
    pub(super) fn report(self, terminal: &Terminal) -> ExitCode {
        self.show(terminal);
        ExitCode::from(self.code)
    }
}

const RED: &str = "\x1b[1;31m";
const CYAN: &str = "\x1b[36m";

/// Standard error, shared by messages and the progress line: a message is written
/// above the progress line.
#[derive(Clone, Debug)]
pub(super) struct Terminal {
    progress: bool,
    colour: bool,
    format: LogFormat,
    line: Arc<Mutex<String>>,
}

impl Terminal {
    /// Detects a terminal; honours `NO_COLOR`.
    pub(super) fn new(
        environment: &BTreeMap<String, String>,
        quiet: bool,
        format: LogFormat,
    ) -> Self {
        let set = |name: &str| environment.get(name).is_some_and(|value| !value.is_empty());
        let dumb = environment.get("TERM").is_some_and(|term| term == "dumb");
        let text = format == LogFormat::Text;
        let is_terminal = io::stderr().is_terminal() && !dumb && text;
        Self {
            format,
            progress: is_terminal && !quiet,
            colour: is_terminal && !set("NO_COLOR"),
            line: Arc::default(),
        }
    }

    /// Whether the progress line is shown.
    pub(super) fn shows_progress(&self) -> bool {
        self.progress
    }

    fn paint(&self, text: &str, colour: &str) -> String {
        match self.colour {
            true => format!("{colour}{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }

    /// Shows `line` below all messages; an empty line shows nothing.
    pub(super) fn show(&self, line: String) {
        if self.progress {
            let mut shown = self.line.lock().unwrap_or_else(PoisonError::into_inner);
            *shown = line;
            // There is no way to report a closed terminal.
            let _ = write!(io::stderr(), "\r\x1b[K{shown}");
        }
    }

    /// Shows `text` above the progress line.
    pub(super) fn print(&self, text: &str) {
        self.write(text.as_bytes());
    }

    /// Writes whole lines.
    fn write(&self, text: &[u8]) {
        let shown = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stderr = io::stderr().lock();
        let clear = if shown.is_empty() { "" } else { "\r\x1b[K" };
        // There is no way to report a closed standard error.
        let _ = stderr
            .write_all(clear.as_bytes())
            .and_then(|()| stderr.write_all(text))
            .and_then(|()| stderr.write_all(shown.as_bytes()))
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

/// Prints a result. A closed standard output (`certs status | head`) does not stop
/// the work.
pub(super) fn say(result: impl fmt::Display) {
    let _ = writeln!(io::stdout(), "{result}");
}

/// Prints a result as JSON.
pub(super) fn say_json(result: &impl Serialize) -> Result<(), Failure> {
    say(serde_json::to_string(result)?);
    Ok(())
}

/// Sends log messages to standard error.
pub(super) fn start_logging(quiet: bool, verbose: u8, terminal: &Terminal) {
    let level = match (quiet, verbose) {
        (true, _) => Level::ERROR,
        (false, 0) => Level::INFO,
        (false, 1) => Level::DEBUG,
        (false, _) => Level::TRACE,
    };
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(terminal.clone())
        .with_target(false);
    // A second subscriber exists in tests only, and is ignored.
    let _ = match terminal.format {
        LogFormat::Text => builder.with_ansi(terminal.colour).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}
