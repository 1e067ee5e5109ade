//! Talking to a CA (RFC 8555, ARI by RFC 9773). Only this room names
//! instant-acme's types; what leaves it are our own words, parsed and bounded.
//!
//! It never decides whether to order, never stores anything itself (a
//! [`Journal`] does) and trusts nothing that the CA says.

pub mod client;
pub mod error;
mod transport;

use std::time::Duration;

use async_trait::async_trait;

pub use client::{AccountOptions, Client};
pub use error::{AcmeError, Cause, Phase};

use crate::certificate::Secret;
use crate::record::{PendingOrder, Window};

/// Where intent is written down before it is acted upon.
#[async_trait]
pub trait Journal: Send {
    /// Makes `order` durable. The step it announces is not taken on an error.
    async fn order(&mut self, order: &PendingOrder) -> Result<(), JournalError>;

    /// The stored account credentials of this CA, if there are any.
    async fn account(&mut self) -> Result<Option<Secret>, JournalError>;

    /// Makes new account credentials durable.
    async fn save_account(&mut self, credentials: &Secret) -> Result<(), JournalError>;
}

/// What the journal's owner failed with.
pub type JournalError = Box<dyn std::error::Error + Send + Sync>;

/// A CA that issues.
#[async_trait]
pub trait Issuer: Send + Sync {
    /// Takes `order` to its end, resuming it where it has a URL already, and
    /// returns the chain in PEM, leaf first, not yet checked.
    async fn issue(
        &self,
        order: PendingOrder,
        journal: &mut dyn Journal,
    ) -> Result<String, AcmeError>;

    /// The suggested renewal window and when to ask again; `None` when the CA
    /// offers none.
    async fn renewal_info(
        &self,
        renewal_id: &str,
        journal: &mut dyn Journal,
    ) -> Result<Option<(Window, Duration)>, AcmeError>;
}
