//! A node's way to the CA: the same steps as over HTTP, each of which takes its
//! time, may find nobody, and may lose its reply.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::Scenario;
use super::authority::{DIRECTORY, Refusal};
use super::node::Node;
use crate::acme::{AcmeError, Cause, Dated, ExchangeError, Issuer, Journal, Phase};
use crate::identifier::{Identifier, Lineage};
use crate::random::Random;
use crate::record::{PendingOrder, Window};
use crate::time::{Clock, Timestamp};

const HOUR: Duration = Duration::from_secs(3600);
/// Let's Encrypt's `Retry-After` with a renewal window.
const ASK_AGAIN: Duration = Duration::from_secs(6 * 3600);

/// The CA, as one certificate of one node meets it.
pub(super) struct NodeIssuer {
    pub(super) node: Arc<Node>,
    pub(super) random: Arc<dyn Random>,
    /// What is signed for it lives so long.
    pub(super) lifetime: Duration,
}

impl NodeIssuer {
    fn now(&self) -> Timestamp {
        self.node.world.now()
    }

    /// A way there and back, of up to `most` milliseconds.
    async fn travel(&self, most: u64, phase: Phase) -> Result<(), AcmeError> {
        let until = self.now() + Duration::from_millis(1 + self.random.below(most));
        self.node.sleep_until(until).await;
        let authority = &self.node.authority;
        if self.node.ailments().no_ca || authority.is_down(phase, self.now()) {
            return Err(unreachable(phase, "nobody there"));
        }
        self.node.hears_the_time();
        if authority.weather().busy {
            return Err(limited(phase, "scripted", HOUR));
        }
        Ok(())
    }

    /// The reply to what the CA has done already.
    fn reply(&self, phase: Phase) -> Result<(), AcmeError> {
        if self.random.below(1000) < self.node.authority.weather().lost {
            self.node.tally.happens(Scenario::LostReplies);
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
        let authority = &self.node.authority;
        let mut taken = authority.order(order, self.lifetime, self.now());
        if let Err(Refusal::AlreadyReplaced | Refusal::UnknownReplaced) = taken {
            order.replaces = None;
            note(journal, order).await?;
            taken = authority.order(order, self.lifetime, self.now());
        }
        let url = match taken {
            Ok(url) => url,
            Err(Refusal::Limited(wait)) => return Err(limited(Phase::Order, "a limit", wait)),
            Err(_) => return Err(unreachable(Phase::Order, "replaced")),
        };
        let mut unnoted = Unnoted {
            node: &self.node,
            names: order.identifiers.clone(),
            noted: false,
        };
        self.reply(Phase::Order)?;
        order.url = Some(url.clone());
        // That the URL could not be kept is the script's doing where it has taken
        // the store away; where it is lost otherwise, it is the program's.
        let kept = note(journal, order).await;
        let ailments = self.node.ailments();
        unnoted.noted = kept.is_ok() || !ailments.disk_full && ailments.no_store.is_none();
        kept?;
        Ok(url)
    }
}

/// An order whose URL nobody has kept yet. Nobody can resume it when its reply is
/// lost, or its process killed, before that.
struct Unnoted<'n> {
    node: &'n Node,
    names: BTreeSet<Identifier>,
    noted: bool,
}

impl Drop for Unnoted<'_> {
    fn drop(&mut self) {
        if !self.noted {
            self.node.authority.excuse(&self.names);
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
        let authority = &self.node.authority;
        if !authority.validate(&order, self.now()) {
            authority.forget_order(&url);
            let cause = Cause::NotProven("nobody answers at that name".into());
            return Err(failed(Phase::Authorization, cause));
        }
        self.travel(2000, Phase::Finalize).await?;
        let signed = authority.finalize(&url, &order.key_pem, self.now());
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
        let signed = signed.map(|signed| signed.chain);
        signed.ok_or_else(|| failed(Phase::Certificate, Cause::NotProven("no such order".into())))
    }

    fn dated(&self) -> Option<Dated> {
        self.node.dated()
    }

    async fn time(&self, newest: Duration) -> Result<Option<Dated>, AcmeError> {
        let (now, dated) = (self.node.clock(), self.node.dated());
        if dated.is_some_and(|dated| dated.ours <= now && now.since(dated.ours) <= newest) {
            return Ok(dated);
        }
        // An order asks for it before anything else.
        self.travel(200, Phase::Order).await?;
        Ok(self.node.dated())
    }

    async fn probe(&self) -> Result<(), AcmeError> {
        self.travel(200, Phase::Directory).await
    }

    async fn renewal_info(
        &self,
        renewal_id: &str,
        _journal: &mut dyn Journal,
    ) -> Result<Option<(Window, Duration)>, AcmeError> {
        // As often as the client asks (RFC 9773 section 4.3.3).
        let mut pauses = [1, 4].into_iter().map(Duration::from_secs);
        while let Err(error) = self.travel(200, Phase::RenewalInfo).await {
            match (&error.cause, pauses.next()) {
                (Cause::Unreachable(_), Some(pause)) => {
                    self.node.sleep_until(self.now() + pause).await;
                }
                _ => return Err(error),
            }
        }
        let window = self.node.authority.window(renewal_id, self.now());
        Ok(window.map(|window| (window, ASK_AGAIN)))
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
