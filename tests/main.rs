//! The black-box tests, by topic; real servers where a user has real servers.

// A helper of a test may fail it.
#![allow(clippy::unwrap_used)]

mod demo;
mod ca;
mod faults;
mod pebble;
mod renew;
mod sidecar;
mod support;
mod surroundings;
mod usage;
