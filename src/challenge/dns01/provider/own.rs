//! `--dns self`: no provider and no credentials. The user delegates a name to this machine
//! once, and the [`responder`](super::super::responder) answers for it.

use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;

use async_trait::async_trait;

use super::super::super::responses::Responses;
use super::super::Failed;
use super::super::propagation::answers_wrongly;
use super::{Kind, Provider, SELF, Txt};
use crate::challenge::SolverError;
use crate::failure::advice;
use crate::net::dns::lookup::Resolver;

pub(super) const KIND: Kind = Kind {
    name: SELF,
    fields: &[],
    build: |_, resolver, responses| {
        let (resolver, responses) = (resolver.clone(), responses.clone());
        Ok(Arc::new(Own {
            resolver,
            responses,
        }))
    },
};

const STORE_HINT: &str = "check that this machine reaches the store of its fleet";

fn not_shared(error: &SolverError) -> Failed {
    Failed::new(error.to_string(), advice(error).unwrap_or(STORE_HINT))
}

struct Own {
    resolver: Resolver,
    responses: Responses,
}

impl Own {
    fn not_delegated(txt: &Txt, seen: &str) -> Failed {
        let (asked, zone) = (&txt.asked, txt.zone());
        let base = asked.split_once("_acme-challenge.");
        let base = base.map_or(asked.as_str(), |(_, base)| base);
        let address = public_address();
        let kind = if address.as_ref().is_some_and(IpAddr::is_ipv6) {
            "AAAA"
        } else {
            "A"
        };
        let address = address.map_or("PUBLIC-ADDRESS".to_owned(), |address| address.to_string());
        Failed::new(
            format!(
                "{asked} is not delegated to this machine: {seen}; with --dns self, its zone {zone} needs these records:\n  {asked}.  3600  IN  NS  acme-dns.{base}.\n  acme-dns.{base}.  3600  IN  {kind}  {address}"
            ),
            "create the two records once, with the public address of this machine, and let port 53 (UDP and TCP) reach it; then run the same command again",
        )
    }
}

/// The address from which this machine reaches the internet; nothing is sent.
fn public_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:53").ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[async_trait]
impl Provider for Own {
    fn name(&self) -> &str {
        SELF
    }

    async fn add(&self, txt: &Txt) -> Result<(), Failed> {
        self.responses.zones().add(&txt.place, &txt.value);
        let shared = self.responses.share_value(&txt.place, &txt.value).await;
        shared.map_err(|error| not_shared(&error))
    }

    async fn remove(&self, txt: &Txt) -> Result<(), Failed> {
        self.responses.zones().remove(&txt.place, &txt.value);
        let taken = self.responses.withdraw_value(&txt.place, &txt.value).await;
        taken.map_err(|error| not_shared(&error))
    }

    /// In a fleet, the store keeps the values.
    fn leaves_traces(&self) -> bool {
        self.responses.fleet().is_some()
    }

    /// A server that cannot be reached from here may be this machine behind its router.
    async fn reaches(&self, txt: &Txt) -> Result<(), Failed> {
        let mut seen = None;
        for server in &txt.place.zone.servers {
            let values = self
                .resolver
                .values_at(server.address, &txt.place.name)
                .await;
            let answer = match values {
                Ok(values) if values.contains(&txt.value) => return Ok(()),
                Ok(_) => "without the record".to_owned(),
                Err(error) if answers_wrongly(&error) => error.to_string(),
                Err(_) => continue,
            };
            let (name, address) = (crate::net::dns::shown(&server.name), server.address);
            seen = Some(format!("{name} ({address}) answers {answer}"));
        }
        match seen {
            Some(seen) => Err(Self::not_delegated(txt, &seen)),
            None if txt.place.zone.servers.is_empty() => {
                Err(Self::not_delegated(txt, "its name servers have no address"))
            }
            None => Ok(()),
        }
    }
}
