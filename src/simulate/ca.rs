//! The CA of the simulation: it counts Let's Encrypt's limits, takes windows and
//! signatures from the embedded CA, and fails as the scenarios say. It knows for
//! each certificate whether it was needed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::DAY;
use super::limits::{Buckets, CaLimit, limits, registered};
use crate::acme::Phase;
use crate::ca::{CaError, Signing, share};
use crate::certificate::{Facts, Secret};
use crate::fingerprint::Fingerprint;
use crate::identifier::Identifier;
use crate::record::{PendingOrder, Window};
use crate::time::Timestamp;

/// Its directory URL, by which the client knows the limits.
pub(super) const DIRECTORY: &str = "https://acme-v02.api.letsencrypt.org/directory";

const ORDER: &str = "https://acme-v02.api.letsencrypt.org/acme/order/";
const HOUR: Duration = Duration::from_secs(3600);
const SECOND: Duration = Duration::from_secs(1);
/// The time after the first failed request in which all nodes learn of an outage.
const FOUND_OUT: Duration = Duration::from_secs(300);
const MINUTE: Duration = Duration::from_secs(60);

/// The faults of the CA.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CaFaults {
    /// The CA is unreachable.
    pub(super) down: bool,
    /// Every reply is a rate limit.
    pub(super) busy: bool,
    /// Certificates expire after five minutes.
    pub(super) short: bool,
    /// Replies in a thousand that are lost after the CA has acted.
    pub(super) lost: u64,
}

/// The counts of the CA.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// Accepted orders.
    pub(super) orders: u64,
    /// Certificates that were needed.
    pub(super) needed: u64,
    /// Certificates that were not needed.
    pub(super) duplicates: u64,
    /// Renewals ordered while their windows were not open.
    pub(super) outside: u64,
    /// Orders refused by its limits.
    pub(super) breaches: u64,
    /// The most orders for one needed certificate, without those that failed by
    /// the CA's own fault.
    pub(super) most_orders: u64,
    /// The most requests in a minute of a known outage.
    pub(super) most_outage_requests: u64,
}

/// Why the CA refuses an order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum OrderRefusal {
    /// Another certificate already replaces the predecessor.
    AlreadyReplaced,
    /// The predecessor is unknown.
    UnknownReplaced,
    /// A rate limit, with the time until the next token.
    Limited(Duration),
}

/// The state of a set of names at the CA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum IssuanceState {
    /// No certificate yet.
    Unissued {
        /// Whether the limits have room for all first certificates.
        room: bool,
    },
    /// A certificate.
    Issued {
        leaf: Fingerprint,
        /// Whether its replacement is overdue.
        overdue: bool,
        /// Whether it is revoked.
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

struct Issued {
    facts: Facts,
    revoked: bool,
    replaced: bool,
}

/// Requests during an outage.
#[derive(Default)]
struct OutageRequests {
    /// The first failed order (`true`) and the first failed request for a window
    /// (`false`): each kind learns of the outage by itself.
    met: BTreeMap<bool, Timestamp>,
    /// The start of the counted minute.
    since: Option<Timestamp>,
    count: u64,
}

impl OutageRequests {
    /// The requests within a minute, with one `now`; zero in the first minutes, while
    /// the nodes learn of the outage.
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

/// The CA of the simulation.
pub(super) struct SimulatedCa(Mutex<Inner>);

struct Inner {
    signing: Signing,
    faults: CaFaults,
    /// Names that fail their validation.
    unproven: BTreeSet<Identifier>,
    counts: Counts,
    /// By number.
    orders: BTreeMap<u64, Order>,
    next_order: u64,
    /// By renewal identifier.
    known: BTreeMap<String, Issued>,
    /// The newest certificate of a set of names.
    newest: BTreeMap<BTreeSet<Identifier>, String>,
    /// The predecessor of the newest.
    previous: BTreeMap<BTreeSet<Identifier>, String>,
    /// The private key of each leaf.
    keys: BTreeMap<String, Secret>,
    buckets: Buckets,
    outage_requests: OutageRequests,
    /// Orders since the last needed certificate.
    tries: BTreeMap<BTreeSet<Identifier>, u64>,
}

impl SimulatedCa {
    pub(super) fn new(now: Timestamp) -> Result<Self, CaError> {
        Ok(Self(Mutex::new(Inner {
            signing: Signing::new(now)?,
            faults: CaFaults::default(),
            unproven: BTreeSet::new(),
            counts: Counts::default(),
            orders: BTreeMap::new(),
            next_order: 0,
            known: BTreeMap::new(),
            newest: BTreeMap::new(),
            previous: BTreeMap::new(),
            keys: BTreeMap::new(),
            buckets: Buckets::default(),
            outage_requests: OutageRequests::default(),
            tries: BTreeMap::new(),
        })))
    }

    pub(super) fn faults(&self) -> CaFaults {
        self.lock().faults
    }

    pub(super) fn change_faults(&self, change: impl FnOnce(&mut CaFaults)) {
        change(&mut self.lock().faults);
    }

    /// Whether the CA is down; it counts the request if so.
    pub(super) fn is_down(&self, phase: Phase, now: Timestamp) -> bool {
        let mut inner = self.lock();
        let inner = &mut *inner;
        if !inner.faults.down {
            inner.outage_requests = OutageRequests::default();
            return false;
        }
        let outage_requests = inner.outage_requests.count(phase, now);
        inner.counts.most_outage_requests = inner.counts.most_outage_requests.max(outage_requests);
        true
    }

    /// From now on exactly these names fail their validation.
    pub(super) fn fail_validation_of(&self, unproven: BTreeSet<Identifier>) {
        self.lock().unproven = unproven;
    }

    pub(super) fn counts(&self) -> Counts {
        let inner = self.lock();
        let tries = inner.tries.values().copied().max().unwrap_or_default();
        let most_orders = inner.counts.most_orders.max(tries);
        Counts {
            most_orders,
            ..inner.counts
        }
    }

    /// Accepts or refuses an order.
    pub(super) fn order(
        &self,
        order: &PendingOrder,
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<String, OrderRefusal> {
        let mut inner = self.lock();
        let exempt = inner.is_exempt(order, now)?;
        let again = inner.newest.contains_key(&order.identifiers);
        for limit in limits(exempt, again) {
            for subject in limit.subjects(&order.identifiers) {
                if let Some(wait) = inner.buckets.is_full(*limit, subject, now) {
                    inner.counts.breaches += 1;
                    return Err(OrderRefusal::Limited(wait));
                }
            }
        }
        if !exempt && !again {
            inner.buckets.take(CaLimit::Orders, String::new(), now);
        }
        inner.counts.orders += 1;
        *inner.tries.entry(order.identifiers.clone()).or_default() += 1;
        inner.counts.outside += u64::from(again && !exempt);
        inner.next_order += 1;
        inner.forget_orders(now);
        let number = inner.next_order;
        let taken = Order {
            created: now,
            identifiers: order.identifiers.clone(),
            lifetime,
            replaces: order.replaces.clone(),
            exempt,
            chain: None,
        };
        inner.orders.insert(number, taken);
        Ok(format!("{ORDER}{number}"))
    }

    /// Does not count one order for `names`: the script lost its reply.
    pub(super) fn discount(&self, names: &BTreeSet<Identifier>) {
        self.lock().discount(names);
    }

    /// Whether all names pass their validation; the order is invalid otherwise.
    pub(super) fn validate(&self, order: &PendingOrder, now: Timestamp) -> bool {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let mut failed = order.identifiers.intersection(&inner.unproven).peekable();
        if failed.peek().is_none() {
            return true;
        }
        for name in failed {
            inner.buckets.take(CaLimit::Failures, name.to_string(), now);
        }
        inner.discount(&order.identifiers);
        false
    }

    /// Signs an order once; a repeated request returns the same certificate.
    pub(super) fn finalize(
        &self,
        url: &str,
        key_pem: &Secret,
        now: Timestamp,
    ) -> Result<Option<SignedChain>, CaError> {
        let mut inner = self.lock();
        let number = number(url);
        let Some(order) = inner.orders.get(&number) else {
            return Ok(None);
        };
        if let Some(chain) = order.chain.clone() {
            let is_first = false;
            return Ok(Some(SignedChain { chain, is_first }));
        }
        let (names, lifetime) = (order.identifiers.clone(), order.lifetime);
        let (replaces, exempt) = (order.replaces.clone(), order.exempt);
        let short = inner.faults.short;
        let not_before = now - HOUR;
        let not_after = match short {
            true => now + Duration::from_secs(300),
            false => not_before + lifetime - SECOND,
        };
        let validity = (not_before, not_after);
        let (facts, chain) = inner.signing.sign(key_pem, &names, validity, now)?;
        inner.count(&names, exempt, now);
        let is_first = !short && !inner.newest.contains_key(&names);
        if let Some(replaced) = replaces.and_then(|id| inner.known.get_mut(&id)) {
            replaced.replaced = true;
        }
        let key = facts.fingerprint.to_string();
        inner.keys.insert(key, key_pem.clone());
        // A useless certificate does not become the newest.
        if let Some(id) = facts.renewal_id.clone().filter(|_| !short) {
            let before = inner.newest.insert(names.clone(), id.clone());
            let last_but_one = before.and_then(|before| inner.previous.insert(names, before));
            if let Some(last_but_one) = last_but_one {
                inner.forget(&last_but_one);
            }
            let known = Issued {
                facts,
                revoked: false,
                replaced: false,
            };
            inner.known.insert(id, known);
        }
        if let Some(order) = inner.orders.get_mut(&number) {
            order.chain = Some(chain.clone());
        }
        Ok(Some(SignedChain { chain, is_first }))
    }

    /// Removes a failed order.
    pub(super) fn forget_order(&self, url: &str) {
        self.lock().orders.remove(&number(url));
    }

    /// The suggested window; that of a revoked certificate is past.
    pub(super) fn window(&self, renewal_id: &str, now: Timestamp) -> Option<Window> {
        let inner = self.lock();
        let known = inner.known.get(renewal_id)?;
        Some(known.window(now))
    }

    /// Revokes one in `part` of the newest certificates, from `first` on; returns
    /// their fingerprints.
    pub(super) fn revoke(&self, part: usize, first: usize) -> BTreeSet<String> {
        let mut inner = self.lock();
        // Sorted by names, since certificate identifiers are random.
        let newest = inner.newest.values().skip(first % part);
        let chosen: Vec<String> = newest.step_by(part).cloned().collect();
        let mut leaves = BTreeSet::new();
        for id in &chosen {
            if let Some(known) = inner.known.get_mut(id) {
                known.revoked = true;
                leaves.insert(known.facts.fingerprint.to_string());
            }
        }
        leaves
    }

    /// Whether `leaf` and the key belong together.
    pub(super) fn is_pair(&self, leaf: &Fingerprint, key_pem: &Secret) -> bool {
        self.lock().keys.get(&leaf.to_string()) == Some(key_pem)
    }

    /// Whether `leaf` is the newest certificate for `names`, and not overdue.
    pub(super) fn is_the_newest(
        &self,
        names: &BTreeSet<Identifier>,
        leaf: &Fingerprint,
        now: Timestamp,
    ) -> bool {
        let inner = self.lock();
        let newest = inner.newest.get(names).and_then(|id| inner.known.get(id));
        newest.is_some_and(|known| known.facts.fingerprint == *leaf && !known.is_overdue(now))
    }

    /// The issuance state of each of `all`.
    pub(super) fn issuance<'n>(
        &self,
        all: impl Iterator<Item = &'n BTreeSet<Identifier>>,
        now: Timestamp,
    ) -> Vec<IssuanceState> {
        let (inner, all) = (self.lock(), all.collect::<Vec<_>>());
        let waiting = all
            .iter()
            .filter(|names| !inner.newest.contains_key(**names));
        let (mut orders, mut by_domain) = (0, BTreeMap::<String, u32>::new());
        for name in waiting.flat_map(|names| names.iter()) {
            orders += 1;
            *by_domain.entry(registered(name)).or_default() += 1;
        }
        let room = |limit, subject| inner.buckets.room(limit, subject, now);
        let enough = orders <= room(CaLimit::Orders, String::new());
        let issuance = all.iter().map(|names| {
            match inner.newest.get(*names).and_then(|id| inner.known.get(id)) {
                Some(known) => IssuanceState::Issued {
                    leaf: known.facts.fingerprint.clone(),
                    overdue: known.is_overdue(now),
                    revoked: known.revoked,
                },
                None => {
                    let mut domains = names.iter().map(registered);
                    let fits = domains.all(|domain| {
                        let waiting = by_domain.get(&domain).copied().unwrap_or_default();
                        waiting <= room(CaLimit::Domain, domain)
                    });
                    IssuanceState::Unissued {
                        room: enough && fits,
                    }
                }
            }
        });
        issuance.collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The signed chain of an order.
pub(super) struct SignedChain {
    pub(super) chain: String,
    /// Whether it is the first one for these names.
    pub(super) is_first: bool,
}

impl Issued {
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

impl Inner {
    fn is_exempt(&self, order: &PendingOrder, now: Timestamp) -> Result<bool, OrderRefusal> {
        let Some(replaced) = &order.replaces else {
            return Ok(false);
        };
        let replaced = self
            .known
            .get(replaced)
            .ok_or(OrderRefusal::UnknownReplaced)?;
        if replaced.replaced {
            return Err(OrderRefusal::AlreadyReplaced);
        }
        let window = replaced.window(now);
        Ok((window.start..window.end).contains(&now))
    }

    /// Counts a certificate that is signed now.
    fn count(&mut self, names: &BTreeSet<Identifier>, exempt: bool, now: Timestamp) {
        let newest = self.newest.get(names).and_then(|id| self.known.get(id));
        let spare = newest.is_some_and(|newest| newest.is_needed(now));
        if spare {
            self.counts.duplicates += 1;
        } else if self.faults.short {
            self.discount(names);
        } else {
            self.counts.needed += 1;
            let tries = self.tries.remove(names).unwrap_or_default();
            self.counts.most_orders = self.counts.most_orders.max(tries);
        }
        if exempt {
            return;
        }
        let again = self.newest.contains_key(names);
        for limit in [CaLimit::Domain, CaLimit::Duplicates] {
            if again && limit == CaLimit::Domain {
                continue;
            }
            for subject in limit.subjects(names) {
                self.buckets.take(limit, subject, now);
            }
        }
    }

    fn discount(&mut self, names: &BTreeSet<Identifier>) {
        if let Some(tries) = self.tries.get_mut(names) {
            *tries = tries.saturating_sub(1);
        }
    }

    /// Removes orders that are older than a week.
    fn forget_orders(&mut self, now: Timestamp) {
        while let Some(first) = self.orders.first_entry()
            && first.get().created + 7 * DAY < now
        {
            first.remove();
        }
    }

    /// Removes a certificate that no node loads any more.
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

/// The CA, shared by all nodes.
pub(super) type SharedCa = Arc<SimulatedCa>;
