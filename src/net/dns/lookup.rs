//! Where the records of a name are kept: the zone that holds it, the servers of that zone,
//! and the name to which aliases (CNAME) lead. A name that does not exist yet is asked at
//! the servers of its zone and never at a resolver, which would remember that it is missing.

use std::io;
use std::net::{IpAddr, SocketAddr};

use futures_util::future::join_all;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::task::JoinSet;

use super::{PORT, ServerAddress, shown, wire};
use crate::text::printable;

/// The most aliases, and the most delegations below a zone, that are followed.
const MOST_STEPS: usize = 8;
/// The most servers of a zone that are asked.
const MOST_SERVERS: usize = 13;
/// The most addresses of one server.
const MOST_ADDRESSES: usize = 4;
/// The most values of one name that are compared.
const MOST_VALUES: usize = 200;
const SYSTEM: &str = "/etc/resolv.conf";

/// Asks resolvers and the servers of zones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Resolver {
    /// Instead of the system's.
    configured: Option<ServerAddress>,
}

/// A server of a zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NameServer {
    pub(crate) name: Name,
    pub(crate) address: SocketAddr,
}

/// A zone with its servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Zone {
    pub(crate) apex: Name,
    /// The names of its servers, also of those without an address.
    pub(crate) names: Vec<Name>,
    pub(crate) servers: Vec<NameServer>,
}

/// Where the records of a name are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The name, or the one to which its aliases lead.
    pub(crate) name: Name,
    pub(crate) zone: Zone,
}

/// Why no place was found.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum LookupError {
    #[error("the aliases (CNAME) of {0} lead back to it")]
    Loop(String),
    #[error("more than {MOST_STEPS} aliases or delegations lead from {0}")]
    TooLong(String),
    #[error("no zone found that holds {name}: {detail}")]
    NoZone { name: String, detail: String },
    #[error("no DNS resolver answers: {0}")]
    NoResolver(String),
    #[error("the TXT records at {0} have more than 64 KiB, and no server can answer with them")]
    TooLarge(String),
}

impl Place {
    /// For a name whose zone is not known.
    pub(crate) fn unknown(name: Name) -> Self {
        let zone = Zone {
            apex: Name::root(),
            names: Vec::new(),
            servers: Vec::new(),
        };
        Self { name, zone }
    }
}

impl LookupError {
    /// Whether only the zone is unknown.
    pub(crate) fn is_about_the_zone(&self) -> bool {
        matches!(self, Self::NoZone { .. } | Self::NoResolver(_))
    }

    /// The next thing to do.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::Loop(_) | Self::TooLong(_) => {
                "correct the CNAME records: dig +trace CNAME NAME shows each step"
            }
            Self::NoZone { .. } => {
                "check that the domain is registered and delegated: dig SOA NAME; a resolver that knows it can be named with --resolver ADDR:PORT"
            }
            Self::NoResolver(_) => "name a resolver with --resolver ADDR:PORT",
            Self::TooLarge(_) => {
                "remove the old TXT records at that name, at the provider of the zone"
            }
        }
    }
}

/// What a server says about a name.
enum Found {
    Alias(Name),
    /// The zone is delegated further.
    Below(Box<Zone>),
    Here,
}

impl Resolver {
    /// Asks `configured`, else the resolvers of the system.
    pub(crate) fn new(configured: Option<ServerAddress>) -> Self {
        Self { configured }
    }

    /// Where the records of `name` are kept.
    ///
    /// # Errors
    /// When no zone is found, or its aliases do not end.
    pub(crate) async fn place(&self, name: &Name) -> Result<Place, LookupError> {
        let mut seen = vec![name.clone()];
        while let Some(last) = seen.last().cloned() {
            let mut zone = self.zone_of(&last.base_name(), &last).await?;
            let alias = self.alias(&mut zone, &last).await?;
            let Some(alias) = alias else {
                return Ok(Place { name: last, zone });
            };
            if seen.contains(&alias) {
                return Err(LookupError::Loop(shown(name)));
            }
            if seen.len() > MOST_STEPS {
                break;
            }
            seen.push(alias);
        }
        Err(LookupError::TooLong(shown(name)))
    }

    /// The zone that holds `name`, by the resolver's answers; `of` is for messages.
    async fn zone_of(&self, name: &Name, of: &Name) -> Result<Zone, LookupError> {
        let mut name = name.clone();
        let mut detail = String::new();
        while !name.is_root() {
            let reply = self.recurse(&name, RecordType::SOA).await?;
            let mut records = reply.answers.iter().chain(&reply.authorities);
            let apex = records.find(|record| {
                record.record_type() == RecordType::SOA && record.name.zone_of(&name)
            });
            match apex {
                Some(apex) if apex.name.is_root() => {}
                Some(apex) => return Ok(self.zone(apex.name.clone()).await),
                None => {
                    let code = reply.response_code;
                    detail = format!("the resolver answers {} for {}", rcode(code), shown(&name));
                }
            }
            name = name.base_name();
        }
        if detail.is_empty() {
            detail = "its top-level domain does not exist".to_owned();
        }
        let name = shown(of);
        Err(LookupError::NoZone { name, detail })
    }

    async fn zone(&self, apex: Name) -> Zone {
        let reply = self.recurse(&apex, RecordType::NS).await;
        let names = reply.map(|reply| servers_of(&reply, &apex));
        self.with_names(apex, names.unwrap_or_default()).await
    }

    async fn with_names(&self, apex: Name, names: Vec<Name>) -> Zone {
        let addresses = join_all(names.iter().map(|name| self.addresses(name))).await;
        let servers = names.iter().zip(addresses).flat_map(|(name, addresses)| {
            let server = |address| NameServer {
                name: name.clone(),
                address: SocketAddr::new(address, PORT),
            };
            addresses.into_iter().map(server).collect::<Vec<_>>()
        });
        Zone {
            servers: servers.collect(),
            apex,
            names,
        }
    }

    /// The addresses of a host, by the resolver's answers.
    pub(crate) async fn addresses(&self, host: &Name) -> Vec<IpAddr> {
        let kinds = [RecordType::A, RecordType::AAAA];
        let replies = join_all(kinds.map(|kind| self.recurse(host, kind))).await;
        let records = replies.iter().flatten().flat_map(|reply| &reply.answers);
        let addresses = records.filter_map(|record| match &record.data {
            RData::A(address) => Some(IpAddr::V4(address.0)),
            RData::AAAA(address) => Some(IpAddr::V6(address.0)),
            _ => None,
        });
        addresses.take(MOST_ADDRESSES).collect()
    }

    /// The addresses of a host with `port`: by the configured resolver if it knows the host,
    /// else by the system, which also has the names of this machine.
    ///
    /// # Errors
    /// Those of the system.
    pub(crate) async fn hosts(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let is_of_dns = host.contains('.') && host.parse::<IpAddr>().is_err();
        let name = Name::from_ascii(format!("{}.", host.trim_end_matches('.')));
        if let (Ok(name), true, Some(_)) = (name, is_of_dns, self.configured) {
            let found = self.addresses(&name).await;
            if !found.is_empty() {
                return Ok(found
                    .into_iter()
                    .map(|address| (address, port).into())
                    .collect());
            }
        }
        Ok(tokio::net::lookup_host((host, port)).await?.collect())
    }

    /// The alias of `name` in `zone`, which becomes the zone to which it delegates `name`.
    async fn alias(&self, zone: &mut Zone, name: &Name) -> Result<Option<Name>, LookupError> {
        let mut delegated = false;
        for _ in 0..MOST_STEPS {
            let mut found = self.ask_servers(zone, name).await?;
            // A delegation that leads nowhere yet may be ours. Otherwise a firewall may keep
            // this machine from the servers: only then is the resolver asked.
            if found.is_none() && !delegated {
                let reply = self.recurse(name, RecordType::TXT).await?;
                found = self.judge(&reply, zone, name).await;
            }
            match found {
                Some(Found::Alias(alias)) => return Ok(Some(alias)),
                Some(Found::Below(below)) => *zone = *below,
                Some(Found::Here) | None => return Ok(None),
            }
            delegated = true;
        }
        Err(LookupError::TooLong(shown(name)))
    }

    /// What the first server of `zone` that answers says about `name`.
    async fn ask_servers(&self, zone: &Zone, name: &Name) -> Result<Option<Found>, LookupError> {
        // All at once: one that a firewall hides answers after seconds only.
        let mut asked = JoinSet::new();
        for server in &zone.servers {
            let (address, name) = (server.address, name.clone());
            asked.spawn(async move { wire::ask(address, &name, RecordType::TXT, false).await });
        }
        let mut is_too_large = false;
        while let Some(Ok(reply)) = asked.join_next().await {
            match reply {
                Ok(reply) => match self.judge(&reply, zone, name).await {
                    None => {}
                    found => return Ok(found),
                },
                Err(error) => is_too_large |= error.kind() == io::ErrorKind::FileTooLarge,
            }
        }
        match is_too_large {
            true => Err(LookupError::TooLarge(shown(name))),
            false => Ok(None),
        }
    }

    async fn judge(&self, reply: &Message, zone: &Zone, name: &Name) -> Option<Found> {
        let alias = reply.answers.iter().find_map(|record| match &record.data {
            RData::CNAME(alias) if record.name == *name => Some(alias.0.clone()),
            _ => None,
        });
        if let Some(alias) = alias {
            return Some(Found::Alias(alias));
        }
        let below = reply.authorities.iter().find(|record| {
            let owner = &record.name;
            let is_below = zone.apex.zone_of(owner) && zone.apex != *owner && owner.zone_of(name);
            is_below && record.record_type() == RecordType::NS
        });
        if let Some(below) = below {
            let apex = below.name.clone();
            let names = servers_of(reply, &apex);
            let mut below = self.with_names(apex, names).await;
            below.servers.extend(glue(reply, &below));
            return Some(Found::Below(Box::new(below)));
        }
        let is_known = matches!(
            reply.response_code,
            ResponseCode::NoError | ResponseCode::NXDomain
        );
        is_known.then_some(Found::Here)
    }

    /// The TXT values of `name` at a server of its zone.
    ///
    /// # Errors
    /// When it does not answer, or with an error.
    pub(crate) async fn values_at(
        &self,
        server: SocketAddr,
        name: &Name,
    ) -> std::io::Result<Vec<String>> {
        let reply = wire::ask(server, name, RecordType::TXT, false).await?;
        match reply.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain => Ok(values(&reply)),
            code => Err(std::io::Error::other(rcode(code))),
        }
    }

    /// The TXT values of `name` by the resolver's answer, which follows aliases.
    ///
    /// # Errors
    /// When no resolver answers.
    pub(crate) async fn values(&self, name: &Name) -> Result<Vec<String>, LookupError> {
        Ok(values(&self.recurse(name, RecordType::TXT).await?))
    }

    /// Asks the resolvers; an error code of one is an answer too.
    pub(super) async fn recurse(
        &self,
        name: &Name,
        kind: RecordType,
    ) -> Result<Message, LookupError> {
        let mut last = "no resolver is configured".to_owned();
        for server in self.resolvers() {
            match wire::ask(server, name, kind, true).await {
                Ok(reply) => return Ok(reply),
                Err(error) => last = format!("{server}: {}", printable(&error.to_string())),
            }
        }
        Err(LookupError::NoResolver(last))
    }

    /// The configured resolver, else those of the system, whose file may change at any time.
    fn resolvers(&self) -> Vec<SocketAddr> {
        if let Some(configured) = self.configured {
            return vec![configured.0];
        }
        let text = std::fs::read_to_string(SYSTEM).unwrap_or_default();
        match nameservers(&text) {
            none if none.is_empty() => vec![([127, 0, 0, 1], PORT).into()],
            found => found,
        }
    }
}

/// The resolvers of a `resolv.conf`.
fn nameservers(text: &str) -> Vec<SocketAddr> {
    let lines = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let word = words.next().filter(|word| *word == "nameserver");
        word.and_then(|_| words.next()?.parse::<ServerAddress>().ok())
    });
    lines.map(|address| address.0).take(3).collect()
}

/// The name servers of `apex` that `reply` names.
fn servers_of(reply: &Message, apex: &Name) -> Vec<Name> {
    let records = reply.answers.iter().chain(&reply.authorities);
    let names = records.filter_map(|record| match &record.data {
        RData::NS(server) if record.name == *apex => Some(server.0.clone()),
        _ => None,
    });
    names.take(MOST_SERVERS).collect()
}

/// The addresses that a delegation brings for its own servers, if the resolver knew none.
fn glue(reply: &Message, zone: &Zone) -> Vec<NameServer> {
    if !zone.servers.is_empty() {
        return Vec::new();
    }
    let records = reply.additionals.iter();
    let addresses = records.filter_map(|record| {
        let address = match &record.data {
            RData::A(address) => IpAddr::V4(address.0),
            RData::AAAA(address) => IpAddr::V6(address.0),
            _ => return None,
        };
        let is_server = zone.names.contains(&record.name);
        is_server.then(|| NameServer {
            name: record.name.clone(),
            address: SocketAddr::new(address, PORT),
        })
    });
    addresses.take(MOST_SERVERS).collect()
}

fn values(reply: &Message) -> Vec<String> {
    let values = reply
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::TXT(text) => Some(String::from_utf8_lossy(&text.txt_data.concat()).into_owned()),
            _ => None,
        });
    values.take(MOST_VALUES).collect()
}

/// A response code as DNS tools print it, such as `NXDOMAIN`.
pub(crate) fn rcode(code: ResponseCode) -> String {
    match code {
        ResponseCode::Unknown(code) => format!("RCODE{code}"),
        code => format!("{code:?}").to_uppercase(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use tokio::net::UdpSocket;
    use tokio::time::Instant;

    use super::super::wire::tests::boundless_server;
    use super::*;

    /// A zone with these servers.
    fn zone(addresses: impl IntoIterator<Item = SocketAddr>) -> Zone {
        let apex = Name::from_ascii("example.com.").unwrap();
        let server = |address| NameServer {
            name: apex.clone(),
            address,
        };
        Zone {
            servers: addresses.into_iter().map(server).collect(),
            names: Vec::new(),
            apex: apex.clone(),
        }
    }

    fn challenge() -> Name {
        Name::from_ascii("_acme-challenge.example.com.").unwrap()
    }

    #[tokio::test]
    async fn records_that_no_server_can_answer_with_are_named() {
        let mut zone = zone([boundless_server().await]);
        let alias = Resolver::default().alias(&mut zone, &challenge()).await;
        let error = alias.unwrap_err();
        assert_eq!(
            error.to_string(),
            "the TXT records at _acme-challenge.example.com have more than 64 KiB, and no server can answer with them"
        );
        assert!(error.hint().contains("remove the old TXT records"));
        assert!(!error.is_about_the_zone());
    }

    #[tokio::test(start_paused = true)]
    async fn servers_that_a_firewall_hides_are_asked_side_by_side() {
        let mut silent = Vec::new();
        for _ in 0..20 {
            silent.push(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
        }
        let mut zone = zone(silent.iter().map(|socket| socket.local_addr().unwrap()));
        // Then the resolver is asked; none is there.
        let closed = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let resolver = Resolver::new(Some(ServerAddress(closed.local_addr().unwrap())));
        drop(closed);
        let begun = Instant::now();
        let alias = resolver.alias(&mut zone, &challenge()).await;
        assert!(matches!(alias, Err(LookupError::NoResolver(_))));
        let waited = begun.elapsed();
        assert!(waited < Duration::from_secs(15), "{waited:?}");
    }

    #[test]
    fn resolvers_are_read_from_resolv_conf() {
        let text = "# a comment\nsearch lan\nnameserver 192.0.2.1 # first\nnameserver 2001:db8::1\n\
                    nameserver nonsense\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n";
        let found = nameservers(text);
        let shown: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["192.0.2.1:53", "[2001:db8::1]:53", "192.0.2.2:53"]);
    }
}
