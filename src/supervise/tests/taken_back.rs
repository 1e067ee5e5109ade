//! Hand-overs that are not proven, and what is served then.

use super::*;
use crate::certificate::Fingerprint;
use crate::deploy::verify::{ServedAt, Verifier};
use crate::record::Failures;

/// Sees what it is told to see.
#[derive(Default)]
struct Eyes {
    /// What it sees; without any it looks for ever.
    sees: Mutex<Option<Vec<Fingerprint>>>,
    looks: AtomicUsize,
}

#[async_trait]
impl Verifier for Eyes {
    async fn look(&self, _: &ServedAt, _: &Identifier, wanted: &Fingerprint) -> Result<(), String> {
        self.looks.fetch_add(1, Ordering::SeqCst);
        let sees = self.sees.lock().unwrap().clone();
        match sees {
            None => std::future::pending().await,
            Some(seen) if seen.contains(wanted) => Ok(()),
            Some(_) => Err("it serves another".into()),
        }
    }
}

/// A certificate with one server, whose generations are issued and proven.
struct Story {
    house: House,
    eyes: Arc<Eyes>,
    told: Arc<Told>,
    certificate: Certificate,
    prints: Vec<Fingerprint>,
}

impl Story {
    async fn of(generations: usize) -> Self {
        let mut house = House::new();
        let eyes = Arc::new(Eyes::default());
        house.services.prover = eyes.clone();
        let told = Arc::new(Told::default());
        let mut certificate = house.certificate("n0.example.com");
        certificate.targets = vec![told.clone()];
        certificate.endpoints = vec!["example.com:443".parse().unwrap()];
        let mut story = Self {
            house,
            eyes,
            told,
            certificate,
            prints: Vec::new(),
        };
        for _ in 0..generations {
            story.issue(true).await.unwrap();
        }
        story
    }

    /// One more, which is seen or not.
    async fn issue(&mut self, seen: bool) -> Ended {
        // It is not known before it is issued.
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

    /// The first `some` are seen.
    fn sees(&self, some: Option<usize>) {
        *self.eyes.sees.lock().unwrap() = some.map(|some| self.prints[..some].to_vec());
    }

    fn begin(&self, trigger: Trigger) -> tokio::task::JoinHandle<Ended> {
        let (services, certificate) = (self.house.services.clone(), self.certificate.clone());
        tokio::spawn(async move { pass(&services, &certificate, trigger).await })
    }

    async fn pass(&self, trigger: Trigger) -> Ended {
        let work = self.begin(trigger);
        while !work.is_finished() {
            self.house.clock.advance(Duration::from_secs(1));
            tokio::task::yield_now().await;
        }
        work.await.unwrap()
    }

    async fn record(&self) -> Record {
        let lineage = &self.certificate.wanted.lineage;
        self.house
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
        self.house.services.output.live(lineage)
    }
}

#[tokio::test]
async fn whoever_is_killed_before_the_proof_still_knows_what_to_go_back_to() {
    let mut story = Story::of(1).await;
    // Cut off when it looks, which is after the switch.
    let ended = story.issue(false).await;
    assert!(matches!(ended, Err(ManageError::Verify(_))), "{ended:?}");
    assert_eq!(story.live(), Some(Generation(1)));
    let served = story.record().await.served;
    assert!(
        served
            .values()
            .all(|served| served.generation == Generation(1))
    );
}

#[tokio::test]
async fn what_is_proven_is_nothing_to_go_back_from() {
    let story = Story::of(2).await;
    let record = story.record().await;
    assert_eq!((record.going_back_to, record.taken_back), (None, None));
    // Seen no more, it stays all the same: nothing was switched.
    story.sees(Some(1));
    assert!(story.pass(Trigger::Redeploy).await.is_err());
    assert_eq!(story.live(), Some(Generation(2)));
}

#[tokio::test]
async fn a_rollback_that_fails_leaves_the_owners_word_as_it_was() {
    let story = Story::of(3).await;
    *story.eyes.sees.lock().unwrap() = Some(story.prints[2..].to_vec());
    assert!(story.pass(Trigger::Rollback(None)).await.is_err());
    let record = story.record().await;
    assert_eq!((record.pinned, story.live()), (None, Some(Generation(3))));
    assert_eq!(record.handover, Failures::default());

    *story.eyes.sees.lock().unwrap() = Some(story.prints[1..].to_vec());
    story.pass(Trigger::Rollback(None)).await.unwrap();
    assert!(story.pass(Trigger::Rollback(None)).await.is_err());
    let pinned = story.record().await.pinned.unwrap();
    assert_eq!(
        (pinned.generation, story.live()),
        (Generation(2), Some(Generation(2)))
    );
    // And nothing is left to be done.
    story.pass(Trigger::Scheduled).await.unwrap();
}

#[tokio::test]
async fn a_rollback_to_what_is_damaged_touches_nothing() {
    let story = Story::of(2).await;
    let (told, before) = (story.told.0.load(Ordering::SeqCst), story.record().await);
    let records = story
        .house
        .directory
        .path()
        .join("data/records/n0.example.com");
    let key = |generation: &str| records.join(generation).join("privkey.pem");
    std::fs::copy(key("0002"), key("0001")).unwrap();
    let refused = story.pass(Trigger::Rollback(None)).await.unwrap_err();
    assert!(
        matches!(refused, ManageError::NoWayBack { .. }),
        "{refused}"
    );
    assert!(
        refused.to_string().contains("generation 0001 is of no use"),
        "{refused}"
    );
    assert_eq!(story.told.0.load(Ordering::SeqCst), told);
    assert_eq!(story.record().await, before);
}

#[tokio::test]
async fn a_rollback_ends_at_the_last_tenth_of_the_life_that_it_leads_to() {
    let mut story = Story::of(1).await;
    let first = story.record().await.issued.unwrap().facts;
    story.house.clock.set(START + DAY * 70);
    story.issue(true).await.unwrap();
    story.pass(Trigger::Rollback(None)).await.unwrap();
    let end = first.not_after - first.lifetime() / 10;
    story.house.clock.set(end - Duration::from_secs(60));
    let kept = story.pass(Trigger::Scheduled).await.unwrap();
    // What is served now is told, and not what is served when it is looked at next.
    assert_eq!((kept.generation, kept.next), (Generation(1), end));
    story.house.clock.set(end - Duration::from_secs(2));
    story.pass(Trigger::Scheduled).await.unwrap();
    assert_eq!(story.live(), Some(Generation(1)));
    story.house.clock.set(end);
    let ended = story.pass(Trigger::Scheduled).await.unwrap();
    assert_eq!(
        (ended.generation, story.live()),
        (Generation(2), Some(Generation(2)))
    );
}

#[tokio::test]
async fn what_fails_in_the_same_way_again_is_not_hurried_and_heals() {
    let mut story = Story::of(1).await;
    assert!(story.issue(false).await.is_err());
    let mut pauses = Vec::new();
    for _ in 0..4 {
        let told = story.told.0.load(Ordering::SeqCst);
        let (handover, now) = (story.record().await.handover, story.house.clock.now());
        pauses.push(handover.retry_at.unwrap().since(now).as_secs());
        story.house.clock.set(handover.retry_at.unwrap());
        assert!(story.pass(Trigger::Scheduled).await.is_err());
        // There and back.
        assert_eq!(story.told.0.load(Ordering::SeqCst), told + 2);
    }
    assert!(pauses[0] <= 15, "{pauses:?}");
    assert!(
        pauses[1..]
            .iter()
            .zip([300, 600, 900])
            .all(|(pause, wanted)| pause.abs_diff(wanted) <= 1),
        "{pauses:?}"
    );
    let at = story.record().await.handover.retry_at.unwrap();
    assert!(at.since(story.house.clock.now()) <= Duration::from_secs(900));
    story.sees(Some(2));
    story.house.clock.set(at);
    story.pass(Trigger::Scheduled).await.unwrap();
    assert_eq!(story.live(), Some(Generation(2)));
    assert_eq!(story.record().await.taken_back, None);
}
