//! What only this process knows about an outage of a CA, beside the stored CA state.
//! It sends no probe itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::ca_state::{CaState, Outage};
use crate::time::Timestamp;

/// A service of a CA; each may be unavailable without the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Issuing certificates.
    Orders,
    /// Renewal windows.
    Windows,
}

/// All operations.
pub(super) const OPERATIONS: [Operation; 2] = [Operation::Orders, Operation::Windows];

impl Operation {
    /// The outage of this operation in `state`.
    pub(super) fn of(self, state: &mut CaState) -> &mut Option<Outage> {
        match self {
            Self::Orders => &mut state.outage,
            Self::Windows => &mut state.windowless,
        }
    }
}

/// How much longer than other machines this one waits after a failed probe of its own.
pub(super) const STEP_BACK: Duration = Duration::from_secs(20);

/// What this process knows about the outage of each CA. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Probes(Arc<Mutex<BTreeMap<String, ProbeState>>>);

#[derive(Debug, Default)]
struct ProbeState {
    /// When this machine may probe again after a failed probe. A machine that is cut off
    /// from a CA must wait longer than the others, or its probes would block theirs.
    retry_at: Option<Timestamp>,
    /// Outages of each of [`OPERATIONS`] that could not be stored, as on a full disk. Without
    /// them each certificate of this machine would probe.
    unsaved: [Option<Outage>; 2],
}

impl Probes {
    fn known<T>(&self, ca: &str, change: impl FnOnce(&mut ProbeState) -> T) -> T {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(known.entry(ca.to_owned()).or_default())
    }

    pub(super) fn retry_at(&self, ca: &str) -> Timestamp {
        let at = self.known(ca, |known| known.retry_at);
        at.unwrap_or(Timestamp::from_seconds(i64::MIN))
    }

    pub(super) fn failed(&self, ca: &str, probe_at: Timestamp) {
        self.known(ca, |known| known.retry_at = Some(probe_at + STEP_BACK));
    }

    pub(super) fn succeeded(&self, ca: &str) {
        self.known(ca, |known| known.retry_at = None);
    }

    pub(super) fn unsaved(&self, ca: &str) -> [Option<Outage>; 2] {
        self.known(ca, |known| known.unsaved.clone())
    }

    pub(super) fn keep_unsaved(&self, ca: &str, operation: Operation, outage: Outage) {
        self.known(ca, |known| {
            known.unsaved[operation as usize].get_or_insert(outage);
        });
    }

    pub(super) fn forget(&self, ca: &str, operations: &[Operation]) {
        self.known(ca, |known| {
            for operation in operations {
                known.unsaved[*operation as usize] = None;
            }
        });
    }
}
