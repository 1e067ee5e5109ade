//! The read-only endpoints of `[admin] listen`. They answer only GET, so that no web
//! page can change anything.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;

use super::metrics::{CONTENT_TYPE, Metrics};
use super::status::{Board, Status};
use crate::time::{Clock, SystemClock};

/// The data that the endpoints show.
#[derive(Clone, Debug, Default)]
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
    let complaints: String = shown
        .board
        .all()
        .iter()
        .filter(|status| !status.is_ready())
        .map(|status| format!("{}: {}\n", status.name, complaint(status)))
        .collect();
    if complaints.is_empty() {
        let statuses = shown.board.all();
        let excluded = statuses.iter().flat_map(excluded_names);
        format!("ready\n{}", excluded.collect::<String>()).into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, complaints).into_response()
    }
}

/// Excluded names, which the operator permits: reported, but no reason to be unready.
fn excluded_names(status: &Status) -> impl Iterator<Item = String> {
    let excluded = status.left_out.iter();
    excluded.map(|one| {
        format!(
            "{}: excluded for now: {}: {}\n",
            status.name, one.identifier, one.reason
        )
    })
}

fn complaint(status: &Status) -> &'static str {
    match status {
        Status {
            generation_issued: None,
            ..
        } => "not issued yet",
        Status { proven: false, .. } => "not verified",
        Status {
            complete: false, ..
        } => "not issued for all its names yet",
        _ => "overdue",
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
    let rows: String = shown.board.all().iter().map(row).collect();
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
    .good{color:#176b2c}.bad{color:#a11}.why{white-space:pre-wrap;font-size:.85em;color:#a11}";

fn row(status: &Status) -> String {
    let (class, state) = if status.is_ready() {
        ("good", "verified")
    } else {
        ("bad", complaint(status))
    };
    let generation = |generation: Option<crate::record::Generation>| {
        generation.map_or_else(|| "–".to_owned(), |generation| generation.to_string())
    };
    let names: Vec<String> = status.identifiers.iter().map(ToString::to_string).collect();
    let action = serde_json::to_value(status.next_action).unwrap_or_default();
    let why = status.last_error.iter().cloned();
    let why = why.chain(excluded_names(status));
    let why: String = why
        .map(|error| format!("<tr><td colspan=7 class=why>{}", escaped(&error)))
        .collect();
    let asked = status.asked.iter();
    let asked: String = asked
        .map(|asked| {
            format!(
                "<tr><td colspan=7><small>{}</small>",
                escaped(&asked.to_string())
            )
        })
        .collect();
    format!(
        "<tr><td title='{}'>{}<td class={class}>{state}<td>{}<td>{}<td>{}<td>{}<td>{}{asked}{why}",
        escaped(&names.join(", ")),
        escaped(status.name.as_str()),
        status
            .not_after
            .map_or_else(|| "–".to_owned(), |at| at.to_string()),
        action.as_str().unwrap_or_default(),
        status.next_at,
        generation(status.generation_issued),
        generation(status.generation_served),
    )
}

fn escaped(text: &str) -> String {
    text.chars().fold(String::new(), |mut out, c| {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
        out
    })
}
