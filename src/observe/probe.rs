//! Asks the endpoints of a running `certs run`, as a container's health check
//! does: an image without a shell has nobody else to ask.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Less than the three seconds that an orchestrator commonly gives a check.
const WITHIN: Duration = Duration::from_secs(2);
/// A line for each certificate that is not ready.
const LARGEST: u64 = 64 * 1024;

/// What was answered.
#[derive(Debug, PartialEq)]
pub struct Answer {
    /// Whether the status is 200.
    pub good: bool,
    /// What it says of it.
    pub body: String,
}

/// Gets `path` from the admin listener at `address`.
///
/// # Errors
/// When nobody answers there within two seconds, or not in HTTP.
pub async fn ask(address: SocketAddr, path: &str) -> io::Result<Answer> {
    let asked = exchange(reachable(address), path);
    let answered = tokio::time::timeout(WITHIN, asked).await;
    let reply = answered.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    understood(&reply).ok_or_else(|| io::Error::other("what answers there does not speak HTTP"))
}

async fn exchange(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut reply = Vec::new();
    stream.take(LARGEST).read_to_end(&mut reply).await?;
    Ok(String::from_utf8_lossy(&reply).into_owned())
}

/// What listens everywhere is reached through the loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        named => named,
    };
    SocketAddr::new(ip, address.port())
}

fn understood(reply: &str) -> Option<Answer> {
    let (head, body) = reply.split_once("\r\n\r\n")?;
    let status = head.lines().next()?.strip_prefix("HTTP/1.")?;
    Some(Answer {
        good: status.split(' ').nth(1)? == "200",
        body: body.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_endpoints_are_asked_wherever_they_listen() {
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
    fn what_is_no_http_is_not_understood() {
        for reply in ["", "SSH-2.0-x\r\n\r\n", "HTTP/1.1\r\n\r\n", "HTTP/1.1 200"] {
            assert_eq!(understood(reply), None, "{reply}");
        }
    }
}
