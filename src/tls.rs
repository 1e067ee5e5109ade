//! Our own front: what it serves ([`credentials`]), the listener that serves
//! it ([`terminator`]), and the strict client that can tell ([`dialer`]).
//!
//! It never reads a file, orders a certificate or chooses one on its own: what
//! is to be served is published to it, and what is not sound is refused.
//! TLS 1.2 and 1.3 (RFC 5246, RFC 8446).

pub mod credentials;
pub mod dialer;
#[cfg(test)]
pub(crate) mod fixture;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
pub mod terminator;
