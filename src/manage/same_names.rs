//! Orders for the same names at one CA, one after the other. A CA may answer a new order with
//! the pending one for these names, as Boulder does: the second of two certificates would
//! then get the first one's, with the other key. It orders nothing itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

use crate::identifier::Identifier;

/// The names of the orders in progress, with their CA.
type Orders = BTreeMap<(String, BTreeSet<Identifier>), Arc<tokio::sync::Mutex<()>>>;

/// Lets one order at a time through for the same names. Clones share the orders.
#[derive(Clone, Debug, Default)]
pub(crate) struct SameNames(Arc<Mutex<Orders>>);

impl SameNames {
    /// Waits until no other order of this process for `names` is in progress at `ca`.
    pub(crate) async fn alone(
        &self,
        ca: &str,
        names: &BTreeSet<Identifier>,
    ) -> OwnedMutexGuard<()> {
        let order = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|_, order| Arc::strong_count(order) > 1);
            let key = (ca.to_owned(), names.clone());
            all.entry(key).or_default().clone()
        };
        order.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn orders_for_the_same_names_wait_for_each_other() {
        let (orders, set) = (SameNames::default(), |name: &str| {
            BTreeSet::from([Identifier::parse(name).unwrap()])
        });
        let first = orders.alone("ca", &set("a.example")).await;
        let waits = |ca, name| orders.alone(ca, &set(name)).now_or_never().is_none();
        assert!(waits("ca", "a.example"));
        assert!(!waits("other", "a.example"));
        assert!(!waits("ca", "b.example"));
        drop(first);
        assert!(!waits("ca", "a.example"));
        assert_eq!(
            orders.0.lock().unwrap().len(),
            1,
            "ended orders are forgotten"
        );
    }
}
