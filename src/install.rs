//! TLS for an nginx that is there already: its configuration is read as nginx
//! reads it, edited by insertions into its bytes, tried by `nginx -t` before it
//! goes live, and given back byte for byte by an undo.
//!
//! The parser is ours. Of the published ones nginx-lint-parser (0.24) is
//! maintained and keeps every byte, but it divides words otherwise than nginx
//! does: `set $a b}c;` is an error to it and `\;` ends a directive. An edit by
//! such a tree could land in another block. nginx-config and nginxparser
//! (unmaintained) drop comments and formatting.

pub(crate) mod change;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
pub(crate) mod journal;
pub(crate) mod plan;
pub(crate) mod program;
pub(crate) mod server;
pub(crate) mod site;
pub(crate) mod syntax;
pub(crate) mod tree;

use thiserror::Error;

/// Why nothing was changed, or what could not be taken back.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum InstallError {
    /// The configuration or the surroundings do not allow it.
    #[error("{message}")]
    Refused {
        /// What, and where.
        message: String,
        /// The next thing to do.
        hint: String,
    },
    /// Our own state could not be read or written.
    #[error("{0}")]
    Store(String),
}

impl InstallError {
    /// What the user has to mend.
    pub(crate) fn refused(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Refused {
            message: message.into(),
            hint: hint.into(),
        }
    }
}
