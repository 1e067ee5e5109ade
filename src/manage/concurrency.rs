//! Concurrency of passes. Few order at a time at first: one more after each certificate from a
//! CA whose limits are unknown, and half as many when it refuses or fails, so that a CA gets as
//! much as it bears. Many deploy at a time, since certificates share server reloads, and
//! verification mostly waits. No pass is started here.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::renew::policy::ORDERING;

/// The permits of one process.
#[derive(Clone, Debug)]
pub(crate) struct Concurrency {
    free: Arc<Semaphore>,
    released: Arc<Notify>,
    bounds: Arc<Mutex<Bounds>>,
}

/// How many permits there may be.
#[derive(Debug)]
struct Bounds {
    permits: usize,
    /// Permits in use that are to be forgotten when they are released.
    surplus: usize,
}

impl Default for Concurrency {
    fn default() -> Self {
        Self {
            free: Arc::new(Semaphore::new(ORDERING)),
            released: Arc::default(),
            bounds: Arc::new(Mutex::new(Bounds {
                permits: ORDERING,
                surplus: 0,
            })),
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

    /// One more of at most `most`, after a success.
    fn grow(&self, most: usize) {
        let mut bounds = self.bounds();
        if bounds.permits >= most {
            return;
        }
        bounds.permits += 1;
        match bounds.surplus.checked_sub(1) {
            Some(fewer) => bounds.surplus = fewer,
            None => self.free.add_permits(1),
        }
        self.released.notify_one();
    }

    /// Half as many, and at least one, after a refusal.
    fn shrink(&self) {
        let mut bounds = self.bounds();
        let fewer = bounds.permits / 2;
        bounds.permits -= fewer;
        bounds.surplus += fewer - self.free.forget_permits(fewer);
    }

    fn bounds(&self) -> MutexGuard<'_, Bounds> {
        self.bounds.lock().unwrap_or_else(PoisonError::into_inner)
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
        if let (Some(permit), Some(concurrency)) = (self.permit.take(), &self.concurrency) {
            let mut bounds = concurrency.bounds();
            if let Some(fewer) = bounds.surplus.checked_sub(1) {
                bounds.surplus = fewer;
                permit.forget();
            }
            drop(bounds);
            concurrency.released.notify_one();
        }
    }

    /// The CA bears one order more at a time, of at most `most`.
    pub(super) fn succeeded(&self, most: usize) {
        if let Some(concurrency) = &self.concurrency {
            concurrency.grow(most);
        }
    }

    /// The CA refused or failed because it has too much to do.
    pub(super) fn refused(&self) {
        if let Some(concurrency) = &self.concurrency {
            concurrency.shrink();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::renew::policy::MOST_ORDERING;

    #[test]
    fn permits_grow_with_each_success_and_halve_with_each_refusal() {
        let concurrency = Concurrency::default();
        let taken = |permits: &mut Vec<Permit>| {
            permits.extend(std::iter::from_fn(|| concurrency.try_acquire()));
            permits.len()
        };
        let mut permits = Vec::new();
        assert_eq!(taken(&mut permits), ORDERING);
        for _ in 0..3 * MOST_ORDERING {
            permits[0].succeeded(MOST_ORDERING);
        }
        assert_eq!(taken(&mut permits), MOST_ORDERING);
        // Those in use are forgotten one by one.
        permits[0].refused();
        permits.truncate(MOST_ORDERING / 2);
        assert_eq!(taken(&mut permits), MOST_ORDERING / 2);
        permits.clear();
        for _ in 0..20 {
            concurrency.shrink();
        }
        assert_eq!(taken(&mut permits), 1);
        // A success makes up for a refusal that has forgotten none yet.
        permits[0].succeeded(MOST_ORDERING);
        assert_eq!(taken(&mut permits), 2);
        permits[0].refused();
        permits[0].succeeded(MOST_ORDERING);
        permits.clear();
        assert_eq!(taken(&mut permits), 2);
    }
}
