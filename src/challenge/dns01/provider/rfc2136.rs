//! Dynamic updates (RFC 2136), signed by TSIG (RFC 8945), of any authoritative server that
//! takes them: BIND, Knot, PowerDNS, Windows. One update adds or removes one value.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hickory_proto::op::{Message, ResponseCode, update_message};
use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::rdata::tsig::{TsigAlgorithm, TsigError};
use hickory_proto::rr::{Name, RData, RecordSet, RecordType, TSigner};

use super::super::Failed;
use super::{Credentials, Field, Kind, Provider, Txt};
use crate::net::dns::lookup::{Resolver, rcode};
use crate::net::dns::{PORT, ServerAddress, wire};
use crate::text::printable;
use crate::time::{Clock, SystemClock};

const SERVER: &str = "server";
const NAME: &str = "tsig_name";
const SECRET: &str = "tsig_secret";
const ALGORITHM: &str = "tsig_algorithm";

pub(super) const KIND: Kind = Kind {
    name: "rfc2136",
    fields: &[
        Field::required(SERVER),
        Field::optional(NAME),
        Field::optional(SECRET),
        Field::optional(ALGORITHM),
    ],
    build: |credentials, resolver, _| {
        Ok(Arc::new(Rfc2136 {
            server: Server::parse(credentials.text(SERVER)?)?,
            signer: signer(credentials)?,
            resolver: resolver.clone(),
        }))
    },
};

/// The lifetime of a value in caches, in seconds.
const TTL: u32 = 60;
/// The largest difference between both clocks, in seconds, as BIND has it.
const FUDGE: u16 = 300;

/// The algorithms by the names that BIND gives them.
const ALGORITHMS: [(&str, TsigAlgorithm); 3] = [
    ("hmac-sha256", TsigAlgorithm::HmacSha256),
    ("hmac-sha384", TsigAlgorithm::HmacSha384),
    ("hmac-sha512", TsigAlgorithm::HmacSha512),
];

struct Rfc2136 {
    server: Server,
    signer: Option<TSigner>,
    resolver: Resolver,
}

/// The server that takes the updates.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Server {
    Address(SocketAddr),
    Host(Name, u16),
}

impl Server {
    /// An address or a host name, with a port if it is not 53.
    fn parse(text: &str) -> Result<Self, String> {
        if let Ok(ServerAddress(address)) = text.parse() {
            return Ok(Self::Address(address));
        }
        let invalid = || {
            let text = printable(text);
            format!("invalid `server` `{text}`: write HOST, HOST:PORT or an address")
        };
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| invalid())?),
            None => (text, PORT),
        };
        let is_host = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        let host = Some(host).filter(|host| !host.is_empty() && host.chars().all(is_host));
        let mut name = Name::from_ascii(host.ok_or_else(invalid)?).map_err(|_| invalid())?;
        name.set_fqdn(true);
        Ok(Self::Host(name, port))
    }
}

fn signer(credentials: &Credentials) -> Result<Option<TSigner>, String> {
    let Some(name) = credentials.get(NAME) else {
        return match credentials.get(SECRET) {
            Some(_) => Err(format!("`{SECRET}` without `{NAME}`")),
            None => Ok(None),
        };
    };
    let name = Name::from_ascii(name.trim()).map_err(|_| format!("invalid `{NAME}`"))?;
    let secret = credentials.get(SECRET);
    let secret = secret.ok_or_else(|| format!("`{NAME}` without `{SECRET}`"))?;
    let secret = STANDARD
        .decode(secret.trim())
        .ok()
        .filter(|key| !key.is_empty());
    let secret = secret.ok_or_else(|| {
        format!("`{SECRET}` is not base64: take the text after `secret` that tsig-keygen prints")
    })?;
    let given = credentials.get(ALGORITHM).unwrap_or(ALGORITHMS[0].0);
    let known = |given: &str| given.trim().trim_end_matches('.').to_ascii_lowercase();
    let mut all = ALGORITHMS.into_iter();
    let found = all.find(|(name, _)| *name == known(given));
    let (_, algorithm) = found.ok_or_else(|| {
        let names = ALGORITHMS.map(|(name, _)| name).join(", ");
        format!(
            "unknown `{ALGORITHM}` `{}`: one of {names}",
            printable(given)
        )
    })?;
    let signer = TSigner::new(secret, algorithm, name, FUDGE);
    signer.map(Some).map_err(|error| error.to_string())
}

impl Rfc2136 {
    async fn change(&self, txt: &Txt, adds: bool) -> Result<(), Failed> {
        let place = &txt.place;
        let mut values = RecordSet::with_ttl(place.name.clone(), RecordType::TXT, TTL);
        values.add_rdata(RData::TXT(TXT::new(vec![txt.value.clone()])));
        let zone = place.zone.apex.clone();
        let mut message = match adds {
            true => update_message::append(values, zone, false, false),
            false => update_message::delete_by_rdata(values, zone, false),
        };
        let sent = self.send(&mut message).await;
        let reply = sent.map_err(|detail| {
            Failed::new(
                format!("the DNS server {} took no update: {detail}", self.shown()),
                "check CERTS_DNS_RFC2136_SERVER, and that the server answers DNS over TCP",
            )
        })?;
        match reply.response_code {
            ResponseCode::NoError => Ok(()),
            _ => Err(self.refused(txt, &reply)),
        }
    }

    async fn send(&self, message: &mut Message) -> Result<Message, String> {
        let server = self.address().await?;
        let mut verifier = None;
        if let Some(signer) = &self.signer {
            let now = SystemClock.now().seconds();
            let now = u64::try_from(now).unwrap_or_default();
            verifier = message
                .finalize(signer, now)
                .map_err(|error| error.to_string())?;
        }
        let bytes = message.to_vec().map_err(|error| error.to_string())?;
        let shown = |error: io::Error| printable(&error.to_string());
        let reply = wire::over_tcp(server, &bytes).await.map_err(shown)?;
        let read = wire::read(&reply).map_err(shown)?;
        if read.id != message.id {
            return Err("its reply has another identifier".to_owned());
        }
        // A refusal need not be signed: a wrong key cannot sign it.
        if let (Some(verifier), ResponseCode::NoError) = (&mut verifier, read.response_code) {
            let verified = verifier.verify(&reply);
            verified
                .map_err(|error| format!("its reply is not signed by the TSIG key: {error}"))?;
        }
        Ok(read)
    }

    async fn address(&self) -> Result<SocketAddr, String> {
        match &self.server {
            Server::Address(address) => Ok(*address),
            Server::Host(name, port) => {
                let found = self.resolver.addresses(name).await;
                let first = found.first().ok_or("its name has no address")?;
                Ok((*first, *port).into())
            }
        }
    }

    fn shown(&self) -> String {
        match &self.server {
            Server::Address(address) => address.to_string(),
            Server::Host(name, port) => format!("{}:{port}", crate::net::dns::shown(name)),
        }
    }

    fn refused(&self, txt: &Txt, reply: &Message) -> Failed {
        let code = rcode(reply.response_code);
        let tsig = reply.signature().and_then(|tsig| tsig.data.error);
        let key = self
            .signer
            .as_ref()
            .map(|signer| crate::net::dns::shown(signer.signer_name()));
        let key = key.unwrap_or_default();
        let (code, hint) = match (tsig, reply.response_code) {
            (Some(TsigError::BadKey), _) => (
                format!("{code} (BADKEY)"),
                format!(
                    "the server does not know the key {key} with this algorithm: compare CERTS_DNS_RFC2136_TSIG_NAME and CERTS_DNS_RFC2136_TSIG_ALGORITHM with its `key` block"
                ),
            ),
            (Some(TsigError::BadSig), _) => (
                format!("{code} (BADSIG)"),
                format!(
                    "the server has another secret for the key {key}: correct CERTS_DNS_RFC2136_TSIG_SECRET"
                ),
            ),
            (Some(TsigError::BadTime), _) => (
                format!("{code} (BADTIME)"),
                "the clocks of this machine and the server differ: set both, best by NTP"
                    .to_owned(),
            ),
            (_, ResponseCode::NotAuth | ResponseCode::NotZone) => (
                code,
                format!(
                    "the server is not the primary one of {}: name that one with CERTS_DNS_RFC2136_SERVER",
                    txt.zone()
                ),
            ),
            (_, ResponseCode::Refused) => (
                code,
                format!(
                    "the server does not let this key change {}: in BIND, add `grant KEY name {}. TXT;` to the zone's update-policy",
                    txt.fqdn, txt.fqdn
                ),
            ),
            _ => (code, "the log of the DNS server has the reason".to_owned()),
        };
        Failed::new(
            format!(
                "the DNS server {} refuses to change {} in zone {}: {code}",
                self.shown(),
                txt.fqdn,
                txt.zone()
            ),
            hint,
        )
    }
}

#[async_trait]
impl Provider for Rfc2136 {
    fn name(&self) -> &str {
        KIND.name
    }

    fn resolver(&self) -> Option<ServerAddress> {
        match self.server {
            Server::Address(address) => Some(ServerAddress(address)),
            Server::Host(..) => None,
        }
    }

    async fn add(&self, txt: &Txt) -> Result<(), Failed> {
        self.change(txt, true).await
    }

    async fn remove(&self, txt: &Txt) -> Result<(), Failed> {
        self.change(txt, false).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::Secret;

    fn credentials(pairs: &[(&str, &str)]) -> Credentials {
        let pairs = pairs.iter();
        let pairs = pairs.map(|(key, value)| ((*key).to_owned(), Secret::new((*value).to_owned())));
        Credentials(pairs.collect())
    }

    #[test]
    fn server_is_an_address_or_a_host_name() {
        let parse = |text: &str| {
            Server::parse(text).map(|server| match server {
                Server::Address(address) => address.to_string(),
                Server::Host(name, port) => format!("{name} {port}"),
            })
        };
        assert_eq!(parse("192.0.2.1").unwrap(), "192.0.2.1:53");
        assert_eq!(parse("[2001:db8::1]:5353").unwrap(), "[2001:db8::1]:5353");
        assert_eq!(parse("ns1.example.com").unwrap(), "ns1.example.com. 53");
        assert_eq!(
            parse("ns1.example.com:5353").unwrap(),
            "ns1.example.com. 5353"
        );
        for text in ["", ":53", "ns1:port", "a b", "udp://ns1:53", "\u{1b}[2J"] {
            let error = parse(text).unwrap_err();
            assert!(!error.contains('\u{1b}'), "{error}");
        }
    }

    #[test]
    fn key_is_complete_and_its_errors_show_no_secret() {
        let secret = "c2VjcmV0LW9mLXRoaXMtdGVzdA==";
        let key = |pairs: &[(&str, &str)]| signer(&credentials(pairs)).map(|key| key.is_some());
        assert_eq!(key(&[]), Ok(false));
        assert_eq!(key(&[(NAME, "acme."), (SECRET, secret)]), Ok(true));
        let sha512 = (ALGORITHM, "HMAC-SHA512.");
        assert_eq!(key(&[(NAME, "acme"), (SECRET, secret), sha512]), Ok(true));
        for (pairs, wrong) in [
            (vec![(NAME, "acme")], "without `tsig_secret`"),
            (vec![(SECRET, secret)], "without `tsig_name`"),
            (vec![(NAME, "acme"), (SECRET, "!secret!")], "not base64"),
            (
                vec![(NAME, "acme"), (SECRET, secret), (ALGORITHM, "hmac-md5")],
                "unknown `tsig_algorithm`",
            ),
        ] {
            let error = key(&pairs).unwrap_err();
            assert!(error.contains(wrong), "{error}");
            assert!(
                !error.contains("!secret!") && !error.contains(secret),
                "{error}"
            );
        }
    }
}
