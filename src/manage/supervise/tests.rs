//! The supervisor in virtual time, with a CA that is scripted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::*;
use crate::acme::{self, AcmeError, Cause, Journal, Phase};
use crate::certificate::{Bundle, Freshness, KeyType};
use crate::deploy::output::Output;
use crate::identifier::Identifier;
use crate::manage::{SPACING, Wanted};
use crate::observe::Metrics;
use crate::random::SeededRandom;
use crate::record::{Generation, PendingOrder, Window};
use crate::store::fs::FileStore;
use crate::time::{Clock, VirtualClock};

const START: Timestamp = Timestamp::from_seconds(1_800_000_000);
const DAY: Duration = Duration::from_secs(86_400);

/// A CA that signs at once, and counts.
struct Signer {
    clock: Arc<VirtualClock>,
    orders: AtomicUsize,
    under_way: AtomicUsize,
    most: AtomicUsize,
    refusals: Mutex<BTreeMap<String, usize>>,
}

#[async_trait]
impl acme::Issuer for Signer {
    async fn issue(
        &self,
        order: PendingOrder,
        _journal: &mut dyn Journal,
    ) -> Result<String, AcmeError> {
        self.orders.fetch_add(1, Ordering::SeqCst);
        let now = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        self.under_way.fetch_sub(1, Ordering::SeqCst);
        let name = order.identifiers.first().unwrap().to_string();
        if let Some(left) = self.refusals.lock().unwrap().get_mut(&name)
            && *left > 0
        {
            *left -= 1;
            return Err(AcmeError {
                ca: order.ca,
                phase: Phase::Authorization,
                cause: Cause::NotProven("no".into()),
            });
        }
        Ok(sign(&order, self.clock.now()))
    }

    async fn renewal_info(
        &self,
        _renewal_id: &str,
        _journal: &mut dyn Journal,
    ) -> Result<Option<(Window, Duration)>, AcmeError> {
        Ok(None)
    }
}

fn sign(order: &PendingOrder, now: Timestamp) -> String {
    let at =
        |instant: Timestamp| time::OffsetDateTime::from_unix_timestamp(instant.seconds()).unwrap();
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = ca.self_signed(&ca_key).unwrap();
    let key = KeyPair::from_pem(order.key_pem.expose()).unwrap();
    let names: Vec<_> = order.identifiers.iter().map(ToString::to_string).collect();
    let mut leaf = CertificateParams::new(names).unwrap();
    (leaf.not_before, leaf.not_after) = (at(now), at(now + DAY * 90));
    let leaf = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
    format!("{}{}", leaf.pem(), root.pem())
}

/// A server that only counts how often it was told.
#[derive(Default)]
struct Told(AtomicUsize);

#[async_trait]
impl crate::deploy::Target for Told {
    fn name(&self) -> &str {
        "told"
    }

    async fn check(&self) -> Result<(), crate::deploy::DeployError> {
        Ok(())
    }

    async fn apply(&self) -> Result<(), crate::deploy::DeployError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

struct House {
    directory: tempfile::TempDir,
    parts: Parts,
    board: Board,
    clock: Arc<VirtualClock>,
    signer: Arc<Signer>,
}

impl House {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = Arc::new(VirtualClock::new(START));
        let parts = Parts {
            store: Arc::new(FileStore::open(directory.path().join("data")).unwrap()),
            output: Arc::new(Output::new(directory.path().join("out"))),
            clock: clock.clone(),
            random: Arc::new(SeededRandom::new(1)),
            metrics: Metrics::default(),
            spacing: SPACING,
            maintenance: None,
            board: None,
            progress: None,
        };
        let signer = Arc::new(Signer {
            clock: clock.clone(),
            orders: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            refusals: Mutex::default(),
        });
        Self {
            directory,
            parts,
            board: Board::default(),
            clock,
            signer,
        }
    }

    fn certificate(&self, name: &str) -> Certificate {
        let identifier = Identifier::parse(name).unwrap();
        Certificate {
            wanted: Wanted {
                lineage: Lineage::of(&identifier),
                identifiers: [identifier].into(),
                ca: "https://ca".into(),
                profile: None,
                key: KeyType::EcdsaP256,
                reuse_key: false,
            },
            issuer: self.signer.clone(),
            targets: Vec::new(),
            endpoints: Vec::new(),
        }
    }

    async fn start(&self, names: &[String]) -> Handle {
        let (mut supervisor, handle) = Supervisor::new(self.parts.clone(), self.board.clone());
        let certificates = names.iter().map(|name| self.certificate(name)).collect();
        supervisor.keep(certificates).await.unwrap();
        tokio::spawn(supervisor.run());
        handle
    }

    async fn until(&self, what: &str, ready: impl Fn(&[crate::observe::Status]) -> bool) {
        for _ in 0..100_000 {
            if ready(&self.board.all()) {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("{what}: {:#?}", self.board.all());
    }

    fn orders(&self) -> usize {
        self.signer.orders.load(Ordering::SeqCst)
    }
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("n{n}.example.com")).collect()
}

#[tokio::test]
async fn all_are_issued_a_few_at_a_time_and_each_is_renewed_at_its_instant() {
    let house = House::new();
    let handle = house.start(&names(10)).await;
    assert!(house.board.all().iter().all(|status| !status.is_ready()));
    house
        .until("issued", |all| all.iter().all(|status| status.is_ready()))
        .await;
    assert_eq!(house.orders(), 10);
    assert_eq!(house.signer.most.load(Ordering::SeqCst), IN_FLIGHT);
    let first = house.board.all().iter().map(|s| s.next_at).min().unwrap();
    house.clock.set(first - Duration::from_secs(1));
    assert!(handle.ping().await);
    assert_eq!(house.orders(), 10);
    house.clock.set(first);
    house
        .until("renewed", |all| {
            all.iter()
                .any(|s| s.generation_issued == Some(Generation(2)))
        })
        .await;
    assert_eq!(house.orders(), 11);
}

#[tokio::test]
async fn a_suspend_over_the_instant_is_noticed_within_a_minute() {
    let house = House::new();
    let _handle = house.start(&names(1)).await;
    house.until("issued", |all| all[0].is_ready()).await;
    let at = house.board.all()[0].next_at;
    house.clock.set(at + DAY);
    house
        .until("renewed", |all| {
            all[0].generation_issued == Some(Generation(2))
        })
        .await;
}

#[tokio::test]
async fn one_that_fails_backs_off_and_holds_up_no_other() {
    let house = House::new();
    let names = names(3);
    house
        .signer
        .refusals
        .lock()
        .unwrap()
        .insert(names[0].clone(), 1);
    let _handle = house.start(&names).await;
    house
        .until("two issued", |all| {
            all.iter().filter(|s| s.is_ready()).count() == 2 && all[0].last_error.is_some()
        })
        .await;
    assert!(house.board.all()[0].next_at > START);
    house.clock.advance(Duration::from_secs(120));
    house
        .until("all issued", |all| all.iter().all(|s| s.is_ready()))
        .await;
    assert_eq!(house.orders(), 4);
}

#[tokio::test]
async fn what_is_asked_for_is_done_also_when_it_is_not_kept() {
    let house = House::new();
    let handle = house.start(&names(1)).await;
    house.until("issued", |all| all[0].is_ready()).await;
    let kept = house.certificate("n0.example.com");
    let again = handle.work(kept.clone(), Urge::Asked).await.unwrap();
    assert!(!again.issued);
    let forced = handle.work(kept, Urge::Force).await.unwrap();
    assert_eq!((forced.issued, forced.generation), (true, Generation(2)));
    let other = house.certificate("other.example.com");
    assert!(handle.work(other, Urge::Asked).await.unwrap().issued);
    assert_eq!(house.board.all().len(), 1);
}

#[tokio::test]
async fn a_new_configuration_takes_over_and_a_stop_ends_it() {
    let house = House::new();
    let handle = house.start(&names(2)).await;
    house
        .until("issued", |all| all.iter().all(|s| s.is_ready()))
        .await;
    let kept = vec![
        house.certificate("n1.example.com"),
        house.certificate("n2.example.com"),
    ];
    handle.replace(kept).await;
    house
        .until("the new one issued", |all| {
            let names: Vec<_> = all.iter().map(|s| s.name.to_string()).collect();
            names == ["n1.example.com", "n2.example.com"] && all.iter().all(|s| s.is_ready())
        })
        .await;
    assert_eq!(house.orders(), 3);
    handle.stop().await;
    while handle.ping().await {
        tokio::task::yield_now().await;
    }
    let late = handle.work(house.certificate("n1.example.com"), Urge::Force);
    assert!(matches!(late.await, Err(ManageError::Stopped)));
}

#[tokio::test]
async fn a_renewal_is_handed_over_when_the_window_opens() {
    let mut house = House::new();
    let schedule: crate::manage::schedule::Schedule = "0 3 * * *".parse().unwrap();
    house.parts.maintenance = Some(Arc::new(schedule));
    let handle = house.start(&names(1)).await;
    // The first certificate waits for no window.
    house.until("issued", |all| all[0].is_ready()).await;
    house.clock.set(house.board.all()[0].next_at);
    house
        .until("renewed", |all| {
            all[0].generation_issued == Some(Generation(2))
        })
        .await;
    let shown = &house.board.all()[0];
    assert!(!shown.proven && shown.next_at > house.clock.now());
    let lineage = Lineage::parse("n0.example.com").unwrap();
    assert_eq!(house.parts.output.live(&lineage), Some(Generation(1)));
    house.clock.set(shown.next_at);
    house.until("handed over", |all| all[0].is_ready()).await;
    assert_eq!(house.parts.output.live(&lineage), Some(Generation(2)));
    assert!(handle.ping().await);
}

#[tokio::test]
async fn the_board_shows_a_certificate_while_it_is_still_being_proven() {
    let house = House::new();
    let mut certificate = house.certificate("n0.example.com");
    // Nobody listens there, and no time passes: the proof never ends.
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = socket.local_addr().unwrap().to_string().parse().unwrap();
    drop(socket);
    certificate.endpoints = vec![nobody];
    let (mut supervisor, _handle) = Supervisor::new(house.parts.clone(), house.board.clone());
    supervisor.keep(vec![certificate]).await.unwrap();
    tokio::spawn(supervisor.run());
    house
        .until("issued and not proven", |all| {
            all[0].generation_issued == Some(Generation(1)) && !all[0].proven
        })
        .await;
}

#[tokio::test]
async fn one_that_is_kept_is_not_made_into_another() {
    let house = House::new();
    let handle = house.start(&names(1)).await;
    house.until("issued", |all| all[0].is_ready()).await;
    let mut fewer = house.certificate("n0.example.com");
    fewer.wanted.identifiers = [Identifier::parse("www.example.com").unwrap()].into();
    let mut elsewhere = house.certificate("n0.example.com");
    elsewhere.wanted.ca = "https://other".into();
    for other in [fewer, elsewhere] {
        let refused = handle.work(other, Urge::Force).await.unwrap_err();
        assert!(
            refused
                .to_string()
                .contains("n0.example.com from https://ca"),
            "{refused}"
        );
    }
    assert_eq!(house.orders(), 1);
}

#[tokio::test]
async fn a_damaged_record_holds_up_no_other_and_heals() {
    let house = House::new();
    let names = names(2);
    let path = house.directory.path().join("data/records");
    std::fs::create_dir_all(path.join(&names[0])).unwrap();
    let record = path.join(&names[0]).join("record.json");
    std::fs::write(&record, "{").unwrap();
    let _handle = house.start(&names).await;
    house
        .until("the other one", |all| all.iter().any(|s| s.is_ready()))
        .await;
    std::fs::remove_file(&record).unwrap();
    house.clock.advance(Duration::from_secs(60));
    house
        .until("both", |all| {
            all.iter().filter(|s| s.is_ready()).count() == 2
        })
        .await;
}

#[tokio::test]
async fn a_new_volume_gets_the_stored_pair_and_its_server_is_told_again() {
    let house = House::new();
    let told = Arc::new(Told::default());
    let mut certificate = house.certificate("n0.example.com");
    certificate.targets = vec![told.clone()];
    let lineage = certificate.wanted.lineage.clone();
    let (mut supervisor, handle) = Supervisor::new(house.parts.clone(), house.board.clone());
    supervisor.keep(vec![certificate.clone()]).await.unwrap();
    assert_eq!(house.parts.output.live(&lineage), Some(Generation(0)));
    tokio::spawn(supervisor.run());
    house.until("issued", |all| all[0].is_ready()).await;
    assert_eq!(told.0.load(Ordering::SeqCst), 1);
    handle.stop().await;

    std::fs::remove_dir_all(house.directory.path().join("out")).unwrap();
    let (mut supervisor, _handle) = Supervisor::new(house.parts.clone(), house.board.clone());
    supervisor.keep(vec![certificate]).await.unwrap();
    assert_eq!(house.parts.output.live(&lineage), Some(Generation(1)));
    // Somebody else's hand: the server may have read what is there now.
    let stored = house.parts.store.bundle(&lineage, Generation(1)).await;
    let (key, chain) = stored.unwrap().unwrap();
    let names = [Identifier::parse("n0.example.com").unwrap()].into();
    let pair = Bundle::new(key, &chain, &names, START, Freshness::Any).unwrap();
    let output = &house.parts.output;
    output.publish(&lineage, Generation(0), &pair).unwrap();
    tokio::spawn(supervisor.run());
    house
        .until("handed over", |_| told.0.load(Ordering::SeqCst) == 2)
        .await;
    assert_eq!(house.parts.output.live(&lineage), Some(Generation(1)));
    assert_eq!(house.orders(), 1);
}

#[tokio::test]
async fn what_a_proof_no_longer_sees_counts_as_not_served() {
    let house = House::new();
    let mut certificate = house.certificate("n0.example.com");
    pass(&house.parts, &certificate, Urge::Due).await.unwrap();
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody: crate::deploy::verify::Endpoint =
        socket.local_addr().unwrap().to_string().parse().unwrap();
    drop(socket);
    let lineage = certificate.wanted.lineage.clone();
    let load = async || house.parts.store.load(&lineage).await.unwrap().unwrap();
    let (mut record, revision) = load().await;
    record.served.insert(
        nobody.to_string(),
        crate::record::Served {
            generation: Generation(1),
            at: START,
            not_after: None,
        },
    );
    record.deployed.insert("files".into(), Generation(1));
    record.deployed.insert("told".into(), Generation(1));
    house
        .parts
        .store
        .save(&record, revision, None)
        .await
        .unwrap();
    certificate.endpoints = vec![nobody.clone()];
    let told = Arc::new(Told::default());
    certificate.targets = vec![told.clone()];
    // The files were replaced meanwhile.
    std::fs::write(house.parts.output.live_path(&lineage).join("cert.pem"), "").unwrap();
    let work = {
        let (parts, certificate) = (house.parts.clone(), certificate.clone());
        tokio::spawn(async move { pass(&parts, &certificate, Urge::Due).await })
    };
    while !work.is_finished() {
        house.clock.advance(Duration::from_secs(1));
        tokio::task::yield_now().await;
    }
    assert!(matches!(work.await.unwrap(), Err(ManageError::Verify(_))));
    assert_eq!(told.0.load(Ordering::SeqCst), 1);
    let (record, _) = load().await;
    assert_eq!(record.served[&nobody.to_string()].generation, Generation(0));
}

#[tokio::test]
async fn a_configuration_that_comes_during_a_pass_is_not_forgotten() {
    let house = House::new();
    let handle = house.start(&names(1)).await;
    house.until("begun", |_| house.orders() == 1).await;
    let mut more = house.certificate("n0.example.com");
    let www = Identifier::parse("www.example.com").unwrap();
    more.wanted.identifiers.insert(www);
    handle.replace(vec![more]).await;
    house
        .until("both names", |all| {
            all[0].is_ready() && all[0].identifiers.len() == 2
        })
        .await;
    assert_eq!(house.orders(), 2);
}

#[tokio::test]
async fn a_command_for_one_that_is_kept_takes_nothing_from_it() {
    let house = House::new();
    let told = Arc::new(Told::default());
    let mut kept = house.certificate("n0.example.com");
    kept.targets = vec![told.clone()];
    let (mut supervisor, handle) = Supervisor::new(house.parts.clone(), house.board.clone());
    supervisor.keep(vec![kept]).await.unwrap();
    tokio::spawn(supervisor.run());
    house.until("issued", |all| all[0].is_ready()).await;
    let lineage = Lineage::parse("n0.example.com").unwrap();
    assert!(handle.keeps(&lineage).await);
    // From a shell that knows nothing of the server to be told.
    let bare = house.certificate("n0.example.com");
    handle.work(bare.clone(), Urge::Force).await.unwrap();
    assert_eq!(told.0.load(Ordering::SeqCst), 2);
    let mut other_key = bare;
    other_key.wanted.key = KeyType::Rsa4096;
    let refused = handle.work(other_key, Urge::Force).await.unwrap_err();
    assert!(refused.to_string().contains("ecdsa-p256"), "{refused}");
}

#[tokio::test]
async fn what_another_ca_asked_to_wait_for_is_not_waited_for() {
    let house = House::new();
    let mut certificate = house.certificate("n0.example.com");
    let wanted = &certificate.wanted;
    let (lineage, names) = (wanted.lineage.clone(), wanted.identifiers.clone());
    let mut record = Record::new(lineage, names, "https://ca".into());
    record.failures.retry_at = Some(START + DAY * 7);
    record.failures.asked_to_wait = true;
    let saved = house.parts.store.save(&record, Default::default(), None);
    saved.await.unwrap();
    let waits = pass(&house.parts, &certificate, Urge::Asked).await;
    assert!(matches!(waits, Err(ManageError::BackingOff { .. })));
    certificate.wanted.ca = "https://other".into();
    assert!(
        pass(&house.parts, &certificate, Urge::Due)
            .await
            .unwrap()
            .issued
    );
}
