//! A CA, its leaves and an echo server, for tests. Nothing here runs in production.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::credentials::{Credentials, Publisher};
use super::dialer::{self, Dialer};
use super::terminator::{Handler, Limits, Stopping, Stream, Terminator};
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

/// Echoes what the client sends, until the client or the listener stops.
pub(crate) struct Echo;

#[async_trait]
impl Handler for Echo {
    async fn converse(&self, mut stream: Stream, _peer: SocketAddr, mut stopping: Stopping) {
        let mut buffer = [0; 64];
        loop {
            let count = tokio::select! {
                count = stream.read(&mut buffer) => count.unwrap_or(0),
                () = stopping.wait() => 0,
            };
            if count == 0 || stream.write_all(&buffer[..count]).await.is_err() {
                let _ = stream.shutdown().await;
                return;
            }
        }
    }
}

pub(crate) fn serve(credentials: &Arc<Credentials>, limits: Limits) -> SocketAddr {
    serve_by(Arc::new(Echo), credentials, limits)
}

pub(crate) fn serve_by(
    handler: Arc<dyn Handler>,
    credentials: &Arc<Credentials>,
    limits: Limits,
) -> SocketAddr {
    let local = "127.0.0.1:0".parse().unwrap();
    let terminator = Terminator::bind(local, credentials, limits).unwrap();
    let address = terminator.address().unwrap();
    tokio::spawn(terminator.serve(handler, std::future::pending()));
    address
}

/// Whether the server still echoes.
pub(crate) async fn echoes(stream: &mut dialer::Stream) -> bool {
    let mut echo = [0; 4];
    stream.write_all(b"ping").await.is_ok()
        && stream.read_exact(&mut echo).await.is_ok()
        && echo == *b"ping"
}
