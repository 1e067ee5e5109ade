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
        if order.state.status == OrderStatus::Pending {
            let authorized = self.authorize(&mut order, journal).await;
            authorized.map_err(self.client.at(Phase::Authorization))?;
        } else {
            // An earlier run may have been interrupted after the validation.
            self.clean_up(&[], journal).await;
        }
        let concluded = self.conclude(&mut order, pending).await;
        concluded.map_err(self.client.at(Phase::Finalize))?;
        let chain = self.download(&order).await;
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

#[cfg(test)]
mod tests {
    use super::super::fake::{FakeCa, Memory, NOW, Scripted, issue, pem, pending};
    use super::super::retry::TRIES;
    use super::super::{Client, Issuer};
    use super::*;
    use std::time::Duration;

    async fn run(client: &Client, pending: PendingOrder) -> (Result<String, Cause>, Memory) {
        let mut journal = Memory::default();
        let result = client.issue(pending, &mut journal).await;
        (result.map_err(|error| error.cause), journal)
    }

    #[tokio::test]
    async fn issue_sends_only_the_necessary_requests() {
        let ca = FakeCa::new();
        let client = ca.client();
        issue(&client).await.unwrap();
        let order = [
            "new-order",
            "authorization",
            "challenge",
            "order",
            "finalize",
            "order",
            "certificate",
        ];
        let first = ["directory", "new-nonce", "new-account"];
        assert_eq!(ca.take_endpoints(), [&first[..], &order].concat());
        // The client has the directory, the account and a nonce.
        let (result, _) = run(&client, pending(&["a.example"])).await;
        result.unwrap();
        assert_eq!(ca.take_endpoints(), order);
        ca.issue_at_once();
        run(&client, pending(&["a.example"])).await.0.unwrap();
        let at_once = ["finalize", "certificate"];
        assert_eq!(ca.take_endpoints(), [&order[..4], &at_once].concat());
    }

    #[tokio::test]
    async fn order_is_placed_once_more_without_replaces_after_any_objection() {
        let refusals = [
            (409, "alreadyReplaced"),
            (404, "malformed"),
            (403, "unauthorized"),
            (400, "malformed"),
            // Pebble, for an unknown predecessor.
            (500, "serverInternal"),
        ];
        for (status, kind) in refusals {
            let ca = FakeCa::new();
            let client = ca.client();
            let mut order = pending(&["a.example"]);
            order.replaces = Some("YQ.Yg".into());
            ca.script("new-order", Scripted::problem(status, kind));
            let (result, mut journal) = run(&client, order.clone()).await;
            result.unwrap();
            let sent = ca.payloads("new-order");
            assert_eq!(sent.len(), 2, "{status}");
            assert_eq!(sent[0]["replaces"], "YQ.Yg");
            assert!(sent[1].get("replaces").is_none());
            assert_eq!(journal.orders[0].replaces, None);
            // A refusal without `replaces` is final.
            ca.take_endpoints();
            for _ in 0..=TRIES {
                ca.script("new-order", Scripted::problem(status, kind));
            }
            let final_ones = if status == 500 { TRIES } else { 1 };
            let refused = client.issue(order, &mut journal).await;
            assert!(matches!(
                refused.unwrap_err().cause,
                Cause::Refused(_) | Cause::Unreachable(_)
            ));
            assert_eq!(ca.count("new-order"), 1 + final_ones);
        }
    }

    #[tokio::test]
    async fn order_keeps_replaces_during_an_outage() {
        let ca = FakeCa::new();
        let mut order = pending(&["a.example"]);
        order.replaces = Some("YQ.Yg".into());
        let gateway = Scripted(502, "text/html", "<html>".into(), vec![]);
        ca.persist("new-order", &gateway);
        let (result, _) = run(&ca.client(), order).await;
        assert!(matches!(result, Err(Cause::Unreachable(_))), "{result:?}");
        let sent = ca.payloads("new-order");
        assert_eq!(sent.len(), TRIES);
        assert!(sent.iter().all(|sent| sent["replaces"] == "YQ.Yg"));
    }

    #[tokio::test]
    async fn order_keeps_replaces_at_a_rate_limit() {
        let ca = FakeCa::new();
        let mut order = pending(&["a.example"]);
        order.replaces = Some("YQ.Yg".into());
        ca.script(
            "new-order",
            Scripted::problem(429, "rateLimited").with("retry-after", 90),
        );
        let (result, _) = run(&ca.client(), order).await;
        let Err(Cause::RateLimited {
            message,
            retry_after,
        }) = result
        else {
            panic!("{result:?}")
        };
        assert_eq!(retry_after, Some(Duration::from_secs(90)));
        let until = (NOW + Duration::from_secs(90)).to_string();
        assert!(message.contains(&until), "{message}");
        assert_eq!(ca.count("new-order"), 1);
    }

    #[tokio::test]
    async fn order_omits_replaces_for_a_ca_without_renewal_info() {
        let ca = FakeCa::new();
        let url = |name: &str| format!("https://ca.test/{name}");
        ca.script("directory", Scripted::json(&json!({
            "newNonce": url("new-nonce"), "newAccount": url("new-account"), "newOrder": url("new-order"),
        })));
        let mut order = pending(&["a.example"]);
        order.replaces = Some("YQ.Yg".into());
        run(&ca.client(), order).await.0.unwrap();
        assert!(ca.payloads("new-order")[0].get("replaces").is_none());
    }

    #[tokio::test]
    async fn order_url_is_stored_when_the_body_is_invalid() {
        let ca = FakeCa::new();
        let client = ca.client();
        let invalid = Scripted(201, "application/json", "{".into(), vec![]);
        ca.script(
            "new-order",
            invalid.with("location", "https://ca.test/order/7"),
        );
        let (result, journal) = run(&client, pending(&["a.example"])).await;
        assert!(matches!(result, Err(Cause::Protocol(_))), "{result:?}");
        assert_eq!(
            journal.orders[0].url.as_deref(),
            Some("https://ca.test/order/7")
        );
        for location in ["http://ca.test/order/1", "file:///etc/passwd"] {
            ca.script(
                "new-order",
                Scripted::json(&json!({})).with("location", location),
            );
            let (result, journal) = run(&client, pending(&["a.example"])).await;
            assert!(matches!(result, Err(Cause::Protocol(_))), "{result:?}");
            assert!(journal.orders.is_empty(), "{location} was stored");
        }
    }

    #[tokio::test]
    async fn order_is_resumed_by_its_url_after_a_lost_reply_at_any_step() {
        for endpoint in [
            "authorization",
            "challenge",
            "order",
            "finalize",
            "certificate",
        ] {
            let ca = FakeCa::new();
            ca.lose_reply(endpoint);
            let (result, journal) = run(&ca.client(), pending(&["a.example"])).await;
            assert!(
                matches!(result, Err(Cause::Unreachable(_))),
                "{endpoint}: {result:?}"
            );
            let stored = journal.orders.last().unwrap().clone();
            ca.take_endpoints();
            run(&ca.client(), stored).await.0.unwrap();
            assert_eq!(ca.orders(), 1, "{endpoint}");
            let again = usize::from(!["finalize", "certificate"].contains(&endpoint));
            assert_eq!(ca.count("finalize"), again, "{endpoint}");
        }
    }

    #[tokio::test]
    async fn order_is_placed_again_when_unknown_or_invalid_and_kept_in_an_outage() {
        let ca = FakeCa::new();
        let client = ca.client();
        let mut resumed = pending(&["a.example"]);
        resumed.url = Some("https://ca.test/order/99".into());
        let (result, journal) = run(&client, resumed.clone()).await;
        result.unwrap();
        assert_eq!(
            journal.orders[0].url.as_deref(),
            Some("https://ca.test/order/0")
        );
        let invalid =
            json!({"status": "invalid", "authorizations": [], "finalize": "https://ca.test/f"});
        ca.script("order", Scripted::json(&invalid));
        run(&client, resumed.clone()).await.0.unwrap();
        assert_eq!(ca.orders(), 2);
        for scripted in [
            Scripted::problem(500, "serverInternal"),
            Scripted(502, "text/html", "<p>".into(), vec![]),
        ] {
            ca.persist("order", &scripted);
            let (result, _) = run(&client, resumed.clone()).await;
            assert!(matches!(result, Err(Cause::Unreachable(_))), "{result:?}");
        }
        assert_eq!(ca.orders(), 2);
    }

    #[tokio::test]
    async fn order_not_ready_is_polled_and_finalized_again() {
        let ca = FakeCa::new();
        ca.script("finalize", Scripted::problem(403, "orderNotReady"));
        issue(&ca.client()).await.unwrap();
        assert_eq!((ca.count("finalize"), ca.count("order")), (2, 3));
    }

    #[tokio::test]
    async fn profile_is_sent_with_the_order_only_if_the_ca_offers_it() {
        let ca = FakeCa::new();
        let client = ca.client();
        let mut order = pending(&["a.example"]);
        order.profile = Some("shortlived".into());
        run(&client, order.clone()).await.0.unwrap();
        assert_eq!(ca.payloads("new-order")[0]["profile"], "shortlived");
        order.profile = Some("tlsserver".into());
        let Err(cause) = run(&client, order).await.0 else {
            panic!()
        };
        assert!(
            cause.hint().contains("classic, shortlived"),
            "{}",
            cause.hint()
        );
        assert_eq!(ca.count("new-order"), 1);
    }

    #[tokio::test]
    async fn alternate_chains_are_fetched_only_for_a_preferred_chain() {
        let certificate = |name: &str| {
            let pem_type = "application/pem-certificate-chain";
            Scripted(200, pem_type, pem(name), vec![]).with(
                "link",
                "<https://ca.test/certificate/0/1>;rel=\"alternate\"",
            )
        };
        for (preferred, fetched) in [
            (None, 1),
            (Some("First"), 1),
            (Some("Second"), 2),
            (Some("Third"), 2),
        ] {
            let ca = FakeCa::new();
            ca.script("certificate", certificate("First"));
            ca.script("certificate", certificate("Second"));
            let mut options = ca.settings();
            options.preferred_chain = preferred.map(str::to_owned);
            let chain = issue(&Client::new(options).unwrap()).await.unwrap();
            assert_eq!(ca.count("certificate"), fetched, "{preferred:?}");
            let expected = if preferred == Some("Second") {
                "Second"
            } else {
                "First"
            };
            assert!(topmost(&chain).contains(expected), "{preferred:?}");
        }
    }

    #[tokio::test]
    async fn reply_is_invalid_for_redirects_html_and_unexpected_json() {
        let html = |status| Scripted(status, "text/html", "<p>hello</p>".into(), vec![]);
        let redirect =
            Scripted(302, "", String::new(), vec![]).with("location", "https://ca.test/x");
        for scripted in [redirect, html(200), html(404), Scripted::json(&json!([]))] {
            for endpoint in [
                "new-account",
                "new-order",
                "authorization",
                "order",
                "certificate",
            ] {
                if endpoint == "new-account" && scripted.1 == "application/json" {
                    continue;
                }
                let ca = FakeCa::new();
                ca.script(endpoint, scripted.clone());
                let result = issue(&ca.client()).await.map_err(|error| error.cause);
                assert!(
                    matches!(result, Err(Cause::Protocol(_))),
                    "{endpoint}: {result:?}"
                );
            }
        }
    }

    #[test]
    fn chain_matches_only_by_its_topmost_issuer() {
        let named = |name: &str, issuer: &str| {
            let params = |name: &str| {
                let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
                params.distinguished_name = rcgen::DistinguishedName::new();
                let kind = rcgen::DnType::CommonName;
                params.distinguished_name.push(kind, name);
                params
            };
            let key = || rcgen::KeyPair::generate().unwrap();
            let issuer = rcgen::Issuer::new(params(issuer), key());
            params(name).signed_by(&key(), &issuer).unwrap().pem()
        };
        let (leaf, issuer) = (named("Leaf", "Issuer"), named("Issuer", "Root X1"));
        let root = named("Root X1", "Root X1");
        for chain in [
            format!("{leaf}{issuer}"),
            format!("{leaf}{issuer}{root}"),
            format!("{root}{issuer}{leaf}"),
            format!("{leaf}{leaf}{issuer}"),
        ] {
            assert_eq!(topmost(&chain), ["Root X1".to_owned()].into());
        }
        assert!(topmost("").is_empty());
        let broken = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";
        assert!(topmost(broken).is_empty());
    }
}
