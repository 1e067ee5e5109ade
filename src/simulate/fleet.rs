//! The fleet: sets up the CA, the store and the nodes, starts the scenarios, runs
//! the clock and computes the score.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::JoinSet;

use super::ca::{DIRECTORY, IssuanceState, SharedCa};
use super::copy::OwnCopy;
use super::issuer::NodeIssuer;
use super::limits::first_issuance;
use super::node::{Node, NodeProxy, Uptime};
use super::scenario::Event;
use super::script::Script;
use super::store::{StoreLink, StoreServer};
use super::tally::FleetTally;
use super::{
    DAY, GONE, HOUR, MINUTE, START, Scenario, Score, SimulationError, SimulationPlan, Timeline,
    lock,
};
use crate::certificate::{BundleCache, KeyType, Secret};
use crate::deploy::coalesce::Gate;
use crate::deploy::endpoint::Endpoint;
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::manage::{
    Certificate, Keeper, Keys, ManageError, OrderSettings, Probes, SPACING, SPREAD, SameNames,
    Services, SharedServices, VERIFY_WITHIN, Wanted,
};
use crate::observe::{Board, Metrics};
use crate::random::{Random, SeededRandom};
use crate::record::Terms;
use crate::store::node::{Followed, NodeStore, Pace, Role};
use crate::store::seal::Seal;
use crate::store::shared::SharedStore;
use crate::supervise::{Handle, Supervisor};
use crate::time::{Clock, Timestamp, VirtualClock};

const SAMPLE: Duration = HOUR.saturating_mul(6);
/// The number of private keys: made before the start, and reused.
const KEYS: usize = 16;
/// Between two looks at the store: a year of one every 15 seconds, as of `certs run`, would cost
/// more than all passes.
const LOOK: Duration = MINUTE.saturating_mul(10);
/// Seals what the store gets.
const SEAL: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
/// A restart of the process takes up to a minute.
pub(super) const RESTART: Duration = MINUTE;
/// Names below the first registered domain: more than its limit lets through.
const CROWDED: usize = 60;

/// The state that all tasks of the simulation share.
pub(super) struct World {
    pub(super) plan: SimulationPlan,
    pub(super) clock: Arc<VirtualClock>,
    pub(super) ca: SharedCa,
    pub(super) tally: Arc<FleetTally>,
    pub(super) script: Arc<Script>,
    pub(super) store: Arc<StoreServer>,
    pub(super) nodes: Vec<Arc<Node>>,
    seal: Seal,
    keys: Arc<KeyPool>,
    bundles: BundleCache,
    endpoint: Endpoint,
    timeline: Mutex<Timeline>,
    pub(super) lineages: Vec<(Lineage, BTreeSet<Identifier>, Duration)>,
}

/// A pool of ready keys; the next one is drawn.
struct KeyPool {
    keys: Vec<Secret>,
    random: SeededRandom,
}

#[async_trait]
impl Keys for KeyPool {
    async fn make(&self, _kind: KeyType) -> Result<Secret, ManageError> {
        let drawn = self.random.below(self.keys.len() as u64) as usize;
        Ok(self.keys[drawn].clone())
    }
}

pub(super) fn play_by(
    plan: &SimulationPlan,
    script: Script,
) -> Result<(Score, Timeline), SimulationError> {
    let clock = Arc::new(VirtualClock::new(START));
    let world = Arc::new(World::new(plan.clone(), script, clock.clone())?);
    // All tasks wait: step the clock to the next instant.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .on_thread_park(move || {
            clock.step();
        })
        .build()?;
    Ok(runtime.block_on(world.run()))
}

impl World {
    fn new(
        plan: SimulationPlan,
        script: Script,
        clock: Arc<VirtualClock>,
    ) -> Result<Self, SimulationError> {
        let (ca, script) = (SharedCa::new(START)?, Arc::new(script));
        let tally = Arc::new(FleetTally::new(script.clone()));
        let nodes = (0..plan.nodes).map(|index| {
            let (clock, ca) = (clock.clone(), ca.clone());
            Arc::new(Node::new(index, clock, ca, tally.clone()))
        });
        let keys = (0..KEYS).map(|_| KeyType::default().generate());
        Ok(Self {
            nodes: nodes.collect(),
            keys: Arc::new(KeyPool {
                keys: keys.collect::<Result<_, _>>()?,
                random: SeededRandom::new(plan.seed),
            }),
            seal: Seal::new(SEAL)?,
            lineages: lineages(&plan)?,
            endpoint: "127.0.0.1:443".parse().map_err(SimulationError::Name)?,
            store: Arc::new(StoreServer::new(clock.clone(), &plan.scenarios)),
            bundles: BundleCache::default(),
            timeline: Mutex::default(),
            clock,
            ca,
            tally,
            script,
            plan,
        })
    }

    pub(super) fn span(&self) -> Duration {
        DAY * self.plan.days
    }

    pub(super) fn is_chosen(&self, scenario: Scenario) -> bool {
        self.plan.scenarios.contains(&scenario)
    }

    async fn run(self: Arc<Self>) -> (Score, Timeline) {
        let mut tasks = JoinSet::new();
        for node in &self.nodes {
            tasks.spawn(self.clone().run_node(node.clone()));
            tasks.spawn(self.clone().run_node_faults(node.clone()));
        }
        tasks.spawn(self.clone().run_ca_faults());
        tasks.spawn(self.clone().run_store_faults());
        tasks.spawn(self.clone().watch());
        if self.is_chosen(Scenario::LostReplies) {
            self.ca.lock().lost = 30;
        }
        self.clock.sleep_until(START + self.span()).await;
        tasks.abort_all();
        while tasks.join_next().await.is_some() {}
        let score = self.score();
        let mut timeline = std::mem::take(&mut *lock(&self.timeline));
        timeline.outside_window = self.ca.lock().counts().outside;
        timeline.events = self.script.at_the_ca.iter().map(named).collect();
        (score, timeline)
    }

    fn score(&self) -> Score {
        let (counts, end) = (self.ca.lock().counts(), START + self.span());
        let sums = self.tally.sums(end);
        let issuance = self.issuance(end);
        let waits = |one: &&IssuanceState| match one {
            IssuanceState::Unissued { .. } => true,
            IssuanceState::Issued { overdue, .. } => *overdue,
        };
        let overdue = issuance.iter().filter(waits).count() as u64;
        let within = |scenario: &Scenario| {
            let took = sums.recoveries.get(scenario).copied();
            seconds(took.unwrap_or_default())
        };
        let usual = Scenario::Outages.recovers_within();
        let happened = self.script.happened();
        let without_pause = happened.keys().filter(|one| one.recovers_within() == usual);
        let worst = without_pause.map(within).max();
        let recoveries = happened.keys().map(|one| (one.to_string(), within(one)));
        let events = happened
            .iter()
            .map(|(one, count)| (one.to_string(), *count));
        let (leases, refused) = self.store.counts();
        Score {
            plan: self.plan.clone(),
            expired_seconds_served: seconds(sums.expired),
            mismatched_seconds_served: seconds(sums.mismatched),
            due_renewals: counts.needed + overdue,
            orders: counts.orders,
            duplicate_certificates: counts.duplicates,
            refused_orders: counts.refused,
            reloads: sums.reloads,
            reloads_at_most: self.reloads_at_most(&happened),
            worst_recovery_seconds: worst.unwrap_or_default(),
            placeholder_seconds_served: seconds(sums.bare),
            certificates_never_issued: self.never_issued(&issuance),
            most_orders_for_one_renewal: counts.most_orders,
            requests_a_minute_while_down: counts.most_outage_requests,
            revoked_seconds_served: seconds(sums.revoked),
            leases_run_out: leases,
            late_saves_refused: refused,
            events: events.collect(),
            recovery_seconds: recoveries.collect(),
        }
    }

    /// The allowed reloads. Each proxy loads each certificate once, and all of them
    /// when its machine returns empty. A killed process or a full disk may leave
    /// reloads unrecorded; a proxy that recovers during a deployment also loads the
    /// rolled-back generation.
    fn reloads_at_most(&self, happened: &BTreeMap<Scenario, u64>) -> u64 {
        const IN_FLIGHT: u64 = 4;
        let counts = self.ca.lock().counts();
        let (nodes, all) = (self.nodes.len() as u64, self.lineages.len() as u64);
        let times = |scenario| happened.get(&scenario).copied().unwrap_or_default();
        let unrecorded =
            times(Scenario::Crashes) + times(Scenario::FullDisks) + times(Scenario::DeafProxies);
        let loads = nodes * (counts.needed + counts.duplicates);
        loads + all * times(Scenario::Scaling) + IN_FLIGHT * unrecorded
    }

    pub(super) fn issuance(&self, now: Timestamp) -> Vec<IssuanceState> {
        let names = self.lineages.iter().map(|(_, names, _)| names);
        self.ca.lock().issuance(names, now)
    }

    /// Certificates that should be issued by now: zero until a day after the limits
    /// and the script left time for all of them.
    fn never_issued(&self, issuance: &[IssuanceState]) -> u64 {
        let names = self.lineages.iter().flat_map(|(_, names, _)| names);
        let blocked = self.script.blocked_until(START + self.span());
        if self.span() < first_issuance(names) + blocked + DAY {
            return 0;
        }
        let unissued = |one: &&IssuanceState| matches!(one, IssuanceState::Unissued { .. });
        issuance.iter().filter(unissued).count() as u64
    }

    /// The store of a process of `node`, with the copy on its disk.
    fn node_store(&self, node: &Arc<Node>, copy: Arc<OwnCopy>, seed: u64) -> Arc<NodeStore> {
        let link = StoreLink::new(self.store.clone(), node.clone(), seed);
        let name = format!("node{}", node.index);
        let shared = SharedStore::new(Arc::new(link), self.seal.clone(), name);
        let shared = shared.with_clock(Arc::new(Uptime(node.clone())));
        let pace = Pace {
            polled: LOOK,
            counted: LOOK,
            notified: LOOK,
            gone: GONE,
        };
        Arc::new(NodeStore::over(copy, shared, Role::Full, pace))
    }

    fn certificates(&self, node: &Arc<Node>, random: &Arc<dyn Random>) -> Vec<Certificate> {
        let lineages = self.lineages.iter();
        let certificates = lineages.map(|(lineage, identifiers, lifetime)| Certificate {
            wanted: Wanted {
                lineage: lineage.clone(),
                identifiers: identifiers.iter().cloned().collect(),
                order: Arc::new(OrderSettings {
                    ca: DIRECTORY.to_owned(),
                    terms: Terms::default(),
                    request: None,
                    partial: false,
                }),
            },
            targets: vec![Arc::new(NodeProxy(node.clone(), lineage.clone()))],
            keeper: Keeper::default(),
            shared: Arc::new(SharedServices {
                issuer: Arc::new(NodeIssuer {
                    node: node.clone(),
                    store: self.store.clone(),
                    random: random.clone(),
                    lifetime: *lifetime,
                }),
                fallback: None,
                endpoints: vec![self.endpoint.clone()],
                cannot_order: None,
                program: None,
            }),
        });
        certificates.collect()
    }

    /// The process of `node`, as `certs run`.
    pub(super) async fn supervise(self: Arc<Self>, node: Arc<Node>, copy: Arc<OwnCopy>) {
        let now = self.clock.now().seconds() as u64;
        let seed = self.plan.seed ^ ((node.index as u64 + 1) << 40) ^ now;
        let store = self.node_store(&node, copy, seed.rotate_left(7));
        let random: Arc<dyn Random> = Arc::new(SeededRandom::new(seed));
        let services = Services {
            store: store.clone(),
            output: node.clone(),
            gate: Gate::default(),
            verifier: node.clone(),
            resolver: Default::default(),
            keys: self.keys.clone(),
            bundles: self.bundles.clone(),
            probes: Probes::default(),
            same_names: SameNames::default(),
            clock: node.clone(),
            random: random.clone(),
            metrics: Metrics::default(),
            spacing: SPACING,
            spread: SPREAD,
            verify_within: VERIFY_WITHIN,
            maintenance: None,
            // A year of them would cost more than all passes.
            looks: None,
            board: None,
            progress: None,
        };
        let certificates = self.certificates(&node, &random);
        loop {
            store.follow().await;
            let (mut supervisor, handle) = Supervisor::new(services.clone(), Board::default());
            if supervisor.keep(certificates.clone()).await.is_ok() {
                let mut following = JoinSet::new();
                following.spawn(follow(store.clone(), handle));
                supervisor.run().await;
            }
            // It could not start, for example on a full disk: a service manager
            // restarts it.
            self.clock.sleep_until(self.clock.now() + RESTART).await;
        }
    }

    async fn watch(self: Arc<Self>) {
        let (mut at, mut orders) = (START, 0);
        loop {
            at = at + SAMPLE;
            self.clock.sleep_until(at).await;
            let left = self.nodes.iter().map(|node| node.least_left(at)).min();
            let left = u32::try_from(left.unwrap_or(1000)).unwrap_or(1000);
            let counted = self.ca.lock().counts().orders;
            let mut timeline = lock(&self.timeline);
            timeline.least_left.push(left);
            if timeline.least_left.len().is_multiple_of(4) {
                timeline.orders.push(counted - orders);
                orders = counted;
            }
        }
    }
}

/// As `certs run` follows its fleet.
async fn follow(store: Arc<NodeStore>, handle: Handle) {
    loop {
        store.until_due().await;
        let Followed::Turn(turn) = store.follow().await else {
            continue;
        };
        let changed = turn.changed.into_iter().map(|(lineage, _)| lineage);
        let changed: Vec<Lineage> = changed.collect();
        if !changed.is_empty() {
            handle.requeue(changed).await;
        }
        if turn.promoted {
            handle.take_over().await;
        }
    }
}

/// The lifetimes of ten certificates: five of 45 days, four of 90 days, one of 160
/// hours. The first sixty share a registered domain, the others ten by ten.
fn lineages(
    plan: &SimulationPlan,
) -> Result<Vec<(Lineage, BTreeSet<Identifier>, Duration)>, SimulationError> {
    let only_45 = plan.scenarios.contains(&Scenario::LongOutage);
    let one = |index: usize| {
        let site = if index < CROWDED { 0 } else { index / 10 };
        let name = format!("n{index}.site{site:04}.com");
        let name = Identifier::parse(&name);
        let name = name.map_err(|error| SimulationError::Name(error.to_string()))?;
        let lifetime = match index % 10 {
            _ if only_45 => DAY * 45,
            2 => HOUR * 160,
            even if even % 2 == 0 => DAY * 90,
            _ => DAY * 45,
        };
        Ok((Lineage::of(&name), BTreeSet::from([name]), lifetime))
    };
    (0..plan.certificates).map(one).collect()
}

fn named(event: &Event) -> (u64, u64, String) {
    let hours = |duration: Duration| duration.as_secs() / 3600;
    let ends = event.begins + event.lasts;
    (hours(event.begins), hours(ends), event.scenario.to_string())
}

/// Whole seconds, rounded up, so that a part of a second counts.
fn seconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis().div_ceil(1000)).unwrap_or(u64::MAX)
}
