//! Looks at endpoints after their verification.

use std::io::ErrorKind;

use super::*;
use crate::certificate::Facts;
use crate::deploy::verify::{ServedAt, Unreached, Unseen, Verifier};
use crate::deploy::{Delivery, DeployCause, Target};
use crate::fingerprint::Fingerprint;
use crate::manage::Looks;
use crate::observe::ProofState;

const EVERY: Duration = Duration::from_secs(600);

/// What a server shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Shown {
    #[default]
    Ours,
    /// Another certificate for this name.
    Other(&'static str),
    Nothing,
}

/// A server that loads our certificate at each reload.
#[derive(Default)]
struct Server {
    shown: Mutex<Shown>,
    reloads: AtomicUsize,
    looks: AtomicUsize,
    /// No connection reaches it, whatever it shows.
    is_cut_off: AtomicBool,
}

impl Server {
    fn show(&self, shown: Shown) {
        *self.shown.lock().unwrap() = shown;
    }

    fn reloads(&self) -> usize {
        self.reloads.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Target for Arc<Server> {
    fn name(&self) -> String {
        "server".into()
    }

    async fn check(&self, _: &Delivery) -> Result<(), DeployCause> {
        Ok(())
    }

    async fn apply(&self, _: &Delivery) -> Result<(), DeployCause> {
        self.reloads.fetch_add(1, Ordering::SeqCst);
        self.show(Shown::Ours);
        Ok(())
    }
}

#[async_trait]
impl Verifier for Server {
    async fn look(
        &self,
        _: &ServedAt,
        _: &Identifier,
        _: &Fingerprint,
    ) -> Result<Unreached, Unseen> {
        self.looks.fetch_add(1, Ordering::SeqCst);
        if self.is_cut_off.load(Ordering::SeqCst) {
            return Err(Unseen::unreachable(&ErrorKind::ConnectionRefused.into()));
        }
        match *self.shown.lock().unwrap() {
            Shown::Ours => Ok(Unreached::new()),
            Shown::Nothing => Err("connection refused".into()),
            Shown::Other(name) => Err(Unseen::other(
                "it serves another certificate".into(),
                Facts {
                    identifiers: [Identifier::parse(name).unwrap()].into(),
                    not_before: START,
                    not_after: START + DAY,
                    fingerprint: Fingerprint::of(b"another"),
                    renewal_id: None,
                },
            )),
        }
    }
}

fn deployed(at_once: bool) -> (Fixture, Arc<Server>, Certificate) {
    let (mut fixture, server) = (Fixture::new(), Arc::new(Server::default()));
    let every = EVERY;
    fixture.services.looks = Some(Looks {
        every,
        at_once,
        first: false,
    });
    fixture.services.verifier = server.clone();
    let mut certificate = fixture.certificate("n0.example.com");
    certificate.targets = vec![Arc::new(server.clone())];
    certificate.endpoints = vec!["example.com:443".parse().unwrap()];
    (fixture, server, certificate)
}

/// A supervisor whose certificate is issued and proven.
async fn supervised() -> (Fixture, Arc<Server>, Handle) {
    let (fixture, server, certificate) = deployed(false);
    let (mut supervisor, handle) = Supervisor::new(fixture.services.clone(), fixture.board.clone());
    supervisor.keep(vec![certificate]).await.unwrap();
    tokio::spawn(supervisor.run());
    pass_time(&fixture, EVERY).await;
    assert_eq!(proof(&fixture), ProofState::Proven);
    (fixture, server, handle)
}

/// Lets `time` pass, in steps that no pause misses.
async fn pass_time(fixture: &Fixture, time: Duration) {
    let end = fixture.clock.now() + time;
    while fixture.clock.now() < end {
        for _ in 0..30 {
            tokio::task::yield_now().await;
        }
        fixture.clock.advance(Duration::from_secs(5));
    }
}

fn proof(fixture: &Fixture) -> ProofState {
    fixture.board.all()[0].proof.state
}

#[tokio::test]
async fn server_that_went_back_is_deployed_to_again_within_the_interval() {
    let (fixture, server, _handle) = supervised().await;
    assert_eq!(server.reloads(), 1);
    server.show(Shown::Other("n0.example.com"));
    pass_time(&fixture, EVERY + Duration::from_secs(30)).await;
    assert_eq!((server.reloads(), proof(&fixture)), (2, ProofState::Proven));
    assert_eq!(fixture.orders(), 1);
    // Then it is only looked at.
    pass_time(&fixture, EVERY * 6).await;
    assert_eq!(server.reloads(), 2);
}

#[tokio::test]
async fn server_that_is_restored_again_and_again_is_reloaded_less_and_less() {
    let (fixture, server, _handle) = supervised().await;
    for _ in 0..6 * 60 {
        server.show(Shown::Other("n0.example.com"));
        pass_time(&fixture, Duration::from_secs(60)).await;
    }
    assert!((6..14).contains(&server.reloads()), "{}", server.reloads());
    server.show(Shown::Other("n0.example.com"));
    pass_time(&fixture, Duration::from_secs(1200)).await;
    let shown = &fixture.board.all()[0];
    assert_eq!(shown.proof.state, ProofState::NotProven, "{shown:?}");
    assert!(
        shown.proof.detail.contains("; deployed again at 20"),
        "{shown:?}"
    );
    assert_eq!(shown.served["example.com:443"].not_after, Some(START + DAY));
}

#[tokio::test]
async fn unreachable_server_is_not_proven_and_not_reloaded() {
    let (fixture, server, _handle) = supervised().await;
    server.show(Shown::Nothing);
    pass_time(&fixture, EVERY).await;
    let shown = fixture.board.all()[0].clone();
    assert_eq!(shown.proof.detail, "example.com:443: connection refused");
    assert_eq!(shown.proof.state, ProofState::NotProven);
    assert!(!shown.is_ready() && shown.served["example.com:443"].not_after.is_none());
    let looks = server.looks.load(Ordering::SeqCst);
    pass_time(&fixture, EVERY).await;
    let looks = server.looks.load(Ordering::SeqCst) - looks;
    assert!((8..12).contains(&looks), "{looks} looks in ten minutes");
    assert_eq!(server.reloads(), 1);
    server.show(Shown::Ours);
    pass_time(&fixture, EVERY / 5).await;
    assert!(fixture.board.all()[0].is_ready());
}

#[tokio::test]
async fn server_that_was_never_reachable_is_reloaded_once() {
    let (fixture, server, certificate) = deployed(false);
    server.is_cut_off.store(true, Ordering::SeqCst);
    let (mut supervisor, _handle) =
        Supervisor::new(fixture.services.clone(), fixture.board.clone());
    supervisor.keep(vec![certificate]).await.unwrap();
    tokio::spawn(supervisor.run());
    pass_time(&fixture, EVERY * 6).await;
    assert_eq!(proof(&fixture), ProofState::NotProven);
    assert_eq!((server.reloads(), fixture.orders()), (1, 1));
    server.is_cut_off.store(false, Ordering::SeqCst);
    pass_time(&fixture, EVERY).await;
    assert!(fixture.board.all()[0].is_ready());
    assert_eq!(server.reloads(), 1);
}

#[tokio::test]
async fn stored_proof_counts_after_the_first_look_since_the_start() {
    for (shown, reloads, expected) in [
        (Shown::Nothing, 1, "example.com:443: connection refused"),
        (Shown::Other("n0.example.com"), 2, "example.com:443"),
        (Shown::Ours, 1, "example.com:443"),
    ] {
        let (fixture, server, certificate) = deployed(false);
        let mut handles = Vec::new();
        for start in 0..2 {
            let board = Board::default();
            let (mut supervisor, handle) = Supervisor::new(fixture.services.clone(), board.clone());
            supervisor.keep(vec![certificate.clone()]).await.unwrap();
            let at_start = board.all()[0].clone();
            let running = tokio::spawn(supervisor.run());
            pass_time(&fixture, Duration::from_secs(30)).await;
            let status = board.all()[0].clone();
            if start == 1 {
                let detail = "example.com:443: not looked at since the start";
                assert_eq!(at_start.proof.detail, detail);
                assert!(!at_start.is_ready() && !at_start.proven);
                assert_eq!(status.proof.detail, expected, "{shown:?}");
                assert_eq!(
                    status.is_ready(),
                    server.reloads() == 2 || shown == Shown::Ours
                );
                assert_eq!((server.reloads(), fixture.orders()), (reloads, 1));
                // It is as looked at as any other, also after a reload of the configuration.
                handle.replace(vec![certificate.clone()]).await;
                pass_time(&fixture, Duration::from_secs(30)).await;
                assert_eq!(board.all()[0].proof.state, status.proof.state);
            } else {
                assert!(status.is_ready(), "{status:?}");
                handle.stop().await;
                running.await.unwrap();
                server.show(shown);
            }
            handles.push(handle);
        }
    }
}

#[tokio::test]
async fn certificate_for_other_names_is_no_reason_to_reload() {
    let (fixture, server, _handle) = supervised().await;
    server.show(Shown::Other("other.example.com"));
    pass_time(&fixture, EVERY * 3).await;
    assert_eq!(
        (server.reloads(), proof(&fixture)),
        (1, ProofState::NotProven)
    );
}

#[tokio::test]
async fn pass_of_a_user_looks_at_once_and_fails_without_proof() {
    let (fixture, server, certificate) = deployed(true);
    let work = async |trigger| {
        let (services, certificate) = (fixture.services.clone(), certificate.clone());
        let work = tokio::spawn(async move { pass(&services, &certificate, trigger).await });
        while !work.is_finished() {
            fixture.clock.advance(Duration::from_secs(1));
            tokio::task::yield_now().await;
        }
        work.await.unwrap()
    };
    work(Trigger::Requested).await.unwrap();
    for trigger in [Trigger::Scheduled, Trigger::Requested] {
        server.show(Shown::Other("n0.example.com"));
        let reloads = server.reloads();
        let outcome = work(trigger).await.unwrap();
        assert_eq!((server.reloads(), outcome.issued), (reloads + 1, false));
        server.show(Shown::Nothing);
        let ended = work(trigger).await;
        assert!(matches!(ended, Err(ManageError::Verify(_))), "{ended:?}");
        assert_eq!(server.reloads(), reloads + 1);
        server.show(Shown::Ours);
    }
}

#[tokio::test]
async fn orphaned_certificate_is_looked_at_and_raises_an_alarm_but_is_never_renewed() {
    let (fixture, server, mut certificate) = deployed(false);
    let (services, first) = (fixture.services.clone(), certificate.clone());
    let work = tokio::spawn(async move { pass(&services, &first, Trigger::Scheduled).await });
    while !work.is_finished() {
        fixture.clock.advance(Duration::from_secs(1));
        tokio::task::yield_now().await;
    }
    work.await.unwrap().unwrap();
    certificate.keeper = Keeper::Nothing;
    let lineage = certificate.wanted.lineage.clone();
    let (mut supervisor, handle) = Supervisor::new(fixture.services.clone(), fixture.board.clone());
    let why = "the configuration no longer names it".to_owned();
    fixture.board.set_orphans([(lineage.clone(), why)].into());
    supervisor.keep(vec![certificate]).await.unwrap();
    tokio::spawn(supervisor.run());
    pass_time(&fixture, EVERY).await;
    // A command may bring other settings.
    assert!(!handle.manages(&lineage).await);
    let shown = fixture.board.all()[0].clone();
    assert!(shown.orphaned && shown.proof.state == ProofState::Proven && !shown.is_ready());
    server.show(Shown::Other("n0.example.com"));
    pass_time(&fixture, EVERY * 2).await;
    let shown = fixture.board.all()[0].clone();
    assert!(shown.is_ready(), "no endpoint serves it: {shown:?}");
    fixture.clock.advance(DAY * 80);
    pass_time(&fixture, EVERY * 2).await;
    assert_eq!((fixture.orders(), server.reloads()), (1, 1));
}
