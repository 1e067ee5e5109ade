//! A container that is told through Docker's API: a signal to its first process,
//! or a program run inside of it. Whoever may use the whole API is root on the
//! host, so that a socket that is not filtered is refused unless its owner
//! accepts it.

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode, Uri};
use serde_json::{Value, json};

use super::http::Server;
use super::{Delivery, DeployError, Target};
use crate::text::printable;

/// Where the API is, when nothing else is said.
pub const SOCKET: &str = "unix:///var/run/docker.sock";
const KIND: &str = "docker";

/// What is done to the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Errand {
    /// Sends this signal.
    Signal(String),
    /// Runs this program with its arguments inside.
    Run(Vec<String>),
}

/// A container.
#[derive(Debug)]
pub struct Docker {
    name: String,
    container: String,
    errand: Errand,
    server: Result<Server, String>,
    raw_is_accepted: bool,
}

impl Docker {
    /// `container`, by its name or identifier, at the API of `host`.
    #[must_use]
    pub fn new(container: String, errand: Errand, host: &str, raw_is_accepted: bool) -> Self {
        Self {
            name: format!("{KIND}:{container}"),
            container,
            errand,
            server: server(host),
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
        let server = self.server.as_ref().map_err(|detail| self.failed(detail))?;
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", KIND)
            .header("content-type", "application/json")
            .body(Full::from(Bytes::from(body)))
            .map_err(|error| self.failed(&error.to_string()))?;
        // What a program says goes on for as long as it likes; all else is short.
        let answer = server.send_cutting(request).await;
        let (status, body, _) =
            answer.map_err(|detail| self.failed(&format!("its API: {detail}")))?;
        Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
    }

    /// An answer that is no success, in words.
    fn refusal(&self, what: &str, status: StatusCode, body: &Value) -> DeployError {
        let said = body["message"].as_str().unwrap_or_default();
        self.failed(&format!("{what}: {status} {said}"))
    }

    /// Whether the API would make containers, which is to say do anything at all. A
    /// container without an image is refused, whoever asks.
    async fn is_raw(&self) -> Result<bool, DeployError> {
        let (status, _) = self
            .ask("POST", "/containers/create", Some(json!({})))
            .await?;
        Ok(!matches!(status.as_u16(), 401 | 403 | 404 | 405 | 501))
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
        let (status, said) = self
            .ask("POST", &format!("/exec/{id}/start"), Some(start))
            .await?;
        if !status.is_success() {
            return Err(self.refusal("the program cannot be started", status, &said));
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
                detail: "whoever may use this socket is root on the host: nothing filters it"
                    .to_owned(),
            });
        }
        Ok(())
    }

    async fn apply(&self, delivery: &Delivery) -> Result<(), DeployError> {
        self.check(delivery).await?;
        let signal = match &self.errand {
            Errand::Run(command) => return self.run(command).await,
            Errand::Signal(signal) => signal,
        };
        let path = format!("/containers/{}/kill?signal={signal}", self.container);
        let (status, said) = self.ask("POST", &path, None).await?;
        match status.is_success() {
            true => Ok(()),
            false => Err(self.refusal("it cannot be signalled", status, &said)),
        }
    }
}

/// Whether `text` can be a container's name or identifier, or a signal's: it
/// becomes part of a path.
#[must_use]
pub fn is_a_word(text: &str) -> bool {
    let known = |letter: char| letter.is_ascii_alphanumeric() || "_.-".contains(letter);
    !text.is_empty() && !text.starts_with('.') && text.chars().all(known)
}

/// Reads what DOCKER_HOST may hold.
fn server(host: &str) -> Result<Server, String> {
    if let Some(path) = host.strip_prefix("unix://") {
        return Ok(Server::Unix(path.into()));
    }
    let url = host.replacen("tcp://", "http://", 1);
    let uri: Uri = url
        .parse()
        .map_err(|_| format!("`{}` is no address of Docker's API", printable(host)))?;
    Server::of(&uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_where_the_api_is() {
        assert_eq!(
            server(SOCKET),
            Ok(Server::Unix("/var/run/docker.sock".into()))
        );
        assert_eq!(
            server("tcp://proxy:2375"),
            Ok(Server::Tcp("proxy:2375".into()))
        );
        assert!(server("ssh://host").is_err());
    }

    #[test]
    fn what_becomes_part_of_a_path_is_a_word() {
        for word in ["web", "my_web-1.x", "HUP", "4f1e"] {
            assert!(is_a_word(word), "{word}");
        }
        for other in ["", "..", ".x", "a/b", "a?b", "a b", "a%2f"] {
            assert!(!is_a_word(other), "{other}");
        }
    }
}
