//! What all certificates of one CA share: its limits, which are spent before an
//! order is sent, and whether it answers, which one of them finds out for all.

mod intended;
mod outage;
mod shared;
mod spending;

pub(super) use self::intended::Intended;
pub(super) use self::outage::{answers, reach_windows, tells_windows};
pub(crate) use self::outage::{is_silent, reach};
pub(crate) use self::shared::show_stored;
pub(super) use self::spending::{NEWEST, register, settle_failed, settle_issued, spend};
