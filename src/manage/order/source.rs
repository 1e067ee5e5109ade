//! The CA that an order goes to. Nothing is stored or sent here.

use crate::acme::Issuer;
use crate::manage::services::Certificate;
use crate::record::Lifetime;
use crate::renew::fallback::Choice;

/// The CA that an order goes to.
pub(super) struct Source<'c> {
    pub(super) ca: &'c str,
    pub(super) issuer: &'c dyn Issuer,
    pub(super) profile: Option<&'c String>,
    pub(super) lifetime: Option<Lifetime>,
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
                // A profile belongs to the CA that offers it, and few CAs take a lifetime.
                profile: None,
                lifetime: None,
                instead_of: Some(&wanted.ca),
            },
            _ => Self {
                ca: &wanted.ca,
                issuer: certificate.issuer.as_ref(),
                profile: wanted.terms.profile.as_ref(),
                lifetime: wanted.terms.lifetime,
                instead_of: None,
            },
        }
    }
}
