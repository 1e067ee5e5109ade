//! That what a machine does wrong, or is killed in, is seen by its clients.

use super::super::authority::{Authority, DIRECTORY, Refusal};
use super::super::script::Script;
use super::super::{DAY, Plan, START};
use super::*;
use crate::certificate::{Freshness, KeyType};
use crate::record::PendingOrder;

struct Fixture {
    world: Arc<VirtualClock>,
    authority: Shared,
    tally: Arc<Tally>,
    node: Arc<Node>,
}

impl Fixture {
    fn new() -> Self {
        let plan = Plan {
            seed: 1,
            nodes: 1,
            certificates: 1,
            days: 1,
            scenarios: vec![],
        };
        let world = Arc::new(VirtualClock::new(START));
        let authority = Arc::new(Authority::new(START).unwrap());
        let tally = Arc::new(Tally::new(Arc::new(Script::new(&plan))));
        let node = Node::new(0, world.clone(), authority.clone(), tally.clone());
        Self {
            world,
            authority,
            tally,
            node: Arc::new(node),
        }
    }

    fn order(&self, replaces: Option<&str>) -> (PendingOrder, Result<String, Refusal>) {
        let pending = PendingOrder {
            ca: DIRECTORY.into(),
            identifiers: [Identifier::parse("n0.site0000.com").unwrap()].into(),
            profile: None,
            key_pem: KeyType::default().generate().unwrap(),
            url: None,
            replaces: replaces.map(str::to_owned),
            begun: START,
            counted: Default::default(),
        };
        let taken = self.authority.order(&pending, DAY * 90, self.world.now());
        (pending, taken)
    }

    fn signed(&self, replaces: Option<&str>) -> Bundle {
        let (pending, url) = self.order(replaces);
        let (url, now) = (url.unwrap(), self.world.now());
        let signed = self.authority.finalize(&url, &pending.key_pem, now);
        let chain = signed.unwrap().unwrap().chain;
        let (key, names) = (pending.key_pem, &pending.identifiers);
        Bundle::new(key, &chain, names, now, Freshness::Issued).unwrap()
    }

    fn publish(&self, generation: u64, bundle: &Bundle) -> Result<(), OutputError> {
        let disk = NodeDisk(self.node.clone());
        disk.publish(&lineage(), Generation(generation), bundle)
    }

    /// What was mismatched, ten seconds after the proxy begins anew.
    fn mismatched_after_a_crash(&self) -> Duration {
        self.node.end();
        self.node.begin();
        self.node.proxy_begins();
        self.world.advance(Duration::from_secs(10));
        self.tally.sums(self.world.now()).mismatched
    }
}

fn lineage() -> Lineage {
    Lineage::parse("n0.site0000.com").unwrap()
}

#[test]
fn a_crash_at_any_moment_of_a_publication_leaves_a_whole_pair() {
    for moments in 0..=3 {
        let fixture = Fixture::new();
        let (first, second) = (fixture.signed(None), fixture.signed(None));
        fixture.publish(1, &first).unwrap();
        fixture.node.proxy_begins();
        fixture.node.light(Fuse::at(Moment::Publish, moments));
        let published = fixture.publish(2, &second);
        assert_eq!(published.is_ok(), moments == 3);
        assert_eq!(fixture.mismatched_after_a_crash(), Duration::ZERO);
        let leaf = if moments == 3 { second } else { first };
        let served = fixture.node.serves(&lineage());
        assert_eq!(served.as_ref(), Some(&leaf.facts().fingerprint));
    }
}

#[test]
fn a_publication_that_is_not_staged_is_seen_when_it_is_cut_short() {
    let wrongly = |fixture: &Fixture, bundle: &Bundle| {
        let (live, name) = (Folder::Live, lineage());
        let key = File::Key(bundle.key_pem().clone());
        fixture.node.write(live, &name, key)?;
        let chain = File::Chain(Generation(2), bundle.facts().clone());
        fixture.node.write(live, &name, chain)
    };
    for by_crash in [true, false] {
        let fixture = Fixture::new();
        let (first, second) = (fixture.signed(None), fixture.signed(None));
        fixture.publish(1, &first).unwrap();
        fixture.node.proxy_begins();
        if by_crash {
            fixture.node.light(Fuse::at(Moment::Publish, 1));
            wrongly(&fixture, &second).unwrap_err();
        } else {
            let key = File::Key(second.key_pem().clone());
            fixture.node.write(Folder::Live, &lineage(), key).unwrap();
            fixture.node.change(|ailments| ailments.disk_full = true);
            wrongly(&fixture, &second).unwrap_err();
        }
        let mismatched = fixture.mismatched_after_a_crash();
        assert_eq!(mismatched, Duration::from_secs(10), "{by_crash}");
    }
}

#[test]
fn a_placeholder_after_a_certificate_is_seen() {
    let fixture = Fixture::new();
    let bundle = fixture.signed(None);
    fixture.publish(1, &bundle).unwrap();
    fixture.node.proxy_begins();
    let mut nothing = bundle.facts().clone();
    nothing.fingerprint = Fingerprint::of(b"");
    let (disk, no_key) = (&fixture.node, Secret::new(String::new()));
    disk.publish(&lineage(), Generation(0), nothing, no_key)
        .unwrap();
    fixture.node.proxy_begins();
    fixture.world.advance(Duration::from_secs(10));
    let bare = fixture.tally.sums(fixture.world.now()).bare;
    assert_eq!(bare, Duration::from_secs(10));
}

#[test]
fn the_ca_takes_no_order_that_replaces_what_is_replaced_or_unknown() {
    let fixture = Fixture::new();
    let first = fixture.signed(None).facts().renewal_id.clone().unwrap();
    let refused = |replaces| fixture.order(Some(replaces)).1;
    fixture.signed(Some(&first));
    assert_eq!(refused(&first), Err(Refusal::AlreadyReplaced));
    assert_eq!(refused("YQ.Yg"), Err(Refusal::UnknownReplaced));
}

#[test]
fn the_most_orders_for_one_certificate_are_counted_but_for_what_the_script_lost() {
    let fixture = Fixture::new();
    let most = || fixture.authority.counts().most_orders;
    fixture.signed(None);
    assert_eq!(most(), 1);
    // Three weeks before it is due, nobody needs another one.
    for orders in 1..=3 {
        fixture.order(None).1.unwrap();
        assert_eq!(most(), orders);
    }
    let (pending, _) = fixture.order(None);
    fixture.authority.excuse(&pending.identifiers);
    assert_eq!(most(), 3);
}
