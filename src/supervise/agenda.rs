//! The managed certificates, ordered by due instant, so that an iteration of the loop
//! costs the same for one certificate as for thousands. Nothing is launched here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::handle::Ended;
use crate::certificate::KeyType;
use crate::lineage::Lineage;
use crate::manage::{Certificate, Keeper, ManageError, Trigger};
use crate::renew::policy::RECHECK;
use crate::renew::rate_limits::Line;
use crate::time::Timestamp;

/// A certificate and the state of its passes.
pub(super) struct Entry {
    pub(super) certificate: Arc<Certificate>,
    /// When the next pass is due.
    pub(super) due: Timestamp,
    /// Whether a pass is in progress.
    pub(super) busy: bool,
    /// Whether passes repeat, or run only for the waiting commands.
    pub(super) managed: bool,
    /// Failures in a row without a stored time for the retry.
    pub(super) undated: u32,
    /// Passes in a row that found the lease held by another process.
    pub(super) elsewhere: u32,
    /// Whether the pass in progress began before the last command.
    pub(super) stale: bool,
    /// Whether it waits for the end of its CA's outage.
    pub(super) waits_for_ca: bool,
    /// Orders in a row that met an outage.
    pub(super) outages: u32,
    /// The highest level of the alarms reported so far: 1 overdue, 2 critical.
    pub(super) alarmed: usize,
    /// Whether the last pass left everything deployed.
    pub(super) deployed: bool,
    pub(super) waiting: VecDeque<(Arc<Certificate>, Trigger, oneshot::Sender<Ended>)>,
}

impl Entry {
    pub(super) fn new(certificate: Arc<Certificate>, due: Timestamp, managed: bool) -> Self {
        Self {
            certificate,
            due,
            busy: false,
            managed,
            undated: 0,
            elsewhere: 0,
            stale: false,
            waits_for_ca: false,
            outages: 0,
            alarmed: 0,
            deployed: false,
            waiting: VecDeque::new(),
        }
    }

    /// Whether it is managed with settings that a command does not replace.
    pub(super) fn is_configured(&self) -> bool {
        self.managed && self.certificate.keeper == Keeper::Settings
    }

    /// Makes a pass due `now`, also if one is in progress.
    pub(super) fn restart(&mut self, now: Timestamp) {
        self.due = now;
        self.stale = self.busy;
    }
}

/// All entries. Each change goes through the agenda, so that the indexes stay correct.
#[derive(Default)]
pub(super) struct Agenda {
    entries: BTreeMap<Lineage, Entry>,
    /// Managed and idle, by due instant. Certificates whose orders met an outage come
    /// after the others.
    idle: BTreeSet<(Timestamp, u32, Lineage)>,
    /// Idle, with a user waiting.
    requested: BTreeSet<Lineage>,
    /// Waiting for the end of a CA's outage, by the CA's directory URL.
    waiting_for_ca: BTreeMap<String, BTreeSet<Lineage>>,
    /// Waiting for a token of a rate limit, and when each gets one.
    queues: BTreeMap<Line, BTreeMap<Lineage, Timestamp>>,
    /// The queue of each of these.
    queued: BTreeMap<Lineage, Line>,
}

impl Agenda {
    pub(super) fn get(&self, lineage: &Lineage) -> Option<&Entry> {
        self.entries.get(lineage)
    }

    pub(super) fn insert(&mut self, entry: Entry) {
        let lineage = entry.certificate.wanted.lineage.clone();
        self.remove(&lineage);
        self.index(&lineage, Position::of(&entry), true);
        self.entries.insert(lineage, entry);
    }

    pub(super) fn remove(&mut self, lineage: &Lineage) {
        self.leave_queues(lineage);
        if let Some(entry) = self.entries.remove(lineage) {
            self.index(lineage, Position::of(&entry), false);
        }
    }

    /// Changes an entry; `None` when there is none.
    pub(super) fn change<T>(
        &mut self,
        lineage: &Lineage,
        change: impl FnOnce(&mut Entry) -> T,
    ) -> Option<T> {
        let entry = self.entries.get_mut(lineage)?;
        let before = Position::of(entry);
        let changed = change(entry);
        let after = Position::of(entry);
        if before != after {
            self.index(lineage, before, false);
            self.index(lineage, after, true);
        }
        Some(changed)
    }

    /// Changes each entry, and keeps those for which `change` returns true. All queues for
    /// tokens are cleared, since every certificate may be due at once now.
    pub(super) fn retain(&mut self, mut change: impl FnMut(&Lineage, &mut Entry) -> bool) {
        self.entries.retain(|lineage, entry| change(lineage, entry));
        (self.idle, self.requested, self.waiting_for_ca) = Default::default();
        self.queues.clear();
        self.queued.clear();
        for (lineage, entry) in std::mem::take(&mut self.entries) {
            self.index(&lineage, Position::of(&entry), true);
            self.entries.insert(lineage, entry);
        }
    }

    /// Takes no more memory than its entries need: a tree to which they came in order is half
    /// empty.
    pub(super) fn compact(&mut self) {
        self.entries = std::mem::take(&mut self.entries).into_iter().collect();
        self.idle = std::mem::take(&mut self.idle).into_iter().collect();
    }

    /// Makes a pass over every certificate due `now`.
    pub(super) fn restart(&mut self, now: Timestamp) {
        self.retain(|_, entry| {
            entry.restart(now);
            true
        });
    }

    /// The next certificate for a pass: first one with a user waiting.
    pub(super) fn ready(&self, now: Timestamp) -> Option<Lineage> {
        let order = |lineage: &&Lineage| {
            let entry = self.entries.get(*lineage);
            entry.map(|entry| (entry.due, entry.outages))
        };
        let requested = self.requested.iter().min_by_key(order);
        let due = || self.idle.first().filter(|(due, ..)| *due <= now);
        requested
            .or_else(|| due().map(|(.., lineage)| lineage))
            .cloned()
    }

    /// When the first idle certificate is due.
    pub(super) fn first_due(&self) -> Option<Timestamp> {
        self.idle.first().map(|(due, ..)| *due)
    }

    /// The certificates that wait for the end of the outage of `ca`.
    pub(super) fn waiting_for(&self, ca: &str) -> BTreeSet<Lineage> {
        self.waiting_for_ca.get(ca).cloned().unwrap_or_default()
    }

    /// The managed certificates.
    pub(super) fn managed(&self) -> impl Iterator<Item = &Arc<Certificate>> {
        let managed = self.entries.values().filter(|entry| entry.managed);
        managed.map(|entry| &entry.certificate)
    }

    /// Of the next `count` certificates after `last`, those that are managed, deployed and idle;
    /// and where to go on. After the last one it begins again.
    pub(super) fn deployed_after(
        &self,
        last: Option<&Lineage>,
        count: usize,
    ) -> (Vec<&Arc<Certificate>>, Option<Lineage>) {
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.entries.range((from, Bound::Unbounded)).take(count);
        let last = next.clone().last().map(|(lineage, _)| lineage.clone());
        let entry = next.map(|(_, entry)| entry);
        let at_rest = entry.filter(|entry| entry.managed && entry.deployed && !entry.busy);
        let at_rest = at_rest.map(|entry| &entry.certificate);
        let ends = self.entries.last_key_value().map(|(lineage, _)| lineage);
        (at_rest.collect(), last.filter(|last| Some(last) != ends))
    }

    /// When `lineage`, which met `error` and waits for `until`, is checked again: within an
    /// hour. Each certificate that waits for one limit gets the next token: if all came for
    /// the first token, all but one would be refused, token by token.
    pub(super) fn queue_for_token(
        &mut self,
        lineage: &Lineage,
        error: &ManageError,
        until: Timestamp,
        now: Timestamp,
    ) -> Timestamp {
        self.leave_queues(lineage);
        let latest = now + RECHECK;
        let ManageError::LimitExhausted {
            line: Some(line), ..
        } = error
        else {
            return until.min(latest);
        };
        let slots = self.queues.entry((**line).clone()).or_default();
        slots.retain(|_, slot| *slot >= now);
        let before = u32::try_from(slots.len()).unwrap_or(u32::MAX);
        let slot = until + line.every.saturating_mul(before);
        if slot > latest {
            // A check without a slot.
            return latest;
        }
        slots.insert(lineage.clone(), slot);
        self.queued.insert(lineage.clone(), (**line).clone());
        slot
    }

    fn leave_queues(&mut self, lineage: &Lineage) {
        let Some(line) = self.queued.remove(lineage) else {
            return;
        };
        if let Some(slots) = self.queues.get_mut(&line) {
            slots.remove(lineage);
            if slots.is_empty() {
                self.queues.remove(&line);
            }
        }
    }

    /// Enters `lineage` into the indexes at `position`, or removes it.
    fn index(&mut self, lineage: &Lineage, position: Position, enters: bool) {
        fn set<T: Ord>(index: &mut BTreeSet<T>, value: T, enters: bool) {
            let _ = match enters {
                true => index.insert(value),
                false => index.remove(&value),
            };
        }
        if let Some((due, outages)) = position.idle {
            set(&mut self.idle, (due, outages, lineage.clone()), enters);
        }
        if position.requested {
            set(&mut self.requested, lineage.clone(), enters);
        }
        for ca in position.waiting_for {
            let waiting = self.waiting_for_ca.entry(ca.clone()).or_default();
            set(waiting, lineage.clone(), enters);
            if waiting.is_empty() {
                self.waiting_for_ca.remove(&ca);
            }
        }
    }
}

/// The place of an entry in the indexes.
#[derive(PartialEq, Eq)]
struct Position {
    idle: Option<(Timestamp, u32)>,
    requested: bool,
    waiting_for: Vec<String>,
}

impl Position {
    fn of(entry: &Entry) -> Self {
        let (due, outages) = (entry.due, entry.outages);
        Self {
            idle: (entry.managed && !entry.busy).then_some((due, outages)),
            requested: !entry.busy && !entry.waiting.is_empty(),
            waiting_for: match entry.waits_for_ca {
                true => entry.certificate.cas().map(|(ca, _)| ca.clone()).collect(),
                false => Vec::new(),
            },
        }
    }
}

/// The setting of `current` that differs from the command's, in words. Settings that the
/// command leaves out do not differ.
pub(super) fn difference(current: &Certificate, requested: &Certificate) -> Option<String> {
    let (one, other) = (&current.wanted, &requested.wanted);
    let list = |words: Vec<String>| words.join(", ");
    if one.identifiers != other.identifiers || one.ca != other.ca {
        let names = list(one.identifiers.iter().map(ToString::to_string).collect());
        return Some(format!("for {names} from {}", one.ca));
    }
    if other.request.is_some() && one.request != other.request {
        return Some("with another key than that of the signing request".to_owned());
    }
    let (terms, asked) = (&one.terms, &other.terms);
    if asked.profile.is_some() && terms.profile != asked.profile {
        let profile = terms.profile.as_deref().unwrap_or("none");
        return Some(format!("with the profile {profile}"));
    }
    let fallback = |one: &Certificate| one.fallback.as_ref().map(|fallback| fallback.ca.clone());
    let (here, there) = (fallback(current), fallback(requested));
    if there.is_some() && here != there {
        let here = here.unwrap_or_else(|| "none".into());
        return Some(format!("with the fallback {here}"));
    }
    if asked.key != KeyType::default() && terms.key != asked.key {
        return Some(format!("with a key of the kind {}", terms.key));
    }
    if asked.lifetime.is_some() && terms.lifetime != asked.lifetime {
        let lifetime = terms
            .lifetime
            .map_or("the CA's lifetime".to_owned(), |it| it.to_string());
        return Some(format!("for {lifetime}"));
    }
    let (here, there) = (&current.endpoints, &requested.endpoints);
    if !there.is_empty() && here != there {
        let here = list(here.iter().map(ToString::to_string).collect());
        return Some(format!("verified at [{here}]"));
    }
    let named = |one: &Certificate| -> Vec<String> {
        one.targets
            .iter()
            .map(|target| target.name().to_owned())
            .collect()
    };
    let (here, there) = (named(current), named(requested));
    (!there.is_empty() && here != there).then(|| format!("for [{}]", list(here)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ca_state::Limit;
    use crate::renew::rate_limits::Priority;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(seconds)
    }

    fn refused(limit: Limit, priority: Priority) -> ManageError {
        ManageError::LimitExhausted {
            limit,
            subject: String::new(),
            until: at(0),
            line: Some(Box::new(Line {
                ca: String::new(),
                limit,
                subject: String::new(),
                priority,
                every: Duration::from_secs(1000),
            })),
        }
    }

    /// The slots of `numbers`, which meet `error` one after the other at `now`.
    fn slots(
        agenda: &mut Agenda,
        numbers: std::ops::Range<u32>,
        error: &ManageError,
        (until, now): (i64, i64),
    ) -> Vec<u64> {
        let each = numbers.map(|number| {
            let lineage = Lineage::parse(&format!("n{number}.example.com")).unwrap();
            let slot = agenda.queue_for_token(&lineage, error, at(until), at(now));
            slot.since(at(0)).as_secs()
        });
        each.collect()
    }

    #[test]
    fn queue_for_token_gives_each_certificate_the_next_token_within_an_hour() {
        let orders = refused(Limit::NewOrders, Priority::Routine);
        let mut agenda = Agenda::default();
        let first = slots(&mut agenda, 0..5, &orders, (100, 0));
        assert_eq!(first, [100, 1100, 2100, 3100, 3600]);
        // Other limits, and orders that may use the reserve, have their own queues.
        let domain = refused(Limit::CertificatesPerDomain, Priority::Routine);
        assert_eq!(slots(&mut agenda, 5..6, &domain, (3000, 0)), [3000]);
        let urgent = refused(Limit::NewOrders, Priority::Urgent);
        assert_eq!(slots(&mut agenda, 6..8, &urgent, (100, 0)), [100, 1100]);
        // A returning certificate leaves its old slot, and a past slot is free.
        assert_eq!(slots(&mut agenda, 0..1, &orders, (1100, 150)), [3750]);
        assert_eq!(slots(&mut agenda, 8..9, &orders, (3100, 3000)), [4100]);
        // A token that is more than an hour away gets a slot at a later check.
        let mut rare = Agenda::default();
        let looks = slots(&mut rare, 0..3, &domain, (9000, 0));
        assert_eq!(looks, [3600, 3600, 3600]);
        let looks = slots(&mut rare, 0..3, &domain, (9000, 5500));
        assert_eq!(looks, [9000, 9100, 9100]);
    }

    #[test]
    fn queue_for_token_starts_empty_after_a_sweep() {
        let orders = refused(Limit::NewOrders, Priority::Routine);
        let mut agenda = Agenda::default();
        let before = slots(&mut agenda, 0..4, &orders, (100, 0));
        agenda.retain(|_, _| true);
        assert_eq!(slots(&mut agenda, 0..4, &orders, (100, 10)), before);
        agenda.remove(&Lineage::parse("n1.example.com").unwrap());
        assert_eq!(slots(&mut agenda, 4..5, &orders, (100, 20)), [3100]);
    }

    #[test]
    fn queue_for_token_lets_all_wait_for_one_account() {
        let account = ManageError::LimitExhausted {
            limit: Limit::NewAccounts,
            subject: String::new(),
            until: at(0),
            line: None,
        };
        let mut agenda = Agenda::default();
        assert_eq!(slots(&mut agenda, 0..3, &account, (700, 0)), [700; 3]);
        assert_eq!(slots(&mut agenda, 0..3, &account, (9000, 0)), [3600; 3]);
    }
}
