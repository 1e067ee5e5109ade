//! `certs status`: the state of every certificate.

mod rows;

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

use serde_json::Value;

use self::rows::{Reader, Row, Rows, Seen};
use super::Call;
use super::args::Health;
use super::catalog::{existing_store, none_in};
use super::fleet;
use super::kept::notice;
use super::labels::Labels;
use super::meant;
use super::output::{Terminal, replacing, say, say_json, say_json_list};
use crate::ca_state::Outage;
use crate::config::DirectoryUrl;
use crate::control;
use crate::failure::Failure;
use crate::observe::{Status, probe};
use crate::renew::rate_limits::Left;
use crate::store::fs::FileStore;
use crate::text::printable_lines;
use crate::time::{Clock, SystemClock, Timestamp};

/// Prints a table, or JSON.
pub(super) async fn status(call: &Call, only: Option<&str>) -> Result<(), Failure> {
    let settings = call.sources.process_settings()?;
    let store = existing_store(settings.data_dir.clone())?;
    let mut requests = Labels::open(&settings.data_dir)?.requests();
    let now = SystemClock.now();
    let (mut rows, mut ended) = (Vec::new(), Ok(()));
    let seen = match (only, &store) {
        (Some(name), None) => return Err(meant::unknown(name)),
        (_, Some(store)) => seen(store, &settings.data_dir, only, now).await?,
        (None, None) => Vec::new(),
    };
    let cas = seen.iter().flatten().map(|one| one.ca().to_owned());
    let view = fleet::view(&settings, store.as_ref(), cas.collect()).await;
    if let Some(store) = &store {
        let sidecar = match control::is_running(&settings.data_dir).await? {
            true => Some(control::stuck(&settings.data_dir).await),
            false => None,
        };
        let mut all = Rows::new(call, &settings, store, sidecar, only.is_some());
        all.know(view.states);
        for seen in seen {
            let read = match seen {
                Ok(seen) => {
                    let requested_by = requests.remove(seen.name());
                    all.row(seen, requested_by, now).await
                }
                Err(failure) => Err(failure),
            };
            let failed = match read {
                Ok((row, denied)) => {
                    rows.push(row);
                    denied.err()
                }
                Err(failure) => Some(failure),
            };
            if let Some(failure) = failed {
                failure.show(&call.terminal);
                ended = ended.and(Err(failure.code_only()));
            }
        }
    }
    for row in &mut rows {
        row.served_by = fleet::served(&view.nodes, &row.status.name);
    }
    if call.json {
        say_json_list(&rows)?;
    } else if ended.is_ok() && rows.is_empty() {
        table(&call.terminal, &rows, now);
        call.terminal.print(&none_in(&settings.data_dir));
    } else if !rows.is_empty() {
        table(&call.terminal, &rows, now);
        if let ([row], Some(_)) = (rows.as_slice(), only) {
            row.made_with.iter().for_each(show_settings);
        }
        fleet::show(&view.nodes, now);
    }
    ended
}

/// The stored certificates, or those that a name selects.
async fn seen(
    store: &FileStore,
    data_dir: &Path,
    only: Option<&str>,
    now: Timestamp,
) -> Result<Vec<Result<Seen, Failure>>, Failure> {
    let reader = Reader::default();
    let Some(name) = only else {
        let all = store.together(|one| reader.see(one, now));
        return all.map_err(Failure::on("store"));
    };
    let lineages = meant::selected(data_dir, name).await?.into_iter();
    let stored = lineages.filter_map(|lineage| store.one(lineage));
    Ok(stored.map(|one| reader.see(one, now)).collect())
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
    let orphaned = orphaned.map(|why| notice(&status.name, &status.identifiers, why));
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
        let newest = pending.generations.last().copied().unwrap_or_default();
        let when = match pending.at_once {
            true => "",
            false => " once its replacement is served",
        };
        say(format_args!(
            "  to be revoked{when}: generation {generations} ({reason}); hint: certs revoke {name} --generation {newest} --reason {reason} continues, certs revoke {name} --cancel gives it up"
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
    let since = outage.since.seen_at(now);
    // A probe is a request that is sent anyway: without one nothing is known since then.
    let next = match outage.probe_at > now {
        true => format!("next probe at {}", outage.probe_at.seen_at(now)),
        false => "the next order or renewal probes it".to_owned(),
    };
    Some(format!("its CA {what} since {since}; {next}"))
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
