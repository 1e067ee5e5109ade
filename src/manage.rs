//! Flows that join the services. They load a record, ask [`crate::renew`] what it
//! needs, do that one thing, store the result, and ask again; they decide
//! nothing themselves.
//!
//! They are a ladder: each module below names only those above it.

pub(crate) mod ca_state;
pub(crate) mod clock;
pub(crate) mod concurrency;
mod deploy;
mod error;
mod fallback;
pub(crate) mod front;
pub(crate) mod import;
mod load;
mod order;
mod partial;
pub(crate) mod pass;
pub(crate) mod preflight;
pub(crate) mod probes;
pub(crate) mod rehearse;
mod rollback;
pub(crate) mod schedule;
mod services;
mod session;
pub(crate) mod status;

pub(crate) use error::ManageError;
pub(crate) use probes::Probes;
pub(crate) use services::{
    Certificate, FallbackCa, FreshKeys, Keys, MANY, Maintenance, Outcome, Progress, SPACING,
    SPREAD, SPREAD_OF_MANY, Services, Wanted,
};
pub(crate) use session::Trigger;

pub(crate) use deploy::stored;
