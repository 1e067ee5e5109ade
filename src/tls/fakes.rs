//! A CA, its leaves and a server, for tests. Nothing here runs in production.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;

use super::credentials::{Credentials, Publisher};
use super::dialer::Dialer;
use crate::certificate::{Bundle, Freshness, Secret};
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::time::{Timestamp, VirtualClock};

/// An instant in the validity of every leaf of this CA.
pub(crate) const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
/// The year in which the leaves expire.
pub(crate) const LAST_YEAR: i32 = 2090;

/// A root of its own that signs leaves.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { issuer, root }
    }

    pub(crate) fn bundle(&self, names: &[&str]) -> Bundle {
        let key = KeyPair::generate().unwrap();
        let texts: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(texts).unwrap();
        params.not_after = rcgen::date_time_ymd(LAST_YEAR, 1, 1);
        let leaf = params.signed_by(&key, &self.issuer).unwrap().pem();
        let key = Secret::new(key.serialize_pem());
        Bundle::new(key, &leaf, &set(names), NOW, Freshness::Stored).unwrap()
    }

    pub(crate) fn dialer(&self) -> Dialer {
        Dialer::new(self.root.as_bytes()).unwrap()
    }

    pub(crate) fn root(&self) -> &str {
        &self.root
    }
}

pub(crate) fn set(names: &[&str]) -> BTreeSet<Identifier> {
    names.iter().map(|name| identifier(name)).collect()
}

pub(crate) fn identifier(name: &str) -> Identifier {
    Identifier::parse(name).unwrap()
}

pub(crate) fn lineage(name: &str) -> Lineage {
    Lineage::of(&identifier(name))
}

/// A publisher for certificates of these names; the first name is the lineage.
pub(crate) fn publisher(served: &[&[&str]]) -> (Publisher, Arc<Credentials>, Arc<VirtualClock>) {
    let clock = Arc::new(VirtualClock::new(NOW));
    let served = served.iter().map(|names| (lineage(names[0]), set(names)));
    let (publisher, credentials) = Publisher::new(served.collect(), clock.clone());
    (publisher, credentials, clock)
}

/// A listener on loopback, and its address.
pub(crate) fn listener() -> (TcpListener, SocketAddr) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    (TcpListener::from_std(listener).unwrap(), address)
}

/// Answers every request with `pong`.
pub(crate) fn serve(credentials: &Arc<Credentials>) -> SocketAddr {
    let (listener, address) = listener();
    let router = axum::Router::new().fallback(async || "pong");
    tokio::spawn(credentials.serve(listener, router).unwrap());
    address
}

/// Whether the server still answers.
pub(crate) async fn is_served(stream: &mut TlsStream<TcpStream>) -> bool {
    let request = b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n";
    if stream.write_all(request).await.is_err() {
        return false;
    }
    let mut reply = Vec::new();
    while !reply.ends_with(b"pong") {
        match stream.read_u8().await {
            Ok(byte) => reply.push(byte),
            Err(_) => return false,
        }
    }
    true
}
