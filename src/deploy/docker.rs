//! Docker's API at one address. A process that may use the whole API is root on the
//! host, so that this one finds out whether anything filters it. It never changes a
//! container by itself.

use std::path::Path;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode, Uri};
use serde_json::{Value, json};

pub use super::http::Answer;
use super::http::Server;
use crate::text::printable;

/// Where the API is, when nothing else is said.
pub const SOCKET: &str = "unix:///var/run/docker.sock";

/// The port of Docker's API, where its address names none.
const PORT: u16 = 2375;

/// Docker's API at one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Api(Server);

/// What stands between us and the whole API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Something that refuses calls that we do not need.
    Some,
    /// Nothing.
    Nobody,
    /// Unknown: this was the answer.
    Unknown(StatusCode),
}

impl Api {
    /// The API at what DOCKER_HOST may hold: `unix://PATH` or `tcp://HOST:PORT`.
    ///
    /// # Errors
    /// Why the address is invalid.
    pub fn at(host: &str) -> Result<Self, String> {
        let no_address = || format!("`{}` is not an address of Docker's API", printable(host));
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

    /// The Unix socket, if the API is at one.
    #[must_use]
    pub fn socket(&self) -> Option<&Path> {
        match &self.0 {
            Server::Unix(path) => Some(path),
            Server::Tcp(_) | Server::Tls(..) => None,
        }
    }

    /// The answer at `path`, up to `longest` bytes, within 15 s.
    ///
    /// # Errors
    /// There is no answer, or a longer one.
    pub async fn get(&self, path: &str, longest: usize) -> Result<(StatusCode, Bytes), String> {
        let request = request("GET", path, None)?;
        self.0.send_within(request, longest).await
    }

    /// An endless answer, whose head comes within 15 s.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn open(&self, path: &str) -> Result<(StatusCode, Answer), String> {
        self.0.open(request("GET", path, None)?).await
    }

    /// The beginning of the answer, read as JSON: a program's output may be endless, and
    /// all else is short.
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

    /// Whether the API would create containers, and so do anything at all. A container
    /// without an image is always refused.
    ///
    /// # Errors
    /// There is no answer.
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
        .header("host", "docker")
        .header("content-type", "application/json")
        .body(Full::from(Bytes::from(body)))
        .map_err(|error| error.to_string())
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
}
