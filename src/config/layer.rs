//! What one source says (the file, the environment, the command line), key by
//! key and not yet combined with the others. All three come through
//! [`Layer::put`], so that a key means the same wherever it is said.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::str::FromStr;

use super::ca::{self, Directory};
use super::labels::{Grace, Pattern};
use super::problem::{Given, Place, Problems, nearest};
use super::{AdminListen, DeployWhen, LogFormat};
use crate::certificate::KeyType;
use crate::challenge::{ChallengeKind, ChallengeSettings};
use crate::deploy::docker::Api;
use crate::deploy::endpoint::Endpoint;
use crate::deploy::spec::Spec;
use crate::manage::schedule::Schedule;

/// What a key takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    List,
    Truth,
}

/// Whom a key may be said for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// For the whole process.
    Process,
    /// For one certificate, and as the default for all.
    Certificate,
}

/// Every key there is; a `.` stands between a table and its key. The variable
/// and the option are made from it.
pub(super) const KEYS: [(&str, Kind, Scope); 33] = [
    ("data_dir", Kind::Text, Scope::Process),
    ("output_dir", Kind::Text, Scope::Process),
    ("log_format", Kind::Text, Scope::Process),
    ("harden", Kind::Truth, Scope::Process),
    ("http_listen", Kind::List, Scope::Process),
    ("output.owner", Kind::Text, Scope::Process),
    ("output.group", Kind::Text, Scope::Process),
    ("admin.listen", Kind::Text, Scope::Process),
    ("renew.schedule", Kind::Text, Scope::Process),
    ("renew.deploy", Kind::Text, Scope::Process),
    ("docker.host", Kind::Text, Scope::Process),
    ("docker.accept_raw_socket", Kind::Truth, Scope::Process),
    ("docker.grace", Kind::Text, Scope::Process),
    ("docker.allow", Kind::List, Scope::Process),
    ("docker.limit", Kind::Text, Scope::Process),
    ("ca", Kind::Text, Scope::Certificate),
    ("ca_root", Kind::Text, Scope::Certificate),
    ("email", Kind::Text, Scope::Certificate),
    ("agree_tos", Kind::Truth, Scope::Certificate),
    ("eab_kid", Kind::Text, Scope::Certificate),
    ("eab_hmac_file", Kind::Text, Scope::Certificate),
    ("preferred_chain", Kind::Text, Scope::Certificate),
    ("fallback_ca", Kind::Text, Scope::Certificate),
    ("fallback_eab_kid", Kind::Text, Scope::Certificate),
    ("fallback_eab_hmac_file", Kind::Text, Scope::Certificate),
    ("challenge", Kind::Text, Scope::Certificate),
    ("webroot", Kind::Text, Scope::Certificate),
    ("profile", Kind::Text, Scope::Certificate),
    ("key", Kind::Text, Scope::Certificate),
    ("reuse_key", Kind::Truth, Scope::Certificate),
    ("partial", Kind::Truth, Scope::Certificate),
    ("deploy", Kind::List, Scope::Certificate),
    ("verify", Kind::List, Scope::Certificate),
];

/// A value before it is understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Raw {
    Text(String),
    List(Vec<Given<Raw>>),
    Truth(bool),
    /// Its digits.
    Number(String),
    /// A date or a table: no key takes one.
    Other,
}

pub(super) type Value = Given<Raw>;

impl Value {
    pub(super) fn text(text: &str, place: &Place) -> Self {
        Self {
            value: Raw::Text(text.to_owned()),
            place: place.clone(),
        }
    }

    pub(super) fn list<'a>(texts: impl IntoIterator<Item = &'a str>, place: &Place) -> Self {
        Self {
            value: Raw::List(
                texts
                    .into_iter()
                    .map(|text| Self::text(text, place))
                    .collect(),
            ),
            place: place.clone(),
        }
    }
}

/// What may be said for one certificate.
#[derive(Clone, Debug, Default)]
pub(super) struct CertificateLayer {
    pub(super) ca: Option<Given<Directory>>,
    pub(super) root: Option<Given<PathBuf>>,
    pub(super) email: Option<Given<String>>,
    pub(super) agree_tos: Option<Given<bool>>,
    pub(super) eab_kid: Option<Given<String>>,
    pub(super) eab_hmac_file: Option<Given<PathBuf>>,
    pub(super) preferred_chain: Option<Given<String>>,
    pub(super) fallback: Option<Given<Directory>>,
    pub(super) fallback_eab_kid: Option<Given<String>>,
    pub(super) fallback_eab_hmac_file: Option<Given<PathBuf>>,
    pub(super) challenge: Option<Given<ChallengeKind>>,
    /// Instead of what follows: that of a stored certificate.
    pub(super) stored_challenge: Option<Given<ChallengeSettings>>,
    pub(super) webroot: Option<Given<PathBuf>>,
    pub(super) http_listen: Option<Given<Vec<SocketAddr>>>,
    pub(super) profile: Option<Given<String>>,
    pub(super) key: Option<Given<KeyType>>,
    pub(super) reuse_key: Option<Given<bool>>,
    pub(super) partial: Option<Given<bool>>,
    /// Specs, or names of the file's `[deploy.NAME]` tables.
    pub(super) deploy: Option<Given<Vec<Given<String>>>>,
    /// Instead of them, whole specs: those of a stored certificate.
    pub(super) stored_deploy: Option<Given<Vec<Spec>>>,
    pub(super) verify: Option<Given<Vec<Endpoint>>>,
    /// Keys that were said and not understood: what follows from their absence
    /// is not worth telling.
    pub(super) broken: BTreeSet<String>,
}

/// What one source says.
#[derive(Clone, Debug, Default)]
pub(super) struct Layer {
    pub(super) data_dir: Option<Given<PathBuf>>,
    pub(super) output_dir: Option<Given<PathBuf>>,
    pub(super) log_format: Option<Given<LogFormat>>,
    pub(super) harden: Option<Given<bool>>,
    pub(super) output_owner: Option<Given<String>>,
    pub(super) output_group: Option<Given<String>>,
    pub(super) admin_listen: Option<Given<AdminListen>>,
    pub(super) schedule: Option<Given<Schedule>>,
    pub(super) deploy_when: Option<Given<DeployWhen>>,
    pub(super) docker_host: Option<Given<DockerHost>>,
    pub(super) docker_accepts_raw: Option<Given<bool>>,
    pub(super) docker_grace: Option<Given<Grace>>,
    pub(super) docker_allow: Option<Given<Vec<Pattern>>>,
    pub(super) docker_limit: Option<Given<NonZeroU16>>,
    /// For every certificate.
    pub(super) shared: CertificateLayer,
}

impl Layer {
    /// Takes what is said for `key`; whether there is such a key.
    pub(super) fn put(&mut self, key: &str, value: &Value, problems: &mut Problems) -> bool {
        match key {
            "data_dir" => self.data_dir = path(value, problems),
            "output_dir" => self.output_dir = path(value, problems),
            "log_format" => self.log_format = parsed(value, "write text or json", problems),
            "harden" => self.harden = truth(value, problems),
            "output.owner" => self.output_owner = text(value, problems),
            "output.group" => self.output_group = text(value, problems),
            "admin.listen" => {
                self.admin_listen = parsed(value, "write 127.0.0.1:9180, or off", problems);
            }
            "renew.schedule" => {
                self.schedule = parsed(
                    value,
                    "for example 30 3 * * * for 3:30 every night",
                    problems,
                );
            }
            "renew.deploy" => {
                self.deploy_when = parsed(value, "write at-once or on-schedule", problems);
            }
            "docker.host" => {
                let hint = "write tcp://HOST:2375, or unix:///PATH";
                self.docker_host = parsed(value, hint, problems);
            }
            "docker.accept_raw_socket" => self.docker_accepts_raw = truth(value, problems),
            "docker.grace" => {
                self.docker_grace = parsed(value, "write 7d, 12h or 30m", problems);
            }
            "docker.allow" => {
                let hint = "a name belongs here, or *.example.com for all below it";
                self.docker_allow = list(value, hint, problems);
            }
            "docker.limit" => {
                self.docker_limit = number(value, "a number from 1 to 65535", problems);
            }
            "http_listen" => {
                self.shared.http_listen = list(
                    value,
                    "an address such as 0.0.0.0:80 belongs here",
                    problems,
                );
            }
            shared => return self.shared.put(shared, value, problems),
        }
        true
    }
}

impl CertificateLayer {
    /// Takes what is said for `key`; whether a certificate has such a key.
    pub(super) fn put(&mut self, key: &str, value: &Value, problems: &mut Problems) -> bool {
        let before = problems.len();
        let known = self.understand(key, value, problems);
        if problems.len() > before {
            self.broken.insert(key.to_owned());
        }
        known
    }

    fn understand(&mut self, key: &str, value: &Value, problems: &mut Problems) -> bool {
        match key {
            "ca" => {
                self.ca = parsed(value, &ca_hint(value), problems);
            }
            "ca_root" => self.root = path(value, problems),
            "email" => {
                self.email = parsed::<Email>(value, "for example admin@example.com", problems)
                    .map(Given::inner)
            }
            "agree_tos" => self.agree_tos = truth(value, problems),
            "eab_kid" => self.eab_kid = text(value, problems),
            "eab_hmac_file" => self.eab_hmac_file = path(value, problems),
            "preferred_chain" => self.preferred_chain = text(value, problems),
            "fallback_ca" => self.fallback = parsed(value, &ca_hint(value), problems),
            "fallback_eab_kid" => self.fallback_eab_kid = text(value, problems),
            "fallback_eab_hmac_file" => self.fallback_eab_hmac_file = path(value, problems),
            "challenge" => {
                let hint = format!(
                    "write {}, or leave it out",
                    ChallengeKind::names().join(" or ")
                );
                self.challenge = parsed(value, &hint, problems);
            }
            "webroot" => self.webroot = path(value, problems),
            "profile" => self.profile = text(value, problems),
            "key" => {
                let hint = "ecdsa-p256, ecdsa-p384, rsa-2048, rsa-3072 or rsa-4096";
                self.key = parsed(value, hint, problems);
            }
            "reuse_key" => self.reuse_key = truth(value, problems),
            "partial" => self.partial = truth(value, problems),
            "deploy" => self.deploy = words(value, super::DEPLOY_HINT, problems),
            "verify" => {
                let hint = "HOST:PORT, for example example.com:443";
                self.verify = list(value, hint, problems);
            }
            _ => return false,
        }
        true
    }
}

fn ca_hint(value: &Value) -> String {
    if let Raw::Text(text) = &value.value
        && let Some(meant) = nearest(text, ca::names())
    {
        return format!("did you mean {meant}?");
    }
    format!("give an https:// URL or one of {}", ca::names().join(", "))
}

/// Where Docker's API is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DockerHost(pub(super) String);

impl FromStr for DockerHost {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Api::at(text).map(|_| Self(text.to_owned()))
    }
}

struct Email(String);

impl Given<Email> {
    fn inner(self) -> Given<String> {
        Given {
            value: self.value.0,
            place: self.place,
        }
    }
}

impl FromStr for Email {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let fine = text.split_once('@').is_some_and(|(user, host)| {
            !user.is_empty() && !host.is_empty() && !host.contains('@')
        }) && !text.contains(|c: char| c.is_whitespace() || c.is_control() || c == ',');
        if fine {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!("`{}` is no e-mail address", text.escape_debug()))
        }
    }
}

pub(super) fn text(value: &Value, problems: &mut Problems) -> Option<Given<String>> {
    parsed(value, "a text belongs here", problems)
}

pub(super) fn path(value: &Value, problems: &mut Problems) -> Option<Given<PathBuf>> {
    parsed(value, "a path belongs here", problems)
}

pub(super) fn parsed<T: FromStr>(
    value: &Value,
    hint: &str,
    problems: &mut Problems,
) -> Option<Given<T>>
where
    T::Err: fmt::Display,
{
    let place = value.place.clone();
    let Raw::Text(text) = &value.value else {
        problems.add(&place, "this is not a text", hint);
        return None;
    };
    if text.trim().is_empty() {
        problems.add(&place, "this is empty", hint);
        return None;
    }
    match text.parse() {
        Ok(value) => Some(Given { value, place }),
        Err(error) => {
            let message = error.to_string();
            // The standard library's parsers do not say what they read.
            let shown = text.escape_debug().to_string();
            if message.contains(text.trim()) || message.contains(&shown) {
                problems.add(&place, message, hint);
            } else {
                problems.add(&place, format!("`{shown}`: {message}"), hint);
            }
            None
        }
    }
}

/// A number, which may stand in quotes.
fn number<T: FromStr>(value: &Value, hint: &str, problems: &mut Problems) -> Option<Given<T>>
where
    T::Err: fmt::Display,
{
    match &value.value {
        Raw::Number(digits) => parsed(&Value::text(digits, &value.place), hint, problems),
        _ => parsed(value, hint, problems),
    }
}

/// Words between spaces or commas.
pub(super) fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c.is_whitespace() || c == ',')
        .filter(|word| !word.is_empty())
}

pub(super) fn truth(value: &Value, problems: &mut Problems) -> Option<Given<bool>> {
    let place = value.place.clone();
    let truth = match &value.value {
        Raw::Truth(truth) => Some(*truth),
        _ => None,
    };
    if truth.is_none() {
        problems.add(
            &place,
            "this is neither true nor false",
            "write true or false",
        );
    }
    truth.map(|value| Given { value, place })
}

/// A list; a single text is a list of one.
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
        place: value.place.clone(),
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
        place: all.place,
    })
}
