//! Discovery of the certificates that running containers request. The list of containers
//! is read at the start, after every event and once a minute; every whole list is
//! published. No decisions here: [`registry`] keeps the requests of containers that are
//! gone, and `certs run` decides which requests are allowed.
//!
//! While Docker's API or the proxy before it is absent, slow or wrong, nothing is
//! published, and the readers keep the last list.

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

use self::docker::{Daemon, DockerError, Events};
use self::labels::{Request, InvalidLabel, Container};

/// The interval between lists without an event: events may be lost.
const SWEEP: Duration = Duration::from_secs(60);
/// How long a list waits for more events: containers start and stop in groups.
const SETTLE_TIME: Duration = Duration::from_millis(100);
/// The least time between two lists, however many events arrive.
const SPACING: Duration = Duration::from_secs(1);
/// The first backoff between two connections; it doubles.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);
/// The deadline for the environments of one list; the rest wait for the next list.
const ENVIRONMENTS_WITHIN: Duration = Duration::from_secs(10);

/// The requests of one whole list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Listing {
    /// The oldest container's requests first.
    pub asks: Vec<Request>,
    /// Invalid labels.
    pub complaints: Vec<InvalidLabel>,
    /// Running containers whose environment could not be read.
    pub unseen: BTreeSet<String>,
}

/// The requests in a container's environment, which never changes.
type EnvironmentAsks = (Vec<Request>, Vec<InvalidLabel>);

/// Watches the containers of one Docker daemon.
pub(crate) struct Discovery {
    daemon: Arc<dyn Daemon>,
    listings: watch::Sender<Listing>,
    /// By the container's identifier.
    environments: BTreeMap<String, EnvironmentAsks>,
    /// The last logged error of the list, and of the events.
    list_error: Option<DockerError>,
    events_error: Option<DockerError>,
    has_listed: bool,
    /// Whether the log says that environments are not readable.
    environments_logged: bool,
}

/// How one connection ended.
enum Ended {
    /// The events ended after this time.
    Lost(Duration),
    Failed,
}

impl Discovery {
    /// A discovery, and the channel that receives every whole list, changed or not.
    #[must_use]
    pub(crate) fn new(daemon: Arc<dyn Daemon>) -> (Self, watch::Receiver<Listing>) {
        let (listings, seen) = watch::channel(Listing::default());
        let discovery = Self {
            daemon,
            listings,
            environments: BTreeMap::new(),
            list_error: None,
            events_error: None,
            has_listed: false,
            environments_logged: false,
        };
        (discovery, seen)
    }

    /// Watches the containers until the future is dropped.
    pub(crate) async fn run(mut self) {
        let mut backoff = FIRST_BACKOFF;
        loop {
            let ended = self.connection().await;
            if let Ended::Lost(after) = ended
                && after >= SWEEP
            {
                backoff = FIRST_BACKOFF;
            }
            sleep(backoff).await;
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    }

    /// From the first list to the end of the events.
    async fn connection(&mut self) -> Ended {
        let began = Instant::now();
        if let Err(error) = self.daemon.is_safe().await {
            self.log_list(Some(error));
            return Ended::Failed;
        }
        // Before the list, so that no event is missed in between.
        let events = self.daemon.events().await;
        if let Err(error) = self.list().await {
            self.log_list(Some(error));
            return Ended::Failed;
        }
        self.log_list(None);
        let error = match events {
            Ok(mut events) => self.watch(events.as_mut()).await,
            Err(error) => Some(error),
        };
        if let Some(error) = error {
            self.log_events(error);
        }
        Ended::Lost(began.elapsed())
    }

    /// Lists again after events and at each interval, until either fails.
    async fn watch(&mut self, events: &mut dyn Events) -> Option<DockerError> {
        let mut last = Instant::now();
        let mut next = last + SWEEP;
        loop {
            tokio::select! {
                biased;
                () = sleep_until(next) => {
                    if let Err(error) = self.list().await {
                        self.log_list(Some(error));
                        return None;
                    }
                    last = Instant::now();
                    next = last + SWEEP;
                    self.events_error = None;
                }
                event = events.next() => match event {
                    Ok(true) => next = next.min((last + SPACING).max(Instant::now() + SETTLE_TIME)),
                    // The next connection logs an error, if there is one.
                    Ok(false) => return None,
                    Err(error) => return Some(error),
                },
            }
        }
    }

    /// Reads the list and publishes its requests.
    async fn list(&mut self) -> Result<(), DockerError> {
        let mut containers = self.daemon.list().await?;
        containers.sort_by(Container::by_age);
        let mut listing = Listing::default();
        let ids: BTreeSet<&String> = containers.iter().map(|one| &one.id).collect();
        self.environments.retain(|id, _| ids.contains(id));
        let unlabelled = containers.iter().filter(|one| !one.is_labelled());
        let reading = self.read_environments(unlabelled.collect());
        // An environment not read in time counts as unseen until the next list.
        let _ = timeout(ENVIRONMENTS_WITHIN, reading).await;
        for container in &containers {
            let (asks, complaints) = container.asks();
            listing.asks.extend(asks);
            listing.complaints.extend(complaints);
            match self.environments.get(&container.id) {
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
            if self.environments.contains_key(&container.id) {
                continue;
            }
            match self.daemon.environment(&container.id).await {
                Ok(variables) => {
                    let asks = container.asks_of(&variables.unwrap_or_default());
                    self.environments.insert(container.id.clone(), asks);
                }
                Err(DockerError::Refused { .. }) => {
                    if !std::mem::replace(&mut self.environments_logged, true) {
                        tracing::info!(
                            "LETSENCRYPT_HOST in the environment of containers is ignored, labels are read; hint: to use it, let the proxy allow GET /containers/ID/json"
                        );
                    }
                    return;
                }
                Err(error) => {
                    tracing::debug!("the environment of {}: {error}", container.name);
                }
            }
        }
    }

    /// Logs a new kind of error once: the list is still read at each interval.
    fn log_events(&mut self, error: DockerError) {
        let kind = |error: &DockerError| discriminant(error);
        if self.events_error.as_ref().map(kind) != Some(kind(&error)) {
            tracing::warn!(
                "no events from Docker, containers are listed once a minute: {error}; hint: {}",
                error.hint()
            );
        }
        self.events_error = Some(error);
    }

    /// Logs a change of state once.
    fn log_list(&mut self, error: Option<DockerError>) {
        let kind = |error: &Option<DockerError>| error.as_ref().map(discriminant);
        let is_news = kind(&error) != kind(&self.list_error);
        match &error {
            Some(error) if is_news => tracing::warn!(
                "{error}; known certificates of containers stay, new containers wait; hint: {}",
                error.hint()
            ),
            Some(error) => tracing::debug!("{error}"),
            None if is_news || !self.has_listed => {
                tracing::info!("watching the labels of containers");
            }
            None => {}
        }
        self.has_listed |= error.is_none();
        self.list_error = error;
    }
}

#[cfg(test)]
mod tests;
