//! `certs status`: the state of every certificate.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde_json::Value;

use super::Call;
use super::args::Health;
use super::catalog::{denied, existing_store, none_in};
use super::fleet;
use super::kept::{is_configured, notice, orphaned_for_command};
use super::labels::Labels;
use super::meant;
use super::output::{Terminal, replacing, say, say_json};
use crate::ca_state::Outage;
use crate::config::{CertificateSettings, DirectoryUrl, Origin, Remembered, Settings};
use crate::control;
use crate::failure::Failure;
use crate::lineage::Lineage;
use crate::manage;
use crate::observe::{RequestedBy, Status, probe};
use crate::random::SystemRandom;
use crate::renew::rate_limits::{self, Left};
use crate::store::Store;
use crate::store::fs::FileStore;
use crate::text::printable_lines;
use crate::time::{Clock, SystemClock, Timestamp};

/// Prints a table, or JSON.
pub(super) async fn status(call: &Call, only: Option<&str>) -> Result<(), Failure> {
    let settings = call.sources.process_settings()?;
    let store = existing_store(settings.data_dir.clone())?;
    let mut requests = Labels::open(&settings.data_dir)?.requests();
    let lineages = match (only, &store) {
        (Some(name), _) => meant::selected(&settings.data_dir, name).await?,
        (None, Some(store)) => {
            let listed = store.list().await;
            listed.map_err(Failure::on("store"))?
        }
        (None, None) => Vec::new(),
    };
    let sidecar = match store.is_some() && control::is_running(&settings.data_dir).await? {
        true => Some(control::stuck(&settings.data_dir).await),
        false => None,
    };
    let now = SystemClock.now();
    let (mut rows, mut ended) = (Vec::new(), Ok(()));
    for lineage in lineages {
        let requested_by = requests.remove(&lineage);
        let known = (requested_by, &sidecar);
        match row(call, store.as_ref(), &settings, &lineage, known, now).await {
            Ok((mut row, denied)) => {
                row.made_with.take_if(|_| only.is_none());
                rows.push(row);
                // The same file for all of them.
                if let (Err(failure), true) = (denied, ended.is_ok()) {
                    failure.show(&call.terminal);
                    ended = Err(failure.code_only());
                }
            }
            Err(failure) => {
                failure.show(&call.terminal);
                ended = ended.and(Err(failure.code_only()));
            }
        }
    }
    let nodes = fleet::nodes(&settings).await;
    for row in &mut rows {
        row.served_by = fleet::served(&nodes, &row.status.name);
    }
    if call.json {
        say_json(serde_json::to_string(&rows)?);
    } else if ended.is_ok() && rows.is_empty() {
        table(&call.terminal, &rows, now);
        call.terminal.print(&none_in(&settings.data_dir));
    } else if !rows.is_empty() {
        table(&call.terminal, &rows, now);
        if let ([row], Some(_)) = (rows.as_slice(), only) {
            row.made_with.iter().for_each(show_settings);
        }
        fleet::show(&nodes, now);
    }
    ended
}

/// Queries the admin endpoints of the running process. It reads no stored state, so
/// that any user may run it.
pub(super) async fn health(call: &Call, health: Health) -> Result<(), Failure> {
    let settings = call.sources.process_settings()?;
    let address = settings.admin_listen.ok_or_else(|| {
        let hint = "set an address with [admin] listen or CERTS_ADMIN_LISTEN";
        Failure::usage("cannot check the health: the admin endpoints are off", hint)
    })?;
    let path = match health {
        Health::Alive => "/healthz",
        Health::Ready => "/readyz",
    };
    let answer = probe::query(address, path).await;
    let (is_good, body) = answer.map_err(|error| {
        let hint = "start certs run, or set its [admin] listen for this command too";
        Failure::broken(format!("no response from {address}: {error}"), hint)
    })?;
    let body = printable_lines(&body);
    let body = body.trim_end();
    if !is_good {
        let hint = "certs status shows the last error of each certificate";
        return Err(Failure::broken(format!("unhealthy: {body}"), hint));
    }
    if call.json {
        say_json(serde_json::json!({ "health": body }));
    } else {
        body.lines().for_each(say);
    }
    Ok(())
}

/// What the running sidecar cannot renew, and why.
type Stuck = BTreeMap<Lineage, String>;

async fn row(
    call: &Call,
    store: Option<&FileStore>,
    process: &Settings,
    lineage: &Lineage,
    (requested_by, sidecar): (Option<RequestedBy>, &Option<Stuck>),
    now: Timestamp,
) -> Result<(Row, Result<(), Failure>), Failure> {
    let unknown = || {
        let message = format!("unknown certificate {lineage}");
        Failure::usage(message, "certs status without a name lists them")
    };
    let store = store.ok_or_else(unknown)?;
    let stored = store.load(lineage).await;
    let stored = stored.map_err(Failure::on(lineage.as_str()))?;
    let (record, _) = stored.ok_or_else(unknown)?;
    let known = store.ca_state(&record.ca).await;
    let (state, _) = known.map_err(Failure::on(&record.ca))?;
    let rules = rate_limits::rules(&record.ca);
    let mut status = manage::status::status(&record, now, &SystemRandom);
    let made_with = store.options(lineage).await;
    let made_with = made_with.map_err(Failure::on(lineage.as_str()))?;
    // Damaged settings fail the renewal, which names them.
    let made_with: Option<CertificateSettings> =
        made_with.and_then(|json| CertificateSettings::stored_as(lineage, &json).ok());
    let requested = requested_by.as_ref();
    let sidecar_runs = sidecar.is_some();
    let why = made_with
        .as_ref()
        .and_then(|own| orphaned_for_command(&call.sources, own, requested, sidecar_runs));
    status.orphaned = why.is_some();
    status.orphaned_why = why;
    status.requested_by = requested_by;
    let lasts = |own: &&CertificateSettings| own.asked_by().is_none_or(Origin::lasts);
    let own = made_with.as_ref().filter(lasts);
    // The configuration grants the rights of its own certificates.
    let own = own.filter(|own| !is_configured(&call.sources, own));
    let stored = own.map(|own| Remembered::Whole(Box::new(own.clone())));
    let stored = stored.and_then(|stored| call.sources.remembered(&stored).ok());
    let cause = stored.and_then(|stored| stored.cannot_order);
    let stuck = sidecar
        .as_ref()
        .and_then(|stuck| stuck.get(lineage).cloned());
    status.not_renewable = stuck.or_else(|| cause.map(|cause| cause.shown()));
    let lacks = own.map(|own| denied(&call.sources, process, own));
    let lacks = lacks.unwrap_or_else(|| Ok(Vec::new()));
    let lacks = lacks.map(|denied| status.denied = denied);
    let row = Row {
        has_request: { made_with.as_ref() }.is_some_and(|own| own.request.is_some()),
        made_with: made_with.map(|own| shown(own, process)).transpose()?,
        status,
        budget: rate_limits::left(&state, rules, &record.identifiers, now),
        outage: state.outage,
        served_by: BTreeMap::new(),
    };
    Ok((row, lacks))
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
    /// The machines of the fleet, and the generation that each was last seen to serve.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    served_by: BTreeMap<String, Option<u64>>,
    /// Whether its key is that of a signing request.
    #[serde(skip)]
    has_request: bool,
    /// The settings that it was made with, which its renewals use; only for one certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    made_with: Option<Value>,
}

/// Stored settings with their output's whole path, and without the secrets of targets.
fn shown(mut settings: CertificateSettings, process: &Settings) -> Result<Value, Failure> {
    settings.output = Some(process.output_of(&settings));
    let targets = settings.deploy.iter().map(ToString::to_string);
    let targets: Vec<String> = targets.collect();
    let mut json = serde_json::to_value(settings)?;
    json["deploy"] = targets.into();
    Ok(json)
}

const COLUMNS: [&str; 8] = [
    "NAME",
    "CA",
    "NOT AFTER",
    "NEXT",
    "WHEN",
    "ISSUED",
    "SERVED",
    "PROOF",
];

fn table(terminal: &Terminal, rows: &[Row], now: Timestamp) {
    let cells: Vec<_> = rows.iter().map(|row| cells(&row.status, now)).collect();
    let titles = COLUMNS.map(str::to_owned);
    let width = |column: usize| {
        let all = cells.iter().chain([&titles]);
        all.map(|cells| cells[column].len()).max().unwrap_or(0)
    };
    let widths: [usize; 8] = std::array::from_fn(width);
    let line = |cells: &[String]| {
        let padded = cells.iter().zip(widths);
        let padded = padded.map(|(cell, width)| format!("{cell:width$}"));
        say(padded.collect::<Vec<_>>().join("  ").trim_end());
    };
    line(&titles);
    for (row, cells) in rows.iter().zip(&cells) {
        line(cells);
        details(terminal, row, now);
    }
}

fn cells(status: &Status, now: Timestamp) -> [String; 8] {
    let shown = |cell: Option<String>| cell.unwrap_or_else(|| "-".to_owned());
    let action = serde_json::to_value(status.next_action).unwrap_or_default();
    [
        status.name.to_string(),
        short_name(&status.ca),
        shown(status.not_after.map(|at| at.seen_at(now))),
        action.as_str().unwrap_or_default().to_owned(),
        status.next_at.seen_at(now),
        shown(status.generation_issued.map(|it| it.0.to_string())),
        shown(status.generation_served.map(|it| it.0.to_string())),
        status.proof.state.to_string(),
    ]
}

/// The name of a known CA, else its URL.
fn short_name(ca: &str) -> String {
    let known = ca.parse::<DirectoryUrl>().ok();
    known.map_or(ca.to_owned(), |known| known.short_name().to_owned())
}

/// The names of a certificate, unless its own name says them.
fn names(status: &Status) -> Option<String> {
    let names: Vec<String> = status.identifiers.iter().map(ToString::to_string).collect();
    (names != [status.name.as_str()]).then(|| names.join(", "))
}

/// Why the certificate is not renewed, or not deployed.
fn obstacles(status: &Status) -> impl Iterator<Item = String> {
    let orphaned = status.orphaned_why.as_ref();
    let orphaned = orphaned.map(|why| notice(&status.name, why));
    let stuck = status.not_renewable.as_ref();
    let stuck = stuck.map(|why| format!("not renewable: {why}"));
    let denied = status.denied.iter().map(|right| format!(
        "denied: the right to {right} is stored, but neither configured nor confirmed; hint: as root, repeat certs issue with its options"
    ));
    orphaned.into_iter().chain(stuck).chain(denied)
}

/// The lines below a certificate's row.
fn details(terminal: &Terminal, row: &Row, now: Timestamp) {
    let status = &row.status;
    let say = |line: fmt::Arguments<'_>| say(terminal.hint(&line.to_string()));
    if let Some(names) = names(status) {
        say(format_args!("  for {names}"));
    }
    if status.generation_issued.is_some() {
        say(format_args!("  {}", status.proof.seen_at(now)));
    }
    if let Some(ca) = &status.issued_by
        && status.ca != *ca
    {
        say(format_args!("  issued by {}", short_name(ca)));
    }
    if let Some(rolled_back_to) = &status.rolled_back_to {
        say(format_args!(
            "  {}",
            rolled_back_to.seen_at(&status.name, now)
        ));
    }
    changes(terminal, (status, row.has_request), now);
    if let Some(requested_by) = &status.requested_by {
        say(format_args!("  {}", requested_by.seen_at(now)));
    }
    for line in fleet::lines(&row.served_by) {
        say(format_args!("  {line}"));
    }
    for obstacle in obstacles(status) {
        say(format_args!("  {obstacle}"));
    }
    for one in &status.excluded {
        let (name, reason) = (&one.identifier, &one.reason);
        let retry_at = one
            .retry_at
            .map_or(Cow::from("-"), |at| at.seen_at(now).into());
        say(format_args!(
            "  excluded: {name}: {reason}; retry at {retry_at}"
        ));
    }
    if let Some(error) = &status.last_error {
        say(format_args!("  last error: {error}"));
        if status.generation_issued.is_none() {
            let name = &status.name;
            say(format_args!(
                "  no certificate exists yet; if the name is wrong: certs delete {name}"
            ));
        }
    }
    let spent = row.budget.iter().filter_map(|left| budget(left, now));
    let spent: Vec<String> = spent.collect();
    if !spent.is_empty() {
        say(format_args!("  left: {}", spent.join("; ")));
    }
    if let Some(line) = row
        .outage
        .as_ref()
        .and_then(|outage| unreachable(outage, now))
    {
        say(format_args!("  {line}"));
    }
}

/// What is revoked or to be revoked, and a rename that was cut off.
fn changes(terminal: &Terminal, (status, has_request): (&Status, bool), now: Timestamp) {
    let say = |line: fmt::Arguments<'_>| say(terminal.hint(&line.to_string()));
    for (generation, revoked) in &status.revoked {
        let (reason, at) = (revoked.reason, revoked.at.seen_at(now));
        say(format_args!(
            "  generation {generation} is revoked since {at} ({reason})"
        ));
    }
    if status.is_revoked() {
        let replace = replacing(&status.name, has_request);
        say(format_args!(
            "  the certificate to be served is revoked; hint: {replace} replaces it"
        ));
    }
    if let Some(pending) = &status.to_be_revoked {
        let generations = pending.generations.iter().map(ToString::to_string);
        let generations = generations.collect::<Vec<_>>().join(", ");
        let (reason, name) = (pending.reason, &status.name);
        let when = match pending.at_once {
            true => "",
            false => " once its replacement is served",
        };
        say(format_args!(
            "  to be revoked{when}: generation {generations} ({reason}); hint: certs revoke {name} --reason {reason} continues, certs revoke {name} --cancel gives it up"
        ));
    }
    if let Some(renaming) = &status.renaming {
        let (from, to) = (&renaming.from, &renaming.to);
        let link = if renaming.keep_link {
            " --keep-link"
        } else {
            ""
        };
        say(format_args!(
            "  the rename of {from} to {to} was interrupted; hint: certs rename {from} {to}{link} finishes it"
        ));
    }
}

/// The outage of a CA, unless the next window request shows whether it is over.
fn unreachable(outage: &Outage, now: Timestamp) -> Option<String> {
    let what = match (outage.windows_only, outage.answered) {
        (true, true) => return None,
        (true, false) => "has not provided renewal windows or the time",
        (false, true) => "is reachable but has issued nothing",
        (false, false) => "has been unreachable",
    };
    let (since, probe_at) = (outage.since.seen_at(now), outage.probe_at.seen_at(now));
    Some(format!(
        "its CA {what} since {since}; next probe at {probe_at}"
    ))
}

/// Each stored setting in a line, as its JSON names it.
fn show_settings(settings: &Value) {
    let mut lines = Vec::new();
    flatten("", settings, &mut lines);
    say("  made with:");
    for line in lines {
        say(format_args!("    {line}"));
    }
}

/// The values of `json` that are set, each below its name.
fn flatten(name: &str, json: &Value, lines: &mut Vec<String>) {
    match json {
        Value::Object(members) => {
            for (key, value) in members {
                let dot = if name.is_empty() { "" } else { "." };
                flatten(&format!("{name}{dot}{key}"), value, lines);
            }
        }
        Value::Null => {}
        Value::Array(values) if values.is_empty() => {}
        Value::Array(values) if values.iter().all(Value::is_string) => {
            let texts = values.iter().filter_map(Value::as_str);
            lines.push(format!("{name}: {}", texts.collect::<Vec<_>>().join(" ")));
        }
        Value::String(text) => lines.push(format!("{name}: {text}")),
        value => lines.push(format!("{name}: {value}")),
    }
}

/// A rate limit that is not full.
fn budget(left: &Left, now: Timestamp) -> Option<String> {
    let full_at = left.full_at?.seen_at(now);
    let of = if left.subject.is_empty() { "" } else { " of " };
    let (tokens, capacity, limit, subject) =
        (left.tokens, left.capacity, left.limit, &left.subject);
    Some(format!(
        "{tokens} of {capacity} {limit}{of}{subject}, all at {full_at}"
    ))
}
