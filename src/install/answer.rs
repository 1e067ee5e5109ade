//! Whether the reloaded nginx answers a challenge. A reload returns when its signal is sent,
//! and the old workers accept connections beside the new ones for a moment: a CA that is asked
//! at once would see their 404. A token of our own is fetched as a CA does, on this machine.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use crate::files::beneath::Directory;

/// The time for the new workers to replace the old ones.
const WITHIN: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);
/// Half a second without an old worker.
const REPEATED: u32 = 5;
const LARGEST: u64 = 16 * 1024;
const TOKEN: &str = "certs-install-checks-this-location";
const HOST_ADDRESSES: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// Waits until port `port` answers challenges for `name` from `webroot`; what it answers
/// instead, after 5 s. Where it does not listen on the loopback addresses, nothing is known.
///
/// # Errors
/// When the answer cannot be written below `webroot`.
pub(crate) fn wait_for_answer(webroot: &Path, name: &str, port: u16) -> io::Result<Option<String>> {
    let place = webroot.join(".well-known/acme-challenge");
    let place = Directory::make(&place, 0o755)?;
    place.remove(TOKEN)?;
    place.write_new(TOKEN, 0o644, TOKEN.as_bytes(), |_| Ok(()))?;
    let found = fetch_repeatedly(name, port);
    place.remove(TOKEN)?;
    Ok(found)
}

fn fetch_repeatedly(name: &str, port: u16) -> Option<String> {
    let (mut passed, mut seen) = (Duration::ZERO, 0);
    loop {
        let fetched = HOST_ADDRESSES.into_iter().find_map(|address| {
            let address = SocketAddr::new(address, port);
            let stream = TcpStream::connect_timeout(&address, WITHIN).ok()?;
            Some(fetch(stream, name).unwrap_or_else(|error| error.to_string()))
        })?;
        seen = if fetched.is_empty() { seen + 1 } else { 0 };
        if seen == REPEATED {
            return None;
        }
        if passed >= WITHIN {
            return Some(fetched);
        }
        std::thread::sleep(PAUSE);
        passed += PAUSE;
    }
}

/// What is answered instead of the token; nothing if it is the token.
fn fetch(mut stream: TcpStream, name: &str) -> io::Result<String> {
    stream.set_read_timeout(Some(WITHIN))?;
    stream.set_write_timeout(Some(WITHIN))?;
    let request = format!(
        "GET /.well-known/acme-challenge/{TOKEN} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut reply = Vec::new();
    stream.take(LARGEST).read_to_end(&mut reply)?;
    let reply = String::from_utf8_lossy(&reply);
    let status = reply.lines().next().unwrap_or_default();
    let is_answered = status.contains(" 200") && reply.ends_with(TOKEN);
    Ok(match is_answered {
        true => String::new(),
        false if status.is_empty() => "no HTTP reply".to_owned(),
        false => status.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A server whose first replies are a 404, and then the file.
    fn serve(webroot: &Path, refusals: usize) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let file = webroot.join(".well-known/acme-challenge").join(TOKEN);
        std::thread::spawn(move || {
            for (count, stream) in listener.incoming().enumerate() {
                let mut stream = stream.unwrap();
                let mut asked = [0; 1024];
                let length = stream.read(&mut asked).unwrap();
                assert!(
                    String::from_utf8_lossy(&asked[..length]).contains("Host: example.com\r\n")
                );
                let reply = match count < refusals {
                    true => "HTTP/1.1 404 Not Found\r\n\r\n".to_owned(),
                    false => {
                        let body = std::fs::read_to_string(&file).unwrap_or_default();
                        format!("HTTP/1.1 200 OK\r\n\r\n{body}")
                    }
                };
                let _ = stream.write_all(reply.as_bytes());
            }
        });
        port
    }

    #[test]
    fn answer_is_awaited_from_the_new_workers() {
        let webroot = tempfile::tempdir().unwrap();
        let answered = |port| wait_for_answer(webroot.path(), "example.com", port).unwrap();
        assert_eq!(answered(serve(webroot.path(), 3)), None);
        let wrong = answered(serve(webroot.path(), usize::MAX));
        assert_eq!(wrong.unwrap(), "HTTP/1.1 404 Not Found");
        let left = webroot.path().join(".well-known/acme-challenge");
        assert_eq!(std::fs::read_dir(left).unwrap().count(), 0);
        // A port without a server says nothing.
        let closed = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = closed.local_addr().unwrap().port();
        drop(closed);
        assert_eq!(answered(port), None);
    }
}
