//! Counters and gauges in Prometheus' text format. Gauges are read from the
//! [`Board`] at each request, so that no task must wake to update them. Nothing here
//! is stored.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::status::Board;
use crate::time::Timestamp;

/// The `Content-Type` of the text.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The labels of one series: their names, and the values of this series.
type Labels<const N: usize> = [(&'static str, String); N];
type Counters<const N: usize> = Family<Labels<N>, Counter>;

/// The counters. Clones are cheap and share their counts.
#[derive(Clone, Default)]
pub(crate) struct Metrics {
    issuances: Counters<2>,
    deployments: Counters<2>,
    requests: Counters<3>,
    challenges: Counters<1>,
    limits: Arc<Mutex<BTreeMap<String, TokensAt>>>,
}

/// The remaining tokens of a CA's rate limits at an instant.
type TokensAt = Box<dyn Fn(Timestamp) -> Vec<Tokens> + Send>;

/// The remaining tokens of one rate limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tokens {
    /// The limit, such as `new-orders`.
    pub limit: String,
    /// The limit's subject; empty for the account.
    pub subject: String,
    /// The number of tokens.
    pub left: u32,
}

impl Metrics {
    /// Counts an order at `ca` that ended.
    pub(crate) fn issuance(&self, ca: &str, success: bool) {
        count(&self.issuances, [("ca", ca), ("result", result(success))]);
    }

    /// Counts a deployment to `target` that ended, its verification included.
    pub(crate) fn deployment(&self, target: &str, success: bool) {
        let labels = [("target", target), ("result", result(success))];
        count(&self.deployments, labels);
    }

    /// Counts a request that `ca` answered with `status`; 0: no reply.
    pub(crate) fn acme_request(&self, ca: &str, endpoint: &'static str, status: u16) {
        let status = &*status.to_string();
        let labels = [("ca", ca), ("endpoint", endpoint), ("status", status)];
        count(&self.requests, labels);
    }

    /// Counts a request on the HTTP-01 port.
    pub(crate) fn challenge_request(&self, result: &'static str) {
        count(&self.challenges, [("result", result)]);
    }

    /// Sets the source of the remaining tokens of the limits of `ca`.
    pub(crate) fn ledger(
        &self,
        ca: &str,
        tokens: impl Fn(Timestamp) -> Vec<Tokens> + Send + 'static,
    ) {
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        limits.insert(ca.to_owned(), Box::new(tokens));
    }

    /// All metrics as text, with the certificates of `board` and the remaining tokens
    /// at `now`.
    pub(crate) fn render(&self, board: &Board, now: Timestamp) -> String {
        let mut registry = Registry::with_prefix("certs");
        self.register_counters(&mut registry);
        self.register_limits(&mut registry, now);
        register_gauges(&mut registry, board);
        let mut text = String::new();
        if encode(&mut text, &registry).is_err() {
            // Writing to a String cannot fail, but encoding a label can.
            let _ = writeln!(text, "# incomplete");
        }
        text
    }

    fn register_limits(&self, registry: &mut Registry, now: Timestamp) {
        let gauges = Family::<Labels<3>, Gauge>::default();
        let limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        for (ca, tokens_at) in limits.iter() {
            for tokens in tokens_at(now) {
                let (limit, subject) = (tokens.limit, tokens.subject);
                let labels = [("ca", ca.clone()), ("limit", limit), ("subject", subject)];
                gauges.get_or_create(&labels).set(tokens.left.into());
            }
        }
        registry.register(
            "ledger_tokens",
            "Remaining tokens of a CA's rate limits, by our own count; full limits are not listed",
            gauges,
        );
    }

    fn register_counters(&self, registry: &mut Registry) {
        let (issuances, deployments) = (self.issuances.clone(), self.deployments.clone());
        registry.register("issuances", "Orders that ended, by CA", issuances);
        registry.register(
            "deployments",
            "Deployments that ended, by target",
            deployments,
        );
        registry.register(
            "acme_requests",
            "Requests to a CA, by endpoint and HTTP status (0: no reply)",
            self.requests.clone(),
        );
        registry.register(
            "challenge_requests",
            "Requests on the HTTP-01 port",
            self.challenges.clone(),
        );
    }
}

fn count<const N: usize>(counters: &Counters<N>, labels: [(&'static str, &str); N]) {
    let labels = labels.map(|(name, value)| (name, value.to_owned()));
    counters.get_or_create(&labels).inc();
}

fn result(success: bool) -> &'static str {
    if success { "success" } else { "failure" }
}

type Seconds<const N: usize> = Family<Labels<N>, Gauge<f64, AtomicU64>>;

fn register_gauges(registry: &mut Registry, board: &Board) {
    let (not_after, next_action) = (Seconds::<1>::default(), Seconds::<1>::default());
    let served = Seconds::<2>::default();
    let excluded = Family::<Labels<1>, Gauge>::default();
    let requested = Family::<Labels<2>, Gauge>::default();
    for status in board.all() {
        let name = || ("name", status.name.to_string());
        if let Some(instant) = status.not_after {
            not_after.get_or_create(&[name()]).set(seconds(instant));
        }
        let next_at = seconds(status.next_at);
        next_action.get_or_create(&[name()]).set(next_at);
        let count = i64::try_from(status.excluded.len()).unwrap_or(i64::MAX);
        excluded.get_or_create(&[name()]).set(count);
        if let Some(request) = &status.requested_by {
            for container in &request.containers {
                let labels = [name(), ("container", container.clone())];
                let is_present = request.gone_since.is_none();
                requested.get_or_create(&labels).set(is_present.into());
            }
        }
        for (endpoint, seen) in &status.served {
            if let Some(instant) = seen.not_after {
                let labels = [name(), ("endpoint", endpoint.clone())];
                served.get_or_create(&labels).set(seconds(instant));
            }
        }
    }
    registry.register(
        "certificate_not_after_seconds",
        "The last valid second of the newest certificate (Unix time)",
        not_after,
    );
    registry.register(
        "served_not_after_seconds",
        "The last valid second of the certificate in the last handshake (Unix time)",
        served,
    );
    registry.register(
        "certificate_left_out_names",
        "Names excluded for now",
        excluded,
    );
    registry.register(
        "certificate_asked_for",
        "Whether the container that requests the certificate by its labels is present: 1 or 0",
        requested,
    );
    registry.register(
        "next_action_seconds",
        "The time of the next action (Unix time)",
        next_action,
    );
}

#[allow(clippy::cast_precision_loss)] // exact for 285 million years
fn seconds(instant: Timestamp) -> f64 {
    instant.seconds() as f64
}
