//! A value of one source (the file, the environment, the command line), and the
//! readers that parse it into a type. All sources use the same readers, so that a key
//! means the same wherever it is set. A reader reports an invalid value and never stops
//! at it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::ca::{self, Directory};
use super::problem::{Given, Origin, Problems, nearest};
use crate::deploy::docker::Api;

/// A value that is not parsed yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Raw {
    Text(String),
    List(Vec<Given<Raw>>),
    Boolean(bool),
    /// Its digits.
    Number(String),
    /// A date or a table: no key takes one.
    Other,
}

pub(super) type Value = Given<Raw>;

impl Value {
    pub(super) fn text(text: &str, origin: &Origin) -> Self {
        Self {
            value: Raw::Text(text.to_owned()),
            origin: origin.clone(),
        }
    }

    pub(super) fn list<'a>(texts: impl IntoIterator<Item = &'a str>, origin: &Origin) -> Self {
        Self {
            value: Raw::List(
                texts
                    .into_iter()
                    .map(|text| Self::text(text, origin))
                    .collect(),
            ),
            origin: origin.clone(),
        }
    }
}

/// Reads a CA; the hint for an unknown name suggests the nearest known one.
pub(super) fn directory(
    value: &Value,
    _expected: &str,
    problems: &mut Problems,
) -> Option<Given<Directory>> {
    let names = ca::names();
    let meant = match &value.value {
        Raw::Text(text) => nearest(text, names.iter().copied()),
        _ => None,
    };
    let hint = match meant {
        Some(meant) => format!("did you mean {meant}?"),
        None => format!("give an https:// URL or one of {}", names.join(", ")),
    };
    parsed(value, &hint, problems)
}

/// The address of Docker's API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DockerHost(pub(super) String);

impl FromStr for DockerHost {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Api::at(text).map(|_| Self(text.to_owned()))
    }
}

struct Email(String);

impl FromStr for Email {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let fine = text.split_once('@').is_some_and(|(user, host)| {
            !user.is_empty() && !host.is_empty() && !host.contains('@')
        }) && !text.contains(|c: char| c.is_whitespace() || c.is_control() || c == ',');
        if fine {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!("invalid e-mail address `{}`", text.escape_debug()))
        }
    }
}

pub(super) fn email(value: &Value, hint: &str, problems: &mut Problems) -> Option<Given<String>> {
    let email = parsed::<Email>(value, hint, problems)?;
    Some(email.map(|Email(text)| text))
}

pub(super) fn text(value: &Value, hint: &str, problems: &mut Problems) -> Option<Given<String>> {
    parsed(value, hint, problems)
}

/// A relative path of the file starts at the file, any other at the working directory.
pub(super) fn path(value: &Value, hint: &str, problems: &mut Problems) -> Option<Given<PathBuf>> {
    let path = parsed::<PathBuf>(value, hint, problems)?;
    let base = path.origin.clone();
    Some(path.map(|path| absolute(&base, &path)))
}

/// `path`, made absolute from the place where it is written.
pub(super) fn absolute(origin: &Origin, path: &Path) -> PathBuf {
    let base = match origin {
        Origin::Line { file, .. } => Path::new(file).parent().unwrap_or(Path::new("")),
        _ => Path::new(""),
    };
    let path = base.join(path);
    std::path::absolute(&path).unwrap_or(path)
}

pub(super) fn parsed<T: FromStr>(
    value: &Value,
    hint: &str,
    problems: &mut Problems,
) -> Option<Given<T>>
where
    T::Err: fmt::Display,
{
    let origin = value.origin.clone();
    let Raw::Text(text) = &value.value else {
        problems.add(&origin, "the value is not a text", hint);
        return None;
    };
    if text.trim().is_empty() {
        problems.add(&origin, "the value is empty", hint);
        return None;
    }
    match text.parse() {
        Ok(value) => Some(Given { value, origin }),
        Err(error) => {
            let message = error.to_string();
            // The standard library's parsers do not say what they read.
            let shown = text.escape_debug().to_string();
            if message.contains(text.trim()) || message.contains(&shown) {
                problems.add(&origin, message, hint);
            } else {
                problems.add(&origin, format!("`{shown}`: {message}"), hint);
            }
            None
        }
    }
}

/// Reads a number, with or without quotes.
pub(super) fn number<T: FromStr>(
    value: &Value,
    hint: &str,
    problems: &mut Problems,
) -> Option<Given<T>>
where
    T::Err: fmt::Display,
{
    match &value.value {
        Raw::Number(digits) => parsed(&Value::text(digits, &value.origin), hint, problems),
        _ => parsed(value, hint, problems),
    }
}

/// The words of `text`, separated by spaces or commas.
pub(super) fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c.is_whitespace() || c == ',')
        .filter(|word| !word.is_empty())
}

pub(super) fn boolean(
    value: &Value,
    _expected: &str,
    problems: &mut Problems,
) -> Option<Given<bool>> {
    let origin = value.origin.clone();
    let Raw::Boolean(value) = value.value else {
        problems.add(
            &origin,
            "the value is neither true nor false",
            "write true or false",
        );
        return None;
    };
    Some(Given { value, origin })
}

/// Reads a list; a single text is a list of one.
pub(super) fn words<T: FromStr>(
    value: &Value,
    hint: &str,
    problems: &mut Problems,
) -> Option<Given<Vec<Given<T>>>>
where
    T::Err: fmt::Display,
{
    let items = match &value.value {
        Raw::List(items) => items.as_slice(),
        _ => std::slice::from_ref(value),
    };
    let value_of = |item| parsed(item, hint, problems);
    Some(Given {
        value: items.iter().filter_map(value_of).collect(),
        origin: value.origin.clone(),
    })
}

pub(super) fn list<T: FromStr>(
    value: &Value,
    hint: &str,
    problems: &mut Problems,
) -> Option<Given<Vec<T>>>
where
    T::Err: fmt::Display,
{
    words(value, hint, problems).map(|all| Given {
        value: all.value.into_iter().map(|item| item.value).collect(),
        origin: all.origin,
    })
}
