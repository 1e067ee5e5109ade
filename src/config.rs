//! The configuration: the command line wins, then `CERTS_…` in the
//! environment, then the file, then the defaults. It is read whole, every error
//! of all three sources is reported at once with its origin and a hint, and only
//! then is anything done. A value is checked where its type is defined; this
//! module knows which keys exist (`keys.rs`) and which settings contradict others.
//!
//! It reads files and never writes one; a secret is named by its file and never
//! held here, except for the credentials of DNS providers, which are stored with
//! their certificates. The result is [`Settings`], which one process can pass to another
//! as JSON.

mod arguments;
mod ca;
mod challenge;
mod check;
mod combine;
mod configured;
mod dns;
mod docker;
mod each_key;
mod environment;
mod fleet;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod interval;
mod key;
mod key_types;
mod keys;
mod labels;
mod layer;
mod origin;
mod presets;
mod problem;
mod read;
mod recollection;
mod remembered;
mod repeated;
mod resolve;
mod rights;
mod schema;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::challenge::ChallengeSettings;
use crate::challenge::protocol::Listen;

pub(crate) use arguments::{KeyOptions, Options};
pub(crate) use ca::{CaSettings, DirectoryUrl, Unusable, external_accounts, hmac_key};
pub(crate) use check::{MOST_NAMES, written};
pub(crate) use configured::Configured;
pub(crate) use docker::DockerSettings;
pub(crate) use environment::CommandVariables;
pub(crate) use key::{ACCOUNT, EVERY, IMPORT, ISSUE, RUN, UPDATE};
pub(crate) use keys::{
    CertificateSettings, OutputSettings, RenewSettings, Settings, SharedSettings,
};
pub(crate) use origin::Origin;
pub(crate) use problem::ConfigProblem;
pub(crate) use recollection::Recollection;
pub(crate) use remembered::{Remembered, StoredSettings};
pub(crate) use resolve::{Purpose, Sources, USUAL_DATA_DIR};
pub(crate) use schema::schema;

const DEPLOY_HINT: &str = "write nginx[:PID_FILE], haproxy:SOCKET, coturn, systemd:UNIT, docker:CONTAINER, exec:/PROGRAM, https://… or another of certs issue --help";

impl Settings {
    /// Where `certificate` is published.
    pub(crate) fn output_of(&self, certificate: &CertificateSettings) -> OutputSettings {
        let own = certificate.output.as_ref();
        let mut output = own.unwrap_or(&self.output).clone();
        output.directory = self.data_dir.join(&output.directory);
        output.links = output.links.or(self.output.links);
        output
    }

    /// Where this process must answer challenges. Certificates that cannot be ordered need
    /// nothing.
    pub(crate) fn listens(&self) -> Vec<Listen> {
        let own = self.able().map(|one| &one.challenge);
        let all = own.chain(self.default_challenge());
        let all: BTreeSet<Listen> = all.flat_map(|challenge| challenge.listens()).collect();
        // A socket could not be bound beside another one that serves its address, too.
        let is_served = |listen: &&Listen| {
            let mut others = all.iter().filter(|other| other != listen);
            others.any(|other| other.serves(listen))
        };
        all.iter()
            .filter(|listen| !is_served(listen))
            .copied()
            .collect()
    }

    /// The certificates that can be ordered.
    fn able(&self) -> impl Iterator<Item = &CertificateSettings> {
        let all = self.certificates.iter();
        all.filter(|one| one.cannot_order.is_none())
    }

    /// The challenge of certificates that may come: there is none yet, or containers may
    /// request some.
    pub(crate) fn default_challenge(&self) -> Option<&ChallengeSettings> {
        let may_come = self.able().next().is_none() || self.docker.is_some();
        may_come.then_some(&self.challenge)
    }
}

/// When a renewed certificate is deployed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DeployWhen {
    /// As soon as it is issued.
    #[default]
    AtOnce,
    /// When the schedule opens the next window.
    OnSchedule,
}

impl FromStr for DeployWhen {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "at-once" => Ok(Self::AtOnce),
            "on-schedule" => Ok(Self::OnSchedule),
            _ => Err(format!("unknown time to deploy `{}`", text.escape_debug())),
        }
    }
}

/// How messages look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// A line for a person.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("unknown log format `{}`", text.escape_debug())),
        }
    }
}
