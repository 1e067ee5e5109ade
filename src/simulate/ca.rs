//! The CA of the simulation: Let's Encrypt's limits counted on its own side,
//! the embedded CA's windows and signatures, and whatever the scenarios do to
//! it. It knows for each certificate whether it was needed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::DAY;
use super::limits::{Buckets, Limit, limits, registered};
use crate::acme::Phase;
use crate::ca::{CaError, Signing, share};
use crate::certificate::{Facts, Fingerprint, Secret};
use crate::identifier::Identifier;
use crate::record::{PendingOrder, Window};
use crate::time::Timestamp;

/// Its directory: the ledger knows the limits by this name.
pub(super) const DIRECTORY: &str = "https://acme-v02.api.letsencrypt.org/directory";

const ORDER: &str = "https://acme-v02.api.letsencrypt.org/acme/order/";
const HOUR: Duration = Duration::from_secs(3600);
const SECOND: Duration = Duration::from_secs(1);
/// Whoever has met its silence has noted it so long after the first.
const FOUND_OUT: Duration = Duration::from_secs(300);
const MINUTE: Duration = Duration::from_secs(60);

/// What the scenarios do to it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Weather {
    /// It is not to be reached.
    pub(super) down: bool,
    /// It answers that it is asked too often.
    pub(super) busy: bool,
    /// It signs certificates that are over in five minutes.
    pub(super) short: bool,
    /// Of a thousand replies, so many are lost after it has acted.
    pub(super) lost: u64,
}

/// What it has counted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// Orders that it took.
    pub(super) orders: u64,
    /// Certificates that somebody needed.
    pub(super) needed: u64,
    /// Certificates that nobody needed.
    pub(super) duplicates: u64,
    /// Renewals ordered while their windows were not open.
    pub(super) outside: u64,
    /// Orders that it refused by its limits.
    pub(super) breaches: u64,
    /// The most orders that it took for one certificate that was needed, without
    /// those of which it is to blame itself that they came to nothing.
    pub(super) most_orders: u64,
    /// The most requests in a minute of an outage that was met before.
    pub(super) most_knocks: u64,
}

/// Why it takes no order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Another certificate replaces that one already.
    AlreadyReplaced,
    /// It knows of no certificate that would be replaced.
    UnknownReplaced,
    /// A limit is reached for so long.
    Limited(Duration),
}

/// What there is for a set of names, as the CA knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing yet.
    Unissued {
        /// Whether its limits have room for all that waits.
        room: bool,
    },
    /// A certificate.
    Issued {
        leaf: Fingerprint,
        /// Whether it should have been replaced by now.
        overdue: bool,
        /// Whether it was called back.
        revoked: bool,
    },
}

struct Order {
    created: Timestamp,
    identifiers: BTreeSet<Identifier>,
    lifetime: Duration,
    replaces: Option<String>,
    exempt: bool,
    chain: Option<String>,
}

struct Known {
    facts: Facts,
    revoked: bool,
    replaced: bool,
}

/// Requests during an outage.
#[derive(Default)]
struct Knocks {
    /// When it was met first, by an order and by the question for a window: each finds
    /// out for itself.
    met: BTreeMap<bool, Timestamp>,
    /// Since when those of a minute are counted.
    since: Option<Timestamp>,
    count: u64,
}

impl Knocks {
    /// How many there were within a minute, with one `now`: none of the first minutes after
    /// an order, or the question for a window, has met it.
    fn count(&mut self, phase: Phase, now: Timestamp) -> u64 {
        if matches!(phase, Phase::Order | Phase::RenewalInfo) {
            self.met.entry(phase == Phase::Order).or_insert(now);
        }
        if self.met.values().any(|met| now.since(*met) < FOUND_OUT) {
            return 0;
        }
        let since = self.since.filter(|since| now.since(*since) < MINUTE);
        self.count = since.map_or(1, |_| self.count + 1);
        self.since = since.or(Some(now));
        self.count
    }
}

/// The CA itself.
pub(super) struct Authority(Mutex<Inside>);

struct Inside {
    signing: Signing,
    weather: Weather,
    /// Names that it cannot validate.
    unproven: BTreeSet<Identifier>,
    counts: Counts,
    /// By number.
    orders: BTreeMap<u64, Order>,
    next_order: u64,
    /// By renewal identifier.
    known: BTreeMap<String, Known>,
    /// The newest certificate of a set of names.
    newest: BTreeMap<BTreeSet<Identifier>, String>,
    /// The one before that.
    previous: BTreeMap<BTreeSet<Identifier>, String>,
    /// Which key each leaf was signed for.
    keys: BTreeMap<String, Secret>,
    buckets: Buckets,
    knocks: Knocks,
    /// Orders since the last certificate that was needed.
    tries: BTreeMap<BTreeSet<Identifier>, u64>,
}

impl Authority {
    pub(super) fn new(now: Timestamp) -> Result<Self, CaError> {
        Ok(Self(Mutex::new(Inside {
            signing: Signing::new(now)?,
            weather: Weather::default(),
            unproven: BTreeSet::new(),
            counts: Counts::default(),
            orders: BTreeMap::new(),
            next_order: 0,
            known: BTreeMap::new(),
            newest: BTreeMap::new(),
            previous: BTreeMap::new(),
            keys: BTreeMap::new(),
            buckets: Buckets::default(),
            knocks: Knocks::default(),
            tries: BTreeMap::new(),
        })))
    }

    pub(super) fn weather(&self) -> Weather {
        self.lock().weather
    }

    pub(super) fn change_weather(&self, change: impl FnOnce(&mut Weather)) {
        change(&mut self.lock().weather);
    }

    /// Somebody asks, and finds nobody there if it is down.
    pub(super) fn is_down(&self, phase: Phase, now: Timestamp) -> bool {
        let mut inside = self.lock();
        let inside = &mut *inside;
        if !inside.weather.down {
            inside.knocks = Knocks::default();
            return false;
        }
        let knocks = inside.knocks.count(phase, now);
        inside.counts.most_knocks = inside.counts.most_knocks.max(knocks);
        true
    }

    /// From here on it cannot validate these, and no others.
    pub(super) fn doubt(&self, unproven: BTreeSet<Identifier>) {
        self.lock().unproven = unproven;
    }

    pub(super) fn counts(&self) -> Counts {
        let inside = self.lock();
        let tries = inside.tries.values().copied().max().unwrap_or_default();
        let most_orders = inside.counts.most_orders.max(tries);
        Counts {
            most_orders,
            ..inside.counts
        }
    }

    /// Takes an order, or says why not.
    pub(super) fn order(
        &self,
        order: &PendingOrder,
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<String, Refusal> {
        let mut inside = self.lock();
        let exempt = inside.is_exempt(order, now)?;
        let again = inside.newest.contains_key(&order.identifiers);
        for limit in limits(exempt, again) {
            for subject in limit.subjects(&order.identifiers) {
                if let Some(wait) = inside.buckets.is_full(*limit, subject, now) {
                    inside.counts.breaches += 1;
                    return Err(Refusal::Limited(wait));
                }
            }
        }
        if !exempt && !again {
            inside.buckets.take(Limit::Orders, String::new(), now);
        }
        inside.counts.orders += 1;
        *inside.tries.entry(order.identifiers.clone()).or_default() += 1;
        inside.counts.outside += u64::from(again && !exempt);
        inside.next_order += 1;
        inside.forget_orders(now);
        let number = inside.next_order;
        let taken = Order {
            created: now,
            identifiers: order.identifiers.clone(),
            lifetime,
            replaces: order.replaces.clone(),
            exempt,
            chain: None,
        };
        inside.orders.insert(number, taken);
        Ok(format!("{ORDER}{number}"))
    }

    /// By the script, nobody can know of an order that it took for `names`.
    pub(super) fn excuse(&self, names: &BTreeSet<Identifier>) {
        self.lock().excuse(names);
    }

    /// Whether control of all names was proven; the order is void otherwise.
    pub(super) fn validate(&self, order: &PendingOrder, now: Timestamp) -> bool {
        let mut inside = self.lock();
        let inside = &mut *inside;
        let mut failed = order.identifiers.intersection(&inside.unproven).peekable();
        if failed.peek().is_none() {
            return true;
        }
        for name in failed {
            inside.buckets.take(Limit::Failures, name.to_string(), now);
        }
        inside.excuse(&order.identifiers);
        false
    }

    /// Signs for an order, once: asked again it gives what it has signed.
    pub(super) fn finalize(
        &self,
        url: &str,
        key_pem: &Secret,
        now: Timestamp,
    ) -> Result<Option<Signed>, CaError> {
        let mut inside = self.lock();
        let number = number(url);
        let Some(order) = inside.orders.get(&number) else {
            return Ok(None);
        };
        if let Some(chain) = order.chain.clone() {
            let is_first = false;
            return Ok(Some(Signed { chain, is_first }));
        }
        let (names, lifetime) = (order.identifiers.clone(), order.lifetime);
        let (replaces, exempt) = (order.replaces.clone(), order.exempt);
        let short = inside.weather.short;
        let not_before = now - HOUR;
        let not_after = match short {
            true => now + Duration::from_secs(300),
            false => not_before + lifetime - SECOND,
        };
        let validity = (not_before, not_after);
        let (facts, chain) = inside.signing.sign(key_pem, &names, validity, now)?;
        inside.count(&names, exempt, now);
        let is_first = !short && !inside.newest.contains_key(&names);
        if let Some(replaced) = replaces.and_then(|id| inside.known.get_mut(&id)) {
            replaced.replaced = true;
        }
        let key = facts.fingerprint.to_string();
        inside.keys.insert(key, key_pem.clone());
        // What is useless takes nobody's place.
        if let Some(id) = facts.renewal_id.clone().filter(|_| !short) {
            let before = inside.newest.insert(names.clone(), id.clone());
            let last_but_one = before.and_then(|before| inside.previous.insert(names, before));
            if let Some(last_but_one) = last_but_one {
                inside.forget(&last_but_one);
            }
            let known = Known {
                facts,
                revoked: false,
                replaced: false,
            };
            inside.known.insert(id, known);
        }
        if let Some(order) = inside.orders.get_mut(&number) {
            order.chain = Some(chain.clone());
        }
        Ok(Some(Signed { chain, is_first }))
    }

    /// The order has failed.
    pub(super) fn forget_order(&self, url: &str) {
        self.lock().orders.remove(&number(url));
    }

    /// The suggested window: over already for what is revoked.
    pub(super) fn window(&self, renewal_id: &str, now: Timestamp) -> Option<Window> {
        let inside = self.lock();
        let known = inside.known.get(renewal_id)?;
        Some(known.window(now))
    }

    /// Calls back one in `part` of what is good, from `first` on, and says which.
    pub(super) fn call_back(&self, part: usize, first: usize) -> BTreeSet<String> {
        let mut inside = self.lock();
        // By names: identifiers of certificates are random.
        let newest = inside.newest.values().skip(first % part);
        let chosen: Vec<String> = newest.step_by(part).cloned().collect();
        let mut leaves = BTreeSet::new();
        for id in &chosen {
            if let Some(known) = inside.known.get_mut(id) {
                known.revoked = true;
                leaves.insert(known.facts.fingerprint.to_string());
            }
        }
        leaves
    }

    /// Whether the leaf was signed for that key.
    pub(super) fn is_pair(&self, leaf: &Fingerprint, key_pem: &Secret) -> bool {
        self.lock().keys.get(&leaf.to_string()) == Some(key_pem)
    }

    /// Whether `leaf` is all that could be wished for `names` at `now`.
    pub(super) fn is_the_best(
        &self,
        names: &BTreeSet<Identifier>,
        leaf: &Fingerprint,
        now: Timestamp,
    ) -> bool {
        let inside = self.lock();
        let newest = inside.newest.get(names).and_then(|id| inside.known.get(id));
        newest.is_some_and(|known| known.facts.fingerprint == *leaf && !known.is_overdue(now))
    }

    /// What there is for each of `all`.
    pub(super) fn standing<'n>(
        &self,
        all: impl Iterator<Item = &'n BTreeSet<Identifier>>,
        now: Timestamp,
    ) -> Vec<Standing> {
        let (inside, all) = (self.lock(), all.collect::<Vec<_>>());
        let waiting = all
            .iter()
            .filter(|names| !inside.newest.contains_key(**names));
        let (mut orders, mut by_domain) = (0, BTreeMap::<String, u32>::new());
        for name in waiting.flat_map(|names| names.iter()) {
            orders += 1;
            *by_domain.entry(registered(name)).or_default() += 1;
        }
        let room = |limit, subject| inside.buckets.room(limit, subject, now);
        let enough = orders <= room(Limit::Orders, String::new());
        let standing = all.iter().map(|names| {
            match inside
                .newest
                .get(*names)
                .and_then(|id| inside.known.get(id))
            {
                Some(known) => Standing::Issued {
                    leaf: known.facts.fingerprint.clone(),
                    overdue: known.is_overdue(now),
                    revoked: known.revoked,
                },
                None => {
                    let mut domains = names.iter().map(registered);
                    let fits = domains.all(|domain| {
                        let waiting = by_domain.get(&domain).copied().unwrap_or_default();
                        waiting <= room(Limit::Domain, domain)
                    });
                    Standing::Unissued {
                        room: enough && fits,
                    }
                }
            }
        });
        standing.collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What came of an order.
pub(super) struct Signed {
    pub(super) chain: String,
    /// Whether there was none for these names before.
    pub(super) is_first: bool,
}

impl Known {
    fn window(&self, now: Timestamp) -> Window {
        if self.revoked {
            return Window {
                start: now - HOUR * 2,
                end: now - HOUR,
            };
        }
        share(self.facts.not_before, self.facts.not_after)
    }

    fn is_needed(&self, now: Timestamp) -> bool {
        !self.revoked && now < share(self.facts.not_before, self.facts.not_after).start
    }

    fn is_overdue(&self, now: Timestamp) -> bool {
        self.revoked || share(self.facts.not_before, self.facts.not_after).end <= now
    }
}

impl Inside {
    fn is_exempt(&self, order: &PendingOrder, now: Timestamp) -> Result<bool, Refusal> {
        let Some(replaced) = &order.replaces else {
            return Ok(false);
        };
        let replaced = self.known.get(replaced).ok_or(Refusal::UnknownReplaced)?;
        if replaced.replaced {
            return Err(Refusal::AlreadyReplaced);
        }
        let window = replaced.window(now);
        Ok((window.start..window.end).contains(&now))
    }

    /// Counts what is signed now.
    fn count(&mut self, names: &BTreeSet<Identifier>, exempt: bool, now: Timestamp) {
        let newest = self.newest.get(names).and_then(|id| self.known.get(id));
        let spare = newest.is_some_and(|newest| newest.is_needed(now));
        if spare {
            self.counts.duplicates += 1;
        } else if self.weather.short {
            self.excuse(names);
        } else {
            self.counts.needed += 1;
            let tries = self.tries.remove(names).unwrap_or_default();
            self.counts.most_orders = self.counts.most_orders.max(tries);
        }
        if exempt {
            return;
        }
        let again = self.newest.contains_key(names);
        for limit in [Limit::Domain, Limit::Duplicates] {
            if again && limit == Limit::Domain {
                continue;
            }
            for subject in limit.subjects(names) {
                self.buckets.take(limit, subject, now);
            }
        }
    }

    fn excuse(&mut self, names: &BTreeSet<Identifier>) {
        if let Some(tries) = self.tries.get_mut(names) {
            *tries = tries.saturating_sub(1);
        }
    }

    /// An order lives for a week.
    fn forget_orders(&mut self, now: Timestamp) {
        while let Some(first) = self.orders.first_entry()
            && first.get().created + 7 * DAY < now
        {
            first.remove();
        }
    }

    /// Nobody loads the last but one any more.
    fn forget(&mut self, id: &str) {
        if let Some(known) = self.known.remove(id) {
            self.keys.remove(&known.facts.fingerprint.to_string());
        }
    }
}

fn number(url: &str) -> u64 {
    let number = url
        .strip_prefix(ORDER)
        .and_then(|number| number.parse().ok());
    number.unwrap_or_default()
}

/// Shared by all nodes.
pub(super) type Shared = Arc<Authority>;
