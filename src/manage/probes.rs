//! What this process alone knows of a CA that does not answer, beside what is stored.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::ca_state::{CaState, Outage};
use crate::time::Timestamp;

/// What is asked of a CA. It may do the one and not the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// To issue.
    Orders,
    /// To tell when to renew.
    Windows,
}

/// All of them.
pub(super) const WORKS: [Work; 2] = [Work::Orders, Work::Windows];

impl Work {
    /// Since when it does not.
    pub(super) fn of(self, state: &mut CaState) -> &mut Option<Outage> {
        match self {
            Self::Orders => &mut state.outage,
            Self::Windows => &mut state.windowless,
        }
    }
}

/// After a probe in vain, this much longer than anybody else.
pub(super) const STEPPED_BACK: Duration = Duration::from_secs(20);

/// What this process knows of each CA's silence beside what is stored. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Probes(Arc<Mutex<BTreeMap<String, Known>>>);

#[derive(Debug, Default)]
struct Known {
    /// When it may probe again where it has probed in vain. A machine that is cut off from
    /// a CA steps back behind the others, or it would be the one that asks each time, and
    /// keep all of them waiting.
    again_at: Option<Timestamp>,
    /// Silence at each of [`WORKS`] that could not be stored, as on a full disk: it is kept
    /// here, or each certificate of this machine would ask.
    unsaved: [Option<Outage>; 2],
}

impl Probes {
    fn known<T>(&self, ca: &str, change: impl FnOnce(&mut Known) -> T) -> T {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(known.entry(ca.to_owned()).or_default())
    }

    pub(super) fn again_at(&self, ca: &str) -> Timestamp {
        let at = self.known(ca, |known| known.again_at);
        at.unwrap_or(Timestamp::from_seconds(i64::MIN))
    }

    pub(super) fn in_vain(&self, ca: &str, probe_at: Timestamp) {
        self.known(ca, |known| known.again_at = Some(probe_at + STEPPED_BACK));
    }

    pub(super) fn well(&self, ca: &str) {
        self.known(ca, |known| known.again_at = None);
    }

    pub(super) fn unsaved(&self, ca: &str) -> [Option<Outage>; 2] {
        self.known(ca, |known| known.unsaved.clone())
    }

    pub(super) fn keeps(&self, ca: &str, work: Work, outage: Outage) {
        self.known(ca, |known| {
            known.unsaved[work as usize].get_or_insert(outage);
        });
    }

    pub(super) fn forgets(&self, ca: &str, works: &[Work]) {
        self.known(ca, |known| {
            for work in works {
                known.unsaved[*work as usize] = None;
            }
        });
    }
}
