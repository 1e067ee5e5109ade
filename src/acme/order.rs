//! One order from intent to chain (RFC 8555 section 7.4): placed or resumed,
//! authorized, finalized, downloaded.
//!
//! Whatever the CA's state says is where it goes on, so that a run that was cut
//! off anywhere is continued and nothing is asked for twice. Waiting is bounded
//! and keeps to `Retry-After`; an order that does not end in time is left to be
//! resumed.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use instant_acme::{CertificateIdentifier, NewOrder, OrderState, OrderStatus};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use serde_json::{Value, json};

use super::account::Account;
use super::directory::Directory;
use super::error::{Cause, Phase};
use super::exchange::{Reply, Session, https};
use super::jws::encode;
use super::{Journal, chains, wire};
use crate::challenge::Solver;
use crate::identifier::Identifier;
use crate::record::PendingOrder;
use crate::time::Clock;

/// After the CA was seen to fetch an answer, or took the request for the
/// certificate, it still has to write that down.
pub(super) const SETTLING: Duration = Duration::from_millis(50);
pub(super) const FIRST_POLL: Duration = Duration::from_millis(250);
const LONGEST_POLL: Duration = Duration::from_secs(5);
/// An order that has not moved on by then is left to be resumed.
const PATIENCE: Duration = Duration::from_secs(300);

/// A cause with the phase it arose in.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) phase: Phase,
    pub(super) cause: Cause,
}

/// Says in which phase a cause arose.
pub(super) trait During<T> {
    fn during(self, phase: Phase) -> Result<T, Failed>;
}

impl<T> During<T> for Result<T, Cause> {
    fn during(self, phase: Phase) -> Result<T, Failed> {
        self.map_err(|cause| Failed { phase, cause })
    }
}

/// What an order's way through a CA needs.
pub(super) struct Flow<'a> {
    pub(super) session: &'a Session,
    pub(super) directory: &'a Directory,
    pub(super) account: &'a Account,
    pub(super) solvers: &'a [Arc<dyn Solver>],
    pub(super) clock: &'a dyn Clock,
    pub(super) preferred_chain: Option<&'a str>,
}

/// An order at the CA, as last seen.
pub(super) struct Placed {
    url: String,
    pub(super) state: OrderState,
    /// What the last reply asked for.
    pub(super) retry_after: Option<Duration>,
}

impl Flow<'_> {
    /// Takes `pending` to its chain in PEM.
    pub(super) async fn run(
        &self,
        pending: &mut PendingOrder,
        journal: &mut dyn Journal,
    ) -> Result<String, Failed> {
        let mut order = self.open(pending, journal).await.during(Phase::Order)?;
        if order.state.status == OrderStatus::Pending {
            self.authorize(&mut order).await?;
        }
        self.conclude(&mut order, pending).await?;
        self.download(&order).await.during(Phase::Certificate)
    }

    pub(super) async fn post(
        &self,
        endpoint: &'static str,
        url: &str,
        payload: Option<&Value>,
    ) -> Result<Reply, Cause> {
        self.account
            .post(self.session, self.directory, endpoint, url, payload)
            .await
    }

    /// The order that `pending` names, or a new one when it has no URL, or the
    /// CA no longer knows it or has given it up.
    async fn open(
        &self,
        pending: &mut PendingOrder,
        journal: &mut dyn Journal,
    ) -> Result<Placed, Cause> {
        if let Some(url) = pending.url.clone() {
            match self.post("order", &url, None).await {
                Ok(reply) => {
                    let order = Placed::new(url, &reply)?;
                    if order.state.status != OrderStatus::Invalid {
                        return Ok(order);
                    }
                }
                Err(Cause::NotProven(_)) => {}
                Err(cause) => match cause.refusal() {
                    None | Some("accountDoesNotExist") => return Err(cause),
                    Some(_) => {}
                },
            }
            pending.url = None;
        }
        let reply = self.place(pending).await?;
        let url = reply
            .location
            .clone()
            .ok_or_else(|| Cause::Protocol("a new order without its URL".into()))?;
        https(&url)?;
        // Before the rest is even read: the order exists.
        pending.url = Some(url.clone());
        journal.order(pending).await.map_err(Cause::Journal)?;
        Placed::new(url, &reply)
    }

    /// A predecessor that was replaced or forgotten must never keep a
    /// certificate from being renewed: whatever a CA has against `replaces`,
    /// it is asked once more without, at once.
    async fn place(&self, pending: &mut PendingOrder) -> Result<Reply, Cause> {
        if let Some(profile) = &pending.profile
            && !self.directory.meta.profiles.contains_key(profile)
        {
            return Err(Cause::invalid_profile(profile, &self.directory.meta));
        }
        if self.directory.renewal_info.is_none() {
            pending.replaces = None;
        }
        let url = &self.directory.new_order;
        if pending.replaces.is_some() {
            let answered = self.post("new-order", url, Some(&request(pending)?)).await;
            match answered {
                Err(Cause::NotProven(_)) => {}
                Err(cause) => match cause.refusal() {
                    None | Some("accountDoesNotExist") => return Err(cause),
                    Some(_) => tracing::info!(
                        error = %cause,
                        "the CA does not take this as a replacement; ordering without"
                    ),
                },
                Ok(reply) => return Ok(reply),
            }
            pending.replaces = None;
        }
        self.post("new-order", url, Some(&request(pending)?)).await
    }

    /// From authorized to issued.
    async fn conclude(&self, order: &mut Placed, pending: &PendingOrder) -> Result<(), Failed> {
        let phase = Phase::Finalize;
        let never = std::future::pending;
        let mut tries = 0;
        loop {
            match order.state.status {
                OrderStatus::Valid => return Ok(()),
                OrderStatus::Invalid => return Err(self.why_invalid(order, phase).await),
                OrderStatus::Pending => {
                    self.poll(order, &[OrderStatus::Pending], SETTLING, never())
                        .await
                        .during(phase)?;
                }
                OrderStatus::Ready if tries < 2 => {
                    tries += 1;
                    self.finalize(order, pending).await.during(phase)?;
                }
                OrderStatus::Ready | OrderStatus::Processing => {
                    let still = [OrderStatus::Ready, OrderStatus::Processing];
                    self.poll(order, &still, SETTLING, never())
                        .await
                        .during(phase)?;
                }
            }
        }
    }

    async fn finalize(&self, order: &mut Placed, pending: &PendingOrder) -> Result<(), Cause> {
        let csr = signing_request(pending).map_err(|error| Cause::Journal(error.into()))?;
        let payload = json!({"csr": encode(&csr)});
        let url = order.state.finalize.clone();
        match self.post("finalize", &url, Some(&payload)).await {
            Ok(reply) => {
                order.update(&reply)?;
                if order.state.status == OrderStatus::Ready {
                    // It has the request; its answer was older than that.
                    order.state.status = OrderStatus::Processing;
                }
                Ok(())
            }
            // Finalized by a run that never heard of it, or not quite ready yet.
            Err(cause) if cause.refusal() == Some("orderNotReady") => {
                let still = [OrderStatus::Pending];
                self.poll(order, &still, SETTLING, std::future::pending())
                    .await
            }
            Err(cause) => Err(cause),
        }
    }

    /// Looks at the order until it has left the states in `still`: once as soon
    /// as `nudge` ends, else when the CA asked for it, else after `first` and
    /// then at growing distances.
    pub(super) async fn poll(
        &self,
        order: &mut Placed,
        still: &[OrderStatus],
        first: Duration,
        nudge: impl Future<Output = ()>,
    ) -> Result<(), Cause> {
        let begun = self.clock.now();
        let (mut nudge, mut nudged) = (pin!(nudge), false);
        let mut first = Some(first);
        for round in 0.. {
            let wait = match order.retry_after {
                Some(asked) => asked.max(growing(SETTLING, round)),
                None => first
                    .take()
                    .unwrap_or_else(|| growing(FIRST_POLL, round - 1)),
            };
            first = None;
            if self.clock.now().since(begun) + wait > PATIENCE {
                break;
            }
            tokio::select! {
                biased;
                () = &mut nudge, if !nudged => {
                    nudged = true;
                    self.pause(SETTLING).await;
                }
                () = self.pause(wait) => {}
            }
            let reply = self.post("order", &order.url, None).await?;
            order.update(&reply)?;
            if !still.contains(&order.state.status) {
                return Ok(());
            }
        }
        Err(Cause::TimedOut(PATIENCE))
    }

    async fn pause(&self, length: Duration) {
        self.clock.sleep_until(self.clock.now() + length).await;
    }

    async fn download(&self, order: &Placed) -> Result<String, Cause> {
        let url = order
            .state
            .certificate
            .as_deref()
            .ok_or_else(|| Cause::Protocol("a valid order without a certificate".into()))?;
        let reply = self.post("certificate", url, None).await?;
        let chain = chain(&reply)?;
        let Some(name) = self.preferred_chain else {
            return Ok(chain);
        };
        if chains::ends_at(&chain, name) {
            return Ok(chain);
        }
        for url in &reply.alternates {
            let other = self.post("certificate", url, None).await?;
            let other = self::chain(&other)?;
            if chains::ends_at(&other, name) {
                return Ok(other);
            }
        }
        tracing::warn!(name, "no chain of the CA ends there; its default is taken");
        Ok(chain)
    }
}

impl Placed {
    fn new(url: String, reply: &Reply) -> Result<Self, Cause> {
        Ok(Self {
            url,
            state: wire::order(&reply.body)?,
            retry_after: reply.retry_after,
        })
    }

    fn update(&mut self, reply: &Reply) -> Result<(), Cause> {
        self.state = wire::order(&reply.body)?;
        self.retry_after = reply.retry_after;
        Ok(())
    }
}

/// `first`, doubled `round` times, up to the longest.
fn growing(first: Duration, round: u32) -> Duration {
    first
        .saturating_mul(2_u32.saturating_pow(round))
        .min(LONGEST_POLL)
}

fn request(pending: &PendingOrder) -> Result<Value, Cause> {
    let identifiers: Vec<_> = pending.identifiers.iter().map(to_acme).collect();
    let mut order = NewOrder::new(&identifiers);
    if let Some(profile) = &pending.profile {
        order = order.profile(profile);
    }
    if let Some((authority, serial)) = pending
        .replaces
        .as_deref()
        .and_then(|id| id.split_once('.'))
    {
        order = order.replaces(CertificateIdentifier {
            authority_key_identifier: authority.into(),
            serial: serial.into(),
        });
    }
    serde_json::to_value(&order).map_err(|error| Cause::Protocol(error.to_string()))
}

fn to_acme(identifier: &Identifier) -> instant_acme::Identifier {
    match identifier {
        Identifier::Dns(name) => instant_acme::Identifier::Dns(name.as_str().to_owned()),
        Identifier::Ip(address) => instant_acme::Identifier::Ip(*address),
    }
}

fn chain(reply: &Reply) -> Result<String, Cause> {
    std::str::from_utf8(&reply.body)
        .ok()
        .filter(|text| text.contains("-----BEGIN CERTIFICATE-----"))
        .map(str::to_owned)
        .ok_or_else(|| Cause::Protocol("what came as the certificate is not PEM".into()))
}

fn signing_request(pending: &PendingOrder) -> Result<Vec<u8>, rcgen::Error> {
    let key = KeyPair::from_pem(pending.key_pem.expose())?;
    let names: Vec<String> = pending
        .identifiers
        .iter()
        .map(ToString::to_string)
        .collect();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(&key)?.der().to_vec())
}
