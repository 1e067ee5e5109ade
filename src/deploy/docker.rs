//! Docker's API at one address. A process that may use the whole API is root on the
//! host, so that this module finds out whether a proxy filters it. It never changes a
//! container by itself.

use std::path::Path;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode, Uri};
use serde_json::{Value, json};

pub(crate) use super::http::Answer;
use super::http::Server;
use crate::text::printable;

/// The default address of the API.
pub(crate) const SOCKET: &str = "unix:///var/run/docker.sock";

/// The default port of the API.
const PORT: u16 = 2375;

/// Docker's API at one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Api(Server);

/// Whether a proxy filters the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filter {
    /// A proxy refuses the calls that we do not need.
    Filtered,
    /// The whole API is open.
    Unfiltered,
    /// Unknown, with the status of the reply.
    Unknown(StatusCode),
}

impl Api {
    /// The API at an address in the form of DOCKER_HOST: `unix://PATH` or
    /// `tcp://HOST:PORT`.
    pub(crate) fn at(host: &str) -> Result<Self, String> {
        let invalid = || format!("invalid address of Docker's API `{}`", printable(host));
        if let Some(path) = host.strip_prefix("unix://") {
            return match path.starts_with('/') {
                true => Ok(Self(Server::Unix(path.into()))),
                false => Err(invalid()),
            };
        }
        let url = host.replacen("tcp://", "http://", 1);
        let uri: Uri = url.parse().map_err(|_| invalid())?;
        match (uri.host(), uri.port()) {
            (Some(name), None) if host.starts_with("tcp://") => {
                Ok(Self(Server::Tcp(format!("{name}:{PORT}"))))
            }
            _ => Server::of(&uri).map(Self),
        }
    }

    /// The Unix socket, if the API is at one.
    #[must_use]
    pub(crate) fn socket(&self) -> Option<&Path> {
        match &self.0 {
            Server::Unix(path) => Some(path),
            Server::Tcp(_) | Server::Tls(..) => None,
        }
    }

    /// The reply at `path`, up to `longest` bytes, within 15 s.
    pub(crate) async fn get(
        &self,
        path: &str,
        longest: usize,
    ) -> Result<(StatusCode, Bytes), String> {
        let request = request("GET", path, None)?;
        self.0.send_within(request, longest).await
    }

    /// An endless reply; its head must arrive within 15 s.
    pub(crate) async fn open(&self, path: &str) -> Result<(StatusCode, Answer), String> {
        self.0.open(request("GET", path, None)?).await
    }

    /// The beginning of the reply, read as JSON: the output of a program may be endless,
    /// and every other reply is short.
    pub(super) async fn ask(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> Result<(StatusCode, Value), String> {
        let request = request(method, path, body)?;
        let (status, body, _) = self.0.send_cutting(request).await?;
        Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
    }

    /// Whether the API would create containers, which gives full control of the host. The
    /// probe names no image, so that Docker itself always refuses it.
    pub(crate) async fn filter(&self) -> Result<Filter, String> {
        let (status, _) = self
            .ask("POST", "/containers/create", Some(json!({})))
            .await?;
        Ok(match status.as_u16() {
            401 | 403 | 404 | 405 | 501 => Filter::Filtered,
            500.. => Filter::Unknown(status),
            _ => Filter::Unfiltered,
        })
    }
}

fn request(method: &str, path: &str, body: Option<Value>) -> Result<Request<Full<Bytes>>, String> {
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "docker")
        .header("content-type", "application/json")
        .body(Full::from(Bytes::from(body)))
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_address_is_parsed() {
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
}
