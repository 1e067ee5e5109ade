//! Concurrency among passes. A few order at a time, since a CA counts and paces what it
//! is asked; many deploy side by side, since certificates share the reloads of
//! their servers, and verifying is mostly waiting.

use std::sync::Arc;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Certificates ordered at once.
pub(crate) const ORDERING: usize = 4;
/// Passes under way at once, those that deploy among them. Each holds a record
/// and a pair, and one connection while it verifies.
pub(crate) const SIDE_BY_SIDE: usize = 32;

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
    /// A permit, once one is free.
    pub(crate) async fn take(&self) -> Permit {
        let mut permit = Permit {
            of: Some(self.clone()),
            held: None,
        };
        permit.reacquire().await;
        permit
    }

    /// A permit, if one is free now.
    #[must_use]
    pub(crate) fn try_acquire(&self) -> Option<Permit> {
        let held = self.free.clone().try_acquire_owned().ok()?;
        Some(Permit {
            of: Some(self.clone()),
            held: Some(held),
        })
    }

    /// Whether one is free now.
    #[must_use]
    pub(crate) fn any(&self) -> bool {
        self.free.available_permits() > 0
    }

    /// Returns once one was released since the last time that this was asked.
    pub(crate) async fn released(&self) {
        self.released.notified().await;
    }
}

/// A pass's permit to talk to a CA. The default one belongs to no process and never waits.
#[derive(Debug, Default)]
pub(crate) struct Permit {
    of: Option<Concurrency>,
    held: Option<OwnedSemaphorePermit>,
}

impl Permit {
    /// Lets another pass begin.
    pub(super) fn release(&mut self) {
        if let (Some(_), Some(of)) = (self.held.take(), &self.of) {
            of.released.notify_one();
        }
    }

    /// Waits for a permit, unless it is held. A pass that waits comes before one that
    /// begins.
    pub(super) async fn reacquire(&mut self) {
        if let (Some(of), None) = (&self.of, &self.held) {
            // It is never closed.
            self.held = of.free.clone().acquire_owned().await.ok();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.release();
    }
}
