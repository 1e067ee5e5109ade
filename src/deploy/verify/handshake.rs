//! One TLS handshake that reads the leaf. It accepts any certificate, and its signature shows
//! that the server holds the key. See RFC 8446, section 4.4.3.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::super::starttls::{self, Protocol};
use crate::certificate::Facts;
use crate::identifier::Identifier;
use crate::net::tls;

const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);

/// Does one handshake, and reads the leaf that the server sends.
///
/// # Errors
/// Why it failed.
pub async fn observe(
    address: SocketAddr,
    protocol: Protocol,
    name: &Identifier,
) -> Result<Facts, String> {
    let handshake = async {
        let stream = TcpStream::connect(address).await;
        let mut stream = stream.map_err(|error| error.to_string())?;
        starttls::begin(&mut stream, protocol).await?;
        let provider = aws_lc_rs::default_provider();
        let witness = Arc::new(Witness {
            algorithms: provider.signature_verification_algorithms,
            leaf: Mutex::default(),
        });
        let config = tls::client()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(witness.clone())
            .with_no_client_auth();
        let connector = TlsConnector::from(Arc::new(config));
        let connected = connector.connect(server_name(name)?, stream).await;
        connected.map_err(|error| error.to_string())?;
        let mut leaf = witness.leaf.lock().unwrap_or_else(PoisonError::into_inner);
        leaf.take()
            .ok_or_else(|| "no certificate was sent".to_owned())
    };
    let leaf = match tokio::time::timeout(HANDSHAKE_WITHIN, handshake).await {
        Ok(leaf) => leaf?,
        Err(_) => {
            let seconds = HANDSHAKE_WITHIN.as_secs();
            return Err(format!("no handshake within {seconds} s"));
        }
    };
    Facts::of(&leaf).map_err(|error| error.to_string())
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

/// Accepts any certificate and keeps it; the signature must be valid.
#[derive(Debug)]
struct Witness {
    algorithms: WebPkiSupportedAlgorithms,
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
        verify_tls12_signature(message, leaf, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
