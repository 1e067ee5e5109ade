//! Which certificates containers ask for, followed live: the list of those that run
//! is read at the start, after every event and once a minute, and what it asks for is
//! published whole. It decides nothing about certificates: see [`registry`] for what
//! becomes of one that is gone, and `certs run` for what each may ask for.
//!
//! Docker's API, or the proxy before it, may be absent, slow or wrong for as long as it
//! likes: nothing is published then, and the readers go on with what there was.

pub(crate) mod docker;
pub(crate) mod labels;
pub(crate) mod registry;
pub(crate) mod stored;

use std::collections::{BTreeMap, BTreeSet};
use std::mem::discriminant;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use self::docker::{Daemon, Events, Trouble};
use self::labels::{Ask, Complaint, Container};

/// The list is read again this often, whatever happens: events may be lost.
const SWEEP: Duration = Duration::from_secs(60);
/// Containers come and go in groups: how long the list waits for more events.
const SETTLES: Duration = Duration::from_millis(100);
/// Between two lists, however many events there are.
const SPACING: Duration = Duration::from_secs(1);
/// Between two tries; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// All environments of one list are read within this time, or else by the next one.
const ENVIRONMENTS_WITHIN: Duration = Duration::from_secs(10);

/// What one whole list asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Listing {
    /// In the order in which the containers were made.
    pub asks: Vec<Ask>,
    /// Labels that mean nothing.
    pub complaints: Vec<Complaint>,
    /// Containers that are there, and whose environment could not be read.
    pub unseen: BTreeSet<String>,
}

/// What the environment of a container asks for: it never changes.
type Read = (Vec<Ask>, Vec<Complaint>);

/// Follows the containers of one Docker daemon.
pub(crate) struct Follower {
    daemon: Arc<dyn Daemon>,
    listings: watch::Sender<Listing>,
    /// By the container's identifier.
    read: BTreeMap<String, Read>,
    /// What the owner was told last of the list, and of the events.
    told: Option<Trouble>,
    told_of_events: Option<Trouble>,
    has_listed: bool,
    /// Whether he was told that environments are out of sight.
    told_of_environments: bool,
}

/// How one connection ended.
enum Ended {
    /// After this time it is worth another at once.
    Lost(Duration),
    Failed,
}

impl Follower {
    /// A follower, and where every whole list appears, also one that is as before.
    #[must_use]
    pub(crate) fn new(daemon: Arc<dyn Daemon>) -> (Self, watch::Receiver<Listing>) {
        let (listings, seen) = watch::channel(Listing::default());
        let follower = Self {
            daemon,
            listings,
            read: BTreeMap::new(),
            told: None,
            told_of_events: None,
            has_listed: false,
            told_of_environments: false,
        };
        (follower, seen)
    }

    /// Follows them until it is dropped.
    pub(crate) async fn follow(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let ended = self.connection().await;
            if let Ended::Lost(after) = ended
                && after >= SWEEP
            {
                pause = FIRST_PAUSE;
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// From the first list to the end of the events.
    async fn connection(&mut self) -> Ended {
        let began = Instant::now();
        if let Err(trouble) = self.daemon.is_safe().await {
            self.tell(Some(trouble));
            return Ended::Failed;
        }
        // Before the list, so that nothing happens unseen in between.
        let events = self.daemon.events().await;
        if let Err(trouble) = self.look().await {
            self.tell(Some(trouble));
            return Ended::Failed;
        }
        self.tell(None);
        let trouble = match events {
            Ok(mut events) => self.heed(events.as_mut()).await,
            Err(trouble) => Some(trouble),
        };
        if let Some(trouble) = trouble {
            self.tell_of_events(trouble);
        }
        Ended::Lost(began.elapsed())
    }

    /// Looks again after events and from time to time, until one of both fails.
    async fn heed(&mut self, events: &mut dyn Events) -> Option<Trouble> {
        let mut last = Instant::now();
        let mut next = last + SWEEP;
        loop {
            tokio::select! {
                biased;
                () = sleep_until(next) => {
                    if let Err(trouble) = self.look().await {
                        self.tell(Some(trouble));
                        return None;
                    }
                    last = Instant::now();
                    next = last + SWEEP;
                    self.told_of_events = None;
                }
                happened = events.next() => match happened {
                    Ok(true) => next = next.min((last + SPACING).max(Instant::now() + SETTLES)),
                    // The next list tells what becomes of it.
                    Ok(false) => return None,
                    Err(trouble) => return Some(trouble),
                },
            }
        }
    }

    /// Publishes what the list asks for.
    async fn look(&mut self) -> Result<(), Trouble> {
        let mut containers = self.daemon.list().await?;
        containers.sort_by(Container::by_age);
        let mut listing = Listing::default();
        let ids: BTreeSet<&String> = containers.iter().map(|one| &one.id).collect();
        self.read.retain(|id, _| ids.contains(id));
        let unlabelled = containers.iter().filter(|one| !one.is_labelled());
        let reading = self.read_environments(unlabelled.collect());
        // What is not read by then is out of sight until the next list.
        let _ = timeout(ENVIRONMENTS_WITHIN, reading).await;
        for container in &containers {
            let (asks, complaints) = container.asks();
            listing.asks.extend(asks);
            listing.complaints.extend(complaints);
            match self.read.get(&container.id) {
                Some((asks, complaints)) => {
                    listing.asks.extend(asks.iter().cloned());
                    listing.complaints.extend(complaints.iter().cloned());
                }
                None if container.is_labelled() => {}
                None => {
                    listing.unseen.insert(container.name.clone());
                }
            }
        }
        self.listings.send_replace(listing);
        Ok(())
    }

    async fn read_environments(&mut self, containers: Vec<&Container>) {
        for container in containers {
            if self.read.contains_key(&container.id) {
                continue;
            }
            match self.daemon.environment(&container.id).await {
                Ok(variables) => {
                    let read = container.asks_of(&variables.unwrap_or_default());
                    self.read.insert(container.id.clone(), read);
                }
                Err(Trouble::Refused { .. }) => {
                    if !std::mem::replace(&mut self.told_of_environments, true) {
                        tracing::info!(
                            "labels are followed; LETSENCRYPT_HOST in the environment of containers is not seen; hint: whoever needs it lets the proxy allow GET /containers/ID/json"
                        );
                    }
                    return;
                }
                Err(trouble) => {
                    tracing::debug!("the environment of {}: {trouble}", container.name);
                }
            }
        }
    }

    /// Says once that they are not heard: the list is read nevertheless.
    fn tell_of_events(&mut self, trouble: Trouble) {
        let kind = |trouble: &Trouble| discriminant(trouble);
        if self.told_of_events.as_ref().map(kind) != Some(kind(&trouble)) {
            tracing::warn!(
                "events are not heard, and containers looked at once a minute: {trouble}; hint: {}",
                trouble.hint()
            );
        }
        self.told_of_events = Some(trouble);
    }

    /// Says what has changed, once.
    fn tell(&mut self, trouble: Option<Trouble>) {
        let kind = |trouble: &Option<Trouble>| trouble.as_ref().map(discriminant);
        let is_news = kind(&trouble) != kind(&self.told);
        match &trouble {
            Some(trouble) if is_news => tracing::warn!(
                "{trouble}; what containers asked for before stays, and new ones wait; hint: {}",
                trouble.hint()
            ),
            Some(trouble) => tracing::debug!("{trouble}"),
            None if is_news || !self.has_listed => {
                tracing::info!("the labels of containers are followed");
            }
            None => {}
        }
        self.has_listed |= trouble.is_none();
        self.told = trouble;
    }
}

#[cfg(test)]
mod tests;
