//! A container, reached through Docker's API: a signal to its first process, or a program
//! run inside it. An unfiltered API is refused unless the configuration accepts it: a
//! process that may use the whole API is root on the host.

use std::path::PathBuf;
use std::time::Duration;

use hyper::StatusCode;
use serde_json::{Value, json};

use crate::deploy::docker::{Api, Filter, SOCKET};
use crate::deploy::keys::values::{Argv, within};
use crate::deploy::target_settings::prelude::*;

settings! {
    /// A container gets a signal, or a program runs inside it, through Docker's API. Give `certs` a filtering proxy
    /// that allows the container's `kill` (or `exec`) alone. An unfiltered API is refused unless
    /// `accept_raw_socket = true`: a process that may use it is root on the host.
    struct Settings {
        /// The container's name or identifier
        container: String,
        /// The signal for its first process
        #[schemars(extend("default" = "HUP"))]
        signal: Option<String>,
        /// A program to run inside it, instead of a signal
        command: Option<Argv>,
        /// How long the program may take, from 1s to 60m
        #[schemars(extend("default" = "2m"))]
        timeout: Option<Timeout>,
        /// The address of the API: tcp://HOST:PORT or unix:///PATH
        #[schemars(extend("x-default" = "$DOCKER_HOST, else unix:///var/run/docker.sock"))]
        host: Option<String>,
        /// Whether an unfiltered API may be used
        #[schemars(extend("default" = false))]
        accept_raw_socket: Option<bool>,
    }
}

impl TargetSettings for Settings {
    const KIND: &'static str = "docker";
    const SHORT: ShortForm = ShortForm::Keys(&["container", "signal"]);
    const EXAMPLE: &'static str = r#"container = "web"
signal = "HUP"
host = "tcp://docker-proxy:2375""#;
    const STAGE: DeployStage = DeployStage::AllCertificates;

    fn invalid_key(&self) -> Option<InvalidTarget> {
        let words = [
            ("container", Some(&self.container)),
            ("signal", self.signal.as_ref()),
        ];
        let word = words
            .into_iter()
            .find(|(_, word)| word.is_some_and(|word| !is_a_word(word)));
        let (key, message) = match word {
            Some((key, _)) => (
                key,
                "only letters, digits, `_`, `.` and `-` are allowed here",
            ),
            None if self
                .host
                .as_deref()
                .is_some_and(|host| Api::at(host).is_err()) =>
            {
                ("host", "write tcp://HOST:PORT or unix:///PATH")
            }
            None if self.signal.is_some() && self.command.is_some() => {
                ("command", "`signal` and `command` exclude each other")
            }
            None => return None,
        };
        Some(InvalidTarget::key(key, message))
    }

    fn rights(&self) -> Rights {
        Rights {
            processes: Processes::Untouched,
            connects_to: self.host().strip_prefix("unix://").map(PathBuf::from),
            reads: None,
            writes: Writes::Nothing,
        }
    }

    fn target(&self) -> Arc<dyn Target> {
        Arc::new(self.clone())
    }

    fn deadline(&self) -> Duration {
        within(self.timeout.as_ref())
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

    fn api(&self) -> Result<Api, DeployCause> {
        Api::at(self.host()).map_err(|detail| DeployCause::unreachable(&detail))
    }

    async fn query(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> Result<(StatusCode, Value), DeployCause> {
        let answer = self.api()?.query(method, path, body).await;
        answer.map_err(|detail| DeployCause::unreachable(&format!("its API: {detail}")))
    }

    /// The error for an unsuccessful reply.
    fn refusal(what: &str, status: StatusCode, body: &Value) -> DeployCause {
        let reason = body["message"].as_str().unwrap_or_default();
        DeployCause::unreachable(&format!("{what}: {status} {reason}"))
    }

    /// Whether the API is unfiltered, or may be.
    async fn is_raw(&self) -> Result<bool, DeployCause> {
        let filter = self.api()?.filter().await;
        let filter =
            filter.map_err(|detail| DeployCause::unreachable(&format!("its API: {detail}")))?;
        Ok(filter != Filter::Filtered)
    }

    async fn run(&self, command: &[String]) -> Result<(), DeployCause> {
        let path = format!("/containers/{}/exec", self.container);
        let wanted = json!({"AttachStdout": true, "AttachStderr": true, "Cmd": command});
        let (status, made) = self.query("POST", &path, Some(wanted)).await?;
        let Some(id) = made["Id"]
            .as_str()
            .filter(|id| id.chars().all(|digit| digit.is_ascii_alphanumeric()))
        else {
            return Err(Self::refusal(
                "a program cannot be run in it",
                status,
                &made,
            ));
        };
        let start = json!({"Detach": false, "Tty": false});
        let path = format!("/exec/{id}/start");
        let ended = self.api()?.run(&path, start, self.deadline()).await;
        let (status, reply) = ended.map_err(|error| {
            DeployCause::unreachable(&format!("the program in it: {error}; see `timeout`"))
        })?;
        if !status.is_success() {
            return Err(Self::refusal(
                "the program cannot be started",
                status,
                &reply,
            ));
        }
        let (_, ended) = self.query("GET", &format!("/exec/{id}/json"), None).await?;
        match ended["ExitCode"].as_i64() {
            Some(0) => Ok(()),
            code => Err(DeployCause::Program(format!(
                "`{}` ended with {}",
                command.first().map_or("", String::as_str),
                code.map_or("no code".to_owned(), |code| code.to_string())
            ))),
        }
    }
}

#[async_trait]
impl Target for Settings {
    fn name(&self) -> String {
        format!("docker:{}", self.container)
    }

    async fn check(&self, _: &Delivery) -> Result<(), DeployCause> {
        if self.accept_raw_socket != Some(true) && self.is_raw().await? {
            return Err(DeployCause::Unsafe(
                "this API is unfiltered, and a process that may use it is root on the host"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    async fn apply(&self, delivery: &Delivery) -> Result<(), DeployCause> {
        self.check(delivery).await?;
        if let Some(command) = &self.command {
            return self.run(command).await;
        }
        let signal = self.signal.as_deref().unwrap_or("HUP");
        let path = format!("/containers/{}/kill?signal={signal}", self.container);
        let (status, reply) = self.query("POST", &path, None).await?;
        match status.is_success() {
            true => Ok(()),
            false => Err(Self::refusal("it cannot be signalled", status, &reply)),
        }
    }
}

/// Whether `text` can be the name or identifier of a container, or the name of a signal,
/// and is safe as a part of a path.
fn is_a_word(text: &str) -> bool {
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
