//! Lets the scenarios loose on the CA and the nodes, and notes what each of them
//! has left undone when it is over: by what the CA has signed and called back,
//! never by what the program says of itself.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::authority::Standing;
use super::fleet::{RESTART, World};
use super::kill::Fuse;
use super::node::{Ailments, Node};
use super::scenario::{AHEAD, part};
use super::tally::OnNode;
use super::{DAY, START, Scenario};
use crate::identifier::{Identifier, Lineage};
use crate::random::{Random, SeededRandom};
use crate::time::Clock;

/// Restarts in a row, about a minute apart.
const STORM: usize = 50;
/// One in so many is called back, or cannot be proven.
const CALLED_BACK: usize = 3;
const UNPROVEN: u64 = 50;

impl World {
    /// The process on one node: it runs until it is killed or its machine is
    /// taken away, and starts again.
    pub(super) async fn keep(self: Arc<Self>, node: Arc<Node>) {
        let kills = Scenario::Crashes.random(self.plan.seed, node.index);
        let (mut store, mut storm) = (self.node_store(&node), 0);
        let scaling = Scenario::Scaling.random(self.plan.seed, node.index);
        let scales = self.is_chosen(Scenario::Scaling) && node.index > 0;
        let mut retires = START + DAY * 10 + part(DAY * 20, &scaling);
        let mut first = self.script.first_ends;
        loop {
            node.begin();
            if let Some(fuse) = first.take() {
                node.light(fuse);
            }
            let mut process = JoinSet::new();
            process.spawn(self.clone().supervise(node.clone(), store.clone()));
            let mut ends = self.clock.now() + self.until_killed(&kills, &mut storm);
            let retire = scales && retires <= ends;
            if retire {
                ends = retires;
            }
            let ended = tokio::select! {
                biased;
                () = node.killed.notified() => true,
                () = self.clock.sleep_until(ends) => false,
            };
            let retire = retire && !ended;
            if !ended && !retire && storm == 0 && kills.below(3) > 0 {
                self.until_a_write(&node, &kills).await;
            }
            node.end();
            process.abort_all();
            while process.join_next().await.is_some() {}
            let ended = self.clock.now();
            let mut pause = part(RESTART, &kills);
            if retire {
                self.script.happens(Scenario::Scaling);
                node.retire();
                store = self.node_store(&node);
                pause = DAY + part(DAY * 4, &scaling);
                retires = ended + pause + DAY * 10 + part(DAY * 20, &scaling);
            } else {
                self.script.happens(Scenario::Crashes);
                self.script.killed(node.index, ended, ended + pause);
                // Sometimes the whole machine begins anew, and its proxy with it.
                if kills.below(4) == 0 {
                    node.proxy_begins();
                }
            }
            self.clock.sleep_until(ended + pause).await;
            let now = self.clock.now();
            if retire {
                self.tally.appears(node.index, now);
            } else {
                self.fault_over(Scenario::Crashes, std::slice::from_ref(&node));
            }
        }
    }

    /// Not now, but with the next write of a kind.
    async fn until_a_write(&self, node: &Node, kills: &SeededRandom) {
        node.light(Fuse::draw(kills));
        let longest = self.clock.now() + DAY * 3;
        tokio::select! {
            biased;
            () = node.killed.notified() => {}
            () = self.clock.sleep_until(longest) => {}
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

    pub(super) async fn afflict(self: Arc<Self>, node: Arc<Node>) {
        let clocks = Scenario::Clocks.random(self.plan.seed, node.index);
        let mut turn = clocks.below(AHEAD.len() as u64) as usize;
        for event in &self.script.at_a_node[node.index] {
            let begins = START + event.begins;
            let ends = begins + event.lasts;
            self.clock.sleep_until(begins).await;
            self.script.happens(event.scenario);
            node.change(|ailments| match event.scenario {
                Scenario::FullDisks => ailments.disk_full = true,
                Scenario::Partitions => {
                    (ailments.no_ca, ailments.no_store) = (true, Some(begins));
                }
                Scenario::StoreCuts => ailments.no_store = Some(begins),
                Scenario::CaCuts => ailments.no_ca = true,
                Scenario::DeafProxies => ailments.deaf = true,
                Scenario::Suspensions => ailments.frozen = Some((begins, ends)),
                Scenario::Clocks => {
                    ailments.ahead = AHEAD[turn % AHEAD.len()];
                    turn += 1;
                }
                _ => {}
            });
            self.clock.sleep_until(ends).await;
            node.change(|ailments| *ailments = Ailments::default());
            self.fault_over(event.scenario, std::slice::from_ref(&node));
        }
    }

    pub(super) async fn trouble_the_ca(self: Arc<Self>) {
        let random = Scenario::UnprovenNames.random(self.plan.seed, 0);
        // Each time others, or what the CA calls back again and again is left alone
        // for longer each time, as it should be.
        let mut turn = 0;
        for event in &self.script.at_the_ca {
            let scenario = event.scenario;
            self.clock.sleep_until(START + event.begins).await;
            self.script.happens(scenario);
            match scenario {
                Scenario::MassRevocation => {
                    self.call_back(turn);
                    turn += 1;
                }
                Scenario::UnprovenNames => self.authority.doubt(self.unproven(&random)),
                _ => {}
            }
            self.authority.change_weather(|weather| match scenario {
                Scenario::Outages | Scenario::LongOutage => weather.down = true,
                Scenario::RateLimits => weather.busy = true,
                Scenario::UselessCertificates => weather.short = true,
                _ => {}
            });
            let ends = START + event.begins + event.lasts;
            self.clock.sleep_until(ends).await;
            self.authority.change_weather(|weather| {
                (weather.down, weather.busy, weather.short) = (false, false, false);
            });
            self.authority.doubt(BTreeSet::new());
            self.fault_over(scenario, &self.nodes);
        }
    }

    /// One of them at least.
    fn unproven(&self, random: &dyn Random) -> BTreeSet<Identifier> {
        let all = || self.lineages.iter().flat_map(|(_, names, _)| names);
        let mut unproven: BTreeSet<Identifier> = all()
            .filter(|_| random.below(UNPROVEN) == 0)
            .cloned()
            .collect();
        if unproven.is_empty() {
            let drawn = random.below(all().count() as u64) as usize;
            unproven.extend(all().nth(drawn).cloned());
        }
        unproven
    }

    fn call_back(&self, turn: usize) {
        let leaves = self.authority.call_back(CALLED_BACK, turn);
        let mut places: BTreeSet<OnNode> = BTreeSet::new();
        for node in &self.nodes {
            for (lineage, ..) in &self.lineages {
                let leaf = node.serves(lineage);
                if leaf.is_some_and(|leaf| leaves.contains(&leaf.to_string())) {
                    places.insert((node.index, lineage.clone()));
                }
            }
        }
        self.tally.called_back(&places, self.clock.now());
    }

    /// Notes what is left undone on `nodes`. What the CA keeps from being ordered
    /// at this instant, or has kept until shortly before, is for its own fault to
    /// answer.
    fn fault_over(&self, scenario: Scenario, nodes: &[Arc<Node>]) {
        let now = self.clock.now();
        let own = scenario.is_the_cas();
        let orders = own || !self.script.holds_up_orders(now);
        // One that has a fault of its own is looked at when that is over.
        let well = |node: &&Arc<Node>| node.ailments() == Ailments::default();
        let nodes: Vec<&Arc<Node>> = nodes.iter().filter(well).collect();
        let called_back_at = self.script.called_back_at(now).filter(|_| !own);
        let (mut left, mut called_back) = (BTreeSet::new(), BTreeSet::new());
        for ((lineage, ..), standing) in self.lineages.iter().zip(self.standing(now)) {
            for node in &nodes {
                if !is_undone(&standing, node, lineage, orders) {
                    continue;
                }
                let place: OnNode = (node.index, lineage.clone());
                match called_back_at
                    .filter(|_| serves_what_is_called_back(&standing, node, lineage))
                {
                    Some(_) => called_back.insert(place),
                    None => left.insert(place),
                };
            }
        }
        self.tally.fault_over(scenario, left, now);
        if let Some(since) = called_back_at {
            let revocation = Scenario::MassRevocation;
            self.tally.fault_over(revocation, called_back, since);
        }
    }
}

/// Whether nothing better than what `node` serves is there, and that was called back.
fn serves_what_is_called_back(standing: &Standing, node: &Node, lineage: &Lineage) -> bool {
    match standing {
        Standing::Issued { leaf, revoked, .. } => {
            *revoked && node.serves(lineage).is_some_and(|served| served == *leaf)
        }
        Standing::Unissued { .. } => false,
    }
}

/// Whether `node` does not serve the best there could be by now. Where it serves
/// nothing yet, the time of the placeholder counts, and not that of a fault.
fn is_undone(standing: &Standing, node: &Node, lineage: &Lineage, orders: bool) -> bool {
    match (standing, node.serves(lineage)) {
        (Standing::Unissued { room }, _) => orders && *room,
        (Standing::Issued { leaf, overdue, .. }, Some(served)) => {
            served != *leaf || *overdue && orders
        }
        (Standing::Issued { .. }, None) => false,
    }
}
