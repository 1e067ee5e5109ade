//! A container that is told through Docker's API: a signal to its first process,
//! or a program run inside of it. Whoever may use the whole API is root on the
//! host, so that a socket that is not filtered is refused unless its owner
//! accepts it.

use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode, Uri};
use serde_json::{Value, json};

pub use super::http::Answer;
use super::http::Server;
use super::{Delivery, DeployError, Target};
use crate::text::printable;

/// Where the API is, when nothing else is said.
pub const SOCKET: &str = "unix:///var/run/docker.sock";
const KIND: &str = "docker";

/// The port of Docker's API, where its address names none.
const PORT: u16 = 2375;

/// Docker's API at one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Api(Server);

/// Who stands between us and the whole API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Something that refuses what we have no use for.
    Some,
    /// Nobody.
    Nobody,
    /// That is not to be told: this was the answer.
    Unknown(StatusCode),
}

impl Api {
    /// The API at what DOCKER_HOST may hold: `unix://PATH` or `tcp://HOST:PORT`.
    ///
    /// # Errors
    /// Why it is no such address.
    pub fn at(host: &str) -> Result<Self, String> {
        let no_address = || format!("`{}` is no address of Docker's API", printable(host));
        if let Some(path) = host.strip_prefix("unix://") {
            return match path.starts_with('/') {
                true => Ok(Self(Server::Unix(path.into()))),
                false => Err(no_address()),
            };
        }
        let url = host.replacen("tcp://", "http://", 1);
        let uri: Uri = url.parse().map_err(|_| no_address())?;
        match (uri.host(), uri.port()) {
            (Some(name), None) if host.starts_with("tcp://") => {
                Ok(Self(Server::Tcp(format!("{name}:{PORT}"))))
            }
            _ => Server::of(&uri).map(Self),
        }
    }

    /// The socket of this machine that it is, if it is one.
    #[must_use]
    pub fn socket(&self) -> Option<&Path> {
        match &self.0 {
            Server::Unix(path) => Some(path),
            Server::Tcp(_) | Server::Tls(..) => None,
        }
    }

    /// What is there at `path`, up to `longest` bytes, within 15 s.
    ///
    /// # Errors
    /// Nobody answers, or the answer is longer.
    pub async fn get(&self, path: &str, longest: usize) -> Result<(StatusCode, Bytes), String> {
        let request = request("GET", path, None)?;
        self.0.send_within(request, longest).await
    }

    /// An answer that goes on, whose head comes within 15 s.
    ///
    /// # Errors
    /// Nobody answers.
    pub async fn open(&self, path: &str) -> Result<(StatusCode, Answer), String> {
        self.0.open(request("GET", path, None)?).await
    }

    /// The beginning of what is said there is read as JSON: what a program says goes
    /// on for as long as it likes, and all else is short.
    async fn ask(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> Result<(StatusCode, Value), String> {
        let request = request(method, path, body)?;
        let (status, body, _) = self.0.send_cutting(request).await?;
        Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
    }

    /// Whether the API would make containers, which is to say do anything at all. A
    /// container without an image is refused, whoever asks.
    ///
    /// # Errors
    /// Nobody answers.
    pub async fn filter(&self) -> Result<Filter, String> {
        let (status, _) = self
            .ask("POST", "/containers/create", Some(json!({})))
            .await?;
        Ok(match status.as_u16() {
            401 | 403 | 404 | 405 | 501 => Filter::Some,
            500.. => Filter::Unknown(status),
            _ => Filter::Nobody,
        })
    }
}

fn request(method: &str, path: &str, body: Option<Value>) -> Result<Request<Full<Bytes>>, String> {
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", KIND)
        .header("content-type", "application/json")
        .body(Full::from(Bytes::from(body)))
        .map_err(|error| error.to_string())
}

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
    api: Result<Api, String>,
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

    /// An answer that is no success, in words.
    fn refusal(&self, what: &str, status: StatusCode, body: &Value) -> DeployError {
        let said = body["message"].as_str().unwrap_or_default();
        self.failed(&format!("{what}: {status} {said}"))
    }

    /// What cannot be told is not trusted.
    async fn is_raw(&self) -> Result<bool, DeployError> {
        let api = self.api.as_ref().map_err(|detail| self.failed(detail))?;
        let filter = api.filter().await;
        let filter = filter.map_err(|detail| self.failed(&format!("its API: {detail}")))?;
        Ok(filter != Filter::Some)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_where_the_api_is() {
        let unix = Api(Server::Unix("/var/run/docker.sock".into()));
        assert_eq!(Api::at(SOCKET), Ok(unix));
        for (host, place) in [
            ("tcp://proxy:2376", "proxy:2376"),
            ("tcp://proxy", "proxy:2375"),
            ("http://proxy", "proxy:80"),
        ] {
            assert_eq!(Api::at(host), Ok(Api(Server::Tcp(place.into()))), "{host}");
        }
        for other in [
            "ssh://host",
            "unix://docker.sock",
            "proxy:2375",
            "tcp://",
            "",
        ] {
            assert!(Api::at(other).is_err(), "{other}");
        }
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
