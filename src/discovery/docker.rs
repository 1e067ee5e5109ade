//! Docker's API as [`super::Discovery`] needs it: three requests, which a filtering proxy
//! can allow one by one. Responses are not trusted: their sizes are bounded, a stream is
//! read one short line at a time, and an endless line is an error.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use hyper::StatusCode;
use serde::Deserialize;
use thiserror::Error;

use super::labels::{Container, read_environment, read_list};
use crate::deploy::docker::{Answer, Api, Filter};
use crate::text::printable_within;

/// The limit of a list: 2,500 containers of 3 kB. Reading takes twice this memory.
const LONGEST_LIST: usize = 8 << 20;
const LONGEST_CONTAINER: usize = 4 << 20;
/// The limit of one event. Docker repeats a container's labels in each.
const LONGEST_LINE: usize = 256 * 1024;
/// The deadline for the end of a line that has begun.
const LINE_WITHIN: Duration = Duration::from_secs(10);
const LIST: &str = "/containers/json";
/// `{"type":["container"],"event":["start","die","destroy","rename"]}`
const EVENTS: &str = "/events?filters=%7B%22type%22%3A%5B%22container%22%5D%2C%22event%22%3A%5B%22start%22%2C%22die%22%2C%22destroy%22%2C%22rename%22%5D%7D";
/// The same actions again, because a proxy may drop the filters.
const RELEVANT: [&str; 4] = ["start", "die", "destroy", "rename"];

/// Why the containers are unknown.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)] // each message is its own documentation
pub(crate) enum DockerError {
    #[error("Docker's API at {host} is unreachable: {detail}")]
    Unreachable { host: String, detail: String },
    #[error("Docker's API at {host} refused {path}: {status}")]
    Refused {
        host: String,
        path: &'static str,
        status: StatusCode,
    },
    #[error("invalid response from Docker's API at {host}: {detail}")]
    Invalid { host: String, detail: String },
    #[error("Docker's API at {host} is not filtered: it gives root on the host")]
    Unfiltered { host: String },
}

impl DockerError {
    /// The operator's next action.
    #[must_use]
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::Unreachable { .. } => {
                "check that the proxy of [docker] host runs and shares a network with this container".into()
            }
            Self::Refused { path, .. } => {
                format!("let the proxy allow GET {path}, with and without /v1.NN before it")
            }
            Self::Invalid { .. } => "check that [docker] host is the address of Docker's API".into(),
            Self::Unfiltered { .. } => {
                "put a proxy before it that allows only GET /containers/json and /events, as in deploy/compose.labels.yaml, or set accept_raw_socket = true".into()
            }
        }
    }
}

/// Docker's API.
#[async_trait]
pub(crate) trait Daemon: Send + Sync {
    /// Checks that a proxy filters the API, unless an unfiltered API is accepted.
    async fn is_safe(&self) -> Result<(), DockerError>;

    /// All running containers.
    async fn list(&self) -> Result<Vec<Container>, DockerError>;

    /// A container's acme-companion variables; `None` if the container is gone.
    ///
    /// # Errors
    /// [`DockerError::Refused`] if the proxy does not allow it.
    async fn environment(&self, id: &str) -> Result<Option<BTreeMap<String, String>>, DockerError>;

    /// The stream of events from now on.
    async fn events(&self) -> Result<Box<dyn Events>, DockerError>;
}

/// The events of containers.
#[async_trait]
pub(crate) trait Events: Send {
    /// Waits for a relevant event; false at the end of the stream.
    async fn next(&mut self) -> Result<bool, DockerError>;
}

/// Docker's API over HTTP.
#[derive(Debug)]
pub(crate) struct DockerApi {
    host: String,
    api: Api,
    raw_is_accepted: bool,
}

impl DockerApi {
    /// At `host`, as [`Api::at`] reads it.
    ///
    /// # Errors
    /// Why the address is invalid.
    pub(crate) fn new(host: &str, raw_is_accepted: bool) -> Result<Self, String> {
        Ok(Self {
            api: Api::at(host)?,
            host: host.to_owned(),
            raw_is_accepted,
        })
    }

    fn unreachable(&self, detail: &str) -> DockerError {
        DockerError::Unreachable {
            host: self.host.clone(),
            detail: shown(detail),
        }
    }

    fn invalid(&self, detail: &str) -> DockerError {
        invalid(&self.host, detail)
    }

    /// An error unless `status` is a success: 5xx means a proxy without Docker behind it.
    fn success(&self, path: &'static str, status: StatusCode) -> Result<(), DockerError> {
        if status.is_success() {
            return Ok(());
        }
        if status.is_server_error() {
            return Err(self.unreachable(&format!("{path}: {status}")));
        }
        Err(DockerError::Refused {
            host: self.host.clone(),
            path,
            status,
        })
    }
}

fn shown(detail: &str) -> String {
    printable_within(detail, 200)
}

fn invalid(host: &str, detail: &str) -> DockerError {
    DockerError::Invalid {
        host: host.to_owned(),
        detail: shown(detail),
    }
}

#[async_trait]
impl Daemon for DockerApi {
    async fn is_safe(&self) -> Result<(), DockerError> {
        if self.raw_is_accepted {
            return Ok(());
        }
        let filter = self.api.filter().await;
        match filter.map_err(|detail| self.unreachable(&detail))? {
            Filter::Filtered => Ok(()),
            Filter::Unfiltered => Err(DockerError::Unfiltered {
                host: self.host.clone(),
            }),
            Filter::Unknown(status) => Err(self.unreachable(&status.to_string())),
        }
    }

    async fn list(&self) -> Result<Vec<Container>, DockerError> {
        let answer = self.api.get(LIST, LONGEST_LIST).await;
        let (status, body) = answer.map_err(|detail| self.unreachable(&detail))?;
        self.success(LIST, status)?;
        read_list(&body).map_err(|detail| self.invalid(&detail))
    }

    async fn environment(&self, id: &str) -> Result<Option<BTreeMap<String, String>>, DockerError> {
        const INSPECT: &str = "/containers/ID/json";
        let path = format!("/containers/{id}/json");
        let answer = self.api.get(&path, LONGEST_CONTAINER).await;
        let (status, body) = answer.map_err(|detail| self.unreachable(&detail))?;
        // Docker's own 404, for a container that is gone, has a JSON body.
        if status == StatusCode::NOT_FOUND && body.starts_with(b"{") {
            return Ok(None);
        }
        self.success(INSPECT, status)?;
        let variables = read_environment(&body);
        variables.map(Some).map_err(|detail| self.invalid(&detail))
    }

    async fn events(&self) -> Result<Box<dyn Events>, DockerError> {
        let answer = self.api.open(EVENTS).await;
        let (status, answer) = answer.map_err(|detail| self.unreachable(&detail))?;
        self.success("/events", status)?;
        Ok(Box::new(Lines {
            host: self.host.clone(),
            answer,
            lines: LineBuffer::default(),
        }))
    }
}

struct Lines {
    host: String,
    answer: Answer,
    lines: LineBuffer,
}

#[async_trait]
impl Events for Lines {
    async fn next(&mut self) -> Result<bool, DockerError> {
        loop {
            while let Some(line) = self.lines.take() {
                match is_relevant(&line) {
                    Ok(true) => return Ok(true),
                    Ok(false) => {}
                    Err(detail) => return Err(invalid(&self.host, &detail)),
                }
            }
            let begun = self.lines.begun();
            if begun > LONGEST_LINE {
                return Err(invalid(&self.host, "an event is too long"));
            }
            let part = match begun {
                0 => self.answer.next().await,
                _ => match tokio::time::timeout(LINE_WITHIN, self.lines.rest(&mut self.answer))
                    .await
                {
                    Ok(part) => part,
                    Err(_) => return Err(invalid(&self.host, "an event does not end")),
                },
            };
            match part {
                None => return Ok(false),
                Some(Ok(part)) => self.lines.put(&part),
                // A proxy may end a long response in any way.
                Some(Err(_)) => return Ok(false),
            }
        }
    }
}

/// Splits a stream into lines.
#[derive(Debug, Default)]
pub(crate) struct LineBuffer {
    bytes: Vec<u8>,
    /// How many of them were taken: the rest moves once a part, not once a line.
    taken: usize,
}

impl LineBuffer {
    pub(crate) fn put(&mut self, part: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend_from_slice(part);
    }

    /// The length of the unfinished line.
    pub(crate) fn begun(&self) -> usize {
        self.bytes.len() - self.taken
    }

    /// The next whole line.
    pub(crate) fn take(&mut self) -> Option<Vec<u8>> {
        let left = &self.bytes[self.taken..];
        let end = left.iter().position(|byte| *byte == b'\n')?;
        let line = left[..end].to_vec();
        self.taken += end + 1;
        Some(line)
    }

    /// Reads until the unfinished line ends or is too long.
    async fn rest(&mut self, answer: &mut Answer) -> Option<Result<bytes::Bytes, String>> {
        loop {
            let part = answer.next().await?;
            match part {
                Ok(part) if !part.contains(&b'\n') && self.begun() <= LONGEST_LINE => {
                    self.put(&part)
                }
                other => return Some(other),
            }
        }
    }
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "Type")]
    kind: String,
    #[serde(rename = "Action")]
    action: String,
}

/// Whether `line` is an event that may change the list.
pub(crate) fn is_relevant(line: &[u8]) -> Result<bool, String> {
    if line.trim_ascii().is_empty() {
        return Ok(false);
    }
    let event: Event =
        serde_json::from_slice(line).map_err(|error| format!("invalid event: {error}"))?;
    Ok(event.kind == "container" && RELEVANT.contains(&event.action.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_split_at_line_ends_and_filtered() {
        let mut lines = LineBuffer::default();
        lines.put(b"{\"a\":1}\n{\"b\"");
        assert_eq!(lines.take().as_deref(), Some(b"{\"a\":1}".as_slice()));
        assert_eq!((lines.take(), lines.begun()), (None, 4));
        lines.put(b":2}\n\n");
        assert_eq!(lines.take().as_deref(), Some(b"{\"b\":2}".as_slice()));
        assert_eq!(lines.take().as_deref(), Some(b"".as_slice()));
        assert_eq!((lines.take(), lines.begun()), (None, 0));
        // The most lines in one part: taking one must not move the rest.
        lines.put(&b"\n".repeat(1 << 20));
        assert_eq!(std::iter::from_fn(|| lines.take()).count(), 1 << 20);
        let of = |kind: &str, action: &str| {
            let event = serde_json::json!({"Type": kind, "Action": action, "Actor": {}});
            is_relevant(event.to_string().as_bytes())
        };
        assert_eq!(of("container", "start"), Ok(true));
        assert_eq!(of("container", "exec_start: true"), Ok(false));
        assert_eq!(of("network", "destroy"), Ok(false));
        assert_eq!(is_relevant(b" \r"), Ok(false));
        for wrong in [
            "{}",
            "[]",
            "nonsense",
            "{\"Type\": 1, \"Action\": \"start\"}",
        ] {
            assert!(is_relevant(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn docker_errors_have_hints() {
        let host = "tcp://proxy:2375".to_owned();
        let errors = [
            DockerError::Unreachable {
                host: host.clone(),
                detail: "connection refused".into(),
            },
            DockerError::Refused {
                host: host.clone(),
                path: LIST,
                status: StatusCode::FORBIDDEN,
            },
            DockerError::Invalid {
                host: host.clone(),
                detail: "invalid list of containers".into(),
            },
            DockerError::Unfiltered { host },
        ];
        let shown = errors
            .iter()
            .map(|one| format!("{one}; hint: {}", one.hint()));
        insta::assert_snapshot!(shown.collect::<Vec<_>>().join("\n"), @r"
        Docker's API at tcp://proxy:2375 is unreachable: connection refused; hint: check that the proxy of [docker] host runs and shares a network with this container
        Docker's API at tcp://proxy:2375 refused /containers/json: 403 Forbidden; hint: let the proxy allow GET /containers/json, with and without /v1.NN before it
        invalid response from Docker's API at tcp://proxy:2375: invalid list of containers; hint: check that [docker] host is the address of Docker's API
        Docker's API at tcp://proxy:2375 is not filtered: it gives root on the host; hint: put a proxy before it that allows only GET /containers/json and /events, as in deploy/compose.labels.yaml, or set accept_raw_socket = true
        ");
    }
}
