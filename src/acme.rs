//! Talking to a CA (RFC 8555, ARI by RFC 9773). Only this room names
//! instant-acme's types; what leaves it are our own words, parsed and bounded.
//!
//! instant-acme gives the vocabulary: orders, authorizations, challenges and
//! problems are read into its types. The flows are ours, since an order must
//! survive what its flows do not: a lost `Retry-After`, an order whose URL is
//! dropped with an unexpected echo, an account key that exists only after it
//! was registered, authorizations one after the other, three tries for a nonce.
//!
//! It never decides whether to order, never stores anything itself (a
//! [`Journal`] does) and trusts nothing that the CA says.

mod account;
mod authorization;
mod chains;
pub mod client;
mod directory;
pub mod error;
mod exchange;
#[cfg(test)]
mod fake;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod https;
mod imported;
mod jws;
mod order;
mod pace;
mod poll;
mod renewal_info;
mod wire;

use std::time::Duration;

use async_trait::async_trait;

pub use account::AccountOptions;
pub use client::{Client, Options};
pub use error::{AcmeError, Cause, ExchangeError, FailedName, Phase, Untimely};
pub use exchange::Exchange;
pub use https::{Https, InProcess};
pub use imported::{ForeignAccount, ForeignKey, foreign_account, is_same_account};
pub use pace::Paces;

use crate::certificate::Secret;
use crate::record::{PendingOrder, Window};
use crate::time::Timestamp;

/// Where intent is written down before it is acted upon.
#[async_trait]
pub trait Journal: Send {
    /// Makes `order` durable. The step it announces is not taken on an error.
    async fn order(&mut self, order: &PendingOrder) -> Result<(), JournalError>;

    /// The stored account credentials of this CA, if there are any.
    async fn account(&mut self) -> Result<Option<Secret>, JournalError>;

    /// Makes a new account's key durable before it is registered, and returns
    /// it, or the one that somebody else has stored meanwhile.
    async fn create_account(&mut self, credentials: &Secret) -> Result<Secret, JournalError>;

    /// Makes account credentials durable, with the account's URL.
    async fn save_account(&mut self, credentials: &Secret) -> Result<(), JournalError>;
}

/// What the journal's owner failed with.
pub type JournalError = Box<dyn std::error::Error + Send + Sync>;

/// Sees each request and reply go by, to count them. `()` looks away.
pub trait Observer: Send + Sync {
    /// A request for `endpoint` was answered with `status`; 0 when it was not
    /// answered.
    fn request(&self, endpoint: &'static str, status: u16) {
        let _ = (endpoint, status);
    }

    /// A reply said that it is `instant` at the CA, in whole seconds.
    fn date(&self, instant: Timestamp) {
        let _ = instant;
    }

    /// There is no reply, since by our clock the CA's server cannot be trusted.
    fn untimely(&self, untimely: Untimely) {
        let _ = untimely;
    }
}

impl Observer for () {}

/// What two clocks showed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dated {
    /// This machine's.
    pub ours: Timestamp,
    /// The CA's, in whole seconds.
    pub theirs: Timestamp,
}

/// A clock that is set back by less is being kept right.
const SET_BACK: Duration = Duration::from_secs(60);

impl Dated {
    /// What is `known`, while ours shows `now`. One that ours was set back behind is
    /// forgotten: when ours comes by there again, it is another clock.
    #[must_use]
    pub fn still(known: &mut Option<Self>, now: Timestamp) -> Option<Self> {
        if known.is_some_and(|dated| dated.ours > now + SET_BACK) {
            *known = None;
        }
        *known
    }

    /// What the CA's clock shows when ours shows `now`.
    #[must_use]
    pub fn there(&self, now: Timestamp) -> Timestamp {
        now + self.theirs.since(self.ours) - self.ours.since(self.theirs)
    }
}

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

    /// What time it was there and here at its last reply; `None` before the first,
    /// and from one that does not tell the time.
    fn dated(&self) -> Option<Dated> {
        None
    }

    /// The same, by a reply of the last `newest`; it asks for one where there is
    /// none. An error is why there is none.
    async fn time(&self, newest: Duration) -> Result<Option<Dated>, AcmeError> {
        let _ = newest;
        Ok(self.dated())
    }

    /// Asks the CA for no more than whether it answers.
    async fn probe(&self) -> Result<(), AcmeError>;

    /// The suggested renewal window and when to ask again; `None` when the CA
    /// offers none. It needs no account.
    async fn renewal_info(
        &self,
        renewal_id: &str,
        journal: &mut dyn Journal,
    ) -> Result<Option<(Window, Duration)>, AcmeError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_that_our_clock_was_set_back_behind_never_counts_again() {
        let (day, now) = (
            Duration::from_secs(86_400),
            Timestamp::from_seconds(1_800_000_000),
        );
        // Heard while ours was a day ahead.
        let heard = Dated {
            ours: now + day,
            theirs: now,
        };
        let mut known = Some(heard);
        assert_eq!(Dated::still(&mut known, now + day), Some(heard));
        assert_eq!(Dated::still(&mut known, now + day - SET_BACK), Some(heard));
        assert_eq!(Dated::still(&mut known, now), None);
        // A day later ours shows again what it showed then, and is right.
        assert_eq!(Dated::still(&mut known, now + day), None);
    }
}
