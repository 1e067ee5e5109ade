//! What our own name server answers: the zones that were delegated to this process, shared
//! between the orders that present values and the listener that serves them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hickory_proto::rr::Name;

use crate::net::dns::lookup::Place;

/// The zones that were delegated to this process, with the live values of their names.
#[derive(Clone, Debug, Default)]
pub(crate) struct Zones {
    own: Arc<Mutex<Known>>,
    /// Those of other machines of the fleet.
    elsewhere: Arc<Mutex<Known>>,
}

/// Zones by apex.
type Known = BTreeMap<Name, Delegated>;

#[derive(Clone, Debug, Default)]
pub(super) struct Delegated {
    pub(super) servers: Vec<Name>,
    pub(super) values: BTreeMap<Name, Vec<String>>,
}

impl Zones {
    pub(super) fn add(&self, place: &Place, value: &str) {
        Self::add_to(&mut lock(&self.own), place, value);
    }

    fn add_to(zones: &mut Known, place: &Place, value: &str) {
        let zone = zones.entry(place.zone.apex.to_lowercase()).or_default();
        zone.servers.clone_from(&place.zone.names);
        let values = zone.values.entry(place.name.to_lowercase()).or_default();
        if !values.iter().any(|one| one == value) {
            values.push(value.to_owned());
        }
    }

    pub(super) fn remove(&self, place: &Place, value: &str) {
        if let Some(zone) = lock(&self.own).get_mut(&place.zone.apex.to_lowercase()) {
            let name = place.name.to_lowercase();
            if let Some(values) = zone.values.get_mut(&name) {
                values.retain(|one| one != value);
            }
            zone.values.retain(|_, values| !values.is_empty());
        }
    }

    /// Whether an order of this process has a value for `name`, in small letters.
    pub(super) fn has_own(&self, name: &Name) -> bool {
        let own = lock(&self.own);
        let mut values = own.values().filter_map(|zone| zone.values.get(name));
        values.any(|values| !values.is_empty())
    }

    /// Replaces the values of other machines.
    pub(super) fn learn(&self, values: &[(Place, String)]) {
        let mut known = Known::new();
        for (place, value) in values {
            Self::add_to(&mut known, place, value);
        }
        *lock(&self.elsewhere) = known;
    }

    /// All that is answered now.
    pub(super) fn all(&self) -> Known {
        let mut all = lock(&self.own).clone();
        for (apex, zone) in lock(&self.elsewhere).iter() {
            let known = all.entry(apex.clone()).or_insert_with(|| Delegated {
                servers: zone.servers.clone(),
                ..Delegated::default()
            });
            for (name, values) in &zone.values {
                let known = known.values.entry(name.clone()).or_default();
                known.extend(values.iter().cloned());
                known.sort();
                known.dedup();
            }
        }
        all
    }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}
