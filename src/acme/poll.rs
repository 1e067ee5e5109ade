//! Polling an order until its status changes (RFC 8555 section 7.4): right after
//! the CA fetched the answers, else after `Retry-After`, else whenever a third of the time so
//! far has passed again.
//!
//! Without such a fetch it never polls before a `Retry-After` of up to a minute ends, and
//! it never waits without bound: after five minutes the order is left for a later run.

use std::collections::BTreeSet;
use std::pin::pin;
use std::time::Duration;

use instant_acme::{AuthorizationStatus, Challenge, OrderState, OrderStatus};

use super::client::Flow;
use super::documents;
use super::error::Cause;
use super::exchange::Reply;
use crate::identifier::Identifier;
use crate::time::Timestamp;

/// A fast CA needs this long to record a validation or a certificate request.
pub(super) const SETTLING: Duration = Duration::from_millis(10);
pub(super) const FIRST_POLL: Duration = Duration::from_millis(250);
const LONGEST_POLL: Duration = Duration::from_secs(5);
/// A longer `Retry-After` says nothing about this order, such as a default of a day: the
/// answers would be withdrawn before its end.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);
/// The longest time to poll one status.
const DEADLINE: Duration = Duration::from_secs(300);

/// The authorizations of a pending order are looked at first after this time, then at growing
/// intervals up to [`LONGEST_LOOK`].
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// See [`FIRST_LOOK`].
const LONGEST_LOOK: Duration = Duration::from_secs(30);
/// A challenge that is neither valid nor invalid may show an error that the CA's next try
/// mends; after this time it counts as failed.
const GRACE: Duration = Duration::from_secs(5);

/// The answered challenges of a pending order, and when to look at them.
#[derive(Default)]
pub(super) struct Watch {
    challenges: Vec<String>,
    /// The times since the first poll.
    next: Duration,
    failing_since: Option<Duration>,
}

impl Watch {
    /// Watches the challenges with these URLs.
    pub(super) fn of(challenges: impl Iterator<Item = String>) -> Self {
        Self {
            challenges: challenges.collect(),
            ..Self::default()
        }
    }
}

/// An order at the CA, as of the last reply.
pub(super) struct PlacedOrder {
    pub(super) url: String,
    pub(super) state: OrderState,
    /// The end of its time at the CA, if it tells it.
    pub(super) expires: Option<Timestamp>,
    /// The names of the order.
    pub(super) identifiers: BTreeSet<Identifier>,
    /// `Retry-After` of the last reply.
    pub(super) retry_after: Option<Duration>,
}

impl PlacedOrder {
    pub(super) fn new(
        url: String,
        reply: &Reply,
        identifiers: &BTreeSet<Identifier>,
    ) -> Result<Self, Cause> {
        let retry_after = reply.retry_after;
        Ok(Self {
            url,
            state: state(reply)?,
            expires: documents::expires(&reply.body),
            identifiers: identifiers.clone(),
            retry_after,
        })
    }

    pub(super) fn update(&mut self, reply: &Reply) -> Result<(), Cause> {
        self.state = state(reply)?;
        self.expires = documents::expires(&reply.body).or(self.expires);
        self.retry_after = reply.retry_after;
        Ok(())
    }
}

/// The order in `reply`, with whole URLs.
fn state(reply: &Reply) -> Result<OrderState, Cause> {
    let mut state = documents::order(&reply.body)?;
    state.finalize = reply.absolute(&state.finalize);
    state.certificate = state.certificate.map(|url| reply.absolute(&url));
    for authorization in &mut state.authorizations {
        authorization.url = reply.absolute(&authorization.url);
    }
    Ok(state)
}

impl Flow<'_> {
    /// Polls the order, which the CA is about to change, until its status is none of
    /// `still`.
    pub(super) async fn settle(
        &self,
        order: &mut PlacedOrder,
        still: &[OrderStatus],
    ) -> Result<(), Cause> {
        let never = std::future::pending();
        self.poll(order, still, SETTLING, never, Watch::default())
            .await
    }

    /// Polls the order until its status is none of `still`, or until `watch` sees a failure:
    /// after `Retry-After`, else after `first` and then whenever a third of the time so far has
    /// passed again; this begins again with [`SETTLING`] when `observed` ends.
    pub(super) async fn poll(
        &self,
        order: &mut PlacedOrder,
        still: &[OrderStatus],
        first: Duration,
        observed: impl Future<Output = ()>,
        mut watch: Watch,
    ) -> Result<(), Cause> {
        let clock = self.client.settings.clock.as_ref();
        let begun = clock.stopwatch();
        let (mut observed, mut was_observed) = (pin!(observed), false);
        let (mut least, mut from) = (first, Duration::ZERO);
        loop {
            let passed = clock.stopwatch().saturating_sub(begun);
            let pause = ((passed.saturating_sub(from)) / 3).clamp(least, LONGEST_POLL);
            let asked = order.retry_after;
            let asked = asked.filter(|asked| *asked <= LONGEST_RETRY_AFTER);
            let wait = asked.map_or(pause, |retry_after| retry_after.max(pause));
            if passed + wait > DEADLINE {
                break;
            }
            tokio::select! {
                biased;
                () = &mut observed, if !was_observed => {
                    was_observed = true;
                    (least, from) = (SETTLING, clock.stopwatch().saturating_sub(begun));
                    clock.sleep(least).await;
                }
                () = clock.sleep(wait) => {}
            }
            let reply = self.post("order", &order.url, None).await?;
            order.update(&reply)?;
            if !still.contains(&order.state.status) {
                return Ok(());
            }
            let passed = clock.stopwatch().saturating_sub(begun);
            self.look(order, &mut watch, passed).await?;
        }
        Err(Cause::TimedOut(DEADLINE))
    }

    /// Looks at the authorizations of an order that is pending after `passed`: some CAs leave
    /// it so when a name has failed.
    ///
    /// # Errors
    /// The CA's problem of each failed name.
    async fn look(
        &self,
        order: &PlacedOrder,
        watch: &mut Watch,
        passed: Duration,
    ) -> Result<(), Cause> {
        if watch.challenges.is_empty() || passed < watch.next.max(FIRST_LOOK) {
            return Ok(());
        }
        let seen = self.authorizations(order).await?;
        let has_failed =
            |one: &Challenge| one.error.is_some() && watch.challenges.contains(&one.url);
        let has_failed = seen.iter().any(|one| one.challenges.iter().any(has_failed));
        let since = watch.failing_since.unwrap_or(passed);
        watch.failing_since = has_failed.then_some(since);
        watch.next = match watch.failing_since {
            Some(since) => since + GRACE,
            None => passed + passed.min(LONGEST_LOOK),
        };
        let is_lasting = has_failed && passed.saturating_sub(since) >= GRACE;
        match is_lasting || !seen.iter().all(is_usable) {
            true => Err(self.why_invalid(order).await),
            false => Ok(()),
        }
    }
}

/// Whether an authorization is valid or may become so.
pub(super) fn is_usable(authorization: &documents::Authorization) -> bool {
    let usable = [AuthorizationStatus::Valid, AuthorizationStatus::Pending];
    usable.contains(&authorization.status)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Issuer;
    use super::super::fake::{FakeCa, Memory, NOW, Scripted, issue, pending};
    use super::*;
    use crate::time::Clock;

    fn still_processing() -> Scripted {
        Scripted::json(
            &json!({"status": "processing", "authorizations": [], "finalize": "https://ca.test/f"}),
        )
    }

    async fn issue_with_journal(ca: &std::sync::Arc<FakeCa>) -> (Result<String, Cause>, Memory) {
        let mut journal = Memory::default();
        let result = ca
            .client()
            .issue(pending(&["a.example"]), &mut journal)
            .await;
        (result.map_err(|error| error.cause), journal)
    }

    fn gaps(times: &[Timestamp]) -> Vec<Duration> {
        times
            .windows(2)
            .map(|pair| pair[1].since(pair[0]))
            .collect()
    }

    #[tokio::test]
    async fn poll_waits_for_retry_after_in_both_forms() {
        let ca = FakeCa::new();
        // The first poll follows the CA's fetch, the others `Retry-After`.
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
    async fn poll_interval_grows_and_ends_without_retry_after() {
        let ca = FakeCa::new();
        for _ in 0..200 {
            ca.script("order", still_processing());
        }
        let (result, _) = issue_with_journal(&ca).await;
        assert!(matches!(result, Err(Cause::TimedOut(_))), "{result:?}");
        let gaps = gaps(&ca.times("order"));
        let milliseconds: Vec<_> = gaps.iter().map(Duration::as_millis).collect();
        assert_eq!(milliseconds[1..6], [10, 10, 10, 13, 17]);
        assert!(gaps[1..].is_sorted(), "{milliseconds:?}");
        assert_eq!(gaps.last(), Some(&LONGEST_POLL));
        let polls = ca.times("order").len();
        assert!((70..90).contains(&polls), "{polls}");
    }

    #[tokio::test]
    async fn poll_is_not_longer_after_clock_is_set_back() {
        for readings in [0, 3, 10, 30] {
            let ca = FakeCa::new();
            for _ in 0..200 {
                ca.script("order", still_processing());
            }
            let ten_years = Duration::from_secs(3652 * 86_400);
            ca.clock.set_back_after(readings, ten_years);
            let (result, _) = issue_with_journal(&ca).await;
            assert!(matches!(result, Err(Cause::TimedOut(_))), "{result:?}");
            assert!(ca.times("order").len() < 90);
        }
    }

    #[tokio::test]
    async fn retry_after_of_a_day_neither_ends_the_run_nor_hurries_it() {
        let day = 86_400;
        let pending =
            json!({"status": "pending", "authorizations": [], "finalize": "https://ca.test/f"});
        for endpoint in ["challenge", "order", "finalize"] {
            let ca = FakeCa::new();
            match endpoint {
                "order" => ca.script("order", Scripted::json(&pending).with("retry-after", day)),
                _ => ca.delay(endpoint, day),
            }
            let (result, _) = issue_with_journal(&ca).await;
            assert!(result.is_ok(), "{endpoint}: {result:?}");
            assert!(ca.clock.now().since(NOW) < Duration::from_secs(2));
        }
        let ca = FakeCa::new();
        for _ in 0..200 {
            ca.script("order", still_processing().with("retry-after", day));
        }
        let (result, journal) = issue_with_journal(&ca).await;
        assert!(matches!(result, Err(Cause::TimedOut(_))), "{result:?}");
        assert!(ca.times("order").len() < 90);
        assert!(journal.orders[0].url.is_some());
    }
}
