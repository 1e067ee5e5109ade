//! Counters and gauges in the text format of OpenMetrics, which Prometheus reads. Gauges
//! are read from the [`Board`] at each request, so that no task must wake to update them.
//! Nothing here is stored.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use super::board::Board;
use super::status::ProofState;
use crate::time::Timestamp;

/// The `Content-Type` of the text.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics' names and descriptions.
const ISSUANCES: Family = ("issuances", "Orders that ended, by CA");
const DEPLOYMENTS: Family = ("deployments", "Deployments that ended, by target");
const REQUESTS: Family = (
    "acme_requests",
    "Requests to a CA, by endpoint and HTTP status (0: no reply)",
);
const CHALLENGES: Family = ("challenge_requests", "Requests to the challenge listeners");
const TOKENS: Family = (
    "ledger_tokens",
    "Remaining tokens of a CA's rate limits, by our own count; full limits are not listed",
);
const NOT_AFTER: Family = (
    "certificate_not_after_seconds",
    "The last valid second of the newest certificate (Unix time)",
);
const SERVED: Family = (
    "served_not_after_seconds",
    "The last valid second of the certificate in the last handshake (Unix time)",
);
const PROOF: Family = (
    "certificate_proof",
    "Whether handshakes prove the certificate to be served: 1 for the state that applies",
);
const EXCLUDED: Family = ("certificate_left_out_names", "Names excluded for now");
const REQUESTED: Family = (
    "certificate_asked_for",
    "Whether the container that requests the certificate by its labels is present: 1 or 0",
);
const NEXT_ACTION: Family = (
    "next_action_seconds",
    "The time of the next action (Unix time)",
);

type Family = (&'static str, &'static str);

/// The values of each family by their labels.
type Values = BTreeMap<Family, BTreeMap<String, i64>>;

/// The counters. Clones are cheap and share their counts.
#[derive(Clone, Default)]
pub(crate) struct Metrics {
    counters: Arc<Mutex<Values>>,
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
    fn count(&self, family: Family, labels: &[(&str, &str)]) {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let values = counters.entry(family).or_default();
        *values.entry(text_of(labels)).or_default() += 1;
    }

    /// Counts an order at `ca` that ended.
    pub(crate) fn issuance(&self, ca: &str, success: bool) {
        self.count(ISSUANCES, &[("ca", ca), ("result", result(success))]);
    }

    /// Counts a deployment to `target` that ended, its verification included.
    pub(crate) fn deployment(&self, target: &str, success: bool) {
        let labels = [("target", target), ("result", result(success))];
        self.count(DEPLOYMENTS, &labels);
    }

    /// Counts a request that `ca` answered with `status`; 0: no reply.
    pub(crate) fn acme_request(&self, ca: &str, endpoint: &'static str, status: u16) {
        let status = status.to_string();
        let labels = [("ca", ca), ("endpoint", endpoint), ("status", &status)];
        self.count(REQUESTS, &labels);
    }

    /// Counts a request to a challenge listener.
    pub(crate) fn challenge_request(&self, result: &'static str) {
        self.count(CHALLENGES, &[("result", result)]);
    }

    /// Sets the source of the remaining tokens of the limits of `ca`.
    pub(crate) fn set_tokens(
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
        let counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let counters = counters.clone();
        let mut text = String::new();
        for family in [ISSUANCES, DEPLOYMENTS, REQUESTS, CHALLENGES] {
            family_of(&mut text, &counters, family, "counter", "_total");
        }
        let mut tokens_left = Values::new();
        let limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        for (ca, tokens_at) in limits.iter() {
            for tokens in tokens_at(now) {
                let (limit, subject) = (&*tokens.limit, &*tokens.subject);
                let labels = text_of(&[("ca", ca), ("limit", limit), ("subject", subject)]);
                let values = tokens_left.entry(TOKENS).or_default();
                values.insert(labels, tokens.left.into());
            }
        }
        family_of(&mut text, &tokens_left, TOKENS, "gauge", "");
        for (family, lines) in gauges(board) {
            if !lines.is_empty() {
                head(&mut text, family, "gauge");
                text.push_str(&lines);
            }
        }
        text + "# EOF\n"
    }
}

/// The lines of each family about certificates, in the order of their names: no state is kept
/// for them.
fn gauges(board: &Board) -> [(Family, String); 6] {
    let families = [NOT_AFTER, SERVED, PROOF, EXCLUDED, REQUESTED, NEXT_ACTION];
    let mut gauges = families.map(|family| (family, String::new()));
    board.each(|status| {
        let name = ("name", status.name.as_str());
        let mut set = |family: Family, labels: &[(&str, &str)], value: i64| {
            let lines = gauges.iter_mut().find(|(known, _)| *known == family);
            if let Some((_, lines)) = lines {
                line(lines, family, "", &text_of(labels), value);
            }
        };
        if let Some(instant) = status.not_after {
            set(NOT_AFTER, &[name], instant.seconds());
        }
        for (endpoint, seen) in &status.served {
            if let Some(instant) = seen.not_after {
                set(SERVED, &[name, ("endpoint", endpoint)], instant.seconds());
            }
        }
        for (state, proof) in ProofState::ALL.into_iter().rev() {
            let applies = state == status.proof.state;
            set(PROOF, &[name, ("proof", proof)], applies.into());
        }
        set(EXCLUDED, &[name], status.excluded.len() as i64);
        if let Some(request) = &status.requested_by {
            for container in &request.containers {
                let labels = [name, ("container", container)];
                set(REQUESTED, &labels, request.gone_since.is_none().into());
            }
        }
        set(NEXT_ACTION, &[name], status.next_at.seconds());
    });
    gauges
}

fn head(text: &mut String, (name, description): Family, kind: &str) {
    let _ = write!(
        text,
        "# HELP certs_{name} {description}.\n# TYPE certs_{name} {kind}\n"
    );
}

fn line(text: &mut String, (name, _): Family, suffix: &str, labels: &str, value: i64) {
    let _ = writeln!(text, "certs_{name}{suffix}{{{labels}}} {value}");
}

/// Appends a family, unless it has no values.
fn family_of(text: &mut String, values: &Values, family: Family, kind: &str, suffix: &str) {
    let Some(values) = values.get(&family) else {
        return;
    };
    head(text, family, kind);
    for (labels, value) in values {
        line(text, family, suffix, labels, *value);
    }
}

/// The labels in the text format, which has three escapes.
fn text_of(labels: &[(&str, &str)]) -> String {
    let labels = labels.iter().map(|(label, value)| {
        let value = value.replace('\\', r"\\").replace('"', r#"\""#);
        format!("{label}=\"{}\"", value.replace('\n', r"\n"))
    });
    labels.collect::<Vec<_>>().join(",")
}

fn result(success: bool) -> &'static str {
    if success { "success" } else { "failure" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_each_family_once_with_escaped_labels() {
        let metrics = Metrics::default();
        metrics.challenge_request("answered");
        metrics.deployment("exec:\"a\\b\n\"", false);
        metrics.acme_request("https://ca", "new-order", 201);
        metrics.acme_request("https://ca", "new-order", 201);
        metrics.acme_request("https://ca", "finalize", 0);
        metrics.set_tokens("https://ca", |_| {
            let (limit, subject) = ("new-orders".to_owned(), String::new());
            vec![Tokens {
                limit,
                subject,
                left: 7,
            }]
        });
        let text = metrics.render(&Board::default(), Timestamp::from_seconds(0));
        let expected = r##"# HELP certs_deployments Deployments that ended, by target.
# TYPE certs_deployments counter
certs_deployments_total{target="exec:\"a\\b\n\"",result="failure"} 1
# HELP certs_acme_requests Requests to a CA, by endpoint and HTTP status (0: no reply).
# TYPE certs_acme_requests counter
certs_acme_requests_total{ca="https://ca",endpoint="finalize",status="0"} 1
certs_acme_requests_total{ca="https://ca",endpoint="new-order",status="201"} 2
# HELP certs_challenge_requests Requests to the challenge listeners.
# TYPE certs_challenge_requests counter
certs_challenge_requests_total{result="answered"} 1
# HELP certs_ledger_tokens Remaining tokens of a CA's rate limits, by our own count; full limits are not listed.
# TYPE certs_ledger_tokens gauge
certs_ledger_tokens{ca="https://ca",limit="new-orders",subject=""} 7
# EOF
"##;
        assert_eq!(text, expected);
    }
}
