//! The proof: a TLS handshake with each address of an endpoint, and the leaf
//! that is served there compared with the one that should be.
//!
//! The chain is not judged here (a private CA's is as good): the question is
//! which certificate is served, and the handshake's signature shows that the
//! server holds its key.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::starttls::{self, Protocol};
use crate::certificate::{Facts, Fingerprint};
use crate::identifier::Identifier;
use crate::time::{Clock, Timestamp};

const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Where a certificate must be seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Endpoint {
    protocol: Protocol,
    host: String,
    port: u16,
}

impl TryFrom<String> for Endpoint {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> Self {
        endpoint.to_string()
    }
}

impl FromStr for Endpoint {
    type Err = String;

    /// Reads `HOST:PORT`, `[IPV6]:PORT`, and either behind `smtp://`, `imap://`
    /// or `pop3://`.
    fn from_str(text: &str) -> Result<Self, String> {
        let malformed = || format!("`{}` is not HOST:PORT", text.escape_debug());
        let (protocol, place) = match text.split_once("://") {
            Some((protocol, place)) => (protocol.parse().map_err(|()| malformed())?, place),
            None => (Protocol::Tls, text),
        };
        let (host, port) = place.rsplit_once(':').ok_or_else(malformed)?;
        let port = port
            .parse()
            .ok()
            .filter(|port| *port > 0)
            .ok_or_else(malformed)?;
        let host = match Identifier::parse(host).map_err(|_| malformed())? {
            Identifier::Dns(name) => name.as_str().to_owned(),
            Identifier::Ip(address) => address.to_string(),
        };
        Ok(Self {
            protocol,
            host,
            port,
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.protocol != Protocol::Tls {
            write!(f, "{}://", self.protocol)?;
        }
        match IpAddr::from_str(&self.host) {
            Ok(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.port),
            _ => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// What an endpoint serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Of the leaf.
    pub fingerprint: Fingerprint,
    /// The leaf's last valid second.
    pub not_after: Timestamp,
}

/// The endpoint was not seen to serve the certificate.
#[derive(Debug, Error)]
#[error("{name} is not proven served at {endpoint}{}: {found}", seconds(.within))]
pub struct VerifyError {
    /// Where.
    pub endpoint: String,
    /// The name that was asked for by SNI.
    pub name: String,
    /// How long it was looked for.
    within: Option<Duration>,
    found: String,
}

impl VerifyError {
    /// A server that was found listening, and is found no more.
    #[must_use]
    pub fn gone(server: &str, name: impl fmt::Display) -> Self {
        Self {
            endpoint: server.to_owned(),
            name: name.to_string(),
            within: None,
            found: "it listens no more: see its log, and start it".to_owned(),
        }
    }

    /// The same, looked for since the proof began.
    #[must_use]
    pub fn after(mut self, waited: Duration) -> Self {
        self.within = Some(waited);
        self
    }

    /// The same, with what is known of its cause.
    #[must_use]
    pub fn because(mut self, cause: Option<String>) -> Self {
        if let Some(cause) = cause {
            self.found = format!("{}; {cause}", self.found);
        }
        self
    }

    /// The next thing to do.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        "the certificate is stored; see that the server there reads it (the path below live/) and was reloaded, then run this again: nothing is ordered twice"
    }
}

fn seconds(within: &Option<Duration>) -> String {
    let shown = |within: Duration| format!(" within {} s", within.as_secs());
    within.map(shown).unwrap_or_default()
}

/// Where a certificate is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Every address of an endpoint that the user named.
    Named(Endpoint),
    /// One of the addresses on which this server was found listening, of each family
    /// that listens on its port.
    Found(String, Vec<SocketAddr>),
}

impl fmt::Display for Place {
    /// The endpoint, or the server's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(endpoint) => endpoint.fmt(f),
            Self::Found(server, _) => f.write_str(server),
        }
    }
}

/// Looks at what is served.
#[async_trait]
pub trait Prover: Send + Sync {
    /// One look: whether `place` serves `wanted` for `name` now.
    ///
    /// # Errors
    /// What was found instead, in words.
    async fn look(
        &self,
        place: &Place,
        name: &Identifier,
        wanted: &Fingerprint,
    ) -> Result<(), String>;
}

/// Looks by a TLS handshake.
#[derive(Debug, Default)]
pub struct Handshake;

#[async_trait]
impl Prover for Handshake {
    async fn look(
        &self,
        place: &Place,
        name: &Identifier,
        wanted: &Fingerprint,
    ) -> Result<(), String> {
        match place {
            Place::Named(endpoint) => every_address(endpoint, name, wanted).await,
            Place::Found(_, addresses) => each_family(addresses, name, wanted).await,
        }
    }
}

/// Looks until `place` serves `wanted` for `name`.
///
/// # Errors
/// When `within` is over; says what is served instead.
pub async fn verify(
    prover: &dyn Prover,
    place: &Place,
    name: &Identifier,
    wanted: &Fingerprint,
    clock: &dyn Clock,
    within: Duration,
) -> Result<(), VerifyError> {
    let end = clock.now() + within;
    let mut pause = FIRST_PAUSE;
    loop {
        let Err(found) = prover.look(place, name, wanted).await else {
            return Ok(());
        };
        if clock.now() >= end {
            return Err(VerifyError {
                endpoint: place.to_string(),
                name: name.to_string(),
                within: Some(within),
                found,
            });
        }
        clock.sleep_until((clock.now() + pause).min(end)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Other ports may serve other things, or nothing by TLS: what is found on one of
/// them by IPv4 must be found on the same one by IPv6, where both listen there.
async fn each_family(
    addresses: &[SocketAddr],
    name: &Identifier,
    wanted: &Fingerprint,
) -> Result<(), String> {
    let (mut shown, mut others) = (Vec::new(), Vec::new());
    for address in addresses {
        if !shown.is_empty() && !is_other_family(address, &shown) {
            continue;
        }
        match shows(*address, Protocol::Tls, name, wanted).await {
            Ok(()) => shown.push(*address),
            Err(other) => others.push((address, other)),
        }
    }
    if shown.is_empty() && others.is_empty() {
        return Err("it listens on no port but 80".to_owned());
    }
    others.retain(|(address, _)| shown.is_empty() || is_other_family(address, &shown));
    let others: Vec<String> = others.into_iter().map(|(_, other)| other).collect();
    match others.is_empty() {
        true => Ok(()),
        false => Err(others.join("; ")),
    }
}

/// Whether `address` is on a port at which it is `shown`, and none of its family is.
fn is_other_family(address: &SocketAddr, shown: &[SocketAddr]) -> bool {
    let mut same_port = shown.iter().filter(|one| one.port() == address.port());
    let there = same_port.clone().next().is_some();
    there && !same_port.any(|one| one.is_ipv6() == address.is_ipv6())
}

async fn every_address(
    endpoint: &Endpoint,
    name: &Identifier,
    wanted: &Fingerprint,
) -> Result<(), String> {
    let addresses = tokio::net::lookup_host((endpoint.host.as_str(), endpoint.port)).await;
    let addresses: Vec<_> = addresses.map_err(|error| error.to_string())?.collect();
    if addresses.is_empty() {
        return Err("the host has no address".to_owned());
    }
    for address in addresses {
        shows(address, endpoint.protocol, name, wanted).await?;
    }
    Ok(())
}

async fn shows(
    address: SocketAddr,
    protocol: Protocol,
    name: &Identifier,
    wanted: &Fingerprint,
) -> Result<(), String> {
    let seen = observe(address, protocol, name)
        .await
        .map_err(|error| format!("{address}: {error}"))?;
    if seen.fingerprint == *wanted {
        return Ok(());
    }
    Err(format!(
        "{address} serves another certificate (SHA-256 {}, valid to {})",
        seen.fingerprint, seen.not_after
    ))
}

/// One handshake.
///
/// # Errors
/// Why there was none, in words.
pub async fn observe(
    address: SocketAddr,
    protocol: Protocol,
    name: &Identifier,
) -> Result<Seen, String> {
    let handshake = async {
        let mut stream = TcpStream::connect(address)
            .await
            .map_err(|error| error.to_string())?;
        starttls::begin(&mut stream, protocol).await?;
        let witness = Arc::new(Witness {
            provider: Arc::new(aws_lc_rs::default_provider()),
            leaf: Mutex::default(),
        });
        let config = ClientConfig::builder_with_provider(witness.provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(witness.clone())
            .with_no_client_auth();
        let connector = TlsConnector::from(Arc::new(config));
        connector
            .connect(server_name(name)?, stream)
            .await
            .map_err(|error| error.to_string())?;
        let leaf = witness
            .leaf
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        leaf.ok_or_else(|| "no certificate was shown".to_owned())
    };
    let leaf = match tokio::time::timeout(HANDSHAKE_WITHIN, handshake).await {
        Ok(leaf) => leaf?,
        Err(_) => return Err(format!("no handshake within {HANDSHAKE_WITHIN:?}")),
    };
    let facts = Facts::of(&leaf).map_err(|error| error.to_string())?;
    Ok(Seen {
        fingerprint: facts.fingerprint,
        not_after: facts.not_after,
    })
}

/// What to ask for: a wildcard by a name that only it covers.
fn server_name(name: &Identifier) -> Result<ServerName<'static>, String> {
    match name {
        Identifier::Ip(address) => Ok(ServerName::IpAddress((*address).into())),
        Identifier::Dns(name) => {
            let concrete = name.as_str().replacen("*.", "certs-probe.", 1);
            ServerName::try_from(concrete).map_err(|error| error.to_string())
        }
    }
}

/// Accepts any certificate and keeps it; a signature must hold.
#[derive(Debug)]
struct Witness {
    provider: Arc<CryptoProvider>,
    leaf: Mutex<Option<CertificateDer<'static>>>,
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.leaf.lock().unwrap_or_else(PoisonError::into_inner) = Some(leaf.clone().into_owned());
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            leaf,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            leaf,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rustls::ServerConfig;
    use rustls::pki_types::PrivateKeyDer;
    use tokio::net::TcpListener;
    use tokio::sync::watch;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::time::{SystemClock, VirtualClock};

    fn made() -> (Arc<ServerConfig>, Fingerprint) {
        let made = rcgen::generate_simple_self_signed(["example.com".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let fingerprint = Fingerprint::of(made.cert.der());
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        (Arc::new(config), fingerprint)
    }

    async fn serve(config: watch::Receiver<Arc<ServerConfig>>) -> Endpoint {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = serve_at(socket, config);
        address.to_string().parse().unwrap()
    }

    fn serve_at(socket: TcpListener, config: watch::Receiver<Arc<ServerConfig>>) -> SocketAddr {
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = socket.accept().await {
                let acceptor = TlsAcceptor::from(config.borrow().clone());
                let _ = acceptor.accept(stream).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn proves_the_new_leaf_and_names_the_old_one() {
        let ((old, old_print), (new, new_print)) = (made(), made());
        let (switch, config) = watch::channel(old);
        let place = Place::Named(serve(config).await);
        let name = Identifier::parse("example.com").unwrap();
        let standing = VirtualClock::new(Timestamp::from_seconds(0));
        let error = verify(
            &Handshake,
            &place,
            &name,
            &new_print,
            &standing,
            Duration::ZERO,
        )
        .await
        .unwrap_err();
        assert!(
            error.to_string().contains(&old_print.to_string()),
            "{error}"
        );
        let within = Duration::from_secs(30);
        let (proven, _) = tokio::join!(
            verify(&Handshake, &place, &name, &new_print, &SystemClock, within),
            async {
                tokio::task::yield_now().await;
                switch.send(new).unwrap();
            }
        );
        proven.unwrap();
    }

    /// One port, by both families; `None` where there is no IPv6.
    async fn both_families() -> Option<[TcpListener; 2]> {
        for _ in 0..100 {
            let four = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = four.local_addr().unwrap().port();
            match TcpListener::bind(("::1", port)).await {
                Ok(six) => return Some([four, six]),
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
                Err(error) => {
                    eprintln!("SKIPPED: both families: {error}");
                    return None;
                }
            }
        }
        panic!("no port is free in both families");
    }

    #[tokio::test]
    async fn of_a_server_that_is_found_both_families_are_proven() {
        let ((old, _), (new, new_print)) = (made(), made());
        let Some([four, six]) = both_families().await else {
            return;
        };
        let (_switch, newest) = watch::channel(new.clone());
        let (switch, config) = watch::channel(old.clone());
        let elsewhere = TcpListener::bind("[::1]:0").await.unwrap();
        let (_kept, older) = watch::channel(old);
        let other_port = serve_at(elsewhere, older);
        let (four, six) = (serve_at(four, newest), serve_at(six, config));
        let name = Identifier::parse("example.com").unwrap();
        let look = async |addresses: &[SocketAddr]| {
            let place = Place::Found("nginx".into(), addresses.to_vec());
            Handshake.look(&place, &name, &new_print).await
        };
        for order in [[four, six, other_port], [other_port, six, four]] {
            let found = look(&order).await.unwrap_err();
            assert!(found.contains(&six.to_string()), "{found}");
            assert!(!found.contains(&other_port.to_string()), "{found}");
        }
        switch.send(new).unwrap();
        look(&[four, six, other_port]).await.unwrap();
        look(&[six]).await.unwrap();
        assert!(look(&[other_port]).await.is_err());
    }

    #[tokio::test]
    async fn says_that_nobody_listens() {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint: Endpoint = socket.local_addr().unwrap().to_string().parse().unwrap();
        drop(socket);
        let name = Identifier::parse("example.com").unwrap();
        let place = Place::Named(endpoint);
        let error = verify(
            &Handshake,
            &place,
            &name,
            &Fingerprint::of(b""),
            &SystemClock,
            Duration::ZERO,
        )
        .await
        .unwrap_err();
        assert!(error.to_string().contains("refused"), "{error}");
    }

    #[test]
    fn reads_endpoints() {
        let shown = |text: &str| {
            text.parse::<Endpoint>()
                .map(|endpoint| endpoint.to_string())
        };
        assert_eq!(shown("Example.com:443").unwrap(), "example.com:443");
        assert_eq!(shown("[::1]:443").unwrap(), "[::1]:443");
        assert_eq!(shown("smtp://[::1]:25").unwrap(), "smtp://[::1]:25");
        assert_eq!(shown("turns://a:5349").unwrap(), "a:5349");
        for text in [
            "example.com",
            "example.com:0",
            "example.com:x",
            "ftp://example.com:21",
            ":443",
            "a b:1",
        ] {
            assert!(shown(text).is_err(), "{text}");
        }
    }
}
