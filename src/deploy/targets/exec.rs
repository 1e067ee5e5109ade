//! A program of the user's own, with the environment of certbot's deploy hooks. It is
//! started by its arguments, never by a shell, in a process group of its own: if it takes
//! too long, it is killed with all of its children.

use std::ffi::OsString;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use crate::deploy::keys::values::{Argv, within};
use crate::deploy::target_settings::prelude::*;
use crate::files::trust;

/// The end of its output is kept, which usually has the error.
const MOST_OUTPUT: usize = 4096;
const LINES: usize = 10;
const INHERITED: [&str; 6] = ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR"];
const LAST_WORDS: Duration = Duration::from_secs(1);

settings! {
    /// A program of yours, started by its arguments and never by a shell. It gets `RENEWED_LINEAGE` (the directory of the
    /// pair) and `RENEWED_DOMAINS`, as certbot's deploy hooks do, and of our environment PATH, HOME, LANG, LC_ALL, TZ and
    /// TMPDIR. If it fails, the deployment fails, and the message ends with the last lines of its output. A program that
    /// takes too long is killed with all of its children. Only root and the user of `certs` may be able to change the
    /// program and the directories above it.
    struct Settings {
        /// The program by its absolute path, with its arguments
        command: Argv,
        /// How long it may take, from 1s to 60m
        #[schemars(extend("default" = "2m"))]
        timeout: Option<Timeout>,
    }
}

impl TargetSettings for Settings {
    const KIND: &'static str = "exec";
    const SHORT: ShortForm = ShortForm::Keys(&["command"]);
    const EXAMPLE: &'static str = r#"command = ["/usr/local/bin/hook", "--renewed"]
timeout = "5m""#;
    const STAGE: DeployStage = DeployStage::EachCertificate;

    fn invalid_key(&self) -> Option<InvalidTarget> {
        let program = self.command.first().map(Path::new);
        let is_absolute = program.is_some_and(Path::is_absolute);
        let message = "write the absolute path of the program";
        (!is_absolute).then(|| InvalidTarget::key("command", message))
    }

    fn rights(&self) -> Rights {
        Rights::over(Processes::RunsProgram)
    }

    fn target(&self) -> Arc<dyn Target> {
        Arc::new(self.clone())
    }

    fn deadline(&self) -> Duration {
        within(self.timeout.as_ref())
    }
}

impl Settings {
    fn failed(detail: impl Into<String>) -> DeployCause {
        DeployCause::Program(detail.into())
    }

    /// The program as it is configured.
    pub(in crate::deploy) fn named(&self) -> Option<&Path> {
        self.command.first().map(Path::new)
    }

    /// The program, which only root and our own user may be able to change. What passed
    /// stays so until it is started.
    fn program(&self) -> Result<&Path, DeployCause> {
        let program = self
            .named()
            .ok_or_else(|| Self::failed("names no program"))?;
        match trust::resolve(program) {
            Ok(found) if found.is_file() => Ok(program),
            Ok(_) => Err(Self::failed("is not a file")),
            Err(error) if error.is_absent() => {
                Err(Self::failed(format!("cannot be started: {error}")))
            }
            Err(error) => Err(DeployCause::Untrusted(error.to_string())),
        }
    }

    fn start(&self, delivery: &Delivery) -> Result<Child, DeployCause> {
        let (program, arguments) = (self.program()?, &self.command[1..]);
        let names: Vec<String> = delivery.names.iter().map(ToString::to_string).collect();
        Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(inherited())
            .env("RENEWED_LINEAGE", &delivery.live)
            .env("RENEWED_DOMAINS", names.join(" "))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| Self::failed(format!("could not be started: {error}")))
    }
}

/// The part of our environment that it inherits, without credentials.
#[allow(clippy::disallowed_methods)] // only passed on to the program
fn inherited() -> impl Iterator<Item = (&'static str, OsString)> {
    let passed_on = INHERITED.into_iter();
    passed_on.filter_map(|name| Some((name, std::env::var_os(name)?)))
}

async fn end(child: &mut Child) {
    let group = child.id().and_then(|pid| i32::try_from(pid).ok());
    if let Some(group) = group.and_then(Pid::from_raw) {
        // The group may have ended already.
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait().await;
}

/// The end of a stream.
type LastOutput = Arc<Mutex<Vec<u8>>>;

/// Keeps the end of `stream`.
async fn tail(stream: Option<impl AsyncRead + Unpin>, last: LastOutput) {
    let Some(mut stream) = stream else { return };
    let mut buffer = [0; 16_384];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        last.extend_from_slice(&buffer[..read]);
        let surplus = last.len().saturating_sub(MOST_OUTPUT);
        last.drain(..surplus);
    }
}

fn last_lines(streams: &[LastOutput]) -> String {
    let text = |last: &LastOutput| {
        let last = last.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&last).into_owned()
    };
    let all = streams.iter().map(text).collect::<Vec<_>>().join("\n");
    let lines: Vec<String> = all.trim_end().lines().map(printable).collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

#[async_trait]
impl Target for Settings {
    fn name(&self) -> String {
        self.short_form()
    }

    /// Checks only that the program exists and may be run.
    async fn check(&self, _: &Delivery) -> Result<(), DeployCause> {
        self.program().map(drop)
    }

    async fn apply(&self, delivery: &Delivery) -> Result<(), DeployCause> {
        let mut child = self.start(delivery)?;
        let streams: [LastOutput; 2] = Default::default();
        // Everything is read, and only the end kept: a full pipe would block the program.
        let mut reading = JoinSet::new();
        reading.spawn(tail(child.stdout.take(), streams[0].clone()));
        reading.spawn(tail(child.stderr.take(), streams[1].clone()));
        let Ok(status) = tokio::time::timeout(self.deadline(), child.wait()).await else {
            end(&mut child).await;
            return Err(Self::failed(format!(
                "did not end within {} s",
                self.deadline().as_secs()
            )));
        };
        // A process that it left running may keep its output open for ever.
        let rest = async { while reading.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(LAST_WORDS, rest).await;
        let output = last_lines(&streams);
        match status {
            Ok(status) if status.success() => {
                tracing::debug!(program = self.command.first(), "{output}");
                Ok(())
            }
            Ok(status) => Err(Self::failed(match output.as_str() {
                "" => format!("failed ({status}) without any output"),
                output => format!("failed ({status}): {output}"),
            })),
            Err(error) => Err(Self::failed(format!("could not be waited for: {error}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::sample;
    use crate::deploy::target::DeployTarget;

    fn program(command: &[&str], timeout: &str) -> Arc<dyn Target> {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        let keys = [
            ("command".to_owned(), command),
            ("timeout".to_owned(), vec![timeout.to_owned()]),
        ];
        DeployTarget::long("exec", keys.into()).unwrap().target()
    }

    fn shell(script: &str) -> Arc<dyn Target> {
        program(&["/bin/sh", "-c", script], "20s")
    }

    async fn fails(script: &str) -> String {
        shell(script)
            .apply(&sample())
            .await
            .unwrap_err()
            .to_string()
    }

    #[tokio::test]
    async fn program_gets_the_variables_of_certbots_hooks() {
        let output = fails("echo $RENEWED_LINEAGE $RENEWED_DOMAINS; exit 3").await;
        assert!(output.contains("exit status: 3"), "{output}");
        assert!(
            output.contains("/certs/live/example.com example.com"),
            "{output}"
        );
        shell("exit 0").apply(&sample()).await.unwrap();
    }

    #[tokio::test]
    async fn program_inherits_only_the_listed_variables() {
        let output = fails("env; exit 1").await;
        let names = output
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, _)| name);
        // The shell sets these itself.
        let own = ["PWD", "SHLVL", "_", "RENEWED_LINEAGE", "RENEWED_DOMAINS"];
        for name in names.filter(|name| !name.contains(' ')) {
            assert!(
                own.contains(&name) || INHERITED.contains(&name),
                "{name} in {output}"
            );
        }
        // The variables of cargo are in the environment of this test.
        assert!(!output.contains("CARGO"), "{output}");
    }

    #[tokio::test]
    async fn program_that_never_ends_is_killed_with_its_children() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        let script = format!("sleep 600 & echo $! >{}; wait", file.display());
        let hangs = program(&["/bin/sh", "-c", &script], "1s");
        let error = hangs.apply(&sample()).await.unwrap_err();
        assert!(error.to_string().contains("did not end within"), "{error}");
        let pid = std::fs::read_to_string(file).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        // A killed process exists for a moment, and then as a zombie.
        let runs = || std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z"));
        let mut looks = 0;
        while runs() {
            looks += 1;
            assert!(looks < 1000, "it is still running");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn process_left_running_delays_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        let script = format!("sleep 600 & echo $! >{}; exit 0", file.display());
        shell(&script).apply(&sample()).await.unwrap();
        let pid = std::fs::read_to_string(file).unwrap();
        let ended = std::process::Command::new("kill").arg(pid.trim()).status();
        assert!(ended.unwrap().success(), "it was killed with its parent");
    }

    #[tokio::test]
    async fn end_of_the_output_is_kept() {
        let output = fails("head -c 20000000 /dev/zero; echo 'at last' >&2; exit 1").await;
        assert!(output.len() < 8 * MOST_OUTPUT && output.contains("at last"));
        // Control characters of the output are escaped.
        let output = fails("printf '\\033[2J'; exit 1").await;
        assert!(!output.contains('\u{1b}'), "{output:?}");
    }

    #[tokio::test]
    async fn program_that_others_can_change_is_not_run() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let hook = directory.path().join("hook");
        std::os::unix::fs::symlink("/bin/true", &hook).unwrap();
        let hook = program(&[&hook.display().to_string()], "30s");
        hook.apply(&sample()).await.unwrap();
        let mode = PermissionsExt::from_mode(0o757);
        std::fs::set_permissions(directory.path(), mode).unwrap();
        for refused in [hook.check(&sample()).await, hook.apply(&sample()).await] {
            let error = refused.unwrap_err();
            assert!(matches!(error, DeployCause::Untrusted(_)), "{error}");
            assert!(error.to_string().contains("0757"), "{error}");
        }
    }

    #[tokio::test]
    async fn missing_program_fails_the_check() {
        let absent = program(&["/absent/hook"], "30");
        let error = absent.check(&sample()).await.unwrap_err();
        let error = error.of(absent.name());
        assert!(error.to_string().contains("/absent/hook"), "{error}");
    }
}
