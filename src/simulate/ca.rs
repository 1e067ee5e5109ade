//! The CA of the simulation: it counts Let's Encrypt's limits, takes windows and
//! signatures from the embedded CA, and fails as the scenarios say. It knows for
//! each certificate whether it was needed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::limits::{Buckets, CaLimit, limits, registered};
use super::{DAY, HOUR, MINUTE, SECOND, lock};
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
/// The time after the first failed request in which all nodes learn of an outage.
const FOUND_OUT: Duration = Duration::from_secs(300);

#[derive(Clone, Debug, Default)]
pub(super) struct CaFaults {
    /// The CA is unreachable.
    pub(super) down: bool,
    /// Every reply is a rate limit.
    pub(super) busy: bool,
    /// Certificates expire after five minutes.
    pub(super) short: bool,
    pub(super) failing: BTreeSet<Identifier>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) orders: u64,
    pub(super) needed: u64,
    pub(super) duplicates: u64,
    /// Renewals ordered while their windows were not open.
    pub(super) outside: u64,
    pub(super) refused: u64,
    /// The most orders for one needed certificate, without those that failed by
    /// the CA's own fault.
    pub(super) most_orders: u64,
    /// The most requests in a minute of a known outage.
    pub(super) most_outage_requests: u64,
}

/// Why the CA refuses an order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum OrderRefusal {
    AlreadyReplaced,
    UnknownReplaced,
    /// A rate limit, with the time until the next token.
    Limited(Duration),
}

/// The state of a set of names at the CA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum IssuanceState {
    Unissued {
        /// Whether the limits have room for all first certificates.
        room: bool,
    },
    Issued {
        leaf: Fingerprint,
        overdue: bool,
        revoked: bool,
    },
}

pub(super) struct SignedChain {
    pub(super) chain: String,
    /// Whether it is the first one for these names.
    pub(super) is_first: bool,
}

#[derive(Clone)]
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

#[derive(Default)]
struct OutageRequests {
    /// The first failed order (`true`) and the first failed request for a window
    /// (`false`): each kind learns of the outage by itself.
    met: BTreeMap<bool, Timestamp>,
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

#[derive(Clone)]
pub(super) struct SharedCa(Arc<Mutex<SimulatedCa>>);

impl SharedCa {
    pub(super) fn new(now: Timestamp) -> Result<Self, CaError> {
        Ok(Self(Arc::new(Mutex::new(SimulatedCa {
            signing: Signing::new(now)?,
            faults: CaFaults::default(),
            lost: 0,
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
        }))))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, SimulatedCa> {
        lock(&self.0)
    }
}

pub(super) struct SimulatedCa {
    signing: Signing,
    pub(super) faults: CaFaults,
    /// Replies in a thousand that are lost after the CA has acted.
    pub(super) lost: u64,
    counts: Counts,
    orders: BTreeMap<u64, Order>,
    next_order: u64,
    /// By renewal identifier.
    known: BTreeMap<String, Issued>,
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
    /// Whether the CA is down; it counts the request if so.
    pub(super) fn is_down(&mut self, phase: Phase, now: Timestamp) -> bool {
        if !self.faults.down {
            self.outage_requests = OutageRequests::default();
            return false;
        }
        let requests = self.outage_requests.count(phase, now);
        self.counts.most_outage_requests = self.counts.most_outage_requests.max(requests);
        true
    }

    pub(super) fn counts(&self) -> Counts {
        let tries = self.tries.values().copied().max().unwrap_or_default();
        let most_orders = self.counts.most_orders.max(tries);
        Counts {
            most_orders,
            ..self.counts
        }
    }

    pub(super) fn order(
        &mut self,
        order: &PendingOrder,
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<String, OrderRefusal> {
        let exempt = self.is_exempt(order, now)?;
        let again = self.newest.contains_key(&order.identifiers);
        for limit in limits(exempt, again) {
            for subject in limit.subjects(&order.identifiers) {
                if let Some(wait) = self.buckets.is_full(*limit, subject, now) {
                    self.counts.refused += 1;
                    return Err(OrderRefusal::Limited(wait));
                }
            }
        }
        if !exempt && !again {
            self.buckets.take(CaLimit::Orders, String::new(), now);
        }
        self.counts.orders += 1;
        *self.tries.entry(order.identifiers.clone()).or_default() += 1;
        self.counts.outside += u64::from(again && !exempt);
        self.next_order += 1;
        self.forget_orders(now);
        let taken = Order {
            created: now,
            identifiers: order.identifiers.clone(),
            lifetime,
            replaces: order.replaces.clone(),
            exempt,
            chain: None,
        };
        self.orders.insert(self.next_order, taken);
        Ok(format!("{ORDER}{}", self.next_order))
    }

    /// Does not count one order for `names`: the script lost its reply.
    pub(super) fn discount(&mut self, names: &BTreeSet<Identifier>) {
        if let Some(tries) = self.tries.get_mut(names) {
            *tries = tries.saturating_sub(1);
        }
    }

    /// Whether all names pass their validation; the order is invalid otherwise.
    pub(super) fn validate(&mut self, order: &PendingOrder, now: Timestamp) -> bool {
        let mut failed = order
            .identifiers
            .intersection(&self.faults.failing)
            .peekable();
        if failed.peek().is_none() {
            return true;
        }
        for name in failed {
            self.buckets.take(CaLimit::Failures, name.to_string(), now);
        }
        self.discount(&order.identifiers);
        false
    }

    /// Signs an order once; a repeated request returns the same certificate.
    pub(super) fn finalize(
        &mut self,
        url: &str,
        key_pem: &Secret,
        now: Timestamp,
    ) -> Result<Option<SignedChain>, CaError> {
        let Some(order) = self.orders.get(&number(url)).cloned() else {
            return Ok(None);
        };
        if let Some(chain) = order.chain {
            let is_first = false;
            return Ok(Some(SignedChain { chain, is_first }));
        }
        let (names, short) = (order.identifiers, self.faults.short);
        let not_before = now - HOUR;
        let not_after = match short {
            true => now + MINUTE * 5,
            false => not_before + order.lifetime - SECOND,
        };
        let validity = (not_before, not_after);
        let (facts, chain) = self.signing.sign(key_pem, &names, validity, now)?;
        self.count(&names, order.exempt, now);
        let is_first = !short && !self.newest.contains_key(&names);
        if let Some(replaced) = order.replaces.and_then(|id| self.known.get_mut(&id)) {
            replaced.replaced = true;
        }
        self.keys
            .insert(facts.fingerprint.to_string(), key_pem.clone());
        // A useless certificate does not become the newest.
        if let Some(id) = facts.renewal_id.clone().filter(|_| !short) {
            let before = self.newest.insert(names.clone(), id.clone());
            let last_but_one = before.and_then(|before| self.previous.insert(names, before));
            if let Some(last_but_one) = last_but_one {
                self.forget(&last_but_one);
            }
            let known = Issued {
                facts,
                revoked: false,
                replaced: false,
            };
            self.known.insert(id, known);
        }
        if let Some(order) = self.orders.get_mut(&number(url)) {
            order.chain = Some(chain.clone());
        }
        Ok(Some(SignedChain { chain, is_first }))
    }

    pub(super) fn forget_order(&mut self, url: &str) {
        self.orders.remove(&number(url));
    }

    /// The suggested window; that of a revoked certificate is past.
    pub(super) fn window(&self, renewal_id: &str, now: Timestamp) -> Option<Window> {
        Some(self.known.get(renewal_id)?.window(now))
    }

    /// Revokes one in `part` of the newest certificates, from `first` on; returns
    /// their fingerprints.
    pub(super) fn revoke(&mut self, part: usize, first: usize) -> BTreeSet<String> {
        // Sorted by names, since certificate identifiers are random.
        let newest = self.newest.values().skip(first % part);
        let mut leaves = BTreeSet::new();
        for id in newest.step_by(part) {
            if let Some(known) = self.known.get_mut(id) {
                known.revoked = true;
                leaves.insert(known.facts.fingerprint.to_string());
            }
        }
        leaves
    }

    pub(super) fn is_pair(&self, leaf: &Fingerprint, key_pem: &Secret) -> bool {
        self.keys.get(&leaf.to_string()) == Some(key_pem)
    }

    /// Whether `leaf` is the newest certificate for `names`, and not overdue.
    pub(super) fn is_the_newest(
        &self,
        names: &BTreeSet<Identifier>,
        leaf: &Fingerprint,
        now: Timestamp,
    ) -> bool {
        self.newest(names)
            .is_some_and(|known| known.facts.fingerprint == *leaf && !known.is_overdue(now))
    }

    fn newest(&self, names: &BTreeSet<Identifier>) -> Option<&Issued> {
        self.known.get(self.newest.get(names)?)
    }

    /// The issuance state of each of `all`.
    pub(super) fn issuance<'n>(
        &self,
        all: impl Iterator<Item = &'n BTreeSet<Identifier>> + Clone,
        now: Timestamp,
    ) -> Vec<IssuanceState> {
        let waiting = all.clone().filter(|names| self.newest(names).is_none());
        let (mut orders, mut by_domain) = (0, BTreeMap::<String, u32>::new());
        for name in waiting.flatten() {
            orders += 1;
            *by_domain.entry(registered(name)).or_default() += 1;
        }
        let room = |limit, subject| self.buckets.room(limit, subject, now);
        let enough = orders <= room(CaLimit::Orders, String::new());
        let state = |names| match self.newest(names) {
            Some(known) => IssuanceState::Issued {
                leaf: known.facts.fingerprint.clone(),
                overdue: known.is_overdue(now),
                revoked: known.revoked,
            },
            None => {
                let fits = |domain: String| {
                    let waiting = by_domain.get(&domain).copied().unwrap_or_default();
                    waiting <= room(CaLimit::Domain, domain)
                };
                let room = enough && names.iter().map(registered).all(fits);
                IssuanceState::Unissued { room }
            }
        };
        all.map(state).collect()
    }

    fn is_exempt(&self, order: &PendingOrder, now: Timestamp) -> Result<bool, OrderRefusal> {
        let Some(replaced) = &order.replaces else {
            return Ok(false);
        };
        let replaced = self.known.get(replaced);
        let replaced = replaced.ok_or(OrderRefusal::UnknownReplaced)?;
        if replaced.replaced {
            return Err(OrderRefusal::AlreadyReplaced);
        }
        let window = replaced.window(now);
        Ok((window.start..window.end).contains(&now))
    }

    fn count(&mut self, names: &BTreeSet<Identifier>, exempt: bool, now: Timestamp) {
        let newest = self.newest(names);
        let spare = newest.filter(|newest| newest.is_needed(now));
        if let Some(spare) = spare {
            let (start, exempt) = (spare.window(now).start, exempt);
            tracing::error!(?names, %now, %start, exempt, "signed while the newest one was not due");
            self.counts.duplicates += 1;
        } else if self.faults.short {
            self.discount(names);
        } else {
            self.counts.needed += 1;
            let tries = self.tries.remove(names).unwrap_or_default();
            self.counts.most_orders = self.counts.most_orders.max(tries);
        }
        let spent: &[CaLimit] = match self.newest(names) {
            _ if exempt => &[],
            Some(_) => &[CaLimit::Duplicates],
            None => &[CaLimit::Domain, CaLimit::Duplicates],
        };
        for limit in spent {
            for subject in limit.subjects(names) {
                self.buckets.take(*limit, subject, now);
            }
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

    /// Whether its renewal would be needless.
    fn is_needed(&self, now: Timestamp) -> bool {
        !self.revoked && now < self.window(now).start
    }

    fn is_overdue(&self, now: Timestamp) -> bool {
        self.window(now).end <= now
    }
}

fn number(url: &str) -> u64 {
    let number = url.strip_prefix(ORDER);
    let number = number.and_then(|number| number.parse().ok());
    number.unwrap_or_default()
}
