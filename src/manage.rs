//! Flows that join the services. They load a record, ask [`crate::renew`] what it
//! needs, do that one thing, store the result, and ask again; they decide
//! nothing themselves.
//!
//! They are a ladder: each module below names only those above it.

pub(crate) mod ca_state;
pub mod clock;
pub mod concurrency;
mod deploy;
mod error;
mod fallback;
pub mod front;
pub mod import;
mod load;
mod order;
mod partial;
pub mod pass;
pub mod preflight;
pub(crate) mod probes;
pub mod rehearse;
mod rollback;
pub mod schedule;
mod services;
mod session;
pub mod status;

pub use error::ManageError;
pub use probes::Probes;
pub use services::{
    Certificate, FallbackCa, FreshKeys, Keys, MANY, Maintenance, Outcome, Progress, SPACING,
    SPREAD, SPREAD_OF_MANY, Services, Wanted,
};
pub use session::Trigger;

pub(crate) use deploy::stored;
