//! Discovery of the certificates that running containers request. The list of containers
//! is read at the start, after every event and once a minute; every whole list is
//! published. No decisions here: [`registry`] keeps the requests of containers that are
//! gone, and `certs run` decides which requests are allowed.
//!
//! While Docker's API or the proxy before it is absent, slow or wrong, nothing is
//! published, and the readers keep the last list.

pub(crate) mod companion;
pub(crate) mod docker;
pub(crate) mod labels;
pub(crate) mod list;
pub(crate) mod registry;
pub(crate) mod stored;

use std::collections::{BTreeMap, BTreeSet};
use std::mem::{Discriminant, discriminant};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use self::docker::{Daemon, DockerError, Events};
use self::labels::{Container, InvalidLabel, Request, Requests};

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
    pub requests: Vec<Request>,
    /// Invalid labels.
    pub invalid: Vec<InvalidLabel>,
    /// Running containers whose environment could not be read.
    pub unseen: BTreeSet<String>,
}

/// Watches the containers of one Docker daemon.
pub(crate) struct Discovery {
    daemon: Arc<dyn Daemon>,
    listings: watch::Sender<Listing>,
    /// The requests in each container's environment, which never changes, by the
    /// container's identifier.
    environments: BTreeMap<String, Requests>,
    /// The kind of the last error of the list, if there was one; `None` before the first
    /// list.
    list_state: Option<Option<Discriminant<DockerError>>>,
    events_error: Option<Discriminant<DockerError>>,
    /// Whether the log says that environments are not readable.
    environments_logged: bool,
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
            list_state: None,
            events_error: None,
            environments_logged: false,
        };
        (discovery, seen)
    }

    /// Watches the containers until the future is dropped.
    pub(crate) async fn run(mut self) {
        let mut backoff = FIRST_BACKOFF;
        loop {
            let began = Instant::now();
            match self.connection().await {
                Ok(()) if began.elapsed() >= SWEEP => backoff = FIRST_BACKOFF,
                Ok(()) => {}
                Err(error) => self.log_list(Some(&error)),
            }
            sleep(backoff).await;
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    }

    /// From the first list to the end of the events.
    async fn connection(&mut self) -> Result<(), DockerError> {
        self.daemon.is_safe().await?;
        // Before the list, so that no event is missed in between.
        let events = self.daemon.events().await;
        self.list().await?;
        self.log_list(None);
        let error = match events {
            Ok(mut events) => self.watch(events.as_mut()).await,
            Err(error) => Some(error),
        };
        if let Some(error) = error {
            self.log_events(&error);
        }
        Ok(())
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
                        self.log_list(Some(&error));
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
        let (mut containers, skipped) = self.daemon.list().await?;
        containers.sort_by_cached_key(Container::age);
        let mut listing = Listing {
            unseen: skipped.iter().map(|one| one.container.clone()).collect(),
            invalid: skipped,
            ..Listing::default()
        };
        let ids: BTreeSet<&String> = containers.iter().map(|one| &one.id).collect();
        self.environments.retain(|id, _| ids.contains(id));
        let unlabelled = containers.iter().filter(|one| !one.is_labelled());
        let reading = self.read_environments(unlabelled.collect());
        // An environment not read in time counts as unseen until the next list.
        let _ = timeout(ENVIRONMENTS_WITHIN, reading).await;
        for container in &containers {
            let environment = self.environments.get(&container.id);
            if environment.is_none() && !container.is_labelled() {
                listing.unseen.insert(container.name.clone());
            }
            let environment = environment.cloned().unwrap_or_default();
            for (requests, invalid) in [container.requests(), environment] {
                listing.requests.extend(requests);
                listing.invalid.extend(invalid);
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
                    let requests = container.requests_of(&variables.unwrap_or_default());
                    self.environments.insert(container.id.clone(), requests);
                }
                Err(DockerError::Refused { .. }) => {
                    if !std::mem::replace(&mut self.environments_logged, true) {
                        tracing::info!(
                            "ACME_HOST or LETSENCRYPT_HOST in the environment of containers is ignored, labels are read; hint: to use it, let the proxy allow GET /containers/ID/json"
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
    fn log_events(&mut self, error: &DockerError) {
        let kind = Some(discriminant(error));
        if std::mem::replace(&mut self.events_error, kind) != kind {
            tracing::warn!(
                "no events from Docker, containers are listed once a minute: {error}; hint: {}",
                error.hint()
            );
        }
    }

    /// Logs a change of state once.
    fn log_list(&mut self, error: Option<&DockerError>) {
        let state = Some(error.map(discriminant));
        let is_news = std::mem::replace(&mut self.list_state, state) != state;
        match error {
            Some(error) if is_news => tracing::warn!(
                "{error}; known certificates of containers stay, new containers wait; hint: {}",
                error.hint()
            ),
            Some(error) => tracing::debug!("{error}"),
            None if is_news => tracing::info!("watching the labels of containers"),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests;
