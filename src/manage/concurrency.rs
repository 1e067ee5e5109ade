//! Concurrency among passes. A few order at a time, since a CA counts and paces what it
//! is asked; many hand over side by side, since certificates share the reloads of
//! their servers, and a proof is mostly waiting.

use std::sync::Arc;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Certificates ordered at once.
pub(crate) const ORDERING: usize = 4;
/// Passes under way at once, those that hand over among them. Each holds a record
/// and a pair, and one connection while it proves.
pub(crate) const SIDE_BY_SIDE: usize = 32;

/// The turns of one process.
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
    /// A turn, once it is there.
    pub(crate) async fn take(&self) -> Permit {
        let mut permit = Permit {
            of: Some(self.clone()),
            held: None,
        };
        permit.reacquire().await;
        permit
    }

    /// A turn, if there is one now.
    #[must_use]
    pub(crate) fn try_acquire(&self) -> Option<Permit> {
        let held = self.free.clone().try_acquire_owned().ok()?;
        Some(Permit {
            of: Some(self.clone()),
            held: Some(held),
        })
    }

    /// Whether there is one now.
    #[must_use]
    pub(crate) fn any(&self) -> bool {
        self.free.available_permits() > 0
    }

    /// Returns once one was given back since the last time that this was asked.
    pub(crate) async fn released(&self) {
        self.released.notified().await;
    }
}

/// A pass's turn to talk to a CA. By default nobody waits for anybody.
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

    /// Waits for a turn, unless it is held. Those who wait come before whoever
    /// begins.
    pub(super) async fn reacquire(&mut self) {
        if let (Some(of), None) = (&self.of, &self.held) {
            // It is closed by nobody.
            self.held = of.free.clone().acquire_owned().await.ok();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.release();
    }
}
