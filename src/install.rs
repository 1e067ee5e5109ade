//! TLS for an nginx that is there already: its configuration is read as nginx
//! reads it, edited by insertions into its bytes, tried by `nginx -t` before it
//! goes live, and given back byte for byte by an undo.
//!
//! The parser is ours. Of the published ones nginx-lint-parser (0.24) is
//! maintained and keeps every byte, but it divides words otherwise than nginx
//! does: `set $a b}c;` is an error to it and `\;` ends a directive. An edit by
//! such a tree could land in another block. nginx-config and nginxparser
//! (unmaintained) drop comments and formatting.

pub mod change;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod journal;
pub mod plan;
pub mod program;
pub mod server;
pub mod site;
pub mod syntax;
pub mod tree;

use thiserror::Error;

/// Why nothing was changed, or what could not be taken back.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum InstallError {
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
    pub fn refused(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Refused {
            message: message.into(),
            hint: hint.into(),
        }
    }
}
