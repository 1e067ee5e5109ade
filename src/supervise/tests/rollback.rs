//! Deployments that are not verified, and the generation that is served then.

use super::*;
use crate::deploy::verify::{ServedAt, Unreached, Unseen, Verifier};
use crate::fingerprint::Fingerprint;
use crate::observe::ProofState;
use crate::record::Failures;

/// A scripted verifier.
#[derive(Default)]
struct ScriptedVerifier {
    /// The served certificates; with `None` a look never ends.
    sees: Mutex<Option<Vec<Fingerprint>>>,
    looks: AtomicUsize,
}

#[async_trait]
impl Verifier for ScriptedVerifier {
    async fn look(
        &self,
        _: &ServedAt,
        _: &Identifier,
        wanted: &Fingerprint,
    ) -> Result<Unreached, Unseen> {
        self.looks.fetch_add(1, Ordering::SeqCst);
        let sees = self.sees.lock().unwrap().clone();
        match sees {
            None => std::future::pending().await,
            Some(seen) if seen.contains(wanted) => Ok(Unreached::new()),
            Some(_) => Err("it serves another".into()),
        }
    }
}

/// A certificate with one server, whose generations are issued and verified.
struct Scenario {
    fixture: Fixture,
    eyes: Arc<ScriptedVerifier>,
    target: Arc<CountingTarget>,
    certificate: Certificate,
    prints: Vec<Fingerprint>,
}

impl Scenario {
    async fn of(generations: usize) -> Self {
        let mut fixture = Fixture::new();
        let eyes = Arc::new(ScriptedVerifier::default());
        fixture.services.verifier = eyes.clone();
        let target = Arc::new(CountingTarget::default());
        let mut certificate = fixture.certificate("n0.example.com");
        certificate.targets = vec![target.clone()];
        certificate.endpoints = vec!["example.com:443".parse().unwrap()];
        let mut scenario = Self {
            fixture,
            eyes,
            target,
            certificate,
            prints: Vec::new(),
        };
        for _ in 0..generations {
            scenario.issue(true).await.unwrap();
        }
        scenario
    }

    /// Issues one more generation, which is served or not.
    async fn issue(&mut self, seen: bool) -> Ended {
        // The fingerprint is unknown before the issuance.
        self.sees(None);
        let work = self.begin(Trigger::Forced);
        let looks = self.eyes.looks.load(Ordering::SeqCst);
        while self.eyes.looks.load(Ordering::SeqCst) == looks {
            tokio::task::yield_now().await;
        }
        work.abort();
        let _ = work.await;
        let facts = self.record().await.issued.unwrap().facts;
        self.prints.push(facts.fingerprint);
        let last = self.prints.len() - usize::from(!seen);
        self.sees(Some(last));
        self.pass(Trigger::Requested).await
    }

    /// Makes the first `some` generations visible.
    fn sees(&self, some: Option<usize>) {
        *self.eyes.sees.lock().unwrap() = some.map(|some| self.prints[..some].to_vec());
    }

    fn begin(&self, trigger: Trigger) -> tokio::task::JoinHandle<Ended> {
        let (services, certificate) = (self.fixture.services.clone(), self.certificate.clone());
        tokio::spawn(async move { pass(&services, &certificate, trigger).await })
    }

    async fn pass(&self, trigger: Trigger) -> Ended {
        let work = self.begin(trigger);
        while !work.is_finished() {
            self.fixture.clock.advance(Duration::from_secs(1));
            tokio::task::yield_now().await;
        }
        work.await.unwrap()
    }

    async fn record(&self) -> Record {
        let lineage = &self.certificate.wanted.lineage;
        self.fixture
            .services
            .store
            .load(lineage)
            .await
            .unwrap()
            .unwrap()
            .0
    }

    fn live(&self) -> Option<Generation> {
        let lineage = &self.certificate.wanted.lineage;
        self.fixture.services.output.live(lineage).unwrap()
    }
}

#[tokio::test]
async fn kill_before_verification_still_rolls_back() {
    let mut scenario = Scenario::of(1).await;
    // Aborted during verification, which is after the switch.
    let ended = scenario.issue(false).await;
    assert!(matches!(ended, Err(ManageError::Verify(_))), "{ended:?}");
    assert_eq!(scenario.live(), Some(Generation(1)));
    let served = scenario.record().await.served;
    assert!(
        served
            .values()
            .all(|served| served.generation == Generation(1))
    );
}

#[tokio::test]
async fn verified_generation_is_not_rolled_back() {
    let scenario = Scenario::of(2).await;
    let record = scenario.record().await;
    assert_eq!((record.rollback_to, record.rolled_back), (None, None));
    // The generation stays live without verification, since nothing was switched.
    scenario.sees(Some(1));
    assert!(scenario.pass(Trigger::Redeploy).await.is_err());
    assert_eq!(scenario.live(), Some(Generation(2)));
}

#[tokio::test]
async fn failed_rollback_keeps_the_earlier_pin() {
    let scenario = Scenario::of(3).await;
    *scenario.eyes.sees.lock().unwrap() = Some(scenario.prints[2..].to_vec());
    assert!(scenario.pass(Trigger::Rollback(None)).await.is_err());
    let record = scenario.record().await;
    assert_eq!(
        (record.pinned, scenario.live()),
        (None, Some(Generation(3)))
    );
    assert_eq!(record.deployment_failures, Failures::default());

    *scenario.eyes.sees.lock().unwrap() = Some(scenario.prints[1..].to_vec());
    scenario.pass(Trigger::Rollback(None)).await.unwrap();
    assert!(scenario.pass(Trigger::Rollback(None)).await.is_err());
    let pinned = scenario.record().await.pinned.unwrap();
    assert_eq!(
        (pinned.generation, scenario.live()),
        (Generation(2), Some(Generation(2)))
    );
    // No step is left.
    scenario.pass(Trigger::Scheduled).await.unwrap();
}

#[tokio::test]
async fn rollback_to_damaged_generation_changes_nothing() {
    let scenario = Scenario::of(2).await;
    let (reloads, before) = (
        scenario.target.reloads.load(Ordering::SeqCst),
        scenario.record().await,
    );
    let records = scenario
        .fixture
        .directory
        .path()
        .join("data/records/n0.example.com");
    let key = |generation: &str| records.join(generation).join("privkey.pem");
    std::fs::copy(key("0002"), key("0001")).unwrap();
    let refused = scenario.pass(Trigger::Rollback(None)).await.unwrap_err();
    assert!(
        matches!(refused, ManageError::Impossible { .. }),
        "{refused}"
    );
    assert!(
        refused
            .to_string()
            .contains("generation 0001 is not usable"),
        "{refused}"
    );
    assert_eq!(scenario.target.reloads.load(Ordering::SeqCst), reloads);
    assert_eq!(scenario.record().await, before);
}

#[tokio::test]
async fn proof_of_an_endpoint_that_is_checked_no_more_is_not_kept() {
    let mut scenario = Scenario::of(1).await;
    let (now, random) = (scenario.fixture.clock.now(), SeededRandom::new(0));
    let proof = |record: &Record| status(record, now, &random).proof.state;
    assert_eq!(proof(&scenario.record().await), ProofState::Proven);
    scenario.certificate.endpoints.clear();
    for trigger in [Trigger::Requested, Trigger::Scheduled] {
        scenario.pass(trigger).await.unwrap();
        let record = scenario.record().await;
        assert_eq!(record.served.len(), 0);
        assert_eq!(proof(&record), ProofState::NotChecked);
    }
    let store = &scenario.fixture.services.store;
    let stored = store.load(&scenario.certificate.wanted.lineage);
    let stored = stored.await.unwrap();
    scenario.pass(Trigger::Scheduled).await.unwrap();
    let unchanged = store.load(&scenario.certificate.wanted.lineage);
    assert_eq!(
        unchanged.await.unwrap(),
        stored,
        "an idle pass saves nothing"
    );
}

#[tokio::test]
async fn rollback_ends_at_the_last_tenth_of_the_pinned_lifetime() {
    let mut scenario = Scenario::of(1).await;
    let first = scenario.record().await.issued.unwrap().facts;
    scenario.fixture.clock.set(START + DAY * 70);
    scenario.issue(true).await.unwrap();
    scenario.pass(Trigger::Rollback(None)).await.unwrap();
    let end = first.not_after - first.lifetime() / 10;
    scenario.fixture.clock.set(end - Duration::from_secs(60));
    let kept = scenario.pass(Trigger::Scheduled).await.unwrap();
    // The result is the generation served now, not the one after the next pass.
    assert_eq!((kept.generation, kept.next), (Generation(1), end));
    scenario.fixture.clock.set(end - Duration::from_secs(2));
    scenario.pass(Trigger::Scheduled).await.unwrap();
    assert_eq!(scenario.live(), Some(Generation(1)));
    scenario.fixture.clock.set(end);
    let ended = scenario.pass(Trigger::Scheduled).await.unwrap();
    assert_eq!(
        (ended.generation, scenario.live()),
        (Generation(2), Some(Generation(2)))
    );
}

#[tokio::test]
async fn repeated_rollback_slows_down_and_recovers() {
    let mut scenario = Scenario::of(1).await;
    assert!(scenario.issue(false).await.is_err());
    let mut pauses = Vec::new();
    for _ in 0..4 {
        let reloads = scenario.target.reloads.load(Ordering::SeqCst);
        let (deployment, now) = (
            scenario.record().await.deployment_failures,
            scenario.fixture.clock.now(),
        );
        pauses.push(deployment.retry_at.unwrap().since(now).as_secs());
        scenario.fixture.clock.set(deployment.retry_at.unwrap());
        assert!(scenario.pass(Trigger::Scheduled).await.is_err());
        // One reload for the attempt, one for the rollback.
        assert_eq!(scenario.target.reloads.load(Ordering::SeqCst), reloads + 2);
    }
    assert!(pauses[0] <= 15, "{pauses:?}");
    assert!(
        pauses[1..]
            .iter()
            .zip([300, 600, 900])
            .all(|(pause, wanted)| pause.abs_diff(wanted) <= 1),
        "{pauses:?}"
    );
    let at = scenario
        .record()
        .await
        .deployment_failures
        .retry_at
        .unwrap();
    assert!(at.since(scenario.fixture.clock.now()) <= Duration::from_secs(900));
    scenario.sees(Some(2));
    scenario.fixture.clock.set(at);
    scenario.pass(Trigger::Scheduled).await.unwrap();
    assert_eq!(scenario.live(), Some(Generation(2)));
    assert_eq!(scenario.record().await.rolled_back, None);
}
