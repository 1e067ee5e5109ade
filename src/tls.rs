//! Our own TLS front: the pairs that it serves ([`credentials`]), and a strict client that
//! verifies it ([`dialer`]). Only the demonstration starts one.
//!
//! It never reads a file, orders a certificate or chooses one: callers publish
//! pairs to it, and it refuses invalid, mismatched and expired ones.

pub mod credentials;
pub mod dialer;
#[cfg(test)]
pub(crate) mod fakes;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
