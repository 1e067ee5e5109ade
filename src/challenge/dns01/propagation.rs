//! Waits until every server of a zone answers with a value. It is advice: the CA asks other
//! servers than we can see, so that a server that lags for too long, or cannot be reached
//! from here, never stops an order.

use std::io::ErrorKind;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep, timeout_at};

use super::super::Report;
use crate::net::dns::lookup::{NameServer, Place, Resolver};
use crate::net::dns::shown;
use crate::text::printable;

/// How long servers may lag.
const LIMIT: Duration = Duration::from_secs(120);
/// How long a resolver is asked, if no server of the zone can be reached.
const BY_RESOLVER: Duration = Duration::from_secs(20);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How a server answered in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Value,
    /// Until the limit it had no such value.
    Never,
    /// It answers, and not with the values of the name.
    Wrong(String),
    Unreachable(String),
}

/// Which servers of the zone do not answer with the value now, as far as they can be reached
/// from here.
pub(super) async fn missing(resolver: &Resolver, place: &Place, value: &str) -> Option<String> {
    let servers = place.zone.servers.iter();
    let asked = servers.map(async |server| {
        let values = resolver.values_at(server.address, &place.name).await;
        let seen = match values {
            Ok(values) if values.iter().any(|one| one == value) => return None,
            Ok(_) => "without the record".to_owned(),
            Err(error) if answers_wrongly(&error) => printable(&error.to_string()),
            Err(_) => return None,
        };
        let (server, address) = (shown(&server.name), server.address);
        Some(format!(
            "the name server {server} ({address}) answers {seen}"
        ))
    });
    let seen: Vec<String> = join_all(asked).await.into_iter().flatten().collect();
    let name = shown(&place.name);
    (!seen.is_empty()).then(|| format!("{name}: {}", seen.join(", ")))
}

/// Whether the server answered, and not that it could not be reached.
pub(super) fn answers_wrongly(error: &std::io::Error) -> bool {
    use ErrorKind::{FileTooLarge, InvalidData, Other};
    matches!(error.kind(), Other | InvalidData | FileTooLarge)
}

/// Waits until each server of the zone has the value, or the time is over.
pub(in crate::challenge) async fn wait(
    resolver: &Resolver,
    place: &Place,
    value: &str,
    report: &Report,
) {
    if !place.zone.apex.is_root() {
        wait_within(LIMIT, resolver, place, value, report).await;
    }
}

async fn wait_within(
    limit: Duration,
    resolver: &Resolver,
    place: &Place,
    value: &str,
    report: &Report,
) {
    let end = Instant::now() + limit;
    let servers = place.zone.servers.iter();
    let seen = join_all(servers.map(|server| at(resolver, server, place, value, end, report)));
    let seen = seen.await;
    let name = shown(&place.name);
    for (server, seen) in place.zone.servers.iter().zip(&seen) {
        let (server, address) = (shown(&server.name), server.address);
        match seen {
            Seen::Value => {}
            Seen::Never => tracing::warn!(
                "{server} ({address}) does not answer with the record at {name} after {} s; the CA is asked to validate all the same",
                limit.as_secs()
            ),
            Seen::Wrong(why) => tracing::warn!(
                "{server} ({address}) answers {why} for {name}; the CA is asked to validate all the same"
            ),
            Seen::Unreachable(why) => tracing::debug!("{server} ({address}): {why}"),
        }
    }
    if !seen
        .iter()
        .any(|seen| !matches!(seen, Seen::Unreachable(_)))
    {
        by_resolver(resolver, place, value, report).await;
    }
}

async fn at(
    resolver: &Resolver,
    server: &NameServer,
    place: &Place,
    value: &str,
    end: Instant,
    report: &Report,
) -> Seen {
    let (mut pause, mut failed) = (FIRST_PAUSE, 0);
    let asking = async {
        loop {
            let seen = match resolver.values_at(server.address, &place.name).await {
                Ok(values) if values.iter().any(|one| one == value) => return Seen::Value,
                Ok(_) => Seen::Never,
                Err(error) if answers_wrongly(&error) => Seen::Wrong(printable(&error.to_string())),
                Err(error) => Seen::Unreachable(printable(&error.to_string())),
            };
            match seen {
                Seen::Wrong(_) | Seen::Unreachable(_) if failed > 0 => return seen,
                Seen::Wrong(_) | Seen::Unreachable(_) => failed += 1,
                Seen::Value | Seen::Never => {
                    let phase = format!("waiting for the name server {}", shown(&server.name));
                    if pause == FIRST_PAUSE {
                        tracing::info!(
                            "{phase} to answer with the record at {}",
                            shown(&place.name)
                        );
                    }
                    report.say(phase);
                }
            }
            sleep(pause).await;
            pause = (pause * 3 / 2).min(LONGEST_PAUSE);
        }
    };
    timeout_at(end, asking).await.unwrap_or(Seen::Never)
}

/// Asks a resolver from time to time; a missing value may be remembered there for a while.
async fn by_resolver(resolver: &Resolver, place: &Place, value: &str, report: &Report) {
    let name = shown(&place.name);
    let asking = async {
        loop {
            report.say("waiting for the DNS resolver".to_owned());
            let values = resolver.values(&place.name).await.unwrap_or_default();
            if values.iter().any(|one| one == value) {
                return;
            }
            sleep(LONGEST_PAUSE).await;
        }
    };
    if timeout_at(Instant::now() + BY_RESOLVER, asking)
        .await
        .is_err()
    {
        tracing::warn!(
            "no name server of {name} can be reached from here, and the resolver does not see the record; the CA is asked to validate all the same"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::rr::Name;
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;
    use crate::challenge::listen::Listener;
    use crate::challenge::protocol::{Listen, Protocol};
    use crate::challenge::responses::Responses;
    use crate::net::dns::lookup::Zone;

    async fn missing_at(resolver: &Resolver, place: &Place) -> String {
        missing(resolver, place, "value").await.unwrap_or_default()
    }

    #[tokio::test]
    async fn lagging_or_lying_server_is_named_and_stops_nothing() {
        let responses = Responses::default();
        let zones = responses.zones().clone();
        let at = Listen {
            protocol: Protocol::Dns,
            address: (Ipv4Addr::LOCALHOST, 0).into(),
        };
        let listener = Listener::bind(&at, &responses).unwrap();
        let (name, address) = (
            Name::from_ascii("ns2.example.com.").unwrap(),
            listener.addresses()[0],
        );
        let serving = tokio::spawn(listener.serve());
        let apex = Name::from_ascii("_acme-challenge.example.com.").unwrap();
        let place = Place {
            name: apex.clone(),
            zone: Zone {
                apex,
                names: vec![name.clone()],
                servers: vec![NameServer { name, address }],
            },
        };
        zones.add(&place, "another value");
        let (sender, mut phases) = unbounded_channel();
        let (resolver, report) = (Resolver::default(), Report::new(sender));
        let limit = Duration::from_millis(300);
        wait_within(limit, &resolver, &place, "value", &report).await;
        assert_eq!(
            phases.recv().await.unwrap(),
            "waiting for the name server ns2.example.com"
        );
        let seen = missing_at(&resolver, &place).await;
        let words =
            format!("the name server ns2.example.com ({address}) answers without the record");
        assert!(seen.ends_with(&words), "{seen}");
        // The server of another zone does not delay the order, and is named.
        let other = Place {
            name: Name::from_ascii("a.example.org.").unwrap(),
            ..place.clone()
        };
        let seen = missing_at(&resolver, &other).await;
        assert!(seen.ends_with("answers REFUSED"), "{seen}");
        zones.add(&place, "value");
        wait_within(Duration::from_secs(60), &resolver, &place, "value", &report).await;
        serving.abort();
    }
}
