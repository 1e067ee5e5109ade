//! A node's ACME client: the same steps as over HTTP. Each takes time, may find
//! the CA unreachable, and may lose its reply.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::ca::{DIRECTORY, OrderRefusal};
use super::node::Node;
use super::store::StoreServer;
use super::{HOUR, Scenario};
use crate::acme::{AcmeError, Cause, ClockReading, ExchangeError, Issuer, Journal, Phase};
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::random::Random;
use crate::record::{PendingOrder, Window};
use crate::time::{Clock, Timestamp};

/// Let's Encrypt's `Retry-After` with a renewal window.
const RETRY_AFTER: Duration = Duration::from_secs(6 * 3600);

/// The issuer of one certificate on one node.
pub(super) struct NodeIssuer {
    pub(super) node: Arc<Node>,
    pub(super) store: Arc<StoreServer>,
    pub(super) random: Arc<dyn Random>,
    /// The lifetime of its certificates.
    pub(super) lifetime: Duration,
}

impl NodeIssuer {
    fn now(&self) -> Timestamp {
        self.node.world.now()
    }

    /// A round trip of up to `most` milliseconds.
    async fn travel(&self, most: u64, phase: Phase) -> Result<(), AcmeError> {
        let until = self.now() + Duration::from_millis(1 + self.random.below(most));
        self.node.sleep_until(until).await;
        let ca = &self.node.ca;
        if self.node.faults().no_ca || ca.lock().is_down(phase, self.now()) {
            return Err(unreachable(phase, "connection refused"));
        }
        self.node.observe_ca_time();
        if ca.lock().faults.busy {
            return Err(limited(phase, "scripted", HOUR));
        }
        Ok(())
    }

    /// The reply, which may be lost after the CA has acted.
    fn reply(&self, phase: Phase) -> Result<(), AcmeError> {
        if self.random.below(1000) < self.node.ca.lock().lost {
            self.node.tally.script.happens(Scenario::LostReplies);
            return Err(unreachable(phase, "the reply was lost"));
        }
        Ok(())
    }

    async fn place(
        &self,
        order: &mut PendingOrder,
        journal: &mut dyn Journal,
    ) -> Result<String, AcmeError> {
        if let Some(url) = &order.url {
            return Ok(url.clone());
        }
        self.travel(500, Phase::Order).await?;
        let request = |order: &PendingOrder| {
            let mut ca = self.node.ca.lock();
            ca.order(order, self.lifetime, self.now())
        };
        let mut taken = request(order);
        if let Err(OrderRefusal::AlreadyReplaced | OrderRefusal::UnknownReplaced) = taken {
            order.replaces = None;
            note(journal, order).await?;
            taken = request(order);
        }
        let url = match taken {
            Ok(url) => url,
            Err(OrderRefusal::Limited(wait)) => return Err(limited(Phase::Order, "a limit", wait)),
            Err(_) => return Err(unreachable(Phase::Order, "replaced")),
        };
        let mut unsaved = UnsavedOrder {
            node: &self.node,
            names: order.identifiers.clone(),
            saved: false,
        };
        self.reply(Phase::Order)?;
        order.url = Some(url.clone());
        // An unsaved URL is the script's fault only while the script has taken the
        // store or the disk away; otherwise it is the program's.
        let saved = note(journal, order).await;
        let faults = self.node.faults();
        let is_excused = faults.disk_full || faults.no_store || self.store.is_failing();
        unsaved.saved = saved.is_ok() || !is_excused;
        saved?;
        Ok(url)
    }
}

/// An order whose URL is not saved yet. It cannot be resumed if its reply is lost,
/// or its process killed, before that.
struct UnsavedOrder<'n> {
    node: &'n Node,
    names: BTreeSet<Identifier>,
    saved: bool,
}

impl Drop for UnsavedOrder<'_> {
    fn drop(&mut self) {
        if !self.saved {
            self.node.ca.lock().discount(&self.names);
        }
    }
}

#[async_trait]
impl Issuer for NodeIssuer {
    async fn issue(
        &self,
        mut order: PendingOrder,
        journal: &mut dyn Journal,
    ) -> Result<String, AcmeError> {
        self.travel(200, Phase::Order).await?;
        let url = self.place(&mut order, journal).await?;
        self.travel(4000, Phase::Authorization).await?;
        let ca = &self.node.ca;
        if !ca.lock().validate(&order, self.now()) {
            ca.lock().forget_order(&url);
            let cause = Cause::NotValidated("connection refused".into());
            return Err(failed(Phase::Authorization, cause));
        }
        self.travel(2000, Phase::Finalize).await?;
        let signed = (ca.lock()).finalize(&url, &order.key_pem, self.now());
        let signed =
            signed.map_err(|error| failed(Phase::Finalize, Cause::Protocol(error.to_string())))?;
        if signed.as_ref().is_some_and(|signed| signed.is_first) {
            for name in &order.identifiers {
                self.node.tally.issued(&Lineage::of(name), self.now());
            }
        }
        self.reply(Phase::Finalize)?;
        self.travel(500, Phase::Certificate).await?;
        self.reply(Phase::Certificate)?;
        let missing = || Cause::NotValidated("no order found".into());
        let signed = signed.ok_or_else(|| failed(Phase::Certificate, missing()))?;
        Ok(signed.chain)
    }

    fn clocks(&self) -> Option<ClockReading> {
        self.node.clocks()
    }

    async fn time(&self, newest: Duration) -> Result<Option<ClockReading>, AcmeError> {
        let (now, reading) = (Clock::now(&*self.node), self.node.clocks());
        if reading.is_some_and(|reading| reading.ours <= now && now.since(reading.ours) <= newest) {
            return Ok(reading);
        }
        // An order requests the time first.
        self.travel(200, Phase::Order).await?;
        Ok(self.node.clocks())
    }

    async fn probe(&self) -> Result<(), AcmeError> {
        self.travel(200, Phase::Directory).await
    }

    async fn renewal_info(
        &self,
        renewal_id: &str,
    ) -> Result<Option<(Window, Duration)>, AcmeError> {
        // The client's own retries (RFC 9773 section 4.3.3).
        let mut pauses = [1, 4].into_iter().map(Duration::from_secs);
        while let Err(error) = self.travel(200, Phase::RenewalInfo).await {
            match (&error.cause, pauses.next()) {
                (Cause::Unreachable(_), Some(pause)) => {
                    self.node.sleep_until(self.now() + pause).await;
                }
                _ => return Err(error),
            }
        }
        let window = self.node.ca.lock().window(renewal_id, self.now());
        Ok(window.map(|window| (window, RETRY_AFTER)))
    }
}

async fn note(journal: &mut dyn Journal, order: &PendingOrder) -> Result<(), AcmeError> {
    let noted = journal.order(order).await;
    noted.map_err(|error| failed(Phase::Order, Cause::Journal(error)))
}

fn failed(phase: Phase, cause: Cause) -> AcmeError {
    AcmeError {
        ca: DIRECTORY.to_owned(),
        phase,
        cause,
    }
}

fn unreachable(phase: Phase, why: &str) -> AcmeError {
    failed(phase, ExchangeError::Connect(why.to_owned()).into())
}

fn limited(phase: Phase, what: &str, wait: Duration) -> AcmeError {
    let cause = Cause::RateLimited {
        message: format!("{what}: too many requests"),
        retry_after: Some(wait),
    };
    failed(phase, cause)
}
