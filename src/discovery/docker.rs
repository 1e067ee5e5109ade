//! Docker's API as [`super::Discovery`] needs it: three requests, which a filtering proxy
//! can allow one by one. Responses are not trusted: their sizes are bounded, a stream is
//! read one short line at a time, and an endless line is an error.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use hyper::StatusCode;
use serde::Deserialize;
use thiserror::Error;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};

use super::companion::read_environment;
use super::list::{Containers, ListReader};
use crate::deploy::docker::{Api, Filter};
use crate::net::dns::lookup::Resolver;
use crate::net::http::HttpError;
use crate::text::printable_within;

/// The deadline for a whole list.
const LIST_WITHIN: Duration = Duration::from_secs(15);
const LONGEST_CONTAINER: usize = 1 << 20;
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
    async fn list(&self) -> Result<Containers, DockerError>;

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
    pub(crate) fn new(
        host: &str,
        resolver: &Resolver,
        raw_is_accepted: bool,
    ) -> Result<Self, String> {
        Ok(Self {
            api: Api::at(host, resolver)?,
            host: host.to_owned(),
            raw_is_accepted,
        })
    }

    /// The same by way of the helper process's socket, if this process may not connect.
    pub(crate) fn through(mut self, relay: Option<&Path>) -> Self {
        if let Some(relay) = relay {
            self.api = Api::at_socket(relay);
        }
        self
    }

    fn unreachable(&self, detail: impl ToString) -> DockerError {
        DockerError::Unreachable {
            host: self.host.clone(),
            detail: shown(&detail.to_string()),
        }
    }

    /// An error unless `status` is a success: 5xx means a proxy without Docker behind it.
    fn success(&self, path: &'static str, status: StatusCode) -> Result<(), DockerError> {
        if status.is_success() {
            return Ok(());
        }
        if status.is_server_error() {
            return Err(self.unreachable(format!("{path}: {status}")));
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
        match filter.map_err(|error| self.unreachable(error))? {
            Filter::Filtered => Ok(()),
            Filter::Unfiltered => Err(DockerError::Unfiltered {
                host: self.host.clone(),
            }),
            Filter::Unknown(status) => Err(self.unreachable(status)),
        }
    }

    async fn list(&self) -> Result<Containers, DockerError> {
        let answer = self.api.open(LIST).await;
        let answer = answer.map_err(|error| self.unreachable(error))?;
        self.success(LIST, answer.status())?;
        let mut body = answer.into_body().reader();
        let read = async {
            let mut list = ListReader::default();
            loop {
                let bytes = body.fill_buf().await;
                let bytes = bytes.map_err(|error| self.unreachable(error))?;
                if bytes.is_empty() {
                    return list.end().map_err(|detail| invalid(&self.host, &detail));
                }
                let (read, length) = (list.read(bytes), bytes.len());
                read.map_err(|detail| invalid(&self.host, &detail))?;
                body.consume(length);
                // A long list must not keep the other tasks from their turns.
                tokio::task::yield_now().await;
            }
        };
        let read = tokio::time::timeout(LIST_WITHIN, read).await;
        read.unwrap_or_else(|_| Err(self.unreachable(HttpError::TimedOut(LIST_WITHIN))))
    }

    async fn environment(&self, id: &str) -> Result<Option<BTreeMap<String, String>>, DockerError> {
        const INSPECT: &str = "/containers/ID/json";
        let path = format!("/containers/{id}/json");
        let answer = self.api.get(&path, LONGEST_CONTAINER).await;
        let (status, body) = answer.map_err(|error| self.unreachable(error))?;
        // Docker's own 404, for a container that is gone, has a JSON body.
        if status == StatusCode::NOT_FOUND && body.starts_with(b"{") {
            return Ok(None);
        }
        self.success(INSPECT, status)?;
        let variables = read_environment(&body).map_err(|detail| invalid(&self.host, &detail));
        variables.map(Some)
    }

    async fn events(&self) -> Result<Box<dyn Events>, DockerError> {
        let answer = self.api.open(EVENTS).await;
        let answer = answer.map_err(|error| self.unreachable(error))?;
        self.success("/events", answer.status())?;
        Ok(Box::new(Lines::new(
            &self.host,
            answer.into_body().reader(),
        )))
    }
}

struct Lines<R> {
    host: String,
    answer: R,
    /// The line that has begun: a field, since waiting for its rest may be cancelled.
    line: Vec<u8>,
}

impl<R: AsyncBufRead + Send + Unpin> Lines<R> {
    fn new(host: &str, answer: R) -> Self {
        Self {
            host: host.to_owned(),
            answer,
            line: Vec::new(),
        }
    }

    /// Reads to the end of the line that has begun; false at the end of the stream.
    async fn rest(&mut self) -> io::Result<bool> {
        let room = (LONGEST_LINE + 1).saturating_sub(self.line.len());
        let mut answer = (&mut self.answer).take(u64::try_from(room).unwrap_or(u64::MAX));
        answer.read_until(b'\n', &mut self.line).await?;
        Ok(self.line.ends_with(b"\n") || self.line.len() > LONGEST_LINE)
    }
}

#[async_trait]
impl<R: AsyncBufRead + Send + Unpin> Events for Lines<R> {
    async fn next(&mut self) -> Result<bool, DockerError> {
        loop {
            // A proxy may end a long response in any way.
            if self.line.is_empty() && self.answer.fill_buf().await.map_or(true, <[u8]>::is_empty) {
                return Ok(false);
            }
            match tokio::time::timeout(LINE_WITHIN, self.rest()).await {
                Err(_) => return Err(invalid(&self.host, "an event does not end")),
                Ok(Err(_) | Ok(false)) => return Ok(false),
                Ok(Ok(true)) if self.line.len() > LONGEST_LINE => {
                    return Err(invalid(&self.host, "an event is too long"));
                }
                Ok(Ok(true)) => {}
            }
            let line = std::mem::take(&mut self.line);
            if is_relevant(&line).map_err(|detail| invalid(&self.host, &detail))? {
                return Ok(true);
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

    /// The results of all events in `stream`, which is read in parts of `part` bytes.
    async fn read(stream: &[u8], part: usize) -> Vec<Result<bool, DockerError>> {
        let reader = tokio::io::BufReader::with_capacity(part, stream);
        let mut lines = Lines::new("tcp://proxy:2375", reader);
        let mut events = Vec::new();
        while events.last().is_none_or(|last| *last == Ok(true)) {
            events.push(lines.next().await);
        }
        events
    }

    #[tokio::test]
    async fn events_are_split_at_line_ends_and_filtered() {
        let event = |kind: &str, action: &str| {
            let event = serde_json::json!({"Type": kind, "Action": action, "Actor": {}});
            format!("{event}\n")
        };
        let (start, other) = (event("container", "start"), event("network", "destroy"));
        let stream = format!("{start}{other}\n \r\n{start}{start}{}", &start[..9]);
        let three = [Ok(true), Ok(true), Ok(true), Ok(false)];
        for part in [1, 7, 1 << 20] {
            assert_eq!(read(stream.as_bytes(), part).await, three, "{part}");
        }
        let is_relevant = |event: &str| is_relevant(event.as_bytes());
        assert_eq!(is_relevant(&start), Ok(true));
        assert_eq!(
            is_relevant(&event("container", "exec_start: true")),
            Ok(false)
        );
        assert_eq!(is_relevant(&other), Ok(false));
        assert_eq!(is_relevant(" \r"), Ok(false));
        for wrong in [
            "{}",
            "[]",
            "nonsense",
            "{\"Type\": 1, \"Action\": \"start\"}",
        ] {
            assert!(is_relevant(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn endless_line_is_an_error() {
        let blank = b" ".repeat(LONGEST_LINE);
        let longest = [&blank[1..], b"\n"].concat();
        assert_eq!(read(&longest, 99).await, [Ok(false)]);
        for longer in [[&blank[..], b"\n"].concat(), b" ".repeat(1 << 20)] {
            let events = read(&longer, 99).await;
            let error = events[0].as_ref().unwrap_err().to_string();
            assert!(error.ends_with("an event is too long"), "{error}");
        }
        let (mut daemon, ours) = tokio::io::duplex(99);
        let mut lines = Lines::new("tcp://proxy:2375", tokio::io::BufReader::new(ours));
        let patience = 100 * LINE_WITHIN;
        let silent = tokio::time::timeout(patience, lines.next()).await;
        assert!(silent.is_err(), "no event has begun");
        tokio::io::AsyncWriteExt::write_all(&mut daemon, b"{")
            .await
            .unwrap();
        let error = lines.next().await.unwrap_err().to_string();
        assert!(error.ends_with("an event does not end"), "{error}");
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
