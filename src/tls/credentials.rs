//! The served pairs: each is checked again, then replaced in one step.
//!
//! [`Publisher`] accepts a pair or refuses it; after a refusal the last valid pair
//! stays. [`Credentials`] selects a pair by server name (RFC 6066 section 3). A new
//! pair never ends a handshake or a connection that uses an earlier one.

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
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::certificate::{Bundle, BundleError, Freshness};
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::net::listen::{self, Socket};
use crate::net::tls;
use crate::time::Clock;

/// Sessions kept for resumption (RFC 8446 section 2.2).
const SESSIONS: usize = 1024;

/// Why a pair is refused.
#[derive(Debug, Error)]
#[allow(missing_docs)] // each message is its own documentation
pub enum PublishError {
    #[error("unknown certificate {0}: it is not served here")]
    Unknown(Lineage),
    #[error("{lineage}: {source}")]
    Unsound {
        lineage: Lineage,
        source: BundleError,
    },
    #[error("{lineage}: unusable key: {detail}")]
    Key { lineage: Lineage, detail: String },
}

/// Publishes pairs to every listener.
pub struct Publisher {
    served: BTreeMap<Lineage, BTreeSet<Identifier>>,
    default: Option<Lineage>,
    table: watch::Sender<Arc<Table>>,
    clock: Arc<dyn Clock>,
}

/// The served pairs, shared by every listener.
pub struct Credentials {
    table: watch::Receiver<Arc<Table>>,
}

/// The served pairs at one moment; immutable, replaced as a whole.
struct Table {
    by_name: BTreeMap<Identifier, Arc<CertifiedKey>>,
    default: Option<Arc<CertifiedKey>>,
    pairs: BTreeMap<Lineage, Arc<CertifiedKey>>,
    /// One cache per table: a resumed session shows no certificate, so it must not
    /// outlive the pair of its first handshake.
    sessions: Arc<ServerSessionMemoryCache>,
}

impl Publisher {
    /// A publisher for certificates of these lineages and names. A client without a
    /// server name, as for an IP address, gets the first.
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
    /// When it is mismatched, expired or for other names; the earlier pair stays.
    pub fn publish(&self, lineage: &Lineage, bundle: &Bundle) -> Result<(), PublishError> {
        let pair = Arc::new(self.checked(lineage, bundle)?);
        self.table.send_modify(|table| {
            let mut pairs = table.pairs.clone();
            pairs.insert(lineage.clone(), pair);
            *table = Arc::new(Table::of(&self.served, self.default.as_ref(), pairs));
        });
        Ok(())
    }

    /// Checks the bundle again: it was valid when it was made, perhaps long ago.
    fn checked(&self, lineage: &Lineage, bundle: &Bundle) -> Result<CertifiedKey, PublishError> {
        let identifiers = self
            .served
            .get(lineage)
            .ok_or_else(|| PublishError::Unknown(lineage.clone()))?;
        let valid = Bundle::new(
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
        let key = PrivateKeyDer::from_pem_slice(valid.key_pem().expose().as_bytes())
            .map_err(|error| unusable(error.to_string()))?;
        CertifiedKey::from_der(valid.chain().to_vec(), key, &aws_lc_rs::default_provider())
            .map_err(|error| unusable(error.to_string()))
    }
}

impl Credentials {
    /// A listener's configuration; each handshake uses the newest pairs.
    ///
    /// # Errors
    /// When the cryptographic library offers neither TLS 1.2 nor 1.3.
    pub fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, rustls::Error> {
        let mut config = tls::server(self.clone())?;
        config.session_storage = self.clone();
        Ok(Arc::new(config))
    }

    /// Serves `router` on `listener` until the future is dropped, which closes every
    /// connection.
    /// An error is that of [`Self::server_config`].
    pub fn serve(
        self: &Arc<Self>,
        listener: TcpListener,
        router: axum::Router,
    ) -> Result<impl Future<Output = ()> + Send + use<>, rustls::Error> {
        let config = self.server_config()?;
        let tls = Box::new(move || config.clone());
        Ok(listen::serve(Socket::Tcp(listener), Some(tls), router))
    }

    fn table(&self) -> Arc<Table> {
        self.table.borrow().clone()
    }
}

impl Table {
    fn of(
        served: &BTreeMap<Lineage, BTreeSet<Identifier>>,
        default: Option<&Lineage>,
        pairs: BTreeMap<Lineage, Arc<CertifiedKey>>,
    ) -> Self {
        let by_name = pairs.iter().flat_map(|(lineage, pair)| {
            let names = served.get(lineage).into_iter().flatten();
            names.map(|name| (name.clone(), pair.clone()))
        });
        Self {
            by_name: by_name.collect(),
            default: default.and_then(|lineage| pairs.get(lineage).cloned()),
            pairs,
            sessions: ServerSessionMemoryCache::new(SESSIONS),
        }
    }

    /// The pair for `name`: an exact match before a wildcard. An unknown name gets no
    /// pair, because its client would refuse any.
    fn select(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let Some(name) = name else {
            return self.default.clone();
        };
        let name = Identifier::parse(name).ok()?;
        let wildcard = || {
            let mut patterns = self.by_name.iter();
            patterns.find(|(pattern, _)| name.is_covered_by(pattern))
        };
        let exact = self.by_name.get(&name);
        exact.or_else(|| Some(wildcard()?.1)).cloned()
    }
}

impl ResolvesServerCert for Credentials {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.table().select(hello.server_name())
    }
}

impl StoresServerSessions for Credentials {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        self.table().sessions.put(key, value)
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.table().sessions.get(key)
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.table().sessions.take(key)
    }

    fn can_cache(&self) -> bool {
        true
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.table().pairs.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::pki_types::{CertificateDer, ServerName};
    use rustls::{ClientConfig, HandshakeKind, RootCertStore};
    use tokio::net::TcpStream;

    use super::*;
    use crate::tls::dialer::DialError;
    use crate::tls::fakes::{Authority, NOW, identifier, is_served, lineage, publisher, serve};

    #[tokio::test]
    async fn published_pair_shows_in_the_next_handshake_and_ends_no_connection() {
        let authority = Authority::new();
        let (publisher, credentials, _) = publisher(&[&["example.com"]]);
        let (address, dialer) = (serve(&credentials), authority.dialer());
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
                assert!(is_served(stream).await, "a new pair ended a connection");
            }
        }
    }

    #[tokio::test]
    async fn publish_refuses_invalid_pair_and_keeps_the_last_valid_one() {
        let authority = Authority::new();
        let (publisher, credentials, clock) = publisher(&[&["example.com"]]);
        let (address, dialer) = (serve(&credentials), authority.dialer());
        let (name, of) = (identifier("example.com"), lineage("example.com"));
        let before_any = dialer.connect(address, &name).await;
        assert!(matches!(before_any, Err(DialError::Handshake(_))));
        let first = authority.bundle(&["example.com"]);
        publisher.publish(&of, &first).unwrap();
        let next = authority.bundle(&["example.com"]);

        let mismatched = authority.bundle(&["other.example"]);
        let refused = publisher.publish(&of, &mismatched).unwrap_err();
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
        assert_eq!(leaf, first.facts().fingerprint);
        clock.set(NOW);
        publisher.publish(&of, &next).unwrap();
        let (_, leaf) = dialer.connect(address, &name).await.unwrap();
        assert_eq!(leaf, next.facts().fingerprint);
    }

    #[test]
    fn server_name_selects_the_pair() {
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
        let selected = |name: Option<&str>| {
            let pair = credentials.table().select(name)?;
            bundles
                .iter()
                .position(|bundle| bundle.chain() == pair.cert)
        };
        assert_eq!(selected(Some("example.com")), Some(0));
        assert_eq!(
            selected(Some("WWW.example.com")),
            Some(0),
            "the exact name comes first"
        );
        assert_eq!(selected(Some("api.example.com")), Some(1));
        assert_eq!(
            selected(Some("a.b.example.com")),
            None,
            "a wildcard is one label"
        );
        assert_eq!(selected(Some("ip.example")), Some(2));
        assert_eq!(selected(Some("other.example")), None);
        assert_eq!(selected(Some("..")), None);
        assert_eq!(selected(None), Some(0), "no name: the first");
    }

    /// Connects with a client that resumes sessions; returns the kind of handshake.
    async fn handshake(config: &Arc<ClientConfig>, address: std::net::SocketAddr) -> HandshakeKind {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("example.com").unwrap();
        let connector = tokio_rustls::TlsConnector::from(config.clone());
        let mut stream = connector.connect(name, stream).await.unwrap();
        // Session tickets arrive with the first bytes read.
        assert!(is_served(&mut stream).await);
        stream.get_ref().1.handshake_kind().unwrap()
    }

    #[tokio::test]
    async fn session_is_resumed_only_until_the_next_pair() {
        let authority = Authority::new();
        let (publisher, credentials, _) = publisher(&[&["example.com"]]);
        let address = serve(&credentials);
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
