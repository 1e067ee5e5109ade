//! Whether the reloaded nginx answers as planned. A reload returns when its signal is sent,
//! and the old workers accept connections beside the new ones for a moment: a CA that is asked
//! at once would see their 404. A token of our own is fetched as a CA does, on this machine.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use super::AtEnd;
use super::plan::Reach;
use crate::files::beneath::Directory;

/// The time for the new workers to replace the old ones. nginx itself tries for 2.5 s to get
/// an address.
pub(crate) const WITHIN: Duration = Duration::from_secs(6);
pub(crate) const PAUSE: Duration = Duration::from_millis(100);
/// Half a second without an old worker.
pub(crate) const REPEATED: u32 = 5;
/// The statuses of `limit_req` and `limit_conn`, which say nothing about the location: many
/// names of one block are asked for at once.
const LIMITED: [&str; 2] = ["HTTP/1.1 429", "HTTP/1.1 503"];
const LIMITED_PAUSE: Duration = Duration::from_millis(300);
const LIMITED_WITHIN: Duration = Duration::from_secs(30);
const LARGEST: u64 = 16 * 1024;
const TOKEN: &str = "certs-install-checks-this-location";

/// Waits until all of `at` answer challenges from `webroot`; what is answered instead, once
/// `is_over` or after 6 s.
///
/// # Errors
/// When the answer cannot be written below `webroot`.
pub(crate) async fn wait_for_answers(
    webroot: &Path,
    at: &[Reach],
    is_over: impl Fn() -> bool,
) -> io::Result<Option<String>> {
    let place = webroot.join(".well-known/acme-challenge");
    let place = Directory::make(&place, 0o755)?;
    place.remove(TOKEN)?;
    place.write_new(TOKEN, 0o644, TOKEN.as_bytes(), |_| Ok(()))?;
    let _removed = AtEnd(|| {
        let _ = place.remove(TOKEN);
    });
    let path = format!("/.well-known/acme-challenge/{TOKEN}");
    let is_answer = |reply: &str| reply.contains(" 200") && reply.ends_with(TOKEN);
    Ok(wait(at, &path, is_answer, is_over).await)
}

/// Waits until all of `at` redirect; what is answered instead, once `is_over` or after 6 s.
pub(crate) async fn wait_for_redirects(at: &[Reach], is_over: impl Fn() -> bool) -> Option<String> {
    wait(at, "/", leads_to_https, is_over).await
}

/// A redirect of another block for the name may have another code than ours.
fn leads_to_https(reply: &str) -> bool {
    let mut lines = reply.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1));
    let mut headers = lines.map_while(|line| line.split_once(':'));
    status.is_some_and(|code| ["301", "302", "307", "308"].contains(&code))
        && headers.any(|(name, value)| {
            name.eq_ignore_ascii_case("location") && value.trim().starts_with("https://")
        })
}

async fn wait(
    at: &[Reach],
    path: &str,
    is_expected: impl Fn(&str) -> bool,
    is_over: impl Fn() -> bool,
) -> Option<String> {
    let (mut passed, mut limited, mut seen) = (Duration::ZERO, Duration::ZERO, 0);
    loop {
        let mut other = None;
        for reach in at {
            let reply = ask(reach, path, &mut limited).await;
            if !is_expected(&reply) && reply != UNREACHABLE {
                let status = reply.lines().next().unwrap_or("no HTTP reply");
                other = Some(format!("{} at {}: {status}", reach.name, reach.address));
                break;
            }
        }
        seen = if other.is_none() { seen + 1 } else { 0 };
        if seen == REPEATED {
            return None;
        }
        if other.is_some() && (passed >= WITHIN || is_over()) {
            return other;
        }
        sleep(PAUSE).await;
        passed += PAUSE;
    }
}

/// The reply, once no limit on requests refuses it.
async fn ask(reach: &Reach, path: &str, limited: &mut Duration) -> String {
    loop {
        let reply = fetch(reach, path).await;
        let reply = reply.unwrap_or_else(|error| error.to_string());
        let is_limited = LIMITED.iter().any(|status| reply.starts_with(status));
        if !is_limited || *limited >= LIMITED_WITHIN {
            return reply;
        }
        sleep(LIMITED_PAUSE).await;
        *limited += LIMITED_PAUSE;
    }
}

/// This machine has no such address family: nothing is known.
const UNREACHABLE: &str = "no such address on this machine";

async fn fetch(reach: &Reach, path: &str) -> io::Result<String> {
    let connected = timeout(WITHIN, reach.address.connect()).await?;
    let (mut stream, _) = match connected {
        Err(error) if is_unreachable(&error) => return Ok(UNREACHABLE.to_owned()),
        connected => connected?,
    };
    let header = if reach.is_proxied {
        "PROXY UNKNOWN\r\n"
    } else {
        ""
    };
    let name = &reach.name;
    let request =
        format!("{header}GET {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
    let mut reply = Vec::new();
    let exchanged = async {
        stream.write_all(request.as_bytes()).await?;
        stream.take(LARGEST).read_to_end(&mut reply).await
    };
    timeout(WITHIN, exchanged).await??;
    Ok(String::from_utf8_lossy(&reply).into_owned())
}

/// Whether this machine has no such address.
#[must_use]
pub(crate) fn is_unreachable(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::AddrNotAvailable | ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable
    )
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener};

    use super::*;

    /// A server whose first replies have that status, and then the file.
    fn serve(webroot: &Path, refusals: usize, status: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let file = webroot.join(".well-known/acme-challenge").join(TOKEN);
        std::thread::spawn(move || {
            for (count, stream) in listener.incoming().enumerate() {
                let mut stream = stream.unwrap();
                let mut asked = [0; 1024];
                let length = stream.read(&mut asked).unwrap();
                let asked = String::from_utf8_lossy(&asked[..length]);
                assert!(asked.starts_with("PROXY UNKNOWN\r\nGET /"), "{asked}");
                assert!(asked.contains("Host: example.com\r\n"));
                let reply = match count < refusals {
                    true => format!("HTTP/1.1 {status}\r\n\r\n"),
                    false => {
                        let body = std::fs::read_to_string(&file).unwrap_or_default();
                        format!("HTTP/1.1 200 OK\r\n\r\n{body}")
                    }
                };
                let _ = stream.write_all(reply.as_bytes());
            }
        });
        address
    }

    #[tokio::test]
    async fn answer_is_awaited_from_the_new_workers() {
        let webroot = tempfile::tempdir().unwrap();
        let answered = async |address: SocketAddr, is_over: bool| {
            let reach = Reach {
                address: address.into(),
                binds: None,
                is_proxied: true,
                name: "example.com".to_owned(),
            };
            let at = [reach];
            let found = wait_for_answers(webroot.path(), &at, || is_over);
            found.await.unwrap()
        };
        let serve = |refusals, status| serve(webroot.path(), refusals, status);
        assert_eq!(answered(serve(3, "404 Not Found"), false).await, None);
        // A rate limit does not count as an answer.
        for status in ["429 Too Many Requests", "503 Service Unavailable"] {
            assert_eq!(answered(serve(1, status), true).await, None);
        }
        let wrong = answered(serve(usize::MAX, "404 Not Found"), true).await;
        let wrong = wrong.unwrap();
        assert!(wrong.ends_with(": HTTP/1.1 404 Not Found"), "{wrong}");
        let left = webroot.path().join(".well-known/acme-challenge");
        assert_eq!(std::fs::read_dir(left).unwrap().count(), 0);
        let closed = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = closed.local_addr().unwrap();
        drop(closed);
        let refused = answered(address, true).await.unwrap();
        assert!(refused.contains("refused"), "{refused}");
    }
}
