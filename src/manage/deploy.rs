//! Deploys a generation and verifies that it is served: check, switch, reload,
//! verify, and back to what was served before when that fails. It is tried again
//! by the next pass; it never leads to a second order.

use std::time::Duration;

use super::error::ManageError;
use super::services::{Certificate, Services};
use super::session::Pass;
use crate::certificate::{Bundle, Facts, Freshness};
use crate::deploy::verify::{ServedAt, Verification, VerifyError};
use crate::deploy::{Delivery, DeployError, Target};
use crate::identifier::Lineage;
use crate::record::{Failures, Generation, Served, TakenBack};
use crate::renew::window::latest;

/// How long the endpoints may go on showing the old certificate, all in all.
const PROOF_WITHIN: Duration = Duration::from_secs(30);

/// The output itself, in [`crate::record::Record::deployed`].
pub(super) const FILES: &str = "files";

/// A generation to deploy.
#[derive(Clone)]
struct Pair {
    generation: Generation,
    facts: Facts,
    bundle: Bundle,
}

impl Pass<'_> {
    /// Publishes, checks, applies and verifies the generation that shall be served: the
    /// newest, or an earlier one on the owner's word. What fails is rolled back while
    /// what was served before is good for long enough.
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
        let pair = Pair {
            generation,
            facts,
            bundle,
        };
        let before = self.to_go_back_to(generation).await;
        let ended = self.transact(&pair, before.as_ref()).await;
        for (_, target) in self.certificate.named_targets() {
            services.metrics.deployment(target.name(), ended.is_ok());
        }
        if let (Err(error), Some(before)) = (&ended, before)
            && services.output.live(&lineage) == Some(pair.generation)
            && error.is_about_a_server()
        {
            let hint = error.hint();
            tracing::error!(%lineage, "{error}; hint: {hint}");
            self.take_back(&before).await;
            self.note_taken_back(pair.generation, error.to_string());
        }
        ended?;
        self.record.handover = Failures::default();
        (self.record.going_back_to, self.record.taken_back) = (None, None);
        self.save(None).await
    }

    async fn transact(&mut self, pair: &Pair, before: Option<&Pair>) -> Result<(), ManageError> {
        let carefully = before.is_some();
        if carefully {
            // A server that could not be reloaded, or would not start again as it is, is
            // found before anything is touched.
            let delivery = self.delivery(pair, false);
            for (_, target) in self.certificate.named_targets() {
                target.check(&delivery).await?;
            }
        }
        let going_back_to = before.map(|before| before.generation);
        if self.record.going_back_to != going_back_to {
            self.record.going_back_to = going_back_to;
            self.save(None).await?;
        }
        self.publish(pair)?;
        self.reload(pair, carefully).await?;
        self.verify(pair).await
    }

    /// Makes its files live.
    fn publish(&mut self, pair: &Pair) -> Result<(), ManageError> {
        let Services {
            output, metrics, ..
        } = self.services;
        let published = output.publish(&self.record.lineage, pair.generation, &pair.bundle);
        metrics.deployment(FILES, published.is_ok());
        published?;
        let deployed = &mut self.record.deployed;
        deployed.insert(FILES.to_owned(), pair.generation);
        Ok(())
    }

    /// Reloads each target that has not been seen to serve the pair. With nothing to go
    /// back to, one that fails holds up no other.
    async fn reload(&mut self, pair: &Pair, carefully: bool) -> Result<(), ManageError> {
        let delivery = self.delivery(pair, !carefully);
        let mut failed: Option<DeployError> = None;
        for (name, target) in self.certificate.named_targets() {
            let reloaded = self.record.deployed.get(&name) == Some(&pair.generation);
            if reloaded && self.all_served(pair.generation) {
                continue;
            }
            self.phase(&format!("telling {name} to load it"));
            match reload_one(target.as_ref(), &delivery).await {
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
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    fn delivery(&self, pair: &Pair, urgent: bool) -> Delivery {
        let lineage = self.lineage().clone();
        Delivery {
            live: self.services.output.live_path(&lineage),
            lineage,
            names: pair.facts.identifiers.clone(),
            generation: pair.generation,
            fingerprint: pair.facts.fingerprint.clone(),
            not_after: pair.facts.not_after,
            urgent,
        }
    }

    /// What is live now, or was before a switch that was never verified, if servers may
    /// go on with it for a good while: then a deployment that fails is no reason to leave
    /// any of them with something else. A failure that lasts must not let it expire, so
    /// that from its last tenth on the newest stays, even where a server cannot load it.
    async fn to_go_back_to(&self, generation: Generation) -> Option<Pair> {
        if self.certificate.targets.is_empty() {
            return None;
        }
        let (services, lineage) = (self.services, self.lineage());
        let before = match services.output.live(lineage)? {
            live if live == generation => self.record.going_back_to?,
            live => live,
        };
        if before == generation || before == Generation::default() {
            return None;
        }
        let (key, chain) = services.store.bundle(lineage, before).await.ok()??;
        let (facts, now) = (Facts::of_chain(&chain).ok()?, self.now());
        if latest(&facts) <= now {
            return None;
        }
        let names = &facts.identifiers;
        let bundle = Bundle::new(key, &chain, names, now, Freshness::Stored).ok()?;
        Some(Pair {
            generation: before,
            facts,
            bundle,
        })
    }

    /// Makes `before` live again, for every server that has loaded another. What
    /// fails here is shown; the failure that led here is the one to act on.
    async fn take_back(&mut self, before: &Pair) {
        let lineage = self.lineage().clone();
        tracing::warn!(%lineage, generation = %before.generation, "the hand-over has failed: the generation that was served before goes live again");
        let output = &self.services.output;
        let published = output.publish(&lineage, before.generation, &before.bundle);
        if let Err(error) = published {
            tracing::error!(%lineage, "it could not be published again: {error}");
            return;
        }
        let deployed = &mut self.record.deployed;
        deployed.insert(FILES.to_owned(), before.generation);
        // Each server, also the one that failed: what it has loaded is not known.
        for (name, _) in self.certificate.named_targets() {
            deployed.insert(name, Generation::default());
        }
        for served in self.record.served.values_mut() {
            served.generation = Generation::default();
        }
        let reloaded = self.reload(before, false).await;
        let verified = self.verify(before).await;
        match reloaded.and(verified) {
            Ok(()) if self.record.served.is_empty() => {
                tracing::info!(%lineage, generation = %before.generation, "it was handed over again");
            }
            Ok(()) => {
                tracing::info!(%lineage, generation = %before.generation, "it is proven served again");
            }
            Err(error) => {
                tracing::error!(%lineage, "it is not proven served again: {error}; hint: {}", error.hint());
            }
        }
    }

    /// Each try costs a server two reloads: one that has failed in the same way before
    /// is not hurried.
    fn note_taken_back(&mut self, generation: Generation, why: String) {
        let known = self.record.taken_back.take();
        let known = known.filter(|known| known.generation == generation && known.why == why);
        self.record.taken_back = Some(TakenBack {
            generation,
            why,
            times: known.map_or(1, |known| known.times.saturating_add(1)),
        });
    }

    fn all_served(&self, generation: Generation) -> bool {
        let mut served = self.record.served.values();
        served.all(|served| served.generation == generation)
    }

    async fn verify(&mut self, pair: &Pair) -> Result<(), ManageError> {
        let (services, certificate) = (self.services, self.certificate);
        let places = places(certificate).await;
        let listens = |known: &&String| places.iter().any(|place| place.to_string() == **known);
        if let Some(gone) = self.record.served.keys().find(|known| !listens(known)) {
            return Err(VerifyError::gone(gone, self.lineage()).into());
        }
        if places.is_empty() && !certificate.targets.is_empty() {
            tracing::warn!(lineage = %self.lineage(), "nothing proves that it is served: name an endpoint with --verify HOST:PORT");
        }
        let begun = services.clock.stopwatch();
        let verification = Verification {
            verifier: services.prover.as_ref(),
            wanted: &pair.facts.fingerprint,
            clock: services.clock.as_ref(),
            end: begun + PROOF_WITHIN,
        };
        for place in places {
            self.phase(&format!("waiting for {place} to serve it"));
            if let Err(error) = verification.verify(&place, &pair.facts.identifiers).await {
                // What was seen there before is seen there no more.
                let known = self.record.served.entry(place.to_string());
                known.and_modify(|served| served.generation = Generation::default());
                let obstacle = obstacle(certificate, &self.delivery(pair, false)).await;
                let waited = services.clock.stopwatch().saturating_sub(begun);
                return Err(error.after(waited).because(obstacle).into());
            }
            self.note_served(&place, pair).await?;
        }
        Ok(())
    }

    async fn note_served(&mut self, place: &ServedAt, pair: &Pair) -> Result<(), ManageError> {
        let seen = Served {
            generation: pair.generation,
            at: self.now(),
            not_after: Some(pair.facts.not_after),
        };
        self.record.served.insert(place.to_string(), seen);
        let is_new = self.record.going_back_to != Some(pair.generation);
        if is_new && self.all_served(pair.generation) {
            self.record.going_back_to = None;
        }
        self.save(None).await
    }
}

async fn reload_one(target: &dyn Target, delivery: &Delivery) -> Result<(), DeployError> {
    target.check(delivery).await?;
    target.apply(delivery).await
}

/// The generation whose files stand where consumers read them: what is on disk
/// counts, not what was once written there.
pub(super) async fn on_disk(
    services: &Services,
    lineage: &Lineage,
    wanted: Option<(Generation, &Facts)>,
) -> Generation {
    let live = services.output.live(lineage).unwrap_or_default();
    let Some((generation, facts)) = wanted.filter(|(generation, _)| *generation == live) else {
        return live;
    };
    match stored(services, lineage, generation, facts).await {
        Ok(bundle) if !services.output.is_live(lineage, live, &bundle) => {
            tracing::warn!(%lineage, generation = %live, "the published files are not as they were written");
            Generation::default()
        }
        // With nothing to mend them from, they are left as they are.
        _ => live,
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
    let missing = || ManageError::Halted(format!("the pair {generation} is missing in the store"));
    let (key, chain) = stored.ok_or_else(missing)?;
    let (names, now) = (&facts.identifiers, services.clock.now());
    let pair = services.known.bundle(lineage, key, &chain, names, now);
    pair.map_err(ManageError::Stored)
}

/// Where `certificate` must be seen; none when the user named no
/// endpoint and no target shows where it listens.
pub(super) async fn places(certificate: &Certificate) -> Vec<ServedAt> {
    if !certificate.endpoints.is_empty() {
        return certificate
            .endpoints
            .iter()
            .cloned()
            .map(ServedAt::Named)
            .collect();
    }
    let mut found = Vec::new();
    for target in &certificate.targets {
        if let Some(addresses) = target.listens_on().await {
            found.push(ServedAt::Found(target.name().to_owned(), addresses));
        }
    }
    found
}

/// What keeps a server from loading the pair, as far as it is to be seen.
async fn obstacle(certificate: &Certificate, delivery: &Delivery) -> Option<String> {
    for target in &certificate.targets {
        if let Some(obstacle) = target.obstacle(delivery).await {
            return Some(obstacle);
        }
    }
    None
}
