//! The connections of a public listener. If there are too many, in all or from one
//! address, the oldest is closed: a client that opens many idle connections cannot lock
//! out others, not even those behind the same address.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::AbortHandle;

/// Far below the usual limit of open files. An idle connection costs some 23 KiB in a
/// debug build: all of them stay below 4 MiB.
const CONNECTIONS: usize = 128;
/// A CA validates from a handful of addresses, none of which needs more.
pub(super) const CONNECTIONS_PER_ADDRESS: usize = 64;

/// The open connections.
#[derive(Default)]
pub(super) struct Connections(Mutex<Open>);

#[derive(Default)]
struct Open {
    by_age: BTreeMap<u64, (IpAddr, AbortHandle)>,
    next: u64,
}

impl Connections {
    /// Runs `conversation` with `address` in a task, and closes the oldest connection if
    /// there are too many.
    pub(super) fn admit(
        self: &Arc<Self>,
        address: IpAddr,
        conversation: impl Future<Output = ()> + Send + 'static,
    ) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let surplus = open.surplus(address).and_then(|id| open.by_age.remove(&id));
        let id = open.next;
        open.next += 1;
        let slot = Slot(self.clone(), id);
        // Spawned under the lock, so that it is listed before it can end.
        let task = tokio::spawn(async move {
            conversation.await;
            drop(slot);
        });
        open.by_age.insert(id, (address, task.abort_handle()));
        drop(open);
        if let Some((_, task)) = surplus {
            task.abort();
        }
    }
}

impl Open {
    /// The connection to close for one more of `address`.
    fn surplus(&self, address: IpAddr) -> Option<u64> {
        let mut own = self.by_age.iter().filter(|(_, (peer, _))| *peer == address);
        let oldest = own.next().map(|(id, _)| *id);
        // One more, since `next` above has taken one out of `own`.
        if own.count() + 1 >= CONNECTIONS_PER_ADDRESS {
            return oldest;
        }
        let full = self.by_age.len() >= CONNECTIONS;
        self.by_age.keys().next().copied().filter(|_| full)
    }
}

/// Removes a connection from the list when dropped.
struct Slot(Arc<Connections>, u64);

impl Drop for Slot {
    fn drop(&mut self) {
        let Self(connections, id) = self;
        let mut open = connections.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.by_age.remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_never_exceed_their_limits() {
        let connections = Arc::new(Connections::default());
        let open = || connections.0.lock().unwrap().by_age.len();
        for host in 0..=255 {
            for _ in 0..3 {
                connections.admit(IpAddr::from([192, 0, 2, host]), std::future::pending());
            }
        }
        assert_eq!(open(), CONNECTIONS);
        for _ in 0..2 * CONNECTIONS {
            connections.admit(IpAddr::from([192, 0, 2, 255]), std::future::pending());
        }
        let own = connections.0.lock().unwrap();
        let own = own
            .by_age
            .values()
            .filter(|(peer, _)| *peer == IpAddr::from([192, 0, 2, 255]));
        assert_eq!(own.count(), CONNECTIONS_PER_ADDRESS);
    }

    #[tokio::test]
    async fn connection_is_removed_when_it_ends() {
        let connections = Arc::new(Connections::default());
        connections.admit(IpAddr::from([192, 0, 2, 1]), std::future::ready(()));
        while !connections.0.lock().unwrap().by_age.is_empty() {
            tokio::task::yield_now().await;
        }
    }
}
