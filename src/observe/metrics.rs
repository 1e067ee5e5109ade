//! Counters and gauges in Prometheus' text format. Gauges are read from the
//! [`Board`] at each request, so that no task must wake to update them. Nothing here
//! is stored.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::status::Board;
use crate::time::Timestamp;

/// The `Content-Type` of the text.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IssuanceLabels {
    ca: String,
    result: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeploymentLabels {
    target: String,
    result: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    ca: String,
    endpoint: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ChallengeLabels {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabels {
    ca: String,
    limit: String,
    subject: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NameLabels {
    name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ContainerLabels {
    name: String,
    container: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndpointLabels {
    name: String,
    endpoint: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Outcome {
    #[allow(non_camel_case_types)] // the label's value
    success,
    #[allow(non_camel_case_types)] // the label's value
    failure,
}

/// The counters. Clones are cheap and share their counts.
#[derive(Clone, Default)]
pub(crate) struct Metrics {
    issuances: Family<IssuanceLabels, Counter>,
    deployments: Family<DeploymentLabels, Counter>,
    requests: Family<RequestLabels, Counter>,
    challenges: Family<ChallengeLabels, Counter>,
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

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Counts an order at `ca` that ended.
    pub(crate) fn issuance(&self, ca: &str, success: bool) {
        let (ca, result) = (ca.to_owned(), outcome(success));
        self.issuances
            .get_or_create(&IssuanceLabels { ca, result })
            .inc();
    }

    /// Counts a deployment to `target` that ended, its verification included.
    pub(crate) fn deployment(&self, target: &str, success: bool) {
        let (target, result) = (target.to_owned(), outcome(success));
        self.deployments
            .get_or_create(&DeploymentLabels { target, result })
            .inc();
    }

    /// Counts a request that `ca` answered with `status`; 0: no reply.
    pub(crate) fn acme_request(&self, ca: &str, endpoint: &'static str, status: u16) {
        let ca = ca.to_owned();
        self.requests
            .get_or_create(&RequestLabels {
                ca,
                endpoint,
                status,
            })
            .inc();
    }

    /// Counts a request on the HTTP-01 port.
    pub(crate) fn challenge_request(&self, result: &'static str) {
        self.challenges
            .get_or_create(&ChallengeLabels { result })
            .inc();
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
    #[must_use]
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
        let tokens = Family::<LimitLabels, Gauge>::default();
        let limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        for (ca, tokens_at) in limits.iter() {
            for Tokens {
                limit,
                subject,
                left,
            } in tokens_at(now)
            {
                let ca = ca.clone();
                let labels = LimitLabels { ca, limit, subject };
                tokens.get_or_create(&labels).set(i64::from(left));
            }
        }
        registry.register(
            "ledger_tokens",
            "Remaining tokens of a CA's rate limits, by our own count; full limits are not listed",
            tokens,
        );
    }

    fn register_counters(&self, registry: &mut Registry) {
        registry.register(
            "issuances",
            "Orders that ended, by CA",
            self.issuances.clone(),
        );
        registry.register(
            "deployments",
            "Deployments that ended, by target",
            self.deployments.clone(),
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

type Seconds<L> = Family<L, Gauge<f64, AtomicU64>>;

fn register_gauges(registry: &mut Registry, board: &Board) {
    let not_after = Seconds::<NameLabels>::default();
    let next_action = Seconds::<NameLabels>::default();
    let served = Seconds::<EndpointLabels>::default();
    let excluded = Family::<NameLabels, Gauge>::default();
    let requested = Family::<ContainerLabels, Gauge>::default();
    for status in board.all() {
        let name = status.name.to_string();
        let label = NameLabels { name: name.clone() };
        if let Some(instant) = status.not_after {
            not_after.get_or_create(&label).set(seconds(instant));
        }
        next_action
            .get_or_create(&label)
            .set(seconds(status.next_at));
        excluded
            .get_or_create(&label)
            .set(i64::try_from(status.left_out.len()).unwrap_or(i64::MAX));
        if let Some(request) = status.asked {
            for container in request.containers {
                let name = name.clone();
                let is_present = i64::from(request.gone_since.is_none());
                requested
                    .get_or_create(&ContainerLabels { name, container })
                    .set(is_present);
            }
        }
        for (endpoint, seen) in status.served {
            if let Some(instant) = seen.not_after {
                let name = name.clone();
                served
                    .get_or_create(&EndpointLabels { name, endpoint })
                    .set(seconds(instant));
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

fn outcome(success: bool) -> Outcome {
    if success {
        Outcome::success
    } else {
        Outcome::failure
    }
}
