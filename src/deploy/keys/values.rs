//! The types of values that several deploy targets share: paths, programs, users, modes.
//! Each keeps the text that the user wrote, which is stored. Only users and groups are
//! looked up here.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, json_schema};
use serde::{Deserialize, Serialize};

use crate::deploy::owner::{self, Owner};
use crate::net::url::SecretUrl;

/// The type of a key's value, which may be a path.
pub(crate) trait HoldsPath {
    /// The path.
    fn path(&mut self) -> Option<&mut PathKey> {
        None
    }
}

impl HoldsPath for String {}
impl HoldsPath for SecretUrl {}
impl HoldsPath for bool {}
impl HoldsPath for Argv {}
impl<T> HoldsPath for AsWritten<T> {}

impl HoldsPath for PathKey {
    fn path(&mut self) -> Option<&mut PathKey> {
        Some(self)
    }
}

impl<T: HoldsPath> HoldsPath for Option<T> {
    fn path(&mut self) -> Option<&mut PathKey> {
        self.as_mut()?.path()
    }
}

/// A path; a relative one starts at the file in which it is written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline, extend("format" = "path"))]
pub(crate) struct PathKey(PathBuf);

impl PathKey {
    /// The path after `change`.
    pub(in crate::deploy) fn change(&mut self, change: impl FnOnce(&Path) -> PathBuf) {
        // It is stored as a text: invalid UTF-8 is replaced now, so that both are equal.
        self.0 = change(&self.0).display().to_string().into();
    }
}

impl From<PathBuf> for PathKey {
    fn from(path: PathBuf) -> Self {
        Self(path)
    }
}

impl Deref for PathKey {
    type Target = PathBuf;

    fn deref(&self) -> &PathBuf {
        &self.0
    }
}

/// A program with its arguments: a list, or one text for a program without arguments.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline, transform = allow_one_text)]
pub(crate) struct Argv(Vec<String>);

fn allow_one_text(list: &mut schemars::Schema) {
    list.insert("minItems".to_owned(), 1.into());
    *list = json_schema!({"anyOf": [{"type": "string"}, list]});
}

impl Deref for Argv {
    type Target = Vec<String>;

    fn deref(&self) -> &Vec<String> {
        &self.0
    }
}

/// A value with the text that it was parsed from; the text is stored.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[serde(bound = "T: FromStr<Err = String> + Clone")]
#[schemars(inline, bound = "")]
pub struct AsWritten<T> {
    text: String,
    value: T,
}

impl<T: Copy> AsWritten<T> {
    /// The value.
    pub(in crate::deploy) fn value(&self) -> T {
        self.value
    }
}

impl<T: FromStr<Err = String>> TryFrom<String> for AsWritten<T> {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let value = text.parse()?;
        Ok(Self { text, value })
    }
}

impl<T> From<AsWritten<T>> for String {
    fn from(written: AsWritten<T>) -> Self {
        written.text
    }
}

/// A user's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct UserNumber(pub u32);

impl FromStr for UserNumber {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        owner::user(text).map(Self)
    }
}

/// A group's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GroupNumber(pub u32);

impl FromStr for GroupNumber {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        owner::group(text).map(Self)
    }
}

/// A file's mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FileMode(pub u32);

impl FromStr for FileMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mode = u32::from_str_radix(text, 8).ok();
        let mode = mode.filter(|mode| *mode <= 0o777).map(Self);
        mode.ok_or_else(|| "write the mode in octal digits, such as \"0640\"".to_owned())
    }
}

/// The value of `timeout`.
pub(crate) type Timeout = AsWritten<ProgramTimeout>;

/// The default of `timeout`, 2 minutes: a server that looks up names of its configuration may
/// wait for slow DNS.
const PROGRAM_WITHIN: Duration = Duration::from_secs(120);

/// The configured timeout, or the default.
pub(in crate::deploy) fn within(timeout: Option<&Timeout>) -> Duration {
    timeout.map_or(PROGRAM_WITHIN, |timeout| timeout.value().0)
}

/// The deadline of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ProgramTimeout(pub Duration);

const LONGEST_PROGRAM: Duration = Duration::from_secs(3600);

impl FromStr for ProgramTimeout {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = match text.strip_suffix('m') {
            Some(minutes) => (minutes, 60),
            None => (text.strip_suffix('s').unwrap_or(text), 1),
        };
        let number = number.parse::<u64>().ok();
        let seconds = number.and_then(|number| number.checked_mul(unit));
        let within = seconds.map(Duration::from_secs);
        let within = within.filter(|within| !within.is_zero() && *within <= LONGEST_PROGRAM);
        let within = within.map(Self);
        within.ok_or_else(|| "write a timeout from 1s to 60m".to_owned())
    }
}

/// The owner that `owner` and `group` name.
pub(in crate::deploy) fn owner_of(
    owner: Option<&AsWritten<UserNumber>>,
    group: Option<&AsWritten<GroupNumber>>,
) -> Owner {
    Owner {
        user: owner.map(|user| user.value().0),
        group: group.map(|group| group.value().0),
    }
}
