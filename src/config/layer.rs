//! A value of one source (the file, the environment, the command line), and the
//! readers that parse it into a type. All sources use the same readers, so that a key
//! means the same wherever it is set. A reader reports an invalid value and never stops
//! at it.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::ca::{self, DirectoryUrl};
use super::problem::{Given, Problems, SettingOrigin, nearest};
use crate::challenge::webroot;
use crate::deploy::docker::Api;
use crate::deploy::endpoint::Endpoint;
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::net::dns::lookup::Resolver;
use crate::net::proxy::Proxy;
use crate::store::place::StorePlace;
use crate::text::origins;

/// A value that is not parsed yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Raw {
    Text(String),
    List(Vec<Given<Raw>>),
    Boolean(bool),
    /// Its digits.
    Number(String),
    /// A table in a list.
    Table(Vec<(String, Given<Raw>)>),
    /// A date: no key takes one.
    Other,
}

pub(super) type Value = Given<Raw>;

/// What a reader returns: the value, or nothing after it has reported a problem.
type Read<T> = Option<Given<T>>;

/// A type that a text is parsed into.
pub(super) trait Parsed: FromStr<Err: fmt::Display> {}
impl<T: FromStr<Err: fmt::Display>> Parsed for T {}

impl Value {
    pub(super) fn text(text: &str, origin: &SettingOrigin) -> Self {
        Self::new(Raw::Text(text.to_owned()), origin)
    }

    pub(super) fn list<'a>(
        texts: impl IntoIterator<Item = &'a str>,
        origin: &SettingOrigin,
    ) -> Self {
        let texts = texts.into_iter();
        let items = texts.map(|text| Self::text(text, origin));
        Self::new(Raw::List(items.collect()), origin)
    }

    /// The same, or an empty list for the word [`NONE`].
    fn or_none(&self) -> Self {
        match self.items() {
            [only] if only.value == Raw::Text(NONE.to_owned()) => Self::list([], &self.origin),
            _ => self.clone(),
        }
    }

    /// The items of a list; a single text is a list of one.
    fn items(&self) -> &[Self] {
        match &self.value {
            Raw::List(items) => items,
            _ => std::slice::from_ref(self),
        }
    }
}

/// Reads a CA; the hint for an unknown name suggests the nearest known one.
pub(super) fn directory(value: &Value, _hint: &str, problems: &mut Problems) -> Read<DirectoryUrl> {
    let names = ca::names();
    let known = format!("give an https:// URL or one of {}", names.join(", "));
    parsed_by(value, &known, problems, |text| {
        let meant = nearest(text, names.iter().copied());
        let hint = meant.map_or(known.clone(), |meant| format!("did you mean {meant}?"));
        text.parse().map_err(|message| (message, hint))
    })
}

/// Reads the address of Docker's API.
pub(super) fn docker_host(value: &Value, hint: &str, problems: &mut Problems) -> Read<String> {
    parsed_by(value, hint, problems, |text| {
        match Api::at(text, &Resolver::default()) {
            Ok(_) => Ok(text.to_owned()),
            Err(error) => Err((error.to_string(), hint.to_owned())),
        }
    })
}

/// Reads a proxy, or `none`. A message must not show its credentials.
pub(super) fn proxy_or_none(
    value: &Value,
    hint: &str,
    problems: &mut Problems,
) -> Read<Option<Proxy>> {
    let proxy = match &value.value {
        Raw::Text(text) if text.trim() == NONE => Ok(None),
        Raw::Text(text) => {
            let source = value.origin.to_string();
            Proxy::parse(text, source.trim_end_matches(": ")).map(Some)
        }
        _ => Err("the value is not a text".to_owned()),
    };
    match proxy {
        Ok(proxy) => Some(Given::new(proxy, &value.origin)),
        Err(message) => {
            problems.add(&value.origin, message, hint);
            None
        }
    }
}

pub(super) fn email(value: &Value, hint: &str, problems: &mut Problems) -> Read<String> {
    parsed_by(value, hint, problems, |text| {
        let parts = text.split_once('@');
        let has_parts = parts.is_some_and(|(user, host)| {
            !user.is_empty() && !host.is_empty() && !host.contains('@')
        });
        match has_parts && !text.contains(|c: char| c.is_whitespace() || c.is_control() || c == ',')
        {
            true => Ok(text.to_owned()),
            false => {
                let message = format!("invalid e-mail address `{}`", text.escape_debug());
                Err((message, hint.to_owned()))
            }
        }
    })
}

/// Reads an address and a port, or `off`.
pub(super) fn address_or_off(
    value: &Value,
    hint: &str,
    problems: &mut Problems,
) -> Read<Option<SocketAddr>> {
    match &value.value {
        Raw::Text(text) if text == "off" => Some(Given::new(None, &value.origin)),
        _ => Some(parsed(value, hint, problems)?.map(Some)),
    }
}

/// A relative path of the file starts at the file, any other at the working directory.
pub(super) fn path(value: &Value, hint: &str, problems: &mut Problems) -> Read<PathBuf> {
    let path = parsed::<PathBuf>(value, hint, problems)?;
    Some(path.map(|path| absolute(&value.origin, &path)))
}

/// Reads the place of a shared store; that of a directory starts at the configuration file. A
/// message must not show its password.
pub(super) fn store_place(value: &Value, hint: &str, problems: &mut Problems) -> Read<StorePlace> {
    let place = parsed_by(value, hint, problems, |text| {
        text.parse::<StorePlace>()
            .map_err(|error| (error, hint.to_owned()))
    })?;
    Some(place.map(|place| place.completed(|path| absolute(&value.origin, &path))))
}

/// Reads webroots: one for all names, or a table with one for each name.
pub(super) fn webroots(
    value: &Value,
    hint: &str,
    problems: &mut Problems,
) -> Read<webroot::Settings> {
    let Raw::Table(each) = &value.value else {
        return Some(path(value, hint, problems)?.map(webroot::Settings::new));
    };
    let each = each.iter().filter_map(|(name, root)| {
        let root = path(root, hint, problems)?.value;
        // An invalid name is reported with the others.
        Some((Identifier::parse(name).ok()?, root))
    });
    let each = webroot::Settings::of_each(each.collect());
    Some(Given::new(each, &value.origin))
}

/// `path`, made absolute from the place where it is written.
pub(super) fn absolute(origin: &SettingOrigin, path: &Path) -> PathBuf {
    let base = match origin {
        SettingOrigin::Line { file, .. } => Path::new(file).parent().unwrap_or(Path::new("")),
        _ => Path::new(""),
    };
    let path = base.join(from_home(path));
    std::path::absolute(&path).unwrap_or(path)
}

/// `path` with this user's home directory for `~`: no shell reads the file, and none looks
/// into `--webroot=~/www`.
pub(super) fn from_home(path: &Path) -> PathBuf {
    let below = path.strip_prefix("~").ok();
    let found = below.and_then(|below| Some(std::env::home_dir()?.join(below)));
    found.unwrap_or_else(|| path.to_owned())
}

/// A value of a target, or its short form, with the home directory for `~` in a path.
pub(super) fn of_home(spec: &str) -> String {
    let parts = spec.split(':').map(|part| match part.starts_with("~/") {
        true => from_home(Path::new(part)).display().to_string(),
        false => part.to_owned(),
    });
    parts.collect::<Vec<_>>().join(":")
}

pub(super) fn parsed<T: Parsed>(value: &Value, hint: &str, problems: &mut Problems) -> Read<T> {
    parsed_by(value, hint, problems, |text| {
        let parsed = text.parse();
        parsed.map_err(|error: T::Err| (error.to_string(), hint.to_owned()))
    })
}

/// Parses a text by `parse`, whose error is a message and its hint.
fn parsed_by<T>(
    value: &Value,
    hint: &str,
    problems: &mut Problems,
    parse: impl FnOnce(&str) -> Result<T, (String, String)>,
) -> Read<T> {
    let parsed = match &value.value {
        Raw::Text(text) if text.trim().is_empty() => {
            Err(("the value is empty".to_owned(), hint.to_owned()))
        }
        Raw::Text(text) => parse(text).map_err(|(message, hint)| {
            // The standard library's parsers do not say what they read.
            let shown = origins(&text.escape_debug().to_string());
            match message.contains(text.trim()) || message.contains(&shown) {
                true => (message, hint),
                false => (format!("`{shown}`: {message}"), hint),
            }
        }),
        _ => Err(("the value is not a text".to_owned(), hint.to_owned())),
    };
    match parsed {
        Ok(parsed) => Some(Given::new(parsed, &value.origin)),
        Err((message, hint)) => {
            problems.add(&value.origin, message, hint);
            None
        }
    }
}

/// Reads a number, with or without quotes.
pub(super) fn number<T: Parsed>(value: &Value, hint: &str, problems: &mut Problems) -> Read<T> {
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

pub(super) fn boolean(value: &Value, _hint: &str, problems: &mut Problems) -> Read<bool> {
    let Raw::Boolean(switch) = value.value else {
        let message = "the value is neither true nor false";
        problems.add(&value.origin, message, "write true or false");
        return None;
    };
    Some(Given::new(switch, &value.origin))
}

/// Reads a list, with the origin of each item.
pub(super) fn words<T: Parsed>(
    value: &Value,
    hint: &str,
    problems: &mut Problems,
) -> Read<Vec<Given<T>>> {
    let items = value.items().iter();
    let items = items.filter_map(|item| parsed(item, hint, problems));
    Some(Given::new(items.collect(), &value.origin))
}

/// The word of a list that holds nothing, or of no text, against a stored or a weaker one.
pub(super) const NONE: &str = "none";

/// Reads a list as [`words`] does; `none` is an empty one.
pub(super) fn words_or_none(
    value: &Value,
    hint: &str,
    problems: &mut Problems,
) -> Read<Vec<Given<String>>> {
    words(&value.or_none(), hint, problems)
}

pub(super) fn list<T: Parsed>(value: &Value, hint: &str, problems: &mut Problems) -> Read<Vec<T>> {
    let all = words(value, hint, problems)?;
    Some(all.map(|all| all.into_iter().map(|item| item.value).collect()))
}

/// Reads endpoints: a text each, or a table with the same parts; `none` stands for an empty list.
pub(super) fn endpoints(value: &Value, hint: &str, problems: &mut Problems) -> Read<Vec<Endpoint>> {
    let read = |item: &Value, problems: &mut Problems| match &item.value {
        Raw::Table(keys) => parsed(&endpoint_text(keys, &item.origin), hint, problems),
        _ => parsed(item, hint, problems),
    };
    let value = value.or_none();
    let items = value.items().iter();
    let items = items.filter_map(|item| Some(read(item, problems)?.value));
    Some(Given::new(items.collect(), &value.origin))
}

/// The table of an endpoint as one text, for the only parser of endpoints.
fn endpoint_text(keys: &[(String, Value)], origin: &SettingOrigin) -> Value {
    let texts = |value: &Value| {
        let items = value.items().iter().map(|item| match &item.value {
            Raw::Text(text) => text.clone(),
            other => format!("{other:?}"),
        });
        items.collect::<Vec<_>>()
    };
    let (mut address, mut parts) = (String::new(), Vec::new());
    for (key, value) in keys {
        match (key.as_str(), texts(value)) {
            ("address", texts) => address = texts.concat(),
            (key, texts) => parts.extend(texts.iter().map(|text| format!("{key}={text}"))),
        }
    }
    Value::text(&format!("{address}?{}", parts.join("&")), origin)
}

/// Reads the names of a certificate.
pub(super) fn identifiers(value: &Value, problems: &mut Problems) -> Vec<Identifier> {
    let items = value.items().iter().filter_map(|item| {
        let hint = "a DNS name or an IP address belongs here";
        parsed_by(item, hint, problems, |text| {
            Identifier::parse(text).map_err(|error| (error.to_string(), error.hint().to_owned()))
        })
    });
    items.map(|item| item.value).collect()
}

/// Reads a certificate's own name.
pub(super) fn lineage(value: &Value, problems: &mut Problems) -> Read<Lineage> {
    parsed(value, "letters a to z, digits, `.`, `_` and `-`", problems)
}
