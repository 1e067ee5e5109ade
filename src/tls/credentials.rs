//! The pairs that are served: checked once more, then swapped in one step.
//!
//! [`Publisher`] takes a pair in or refuses it, and then the last good one
//! stays. [`Credentials`] picks by server name (RFC 6066 section 3). A
//! handshake works on the pair that it began with, and a connection keeps what
//! its handshake gave it: a swap ends nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::{
    ClientHello, ResolvesServerCert, ServerConfig, ServerSessionMemoryCache, StoresServerSessions,
};
use rustls::sign::CertifiedKey;
use thiserror::Error;
use tokio::sync::watch;

use crate::certificate::{Bundle, BundleError, Freshness};
use crate::identifier::{Identifier, Lineage};
use crate::time::Clock;

/// Sessions that may be resumed (RFC 8446 section 2.2).
const SESSIONS: usize = 1024;
const HTTP_1_1: &[u8] = b"http/1.1";

/// Why a pair is not served.
#[derive(Debug, Error)]
#[allow(missing_docs)] // each message is its own documentation
pub enum PublishError {
    #[error("{0} is not among the certificates that are served here")]
    Unknown(Lineage),
    #[error("{lineage}: {source}")]
    Unsound {
        lineage: Lineage,
        source: BundleError,
    },
    #[error("{lineage}: the key cannot be used: {detail}")]
    Key { lineage: Lineage, detail: String },
}

/// Where new pairs go in.
pub struct Publisher {
    served: BTreeMap<Lineage, BTreeSet<Identifier>>,
    default: Option<Lineage>,
    table: watch::Sender<Arc<Table>>,
    clock: Arc<dyn Clock>,
}

/// What is served at this moment; shared by every listener.
pub struct Credentials {
    table: watch::Receiver<Arc<Table>>,
}

/// One state of what is served; never changed, only followed by another.
struct Table {
    exact: BTreeMap<Identifier, Arc<CertifiedKey>>,
    wildcards: Vec<(Identifier, Arc<CertifiedKey>)>,
    default: Option<Arc<CertifiedKey>>,
    pairs: BTreeMap<Lineage, Arc<CertifiedKey>>,
    /// Each state has its own: a resumed session shows no certificate, so none
    /// may outlive the pair that it began with.
    sessions: Arc<ServerSessionMemoryCache>,
}

impl Publisher {
    /// For certificates of these lineages and names. The first is also shown
    /// to whoever asks for no name, as for an IP address.
    #[must_use]
    pub fn new(
        served: Vec<(Lineage, BTreeSet<Identifier>)>,
        clock: Arc<dyn Clock>,
    ) -> (Self, Arc<Credentials>) {
        let default = served.first().map(|(lineage, _)| lineage.clone());
        let served: BTreeMap<_, _> = served.into_iter().collect();
        let empty = Table::of(&served, default.as_ref(), BTreeMap::new());
        let (sender, table) = watch::channel(Arc::new(empty));
        let publisher = Self {
            served,
            default,
            table: sender,
            clock,
        };
        (publisher, Arc::new(Credentials { table }))
    }

    /// Serves `bundle` from the next handshake on.
    ///
    /// # Errors
    /// When it is for other names, expired, or its parts disagree. What was
    /// served before is served still.
    pub fn publish(&self, lineage: &Lineage, bundle: &Bundle) -> Result<(), PublishError> {
        let pair = Arc::new(self.checked(lineage, bundle)?);
        self.table.send_modify(|table| {
            let mut pairs = table.pairs.clone();
            pairs.insert(lineage.clone(), pair);
            *table = Arc::new(Table::of(&self.served, self.default.as_ref(), pairs));
        });
        Ok(())
    }

    /// A bundle was sound when it was made; that may be long ago.
    fn checked(&self, lineage: &Lineage, bundle: &Bundle) -> Result<CertifiedKey, PublishError> {
        let identifiers = self
            .served
            .get(lineage)
            .ok_or_else(|| PublishError::Unknown(lineage.clone()))?;
        let sound = Bundle::new(
            bundle.key_pem().clone(),
            &bundle.chain_pem(),
            identifiers,
            self.clock.now(),
            Freshness::Stored,
        )
        .map_err(|source| PublishError::Unsound {
            lineage: lineage.clone(),
            source,
        })?;
        let unusable = |detail: String| PublishError::Key {
            lineage: lineage.clone(),
            detail,
        };
        let key = PrivateKeyDer::from_pem_slice(sound.key_pem().expose().as_bytes())
            .map_err(|error| unusable(error.to_string()))?;
        CertifiedKey::from_der(sound.chain().to_vec(), key, &aws_lc_rs::default_provider())
            .map_err(|error| unusable(error.to_string()))
    }
}

impl Credentials {
    /// What a listener hands to each handshake; it follows every swap.
    ///
    /// # Errors
    /// When the cryptographic library offers neither TLS 1.2 nor 1.3.
    pub fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, rustls::Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        config.session_storage = self.clone();
        config.alpn_protocols = vec![HTTP_1_1.to_vec()];
        Ok(Arc::new(config))
    }

    fn now(&self) -> Arc<Table> {
        self.table.borrow().clone()
    }
}

impl Table {
    fn of(
        served: &BTreeMap<Lineage, BTreeSet<Identifier>>,
        default: Option<&Lineage>,
        pairs: BTreeMap<Lineage, Arc<CertifiedKey>>,
    ) -> Self {
        let (mut exact, mut wildcards) = (BTreeMap::new(), Vec::new());
        for (lineage, pair) in &pairs {
            for identifier in served.get(lineage).into_iter().flatten() {
                if identifier.is_wildcard() {
                    wildcards.push((identifier.clone(), pair.clone()));
                } else {
                    exact.insert(identifier.clone(), pair.clone());
                }
            }
        }
        Self {
            exact,
            wildcards,
            default: default.and_then(|lineage| pairs.get(lineage).cloned()),
            pairs,
            sessions: ServerSessionMemoryCache::new(SESSIONS),
        }
    }

    /// The pair for `name`; one that names it comes before a wildcard. A name
    /// that nothing covers gets none, rather than one that it must refuse.
    fn pick(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let Some(name) = name else {
            return self.default.clone();
        };
        let name = Identifier::parse(name).ok()?;
        let covering = || {
            let mut wildcards = self.wildcards.iter();
            wildcards.find(|(pattern, _)| name.is_covered_by(pattern))
        };
        let exact = self.exact.get(&name);
        exact.or_else(|| Some(&covering()?.1)).cloned()
    }
}

impl ResolvesServerCert for Credentials {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.now().pick(hello.server_name())
    }
}

impl StoresServerSessions for Credentials {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        self.now().sessions.put(key, value)
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.now().sessions.get(key)
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.now().sessions.take(key)
    }

    fn can_cache(&self) -> bool {
        true
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher")
            .field("served", &self.served)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = self.now();
        f.debug_struct("Credentials")
            .field("pairs", &table.pairs.keys())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::pki_types::{CertificateDer, ServerName};
    use rustls::{ClientConfig, HandshakeKind, RootCertStore};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::tls::dialer::DialError;
    use crate::tls::fixture::{Authority, NOW, echoes, identifier, lineage, publisher, serve};
    use crate::tls::terminator::Limits;

    #[tokio::test]
    async fn a_swap_shows_in_the_next_handshake_and_ends_no_connection() {
        let authority = Authority::new();
        let (publisher, credentials, _) = publisher(&[&["example.com"]]);
        let (address, dialer) = (serve(&credentials, Limits::default()), authority.dialer());
        let name = identifier("example.com");
        let mut kept = Vec::new();
        for _ in 0..5 {
            let bundle = authority.bundle(&["example.com"]);
            publisher.publish(&lineage("example.com"), &bundle).unwrap();
            for _ in 0..4 {
                let (stream, leaf) = dialer.connect(address, &name).await.unwrap();
                assert_eq!(leaf, bundle.facts().fingerprint);
                kept.push(stream);
            }
            for stream in &mut kept {
                assert!(echoes(stream).await, "a swap ended a connection");
            }
        }
    }

    #[tokio::test]
    async fn what_is_not_sound_is_refused_and_the_last_good_pair_stays() {
        let authority = Authority::new();
        let (publisher, credentials, clock) = publisher(&[&["example.com"]]);
        let (address, dialer) = (serve(&credentials, Limits::default()), authority.dialer());
        let (name, of) = (identifier("example.com"), lineage("example.com"));
        let nothing_yet = dialer.connect(address, &name).await;
        assert!(matches!(nothing_yet, Err(DialError::Handshake(_))));
        let good = authority.bundle(&["example.com"]);
        publisher.publish(&of, &good).unwrap();
        let next = authority.bundle(&["example.com"]);

        let foreign = authority.bundle(&["example.com", "other.example"]);
        let refused = publisher.publish(&of, &foreign).unwrap_err();
        assert!(matches!(
            refused,
            PublishError::Unsound {
                source: BundleError::Names { .. },
                ..
            }
        ));
        let unknown = publisher
            .publish(&lineage("other.example"), &next)
            .unwrap_err();
        assert!(matches!(unknown, PublishError::Unknown(_)));
        clock.set(next.facts().not_after + Duration::from_secs(1));
        let refused = publisher.publish(&of, &next).unwrap_err();
        assert!(matches!(
            refused,
            PublishError::Unsound {
                source: BundleError::Expired(_),
                ..
            }
        ));

        let (_, leaf) = dialer.connect(address, &name).await.unwrap();
        assert_eq!(leaf, good.facts().fingerprint);
        clock.set(NOW);
        publisher.publish(&of, &next).unwrap();
        let (_, leaf) = dialer.connect(address, &name).await.unwrap();
        assert_eq!(leaf, next.facts().fingerprint);
    }

    #[test]
    fn the_name_picks_the_pair() {
        let authority = Authority::new();
        let served: [&[&str]; 3] = [
            &["example.com", "www.example.com"],
            &["*.example.com"],
            &["192.0.2.1", "ip.example"],
        ];
        let (publisher, credentials, _) = publisher(&served);
        let bundles = served.map(|names| {
            let bundle = authority.bundle(names);
            publisher.publish(&lineage(names[0]), &bundle).unwrap();
            bundle
        });
        let picked = |name: Option<&str>| {
            let pair = credentials.now().pick(name)?;
            bundles
                .iter()
                .position(|bundle| bundle.chain() == pair.cert)
        };
        assert_eq!(picked(Some("example.com")), Some(0));
        assert_eq!(
            picked(Some("WWW.example.com")),
            Some(0),
            "the exact name comes first"
        );
        assert_eq!(picked(Some("api.example.com")), Some(1));
        assert_eq!(
            picked(Some("a.b.example.com")),
            None,
            "a wildcard is one label"
        );
        assert_eq!(picked(Some("ip.example")), Some(2));
        assert_eq!(picked(Some("other.example")), None);
        assert_eq!(picked(Some("..")), None);
        assert_eq!(picked(None), Some(0), "no name: the first");
    }

    /// A client that resumes where it may; returns how its handshake went.
    async fn handshake(config: &Arc<ClientConfig>, address: std::net::SocketAddr) -> HandshakeKind {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("example.com").unwrap();
        let connector = tokio_rustls::TlsConnector::from(config.clone());
        let mut stream = connector.connect(name, stream).await.unwrap();
        // The tickets come with the first bytes that are read.
        stream.write_all(b"ping").await.unwrap();
        stream.read_exact(&mut [0; 4]).await.unwrap();
        stream.get_ref().1.handshake_kind().unwrap()
    }

    #[tokio::test]
    async fn sessions_are_resumed_but_never_across_a_swap() {
        let authority = Authority::new();
        let (publisher, credentials, _) = publisher(&[&["example.com"]]);
        let address = serve(&credentials, Limits::default());
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(authority.root().as_bytes()).unwrap())
            .unwrap();
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let config =
                ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                    .with_protocol_versions(&[version])
                    .unwrap()
                    .with_root_certificates(roots.clone())
                    .with_no_client_auth();
            let config = Arc::new(config);
            let publish =
                || publisher.publish(&lineage("example.com"), &authority.bundle(&["example.com"]));
            publish().unwrap();
            assert_eq!(handshake(&config, address).await, HandshakeKind::Full);
            assert_eq!(handshake(&config, address).await, HandshakeKind::Resumed);
            publish().unwrap();
            assert_eq!(handshake(&config, address).await, HandshakeKind::Full);
        }
    }
}
