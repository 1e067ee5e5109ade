//! Retries of one request within a run: after a lost connection, a server error of the CA,
//! or a short `Retry-After`, one request must not fail a whole command.
//!
//! Bounded by number and by time, so that an outage is reported within half a minute. A
//! probe is never retried: it paces the requests of an outage.

use std::time::Duration;

use super::error::Cause;
use crate::time::Clock;

/// The pauses before the second, third and fourth try.
const PAUSES: [Duration; 3] = [
    Duration::from_millis(500),
    Duration::from_millis(1500),
    Duration::from_secs(4),
];
/// The tries of one request.
#[cfg(test)]
pub(super) const TRIES: usize = PAUSES.len() + 1;
/// The longest time from the first try to the last. The deadline of one request is as long:
/// a CA that hangs is not tried again.
const WINDOW: Duration = Duration::from_secs(30);

/// Sends `request`, and retries it after failures that may pass soon, if it `may_retry`.
pub(super) async fn patiently<T, F: Future<Output = Result<T, Cause>>>(
    clock: &dyn Clock,
    may_retry: impl Fn(&Cause) -> bool,
    mut request: impl FnMut() -> F,
) -> Result<T, Cause> {
    let begun = clock.stopwatch();
    for pause in PAUSES {
        let cause = match request().await {
            Err(cause) if may_retry(&cause) => cause,
            ended => return ended,
        };
        let passed = clock.stopwatch().saturating_sub(begun);
        match pause_after(&cause, pause).filter(|pause| passed + *pause <= WINDOW) {
            None => return Err(cause),
            Some(pause) => {
                tracing::debug!(error = %cause, "retrying in {} ms", pause.as_millis());
                clock.sleep(pause).await;
            }
        }
    }
    request().await
}

/// The pause before a retry; `None` for a failure that will not pass within the run.
fn pause_after(cause: &Cause, pause: Duration) -> Option<Duration> {
    match cause {
        Cause::Unreachable(explained) if explained.is_temporary => Some(pause),
        Cause::RateLimited {
            retry_after: Some(asked),
            ..
        } => Some(pause.max(*asked)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::ExchangeError;
    use super::super::error::Cause;
    use super::super::fake::{FakeCa, NOW, Scripted, issue};
    use super::*;

    const ENDPOINTS: [&str; 9] = [
        "directory",
        "new-nonce",
        "new-account",
        "new-order",
        "authorization",
        "challenge",
        "order",
        "finalize",
        "certificate",
    ];

    fn gateway(status: u16) -> Scripted {
        Scripted(status, "text/html", "<p>".into(), vec![])
    }

    #[tokio::test]
    async fn one_failure_at_any_endpoint_does_not_fail_the_run() {
        for endpoint in ENDPOINTS {
            for failure in [
                gateway(502),
                gateway(504),
                gateway(503).with("retry-after", 2),
                Scripted::problem(429, "rateLimited").with("retry-after", 2),
                Scripted::problem(500, "serverInternal"),
            ] {
                let ca = FakeCa::new();
                ca.script(endpoint, failure.clone());
                let result = issue(&ca.client()).await;
                assert!(result.is_ok(), "{endpoint} {failure:?}: {result:?}");
                assert_eq!(ca.orders(), 1, "{endpoint} {failure:?}");
            }
        }
    }

    #[tokio::test]
    async fn one_lost_reply_at_any_endpoint_does_not_fail_the_run() {
        for endpoint in ENDPOINTS {
            let ca = FakeCa::new();
            ca.lose_replies(endpoint, 1);
            let result = issue(&ca.client()).await;
            assert!(result.is_ok(), "{endpoint}: {result:?}");
            assert_eq!(ca.accounts(), 1, "{endpoint}");
        }
    }

    #[tokio::test]
    async fn retry_waits_as_long_as_the_ca_asks() {
        let ca = FakeCa::new();
        ca.script("new-order", gateway(503).with("retry-after", 20));
        issue(&ca.client()).await.unwrap();
        let times = ca.times("new-order");
        assert_eq!(times[1].since(times[0]), Duration::from_secs(20));
    }

    #[tokio::test]
    async fn outage_and_long_rate_limit_are_reported_soon() {
        for (failure, tries) in [
            (gateway(502), TRIES),
            (gateway(503).with("retry-after", 31), 1),
            (gateway(503).with("retry-after", 20), 2),
        ] {
            let ca = FakeCa::new();
            ca.persist("new-order", &failure);
            issue(&ca.client()).await.unwrap_err();
            assert_eq!(ca.count("new-order"), tries, "{failure:?}");
            let took = crate::time::Clock::now(ca.clock.as_ref()).since(NOW);
            assert!(took <= WINDOW, "{failure:?}: {took:?}");
        }
    }

    #[test]
    fn only_passing_failures_are_retried() {
        let pause = |error: ExchangeError| pause_after(&error.into(), WINDOW);
        assert!(pause(ExchangeError::Broken("reset".into())).is_some());
        assert!(pause(ExchangeError::Connect("refused".into())).is_some());
        assert_eq!(pause(ExchangeError::Untrusted("root".into())), None);
        assert_eq!(pause(ExchangeError::Unresolved("name".into())), None);
        let protocol = Cause::Protocol("no JSON".into());
        assert_eq!(pause_after(&protocol, WINDOW), None);
    }
}
