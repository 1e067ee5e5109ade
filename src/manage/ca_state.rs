//! The state that all certificates of one CA share: its rate limits, reserved before
//! an order is sent, and its outages, probed by one certificate on behalf of all.

mod intended;
mod outage;
mod shared;
mod spending;

pub(super) use self::intended::Intended;
pub(super) use self::outage::note_available;
pub(crate) use self::outage::{Operation, note_outage, reach};
pub(crate) use self::shared::{note_revoked_key, show_stored};
pub(super) use self::spending::{refund, register, settle_failed, settle_issued, spend};
