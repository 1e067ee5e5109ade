//! Observes the requests to one CA: counts them, and logs an error if its clock and ours
//! disagree. No decisions here.

use std::sync::Arc;

use crate::acme::{self, OutsideValidity};
use crate::manage::Services;
use crate::manage::clock::Skew;
use crate::observe::Metrics;
use crate::time::{Clock, Timestamp};

/// Counts the requests to one CA, and compares its clock with ours.
pub(super) struct Watcher {
    ca: String,
    metrics: Metrics,
    clock: Arc<dyn Clock>,
    skew: Skew,
}

impl Watcher {
    pub(super) fn new(ca: String, services: &Services) -> Self {
        Self {
            ca,
            metrics: services.metrics.clone(),
            clock: services.clock.clone(),
            skew: Skew::default(),
        }
    }

    fn log(&self, alarm: Option<String>) {
        if let Some(alarm) = alarm {
            tracing::error!(
                ca = self.ca,
                "{alarm}; hint: set this machine's clock, best by NTP: a wrong clock breaks TLS and mistimes renewals"
            );
        }
    }
}

impl acme::Observer for Watcher {
    fn date(&self, instant: Timestamp) {
        self.log(self.skew.observe(self.clock.now(), instant));
    }

    fn outside_validity(&self, outside: OutsideValidity) {
        self.log(self.skew.outside(outside));
    }

    fn request(&self, endpoint: &'static str, status: u16) {
        self.metrics.acme_request(&self.ca, endpoint, status);
    }
}
