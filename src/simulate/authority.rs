//! The CA of the simulation: Let's Encrypt's limits counted on its own side,
//! the embedded CA's windows and signatures, and whatever the scenarios do to
//! it. It knows for each certificate whether it was needed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::DAY;
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

/// What the scenarios do to it.
#[derive(Clone, Debug, Default)]
pub(super) struct Weather {
    /// It is not to be reached.
    pub(super) down: bool,
    /// It answers that it is asked too often.
    pub(super) busy: bool,
    /// It signs certificates that are over in five minutes.
    pub(super) short: bool,
    /// Of a thousand replies, so many are lost after it has acted.
    pub(super) lost: u64,
    /// Names that it cannot validate.
    pub(super) unproven: BTreeSet<Identifier>,
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
}

/// Why it takes no order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Another certificate replaces that one already.
    AlreadyReplaced,
    /// A limit is reached for so long.
    Limited(Duration),
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

/// The CA itself.
pub(super) struct Authority(Mutex<Inside>);

struct Inside {
    signing: Signing,
    weather: Weather,
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
    /// When each bucket is full again.
    buckets: BTreeMap<(Limit, String), Timestamp>,
}

/// What it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Limit {
    Orders,
    Domain,
    Duplicates,
    Failures,
}

impl Limit {
    /// Tokens in a full bucket, and what one takes to come back.
    fn most(self) -> (u32, Duration) {
        match self {
            Self::Orders => (300, 3 * HOUR / 300),
            Self::Domain => (50, 7 * DAY / 50),
            Self::Duplicates => (5, 7 * DAY / 5),
            Self::Failures => (5, HOUR / 5),
        }
    }
}

impl Authority {
    pub(super) fn new(now: Timestamp) -> Result<Self, CaError> {
        Ok(Self(Mutex::new(Inside {
            signing: Signing::new(now)?,
            weather: Weather::default(),
            counts: Counts::default(),
            orders: BTreeMap::new(),
            next_order: 0,
            known: BTreeMap::new(),
            newest: BTreeMap::new(),
            previous: BTreeMap::new(),
            keys: BTreeMap::new(),
            buckets: BTreeMap::new(),
        })))
    }

    pub(super) fn weather(&self) -> Weather {
        self.lock().weather.clone()
    }

    pub(super) fn change_weather(&self, change: impl FnOnce(&mut Weather)) {
        change(&mut self.lock().weather);
    }

    pub(super) fn counts(&self) -> Counts {
        self.lock().counts
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
            for subject in subjects(limit, &order.identifiers) {
                if let Some(wait) = inside.is_full(limit, subject, now) {
                    inside.counts.breaches += 1;
                    return Err(Refusal::Limited(wait));
                }
            }
        }
        if !exempt && !again {
            inside.take(Limit::Orders, String::new(), now);
        }
        inside.counts.orders += 1;
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

    /// Whether control of all names was proven; the order is void otherwise.
    pub(super) fn validate(&self, order: &PendingOrder, now: Timestamp) -> bool {
        let mut inside = self.lock();
        let unproven = inside.weather.unproven.clone();
        let failed: Vec<_> = order.identifiers.intersection(&unproven).collect();
        for name in &failed {
            inside.take(Limit::Failures, name.to_string(), now);
        }
        failed.is_empty()
    }

    /// Signs for an order, once: asked again it gives what it has signed.
    pub(super) fn finalize(
        &self,
        url: &str,
        key_pem: &Secret,
        now: Timestamp,
    ) -> Result<Option<String>, CaError> {
        let mut inside = self.lock();
        let number = number(url);
        let Some(order) = inside.orders.get(&number) else {
            return Ok(None);
        };
        if let Some(chain) = &order.chain {
            return Ok(Some(chain.clone()));
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
        Ok(Some(chain))
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

    /// Calls back one in `part` of what is good, and says how many that are.
    pub(super) fn call_back(&self, part: usize) -> usize {
        let mut inside = self.lock();
        // By names: identifiers of certificates are random.
        let chosen: Vec<String> = inside.newest.values().step_by(part).cloned().collect();
        for id in &chosen {
            if let Some(known) = inside.known.get_mut(id) {
                known.revoked = true;
            }
        }
        chosen.len()
    }

    /// Whether the leaf was signed for that key.
    pub(super) fn is_pair(&self, leaf: &Fingerprint, key_pem: &Secret) -> bool {
        self.lock().keys.get(&leaf.to_string()) == Some(key_pem)
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
}

impl Inside {
    fn is_exempt(&self, order: &PendingOrder, now: Timestamp) -> Result<bool, Refusal> {
        let replaced = order.replaces.as_ref().and_then(|id| self.known.get(id));
        let Some(replaced) = replaced else {
            return Ok(false);
        };
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
        } else if !self.weather.short {
            self.counts.needed += 1;
        }
        if exempt {
            return;
        }
        let again = self.newest.contains_key(names);
        for limit in [Limit::Domain, Limit::Duplicates] {
            if again && limit == Limit::Domain {
                continue;
            }
            for subject in subjects(limit, names) {
                self.take(limit, subject, now);
            }
        }
    }

    /// How long until there is room again; `None` when there is.
    fn is_full(&self, limit: Limit, subject: String, now: Timestamp) -> Option<Duration> {
        let full_at = *self.buckets.get(&(limit, subject))?;
        let (most, interval) = limit.most();
        let wait = full_at.since(now);
        (wait > interval * (most - 1)).then(|| wait - interval * (most - 1))
    }

    fn take(&mut self, limit: Limit, subject: String, now: Timestamp) {
        let (_, interval) = limit.most();
        let full_at = self.buckets.entry((limit, subject)).or_insert(now);
        *full_at = (*full_at).max(now) + interval;
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

fn limits(exempt: bool, again: bool) -> Vec<Limit> {
    match (exempt, again) {
        (true, _) => vec![],
        (false, true) => vec![Limit::Duplicates, Limit::Failures],
        (false, false) => vec![
            Limit::Orders,
            Limit::Domain,
            Limit::Duplicates,
            Limit::Failures,
        ],
    }
}

fn subjects(limit: Limit, names: &BTreeSet<Identifier>) -> Vec<String> {
    match limit {
        Limit::Orders => vec![String::new()],
        Limit::Duplicates => {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            vec![names.join(",")]
        }
        Limit::Failures => names.iter().map(ToString::to_string).collect(),
        // Two labels: the simulation's names are all below .com.
        Limit::Domain => {
            let domains = names.iter().map(|name| {
                let name = name.to_string();
                let labels: Vec<&str> = name.rsplitn(3, '.').take(2).collect();
                format!("{}.{}", labels.last().unwrap_or(&""), labels[0])
            });
            domains.collect::<BTreeSet<_>>().into_iter().collect()
        }
    }
}

/// Shared by all nodes.
pub(super) type Shared = Arc<Authority>;
