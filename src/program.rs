//! Programs of the user's own: hooks of a deployment, and those that present challenge
//! answers. One is started by its arguments, never by a shell, with a few variables of our
//! environment, in a process group of its own: if it takes too long, it is killed with all
//! processes below it. A sandboxed process starts none itself; the helper process then does
//! it ([`Runner`]).

use std::ffi::OsString;
use std::fmt;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use crate::certificate::Secret;
use crate::files::trust;
use crate::text::printable;

/// The end of its output is kept, which usually has the error.
const MOST_OUTPUT: usize = 4096;
/// A secret that a program prints is not longer.
const LONGEST_SECRET: usize = 65_536;
const LINES: usize = 10;
/// The part of our environment that it inherits: no credentials.
const INHERITED: [&str; 6] = ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR"];
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long a program may take that presents an answer.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
const LONGEST: usize = 300;

/// A call of a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Call {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
}

/// Why a program did not do its work.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub(crate) enum ProgramError {
    /// It is not run: another user can change it, or nothing permits it.
    #[error("{message}")]
    Untrusted { message: String, hint: String },
    /// It cannot be started.
    #[error("{0}")]
    NotStarted(String),
    /// It failed or took too long; with the end of its output.
    #[error("{0}")]
    Failed(String),
}

/// The hint for a program that cannot be started.
pub(crate) const NOT_STARTED_HINT: &str = "name a program that exists and may be executed";

impl ProgramError {
    /// The next thing to do.
    pub(crate) fn hint(&self) -> &str {
        match self {
            Self::Untrusted { hint, .. } => hint,
            Self::NotStarted(_) => NOT_STARTED_HINT,
            Self::Failed(_) => {
                "call the program with these arguments by hand, and correct what it reports"
            }
        }
    }
}

/// Starts programs for a process that may not.
#[async_trait]
pub(crate) trait Runner: Send + Sync {
    /// Runs the program until it ends.
    async fn run(&self, call: Call) -> Result<(), ProgramError>;
}

/// The fault of a program that this user can see: where it may not look, another process
/// may start it.
pub(crate) fn fault(program: &Path) -> Option<ProgramError> {
    let denied = |error: std::io::Error| error.kind() == ErrorKind::PermissionDenied;
    let is_hidden = std::fs::metadata(program).is_err_and(denied);
    check(program).err().filter(|_| !is_hidden)
}

/// Checks that the program exists and may be executed, and that only root and our own user can change it.
///
/// # Errors
/// When it is not so.
pub(crate) fn check(program: &Path) -> Result<(), ProgramError> {
    match trust::resolve(program) {
        Ok(found) => match std::fs::metadata(found) {
            Ok(found) if !found.is_file() => {
                Err(ProgramError::NotStarted("is not a file".to_owned()))
            }
            Ok(found) if found.mode() & 0o111 == 0 => Err(ProgramError::NotStarted(format!(
                "may not be executed (mode {:04o})",
                found.mode() & 0o7777
            ))),
            Ok(_) => Ok(()),
            Err(error) => Err(ProgramError::NotStarted(format!(
                "cannot be examined: {error}"
            ))),
        },
        Err(error) if error.is_absent() => Err(ProgramError::NotStarted(format!(
            "cannot be started: {error}"
        ))),
        Err(error) => Err(ProgramError::Untrusted {
            message: error.to_string(),
            hint: error.hint(),
        }),
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.program.display(), self.arguments.join(" "))
    }
}

impl Call {
    /// Whether each argument is a plain word, such as a verb, a name or a digest.
    pub(crate) fn is_plain(&self) -> bool {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let mut all = self.arguments.iter();
        all.all(|text| text.len() <= LONGEST && text.chars().all(is_plain))
    }

    /// Runs the program, with `variables` besides those of ours, and returns the end of its
    /// output. What [`check`] has passed stays so until it is started.
    ///
    /// # Errors
    /// When it cannot be started, takes too long, or fails.
    pub(crate) async fn run(
        &self,
        variables: &[(&str, OsString)],
        within: Duration,
    ) -> Result<String, ProgramError> {
        let streams: [LastOutput; 2] = Default::default();
        self.end_within(variables, within, &streams, &streams)
            .await?;
        Ok(last_lines(&streams))
    }

    /// Runs the program, and returns what it prints on standard output, which no message shows.
    ///
    /// # Errors
    /// As those of [`run`](Self::run), and when it prints too much.
    pub(crate) async fn secret(&self, within: Duration) -> Result<Secret, ProgramError> {
        let output = LastOutput::keeping(LONGEST_SECRET + 1);
        let streams = [output, LastOutput::default()];
        self.end_within(&[], within, &streams, &streams[1..])
            .await?;
        let printed = streams[0].take();
        let is_long = printed.len() > LONGEST_SECRET;
        let printed = String::from_utf8(printed).map(Secret::new);
        printed.ok().filter(|_| !is_long).ok_or_else(|| {
            let message = format!("printed more than {LONGEST_SECRET} bytes, or no text");
            ProgramError::Failed(message)
        })
    }

    /// Waits until the program ends; its failure shows the end of what the streams in `shown` had.
    async fn end_within(
        &self,
        variables: &[(&str, OsString)],
        within: Duration,
        [output, errors]: &[LastOutput; 2],
        shown: &[LastOutput],
    ) -> Result<(), ProgramError> {
        let mut child = self.start(variables)?;
        // Everything is read, and only the end kept: a full pipe would block the program.
        let mut reading = JoinSet::new();
        reading.spawn(tail(child.stdout.take(), output.clone()));
        reading.spawn(tail(child.stderr.take(), errors.clone()));
        let Ok(status) = tokio::time::timeout(within, child.wait()).await else {
            end(&mut child).await;
            let late = format!("did not end within {} s", within.as_secs());
            return Err(ProgramError::Failed(late));
        };
        // A process that it left running may keep its output open for ever.
        let rest = async { while reading.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(LAST_WORDS, rest).await;
        let output = last_lines(shown);
        Err(ProgramError::Failed(match (status, output.as_str()) {
            (Ok(status), _) if status.success() => return Ok(()),
            (Ok(status), "") => format!("failed ({status}) without any output"),
            (Ok(status), output) => format!("failed ({status}): {output}"),
            (Err(error), _) => format!("could not be waited for: {error}"),
        }))
    }

    fn start(&self, variables: &[(&str, OsString)]) -> Result<Child, ProgramError> {
        check(&self.program)?;
        Command::new(&self.program)
            .args(&self.arguments)
            .env_clear()
            .envs(inherited())
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| ProgramError::NotStarted(format!("could not be started: {error}")))
    }
}

/// The part of our environment that it inherits, without credentials.
#[allow(clippy::disallowed_methods)] // only passed on to the program
fn inherited() -> impl Iterator<Item = (&'static str, OsString)> {
    let passed_on = INHERITED.into_iter();
    passed_on.filter_map(|name| Some((name, std::env::var_os(name)?)))
}

/// Ends the program with its group, and its descendants in other groups or sessions
/// (setsid). One whose parent has ended belongs to the system, and stays.
async fn end(child: &mut Child) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    if let Some(pid) = pid.and_then(Pid::from_raw) {
        // Stopped, it starts no further ones while they are listed.
        let _ = kill_process_group(pid, Signal::STOP);
        let descendants = descendants(pid);
        // Each may have ended already.
        let _ = kill_process_group(pid, Signal::KILL);
        for one in descendants {
            let _ = kill_process(one, Signal::KILL);
        }
    }
    let _ = child.wait().await;
}

/// The processes below `ancestor`, parents first: proc_pid_stat(5).
fn descendants(ancestor: Pid) -> Vec<Pid> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let parents = processes.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name may contain anything, also parentheses.
        let (_, rest) = stat.rsplit_once(") ")?;
        let parent = rest.split(' ').nth(1)?.parse().ok()?;
        Some((Pid::from_raw(pid)?, Pid::from_raw(parent)?))
    });
    let parents: Vec<(Pid, Pid)> = parents.collect();
    let mut found = vec![ancestor];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        let children = parents.iter().filter(|(_, of)| *of == parent);
        found.extend(children.map(|(child, _)| *child));
        next += 1;
    }
    found.split_off(1)
}

/// The end of a stream.
#[derive(Clone)]
struct LastOutput {
    bytes: Arc<Mutex<Vec<u8>>>,
    most: usize,
}

impl Default for LastOutput {
    fn default() -> Self {
        Self::keeping(MOST_OUTPUT)
    }
}

impl LastOutput {
    fn keeping(most: usize) -> Self {
        let bytes = Arc::default();
        Self { bytes, most }
    }

    fn add(&self, more: &[u8]) {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        bytes.extend_from_slice(more);
        let surplus = bytes.len().saturating_sub(self.most);
        bytes.drain(..surplus);
    }

    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.bytes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Keeps the end of `stream`.
async fn tail(stream: Option<impl AsyncRead + Unpin>, last: LastOutput) {
    let Some(mut stream) = stream else { return };
    let mut buffer = [0; 16_384];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        last.add(&buffer[..read]);
    }
}

fn last_lines(streams: &[LastOutput]) -> String {
    let text = |last: &LastOutput| {
        let last = last.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&last).into_owned()
    };
    let all = streams.iter().map(text).collect::<Vec<_>>();
    let lines = all.iter().flat_map(|text| text.trim_end().lines());
    let lines: Vec<String> = lines.map(printable).collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(program: &str, arguments: &[&str]) -> Call {
        Call {
            program: program.into(),
            arguments: arguments.iter().map(|one| (*one).to_owned()).collect(),
        }
    }

    async fn run(call: &Call) -> Result<String, ProgramError> {
        let variables = [("RENEWED_LINEAGE", "/live".into())];
        call.run(&variables, Duration::from_secs(20)).await
    }

    fn shell(script: &str) -> Call {
        call("/bin/sh", &["-c", script, "name", "present", "a.b."])
    }

    async fn fails(script: &str) -> String {
        run(&shell(script)).await.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn program_gets_its_arguments_and_only_the_listed_variables() {
        let output = run(&shell("echo \"$1 $2\"; env")).await.unwrap();
        assert!(output.contains("RENEWED_LINEAGE=/live"), "{output}");
        let (arguments, all) = output.split_once('\n').unwrap();
        assert_eq!(arguments, "present a.b.");
        let names = all.lines().filter_map(|line| line.split_once('='));
        // The shell sets these itself.
        let own = ["PWD", "SHLVL", "_", "OLDPWD", "RENEWED_LINEAGE"];
        for (name, _) in names {
            assert!(
                own.contains(&name) || INHERITED.contains(&name),
                "{name} in {output}"
            );
        }
    }

    #[tokio::test]
    async fn program_that_fails_is_reported_with_its_last_output() {
        let output = fails("echo out; printf 'why\\033[2J' >&2; exit 7").await;
        assert!(
            output.contains("failed (exit status: 7): out\nwhy\\u{1b}[2J"),
            "{output}"
        );
        let output = fails("head -c 20000000 /dev/zero; echo 'at last' >&2; exit 1").await;
        assert!(output.len() < 8 * MOST_OUTPUT && output.contains("at last"));
        let absent = run(&call("/absent/program", &[])).await.unwrap_err();
        assert!(absent.to_string().contains("/absent"), "{absent:?}");
        assert!(matches!(absent, ProgramError::NotStarted(_)), "{absent:?}");
    }

    #[tokio::test]
    async fn secret_of_a_program_is_whole_and_in_no_message() {
        let printed = |script: &str| {
            let call = shell(script);
            async move { call.secret(Duration::from_secs(20)).await }
        };
        let secret = printed("echo warned >&2; yes secret | head -c 60000").await;
        assert_eq!(secret.unwrap().expose().len(), 60_000);
        for (script, words) in [
            ("echo secret; echo why >&2; exit 1", "why"),
            ("yes secret | head -c 70000", "more than 65536"),
            ("printf 'secret\\377'", "no text"),
            ("echo secret; exit 3", "without any output"),
        ] {
            let error = printed(script).await.unwrap_err().to_string();
            assert!(error.contains(words), "{script}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[tokio::test]
    async fn program_that_never_ends_is_killed_with_its_children() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        // The second one leaves the group, and its own child, too.
        for child in [
            "sleep 600 & echo $! >{}",
            "setsid sh -c 'sleep 600 & echo $! >{}; wait' &",
        ] {
            let child = child.replace("{}", &file.display().to_string());
            let hangs = shell(&format!("{child}\nwait"));
            let error = hangs.run(&[], Duration::from_secs(1)).await.unwrap_err();
            assert!(error.to_string().contains("did not end within"), "{error}");
            let pid = std::fs::read_to_string(&file).unwrap();
            let stat = format!("/proc/{}/stat", pid.trim());
            // A killed process exists for a moment, and then as a zombie.
            let runs = || std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z"));
            let mut looks = 0;
            while runs() {
                looks += 1;
                assert!(looks < 1000, "it is still running: {child}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    #[tokio::test]
    async fn process_left_running_delays_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        let script = format!("sleep 600 & echo $! >{}; exit 0", file.display());
        run(&shell(&script)).await.unwrap();
        let pid = std::fs::read_to_string(file).unwrap();
        let ended = std::process::Command::new("kill").arg(pid.trim()).status();
        assert!(ended.unwrap().success(), "it was killed with its parent");
    }

    #[tokio::test]
    async fn program_that_others_can_change_is_not_run() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let hook = directory.path().join("hook");
        std::os::unix::fs::symlink("/bin/true", &hook).unwrap();
        let hook = call(&hook.display().to_string(), &[]);
        run(&hook).await.unwrap();
        let mode = PermissionsExt::from_mode(0o757);
        std::fs::set_permissions(directory.path(), mode).unwrap();
        let error = run(&hook).await.unwrap_err();
        assert!(matches!(error, ProgramError::Untrusted { .. }), "{error}");
        assert!(error.to_string().contains("0757"), "{error}");
    }

    #[test]
    fn fault_names_file_that_cannot_be_a_program() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let plain = directory.path().join("plain");
        std::fs::write(&plain, "#!/bin/sh\n").unwrap();
        let found = |file: &Path| fault(file).map(|fault| fault.to_string());
        std::fs::set_permissions(&plain, PermissionsExt::from_mode(0o644)).unwrap();
        assert_eq!(found(&plain).unwrap(), "may not be executed (mode 0644)");
        std::fs::set_permissions(&plain, PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(found(&plain), None);
        assert_eq!(found(directory.path()).unwrap(), "is not a file");
        let absent = found(&directory.path().join("absent")).unwrap();
        assert!(absent.contains("cannot be started"), "{absent}");
    }

    #[test]
    fn arguments_of_challenges_are_plain_words() {
        assert!(call("/x", &["present", "_acme-challenge.a.b.", "aZ0-_"]).is_plain());
        for odd in ["a b", "$(id)", "a;b", "a\n", "ä", &"a".repeat(301)] {
            assert!(!call("/x", &["present", odd]).is_plain(), "{odd}");
        }
    }
}
