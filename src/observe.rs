//! The operator's view of a running process: the state of every certificate,
//! counters, and the read-only endpoints that show both. Nothing here changes
//! anything or reads a secret.

pub mod admin;
pub mod metrics;
pub mod probe;
pub mod status;

pub use metrics::{Metrics, Tokens};
pub use status::{Asked, Board, LeftOut, Status};
