//! A container, reached through Docker's API: a signal to its first process, or a program
//! run inside it. An unfiltered API is refused unless the configuration accepts it: a
//! process that may use the whole API is root on the host.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hyper::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::deploy::docker::{Api, Filter, SOCKET};
use crate::deploy::keys::values::CommandLine;
use crate::deploy::target_settings::{
    self, DeployStage, InvalidTarget, Paths, Processes, Rights, ShortForm, TargetSettings, Writes,
};
use crate::deploy::{Delivery, DeployError, Target};
use crate::text::printable;

const KIND: &str = "docker";

/// A container gets a signal, or a program runs inside it, through Docker's API. Give `certs` a filtering proxy
/// that allows the container's `kill` (or `exec`) alone. An unfiltered API is refused unless
/// `accept_raw_socket = true`: a process that may use it is root on the host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// The container's name or identifier
    container: String,
    /// The signal for its first process
    #[schemars(extend("default" = "HUP"))]
    signal: Option<String>,
    /// A program to run inside it, instead of a signal
    command: Option<CommandLine>,
    /// The address of the API: tcp://HOST:PORT or unix:///PATH
    #[schemars(extend("x-default" = "$DOCKER_HOST, else unix:///var/run/docker.sock"))]
    host: Option<String>,
    /// Whether an unfiltered API may be used
    #[schemars(extend("default" = false))]
    accept_raw_socket: Option<bool>,
}

impl TargetSettings for Settings {
    const NAME: &'static str = "docker";
    const SHORT: ShortForm = ShortForm::WhereAnd("container", "signal");
    const EXAMPLE: &'static str = r#"kind = "docker"
container = "web"
signal = "HUP"
host = "tcp://docker-proxy:2375""#;

    fn check(&self) -> Result<(), InvalidTarget> {
        let words = [
            ("container", Some(&self.container)),
            ("signal", self.signal.as_ref()),
        ];
        for (key, word) in words {
            if word.is_some_and(|word| !is_a_word(word)) {
                return Err(InvalidTarget::key(
                    key,
                    "only letters, digits, `_`, `.` and `-` are allowed here",
                ));
            }
        }
        match (&self.signal, &self.command) {
            (Some(_), Some(_)) => Err(InvalidTarget::key(
                "command",
                "`signal` and `command` exclude each other",
            )),
            _ => Ok(()),
        }
    }

    fn rights(&self) -> Rights {
        Rights {
            processes: Processes::Untouched,
            connects_to: self.host().strip_prefix("unix://").map(PathBuf::from),
            reads: None,
            writes: Writes::Nothing,
        }
    }

    fn stage(&self) -> DeployStage {
        DeployStage::Server
    }

    fn coalesces(&self) -> bool {
        true
    }

    fn deadline(&self) -> Duration {
        target_settings::DEADLINE
    }

    fn paths(&mut self) -> Paths<'_> {
        Paths::default()
    }

    fn target(&self, _: String) -> Arc<dyn Target> {
        let action = match &self.command {
            Some(command) => ContainerAction::Run(command.to_vec()),
            None => ContainerAction::Signal(self.signal.as_deref().unwrap_or("HUP").to_owned()),
        };
        let accepted = self.accept_raw_socket == Some(true);
        let container = self.container.clone();
        Arc::new(Docker::new(container, action, self.host(), accepted))
    }
}

impl Settings {
    fn host(&self) -> &str {
        self.host.as_deref().unwrap_or(SOCKET)
    }

    /// Sets the API to `host`, unless one is configured.
    pub(in crate::deploy) fn at(&mut self, host: &str) {
        self.host.get_or_insert_with(|| host.to_owned());
    }
}

/// The action in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ContainerAction {
    /// Sends this signal.
    Signal(String),
    /// Runs this program with its arguments inside.
    Run(Vec<String>),
}

/// A container.
#[derive(Debug)]
pub(crate) struct Docker {
    name: String,
    container: String,
    action: ContainerAction,
    api: Result<Api, String>,
    raw_is_accepted: bool,
}

impl Docker {
    /// `container`, by its name or identifier, at the API of `host`.
    #[must_use]
    pub(crate) fn new(
        container: String,
        action: ContainerAction,
        host: &str,
        raw_is_accepted: bool,
    ) -> Self {
        Self {
            name: format!("{KIND}:{container}"),
            container,
            action,
            api: Api::at(host),
            raw_is_accepted,
        }
    }

    fn failed(&self, detail: &str) -> DeployError {
        DeployError::Unreachable {
            target: self.name.clone(),
            detail: printable(detail),
        }
    }

    async fn ask(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> Result<(StatusCode, Value), DeployError> {
        let api = self.api.as_ref().map_err(|detail| self.failed(detail))?;
        let answer = api.ask(method, path, body).await;
        answer.map_err(|detail| self.failed(&format!("its API: {detail}")))
    }

    /// The error for an unsuccessful reply.
    fn refusal(&self, what: &str, status: StatusCode, body: &Value) -> DeployError {
        let reason = body["message"].as_str().unwrap_or_default();
        self.failed(&format!("{what}: {status} {reason}"))
    }

    /// Whether the API is unfiltered, or may be.
    async fn is_raw(&self) -> Result<bool, DeployError> {
        let api = self.api.as_ref().map_err(|detail| self.failed(detail))?;
        let filter = api.filter().await;
        let filter = filter.map_err(|detail| self.failed(&format!("its API: {detail}")))?;
        Ok(filter != Filter::Filtered)
    }

    async fn run(&self, command: &[String]) -> Result<(), DeployError> {
        let path = format!("/containers/{}/exec", self.container);
        let wanted = json!({"AttachStdout": true, "AttachStderr": true, "Cmd": command});
        let (status, made) = self.ask("POST", &path, Some(wanted)).await?;
        let Some(id) = made["Id"]
            .as_str()
            .filter(|id| id.chars().all(|digit| digit.is_ascii_alphanumeric()))
        else {
            return Err(self.refusal("a program cannot be run in it", status, &made));
        };
        let start = json!({"Detach": false, "Tty": false});
        let (status, reply) = self
            .ask("POST", &format!("/exec/{id}/start"), Some(start))
            .await?;
        if !status.is_success() {
            return Err(self.refusal("the program cannot be started", status, &reply));
        }
        let (_, ended) = self.ask("GET", &format!("/exec/{id}/json"), None).await?;
        match ended["ExitCode"].as_i64() {
            Some(0) => Ok(()),
            code => Err(DeployError::Program {
                target: self.name.clone(),
                program: command.first().cloned().unwrap_or_default(),
                detail: format!(
                    "ended with {}",
                    code.map_or("no code".to_owned(), |code| code.to_string())
                ),
            }),
        }
    }
}

#[async_trait]
impl Target for Docker {
    fn name(&self) -> &str {
        &self.name
    }

    async fn check(&self, _: &Delivery) -> Result<(), DeployError> {
        if !self.raw_is_accepted && self.is_raw().await? {
            return Err(DeployError::Unsafe {
                target: self.name.clone(),
                detail: "this API is unfiltered, and a process that may use it is root on the host"
                    .to_owned(),
            });
        }
        Ok(())
    }

    async fn apply(&self, delivery: &Delivery) -> Result<(), DeployError> {
        self.check(delivery).await?;
        let signal = match &self.action {
            ContainerAction::Run(command) => return self.run(command).await,
            ContainerAction::Signal(signal) => signal,
        };
        let path = format!("/containers/{}/kill?signal={signal}", self.container);
        let (status, reply) = self.ask("POST", &path, None).await?;
        match status.is_success() {
            true => Ok(()),
            false => Err(self.refusal("it cannot be signalled", status, &reply)),
        }
    }
}

/// Whether `text` can be the name or identifier of a container, or the name of a signal,
/// and is safe as a part of a path.
#[must_use]
pub(crate) fn is_a_word(text: &str) -> bool {
    let known = |letter: char| letter.is_ascii_alphanumeric() || "_.-".contains(letter);
    !text.is_empty() && !text.starts_with('.') && text.chars().all(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_of_a_path_is_one_word() {
        for word in ["web", "my_web-1.x", "HUP", "4f1e"] {
            assert!(is_a_word(word), "{word}");
        }
        for other in ["", "..", ".x", "a/b", "a?b", "a b", "a%2f"] {
            assert!(!is_a_word(other), "{other}");
        }
    }
}
