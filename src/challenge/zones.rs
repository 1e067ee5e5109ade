//! What our own name server answers: the zones that were delegated to this process, shared
//! between the orders that present values and the listener that serves them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hickory_proto::rr::Name;

use crate::net::dns::lookup::Place;

/// The zones that were delegated to this process, with the live values of their names.
#[derive(Clone, Debug, Default)]
pub(crate) struct Zones(Arc<Mutex<BTreeMap<Name, Delegated>>>);

#[derive(Clone, Debug, Default)]
pub(super) struct Delegated {
    pub(super) servers: Vec<Name>,
    pub(super) values: BTreeMap<Name, Vec<String>>,
}

impl Zones {
    pub(super) fn add(&self, place: &Place, value: &str) {
        let mut zones = self.lock();
        let zone = zones.entry(place.zone.apex.to_lowercase()).or_default();
        zone.servers.clone_from(&place.zone.names);
        let values = zone.values.entry(place.name.to_lowercase()).or_default();
        if !values.iter().any(|one| one == value) {
            values.push(value.to_owned());
        }
    }

    pub(super) fn remove(&self, place: &Place, value: &str) {
        if let Some(zone) = self.lock().get_mut(&place.zone.apex.to_lowercase()) {
            let name = place.name.to_lowercase();
            if let Some(values) = zone.values.get_mut(&name) {
                values.retain(|one| one != value);
            }
            zone.values.retain(|_, values| !values.is_empty());
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<Name, Delegated>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
