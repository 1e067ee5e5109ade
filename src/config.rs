//! The configuration: the command line wins, then `CERTS_…` in the
//! environment, then the file, then the defaults. It is read whole, every error
//! of all three sources is told at once with its place and a hint, and only
//! then is anything done. What a value means is checked where its type is
//! defined; this room knows which keys there are and what contradicts what.
//!
//! It reads files and never writes one; a secret is named by its file and never
//! held here. What leaves this room are [`Settings`], which one process can
//! hand to another as JSON.

mod ca;
mod check;
mod combine;
mod environment;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod labels;
mod layer;
mod options;
mod problem;
mod read;
mod remembered;
mod resolve;
mod schema;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use ca::{CaSettings, Directory};
pub use check::shared_file;
pub use environment::CommandVariables;
pub use labels::{DockerSettings, Granted, Pattern};
pub use options::Options;
pub use problem::{Place, Problem};
pub use remembered::Remembered;
pub use resolve::{Purpose, Sources};
pub use schema::schema;

use crate::certificate::KeyType;
use crate::challenge::ChallengeSettings;
use crate::deploy::endpoint::Endpoint;
use crate::deploy::spec::Spec;
use crate::identifier::{Identifier, Lineage};
use crate::manage::schedule::Schedule;

const DEPLOY_HINT: &str = "write nginx[:PID_FILE], haproxy:SOCKET, coturn, systemd:UNIT, docker:CONTAINER, exec:/PROGRAM, https://… or another of certs issue --help";

/// Everything that was said, resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The configuration that was read, if there is one.
    pub file: Option<PathBuf>,
    /// The private state.
    pub data_dir: PathBuf,
    /// Where consumers read certificates.
    pub output: OutputSettings,
    /// How messages look.
    pub log_format: LogFormat,
    /// Whether `certs run` gives up what it does not need.
    pub harden: bool,
    /// Where the read-only endpoints are; `None` turns them off.
    pub admin_listen: Option<SocketAddr>,
    /// When work is done.
    pub renew: RenewSettings,
    /// How control is proven where a certificate does not say otherwise.
    pub challenge: ChallengeSettings,
    /// Whether containers may ask for certificates by their labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub docker: Option<DockerSettings>,
    /// The certificates, in the order in which they were said.
    pub certificates: Vec<CertificateSettings>,
}

impl Settings {
    /// Where HTTP-01 is to be answered by this process: nowhere (`None`), at
    /// these addresses, or, when there are none, on port 80 of every address.
    /// Without any certificate, and where containers may ask for one, where the first
    /// one would need it.
    #[must_use]
    pub fn http_listen(&self) -> Option<Vec<SocketAddr>> {
        let may_come = self.certificates.is_empty() || self.docker.is_some();
        let default = may_come.then_some(&self.challenge);
        let certificates = self.certificates.iter().map(|one| &one.challenge);
        let mut all: Option<Vec<SocketAddr>> = None;
        for challenge in certificates.chain(default) {
            if let Some(addresses) = challenge.http_listen() {
                let all = all.get_or_insert_default();
                all.extend(addresses);
                all.sort();
                all.dedup();
            }
        }
        all
    }
}

/// The directory that is shared with the proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputSettings {
    /// Its path.
    pub directory: PathBuf,
    /// Who shall own what is in it: a user's name or number.
    pub owner: Option<String>,
    /// Its group: a name or a number.
    pub group: Option<String>,
}

/// When work is done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewSettings {
    /// A sweep beside the exact timers, and the maintenance window.
    pub schedule: Option<Schedule>,
    /// When a renewed certificate is handed over.
    pub deploy: DeployWhen,
}

/// When a renewed certificate is handed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeployWhen {
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
            _ => Err(format!("`{}` is no time to deploy", text.escape_debug())),
        }
    }
}

/// How messages look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
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
            _ => Err(format!("`{}` is no format", text.escape_debug())),
        }
    }
}

/// One certificate as it is wanted, complete: all that a process needs that has
/// not read the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateSettings {
    /// Its name.
    pub lineage: Lineage,
    /// What it is for, in the order in which it was said.
    pub names: Vec<Identifier>,
    /// Who shall issue it.
    pub ca: CaSettings,
    /// Who issues it when that one does not.
    #[serde(default)]
    pub fallback: Option<CaSettings>,
    /// The CA's certificate profile.
    pub profile: Option<String>,
    /// The kind of key.
    pub key: KeyType,
    /// Whether a renewal keeps the key.
    pub reuse_key: bool,
    /// Whether names that fail may be left out.
    #[serde(default)]
    pub partial: bool,
    /// How control is proven.
    pub challenge: ChallengeSettings,
    /// Whom to hand over to.
    pub deploy: Vec<Spec>,
    /// Where it must be seen served.
    pub verify: Vec<Endpoint>,
    /// The client that it was taken over from, if no configuration asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imported: Option<String>,
}

impl CertificateSettings {
    /// The files that its CAs ask for: roots and keys of external accounts.
    pub fn ca_files(&self) -> impl Iterator<Item = &PathBuf> {
        let cas = [Some(&self.ca), self.fallback.as_ref()];
        let files = cas.into_iter().flatten();
        let files = files.flat_map(|ca| [ca.root.as_ref(), ca.eab_hmac_file.as_ref()]);
        files.flatten()
    }
}

/// `[admin] listen` as it is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AdminListen {
    Off,
    At(SocketAddr),
}

impl FromStr for AdminListen {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            _ => text
                .parse()
                .map(Self::At)
                .map_err(|_| format!("`{}` is no address and port", text.escape_debug())),
        }
    }
}
