//! An order at one CA, from its intent to a stored generation: taken out of the ledger,
//! written down before it is sent, checked when it comes back, and its failure
//! dated so that the next pass knows when to try again.

mod failure;

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;

pub(crate) use self::failure::{failed_names, is_silence};
use self::failure::{note_failure, note_unsent};
use super::ca_state::{self, Intended, Work};
use super::issue::{Held, Urge};
use super::skew;
use super::{Certificate, ManageError, Parts, Wanted};
use crate::acme::{AcmeError, Cause, Issuer, Journal, JournalError};
use crate::certificate::{Bundle, Facts, Freshness, Secret};
use crate::identifier::Identifier;
use crate::record::{Failures, Issued, PendingOrder, Record, Renewal, Window};
use crate::renew::backoff::spread;
use crate::renew::fallback::Choice;
use crate::renew::ledger::Priority;
use crate::renew::window;
use crate::time::Timestamp;

/// What is known of an order before it is begun.
#[derive(Clone)]
pub(super) struct Plan {
    /// From whom.
    pub(super) from: Choice,
    /// For what.
    pub(super) names: BTreeSet<Identifier>,
    /// Whether it is for names alone that were left out.
    pub(super) heals: bool,
    /// The predecessor, as RFC 9773 names it.
    pub(super) replaces: Option<String>,
    /// Whether it cannot wait.
    pub(super) urgent: bool,
    /// Who asks for it.
    pub(super) urge: Urge,
}

impl Plan {
    fn intended<'o>(&'o self, record: &'o Record) -> Intended<'o> {
        Intended {
            record,
            names: &self.names,
            replaces: self.replaces.as_deref(),
            priority: match (self.urge, self.urgent) {
                (Urge::Due, false) => Priority::Routine,
                (Urge::Due, true) => Priority::Urgent,
                _ => Priority::Forced,
            },
        }
    }
}

/// The CA that an order goes to.
struct Place<'c> {
    ca: &'c str,
    issuer: &'c dyn Issuer,
    profile: Option<&'c String>,
    /// The one that it stands in for.
    instead_of: Option<&'c String>,
}

impl<'c> Place<'c> {
    fn of(certificate: &'c Certificate, from: Choice) -> Self {
        let wanted = &certificate.wanted;
        match (from, &certificate.fallback) {
            (Choice::Fallback, Some(second)) => Self {
                ca: &second.ca,
                issuer: second.issuer.as_ref(),
                // A profile is a word of the CA that offers it.
                profile: None,
                instead_of: Some(&wanted.ca),
            },
            _ => Self {
                ca: &wanted.ca,
                issuer: certificate.issuer.as_ref(),
                profile: wanted.profile.as_ref(),
                instead_of: None,
            },
        }
    }
}

/// Orders, checks and stores a new generation.
///
/// # Errors
/// What kept it from being stored; it is noted in the record.
pub(super) async fn order(
    parts: &Parts,
    certificate: &Certificate,
    held: &mut Held,
    plan: Plan,
) -> Result<(), ManageError> {
    let wanted = &certificate.wanted;
    let place = Place::of(certificate, plan.from);
    if plan.urge == Urge::Due {
        let begun = held.record.order.as_ref();
        let begun = begun.is_some_and(|order| order.ca == place.ca);
        let intended = (!begun).then(|| plan.intended(&held.record));
        ca_state::reach(parts, place.ca, place.issuer, intended).await?;
    }
    if plan.urge != Urge::Force {
        let due = skew::due_there(parts, place.ca, place.issuer, &held.record).await;
        if let Err(error @ ManageError::Acme(_)) = &due {
            note_unsent(parts, held, place.ca, error, plan.heals).await;
        }
        due?;
    }
    give_up_elsewhere(parts, held, place.ca).await?;
    let (urge, heals) = (plan.urge, plan.heals);
    let pending = match held.record.order.clone() {
        Some(pending) => pending,
        None => {
            let intended = intend(parts, wanted, held, &place, plan).await;
            if let Err(error @ ManageError::Acme(_)) = &intended {
                note_unsent(parts, held, place.ca, error, heals).await;
            }
            intended?
        }
    };
    parts.phase(&wanted.lineage, "placing the order");
    let mut ended = send(parts, &place, held, &pending).await;
    let mut pending = pending;
    if ended.as_ref().is_err_and(is_about_the_key) {
        match with_another_key(parts, wanted, held, &pending).await {
            Ok(Some(again)) => {
                pending = again;
                ended = send(parts, &place, held, &pending).await;
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(lineage = %wanted.lineage, "{error}; hint: {}", error.hint())
            }
        }
    }
    if let Err(error @ ManageError::OutOfBudget { .. }) = ended {
        // Nothing was sent: the order waits as it is written down.
        return Err(error);
    }
    parts.metrics.issuance(place.ca, ended.is_ok());
    if ended.as_ref().err().is_none_or(ca_state::is_an_answer) {
        ca_state::answers(parts, place.ca).await;
    }
    match ended {
        Ok((bundle, signed)) => {
            let there = skew::there(place.issuer, parts.clock.as_ref()).await;
            let sent = held.record.order.as_ref();
            ca_state::settle_issued(parts, &pending, sent, there).await;
            settle(parts, &place, held, &bundle, urge, signed).await?;
            parts.known.accept(&wanted.lineage, &bundle);
            refresh(parts, certificate, held).await
        }
        Err(error) => {
            let now = parts.clock.now();
            // Only what it has judged was counted by its clock.
            let there = match ca_state::is_an_answer(&error) {
                true => skew::there(place.issuer, parts.clock.as_ref()).await,
                false => now,
            };
            note_failure(parts, held, &pending, &error, heals, (now, there)).await;
            Err(error)
        }
    }
}

/// An order at another CA comes to nothing: there is one at a time.
async fn give_up_elsewhere(parts: &Parts, held: &mut Held, ca: &str) -> Result<(), ManageError> {
    let Some(other) = held.record.order.take_if(|order| order.ca != ca) else {
        return Ok(());
    };
    held.save(parts, None).await?;
    let (nothing, now) = (BTreeSet::new(), parts.clock.now());
    ca_state::settle_failed(parts, &other, &nothing, now).await;
    Ok(())
}

/// Takes `order` to a certificate that was checked, and says when it was signed.
async fn send(
    parts: &Parts,
    place: &Place<'_>,
    held: &mut Held,
    order: &PendingOrder,
) -> Result<(Bundle, Timestamp), ManageError> {
    let mut journal = RecordJournal::new(parts, held, place.ca);
    let answered = place.issuer.issue(order.clone(), &mut journal).await;
    let chain = answered.map_err(own_refusal)?;
    bundle(parts, place.issuer, held, order, &chain).await
}

/// What our own ledger has against it, which the journal could only pass on; of
/// anything else that the journal failed with, the CA knows nothing: its order
/// is as good as before.
fn own_refusal(error: AcmeError) -> ManageError {
    let AcmeError { ca, phase, cause } = error;
    let cause = match cause {
        Cause::Journal(refusal) => match refusal.downcast::<ManageError>() {
            Ok(own) if matches!(*own, ManageError::OutOfBudget { .. }) => return *own,
            Ok(other) => Cause::Journal(other),
            Err(other) => Cause::Journal(other),
        },
        cause => cause,
    };
    AcmeError { ca, phase, cause }.into()
}

fn is_about_the_key(error: &ManageError) -> bool {
    matches!(error, ManageError::Acme(error) if error.is_about_the_key())
}

/// The order as it is written down, for a new key; `None` when it is no more.
async fn with_another_key(
    parts: &Parts,
    wanted: &Wanted,
    held: &mut Held,
    order: &PendingOrder,
) -> Result<Option<PendingOrder>, ManageError> {
    let key_pem = parts.keys.make(wanted.key).await?;
    let Some(again) = &mut held.record.order else {
        return Ok(None);
    };
    tracing::warn!(lineage = %wanted.lineage, "{} does not take the key; it gets another one, once", order.ca);
    again.key_pem = key_pem;
    let again = again.clone();
    held.save(parts, None).await?;
    Ok(Some(again))
}

async fn bundle(
    parts: &Parts,
    issuer: &dyn Issuer,
    held: &Held,
    order: &PendingOrder,
    chain: &str,
) -> Result<(Bundle, Timestamp), ManageError> {
    let names = &order.identifiers;
    let facts = Facts::of_chain(chain).ok();
    let signed = skew::when_signed(issuer, &held.record, parts.clock.as_ref(), facts.as_ref());
    let checked = Bundle::new(
        order.key_pem.clone(),
        chain,
        names,
        signed,
        Freshness::Issued,
    );
    let checked = checked.map(|bundle| (bundle, signed));
    checked.map_err(|source| ManageError::Bundle {
        ca: order.ca.clone(),
        source,
    })
}

/// Stores the key and the intent before anything is sent.
async fn intend(
    parts: &Parts,
    wanted: &Wanted,
    held: &mut Held,
    place: &Place<'_>,
    plan: Plan,
) -> Result<PendingOrder, ManageError> {
    let kept = kept_key(parts, wanted, &held.record).await?;
    let kept = match kept {
        Some(_) if is_called_back(&held.record) => {
            tracing::warn!(lineage = %wanted.lineage, "the CA calls it back, perhaps for its key: reuse_key is not obeyed this once");
            None
        }
        kept => kept,
    };
    let key_pem = match kept {
        Some(key) => key,
        None => parts.keys.make(wanted.key).await?,
    };
    let intended = plan.intended(&held.record);
    let counted = ca_state::spend(parts, place.ca, place.issuer, intended).await?;
    let pending = PendingOrder {
        ca: place.ca.to_owned(),
        identifiers: plan.names,
        profile: place.profile.cloned(),
        key_pem,
        url: None,
        replaces: plan.replaces,
        begun: parts.clock.now(),
        counted,
    };
    held.record.order = Some(pending.clone());
    if let Err(error) = held.save(parts, None).await {
        let (nothing, now) = (BTreeSet::new(), parts.clock.now());
        ca_state::settle_failed(parts, &pending, &nothing, now).await;
        return Err(error);
    }
    Ok(pending)
}

/// Whether the window lay in the past already when its instant was drawn: that
/// is how a CA tells of a certificate that it will revoke.
fn is_called_back(record: &Record) -> bool {
    let renewal = record
        .issued
        .as_ref()
        .and_then(|issued| issued.renewal.as_ref());
    renewal.is_some_and(|renewal| {
        let window = renewal.window.as_ref();
        window.is_some_and(|window| window.end <= renewal.at)
    })
}

/// The newest certificate's key, where the user wants it kept.
async fn kept_key(
    parts: &Parts,
    wanted: &Wanted,
    record: &Record,
) -> Result<Option<Secret>, ManageError> {
    let (true, Some(issued)) = (wanted.reuse_key, &record.issued) else {
        return Ok(None);
    };
    let stored = parts
        .store
        .bundle(&wanted.lineage, issued.generation)
        .await?;
    Ok(stored.map(|(key, _)| key))
}

/// Stores it, at `now`, the instant that its dates were found good at: by a clock that
/// is ahead it could not be renewed before its end.
async fn settle(
    parts: &Parts,
    place: &Place<'_>,
    held: &mut Held,
    bundle: &Bundle,
    urge: Urge,
    now: Timestamp,
) -> Result<(), ManageError> {
    let record = &mut held.record;
    let early = early(record, bundle.facts(), urge, now);
    let predecessor = record.issued.as_ref().map(|issued| &issued.facts);
    let handover_at = maintenance_window(parts, predecessor, now);
    record.issued = Some(Issued {
        generation: record
            .issued
            .as_ref()
            .map_or_else(Default::default, |issued| issued.generation)
            .next(),
        facts: bundle.facts().clone(),
        ca: place.ca.to_owned(),
        at: now,
        renewal: None,
        renewable_from: Some(window::renewable_from(
            bundle.facts(),
            now,
            parts.spacing,
            early,
        )),
        early,
        handover_at,
        instead_of: place.instead_of.cloned(),
    });
    record.order = None;
    record.pinned = None;
    let issued_for = &bundle.facts().identifiers;
    if let Some(quarantine) = &mut record.quarantine {
        quarantine
            .names
            .retain(|name, _| !issued_for.contains(name));
    }
    record.quarantine.take_if(|left| left.names.is_empty());
    record.failures = Failures::default();
    record.handover = Failures::default();
    if let Some(second) = &mut record.fallback {
        second.failures = Failures::default();
    }
    held.save(parts, Some(bundle)).await
}

/// How many certificates in a row were replaced early, the one that is replaced
/// now among them.
fn early(record: &Record, facts: &Facts, urge: Urge, now: Timestamp) -> u32 {
    let Some(issued) = record.issued.as_ref().filter(|_| urge == Urge::Due) else {
        return 0;
    };
    // From another CA, too: the next one is asked for as soon.
    let same = issued.facts.identifiers == facts.identifiers;
    let half = issued.facts.not_before + issued.facts.lifetime() / 2;
    // A short life is renewed at half of it, give or take a hundredth.
    let grace = issued.facts.lifetime() / 50;
    if same && now + grace < half {
        issued.early.saturating_add(1)
    } else {
        0
    }
}

/// When the new certificate is handed over: in the next maintenance window, if
/// its predecessor is comfortably good until then.
fn maintenance_window(
    parts: &Parts,
    predecessor: Option<&Facts>,
    now: Timestamp,
) -> Option<Timestamp> {
    let opens = parts.maintenance.as_ref()?.next_after(now)?;
    let good_until = window::latest(predecessor?);
    (opens <= good_until).then_some(opens)
}

/// Asks for the renewal window and stores the instant drawn from it. A CA that
/// does not answer leaves the share of the lifetime to decide.
pub(super) async fn refresh(
    parts: &Parts,
    certificate: &Certificate,
    held: &mut Held,
) -> Result<(), ManageError> {
    let Some(issued) = held.record.issued.clone() else {
        return Ok(());
    };
    let second = certificate.fallback.as_ref();
    let issuer = match second.filter(|second| second.ca == issued.ca) {
        Some(second) => Some(&second.issuer),
        None => Some(&certificate.issuer).filter(|_| issued.ca == held.record.ca),
    };
    let told = match (&issued.facts.renewal_id, issuer) {
        (Some(id), Some(issuer)) => window_of(parts, held, &issued.ca, issuer.as_ref(), id).await,
        (Some(_), None) => Told::Nothing,
        (None, _) => Told::NoWindows,
    };
    // The clock that it is compared with, or it would be asked again at once.
    let now = parts.clock.now();
    let (random, facts) = (parts.random.as_ref(), &issued.facts);
    let (accepted, again) = match told {
        Told::Window(suggested, again) => (
            window::accept(suggested.start, suggested.end, facts),
            Some(now + window::clamp_retry_after(again)),
        ),
        Told::Nothing => (None, Some(now + spread(REFRESH_AFTER_FAILURE, 10, random))),
        Told::NotAsked => (None, Some(now + spread(REFRESH_AFTER_SILENCE, 50, random))),
        Told::NoWindows => (None, None),
    };
    let renewal: Renewal = window::redraw(
        issued.renewal.as_ref(),
        accepted,
        again,
        facts,
        window::Moment {
            now,
            spread: parts.spread,
        },
        random,
    );
    if let Some(issued) = held.record.issued.as_mut() {
        issued.renewal = Some(renewal);
    }
    held.save(parts, None).await
}

/// What a CA has told of its window.
enum Told {
    /// It, and when to ask again.
    Window(Window, Duration),
    /// Nothing, or nothing that could be read.
    Nothing,
    /// It was not asked: whether it tells any is found out by one for all.
    NotAsked,
    /// There are none for this certificate.
    NoWindows,
}

/// RFC 9773 section 4.3.3: a temporary error waits this long.
const REFRESH_AFTER_FAILURE: Duration = Duration::from_secs(6 * 3600);
/// Who did not ask comes again when the CA may well answer.
const REFRESH_AFTER_SILENCE: Duration = Duration::from_secs(3600);

async fn window_of(
    parts: &Parts,
    held: &mut Held,
    ca: &str,
    issuer: &dyn Issuer,
    id: &str,
) -> Told {
    let doubted = match ca_state::reach_windows(parts, ca, issuer).await {
        Ok(doubted) => doubted,
        Err(ManageError::Down { .. }) => return Told::NotAsked,
        Err(error) => {
            tracing::warn!("whether {ca} tells renewal windows is not to be known: {error}");
            return Told::NotAsked;
        }
    };
    let mut journal = RecordJournal::new(parts, held, ca);
    let error = match issuer.renewal_info(id, &mut journal).await {
        Ok(told) => {
            if doubted {
                ca_state::tells_windows(parts, ca).await;
            }
            return told.map_or(Told::Nothing, |(window, again)| Told::Window(window, again));
        }
        Err(error) => ManageError::from(error),
    };
    if is_silence(&error) {
        ca_state::is_silent(parts, ca, Work::Windows, &error.to_string()).await;
    }
    tracing::warn!(%error, "the renewal window is not to be had; the lifetime decides meanwhile");
    Told::Nothing
}

struct RecordJournal<'a> {
    parts: &'a Parts,
    held: &'a mut Held,
    ca: String,
}

impl<'a> RecordJournal<'a> {
    fn new(parts: &'a Parts, held: &'a mut Held, ca: &str) -> Self {
        let ca = ca.to_owned();
        Self { parts, held, ca }
    }
}

#[async_trait]
impl Journal for RecordJournal<'_> {
    async fn order(&mut self, order: &PendingOrder) -> Result<(), JournalError> {
        self.held.record.order = Some(order.clone());
        let lineage = &self.held.record.lineage;
        self.parts
            .phase(lineage, "waiting for the CA to validate and sign");
        Ok(self.held.save(self.parts, None).await?)
    }

    async fn account(&mut self) -> Result<Option<Secret>, JournalError> {
        Ok(self.parts.store.account(&self.ca).await?)
    }

    async fn create_account(&mut self, credentials: &Secret) -> Result<Secret, JournalError> {
        let store = &self.parts.store;
        // Somebody else may have made one since we looked.
        if let Some(stored) = store.account(&self.ca).await? {
            return Ok(stored);
        }
        ca_state::register(self.parts, &self.ca).await?;
        Ok(store.create_account(&self.ca, credentials).await?)
    }

    async fn save_account(&mut self, credentials: &Secret) -> Result<(), JournalError> {
        Ok(self.parts.store.save_account(&self.ca, credentials).await?)
    }
}
