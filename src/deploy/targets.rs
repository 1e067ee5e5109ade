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
use super::keys::values::PathKey;
use super::keys::{self, InvalidTarget, TargetKeys};
use super::target_settings::{
    self, DeployStage, Rights, SettingsKeys as _, ShortForm, TargetSettings,
};

/// A row of the table of kinds.
pub(crate) struct TargetKind {
    pub name: &'static str,
    pub short: ShortForm,
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
            $($kind($module::Settings),)*
        }

        impl DeployTarget {
            pub(super) const KINDS: &[TargetKind] = &[$(TargetKind {
                name: $module::Settings::KIND,
                short: $module::Settings::SHORT,
                #[cfg(test)]
                example: $module::Settings::EXAMPLE,
                read: |keys| target_settings::read(keys).map(Self::$kind),
                schema: $module::Settings::json_schema,
            }),*];

            /// Its kind's name.
            pub(super) fn kind(&self) -> &'static str {
                match self { $(Self::$kind(_) => $module::Settings::KIND),* }
            }

            /// The stage in which it is deployed.
            #[must_use]
            pub(crate) fn stage(&self) -> DeployStage {
                match self { $(Self::$kind(_) => $module::Settings::STAGE),* }
            }

            /// Its short form for messages.
            pub(super) fn shown(&self) -> String {
                match self { $(Self::$kind(settings) => settings.shown()),* }
            }

            /// Its short form.
            pub(super) fn short_form(&self) -> String {
                match self { $(Self::$kind(settings) => settings.short_form()),* }
            }

            /// The keys that it was read from.
            pub(super) fn keys(&self) -> TargetKeys {
                match self { $(Self::$kind(settings) => keys::written(settings)),* }
            }

            /// All paths among them.
            pub(super) fn paths(&mut self) -> Vec<&mut PathKey> {
                match self { $(Self::$kind(settings) => settings.paths()),* }
            }

            /// Its rights beyond reading the output.
            #[must_use]
            pub(crate) fn rights(&self) -> Rights {
                match self { $(Self::$kind(settings) => settings.rights()),* }
            }

            /// Whether it takes the private key from us.
            #[must_use]
            pub(crate) fn needs_key(&self) -> bool {
                match self { $(Self::$kind(settings) => settings.needs_key()),* }
            }

            /// The longest time of one check or reload.
            pub(crate) fn deadline(&self) -> Duration {
                match self { $(Self::$kind(settings) => settings.deadline()),* }
            }

            /// The target itself; no file or server is touched yet.
            #[must_use]
            pub(crate) fn target(&self) -> Arc<dyn Target> {
                match self { $(Self::$kind(settings) => settings.target()),* }
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
