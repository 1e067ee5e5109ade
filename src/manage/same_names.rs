//! Orders for the same names at one CA, one after the other, also those of other processes on
//! the same store. A CA may answer a new order with the pending one for these names, as
//! Boulder does: the second of two certificates would then get the first one's, with the
//! other key. It orders nothing itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;

use crate::fingerprint::Fingerprint;
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::store::{Lease, Store, StoreError};
use crate::time::Clock;

/// Between two looks whether another process has ended its order.
const PAUSE: Duration = Duration::from_millis(200);
/// Few orders take longer than a minute, and a stopped process must not block the others.
const LOOKS: usize = 300;

/// The names of the orders in progress, with their CA.
type Orders = BTreeMap<(String, BTreeSet<Identifier>), Arc<tokio::sync::Mutex<()>>>;

/// Lets one order at a time through for the same names. Clones share the orders.
#[derive(Clone, Default)]
pub(crate) struct SameNames {
    orders: Arc<Mutex<Orders>>,
    /// The store that other processes share.
    store: Option<Arc<dyn Store>>,
}

impl fmt::Debug for SameNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SameNames").field(&self.orders).finish()
    }
}

/// The turn of one order; a drop ends it.
pub(crate) struct Turn {
    _order: OwnedMutexGuard<()>,
    _lease: Option<Box<dyn Lease>>,
}

impl SameNames {
    /// The same among all processes on `store`.
    pub(crate) fn across(store: Arc<dyn Store>) -> Self {
        Self {
            store: Some(store),
            ..Self::default()
        }
    }

    /// Waits until no other order for `names` is in progress at `ca`.
    pub(crate) async fn alone(
        &self,
        ca: &str,
        names: &BTreeSet<Identifier>,
        clock: &dyn Clock,
    ) -> Turn {
        Turn {
            _order: self.order(ca, names).await,
            _lease: self.lease(ca, names, clock).await,
        }
    }

    /// The same for an order that was placed before: the CA gives no other one for it, so that
    /// only the orders of this process are waited for.
    pub(crate) async fn resumed(&self, ca: &str, names: &BTreeSet<Identifier>) -> Turn {
        Turn {
            _order: self.order(ca, names).await,
            _lease: None,
        }
    }

    async fn order(&self, ca: &str, names: &BTreeSet<Identifier>) -> OwnedMutexGuard<()> {
        let order = {
            let mut all = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|_, order| Arc::strong_count(order) > 1);
            let key = (ca.to_owned(), names.clone());
            all.entry(key).or_default().clone()
        };
        order.lock_owned().await
    }

    /// The lease that other processes wait for; none if it cannot be had, since the
    /// check of the certificate's key does not depend on it.
    async fn lease(
        &self,
        ca: &str,
        names: &BTreeSet<Identifier>,
        clock: &dyn Clock,
    ) -> Option<Box<dyn Lease>> {
        let store = self.store.as_ref()?;
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let key = Fingerprint::of(format!("{ca} {}", names.join(" ")).as_bytes());
        // A part of it bounds the number of leases; two orders that share one only wait.
        let order = Lineage::parse(&format!("order_{:.4}", key.to_string())).ok()?;
        for _ in 0..LOOKS {
            match store.lease(&order).await {
                Ok(lease) => return Some(lease),
                Err(StoreError::Leased { .. }) => clock.sleep(PAUSE).await,
                Err(error) => {
                    tracing::warn!(
                        "other processes may order {} at the same time: {error}",
                        names.join(", ")
                    );
                    return None;
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::store::fs::FileStore;
    use crate::time::SystemClock;

    fn set(name: &str) -> BTreeSet<Identifier> {
        BTreeSet::from([Identifier::parse(name).unwrap()])
    }

    #[tokio::test]
    async fn orders_for_the_same_names_wait_for_each_other() {
        let orders = SameNames::default();
        let first = orders.alone("ca", &set("a.example"), &SystemClock).await;
        let waits = |ca, name| {
            let names = set(name);
            let turn = orders.alone(ca, &names, &SystemClock);
            turn.now_or_never().is_none()
        };
        assert!(waits("ca", "a.example"));
        assert!(!waits("other", "a.example"));
        assert!(!waits("ca", "b.example"));
        drop(first);
        assert!(!waits("ca", "a.example"));
        assert_eq!(
            orders.orders.lock().unwrap().len(),
            1,
            "ended orders are forgotten"
        );
    }

    #[tokio::test]
    async fn orders_of_another_process_are_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let process = || {
            let store = FileStore::open(directory.path().join("data")).unwrap();
            SameNames::across(Arc::new(store))
        };
        let (one, other) = (process(), process());
        let first = one.alone("ca", &set("a.example"), &SystemClock).await;
        let names = set("a.example");
        let mut second = Box::pin(other.alone("ca", &names, &SystemClock));
        assert!((&mut second).now_or_never().is_none());
        let others = set("b.example");
        let unrelated = other.alone("ca", &others, &SystemClock);
        assert!(unrelated.now_or_never().is_some());
        drop(first);
        second.await;
    }
}
