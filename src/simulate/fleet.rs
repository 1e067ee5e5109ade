//! The world: sets up the CA, the store and the nodes, lets the scenarios loose
//! on them, and runs the clock.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::JoinSet;

use super::authority::{Authority, DIRECTORY, Shared};
use super::issuer::NodeIssuer;
use super::node::{Ailments, Node, NodeClock, NodeDisk, NodeProver, NodeProxy};
use super::scenario::{Event, at_a_node, at_the_ca, part};
use super::store::NodeStore;
use super::tally::{Place, Tally};
use super::{DAY, Plan, Scenario, Score, SimulationError, Timeline};
use crate::certificate::{KeyType, Known, Secret};
use crate::deploy::Target;
use crate::deploy::verify::Endpoint;
use crate::identifier::{Identifier, Lineage};
use crate::manage::supervise::Supervisor;
use crate::manage::{Certificate, Keys, ManageError, Parts, SPACING, SPREAD, Wanted};
use crate::observe::{Board, Metrics};
use crate::random::{Random, SeededRandom};
use crate::record::Failures;
use crate::renew::decide::{Next, next};
use crate::store::Store;
use crate::store::memory::MemoryStore;
use crate::time::{Clock, Timestamp, VirtualClock};

/// 2026-12-01T00:00:00Z.
const START: Timestamp = Timestamp::from_seconds(1_796_083_200);
const HOUR: Duration = Duration::from_secs(3600);
const SAMPLE: Duration = Duration::from_secs(6 * 3600);
/// Keys are made before the beginning, and used again and again.
const KEYS: usize = 16;
/// A restart of the process takes up to a minute.
const RESTART: Duration = Duration::from_secs(60);
/// Restarts in a row, about a minute apart.
const STORM: usize = 50;

/// What all tasks of the simulation share.
struct World {
    plan: Plan,
    clock: Arc<VirtualClock>,
    authority: Shared,
    tally: Arc<Tally>,
    store: Arc<MemoryStore>,
    nodes: Vec<Arc<Node>>,
    keys: Arc<KeyPool>,
    known: Known,
    endpoint: Endpoint,
    lineages: Vec<(Lineage, BTreeSet<Identifier>, Duration)>,
}

/// Keys that exist already; which one comes next is drawn.
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

pub(super) fn play(plan: &Plan) -> Result<(Score, Timeline), SimulationError> {
    let clock = Arc::new(VirtualClock::new(START));
    let world = Arc::new(World::new(plan.clone(), clock.clone())?);
    // Nothing is left to do at this instant: on to the next.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .on_thread_park(move || {
            clock.step();
        })
        .build()?;
    Ok(runtime.block_on(world.run()))
}

impl World {
    fn new(plan: Plan, clock: Arc<VirtualClock>) -> Result<Self, SimulationError> {
        let (authority, tally) = (Arc::new(Authority::new(START)?), Arc::new(Tally::default()));
        let nodes = (0..plan.nodes).map(|index| {
            let (clock, authority) = (clock.clone(), authority.clone());
            Arc::new(Node::new(index, clock, authority, tally.clone()))
        });
        let keys = (0..KEYS).map(|_| KeyType::default().generate());
        let name = |error: String| SimulationError::Name(error);
        Ok(Self {
            nodes: nodes.collect(),
            keys: Arc::new(KeyPool {
                keys: keys.collect::<Result<_, _>>()?,
                random: SeededRandom::new(plan.seed),
            }),
            lineages: lineages(&plan)?,
            endpoint: "127.0.0.1:443".parse().map_err(name)?,
            store: Arc::default(),
            known: Known::default(),
            clock,
            authority,
            tally,
            plan,
        })
    }

    fn span(&self) -> Duration {
        DAY * self.plan.days
    }

    fn is_chosen(&self, scenario: Scenario) -> bool {
        self.plan.scenarios.contains(&scenario)
    }

    async fn run(self: Arc<Self>) -> (Score, Timeline) {
        let events = at_the_ca(&self.plan.scenarios, self.plan.seed, self.span());
        let timeline = Arc::new(Mutex::new(Timeline::default()));
        let mut tasks = JoinSet::new();
        for node in &self.nodes {
            tasks.spawn(self.clone().keep(node.clone()));
            tasks.spawn(self.clone().afflict(node.clone()));
        }
        tasks.spawn(self.clone().trouble_the_ca(events.clone()));
        tasks.spawn(self.clone().watch(timeline.clone()));
        if self.is_chosen(Scenario::LostReplies) {
            self.authority.change_weather(|weather| weather.lost = 30);
        }
        self.clock.sleep_until(START + self.span()).await;
        tasks.abort_all();
        while tasks.join_next().await.is_some() {}
        let score = self.score().await;
        let mut timeline = timeline.lock().unwrap_or_else(PoisonError::into_inner);
        timeline.outside_window = self.authority.counts().outside;
        timeline.events = events.iter().map(named).collect();
        (score, std::mem::take(&mut *timeline))
    }

    async fn score(&self) -> Score {
        let (plan, counts) = (&self.plan, self.authority.counts());
        let sums = self.tally.sums(START + self.span());
        let mut overdue = 0;
        for (lineage, ..) in &self.lineages {
            overdue += u64::from(self.needs_an_order(lineage).await);
        }
        Score {
            seed: plan.seed,
            nodes: plan.nodes,
            certificates: plan.certificates,
            days: plan.days,
            scenarios: plan.scenarios.iter().map(ToString::to_string).collect(),
            expired_seconds_served: seconds(sums.expired),
            mismatched_seconds_served: seconds(sums.mismatched),
            due_renewals: counts.needed + overdue,
            orders: counts.orders,
            duplicate_certificates: counts.duplicates,
            ledger_breaches: counts.breaches,
            reloads: sums.reloads,
            worst_recovery_seconds: seconds(sums.worst_recovery),
        }
    }

    /// The process on one node: it runs until it is killed or its machine is
    /// taken away, and starts again.
    async fn keep(self: Arc<Self>, node: Arc<Node>) {
        let kills = Scenario::Crashes.random(self.plan.seed, node.index);
        let (mut store, mut storm) = (self.node_store(&node), 0);
        let scaling = Scenario::Scaling.random(self.plan.seed, node.index);
        let scales = self.is_chosen(Scenario::Scaling) && node.index > 0;
        let mut retires = START + DAY * 10 + part(DAY * 20, &scaling);
        loop {
            let mut process = JoinSet::new();
            process.spawn(self.clone().supervise(node.clone(), store.clone()));
            let mut ends = self.clock.now() + self.until_killed(&kills, &mut storm);
            let retire = scales && retires <= ends;
            if retire {
                ends = retires;
            }
            self.clock.sleep_until(ends).await;
            process.abort_all();
            while process.join_next().await.is_some() {}
            let mut pause = part(RESTART, &kills);
            if retire {
                node.retire();
                store = self.node_store(&node);
                pause = DAY + part(DAY * 4, &scaling);
                retires = ends + pause + DAY * 10 + part(DAY * 20, &scaling);
            }
            self.clock.sleep_until(ends + pause).await;
        }
    }

    /// How long until the process is killed; `storm` counts those that follow
    /// each other.
    fn until_killed(&self, random: &dyn Random, storm: &mut usize) -> Duration {
        if !self.is_chosen(Scenario::Crashes) {
            return self.span() * 2;
        }
        if *storm > 0 {
            *storm -= 1;
            return part(RESTART, random);
        }
        if random.below(20) == 0 {
            *storm = STORM;
        }
        DAY + part(DAY * 20, random)
    }

    fn node_store(&self, node: &Arc<Node>) -> Arc<dyn Store> {
        Arc::new(NodeStore::new(self.store.clone(), node.clone()))
    }

    async fn supervise(self: Arc<Self>, node: Arc<Node>, store: Arc<dyn Store>) {
        let clock: Arc<dyn Clock> = Arc::new(NodeClock(node.clone()));
        let random: Arc<dyn Random> = Arc::new(SeededRandom::new(
            self.plan.seed ^ ((node.index as u64 + 1) << 40) ^ self.clock.now().seconds() as u64,
        ));
        let parts = Parts {
            store,
            output: Arc::new(NodeDisk(node.clone())),
            prover: Arc::new(NodeProver(node.clone())),
            keys: self.keys.clone(),
            known: self.known.clone(),
            clock,
            random: random.clone(),
            metrics: Metrics::default(),
            spacing: SPACING,
            spread: SPREAD,
            maintenance: None,
            board: None,
            progress: None,
        };
        let certificates = self
            .lineages
            .iter()
            .map(|(lineage, identifiers, lifetime)| {
                let target: Arc<dyn Target> = Arc::new(NodeProxy(node.clone(), lineage.clone()));
                Certificate {
                    fallback: None,
                    wanted: Wanted {
                        partial: false,
                        lineage: lineage.clone(),
                        identifiers: identifiers.clone(),
                        ca: DIRECTORY.to_owned(),
                        profile: None,
                        key: KeyType::default(),
                        reuse_key: false,
                    },
                    issuer: Arc::new(NodeIssuer {
                        node: node.clone(),
                        random: random.clone(),
                        lifetime: *lifetime,
                    }),
                    targets: vec![target],
                    endpoints: vec![self.endpoint.clone()],
                }
            });
        let certificates: Vec<Certificate> = certificates.collect();
        loop {
            let (mut supervisor, _handle) = Supervisor::new(parts.clone(), Board::default());
            if supervisor.keep(certificates.clone()).await.is_ok() {
                supervisor.run().await;
            }
            // It could not begin, as on a full disk: whoever runs it tries again.
            self.clock.sleep_until(self.clock.now() + RESTART).await;
        }
    }

    async fn afflict(self: Arc<Self>, node: Arc<Node>) {
        let (plan, span) = (&self.plan, self.span());
        for event in at_a_node(&plan.scenarios, plan.seed, node.index, span) {
            let begins = START + event.begins;
            let ends = begins + event.lasts;
            self.clock.sleep_until(begins).await;
            self.tally.fault_begins(Some(node.index), begins);
            node.change(|ailments| match event.scenario {
                Scenario::FullDisks => ailments.disk_full = true,
                Scenario::Partitions => ailments.cut_off = true,
                Scenario::DeafProxies => ailments.deaf = true,
                Scenario::Suspensions => ailments.frozen_until = Some(ends),
                _ => {}
            });
            self.clock.sleep_until(ends).await;
            node.change(|ailments| *ailments = Default::default());
            self.fault_over(std::slice::from_ref(&node)).await;
        }
    }

    async fn trouble_the_ca(self: Arc<Self>, events: Vec<Event>) {
        let random = Scenario::UnprovenNames.random(self.plan.seed, 0);
        for event in events {
            self.clock.sleep_until(START + event.begins).await;
            self.tally.fault_begins(None, self.clock.now());
            self.authority
                .change_weather(|weather| match event.scenario {
                    Scenario::Outages | Scenario::LongOutage => weather.down = true,
                    Scenario::RateLimits => weather.busy = true,
                    Scenario::UselessCertificates => weather.short = true,
                    Scenario::UnprovenNames => {
                        let all = self.lineages.iter().flat_map(|(_, names, _)| names);
                        weather.unproven = all.filter(|_| random.below(50) == 0).cloned().collect();
                    }
                    _ => {}
                });
            if event.scenario == Scenario::MassRevocation {
                self.authority.call_back(3);
            }
            let ends = START + event.begins + event.lasts;
            self.clock.sleep_until(ends).await;
            self.authority.change_weather(|weather| {
                (weather.down, weather.busy, weather.short) = (false, false, false);
                weather.unproven.clear();
            });
            // After the others the CA itself, or the owner, has made us wait.
            if let Scenario::Outages | Scenario::LongOutage = event.scenario {
                self.fault_over(&self.nodes).await;
            }
        }
    }

    /// Notes what is left undone on `nodes`, without what the CA or the owner
    /// makes wait at this instant.
    async fn fault_over(&self, nodes: &[Arc<Node>]) {
        let weather = self.authority.weather();
        let troubled = weather.down || weather.busy || weather.short;
        let mut left: BTreeSet<Place> = BTreeSet::new();
        for (lineage, ..) in &self.lineages {
            let Ok(Some((record, _))) = self.store.load(lineage).await else {
                continue;
            };
            let Some(issued) = record.issued.as_ref().map(|issued| issued.generation) else {
                continue;
            };
            let waits = record.failures.count > 0 || record.failures.asked_to_wait;
            let due = !troubled && !waits && self.needs_an_order(lineage).await;
            // One that has a fault of its own is looked at when that is over.
            let well = |node: &&Arc<Node>| node.ailments() == Ailments::default();
            for node in nodes.iter().filter(well) {
                let served = node.serves(lineage).map(|(generation, _)| generation);
                if served.is_some_and(|served| due || served < issued) {
                    left.insert((node.index, lineage.clone()));
                }
            }
        }
        self.tally.fault_over(left, self.clock.now());
    }

    async fn needs_an_order(&self, lineage: &Lineage) -> bool {
        let Ok(Some((mut record, _))) = self.store.load(lineage).await else {
            return true;
        };
        record.failures = Failures::default();
        let now = self.clock.now();
        matches!(
            next(&record, now, &SeededRandom::new(0)),
            Next::Issue { .. }
        )
    }

    /// Writes the timeline.
    async fn watch(self: Arc<Self>, timeline: Arc<Mutex<Timeline>>) {
        let (mut at, mut orders) = (START, 0);
        loop {
            at = at + SAMPLE;
            self.clock.sleep_until(at).await;
            let left = self.least_left(at);
            let counted = self.authority.counts().orders;
            let mut timeline = timeline.lock().unwrap_or_else(PoisonError::into_inner);
            timeline.least_left.push(left);
            if timeline.least_left.len().is_multiple_of(4) {
                timeline.orders.push(counted - orders);
                orders = counted;
            }
        }
    }

    /// In thousandths of a life.
    fn least_left(&self, now: Timestamp) -> u32 {
        let mut least = 1000;
        for node in &self.nodes {
            for (lineage, _, lifetime) in &self.lineages {
                if let Some((_, until)) = node.serves(lineage) {
                    let left = until.since(now).as_secs() * 1000 / lifetime.as_secs();
                    least = least.min(u32::try_from(left).unwrap_or(1000));
                }
            }
        }
        least
    }
}

/// Of ten below each registered domain, five live for 45 days, four for 90 days
/// and one for 160 hours.
fn lineages(
    plan: &Plan,
) -> Result<Vec<(Lineage, BTreeSet<Identifier>, Duration)>, SimulationError> {
    let only_45 = plan.scenarios.contains(&Scenario::LongOutage);
    let one = |index: usize| {
        let name = format!("n{}.site{:04}.com", index % 10, index / 10);
        let name =
            Identifier::parse(&name).map_err(|error| SimulationError::Name(error.to_string()))?;
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

/// Rounded up: a part of a second is not nothing.
fn seconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis().div_ceil(1000)).unwrap_or(u64::MAX)
}
