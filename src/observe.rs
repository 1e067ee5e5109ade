//! What an operator sees of a running process: the state of every certificate,
//! counters, and the read-only endpoints that show both. Nothing here changes
//! anything, and nothing secret passes through it.

pub mod admin;
pub mod metrics;
pub mod probe;
pub mod status;

pub use metrics::{Metrics, Tokens};
pub use status::{Asked, Board, LeftOut, Status};
