//! The operations that a shared store needs from a server: documents that are read, listed,
//! and written by compare-and-swap on their version. One file for each kind of server; one
//! test suite checks them all.

pub(super) mod directory;
mod etcd;
mod exchange;
#[cfg(test)]
mod fake;
pub(crate) mod memory;
mod named;
#[cfg(feature = "store-postgres")]
mod postgres;
mod s3;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use thiserror::Error;
use tokio::sync::watch;

pub(super) use self::named::{NamedDocuments, StoreKind};
pub(super) use self::settings::ServerSettings;
use crate::random::{Random, SystemRandom};
use crate::time::Timestamp;

/// The documents of a server; nothing is sent yet.
///
/// # Errors
/// What is invalid in the URL or in the environment.
pub(super) fn of_server(settings: ServerSettings) -> Result<Arc<dyn Documents>, String> {
    let (scheme, _) = settings.url.split_once("://").unwrap_or_default();
    match scheme {
        "s3" => Ok(Arc::new(s3::S3Documents::new(settings)?)),
        "etcd" | "etcds" => Ok(Arc::new(etcd::EtcdDocuments::new(&settings)?)),
        #[cfg(feature = "store-postgres")]
        "postgres" | "postgresql" => Ok(Arc::new(postgres::PostgresDocuments::new(&settings)?)),
        #[cfg(not(feature = "store-postgres"))]
        "postgres" | "postgresql" => {
            Err("this build has no PostgreSQL (its feature store-postgres)".to_owned())
        }
        _ => Err("the form is s3://…, etcd://…, etcds://… or postgres://…".to_owned()),
    }
}

/// What is said of a key that does not match its certificate.
const OTHERS_KEY: &str = "it is not the key of the certificate";

/// What to do about something invalid in a URL or in the environment of its kind of server.
pub(super) fn settings_hint(url: &str, said: &str) -> &'static str {
    let says = |word: &str| said.contains(word);
    let names = |settings: &[&str]| settings.iter().any(|name| said.starts_with(name));
    match () {
        // First: the path of a file may hold any word.
        () if names(&["sslrootcert", "ETCDCTL_CACERT"]) => {
            "name a file in PEM with the root of the server's certificate"
        }
        () if said.contains(OTHERS_KEY) => {
            "name the two files of one pair: openssl x509 -noout -pubkey -in CERT and openssl pkey -pubout -in KEY print the same"
        }
        () if names(&["sslcert", "sslkey"]) => {
            "name this client's certificate in sslcert and its key in sslkey, both in PEM, the key without a passphrase"
        }
        () if names(&["ETCDCTL_CERT", "ETCDCTL_KEY"]) => {
            "name this client's certificate in ETCDCTL_CERT and its key in ETCDCTL_KEY, both in PEM, the key without a passphrase"
        }
        () if says("AWS_ENDPOINT") => {
            "write https://HOST:PORT, or http:// for a host of a private network"
        }
        () if says("AWS_REGION") => "set it to the region of the bucket, such as eu-central-1",
        () if says("credentials") => "leave them out: docs/fleet.md says where S3's are found",
        () if says("ETCDCTL_PASSWORD") => {
            "write USER:PASSWORD@ before HOST, or set ETCDCTL_PASSWORD"
        }
        () if says("etcds://") => "write etcds:// in place of etcd://",
        () if says("sslmode") => {
            "write sslmode=disable, prefer, require or verify-full; only the last two outside a private network"
        }
        () if says("prefix") => {
            "a prefix has ASCII letters, digits, `.`, `_` and `-`, in parts between single slashes"
        }
        () if url.starts_with("s3:") => {
            "write s3://BUCKET/PREFIX, such as s3://example-certs/production"
        }
        () if url.starts_with("etcd") => {
            "write etcd://HOST:PORT/PREFIX, or etcds:// with TLS; further HOST:PORT follow after commas"
        }
        () => "write postgres://USER@HOST:PORT/DATABASE?prefix=PREFIX",
    }
}

/// A random number of 128 bits in hexadecimal digits, which is never drawn again.
fn drawn() -> String {
    let half = || SystemRandom.below(u64::MAX);
    format!("{:016x}{:016x}", half(), half())
}

/// What changes with every write of a document: a number or a tag of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version(pub(crate) String);

/// A stored document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Document {
    pub(crate) content: Vec<u8>,
    pub(crate) version: Version,
}

/// What a server tells of a document by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Notice {
    /// Nothing at this time: changes are found by reading only.
    #[default]
    Nothing,
    /// This is its newest version; `None`: there is no document.
    Newest(Option<Version>),
}

/// Why an operation failed.
#[derive(Debug, Error)]
pub(crate) enum DocumentsError {
    /// Another writer was faster; nothing was written.
    #[error("it was changed by another process")]
    Conflict,
    /// The server may have done it, or do it yet.
    #[error("{0}")]
    Unanswered(io::Error),
    /// Nothing was done.
    #[error("{0}")]
    Failed(io::Error),
}

/// The contract of every kind of server. A key is a path of ASCII letters, digits and
/// `._-/*`, at most 300 bytes long.
#[async_trait]
pub(crate) trait Documents: Send + Sync + fmt::Debug {
    /// The store as a user names it, if that is known.
    fn place(&self) -> &str {
        ""
    }

    /// The document, as it was at some instant after the call began.
    async fn read(&self, key: &str) -> Result<Option<Document>, DocumentsError>;

    /// Writes if the stored version is still `expected` (`None`: there is no document), and
    /// returns the new one. It is durable by then.
    async fn write(
        &self,
        key: &str,
        content: &[u8],
        expected: Option<&Version>,
    ) -> Result<Version, DocumentsError>;

    /// Removes the document if its version is still `expected`.
    async fn remove(&self, key: &str, expected: &Version) -> Result<(), DocumentsError>;

    /// The keys that begin with `prefix`, and their versions.
    async fn list(&self, prefix: &str) -> Result<BTreeMap<String, Version>, DocumentsError>;

    /// The time of the server's clock, to the second. The nodes' own clocks may differ.
    async fn time(&self) -> Result<Timestamp, DocumentsError>;

    /// Refuses a server that does not keep this contract, as far as that can be seen; the kind
    /// of that error is `Unsupported`.
    async fn probe(&self) -> Result<(), DocumentsError> {
        Ok(())
    }

    /// Puts into `notices` what the server tells of the document, by one long call, and by another
    /// one when that has ended. Returns at once on a server that tells nothing.
    async fn watch(&self, _key: &str, _notices: &watch::Sender<Notice>) {}
}
