//! The read-only endpoints of `[admin] listen`. They answer only GET, so that no web
//! page can change anything, and only under a name of this machine, so that none can read
//! anything by a name of its own that resolves to this machine (DNS rebinding).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;

use super::board::Board;
use super::metrics::{CONTENT_TYPE, Metrics};
use super::status::{Action, ProofState, Status};
use crate::failure::Check;
use crate::net::listen::Limits;
use crate::record::Generation;
use crate::text::in_a_line;
use crate::time::{Clock, SystemClock, Timestamp};

/// The data that the endpoints show.
#[derive(Clone, Default)]
pub(crate) struct Shown {
    /// The state of every certificate.
    pub board: Board,
    /// The counters and gauges.
    pub metrics: Metrics,
    /// Why the process itself is not ready.
    pub process: Option<Check>,
}

/// A monitor and a few people. With the port 80 and the control socket they need fewer
/// than the usual 1,024 open files.
pub(crate) const LIMITS: Limits = Limits {
    silent: 64,
    connections: 64,
    by_address: 48,
    head: Duration::from_secs(10),
    handshake: Duration::from_secs(5),
    connection: Duration::from_secs(60),
    largest_head: 16 * 1024,
};

/// The names under which the endpoints are requested.
#[derive(Clone, Debug)]
pub(crate) struct HostNames {
    listen: IpAddr,
    own: String,
    names: Vec<String>,
}

/// The host name of this machine; empty if the kernel does not show it.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname");
    name.unwrap_or_default().trim().to_owned()
}

impl HostNames {
    /// Those of this machine for a listener on `listen`, and `further` ones.
    pub(crate) fn new(listen: SocketAddr, further: &[String]) -> Self {
        let own = host_name();
        let names = ["localhost".to_owned(), own.clone()].into_iter();
        let names = names.chain(further.iter().cloned());
        Self {
            listen: listen.ip(),
            own,
            names: names.map(|name| name.to_ascii_lowercase()).collect(),
        }
    }

    /// Whether the value of a `Host` header names this machine.
    fn has(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else {
            return false;
        };
        let name = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']');
        match name.parse::<IpAddr>() {
            Ok(address) => {
                self.listen.is_unspecified() || address == self.listen || address.is_loopback()
            }
            Err(_) => {
                let name = name.trim_end_matches('.').to_ascii_lowercase();
                let is_local = name.ends_with(".localhost");
                is_local || (!name.is_empty() && self.names.contains(&name))
            }
        }
    }
}

/// Refuses other names, and lets no reply be cached or reinterpreted.
async fn guarded(State(hosts): State<Arc<HostNames>>, request: Request, next: Next) -> Response {
    let headers = request.headers().get_all(header::HOST);
    let is_ours = |value: &HeaderValue| value.to_str().is_ok_and(|host| hosts.has(host));
    let mut reply = match headers.iter().all(is_ours) {
        true => next.run(request).await,
        false => {
            let text = "the Host header names another machine; hint: use the address or the host name of this one, or add the name to [admin] hosts\n";
            (StatusCode::MISDIRECTED_REQUEST, text).into_response()
        }
    };
    let headers = reply.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    reply
}

/// Routes `/healthz`, `/readyz`, `/metrics`, `/api/v1/certificates` and `/`.
pub(crate) fn router(shown: Shown, hosts: HostNames) -> Router {
    // Read at the start: the sandbox hides it.
    let host = Arc::new(hosts.own.clone());
    let guard = middleware::from_fn_with_state(Arc::new(hosts), guarded);
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/api/v1/certificates", get(certificates))
        .route(
            "/",
            get(async move |State(shown): State<Shown>| page(&shown, &host)),
        )
        .with_state(shown)
        .layer(guard)
}

/// More lines help no reader, and a load balancer asks often.
const MOST_LINES: usize = 1000;

async fn readyz(State(shown): State<Shown>) -> Response {
    let (mut complaints, mut remarked) = (Lines::default(), Lines::default());
    let process = shown.process.as_ref().and_then(|check| check());
    complaints.extend(process.map(|why| format!("{why}\n")));
    shown.board.each(|status| {
        let complaint = complaint(&status).map(|why| in_a_line(&why));
        complaints.extend(complaint.map(|why| format!("{}: {why}\n", status.name)));
        remarked.extend(remarks(&status));
    });
    let unmanaged = shown.board.obstacles().unmanaged.into_iter();
    complaints.extend(
        unmanaged.map(|(lineage, why)| format!("{lineage}: not managed: {}\n", in_a_line(&why))),
    );
    match complaints.all {
        0 => format!("ready\n{}", remarked.text()).into_response(),
        _ => (StatusCode::SERVICE_UNAVAILABLE, complaints.text()).into_response(),
    }
}

/// The first of many lines, and how many there are.
#[derive(Default)]
struct Lines {
    first: String,
    all: usize,
}

impl Lines {
    fn extend(&mut self, lines: impl IntoIterator<Item = String>) {
        for line in lines {
            if self.all < MOST_LINES {
                self.first.push_str(&line);
            }
            self.all += 1;
        }
    }

    fn text(self) -> String {
        match self.all.saturating_sub(MOST_LINES) {
            0 => self.first,
            more => format!("{}and {more} more\n", self.first),
        }
    }
}

/// What the operator permits: reported, but no reason to be unready.
fn remarks(status: &Status) -> impl Iterator<Item = String> {
    let (name, proof) = (&status.name, &status.proof);
    let orphaned = status.orphaned_why.iter();
    let orphaned = orphaned.map(|why| format!("{}: orphaned: {why}\n", status.name));
    let stuck = status.not_renewable.iter();
    let stuck = stuck.map(move |why| format!("{name}: not renewable: {}\n", in_a_line(why)));
    let unchecked = (proof.state == ProofState::NotChecked)
        .then(|| format!("{name}: {}: {}\n", proof.state, in_a_line(&proof.detail)));
    let rolled_back = status.rolled_back_to.as_ref();
    let rolled_back =
        rolled_back.map(|to| format!("{name}: {}\n", to.seen_at(name, SystemClock.now())));
    let unchecked = unchecked.into_iter().chain(rolled_back);
    let remarks = unchecked.chain(excluded_names(status));
    orphaned.chain(stuck).chain(remarks)
}

/// The excluded names.
fn excluded_names(status: &Status) -> impl Iterator<Item = String> {
    status.excluded.iter().map(|one| {
        let (name, excluded) = (&status.name, &one.identifier);
        let reason = in_a_line(&one.reason);
        format!("{name}: excluded for now: {excluded}: {reason}\n")
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
    } else if !status.denied.is_empty() {
        Some(format!("denied: {}", status.denied.join(", ")))
    } else if status.generation_issued.is_none() {
        Some("not issued yet".to_owned())
    } else if status.is_revoked() {
        Some("revoked, and not replaced yet".to_owned())
    } else if proof.state == ProofState::NotProven {
        Some(format!("{}: {}", proof.state, proof.detail))
    } else if !status.complete {
        Some("not issued for all its names yet".to_owned())
    } else {
        let why = status.not_renewable.as_ref();
        let why = why.map(|why| format!(", and not renewable: {why}"));
        Some(format!("overdue{}", why.unwrap_or_default()))
    }
}

async fn metrics(State(shown): State<Shown>) -> Response {
    let text = shown.metrics.render(&shown.board, SystemClock.now());
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response()
}

async fn certificates(State(shown): State<Shown>) -> Response {
    let mut json = Vec::from(b"[");
    shown.board.each(|status| {
        if json.len() > 1 {
            json.push(b',');
        }
        // A status has no key that is not a text.
        let _ = serde_json::to_writer(&mut json, &status);
    });
    json.push(b']');
    ([(header::CONTENT_TYPE, "application/json")], json).into_response()
}

fn page(shown: &Shown, host: &str) -> Response {
    const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";
    let (mut rows, now) = (String::new(), SystemClock.now());
    shown.board.each(|status| rows.push_str(&row(&status, now)));
    let host = escaped(host);
    let body = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content=30>\
         <meta name=viewport content='width=device-width'><title>certs on {host}</title><style>{STYLE}</style>\
         <h1>certs on {host}</h1><p>as of {now}\
         <table><tr><th>Name<th>State<th>CA<th>Valid to<th>Next<th>When<th>Issued<th>Served{rows}</table>\
         <p><a href=/metrics>metrics</a> · <a href=/api/v1/certificates>JSON</a> · <a href=/readyz>ready?</a></html>"
    );
    ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(body)).into_response()
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;margin:2rem;color:#222}\
    table{border-collapse:collapse}th,td{text-align:left;padding:.4rem 1rem .4rem 0;border-bottom:1px solid #ddd;vertical-align:top}\
    @media(max-width:64rem){body{margin:1rem}table,tbody,tr,td{display:block}th{display:none}td{border:0;padding:0}\
    tr{border-bottom:1px solid #ddd;padding:.4rem 0;overflow-wrap:anywhere}td[data-of]::before{content:attr(data-of)': '}}\
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
    let action = match (status.next_action, status.generation_issued) {
        (Action::Issue, Some(_)) => "renew",
        _ => action.as_str().unwrap_or_default(),
    };
    let ca = status.issued_by.as_ref().unwrap_or(&status.ca);
    let why = status
        .last_error
        .iter()
        .cloned()
        .chain(excluded_names(status));
    let why = why.map(|why| format!("<tr><td colspan=8 class=why>{}", escaped(&why)));
    let requested = status.requested_by.iter().map(|requested| {
        let requested = escaped(&requested.seen_at(now));
        format!("<tr><td colspan=8><small>{requested}</small>")
    });
    let state = escaped(&state);
    format!(
        "<tr><td title='{}'><b>{}</b><td class={class} title='{}'>{state}<td data-of=CA>{}<td data-of='Valid to'>{}\
         <td data-of=Next>{action}<td data-of=When>{}<td data-of=Issued>{}<td data-of=Served>{}{}",
        escaped(&names.join(", ")),
        escaped(status.name.as_str()),
        escaped(&status.proof.seen_at(now)),
        escaped(ca),
        shown(status.not_after.map(|at| at.seen_at(now))),
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

#[cfg(test)]
mod tests {
    use super::super::board::tests::status;
    use super::*;

    #[test]
    fn page_names_the_ca_and_calls_a_renewal_so() {
        let (mut status, now) = (status(1), Timestamp::from_seconds(1_800_000_000));
        let renewed = row(&status, now);
        assert!(renewed.contains("<td data-of=CA>https://ca<"), "{renewed}");
        assert!(renewed.contains("<td data-of=Next>renew<"), "{renewed}");
        status.generation_issued = None;
        let first = row(&status, now);
        assert!(first.contains("<td data-of=Next>issue<"), "{first}");
    }

    #[test]
    fn only_names_of_this_machine_are_answered() {
        let further = ["Certs".to_owned()];
        let of = |listen: &str| HostNames::new(listen.parse().unwrap(), &further);
        let own = host_name();
        let local = of("127.0.0.1:9180");
        for host in [
            "localhost:9180",
            "LOCALHOST",
            "a.localhost",
            "127.0.0.1:1",
            "[::1]:9180",
            "certs:9180",
            &own,
        ] {
            assert!(local.has(host), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "192.0.2.1",
            "",
            "127.0.0.1.evil.example",
            "a b",
        ] {
            assert!(!local.has(host), "{host}");
        }
        let all = of("0.0.0.0:9180");
        assert!(all.has("192.0.2.1:9180") && all.has("[2001:db8::1]") && !all.has("evil.example"));
        assert!(of("192.0.2.1:9180").has("192.0.2.1") && !of("192.0.2.1:9180").has("192.0.2.2"));
    }
}
