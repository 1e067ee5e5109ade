//! Discovery against a scripted daemon, under paused time: the requests it makes, their
//! times, and the effect of errors.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use hyper::StatusCode;
use tokio::sync::mpsc;

use super::list::{Containers, read_list};
use super::*;

/// A daemon with scripted lists and errors.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// The containers' names and `certs.domains`.
    containers: Vec<(&'static str, &'static str)>,
    environments: BTreeMap<&'static str, &'static str>,
    error: Option<DockerError>,
    events_error: Option<DockerError>,
    environment_error: Option<DockerError>,
    is_unsafe: bool,
    hangs: bool,
    lists: Vec<Instant>,
    inspections: usize,
    streams: VecDeque<mpsc::UnboundedSender<Result<bool, DockerError>>>,
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

fn unreachable() -> DockerError {
    DockerError::Unreachable {
        host: "tcp://proxy:2375".into(),
        detail: "refused".into(),
    }
}

fn refused() -> DockerError {
    DockerError::Refused {
        host: "tcp://proxy:2375".into(),
        path: "/events",
        status: StatusCode::FORBIDDEN,
    }
}

struct Stream(mpsc::UnboundedReceiver<Result<bool, DockerError>>);

#[async_trait::async_trait]
impl Events for Stream {
    async fn next(&mut self) -> Result<bool, DockerError> {
        self.0.recv().await.unwrap_or(Ok(false))
    }
}

#[async_trait::async_trait]
impl Daemon for Script {
    async fn is_safe(&self) -> Result<(), DockerError> {
        match self.state().is_unsafe {
            true => Err(DockerError::Unfiltered {
                host: String::new(),
            }),
            false => Ok(()),
        }
    }

    async fn list(&self) -> Result<Containers, DockerError> {
        let hangs = self.state().hangs;
        if hangs {
            sleep(Duration::from_secs(15)).await;
            return Err(unreachable());
        }
        let mut state = self.state();
        state.lists.push(Instant::now());
        if let Some(error) = &state.error {
            return Err(error.clone());
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

    async fn environment(&self, id: &str) -> Result<Option<BTreeMap<String, String>>, DockerError> {
        let mut state = self.state();
        state.inspections += 1;
        if let Some(error) = &state.environment_error {
            return Err(error.clone());
        }
        let hosts = state.environments.get(id);
        Ok(hosts
            .map(|hosts| BTreeMap::from([("LETSENCRYPT_HOST".to_owned(), (*hosts).to_owned())])))
    }

    async fn events(&self) -> Result<Box<dyn Events>, DockerError> {
        let mut state = self.state();
        if let Some(error) = &state.events_error {
            return Err(error.clone());
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        state.streams.push_back(sender);
        Ok(Box::new(Stream(receiver)))
    }
}

fn discover(script: &Script) -> watch::Receiver<Listing> {
    let (discovery, listings) = Discovery::new(Arc::new(script.clone()));
    tokio::spawn(discovery.run());
    listings
}

/// The names of the next whole list, and the time until it was published.
async fn next(listings: &mut watch::Receiver<Listing>) -> (Vec<String>, Duration) {
    let began = Instant::now();
    timeout(Duration::from_secs(3600), listings.changed())
        .await
        .unwrap()
        .unwrap();
    let listing = listings.borrow_and_update().clone();
    let names = listing.requests.iter().flat_map(|request| &request.names);
    (names.map(ToString::to_string).collect(), began.elapsed())
}

#[tokio::test(start_paused = true)]
async fn container_is_listed_after_its_event_or_within_a_minute() {
    let script = Script::default();
    script.state().containers.push(("web", "a.example.com"));
    let mut listings = discover(&script);
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
async fn lists_are_limited_to_one_a_second_under_many_events() {
    let script = Script::default();
    let mut listings = discover(&script);
    next(&mut listings).await;
    for _ in 0..1000 {
        script.event();
        sleep(Duration::from_millis(10)).await;
    }
    let lists = script.state().lists.len();
    assert!((9..=12).contains(&lists), "{lists}");
}

#[tokio::test(start_paused = true)]
async fn discovery_publishes_nothing_and_retries_within_a_minute_after_an_error() {
    let script = Script::default();
    script.state().containers.push(("web", "a.example.com"));
    let mut listings = discover(&script);
    next(&mut listings).await;
    script.state().error = Some(unreachable());
    script.state().streams.clear();
    sleep(Duration::from_secs(3600)).await;
    assert!(!listings.has_changed().unwrap());
    let lists = script.state().lists.clone();
    let backoffs = lists.windows(2).map(|two| two[1] - two[0]);
    let backoffs: Vec<u64> = backoffs.map(|backoff| backoff.as_secs()).collect();
    assert_eq!(backoffs[..7], [1, 2, 4, 8, 16, 32, 60], "{backoffs:?}");
    assert!(backoffs.iter().all(|backoff| *backoff <= 60) && lists.len() < 70);
    script.state().error = None;
    assert_eq!(next(&mut listings).await.0, ["a.example.com"]);
    // A hanging daemon times out and is retried.
    script.state().hangs = true;
    script.state().streams.clear();
    sleep(Duration::from_secs(600)).await;
    script.state().hangs = false;
    let (_, took) = next(&mut listings).await;
    assert!(took <= Duration::from_secs(80), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn list_is_read_once_a_minute_without_events() {
    let script = Script::default();
    script.state().events_error = Some(refused());
    let mut listings = discover(&script);
    next(&mut listings).await;
    sleep(Duration::from_secs(600)).await;
    script.state().containers.push(("web", "a.example.com"));
    listings.mark_unchanged();
    let (names, took) = next(&mut listings).await;
    assert_eq!(names, ["a.example.com"]);
    assert!(took <= SWEEP + Duration::from_secs(1), "{took:?}");
    // Events are used again once they are available.
    script.state().events_error = None;
    next(&mut listings).await;
    sleep(Duration::from_secs(120)).await;
    assert_eq!(script.state().streams.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn unfiltered_api_is_never_listed() {
    let script = Script::default();
    script.state().is_unsafe = true;
    let listings = discover(&script);
    sleep(Duration::from_secs(600)).await;
    assert!(script.state().lists.is_empty() && !listings.has_changed().unwrap());
}

#[tokio::test(start_paused = true)]
async fn environments_are_read_once_or_marked_unseen_if_refused() {
    let script = Script::default();
    script.state().containers = vec![("web", ""), ("api", "b.example.com")];
    script.state().environments.insert("web", "a.example.com");
    let mut listings = discover(&script);
    assert_eq!(
        next(&mut listings).await.0,
        ["b.example.com", "a.example.com"]
    );
    sleep(Duration::from_secs(600)).await;
    assert_eq!(script.state().inspections, 1, "it never changes");
    assert!(listings.borrow().unseen.is_empty());
    let other = Script::default();
    other.state().containers = vec![("web", ""), ("api", "b.example.com"), ("db", "")];
    other.state().environment_error = Some(refused());
    let mut listings = discover(&other);
    assert_eq!(next(&mut listings).await.0, ["b.example.com"]);
    let unseen = listings.borrow().unseen.clone();
    assert_eq!(unseen, BTreeSet::from(["db".to_owned(), "web".to_owned()]));
    assert_eq!(other.state().inspections, 1, "one refusal is enough");
}
