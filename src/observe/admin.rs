//! The read-only endpoints of `[admin] listen`. They answer only GET, so that no web
//! page can change anything.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;

use super::metrics::{CONTENT_TYPE, Metrics};
use super::status::{Board, ProofState, Status};
use crate::record::Generation;
use crate::time::{Clock, SystemClock, Timestamp};

/// The data that the endpoints show.
#[derive(Clone, Default)]
pub(crate) struct Shown {
    /// The state of every certificate.
    pub board: Board,
    /// The counters and gauges.
    pub metrics: Metrics,
}

/// Routes `/healthz`, `/readyz`, `/metrics`, `/api/v1/certificates` and `/`.
pub(crate) fn router(shown: Shown) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/api/v1/certificates", get(certificates))
        .route("/", get(page))
        .with_state(shown)
}

async fn readyz(State(shown): State<Shown>) -> Response {
    let all = shown.board.all();
    let complaints = all.iter().filter_map(|status| {
        let complaint = complaint(status)?;
        Some(format!("{}: {complaint}\n", status.name))
    });
    let complaints: String = complaints.collect();
    if complaints.is_empty() {
        let remarks: String = all.iter().flat_map(remarks).collect();
        format!("ready\n{remarks}").into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, complaints).into_response()
    }
}

/// What the operator permits: reported, but no reason to be unready.
fn remarks(status: &Status) -> impl Iterator<Item = String> {
    let (name, proof) = (&status.name, &status.proof);
    let orphaned = status.orphaned_why.iter();
    let orphaned = orphaned.map(|why| format!("{}: orphaned: {why}\n", status.name));
    let unchecked = (proof.state == ProofState::NotChecked)
        .then(|| format!("{name}: {}: {}\n", proof.state, proof.detail));
    let remarks = unchecked.into_iter().chain(excluded_names(status));
    orphaned.chain(remarks)
}

/// The excluded names.
fn excluded_names(status: &Status) -> impl Iterator<Item = String> {
    status.excluded.iter().map(|one| {
        let (name, excluded) = (&status.name, &one.identifier);
        format!("{name}: excluded for now: {excluded}: {}\n", one.reason)
    })
}

/// Why the certificate is not ready; `None` if it is.
fn complaint(status: &Status) -> Option<String> {
    let proof = &status.proof;
    if status.is_ready() {
        None
    } else if let Some(why) = &status.orphaned_why {
        let end = status.not_after.map(|at| at.to_string());
        let (detail, end) = (&proof.detail, end.unwrap_or_default());
        Some(format!(
            "orphaned, and served at {detail} until {end}: {why}"
        ))
    } else if status.generation_issued.is_none() {
        Some("not issued yet".to_owned())
    } else if proof.state == ProofState::NotProven {
        Some(format!("{}: {}", proof.state, proof.detail))
    } else if !status.complete {
        Some("not issued for all its names yet".to_owned())
    } else {
        Some("overdue".to_owned())
    }
}

async fn metrics(State(shown): State<Shown>) -> Response {
    let text = shown.metrics.render(&shown.board, SystemClock.now());
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response()
}

async fn certificates(State(shown): State<Shown>) -> Response {
    axum::Json(shown.board.all()).into_response()
}

async fn page(State(shown): State<Shown>) -> Response {
    const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";
    let (all, now) = (shown.board.all(), SystemClock.now());
    let rows: String = all.iter().map(|status| row(status, now)).collect();
    let body = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content=30>\
         <meta name=viewport content='width=device-width'><title>certs</title><style>{STYLE}</style>\
         <h1>certs</h1><table><tr><th>Name<th>State<th>Valid to<th>Next<th>When<th>Issued<th>Served{rows}</table>\
         <p><a href=/metrics>metrics</a> · <a href=/api/v1/certificates>JSON</a> · <a href=/readyz>ready?</a></html>"
    );
    ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(body)).into_response()
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;margin:2rem;color:#222}\
    table{border-collapse:collapse}th,td{text-align:left;padding:.4rem 1rem .4rem 0;border-bottom:1px solid #ddd;vertical-align:top}\
    .good{color:#176b2c}.open{color:#850}.bad{color:#a11}.why{white-space:pre-wrap;font-size:.85em;color:#a11}";

fn row(status: &Status, now: Timestamp) -> String {
    let state = status.proof.state;
    let (class, state) = match (complaint(status), state) {
        (Some(complaint), _) => ("bad", complaint),
        (None, _) if status.orphaned => ("open", "orphaned".to_owned()),
        (None, ProofState::Proven) => ("good", state.to_string()),
        (None, _) => ("open", state.to_string()),
    };
    let shown = |cell: Option<String>| cell.unwrap_or_else(|| "–".to_owned());
    let generation = |generation: Option<Generation>| shown(generation.map(|it| it.to_string()));
    let names: Vec<String> = status.identifiers.iter().map(ToString::to_string).collect();
    let action = serde_json::to_value(status.next_action).unwrap_or_default();
    let why = status
        .last_error
        .iter()
        .cloned()
        .chain(excluded_names(status));
    let why = why.map(|why| format!("<tr><td colspan=7 class=why>{}", escaped(&why)));
    let requested = status.requested_by.iter().map(|requested| {
        let requested = escaped(&requested.seen_at(now));
        format!("<tr><td colspan=7><small>{requested}</small>")
    });
    let state = escaped(&state);
    format!(
        "<tr><td title='{}'>{}<td class={class} title='{}'>{state}<td>{}<td>{}<td>{}<td>{}<td>{}{}",
        escaped(&names.join(", ")),
        escaped(status.name.as_str()),
        escaped(&status.proof.seen_at(now)),
        shown(status.not_after.map(|at| at.seen_at(now))),
        action.as_str().unwrap_or_default(),
        status.next_at.seen_at(now),
        generation(status.generation_issued),
        generation(status.generation_served),
        requested.chain(why).collect::<String>(),
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}
