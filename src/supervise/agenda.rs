//! What is kept, in the order in which it is due: a turn of the loop costs the
//! same for one certificate as for thousands.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::handle::Ended;
use crate::certificate::KeyType;
use crate::identifier::Lineage;
use crate::manage::{Certificate, ManageError, Trigger};
use crate::renew::ledger::Line;
use crate::time::Timestamp;

/// The wall clock is read again this often: it may jump, and the machine may
/// have been suspended.
pub(super) const SWEEP: Duration = Duration::from_secs(60);
/// After any failure: what the record says may be older than what is wanted.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(3600);

/// One certificate, and how far the work on it is.
pub(super) struct Kept {
    pub(super) certificate: Arc<Certificate>,
    /// When the next pass is launched.
    pub(super) due: Timestamp,
    /// Whether a pass is under way.
    pub(super) busy: bool,
    /// Whether it is passed over again and again, or only for those that wait.
    pub(super) managed: bool,
    /// Failures in a row that the record could not date.
    pub(super) undated: u32,
    /// Passes in a row that found another process at work on it.
    pub(super) elsewhere: u32,
    /// Whether what is under way was begun before the last command.
    pub(super) stale: bool,
    /// Whether it waits for its CA to answer.
    pub(super) waits_for_ca: bool,
    /// Orders in a row that found no CA.
    pub(super) silences: u32,
    /// The worst that the owner was told of it: 1 late, 2 critical.
    pub(super) told: usize,
    /// Whether the last pass found all handed over.
    pub(super) whole: bool,
    pub(super) waiting: VecDeque<(Arc<Certificate>, Trigger, oneshot::Sender<Ended>)>,
}

impl Kept {
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
            silences: 0,
            told: 0,
            whole: false,
            waiting: VecDeque::new(),
        }
    }
}

/// All that is kept. Everything is changed through it, so that the order holds.
#[derive(Default)]
pub(super) struct Agenda {
    kept: BTreeMap<Lineage, Kept>,
    /// What is managed and not under way. One whose order found no CA is not the
    /// first to try again.
    idle: BTreeSet<(Timestamp, u32, Lineage)>,
    /// What a user waits for, and is not under way.
    asked: BTreeSet<Lineage>,
    /// What waits for its CA to answer.
    held_up: BTreeSet<Lineage>,
    /// What waits for the tokens of a limit, and when it has one.
    lines: BTreeMap<Line, BTreeMap<Lineage, Timestamp>>,
}

impl Agenda {
    pub(super) fn get(&self, lineage: &Lineage) -> Option<&Kept> {
        self.kept.get(lineage)
    }

    pub(super) fn insert(&mut self, kept: Kept) {
        let lineage = kept.certificate.wanted.lineage.clone();
        self.remove(&lineage);
        self.enter(&lineage, Position::of(&kept));
        self.kept.insert(lineage, kept);
    }

    pub(super) fn remove(&mut self, lineage: &Lineage) {
        self.leave_lines(lineage);
        if let Some(kept) = self.kept.remove(lineage) {
            self.leave(lineage, Position::of(&kept));
        }
    }

    /// Changes one; `None` when it is not kept.
    pub(super) fn change<T>(
        &mut self,
        lineage: &Lineage,
        change: impl FnOnce(&mut Kept) -> T,
    ) -> Option<T> {
        let kept = self.kept.get_mut(lineage)?;
        let before = Position::of(kept);
        let changed = change(kept);
        let after = Position::of(kept);
        if before != after {
            self.leave(lineage, before);
            self.enter(lineage, after);
        }
        Some(changed)
    }

    /// Changes each, and keeps those for which `change` answers true. What waits in a
    /// line may come at once now: lines begin anew.
    pub(super) fn retain(&mut self, mut change: impl FnMut(&Lineage, &mut Kept) -> bool) {
        self.kept.retain(|lineage, kept| change(lineage, kept));
        (self.idle, self.asked, self.held_up) = Default::default();
        self.lines.clear();
        for (lineage, kept) in std::mem::take(&mut self.kept) {
            self.enter(&lineage, Position::of(&kept));
            self.kept.insert(lineage, kept);
        }
    }

    /// What is to be passed over now: first what a user waits for.
    pub(super) fn ready(&self, now: Timestamp) -> Option<Lineage> {
        let order = |lineage: &&Lineage| {
            let kept = self.kept.get(*lineage);
            kept.map(|kept| (kept.due, kept.silences))
        };
        let asked = self.asked.iter().min_by_key(order);
        let due = || self.idle.first().filter(|(due, ..)| *due <= now);
        asked
            .or_else(|| due().map(|(.., lineage)| lineage))
            .cloned()
    }

    /// When the first of those that are not under way is due.
    pub(super) fn first_due(&self) -> Option<Timestamp> {
        self.idle.first().map(|(due, ..)| *due)
    }

    /// Those that wait for their CA to answer.
    pub(super) fn waiting_for_a_ca(&self) -> BTreeSet<Lineage> {
        self.held_up.clone()
    }

    /// All that is managed.
    pub(super) fn managed(&self) -> impl Iterator<Item = &Arc<Certificate>> {
        let managed = self.kept.values().filter(|kept| kept.managed);
        managed.map(|kept| &kept.certificate)
    }

    /// What is handed over and not under way.
    pub(super) fn handed_over(&self) -> impl Iterator<Item = &Arc<Certificate>> {
        let kept = self.kept.values();
        let at_rest = kept.filter(|kept| kept.managed && kept.whole && !kept.busy);
        at_rest.map(|kept| &kept.certificate)
    }

    /// When `lineage`, which met `error` and is to wait until then, looks again: within
    /// an hour. Of those that wait for the tokens of one limit each has the next one: if
    /// all came for the first, a thousand would be refused for one that is not, token
    /// by token.
    pub(super) fn in_line(
        &mut self,
        lineage: &Lineage,
        error: &ManageError,
        until: Timestamp,
        now: Timestamp,
    ) -> Timestamp {
        self.leave_lines(lineage);
        let latest = now + LOOK_AGAIN;
        let ManageError::OutOfBudget {
            line: Some(line), ..
        } = error
        else {
            return until.min(latest);
        };
        let places = self.lines.entry((**line).clone()).or_default();
        places.retain(|_, place| *place >= now);
        let before = u32::try_from(places.len()).unwrap_or(u32::MAX);
        let place = until + line.every.saturating_mul(before);
        if place > latest {
            // A look, and no place.
            return latest;
        }
        places.insert(lineage.clone(), place);
        place
    }

    fn leave_lines(&mut self, lineage: &Lineage) {
        self.lines.retain(|_, places| {
            places.remove(lineage);
            !places.is_empty()
        });
    }

    fn enter(&mut self, lineage: &Lineage, position: Position) {
        if let Some((due, silences)) = position.idle {
            self.idle.insert((due, silences, lineage.clone()));
        }
        if position.asked {
            self.asked.insert(lineage.clone());
        }
        if position.held_up {
            self.held_up.insert(lineage.clone());
        }
    }

    fn leave(&mut self, lineage: &Lineage, position: Position) {
        if let Some((due, silences)) = position.idle {
            self.idle.remove(&(due, silences, lineage.clone()));
        }
        if position.asked {
            self.asked.remove(lineage);
        }
        if position.held_up {
            self.held_up.remove(lineage);
        }
    }
}

/// Where one stands in the orders.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Position {
    idle: Option<(Timestamp, u32)>,
    asked: bool,
    held_up: bool,
}

impl Position {
    fn of(kept: &Kept) -> Self {
        let (due, silences) = (kept.due, kept.silences);
        Self {
            idle: (kept.managed && !kept.busy).then_some((due, silences)),
            asked: !kept.busy && !kept.waiting.is_empty(),
            held_up: kept.waits_for_ca,
        }
    }
}

/// How `kept` is kept, where a command asks for something else. What it does not
/// say is as it is kept.
pub(super) fn difference(kept: &Certificate, asked: &Certificate) -> Option<String> {
    let (one, other) = (&kept.wanted, &asked.wanted);
    if one.identifiers != other.identifiers || one.ca != other.ca {
        let names: Vec<String> = one.identifiers.iter().map(ToString::to_string).collect();
        return Some(format!("for {} from {}", names.join(", "), one.ca));
    }
    if other.profile.is_some() && one.profile != other.profile {
        let profile = one.profile.as_deref().unwrap_or("none");
        return Some(format!("with the profile {profile}"));
    }
    let second = |one: &Certificate| one.fallback.as_ref().map(|second| second.ca.clone());
    if let (here, Some(there)) = (second(kept), second(asked))
        && here.as_ref() != Some(&there)
    {
        let here = here.unwrap_or_else(|| "none".into());
        return Some(format!("with the fallback {here}"));
    }
    if other.key != KeyType::default() && one.key != other.key {
        return Some(format!("with a key of the kind {}", one.key));
    }
    let (here, there) = (&kept.endpoints, &asked.endpoints);
    if !there.is_empty() && here != there {
        let here: Vec<String> = here.iter().map(ToString::to_string).collect();
        return Some(format!("proven at [{}]", here.join(", ")));
    }
    let named = |certificate: &Certificate| -> Vec<String> {
        let targets = certificate.targets.iter();
        targets.map(|target| target.name().to_owned()).collect()
    };
    let (here, there) = (named(kept), named(asked));
    (!there.is_empty() && here != there).then(|| format!("for [{}]", here.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca_state::Limit;
    use crate::renew::ledger::Priority;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(seconds)
    }

    fn refused(limit: Limit, priority: Priority) -> ManageError {
        ManageError::OutOfBudget {
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

    /// The places of `numbers`, who meet `error` one after the other at `now`.
    fn places(
        agenda: &mut Agenda,
        numbers: std::ops::Range<u32>,
        error: &ManageError,
        (until, now): (i64, i64),
    ) -> Vec<u64> {
        let each = numbers.map(|number| {
            let lineage = Lineage::parse(&format!("n{number}.example.com")).unwrap();
            let place = agenda.in_line(&lineage, error, at(until), at(now));
            place.since(at(0)).as_secs()
        });
        each.collect()
    }

    #[test]
    fn each_of_a_line_has_the_next_token_and_looks_within_the_hour() {
        let orders = refused(Limit::NewOrders, Priority::Routine);
        let mut agenda = Agenda::default();
        let first = places(&mut agenda, 0..5, &orders, (100, 0));
        assert_eq!(first, [100, 1100, 2100, 3100, 3600]);
        // Other limits, and who may take what others leave alone, wait apart.
        let domain = refused(Limit::CertificatesPerDomain, Priority::Routine);
        assert_eq!(places(&mut agenda, 5..6, &domain, (3000, 0)), [3000]);
        let urgent = refused(Limit::NewOrders, Priority::Urgent);
        assert_eq!(places(&mut agenda, 6..8, &urgent, (100, 0)), [100, 1100]);
        // Who comes again has left its place, and who had its turn is gone.
        assert_eq!(places(&mut agenda, 0..1, &orders, (1100, 150)), [3750]);
        assert_eq!(places(&mut agenda, 8..9, &orders, (3100, 3000)), [4100]);
        // A token that is further away than a look is had at its second.
        let mut rare = Agenda::default();
        let looks = places(&mut rare, 0..3, &domain, (9000, 0));
        assert_eq!(looks, [3600, 3600, 3600]);
        let looks = places(&mut rare, 0..3, &domain, (9000, 5500));
        assert_eq!(looks, [9000, 9100, 9100]);
    }

    #[test]
    fn where_all_look_again_at_once_no_place_is_kept_for_who_was_there() {
        let orders = refused(Limit::NewOrders, Priority::Routine);
        let mut agenda = Agenda::default();
        let before = places(&mut agenda, 0..4, &orders, (100, 0));
        agenda.retain(|_, _| true);
        assert_eq!(places(&mut agenda, 0..4, &orders, (100, 10)), before);
        agenda.remove(&Lineage::parse("n1.example.com").unwrap());
        assert_eq!(places(&mut agenda, 4..5, &orders, (100, 20)), [3100]);
    }

    #[test]
    fn where_one_token_lets_all_through_all_come_for_it() {
        let account = ManageError::OutOfBudget {
            limit: Limit::NewAccounts,
            subject: String::new(),
            until: at(0),
            line: None,
        };
        let mut agenda = Agenda::default();
        assert_eq!(places(&mut agenda, 0..3, &account, (700, 0)), [700; 3]);
        assert_eq!(places(&mut agenda, 0..3, &account, (9000, 0)), [3600; 3]);
    }
}
