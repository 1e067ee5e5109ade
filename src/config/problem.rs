//! The problems of a configuration and their origin: a line of the file, a variable, or
//! an option. Problems are collected, so that one run reports them all.

use std::fmt;

pub(super) use crate::text::nearest;
use crate::text::{printable, printable_within};

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SettingOrigin {
    /// A line of the configuration, from 1.
    Line { file: String, line: usize },
    /// A variable of the environment.
    Variable(String),
    /// An option or an argument of the command line.
    Option(String),
    /// The options of the issue that made this certificate.
    Stored(String),
    /// A label of a container, or a variable of its environment.
    Label { container: String, label: String },
    /// No origin: the value is missing.
    Nowhere,
}

impl fmt::Display for SettingOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The file's name and the variable's are chosen by the user.
            Self::Line { file, line } => write!(f, "{}:{line}: ", printable(file)),
            Self::Variable(name) | Self::Option(name) => write!(f, "{}: ", printable(name)),
            Self::Stored(name) => write!(f, "stored options of {name}: "),
            Self::Label { container, label } => {
                let (container, label) = (printable(container), printable(label));
                write!(f, "container {container}, {label}: ")
            }
            Self::Nowhere => Ok(()),
        }
    }
}

/// A value and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Given<T> {
    pub(super) value: T,
    pub(super) origin: SettingOrigin,
}

impl<T> Given<T> {
    pub(super) fn new(value: T, origin: &SettingOrigin) -> Self {
        let origin = origin.clone();
        Self { value, origin }
    }

    pub(super) fn map<U>(self, change: impl FnOnce(T) -> U) -> Given<U> {
        Given {
            value: change(self.value),
            origin: self.origin,
        }
    }
}

/// One error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConfigProblem {
    pub origin: SettingOrigin,
    pub message: String,
    pub hint: String,
}

impl ConfigProblem {
    /// The message with its origin, and the hint.
    pub(crate) fn shown(&self) -> (String, String) {
        // A message quotes what a user wrote: a path, a value, a name.
        let (message, hint) = (safe(&self.message), safe(&self.hint));
        (format!("{}{message}", self.origin), hint)
    }
}

/// Escapes control characters, so that no text steers a terminal; lines stay lines.
fn safe(text: &str) -> String {
    let lines = text
        .split('\n')
        .map(|line| printable_within(line, usize::MAX));
    lines.collect::<Vec<_>>().join("\n")
}

/// The errors found so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Problems(Vec<ConfigProblem>);

impl Problems {
    pub(super) fn add(
        &mut self,
        origin: &SettingOrigin,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        let problem = ConfigProblem {
            origin: origin.clone(),
            message: message.into(),
            hint: hint.into(),
        };
        // An invalid default is one problem, not one for each certificate.
        if !self.0.contains(&problem) {
            self.0.push(problem);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// `value`, or all problems if there are any.
    pub(super) fn or<T>(self, value: T) -> Result<T, Vec<ConfigProblem>> {
        match self.0.is_empty() {
            true => Ok(value),
            false => Err(self.sorted()),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The problems in the order of the file's lines, then in the order of discovery.
    pub(super) fn sorted(mut self) -> Vec<ConfigProblem> {
        self.0.sort_by_key(|problem| match problem.origin {
            SettingOrigin::Line { line, .. } => line,
            _ => usize::MAX,
        });
        self.0
    }
}
