//! The counts see what a machine does wrong, and at which point it is killed.

use super::super::ca::{DIRECTORY, OrderRefusal};
use super::super::disk::PairFiles;
use super::super::script::Script;
use super::super::{DAY, START, SimulationPlan};
use super::*;
use crate::certificate::{Freshness, KeyType};
use crate::record::PendingOrder;

struct Fixture {
    world: Arc<VirtualClock>,
    ca: SharedCa,
    tally: Arc<FleetTally>,
    node: Arc<Node>,
}

impl Fixture {
    fn new() -> Self {
        let plan = SimulationPlan {
            seed: 1,
            nodes: 1,
            certificates: 1,
            days: 1,
            scenarios: vec![],
        };
        let world = Arc::new(VirtualClock::new(START));
        let ca = SharedCa::new(START).unwrap();
        let tally = Arc::new(FleetTally::new(Arc::new(Script::new(&plan))));
        let node = Node::new(0, world.clone(), ca.clone(), tally.clone());
        Self {
            world,
            ca,
            tally,
            node: Arc::new(node),
        }
    }

    fn order(&self, replaces: Option<&str>) -> (PendingOrder, Result<String, OrderRefusal>) {
        let pending = PendingOrder {
            ca: DIRECTORY.into(),
            identifiers: [Identifier::parse("n0.site0000.com").unwrap()].into(),
            profile: None,
            not_after: None,
            terms: None,
            key_pem: KeyType::default().generate().unwrap(),
            url: None,
            replaces: replaces.map(str::to_owned),
            begun: START,
            counted: Default::default(),
        };
        let taken = (self.ca.lock()).order(&pending, DAY * 90, self.world.now());
        (pending, taken)
    }

    fn signed(&self, replaces: Option<&str>) -> Bundle {
        let (pending, url) = self.order(replaces);
        let (url, now) = (url.unwrap(), self.world.now());
        let signed = self.ca.lock().finalize(&url, &pending.key_pem, now);
        let chain = signed.unwrap().unwrap().chain;
        let (key, names) = (pending.key_pem, &pending.identifiers);
        Bundle::new(key, &chain, names, now, Freshness::Issued).unwrap()
    }

    fn publish(&self, generation: u64, bundle: &Bundle) -> Result<(), OutputError> {
        let (node, generation) = (&self.node, Generation(generation));
        node.publish(&lineage(), generation, bundle)
    }

    /// The mismatched time ten seconds after a restart.
    fn mismatched_after_a_crash(&self) -> Duration {
        self.node.end();
        self.node.begin();
        self.node.restart_proxy();
        self.world.advance(Duration::from_secs(10));
        self.tally.sums(self.world.now()).mismatched
    }
}

/// The live files, which the program must not write itself.
fn live(disk: &mut Disk) -> &mut PairFiles {
    disk.live.entry(lineage()).or_default()
}

/// Kills the process after `left` points of a publication.
fn kill_switch(left: u64) -> KillSwitch {
    let moment = KillPoint::Publish;
    KillSwitch { moment, left }
}

fn lineage() -> Lineage {
    Lineage::parse("n0.site0000.com").unwrap()
}

#[test]
fn publication_leaves_a_matching_pair_after_a_crash_at_any_point() {
    for moments in 0..=3 {
        let fixture = Fixture::new();
        let (first, second) = (fixture.signed(None), fixture.signed(None));
        fixture.publish(1, &first).unwrap();
        fixture.node.restart_proxy();
        fixture.node.arm(kill_switch(moments));
        let published = fixture.publish(2, &second);
        assert_eq!(published.is_ok(), moments == 3);
        assert_eq!(fixture.mismatched_after_a_crash(), Duration::ZERO);
        let leaf = if moments == 3 { second } else { first };
        let served = fixture.node.serves(&lineage());
        assert_eq!(served.as_ref(), Some(&leaf.facts().fingerprint));
    }
}

#[test]
fn unstaged_publication_is_counted_as_mismatched_when_interrupted() {
    let wrongly = |fixture: &Fixture, bundle: &Bundle| {
        let key = bundle.key_pem().clone();
        fixture.node.write(|disk| live(disk).key = Some(key))?;
        let chain = (Generation(2), bundle.facts().clone());
        fixture.node.write(|disk| live(disk).chain = Some(chain))
    };
    for by_crash in [true, false] {
        let fixture = Fixture::new();
        let (first, second) = (fixture.signed(None), fixture.signed(None));
        fixture.publish(1, &first).unwrap();
        fixture.node.restart_proxy();
        if by_crash {
            fixture.node.arm(kill_switch(1));
            wrongly(&fixture, &second).unwrap_err();
        } else {
            let key = second.key_pem().clone();
            let write = |disk: &mut Disk| live(disk).key = Some(key);
            fixture.node.write(write).unwrap();
            fixture.node.change(|faults| faults.disk_full = true);
            wrongly(&fixture, &second).unwrap_err();
        }
        let mismatched = fixture.mismatched_after_a_crash();
        assert_eq!(mismatched, Duration::from_secs(10), "{by_crash}");
    }
}

#[test]
fn placeholder_after_a_certificate_is_counted() {
    let fixture = Fixture::new();
    let bundle = fixture.signed(None);
    fixture.publish(1, &bundle).unwrap();
    fixture.node.restart_proxy();
    let mut nothing = bundle.facts().clone();
    nothing.fingerprint = Fingerprint::of(b"");
    let (disk, no_key) = (&fixture.node, Secret::new(String::new()));
    disk.publish_files(&lineage(), Generation(0), nothing, no_key)
        .unwrap();
    fixture.node.restart_proxy();
    fixture.world.advance(Duration::from_secs(10));
    let bare = fixture.tally.sums(fixture.world.now()).bare;
    assert_eq!(bare, Duration::from_secs(10));
}

#[test]
fn order_is_refused_when_predecessor_is_replaced_or_unknown() {
    let fixture = Fixture::new();
    let first = fixture.signed(None).facts().renewal_id.clone().unwrap();
    let refused = |replaces| fixture.order(Some(replaces)).1;
    fixture.signed(Some(&first));
    assert_eq!(refused(&first), Err(OrderRefusal::AlreadyReplaced));
    assert_eq!(refused("YQ.Yg"), Err(OrderRefusal::UnknownReplaced));
}

#[test]
fn most_orders_are_counted_without_those_that_the_script_lost() {
    let fixture = Fixture::new();
    let most = || fixture.ca.lock().counts().most_orders;
    fixture.signed(None);
    assert_eq!(most(), 1);
    // Three weeks before the renewal is due, another one is needless.
    for orders in 1..=3 {
        fixture.order(None).1.unwrap();
        assert_eq!(most(), orders);
    }
    let (pending, _) = fixture.order(None);
    fixture.ca.lock().discount(&pending.identifiers);
    assert_eq!(most(), 3);
}
