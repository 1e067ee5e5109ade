//! One reload for many certificates: whoever asks while one is under way, or soon
//! after one, shares the next. A server is told by one at a time, whatever it is.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::{Delivery, DeployError, Target};

/// Two reloads of one server are this far apart at least.
const APART: Duration = Duration::from_secs(2);

/// A target that all certificates of a process share.
pub struct Merged {
    target: Arc<dyn Target>,
    /// Whether one reload is for all certificates.
    loads_all: bool,
    asked: Mutex<u64>,
    latest: tokio::sync::Mutex<Option<Reload>>,
}

/// The last reload.
struct Reload {
    /// Everybody up to this one had asked when it was begun.
    serves: u64,
    ended: Instant,
    well: bool,
}

impl Merged {
    /// `target`; `loads_all` says whether one reload is for all certificates.
    #[must_use]
    pub fn new(target: Arc<dyn Target>, loads_all: bool) -> Self {
        Self {
            target,
            loads_all,
            asked: Mutex::default(),
            latest: tokio::sync::Mutex::default(),
        }
    }

    fn ask(&self) -> u64 {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        *asked += 1;
        *asked
    }

    fn asked(&self) -> u64 {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Target for Merged {
    fn name(&self) -> &str {
        self.target.name()
    }

    async fn check(&self, delivery: &Delivery) -> Result<(), DeployError> {
        self.target.check(delivery).await
    }

    async fn apply(&self, delivery: &Delivery) -> Result<(), DeployError> {
        let mine = self.ask();
        let mut latest = self.latest.lock().await;
        if !self.loads_all {
            return self.target.apply(delivery).await;
        }
        if let Some(latest) = latest.as_ref() {
            // One that failed is for each to see by himself.
            if latest.well && latest.serves >= mine {
                return Ok(());
            }
            tokio::time::sleep_until(latest.ended + APART).await;
        }
        let serves = self.asked();
        let ended = self.target.apply(delivery).await;
        *latest = Some(Reload {
            serves,
            ended: Instant::now(),
            well: ended.is_ok(),
        });
        ended
    }

    async fn listens_on(&self) -> Option<Vec<SocketAddr>> {
        self.target.listens_on().await
    }

    async fn obstacle(&self, delivery: &Delivery) -> Option<String> {
        self.target.obstacle(delivery).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::sample;
    use super::*;

    /// Takes a second for each reload, and refuses to be told twice at once.
    #[derive(Default)]
    struct Slow {
        reloads: AtomicUsize,
        busy: AtomicUsize,
        fails: bool,
    }

    #[async_trait]
    impl Target for Slow {
        fn name(&self) -> &'static str {
            "slow"
        }

        async fn check(&self, _: &Delivery) -> Result<(), DeployError> {
            Ok(())
        }

        async fn apply(&self, _: &Delivery) -> Result<(), DeployError> {
            assert_eq!(self.busy.fetch_add(1, Ordering::SeqCst), 0);
            tokio::time::sleep(Duration::from_secs(1)).await;
            self.busy.fetch_sub(1, Ordering::SeqCst);
            self.reloads.fetch_add(1, Ordering::SeqCst);
            let detail = "no".to_owned();
            let target = "slow".to_owned();
            match self.fails {
                true => Err(DeployError::Unreachable { target, detail }),
                false => Ok(()),
            }
        }
    }

    async fn reloads(slow: Slow, loads_all: bool, many: usize) -> (usize, usize) {
        let slow = Arc::new(slow);
        let merged = Arc::new(Merged::new(slow.clone(), loads_all));
        let told = (0..many).map(|_| {
            let merged = merged.clone();
            tokio::spawn(async move { merged.apply(&sample()).await })
        });
        let mut failed = 0;
        for told in told.collect::<Vec<_>>() {
            failed += usize::from(told.await.unwrap().is_err());
        }
        (slow.reloads.load(Ordering::SeqCst), failed)
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_certificates_take_two_reloads() {
        assert_eq!(reloads(Slow::default(), true, 100).await, (2, 0));
        assert_eq!(reloads(Slow::default(), true, 1).await, (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_told_of_each_certificate_is_told_one_after_the_other() {
        assert_eq!(reloads(Slow::default(), false, 10).await, (10, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reload_that_failed_is_nobody_elses_success() {
        let fails = Slow {
            fails: true,
            ..Slow::default()
        };
        assert_eq!(reloads(fails, true, 3).await, (3, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn two_reloads_are_apart() {
        let merged = Merged::new(Arc::new(Slow::default()), true);
        let begun = Instant::now();
        merged.apply(&sample()).await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), 1);
        merged.apply(&sample()).await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), 4);
    }
}
