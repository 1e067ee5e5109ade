//! Verification: a TLS handshake with each address of an endpoint compares the served
//! leaf with the new one.
//!
//! The chain is not checked here, since it may be that of a private CA. The question is
//! which certificate is served.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use thiserror::Error;

pub use self::handshake::observe;
pub use self::unseen::Unseen;
use super::endpoint::Endpoint;
use super::starttls::Protocol;
use crate::fingerprint::Fingerprint;
use crate::identifier::Identifier;
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
}

impl VerifyError {
    fn new(endpoint: impl ToString, name: impl ToString, found: &str) -> Self {
        Self {
            endpoint: endpoint.to_string(),
            name: name.to_string(),
            within: String::new(),
            found: found.to_owned(),
        }
    }

    /// The error for a server that no longer listens.
    #[must_use]
    pub fn gone(server: &str, name: impl ToString) -> Self {
        Self::new(server, name, SILENT)
    }

    /// The error of one look that did not see the certificate.
    #[must_use]
    pub fn unseen(endpoint: &ServedAt, name: &Identifier, found: &str) -> Self {
        Self::new(endpoint, name, found)
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
    Found(String, Vec<SocketAddr>),
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
    /// Checks once that `place` serves `wanted` for `name` now.
    ///
    /// # Errors
    /// The certificate that it serves instead, or the failure.
    async fn look(
        &self,
        place: &ServedAt,
        name: &Identifier,
        wanted: &Fingerprint,
    ) -> Result<(), Unseen>;
}

/// A verifier that does TLS handshakes.
#[derive(Debug, Default)]
pub struct Handshake;

#[async_trait]
impl Verifier for Handshake {
    async fn look(
        &self,
        place: &ServedAt,
        name: &Identifier,
        wanted: &Fingerprint,
    ) -> Result<(), Unseen> {
        match place {
            ServedAt::Named(endpoint) => every_address(endpoint, name, wanted).await,
            ServedAt::Found(_, addresses) => each_family(addresses, name, wanted).await,
        }
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
    /// Waits until `place` serves the wanted certificate for each of `names`, and serves
    /// it to every new connection for half a second.
    ///
    /// # Errors
    /// When the time is up, with the certificate that is served instead.
    pub async fn verify(
        &self,
        place: &ServedAt,
        names: &BTreeSet<Identifier>,
    ) -> Result<(), VerifyError> {
        // New workers serve all names.
        let Some(first) = names.first() else {
            return Ok(());
        };
        let (mut pause, mut flaps) = (FIRST_PAUSE, false);
        loop {
            let mut found = Ok(());
            for name in names {
                found = self.seen(place, name, &mut pause).await;
                match (&found, flaps) {
                    (Ok(()), _) => {}
                    // Later rounds report the message below: one cause, one message.
                    (Err(_), true) => break,
                    (Err(found), false) => return Err(VerifyError::new(place, name, found)),
                }
            }
            if found.is_ok() {
                found = self.repeatedly(place, first).await;
            }
            let Err(found) = found else { return Ok(()) };
            flaps = true;
            if self.time_is_up() {
                let found = format!(
                    "only some connections see it, as behind a balancer (verify its servers one by one): {found}"
                );
                return Err(VerifyError::new(place, first, &found));
            }
            self.pause(&mut pause).await;
        }
    }

    async fn seen(
        &self,
        place: &ServedAt,
        name: &Identifier,
        pause: &mut Duration,
    ) -> Result<(), String> {
        loop {
            let Err(unseen) = self.verifier.look(place, name, self.wanted).await else {
                return Ok(());
            };
            if self.time_is_up() {
                return Err(unseen.found);
            }
            self.pause(pause).await;
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
    async fn repeatedly(&self, place: &ServedAt, name: &Identifier) -> Result<(), String> {
        let begun = self.clock.stopwatch();
        for _ in 0..REPEATED_HANDSHAKES {
            self.clock.sleep(HANDSHAKE_PAUSE).await;
            let seen = self.verifier.look(place, name, self.wanted).await;
            seen.map_err(|unseen| unseen.found)?;
            // If one look takes seconds, it is enough.
            let passed = self.clock.stopwatch().saturating_sub(begun);
            if passed > HANDSHAKE_PAUSE * REPEATED_HANDSHAKES {
                break;
            }
        }
        Ok(())
    }
}

/// Other ports may serve other certificates, or no TLS. A port that serves the wanted
/// certificate by IPv4 must also serve it by IPv6 if the server listens on both.
async fn each_family(
    addresses: &[SocketAddr],
    name: &Identifier,
    wanted: &Fingerprint,
) -> Result<(), Unseen> {
    let (mut shown, mut others) = (Vec::new(), Vec::new());
    for address in addresses {
        if !shown.is_empty() && !is_other_family(address, &shown) {
            continue;
        }
        match shows(*address, Protocol::Tls, name, wanted).await {
            Ok(()) => shown.push(*address),
            Err(other) => others.push((address, other)),
        }
    }
    if shown.is_empty() && others.is_empty() {
        return Err("it listens on port 80 only".into());
    }
    others.retain(|(address, _)| shown.is_empty() || is_other_family(address, &shown));
    let others: Vec<Unseen> = others.into_iter().map(|(_, other)| other).collect();
    if others.is_empty() {
        return Ok(());
    }
    let found: Vec<&str> = others.iter().map(|other| other.found.as_str()).collect();
    let ours = others.iter().find(|other| other.shows(name));
    let any = others.iter().find(|other| other.leaf.is_some());
    Err(Unseen {
        found: found.join("; "),
        leaf: ours.or(any).and_then(|other| other.leaf.clone()),
    })
}

/// Whether `shown` has an address of the same port and none of the same family.
fn is_other_family(address: &SocketAddr, shown: &[SocketAddr]) -> bool {
    let mut same_port = shown.iter().filter(|one| one.port() == address.port());
    let there = same_port.clone().next().is_some();
    there && !same_port.any(|one| one.is_ipv6() == address.is_ipv6())
}

async fn every_address(
    endpoint: &Endpoint,
    name: &Identifier,
    wanted: &Fingerprint,
) -> Result<(), Unseen> {
    let host = endpoint.host.to_string();
    let addresses = tokio::net::lookup_host((host.as_str(), endpoint.port)).await;
    let addresses: Vec<_> = addresses.map_err(|error| error.to_string())?.collect();
    if addresses.is_empty() {
        return Err("the host has no address".into());
    }
    for address in addresses {
        shows(address, endpoint.protocol, name, wanted).await?;
    }
    Ok(())
}

async fn shows(
    address: SocketAddr,
    protocol: Protocol,
    name: &Identifier,
    wanted: &Fingerprint,
) -> Result<(), Unseen> {
    let seen = observe(address, protocol, name).await;
    let seen = seen.map_err(|error| format!("{address}: {error}"))?;
    if seen.fingerprint == *wanted {
        return Ok(());
    }
    let found = format!(
        "{address} serves another certificate (SHA-256 {}, valid to {})",
        seen.fingerprint, seen.not_after
    );
    Err(Unseen::other(found, seen))
}

mod handshake;
mod unseen;

#[cfg(test)]
mod tests;
