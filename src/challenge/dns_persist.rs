//! DNS-PERSIST-01 (draft-ietf-acme-dns-persist, both its published texts and the one with a
//! hashed account): a TXT record at `_validation-persist.NAME` that names the CA and the
//! account, and stays. A user creates it once. Nothing here changes a zone: the record is
//! looked for at every server of the zone, and printed where it is missing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use hickory_proto::rr::Name;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::dns01::{Failed, propagation};
use super::responses::Responses;
use super::{
    AccountReference, Answer, ChallengeKind, Report, Solver, SolverError, SolverSettings, Unfit,
};
use crate::identifier::Identifier;
use crate::net::dns::ServerAddress;
use crate::net::dns::lookup::{Place, Resolver};
use crate::text::printable;
use crate::time::{Clock, SystemClock, Timestamp};

const DEADLINE: Duration = Duration::from_secs(60);
/// An end that is nearer is said at every order.
const NEAR: Duration = Duration::from_secs(30 * 24 * 3600);

/// The resolver that finds the zones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    resolver: Option<ServerAddress>,
}

impl Settings {
    /// Asks `resolver`, else the same as before.
    #[must_use]
    pub(crate) fn with(self, resolver: Option<ServerAddress>) -> Self {
        let resolver = resolver.or(self.resolver);
        Self { resolver }
    }
}

impl SolverSettings for Settings {
    fn solver(&self, _responses: &Responses) -> Arc<dyn Solver> {
        Arc::new(Persistent {
            resolver: Resolver::new(self.resolver),
            found: Mutex::default(),
        })
    }

    fn kind(&self) -> ChallengeKind {
        ChallengeKind::DnsPersist01
    }

    fn solver_key(&self) -> String {
        format!("dns-persist {:?}", self.resolver)
    }

    fn check_name(&self, name: &Identifier) -> Result<(), Unfit> {
        match name {
            Identifier::Dns(_) => Ok(()),
            Identifier::Ip(_) => Err(Unfit {
                message: format!("{name}: DNS-PERSIST-01 cannot prove an address"),
                hint: "use --challenge http-01 for addresses".into(),
            }),
        }
    }
}

/// What a value says about the account.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// The CA may issue, until then if there is an end.
    Valid(Option<Timestamp>),
    /// Why not, although the value is about this CA.
    Invalid(String),
    /// It is about another CA.
    Foreign,
}

/// Judges a value (an issue-value of RFC 8659 section 4.2) as the CA would.
fn judge(value: &str, account: &AccountReference, now: Timestamp) -> Verdict {
    let mut parts = value.split(';').map(str::trim);
    let issuer = parts.next().unwrap_or_default().to_ascii_lowercase();
    let issuer = issuer.strip_suffix('.').unwrap_or(&issuer);
    if !account.issuers.iter().any(|one| one == issuer) {
        return Verdict::Foreign;
    }
    let invalid = |why: &str| Verdict::Invalid(why.to_owned());
    let mut parameters = HashMap::new();
    for part in parts.filter(|part| !part.is_empty()) {
        let Some((tag, value)) = part.split_once('=') else {
            return Verdict::Invalid(format!("`{part}` is not a parameter"));
        };
        let tag = tag.trim().to_ascii_lowercase();
        if parameters.insert(tag, value.trim()).is_some() {
            return Verdict::Invalid(format!("`{part}` repeats a parameter"));
        }
    }
    match parameters.get("accounturi") {
        None => return invalid("it lacks accounturi"),
        Some(uri) if *uri == account.uri => {}
        Some(uri) if *uri == account.url => {
            return invalid("it has the URL of the account, and this CA wants its hash");
        }
        Some(_) => return invalid("its accounturi is that of another account"),
    }
    let policy = parameters.get("policy").copied().unwrap_or_default();
    if account.with_wildcard && !policy.eq_ignore_ascii_case("wildcard") {
        return invalid("it lacks policy=wildcard, which a wildcard needs");
    }
    match parameters.get("persistuntil").map(|text| text.parse()) {
        None => Verdict::Valid(None),
        Some(Err(_)) => invalid("its persistUntil is not a number of seconds"),
        Some(Ok(end)) if Timestamp::from_seconds(end) < now => {
            Verdict::Invalid(format!("it ended at {}", Timestamp::from_seconds(end)))
        }
        Some(Ok(end)) => Verdict::Valid(Some(Timestamp::from_seconds(end))),
    }
}

/// `_validation-persist.` and the name, without the `*.` of a wildcard.
fn record_name(identifier: &Identifier) -> String {
    let name = identifier.to_string();
    let base = name.strip_prefix("*.").unwrap_or(&name);
    format!("_validation-persist.{base}")
}

/// The record to create.
fn record(name: &str, account: &AccountReference) -> String {
    let issuer = account.issuers.first().map_or("", String::as_str);
    let uri = &account.uri;
    let policy = if account.with_wildcard {
        "; policy=wildcard"
    } else {
        ""
    };
    format!("{name}.  3600  IN  TXT  \"{issuer}; accounturi={uri}{policy}\"")
}

/// Looks for records.
struct Persistent {
    resolver: Resolver,
    /// The values of the presented answers, and where they are.
    found: Mutex<HashMap<String, (Place, String)>>,
}

impl Persistent {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, (Place, String)>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The values at each server of the zone that answers, else those of the resolver.
    async fn values(&self, place: &Place) -> Vec<String> {
        let servers = place.zone.servers.iter();
        let asked = servers.map(|server| self.resolver.values_at(server.address, &place.name));
        let replies = join_all(asked).await;
        if !replies.is_empty() && replies.iter().any(Result::is_ok) {
            return replies.into_iter().flatten().flatten().collect();
        }
        self.resolver.values(&place.name).await.unwrap_or_default()
    }

    async fn look(&self, answer: &Answer) -> Result<(Place, String), Failed> {
        let (name, account) = (record_name(&answer.identifier), &answer.account);
        let parsed = Name::from_ascii(format!("{name}."));
        let parsed = parsed.map_err(|error| {
            Failed::new(
                format!("{name} is not a name of DNS: {error}"),
                "the name is too long for DNS-PERSIST-01: use http-01",
            )
        })?;
        let place = self.resolver.place(&parsed).await;
        let place = place.map_err(|error| Failed::new(error.to_string(), error.hint()))?;
        let (now, mut why) = (SystemClock.now(), Vec::new());
        for value in self.values(&place).await {
            match judge(&value, account, now) {
                Verdict::Valid(end) => {
                    if let Some(end) = end.filter(|end| *end < now + NEAR) {
                        tracing::warn!(
                            "the record at {name} ends at {}; hint: give it a later persistUntil, or none",
                            end.seen_at(now)
                        );
                    }
                    return Ok((place, value));
                }
                Verdict::Invalid(reason) => why.push(reason),
                Verdict::Foreign => {}
            }
        }
        let why = match why.first() {
            None => "no record there names this CA".to_owned(),
            Some(reason) => format!("the record there does not fit: {}", printable(reason)),
        };
        Err(Failed::new(
            format!(
                "{name} does not allow this account to get certificates: {why}; the zone needs this record:\n  {}",
                record(&name, account)
            ),
            "create the record once, and run the same command again: no renewal needs a change of DNS",
        ))
    }
}

#[async_trait]
impl Solver for Persistent {
    fn supports(&self, kind: ChallengeKind, identifier: &Identifier) -> bool {
        kind == ChallengeKind::DnsPersist01 && matches!(identifier, Identifier::Dns(_))
    }

    async fn present(&self, answer: &Answer) -> Result<(), SolverError> {
        let late = |_| {
            Failed::new(
                format!(
                    "{} was not looked up within {} s",
                    record_name(&answer.identifier),
                    DEADLINE.as_secs()
                ),
                "check this machine's DNS, or name a resolver with --resolver ADDR:PORT",
            )
        };
        let found = timeout(DEADLINE, self.look(answer)).await.map_err(late)??;
        self.lock().insert(answer.identifier.to_string(), found);
        Ok(())
    }

    async fn visible(&self, answer: &Answer, report: &Report) -> Result<(), SolverError> {
        let found = self.lock().get(&answer.identifier.to_string()).cloned();
        if let Some((place, value)) = found {
            propagation::wait(&self.resolver, &place, &value, report).await;
        }
        Ok(())
    }

    async fn observed(&self, _answer: &Answer) {
        std::future::pending().await
    }

    /// The record stays.
    async fn clean_up(&self, answer: &Answer) -> Result<(), SolverError> {
        self.lock().remove(&answer.identifier.to_string());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

    fn account(with_wildcard: bool) -> AccountReference {
        AccountReference {
            url: "https://ca.example/acct/1".into(),
            uri: "https://ca.example/acct/1".into(),
            issuers: vec!["ca.example".into(), "authority.example".into()],
            with_wildcard,
        }
    }

    #[test]
    fn record_is_judged_as_the_draft_says() {
        let of = |value: &str, with_wildcard| judge(value, &account(with_wildcard), NOW);
        let valid = Verdict::Valid(None);
        let plain = "authority.example; accounturi=https://ca.example/acct/1";
        assert_eq!(of(plain, false), valid);
        let spaced =
            " CA.Example. ;ACCOUNTURI = https://ca.example/acct/1 ; policy=WildCard; new=x;";
        assert_eq!(of(spaced, true), valid);
        for (parameters, with_wildcard, words) in [
            ("", false, "lacks accounturi"),
            (
                "; accounturi=https://ca.example/acct/2",
                false,
                "another account",
            ),
            (
                "; accounturi=https://ca.example/acct/1",
                true,
                "lacks policy=wildcard",
            ),
            (
                "; accounturi=https://ca.example/acct/1; persistUntil=1799999999",
                false,
                "it ended at 2027",
            ),
            (
                "; accounturi=https://ca.example/acct/1; persistUntil=soon",
                false,
                "not a number",
            ),
            ("; accounturi=a; accounturi=b", false, "repeats"),
            ("; nonsense", false, "not a parameter"),
        ] {
            match of(&format!("ca.example{parameters}"), with_wildcard) {
                Verdict::Invalid(why) => assert!(why.contains(words), "{why}"),
                verdict => panic!("{parameters}: {verdict:?}"),
            }
        }
        let ends = of(&format!("{plain}; persistUntil=1800000001"), false);
        assert_eq!(ends, Verdict::Valid(Some(NOW + Duration::from_secs(1))));
        assert_eq!(of("other.example; accounturi=x", false), Verdict::Foreign);
        let hashed = AccountReference {
            uri: "https://ca.example/hash/sha-256/x".into(),
            ..account(false)
        };
        let verdict = judge(plain, &hashed, NOW);
        assert!(matches!(verdict, Verdict::Invalid(why) if why.contains("wants its hash")));
    }

    #[test]
    fn printed_record_is_a_valid_one() {
        for with_wildcard in [false, true] {
            let line = record("_validation-persist.a.example", &account(with_wildcard));
            let value = line.split('"').nth(1).unwrap();
            assert_eq!(
                judge(value, &account(with_wildcard), NOW),
                Verdict::Valid(None)
            );
        }
    }
}
