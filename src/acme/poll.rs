//! Looking at an order until it has moved on (RFC 8555 section 7.4): right
//! after its validation was seen to arrive, else when the CA asks for it, else
//! at growing distances.
//!
//! It never asks earlier than `Retry-After` says otherwise, and never waits
//! without bound: an order that does not move on is left to be resumed.

use std::pin::pin;
use std::time::Duration;

use instant_acme::{OrderState, OrderStatus};

use super::error::Cause;
use super::exchange::Reply;
use super::order::Flow;
use super::wire;

/// After the CA was seen to fetch an answer, or took the request for the
/// certificate, it still has to write that down.
pub(super) const SETTLING: Duration = Duration::from_millis(50);
pub(super) const FIRST_POLL: Duration = Duration::from_millis(250);
const LONGEST_POLL: Duration = Duration::from_secs(5);
/// An order that has not moved on by then is left to be resumed.
const PATIENCE: Duration = Duration::from_secs(300);

/// An order at the CA, as last seen.
pub(super) struct Placed {
    pub(super) url: String,
    pub(super) state: OrderState,
    /// What the last reply asked for.
    pub(super) retry_after: Option<Duration>,
}

impl Placed {
    pub(super) fn new(url: String, reply: &Reply) -> Result<Self, Cause> {
        Ok(Self {
            url,
            state: wire::order(&reply.body)?,
            retry_after: reply.retry_after,
        })
    }

    pub(super) fn update(&mut self, reply: &Reply) -> Result<(), Cause> {
        self.state = wire::order(&reply.body)?;
        self.retry_after = reply.retry_after;
        Ok(())
    }
}

impl Flow<'_> {
    /// Looks at the order until it has left the states in `still`: once as soon
    /// as `nudge` ends, else when the CA asked for it, else after `first` and
    /// then at growing distances.
    pub(super) async fn poll(
        &self,
        order: &mut Placed,
        still: &[OrderStatus],
        first: Duration,
        nudge: impl Future<Output = ()>,
    ) -> Result<(), Cause> {
        let begun = self.clock.stopwatch();
        let (mut nudge, mut nudged) = (pin!(nudge), false);
        let mut first = Some(first);
        for round in 0.. {
            let wait = match order.retry_after {
                Some(asked) => asked.max(growing(SETTLING, round)),
                None => first
                    .take()
                    .unwrap_or_else(|| growing(FIRST_POLL, round - 1)),
            };
            first = None;
            let passed = self.clock.stopwatch().saturating_sub(begun);
            if passed + wait > PATIENCE {
                break;
            }
            tokio::select! {
                biased;
                () = &mut nudge, if !nudged => {
                    nudged = true;
                    self.pause(SETTLING).await;
                }
                () = self.pause(wait) => {}
            }
            let reply = self.post("order", &order.url, None).await?;
            order.update(&reply)?;
            if !still.contains(&order.state.status) {
                return Ok(());
            }
        }
        Err(Cause::TimedOut(PATIENCE))
    }

    pub(super) async fn pause(&self, length: Duration) {
        self.clock.sleep(length).await;
    }
}

/// `first`, doubled `round` times, up to the longest.
fn growing(first: Duration, round: u32) -> Duration {
    first
        .saturating_mul(2_u32.saturating_pow(round))
        .min(LONGEST_POLL)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Issuer;
    use super::super::fake::{FakeCa, Memory, NOW, Scripted, issue, pending};
    use super::*;
    use crate::time::{Clock, Timestamp};

    fn still_processing() -> Scripted {
        Scripted::json(
            &json!({"status": "processing", "authorizations": [], "finalize": "https://ca.test/f"}),
        )
    }

    async fn issue_with_journal(ca: &std::sync::Arc<FakeCa>) -> (Result<String, Cause>, Memory) {
        let mut journal = Memory::default();
        let ended = ca
            .client()
            .issue(pending(&["a.example"]), &mut journal)
            .await;
        (ended.map_err(|error| error.cause), journal)
    }

    fn gaps(times: &[Timestamp]) -> Vec<Duration> {
        times
            .windows(2)
            .map(|pair| pair[1].since(pair[0]))
            .collect()
    }

    #[tokio::test]
    async fn polls_keep_to_retry_after_in_both_its_forms() {
        let ca = FakeCa::new();
        // The hit was seen: right away. Then as asked.
        let pending =
            json!({"status": "pending", "authorizations": [], "finalize": "https://ca.test/f"});
        ca.script("order", Scripted::json(&pending).with("retry-after", 7));
        let date = "Fri, 15 Jan 2027 08:01:00 GMT";
        ca.script(
            "order",
            Scripted::json(&pending)
                .with("retry-after", date)
                .with("date", "Fri, 15 Jan 2027 08:00:30 GMT"),
        );
        issue(&ca.client()).await.unwrap();
        let polls = ca.times("order");
        assert_eq!(polls[0].since(ca.times("challenge")[0]), SETTLING);
        assert_eq!(
            gaps(&polls)[..2],
            [Duration::from_secs(7), Duration::from_secs(30)]
        );
    }

    #[tokio::test]
    async fn without_retry_after_polls_grow_apart_and_end() {
        let ca = FakeCa::new();
        for _ in 0..200 {
            ca.script("order", still_processing());
        }
        let (ended, _) = issue_with_journal(&ca).await;
        assert!(matches!(ended, Err(Cause::TimedOut(_))), "{ended:?}");
        let gaps = gaps(&ca.times("order"));
        let milliseconds: Vec<_> = gaps.iter().map(Duration::as_millis).collect();
        assert_eq!(milliseconds[1..7], [250, 500, 1000, 2000, 4000, 5000]);
        assert!(ca.times("order").len() < 75);
    }

    #[tokio::test]
    async fn a_clock_that_is_set_back_makes_nobody_wait_longer() {
        for readings in [0, 3, 10, 30] {
            let ca = FakeCa::new();
            for _ in 0..200 {
                ca.script("order", still_processing());
            }
            let ten_years = Duration::from_secs(3652 * 86_400);
            ca.clock.set_back_after(readings, ten_years);
            let (ended, _) = issue_with_journal(&ca).await;
            assert!(matches!(ended, Err(Cause::TimedOut(_))), "{ended:?}");
            assert!(ca.times("order").len() < 75);
        }
    }

    #[tokio::test]
    async fn a_ca_that_asks_for_more_than_our_patience_is_left_at_once() {
        let ca = FakeCa::new();
        ca.script("finalize", still_processing().with("retry-after", 86_400));
        let (ended, journal) = issue_with_journal(&ca).await;
        assert!(matches!(ended, Err(Cause::TimedOut(_))), "{ended:?}");
        assert!(ca.clock.now().since(NOW) < Duration::from_secs(1));
        assert!(journal.orders[0].url.is_some());
    }
}
