//! Programs of the user's own that present challenge answers: started by their arguments,
//! never by a shell, without our environment. A sandboxed process starts none itself; the
//! helper process then does it ([`Runner`]).

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use crate::files::trust;
use crate::text::printable_lines;

/// The end of its output that a message shows, in bytes.
const SHOWN: usize = 1000;
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long a program may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
const LONGEST: usize = 300;

/// A call of a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Call {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
}

/// Why a program did not do its work, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProgramError {
    pub(crate) message: String,
    pub(crate) hint: String,
}

/// Starts programs for a process that may not.
#[async_trait]
pub(crate) trait Runner: Send + Sync {
    /// Runs the program until it ends.
    async fn run(&self, call: Call) -> Result<(), ProgramError>;
}

impl Call {
    /// Whether each argument is a plain word, such as a verb, a name or a digest.
    pub(crate) fn is_plain(&self) -> bool {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let mut all = self.arguments.iter();
        all.all(|text| text.len() <= LONGEST && text.chars().all(is_plain))
    }

    /// Runs the program, which only root and our own user may be able to change.
    ///
    /// # Errors
    /// When it cannot be started, takes too long, or fails; with the end of its output.
    pub(crate) async fn run(&self) -> Result<(), ProgramError> {
        let shown = format!("{} {}", self.program.display(), self.arguments.join(" "));
        let failed = |detail: String| ProgramError {
            message: format!("{shown}: {detail}"),
            hint: "call the program with these arguments by hand, and correct what it reports"
                .to_owned(),
        };
        trusted(&self.program)?;
        let output = Command::new(&self.program)
            .args(&self.arguments)
            .env_clear()
            .env("PATH", PATH)
            .current_dir("/")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(DEADLINE, output).await;
        let late = |_| failed(format!("it did not end within {} s", DEADLINE.as_secs()));
        let output = output.map_err(late)?;
        let output = output.map_err(|error| failed(error.to_string()))?;
        if output.status.success() {
            return Ok(());
        }
        let printed = [output.stdout, output.stderr].concat();
        let end = printed.len().saturating_sub(SHOWN);
        let end = String::from_utf8_lossy(&printed[end..]).into_owned();
        let end = printable_lines(end.trim());
        Err(failed(format!("{}: {end}", output.status)))
    }
}

fn trusted(program: &Path) -> Result<(), ProgramError> {
    let resolved = trust::resolve(program);
    resolved.map(drop).map_err(|error| ProgramError {
        hint: match error.is_absent() {
            true => "name a program that exists".to_owned(),
            false => error.hint(),
        },
        message: format!("the program {}: {error}", program.display()),
    })
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

    #[tokio::test]
    async fn program_gets_its_arguments_and_no_variable_of_ours() {
        let test = |script| call("/bin/sh", &["-c", script, "name", "present", "a.b."]);
        let ended = test("test \"$1 $2\" = 'present a.b.' && test -z \"$HOME$CARGO\"");
        assert_eq!(ended.run().await, Ok(()));
        let error = test("echo out; printf 'why\\033[2J' >&2; exit 7")
            .run()
            .await
            .unwrap_err();
        let message = error.message;
        assert!(
            message.contains("exit status: 7: out\nwhy\\u{1b}[2J"),
            "{message}"
        );
        let absent = call("/absent/program", &[]).run().await.unwrap_err();
        assert!(absent.message.contains("/absent/program"), "{absent:?}");
    }

    #[test]
    fn arguments_of_challenges_are_plain_words() {
        assert!(call("/x", &["present", "_acme-challenge.a.b.", "aZ0-_"]).is_plain());
        for odd in ["a b", "$(id)", "a;b", "a\n", "ä", &"a".repeat(301)] {
            assert!(!call("/x", &["present", odd]).is_plain(), "{odd}");
        }
    }
}
