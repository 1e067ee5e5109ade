//! What a certificate needs next, decided purely: no clock, dice, file or log.
//! Instants that were drawn are returned to be stored. RFC 9773.

pub mod backoff;
pub mod decide;
pub mod fallback;
pub mod ledger;
pub mod outage;
pub mod quarantine;
pub mod skew;
pub mod window;
