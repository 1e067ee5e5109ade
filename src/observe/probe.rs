//! The client of a running `certs run`'s health endpoints, for a container's health
//! check: the image contains no shell and no other client. It never sends anything
//! but GET.

use std::net::SocketAddr;
use std::time::Duration;

use http::{Request, StatusCode};
use http_body_util::Full;

use crate::net::dns::lookup::Resolver;
use crate::net::http::{HttpError, Longest, Origin};
use crate::net::sockets::reachable;

/// Less than an orchestrator's usual three seconds for a check.
const DEADLINE: Duration = Duration::from_secs(2);
/// Enough for a line per certificate that is not ready.
const LARGEST: Longest = Longest::Cut(64 * 1024);

/// Gets `path` from the admin listener at `address`: whether the status is 200, and the
/// beginning of the body.
///
/// # Errors
/// When no reply comes within two seconds, or the reply is not HTTP.
pub(crate) async fn query(address: SocketAddr, path: &str) -> Result<(bool, String), HttpError> {
    let host = reachable(address).to_string();
    let request = Request::get(path).header("host", &host);
    let request = request.body(Full::default())?;
    let listener = Origin::Tcp(host, Resolver::default());
    let (status, body) = listener.send(request, DEADLINE, LARGEST).await?;
    let body = String::from_utf8_lossy(&body).into_owned();
    Ok((status == StatusCode::OK, body))
}

#[cfg(test)]
mod tests {
    use super::super::admin::{self, HostNames};
    use super::*;
    use crate::net::listen::{self, Socket};

    #[tokio::test]
    async fn endpoints_are_reached_on_an_unspecified_address() {
        let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let hosts = HostNames::new(address, &[]);
        let router = admin::router(Default::default(), hosts);
        let serving = tokio::spawn(listen::serve(Socket::Tcp(listener), None, router));
        let alive = query(address, "/healthz").await.unwrap();
        assert_eq!(alive, (true, "ok\n".to_owned()));
        assert!(!query(address, "/absent").await.unwrap().0);
        serving.abort();
        assert!(serving.await.is_err());
        assert!(query(address, "/healthz").await.is_err());
    }
}
