//! One pass over one certificate: under its lease, from what the record says
//! to a certificate that is issued, handed over and proven.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::again;
use super::ca_state::{self, waits_until};
use super::deploy::{FILES, deploy, on_disk, places};
use super::order::{Plan, refresh};
use super::partial::{self, order};
use super::skew::{self, Corrected};
use super::status::{left_out, status};
use super::turns::Turn;
use super::{Certificate, ManageError, Outcome, Parts, Wanted};
use crate::certificate::Bundle;
use crate::record::{Failures, Fallback, Generation, PendingOrder, Record, Revision, Served};
use crate::renew::backoff::after_handover_failure;
use crate::renew::decide::{self, HeldUp, Next, next};
use crate::renew::fallback::Choice;
use crate::time::{Clock, Timestamp};

/// Let's Encrypt's orders live for seven days.
const OLDEST_ORDER: Duration = Duration::from_secs(3 * 86_400);

/// A record held under its lease, with the revision to save it against.
pub struct Held {
    /// The record as last saved.
    pub record: Record,
    revision: Revision,
}

impl Held {
    /// Makes the record durable as it is now.
    ///
    /// # Errors
    /// Of the store, a conflict among them.
    pub async fn save(
        &mut self,
        parts: &Parts,
        bundle: Option<&Bundle>,
    ) -> Result<(), ManageError> {
        let saved = parts.store.save(&self.record, self.revision, bundle);
        self.revision = saved.await?;
        if let Some(board) = &parts.board {
            let (now, random) = (parts.clock.now(), parts.random.as_ref());
            board.update(status(&self.record, now, random));
        }
        Ok(())
    }

    /// Makes a failure durable. That failure is what the user must hear of, not
    /// that the disk which caused it cannot keep a note of it.
    pub(super) async fn save_or_warn(&mut self, parts: &Parts) {
        if let Err(error) = self.save(parts, None).await {
            tracing::warn!(lineage = %self.record.lineage, "the failure could not be noted: {error}");
        }
    }
}

/// When a pass orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Urge {
    /// When it is due and not backing off.
    Due,
    /// When it is due; the user asked, so an earlier failure does not delay it
    /// unless the CA itself said when to come back.
    Asked,
    /// Now, once.
    Force,
    /// Never: what there is, is handed over once more.
    Reload,
    /// Never: this generation, or the one before, is handed over and stays.
    Rollback(Option<Generation>),
}

impl Urge {
    /// Whether it is about handing over alone.
    #[must_use]
    pub fn never_orders(self) -> bool {
        matches!(self, Self::Reload | Self::Rollback(_))
    }
}

/// Does what `wanted` needs until nothing is due.
///
/// # Errors
/// The first failure; what was reached until then is stored, and the next pass
/// goes on from there.
pub async fn pass(
    parts: &Parts,
    certificate: &Certificate,
    urge: Urge,
) -> Result<Outcome, ManageError> {
    let ended = pass_in_turn(parts, certificate, urge, Turn::default()).await;
    ended.map(|(outcome, _)| outcome)
}

/// The same among others: its turn is given back while it hands over. With the record
/// as it is then.
///
/// # Errors
/// Those of [`pass`].
pub async fn pass_in_turn(
    parts: &Parts,
    certificate: &Certificate,
    urge: Urge,
    turn: Turn,
) -> Result<(Outcome, Record), ManageError> {
    let _lease = parts.store.lease(&certificate.wanted.lineage).await?;
    // Who meets a held lease stops above, and does not carry its state about.
    Box::pin(under_lease(parts, certificate, urge, turn)).await
}

async fn under_lease(
    parts: &Parts,
    certificate: &Certificate,
    urge: Urge,
    mut turn: Turn,
) -> Result<(Outcome, Record), ManageError> {
    let clock = Arc::new(Corrected::new(parts.clock.clone(), certificate));
    let parts = &Parts {
        clock: clock.clone(),
        ..parts.clone()
    };
    let mut held = Box::pin(load(parts, certificate, urge, &clock)).await?;
    let outcome = match urge.never_orders() {
        true => {
            Box::pin(hand_over_again(
                parts,
                certificate,
                &mut held,
                urge,
                &mut turn,
            ))
            .await?
        }
        false => work(parts, certificate, &mut held, urge, &mut turn).await?,
    };
    Ok((outcome, held.record))
}

/// Does what the record asks for until nothing is due.
async fn work(
    parts: &Parts,
    certificate: &Certificate,
    held: &mut Held,
    urge: Urge,
    turn: &mut Turn,
) -> Result<Outcome, ManageError> {
    let mut issued = false;
    if urge == Urge::Force {
        let plan = Plan {
            from: Choice::First,
            names: held.record.identifiers.clone(),
            heals: false,
            replaces: {
                let (record, now) = (&held.record, parts.clock.now());
                decide::replaces(record, &record.ca, &record.identifiers, now)
            },
            urgent: false,
            urge,
        };
        Box::pin(order(parts, certificate, held, plan)).await?;
        issued = true;
    }
    // What could not be handed over is told in the end: first comes what else is
    // due, or a server that is down would keep it from being renewed.
    let mut stuck: Option<ManageError> = None;
    loop {
        let now = parts.clock.now();
        match next(&held.record, now, parts.random.as_ref()) {
            // One order a pass, whatever the CA says of its newest certificate.
            Next::Issue { .. } if issued => {
                return stuck.map_or_else(|| outcome(&held.record, issued, now, now), Err);
            }
            Next::Issue {
                from,
                names,
                heals,
                replaces,
                urgent,
            } => {
                let plan = Plan {
                    from,
                    names,
                    heals,
                    replaces,
                    urgent,
                    urge,
                };
                turn.take_again().await;
                // Few passes order: the others do not carry its state about.
                let ordered = Box::pin(order(parts, certificate, held, plan)).await;
                if let (Err(_), Some(stuck)) = (&ordered, &stuck) {
                    tracing::error!(lineage = %held.record.lineage, "{stuck}; hint: {}", stuck.hint());
                }
                match ordered {
                    Ok(()) => issued = true,
                    Err(error) if skew::is_slight(&error) => {
                        let until = waits_until(&error).unwrap_or(now);
                        return outcome(&held.record, issued, now, until);
                    }
                    Err(error) if heals => {
                        Box::pin(partial::later(parts, held, error, now)).await?;
                    }
                    Err(error) => return Err(error),
                }
            }
            Next::RefreshWindow => {
                turn.take_again().await;
                Box::pin(refresh(parts, certificate, held)).await?;
            }
            // Whoever stored it was killed before the CA could be asked.
            Next::Draw(_) if has_a_window(&held.record) => {
                turn.take_again().await;
                Box::pin(refresh(parts, certificate, held)).await?;
            }
            Next::Draw(renewal) => {
                if let Some(issued) = held.record.issued.as_mut() {
                    issued.renewal = Some(renewal);
                }
                held.save(parts, None).await?;
            }
            Next::Deploy => {
                let handed = Box::pin(hand_over(parts, certificate, held, turn)).await;
                stuck = handed.err();
            }
            Next::Wait(until) => {
                return match (stuck, decide::held_up(&held.record, now)) {
                    (Some(error), _) => Err(error),
                    (None, Some(held_up)) => Err(waiting(&held.record, held_up)),
                    (None, None) => outcome(&held.record, issued, now, until),
                };
            }
            Next::Halt(reason) => return Err(ManageError::Halted(format!("{reason:?}"))),
        }
    }
}

/// Whether a CA can be asked when to renew it.
fn has_a_window(record: &Record) -> bool {
    let issued = record.issued.as_ref();
    issued.is_some_and(|issued| issued.facts.renewal_id.is_some())
}

/// Something is due that has failed before: that is no success, though there
/// is nothing to do now.
fn waiting(record: &Record, held_up: HeldUp) -> ManageError {
    match held_up {
        HeldUp::Issuance { until } => ManageError::BackingOff {
            until,
            last: last_failure(record).unwrap_or_default(),
        },
        HeldUp::Handover { until } => ManageError::NotHandedOver {
            until,
            last: record.handover.last.clone().unwrap_or_default(),
        },
    }
}

/// What is served `now`, and `until` when nothing is due.
fn outcome(
    record: &Record,
    issued: bool,
    now: Timestamp,
    until: Timestamp,
) -> Result<Outcome, ManageError> {
    let newest = record.issued.as_ref();
    let served = record.to_be_served(now);
    let (newest, (generation, facts)) =
        newest.zip(served).ok_or_else(|| ManageError::NoWayBack {
            lineage: record.lineage.clone(),
            why: "nothing is issued yet".into(),
        })?;
    let renewal = newest.renewal.as_ref();
    Ok(Outcome {
        generation,
        issued,
        not_after: facts.not_after,
        next: until,
        renewal: renewal.map(|renewal| decide::due(newest, renewal)),
        left_out: left_out(record),
    })
}

async fn load(
    parts: &Parts,
    certificate: &Certificate,
    urge: Urge,
    clock: &Corrected,
) -> Result<Held, ManageError> {
    let wanted = &certificate.wanted;
    let (mut record, revision) = match parts.store.load(&wanted.lineage).await? {
        Some(stored) => stored,
        None => {
            let fresh = Record::new(
                wanted.lineage.clone(),
                wanted.identifiers.clone(),
                wanted.ca.clone(),
            );
            (fresh, Revision::default())
        }
    };
    clock.knows(&record);
    let changed = !asks_the_same(&record, wanted);
    if changed {
        // What failed was something else.
        record.failures = Failures::default();
    }
    record.identifiers.clone_from(&wanted.identifiers);
    record.ca.clone_from(&wanted.ca);
    record.profile.clone_from(&wanted.profile);
    record.fallback = second_choice(&record, certificate, changed);
    partial::reconcile(&mut record, wanted);
    let now = age_at(&record, certificate, clock).await;
    let dropped = record
        .order
        .take_if(|order| !is_worth_resuming(order, certificate, now));
    if urge.never_orders() {
        record.handover.retry_at = None;
    } else if urge != Urge::Due {
        unhold(&mut record);
    }
    let mut deployed = BTreeMap::new();
    for (name, target) in certificate.named_targets() {
        let known = record.deployed.get(&name).copied().unwrap_or_default();
        // Its copy may have been taken away meanwhile.
        let gone = known != Generation::default() && target.is_gone(&wanted.lineage).await;
        deployed.insert(name, if gone { Generation::default() } else { known });
    }
    let to_be_served = record.to_be_served(now);
    let files = on_disk(parts, &wanted.lineage, to_be_served).await;
    let noted = record.deployed.get(FILES) == Some(&files);
    if to_be_served.is_some_and(|(generation, _)| generation != files) && !noted {
        // Whoever has read the files meanwhile has read others.
        deployed
            .values_mut()
            .for_each(|on| *on = Generation::default());
        for served in record.served.values_mut() {
            served.generation = Generation::default();
        }
    }
    // What is there and was not noted is handed over once more: whoever wrote it
    // was killed, perhaps before it was flushed.
    let files = if noted { files } else { Generation::default() };
    deployed.insert(FILES.to_owned(), files);
    record.deployed = deployed;
    let places = places(certificate).await;
    let places: Vec<String> = places.iter().map(ToString::to_string).collect();
    record.served.retain(|place, _| places.contains(place));
    for place in places {
        record.served.entry(place).or_insert_with(|| Served {
            generation: Generation::default(),
            at: parts.clock.now(),
            not_after: None,
        });
    }
    let mut held = Held { record, revision };
    if changed || dropped.is_some() {
        // What is shown, and renewed without a configuration, is what was asked last.
        held.save(parts, None).await?;
    }
    if let Some(order) = dropped {
        // Once, that is after it is gone for good.
        let (nothing, now) = (BTreeSet::new(), parts.clock.now());
        Box::pin(ca_state::settle_failed(parts, &order, &nothing, now)).await;
    }
    Ok(held)
}

/// The CA that stands in, with what has failed there: at the same one, for the
/// same names.
fn second_choice(record: &Record, certificate: &Certificate, changed: bool) -> Option<Fallback> {
    let ca = &certificate.fallback.as_ref()?.ca;
    let known = record.fallback.clone();
    let known = known.filter(|known| known.ca == *ca && !changed);
    Some(known.unwrap_or_else(|| Fallback {
        ca: ca.clone(),
        failures: Failures::default(),
    }))
}

/// What the last order ended with, wherever it was tried last.
pub(super) fn last_failure(record: &Record) -> Option<String> {
    let first = record.failures.last.clone();
    let second = record.fallback.as_ref();
    match (
        first,
        second.and_then(|second| second.failures.last.clone()),
    ) {
        (Some(first), Some(second)) => Some(format!("{first}; and in its place: {second}")),
        (first, second) => first.or(second),
    }
}

/// When the order under way, if it looks old, is looked at: a clock that is ahead
/// must not give up one that may have come to a certificate already.
async fn age_at(record: &Record, certificate: &Certificate, clock: &dyn Clock) -> Timestamp {
    let now = clock.now();
    match &record.order {
        Some(order) if now.since(order.begun) >= OLDEST_ORDER => {
            skew::there(certificate.issuer.as_ref(), clock).await
        }
        _ => now,
    }
}

/// Whether an order under way is for what is wanted, and not so old that the CA
/// has forgotten it or fails at it for good.
fn is_worth_resuming(order: &PendingOrder, certificate: &Certificate, now: Timestamp) -> bool {
    let (wanted, age) = (&certificate.wanted, now.since(order.begun));
    let second = certificate.fallback.as_ref();
    let known = order.ca == wanted.ca || second.is_some_and(|second| second.ca == order.ca);
    partial::fits(&order.identifiers, wanted) && known && age < OLDEST_ORDER
}

/// Whether the earlier orders of `record` were for what is wanted now.
pub(super) fn asks_the_same(record: &Record, wanted: &Wanted) -> bool {
    record.identifiers == wanted.identifiers
        && record.ca == wanted.ca
        && record.profile == wanted.profile
}

/// What a user asks for by hand waits for no back-off of ours and for no
/// maintenance window; only for what the CA itself has said.
fn unhold(record: &mut Record) {
    let second = record.fallback.as_mut().map(|second| &mut second.failures);
    for failures in [&mut record.failures].into_iter().chain(second) {
        if !failures.asked_to_wait {
            failures.retry_at = None;
        }
    }
    record.handover.retry_at = None;
    if let Some(quarantine) = &mut record.quarantine
        && !quarantine.tries.asked_to_wait
    {
        quarantine.tries.retry_at = None;
    }
    if let Some(issued) = record.issued.as_mut() {
        issued.handover_at = None;
    }
}

/// Hands over once more what shall be served, whatever was seen before.
async fn hand_over_again(
    parts: &Parts,
    certificate: &Certificate,
    held: &mut Held,
    urge: Urge,
    turn: &mut Turn,
) -> Result<Outcome, ManageError> {
    let earlier = (held.record.pinned.clone(), held.record.handover.clone());
    match urge {
        Urge::Rollback(to) => again::pin(parts, held, to).await?,
        _ => held.record.pinned = None,
    }
    again::unprove(held);
    held.save(parts, None).await?;
    if held.record.issued.is_some()
        && let Err(error) = hand_over(parts, certificate, held, turn).await
    {
        if matches!(urge, Urge::Rollback(_)) {
            again::give_up(parts, held, earlier).await;
        }
        return Err(error);
    }
    let now = parts.clock.now();
    outcome(&held.record, false, now, now)
}

/// Hands over, and stores what it failed with: the next pass tries again.
async fn hand_over(
    parts: &Parts,
    certificate: &Certificate,
    held: &mut Held,
    turn: &mut Turn,
) -> Result<(), ManageError> {
    turn.give_back();
    let Err(error) = deploy(parts, certificate, held).await else {
        return Ok(());
    };
    let now = parts.clock.now();
    held.record.handover = after_handover_failure(&held.record.handover, error.to_string(), now);
    if let Some(patience) = again::patience(&held.record) {
        let handover = &mut held.record.handover;
        handover.retry_at = handover.retry_at.max(Some(now + patience));
    }
    held.save_or_warn(parts).await;
    Err(error)
}
