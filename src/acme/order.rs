//! One order from intent to chain (RFC 8555 section 7.4): placed or resumed,
//! authorized, finalized, downloaded.
//!
//! The order's state at the CA decides the next step, so that an interrupted run
//! is resumed at any point. No step is ever repeated that the CA has accepted.

use std::collections::BTreeSet;

use instant_acme::OrderStatus;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use serde_json::{Value, json};
use x509_parser::pem::Pem;
use x509_parser::prelude::X509Certificate;

use super::Journal;
use super::client::Flow;
use super::error::{AcmeError, Cause, Phase};
use super::exchange::{Reply, https};
use super::jws::encode;
use super::poll::PlacedOrder;
use crate::identifier::Identifier;
use crate::record::PendingOrder;
use crate::text::printable;

/// More than any chain has: four at most.
const MOST_CERTIFICATES: usize = 20;

impl Flow<'_> {
    /// Completes `pending` and returns the chain in PEM.
    pub(super) async fn run(
        &self,
        pending: &mut PendingOrder,
        journal: &mut dyn Journal,
    ) -> Result<String, AcmeError> {
        let opened = self.open(pending, journal).await;
        let mut order = opened.map_err(self.client.at(Phase::Order))?;
        match self.proceed(&mut order, pending, journal).await {
            Err(error) if self.has_expired(&order, &error.cause) => {
                tracing::info!("the order expired at the CA; placing a new one");
                pending.url = None;
                let opened = self.open(pending, journal).await;
                let mut order = opened.map_err(self.client.at(Phase::Order))?;
                self.proceed(&mut order, pending, journal).await
            }
            ended => ended,
        }
    }

    /// Whether the order failed only because its time is over, by the CA's clock.
    fn has_expired(&self, order: &PlacedOrder, cause: &Cause) -> bool {
        let now = self.client.settings.clock.now();
        let reading = self.client.transport.clocks();
        let now = reading.map_or(now, |reading| reading.at_ca(now));
        let is_refusal = matches!(cause, Cause::NotValidated(_) | Cause::Refused(_));
        let unexplained = cause.failed_names().is_empty() && order.state.error.is_none();
        is_refusal && unexplained && order.expires.is_some_and(|end| end <= now)
    }

    /// Completes an opened order.
    async fn proceed(
        &self,
        order: &mut PlacedOrder,
        pending: &PendingOrder,
        journal: &mut dyn Journal,
    ) -> Result<String, AcmeError> {
        if order.state.status == OrderStatus::Pending {
            let authorized = self.authorize(order, journal).await;
            authorized.map_err(self.client.at(Phase::Authorization))?;
        } else {
            // An earlier run may have been interrupted after the validation.
            self.clean_up(&[], journal).await;
        }
        let concluded = self.conclude(order, pending).await;
        concluded.map_err(self.client.at(Phase::Finalize))?;
        let chain = self.download(order).await;
        chain.map_err(self.client.at(Phase::Certificate))
    }

    /// The order at `pending`'s URL; a new one without a URL, or if the CA no
    /// longer knows the order or calls it invalid.
    async fn open(
        &self,
        pending: &mut PendingOrder,
        journal: &mut dyn Journal,
    ) -> Result<PlacedOrder, Cause> {
        if let Some(url) = pending.url.clone() {
            match self.post("order", &url, None).await {
                Ok(reply) => {
                    let order = PlacedOrder::new(url, &reply, &pending.identifiers)?;
                    if order.state.status != OrderStatus::Invalid {
                        return Ok(order);
                    }
                }
                Err(Cause::NotValidated(_)) => {}
                Err(cause) => match cause.refusal() {
                    None | Some("accountDoesNotExist") => return Err(cause),
                    Some(_) => {}
                },
            }
            pending.url = None;
        }
        let reply = self.place(pending).await?;
        let url = reply.location.clone();
        let url = url.ok_or_else(|| Cause::Protocol("a new order without a URL".into()))?;
        https(&url)?;
        // Stored before the body is read: the order exists.
        pending.url = Some(url.clone());
        journal.order(pending).await.map_err(Cause::Journal)?;
        PlacedOrder::new(url, &reply, &pending.identifiers)
    }

    /// Places the order. If the CA objects to it, the order is placed once more
    /// without `replaces`: an unknown or replaced predecessor must never prevent a
    /// renewal.
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
            match self.post("new-order", url, Some(&request(pending))).await {
                Err(Cause::NotValidated(_)) => {}
                Err(cause) => match cause.objection() {
                    None | Some("accountDoesNotExist" | "paused") => return Err(cause),
                    Some(_) => tracing::info!(
                        error = %cause,
                        "the CA refuses the order with `replaces`; ordering without it"
                    ),
                },
                Ok(reply) => return Ok(reply),
            }
            pending.replaces = None;
        }
        let placed = self.post("new-order", url, Some(&request(pending))).await;
        placed.map_err(|cause| match pending.not_after {
            Some(_) => cause.of_lifetime(&self.directory.meta),
            None => cause,
        })
    }

    /// Finalizes an authorized order and waits until it is valid.
    async fn conclude(&self, order: &mut PlacedOrder, pending: &PendingOrder) -> Result<(), Cause> {
        let mut tries = 0;
        loop {
            let still: &[OrderStatus] = match order.state.status {
                OrderStatus::Valid => return Ok(()),
                OrderStatus::Invalid => return Err(self.why_invalid(order).await),
                OrderStatus::Pending => &[OrderStatus::Pending],
                OrderStatus::Ready if tries < 2 => {
                    tries += 1;
                    self.finalize(order, pending).await?;
                    continue;
                }
                OrderStatus::Ready | OrderStatus::Processing => {
                    &[OrderStatus::Ready, OrderStatus::Processing]
                }
            };
            self.settle(order, still).await?;
        }
    }

    async fn finalize(&self, order: &mut PlacedOrder, pending: &PendingOrder) -> Result<(), Cause> {
        let csr = signing_request(pending).map_err(|error| Cause::Journal(error.into()))?;
        let payload = json!({"csr": encode(&csr)});
        let url = order.state.finalize.clone();
        match self.post("finalize", &url, Some(&payload)).await {
            Ok(reply) => {
                order.update(&reply)?;
                if order.state.status == OrderStatus::Ready {
                    // The CA accepted the request, but replied with the earlier state.
                    order.state.status = OrderStatus::Processing;
                }
                Ok(())
            }
            // Not quite ready, or finalized by an earlier run that lost the reply.
            Err(cause) if cause.refusal() == Some("orderNotReady") => {
                self.settle(order, &[OrderStatus::Pending]).await
            }
            Err(cause) => Err(cause),
        }
    }

    async fn download(&self, order: &PlacedOrder) -> Result<String, Cause> {
        let url = order.state.certificate.as_deref();
        let url =
            url.ok_or_else(|| Cause::Protocol("a valid order without a certificate".into()))?;
        let reply = self.post("certificate", url, None).await?;
        let chain = chain(&reply)?;
        let Some(name) = self.client.settings.preferred_chain.as_deref() else {
            return Ok(chain);
        };
        if topmost(&chain).contains(name) {
            return Ok(chain);
        }
        let mut offered = vec![chain.clone()];
        for url in &reply.alternates {
            let other = self::chain(&self.post("certificate", url, None).await?)?;
            if topmost(&other).contains(name) {
                return Ok(other);
            }
            offered.push(other);
        }
        let offered: Vec<String> = offered
            .iter()
            .flat_map(|chain| topmost(chain))
            .map(|name| printable(&name))
            .collect();
        let hint = "preferred_chain is the common name of one of them, or none";
        tracing::warn!(
            "no chain of the CA has the topmost issuer `{}`; using its default chain; its issuers are: {}; hint: {hint}",
            printable(name),
            offered.join(", "),
        );
        Ok(chain)
    }
}

fn request(pending: &PendingOrder) -> Value {
    let identifiers = pending.identifiers.iter().map(|identifier| {
        let kind = match identifier {
            Identifier::Dns(_) => "dns",
            Identifier::Ip(_) => "ip",
        };
        json!({"type": kind, "value": identifier.to_string()})
    });
    let mut order = json!({"identifiers": identifiers.collect::<Vec<_>>()});
    let not_after = pending.not_after.map(|end| end.to_string());
    for (name, value) in [
        ("profile", &pending.profile),
        ("replaces", &pending.replaces),
        ("notAfter", &not_after),
    ] {
        if let Some(value) = value {
            order[name] = value.as_str().into();
        }
    }
    order
}

fn chain(reply: &Reply) -> Result<String, Cause> {
    let text = String::from_utf8(reply.body.to_vec()).ok();
    let certificates = |text: &str| text.matches("-----BEGIN CERTIFICATE-----").count();
    let text = text.filter(|text| certificates(text) > 0);
    let text = text.ok_or_else(|| Cause::Protocol("the certificate is not PEM".into()))?;
    match certificates(&text) {
        number @ MOST_CERTIFICATES.. => {
            let message = format!("a chain of {number} certificates");
            Err(Cause::Protocol(message))
        }
        _ => Ok(text),
    }
}

/// The common names of the topmost issuer of the chain `pem`, which may be in any order. The
/// chain is not verified.
fn topmost(pem: &str) -> BTreeSet<String> {
    let blocks: Vec<_> = Pem::iter_from_buffer(pem.as_bytes()).flatten().collect();
    let chain = blocks.iter().filter_map(|block| block.parse_x509().ok());
    let chain: Vec<_> = chain.collect();
    let is_topmost = |one: &&X509Certificate<'_>| {
        let mut others = chain
            .iter()
            .filter(|other| other.subject() != one.subject());
        !others.any(|other| other.subject() == one.issuer())
    };
    let names = { chain.iter().filter(is_topmost) }.flat_map(|one| one.issuer().iter_common_name());
    names
        .filter_map(|name| name.as_str().ok().map(str::to_owned))
        .collect()
}

fn signing_request(pending: &PendingOrder) -> Result<Vec<u8>, rcgen::Error> {
    if let Some(request) = pending.key_pem.signing_request() {
        return Ok(request);
    }
    let key = KeyPair::from_pem(pending.key_pem.expose())?;
    let names = pending.identifiers.iter().map(ToString::to_string);
    let mut params = CertificateParams::new(names.collect::<Vec<_>>())?;
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(&key)?.der().to_vec())
}

impl Cause {
    /// The same cause, for an order with the signing request of a user: its key and its names
    /// are those of the request.
    pub(super) fn of_signing_request(mut self) -> Self {
        if let Self::Refused(explained) = &mut self {
            let hint = match explained.kind.as_ref() {
                "badPublicKey" | "badCSR" => {
                    "the CA rejects this key or signature: make a new signing request, such as with a P-256 key and SHA-256, then certs csr FILE --force"
                }
                "rejectedIdentifier" | "unsupportedIdentifier" => {
                    "the CA does not sign one of these names: make a new signing request without that name, or use another CA"
                }
                _ => return self,
            };
            explained.hint = hint.into();
        }
        self
    }
}

#[cfg(test)]
mod tests;
