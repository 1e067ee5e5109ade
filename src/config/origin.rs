//! The origin of a certificate, which decides how long it is kept; stored with the settings.

use serde::{Deserialize, Serialize};

/// The source that requested a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Origin {
    /// `certs issue`: it is kept until `certs delete`.
    Command,
    /// `certs install` that has not ended: nothing keeps it before that.
    Install,
    /// `certs import`: it is kept until `certs delete`.
    Import,
    /// The configuration: it is kept while it stands there.
    Configuration,
    /// A container's label: it is kept while the container exists, and for its grace.
    Label,
}

impl Origin {
    /// Whether only `certs delete` ends it.
    pub(crate) fn lasts(self) -> bool {
        matches!(self, Self::Command | Self::Import)
    }
}
