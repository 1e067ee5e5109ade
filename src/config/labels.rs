//! What containers request by their labels, as certificates: a label stands where
//! the file would have a table, and is stronger than the defaults of all. A user who
//! may start a container may neither run programs here nor reach what the
//! configuration does not name: a label deploys to nginx or to a `[deploy.NAME]` of
//! the file, and its names can be restricted to a list.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::keys::CertificateLayer;
use super::layer::{Value, split};
use super::problem::{Origin, Problem, Problems};
use super::read::Entry;
use super::resolve::Sources;
use super::{CertificateSettings, Settings, check};
use crate::deploy::target::{DeployTarget, NAME};
use crate::discovery::labels::{Ask, Complaint};
use crate::identifier::{Identifier, Lineage};

/// How long a certificate is renewed whose container is gone.
pub(super) const GRACE: Duration = Duration::from_secs(7 * 86_400);
/// How many certificates containers may request.
pub(super) const LIMIT: usize = 100;
/// The target that needs no table of its own: it has no WHERE.
const NGINX: &str = "nginx";

/// Containers that request certificates by their labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DockerSettings {
    /// Where Docker's API is: `unix://PATH` or `tcp://HOST:PORT`.
    pub host: String,
    /// Whether an API that nothing filters may be used.
    pub accept_raw_socket: bool,
    /// How long a certificate is renewed whose container is gone.
    pub grace: Duration,
    /// The names that may be requested; all, when it is empty.
    pub allow: Vec<Pattern>,
    /// How many certificates may be requested.
    pub limit: usize,
    /// The targets of a label that names none, and those it may name: all of the
    /// file's `[deploy.NAME]`.
    pub deploy: Vec<DeployTarget>,
}

/// A name, or with `*.` before it all below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(Identifier);

impl Pattern {
    fn allows(&self, name: &Identifier) -> bool {
        let (pattern, name) = (self.0.to_string(), name.to_string());
        match pattern.strip_prefix('*') {
            Some(below) => name.ends_with(below),
            None => name == pattern,
        }
    }
}

impl FromStr for Pattern {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let name = Identifier::parse(text);
        name.map(Self).map_err(|error| error.to_string())
    }
}

impl TryFrom<String> for Pattern {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.0.to_string()
    }
}

/// `90s`, `30m`, `12h` or `7d`, of a year at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grace(pub(super) Duration);

impl FromStr for Grace {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let wrong = || format!("invalid duration `{}`", text.escape_debug());
        let unit = text.chars().last().ok_or_else(wrong)?;
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return Err(wrong()),
        };
        let number: u32 = text[..text.len() - unit.len_utf8()]
            .parse()
            .map_err(|_| wrong())?;
        let grace = u64::from(number) * seconds;
        match grace <= 366 * 86_400 {
            true => Ok(Self(Duration::from_secs(grace))),
            false => Err(format!("`{text}` is more than a year")),
        }
    }
}

/// What is granted of the requests.
#[derive(Debug, Default)]
pub struct Granted {
    /// The certificates, each with the index of its request.
    pub certificates: Vec<(usize, CertificateSettings)>,
    /// Why the others are not.
    pub refused: Vec<Problem>,
}

impl From<&Complaint> for Problem {
    fn from(complaint: &Complaint) -> Self {
        Self {
            origin: Origin::Label {
                container: complaint.container.clone(),
                label: complaint.label.clone(),
            },
            message: complaint.message.clone(),
            hint: complaint.hint.clone(),
        }
    }
}

impl Sources {
    /// The certificates that `asks` are beside those of `configured`, which win. The
    /// first of several that exclude each other is the one that is granted.
    #[must_use]
    pub fn granted(&self, asks: &[&Ask], configured: &Settings) -> Granted {
        let mut granted = Granted::default();
        let Some(docker) = &configured.docker else {
            return granted;
        };
        for (index, ask) in asks.iter().enumerate() {
            let Some(lineage) = ask.lineage() else {
                continue;
            };
            let origin = origin_of(ask, &ask.said_in);
            let mut problems = Problems::default();
            if self.is_taken(ask, &lineage, configured, &granted, &mut problems) {
                granted.refused.extend(problems.sorted());
                continue;
            }
            let certificate = self.asked(ask, lineage, docker, &mut problems);
            let before = granted.certificates.iter().map(|(_, one)| one);
            let before = configured.certificates.iter().chain(before);
            if problems.is_empty()
                && let Some((path, whose)) = check::shared_file(&certificate, before)
            {
                let message = format!("{}: {whose} is written there", path.display());
                let hint = format!("put {NAME} into the path, or let certs.deploy name others");
                problems.add(&origin, message, hint);
            }
            if problems.is_empty() && granted.certificates.len() >= docker.limit {
                let message = format!("containers request more than {} certificates", docker.limit);
                problems.add(&origin, message, "raise [docker] limit, if that is meant");
            }
            match problems.is_empty() {
                true => granted.certificates.push((index, certificate)),
                // A problem without an origin belongs to the container.
                false => granted
                    .refused
                    .extend(problems.sorted().into_iter().map(|mut one| {
                        if one.origin == Origin::Nowhere {
                            one.origin = origin.clone();
                        }
                        one
                    })),
            }
        }
        granted
    }

    /// Whether there is a certificate of that name or for these names already. That it
    /// is another one is a problem.
    fn is_taken(
        &self,
        ask: &Ask,
        lineage: &Lineage,
        configured: &Settings,
        granted: &Granted,
        problems: &mut Problems,
    ) -> bool {
        let same =
            |one: &CertificateSettings| one.names.iter().collect::<BTreeSet<_>>() == ask.set();
        let asked = granted.certificates.iter().map(|(_, one)| one);
        let mut all = configured.certificates.iter().chain(asked);
        let Some(other) = all.find(|one| one.lineage == *lineage || same(one)) else {
            return false;
        };
        if !same(other) {
            let names: Vec<String> = other.names.iter().map(ToString::to_string).collect();
            let whose = match configured.certificates.contains(other) {
                true => "the configuration",
                false => "another container",
            };
            let message = format!(
                "{whose} has a certificate {lineage}, for {}",
                names.join(", ")
            );
            let hint = "put another name first, or request the same names";
            problems.add(&origin_of(ask, &ask.said_in), message, hint);
        }
        true
    }

    fn asked(
        &self,
        ask: &Ask,
        lineage: Lineage,
        docker: &DockerSettings,
        problems: &mut Problems,
    ) -> CertificateSettings {
        let origin = origin_of(ask, &ask.said_in);
        for name in &ask.names {
            if !docker.allow.is_empty() && !docker.allow.iter().any(|one| one.allows(name)) {
                let message = format!("a label may not request {name}");
                problems.add(&origin, message, "add it to [docker] allow, if it may");
            }
        }
        let mut layer = CertificateLayer::default();
        for (key, text) in &ask.keys {
            let origin = origin_of(ask, &label_of(ask, key));
            let value = match key.as_str() {
                "deploy" => {
                    self.may_be_named(text, &origin, problems);
                    Value::list(split(text), &origin)
                }
                _ => Value::text(text, &origin),
            };
            layer.put(key, &value, problems);
        }
        let entry = Entry {
            origin,
            names: ask.names.clone(),
            lineage,
            layer,
            is_a_label: true,
        };
        self.checked(&entry, problems)
    }

    /// Checks the targets of a label against those it may name.
    fn may_be_named(&self, text: &str, origin: &Origin, problems: &mut Problems) {
        let tables = &self.document.targets;
        for word in split(text) {
            if word != NGINX && !tables.contains_key(word) {
                let message = format!("a label cannot deploy to `{}`", word.escape_debug());
                let hint = "write nginx, or the NAME of a [deploy.NAME] of the configuration";
                problems.add(origin, message, hint);
            }
        }
    }
}

fn label_of(ask: &Ask, key: &str) -> String {
    match ask.is_of_the_environment() {
        true => format!("LETSENCRYPT_{}", key.to_uppercase()),
        false => format!("certs.{key}"),
    }
}

fn origin_of(ask: &Ask, label: &str) -> Origin {
    Origin::Label {
        container: ask.container.clone(),
        label: label.to_owned(),
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests;
