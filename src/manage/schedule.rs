//! The operator's schedule (`[renew] schedule`), a cron expression in UTC: it wakes the
//! supervisor, and may be the maintenance window for deployments. Nothing is started here.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use croner::Cron;
use croner::parser::{CronParser, Seconds};
use serde::{Deserialize, Serialize};

use super::services::Maintenance;
use crate::time::Timestamp;

/// A cron expression of five fields, or of six with seconds first.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Schedule {
    text: String,
    cron: Cron,
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fields: Vec<&str> = text.split_whitespace().collect();
        let with_seconds = match fields.len() {
            5 => format!("0 {}", fields.join(" ")),
            6 => fields.join(" "),
            count => return Err(format!("a cron expression has 5 or 6 fields, not {count}")),
        };
        let parser = CronParser::builder().seconds(Seconds::Required).build();
        let cron = parser
            .parse(&with_seconds)
            .map_err(|error| format!("`{}`: {error}", text.escape_debug()))?;
        let schedule = Self {
            text: with_seconds,
            cron,
        };
        if schedule.next_after(Timestamp::from_seconds(0)).is_none() {
            return Err(format!("`{}` has no occurrence", text.escape_debug()));
        }
        Ok(schedule)
    }
}

impl TryFrom<String> for Schedule {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Schedule> for String {
    fn from(schedule: Schedule) -> Self {
        schedule.text
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Schedule {}

impl Maintenance for Schedule {
    fn next_after(&self, now: Timestamp) -> Option<Timestamp> {
        let now = DateTime::<Utc>::from_timestamp(now.seconds(), 0)?;
        let next = self.cron.find_next_occurrence(&now, false).ok()?;
        Some(Timestamp::from_seconds(next.timestamp()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(text: &str, now: &str) -> String {
        let now = serde_json::from_value(now.into()).unwrap();
        let next = text.parse::<Schedule>().unwrap().next_after(now);
        next.map_or_else(|| "never".into(), |at| at.to_string())
    }

    #[test]
    fn next_after_returns_the_next_instant_in_utc() {
        let now = "2026-11-25T03:00:00Z";
        assert_eq!(next("0 3 * * *", now), "2026-11-26T03:00:00Z");
        assert_eq!(next("30 0 3 * * *", now), "2026-11-25T03:00:30Z");
        assert_eq!(next("0 4 * * SUN", now), "2026-11-29T04:00:00Z");
    }

    #[test]
    fn parse_refuses_invalid_expressions_and_those_without_occurrence() {
        for text in [
            "",
            "every day",
            "61 * * * *",
            "0 0 30 2 *",
            "* * * * * * * *",
        ] {
            assert!(text.parse::<Schedule>().is_err(), "{text:?}");
        }
    }
}
