//! Revokes stored certificates. The intent is stored first; unless the operator wants it at
//! once, the CA is asked only when a replacement with a new key is verified as served
//! ([`crate::renew::decide::Next::Revoke`]). Nothing is ordered or deployed here.

use std::collections::BTreeMap;

use super::ca_state;
use super::error::ManageError;
use super::order::RecordJournal;
use super::rollback::nothing_issued;
use super::session::Pass;
use crate::acme::RevocationRequest;
use crate::certificate::{Facts, Secret, SigningRequest, certified_key};
use crate::record::{Failures, Generation, Issued, Revocation, RevocationReason, ToRevoke};
use crate::renew::policy::REVOCATION_PAUSE;

impl Pass<'_> {
    /// Stores which certificates are to be revoked, or continues an earlier request.
    ///
    /// # Errors
    /// When nothing is issued, or the certificate has expired.
    pub(super) async fn intend_revocation(
        &mut self,
        reason: RevocationReason,
        at_once: bool,
    ) -> Result<(), ManageError> {
        let issued = self.record.issued.clone();
        let issued = issued.ok_or_else(|| nothing_issued(self.lineage()))?;
        if let Some(pending) = &mut self.record.revocation {
            (pending.reason, pending.at_once) = (reason, at_once);
            pending.failures = Failures::default();
            return self.save(None).await;
        }
        if self.record.revoked.contains_key(&issued.generation) {
            return Ok(());
        }
        let certificates = self.to_revoke(&issued, reason).await?;
        let request = self.certificate.wanted.request.as_ref();
        let request = request.map(SigningRequest::in_place_of_key);
        let newest = certificates.get(&issued.generation);
        if !at_once && request.is_some() && newest.map(|one| &one.key_pem) == request.as_ref() {
            let lineage = self.lineage();
            return Err(ManageError::Impossible {
                why: format!(
                    "nothing was revoked: {lineage} has the key of a signing request, and its replacement needs another key"
                ),
                hint: format!(
                    "certs csr FILE --name {lineage} --force with the request of a new key, and then certs revoke --ca {} --cert-file CERT with the cert.pem of archive/{lineage}/{}; or certs revoke {lineage} --now",
                    issued.ca, issued.generation
                ),
            });
        }
        let has_key = |key: &Secret| certificates.values().any(|one| one.key_pem == *key);
        let order = &mut self.record.order;
        let dropped = order.take_if(|order| has_key(&order.key_pem));
        self.record.revocation = Some(Revocation {
            reason,
            generation: issued.generation,
            ca: issued.ca,
            certificates,
            at_once,
            failures: Failures::default(),
        });
        self.save(None).await?;
        if let Some(order) = dropped {
            ca_state::refund(self.services, &order).await;
        }
        Ok(())
    }

    /// Gives up a revocation that the CA has not done. A replacement that was ordered stays.
    ///
    /// # Errors
    /// When none is pending.
    pub(super) async fn cancel_revocation(&mut self) -> Result<(), ManageError> {
        if self.record.revocation.take().is_some() {
            return self.save(None).await;
        }
        let lineage = self.lineage();
        Err(ManageError::Impossible {
            why: format!("no revocation of {lineage} is pending: nothing was changed"),
            hint: format!("certs status {lineage} shows what is revoked, which is final"),
        })
    }

    /// The newest certificate, the one that a rollback serves, and after a compromise every
    /// stored one with the same key.
    async fn to_revoke(
        &self,
        issued: &Issued,
        reason: RevocationReason,
    ) -> Result<BTreeMap<Generation, ToRevoke>, ManageError> {
        let (lineage, newest, now) = (self.lineage(), issued.generation, self.now());
        let pinned = self.record.pinned.as_ref().map(|pinned| pinned.generation);
        let oldest = newest.0.saturating_sub(Generation::KEPT).max(1);
        let mut found = BTreeMap::new();
        let mut key: Option<Secret> = None;
        for generation in (oldest..=newest.0).rev().map(Generation) {
            let stored = self.services.store.bundle(lineage, generation).await?;
            let Some((key_pem, chain_pem)) = stored else {
                continue;
            };
            let same_key = *key.get_or_insert_with(|| key_pem.clone()) == key_pem;
            let is_compromised = same_key && reason == RevocationReason::KeyCompromise;
            let is_meant = generation == newest || Some(generation) == pinned || is_compromised;
            let facts = Facts::of_chain(&chain_pem).map_err(ManageError::Stored);
            let is_revoked = self.record.revoked.contains_key(&generation);
            if is_meant && !is_revoked && facts?.not_after > now {
                found.insert(generation, ToRevoke { chain_pem, key_pem });
            }
        }
        if found.contains_key(&newest) {
            return Ok(found);
        }
        let not_after = issued.facts.not_after;
        let why = match not_after > now {
            true => format!("generation {newest} is not in the store"),
            false => format!("generation {newest} expired at {not_after}: it needs no revocation"),
        };
        Err(ManageError::Impossible {
            why: format!("nothing was revoked: {why}"),
            hint: format!("certs renew {lineage} --force replaces it"),
        })
    }

    /// Has the CA revoke what is to be revoked; each certificate is noted when that is done.
    ///
    /// # Errors
    /// The CA's; the next try is an hour later, or with the next command.
    pub(super) async fn revoke(&mut self) -> Result<(), ManageError> {
        let Some(pending) = self.record.revocation.clone() else {
            return Ok(());
        };
        self.phase("revoking");
        for (generation, one) in &pending.certificates {
            let is_main = *generation == pending.generation;
            let (now, facts) = (self.now(), Facts::of_chain(&one.chain_pem));
            if facts.is_ok_and(|facts| facts.not_after <= now) {
                // After a long outage: nothing accepts it any more.
                continue;
            }
            match self.revoke_one(&pending, one).await {
                Ok(()) => {
                    // First, so that a crash repeats it.
                    if let Some(key) = certified_key(&one.chain_pem) {
                        ca_state::note_revoked_key(self.services.store.as_ref(), &key).await?;
                    }
                    let (lineage, reason) = (self.lineage(), pending.reason);
                    tracing::info!(%lineage, "{} has revoked generation {generation} ({reason})", pending.ca);
                    self.record
                        .note_revoked(*generation, self.services.clock.now());
                }
                // It may be another CA's.
                Err(error) if !is_main && error.is_verdict() => {
                    tracing::warn!(lineage = %self.lineage(), "generation {generation} is not revoked: {error}");
                    if let Some(pending) = &mut self.record.revocation {
                        pending.certificates.remove(generation);
                    }
                }
                Err(error) => {
                    self.note_failed_revocation(&error).await;
                    return Err(error);
                }
            }
            self.save(None).await?;
        }
        self.record.revocation = None;
        self.save(None).await
    }

    async fn revoke_one(
        &mut self,
        pending: &Revocation,
        one: &ToRevoke,
    ) -> Result<(), ManageError> {
        let (certificate, lineage) = (self.certificate, self.lineage());
        let mut cas = certificate.cas();
        let issuer = cas.find_map(|(ca, issuer)| (*ca == pending.ca).then_some(issuer));
        let issuer = issuer.ok_or_else(|| ManageError::Impossible {
            why: format!("{} has issued the certificate, and is configured no more", pending.ca),
            hint: format!(
                "certs revoke --ca {} --cert-file CERT --key-file KEY with cert.pem and privkey.pem of archive/{lineage}/{}, and then certs revoke {lineage} --cancel",
                pending.ca, pending.generation
            ),
        })?;
        // The key's own signature proves the compromise to the CA.
        let is_compromised = pending.reason == RevocationReason::KeyCompromise
            && one.key_pem.signing_request().is_none();
        let request = RevocationRequest {
            chain_pem: &one.chain_pem,
            reason: pending.reason,
            key_pem: is_compromised.then_some(&one.key_pem),
        };
        let mut journal = RecordJournal::new(self, &pending.ca);
        Ok(issuer.revoke(&request, &mut journal).await?)
    }

    async fn note_failed_revocation(&mut self, error: &ManageError) {
        let now = self.now();
        if let Some(pending) = &mut self.record.revocation {
            let failures = &mut pending.failures;
            failures.count = failures.count.saturating_add(1);
            failures.last = Some(error.to_string());
            failures.noted = Some(now);
            failures.retry_at = Some(now + REVOCATION_PAUSE);
        }
        self.save_or_warn().await;
    }
}
