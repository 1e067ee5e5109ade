//! The supervisor in virtual time, with a scripted CA.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::agenda::{Agenda, Entry};
use super::handle::Ended;
use super::pass::Finished;
use super::report::{alarm, alarm_level};
use super::*;
use crate::acme::{self, AcmeError, Cause, Journal, Phase};
use crate::ca_state::Outage;
use crate::certificate::{Bundle, BundleCache, Freshness, KeyType, Secret};
use crate::deploy::coalesce::Gate;
use crate::deploy::output::Output;
use crate::deploy::verify::Handshake;
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::manage::ca_state::Operation;
use crate::manage::concurrency::Permit;
use crate::manage::status::status;
use crate::manage::{
    Certificate, Keeper, Keys, ManageError, OrderSettings, Probes, SPACING, SPREAD, SameNames,
    Services, SharedServices, Trigger, VERIFY_WITHIN, Wanted,
};
use crate::observe::{Board, Metrics, Status};
use crate::random::SeededRandom;
use crate::record::{Generation, PendingOrder, Record, Terms, Window};
use crate::renew::policy::{CLOCK_READING, ORDERING};
use crate::store::Store;
use crate::store::fs::FileStore;
use crate::time::{Clock, Timestamp, VirtualClock};

mod agenda;
mod ca_state;
mod clock;
mod fallback;
mod files;
mod kept;
mod look;
mod many;
mod outage;
mod partial;
mod rollback;
mod shared;
mod skew;

/// Runs a pass without a limit of concurrency.
async fn pass(services: &Services, certificate: &Certificate, trigger: Trigger) -> Ended {
    let pass = crate::manage::pass::pass(services, certificate, trigger, Permit::default());
    pass.await.map(|(outcome, _)| outcome)
}

const START: Timestamp = Timestamp::from_seconds(1_800_000_000);
const DAY: Duration = Duration::from_secs(86_400);

/// A scripted CA that signs at once and counts requests.
struct Signer {
    clock: Arc<VirtualClock>,
    orders: AtomicUsize,
    in_progress: AtomicUsize,
    most: AtomicUsize,
    refusals: Mutex<BTreeMap<String, usize>>,
    /// Names whose orders end with a failure of the CA.
    failing: Mutex<BTreeSet<String>>,
    /// Names whose validation fails.
    invalid_names: Mutex<BTreeSet<Identifier>>,
    /// Whether it has sent no date yet.
    undated: AtomicBool,
    /// How many seconds this machine's clock is ahead of the CA's.
    ahead: Mutex<i64>,
    /// The age of its last reply.
    reply_age: Mutex<Duration>,
    /// The names of each order.
    asked: Mutex<Vec<BTreeSet<Identifier>>>,
    /// The number of next orders that find the CA unreachable.
    outages: AtomicUsize,
    probes: AtomicUsize,
    /// The outage that another pass stores during the next probe.
    stored_meanwhile: Mutex<Option<(Arc<dyn Store>, Outage)>>,
    /// The number of first probes that fail.
    failed_probes: AtomicUsize,
    /// Whether it answers a probe with 429.
    limits_probes: AtomicBool,
    /// The renewal window of each certificate.
    window: Mutex<Option<Window>>,
    /// How long before and after its signing a certificate is valid.
    dates: Mutex<(Duration, Duration)>,
    /// Whether renewal windows are unavailable.
    windows_down: AtomicBool,
    /// The number of requests for windows.
    windows: AtomicUsize,
    /// Whether it requires an account.
    registers: AtomicBool,
}

impl Signer {
    fn new(clock: Arc<VirtualClock>) -> Self {
        Self {
            clock,
            orders: AtomicUsize::new(0),
            in_progress: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            refusals: Mutex::default(),
            failing: Mutex::default(),
            invalid_names: Mutex::default(),
            asked: Mutex::default(),
            undated: AtomicBool::new(false),
            ahead: Mutex::default(),
            reply_age: Mutex::default(),
            outages: AtomicUsize::new(0),
            probes: AtomicUsize::new(0),
            stored_meanwhile: Mutex::default(),
            failed_probes: AtomicUsize::new(0),
            limits_probes: AtomicBool::new(false),
            window: Mutex::default(),
            dates: Mutex::new((Duration::ZERO, DAY * 90)),
            windows_down: AtomicBool::new(false),
            windows: AtomicUsize::new(0),
            registers: AtomicBool::new(false),
        }
    }
}

impl Signer {
    /// The time of the CA's clock.
    fn there(&self) -> Timestamp {
        let ahead = *self.ahead.lock().unwrap();
        Timestamp::from_seconds(self.clock.now().seconds() - ahead)
    }
}

/// Stores `outage` as the one of `ca`.
async fn set_outage(store: &dyn Store, ca: &str, outage: Option<Outage>) {
    let (mut state, revision) = store.ca_state(ca).await.unwrap();
    state.outage = outage;
    store.save_ca_state(ca, &state, revision).await.unwrap();
}

fn outage(ca: &str) -> AcmeError {
    let error = acme::ExchangeError::Connect("connection refused".into());
    AcmeError {
        ca: ca.into(),
        phase: Phase::Directory,
        cause: error.into(),
    }
}

#[async_trait]
impl acme::Issuer for Signer {
    async fn issue(
        &self,
        order: PendingOrder,
        journal: &mut dyn Journal,
    ) -> Result<String, AcmeError> {
        if self.registers.load(Ordering::SeqCst) {
            register(&order.ca, journal).await?;
        }
        self.orders.fetch_add(1, Ordering::SeqCst);
        let now = self.in_progress.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        self.in_progress.fetch_sub(1, Ordering::SeqCst);
        self.asked.lock().unwrap().push(order.identifiers.clone());
        let left = self.outages.load(Ordering::SeqCst);
        if left > 0 {
            self.outages.store(left - 1, Ordering::SeqCst);
            return Err(outage(&order.ca));
        }
        let name = order.identifiers.first().unwrap().to_string();
        if self.failing.lock().unwrap().contains(&name) {
            return Err(outage(&order.ca));
        }
        let invalid_names = self.invalid_names.lock().unwrap();
        let failed: Vec<_> = order
            .identifiers
            .intersection(&invalid_names)
            .cloned()
            .collect();
        if !failed.is_empty() {
            let failed = failed.into_iter().map(|identifier| acme::FailedName {
                identifier,
                reason: "no answer on port 80".into(),
            });
            return Err(AcmeError {
                ca: order.ca,
                phase: Phase::Authorization,
                cause: Cause::NotValidated("no".into()).for_names(failed.collect()),
            });
        }
        if let Some(left) = self.refusals.lock().unwrap().get_mut(&name)
            && *left > 0
        {
            *left -= 1;
            return Err(AcmeError {
                ca: order.ca,
                phase: Phase::Authorization,
                cause: Cause::NotValidated("no".into()),
            });
        }
        let (before, after) = *self.dates.lock().unwrap();
        let now = self.there();
        Ok(sign(&order, now - before, now + after))
    }

    fn clocks(&self) -> Option<acme::ClockReading> {
        if self.undated.load(Ordering::SeqCst) {
            return None;
        }
        let age = *self.reply_age.lock().unwrap();
        let (ours, theirs) = (self.clock.now() - age, self.there() - age);
        Some(acme::ClockReading { ours, theirs })
    }

    async fn time(&self, _newest: Duration) -> Result<Option<acme::ClockReading>, AcmeError> {
        self.undated.store(false, Ordering::SeqCst);
        Ok(self.clocks())
    }

    async fn probe(&self) -> Result<(), AcmeError> {
        let meanwhile = self.stored_meanwhile.lock().unwrap().take();
        if let Some((store, outage)) = meanwhile {
            set_outage(store.as_ref(), "https://ca", Some(outage)).await;
        }
        match self.probes.fetch_add(1, Ordering::SeqCst) {
            probe if probe < self.failed_probes.load(Ordering::SeqCst) => Err(outage("https://ca")),
            _ if self.limits_probes.load(Ordering::SeqCst) => Err(AcmeError {
                ca: "https://ca".into(),
                phase: Phase::Directory,
                cause: Cause::RateLimited {
                    message: "too many requests".into(),
                    retry_after: Some(DAY),
                },
            }),
            _ => {
                self.undated.store(false, Ordering::SeqCst);
                Ok(())
            }
        }
    }

    async fn renewal_info(
        &self,
        _renewal_id: &str,
    ) -> Result<Option<(Window, Duration)>, AcmeError> {
        self.windows.fetch_add(1, Ordering::SeqCst);
        if self.windows_down.load(Ordering::SeqCst) {
            return Err(outage("https://ca"));
        }
        let window = self.window.lock().unwrap().clone();
        Ok(window.map(|window| (window, DAY)))
    }
}

async fn register(ca: &str, journal: &mut dyn Journal) -> Result<(), AcmeError> {
    let failed = |error| AcmeError {
        ca: ca.into(),
        phase: Phase::Account,
        cause: Cause::Journal(error),
    };
    if journal.account().await.map_err(failed)?.is_none() {
        let key = Secret::new("key".into());
        journal.create_account(&key).await.map_err(failed)?;
    }
    Ok(())
}

fn sign(order: &PendingOrder, from: Timestamp, until: Timestamp) -> String {
    let at =
        |instant: Timestamp| time::OffsetDateTime::from_unix_timestamp(instant.seconds()).unwrap();
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = ca.self_signed(&ca_key).unwrap();
    let key = KeyPair::from_pem(order.key_pem.expose()).unwrap();
    let names: Vec<_> = order.identifiers.iter().map(ToString::to_string).collect();
    let mut leaf = CertificateParams::new(names).unwrap();
    (leaf.not_before, leaf.not_after) = (at(from), at(until));
    // Without this identifier a certificate has no renewal identifier.
    leaf.use_authority_key_identifier_extension = true;
    let leaf = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
    format!("{}{}", leaf.pem(), root.pem())
}

/// A server that counts its reloads.
#[derive(Default)]
struct CountingTarget {
    reloads: AtomicUsize,
    is_down: AtomicBool,
}

#[async_trait]
impl crate::deploy::Target for CountingTarget {
    fn name(&self) -> String {
        "counting".into()
    }

    async fn check(&self, _: &crate::deploy::Delivery) -> Result<(), crate::deploy::DeployCause> {
        Ok(())
    }

    async fn apply(&self, _: &crate::deploy::Delivery) -> Result<(), crate::deploy::DeployCause> {
        self.reloads.fetch_add(1, Ordering::SeqCst);
        if self.is_down.load(Ordering::SeqCst) {
            return Err(crate::deploy::DeployCause::NoPidFile("nothing".into()));
        }
        Ok(())
    }
}

/// Generates keys on this thread: the tests count iterations, not time.
struct KeysAtOnce;

#[async_trait]
impl Keys for KeysAtOnce {
    async fn make(&self, kind: KeyType) -> Result<Secret, ManageError> {
        Ok(kind.generate()?)
    }
}

struct Fixture {
    directory: tempfile::TempDir,
    services: Services,
    board: Board,
    clock: Arc<VirtualClock>,
    signer: Arc<Signer>,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = Arc::new(VirtualClock::new(START));
        let services = Services {
            store: Arc::new(FileStore::open(directory.path().join("data")).unwrap()),
            output: Arc::new(Output::new(directory.path().join("out"))),
            gate: Gate::default(),
            verifier: Arc::new(Handshake::default()),
            resolver: Default::default(),
            keys: Arc::new(KeysAtOnce),
            bundles: BundleCache::default(),
            probes: Probes::default(),
            same_names: SameNames::default(),
            clock: clock.clone(),
            random: Arc::new(SeededRandom::new(1)),
            metrics: Metrics::default(),
            spacing: SPACING,
            spread: SPREAD,
            verify_within: VERIFY_WITHIN,
            maintenance: None,
            looks: None,
            board: None,
            progress: None,
        };
        let signer = Arc::new(Signer::new(clock.clone()));
        Self {
            directory,
            services,
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
                order: Arc::new(OrderSettings {
                    ca: "https://ca".into(),
                    terms: Terms::default(),
                    request: None,
                    partial: false,
                }),
            },
            targets: Vec::new(),
            keeper: Keeper::default(),
            shared: Arc::new(SharedServices {
                issuer: self.signer.clone(),
                fallback: None,
                endpoints: Vec::new(),
                cannot_order: None,
                program: None,
            }),
        }
    }

    async fn start(&self, names: &[String]) -> Handle {
        let (mut supervisor, handle) = Supervisor::new(self.services.clone(), self.board.clone());
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

    /// Waits until no pass is in progress or due: each pass holds a reference to the CA
    /// beside those of the `managed` certificates.
    async fn settle(&self, handle: &Handle, managed: usize) {
        let mut quiet = 0;
        for _ in 0..1_000_000 {
            if quiet == 5 {
                return;
            }
            assert!(handle.ping().await);
            let idle = Arc::strong_count(&self.signer) <= 1 + managed;
            quiet = if idle { quiet + 1 } else { 0 };
            tokio::task::yield_now().await;
        }
        panic!("the passes do not end: {:#?}", self.board.all());
    }

    fn orders(&self) -> usize {
        self.signer.orders.load(Ordering::SeqCst)
    }
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("n{n}.example.com")).collect()
}

#[tokio::test]
async fn supervisor_issues_few_at_a_time_and_renews_each_at_its_instant() {
    let fixture = Fixture::new();
    let handle = fixture.start(&names(10)).await;
    assert!(fixture.board.all().iter().all(|status| !status.is_ready()));
    fixture
        .until("issued", |all| all.iter().all(|status| status.is_ready()))
        .await;
    assert_eq!(fixture.orders(), 10);
    // Each certificate from a CA without known limits permits one order more at a time.
    let most = fixture.signer.most.load(Ordering::SeqCst);
    assert!((ORDERING..=10).contains(&most), "{most}");
    let first = fixture.board.all().iter().map(|s| s.next_at).min().unwrap();
    fixture.clock.set(first - Duration::from_secs(1));
    assert!(handle.ping().await);
    assert_eq!(fixture.orders(), 10);
    fixture.clock.set(first);
    fixture
        .until("renewed", |all| {
            all.iter()
                .any(|s| s.generation_issued == Some(Generation(2)))
        })
        .await;
    assert_eq!(fixture.orders(), 11);
}

#[tokio::test]
async fn supervisor_renews_within_a_minute_after_suspend() {
    let fixture = Fixture::new();
    let _handle = fixture.start(&names(1)).await;
    fixture.until("issued", |all| all[0].is_ready()).await;
    let at = fixture.board.all()[0].next_at;
    fixture.clock.set(at + DAY);
    fixture
        .until("renewed", |all| {
            all[0].generation_issued == Some(Generation(2))
        })
        .await;
}

#[tokio::test]
async fn failed_certificate_backs_off_and_delays_no_other() {
    let fixture = Fixture::new();
    let names = names(3);
    fixture
        .signer
        .refusals
        .lock()
        .unwrap()
        .insert(names[0].clone(), 1);
    let _handle = fixture.start(&names).await;
    fixture
        .until("two issued", |all| {
            all.iter().filter(|s| s.is_ready()).count() == 2 && all[0].last_error.is_some()
        })
        .await;
    assert!(fixture.board.all()[0].next_at > START);
    fixture.clock.advance(Duration::from_secs(120));
    fixture
        .until("all issued", |all| all.iter().all(|s| s.is_ready()))
        .await;
    assert_eq!(fixture.orders(), 4);
}

#[tokio::test]
async fn work_runs_a_pass_for_managed_and_unmanaged_certificates() {
    let fixture = Fixture::new();
    let handle = fixture.start(&names(1)).await;
    fixture.until("issued", |all| all[0].is_ready()).await;
    let managed = fixture.certificate("n0.example.com");
    let again = handle
        .work(managed.clone(), Trigger::Requested)
        .await
        .unwrap();
    assert!(!again.issued);
    let forced = handle.work(managed, Trigger::Forced).await.unwrap();
    assert_eq!((forced.issued, forced.generation), (true, Generation(2)));
    let other = fixture.certificate("other.example.com");
    assert!(handle.work(other, Trigger::Requested).await.unwrap().issued);
    assert_eq!(fixture.board.all().len(), 1);
}

#[tokio::test]
async fn supervisor_follows_new_configuration_and_ends_at_stop() {
    let fixture = Fixture::new();
    let handle = fixture.start(&names(2)).await;
    fixture
        .until("issued", |all| all.iter().all(|s| s.is_ready()))
        .await;
    let managed = vec![
        fixture.certificate("n1.example.com"),
        fixture.certificate("n2.example.com"),
    ];
    handle.replace(managed).await;
    fixture
        .until("the new one issued", |all| {
            let names: Vec<_> = all.iter().map(|s| s.name.to_string()).collect();
            names == ["n1.example.com", "n2.example.com"] && all.iter().all(|s| s.is_ready())
        })
        .await;
    assert_eq!(fixture.orders(), 3);
    handle.stop().await;
    while handle.ping().await {
        tokio::task::yield_now().await;
    }
    let late = handle.work(fixture.certificate("n1.example.com"), Trigger::Forced);
    assert!(matches!(late.await, Err(ManageError::Stopped)));
}

#[tokio::test]
async fn renewal_is_deployed_when_the_maintenance_window_opens() {
    let mut fixture = Fixture::new();
    let schedule: crate::manage::schedule::Schedule = "0 3 * * *".parse().unwrap();
    fixture.services.maintenance = Some(Arc::new(schedule));
    let handle = fixture.start(&names(1)).await;
    // The first certificate is deployed outside the window.
    fixture.until("issued", |all| all[0].is_ready()).await;
    fixture.clock.set(fixture.board.all()[0].next_at);
    fixture
        .until("renewed", |all| {
            all[0].generation_issued == Some(Generation(2))
        })
        .await;
    let shown = &fixture.board.all()[0];
    assert!(!shown.is_ready() && shown.next_at > fixture.clock.now());
    let lineage = Lineage::parse("n0.example.com").unwrap();
    assert_eq!(
        fixture.services.output.live(&lineage).unwrap(),
        Some(Generation(1))
    );
    fixture.clock.set(shown.next_at);
    fixture.until("deployed", |all| all[0].is_ready()).await;
    assert_eq!(
        fixture.services.output.live(&lineage).unwrap(),
        Some(Generation(2))
    );
    assert!(handle.ping().await);
}

#[tokio::test]
async fn board_shows_certificate_while_verification_is_in_progress() {
    let fixture = Fixture::new();
    let mut certificate = fixture.certificate("n0.example.com");
    // No server listens there and no time passes: the verification never ends.
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed_port = socket.local_addr().unwrap().to_string().parse().unwrap();
    drop(socket);
    certificate.endpoints = vec![closed_port];
    let (mut supervisor, _handle) =
        Supervisor::new(fixture.services.clone(), fixture.board.clone());
    supervisor.keep(vec![certificate]).await.unwrap();
    tokio::spawn(supervisor.run());
    fixture
        .until("issued and not verified", |all| {
            all[0].generation_issued == Some(Generation(1)) && !all[0].proven
        })
        .await;
}
