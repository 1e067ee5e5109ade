//! Looks again at endpoints that were verified: one handshake with each, between
//! deployments. A server that went back to another certificate for our names is deployed
//! to again; one that is unreachable is only reported, since no reload helps it.

use super::deploy::silence;
use super::error::ManageError;
use super::proof::{FILES, located};
use super::services::Looks;
use super::session::Pass;
use crate::certificate::Facts;
use crate::deploy::verify::{ServedAt, Unseen, VerifyError, look_once};
use crate::identifier::Identifier;
use crate::record::{Failures, Generation, Served};
use crate::renew::look::{after_drift, look_at, pause, sooner, turn};
use crate::text::printable;
use crate::time::Timestamp;

impl Pass<'_> {
    /// The looks of this pass, if one is due and none was made.
    pub(super) fn due_looks(&self, now: Timestamp) -> Option<Looks> {
        let looks = self.services.looks.filter(|_| !self.looked)?;
        let at = look_at(&self.record, looks.every, now)?;
        (looks.at_once || looks.first || at <= now).then_some(looks)
    }

    /// Looks once at every endpoint, and stores what it serves. An endpoint that serves
    /// another certificate for our names counts as not deployed, so that the pass deploys.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn look(&mut self, looks: Looks) -> Result<(), ManageError> {
        self.looked = true;
        self.permit.release();
        let now = self.now();
        let Some((generation, facts)) = self.expected(now).await else {
            return Ok(());
        };
        let names = &self.asked(&facts);
        let Some(first) = names.first() else {
            return Ok(());
        };
        let endpoints = self.endpoints_to_verify().await;
        for seen in self.record.served.values_mut() {
            seen.again = Some(now + sooner(looks.every));
        }
        let mut drifted = None;
        for endpoint in &endpoints {
            self.phase(&format!("looking at {endpoint}"));
            let verifier = &self.services.verifier;
            let turn = |count| turn(count, looks.every, now);
            let wanted = &facts.fingerprint;
            match look_once(verifier.as_ref(), endpoint, names, wanted, turn).await {
                Ok(()) => self.note_seen(endpoint, generation, &facts),
                Err((name, unseen)) => {
                    let found = self.note_unseen(endpoint, &name, unseen, generation, looks);
                    drifted = drifted.or(found);
                }
            }
        }
        self.note_silent(&endpoints, first, generation, &facts)
            .await;
        match drifted {
            Some(found) => {
                self.record.drift = after_drift(&self.record.drift, found, now);
                // A repair does not wait for a maintenance window.
                if let Some(issued) = self.record.issued.as_mut() {
                    issued.deploy_at = None;
                }
            }
            None if self.unseen.is_none() && self.is_verified(now) => {
                // The server was repaired by other means.
                self.record.deployment_failures = Failures::default();
                (self.record.rollback_to, self.record.rolled_back) = (None, None);
            }
            None => {}
        }
        self.save(None).await
    }

    /// When an endpoint is looked at after its deployment, verified or not.
    pub(super) fn look_again(&self, verified: bool) -> Option<Timestamp> {
        let every = self.services.looks?.every;
        let pause = match verified {
            true => pause(every, self.services.random.as_ref()),
            false => sooner(every),
        };
        Some(self.now() + pause)
    }

    /// The generation that the servers should show now: the published one, which may wait
    /// for its successor's maintenance window.
    async fn expected(&self, now: Timestamp) -> Option<(Generation, Facts)> {
        let (wanted, facts) = self.record.to_be_served(now)?;
        let live = *self.record.deployed.get(FILES)?;
        if live == wanted {
            return Some((wanted, facts.clone()));
        }
        let stored = self.services.store.bundle(self.lineage(), live).await;
        let (_, chain) = stored.ok()??;
        Some((live, Facts::of_chain(&chain).ok()?))
    }

    fn note_seen(&mut self, endpoint: &ServedAt, generation: Generation, facts: &Facts) {
        let now = self.now();
        let seen = Served {
            generation,
            at: now,
            not_after: Some(facts.not_after),
            problem: None,
            again: self.look_again(true),
        };
        let before = self.record.served.insert(endpoint.to_string(), seen);
        if before.is_some_and(|before| before.problem.is_some()) {
            tracing::info!(lineage = %self.lineage(), "{endpoint} serves the certificate again");
        }
    }

    /// Stores why `endpoint` did not show the certificate, and returns that if a
    /// redeployment may help.
    fn note_unseen(
        &mut self,
        endpoint: &ServedAt,
        name: &Identifier,
        unseen: Unseen,
        generation: Generation,
        looks: Looks,
    ) -> Option<String> {
        let (now, lineage) = (self.now(), self.lineage().clone());
        let entry = self.record.served.entry(endpoint.to_string());
        let entry = entry.or_insert_with(|| Served::none(now));
        let found = printable(&unseen.to_string());
        let pause_end = self.record.drift.retry_at.filter(|at| *at > now);
        let is_ours_to_repair =
            !self.certificate.is_orphaned() && unseen.shows(name) && entry.generation == generation;
        entry.not_after = unseen.leaf().map(|leaf| leaf.not_after);
        let is_new = entry.problem.is_none();
        let drifted = match pause_end.filter(|_| !looks.at_once) {
            _ if !is_ours_to_repair => None,
            Some(at) => {
                entry.problem = Some(format!("{found}; deployed again at {at}"));
                return None;
            }
            None => Some(located(&endpoint.to_string(), &found)),
        };
        entry.problem = Some(found.clone());
        if drifted.is_some() {
            entry.generation = Generation::default();
            tracing::error!(%lineage, "{endpoint} went back to another certificate and is deployed to again: {found}; hint: find out what restored it, such as an image, a backup or another tool");
        } else if is_new {
            tracing::warn!(%lineage, "{endpoint} does not serve the certificate: {found}");
        }
        if drifted.is_none() {
            self.unseen = Some(VerifyError::unseen(endpoint, name, &unseen));
        }
        drifted
    }

    /// Reports servers that were seen before and show no more where they listen.
    async fn note_silent(
        &mut self,
        endpoints: &[ServedAt],
        name: &Identifier,
        generation: Generation,
        facts: &Facts,
    ) {
        let lineage = self.lineage().clone();
        let found = |known: &&String| endpoints.iter().any(|at| at.to_string() == **known);
        let gone = self.record.served.keys().filter(|known| !found(known));
        let delivery = self.delivered(generation, facts);
        for server in gone.cloned().collect::<Vec<_>>() {
            let why = silence(self.certificate, &server, &delivery).await;
            tracing::warn!(%lineage, "{server} does not serve the certificate: {why}");
            self.unseen = Some(VerifyError::gone(&server, name, &why));
            let seen = self.record.served.entry(server);
            seen.and_modify(|seen| (seen.problem, seen.not_after) = (Some(why), None));
        }
    }
}
