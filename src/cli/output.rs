//! Output for the user: results on standard output; messages, hints and logs on
//! standard error; a failure's exit code.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use tracing::Level;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{ConfigProblem, LogFormat};
use crate::failure::Failure;
use crate::lineage::Lineage;
use crate::text::{in_a_line, printable_json, printable_whole, printable_within};

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
                    let hint = terminal.hint(hint);
                    let fields = serde_json::json!({"message": message, "hint": hint});
                    let json = serde_json::json!({"level": "ERROR", "fields": fields});
                    printable_json(&json.to_string()).into_owned() + "\n"
                }
                LogFormat::Text => {
                    let (error, advice) =
                        (terminal.paint("error:", RED), terminal.paint("hint:", CYAN));
                    let hint = printable_whole(&terminal.hint(hint));
                    let message = printable_whole(message);
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
    quiet: bool,
    colour: bool,
    format: LogFormat,
    line: Arc<Mutex<String>>,
    repeated: Arc<Repeated>,
}

/// What hints repeat in the commands that they name.
#[derive(Debug, Default)]
pub(super) struct Repeated {
    /// The options of this command that choose files.
    pub places: String,
    /// The verbs of all commands.
    pub verbs: Vec<String>,
    /// Further options of this command, for the commands of the verbs that take them.
    pub further: Vec<(&'static [&'static str], String)>,
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
            quiet,
            colour: is_terminal && !set("NO_COLOR"),
            line: Arc::default(),
            repeated: Arc::default(),
        }
    }

    /// The same without results that need nothing.
    pub(super) fn without_results(self) -> Self {
        Self {
            quiet: true,
            ..self
        }
    }

    /// Whether only failures are printed.
    pub(super) fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// The same for a command with these options, which hints repeat.
    pub(super) fn repeating(self, repeated: Repeated) -> Self {
        Self {
            repeated: repeated.into(),
            ..self
        }
    }

    /// `text` with the options of this command in each further command that it names, so
    /// that it works on the same files, with the same CA and the same nginx.
    pub(super) fn hint(&self, text: &str) -> String {
        const CERTS: &str = "certs ";
        let Repeated {
            places,
            verbs,
            further,
        } = &*self.repeated;
        if places.is_empty() && further.is_empty() {
            return text.to_owned();
        }
        let mut parts = text.split(CERTS);
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |mut made, part| {
            let word: String = part.chars().take_while(char::is_ascii_lowercase).collect();
            // It runs already, with options of its own.
            let is_verb = word != "run" && verbs.contains(&word);
            let is_word =
                made.ends_with(|last: char| last.is_alphanumeric() || "-/".contains(last));
            made += CERTS.trim_end();
            if !is_verb || is_word {
                return made + " " + part;
            }
            let (command, rest) = part.split_at(end_of_command(&word, part));
            made = made + places + " " + command;
            for (_, option) in further.iter().filter(|(of, _)| of.contains(&&*word)) {
                if command != word && is_lacking(command, option, further) {
                    made += option;
                }
            }
            made + rest
        })
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

    /// Shows a line above the progress line. What a store or a peer wrote into it can
    /// neither steer the terminal nor forge another line.
    pub(super) fn print(&self, line: &str) {
        let line = printable_within(&folded(line), usize::MAX);
        self.write(format!("{line}\n").as_bytes());
    }

    /// Shows a question; the answer follows on its line.
    fn ask(&self, question: &str) {
        self.write(printable_within(question, usize::MAX).as_bytes());
    }

    /// A log message in one line, so that a reader of lines gets all of it.
    fn in_a_line(&self, message: &str) -> String {
        let message = message.trim_end();
        // A list in a message has its items in lines.
        let line = |part: &str| printable_within(&folded(part), usize::MAX);
        let shown = match (self.format, self.colour) {
            (LogFormat::Json, _) => printable_json(message).into_owned(),
            (LogFormat::Text, false) => line(message),
            // The colours of the log; it has escaped those of its messages.
            (LogFormat::Text, true) => {
                let parts: Vec<String> = message.split('\x1b').map(line).collect();
                parts.join("\x1b")
            }
        };
        shown + "\n"
    }

    /// Asks `question`, which is to be answered with yes; or why there was no yes.
    pub(super) fn confirmed(&self, question: &str) -> Result<(), &'static str> {
        if !io::stdin().is_terminal() {
            return Err("there is no terminal to ask at");
        }
        self.ask(question);
        // A prompt has no end of line.
        let _ = io::stderr().flush();
        let mut answer = String::new();
        let read = io::stdin().read_line(&mut answer);
        match (read, answer.trim()) {
            (Ok(_), "y" | "Y" | "yes") => Ok(()),
            _ => Err("the answer was not yes"),
        }
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

/// Whether `command` lacks this option of ours. The root is that of our CA alone.
fn is_lacking(command: &str, option: &str, ours: &[(&[&str], String)]) -> bool {
    let words: Vec<&str> = command.split(' ').collect();
    let name = option.split_whitespace().next().unwrap_or_default();
    let own = ours.iter().find(|(_, one)| one.starts_with(" --ca "));
    let own = own.map(|(_, one)| one.trim_start_matches(" --ca "));
    let theirs = words.iter().position(|word| *word == "--ca");
    let theirs = theirs.and_then(|at| words.get(at + 1).copied());
    let is_foreign = name == "--ca-root" && theirs.is_some() && theirs != own;
    !words.contains(&name) && !is_foreign
}

/// The end of the command at the start of a sentence: of its verb alone, if prose follows it.
fn end_of_command(verb: &str, text: &str) -> usize {
    // Verbs with a further one.
    let most = if ["account", "install"].contains(&verb) {
        2
    } else {
        1
    };
    let (mut at, mut count) = (verb.len(), 0);
    for word in text.split(' ') {
        let whole = word.trim_end_matches([',', ';', ':', '.', ')', '`', '\n']);
        count += 1;
        let is_option = word.starts_with("--") && count > most;
        // All else is a name, which may have no dot, a path, or a place for one.
        let is_prose = whole.is_empty() || PROSE.contains(&whole);
        if count > most && is_prose || verb == "issue" && count == 2 && is_option {
            break;
        }
        at = word.as_ptr() as usize - text.as_ptr() as usize + whole.len();
        if whole.len() < word.len() {
            break;
        }
    }
    at
}

/// The words of prose that follow a command in a hint.
const PROSE: [&str; 22] = [
    "again",
    "and",
    "as",
    "completes",
    "does",
    "ends",
    "finishes",
    "forgets",
    "is",
    "keeps",
    "makes",
    "may",
    "no",
    "obtains",
    "or",
    "registers",
    "remove",
    "retries",
    "shows",
    "takes",
    "tests",
    "with",
];

impl Write for &Terminal {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        Terminal::write(self, text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The command that replaces a revoked certificate: the key of a signing request is revoked,
/// too, and only its user makes another.
pub(super) fn replacing(lineage: &Lineage, has_request: bool) -> String {
    match has_request {
        true => format!("certs csr FILE --name {lineage} with the request of a new key"),
        false => format!("certs renew {lineage}"),
    }
}

/// What comes before the hint of a message.
const HINT: &str = "hint: ";

/// Writes log messages, one at a time.
pub(super) struct LogWriter<'a>(&'a Terminal);

impl Write for LogWriter<'_> {
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(message);
        let text = match text.split_once(HINT) {
            Some((before, hint)) => format!("{before}{HINT}{}", self.0.hint(hint)),
            None => text.into_owned(),
        };
        Terminal::write(self.0, self.0.in_a_line(&text).as_bytes());
        Ok(message.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Terminal {
    type Writer = LogWriter<'a>;
    fn make_writer(&'a self) -> Self::Writer {
        LogWriter(self)
    }
}

/// A message of several lines as one, with the indentation of the first and the space before
/// the fields of a log.
fn folded(line: &str) -> String {
    let text = line.trim_start_matches(' ');
    match text.contains('\n') {
        true => {
            let (before, end) = (line.len() - text.len(), text.trim_end_matches(' ').len());
            line[..before].to_owned() + &in_a_line(text) + &text[end..]
        }
        false => line.to_owned(),
    }
}

/// Prints a line of a result. A closed standard output (`certs status | head`) does not
/// stop the work. What a store or a peer wrote into it can neither steer the terminal nor
/// forge another line.
pub(super) fn say(result: impl fmt::Display) {
    let line = printable_within(&folded(&result.to_string()), usize::MAX);
    let _ = writeln!(io::stdout(), "{line}");
}

/// Prints JSON.
pub(super) fn say_json(json: impl fmt::Display) {
    let json = json.to_string();
    let _ = writeln!(io::stdout(), "{}", printable_json(&json));
}

/// Prints a list as JSON; of a long one, no more than one item is held as text.
pub(super) fn say_json_list(items: &[impl Serialize]) -> serde_json::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    let mut before = "[";
    for item in items {
        let json = serde_json::to_string(item)?;
        let _ = write!(out, "{before}{}", printable_json(&json));
        before = ",";
    }
    let _ = writeln!(out, "{}]", if items.is_empty() { "[" } else { "" });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_in_hints_have_the_options_of_this_one() {
        let ca = |option: &str| (&["issue", "account"][..], option.to_owned());
        let terminal = Terminal::new(&BTreeMap::new(), false, LogFormat::Text);
        let terminal = terminal.repeating(Repeated {
            places: " --data-dir /d".to_owned(),
            verbs: ["account", "install", "issue", "renew", "run"]
                .map(str::to_owned)
                .into(),
            further: vec![
                ca(" --ca https://ca.internal/dir"),
                (&["issue"], " --agree-tos".to_owned()),
                (&["install"], " --nginx '/opt/my nginx'".to_owned()),
            ],
        });
        for (text, shown) in [
            (
                "certs issue a.example b.example --name b-2; else",
                "certs --data-dir /d issue a.example b.example --name b-2 --ca https://ca.internal/dir --agree-tos; else",
            ),
            (
                "certs issue '*.example' --ca x --dns PROVIDER, and then",
                "certs --data-dir /d issue '*.example' --ca x --dns PROVIDER --agree-tos, and then",
            ),
            (
                "certs issue with its names keeps it",
                "certs --data-dir /d issue with its names keeps it",
            ),
            (
                "certs issue --force may use it",
                "certs --data-dir /d issue --force may use it",
            ),
            (
                "let certs issue a.example remove it",
                "let certs --data-dir /d issue a.example --ca https://ca.internal/dir --agree-tos remove it",
            ),
            (
                "certs account show shows it",
                "certs --data-dir /d account show --ca https://ca.internal/dir shows it",
            ),
            (
                "certs account update --agree-tos; then",
                "certs --data-dir /d account update --agree-tos --ca https://ca.internal/dir; then",
            ),
            (
                "certs install nginx --undo again: it",
                "certs --data-dir /d install nginx --undo --nginx '/opt/my nginx' again: it",
            ),
            (
                "certs renew a.example --force, or certs run",
                "certs --data-dir /d renew a.example --force, or certs run",
            ),
            (
                "certs issue intranet printer --name office retries, certs delete office",
                "certs --data-dir /d issue intranet printer --name office --ca https://ca.internal/dir --agree-tos retries, certs delete office",
            ),
        ] {
            assert_eq!(terminal.hint(text), shown);
        }
    }

    #[test]
    fn root_is_repeated_for_its_ca_alone() {
        let ours = [(&["issue"][..], " --ca https://ca.internal/dir".to_owned())];
        for (command, lacks) in [
            ("issue a.example", true),
            ("issue a.example --ca https://ca.internal/dir", true),
            ("issue a.example --ca letsencrypt --dry-run", false),
            ("issue a.example --ca-root /other.pem", false),
        ] {
            assert_eq!(
                is_lacking(command, " --ca-root /root.pem", &ours),
                lacks,
                "{command}"
            );
        }
    }

    #[test]
    fn log_message_is_one_line() {
        let shown = |format, message: &str| {
            Terminal::new(&BTreeMap::new(), false, format).in_a_line(message)
        };
        let message = "INFO failed\n  a: no\x07\n  b: no\n";
        assert_eq!(
            shown(LogFormat::Text, message),
            "INFO failed; a: no\\u{7}; b: no\n"
        );
        let mut coloured = Terminal::new(&BTreeMap::new(), false, LogFormat::Text);
        coloured.colour = true;
        let message = "failed:\n  a: no; hint: forward it \x1b[3mlineage\x1b[0m=b\n";
        assert_eq!(
            coloured.in_a_line(message),
            "failed: a: no; hint: forward it \x1b[3mlineage\x1b[0m=b\n"
        );
        let json = "{\"message\":\"a\\nb\"}\n";
        assert_eq!(shown(LogFormat::Json, json), json);
    }
}
