//! The client of a running `certs run`'s health endpoints, for a container's health
//! check: the image contains no shell and no other client. It never sends anything
//! but GET.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::net::sockets::reachable;

/// Less than an orchestrator's usual three seconds for a check.
const DEADLINE: Duration = Duration::from_secs(2);
/// Enough for a line per certificate that is not ready.
const LARGEST: u64 = 64 * 1024;

/// The reply of an endpoint.
#[derive(Debug, PartialEq)]
pub(crate) struct HealthReply {
    /// Whether the status is 200.
    pub good: bool,
    /// The reply's body.
    pub body: String,
}

/// Gets `path` from the admin listener at `address`.
///
/// # Errors
/// When no reply comes within two seconds, or the reply is not HTTP.
pub(crate) async fn ask(address: SocketAddr, path: &str) -> io::Result<HealthReply> {
    let exchanged = exchange(reachable(address), path);
    let reply = tokio::time::timeout(DEADLINE, exchanged).await;
    let reply = reply.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    parse(&reply).ok_or_else(|| io::Error::other("the reply is not HTTP"))
}

async fn exchange(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut reply = Vec::new();
    stream.take(LARGEST).read_to_end(&mut reply).await?;
    Ok(String::from_utf8_lossy(&reply).into_owned())
}

fn parse(reply: &str) -> Option<HealthReply> {
    let (head, body) = reply.split_once("\r\n\r\n")?;
    let status = head.lines().next()?.strip_prefix("HTTP/1.")?;
    Some(HealthReply {
        good: status.split(' ').nth(1)? == "200",
        body: body.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn endpoints_are_reached_on_an_unspecified_address() {
        let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = super::super::admin::router(Default::default());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await });
        let alive = ask(address, "/healthz").await.unwrap();
        assert_eq!((alive.good, alive.body.as_str()), (true, "ok\n"));
        assert!(!ask(address, "/absent").await.unwrap().good);
        serving.abort();
        assert!(serving.await.is_err());
        assert!(ask(address, "/healthz").await.is_err());
    }

    #[test]
    fn reply_is_rejected_when_not_http() {
        for reply in ["", "SSH-2.0-x\r\n\r\n", "HTTP/1.1\r\n\r\n", "HTTP/1.1 200"] {
            assert_eq!(parse(reply), None, "{reply}");
        }
    }
}
