//! Pure decisions about renewal: what a certificate needs next, from which CA,
//! and when to retry. No module here reads a clock, a random source, a file or
//! the log; a drawn instant is returned to be stored. RFC 9773.

pub(crate) mod backoff;
pub(crate) mod clock;
pub(crate) mod decide;
pub(crate) mod fallback;
pub(crate) mod look;
pub(crate) mod partial;
pub(crate) mod policy;
pub mod rate_limits;
pub(crate) mod reachability;
pub(crate) mod window;
