//! TLS 1.2 and 1.3 by aws-lc-rs, with the same parameters for every client and listener.
//! An error means that the library offers neither version.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, ResolvesServerCert};
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, Error, RootCertStore,
    ServerConfig, SignatureScheme, WantsVerifier,
};
use x509_parser::prelude::{FromDer, X509Certificate};

/// A client's configuration, which still lacks the verification of the server.
pub(crate) fn client() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, Error> {
    ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
}

/// A client that trusts `roots`.
pub(crate) fn trusting(roots: RootCertStore) -> Result<ClientConfig, Error> {
    let client = client()?.with_root_certificates(roots);
    Ok(client.with_no_client_auth())
}

/// The same, and trusts a server that shows one of `own` itself: a self-signed certificate
/// may be that of a server and call itself a CA, which no path of issuers allows.
pub(crate) fn trusting_own(
    roots: RootCertStore,
    own: Vec<CertificateDer<'static>>,
) -> Result<ClientConfig, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
    let path = verifier
        .build()
        .map_err(|error| Error::General(error.to_string()))?;
    let verifier = Arc::new(OwnRoots { path, own });
    let client = client()?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    Ok(client.with_no_client_auth())
}

/// Verifies by a path to a root, or that the leaf is a trusted root itself.
#[derive(Debug)]
struct OwnRoots {
    path: Arc<WebPkiServerVerifier>,
    own: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for OwnRoots {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        issuers: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        stapled: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = (self.path).verify_server_cert(leaf, issuers, name, stapled, now);
        match verified {
            // Its dates were checked before: an error of theirs has its own variant.
            Err(Error::InvalidCertificate(CertificateError::Other(_)))
                if self.own.iter().any(|own| own == leaf) =>
            {
                let parsed = ParsedCertificate::try_from(leaf)?;
                verify_server_name(&parsed, name).map(|()| ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.path.verify_tls12_signature(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.path.verify_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.path.supported_verify_schemes()
    }
}

/// A client that takes any certificate whose key the server holds: the caller judges it.
pub(crate) fn accepting_any() -> Result<ClientConfig, Error> {
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
    let verifier = Arc::new(AnyCertificate(algorithms));
    let client = client()?.dangerous();
    Ok(client
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl AnyCertificate {
    /// By the leaf's key alone: webpki refuses a leaf with a critical extension that it does
    /// not know, as that of TLS-ALPN-01.
    fn verify(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let bad = |error| Error::InvalidCertificate(error);
        let parsed = X509Certificate::from_der(leaf);
        let (_, parsed) = parsed.map_err(|_| bad(CertificateError::BadEncoding))?;
        let key = &parsed.public_key().subject_public_key.data;
        let known = self.0.mapping.iter();
        let mut known = known.filter(|(scheme, _)| *scheme == signed.scheme);
        let verified = known.any(|(_, algorithms)| {
            let mut algorithms = algorithms.iter();
            algorithms.any(|one| {
                one.verify_signature(key, message, signed.signature())
                    .is_ok()
            })
        });
        match verified {
            true => Ok(HandshakeSignatureValid::assertion()),
            false => Err(bad(CertificateError::BadSignature)),
        }
    }
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

/// A listener for HTTP/1.1 with the pairs that `pairs` selects.
pub(crate) fn server(pairs: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(pairs);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The public roots that are built in.
pub(crate) fn public_roots() -> RootCertStore {
    RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned())
}

/// Adds the root certificates of a CA in `pem` to `roots`, and returns them.
///
/// # Errors
/// When `pem` contains no certificate, or an invalid one.
pub(crate) fn add_roots(
    roots: &mut RootCertStore,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut own = Vec::new();
    for root in CertificateDer::pem_slice_iter(pem) {
        let root = root.map_err(|_| "the CA's root is not readable PEM")?;
        own.push(root.clone());
        let added = roots.add(root);
        added.map_err(|error| format!("the CA's root is not usable: {error}"))?;
    }
    match own.is_empty() {
        false => Ok(own),
        true => Err("there is no certificate in the file of the CA's root".into()),
    }
}
