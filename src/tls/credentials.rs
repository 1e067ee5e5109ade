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
