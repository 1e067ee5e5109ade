//! An HTTP proxy on loopback: it answers CONNECT as a test says. It ends with its test.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio_rustls::TlsAcceptor;

/// What it does with a request for a tunnel.
#[derive(Clone)]
pub(crate) enum Manner {
    /// Opens the tunnel.
    Tunnel,
    /// Opens it for this value of `Proxy-Authorization`, else answers 407.
    Authorize(&'static str),
    /// Opens each tunnel to this address instead.
    To(String),
    /// Answers with these bytes and closes the connection.
    Answer(&'static str),
}

pub(crate) struct Proxy {
    port: u16,
    /// The heads of all requests.
    asked: Arc<Mutex<Vec<String>>>,
    ended: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Proxy {
    pub(crate) fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (asked, ended) = (
            Arc::<Mutex<Vec<String>>>::default(),
            Arc::<AtomicBool>::default(),
        );
        let (heads, end) = (asked.clone(), ended.clone());
        let thread = std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let (manner, heads) = (manner.clone(), heads.clone());
                std::thread::spawn(move || drop(serve(stream, &manner, &heads)));
            }
        });
        Self {
            port,
            asked,
            ended,
            thread: Some(thread),
        }
    }

    /// The port of a listener that leads here over TLS, with this certificate and its key. It
    /// ends with the tests.
    pub(crate) fn over_tls(&self, made: &rcgen::CertifiedKey<rcgen::KeyPair>) -> u16 {
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider);
        let config = config.with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth();
        let config = config.with_single_cert(vec![made.cert.der().clone()], key);
        let acceptor = TlsAcceptor::from(Arc::new(config.unwrap()));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (port, to) = (listener.local_addr().unwrap().port(), self.port);
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_io().build().unwrap();
        std::thread::spawn(move || {
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                while let Ok((stream, _)) = listener.accept().await {
                    let acceptor = acceptor.clone();
                    tokio::spawn(async move {
                        let mut client = acceptor.accept(stream).await?;
                        let mut proxy =
                            tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, to)).await?;
                        tokio::io::copy_bidirectional(&mut client, &mut proxy).await
                    });
                }
            });
        });
        port
    }

    /// Its URL with `user` before the host, which may be empty.
    pub(crate) fn url(&self, user: &str) -> String {
        format!("http://{user}127.0.0.1:{}", self.port)
    }

    /// The heads of the requests so far.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

fn serve(
    mut client: TcpStream,
    manner: &Manner,
    heads: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    client.set_read_timeout(Some(Duration::from_secs(60)))?;
    let (mut head, mut byte) = (String::new(), [0]);
    while !head.ends_with("\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.push(byte[0].into());
    }
    heads.lock().unwrap().push(head.clone());
    let mut words = head.split_whitespace();
    let to = words.nth(1).unwrap_or_default().to_owned();
    let lines = head.to_ascii_lowercase();
    let to = match manner {
        Manner::Answer(reply) => return client.write_all(reply.as_bytes()),
        Manner::Authorize(value)
            if !lines.contains(&format!(
                "proxy-authorization: {}\r\n",
                value.to_lowercase()
            )) =>
        {
            let reply = "HTTP/1.1 407 Proxy Authentication Required\r\n\
                         Proxy-Authenticate: Basic realm=\"p\"\r\nContent-Length: 0\r\n\r\n";
            return client.write_all(reply.as_bytes());
        }
        Manner::To(address) => address.clone(),
        Manner::Tunnel | Manner::Authorize(_) => to,
    };
    let mut server = TcpStream::connect(to)?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    let (mut up, mut down) = (client.try_clone()?, server.try_clone()?);
    let upward = std::thread::spawn(move || {
        let _ = std::io::copy(&mut up, &mut down);
        let _ = down.shutdown(Shutdown::Write);
    });
    let _ = std::io::copy(&mut server, &mut client);
    let _ = client.shutdown(Shutdown::Both);
    let _ = upward.join();
    Ok(())
}
