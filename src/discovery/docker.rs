//! Docker's API as [`super::Follower`] needs it: three questions, each allowed by a
//! proxy that allows nothing else. What answers is not trusted: answers are
//! bounded, what is read of a stream is one short line at a time, and a line that
//! never ends is an error.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use hyper::StatusCode;
use serde::Deserialize;
use thiserror::Error;

use super::labels::{Container, read_environment, read_list};
use crate::deploy::docker::{Answer, Api, Filter};
use crate::text::printable_within;

/// Of a list: 2,500 containers of 3 kB. It is held twice while it is read.
const LONGEST_LIST: usize = 8 << 20;
const LONGEST_CONTAINER: usize = 4 << 20;
/// Of one event. Docker repeats a container's labels in each.
const LONGEST_LINE: usize = 256 * 1024;
/// Within which a line that has begun ends.
const LINE_WITHIN: Duration = Duration::from_secs(10);
const LIST: &str = "/containers/json";
/// `{"type":["container"],"event":["start","die","destroy","rename"]}`
const EVENTS: &str = "/events?filters=%7B%22type%22%3A%5B%22container%22%5D%2C%22event%22%3A%5B%22start%22%2C%22die%22%2C%22destroy%22%2C%22rename%22%5D%7D";
/// The same here: a proxy may leave filters out.
const FOLLOWED: [&str; 4] = ["start", "die", "destroy", "rename"];

/// Why nothing is known of the containers.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)] // each message is its own documentation
pub(crate) enum Trouble {
    #[error("Docker's API at {host} does not answer: {detail}")]
    Unreachable { host: String, detail: String },
    #[error("Docker's API at {host} refuses {path}: {status}")]
    Refused {
        host: String,
        path: &'static str,
        status: StatusCode,
    },
    #[error("Docker's API at {host} says what cannot be read: {detail}")]
    Garbled { host: String, detail: String },
    #[error("Docker's API at {host} is not filtered: whoever may use it is root on the host")]
    Unfiltered { host: String },
}

impl Trouble {
    /// What the owner can do.
    #[must_use]
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::Unreachable { .. } => {
                "is the proxy of [docker] host running, and in a network of this container?".into()
            }
            Self::Refused { path, .. } => {
                format!("let the proxy allow GET {path}, with and without /v1.NN before it")
            }
            Self::Garbled { .. } => "is that Docker's API, at [docker] host?".into(),
            Self::Unfiltered { .. } => {
                "put a proxy before it that allows GET /containers/json and /events alone, as in deploy/compose.labels.yaml, or set accept_raw_socket = true".into()
            }
        }
    }
}

/// What is asked of Docker.
#[async_trait]
pub(crate) trait Daemon: Send + Sync {
    /// That no harm can be done through it; returns at once where that is accepted.
    async fn is_safe(&self) -> Result<(), Trouble>;

    /// All containers that run.
    async fn list(&self) -> Result<Vec<Container>, Trouble>;

    /// acme-companion's variables of one; `None` when it is gone by now.
    ///
    /// # Errors
    /// [`Trouble::Refused`] where the proxy does not allow it.
    async fn environment(&self, id: &str) -> Result<Option<BTreeMap<String, String>>, Trouble>;

    /// What happens from here on.
    async fn events(&self) -> Result<Box<dyn Events>, Trouble>;
}

/// What happens to containers.
#[async_trait]
pub(crate) trait Events: Send {
    /// Returns when something has happened, whatever that is; false at the end.
    async fn next(&mut self) -> Result<bool, Trouble>;
}

/// Docker by HTTP.
#[derive(Debug)]
pub(crate) struct Docker {
    host: String,
    api: Api,
    raw_is_accepted: bool,
}

impl Docker {
    /// At `host`, as [`Api::at`] reads it.
    ///
    /// # Errors
    /// Why that is no address.
    pub(crate) fn new(host: &str, raw_is_accepted: bool) -> Result<Self, String> {
        Ok(Self {
            api: Api::at(host)?,
            host: host.to_owned(),
            raw_is_accepted,
        })
    }

    fn unreachable(&self, detail: &str) -> Trouble {
        Trouble::Unreachable {
            host: self.host.clone(),
            detail: shown(detail),
        }
    }

    fn garbled(&self, detail: &str) -> Trouble {
        garbled(&self.host, detail)
    }

    /// What is no success is a refusal, or a proxy without Docker behind it.
    fn fine(&self, path: &'static str, status: StatusCode) -> Result<(), Trouble> {
        if status.is_success() {
            return Ok(());
        }
        if status.is_server_error() {
            return Err(self.unreachable(&format!("{path}: {status}")));
        }
        Err(Trouble::Refused {
            host: self.host.clone(),
            path,
            status,
        })
    }
}

fn shown(detail: &str) -> String {
    printable_within(detail, 200)
}

fn garbled(host: &str, detail: &str) -> Trouble {
    Trouble::Garbled {
        host: host.to_owned(),
        detail: shown(detail),
    }
}

#[async_trait]
impl Daemon for Docker {
    async fn is_safe(&self) -> Result<(), Trouble> {
        if self.raw_is_accepted {
            return Ok(());
        }
        let filter = self.api.filter().await;
        match filter.map_err(|detail| self.unreachable(&detail))? {
            Filter::Filtered => Ok(()),
            Filter::Unfiltered => Err(Trouble::Unfiltered {
                host: self.host.clone(),
            }),
            Filter::Unknown(status) => Err(self.unreachable(&status.to_string())),
        }
    }

    async fn list(&self) -> Result<Vec<Container>, Trouble> {
        let answer = self.api.get(LIST, LONGEST_LIST).await;
        let (status, body) = answer.map_err(|detail| self.unreachable(&detail))?;
        self.fine(LIST, status)?;
        read_list(&body).map_err(|detail| self.garbled(&detail))
    }

    async fn environment(&self, id: &str) -> Result<Option<BTreeMap<String, String>>, Trouble> {
        const INSPECT: &str = "/containers/ID/json";
        let path = format!("/containers/{id}/json");
        let answer = self.api.get(&path, LONGEST_CONTAINER).await;
        let (status, body) = answer.map_err(|detail| self.unreachable(&detail))?;
        // Docker says so of a container that is gone, in JSON.
        if status == StatusCode::NOT_FOUND && body.starts_with(b"{") {
            return Ok(None);
        }
        self.fine(INSPECT, status)?;
        let variables = read_environment(&body);
        variables.map(Some).map_err(|detail| self.garbled(&detail))
    }

    async fn events(&self) -> Result<Box<dyn Events>, Trouble> {
        let answer = self.api.open(EVENTS).await;
        let (status, answer) = answer.map_err(|detail| self.unreachable(&detail))?;
        self.fine("/events", status)?;
        Ok(Box::new(Lines {
            host: self.host.clone(),
            answer,
            lines: Split::default(),
        }))
    }
}

struct Lines {
    host: String,
    answer: Answer,
    lines: Split,
}

#[async_trait]
impl Events for Lines {
    async fn next(&mut self) -> Result<bool, Trouble> {
        loop {
            while let Some(line) = self.lines.take() {
                match is_followed(&line) {
                    Ok(true) => return Ok(true),
                    Ok(false) => {}
                    Err(detail) => return Err(garbled(&self.host, &detail)),
                }
            }
            let has_begun = self.lines.begun();
            if has_begun > LONGEST_LINE {
                return Err(garbled(&self.host, "an event of endless length"));
            }
            let part = match has_begun {
                0 => self.answer.next().await,
                _ => match tokio::time::timeout(LINE_WITHIN, self.lines.rest(&mut self.answer))
                    .await
                {
                    Ok(part) => part,
                    Err(_) => return Err(garbled(&self.host, "an event that does not end")),
                },
            };
            match part {
                None => return Ok(false),
                Some(Ok(part)) => self.lines.put(&part),
                // A proxy may end what takes long, in whatever way.
                Some(Err(_)) => return Ok(false),
            }
        }
    }
}

/// A stream cut at its line ends.
#[derive(Debug, Default)]
pub(crate) struct Split {
    bytes: Vec<u8>,
    /// How many of them were taken: what is left moves once a part, not once a line.
    taken: usize,
}

impl Split {
    pub(crate) fn put(&mut self, part: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend_from_slice(part);
    }

    /// How much there is of a line that has not ended.
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

    /// What comes, up to the end of the line that has begun or its greatest length.
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

/// Whether `line` is an event after which the list may be another.
pub(crate) fn is_followed(line: &[u8]) -> Result<bool, String> {
    if line.trim_ascii().is_empty() {
        return Ok(false);
    }
    let event: Event =
        serde_json::from_slice(line).map_err(|error| format!("no event: {error}"))?;
    Ok(event.kind == "container" && FOLLOWED.contains(&event.action.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_cut_at_its_line_ends_and_only_some_events_matter() {
        let mut lines = Split::default();
        lines.put(b"{\"a\":1}\n{\"b\"");
        assert_eq!(lines.take().as_deref(), Some(b"{\"a\":1}".as_slice()));
        assert_eq!((lines.take(), lines.begun()), (None, 4));
        lines.put(b":2}\n\n");
        assert_eq!(lines.take().as_deref(), Some(b"{\"b\":2}".as_slice()));
        assert_eq!(lines.take().as_deref(), Some(b"".as_slice()));
        assert_eq!((lines.take(), lines.begun()), (None, 0));
        // As many as one part may hold: none of them moves the rest.
        lines.put(&b"\n".repeat(1 << 20));
        assert_eq!(std::iter::from_fn(|| lines.take()).count(), 1 << 20);
        let of = |kind: &str, action: &str| {
            let event = serde_json::json!({"Type": kind, "Action": action, "Actor": {}});
            is_followed(event.to_string().as_bytes())
        };
        assert_eq!(of("container", "start"), Ok(true));
        assert_eq!(of("container", "exec_start: true"), Ok(false));
        assert_eq!(of("network", "destroy"), Ok(false));
        assert_eq!(is_followed(b" \r"), Ok(false));
        for wrong in [
            "{}",
            "[]",
            "nonsense",
            "{\"Type\": 1, \"Action\": \"start\"}",
        ] {
            assert!(is_followed(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_trouble_has_a_hint() {
        let host = "tcp://proxy:2375".to_owned();
        let troubles = [
            Trouble::Unreachable {
                host: host.clone(),
                detail: "connection refused".into(),
            },
            Trouble::Refused {
                host: host.clone(),
                path: LIST,
                status: StatusCode::FORBIDDEN,
            },
            Trouble::Garbled {
                host: host.clone(),
                detail: "no list".into(),
            },
            Trouble::Unfiltered { host },
        ];
        let told = troubles
            .iter()
            .map(|one| format!("{one}; hint: {}", one.hint()));
        insta::assert_snapshot!(told.collect::<Vec<_>>().join("\n"), @r"
        Docker's API at tcp://proxy:2375 does not answer: connection refused; hint: is the proxy of [docker] host running, and in a network of this container?
        Docker's API at tcp://proxy:2375 refuses /containers/json: 403 Forbidden; hint: let the proxy allow GET /containers/json, with and without /v1.NN before it
        Docker's API at tcp://proxy:2375 says what cannot be read: no list; hint: is that Docker's API, at [docker] host?
        Docker's API at tcp://proxy:2375 is not filtered: whoever may use it is root on the host; hint: put a proxy before it that allows GET /containers/json and /events alone, as in deploy/compose.labels.yaml, or set accept_raw_socket = true
        ");
    }
}
