//! When the owner wants work to be done: a cron expression, checked here and
//! kept as text.

use std::fmt;
use std::str::FromStr;

use croner::parser::{CronParser, Seconds};
use serde::{Deserialize, Serialize};

/// A cron expression with a field for the seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Schedule(String);

impl Schedule {
    /// The expression in six fields, seconds first.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Schedule {
    type Err = String;

    /// Reads five fields (minute to weekday) or six (seconds first).
    fn from_str(text: &str) -> Result<Self, String> {
        let fields: Vec<&str> = text.split_whitespace().collect();
        let six = match fields.len() {
            5 => format!("0 {}", fields.join(" ")),
            6 => fields.join(" "),
            count => return Err(format!("a cron expression has 5 or 6 fields, not {count}")),
        };
        let parser = CronParser::builder().seconds(Seconds::Required).build();
        match parser.parse(&six) {
            Ok(_) => Ok(Self(six)),
            Err(error) => Err(format!("`{}`: {error}", text.escape_debug())),
        }
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
        schedule.0
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_fields_and_six_are_one_schedule() {
        let read = |text: &str| text.parse::<Schedule>().map(String::from);
        assert_eq!(read("30 3 * * *").unwrap(), "0 30 3 * * *");
        assert_eq!(read("0 30 3 * * *").unwrap(), "0 30 3 * * *");
        for text in ["", "daily", "* * * *", "61 3 * * *", "0 0 30 2 x *"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
