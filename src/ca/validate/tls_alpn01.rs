//! TLS-ALPN-01 (RFC 8737 section 3; RFC 8738 section 6 for addresses): one handshake, and
//! what its certificate must say.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{DEADLINE, Problem, Resolve, connect, shown};
use crate::ca::problem::ErrorType;
use crate::identifier::Identifier;
use crate::net::tls;

const PROTOCOL: &[u8] = b"acme-tls/1";
/// id-pe-acmeIdentifier, RFC 8737 section 6.1.
const ACME_IDENTIFIER: &str = "1.3.6.1.5.5.7.1.31";

/// Compares the certificate that `identifier` shows on `port` with `expected`, the key
/// authorization.
pub(super) async fn validate(
    identifier: &Identifier,
    expected: &str,
    port: u16,
    resolve: Resolve,
) -> Result<(), Problem> {
    let seen = tokio::time::timeout(DEADLINE, handshake(identifier, port, resolve)).await;
    let leaf = seen.unwrap_or_else(|_| {
        let detail = format!("{identifier}: no TLS handshake on port {port} within 5 s");
        Err(Problem::new(ErrorType::Connection, detail))
    })?;
    check(identifier, expected, &leaf).map_err(|wrong| {
        let detail = format!("{identifier}: the certificate for acme-tls/1 {wrong}");
        Problem::new(ErrorType::Unauthorized, detail)
    })
}

async fn handshake(
    identifier: &Identifier,
    port: u16,
    resolve: Resolve,
) -> Result<CertificateDer<'static>, Problem> {
    let (address, stream) = connect(identifier, port, resolve).await?;
    let name = ServerName::try_from(identifier.challenge_server_name());
    let name = name.map_err(|error| Problem::internal(&error))?;
    let mut config = tls::accepting_any().map_err(|error| Problem::internal(&error))?;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    let connected = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await;
    let failed = |why: String| {
        let detail = format!("{identifier} at {address}: {why}");
        Problem::new(ErrorType::Tls, detail)
    };
    let connected = connected.map_err(|error| {
        let error = shown(error.to_string().as_bytes());
        failed(format!("no TLS handshake for acme-tls/1: {error}"))
    })?;
    let (_, session) = connected.get_ref();
    if session.alpn_protocol() != Some(PROTOCOL) {
        return Err(failed("the server did not choose acme-tls/1".into()));
    }
    let leaf = session.peer_certificates().and_then(|chain| chain.first());
    let leaf = leaf.ok_or_else(|| failed("the server showed no certificate".into()))?;
    Ok(leaf.clone().into_owned())
}

fn check(identifier: &Identifier, expected: &str, leaf: &[u8]) -> Result<(), &'static str> {
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|_| "is not valid")?;
    let names = leaf.subject_alternative_name().ok().flatten();
    let names = names.map(|names| &names.value.general_names);
    let is_own = |name: &GeneralName<'_>| match (name, identifier) {
        (GeneralName::DNSName(name), Identifier::Dns(own)) => {
            name.eq_ignore_ascii_case(own.as_str())
        }
        (GeneralName::IPAddress(bytes), Identifier::Ip(std::net::IpAddr::V4(own))) => {
            *bytes == own.octets()
        }
        (GeneralName::IPAddress(bytes), Identifier::Ip(std::net::IpAddr::V6(own))) => {
            *bytes == own.octets()
        }
        _ => false,
    };
    match names.map(Vec::as_slice) {
        Some([name]) if is_own(name) => {}
        _ => return Err("does not have this one name alone"),
    }
    let mut extensions = leaf.extensions().iter();
    let extension = extensions.find(|one| one.oid.to_id_string() == ACME_IDENTIFIER);
    let extension = extension.ok_or("lacks the extension acmeIdentifier")?;
    let expected = digest(&SHA256, expected.as_bytes());
    // An OCTET STRING of 32 bytes.
    let expected = [&[4, 32], expected.as_ref()].concat();
    match (extension.critical, extension.value == expected) {
        (true, true) => Ok(()),
        (false, _) => Err("has an extension acmeIdentifier that is not critical"),
        (_, false) => Err("has another key authorization's digest"),
    }
}
