//! Flows that join the services. A flow loads a record, asks [`crate::renew`] for the
//! next step, does that step, stores the result, and asks again. Flows decide nothing
//! themselves.
//!
//! The modules use each other in one direction only, without a cycle.

pub(crate) mod ca_state;
mod cannot_order;
pub(crate) mod clock;
pub(crate) mod concurrency;
pub(crate) mod delete;
mod deploy;
mod error;
mod fallback;
pub(crate) mod import;
mod load;
mod look;
mod order;
mod partial;
pub(crate) mod pass;
pub(crate) mod preflight;
pub(crate) mod probes;
pub(crate) mod proof;
pub(crate) mod rehearse;
pub(crate) mod rename;
mod revoke;
mod rollback;
mod same_names;
pub(crate) mod schedule;
mod services;
mod session;
pub(crate) mod status;

pub(crate) use cannot_order::CannotOrder;
pub(crate) use error::ManageError;
pub(crate) use probes::Probes;
pub(crate) use same_names::SameNames;
pub(crate) use services::{
    Certificate, FallbackCa, FreshKeys, Keeper, Keys, Looks, Maintenance, OrderSettings, Outcome,
    Progress, Services, SharedServices, Wanted, is_registered,
};
pub(crate) use session::Trigger;

pub(crate) use deploy::stored;
pub(crate) use load::stored_or_new;

pub(crate) use crate::renew::policy::{SPACING, SPREAD, VERIFY_WITHIN};
