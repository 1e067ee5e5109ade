//! The lease of one certificate, as a document that its holder extends. Machines judge it by
//! the server's clock, since their own may differ.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::sealed::{Sealed, failed};
use super::stopwatch::Stopwatch;
use crate::lineage::Lineage;
use crate::random::{Random, SystemRandom};
use crate::store::documents::Version;
use crate::store::{Lease, StoreError};
use crate::time::Timestamp;

/// A lease that its holder does not extend ends after this time, by the server's clock.
const LEASE: Duration = Duration::from_secs(60);
const EXTEND: Duration = Duration::from_secs(20);

#[derive(Serialize, Deserialize)]
struct StoredLease {
    node: String,
    /// Drawn by its holder: a process may have the name of another.
    holder: u64,
    until: Timestamp,
}

/// Extends its lease until it is dropped. A lease that cannot be extended ends by itself: the
/// saves of its holder are then refused if another machine was faster.
pub(super) struct SharedLease {
    documents: Arc<Sealed>,
    key: String,
    latest: Arc<Mutex<Version>>,
    extending: JoinSet<()>,
}

impl SharedLease {
    /// Leases `lineage` for the machine `node`, and returns whether the holder before has let its
    /// lease end: it may be suspended.
    pub(super) async fn take(
        documents: &Arc<Sealed>,
        node: &str,
        lineage: &Lineage,
        stopwatch: &Stopwatch,
    ) -> Result<(Self, bool), StoreError> {
        let key = format!("leases/{lineage}");
        let holder = SystemRandom.below(u64::MAX);
        let now = documents.documents.time().await;
        let now = now.map_err(failed("lease", &key))?;
        let (stored, version) = documents.load_if_whole::<StoredLease>(&key).await?;
        let lineage = lineage.clone();
        if stored.is_some_and(|lease| now < lease.until) {
            return Err(StoreError::Leased { lineage });
        }
        let lease = StoredLease {
            node: node.to_owned(),
            holder,
            until: now + LEASE,
        };
        let let_end = version.is_some();
        let version = documents.swap(&key, &lease, version.as_ref()).await?;
        let version = version.ok_or(StoreError::Leased { lineage })?;
        let stopwatch = stopwatch.clone();
        let taken = Self::new(documents.clone(), key, lease, version, stopwatch);
        Ok((taken, let_end))
    }

    fn new(
        documents: Arc<Sealed>,
        key: String,
        lease: StoredLease,
        version: Version,
        stopwatch: Stopwatch,
    ) -> Self {
        let latest = Arc::new(Mutex::new(version));
        let mut extending = JoinSet::new();
        extending.spawn(extend(
            documents.clone(),
            key.clone(),
            lease,
            latest.clone(),
            stopwatch,
        ));
        Self {
            documents,
            key,
            latest,
            extending,
        }
    }
}

async fn extend(
    documents: Arc<Sealed>,
    key: String,
    mut lease: StoredLease,
    latest: Arc<Mutex<Version>>,
    stopwatch: Stopwatch,
) {
    loop {
        stopwatch.sleep(EXTEND).await;
        let Ok(now) = documents.documents.time().await else {
            continue;
        };
        lease.until = now + LEASE;
        let before = lock(&latest).clone();
        match documents.swap(&key, &lease, Some(&before)).await {
            Ok(Some(version)) => *lock(&latest) = version,
            Ok(None) => {
                tracing::warn!("{key} of the shared store was taken by another machine");
                return;
            }
            Err(error) => tracing::debug!("a lease is not extended: {error}"),
        }
    }
}

fn lock(version: &Mutex<Version>) -> MutexGuard<'_, Version> {
    version.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for SharedLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)
    }
}

impl Lease for SharedLease {}

impl Drop for SharedLease {
    fn drop(&mut self) {
        self.extending.abort_all();
        let (documents, key) = (self.documents.clone(), self.key.clone());
        let latest = self.latest.clone();
        // Without a runtime, as at the end of the process, the lease ends by its time.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let release = async move {
                let version = lock(&latest).clone();
                let _ = documents.remove(&key, &version).await;
            };
            let releasing = self.documents.releasing.lock();
            let mut releasing = releasing.unwrap_or_else(PoisonError::into_inner);
            while releasing.try_join_next().is_some() {}
            releasing.spawn_on(release, &runtime);
        }
    }
}
