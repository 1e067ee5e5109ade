//! The rows of `certs status`: each certificate is read once, and what many of them share is
//! found out once. Nothing is printed here.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::super::Call;
use super::super::catalog::{Denial, confirmed, lacking};
use super::super::kept::orphaned_for_command;
use crate::ca_state::{CaState, Outage};
use crate::certificate::shown;
use crate::config::{
    CertificateSettings, Configured, Origin, Recollection, Remembered, Settings, StoredSettings,
};
use crate::deploy::confirmed::Confirmed;
use crate::failure::Failure;
use crate::lineage::Lineage;
use crate::manage;
use crate::observe::{RequestedBy, Status};
use crate::random::SystemRandom;
use crate::renew::rate_limits::{self, Left};
use crate::store::Store;
use crate::store::fs::{FileStore, Together};
use crate::time::Timestamp;

/// What the running sidecar cannot renew, and why.
pub(super) type Stuck = BTreeMap<Lineage, String>;

/// One certificate, with its CA's state.
#[derive(Serialize)]
pub(super) struct Row {
    #[serde(flatten)]
    pub(super) status: Status,
    /// The tokens left of the CA's rate limits for a new certificate of these names.
    pub(super) budget: Vec<Left>,
    /// The CA's current outage.
    pub(super) outage: Option<Outage>,
    /// The machines of the fleet, and the generation that each was last seen to serve.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) served_by: BTreeMap<String, Option<u64>>,
    /// Whether its key is that of a signing request.
    #[serde(skip)]
    pub(super) has_request: bool,
    /// The settings that it was made with, which its renewals use; only for one certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) made_with: Option<Value>,
}

/// A certificate as it is stored.
pub(super) struct Seen {
    status: Status,
    /// Damaged settings fail the renewal, which names them.
    made_with: Option<CertificateSettings>,
}

impl Seen {
    pub(super) fn name(&self) -> &Lineage {
        &self.status.name
    }

    pub(super) fn ca(&self) -> &str {
        &self.status.ca
    }
}

/// Reads what is stored.
#[derive(Default)]
pub(super) struct Reader {
    settings: StoredSettings,
}

impl Reader {
    /// # Errors
    /// When the record or the settings cannot be read.
    pub(super) fn see(&self, stored: Together, now: Timestamp) -> Result<Seen, Failure> {
        let lineage = stored.lineage;
        let (record, _) = stored.record.map_err(Failure::on(lineage.as_str()))?;
        let made_with = stored.options.map_err(Failure::on(lineage.as_str()))?;
        let made_with = made_with.and_then(|json| self.settings.read(&lineage, &json).ok());
        Ok(Seen {
            status: manage::status::status(&record, now, &SystemRandom),
            made_with,
        })
    }
}

/// Makes the rows.
pub(super) struct Rows<'c> {
    process: &'c Settings,
    store: &'c FileStore,
    configured: Configured,
    recollection: Recollection<'c>,
    denial: Denial<'c>,
    /// The confirmed rights, once a certificate has needed one; `None` in it if they cannot be
    /// read, which is said once.
    confirmed: Option<Option<Confirmed>>,
    states: BTreeMap<String, CaState>,
    sidecar: Option<Stuck>,
    shows_settings: bool,
}

impl<'c> Rows<'c> {
    pub(super) fn new(
        call: &'c Call,
        process: &'c Settings,
        store: &'c FileStore,
        sidecar: Option<Stuck>,
        shows_settings: bool,
    ) -> Self {
        Self {
            process,
            store,
            configured: call.sources.index(),
            recollection: Recollection::new(&call.sources),
            denial: Denial::without_confirmed(&call.sources, process),
            confirmed: None,
            states: BTreeMap::new(),
            sidecar,
            shows_settings,
        }
    }

    /// From now on these are the states of their CAs, such as those of the fleet.
    pub(super) fn know(&mut self, states: BTreeMap<String, CaState>) {
        self.states.extend(states);
    }

    /// The row, and why what it is denied is unknown.
    ///
    /// # Errors
    /// When the state of its CA cannot be read.
    pub(super) async fn row(
        &mut self,
        seen: Seen,
        requested_by: Option<RequestedBy>,
        now: Timestamp,
    ) -> Result<(Row, Result<(), Failure>), Failure> {
        let (mut status, made_with) = (seen.status, seen.made_with);
        let (budget, outage) = self.at_ca(&status, now).await?;
        let requested = requested_by.as_ref();
        let sidecar_runs = self.sidecar.is_some();
        let configured = &self.configured;
        let why = made_with
            .as_ref()
            .and_then(|own| orphaned_for_command(configured, own, requested, sidecar_runs));
        status.orphaned = why.is_some();
        status.orphaned_why = why;
        status.requested_by = requested_by;
        let lasts = |own: &&CertificateSettings| own.asked_by().is_none_or(Origin::lasts);
        let own = made_with.as_ref().filter(lasts);
        // The configuration grants the rights of its own certificates.
        let own = own.filter(|own| !configured.names(own));
        let stored = own.map(|own| Remembered::Whole(Box::new(own.clone())));
        let stored = stored.and_then(|stored| self.recollection.of(&stored).ok());
        let cause = stored.and_then(|stored| stored.cannot_order.clone());
        let stuck = self.sidecar.as_ref();
        let stuck = stuck.and_then(|stuck| stuck.get(&status.name).cloned());
        status.not_renewable = stuck.or_else(|| cause.map(|cause| cause.shown()));
        let lacks = own.map_or(Ok(()), |own| self.deny(own, &mut status));
        let has_request = { made_with.as_ref() }.is_some_and(|own| own.request.is_some());
        let shown = made_with.filter(|_| self.shows_settings);
        let row = Row {
            made_with: shown.map(|own| shown_of(own, self.process)).transpose()?,
            status,
            budget,
            outage,
            served_by: BTreeMap::new(),
            has_request,
        };
        Ok((row, lacks))
    }

    /// The state of its CA, for one certificate.
    async fn at_ca(
        &mut self,
        status: &Status,
        now: Timestamp,
    ) -> Result<(Vec<Left>, Option<Outage>), Failure> {
        let ca = &status.ca;
        if !self.states.contains_key(ca) {
            let known = self.store.ca_state(ca).await;
            let (state, _) = known.map_err(Failure::on(ca))?;
            self.states.insert(ca.clone(), state);
        }
        Ok(self.states.get(ca).map_or_else(Default::default, |state| {
            let rules = rate_limits::rules(ca);
            let left = rate_limits::left(state, rules, &status.identifiers, now);
            (left, state.outage.clone())
        }))
    }

    /// Adds the rights that the stored settings lack.
    fn deny(&mut self, own: &CertificateSettings, status: &mut Status) -> Result<(), Failure> {
        let mut denied = self.denial.lacks(own);
        if denied.is_empty() {
            return Ok(());
        }
        let mut ended = Ok(());
        let process = self.process;
        let confirmed = self
            .confirmed
            .get_or_insert_with(|| match confirmed(process) {
                Ok(confirmed) => Some(confirmed),
                Err(failure) => {
                    ended = Err(failure);
                    None
                }
            });
        if let Some(confirmed) = confirmed {
            denied.retain(|right| !confirmed.has(right));
            status.denied = lacking(&denied);
        }
        ended
    }
}

/// Stored settings with their output's whole path, and without their secrets.
fn shown_of(mut settings: CertificateSettings, process: &Settings) -> Result<Value, Failure> {
    settings.output = Some(process.output_of(&settings));
    let targets = settings.deploy.iter().map(ToString::to_string);
    let targets: Vec<String> = targets.collect();
    let mut json = shown(&settings)?;
    json["deploy"] = targets.into();
    Ok(json)
}
