//! `certs status`: what is known of every certificate.

use serde_json::{Value, json};

use super::Call;
use super::output::Failure;
use super::parts::open_store;
use crate::identifier::Lineage;
use crate::random::SystemRandom;
use crate::record::Record;
use crate::renew::decide::{Next, next};
use crate::store::Store;
use crate::time::{Clock, SystemClock, Timestamp};

/// Prints a table, or the same as JSON.
pub(super) async fn status(call: &Call, only: Option<&Lineage>) -> Result<(), Failure> {
    let settings = call
        .sources
        .process_settings()
        .map_err(Failure::configuration)?;
    let store = open_store(settings.data_dir)?;
    let failed = |error: crate::store::StoreError| Failure::of("status", &error.into());
    let lineages = match only {
        Some(lineage) => vec![lineage.clone()],
        None => store.list().await.map_err(failed)?,
    };
    let mut rows = Vec::new();
    for lineage in lineages {
        let Some((record, _)) = store.load(&lineage).await.map_err(failed)? else {
            return Err(Failure::usage(
                format!("{lineage}: there is no such certificate"),
                "certs status lists them",
            ));
        };
        rows.push(row(&record, SystemClock.now()));
    }
    if call.json {
        println!("{}", Value::from(rows));
    } else {
        table(&rows);
    }
    Ok(())
}

fn row(record: &Record, now: Timestamp) -> Value {
    let (action, at) = match next(record, now, &SystemRandom) {
        Next::Wait(until) => ("wait", Some(until)),
        Next::Draw(_) | Next::RefreshWindow => ("refresh", None),
        Next::Issue { .. } => ("issue", None),
        Next::Deploy => ("deploy", None),
        Next::Halt(_) => ("halt", None),
    };
    json!({
        "name": record.lineage,
        "identifiers": record.identifiers,
        "ca": record.ca,
        "not_after": record.issued.as_ref().map(|issued| issued.facts.not_after),
        "next_action": action,
        "next_at": at.unwrap_or(now),
        "generation_issued": record.issued.as_ref().map(|issued| issued.generation),
        "generation_served": record.served.values().map(|served| served.generation).min(),
        "last_error": record.failures.last,
    })
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
    let cell = |row: &Value, key: &str| match &row[key] {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
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
        println!("{}", padded.collect::<Vec<_>>().join("  ").trim_end());
    };
    line(COLUMNS.map(|(title, _)| title.to_owned()).to_vec());
    for row in rows {
        line(COLUMNS.map(|(_, key)| cell(row, key)).to_vec());
        if let Some(error) = row["last_error"].as_str() {
            println!("  last error: {error}");
        }
    }
}
