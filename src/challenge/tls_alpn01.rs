//! The listener on port 443 for TLS-ALPN-01 (RFC 8737; RFC 8738 for addresses). It
//! completes a handshake only with a client that offers `acme-tls/1` alone and names an
//! identifier with a live answer. It shows the certificate of that answer, then closes the
//! connection. It has no other certificate, and serves nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};

use super::protocol::{Listen, Protocol, RequestCounter};
use super::responses::Responses;
use super::{ChallengeKind, Solver, SolverSettings, Unfit};
use crate::identifier::Identifier;
use crate::net::listen::Limits;
use crate::net::tls;

/// The protocol of RFC 8737 section 6.2.
const PROTOCOL: &[u8] = b"acme-tls/1";

pub(super) const LIMITS: Limits = Limits {
    silent: 512,
    connections: 96,
    by_address: 48,
    head: Duration::from_secs(2),
    handshake: Duration::from_secs(2),
    // Nothing follows the handshake.
    connection: Duration::ZERO,
    largest_head: 8 * 1024,
};

/// The addresses of the listener; an empty list means port 443 of all addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Settings(Vec<SocketAddr>);

impl Settings {
    /// The settings for these addresses.
    #[must_use]
    pub fn new(addresses: Vec<SocketAddr>) -> Self {
        Self(addresses)
    }
}

impl SolverSettings for Settings {
    fn solver(&self, responses: &Responses) -> Arc<dyn Solver> {
        responses.solver(ChallengeKind::TlsAlpn01)
    }

    fn kind(&self) -> ChallengeKind {
        ChallengeKind::TlsAlpn01
    }

    fn solver_key(&self) -> String {
        // Every listener serves all responses, whatever its address.
        "tls-alpn".to_owned()
    }

    fn listens(&self) -> Vec<Listen> {
        Protocol::Tls.at(&self.0)
    }

    fn check_name(&self, name: &Identifier) -> Result<(), Unfit> {
        if !name.is_wildcard() {
            return Ok(());
        }
        Err(Unfit {
            message: format!("{name}: TLS-ALPN-01 cannot prove a wildcard"),
            hint: super::WILDCARD_HINT.into(),
        })
    }
}

/// The listener's configuration of TLS.
pub(super) fn config(
    responses: Responses,
    tally: RequestCounter,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = tls::server(Arc::new(Answers { responses, tally }))?;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// The certificates of the live answers.
struct Answers {
    responses: Responses,
    tally: RequestCounter,
}

impl std::fmt::Debug for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Answers")
    }
}

impl ResolvesServerCert for Answers {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let offers = hello.alpn().map(Iterator::collect::<Vec<_>>);
        // RFC 8737 section 3: a CA offers this protocol alone.
        if offers.as_deref() != Some(&[PROTOCOL]) {
            (self.tally)("refused");
            return None;
        }
        let wanted = hello.server_name().unwrap_or_default();
        let is_wanted = |one: &Identifier| one.challenge_server_name().eq_ignore_ascii_case(wanted);
        let Some((identifier, answer)) = self.responses.find(ChallengeKind::TlsAlpn01, is_wanted)
        else {
            (self.tally)("unknown");
            return None;
        };
        let certified = certificate(&identifier, &answer);
        let certified = certified.inspect_err(
            |error| tracing::error!(%identifier, "no certificate for TLS-ALPN-01: {error}"),
        );
        (self.tally)("answered");
        certified.ok().map(Arc::new)
    }
}

/// A self-signed certificate for `identifier` with the digest of the answer (RFC 8737
/// section 3).
fn certificate(identifier: &Identifier, answer: &str) -> Result<CertifiedKey, String> {
    let failed = |error: rcgen::Error| error.to_string();
    let mut params = CertificateParams::new(vec![identifier.to_string()]).map_err(failed)?;
    let answer = digest(&SHA256, answer.as_bytes());
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(answer.as_ref())];
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.self_signed(&key).map_err(failed)?;
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let key = any_supported_type(&key).map_err(|error| error.to_string())?;
    // Not checked: webpki knows no critical extension like that.
    Ok(CertifiedKey::new(vec![certificate.der().clone()], key))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::FutureExt;
    use rustls::pki_types::ServerName;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;
    use crate::challenge::listen::Listener;
    use crate::challenge::{Answer, Token};

    const AUTHORIZATION: &str = "abcdefghijklmnopqrstuv.thumbprint";

    /// The leaf that a client with these offers gets for `name`.
    async fn shown(server: &Arc<ServerConfig>, name: &str, offers: &[&[u8]]) -> Option<Vec<u8>> {
        let mut config = tls::accepting_any().unwrap();
        config.alpn_protocols = offers.iter().map(|one| one.to_vec()).collect();
        let (near, far) = tokio::io::duplex(64 << 10);
        let accepted = TlsAcceptor::from(server.clone()).accept(far);
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let connected = TlsConnector::from(Arc::new(config)).connect(name, near);
        let (connected, _accepted) = tokio::join!(connected, accepted);
        let connected = connected.ok()?;
        let (_, session) = connected.get_ref();
        assert_eq!(session.alpn_protocol(), Some(PROTOCOL));
        Some(session.peer_certificates().unwrap()[0].to_vec())
    }

    fn answer(identifier: &str) -> Answer {
        Answer {
            kind: ChallengeKind::TlsAlpn01,
            identifier: identifier.parse().unwrap(),
            token: Token::parse(&AUTHORIZATION[..22]).unwrap(),
            key_authorization: AUTHORIZATION.to_owned(),
            account: Default::default(),
        }
    }

    fn serve(responses: &Responses, tally: RequestCounter) -> SocketAddr {
        let address = ([127, 0, 0, 1], 0).into();
        let protocol = Protocol::Tls;
        let listener = Listener::bind(&Listen { protocol, address }, responses).unwrap();
        let address = listener.addresses()[0];
        tokio::spawn(listener.counted_by(tally).serve());
        address
    }

    #[tokio::test]
    async fn live_answer_shows_its_certificate_to_the_protocol_alone() {
        let responses = Responses::default();
        let counted = Arc::new(Mutex::new(Vec::new()));
        let tally = counted.clone();
        let tally = Arc::new(move |one| tally.lock().unwrap().push(one));
        let server = config(responses.clone(), tally).unwrap();
        let solver = Settings::default().solver(&responses);
        let live = answer("example.com");
        solver.present(&live).await.unwrap();
        let (leaf, ()) = tokio::join!(
            shown(&server, "EXAMPLE.com", &[PROTOCOL]),
            solver.observed(&live)
        );
        let leaf = leaf.unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&leaf).unwrap();
        let names = parsed.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names.len(), 1);
        let extension = parsed.extensions().iter();
        let mut extension = extension.filter(|one| one.oid.to_id_string() == "1.3.6.1.5.5.7.1.31");
        let extension = extension.next().unwrap();
        let digest = digest(&SHA256, AUTHORIZATION.as_bytes());
        assert!(extension.critical && extension.value.ends_with(digest.as_ref()));

        let http: &[u8] = b"http/1.1";
        for (name, offers) in [
            ("example.com", &[][..]),
            ("example.com", &[http]),
            ("example.com", &[PROTOCOL, http]),
            ("www.example.com", &[PROTOCOL]),
            ("192.0.2.1", &[PROTOCOL]),
        ] {
            assert_eq!(
                shown(&server, name, offers).await,
                None,
                "{name} {offers:?}"
            );
        }
        solver.clean_up(&live).await.unwrap();
        assert_eq!(shown(&server, "example.com", &[PROTOCOL]).await, None);
        let counted = counted.lock().unwrap();
        let (refused, unknown) = ("refused", "unknown");
        let expected = [
            "answered", refused, refused, refused, unknown, unknown, unknown,
        ];
        assert_eq!(*counted, expected);
    }

    #[tokio::test]
    async fn request_in_the_last_part_of_a_handshake_is_not_served() {
        let responses = Responses::default();
        let address = serve(&responses, Arc::new(|_| {}));
        let solver = Settings::default().solver(&responses);
        solver.present(&answer("example.com")).await.unwrap();
        let mut config = tls::accepting_any().unwrap();
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        let name = ServerName::try_from("example.com").unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut received = [0; 8192];
        while client.is_handshaking() {
            let mut sent = Vec::new();
            client.write_tls(&mut sent).unwrap();
            stream.write_all(&sent).await.unwrap();
            let length = stream.read(&mut received).await.unwrap();
            assert!(length > 0);
            client.read_tls(&mut &received[..length]).unwrap();
            client.process_new_packets().unwrap();
        }
        let mut last = Vec::new();
        let request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        std::io::Write::write_all(&mut client.writer(), request).unwrap();
        while client.wants_write() {
            client.write_tls(&mut last).unwrap();
        }
        stream.write_all(&last).await.unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        assert_eq!(rest, b"");
    }

    #[tokio::test]
    async fn orders_that_share_a_name_answer_one_after_the_other() {
        let responses = Responses::default();
        let solver = Settings::default().solver(&responses);
        let names = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
        let first = solver.reserve(&names(&["a.example", "b.example"])).await;
        let apart = solver.reserve(&names(&["c.example"])).now_or_never();
        assert!(apart.is_some());
        let wanted = names(&["b.example", "d.example"]);
        let mut second = solver.reserve(&wanted);
        assert!((&mut second).now_or_never().is_none());
        // It keeps no name while it waits.
        let other = solver.reserve(&names(&["d.example"])).now_or_never();
        drop((other, first));
        assert!(second.await.is_some());
        let http = responses.solver(ChallengeKind::Http01);
        assert!(http.reserve(&wanted).await.is_none(), "found by its token");
    }

    #[tokio::test]
    async fn answer_replaces_one_of_the_same_name() {
        let responses = Responses::default();
        let solver = Settings::default().solver(&responses);
        let mut live = answer("a.example");
        solver.present(&live).await.unwrap();
        live.token = Token::parse(&"b".repeat(22)).unwrap();
        live.key_authorization = format!("{}.thumbprint", "b".repeat(22));
        solver.present(&live).await.unwrap();
        let found = responses.find(ChallengeKind::TlsAlpn01, |name| *name == live.identifier);
        assert_eq!(found.unwrap().1, live.key_authorization);
        solver.clean_up(&live).await.unwrap();
        assert_eq!(responses.find(ChallengeKind::TlsAlpn01, |_| true), None);
    }

    #[tokio::test]
    async fn address_is_asked_for_by_its_reverse_name() {
        let responses = Responses::default();
        let server = config(responses.clone(), Arc::new(|_| {})).unwrap();
        let solver = Settings::default().solver(&responses);
        for (identifier, name) in [
            ("192.0.2.7", "7.2.0.192.in-addr.arpa".to_owned()),
            (
                "2001:db8::1",
                format!("1.{}8.b.d.0.1.0.0.2.ip6.arpa", "0.".repeat(23)),
            ),
        ] {
            let live = answer(identifier);
            solver.present(&live).await.unwrap();
            let leaf = shown(&server, &name, &[PROTOCOL]).await;
            assert!(leaf.is_some(), "{name}");
            solver.clean_up(&live).await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn stalled_handshake_is_cut_after_two_seconds() {
        let address = serve(&Responses::default(), Arc::new(|_| {}));
        for begun in [&b""[..], &[22, 3, 1, 1, 0]] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(begun).await.unwrap();
            let since = tokio::time::Instant::now();
            let _ = stream.read_to_end(&mut Vec::new()).await;
            let waited = since.elapsed();
            assert!(waited >= LIMITS.handshake, "{waited:?}");
            assert!(waited < LIMITS.handshake * 2, "{waited:?}");
        }
    }

    #[test]
    fn wildcard_is_refused() {
        let wildcard = "*.example.com".parse().unwrap();
        let unfit = Settings::default().check_name(&wildcard).unwrap_err();
        assert!(
            unfit
                .message
                .contains("TLS-ALPN-01 cannot prove a wildcard")
        );
    }
}
