//! Clients that send requests all the time while certificates are swapped. Half of
//! them keep their connection as browsers do, half open one for each request; all
//! verify up to the CA's root. They are paced, to measure the swap and not an
//! overloaded machine.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, HOST};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::Site;
use super::tally::{LoadTally, RequestFailure};
use crate::net::http::Connection;
use crate::tls::dialer::{DialError, Dialer};

/// The number of clients.
pub(super) const CLIENTS: usize = 16;
const BETWEEN_KEPT: Duration = Duration::from_millis(10);
const BETWEEN_NEW: Duration = Duration::from_millis(40);
const STAGGER: Duration = Duration::from_millis(3);
const DEADLINE: Duration = Duration::from_secs(10);
/// The limit for each client; a run stays far below it.
const MOST_REQUESTS: usize = 100_000;

/// Whether the server may close an idle kept connection, as nginx does at each
/// reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IdlePolicy {
    /// It must not: closing counts as a failure.
    NeverCloses,
    /// It may: the client retries, as browsers do.
    ClosesIdle,
}

/// Running clients.
pub(super) struct Load {
    clients: JoinSet<()>,
    stop: watch::Sender<bool>,
}

impl Load {
    /// Starts the clients for `sites`, all of them at `address`.
    pub(super) fn start(
        dialer: &Dialer,
        address: SocketAddr,
        sites: &[Site],
        idle_policy: IdlePolicy,
        tally: &Arc<LoadTally>,
    ) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let mut sites = sites.to_vec();
            // Spread the clients over the names.
            let first = number / 2 % sites.len().max(1);
            sites.rotate_left(first);
            let client = Client {
                dialer: dialer.clone(),
                address,
                sites,
                idle_policy,
                tally: tally.clone(),
                keeps: number % 2 == 0,
            };
            let delay = STAGGER * u32::try_from(number).unwrap_or(0);
            clients.spawn(client.work(delay, stopped.clone()));
        }
        Self { clients, stop }
    }

    /// Waits until each client has finished its request.
    pub(super) async fn stop(mut self) {
        self.stop.send_replace(true);
        while self.clients.join_next().await.is_some() {}
    }
}

struct Client {
    dialer: Dialer,
    address: SocketAddr,
    sites: Vec<Site>,
    idle_policy: IdlePolicy,
    tally: Arc<LoadTally>,
    keeps: bool,
}

type Attempt<T> = Result<T, (RequestFailure, String)>;

impl Client {
    async fn work(self, delay: Duration, stopped: watch::Receiver<bool>) {
        let pause = match self.keeps {
            true => BETWEEN_KEPT,
            false => BETWEEN_NEW,
        };
        let mut pace = tokio::time::interval_at(Instant::now() + delay, pause);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut kept = None;
        for site in self.sites.iter().cycle().take(MOST_REQUESTS) {
            pace.tick().await;
            if *stopped.borrow() {
                return;
            }
            // A kept connection is for the first name.
            let site = if self.keeps { &self.sites[0] } else { site };
            let begun = Instant::now();
            match tokio::time::timeout(DEADLINE, self.request(site, &mut kept)).await {
                Ok(Ok(())) => self.tally.answered(begun),
                Ok(Err((kind, detail))) => self.tally.failed(kind, &detail),
                Err(_) => {
                    self.tally
                        .failed(RequestFailure::Timeout, &site.name.to_string());
                    kept = None;
                }
            }
        }
    }

    async fn request(&self, site: &Site, kept: &mut Option<Connection>) -> Attempt<()> {
        if let Some(mut connection) = kept.take() {
            match self.exchange(site, &mut connection).await {
                // The server closed it, at the latest while the request was sent.
                Err((RequestFailure::Dropped, _)) => self.closed_while_idle()?,
                ended => {
                    *kept = ended.is_ok().then_some(connection);
                    return ended;
                }
            }
        }
        let mut connection = self.connect(site).await?;
        match self.exchange(site, &mut connection).await {
            Ok(()) => *kept = self.keeps.then_some(connection),
            Err((RequestFailure::Dropped, detail)) => {
                return Err((RequestFailure::Request, detail));
            }
            failure => return failure,
        }
        Ok(())
    }

    fn closed_while_idle(&self) -> Attempt<()> {
        if self.idle_policy == IdlePolicy::NeverCloses {
            let detail = "a kept connection was closed".to_owned();
            return Err((RequestFailure::Dropped, detail));
        }
        self.tally.closed_while_idle();
        Ok(())
    }

    async fn connect(&self, site: &Site) -> Attempt<Connection> {
        let begun = Instant::now();
        let dialled = self.dialer.connect(self.address, &site.name).await;
        let (stream, leaf) = dialled.map_err(|error| {
            let kind = match error {
                DialError::Connect(_) => RequestFailure::Connect,
                DialError::Certificate(_) => RequestFailure::Certificate,
                DialError::Handshake(_) | DialError::Name(_) => RequestFailure::Handshake,
            };
            (kind, format!("{}: {error}", site.name))
        })?;
        self.tally.handshake(&site.lineage, &leaf, begun);
        let opened = Connection::over(stream).await;
        opened.map_err(|error| (RequestFailure::Request, error.to_string()))
    }

    /// Sends a request; without any reply the connection was dropped.
    async fn exchange(&self, site: &Site, connection: &mut Connection) -> Attempt<()> {
        let failed = |error: &dyn Error| (RequestFailure::Request, error.to_string());
        let mut request = Request::get("/").header(HOST, site.name.to_string());
        if !self.keeps {
            request = request.header(CONNECTION, "close");
        }
        let request = request.body(Full::default());
        let request = request.map_err(|error| failed(&error))?;
        let answer = connection.send(request).await;
        let answer = answer.map_err(|error| (RequestFailure::Dropped, error.to_string()))?;
        let status = answer.status();
        let body = answer.into_body().collect().await;
        body.map_err(|error| failed(&error))?;
        match status {
            StatusCode::OK => Ok(()),
            other => Err((RequestFailure::Status, other.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::TlsAcceptor;

    use super::super::tally::LoadCounts;
    use super::*;
    use crate::tls::credentials::Credentials;
    use crate::tls::fakes::{Authority, identifier, lineage, listener, publisher};

    /// Answers the first request of each connection, and closes it.
    fn serve_one_answer(answer: &'static str, credentials: &Arc<Credentials>) -> SocketAddr {
        let (listener, address) = listener();
        let acceptor = TlsAcceptor::from(credentials.server_config().unwrap());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let accepted = acceptor.accept(stream);
                tokio::spawn(async move {
                    let Ok(mut stream) = accepted.await else {
                        return;
                    };
                    let _ = stream.read(&mut [0; 1024]).await;
                    let _ = stream.write_all(answer.as_bytes()).await;
                    let _ = stream.shutdown().await;
                });
            }
        });
        address
    }

    const FINE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

    /// The counts once `enough` holds; without `trusting`, the clients trust another root.
    async fn loaded(
        answer: &'static str,
        idle_policy: IdlePolicy,
        trusting: bool,
        enough: impl Fn(&LoadCounts) -> bool,
    ) -> LoadCounts {
        let (authority, other) = (Authority::new(), Authority::new());
        let (publisher, credentials, _) = publisher(&[&["example.com"]]);
        let bundle = authority.bundle(&["example.com"]);
        publisher.publish(&lineage("example.com"), &bundle).unwrap();
        let address = serve_one_answer(answer, &credentials);
        let dialer = if trusting { authority } else { other }.dialer();
        let site = Site {
            lineage: lineage("example.com"),
            name: identifier("example.com"),
            live: "nowhere".into(),
        };
        let tally = Arc::new(LoadTally::default());
        let load = Load::start(&dialer, address, &[site], idle_policy, &tally);
        let counted = async {
            while !enough(&tally.counts()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let patience = Duration::from_secs(20);
        tokio::time::timeout(patience, counted).await.unwrap();
        load.stop().await;
        tally.counts()
    }

    fn kinds(counts: &LoadCounts) -> Vec<RequestFailure> {
        counts.failures.keys().copied().collect()
    }

    #[tokio::test]
    async fn kept_connection_is_retried_or_counted_if_closed() {
        let closed = loaded(FINE, IdlePolicy::ClosesIdle, true, |c| c.idle_closes > 20).await;
        assert_eq!(
            closed.failures,
            BTreeMap::new(),
            "{:?}",
            closed.first_failure
        );
        assert!(closed.requests > 20);
        let dropped = loaded(FINE, IdlePolicy::NeverCloses, true, |c| c.failed() > 20).await;
        assert_eq!(kinds(&dropped), [RequestFailure::Dropped]);
        assert_eq!(dropped.idle_closes, 0);
    }

    #[tokio::test]
    async fn failures_are_counted_by_kind() {
        for (answer, trusting, kind) in [
            ("", true, RequestFailure::Request),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok",
                true,
                RequestFailure::Request,
            ),
            (
                "HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n",
                true,
                RequestFailure::Status,
            ),
            (FINE, false, RequestFailure::Certificate),
        ] {
            let counts = loaded(answer, IdlePolicy::ClosesIdle, trusting, |c| {
                c.failed() > 20
            })
            .await;
            assert_eq!(kinds(&counts), [kind], "{answer}");
            assert_eq!(counts.requests, 0, "{answer}");
        }
    }
}
