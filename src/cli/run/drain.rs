//! The end of a sidecar behind a load balancer: at SIGTERM it is not ready any more, and answers
//! until the load balancer sends it no new connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::managed::ManagedCertificates;
use crate::failure::Check;

const DRAINING: &str = "this machine is being drained: it answers, and ends soon";
/// What follows the drain may take that long.
const STOPPING: Duration = Duration::from_secs(20);

/// The drain of this process.
#[derive(Default)]
pub(super) struct Drain {
    length: Duration,
    has_begun: Arc<AtomicBool>,
    end: Option<Instant>,
}

impl Drain {
    pub(super) fn new(length: Duration) -> Self {
        Self {
            length,
            has_begun: Arc::default(),
            end: None,
        }
    }

    /// Why the process is not ready: `other`, or that it is being drained.
    pub(super) fn check(&self, other: Option<Check>) -> Check {
        let has_begun = self.has_begun.clone();
        Arc::new(move || match has_begun.load(Ordering::SeqCst) {
            true => Some(DRAINING),
            false => other.as_ref().and_then(|other| other()),
        })
    }

    /// Begins the drain, and gives the issuer's place to another machine. False if there is
    /// none, or if it has begun before.
    pub(super) fn begin(
        &mut self,
        managed: &ManagedCertificates<'_>,
        serving: &mut JoinSet<()>,
    ) -> bool {
        if self.length.is_zero() || self.end.is_some() {
            return false;
        }
        self.has_begun.store(true, Ordering::SeqCst);
        self.end = Some(Instant::now() + self.length);
        let more = (self.length + STOPPING).as_micros();
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        let more = NotifyState::ExtendTimeoutUsec(more);
        managed.notifier.send(&[NotifyState::Stopping, more]);
        let seconds = self.length.as_secs();
        tracing::info!("not ready any more: the process answers for {seconds} s, and then ends");
        if let Some(fleet) = managed.call.fleet.clone() {
            serving.spawn(async move {
                fleet.resign().await;
                // A task that ends is a listener that stopped.
                std::future::pending().await
            });
        }
        true
    }

    /// Returns at the end of the drain.
    pub(super) async fn ended(&self) {
        match self.end {
            Some(end) => sleep_until(end).await,
            None => std::future::pending().await,
        }
    }
}
