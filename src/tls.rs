//! Our own TLS front: the pairs that it serves ([`credentials`]), its listener
//! ([`terminator`]), and a strict client that verifies it ([`dialer`]).
//!
//! It never reads a file, orders a certificate or chooses one: callers publish
//! pairs to it, and it refuses invalid, mismatched and expired ones. TLS 1.2 and
//! 1.3 (RFC 5246, RFC 8446).

pub mod credentials;
pub mod dialer;
#[cfg(test)]
pub(crate) mod fixture;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
pub mod terminator;
