//! Deploys a generation and verifies that it is served: check, switch, reload, verify.
//! A failed deployment is rolled back to the previous generation and retried by the next
//! pass. It never leads to a second order.

use std::collections::BTreeSet;
use std::time::Duration;

use super::error::ManageError;
use super::proof::FILES;
use super::services::{Certificate, Services};
use super::session::Pass;
use crate::certificate::{Bundle, Facts, Freshness};
use crate::deploy::verify::{SILENT, ServedAt, Verification, VerifyError, look_once};
use crate::deploy::{Delivery, DeployError};
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::record::{Failures, Generation, RolledBack, Served};
use crate::renew::policy::{VERIFY_BLIND_WITHIN, VERIFY_SLOW_WITHIN};
use crate::renew::window::latest;
use crate::text::printable;

/// A generation to deploy.
#[derive(Clone)]
struct Pair {
    generation: Generation,
    bundle: Bundle,
}

impl Pass<'_> {
    /// Publishes, checks, applies and verifies the generation to be served: the newest, or
    /// an earlier one that the operator pinned. A failure is rolled back while the previous
    /// generation stays valid for long enough.
    ///
    /// # Errors
    /// The first failure; each step that succeeded is stored.
    pub(super) async fn deploy(&mut self) -> Result<(), ManageError> {
        let wanted = self.record.to_be_served(self.now());
        let Some((generation, facts)) = wanted.map(|(which, facts)| (which, facts.clone())) else {
            return Ok(());
        };
        let (services, lineage) = (self.services, self.lineage().clone());
        let bundle = stored(services, &lineage, generation, &facts).await?;
        let pair = Pair { generation, bundle };
        let before = self.previous_pair(generation).await?;
        let ended = self.transact(&pair, before.as_ref()).await;
        for (_, target) in self.certificate.named_targets() {
            services.metrics.deployment(&target.name(), ended.is_ok());
        }
        if let (Err(error), Some(before)) = (&ended, before)
            && services.output.live(&lineage)? == Some(pair.generation)
            && error.is_server_failure()
        {
            let hint = error.hint();
            tracing::error!(%lineage, "{error}; hint: {hint}");
            self.restore(&before).await;
            self.note_rollback(pair.generation, error.to_string());
        }
        ended?;
        self.record.deployment_failures = Failures::default();
        (self.record.rollback_to, self.record.rolled_back) = (None, None);
        self.save(None).await
    }

    async fn transact(&mut self, pair: &Pair, before: Option<&Pair>) -> Result<(), ManageError> {
        let carefully = before.is_some();
        if carefully {
            // A server that cannot be reloaded, or has an invalid configuration, must fail
            // before any file changes.
            let delivery = self.delivery(pair, false);
            for (_, target) in self.certificate.named_targets() {
                self.phase(&target.check_phase());
                let checked = target.check(&delivery).await;
                checked.map_err(|cause| cause.of(target.name()))?;
            }
        }
        let by_itself = self.services.looks.is_some_and(|looks| !looks.at_once);
        let is_repeated = by_itself && self.is_deployed(pair);
        let blind = match carefully || is_repeated {
            true => self.blind_endpoints(pair).await,
            false => BTreeSet::new(),
        };
        let rollback_to = before.map(|before| before.generation);
        if self.record.rollback_to != rollback_to {
            self.record.rollback_to = rollback_to;
            self.save(None).await?;
        }
        self.publish(pair).await?;
        // The sidecar reloads no server again and again because it cannot see it; a user may.
        let served = &self.record.served;
        let mut unserved = served
            .iter()
            .filter(|it| it.1.generation != pair.generation);
        let checking = match is_repeated && unserved.all(|(at, _)| blind.contains(at)) {
            true => Duration::ZERO,
            false => self.reload(pair, carefully).await?,
        };
        self.verify(pair, &blind, checking).await
    }

    /// Whether the files are those of `pair`, and each target was reloaded with them.
    fn is_deployed(&self, pair: &Pair) -> bool {
        let mut deployed = self.record.deployed.values();
        deployed.all(|generation| *generation == pair.generation)
    }

    /// The endpoints of which this machine sees nothing before the deployment, as behind a
    /// firewall. What it does not see afterwards either is not the deployment's fault.
    async fn blind_endpoints(&mut self, pair: &Pair) -> BTreeSet<String> {
        let (mut blind, facts) = (BTreeSet::new(), pair.bundle.facts());
        for endpoint in self.endpoints_to_verify().await {
            let verifier = self.services.verifier.as_ref();
            let (names, wanted) = (self.asked(facts), &facts.fingerprint);
            let seen = look_once(verifier, &endpoint, &names, wanted, |_| 0).await;
            if seen.is_err_and(|(_, unseen)| unseen.is_blind()) {
                blind.insert(endpoint.to_string());
            }
        }
        blind
    }

    /// The endpoints to verify: those that the user named, or the addresses on which the
    /// targets listen. A server that leaves TLS to its front by now is forgotten as one that
    /// was seen.
    pub(super) async fn endpoints_to_verify(&mut self) -> Vec<ServedAt> {
        let certificate = self.certificate;
        if !certificate.endpoints.is_empty() {
            let named = certificate.endpoints.iter().cloned();
            return named.map(ServedAt::Named).collect();
        }
        let (mut found, verifier) = (Vec::new(), &self.services.verifier);
        for target in &certificate.targets {
            if let Some(addresses) = target.listens_on().await
                && let Some(name) = certificate.wanted.identifiers.iter().next()
            {
                match verifier.is_plain(&addresses, name).await {
                    true => drop(self.record.served.remove(&target.name())),
                    false => found.push(ServedAt::Found(target.name(), addresses)),
                }
            }
        }
        found
    }

    /// Whether a server that was found turns out to speak no TLS, such as one that did not answer
    /// for a while before: it is forgotten as one that was seen.
    async fn leaves_tls_to_its_front(&mut self, endpoint: &ServedAt) -> bool {
        let ServedAt::Found(server, addresses) = endpoint else {
            return false;
        };
        let name = self.certificate.wanted.identifiers.iter().next();
        let verifier = &self.services.verifier;
        let is_plain = match name {
            Some(name) => verifier.is_plain(addresses, name).await,
            None => false,
        };
        if is_plain {
            self.record.served.remove(server);
        }
        is_plain
    }

    /// The names for which endpoints are asked: a server shows another certificate for those
    /// that lead to it.
    pub(super) fn asked(&self, facts: &Facts) -> BTreeSet<Identifier> {
        let output = &self.services.output;
        output.led_here(self.lineage(), &facts.identifiers)
    }

    /// Publishes the files of `pair`.
    async fn publish(&mut self, pair: &Pair) -> Result<(), ManageError> {
        let (services, lineage) = (self.services, self.lineage());
        let published = services.publish(lineage, pair.generation, &pair.bundle);
        let (published, metrics) = (published.await, &services.metrics);
        metrics.deployment(FILES, published.is_ok());
        published?;
        let deployed = &mut self.record.deployed;
        deployed.insert(FILES.to_owned(), pair.generation);
        Ok(())
    }

    /// Reloads each target that is not verified to serve the pair. Without a previous
    /// generation to roll back to, one failed target does not stop the others. Returns the
    /// longest time of a check.
    async fn reload(&mut self, pair: &Pair, carefully: bool) -> Result<Duration, ManageError> {
        let delivery = self.delivery(pair, !carefully);
        let (mut failed, mut checking) = (None::<DeployError>, Duration::ZERO);
        for (name, target) in self.certificate.named_targets() {
            let reloaded = self.record.deployed.get(&name) == Some(&pair.generation);
            if reloaded && self.all_served(pair.generation) {
                continue;
            }
            self.phase(&target.check_phase());
            let clock = &self.services.clock;
            let begun = clock.stopwatch();
            let checked = target.check(&delivery).await;
            checking = checking.max(clock.stopwatch().saturating_sub(begun));
            self.phase(&format!("reloading {name}"));
            let reloaded = match checked {
                Ok(()) => target.apply(&delivery).await,
                Err(cause) => Err(cause),
            };
            match reloaded.map_err(|cause| cause.of(target.name())) {
                Ok(()) => {
                    self.record.deployed.insert(name, pair.generation);
                    self.save(None).await?;
                }
                Err(error) if carefully => return Err(error.into()),
                Err(error) => {
                    if let Some(first) = failed.replace(error) {
                        tracing::error!(lineage = %self.lineage(), "{first}; hint: {}", first.hint());
                    }
                }
            }
        }
        failed.map_or(Ok(checking), |error| Err(error.into()))
    }

    fn delivery(&self, pair: &Pair, urgent: bool) -> Delivery {
        Delivery {
            urgent,
            ..self.delivered(pair.generation, pair.bundle.facts())
        }
    }

    /// The pair of `generation` with these `facts`, as a target gets it.
    pub(super) fn delivered(&self, generation: Generation, facts: &Facts) -> Delivery {
        let lineage = self.lineage().clone();
        Delivery {
            live: self.services.output.live_path(&lineage),
            lineage,
            names: facts.identifiers.clone(),
            generation,
            fingerprint: facts.fingerprint.clone(),
            not_after: facts.not_after,
            urgent: false,
            resolver: self.services.resolver.clone(),
        }
    }

    /// The generation to roll back to: the live one, or the one before a switch that was
    /// never verified. From the last tenth of its lifetime there is none: the newest stays
    /// live even if a server cannot load it, so that no lasting failure lets it expire.
    async fn previous_pair(&self, generation: Generation) -> Result<Option<Pair>, ManageError> {
        if self.certificate.targets.is_empty() {
            return Ok(None);
        }
        let live = self.services.output.live(self.lineage())?;
        let before = match live == Some(generation) {
            true => self.record.rollback_to,
            false => live,
        };
        let before = before.filter(|it| *it != generation && *it != Generation::default());
        Ok(match before {
            Some(before) => self.usable_pair(before).await,
            None => None,
        })
    }

    async fn usable_pair(&self, before: Generation) -> Option<Pair> {
        let (services, lineage) = (self.services, self.lineage());
        let (key, chain) = services.store.bundle(lineage, before).await.ok()??;
        let (facts, now) = (Facts::of_chain(&chain).ok()?, self.now());
        if latest(&facts) <= now || self.record.revoked.contains_key(&before) {
            return None;
        }
        let names = &facts.identifiers;
        let bundle = Bundle::new(key, &chain, names, now, Freshness::Stored).ok()?;
        Some(Pair {
            generation: before,
            bundle,
        })
    }

    /// Makes `before` live again on every server that has loaded another generation. A failure
    /// here is only logged: the error that caused the rollback is the one to act on.
    async fn restore(&mut self, before: &Pair) {
        let lineage = self.lineage().clone();
        tracing::warn!(%lineage, generation = %before.generation, "the deployment failed: rolling back to the previous generation");
        let published = self.services;
        let published = published.publish(&lineage, before.generation, &before.bundle);
        if let Err(error) = published.await {
            tracing::error!(%lineage, "the rollback failed, since the files could not be published: {error}");
            return;
        }
        // Also the server that failed: what it has loaded is unknown.
        self.mark_unverified();
        let deployed = &mut self.record.deployed;
        deployed.insert(FILES.to_owned(), before.generation);
        let reloaded = self.reload(before, false).await;
        let (none, at_once) = (BTreeSet::new(), Duration::ZERO);
        let verified = self.verify(before, &none, at_once).await;
        match reloaded.map(drop).and(verified) {
            Ok(()) if self.record.served.is_empty() || !self.record.unchecked.is_empty() => {
                tracing::info!(%lineage, generation = %before.generation, "rolled back; not checked: no endpoint is configured");
            }
            Ok(()) => {
                tracing::info!(%lineage, generation = %before.generation, "rolled back and verified");
            }
            Err(error) => {
                tracing::error!(%lineage, "the rollback is not verified: {error}; hint: {}", error.hint());
            }
        }
    }

    /// Counts rollbacks for the same cause: each attempt costs a server two reloads, so that
    /// repeated failures are retried more slowly.
    fn note_rollback(&mut self, generation: Generation, why: String) {
        let known = self.record.rolled_back.take();
        let known = known.filter(|known| known.generation == generation && known.why == why);
        self.record.rolled_back = Some(RolledBack {
            generation,
            why,
            times: known.map_or(1, |known| known.times.saturating_add(1)),
        });
    }

    fn all_served(&self, generation: Generation) -> bool {
        let mut served = self.record.served.values();
        served.all(|served| served.generation == generation)
    }

    /// Verifies `pair` at every endpoint; those of `blind` come last, since they take all the
    /// time and do not cause a rollback. A server whose check took long, as `checking` says,
    /// loads the pair as slowly.
    async fn verify(
        &mut self,
        pair: &Pair,
        blind: &BTreeSet<String>,
        checking: Duration,
    ) -> Result<(), ManageError> {
        let (services, certificate) = (self.services, self.certificate);
        let mut endpoints = self.endpoints_to_verify().await;
        let listens = |known: &&String| endpoints.iter().any(|at| at.to_string() == **known);
        if let Some(gone) = self.record.served.keys().find(|known| !listens(known)) {
            let why = silence(certificate, gone, &self.delivery(pair, false)).await;
            return Err(VerifyError::gone(gone, self.lineage(), &why).into());
        }
        if endpoints.is_empty() && !certificate.targets.is_empty() {
            tracing::warn!(lineage = %self.lineage(), "the deployment is not verified: name an endpoint with --verify HOST:PORT");
        }
        let begun = services.clock.stopwatch();
        let mut verification = Verification {
            verifier: services.verifier.as_ref(),
            wanted: &pair.bundle.facts().fingerprint,
            clock: services.clock.as_ref(),
            end: begun + services.verify_within + checking.min(VERIFY_SLOW_WITHIN),
        };
        endpoints.sort_by_key(|endpoint| blind.contains(&endpoint.to_string()));
        let mut unseen = None;
        for endpoint in endpoints {
            self.phase(&format!("verifying {endpoint}"));
            let names = self.asked(pair.bundle.facts());
            if blind.contains(&endpoint.to_string()) {
                verification.end = services.clock.stopwatch() + VERIFY_BLIND_WITHIN;
            }
            let verified = verification.verify(&endpoint, &names).await;
            if let Err(error) = verified {
                if self.leaves_tls_to_its_front(&endpoint).await {
                    continue;
                }
                let error = error.compared(blind.contains(&endpoint.to_string()));
                // The generation that was seen there before is no longer verified.
                let (now, again) = (services.clock.now(), self.look_again(false));
                let known = self.record.served.entry(endpoint.to_string());
                let known = known.or_insert_with(|| Served::none(now));
                known.generation = Generation::default();
                known.problem = Some(printable(error.found()));
                known.again = again;
                let obstacle = obstacle(certificate, &self.delivery(pair, false)).await;
                let waited = services.clock.stopwatch().saturating_sub(begun);
                let error = error.after(waited, obstacle);
                match error.was_blind() {
                    true => unseen = Some(error),
                    false => return Err(error.into()),
                }
                continue;
            }
            self.note_served(&endpoint, pair).await?;
        }
        unseen.map_or(Ok(()), |error| Err(error.into()))
    }

    async fn note_served(&mut self, endpoint: &ServedAt, pair: &Pair) -> Result<(), ManageError> {
        let seen = Served {
            generation: pair.generation,
            at: self.now(),
            not_after: Some(pair.bundle.facts().not_after),
            problem: None,
            again: self.look_again(true),
        };
        self.record.served.insert(endpoint.to_string(), seen);
        let is_new = self.record.rollback_to != Some(pair.generation);
        if is_new && self.all_served(pair.generation) {
            self.record.rollback_to = None;
        }
        self.save(None).await
    }
}

/// The generation whose files are live, by what is on disk now and not by what was once
/// written there.
pub(super) async fn on_disk(
    services: &Services,
    lineage: &Lineage,
    wanted: Option<(Generation, &Facts)>,
) -> Generation {
    let live = services.output.live(lineage).unwrap_or_else(|error| {
        // The deployment that follows fails with it, if it lasts.
        tracing::warn!(%lineage, "the live files cannot be examined: {error}");
        None
    });
    let live = live.unwrap_or_default();
    let Some((generation, facts)) = wanted.filter(|(generation, _)| *generation == live) else {
        return live;
    };
    match stored(services, lineage, generation, facts).await {
        Ok(bundle) if !services.output.is_live(lineage, live, &bundle) => {
            tracing::warn!(%lineage, generation = %live, "the published files have been changed");
            Generation::default()
        }
        Ok(bundle) => {
            let names = &bundle.facts().identifiers;
            services.output.restore_links(lineage, names);
            live
        }
        // Without a stored pair the files cannot be restored.
        Err(_) => live,
    }
}

/// The pair of a stored generation, loadable and not expired.
pub(crate) async fn stored(
    services: &Services,
    lineage: &Lineage,
    generation: Generation,
    facts: &Facts,
) -> Result<Bundle, ManageError> {
    let stored = services.store.bundle(lineage, generation).await?;
    let missing =
        || ManageError::Halted(format!("no pair of generation {generation} in the store"));
    let (key, chain) = stored.ok_or_else(missing)?;
    let (names, now) = (&facts.identifiers, services.clock.now());
    let pair = services.bundles.bundle(lineage, key, &chain, names, now);
    pair.map_err(ManageError::Stored)
}

/// The servers of `certificate` that no configured endpoint verifies, by name. A copy is a
/// file for a server, not a server.
pub(super) fn servers_without_endpoint(certificate: &Certificate) -> BTreeSet<String> {
    if !certificate.endpoints.is_empty() {
        return BTreeSet::new();
    }
    let lineage = &certificate.wanted.lineage;
    let targets = certificate.targets.iter();
    let servers = targets.filter(|target| target.copy_of(lineage).is_none());
    servers.map(|target| target.name()).collect()
}

/// Why a server that was seen before no longer shows where it listens: it is gone, or hangs.
pub(super) async fn silence(
    certificate: &Certificate,
    server: &str,
    delivery: &Delivery,
) -> String {
    for (_, target) in certificate.named_targets() {
        if target.name() == server
            && let Some(obstacle) = target.obstacle(delivery).await
        {
            return obstacle;
        }
    }
    SILENT.to_owned()
}

/// A visible reason why a server cannot load the pair.
async fn obstacle(certificate: &Certificate, delivery: &Delivery) -> Option<String> {
    for target in &certificate.targets {
        if let Some(obstacle) = target.obstacle(delivery).await {
            return Some(obstacle);
        }
    }
    None
}
