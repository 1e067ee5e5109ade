//! The sidecar's loop: it launches a pass over each certificate at its instant,
//! a few at a time, and obeys what comes through its [`Handle`]. It decides
//! nothing: each pass asks [`crate::renew`], and says when to come back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};

use super::issue::{Urge, pass};
use super::status::status;
use super::{Certificate, ManageError, Outcome, Parts};
use crate::identifier::Lineage;
use crate::observe::Board;
use crate::record::Record;
use crate::time::Timestamp;

/// Certificates worked on at once.
const IN_FLIGHT: usize = 4;
/// The wall clock is read again this often: it may jump, and the machine may
/// have been suspended.
const SWEEP: Duration = Duration::from_secs(60);
/// After a failure that the record could not date, such as a full disk.
const AFTER_FAILURE: Duration = Duration::from_secs(15);
/// Steps under way get this long to end when the process is asked to.
const GRACE: Duration = Duration::from_secs(8);
const COMMANDS: usize = 64;

/// How a pass ended that somebody waits for.
pub type Ended = Result<Outcome, ManageError>;

/// Steers a running [`Supervisor`].
#[derive(Clone, Debug)]
pub struct Handle(mpsc::Sender<Command>);

enum Command {
    Sweep,
    Replace(Vec<Certificate>),
    Work(Box<Certificate>, Urge, oneshot::Sender<Ended>),
    Ping(oneshot::Sender<()>),
    Stop,
}

impl Handle {
    /// Looks at every certificate now.
    pub async fn sweep(&self) {
        self.send(Command::Sweep).await;
    }

    /// Keeps `certificates` from here on, and no others. What is under way for
    /// one that is left out is finished.
    pub async fn replace(&self, certificates: Vec<Certificate>) {
        self.send(Command::Replace(certificates)).await;
    }

    /// Passes over `certificate` once, whether it is one of those kept or not.
    /// `None` when the supervisor ended first; the work is then resumed by the
    /// next start, where it is kept.
    pub async fn work(&self, certificate: Certificate, urge: Urge) -> Option<Ended> {
        let (reply, ended) = oneshot::channel();
        self.send(Command::Work(Box::new(certificate), urge, reply))
            .await;
        ended.await.ok()
    }

    /// Returns once the loop has turned; false when it is gone.
    pub async fn ping(&self) -> bool {
        let (reply, turned) = oneshot::channel();
        self.send(Command::Ping(reply)).await;
        turned.await.is_ok()
    }

    /// Lets the steps under way end, within 8 s, and launches no other.
    pub async fn stop(&self) {
        self.send(Command::Stop).await;
    }

    async fn send(&self, command: Command) {
        // The supervisor has ended: whoever waits for a reply sees that.
        let _ = self.0.send(command).await;
    }
}

struct Kept {
    certificate: Certificate,
    /// When the next pass is launched.
    due: Timestamp,
    /// Whether a pass is under way.
    busy: bool,
    /// Whether it is passed over again and again, or only for those who wait.
    managed: bool,
    waiting: VecDeque<(Certificate, Urge, oneshot::Sender<Ended>)>,
}

struct Pass {
    lineage: Lineage,
    ended: Ended,
    record: Option<Record>,
    reply: Option<oneshot::Sender<Ended>>,
}

/// Keeps certificates until it is stopped.
pub struct Supervisor {
    parts: Parts,
    board: Board,
    commands: mpsc::Receiver<Command>,
    kept: BTreeMap<Lineage, Kept>,
    passes: JoinSet<Pass>,
    lineages: BTreeMap<tokio::task::Id, Lineage>,
}

impl Supervisor {
    /// A supervisor without certificates, that shows their state on `board`.
    #[must_use]
    pub fn new(parts: Parts, board: Board) -> (Self, Handle) {
        let (sender, commands) = mpsc::channel(COMMANDS);
        let supervisor = Self {
            parts,
            board,
            commands,
            kept: BTreeMap::new(),
            passes: JoinSet::new(),
            lineages: BTreeMap::new(),
        };
        (supervisor, Handle(sender))
    }

    /// Takes `certificates` over: each has at least a placeholder when this
    /// returns, and its state is on the board.
    ///
    /// # Errors
    /// The first placeholder that could not be written, or record not read.
    pub async fn keep(&mut self, certificates: Vec<Certificate>) -> Result<(), ManageError> {
        let lineages: BTreeSet<Lineage> = certificates
            .iter()
            .map(|certificate| certificate.wanted.lineage.clone())
            .collect();
        self.kept.retain(|lineage, kept| {
            kept.managed = lineages.contains(lineage);
            kept.managed || kept.busy || !kept.waiting.is_empty()
        });
        self.board.retain(&lineages);
        let mut first = Ok(());
        for certificate in certificates {
            let prepared = self.prepare(&certificate).await;
            first = first.and(prepared);
            self.adopt(certificate);
        }
        first
    }

    fn adopt(&mut self, certificate: Certificate) {
        let now = self.parts.clock.now();
        let lineage = certificate.wanted.lineage.clone();
        match self.kept.get_mut(&lineage) {
            Some(kept) => {
                kept.certificate = certificate;
                kept.managed = true;
                kept.due = now;
            }
            None => {
                let kept = Kept {
                    certificate,
                    due: now,
                    busy: false,
                    managed: true,
                    waiting: VecDeque::new(),
                };
                self.kept.insert(lineage, kept);
            }
        }
    }

    async fn prepare(&self, certificate: &Certificate) -> Result<(), ManageError> {
        let wanted = &certificate.wanted;
        let (lineage, now) = (&wanted.lineage, self.parts.clock.now());
        let stored = self.parts.store.load(lineage).await?;
        let record = stored.map_or_else(
            || {
                Record::new(
                    lineage.clone(),
                    wanted.identifiers.clone(),
                    wanted.ca.clone(),
                )
            },
            |(record, _)| record,
        );
        self.board
            .post(status(&record, now, self.parts.random.as_ref()));
        let output = &self.parts.output;
        if output.placeholder(lineage, &wanted.identifiers, now)? {
            tracing::info!(%lineage, "a placeholder stands in until the certificate is issued");
        }
        Ok(())
    }

    /// Works until it is stopped, or every [`Handle`] is gone.
    pub async fn run(mut self) {
        loop {
            self.launch();
            let wake = self.wake();
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(Command::Stop) | None => break,
                    Some(command) => self.obey(command).await,
                },
                Some(ended) = self.passes.join_next_with_id() => self.settle(ended),
                () = self.parts.clock.sleep_until(wake) => {}
            }
        }
        self.finish().await;
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Sweep => {
                let now = self.parts.clock.now();
                for kept in self.kept.values_mut() {
                    kept.due = now;
                }
            }
            Command::Replace(certificates) => {
                if let Err(error) = self.keep(certificates).await {
                    tracing::error!("{error}");
                }
            }
            Command::Work(certificate, urge, reply) => self.enqueue(*certificate, urge, reply),
            Command::Ping(reply) => {
                let _ = reply.send(());
            }
            Command::Stop => {}
        }
    }

    fn enqueue(&mut self, certificate: Certificate, urge: Urge, reply: oneshot::Sender<Ended>) {
        let lineage = certificate.wanted.lineage.clone();
        let due = self.parts.clock.now() + SWEEP;
        let kept = self.kept.entry(lineage).or_insert_with(|| Kept {
            certificate: certificate.clone(),
            due,
            busy: false,
            managed: false,
            waiting: VecDeque::new(),
        });
        kept.waiting.push_back((certificate, urge, reply));
    }

    /// Starts passes while there is room: those that somebody waits for first.
    fn launch(&mut self) {
        let now = self.parts.clock.now();
        while self.passes.len() < IN_FLIGHT {
            let ready = |kept: &&mut Kept| {
                !kept.busy && (!kept.waiting.is_empty() || (kept.managed && kept.due <= now))
            };
            let candidates = self.kept.values_mut().filter(ready);
            let Some(kept) = candidates.min_by_key(|kept| (kept.waiting.is_empty(), kept.due))
            else {
                return;
            };
            kept.busy = true;
            let (certificate, urge, reply) = match kept.waiting.pop_front() {
                Some((certificate, urge, reply)) => (certificate, urge, Some(reply)),
                None => (kept.certificate.clone(), Urge::Due, None),
            };
            let lineage = certificate.wanted.lineage.clone();
            let task = one_pass(self.parts.clone(), certificate, urge, reply);
            let id = self.passes.spawn(task).id();
            self.lineages.insert(id, lineage);
        }
    }

    /// The next instant at which there may be something to launch.
    fn wake(&self) -> Timestamp {
        let idle = self.kept.values().filter(|kept| kept.managed && !kept.busy);
        let sweep = self.parts.clock.now() + SWEEP;
        if self.passes.len() >= IN_FLIGHT {
            return sweep;
        }
        idle.map(|kept| kept.due)
            .min()
            .map_or(sweep, |due| due.min(sweep))
    }

    fn settle(&mut self, ended: Result<(tokio::task::Id, Pass), JoinError>) {
        let now = self.parts.clock.now();
        let (lineage, until) = match ended {
            Ok((id, pass)) => {
                self.lineages.remove(&id);
                let lineage = pass.lineage.clone();
                (Some(lineage), self.report(pass, now))
            }
            Err(error) => {
                tracing::error!("a pass has failed in a way nobody foresaw: {error}");
                (self.lineages.remove(&error.id()), now + AFTER_FAILURE)
            }
        };
        let Some(lineage) = lineage else { return };
        if let Some(kept) = self.kept.get_mut(&lineage) {
            kept.busy = false;
            kept.due = until;
            if !kept.managed && kept.waiting.is_empty() {
                self.kept.remove(&lineage);
            }
        }
    }

    /// Tells how it ended, and when the certificate is to be looked at again.
    fn report(&self, pass: Pass, now: Timestamp) -> Timestamp {
        let lineage = &pass.lineage;
        let random = self.parts.random.as_ref();
        let shown = pass.record.map(|record| status(&record, now, random));
        let next_at = shown.as_ref().map(|shown| shown.next_at);
        if let Some(shown) = shown
            && self.kept.get(lineage).is_some_and(|kept| kept.managed)
        {
            self.board.post(shown);
        }
        let until = match &pass.ended {
            Ok(outcome) => {
                if outcome.issued {
                    tracing::info!(%lineage, generation = %outcome.generation, not_after = %outcome.not_after, "issued");
                }
                outcome.next
            }
            Err(ManageError::BackingOff { until, .. }) => *until,
            Err(error) => {
                tracing::error!(%lineage, "{error}");
                next_at
                    .filter(|at| *at > now)
                    .unwrap_or(now + AFTER_FAILURE)
            }
        };
        if let Some(reply) = pass.reply {
            // Whoever waited may have gone away meanwhile.
            let _ = reply.send(pass.ended);
        }
        until
    }

    /// Lets what is under way end. What takes longer is resumed by the next
    /// start: its intent is stored.
    async fn finish(mut self) {
        let end = self.parts.clock.now() + GRACE;
        while !self.passes.is_empty() {
            tokio::select! {
                Some(ended) = self.passes.join_next_with_id() => self.settle(ended),
                () = self.parts.clock.sleep_until(end) => return,
            }
        }
    }
}

async fn one_pass(
    parts: Parts,
    certificate: Certificate,
    urge: Urge,
    reply: Option<oneshot::Sender<Ended>>,
) -> Pass {
    let ended = pass(&parts, &certificate, urge).await;
    let lineage = certificate.wanted.lineage;
    let record = match parts.store.load(&lineage).await {
        Ok(stored) => stored.map(|(record, _)| record),
        Err(error) => {
            tracing::warn!(%lineage, "its state cannot be shown: {error}");
            None
        }
    };
    Pass {
        lineage,
        ended,
        record,
        reply,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use async_trait::async_trait;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    use super::*;
    use crate::acme::{self, AcmeError, Cause, Journal, Phase};
    use crate::certificate::KeyType;
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
        let at = |instant: Timestamp| {
            time::OffsetDateTime::from_unix_timestamp(instant.seconds()).unwrap()
        };
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

    struct House {
        _directory: tempfile::TempDir,
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
                _directory: directory,
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
        let again = handle
            .work(kept.clone(), Urge::Asked)
            .await
            .unwrap()
            .unwrap();
        assert!(!again.issued);
        let forced = handle.work(kept, Urge::Force).await.unwrap().unwrap();
        assert_eq!((forced.issued, forced.generation), (true, Generation(2)));
        let other = house.certificate("other.example.com");
        assert!(
            handle
                .work(other, Urge::Asked)
                .await
                .unwrap()
                .unwrap()
                .issued
        );
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
        assert!(
            handle
                .work(house.certificate("n1.example.com"), Urge::Force)
                .await
                .is_none()
        );
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
}
