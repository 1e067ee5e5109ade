//! The documents of a store as a user names it: each error says which store it is about, and what
//! helps there.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;

use super::{Document, Documents, DocumentsError, Notice, Version};
use crate::failure::Advised;
use crate::time::Timestamp;

/// A kind of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum StoreKind {
    Directory,
    S3,
    Etcd,
    Postgres,
}

/// The documents of the store `place`.
#[derive(Debug)]
pub(in super::super) struct NamedDocuments {
    pub(in super::super) documents: Arc<dyn Documents>,
    pub(in super::super) kind: StoreKind,
    /// Without a password.
    pub(in super::super) place: String,
}

impl NamedDocuments {
    fn explain<T>(&self, done: Result<T, DocumentsError>) -> Result<T, DocumentsError> {
        let explained = |error| self.kind.explained(&self.place, error);
        done.map_err(|error| match error {
            DocumentsError::Conflict => DocumentsError::Conflict,
            DocumentsError::Unanswered(error) => DocumentsError::Unanswered(explained(error)),
            DocumentsError::Failed(error) => DocumentsError::Failed(explained(error)),
        })
    }
}

impl StoreKind {
    /// The same error, which names the store and what helps.
    pub(in super::super) fn explained(self, place: &str, error: io::Error) -> io::Error {
        let hint = self.hint(&error);
        let message = format!("{place}: {error}");
        io::Error::new(error.kind(), Advised { message, hint })
    }

    /// What helps against an error of such a store.
    pub(super) fn hint(self, error: &io::Error) -> &'static str {
        let said = error.to_string();
        let says = |words: &[&str]| words.iter().any(|word| said.contains(word));
        match self {
            _ if says(&["NotValidForName"]) || says(&["not valid for name"]) => {
                "name the server in store as its certificate does"
            }
            _ if says(&["UnknownIssuer"]) && self == Self::Postgres => {
                "name the root of the server's certificate in sslrootcert"
            }
            _ if says(&["UnknownIssuer"]) => {
                "name the root of the server's certificate in SSL_CERT_FILE"
            }
            Self::Etcd if says(REFUSED) => {
                "name a client certificate that etcd trusts in ETCDCTL_CERT, and its key in ETCDCTL_KEY"
            }
            Self::Postgres if says(REFUSED) => {
                "name a client certificate that the server trusts in sslcert, and its key in sslkey"
            }
            _ if says(&["invalid peer certificate"]) => {
                "renew the certificate of the store's server; this machine's clock must be right, too"
            }
            Self::S3 => s3_hint(&says, error.kind()),
            Self::Etcd => etcd_hint(&says, error.kind()),
            Self::Postgres => postgres_hint(&says),
            Self::Directory => directory_hint(error.kind()),
        }
    }
}

/// What a server says that misses a client's certificate, or refuses one.
const REFUSED: &[&str] = &[
    "valid client certificate",
    "alert: CertificateRequired",
    "alert: BadCertificate",
    "alert: UnknownCA",
    "alert: CertificateExpired",
    "alert: CertificateUnknown",
    "alert: UnsupportedCertificate",
];

/// Whether an error says one of these words.
type Says<'s> = dyn Fn(&[&str]) -> bool + 's;

fn s3_hint(says: &Says<'_>, kind: ErrorKind) -> &'static str {
    match () {
        () if says(&["Skewed", "RequestExpired"]) => "set this machine's clock, best by NTP",
        () if says(&["NoSuchBucket"]) => "create the bucket, or correct its name in store",
        () if says(&["AWS_REGION", "AuthorizationHeaderMalformed"]) => {
            "set AWS_REGION to the region of the bucket"
        }
        () if says(&["AccessDenied"]) => {
            "give these credentials s3:GetObject, s3:PutObject and s3:DeleteObject on BUCKET/PREFIX/*, and s3:ListBucket on the bucket"
        }
        () if says(&["Quota", "Full", "507"]) => "free space there, or raise the bucket's quota",
        () if says(&["credentials"]) => {
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a role"
        }
        () if says(&["newer"]) => "update certs on this machine",
        () if says(&["another"]) => "name a prefix in store that no other program uses",
        () if says(&["not as S3 does"]) => {
            "AWS_ENDPOINT_URL must name the S3 server itself, not a proxy or a web page"
        }
        () if kind == ErrorKind::Unsupported => {
            "docs/fleet.md lists the servers that compare and swap"
        }
        () if kind == ErrorKind::PermissionDenied => {
            "correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or this machine's role"
        }
        () => "check the address of the bucket, and that this machine reaches it",
    }
}

fn etcd_hint(says: &Says<'_>, kind: ErrorKind) -> &'static str {
    match () {
        () if says(&["space"]) => {
            "make space in etcd: etcdctl compact and defrag, then etcdctl alarm disarm"
        }
        () if says(&["authentication is not enabled"]) => {
            "leave USER:PASSWORD@ out of store, or enable authentication in etcd"
        }
        () if says(&["permission"]) => {
            "give the user a role with readwrite on the prefix: etcdctl role grant-permission ROLE --prefix=true readwrite PREFIX/"
        }
        () if says(&["404"]) => "enable the JSON gateway of etcd: its option enable-grpc-gateway",
        () if says(&["leader", "unhealthy"]) => "start more members of etcd: it needs a majority",
        () if kind == ErrorKind::PermissionDenied => {
            "correct USER:PASSWORD@ in store, or ETCDCTL_PASSWORD"
        }
        () => "check HOST:PORT in store, and that this machine reaches one member of etcd",
    }
}

fn postgres_hint(says: &Says<'_>) -> &'static str {
    match () {
        () if says(&["read-only", "25006"]) => "name the primary server in store",
        () if says(&["pg_hba", "28000"]) => {
            "let this machine in with a line of pg_hba.conf, or add sslmode=require where the server wants TLS"
        }
        () if says(&["28P01", "password"]) => "correct the password in store, or PGPASSWORD",
        () if says(&["3D000"]) => "create the database, or correct its name in store",
        () if says(&["42501"]) => {
            "grant the user SELECT, INSERT, UPDATE and DELETE on certs_documents, and CREATE on its schema until the table is there"
        }
        () if says(&["53100", "53200"]) => "free disk space or memory of the database server",
        () if says(&["53300"]) => {
            "raise max_connections of the server: each machine has one connection"
        }
        () if says(&["57P03"]) => "wait until the database server has started",
        () if says(&["sslmode"]) => "enable TLS in the server, or leave sslmode out",
        () => "check HOST:PORT in store, and that this machine reaches the server",
    }
}

fn directory_hint(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::PermissionDenied => {
            "all machines must run certs as the user that owns the shared directory: chown it"
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "free space in the shared directory",
        ErrorKind::ReadOnlyFilesystem => "mount the shared directory for writing",
        ErrorKind::NotADirectory => {
            "mount the shared directory on this machine; for a new fleet make it once, owned by the user of certs"
        }
        _ => "check that the shared directory is mounted on this machine, and its server answers",
    }
}

#[async_trait]
impl Documents for NamedDocuments {
    fn place(&self) -> &str {
        &self.place
    }

    async fn read(&self, key: &str) -> Result<Option<Document>, DocumentsError> {
        self.explain(self.documents.read(key).await)
    }

    async fn write(
        &self,
        key: &str,
        content: &[u8],
        expected: Option<&Version>,
    ) -> Result<Version, DocumentsError> {
        self.explain(self.documents.write(key, content, expected).await)
    }

    async fn remove(&self, key: &str, expected: &Version) -> Result<(), DocumentsError> {
        self.explain(self.documents.remove(key, expected).await)
    }

    async fn list(&self, prefix: &str) -> Result<BTreeMap<String, Version>, DocumentsError> {
        self.explain(self.documents.list(prefix).await)
    }

    async fn time(&self) -> Result<Timestamp, DocumentsError> {
        self.explain(self.documents.time().await)
    }

    async fn probe(&self) -> Result<(), DocumentsError> {
        self.explain(self.documents.probe().await)
    }

    async fn watch(&self, key: &str, notices: &watch::Sender<Notice>) {
        self.documents.watch(key, notices).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::advice;

    #[test]
    fn hint_fits_the_kind_of_store_and_the_cause() {
        use StoreKind::{Directory, Etcd, Postgres, S3};
        let plain = |said: &str| io::Error::other(said.to_owned());
        let denied = |said: &str| io::Error::new(ErrorKind::PermissionDenied, said.to_owned());
        for (kind, error, word) in [
            (
                S3,
                denied("b replied 404: NoSuchBucket: no"),
                "create the bucket",
            ),
            (
                S3,
                denied("b replied 403: AccessDenied: no"),
                "s3:PutObject",
            ),
            (
                S3,
                denied("b replied 403: InvalidAccessKeyId: no"),
                "AWS_ACCESS_KEY_ID",
            ),
            (
                S3,
                denied("b replied 403: RequestTimeTooSkewed: no"),
                "clock",
            ),
            (
                S3,
                denied("b replied 301: x (the bucket is in y: set AWS_REGION)"),
                "AWS_REGION",
            ),
            (S3, plain("connection refused"), "reaches it"),
            (
                Etcd,
                denied("etcdserver: permission denied"),
                "grant-permission",
            ),
            (
                Etcd,
                denied("authentication failed, invalid user ID or password"),
                "ETCDCTL_PASSWORD",
            ),
            (
                Etcd,
                plain("etcdserver: mvcc: database space exceeded"),
                "defrag",
            ),
            (Etcd, plain("no answer within 10 s"), "HOST:PORT"),
            (
                Postgres,
                denied("PostgreSQL: password authentication failed (28P01)"),
                "PGPASSWORD",
            ),
            (
                Postgres,
                denied("PostgreSQL: database \"x\" does not exist (3D000)"),
                "create the database",
            ),
            (
                Postgres,
                denied("PostgreSQL: permission denied for table (42501)"),
                "grant",
            ),
            (Postgres, plain("it is read-only: a replica"), "primary"),
            (
                Postgres,
                plain("invalid peer certificate: UnknownIssuer"),
                "sslrootcert",
            ),
            (
                Etcd,
                plain("invalid peer certificate: UnknownIssuer"),
                "SSL_CERT_FILE",
            ),
            (
                S3,
                plain("invalid peer certificate: certificate not valid for name \"a\""),
                "as its certificate",
            ),
            (Directory, ErrorKind::StorageFull.into(), "free space"),
            (
                Directory,
                ErrorKind::ReadOnlyFilesystem.into(),
                "for writing",
            ),
            (Directory, ErrorKind::PermissionDenied.into(), "chown"),
            (Directory, ErrorKind::NotADirectory.into(), "make it once"),
        ] {
            let hint = kind.hint(&error);
            assert!(hint.contains(word), "{kind:?} {error}: {hint}");
        }
    }

    #[tokio::test]
    async fn error_names_the_store_and_keeps_its_kind() {
        let documents = super::super::memory::MemoryDocuments::default();
        documents
            .is_down
            .store(true, std::sync::atomic::Ordering::SeqCst);
        let named = NamedDocuments {
            documents: Arc::new(documents),
            kind: StoreKind::Etcd,
            place: "etcd://10.0.0.5:2379/certs".to_owned(),
        };
        let Err(DocumentsError::Failed(error)) = named.read("fleet").await else {
            panic!("it is down");
        };
        assert_eq!(error.kind(), ErrorKind::HostUnreachable);
        assert!(
            error
                .to_string()
                .starts_with("etcd://10.0.0.5:2379/certs: "),
            "{error}"
        );
        let error = super::super::super::StoreError::Io {
            operation: "read",
            subject: "fleet".to_owned(),
            source: error,
        };
        assert!(advice(&error).is_some_and(|hint| hint.contains("HOST:PORT")));
    }
}
