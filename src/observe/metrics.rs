//! Counters and gauges in Prometheus' text format. Gauges are read off the
//! [`Board`] when somebody asks, so that nothing wakes up to keep them.

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

/// What `Content-Type` the text has.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IssuanceLabels {
    ca: String,
    result: Ended,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeploymentLabels {
    target: String,
    result: Ended,
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
struct LedgerLabels {
    ca: String,
    limit: String,
    subject: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NameLabels {
    name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AskedLabels {
    name: String,
    container: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndpointLabels {
    name: String,
    endpoint: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Ended {
    #[allow(non_camel_case_types)] // the label's value
    success,
    #[allow(non_camel_case_types)] // the label's value
    failure,
}

/// Counts what happens. Cheap to clone; all clones count together.
#[derive(Clone, Default)]
pub struct Metrics {
    issuances: Family<IssuanceLabels, Counter>,
    deployments: Family<DeploymentLabels, Counter>,
    requests: Family<RequestLabels, Counter>,
    challenges: Family<ChallengeLabels, Counter>,
    ledgers: Arc<Mutex<BTreeMap<String, Standing>>>,
}

/// How much is left of a CA's limits at an instant.
type Standing = Box<dyn Fn(Timestamp) -> Vec<Tokens> + Send>;

/// What is left of one limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Which one, such as `new-orders`.
    pub limit: String,
    /// For whom; empty for the account.
    pub subject: String,
    /// How many there are.
    pub left: u32,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// An order at `ca` ended.
    pub fn issuance(&self, ca: &str, success: bool) {
        let (ca, result) = (ca.to_owned(), ended(success));
        self.issuances
            .get_or_create(&IssuanceLabels { ca, result })
            .inc();
    }

    /// A hand-over to `target` ended; that it is proven is part of it.
    pub fn deployment(&self, target: &str, success: bool) {
        let (target, result) = (target.to_owned(), ended(success));
        self.deployments
            .get_or_create(&DeploymentLabels { target, result })
            .inc();
    }

    /// `ca` answered a request with `status`; 0 stands for no answer.
    pub fn acme_request(&self, ca: &str, endpoint: &'static str, status: u16) {
        let ca = ca.to_owned();
        self.requests
            .get_or_create(&RequestLabels {
                ca,
                endpoint,
                status,
            })
            .inc();
    }

    /// Port 80 was asked for something.
    pub fn challenge_request(&self, result: &'static str) {
        self.challenges
            .get_or_create(&ChallengeLabels { result })
            .inc();
    }

    /// How much is left of the limits of `ca` from here on.
    pub fn ledger(&self, ca: &str, standing: impl Fn(Timestamp) -> Vec<Tokens> + Send + 'static) {
        let mut ledgers = self.ledgers.lock().unwrap_or_else(PoisonError::into_inner);
        ledgers.insert(ca.to_owned(), Box::new(standing));
    }

    /// Everything as text, with the state of the certificates on `board` and
    /// what is left of the CAs' limits at `now`.
    #[must_use]
    pub fn render(&self, board: &Board, now: Timestamp) -> String {
        let mut registry = Registry::with_prefix("certs");
        self.register_counters(&mut registry);
        self.register_ledgers(&mut registry, now);
        register_gauges(&mut registry, board);
        let mut text = String::new();
        if encode(&mut text, &registry).is_err() {
            // Writing to a String cannot fail; a label that cannot be encoded can.
            let _ = writeln!(text, "# incomplete");
        }
        text
    }

    fn register_ledgers(&self, registry: &mut Registry, now: Timestamp) {
        let tokens = Family::<LedgerLabels, Gauge>::default();
        let ledgers = self.ledgers.lock().unwrap_or_else(PoisonError::into_inner);
        for (ca, standing) in ledgers.iter() {
            for Tokens {
                limit,
                subject,
                left,
            } in standing(now)
            {
                let ca = ca.clone();
                let labels = LedgerLabels { ca, limit, subject };
                tokens.get_or_create(&labels).set(i64::from(left));
            }
        }
        registry.register(
            "ledger_tokens",
            "What is left of a CA's limits, by our own count; what is full is not listed",
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
            "Hand-overs that ended, by target",
            self.deployments.clone(),
        );
        registry.register(
            "acme_requests",
            "Requests to a CA, by endpoint and HTTP status (0: no answer)",
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
    let left_out = Family::<NameLabels, Gauge>::default();
    let asked_for = Family::<AskedLabels, Gauge>::default();
    for status in board.all() {
        let name = status.name.to_string();
        let label = NameLabels { name: name.clone() };
        if let Some(instant) = status.not_after {
            not_after.get_or_create(&label).set(seconds(instant));
        }
        next_action
            .get_or_create(&label)
            .set(seconds(status.next_at));
        left_out
            .get_or_create(&label)
            .set(i64::try_from(status.left_out.len()).unwrap_or(i64::MAX));
        if let Some(asked) = status.asked {
            for container in asked.containers {
                let name = name.clone();
                let here = i64::from(asked.gone_since.is_none());
                asked_for
                    .get_or_create(&AskedLabels { name, container })
                    .set(here);
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
        "The last valid second of the certificate that a handshake last saw (Unix time)",
        served,
    );
    registry.register(
        "certificate_left_out_names",
        "Names that are wanted and left out for now",
        left_out,
    );
    registry.register(
        "certificate_asked_for",
        "Whether a container asks for it by its labels: 1, or 0 when that is gone",
        asked_for,
    );
    registry.register(
        "next_action_seconds",
        "When there is something to do next (Unix time)",
        next_action,
    );
}

#[allow(clippy::cast_precision_loss)] // exact for 285 million years
fn seconds(instant: Timestamp) -> f64 {
    instant.seconds() as f64
}

fn ended(success: bool) -> Ended {
    if success {
        Ended::success
    } else {
        Ended::failure
    }
}
