//! The operator's view of a running process: the state of every certificate,
//! counters, and the read-only endpoints that show both. Nothing here changes
//! anything or reads a secret.

pub(crate) mod admin;
mod board;
pub(crate) mod metrics;
pub(crate) mod probe;
pub(crate) mod status;

pub(crate) use board::{Board, Obstacles, Read};
pub(crate) use metrics::{Metrics, Tokens};
pub(crate) use status::{ExcludedName, Proof, ProofState, RequestedBy, Status};
