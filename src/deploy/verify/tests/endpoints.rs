//! Endpoints that show their certificate in a way of their own.

use std::net::SocketAddr;
use std::path::Path;

use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::certificate::KeyType;

fn name(text: &str) -> Identifier {
    Identifier::parse(text).unwrap()
}

/// A self-signed certificate for `names`.
fn pair(key: KeyType, names: &[&str]) -> (Arc<CertifiedKey>, Fingerprint) {
    let pem = key.generate().unwrap();
    let key = rcgen::KeyPair::from_pem(pem.expose()).unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::CertificateParams::new(names).unwrap();
    let made = made.self_signed(&key).unwrap();
    let der = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = aws_lc_rs::default_provider();
    let chain = vec![made.der().clone()];
    let certified = CertifiedKey::from_der(chain, der, &provider).unwrap();
    (Arc::new(certified), Fingerprint::of(made.der()))
}

/// One pair for each kind of key, as nginx with two `ssl_certificate`.
#[derive(Debug)]
struct BothKinds([Arc<CertifiedKey>; 2]);

impl ResolvesServerCert for BothKinds {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let schemes: &[SignatureScheme] = hello.signature_schemes();
        let fits = |pair: &&Arc<CertifiedKey>| pair.key.choose_scheme(schemes).is_some();
        self.0.iter().find(fits).cloned()
    }
}

fn resolving(pairs: [Arc<CertifiedKey>; 2]) -> Arc<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let resolver = Arc::new(BothKinds(pairs));
    Arc::new(builder.with_no_client_auth().with_cert_resolver(resolver))
}

async fn look(endpoint: &Endpoint, at: &str, wanted: &Fingerprint) -> Result<Unreached, Unseen> {
    let place = ServedAt::Named(endpoint.clone());
    Handshake::default().look(&place, &name(at), wanted).await
}

#[tokio::test]
async fn each_of_two_key_kinds_is_seen() {
    let (ecdsa, ecdsa_print) = pair(KeyType::EcdsaP256, &["example.com"]);
    let (rsa, rsa_print) = pair(KeyType::Rsa2048, &["example.com"]);
    for both in [[ecdsa.clone(), rsa.clone()], [rsa, ecdsa]] {
        let (_switch, config) = watch::channel(resolving(both));
        let endpoint = serve(config).await;
        for wanted in [&ecdsa_print, &rsa_print] {
            look(&endpoint, "example.com", wanted).await.unwrap();
        }
        let other = look(&endpoint, "example.com", &Fingerprint::of(b"")).await;
        assert!(!other.unwrap_err().is_blind());
    }
}

#[tokio::test]
async fn server_that_demands_a_client_certificate_is_verified() {
    let (pair, print) = pair(KeyType::EcdsaP256, &["example.com"]);
    let mut roots = RootCertStore::empty();
    roots.add(pair.cert[0].clone()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let clients = clients.build().unwrap();
    for versions in [&[&rustls::version::TLS12], &[&rustls::version::TLS13]] {
        let builder = ServerConfig::builder_with_provider(provider.clone());
        let builder = builder.with_protocol_versions(versions).unwrap();
        let resolver = Arc::new(BothKinds([pair.clone(), pair.clone()]));
        let config = builder
            .with_client_cert_verifier(clients.clone())
            .with_cert_resolver(resolver);
        let (_switch, config) = watch::channel(Arc::new(config));
        let endpoint = serve(config).await;
        look(&endpoint, "example.com", &print).await.unwrap();
    }
}

/// A server that reads the header of `version` before TLS, and closes other connections.
async fn behind_balancer(config: Arc<ServerConfig>, version: &'static str) -> String {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, peer)) = socket.accept().await {
            let header = format!(
                "PROXY TCP4 {} {} {} {}\r\n",
                peer.ip(),
                address.ip(),
                peer.port(),
                address.port()
            );
            // Version 2 has 28 bytes for IPv4.
            let length = if version == "v1" { header.len() } else { 28 };
            let mut read = vec![0; length];
            let _ = stream.read_exact(&mut read).await;
            let is_v2 = read.starts_with(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c");
            if read == header.as_bytes() || version == "v2" && is_v2 {
                let _ = TlsAcceptor::from(config.clone()).accept(stream).await;
            }
        }
    });
    address.to_string()
}

#[tokio::test]
async fn endpoint_behind_a_balancer_gets_the_header() {
    let (config, print) = made();
    let first = behind_balancer(config.clone(), "v1").await;
    let second = behind_balancer(config.clone(), "v2").await;
    let endpoint = |text: String| text.parse::<Endpoint>().unwrap();
    // The first version is found out.
    for seen in [
        first.clone(),
        format!("{first}?proxy_protocol=v1"),
        format!("{second}?proxy_protocol=v2"),
    ] {
        look(&endpoint(seen), "example.com", &print).await.unwrap();
    }
    let wrong = endpoint(format!("{second}?proxy_protocol=v1"));
    assert!(look(&wrong, "example.com", &print).await.is_err());
}

#[tokio::test]
async fn unreachable_address_is_named_beside_a_reachable_one() {
    let (config, print) = made();
    let (_switch, config) = watch::channel(config);
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = serve_at(socket, config).port();
    let all = tokio::net::lookup_host(("localhost", port)).await.unwrap();
    let others = all.filter(|address| address.ip().to_string() != "127.0.0.1");
    let endpoint = format!("localhost:{port}").parse().unwrap();
    let unreached = look(&endpoint, "example.com", &print).await.unwrap();
    assert_eq!(unreached.len(), others.count(), "{unreached:?}");
}

/// A server that sends `reply` after the client's hello.
async fn replying(reply: &'static [u8]) -> Endpoint {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = socket.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(reply).await;
        }
    });
    address.to_string().parse().unwrap()
}

#[tokio::test]
async fn old_server_is_said_to_be_unprovable_here() {
    // Fatal alerts: protocol_version of TLS 1.1, and handshake_failure.
    for alert in [b"\x15\x03\x02\0\x02\x02\x46", b"\x15\x03\x03\0\x02\x02\x28"] {
        let endpoint = replying(alert).await;
        let unseen = look(&endpoint, "example.com", &Fingerprint::of(b"")).await;
        let unseen = unseen.unwrap_err();
        assert!(unseen.is_blind(), "{unseen}");
        assert!(
            unseen
                .to_string()
                .contains("cannot be proven with this client"),
            "{unseen}"
        );
    }
    // A name that the server refuses, and another protocol, are faults.
    for fault in [
        &b"\x15\x03\x03\0\x02\x02\x70"[..],
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ] {
        let endpoint = replying(fault).await;
        let unseen = look(&endpoint, "example.com", &Fingerprint::of(b"")).await;
        assert!(!unseen.unwrap_err().is_blind(), "{fault:?}");
    }
}

#[tokio::test]
async fn server_of_http3_alone_is_named() {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut asked = [0; 1500];
        while let Ok((length, peer)) = socket.recv_from(&mut asked).await {
            assert_eq!(length, 1200);
            let mut reply = [&[0x80, 0, 0, 0, 0], &asked[5..23], &[0, 0, 0, 1]].concat();
            // The connection's numbers change places.
            reply[5..14].copy_from_slice(&asked[14..23]);
            reply[14..23].copy_from_slice(&asked[5..14]);
            let _ = socket.send_to(&reply, peer).await;
        }
    });
    let endpoint = address.to_string().parse().unwrap();
    let unseen = look(&endpoint, "example.com", &Fingerprint::of(b"")).await;
    let unseen = unseen.unwrap_err();
    assert!(unseen.to_string().contains("HTTP/3"), "{unseen}");
    assert!(unseen.is_blind());
}

#[tokio::test]
async fn connection_without_a_route_is_blind() {
    let error = TcpStream::connect("127.0.0.1:1").await.unwrap_err();
    assert!(Unseen::unreachable(&error).is_blind());
    let no_route = std::io::Error::from(std::io::ErrorKind::NetworkUnreachable);
    assert!(matches!(
        Unseen::unreachable(&no_route).cause,
        Cause::NoRoute
    ));
}

/// Shows the wanted certificate for the names of `own`, and another site's for others.
struct OneSite(&'static str);

#[async_trait]
impl Verifier for OneSite {
    async fn look(
        &self,
        _: &ServedAt,
        asked: &Identifier,
        _: &Fingerprint,
    ) -> Result<Unreached, Unseen> {
        if *asked == name(self.0) {
            return Ok(Unreached::new());
        }
        let (pair, _) = pair(KeyType::EcdsaP256, &["default.test"]);
        let facts = crate::certificate::Facts::of(&pair.cert[0]).unwrap();
        Err(Unseen::other("another site".into(), facts))
    }
}

#[tokio::test]
async fn endpoint_is_verified_for_the_names_that_it_answers_to() {
    let (wanted, clock) = (Fingerprint::of(b""), SystemClock);
    let names = BTreeSet::from(["example.com", "turn.example.com"].map(name));
    let verified = async |place: &str, site: &'static str| {
        let verification = Verification {
            verifier: &OneSite(site),
            wanted: &wanted,
            clock: &clock,
            end: clock.stopwatch(),
        };
        let place = ServedAt::Named(place.parse().unwrap());
        verification.verify(&place, &names).await
    };
    for site in ["example.com", "turn.example.com"] {
        verified("192.0.2.1:443", site).await.unwrap();
        verified(&format!("{site}:443"), site).await.unwrap();
    }
    for (place, site) in [
        ("192.0.2.1:443", "other.test"),
        ("example.com:443", "turn.example.com"),
        (
            "192.0.2.1:443?names=example.com&names=turn.example.com",
            "example.com",
        ),
    ] {
        assert!(verified(place, site).await.is_err(), "{place}");
    }
}

/// A server at a Unix socket, which reads `header` first; without TLS if there is no `config`.
fn at_socket(path: &Path, header: &'static [u8], config: Option<Arc<ServerConfig>>) {
    let socket = tokio::net::UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = socket.accept().await {
            let mut read = vec![0; header.len()];
            let _ = stream.read_exact(&mut read).await;
            match &config {
                _ if read != header => {}
                Some(config) => drop(TlsAcceptor::from(config.clone()).accept(stream).await),
                None => {
                    let _ = stream.read(&mut [0; 4096]).await;
                    let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
                }
            }
        }
    });
}

#[tokio::test]
async fn unix_socket_is_seen_with_and_without_a_header() {
    let ((config, print), directory) = (made(), tempfile::tempdir().unwrap());
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    for (name, header, option) in [
        ("none", &b""[..], ""),
        // The first version is found out.
        ("found", b"PROXY UNKNOWN\r\n", ""),
        ("v1", b"PROXY UNKNOWN\r\n", "?proxy_protocol=v1"),
        ("v2", v2, "?proxy_protocol=v2"),
    ] {
        let path = directory.path().join(name);
        at_socket(&path, header, Some(config.clone()));
        let endpoint = format!("unix:{}{option}", path.display()).parse().unwrap();
        look(&endpoint, "example.com", &print).await.unwrap();
        let other = look(&endpoint, "example.com", &Fingerprint::of(b"")).await;
        let other = other.unwrap_err().to_string();
        let place = format!("unix:{} serves another", path.display());
        assert!(other.starts_with(&place), "{other}");
    }
}

#[tokio::test]
async fn plain_sockets_differ_from_those_with_tls() {
    let ((config, print), directory) = (made(), tempfile::tempdir().unwrap());
    let path = |name: &str| directory.path().join(name);
    at_socket(&path("plain"), b"", None);
    at_socket(&path("behind"), b"PROXY UNKNOWN\r\n", None);
    at_socket(&path("tls"), b"", Some(config));
    let port: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let is_plain = async |names: &[&str], more: &[SocketAddr]| {
        let sockets = names.iter().map(|name| ListenAddress::Unix(path(name)));
        let ports = more.iter().copied().map(ListenAddress::Tcp);
        let all: Vec<_> = sockets.chain(ports).collect();
        Handshake::default()
            .is_plain(&all, &name("example.com"))
            .await
    };
    assert!(is_plain(&["plain", "behind"], &[]).await);
    assert!(!is_plain(&["plain", "tls"], &[]).await);
    assert!(!is_plain(&["plain"], &[port]).await);
    assert!(!is_plain(&["absent"], &[]).await);
    // The others do not matter where one shows the certificate.
    let all = ["plain", "behind", "tls"].map(|name| ListenAddress::Unix(path(name)));
    let place = ServedAt::Found("nginx".into(), all.into());
    let looked = Handshake::default()
        .look(&place, &name("example.com"), &print)
        .await;
    looked.unwrap();
}

#[test]
fn socket_of_another_user_has_a_hint_of_its_own() {
    let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
    let unseen = Unseen::no_socket(Path::new("/run/app.sock"), &denied);
    assert!(unseen.is_blind() && unseen.to_string().contains("may not connect"));
    let place = ServedAt::Named("unix:/run/app.sock".parse().unwrap());
    let error = VerifyError::unseen(&place, &name("example.com"), &unseen);
    assert!(error.hint().contains("let that user write to the socket"));
}
