//! Docker's API at one address. A process that may use the whole API is root on the
//! host, so that this module finds out whether a proxy filters it. It never changes a
//! container by itself.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, StatusCode, Uri};
use serde_json::{Value, json};

use crate::net::dns::lookup::Resolver;
use crate::net::http::{HttpError, Longest, Origin, ReplyBody};
use crate::text::origins;

/// The default address of the API.
pub(crate) const SOCKET: &str = "unix:///var/run/docker.sock";

/// The default port of the API.
const PORT: u16 = 2375;
const WITHIN: Duration = Duration::from_secs(15);
/// More than any reply that is not the output of a program.
const LARGEST: Longest = Longest::Cut(1 << 20);

/// Docker's API at one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Api(Origin);

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
    /// `tcp://HOST:PORT`, whose HOST `resolver` looks up.
    pub(crate) fn at(host: &str, resolver: &Resolver) -> Result<Self, String> {
        let invalid = || format!("invalid address of Docker's API `{}`", origins(host));
        if let Some(path) = host.strip_prefix("unix://") {
            return match path.starts_with('/') {
                true => Ok(Self(Origin::Unix(path.into()))),
                false => Err(invalid()),
            };
        }
        let url = host.replacen("tcp://", "http://", 1);
        let uri: Uri = url.parse().map_err(|_| invalid())?;
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        if authority.contains('@') {
            return Err("Docker's API takes no user and no password".to_owned());
        }
        match (uri.host(), uri.port()) {
            (Some(name), None) if host.starts_with("tcp://") => {
                let address = format!("{name}:{PORT}");
                Ok(Self(Origin::Tcp(address, resolver.clone())))
            }
            _ => Origin::of(&uri, resolver).map(Self),
        }
    }

    /// The API at a Unix socket.
    pub(crate) fn at_socket(socket: &Path) -> Self {
        Self(Origin::Unix(socket.into()))
    }

    /// The Unix socket, if the API is at one.
    #[must_use]
    pub(crate) fn socket(&self) -> Option<&Path> {
        match &self.0 {
            Origin::Unix(path) => Some(path),
            Origin::Data(_) | Origin::Tcp(..) | Origin::Tls(..) => None,
        }
    }

    /// The reply at `path` within 15 s; one of more than `longest` bytes is an error.
    pub(crate) async fn get(
        &self,
        path: &str,
        longest: usize,
    ) -> Result<(StatusCode, Bytes), HttpError> {
        let request = request("GET", path, None)?;
        self.0.send(request, WITHIN, Longest::Whole(longest)).await
    }

    /// An endless reply; its head must arrive within 15 s.
    pub(crate) async fn open(&self, path: &str) -> Result<Response<ReplyBody>, HttpError> {
        self.0.open(request("GET", path, None)?, WITHIN).await
    }

    /// The beginning of the reply, read as JSON: the output of a program may be endless,
    /// and every other reply is short.
    pub(super) async fn query(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> Result<(StatusCode, Value), HttpError> {
        self.send(request(method, path, body)?, WITHIN).await
    }

    /// Posts `body` to start a program, whose reply ends with it.
    pub(super) async fn run(
        &self,
        path: &str,
        body: Value,
        within: Duration,
    ) -> Result<(StatusCode, Value), HttpError> {
        self.send(request("POST", path, Some(body))?, within).await
    }

    async fn send(
        &self,
        request: Request<Full<Bytes>>,
        within: Duration,
    ) -> Result<(StatusCode, Value), HttpError> {
        let (status, body) = self.0.send(request, within, LARGEST).await?;
        Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
    }

    /// Where [`Api::probe`] posts.
    pub(crate) const PROBE: &str = "/containers/create";

    /// The status of a request for a new container. It names no image, so that Docker itself
    /// always refuses it.
    pub(crate) async fn probe(&self) -> Result<StatusCode, HttpError> {
        let probed = self.query("POST", Self::PROBE, Some(json!({}))).await?;
        Ok(probed.0)
    }

    /// Whether the API would create containers, which gives full control of the host.
    pub(crate) async fn filter(&self) -> Result<Filter, HttpError> {
        let status = self.probe().await?;
        Ok(match status.as_u16() {
            401 | 403 | 404 | 405 | 501 => Filter::Filtered,
            500.. => Filter::Unknown(status),
            _ => Filter::Unfiltered,
        })
    }
}

fn request(
    method: &str,
    path: &str,
    body: Option<Value>,
) -> Result<Request<Full<Bytes>>, http::Error> {
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "docker")
        .header("content-type", "application/json")
        .body(Full::from(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_address_is_parsed() {
        let resolver = Resolver::default();
        let at = |host| Api::at(host, &resolver);
        let unix = Api(Origin::Unix("/var/run/docker.sock".into()));
        assert_eq!(at(SOCKET), Ok(unix));
        for (host, place) in [
            ("tcp://proxy:2376", "proxy:2376"),
            ("tcp://proxy", "proxy:2375"),
            ("http://proxy", "proxy:80"),
        ] {
            let wanted = Api(Origin::Tcp(place.into(), resolver.clone()));
            assert_eq!(at(host), Ok(wanted), "{host}");
        }
        for other in [
            "ssh://host",
            "unix://docker.sock",
            "proxy:2375",
            "tcp://",
            "",
        ] {
            assert!(at(other).is_err(), "{other}");
        }
    }
}
