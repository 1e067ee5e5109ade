//! A daemon of a script, under paused time: what is asked of it, when, and what comes
//! of its misbehaviour.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use hyper::StatusCode;
use tokio::sync::mpsc;

use super::labels::read_list;
use super::*;

/// Lists what it is told to, or fails as it is told to.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Names of containers and what they ask for.
    containers: Vec<(&'static str, &'static str)>,
    environments: BTreeMap<&'static str, &'static str>,
    trouble: Option<Trouble>,
    events_trouble: Option<Trouble>,
    environment_trouble: Option<Trouble>,
    is_unsafe: bool,
    hangs: bool,
    lists: Vec<Instant>,
    inspections: usize,
    streams: VecDeque<mpsc::UnboundedSender<Result<bool, Trouble>>>,
}

impl Script {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn event(&self) {
        let sent = self.state().streams.back().unwrap().send(Ok(true));
        sent.unwrap();
    }
}

fn unreachable() -> Trouble {
    Trouble::Unreachable {
        host: "tcp://proxy:2375".into(),
        detail: "refused".into(),
    }
}

fn refused() -> Trouble {
    Trouble::Refused {
        host: "tcp://proxy:2375".into(),
        path: "/events",
        status: StatusCode::FORBIDDEN,
    }
}

struct Stream(mpsc::UnboundedReceiver<Result<bool, Trouble>>);

#[async_trait::async_trait]
impl Events for Stream {
    async fn next(&mut self) -> Result<bool, Trouble> {
        self.0.recv().await.unwrap_or(Ok(false))
    }
}

#[async_trait::async_trait]
impl Daemon for Script {
    async fn is_safe(&self) -> Result<(), Trouble> {
        match self.state().is_unsafe {
            true => Err(Trouble::Unfiltered {
                host: String::new(),
            }),
            false => Ok(()),
        }
    }

    async fn list(&self) -> Result<Vec<Container>, Trouble> {
        let hangs = self.state().hangs;
        if hangs {
            sleep(Duration::from_secs(15)).await;
            return Err(unreachable());
        }
        let mut state = self.state();
        state.lists.push(Instant::now());
        if let Some(trouble) = &state.trouble {
            return Err(trouble.clone());
        }
        let listed = state.containers.iter().map(|(name, domains)| {
            let labels = match *domains {
                "" => serde_json::json!({}),
                domains => serde_json::json!({"certs.domains": domains}),
            };
            serde_json::json!({"Id": name, "Names": [format!("/{name}")], "Labels": labels})
        });
        let listed: Vec<_> = listed.collect();
        Ok(read_list(&serde_json::to_vec(&listed).unwrap()).unwrap())
    }

    async fn environment(&self, id: &str) -> Result<Option<BTreeMap<String, String>>, Trouble> {
        let mut state = self.state();
        state.inspections += 1;
        if let Some(trouble) = &state.environment_trouble {
            return Err(trouble.clone());
        }
        let hosts = state.environments.get(id);
        Ok(hosts
            .map(|hosts| BTreeMap::from([("LETSENCRYPT_HOST".to_owned(), (*hosts).to_owned())])))
    }

    async fn events(&self) -> Result<Box<dyn Events>, Trouble> {
        let mut state = self.state();
        if let Some(trouble) = &state.events_trouble {
            return Err(trouble.clone());
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        state.streams.push_back(sender);
        Ok(Box::new(Stream(receiver)))
    }
}

fn follow(script: &Script) -> watch::Receiver<Listing> {
    let (follower, listings) = Follower::new(Arc::new(script.clone()));
    tokio::spawn(follower.follow());
    listings
}

/// The names of the next whole list, and how long it took.
async fn next(listings: &mut watch::Receiver<Listing>) -> (Vec<String>, Duration) {
    let began = Instant::now();
    timeout(Duration::from_secs(3600), listings.changed())
        .await
        .unwrap()
        .unwrap();
    let listing = listings.borrow_and_update().clone();
    let names = listing.asks.iter().flat_map(|ask| &ask.names);
    (names.map(ToString::to_string).collect(), began.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_container_is_seen_a_moment_after_its_event_and_without_one_within_a_minute() {
    let script = Script::default();
    script.state().containers.push(("web", "a.example.com"));
    let mut listings = follow(&script);
    assert_eq!(next(&mut listings).await.0, ["a.example.com"]);
    sleep(Duration::from_secs(10)).await;
    script.state().containers.push(("api", "b.example.com"));
    script.event();
    let (names, took) = next(&mut listings).await;
    assert_eq!(names.len(), 2);
    assert!(took <= Duration::from_millis(200), "{took:?}");
    script.state().containers.clear();
    let (names, took) = next(&mut listings).await;
    assert_eq!(names.len(), 0);
    assert!(took <= SWEEP + Duration::from_millis(10), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_thousand_events_are_one_list_a_second() {
    let script = Script::default();
    let mut listings = follow(&script);
    next(&mut listings).await;
    for _ in 0..1000 {
        script.event();
        sleep(Duration::from_millis(10)).await;
    }
    let lists = script.state().lists.len();
    assert!((9..=12).contains(&lists), "{lists}");
}

#[tokio::test(start_paused = true)]
async fn whatever_fails_publishes_nothing_and_is_tried_again_within_a_minute() {
    let script = Script::default();
    script.state().containers.push(("web", "a.example.com"));
    let mut listings = follow(&script);
    next(&mut listings).await;
    script.state().trouble = Some(unreachable());
    script.state().streams.clear();
    sleep(Duration::from_secs(3600)).await;
    assert!(!listings.has_changed().unwrap());
    let lists = script.state().lists.clone();
    let pauses = lists.windows(2).map(|two| two[1] - two[0]);
    let pauses: Vec<u64> = pauses.map(|pause| pause.as_secs()).collect();
    assert_eq!(pauses[..7], [1, 2, 4, 8, 16, 32, 60], "{pauses:?}");
    assert!(pauses.iter().all(|pause| *pause <= 60) && lists.len() < 70);
    script.state().trouble = None;
    assert_eq!(next(&mut listings).await.0, ["a.example.com"]);
    // One that hangs is given up by whoever asks, and asked again.
    script.state().hangs = true;
    script.state().streams.clear();
    sleep(Duration::from_secs(600)).await;
    script.state().hangs = false;
    let (_, took) = next(&mut listings).await;
    assert!(took <= Duration::from_secs(80), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn without_events_the_list_is_read_once_a_minute() {
    let script = Script::default();
    script.state().events_trouble = Some(refused());
    let mut listings = follow(&script);
    next(&mut listings).await;
    sleep(Duration::from_secs(600)).await;
    script.state().containers.push(("web", "a.example.com"));
    listings.mark_unchanged();
    let (names, took) = next(&mut listings).await;
    assert_eq!(names, ["a.example.com"]);
    assert!(took <= SWEEP + Duration::from_secs(1), "{took:?}");
    // And heard again when they are there.
    script.state().events_trouble = None;
    next(&mut listings).await;
    sleep(Duration::from_secs(120)).await;
    assert_eq!(script.state().streams.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_asked_of_an_api_that_nobody_filters() {
    let script = Script::default();
    script.state().is_unsafe = true;
    let listings = follow(&script);
    sleep(Duration::from_secs(600)).await;
    assert!(script.state().lists.is_empty() && !listings.has_changed().unwrap());
}

#[tokio::test(start_paused = true)]
async fn environments_are_read_once_where_they_may_and_else_are_out_of_sight() {
    let script = Script::default();
    script.state().containers = vec![("web", ""), ("api", "b.example.com")];
    script.state().environments.insert("web", "a.example.com");
    let mut listings = follow(&script);
    assert_eq!(
        next(&mut listings).await.0,
        ["b.example.com", "a.example.com"]
    );
    sleep(Duration::from_secs(600)).await;
    assert_eq!(script.state().inspections, 1, "it never changes");
    assert!(listings.borrow().unseen.is_empty());
    let other = Script::default();
    other.state().containers = vec![("web", ""), ("api", "b.example.com"), ("db", "")];
    other.state().environment_trouble = Some(refused());
    let mut listings = follow(&other);
    assert_eq!(next(&mut listings).await.0, ["b.example.com"]);
    let unseen = listings.borrow().unseen.clone();
    assert_eq!(unseen, BTreeSet::from(["db".to_owned(), "web".to_owned()]));
    assert_eq!(other.state().inspections, 1, "one refusal is enough");
}
