//! One reload for many certificates: requests during a reload, or soon after one, share
//! the next reload and its result. Checks are shared in the same way. A target never gets
//! two reloads at once.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::{Delivery, DeployCause, Target};
use crate::lineage::Lineage;

/// Two reloads of one server are at least this far apart.
const APART: Duration = Duration::from_secs(2);

/// A target that all certificates of a process share; a clone is the same target.
#[derive(Clone)]
pub(crate) struct Coalesced {
    target: Arc<dyn Target>,
    /// Instead of the target's own name.
    name: Option<String>,
    /// Whether one reload loads all certificates.
    one_for_all: bool,
    checks: Arc<Queue>,
    reloads: Arc<Queue>,
}

/// A queue of callers that want the same action.
#[derive(Default)]
struct Queue {
    requests: AtomicU64,
    latest: Mutex<Option<LatestAction>>,
}

/// The latest action.
struct LatestAction {
    /// The last request before it began.
    serves: u64,
    /// Whether its delivery was urgent.
    urgent: bool,
    at: Instant,
    ended: Result<(), DeployCause>,
}

impl LatestAction {
    /// Whether a delivery, `urgent` or not, may share its result. A successful reload is
    /// shared by both. A check that succeeded for a delivery that was not urgent also
    /// holds for an urgent one.
    fn is_for(&self, urgent: bool, apart: Duration) -> bool {
        let is_reload = apart > Duration::ZERO;
        self.urgent == urgent || self.ended.is_ok() && (is_reload || urgent)
    }
}

impl Queue {
    /// Does `work`, unless another caller began it after this request.
    async fn share(
        &self,
        urgent: bool,
        apart: Duration,
        work: impl Future<Output = Result<(), DeployCause>>,
    ) -> Result<(), DeployCause> {
        let mine = self.requests.fetch_add(1, Ordering::SeqCst) + 1;
        let mut latest = self.latest.lock().await;
        if let Some(latest) = latest.as_ref() {
            if latest.serves >= mine && latest.is_for(urgent, apart) {
                return latest.ended.clone();
            }
            tokio::time::sleep_until(latest.at + apart).await;
        }
        let serves = self.requests.load(Ordering::SeqCst);
        let ended = work.await;
        *latest = Some(LatestAction {
            serves,
            urgent,
            at: Instant::now(),
            ended: ended.clone(),
        });
        ended
    }
}

impl Coalesced {
    /// `target`; `one_for_all` says whether one reload loads all certificates.
    #[must_use]
    pub(crate) fn new(target: Arc<dyn Target>, one_for_all: bool) -> Self {
        Self {
            target,
            name: None,
            one_for_all,
            checks: Arc::default(),
            reloads: Arc::default(),
        }
    }

    /// The same target under another name, for several of a kind with the same name.
    #[must_use]
    pub(crate) fn named(&self, name: String) -> Self {
        let name = Some(name);
        Self {
            name,
            ..self.clone()
        }
    }
}

#[async_trait]
impl Target for Coalesced {
    fn name(&self) -> String {
        let name = self.name.clone();
        name.unwrap_or_else(|| self.target.name())
    }

    async fn check(&self, delivery: &Delivery) -> Result<(), DeployCause> {
        let check = self.target.check(delivery);
        if !self.one_for_all {
            return check.await;
        }
        let shared = self.checks.share(delivery.urgent, Duration::ZERO, check);
        shared.await
    }

    async fn apply(&self, delivery: &Delivery) -> Result<(), DeployCause> {
        let apply = self.target.apply(delivery);
        if self.one_for_all {
            return self.reloads.share(delivery.urgent, APART, apply).await;
        }
        let _one_at_a_time = self.reloads.latest.lock().await;
        apply.await
    }

    async fn listens_on(&self) -> Option<Vec<SocketAddr>> {
        self.target.listens_on().await
    }

    fn copy_of(&self, lineage: &Lineage) -> Option<PathBuf> {
        self.target.copy_of(lineage)
    }

    async fn obstacle(&self, delivery: &Delivery) -> Option<String> {
        self.target.obstacle(delivery).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::super::sample;
    use super::*;

    /// Takes a second for each reload, and panics at two at once.
    #[derive(Default)]
    struct Slow {
        checks: AtomicUsize,
        reloads: AtomicUsize,
        busy: AtomicUsize,
        fails: bool,
    }

    #[async_trait]
    impl Target for Slow {
        fn name(&self) -> String {
            "slow".to_owned()
        }

        async fn check(&self, _: &Delivery) -> Result<(), DeployCause> {
            tokio::time::sleep(Duration::from_secs(1)).await;
            self.checks.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }

        async fn apply(&self, _: &Delivery) -> Result<(), DeployCause> {
            assert_eq!(self.busy.fetch_add(1, Ordering::SeqCst), 0);
            tokio::time::sleep(Duration::from_secs(1)).await;
            self.busy.fetch_sub(1, Ordering::SeqCst);
            self.reloads.fetch_add(1, Ordering::SeqCst);
            match self.fails {
                true => Err(DeployCause::Unreachable("no".to_owned())),
                false => Ok(()),
            }
        }
    }

    async fn reloads(slow: Slow, one_for_all: bool, many: usize) -> (usize, usize) {
        let slow = Arc::new(slow);
        let coalesced = Arc::new(Coalesced::new(slow.clone(), one_for_all));
        let results = (0..many).map(|_| {
            let coalesced = coalesced.clone();
            tokio::spawn(async move { coalesced.apply(&sample()).await })
        });
        let mut failed = 0;
        for result in results.collect::<Vec<_>>() {
            failed += usize::from(result.await.unwrap().is_err());
        }
        (slow.reloads.load(Ordering::SeqCst), failed)
    }

    #[tokio::test(start_paused = true)]
    async fn hundred_certificates_take_two_reloads() {
        assert_eq!(reloads(Slow::default(), true, 100).await, (2, 0));
        assert_eq!(reloads(Slow::default(), true, 1).await, (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn reloads_for_one_certificate_each_never_overlap() {
        assert_eq!(reloads(Slow::default(), false, 10).await, (10, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn failed_reload_fails_for_all_that_shared_it() {
        let fails = Slow {
            fails: true,
            ..Slow::default()
        };
        assert_eq!(reloads(fails, true, 100).await, (2, 100));
    }

    #[tokio::test(start_paused = true)]
    async fn hundred_certificates_take_two_checks_and_a_stricter_one_its_own() {
        let usual = sample();
        let mut urgent = sample();
        urgent.urgent = true;
        for (many, last, checks, reloads) in [(&usual, &urgent, 2, 2), (&urgent, &usual, 3, 2)] {
            let slow = Arc::new(Slow::default());
            let coalesced = Coalesced::new(slow.clone(), true);
            let all = || std::iter::repeat_n(many, 100).chain([last]);
            let join = futures_util::future::join_all::<Vec<_>>;
            for ended in join(all().map(|one| coalesced.check(one)).collect()).await {
                ended.unwrap();
            }
            for ended in join(all().map(|one| coalesced.apply(one)).collect()).await {
                ended.unwrap();
            }
            let count = |of: &AtomicUsize| of.load(Ordering::SeqCst);
            assert_eq!(
                (count(&slow.checks), count(&slow.reloads)),
                (checks, reloads)
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn two_reloads_are_two_seconds_apart() {
        let coalesced = Coalesced::new(Arc::new(Slow::default()), true);
        let begun = Instant::now();
        coalesced.apply(&sample()).await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), 1);
        coalesced.apply(&sample()).await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), 4);
    }
}
