//! Servers of tests: one with scripted replies, and real ones that end with their test.

use std::io;
use std::process::{Child, Command, ExitStatus};

use rcgen::{CertificateParams, Issuer, KeyPair};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What the server does with a request.
pub(super) enum Reply {
    /// Sends this status line's rest, headers and body.
    With(&'static str, String),
    /// Closes the connection.
    Cut,
    /// Keeps it open.
    Silence,
    /// Sends a body of this many bytes.
    Long(usize),
}

/// A server that replies by the head and the body of a request; its address.
pub(super) async fn serve(reply: impl Fn(&str) -> Reply + Clone + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let reply = reply.clone();
            tokio::spawn(async move {
                let _ = answer(stream, reply).await;
            });
        }
    });
    address
}

async fn answer(mut stream: TcpStream, reply: impl Fn(&str) -> Reply) -> io::Result<()> {
    let (mut text, mut buffer) = (String::new(), [0; 65536]);
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        text += &String::from_utf8_lossy(&buffer[..read]);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
            break;
        }
    }
    match reply(&text) {
        Reply::With(head, body) => {
            let length = body.len();
            let text = format!(
                "HTTP/1.1 {head}\r\ndate: Fri, 15 Jan 2027 08:00:00 GMT\r\nconnection: close\r\n\
                content-length: {length}\r\n\r\n{body}"
            );
            stream.write_all(text.as_bytes()).await
        }
        Reply::Cut => Ok(()),
        Reply::Silence => stream.read(&mut buffer).await.map(drop),
        Reply::Long(length) => {
            let head =
                format!("HTTP/1.1 200 OK\r\netag: \"1\"\r\ncontent-length: {length}\r\n\r\n");
            stream.write_all(head.as_bytes()).await?;
            for _ in 0..length.div_ceil(buffer.len()) {
                stream.write_all(&buffer).await?;
            }
            Ok(())
        }
    }
}

/// A process that ends with its test.
pub(super) struct Server(Child);

impl Server {
    /// `None`, with a line that says so, where the program is not installed.
    pub(super) fn start(command: &mut Command) -> Option<Self> {
        match command.spawn() {
            Ok(child) => Some(Self(child)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                println!(
                    "SKIPPED: {} is not installed",
                    command.get_program().display()
                );
                None
            }
            Err(error) => panic!("{command:?}: {error}"),
        }
    }

    pub(super) fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// Fails the test when the process has ended.
    pub(super) fn check_running(&mut self) {
        let ended: Option<ExitStatus> = self.0.try_wait().unwrap();
        assert_eq!(ended, None, "the server has ended");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Files for a server that demands a client's certificate: of its CA, itself, a client that it
/// lets in as the user `client`, and one that it does not know.
pub(super) struct Pairs(TempDir);

impl Pairs {
    pub(super) fn new() -> Self {
        let pairs = Self(tempfile::tempdir().unwrap());
        let params = |name: &str| {
            let mut params = CertificateParams::new([name.to_owned()]).unwrap();
            let common = rcgen::DnType::CommonName;
            params.distinguished_name.push(common, name);
            params
        };
        let (mut ca, key) = (params("ca"), KeyPair::generate().unwrap());
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let made = ca.self_signed(&key).unwrap();
        std::fs::write(pairs.0.path().join("ca.pem"), made.pem()).unwrap();
        let issuer = Issuer::new(ca, key);
        for (file, name) in [
            ("server", "127.0.0.1"),
            ("client", "client"),
            ("other", "x"),
        ] {
            let key = KeyPair::generate().unwrap();
            let made = match file {
                "other" => params(name).self_signed(&key),
                _ => params(name).signed_by(&key, &issuer),
            };
            let at = |end| pairs.0.path().join(format!("{file}.{end}"));
            std::fs::write(at("pem"), made.unwrap().pem()).unwrap();
            std::fs::write(at("key"), key.serialize_pem()).unwrap();
        }
        pairs
    }

    /// The path of one of the files.
    pub(super) fn at(&self, file: &str) -> String {
        self.0.path().join(file).display().to_string()
    }
}

/// The program of a server: the variable that `tests/lab` prints, or the one of the `PATH`.
#[allow(clippy::disallowed_methods)] // a test's own
pub(super) fn program(variable: &str, name: &str) -> Command {
    Command::new(std::env::var(variable).unwrap_or_else(|_| name.to_owned()))
}
