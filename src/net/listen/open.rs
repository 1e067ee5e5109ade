//! The open connections of a listener, and which one is closed for another when there are
//! too many. Clients are counted by address, and by network: the first 64 bits of an IPv6
//! address, all of which one host may use.
//!
//! The network with the most connections loses one, and in it the address with the most. If
//! it has about as many as the new client, it loses one that is older than
//! [`SETTLED`], so that a flood from many addresses cannot close a silent connection before
//! its request can arrive. Connections that have sent nothing are cheap, and have places of their own.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::{Limits, Peer};

/// The age at which a connection may be closed for a client with as many. Longer than most
/// round trips, and short, since new clients are refused for that long in the worst flood.
pub(super) const SETTLED: Duration = Duration::from_millis(300);

/// A difference of so many connections between two clients is none: a CA validates several
/// names at once.
const FEW: usize = 16;

/// What a client has sent on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    /// Nothing yet.
    Silent,
    /// At least a byte: a handshake or a request.
    Begun,
}

#[derive(Default)]
pub(super) struct Open {
    by_age: BTreeMap<u64, OpenConnection>,
    next: u64,
}

pub(super) struct OpenConnection {
    peer: Peer,
    network: Option<IpAddr>,
    stage: Stage,
    /// Since it is in its stage.
    since: Instant,
    task: AbortHandle,
}

/// All connections are busy, or too young to be closed for another.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

/// The host or site of an address.
fn network(address: Option<IpAddr>) -> Option<IpAddr> {
    const SITE: u128 = u128::MAX << 64;
    Some(match address?.to_canonical() {
        IpAddr::V6(address) => IpAddr::from((address.to_bits() & SITE).to_be_bytes()),
        v4 @ IpAddr::V4(_) => v4,
    })
}

impl Open {
    /// The number of the next connection.
    pub(super) fn next_id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Adds a connection; [`Open::make_room`] first.
    pub(super) fn insert(&mut self, id: u64, peer: Peer, task: AbortHandle) {
        let connection = OpenConnection {
            network: network(peer.address),
            peer,
            stage: Stage::Silent,
            since: Instant::now(),
            task,
        };
        self.by_age.insert(id, connection);
    }

    pub(super) fn remove(&mut self, id: u64) {
        self.by_age.remove(&id);
    }

    /// Moves a connection to [`Stage::Begun`]; returns the task to abort for it.
    pub(super) fn begin(&mut self, id: u64, limits: &Limits) -> Result<Option<AbortHandle>, Full> {
        let peer = self.by_age.get(&id).map(|one| one.peer.clone());
        let surplus = self.make_room(limits, Stage::Begun, &peer.ok_or(Full)?)?;
        if let Some(one) = self.by_age.get_mut(&id) {
            (one.stage, one.since) = (Stage::Begun, Instant::now());
        }
        Ok(surplus)
    }

    /// Takes out the connection to close for one more of `peer` in `stage`, and returns its
    /// task.
    pub(super) fn make_room(
        &mut self,
        limits: &Limits,
        stage: Stage,
        peer: &Peer,
    ) -> Result<Option<AbortHandle>, Full> {
        let (most, most_of_one) = match stage {
            Stage::Silent => (limits.silent, limits.silent / 2),
            Stage::Begun => (limits.connections, limits.by_address),
        };
        let in_stage = || self.by_age.iter().filter(|(_, one)| one.stage == stage);
        let (own_network, mut all, mut own) = (network(peer.address), 0, 0);
        for (_, one) in in_stage() {
            all += 1;
            own += usize::from(one.network == own_network);
        }
        let is_crowded = own >= most_of_one;
        if !is_crowded && all < most {
            return Ok(None);
        }
        let (mut networks, mut addresses) = (HashMap::new(), HashMap::new());
        for (_, one) in in_stage() {
            *networks.entry(one.network).or_insert(0) += 1;
            *addresses.entry(one.peer.address).or_insert(0) += 1;
        }
        let of_address = |address| addresses.get(&address).copied().unwrap_or(0_usize);
        let now = Instant::now();
        let closable = in_stage().filter_map(|(id, one)| {
            let weight = (networks[&one.network], of_address(one.peer.address));
            let is_own = one.network == own_network;
            let (its, ours) = match is_own {
                true => (weight.1, of_address(peer.address)),
                false => (weight.0, own),
            };
            // A request that has begun is whole at once, unless its client is slow on purpose.
            let is_settled = stage == Stage::Begun || now.duration_since(one.since) >= SETTLED;
            // A client with few connections never loses one to a client with many. Those of
            // one address compete by age alone: an honest one among them is soon answered.
            let is_fair = its > ours + FEW
                || is_settled && its + FEW > ours
                || one.peer.address == peer.address;
            let may_go = (is_own || !is_crowded) && is_fair;
            (may_go && one.peer.progress.is_idle()).then_some((weight, Reverse(*id)))
        });
        let (_, Reverse(id)) = closable.max().ok_or(Full)?;
        Ok(self.by_age.remove(&id).map(|one| one.task))
    }

    /// The tasks of all connections.
    pub(super) fn tasks(&self) -> impl Iterator<Item = &AbortHandle> {
        self.by_age.values().map(|one| &one.task)
    }
}

#[cfg(test)]
mod tests {
    use super::super::progress::Progress;
    use super::*;
    use crate::random::{Random, SeededRandom};

    const LIMITS: Limits = Limits {
        silent: 512,
        connections: 128,
        by_address: 64,
        head: Duration::from_secs(5),
        handshake: Duration::from_secs(5),
        connection: Duration::MAX,
        largest_head: 8 * 1024,
    };

    impl Open {
        /// Whether a connection with an earlier request is idle.
        pub(in super::super) fn has_idle_request(&self) -> bool {
            let mut all = self.by_age.values();
            all.any(|one| one.stage == Stage::Begun && one.peer.progress.is_idle())
        }

        fn count(&self, stage: Stage) -> usize {
            let all = self.by_age.values();
            all.filter(|one| one.stage == stage).count()
        }

        /// Admits `peer` if there is room.
        fn admit(&mut self, peer: &Peer) -> Option<u64> {
            self.make_room(&LIMITS, Stage::Silent, peer).ok()?;
            let id = self.next_id();
            let task = tokio::spawn(std::future::pending::<()>()).abort_handle();
            task.abort();
            self.insert(id, peer.clone(), task);
            Some(id)
        }

        fn admit_and_begin(&mut self, peer: &Peer) -> Option<u64> {
            let id = self.admit(peer)?;
            let begun = self.begin(id, &LIMITS);
            begun.is_err().then(|| self.remove(id));
            self.by_age.contains_key(&id).then_some(id)
        }
    }

    fn host(address: impl Into<IpAddr>) -> Peer {
        Peer {
            address: Some(address.into()),
            ..Peer::default()
        }
    }

    fn v4(number: u32) -> Peer {
        host(IpAddr::from((0x0a00_0000 + number).to_be_bytes()))
    }

    fn v6(site: u64, host_part: u64) -> Peer {
        let site = (0x2001_0db8_u128 << 96) + (u128::from(site) << 64);
        host(IpAddr::from((site + u128::from(host_part)).to_be_bytes()))
    }

    #[tokio::test]
    async fn connections_never_exceed_their_limits() {
        let mut open = Open::default();
        for number in 0..600 {
            for _ in 0..3 {
                open.admit(&v4(number));
                open.admit_and_begin(&v4(number));
            }
        }
        assert!(open.count(Stage::Silent) <= LIMITS.silent);
        assert_eq!(open.count(Stage::Begun), LIMITS.connections);
        let mut open = Open::default();
        for number in 0..999 {
            open.admit_and_begin(&v6(1, number));
        }
        assert_eq!(open.count(Stage::Begun), LIMITS.by_address);
        for number in 0..999 {
            open.admit(&v6(1, number));
        }
        assert_eq!(open.count(Stage::Silent), LIMITS.silent / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn connection_with_a_request_is_never_closed_for_another() {
        let mut open = Open::default();
        let all = u32::try_from(LIMITS.connections).unwrap();
        for number in 0..all {
            let peer = v4(number / 64);
            peer.progress.set(Progress::ANSWERING);
            open.admit_and_begin(&peer).unwrap();
        }
        tokio::time::advance(SETTLED).await;
        for number in 0..all {
            assert_eq!(open.admit_and_begin(&v4(number)), None);
        }
        let first = *open.by_age.keys().next().unwrap();
        open.by_age[&first].peer.progress.set(0);
        let newcomer = open.admit_and_begin(&v4(9)).unwrap();
        assert!(!open.by_age.contains_key(&first));
        // That one has not sent its request.
        assert!(open.admit_and_begin(&v4(8)).is_some());
        assert!(!open.by_age.contains_key(&newcomer));
    }

    #[tokio::test]
    async fn neighbour_in_a_network_loses_no_connection_to_the_flooding_address() {
        let (mut open, neighbour) = (Open::default(), v6(1, 7));
        let quiet = open.admit_and_begin(&neighbour).unwrap();
        for _ in 0..999 {
            open.admit_and_begin(&v6(1, 6));
        }
        assert!(open.by_age.contains_key(&quiet));
        assert!(open.admit_and_begin(&neighbour).is_some());
        assert!(open.by_age.contains_key(&quiet));
    }

    /// The share of clients that are served when their request arrives `round_trip` after
    /// their connection, while `rate` others a second connect, from the addresses of `flood`,
    /// and send a byte or nothing.
    async fn served(
        rate: u32,
        round_trip: Duration,
        stage: Stage,
        flood: impl Fn(u32) -> Peer,
    ) -> f64 {
        const TICKS: u32 = 4;
        let (mut open, mut waiting, mut served) = (Open::default(), Vec::new(), 0);
        let (pause, mut admitted) = (Duration::from_secs(1) / rate / TICKS, 0_u32);
        let (random, mut next) = (SeededRandom::new(7), 0);
        for tick in 0..rate * TICKS * 9 / 10 {
            if random.below(TICKS.into()) == 0 {
                let peer = flood(next);
                next += 1;
                match stage {
                    Stage::Silent => open.admit(&peer),
                    Stage::Begun => open.admit_and_begin(&peer),
                };
            }
            // By then all places are taken.
            if tick >= rate * TICKS * 4 / 10 && tick % (rate * TICKS / 100) == 0 {
                admitted += 1;
                let client = host([192, 0, 2, u8::try_from(admitted % 250).unwrap()]);
                let id = open.admit(&client);
                waiting.extend(id.map(|id| (Instant::now() + round_trip, id)));
            }
            tokio::time::advance(pause).await;
            waiting.retain(|(at, id)| {
                if *at > Instant::now() {
                    return true;
                }
                served += u32::from(open.begin(*id, &LIMITS).is_ok());
                open.remove(*id);
                false
            });
        }
        f64::from(served) / f64::from(admitted - u32::try_from(waiting.len()).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn flood_does_not_lock_out_clients_with_latency() {
        let (silent, begun) = (Stage::Silent, Stage::Begun);
        let round_trip = Duration::from_millis(200);
        for stage in [silent, begun] {
            let two = served(2000, round_trip, stage, |number| v4(number % 2)).await;
            let site = |number: u32| v6(1, number.into());
            let one_site = served(700, round_trip, stage, site).await;
            assert!(two >= 1.0 && one_site >= 1.0, "{stage:?}: {two} {one_site}");
        }
        // Each address holds one connection, as this client does.
        let many = |number| v4(number % 10_000);
        let shares = [
            served(2000, round_trip, silent, many).await,
            served(2000, round_trip, begun, many).await,
        ];
        // A place is free 1,700 times a second for those that send nothing, and 430 times
        // for those that begin a request.
        println!("{shares:?}");
        assert!(shares[0] >= 0.5 && shares[1] >= 0.05, "{shares:?}");
    }
}
