//! `certs status`: the state of every certificate.

use serde::Serialize;
use serde_json::Value;

use super::Call;
use super::args::Health;
use super::labels::Labels;
use super::output::say;
use crate::ca_state::Outage;
use crate::failure::Failure;
use crate::lineage::Lineage;
use crate::manage;
use crate::observe::{Asked, Status, probe};
use crate::random::SystemRandom;
use crate::renew::rate_limits::{self, Left};
use crate::store::fs::FileStore;
use crate::store::{Store, StoreError};
use crate::text::printable_lines;
use crate::time::{Clock, SystemClock, Timestamp};

/// Prints a table, or JSON.
pub(super) async fn status(call: &Call, only: Option<&Lineage>) -> Result<(), Failure> {
    let settings = call
        .sources
        .process_settings()
        .map_err(Failure::configuration)?;
    let asked = Labels::open(&settings.data_dir).asked();
    let store = FileStore::existing(settings.data_dir);
    let lineages = match (only, &store) {
        (Some(lineage), _) => vec![lineage.clone()],
        (None, Some(store)) => store.list().await.map_err(|error| failed(STORED, error))?,
        (None, None) => Vec::new(),
    };
    let (mut rows, mut ended) = (Vec::new(), Ok(()));
    for lineage in lineages {
        match row(store.as_ref(), &lineage, asked.get(&lineage)).await {
            Ok(row) => rows.push(row),
            Err(failure) => {
                failure.show(&call.terminal);
                ended = ended.and(Err(failure.code_only()));
            }
        }
    }
    if call.json {
        say(Value::from(rows));
    } else if ended.is_ok() || !rows.is_empty() {
        table(&rows);
    }
    ended
}

/// Queries the admin endpoints of the running process. It reads no stored state, so
/// that any user may run it.
pub(super) async fn health(call: &Call, health: Health) -> Result<(), Failure> {
    let settings = call
        .sources
        .process_settings()
        .map_err(Failure::configuration)?;
    let address = settings.admin_listen.ok_or_else(|| {
        let hint = "set an address with [admin] listen or CERTS_ADMIN_LISTEN";
        Failure::usage("cannot check the health: the admin endpoints are off", hint)
    })?;
    let path = match health {
        Health::Alive => "/healthz",
        Health::Ready => "/readyz",
    };
    let answer = probe::ask(address, path).await.map_err(|error| {
        let hint = "start certs run, or set its [admin] listen for this command too";
        Failure::broken(format!("no response from {address}: {error}"), hint)
    })?;
    let body = printable_lines(&answer.body);
    let body = body.trim_end();
    if !answer.good {
        let hint = "certs status shows the last error of each certificate";
        return Err(Failure::broken(format!("unhealthy: {body}"), hint));
    }
    if call.json {
        say(serde_json::json!({ "health": body }));
    } else {
        say(body);
    }
    Ok(())
}

const STORED: &str = "stored certificates";

fn failed(subject: &str, error: StoreError) -> Failure {
    Failure::of(subject, &error.into())
}

async fn row(
    store: Option<&FileStore>,
    lineage: &Lineage,
    asked: Option<&Asked>,
) -> Result<Value, Failure> {
    let stored = match store {
        Some(store) => store.load(lineage).await,
        None => Ok(None),
    };
    let stored = stored.map_err(|error| failed(lineage.as_str(), error))?;
    let (record, _) = stored.ok_or_else(|| {
        Failure::usage(
            format!("unknown certificate {lineage}"),
            "certs status without a name lists them",
        )
    })?;
    let now = SystemClock.now();
    let known = match store {
        Some(store) => store.ca_state(&record.ca).await,
        None => Ok(Default::default()),
    };
    let (state, _) = known.map_err(|error| failed(&record.ca, error))?;
    let rules = rate_limits::rules(&record.ca);
    let mut status = manage::status::status(&record, now, &SystemRandom);
    status.asked = asked.cloned();
    let row = Row {
        status,
        budget: rate_limits::left(&state, rules, &record.identifiers, now),
        outage: state.outage,
    };
    serde_json::to_value(row).map_err(|error| Failure::unexpected(error.to_string()))
}

/// One certificate, with its CA's state.
#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    status: Status,
    /// The tokens left of the CA's rate limits for a new certificate of these names.
    budget: Vec<Left>,
    /// The CA's current outage.
    outage: Option<Outage>,
}

/// The rate limits that are not full, in a line.
fn budget(row: &Value) -> Option<String> {
    let limits = row["budget"].as_array()?.iter();
    let spent: Vec<String> = limits
        .filter(|left| !left["full_at"].is_null())
        .map(|left| {
            let subject = left["subject"].as_str().unwrap_or_default();
            let of = if subject.is_empty() { "" } else { " of " };
            let full_at = serde_json::from_value::<Timestamp>(left["full_at"].clone());
            let full_at = full_at.map_or_else(|_| String::new(), |at| at.to_string());
            let limit = left["limit"].as_str().unwrap_or_default().replace('-', " ");
            let (tokens, capacity) = (&left["tokens"], &left["capacity"]);
            format!("{tokens} of {capacity} {limit}{of}{subject} (all at {full_at})")
        })
        .collect();
    (!spent.is_empty()).then(|| spent.join(", "))
}

fn table(rows: &[Value]) {
    const COLUMNS: [(&str, &str); 7] = [
        ("NAME", "name"),
        ("CA", "ca"),
        ("NOT AFTER", "not_after"),
        ("NEXT", "next_action"),
        ("WHEN", "next_at"),
        ("ISSUED", "generation_issued"),
        ("SERVED", "generation_served"),
    ];
    let widths = COLUMNS.map(|(title, key)| {
        rows.iter()
            .map(|row| cell(row, key).len())
            .max()
            .unwrap_or(0)
            .max(title.len())
    });
    let line = |cells: Vec<String>| {
        let padded = cells
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        say(padded.collect::<Vec<_>>().join("  ").trim_end());
    };
    line(COLUMNS.map(|(title, _)| title.to_owned()).to_vec());
    for row in rows {
        line(COLUMNS.map(|(_, key)| cell(row, key)).to_vec());
        details(row);
    }
}

fn cell(row: &Value, key: &str) -> String {
    match &row[key] {
        Value::Null => "-".to_owned(),
        // Milliseconds are for JSON only.
        Value::String(text) => match serde_json::from_value::<Timestamp>(row[key].clone()) {
            Ok(instant) => instant.to_string(),
            Err(_) => text.clone(),
        },
        other => other.to_string(),
    }
}

/// The lines below a certificate's row.
fn details(row: &Value) {
    if let Some(ca) = row["issued_by"].as_str()
        && row["ca"] != ca
    {
        say(format_args!("  issued by {ca}"));
    }
    if let Ok(asked) = serde_json::from_value::<Asked>(row["asked"].clone()) {
        say(format_args!("  {asked}"));
    }
    for one in row["left_out"].as_array().into_iter().flatten() {
        let (name, reason) = (cell(one, "identifier"), cell(one, "reason"));
        let retry_at = cell(one, "retry_at");
        say(format_args!(
            "  excluded: {name}: {reason}; retry at {retry_at}"
        ));
    }
    if let Some(error) = row["last_error"].as_str() {
        say(format_args!("  last error: {error}"));
    }
    if let Some(left) = budget(row) {
        say(format_args!("  left: {left}"));
    }
    let outage = &row["outage"];
    if !outage.is_null() {
        let what = match (&outage["windows_only"], &outage["answered"]) {
            // The next window request shows whether it has windows again.
            (Value::Bool(true), Value::Bool(true)) => return,
            (Value::Bool(true), _) => "has not provided renewal windows or the time",
            (_, Value::Bool(true)) => "is reachable but has issued nothing",
            _ => "has been unreachable",
        };
        let (since, probe_at) = (cell(outage, "since"), cell(outage, "probe_at"));
        say(format_args!(
            "  its CA {what} since {since}; next probe at {probe_at}"
        ));
    }
}
