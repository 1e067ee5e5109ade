//! Talking to a CA (RFC 8555, ARI by RFC 9773). Only this module names
//! instant-acme's types; callers get our own types, parsed and bounded.
//!
//! instant-acme supplies the vocabulary: orders, authorizations, challenges and
//! problems are parsed into its types. The flows are ours, because its own lose
//! `Retry-After`, drop an order's URL with an unexpected echo, make the account
//! key only at registration, answer authorizations one by one and try a nonce
//! only three times.
//!
//! This module never decides whether to order, never stores anything itself (a
//! [`Journal`] does) and trusts no reply of the CA.

mod account;
mod account_change;
mod answers;
mod authorization;
mod binding;
#[cfg(test)]
mod bounds;
mod caa;
pub mod client;
mod directory;
mod documents;
pub mod error;
mod exchange;
#[cfg(test)]
mod fake;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod https;
mod imported;
mod jws;
#[cfg(test)]
mod oddities;
mod order;
mod poll;
mod problem;
mod rate;
mod reference;
mod renewal_info;
mod retry;
mod revoke;

use std::time::Duration;

use async_trait::async_trait;

pub use account::{AccountSettings, is_registered};
pub use account_change::{AccountChange, AccountState};
pub(crate) use answers::{left_record, remove_left};
pub use client::{Client, ClientSettings};
pub use error::{AcmeError, Cause, ExchangeError, FailedName, OutsideValidity, Phase};
pub use exchange::Exchange;
pub use https::{Https, InProcess};
pub use imported::{ForeignAccount, ForeignKey, foreign_account, is_same_account};
pub use rate::Limiters;

use crate::certificate::Secret;
use crate::record::{PendingOrder, PresentedAnswer, RevocationReason, Window};
use crate::time::Timestamp;

/// Stores intent before each irreversible step.
#[async_trait]
pub trait Journal: Send {
    /// Stores `order`; if this fails, the step that it announces is not taken.
    async fn order(&mut self, order: &PendingOrder) -> Result<(), JournalError>;

    /// The answers that may still have to be cleaned up: those of this run and of earlier
    /// ones.
    fn answers(&self) -> Vec<PresentedAnswer> {
        Vec::new()
    }

    /// Stores these answers, before they are presented.
    async fn save_answers(&mut self, _answers: Vec<PresentedAnswer>) -> Result<(), JournalError> {
        Ok(())
    }

    /// Stores the answers that are left after the clean-up. If that fails, the order goes on:
    /// the next run removes them again.
    async fn keep_answers(&mut self, _left: Vec<PresentedAnswer>) {}

    /// Shows what the order waits for.
    fn phase(&mut self, _phase: &str) {}

    /// The stored account credentials of this CA, if any.
    async fn account(&mut self) -> Result<Option<Secret>, JournalError>;

    /// Stores a new account's key before its registration, and returns it, or
    /// the key that another process stored first.
    async fn create_account(&mut self, credentials: &Secret) -> Result<Secret, JournalError>;

    /// Stores changed account credentials, if `before` are still the stored ones: another
    /// process may have changed the key.
    async fn save_account(
        &mut self,
        credentials: &Secret,
        before: &Secret,
    ) -> Result<(), JournalError>;
}

/// An error of the journal's owner.
pub type JournalError = Box<dyn std::error::Error + Send + Sync>;

/// Counts requests and replies. `()` ignores them.
pub trait Observer: Send + Sync {
    /// The CA answered a request for `endpoint` with `status`; 0: no reply.
    fn request(&self, _endpoint: &'static str, _status: u16) {}

    /// A reply's `Date`: the CA's clock, in whole seconds.
    fn date(&self, _instant: Timestamp) {}

    /// No reply: by our clock, the certificate of the CA's server is not valid.
    fn outside_validity(&self, _outside: OutsideValidity) {}
}

impl Observer for () {}

/// Two clocks, read at the same moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockReading {
    /// This machine's clock.
    pub ours: Timestamp,
    /// The CA's clock, in whole seconds.
    pub theirs: Timestamp,
}

/// Smaller steps back are ordinary corrections, such as NTP's.
const SET_BACK: Duration = Duration::from_secs(60);

impl ClockReading {
    /// The `known` reading, unless our clock was set back behind it. Such a reading is
    /// dropped: when our clock shows its time again, the skew may be another.
    #[must_use]
    pub fn usable(known: &mut Option<Self>, now: Timestamp) -> Option<Self> {
        if known.is_some_and(|reading| reading.ours > now + SET_BACK) {
            *known = None;
        }
        *known
    }

    /// The time at the CA when our clock shows `now`.
    #[must_use]
    pub fn at_ca(&self, now: Timestamp) -> Timestamp {
        now + self.theirs.since(self.ours) - self.ours.since(self.theirs)
    }
}

/// A certificate to revoke.
#[derive(Clone, Copy, Debug)]
pub struct RevocationRequest<'r> {
    /// The certificate in PEM; issuers after it do not matter.
    pub chain_pem: &'r str,
    /// The reason.
    pub reason: RevocationReason,
    /// Its key, to sign with; else the account signs.
    pub key_pem: Option<&'r Secret>,
}

/// A CA that issues certificates.
#[async_trait]
pub trait Issuer: Send + Sync {
    /// Completes `order`, resuming it if it has a URL, and returns the chain in
    /// PEM, leaf first, not yet checked.
    async fn issue(
        &self,
        order: PendingOrder,
        journal: &mut dyn Journal,
    ) -> Result<String, AcmeError>;

    /// Sends changed settings of a registered account to the CA.
    async fn update_account(&self, _journal: &mut dyn Journal) -> Result<(), AcmeError> {
        Ok(())
    }

    /// Has the CA revoke a certificate; one that is revoked already counts as done.
    async fn revoke(
        &self,
        _request: &RevocationRequest<'_>,
        _journal: &mut dyn Journal,
    ) -> Result<(), AcmeError> {
        Err(AcmeError {
            ca: String::new(),
            phase: Phase::Revocation,
            cause: Cause::Protocol("the CA revokes nothing".into()),
        })
    }

    /// Both clocks at the CA's last reply; `None` before the first reply, and for a CA
    /// whose replies carry no `Date`.
    fn clocks(&self) -> Option<ClockReading> {
        None
    }

    /// Both clocks by a reply no older than `newest`; without one, the CA is probed.
    /// An error says why the probe failed.
    async fn time(&self, _newest: Duration) -> Result<Option<ClockReading>, AcmeError> {
        Ok(self.clocks())
    }

    /// Checks only that the CA answers.
    async fn probe(&self) -> Result<(), AcmeError>;

    /// The suggested renewal window and when to fetch it again; `None` if the CA
    /// offers none. Needs no account.
    async fn renewal_info(&self, renewal_id: &str)
    -> Result<Option<(Window, Duration)>, AcmeError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_reading_is_forgotten_after_our_clock_is_set_back() {
        let (day, now) = (
            Duration::from_secs(86_400),
            Timestamp::from_seconds(1_800_000_000),
        );
        // Read while our clock was a day ahead.
        let reading = ClockReading {
            ours: now + day,
            theirs: now,
        };
        let mut known = Some(reading);
        assert_eq!(ClockReading::usable(&mut known, now + day), Some(reading));
        assert_eq!(
            ClockReading::usable(&mut known, now + day - SET_BACK),
            Some(reading)
        );
        assert_eq!(ClockReading::usable(&mut known, now), None);
        // A day later our clock shows that time again, correctly.
        assert_eq!(ClockReading::usable(&mut known, now + day), None);
    }
}
