//! What only this process knows about the outage of each CA, beside the stored CA state.
//! It sends no probe itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::ca_state::Outage;

/// What this process knows about the outage of each CA. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Probes(Arc<Mutex<BTreeMap<String, ProbeState>>>);

#[derive(Debug, Default)]
pub(super) struct ProbeState {
    /// When this machine may probe again after a failed probe of its own, by the clock's
    /// stopwatch: no wrong clock can delay it.
    pub(super) retry_at: Duration,
    /// An outage that could not be stored, as on a full disk. Without it each certificate
    /// of this machine would probe.
    pub(super) unsaved: Option<Outage>,
}

impl Probes {
    /// Reads or changes what is known of `ca`.
    pub(super) fn of<T>(&self, ca: &str, change: impl FnOnce(&mut ProbeState) -> T) -> T {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(known.entry(ca.to_owned()).or_default())
    }

    /// Lets this machine probe again at once: the clock by which a probe failed was set.
    pub(crate) fn restart(&self) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for known in known.values_mut() {
            known.retry_at = Duration::ZERO;
        }
    }
}
