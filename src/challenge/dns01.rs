//! DNS-01 (RFC 8555 section 8.4): a TXT record at `_acme-challenge.NAME`, or at the name to
//! which an alias (CNAME) there leads. A [`provider`] adds and removes the value; several
//! values stand side by side, as a wildcard and its base name need. [`propagation`] waits
//! until every server of the zone has it. The only kind of challenge for wildcards.

pub(super) mod propagation;
mod provider;
pub(crate) mod responder;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hickory_proto::rr::Name;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use self::provider::{Credentials, Provider, SELF, Txt};
use super::protocol::{Listen, Protocol};
use super::responses::Responses;
use super::{Answer, ChallengeKind, Report, Solver, SolverError, SolverSettings, Unfit};
use crate::certificate::Secret;
use crate::identifier::Identifier;
use crate::net::dns::ServerAddress;
use crate::net::dns::lookup::{LookupError, Place, Resolver};

pub(crate) use self::provider::{fields, names, unknown, variable};

/// The deadline for the zone of one name, and for one change at a provider.
const DEADLINE: Duration = Duration::from_secs(60);

/// The provider of the records, with its credentials: they are stored with a certificate,
/// since a renewal must not need the files and variables of the first command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The name of the provider.
    provider: String,
    /// The name of its credentials in the configuration.
    name: String,
    #[serde(default, skip_serializing_if = "Credentials::is_empty")]
    credentials: Credentials,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    resolver: Option<ServerAddress>,
    /// Where `self` answers; an empty list means port 53 of all addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    listen: Vec<SocketAddr>,
    /// DNS-ACCOUNT-01: the records are at a name of the account's own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    by_account: bool,
}

impl Settings {
    /// For DNS-ACCOUNT-01.
    pub(super) fn by_account() -> Self {
        Self {
            by_account: true,
            ..Self::default()
        }
    }

    /// The settings for the credentials `name` of `provider`.
    pub(crate) fn new(
        provider: String,
        name: String,
        credentials: BTreeMap<String, Secret>,
    ) -> Self {
        Self {
            provider,
            name,
            credentials: Credentials(credentials),
            ..Self::default()
        }
    }

    /// Asks `resolver`, and lets `self` answer at `listen`.
    #[must_use]
    pub(crate) fn with(
        mut self,
        resolver: Option<ServerAddress>,
        listen: Option<Vec<SocketAddr>>,
    ) -> Self {
        self.resolver = resolver;
        self.listen = listen.unwrap_or_default();
        self
    }

    /// The name of its credentials in the configuration.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The same with other credentials, those of today's configuration.
    #[must_use]
    pub(crate) fn renewed(&self, today: Self) -> Self {
        let (resolver, listen) = (self.resolver, self.listen.clone());
        Self {
            resolver: today.resolver.or(resolver),
            listen: if today.listen.is_empty() {
                listen
            } else {
                today.listen.clone()
            },
            by_account: self.by_account,
            ..today
        }
    }
}

impl SolverSettings for Settings {
    fn solver(&self, responses: &Responses) -> Arc<dyn Solver> {
        let resolver = Resolver::new(self.resolver);
        Arc::new(Dns {
            provider: provider::build(&self.provider, &self.credentials, &resolver, responses),
            resolver,
            places: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            kind: self.kind(),
        })
    }

    fn solver_key(&self) -> String {
        // It is shown nowhere; the digest makes sure of that.
        let json = serde_json::to_vec(self).unwrap_or_default();
        format!("dns {}", URL_SAFE_NO_PAD.encode(digest(&SHA256, &json)))
    }

    fn kind(&self) -> ChallengeKind {
        match self.by_account {
            true => ChallengeKind::DnsAccount01,
            false => ChallengeKind::Dns01,
        }
    }

    fn listens(&self) -> Vec<Listen> {
        match self.provider == SELF {
            true => Protocol::Dns.at(&self.listen),
            false => Vec::new(),
        }
    }

    fn program(&self) -> Option<&Path> {
        provider::program(&self.provider, &self.credentials)
    }

    fn check(&self) -> Result<(), Unfit> {
        provider::check(&self.provider, &self.name, &self.credentials)
    }

    fn check_name(&self, name: &Identifier) -> Result<(), Unfit> {
        match name {
            Identifier::Dns(_) => Ok(()),
            Identifier::Ip(_) => Err(Unfit {
                message: format!("{name}: DNS-01 cannot prove an address"),
                hint: "use --challenge http-01 for addresses".into(),
            }),
        }
    }
}

/// Why a record could not be added, removed or found, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failed {
    message: String,
    hint: Cow<'static, str>,
}

impl Failed {
    pub(super) fn new(message: impl Into<String>, hint: impl Into<Cow<'static, str>>) -> Self {
        let (message, hint) = (message.into(), hint.into());
        Self { message, hint }
    }
}

impl From<Failed> for SolverError {
    fn from(Failed { message, hint }: Failed) -> Self {
        Self::Dns { message, hint }
    }
}

/// Answers by a provider. Its changes run one after the other: many providers read a set of
/// values and write it back.
struct Dns {
    provider: Result<Arc<dyn Provider>, Failed>,
    resolver: Resolver,
    /// Where the records of the presented answers are, and the resolver that found them.
    places: Mutex<HashMap<String, (Place, Resolver)>>,
    turn: tokio::sync::Mutex<()>,
    kind: ChallengeKind,
}

impl Dns {
    async fn place(&self, answer: &Answer) -> Result<Place, Failed> {
        let name = challenge_name(answer);
        let parsed = Name::from_ascii(format!("{name}."));
        let parsed = parsed.map_err(|error| {
            Failed::new(
                format!("{name} is not a name of DNS: {error}"),
                "the name is too long for DNS-01: use http-01",
            )
        })?;
        let provider = self.provider.clone()?;
        let found = timeout(DEADLINE, self.find(provider.as_ref(), &parsed)).await;
        let late = |_| {
            Failed::new(
                format!(
                    "the zone of {name} was not found within {} s",
                    DEADLINE.as_secs()
                ),
                "check this machine's DNS, or name a resolver with --resolver ADDR:PORT",
            )
        };
        let found = match found.map_err(late)? {
            Err(error) if !provider.needs_zone() && error.is_about_the_zone() => {
                tracing::warn!("{error}; the record is changed all the same, and not looked for");
                (Place::unknown(parsed), self.resolver.clone())
            }
            found => found.map_err(|error| Failed::new(error.to_string(), error.hint()))?,
        };
        self.lock().insert(key(answer), found.clone());
        Ok(found.0)
    }

    /// By the resolvers, else by the provider's own server, for a zone that is private.
    async fn find(
        &self,
        provider: &dyn Provider,
        name: &Name,
    ) -> Result<(Place, Resolver), LookupError> {
        let error = match self.resolver.place(name).await {
            Err(error) if error.is_about_the_zone() => error,
            found => return Ok((found?, self.resolver.clone())),
        };
        let Some(own) = provider.resolver() else {
            return Err(error);
        };
        let own = Resolver::new(Some(own));
        let found = own.place(name).await;
        found.map(|place| (place, own)).map_err(|_| error)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Place, Resolver)>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn change(&self, answer: &Answer, place: &Place, adds: bool) -> Result<(), Failed> {
        let provider = self.provider.clone()?;
        let txt = Txt::new(challenge_name(answer), place, value(answer));
        let _turn = self.turn.lock().await;
        let changed = async {
            match adds {
                true => provider.add(&txt).await,
                false => provider.remove(&txt).await,
            }
        };
        if provider.has_deadline() {
            return changed.await;
        }
        let late = |_| {
            let what = format!(
                "{}: no answer within {} s",
                provider.name(),
                DEADLINE.as_secs()
            );
            Failed::new(
                what,
                "check this machine's network, and the provider's status page",
            )
        };
        timeout(DEADLINE, changed).await.map_err(late)?
    }
}

/// `_acme-challenge.` and the name, without the `*.` of a wildcard; for DNS-ACCOUNT-01 below a
/// label of the account, so that several clients can have a record each.
fn challenge_name(answer: &Answer) -> String {
    let name = answer.identifier.to_string();
    let name = name.strip_prefix("*.").unwrap_or(&name);
    match answer.kind {
        ChallengeKind::DnsAccount01 => {
            let label = account_label(&answer.account.url);
            format!("_{label}._acme-challenge.{name}")
        }
        _ => format!("_acme-challenge.{name}"),
    }
}

/// Base32 (RFC 4648, in lower case) of the first 80 bits of the hash of the account's URL.
fn account_label(url: &str) -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let hash = digest(&SHA256, url.as_bytes());
    let bits = hash.as_ref().iter().take(10);
    let bits = bits.fold(0_u128, |bits, byte| bits << 8 | u128::from(*byte));
    let letter = |place: u32| char::from(LETTERS[(bits >> (75 - 5 * place)) as usize % 32]);
    (0..16).map(letter).collect()
}

/// The value of the record.
fn value(answer: &Answer) -> String {
    URL_SAFE_NO_PAD.encode(digest(&SHA256, answer.key_authorization.as_bytes()))
}

/// The TXT record of the answer, which outlives the process that adds it.
pub(crate) fn record_of(answer: &Answer) -> String {
    format!("{}. TXT \"{}\"", challenge_name(answer), value(answer))
}

fn key(answer: &Answer) -> String {
    format!("{} {}", answer.identifier, answer.token.as_str())
}

#[async_trait]
impl Solver for Dns {
    fn supports(&self, kind: ChallengeKind, identifier: &Identifier) -> bool {
        kind == self.kind && matches!(identifier, Identifier::Dns(_))
    }

    fn leaves_traces(&self) -> bool {
        let provider = self.provider.as_ref();
        provider.is_ok_and(|provider| provider.leaves_traces())
    }

    async fn present(&self, answer: &Answer) -> Result<(), SolverError> {
        let place = self.place(answer).await?;
        Ok(self.change(answer, &place, true).await?)
    }

    async fn visible(&self, answer: &Answer, report: &Report) -> Result<(), SolverError> {
        let found = self.lock().get(&key(answer)).cloned();
        let (Some((place, resolver)), Ok(provider)) = (found, &self.provider) else {
            return Ok(());
        };
        let txt = Txt::new(challenge_name(answer), &place, value(answer));
        provider.reaches(&txt).await?;
        propagation::wait(&resolver, &place, &txt.value, report).await;
        Ok(())
    }

    async fn observed(&self, _answer: &Answer) {
        std::future::pending().await
    }

    async fn explain(&self, answer: &Answer) -> Option<String> {
        let (place, resolver) = self.lock().get(&key(answer)).cloned()?;
        propagation::missing(&resolver, &place, &value(answer)).await
    }

    async fn clean_up(&self, answer: &Answer) -> Result<(), SolverError> {
        let known = self.lock().remove(&key(answer));
        let place = match known {
            Some((place, _)) => place,
            // An earlier run has added it.
            None => self.place(answer).await?,
        };
        let removed = self.change(answer, &place, false).await;
        self.lock().remove(&key(answer));
        Ok(removed?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{AccountReference, Token};
    use super::*;

    #[test]
    fn check_names_what_a_provider_lacks() {
        let (none, resolver) = (Credentials::default(), Resolver::default());
        let built = provider::build("rfc2136", &none, &resolver, &Responses::default());
        let hint = built.err().unwrap().hint;
        assert_eq!(hint, "certs config check names what is missing or invalid");
        let unfit = provider::check("rfc2136", "rfc2136", &none).unwrap_err();
        assert!(
            unfit.message.contains("server missing"),
            "{}",
            unfit.message
        );
    }

    #[tokio::test(start_paused = true)]
    async fn program_that_hangs_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("hangs").display().to_string();
        // A shell writes it: a file that this process has open cannot be started.
        let written = std::process::Command::new("/bin/sh")
            .args([
                "-c",
                "printf '#!/bin/sh\nexec sleep 600\n' >$0 && chmod 755 $0",
            ])
            .arg(&program)
            .status();
        assert!(written.unwrap().success());
        let hangs = BTreeMap::from([("program".to_owned(), Secret::new(program))]);
        let solver = Dns {
            provider: provider::build(
                "exec",
                &Credentials(hangs),
                &Resolver::default(),
                &Responses::default(),
            ),
            resolver: Resolver::default(),
            places: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            kind: ChallengeKind::Dns01,
        };
        let answer = Answer {
            kind: ChallengeKind::Dns01,
            identifier: "example.org".parse().unwrap(),
            token: Token::absent(),
            key_authorization: String::new(),
            account: AccountReference::default(),
        };
        let place = Place::unknown(Name::root());
        let failed = solver.change(&answer, &place, true).await.unwrap_err();
        let said = &failed.message;
        assert!(
            said.contains("hangs present _acme-challenge.") || said.contains("hangs present ."),
            "{said}"
        );
        assert!(said.contains("did not end within 60 s"), "{said}");
    }

    #[test]
    fn name_of_record_depends_on_kind_and_account() {
        let name = |kind, identifier: &str| {
            challenge_name(&Answer {
                kind,
                identifier: identifier.parse().unwrap(),
                token: Token::absent(),
                key_authorization: String::new(),
                account: AccountReference {
                    url: "https://example.com/acme/acct/ExampleAccount".into(),
                    ..AccountReference::default()
                },
            })
        };
        let plain = "_acme-challenge.example.org";
        assert_eq!(name(ChallengeKind::Dns01, "*.example.org"), plain);
        // The example of the draft.
        let own = "_ujmmovf2vn55tgye._acme-challenge.example.org";
        assert_eq!(name(ChallengeKind::DnsAccount01, "example.org"), own);
    }
}
