//! Clients that never stop asking while certificates are swapped below them.
//! Half of them keep their connection as browsers do, half make a new one for
//! each request; all verify up to the CA's root. Paced, so that what is
//! measured is the swap and not a machine without air.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, HOST};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::site::Site;
use super::tally::{Kind, Tally};
use crate::tls::dialer::{DialError, Dialer};

/// How many there are.
pub(super) const CLIENTS: usize = 16;
const BETWEEN_KEPT: Duration = Duration::from_millis(10);
const BETWEEN_NEW: Duration = Duration::from_millis(40);
const STAGGER: Duration = Duration::from_millis(3);
const PATIENCE: Duration = Duration::from_secs(10);
/// Of each client; no run is near it.
const MOST_REQUESTS: usize = 100_000;

/// Whether the server may close a kept connection between two requests, as
/// nginx does at each reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manners {
    /// It has no reason to: it counts as a failure.
    NeverCloses,
    /// It may; the client then does what browsers do, and asks again.
    ClosesIdle,
}

/// Clients at work.
pub(super) struct Load {
    clients: JoinSet<()>,
    stop: watch::Sender<bool>,
}

impl Load {
    /// Sets them to work on `sites`, all of them at `address`.
    pub(super) fn start(
        dialer: &Dialer,
        address: SocketAddr,
        sites: &[Site],
        manners: Manners,
        tally: &Arc<Tally>,
    ) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let mut sites = sites.to_vec();
            // Each begins with another name.
            let first = number / 2 % sites.len().max(1);
            sites.rotate_left(first);
            let client = Client {
                dialer: dialer.clone(),
                address,
                sites,
                manners,
                tally: tally.clone(),
                keeps: number % 2 == 0,
            };
            let delay = STAGGER * u32::try_from(number).unwrap_or(0);
            clients.spawn(client.work(delay, stopped.clone()));
        }
        Self { clients, stop }
    }

    /// Lets each end the request that it is at.
    pub(super) async fn stop(mut self) {
        self.stop.send_replace(true);
        while self.clients.join_next().await.is_some() {}
    }
}

struct Client {
    dialer: Dialer,
    address: SocketAddr,
    sites: Vec<Site>,
    manners: Manners,
    tally: Arc<Tally>,
    keeps: bool,
}

type Connection = SendRequest<Empty<Bytes>>;
type Ended<T> = Result<T, (Kind, String)>;

/// How an attempt on a connection failed.
enum Broken {
    /// Before a byte of the answer came.
    Unanswered(String),
    /// Later.
    Failed(Kind, String),
}

impl Client {
    async fn work(self, delay: Duration, stopped: watch::Receiver<bool>) {
        let pause = if self.keeps {
            BETWEEN_KEPT
        } else {
            BETWEEN_NEW
        };
        let mut pace = tokio::time::interval_at(Instant::now() + delay, pause);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut kept = None;
        for site in self.sites.iter().cycle().take(MOST_REQUESTS) {
            pace.tick().await;
            if *stopped.borrow() {
                return;
            }
            // A client that keeps its connection stays with the first name.
            let site = if self.keeps { &self.sites[0] } else { site };
            let begun = Instant::now();
            match tokio::time::timeout(PATIENCE, self.ask(site, &mut kept)).await {
                Ok(Ok(())) => self.tally.answered(begun),
                Ok(Err((kind, detail))) => self.tally.failed(kind, &detail),
                Err(_) => {
                    self.tally.failed(Kind::Timeout, &site.name.to_string());
                    kept = None;
                }
            }
        }
    }

    async fn ask(&self, site: &Site, kept: &mut Option<Connection>) -> Ended<()> {
        let mut at_hand = kept.take();
        if at_hand.as_ref().is_some_and(SendRequest::is_closed) {
            at_hand = None;
            self.closed_while_idle()?;
        }
        if let Some(mut connection) = at_hand {
            match self.exchange(site, &mut connection).await {
                Ok(()) => {
                    *kept = Some(connection);
                    return Ok(());
                }
                // It was being closed just as we asked.
                Err(Broken::Unanswered(_)) => self.closed_while_idle()?,
                Err(Broken::Failed(kind, detail)) => return Err((kind, detail)),
            }
        }
        let mut connection = self.connect(site).await?;
        match self.exchange(site, &mut connection).await {
            Ok(()) => {
                *kept = self.keeps.then_some(connection);
                Ok(())
            }
            Err(Broken::Unanswered(detail)) => Err((Kind::Request, detail)),
            Err(Broken::Failed(kind, detail)) => Err((kind, detail)),
        }
    }

    fn closed_while_idle(&self) -> Ended<()> {
        if self.manners == Manners::NeverCloses {
            return Err((Kind::Dropped, "a kept connection was closed".to_owned()));
        }
        self.tally.closed_while_idle();
        Ok(())
    }

    async fn connect(&self, site: &Site) -> Ended<Connection> {
        let begun = Instant::now();
        let dialled = self.dialer.connect(self.address, &site.name).await;
        let (stream, leaf) = dialled.map_err(|error| {
            let kind = match error {
                DialError::Connect(_) => Kind::Connect,
                DialError::Certificate(_) => Kind::Certificate,
                DialError::Handshake(_) | DialError::Name(_) => Kind::Handshake,
            };
            (kind, format!("{}: {error}", site.name))
        })?;
        self.tally.shook_hands(&site.lineage, &leaf, begun);
        let opened = handshake(TokioIo::new(stream)).await;
        let (sender, connection) = opened.map_err(|e| (Kind::Request, e.to_string()))?;
        // How it ended is seen by whoever sends on it next.
        tokio::spawn(async { drop(connection.await) });
        Ok(sender)
    }

    async fn exchange(&self, site: &Site, connection: &mut Connection) -> Result<(), Broken> {
        let unanswered = |error: hyper::Error| Broken::Unanswered(error.to_string());
        let failed = |detail: String| Broken::Failed(Kind::Request, detail);
        connection.ready().await.map_err(unanswered)?;
        let mut request = Request::get("/").header(HOST, site.name.to_string());
        if !self.keeps {
            request = request.header(CONNECTION, "close");
        }
        let request = request
            .body(Empty::new())
            .map_err(|error| failed(error.to_string()))?;
        let answer = connection.send_request(request).await;
        let answer = answer.map_err(unanswered)?;
        let status = answer.status();
        let body = answer.into_body().collect().await;
        body.map_err(|error| failed(error.to_string()))?;
        if status == StatusCode::OK {
            Ok(())
        } else {
            Err(Broken::Failed(Kind::Status, status.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use async_trait::async_trait;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::tally::Counts;
    use super::*;
    use crate::tls::fixture::{Authority, identifier, lineage, publisher, serve_by};
    use crate::tls::terminator::{Handler, Limits, Stopping, Stream};

    /// Gives its answer to the first request of a connection, and hangs up.
    struct Rude(&'static str);

    #[async_trait]
    impl Handler for Rude {
        async fn converse(&self, mut stream: Stream, _peer: SocketAddr, _stopping: Stopping) {
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(self.0.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    }

    const FINE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

    /// What the clients count once `enough` holds; trusts nobody when told so.
    async fn loaded(
        answer: &'static str,
        manners: Manners,
        trusting: bool,
        enough: impl Fn(&Counts) -> bool,
    ) -> Counts {
        let (authority, other) = (Authority::new(), Authority::new());
        let (publisher, credentials, _) = publisher(&[&["example.com"]]);
        let bundle = authority.bundle(&["example.com"]);
        publisher.publish(&lineage("example.com"), &bundle).unwrap();
        let address = serve_by(Arc::new(Rude(answer)), &credentials, Limits::default());
        let dialer = if trusting { authority } else { other }.dialer();
        let site = Site {
            lineage: lineage("example.com"),
            name: identifier("example.com"),
            live: "nowhere".into(),
        };
        let tally = Arc::new(Tally::default());
        let load = Load::start(&dialer, address, &[site], manners, &tally);
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

    fn kinds(counts: &Counts) -> Vec<Kind> {
        counts.failures.keys().copied().collect()
    }

    #[tokio::test]
    async fn a_kept_connection_that_is_closed_is_asked_again_or_is_a_failure() {
        let closed = loaded(FINE, Manners::ClosesIdle, true, |c| c.idle_closes > 20).await;
        assert_eq!(
            closed.failures,
            BTreeMap::new(),
            "{:?}",
            closed.first_failure
        );
        assert!(closed.requests > 20);
        let dropped = loaded(FINE, Manners::NeverCloses, true, |c| c.failed() > 20).await;
        assert_eq!(kinds(&dropped), [Kind::Dropped]);
        assert_eq!(dropped.idle_closes, 0);
    }

    #[tokio::test]
    async fn each_way_of_failing_is_counted_as_what_it_is() {
        for (answer, trusting, kind) in [
            ("", true, Kind::Request),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok",
                true,
                Kind::Request,
            ),
            (
                "HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n",
                true,
                Kind::Status,
            ),
            (FINE, false, Kind::Certificate),
        ] {
            let counts = loaded(answer, Manners::ClosesIdle, trusting, |c| c.failed() > 20).await;
            assert_eq!(kinds(&counts), [kind], "{answer}");
            assert_eq!(counts.requests, 0, "{answer}");
        }
    }
}
