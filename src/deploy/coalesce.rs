//! One reload for many certificates: requests during a reload, or soon after one, share
//! the next reload and its result. Checks are shared in the same way. A target never gets
//! two reloads at once. While a server reads pairs, no live pair moves ([`Gate`]).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::time::Instant;

use super::target_settings::DeployStage;
use super::{Delivery, DeployCause, Target};
use crate::lineage::Lineage;
use crate::net::sockets::ListenAddress;

/// Two reloads of one server are at least this far apart, and as far as the last one took: a
/// server that reads many certificates has half of its time for its clients.
const APART: Duration = Duration::from_secs(1);
/// A reload that took longer than this was waiting, not working.
const FARTHEST: Duration = Duration::from_secs(10);

/// The longest wait of a pair for servers that read others: a server that hangs must not
/// keep all pairs as they are.
const STILL_FOR: Duration = Duration::from_secs(30);

/// Between moving live pairs and reading them: `nginx -t` and a reload read all pairs of a
/// server, and one that moves between its chain and its key is a mismatch.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<RwLock<()>>);

impl Gate {
    /// Waits until no pair is being moved.
    pub(crate) async fn reading(&self) -> RwLockReadGuard<'_, ()> {
        self.0.read().await
    }

    /// Waits until no server reads pairs, for a bounded time.
    pub(crate) async fn moving(&self) -> Option<RwLockWriteGuard<'_, ()>> {
        match self.0.try_write() {
            Ok(free) => Some(free),
            Err(_) => tokio::time::timeout(STILL_FOR, self.0.write()).await.ok(),
        }
    }
}

/// A target that all certificates of a process share; a clone is the same target.
#[derive(Clone)]
pub(crate) struct Coalesced {
    target: Arc<dyn Target>,
    /// Instead of the target's own name.
    name: Option<String>,
    stage: DeployStage,
    gate: Gate,
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
    /// When the next one may begin.
    next: Instant,
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
            tokio::time::sleep_until(latest.next).await;
        }
        let serves = self.requests.load(Ordering::SeqCst);
        let begun = Instant::now();
        let ended = work.await;
        let pause = match apart {
            Duration::ZERO => apart,
            apart => begun.elapsed().clamp(apart, FARTHEST),
        };
        *latest = Some(LatestAction {
            serves,
            urgent,
            next: Instant::now() + pause,
            ended: ended.clone(),
        });
        ended
    }
}

impl Coalesced {
    /// `target` of that stage, which reads or moves pairs by `gate`.
    #[must_use]
    pub(crate) fn new(target: Arc<dyn Target>, stage: DeployStage, gate: Gate) -> Self {
        Self {
            target,
            name: None,
            stage,
            gate,
            checks: Arc::default(),
            reloads: Arc::default(),
        }
    }

    /// Another target of the same server: it waits for the same turns.
    #[must_use]
    pub(crate) fn of(&self, target: Arc<dyn Target>) -> Self {
        Self {
            target,
            ..self.clone()
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
        if self.stage != DeployStage::AllCertificates {
            return self.target.check(delivery).await;
        }
        let check = async {
            let _still = self.gate.reading().await;
            self.target.check(delivery).await
        };
        let shared = self.checks.share(delivery.urgent, Duration::ZERO, check);
        shared.await
    }

    async fn apply(&self, delivery: &Delivery) -> Result<(), DeployCause> {
        if self.stage == DeployStage::AllCertificates {
            let apply = async {
                let _still = self.gate.reading().await;
                self.target.apply(delivery).await
            };
            return self.reloads.share(delivery.urgent, APART, apply).await;
        }
        let _one_at_a_time = self.reloads.latest.lock().await;
        // A copy may be what a server reads.
        let _alone = match self.stage {
            DeployStage::Copy => self.gate.moving().await,
            _ => None,
        };
        self.target.apply(delivery).await
    }

    fn check_phase(&self) -> String {
        self.target.check_phase()
    }

    async fn listens_on(&self) -> Option<Vec<ListenAddress>> {
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
        longer: Duration,
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
            tokio::time::sleep(Duration::from_secs(1) + self.longer).await;
            self.busy.fetch_sub(1, Ordering::SeqCst);
            self.reloads.fetch_add(1, Ordering::SeqCst);
            match self.fails {
                true => Err(DeployCause::Unreachable("no".to_owned())),
                false => Ok(()),
            }
        }
    }

    const ALL: DeployStage = DeployStage::AllCertificates;

    async fn reloads(slow: Slow, stage: DeployStage, many: usize) -> (usize, usize) {
        let slow = Arc::new(slow);
        let coalesced = Arc::new(Coalesced::new(slow.clone(), stage, Gate::default()));
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
        assert_eq!(reloads(Slow::default(), ALL, 100).await, (2, 0));
        assert_eq!(reloads(Slow::default(), ALL, 1).await, (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn reloads_for_one_certificate_each_never_overlap() {
        let each = DeployStage::EachCertificate;
        assert_eq!(reloads(Slow::default(), each, 10).await, (10, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn failed_reload_fails_for_all_that_shared_it() {
        let fails = Slow {
            fails: true,
            ..Slow::default()
        };
        assert_eq!(reloads(fails, ALL, 100).await, (2, 100));
    }

    #[tokio::test(start_paused = true)]
    async fn hundred_certificates_take_two_checks_and_a_stricter_one_its_own() {
        let usual = sample();
        let mut urgent = sample();
        urgent.urgent = true;
        for (many, last, checks, reloads) in [(&usual, &urgent, 2, 2), (&urgent, &usual, 3, 2)] {
            let slow = Arc::new(Slow::default());
            let coalesced = Coalesced::new(slow.clone(), ALL, Gate::default());
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
    async fn two_reloads_are_a_second_apart_and_as_far_as_the_last_one_took() {
        for (longer, first, second) in [(0, 1, 3), (4, 5, 15), (29, 30, 70)] {
            let longer = Duration::from_secs(longer);
            let slow = Slow {
                longer,
                ..Slow::default()
            };
            let coalesced = Coalesced::new(Arc::new(slow), ALL, Gate::default());
            let begun = Instant::now();
            coalesced.apply(&sample()).await.unwrap();
            assert_eq!(begun.elapsed().as_secs(), first);
            coalesced.apply(&sample()).await.unwrap();
            assert_eq!(begun.elapsed().as_secs(), second);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_pair_moves_while_a_server_reads_pairs() {
        let gate = Gate::default();
        let server = Coalesced::new(Arc::new(Slow::default()), ALL, gate.clone());
        let begun = Instant::now();
        let moves = async {
            tokio::task::yield_now().await;
            let _moving = gate.moving().await.unwrap();
            begun.elapsed().as_secs()
        };
        let delivery = sample();
        let (applied, moved) = tokio::join!(server.apply(&delivery), moves);
        applied.unwrap();
        assert_eq!(moved, 1);
        // A server that hangs keeps no pair for ever.
        let (_hangs, begun) = (gate.reading().await, Instant::now());
        assert!(gate.moving().await.is_none());
        assert_eq!(begun.elapsed(), STILL_FOR);
    }

    #[tokio::test(start_paused = true)]
    async fn targets_of_one_server_take_turns() {
        // Panics at two at once.
        let slow = Arc::new(Slow::default());
        let each = DeployStage::EachCertificate;
        let first = Coalesced::new(slow.clone(), each, Gate::default());
        let second = first.of(slow.clone());
        let (delivery, begun) = (sample(), Instant::now());
        let (one, other) = tokio::join!(first.apply(&delivery), second.apply(&delivery));
        one.and(other).unwrap();
        assert_eq!(begun.elapsed().as_secs(), 2);
    }
}
