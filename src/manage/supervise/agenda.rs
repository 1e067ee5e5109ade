//! What is kept, in the order in which it is due: a turn of the loop costs the
//! same for one certificate as for thousands.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use tokio::sync::oneshot;

use super::{Ended, LOOK_AGAIN};
use crate::authority::Limit;
use crate::certificate::KeyType;
use crate::identifier::Lineage;
use crate::manage::issue::Urge;
use crate::manage::{Certificate, ManageError};
use crate::time::Timestamp;

/// One certificate, and how far the work on it is.
pub(super) struct Kept {
    pub(super) certificate: Arc<Certificate>,
    /// When the next pass is launched.
    pub(super) due: Timestamp,
    /// Whether a pass is under way.
    pub(super) busy: bool,
    /// Whether it is passed over again and again, or only for those who wait.
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
    pub(super) waiting: VecDeque<(Arc<Certificate>, Urge, oneshot::Sender<Ended>)>,
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
    /// What somebody waits for, and is not under way.
    asked: BTreeSet<Lineage>,
    /// What waits for its CA to answer.
    held_up: BTreeSet<Lineage>,
    /// The last place in each line for the tokens of a limit.
    lines: BTreeMap<(Limit, String), Timestamp>,
}

impl Agenda {
    pub(super) fn get(&self, lineage: &Lineage) -> Option<&Kept> {
        self.kept.get(lineage)
    }

    pub(super) fn insert(&mut self, kept: Kept) {
        let lineage = kept.certificate.wanted.lineage.clone();
        self.remove(&lineage);
        self.enter(&lineage, Place::of(&kept));
        self.kept.insert(lineage, kept);
    }

    pub(super) fn remove(&mut self, lineage: &Lineage) {
        if let Some(kept) = self.kept.remove(lineage) {
            self.leave(lineage, Place::of(&kept));
        }
    }

    /// Changes one; `None` when it is not kept.
    pub(super) fn change<T>(
        &mut self,
        lineage: &Lineage,
        change: impl FnOnce(&mut Kept) -> T,
    ) -> Option<T> {
        let kept = self.kept.get_mut(lineage)?;
        let before = Place::of(kept);
        let changed = change(kept);
        let after = Place::of(kept);
        if before != after {
            self.leave(lineage, before);
            self.enter(lineage, after);
        }
        Some(changed)
    }

    /// Changes each, and keeps those for which `change` answers true.
    pub(super) fn retain(&mut self, mut change: impl FnMut(&Lineage, &mut Kept) -> bool) {
        self.kept.retain(|lineage, kept| change(lineage, kept));
        (self.idle, self.asked, self.held_up) = Default::default();
        for (lineage, kept) in std::mem::take(&mut self.kept) {
            self.enter(&lineage, Place::of(&kept));
            self.kept.insert(lineage, kept);
        }
    }

    /// What is to be passed over now: first what somebody waits for.
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

    /// What is handed over and not under way.
    pub(super) fn handed_over(&self) -> impl Iterator<Item = &Arc<Certificate>> {
        let kept = self.kept.values();
        let at_rest = kept.filter(|kept| kept.managed && kept.whole && !kept.busy);
        at_rest.map(|kept| &kept.certificate)
    }

    /// When whoever met `error`, which says to wait until then, looks again: within an
    /// hour. Of those that wait for the tokens of one limit each has the next one: if
    /// all came for the first, a thousand would be refused for one that is not, token
    /// by token.
    pub(super) fn in_line(
        &mut self,
        error: &ManageError,
        until: Timestamp,
        now: Timestamp,
    ) -> Timestamp {
        let latest = now + LOOK_AGAIN;
        let ManageError::OutOfBudget {
            limit,
            subject,
            every,
            ..
        } = error
        else {
            return until.min(latest);
        };
        // Where the last one's turn has come there is no line any more.
        self.lines.retain(|_, last| *last >= now);
        let line = (*limit, subject.clone());
        let next = self.lines.get(&line).map(|last| *last + *every);
        let place = next.map_or(until, |next| next.max(until)).min(latest);
        self.lines.insert(line, place);
        place
    }

    fn enter(&mut self, lineage: &Lineage, place: Place) {
        if let Some((due, silences)) = place.idle {
            self.idle.insert((due, silences, lineage.clone()));
        }
        if place.asked {
            self.asked.insert(lineage.clone());
        }
        if place.held_up {
            self.held_up.insert(lineage.clone());
        }
    }

    fn leave(&mut self, lineage: &Lineage, place: Place) {
        if let Some((due, silences)) = place.idle {
            self.idle.remove(&(due, silences, lineage.clone()));
        }
        if place.asked {
            self.asked.remove(lineage);
        }
        if place.held_up {
            self.held_up.remove(lineage);
        }
    }
}

/// Where one stands in the orders.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    idle: Option<(Timestamp, u32)>,
    asked: bool,
    held_up: bool,
}

impl Place {
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
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_of_a_line_has_the_next_token_and_looks_within_the_hour() {
        let at = Timestamp::from_seconds;
        let refused = |limit, until| ManageError::OutOfBudget {
            limit,
            subject: String::new(),
            until: at(until),
            every: Duration::from_secs(1000),
        };
        let (orders, domain) = (Limit::NewOrders, Limit::CertificatesPerDomain);
        let mut agenda = Agenda::default();
        let mut place = |limit, until: i64, now: i64| {
            let place = agenda.in_line(&refused(limit, until), at(until), at(now));
            place.since(at(0)).as_secs()
        };
        let line = |place: &mut dyn FnMut(Limit, i64, i64) -> u64, now| {
            [(); 5].map(|()| place(orders, 100, now))
        };
        assert_eq!(line(&mut place, 0), [100, 1100, 2100, 3100, 3600]);
        // Another limit has a line of its own, and takes no place from this one.
        assert_eq!(place(domain, 9000, 50), 3650);
        assert_eq!(place(orders, 100, 60), 3660);
        // The token that comes is later than the last place.
        assert_eq!(place(orders, 5000, 3000), 5000);
        assert_eq!(place(orders, 5000, 3000), 6000);
        // All of them have had their turn.
        assert_eq!(place(orders, 9100, 9000), 9100);
        let down = ManageError::NotDueThere {
            ca: String::new(),
            ours: at(0),
            theirs: at(0),
            until: at(0),
        };
        for (until, wanted) in [(7, 7), (9000, 3600)] {
            assert_eq!(agenda.in_line(&down, at(until), at(0)), at(wanted));
        }
    }
}
