//! An order before it is stored: its names, and the CA that it goes to. Nothing is stored
//! or sent here.

use std::collections::BTreeSet;

use crate::acme::Issuer;
use crate::identifier::Identifier;
use crate::manage::ca_state::Intended;
use crate::manage::services::Certificate;
use crate::manage::session::Trigger;
use crate::record::Record;
use crate::renew::fallback::Choice;
use crate::renew::rate_limits::Priority;

/// An order before it is stored.
#[derive(Clone)]
pub(in crate::manage) struct Plan {
    /// The first or the fallback CA.
    pub(in crate::manage) from: Choice,
    /// The names to order.
    pub(in crate::manage) names: BTreeSet<Identifier>,
    /// Whether it is for excluded names alone.
    pub(in crate::manage) only_excluded: bool,
    /// The renewal identifier of the certificate to replace (RFC 9773).
    pub(in crate::manage) replaces: Option<String>,
    /// Whether it may use the reserve of the rate limits.
    pub(in crate::manage) urgent: bool,
}

impl Plan {
    /// The same order at `from`, where it replaces nothing.
    pub(in crate::manage) fn at(self, from: Choice) -> Self {
        Self {
            from,
            replaces: None,
            ..self
        }
    }

    pub(super) fn intended<'o>(&'o self, record: &'o Record, trigger: Trigger) -> Intended<'o> {
        Intended {
            record,
            names: &self.names,
            replaces: self.replaces.as_deref(),
            priority: match (trigger, self.urgent) {
                (Trigger::Scheduled, false) => Priority::Routine,
                (Trigger::Scheduled, true) => Priority::Urgent,
                _ => Priority::Forced,
            },
        }
    }
}

/// The CA that an order goes to.
pub(super) struct Source<'c> {
    pub(super) ca: &'c str,
    pub(super) issuer: &'c dyn Issuer,
    pub(super) profile: Option<&'c String>,
    /// The first CA, if this is the fallback CA.
    pub(super) instead_of: Option<&'c String>,
}

impl<'c> Source<'c> {
    pub(super) fn of(certificate: &'c Certificate, from: Choice) -> Self {
        let wanted = &certificate.wanted;
        match (from, &certificate.fallback) {
            (Choice::Fallback, Some(fallback)) => Self {
                ca: &fallback.ca,
                issuer: fallback.issuer.as_ref(),
                // A profile belongs to the CA that offers it.
                profile: None,
                instead_of: Some(&wanted.ca),
            },
            _ => Self {
                ca: &wanted.ca,
                issuer: certificate.issuer.as_ref(),
                profile: wanted.profile.as_ref(),
                instead_of: None,
            },
        }
    }
}
