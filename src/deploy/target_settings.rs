//! The settings of a deploy target: its keys and forms, the rights that it needs, and its
//! stage. In the sandbox a target has these rights and no others.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub(crate) use super::keys::InvalidTarget;

use super::Target;
use super::keys::values::PathKey;
use super::keys::{self, TargetKeys};
use super::owner::Owner;

/// The names that the files of most targets need.
pub(super) mod prelude {
    pub(crate) use std::sync::Arc;

    pub(crate) use async_trait::async_trait;

    pub(crate) use super::{
        DeployStage, InvalidTarget, Processes, Rights, ShortForm, TargetSettings, Writes, settings,
    };
    pub(crate) use crate::deploy::keys::values::{PathKey, Timeout};
    pub(crate) use crate::deploy::{Delivery, DeployCause, Target};
    pub(crate) use crate::text::printable;
}

/// The longest check or reload of a target that runs no program.
pub(super) const USUAL_DEADLINE: Duration = Duration::from_secs(30);

/// The placeholder for the certificate's name in a written path.
pub(crate) const NAME: &str = "{name}";

/// The keys of a kind of target.
pub(crate) trait SettingsKeys:
    Serialize + DeserializeOwned + JsonSchema + Clone + Send + Sync + 'static
{
    /// All paths among them, to make them absolute.
    fn paths(&mut self) -> Vec<&mut PathKey>;
}

/// Makes a struct with a field for each key of a kind of target.
macro_rules! settings {
    (
        $(#[$meaning:meta])*
        struct $settings:ident {
            $($(#[$meaning_of_key:meta])* $key:ident: $value:ty,)*
        }
    ) => {
        $(#[$meaning])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub(crate) struct $settings {
            $($(#[$meaning_of_key])* $key: $value,)*
        }

        impl $crate::deploy::target_settings::SettingsKeys for $settings {
            fn paths(&mut self) -> Vec<&mut PathKey> {
                use $crate::deploy::keys::values::HoldsPath as _;
                [$(self.$key.path()),*].into_iter().flatten().collect()
            }
        }
    };
}
pub(crate) use settings;

/// A kind of target. Nothing has a default except the name, so that a new target answers
/// every question. The comments of the type and its fields are the documentation for
/// users.
pub(crate) trait TargetSettings: SettingsKeys {
    /// The kind's name.
    const KIND: &'static str;
    /// Its short form.
    const SHORT: ShortForm;
    /// Its other lines in a `[deploy.NAME]` beside `kind`, for its documentation.
    #[cfg_attr(not(test), allow(dead_code, reason = "a test writes docs/targets.md"))]
    const EXAMPLE: &'static str;
    /// The stage in which it is deployed.
    const STAGE: DeployStage;

    /// The key that is invalid or contradicts another.
    fn invalid_key(&self) -> Option<InvalidTarget>;

    /// Its rights beyond reading the output.
    fn rights(&self) -> Rights;

    /// The target itself; no file or server is touched yet.
    fn target(&self) -> Arc<dyn Target>;

    /// Whether it takes the private key from us, which a certificate of a signing request lacks.
    fn needs_key(&self) -> bool {
        false
    }

    /// The longest time of one check or reload.
    fn deadline(&self) -> Duration {
        USUAL_DEADLINE
    }

    /// Its short form for messages, without secrets.
    fn shown(&self) -> String {
        self.short_form()
    }

    /// Its short form, which is stored, and the name of most targets.
    fn short_form(&self) -> String {
        let keys = keys::written(self);
        let values = Self::SHORT.keys().iter();
        let values = values.map_while(|key| keys.get(*key)?.first().map(String::as_str));
        match Self::SHORT {
            ShortForm::Url => values.collect(),
            ShortForm::Keys(_) => Vec::from_iter([Self::KIND].into_iter().chain(values)).join(":"),
        }
    }
}

/// The short form of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShortForm {
    /// `KIND:VALUE[:VALUE…]`, with the values of these keys.
    Keys(&'static [&'static str]),
    /// The value of `url` alone.
    Url,
}

impl ShortForm {
    /// The keys in it.
    #[must_use]
    pub(crate) fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Keys(keys) => keys,
            Self::Url => &["url"],
        }
    }
}

/// The rights of a target beyond reading the output; the sandbox grants no others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rights {
    /// Its rights over processes, which in a sidecar only the helper process has.
    pub processes: Processes,
    /// The Unix socket that it connects to.
    pub connects_to: Option<PathBuf>,
    /// The file that it reads.
    pub reads: Option<PathBuf>,
    /// The files that it writes.
    pub writes: Writes,
}

impl Rights {
    /// No more than `processes`.
    pub(super) const fn over(processes: Processes) -> Self {
        Self {
            processes,
            connects_to: None,
            reads: None,
            writes: Writes::Nothing,
        }
    }

    /// No more than `writes`.
    pub(super) const fn to_write(writes: Writes) -> Self {
        Self {
            processes: Processes::Untouched,
            connects_to: None,
            reads: None,
            writes,
        }
    }
}

/// The rights of a target over processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Processes {
    /// None.
    Untouched,
    /// It finds, signals or starts the processes of a server, or requests that of systemd.
    Controls,
    /// It starts a program that the configuration names.
    RunsProgram,
}

/// The files that a target writes beside the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Writes {
    /// None.
    Nothing,
    /// A file of its own, with this owner.
    File(PathBuf, Owner),
    /// A file of the server, which keeps its owner.
    ServersFile(PathBuf),
    /// A directory of generations with this owner, created if it is missing.
    Directory(PathBuf, Owner),
}

impl Writes {
    pub(super) fn path(&self) -> Option<&Path> {
        match self {
            Self::Nothing => None,
            Self::File(path, _) | Self::ServersFile(path) | Self::Directory(path, _) => Some(path),
        }
    }
}

/// The stage in which a target is deployed, and whether certificates share a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeployStage {
    /// A copy for a consumer: written before the servers reload, since they may read it.
    Copy,
    /// A server that loads each certificate by itself.
    EachCertificate,
    /// A server of which one reload loads all certificates.
    AllCertificates,
}

/// Reads and checks the settings of one kind.
pub(super) fn read<T: TargetSettings>(keys: TargetKeys) -> Result<T, InvalidTarget> {
    let settings: T = keys::read(T::KIND, keys)?;
    settings.invalid_key().map_or(Ok(settings), Err)
}
