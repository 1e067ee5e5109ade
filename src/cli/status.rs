//! `certs status`: what is known of every certificate.

use serde_json::Value;

use super::Call;
use super::output::{Failure, say};
use crate::identifier::Lineage;
use crate::manage;
use crate::random::SystemRandom;
use crate::store::fs::FileStore;
use crate::store::{Store, StoreError};
use crate::time::{Clock, SystemClock, Timestamp};

/// Prints a table, or the same as JSON.
pub(super) async fn status(call: &Call, only: Option<&Lineage>) -> Result<(), Failure> {
    let settings = call
        .sources
        .process_settings()
        .map_err(Failure::configuration)?;
    let store = FileStore::existing(settings.data_dir);
    let lineages = match (only, &store) {
        (Some(lineage), _) => vec![lineage.clone()],
        (None, Some(store)) => store.list().await.map_err(|error| failed(STORED, error))?,
        (None, None) => Vec::new(),
    };
    let (mut rows, mut ended) = (Vec::new(), Ok(()));
    for lineage in lineages {
        match row(store.as_ref(), &lineage).await {
            Ok(row) => rows.push(row),
            Err(failure) => {
                failure.tell(&call.terminal);
                ended = ended.and(Err(failure.told_already()));
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

const STORED: &str = "stored certificates";

fn failed(subject: &str, error: StoreError) -> Failure {
    Failure::of(subject, &error.into())
}

async fn row(store: Option<&FileStore>, lineage: &Lineage) -> Result<Value, Failure> {
    let stored = match store {
        Some(store) => store.load(lineage).await,
        None => Ok(None),
    };
    let stored = stored.map_err(|error| failed(lineage.as_str(), error))?;
    let (record, _) = stored.ok_or_else(|| {
        Failure::usage(
            format!("{lineage}: there is no such certificate"),
            "certs status lists them",
        )
    })?;
    let shown = manage::status::status(&record, SystemClock.now(), &SystemRandom);
    serde_json::to_value(shown).map_err(|error| Failure::unexpected(error.to_string()))
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
        // The milliseconds of an instant are for machines.
        Value::String(text) => match serde_json::from_value::<Timestamp>(row[key].clone()) {
            Ok(instant) => instant.to_string(),
            Err(_) => text.clone(),
        },
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
        say(padded.collect::<Vec<_>>().join("  ").trim_end());
    };
    line(COLUMNS.map(|(title, _)| title.to_owned()).to_vec());
    for row in rows {
        line(COLUMNS.map(|(_, key)| cell(row, key)).to_vec());
        if let Some(error) = row["last_error"].as_str() {
            say(format_args!("  last error: {error}"));
        }
    }
}
