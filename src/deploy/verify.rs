//! Verification: a TLS handshake with each address of an endpoint compares the served
//! leaf with the new one.
//!
//! The chain is not checked here, since it may be that of a private CA. The question is
//! which certificate is served.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use async_trait::async_trait;
use thiserror::Error;

pub use self::handshake::{Offer, Shown, observe};
use self::unseen::Cause;
pub use self::unseen::Unseen;
use super::endpoint::{Approach, Asked, Endpoint, Place};
use super::proxy_protocol::ProxyProtocol;
use crate::fingerprint::Fingerprint;
use crate::identifier::Identifier;
use crate::net::dns::lookup::Resolver;
use crate::net::sockets::ListenAddress;
use crate::text::printable;
use crate::time::Clock;

/// The problem of a server that was seen before.
pub(crate) const SILENT: &str = "it no longer listens: see its log, and start it";
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Half a second in all, and few enough for a server that limits connections.
const REPEATED_HANDSHAKES: u32 = 5;
const HANDSHAKE_PAUSE: Duration = Duration::from_millis(100);

/// The endpoint did not serve the certificate in time.
#[derive(Debug, Error)]
#[error("{name} is not verified at {endpoint}{within}: {found}")]
pub struct VerifyError {
    /// The endpoint, or the server's name.
    endpoint: String,
    /// The name sent by SNI.
    name: String,
    /// The length of the verification.
    within: String,
    found: String,
    /// Whether nothing of the server could be seen from here.
    is_blind: bool,
    /// Whether our user may not connect to its socket.
    is_denied: bool,
    /// Whether this client has no version or cipher in common with the server.
    is_incapable: bool,
    /// Whether that was so before the deployment, which cannot be its cause.
    was_blind: bool,
}

impl VerifyError {
    fn new(endpoint: impl ToString, name: impl ToString, found: &str) -> Self {
        Self {
            endpoint: endpoint.to_string(),
            name: name.to_string(),
            within: String::new(),
            found: found.to_owned(),
            is_blind: false,
            is_denied: false,
            is_incapable: false,
            was_blind: false,
        }
    }

    /// Takes over why `unseen` says nothing about the server.
    fn because_of(mut self, unseen: &Unseen) -> Self {
        (self.is_blind, self.is_denied) = (unseen.is_blind(), unseen.is_denied());
        self.is_incapable = unseen.is_incapable();
        self
    }

    /// Compares it with a look before the deployment, which was blind or not.
    #[must_use]
    pub fn compared(mut self, was_blind: bool) -> Self {
        self.was_blind = self.is_blind && was_blind;
        self
    }

    /// Whether the server could not be seen before the deployment either: no reason to
    /// roll back.
    #[must_use]
    pub fn was_blind(&self) -> bool {
        self.was_blind
    }

    /// The error for a server that no longer shows its addresses, and why.
    #[must_use]
    pub fn gone(server: &str, name: impl ToString, why: &str) -> Self {
        Self::new(server, name, why)
    }

    /// The error of one look that did not see the certificate.
    #[must_use]
    pub fn unseen(endpoint: &ServedAt, name: &Identifier, unseen: &Unseen) -> Self {
        let is_denied = unseen.is_denied();
        Self {
            is_denied,
            ..Self::new(endpoint, name, &printable(&unseen.found))
        }
    }

    /// What was found instead.
    #[must_use]
    pub fn found(&self) -> &str {
        &self.found
    }

    /// Adds the length of the verification, and its cause if it is known.
    #[must_use]
    pub fn after(mut self, waited: Duration, cause: Option<String>) -> Self {
        self.within = format!(" within {} s", waited.as_secs());
        if let Some(cause) = cause {
            self.found = format!("{}; {cause}", self.found);
        }
        self
    }

    /// The next thing to do.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        if self.is_denied {
            return "the certificate is stored and deployed; let that user write to the socket and search the directories above it, or name HOST:PORT of the server in front with --verify, then run this again: nothing is ordered twice";
        }
        if self.is_incapable {
            return "the certificate is stored and deployed; let the server offer TLS 1.3, or 1.2 with ECDHE and AEAD, over TCP, then run this again: nothing is ordered twice";
        }
        if self.is_blind {
            return "the certificate is stored and deployed; name an address of the server that this machine reaches with --verify HOST:PORT, then run this again: nothing is ordered twice";
        }
        "the certificate is stored; check that the server there reads it (the path below live/) and was reloaded, then run this again: nothing is ordered twice"
    }
}

/// Where a certificate must be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServedAt {
    /// Every address of a configured endpoint.
    Named(Endpoint),
    /// The addresses on which this server listens: one of them must serve the
    /// certificate, and so must its port in the other address family.
    Found(String, Vec<ListenAddress>),
}

impl ServedAt {
    /// The names of a certificate that are asked for here.
    fn asked<'a>(&'a self, names: &'a BTreeSet<Identifier>) -> Asked<'a> {
        match self {
            Self::Named(endpoint) => endpoint.asked(names),
            Self::Found(..) => Asked {
                names: names.iter().collect(),
                all: false,
            },
        }
    }
}

impl fmt::Display for ServedAt {
    /// The endpoint, or the server's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(endpoint) => endpoint.fmt(f),
            Self::Found(server, _) => f.write_str(server),
        }
    }
}

/// Looks at the certificate that is served.
#[async_trait]
pub trait Verifier: Send + Sync {
    /// Checks once that `place` serves `wanted` for `name` now. Returns the addresses that
    /// could not be reached, each with the error: the others serve it.
    ///
    /// # Errors
    /// The certificate that it serves instead, or the failure.
    async fn look(
        &self,
        place: &ServedAt,
        name: &Identifier,
        wanted: &Fingerprint,
    ) -> Result<Unreached, Unseen>;

    /// Whether all of `addresses` are Unix sockets whose servers speak no TLS: that is before
    /// them, and they are not verified.
    async fn is_plain(&self, _addresses: &[ListenAddress], _name: &Identifier) -> bool {
        false
    }
}

/// The addresses that could not be reached, each with the error.
pub type Unreached = Vec<String>;

/// Looks at `place` for the first of `names` that it answers to, from that at `turn` on.
/// One look is enough where it answers to the first.
///
/// # Errors
/// As for [`Verifier::look`].
pub(crate) async fn look_once(
    verifier: &dyn Verifier,
    place: &ServedAt,
    names: &BTreeSet<Identifier>,
    wanted: &Fingerprint,
    turn: impl Fn(usize) -> usize,
) -> Result<(), (Identifier, Unseen)> {
    let asked = place.asked(names);
    let mut order = asked.names;
    let turn = turn(order.len()).min(order.len());
    order.rotate_left(turn);
    let mut ended = Ok(());
    for name in order {
        match verifier.look(place, name, wanted).await {
            Ok(_) => return Ok(()),
            Err(unseen) if !asked.all && unseen.is_of_another_site(name) => {
                ended = Err((name.clone(), unseen));
            }
            Err(unseen) => return Err((name.clone(), unseen)),
        }
    }
    ended
}

/// A verifier that does TLS handshakes.
#[derive(Clone, Debug, Default)]
pub struct Handshake {
    resolver: Resolver,
}

impl Handshake {
    /// The same, which looks up the hosts of endpoints by `resolver`.
    pub(crate) fn by(resolver: Resolver) -> Self {
        Self { resolver }
    }
}

#[async_trait]
impl Verifier for Handshake {
    async fn look(
        &self,
        place: &ServedAt,
        name: &Identifier,
        wanted: &Fingerprint,
    ) -> Result<Unreached, Unseen> {
        match place {
            ServedAt::Named(endpoint) => {
                let addresses = match &endpoint.place {
                    Place::Host(host, port) => {
                        let addresses = { &self.resolver }.hosts(&host.to_string(), *port).await;
                        let addresses = addresses.map_err(|error| Unseen::unreachable(&error))?;
                        addresses.into_iter().map(ListenAddress::Tcp).collect()
                    }
                    Place::Unix(path) => vec![ListenAddress::Unix(path.clone())],
                };
                every_address(addresses, endpoint.approach, name, wanted).await
            }
            ServedAt::Found(_, addresses) => each_family(addresses, name, wanted).await,
        }
    }

    async fn is_plain(&self, addresses: &[ListenAddress], name: &Identifier) -> bool {
        for address in addresses {
            if address.tcp().is_some() {
                return false;
            }
            let shown = shown_at(address, &mut Approach::default(), name).await;
            if !shown.is_err_and(|unseen| unseen.is_plain()) {
                return false;
            }
        }
        true
    }
}

/// The certificate to verify, and the end of the wait.
pub struct Verification<'a> {
    /// Does the handshakes.
    pub verifier: &'a dyn Verifier,
    /// The fingerprint of its leaf.
    pub wanted: &'a Fingerprint,
    /// The clock to wait by.
    pub clock: &'a dyn Clock,
    /// The end of the wait, by the clock's stopwatch.
    pub end: Duration,
}

impl Verification<'_> {
    /// Waits until `place` serves the wanted certificate for those of `names` that are asked
    /// for there, and serves it to every new connection for half a second.
    ///
    /// # Errors
    /// When the time is up, with the certificate that is served instead.
    pub async fn verify(
        &self,
        place: &ServedAt,
        names: &BTreeSet<Identifier>,
    ) -> Result<(), VerifyError> {
        let asked = place.asked(names);
        let (mut pause, mut flaps) = (FIRST_PAUSE, false);
        loop {
            let ended = match self.round(place, &asked).await {
                Ok(Some((name, unreached))) => {
                    let repeated = self.repeatedly(place, name).await;
                    flaps |= repeated.is_err();
                    repeated.map(|()| unreached).map_err(|found| (name, found))
                }
                Ok(None) => Ok(Vec::new()),
                Err(found) => Err(found),
            };
            let (name, unseen) = match ended {
                Ok(unreached) => {
                    for address in unreached {
                        tracing::warn!("{place}: {address}; judged by its other addresses");
                    }
                    return Ok(());
                }
                Err(found) => found,
            };
            if self.time_is_up() {
                let found = match flaps {
                    true => &format!(
                        "only some connections see it, as behind a balancer (verify its servers one by one): {unseen}"
                    ),
                    false => &unseen.found,
                };
                return Err(VerifyError::new(place, name, found).because_of(&unseen));
            }
            self.pause(&mut pause).await;
        }
    }

    /// Looks once for each name. Returns the first that the endpoint answers to.
    async fn round<'a>(
        &self,
        place: &ServedAt,
        asked: &Asked<'a>,
    ) -> Result<Option<(&'a Identifier, Unreached)>, (&'a Identifier, Unseen)> {
        let (mut shown, mut other) = (None, None);
        for name in &asked.names {
            match self.verifier.look(place, name, self.wanted).await {
                Ok(unreached) => shown = shown.or(Some((*name, unreached))),
                Err(unseen) if !asked.all && unseen.is_of_another_site(name) => {
                    other = other.or(Some((*name, unseen)));
                }
                Err(unseen) => return Err((name, unseen)),
            }
        }
        match (shown, other) {
            (None, Some(other)) => Err(other),
            (shown, _) => Ok(shown),
        }
    }

    fn time_is_up(&self) -> bool {
        self.clock.stopwatch() >= self.end
    }

    /// Sleeps, longer each time.
    async fn pause(&self, pause: &mut Duration) {
        let left = self.end.saturating_sub(self.clock.stopwatch());
        self.clock.sleep(left.min(*pause)).await;
        *pause = (*pause * 2).min(LONGEST_PAUSE);
    }

    /// After a reload, old and new workers serve side by side for a moment: with nginx both
    /// accept connections for at least 100 ms, and a balancer has several servers. One
    /// connection that sees the new pair does not show what the next one sees.
    async fn repeatedly(&self, place: &ServedAt, name: &Identifier) -> Result<(), Unseen> {
        let begun = self.clock.stopwatch();
        for _ in 0..REPEATED_HANDSHAKES {
            self.clock.sleep(HANDSHAKE_PAUSE).await;
            self.verifier.look(place, name, self.wanted).await?;
            // If one look takes seconds, it is enough.
            let passed = self.clock.stopwatch().saturating_sub(begun);
            if passed > HANDSHAKE_PAUSE * REPEATED_HANDSHAKES {
                break;
            }
        }
        Ok(())
    }
}

/// Other ports and sockets may serve other certificates, or no TLS. A port that serves the
/// wanted certificate by IPv4 must also serve it by IPv6 if the server listens on both, and
/// this machine has a route there.
async fn each_family(
    addresses: &[ListenAddress],
    name: &Identifier,
    wanted: &Fingerprint,
) -> Result<Unreached, Unseen> {
    let (mut shown, mut others) = (Vec::new(), Vec::new());
    for address in addresses {
        if !shown.is_empty() && !is_other_family(address, &shown) {
            continue;
        }
        let mut seen = shows(address, Approach::default(), name, wanted).await;
        if let Some(by_v4) = by_v4(address, addresses, &seen) {
            match shows(&by_v4, Approach::default(), name, wanted).await {
                Err(other) if other.leaf().is_none() => {}
                by_v4 => seen = by_v4,
            }
        }
        match seen {
            Ok(()) => shown.push(address),
            Err(other) => others.push((address, other)),
        }
    }
    if shown.is_empty() && others.is_empty() {
        return Err("it listens on port 80 only".into());
    }
    others.retain(|(address, _)| shown.is_empty() || is_other_family(address, &shown));
    let others = others.into_iter().map(|(_, other)| other);
    let (unrouted, others): (Vec<_>, Vec<_>) =
        others.partition(|other| !shown.is_empty() && matches!(other.cause, Cause::NoRoute));
    match Unseen::join(others, name) {
        Some(other) => Err(other),
        None => Ok(unrouted.into_iter().map(|other| other.found).collect()),
    }
}

/// Without IPv6, a socket for both families is reached by IPv4 alone.
fn by_v4(
    address: &ListenAddress,
    others: &[ListenAddress],
    seen: &Result<(), Unseen>,
) -> Option<ListenAddress> {
    let (address, cause) = (address.tcp()?, &seen.as_ref().err()?.cause);
    let by_v4 = ListenAddress::Tcp((Ipv4Addr::LOCALHOST, address.port()).into());
    let is_any = address.ip() == Ipv6Addr::LOCALHOST && !others.contains(&by_v4);
    (is_any && matches!(cause, Cause::NoRoute)).then_some(by_v4)
}

/// Whether `shown` has an address of the same port and none of the same family.
fn is_other_family(address: &ListenAddress, shown: &[&ListenAddress]) -> bool {
    let Some(address) = address.tcp() else {
        return false;
    };
    let shown = shown.iter().filter_map(|one| one.tcp());
    let mut same_port = shown.filter(|one| one.port() == address.port());
    let there = same_port.clone().next().is_some();
    there && !same_port.any(|one| one.is_ipv6() == address.is_ipv6())
}

/// An address that cannot be reached is left out if another one can.
async fn every_address(
    addresses: Vec<ListenAddress>,
    approach: Approach,
    name: &Identifier,
    wanted: &Fingerprint,
) -> Result<Unreached, Unseen> {
    let (mut unreached, mut is_shown) = (Vec::new(), false);
    for address in addresses {
        match shows(&address, approach, name, wanted).await {
            Ok(()) => is_shown = true,
            Err(unseen) => match unseen.cause {
                Cause::NoRoute | Cause::Unreachable | Cause::Denied => unreached.push(unseen),
                _ => return Err(unseen),
            },
        }
    }
    if is_shown {
        return Ok(unreached.into_iter().map(|unseen| unseen.found).collect());
    }
    Err(Unseen::join(unreached, name).unwrap_or_else(|| "the host has no address".into()))
}

/// The certificate that is shown, and the approach by which it is.
async fn shown_at(
    address: &ListenAddress,
    approach: &mut Approach,
    name: &Identifier,
) -> Result<Shown, Unseen> {
    let seen = observe(address, *approach, name, Offer::All).await;
    // A server behind a balancer closes a connection that begins without its header.
    if let Err(unseen) = &seen
        && matches!(unseen.cause, Cause::Closed)
        && approach.proxy_protocol.is_none()
    {
        let proxy_protocol = Some(ProxyProtocol::V1);
        let behind = Approach {
            proxy_protocol,
            ..*approach
        };
        let shown = observe(address, behind, name, Offer::All).await;
        if shown.is_ok() || shown.as_ref().is_err_and(Unseen::is_plain) {
            *approach = behind;
            return shown;
        }
    }
    seen
}

async fn shows(
    address: &ListenAddress,
    mut approach: Approach,
    name: &Identifier,
    wanted: &Fingerprint,
) -> Result<(), Unseen> {
    let seen = shown_at(address, &mut approach, name).await;
    let seen = seen.map_err(|unseen| unseen.at(address))?;
    if seen.facts.fingerprint == *wanted {
        return Ok(());
    }
    // A server may have one certificate for each kind of key.
    let other = observe(address, approach, name, seen.other_offer()).await;
    if other.is_ok_and(|other| other.facts.fingerprint == *wanted) {
        return Ok(());
    }
    let found = format!(
        "{address} serves another certificate (SHA-256 {}, valid to {})",
        seen.facts.fingerprint, seen.facts.not_after
    );
    Err(Unseen::other(found, seen.facts))
}

mod handshake;
mod unseen;

#[cfg(test)]
mod tests;
