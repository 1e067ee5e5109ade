//! A failure for the user: an exit code, and messages with one hint each. It also
//! crosses the control socket. Nothing is printed here.

use serde::{Deserialize, Serialize};

use crate::files::trust::Untrusted;

/// The hint for a store or an output that cannot be used.
pub(crate) const STORE_HINT: &str =
    "check the directory's owner, mode and free space; nothing that is served was changed";

/// An exit code, and messages with hints.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// The exit code.
    pub code: u8,
    /// Each message with its hint.
    #[serde(rename = "told")]
    messages: Vec<(String, String)>,
}

impl Failure {
    /// A failure with several messages.
    pub(crate) fn new(code: u8, messages: Vec<(String, String)>) -> Self {
        Self { code, messages }
    }

    fn one(code: u8, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(code, vec![(message.into(), hint.into())])
    }

    /// A failure without a known cause.
    pub(crate) fn unexpected(message: impl ToString) -> Self {
        let hint = "run again with -v and report what it says";
        Self::broken(message.to_string(), hint)
    }

    /// A failure with a known next step.
    pub(crate) fn broken(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::one(1, message, hint)
    }

    /// Invalid usage, configuration or environment; nothing was sent.
    pub(crate) fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::one(2, message, hint)
    }

    /// The store or an output could not be used.
    pub(crate) fn store(message: String) -> Self {
        Self::one(8, message, STORE_HINT)
    }

    /// Replaces the first `text` of each message.
    pub(crate) fn replace(&mut self, text: &str, by: &str) {
        for (message, _) in &mut self.messages {
            *message = message.replacen(text, by, 1);
        }
    }

    /// The exit code alone, for a failure whose messages were already shown.
    pub(crate) fn code_only(&self) -> Self {
        Self::new(self.code, Vec::new())
    }

    /// Each message with its hint.
    pub(crate) fn messages(&self) -> impl Iterator<Item = (&str, &str)> {
        let messages = self.messages.iter();
        messages.map(|(message, hint)| (message.as_str(), hint.as_str()))
    }

    /// The first line of the first message.
    pub(crate) fn summary(&self) -> &str {
        let first = self.messages().next();
        first.map_or("", |(message, _)| {
            message.lines().next().unwrap_or_default()
        })
    }

    /// Every message with its hint, for a log.
    pub(crate) fn in_a_line(&self) -> String {
        let lines = self.messages();
        let lines = lines.map(|(message, hint)| format!("{message}; hint: {hint}"));
        lines.collect::<Vec<_>>().join("; ")
    }
}

impl From<Untrusted> for Failure {
    fn from(error: Untrusted) -> Self {
        Self::usage(error.to_string(), error.hint())
    }
}
