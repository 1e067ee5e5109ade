//! Pure decisions about renewal: what a certificate needs next, from which CA,
//! and when to retry. No module here reads a clock, a random source, a file or
//! the log; a drawn instant is returned to be stored. RFC 9773.

pub mod backoff;
pub mod clock;
pub mod decide;
pub mod fallback;
pub mod partial;
pub mod policy;
pub mod rate_limits;
pub mod reachability;
pub mod window;
