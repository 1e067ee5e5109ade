//! The demonstration's result, as text and as JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::tally::{LoadCounts, RequestFailure, Swap};
use crate::lineage::Lineage;
use crate::observe::Status;
use crate::record::Generation;

/// The least renewals for a success.
pub(super) const LEAST_RENEWALS: usize = 3;

/// A row for servers that close idle connections.
const CLOSED: &str = "closed while idle";

/// The scoreboard.
#[derive(Debug, Serialize)]
pub(crate) struct DemoScore {
    with: &'static str,
    certificates: usize,
    names: usize,
    renewals: usize,
    requests: u64,
    handshakes: u64,
    failures: u64,
    failures_by_kind: BTreeMap<RequestFailure, u64>,
    first_failure: Option<String>,
    closed_while_idle: u64,
    slowest_swap_ms: f64,
    slowest_request_ms: f64,
    #[serde(rename = "proofs")]
    verifications: u64,
    seconds: f64,
    swaps: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    certificate: Lineage,
    generation: Generation,
    swap_ms: f64,
    slowest_request_ms: f64,
}

impl DemoScore {
    /// The score from the clients' counts and the verified generations.
    pub(super) fn of(
        with: &'static str,
        counts: LoadCounts,
        board: &[Status],
        took: Duration,
    ) -> Self {
        let verified = |lineage: &Lineage| {
            let status = board.iter().find(|status| status.name == *lineage);
            status.and_then(|status| status.generation_served)
        };
        // The first generation replaces none, and the clients start later.
        let renewals = counts.swaps.iter().filter(|swap| {
            swap.generation > Generation(1) && verified(&swap.lineage) >= Some(swap.generation)
        });
        let row = |swap: &Swap| {
            Some(Row {
                certificate: swap.lineage.clone(),
                generation: swap.generation,
                swap_ms: milliseconds(swap.seen_after?),
                slowest_request_ms: milliseconds(swap.slowest_request),
            })
        };
        let swaps: Vec<Row> = renewals.filter_map(row).collect();
        // Each generation is verified for each name before the next is ordered.
        let verifications = board.iter().map(|status| {
            let served = status.generation_served.unwrap_or_default().0;
            served.saturating_mul(u64::try_from(status.identifiers.len()).unwrap_or(0))
        });
        Self {
            with,
            certificates: board.len(),
            names: board.iter().map(|status| status.identifiers.len()).sum(),
            renewals: swaps.len(),
            requests: counts.requests,
            handshakes: counts.handshakes,
            failures: counts.failed(),
            first_failure: counts.first_failure,
            failures_by_kind: counts.failures,
            closed_while_idle: counts.idle_closes,
            slowest_swap_ms: swaps.iter().map(|swap| swap.swap_ms).fold(0.0, f64::max),
            slowest_request_ms: milliseconds(counts.slowest_request),
            verifications: verifications.sum(),
            seconds: (took.as_secs_f64() * 10.0).round() / 10.0,
            swaps,
        }
    }

    /// Why the demonstration failed, if it did.
    pub(crate) fn missing(&self) -> Option<String> {
        let (failures, renewals) = (self.failures, self.renewals);
        if failures > 0 {
            let first = self.first_failure.as_deref().unwrap_or("");
            return Some(format!("{failures} requests failed; the first: {first}"));
        }
        (renewals < LEAST_RENEWALS || self.requests == 0).then(|| {
            format!(
                "{renewals} renewals were seen under load, at least {LEAST_RENEWALS} are needed"
            )
        })
    }

    /// The scoreboard as text, within 80 columns.
    pub(crate) fn lines(&self) -> Vec<String> {
        let names = format!("for {} names, each validated by HTTP-01", self.names);
        let kinds = self.failures_by_kind.iter();
        let kinds = kinds.map(|(kind, count)| format!("{kind}: {count}"));
        let kinds = kinds.collect::<Vec<_>>().join(", ");
        let shown = |milliseconds: f64| format!("{milliseconds:.1} ms");
        let (requests, closed) = (grouped(self.requests), grouped(self.closed_while_idle));
        let (swap, request) = (shown(self.slowest_swap_ms), shown(self.slowest_request_ms));
        let (certificates, renewals) = (self.certificates.to_string(), self.renewals.to_string());
        let verifications = self.verifications.to_string();
        [
            ("certificates", certificates, &*names),
            ("renewals", renewals, "each swapped in under load"),
            ("requests", requests, "on kept and on new connections"),
            (
                "handshakes",
                grouped(self.handshakes),
                "full, verified up to the CA's root",
            ),
            ("failures", grouped(self.failures), &*kinds),
            (CLOSED, closed, "by nginx at a reload; clients retried"),
            (
                "slowest swap",
                swap,
                "from the reload to a client's first new leaf",
            ),
            ("slowest request", request, "its handshake included"),
            (
                "verifications",
                verifications,
                "handshakes that saw the issued certificate",
            ),
        ]
        .into_iter()
        .filter(|(name, ..)| *name != CLOSED || self.with == "nginx")
        .map(|(name, value, meaning)| format!("{name:<19}{value:>10}   {meaning}"))
        .map(|line| line.trim_end().to_owned())
        .collect()
    }
}

/// Rounded to a tenth: a busy machine does not measure finer.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}

/// `12,345`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut shown = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        let shown = [0, 999, 1000, 12_345, 1_234_567].map(grouped);
        assert_eq!(shown, ["0", "999", "1,000", "12,345", "1,234,567"]);
    }

    #[test]
    fn scoreboard_fits_80_columns() {
        let counts = LoadCounts {
            requests: 1_234_567,
            ..LoadCounts::default()
        };
        let lines = DemoScore::of("nginx", counts, &[], Duration::ZERO).lines();
        assert!(lines.iter().all(|line| line.len() <= 80), "{lines:#?}");
        assert!(
            lines.iter().any(|line| line.contains(" 1,234,567 ")),
            "{lines:#?}"
        );
    }

    #[test]
    fn score_fails_after_failures_or_too_few_renewals() {
        let none = || DemoScore::of("front", LoadCounts::default(), &[], Duration::ZERO);
        assert!(none().missing().unwrap().contains("0 renewals"));
        let mut score = DemoScore {
            renewals: 3,
            requests: 1,
            ..none()
        };
        assert_eq!(score.missing(), None);
        score.failures = 1;
        score.first_failure = Some("Dropped: x".into());
        assert!(score.missing().unwrap().contains("Dropped: x"));
    }
}
