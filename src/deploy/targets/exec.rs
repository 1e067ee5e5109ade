//! A program of the user's own, with the environment of certbot's deploy hooks. It is
//! started by its arguments, never by a shell, in a process group of its own: if it takes
//! too long, it is killed with all of its children.

use std::path::Path;
use std::time::Duration;

use crate::deploy::keys::values::{Argv, within};
use crate::deploy::target_settings::prelude::*;
use crate::program::{self, Call, ProgramError};

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
    /// The program as it is configured.
    pub(in crate::deploy) fn named(&self) -> Option<&Path> {
        self.command.first().map(Path::new)
    }

    fn call(&self) -> Result<Call, DeployCause> {
        let program = self.named();
        let program = program.ok_or_else(|| DeployCause::Program("names no program".into()))?;
        Ok(Call {
            program: program.to_owned(),
            arguments: self.command[1..].to_vec(),
        })
    }
}

impl From<ProgramError> for DeployCause {
    fn from(error: ProgramError) -> Self {
        match error {
            ProgramError::Untrusted { message, .. } => Self::Untrusted(message),
            ProgramError::NotStarted(why) => Self::NotStarted(why),
            error => Self::Program(error.to_string()),
        }
    }
}

#[async_trait]
impl Target for Settings {
    fn name(&self) -> String {
        self.short_form()
    }

    /// Checks only that the program exists and may be run.
    async fn check(&self, _: &Delivery) -> Result<(), DeployCause> {
        Ok(program::check(&self.call()?.program)?)
    }

    async fn apply(&self, delivery: &Delivery) -> Result<(), DeployCause> {
        let names: Vec<String> = delivery.names.iter().map(ToString::to_string).collect();
        let variables = [
            ("RENEWED_LINEAGE", delivery.live.clone().into()),
            ("RENEWED_DOMAINS", names.join(" ").into()),
        ];
        let output = self.call()?.run(&variables, self.deadline()).await?;
        tracing::debug!(program = self.command.first(), "{output}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

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

    #[tokio::test]
    async fn program_gets_the_variables_of_certbots_hooks() {
        let shell = |script| program(&["/bin/sh", "-c", script], "20s");
        let fails = shell("echo $RENEWED_LINEAGE $RENEWED_DOMAINS; exit 3");
        let output = fails.apply(&sample()).await.unwrap_err().to_string();
        assert!(output.contains("exit status: 3"), "{output}");
        assert!(
            output.contains("/certs/live/example.com example.com"),
            "{output}"
        );
        shell("exit 0").apply(&sample()).await.unwrap();
        let hangs = program(&["/bin/sleep", "600"], "1s");
        let error = hangs.apply(&sample()).await.unwrap_err();
        assert!(error.to_string().contains("did not end within"), "{error}");
    }

    #[tokio::test]
    async fn program_that_is_missing_or_not_trusted_fails_the_check() {
        let absent = program(&["/absent/hook"], "30");
        let error = absent.check(&sample()).await.unwrap_err();
        let error = error.of(absent.name());
        assert!(error.to_string().contains("/absent/hook"), "{error}");
        let directory = tempfile::tempdir().unwrap();
        let mode = PermissionsExt::from_mode(0o757);
        std::fs::set_permissions(directory.path(), mode).unwrap();
        let hook = directory.path().join("hook");
        std::fs::write(&hook, "").unwrap();
        let hook = program(&[&hook.display().to_string()], "30s");
        for refused in [hook.check(&sample()).await, hook.apply(&sample()).await] {
            let error = refused.unwrap_err();
            assert!(matches!(error, DeployCause::Untrusted(_)), "{error}");
        }
    }
}
