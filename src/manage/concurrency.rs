//! Concurrency of passes. Few order at a time, since a CA counts and limits requests.
//! Many deploy at a time, since certificates share server reloads, and verification
//! mostly waits. No pass is started here.

use std::sync::Arc;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::renew::policy::ORDERING;

/// The permits of one process.
#[derive(Clone, Debug)]
pub(crate) struct Concurrency {
    free: Arc<Semaphore>,
    released: Arc<Notify>,
}

impl Default for Concurrency {
    fn default() -> Self {
        Self {
            free: Arc::new(Semaphore::new(ORDERING)),
            released: Arc::default(),
        }
    }
}

impl Concurrency {
    /// Waits for a free permit.
    pub(crate) async fn take(&self) -> Permit {
        let mut permit = Permit {
            concurrency: Some(self.clone()),
            permit: None,
        };
        permit.reacquire().await;
        permit
    }

    /// Returns a permit if one is free now.
    #[must_use]
    pub(crate) fn try_acquire(&self) -> Option<Permit> {
        let permit = self.free.clone().try_acquire_owned().ok()?;
        Some(Permit {
            concurrency: Some(self.clone()),
            permit: Some(permit),
        })
    }

    /// Whether a permit is free now.
    #[must_use]
    pub(crate) fn any(&self) -> bool {
        self.free.available_permits() > 0
    }

    /// Waits until a permit was released since the last call.
    pub(crate) async fn released(&self) {
        self.released.notified().await;
    }
}

/// A pass's permit to talk to a CA. The default permit is unlimited and never waits.
#[derive(Debug, Default)]
pub(crate) struct Permit {
    concurrency: Option<Concurrency>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Permit {
    /// Releases the permit, so that another pass can begin.
    pub(super) fn release(&mut self) {
        if let (Some(_), Some(concurrency)) = (self.permit.take(), &self.concurrency) {
            concurrency.released.notify_one();
        }
    }

    /// Waits for a permit, unless it has one. A waiting pass comes before a new one.
    pub(super) async fn reacquire(&mut self) {
        if let (Some(concurrency), None) = (&self.concurrency, &self.permit) {
            // The semaphore is never closed.
            self.permit = concurrency.free.clone().acquire_owned().await.ok();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.release();
    }
}
