//! Adds TLS to an existing nginx: the configuration is read as nginx reads it,
//! edited in place, tested by `nginx -t` before it goes live, and restored byte for
//! byte by an undo.
//!
//! The parser is our own. Of the published ones nginx-lint-parser (0.24) is
//! maintained and keeps every byte, but it splits words differently than nginx:
//! `set $a b}c;` is an error there and `\;` ends a directive. An edit based on such
//! a tree could land in another block. nginx-config and nginxparser (unmaintained)
//! drop comments and formatting.

pub(crate) mod answer;
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

/// Does this when it is dropped: at the end of its block, also when the work is interrupted.
struct AtEnd<F: Fn()>(F);

impl<F: Fn()> Drop for AtEnd<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
