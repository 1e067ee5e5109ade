//! The deploy targets, one file each, and their table. A new target is a file here, its
//! module and its line in the table.

pub(crate) mod caddy;
pub(crate) mod coturn;
pub(crate) mod directory;
pub(crate) mod docker;
pub(crate) mod dovecot;
pub(crate) mod envoy;
pub(crate) mod exec;
pub(crate) mod file;
pub(crate) mod haproxy;
pub(crate) mod nginx;
pub(crate) mod postfix;
pub(crate) mod systemd;
pub(crate) mod traefik;
pub(crate) mod webhook;

use std::sync::Arc;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use super::Target;
use super::keys::{self, InvalidTarget, TargetKeys};
use super::target_settings::{self, DeployStage, Paths, Rights, ShortForm, TargetSettings};

/// A row of the table of kinds.
pub(crate) struct TargetKind {
    /// Its name.
    pub name: &'static str,
    /// Its short form.
    pub short: ShortForm,
    /// A table below `[deploy.NAME]`, for its documentation.
    #[cfg(test)]
    pub(crate) example: &'static str,
    pub(super) read: fn(TargetKeys) -> Result<DeployTarget, InvalidTarget>,
    pub(super) schema: fn(&mut SchemaGenerator) -> Schema,
}

/// The stored form of a target: the short form if that has all of its keys.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum StoredForm {
    Short(String),
    Long { kind: String, keys: TargetKeys },
}

/// Makes the enum of all targets, with a method for each question, so that no target
/// lacks an answer.
macro_rules! targets {
    ($($kind:ident($module:ident)),* $(,)?) => {
        /// A server or a copy to deploy certificates to. Its keys are checked when it is
        /// parsed.
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "StoredForm", into = "StoredForm")]
        pub(crate) enum DeployTarget {
            $(
                #[doc = concat!("`", stringify!($module), "`.")]
                $kind($module::Settings),
            )*
        }

        impl DeployTarget {
            pub(super) const KINDS: &[TargetKind] = &[$(TargetKind {
                name: $module::Settings::NAME,
                short: $module::Settings::SHORT,
                #[cfg(test)]
                example: $module::Settings::EXAMPLE,
                read: |keys| target_settings::read(keys).map(Self::$kind),
                schema: $module::Settings::json_schema,
            }),*];

            /// Its kind's name.
            pub(super) fn kind(&self) -> &'static str {
                match self { $(Self::$kind(_) => $module::Settings::NAME),* }
            }

            /// The short form of its kind.
            pub(super) fn short(&self) -> ShortForm {
                match self { $(Self::$kind(_) => $module::Settings::SHORT),* }
            }

            /// The keys that it was read from.
            pub(super) fn keys(&self) -> TargetKeys {
                match self { $(Self::$kind(settings) => keys::written(settings)),* }
            }

            /// Its rights beyond reading the output.
            #[must_use]
            pub(crate) fn rights(&self) -> Rights {
                match self { $(Self::$kind(settings) => settings.rights()),* }
            }

            /// The stage in which it is deployed.
            #[must_use]
            pub(crate) fn stage(&self) -> DeployStage {
                match self { $(Self::$kind(settings) => settings.stage()),* }
            }

            /// Whether one reload loads all certificates, so that they share it.
            #[must_use]
            pub(crate) fn coalesces(&self) -> bool {
                match self { $(Self::$kind(settings) => settings.coalesces()),* }
            }

            /// The deadline of a check or a reload.
            #[must_use]
            pub(crate) fn deadline(&self) -> Duration {
                match self { $(Self::$kind(settings) => settings.deadline()),* }
            }

            pub(super) fn paths(&mut self) -> Paths<'_> {
                match self { $(Self::$kind(settings) => settings.paths()),* }
            }

            /// The target itself; no file or server is touched yet.
            #[must_use]
            pub(crate) fn target(&self) -> Arc<dyn Target> {
                let name = self.to_string();
                match self { $(Self::$kind(settings) => settings.target(name)),* }
            }
        }
    };
}

targets! {
    Nginx(nginx),
    Haproxy(haproxy),
    Coturn(coturn),
    Postfix(postfix),
    Dovecot(dovecot),
    Envoy(envoy),
    Traefik(traefik),
    Caddy(caddy),
    Systemd(systemd),
    Docker(docker),
    Exec(exec),
    Webhook(webhook),
    File(file),
    Directory(directory),
}
