//! One TLS handshake that reads the leaf. It accepts any certificate, and its signature shows
//! that the server holds the key. See RFC 8446, section 4.4.3.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::io::AsyncWriteExt;
use tokio::net::UdpSocket;
use tokio_rustls::TlsConnector;

use super::super::endpoint::Approach;
use super::super::starttls::{self, Protocol};
use super::unseen::Unseen;
use crate::certificate::Facts;
use crate::identifier::Identifier;
use crate::net::sockets::{Ends, ListenAddress};
use crate::net::{Stream, tls};

/// The limit of a connection, and of a handshake after it.
const WITHIN: Duration = Duration::from_secs(5);
/// The limit with STARTTLS: Postfix lets a new client wait for 6 s (`postscreen_greet_wait`).
const MAIL_WITHIN: Duration = Duration::from_secs(15);

/// The kinds of keys that a client accepts. A server with certificates of both kinds
/// chooses by this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// Every kind.
    All,
    /// RSA alone.
    Rsa,
    /// ECDSA and EdDSA alone.
    EllipticCurve,
}

impl Offer {
    fn includes(self, scheme: SignatureScheme) -> bool {
        match self {
            Self::All => true,
            Self::Rsa => is_rsa(scheme),
            Self::EllipticCurve => !is_rsa(scheme),
        }
    }
}

fn is_rsa(scheme: SignatureScheme) -> bool {
    use SignatureScheme as Scheme;
    matches!(
        scheme,
        Scheme::RSA_PKCS1_SHA256
            | Scheme::RSA_PKCS1_SHA384
            | Scheme::RSA_PKCS1_SHA512
            | Scheme::RSA_PSS_SHA256
            | Scheme::RSA_PSS_SHA384
            | Scheme::RSA_PSS_SHA512
    )
}

/// A leaf that a server sent, with a signature that shows that it holds the key.
#[derive(Clone, Debug)]
pub struct Shown {
    /// What the leaf says.
    pub facts: Facts,
    scheme: SignatureScheme,
}

impl Shown {
    /// The offer that gets the certificate with a key of the other kind, if there is one.
    pub(super) fn other_offer(&self) -> Offer {
        match is_rsa(self.scheme) {
            true => Offer::EllipticCurve,
            false => Offer::Rsa,
        }
    }
}

/// Does one handshake, and reads the leaf that the server sends.
///
/// # Errors
/// Why it failed.
pub async fn observe(
    address: &ListenAddress,
    approach: Approach,
    name: &Identifier,
    offer: Offer,
) -> Result<Shown, Unseen> {
    let timed_out = || {
        let late = format!("no connection within {} s", WITHIN.as_secs());
        io::Error::new(io::ErrorKind::TimedOut, late)
    };
    let connected = tokio::time::timeout(WITHIN, address.connect()).await;
    let connected = connected.unwrap_or_else(|_| Err(timed_out()));
    let connected = match (connected, address) {
        (Ok(connected), _) => connected,
        (Err(error), ListenAddress::Unix(path) | ListenAddress::UnixOf(path, _)) => {
            return Err(Unseen::no_socket(path, &error));
        }
        (Err(error), ListenAddress::Tcp(address)) => {
            let is_refused = error.kind() == io::ErrorKind::ConnectionRefused;
            return Err(match is_refused && speaks_quic(*address).await {
                true => Unseen::quic_alone(),
                false => Unseen::unreachable(&error),
            });
        }
    };
    let within = match approach.protocol {
        Protocol::Tls => WITHIN,
        _ => MAIL_WITHIN,
    };
    let ended = tokio::time::timeout(within, handshake(connected, approach, name, offer)).await;
    let late = || Unseen::from(format!("no handshake within {} s", within.as_secs()));
    let (leaf, scheme) = ended.unwrap_or_else(|_| Err(late()))?;
    let facts = Facts::of(&leaf).map_err(|error| error.to_string())?;
    Ok(Shown { facts, scheme })
}

/// Whether a QUIC server listens there, as for HTTP/3. A version that no server knows makes
/// each answer with the ones that it does: RFC 9000, sections 6.1 and 17.2.1.
async fn speaks_quic(address: SocketAddr) -> bool {
    const ASKS_FOR_VERSIONS: [u8; 5] = [0xc0, 0x1a, 0x2a, 0x3a, 0x4a];
    const CONNECTION: [u8; 18] = *b"\x08certs-up\x08certs-up";
    /// A shorter datagram may get no answer.
    const LENGTH: usize = 1200;
    let ask = async {
        let any = match address {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(address).await?;
        let mut datagram = [ASKS_FOR_VERSIONS.as_slice(), &CONNECTION].concat();
        datagram.resize(LENGTH, 0);
        socket.send(&datagram).await?;
        let mut reply = [0; 64];
        let length = socket.recv(&mut reply).await?;
        let is_long = length > CONNECTION.len() && reply[0] & 0x80 != 0;
        io::Result::Ok(is_long && reply[1..5] == [0; 4] && reply[5..23] == CONNECTION)
    };
    let asked = tokio::time::timeout(Duration::from_secs(1), ask).await;
    matches!(asked, Ok(Ok(true)))
}

async fn handshake(
    (mut stream, ends): (Box<dyn Stream>, Option<Ends>),
    approach: Approach,
    name: &Identifier,
    offer: Offer,
) -> Result<(CertificateDer<'static>, SignatureScheme), Unseen> {
    let failed = |error: io::Error| Unseen::handshake(&error);
    if let Some(version) = approach.proxy_protocol {
        let header = ends.map_or_else(|| Ok(version.local()), |(own, to)| version.header(own, to));
        let header = header.map_err(failed)?;
        stream.write_all(&header).await.map_err(failed)?;
    }
    starttls::begin(&mut stream, approach.protocol).await?;
    let provider = aws_lc_rs::default_provider();
    let witness = Arc::new(Witness {
        algorithms: provider.signature_verification_algorithms,
        offer,
        seen: Mutex::default(),
    });
    let config = tls::client()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(witness.clone())
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let connected = connector.connect(server_name(name)?, stream).await;
    // An alert that comes later, as for a client without a certificate, is about us.
    let mut seen = witness.seen.lock().unwrap_or_else(PoisonError::into_inner);
    match (seen.take(), connected) {
        (Some(seen), _) => Ok(seen),
        (None, Err(error)) => Err(failed(error)),
        (None, Ok(_)) => Err("no certificate was sent".into()),
    }
}

/// The name for SNI. For a wildcard it is a name that only the wildcard covers.
fn server_name(name: &Identifier) -> Result<ServerName<'static>, String> {
    match name {
        Identifier::Ip(address) => Ok(ServerName::IpAddress((*address).into())),
        Identifier::Dns(name) => {
            let concrete = name.as_str().replacen("*.", "certs-probe.", 1);
            ServerName::try_from(concrete).map_err(|error| error.to_string())
        }
    }
}

/// Accepts any certificate, and keeps it once its signature over this handshake is valid.
#[derive(Debug)]
struct Witness {
    algorithms: WebPkiSupportedAlgorithms,
    offer: Offer,
    seen: Mutex<Option<(CertificateDer<'static>, SignatureScheme)>>,
}

impl Witness {
    fn keep(&self, leaf: &CertificateDer<'_>, signed: &DigitallySignedStruct) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        *seen = Some((leaf.clone().into_owned(), signed.scheme));
    }
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let valid = verify_tls12_signature(message, leaf, signed, &self.algorithms)?;
        self.keep(leaf, signed);
        Ok(valid)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let valid = verify_tls13_signature(message, leaf, signed, &self.algorithms)?;
        self.keep(leaf, signed);
        Ok(valid)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let mut schemes = self.algorithms.supported_schemes();
        schemes.retain(|scheme| self.offer.includes(*scheme));
        schemes
    }
}
