//! `certs status`: what is known of every certificate.

use serde_json::Value;

use super::Call;
use super::output::{Failure, say};
use super::parts::open_store;
use crate::identifier::Lineage;
use crate::manage;
use crate::random::SystemRandom;
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
        let shown = manage::status::status(&record, SystemClock.now(), &SystemRandom);
        rows.push(serde_json::to_value(shown).map_err(|e| Failure::unexpected(e.to_string()))?);
    }
    if call.json {
        say(Value::from(rows));
    } else {
        table(&rows);
    }
    Ok(())
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
