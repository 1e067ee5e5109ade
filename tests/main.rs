//! The black-box tests, by topic; real servers where a user has real servers.

// A helper of a test may fail it.
#![allow(clippy::unwrap_used)]

mod house;
mod pebble;
mod support;
mod usage;
