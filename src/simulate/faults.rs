//! Runs the scenarios against the CA and the nodes, and records after each fault
//! which certificates are unfinished: by what the CA has signed and revoked,
//! never by the program's own status.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::ca::{CaFaults, IssuanceState};
use super::copy::OwnCopy;
use super::fleet::{RESTART, World};
use super::kill::KillSwitch;
use super::node::{Node, NodeFaults};
use super::scenario::{AHEAD, part};
use super::tally::ProxySlot;
use super::{DAY, START, Scenario};
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::random::Random;
use crate::time::Clock;

/// Restarts in a row, about a minute apart.
const STORM: usize = 50;
/// One certificate in so many is revoked, or one name fails its validation.
const REVOKED_PART: usize = 3;
const FAILING_PART: u64 = 50;

impl World {
    /// Runs the process of one node until it is killed or its machine is removed,
    /// and starts it again.
    pub(super) async fn run_node(self: Arc<Self>, node: Arc<Node>) {
        let kills = Scenario::Crashes.random(self.plan.seed, node.index);
        let (mut copy, mut storm) = (Arc::new(OwnCopy::new(node.clone())), 0);
        let scaling = Scenario::Scaling.random(self.plan.seed, node.index);
        let scales = self.is_chosen(Scenario::Scaling) && node.index > 0;
        let mut retires = START + DAY * 10 + part(DAY * 20, &scaling);
        let mut first = self.script.first_ends;
        loop {
            node.begin();
            if let Some(kill_switch) = first.take() {
                node.arm(kill_switch);
            }
            let mut process = JoinSet::new();
            process.spawn(self.clone().supervise(node.clone(), copy.clone()));
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
                self.kill_at_drawn_point(&node, &kills).await;
            }
            node.end();
            process.abort_all();
            while process.join_next().await.is_some() {}
            let ended = self.clock.now();
            let mut pause = part(RESTART, &kills);
            if retire {
                self.script.happens(Scenario::Scaling);
                node.retire();
                copy = Arc::new(OwnCopy::new(node.clone()));
                pause = DAY + part(DAY * 4, &scaling);
                retires = ended + pause + DAY * 10 + part(DAY * 20, &scaling);
            } else {
                self.script.happens(Scenario::Crashes);
                self.script.killed(node.index, ended, ended + pause);
                // Sometimes the whole machine restarts, with its proxy.
                if kills.below(4) == 0 {
                    node.restart_proxy();
                }
            }
            self.clock.sleep_until(ended + pause).await;
            let now = self.clock.now();
            if retire {
                self.tally.add_machine(node.index, now);
            } else {
                self.end_fault(Scenario::Crashes, std::slice::from_ref(&node));
            }
        }
    }

    /// Kills the process at the next point of a drawn kind, or after three days.
    async fn kill_at_drawn_point(&self, node: &Node, random: &dyn Random) {
        node.arm(KillSwitch::draw(random));
        let longest = self.clock.now() + DAY * 3;
        tokio::select! {
            biased;
            () = node.killed.notified() => {}
            () = self.clock.sleep_until(longest) => {}
        }
    }

    /// The time until the process is killed; `storm` counts kills in a row.
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

    pub(super) async fn run_node_faults(self: Arc<Self>, node: Arc<Node>) {
        let clocks = Scenario::Clocks.random(self.plan.seed, node.index);
        let mut turn = clocks.below(AHEAD.len() as u64) as usize;
        for event in &self.script.at_a_node[node.index] {
            let begins = START + event.begins;
            let ends = begins + event.lasts;
            self.clock.sleep_until(begins).await;
            self.script.happens(event.scenario);
            node.change(|faults| match event.scenario {
                Scenario::FullDisks => faults.disk_full = true,
                Scenario::Partitions => {
                    (faults.no_ca, faults.no_store) = (true, true);
                }
                Scenario::StoreCuts => faults.no_store = true,
                Scenario::CaCuts => faults.no_ca = true,
                Scenario::DeafProxies => faults.deaf = true,
                Scenario::Suspensions => faults.frozen = Some(ends),
                Scenario::Clocks => {
                    faults.ahead = AHEAD[turn % AHEAD.len()];
                    turn += 1;
                }
                _ => {}
            });
            self.clock.sleep_until(ends).await;
            node.change(|faults| *faults = NodeFaults::default());
            self.end_fault(event.scenario, std::slice::from_ref(&node));
        }
    }

    pub(super) async fn run_ca_faults(self: Arc<Self>) {
        let random = Scenario::FailedValidations.random(self.plan.seed, 0);
        // Other certificates each time: the program waits longer for one that is
        // revoked again and again, as it should.
        let mut turn = 0;
        for event in &self.script.at_the_ca {
            let scenario = event.scenario;
            self.clock.sleep_until(START + event.begins).await;
            self.script.happens(scenario);
            let mut faults = CaFaults::default();
            match scenario {
                Scenario::MassRevocation => {
                    self.revoke(turn);
                    turn += 1;
                }
                Scenario::FailedValidations => faults.failing = self.drawn_names(&random),
                Scenario::Outages | Scenario::LongOutage => faults.down = true,
                Scenario::RateLimits => faults.busy = true,
                Scenario::UselessCertificates => faults.short = true,
                _ => {}
            }
            self.ca.lock().faults = faults;
            let ends = START + event.begins + event.lasts;
            self.clock.sleep_until(ends).await;
            self.ca.lock().faults = CaFaults::default();
            self.end_fault(scenario, &self.nodes);
        }
    }

    pub(super) async fn run_store_faults(self: Arc<Self>) {
        let mut is_wiped = self.plan.seed.is_multiple_of(2);
        for event in &self.script.at_the_store {
            let (begins, restores) = (START + event.begins, Scenario::StoreRestores);
            let mut yesterday = BTreeMap::new();
            if event.scenario == restores && !is_wiped {
                self.clock.sleep_until(begins - DAY).await;
                yesterday = self.store.backup();
            }
            self.clock.sleep_until(begins).await;
            self.script.happens(event.scenario);
            match event.scenario == restores {
                true => {
                    self.store.restore(yesterday);
                    is_wiped = !is_wiped;
                }
                false => self.store.fail(Some(event.scenario)),
            }
            self.clock.sleep_until(begins + event.lasts).await;
            self.store.fail(None);
            self.end_fault(event.scenario, &self.nodes);
        }
    }

    /// The names that fail their validation, at least one.
    fn drawn_names(&self, random: &dyn Random) -> BTreeSet<Identifier> {
        let all = self.lineages.iter().flat_map(|(_, names, _)| names);
        let drawn = all.clone().filter(|_| random.below(FAILING_PART) == 0);
        let mut failing: BTreeSet<Identifier> = drawn.cloned().collect();
        if failing.is_empty() {
            let drawn = random.below(all.clone().count() as u64) as usize;
            failing.extend(all.clone().nth(drawn).cloned());
        }
        failing
    }

    fn revoke(&self, turn: usize) {
        let leaves = self.ca.lock().revoke(REVOKED_PART, turn);
        let mut slots: BTreeSet<ProxySlot> = BTreeSet::new();
        for node in &self.nodes {
            for (lineage, ..) in &self.lineages {
                let leaf = node.serves(lineage);
                if leaf.is_some_and(|leaf| leaves.contains(&leaf.to_string())) {
                    slots.insert((node.index, lineage.clone()));
                }
            }
        }
        self.tally.revoked(&slots, self.clock.now());
    }

    /// Records the unfinished certificates on `nodes` after a fault. If the CA blocks
    /// orders now, or did so shortly before, they belong to the CA's own fault.
    fn end_fault(&self, scenario: Scenario, nodes: &[Arc<Node>]) {
        let now = self.clock.now();
        let own = scenario.is_at_the_ca();
        let orders = own || !self.script.blocks_orders(now);
        // A node with a fault of its own is checked when that fault ends.
        let well = |node: &&Arc<Node>| node.faults() == NodeFaults::default();
        let nodes: Vec<&Arc<Node>> = nodes.iter().filter(well).collect();
        let revoked_at = self.script.revoked_at(now).filter(|_| !own);
        let (mut left, mut revoked) = (BTreeSet::new(), BTreeSet::new());
        for ((lineage, ..), issuance) in self.lineages.iter().zip(self.issuance(now)) {
            for node in &nodes {
                if !is_unfinished(&issuance, node, lineage, orders) {
                    continue;
                }
                let slot: ProxySlot = (node.index, lineage.clone());
                match revoked_at.filter(|_| serves_revoked(&issuance, node, lineage)) {
                    Some(_) => revoked.insert(slot),
                    None => left.insert(slot),
                };
            }
        }
        self.tally.end_fault(scenario, left, now);
        if let Some(since) = revoked_at {
            let revocation = Scenario::MassRevocation;
            self.tally.end_fault(revocation, revoked, since);
        }
    }
}

/// Whether `node` serves the newest certificate, and that one is revoked.
fn serves_revoked(issuance: &IssuanceState, node: &Node, lineage: &Lineage) -> bool {
    match issuance {
        IssuanceState::Issued { leaf, revoked, .. } => {
            *revoked && node.serves(lineage).is_some_and(|served| served == *leaf)
        }
        IssuanceState::Unissued { .. } => false,
    }
}

/// Whether `node` does not serve the newest possible certificate. A node without
/// any is counted by its placeholder time instead.
fn is_unfinished(issuance: &IssuanceState, node: &Node, lineage: &Lineage, orders: bool) -> bool {
    match (issuance, node.serves(lineage)) {
        (IssuanceState::Unissued { room }, _) => orders && *room,
        (IssuanceState::Issued { leaf, overdue, .. }, Some(served)) => {
            served != *leaf || *overdue && orders
        }
        (IssuanceState::Issued { .. }, None) => false,
    }
}
