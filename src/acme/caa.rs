//! Advice after a refusal: what the CAA records of a name (RFC 8659) and their parameters
//! (RFC 8657) say about this CA, this account and this challenge. It never decides whether to
//! order: the CA looks the records up itself, and elsewhere.

use std::collections::BTreeSet;

use futures_util::future::join_all;

use super::client::Client;
use super::directory::Meta;
use super::error::{AcmeError, Cause, Phase};
use crate::challenge::ChallengeKind;
use crate::identifier::Identifier;
use crate::net::dns::caa::{Caa, CaaSet};
use crate::text::printable;

/// The most names whose records are looked up.
const MOST_NAMES: usize = 5;

/// What the CA must be allowed.
struct Wanted<'a> {
    /// The names by which records allow the CA; empty if it does not tell them.
    identities: &'a [String],
    account: Option<&'a str>,
    methods: Vec<&'static str>,
    is_wildcard: bool,
}

/// What a set of records says.
struct Advice {
    note: String,
    hint: Option<String>,
}

impl Client {
    /// Adds to the refusal of an order for `names` what their CAA records say.
    pub(super) async fn advise(
        &self,
        error: AcmeError,
        names: &BTreeSet<Identifier>,
        meta: &Meta,
    ) -> AcmeError {
        let may_be_caa = error.phase != Phase::Account && error.cause.may_be_caa();
        let Some(lookup) = self.caa.as_ref().filter(|_| may_be_caa) else {
            return error;
        };
        let failed = error.cause.failed_names().iter();
        let failed: BTreeSet<_> = failed.map(|one| one.identifier.clone()).collect();
        let names = if failed.is_empty() { names } else { &failed };
        let account = self.known_account().await;
        let names = names
            .iter()
            .filter(|name| matches!(name, Identifier::Dns(_)));
        let lookups = names.take(MOST_NAMES).map(async |name| {
            let text = name.to_string();
            let base = text.strip_prefix("*.").unwrap_or(&text);
            (name, lookup.records(base).await)
        });
        let (mut notes, mut hint) = (BTreeSet::new(), None);
        for (name, found) in join_all(lookups).await {
            let methods = ChallengeKind::answered().filter(|kind| {
                let mut solvers = self.settings.solvers.iter();
                solvers.any(|solver| solver.supports(*kind, name))
            });
            let wanted = Wanted {
                identities: &meta.caa_identities,
                account: account.as_deref(),
                methods: methods.map(ChallengeKind::name).collect(),
                is_wildcard: name.is_wildcard(),
            };
            let advice = match found {
                Ok(set) => set.and_then(|set| judge(&set, &wanted)),
                Err(error) => Some(Advice {
                    note: error.to_string(),
                    hint: error.hint(),
                }),
            };
            if let Some(advice) = advice {
                notes.insert(advice.note);
                hint = hint.or(advice.hint);
            }
        }
        AcmeError {
            cause: error.cause.with_caa(notes, hint),
            ..error
        }
    }
}

impl Cause {
    /// Whether CAA records may be the cause.
    pub(super) fn may_be_caa(&self) -> bool {
        match self {
            Self::Refused(explained) | Self::NotValidated(explained) => explained.may_be_caa,
            _ => false,
        }
    }

    /// The first cause to report of several, which may be that of any of them.
    pub(super) fn or_caa(mut self, may_be_caa: bool) -> Self {
        if let Self::Refused(explained) | Self::NotValidated(explained) = &mut self {
            explained.may_be_caa |= may_be_caa;
        }
        self
    }
}

/// The properties that CAs know (RFC 8657, RFC 8659, RFC 9495 and the CA/Browser Forum's).
const KNOWN: [&str; 7] = [
    "issue",
    "issuewild",
    "issuemail",
    "issuevmc",
    "iodef",
    "contactemail",
    "contactphone",
];

/// What the records say against an issuance; `None` if they allow it.
fn judge(set: &CaaSet, wanted: &Wanted<'_>) -> Option<Advice> {
    let (at, records) = (&set.at, &set.records);
    let listed: Vec<String> = records.iter().map(ToString::to_string).collect();
    let advice = |why: &str, hint: Option<String>| {
        let note = format!("CAA records at {at}: {}; {why}", listed.join(", "));
        Some(Advice { note, hint })
    };
    let unknown = |one: &&Caa| one.critical && !KNOWN.contains(&one.tag.as_str());
    if let Some(critical) = records.iter().find(unknown) {
        let why = format!("a CA that does not know `{}` must not issue", critical.tag);
        let hint = format!("remove the critical record `{critical}` at {at}");
        return advice(&why, Some(hint));
    }
    let of = |tag: &str| {
        records
            .iter()
            .filter(|one| one.tag == tag)
            .collect::<Vec<_>>()
    };
    let (tag, relevant) = match of("issuewild") {
        wild if wanted.is_wildcard && !wild.is_empty() => ("issuewild", wild),
        _ => ("issue", of("issue")),
    };
    if relevant.is_empty() {
        return None;
    }
    let Some(identity) = wanted
        .identities
        .first()
        .map(|identity| printable(identity))
    else {
        return advice(
            "this CA does not tell the name by which they allow it",
            None,
        );
    };
    let issuers: Vec<Issuer<'_>> = relevant.iter().map(|one| Issuer::of(&one.value)).collect();
    let mut ours = issuers.iter().filter(|one| one.is_of(wanted.identities));
    let Some(first) = ours.clone().next() else {
        let (why, hint) = without(&issuers, &identity, wanted);
        let hint = format!("add the record `{at}. CAA 0 {tag} \"{identity}\"`{hint}");
        return advice(&why, Some(hint));
    };
    if ours.any(|one| one.fits(wanted)) {
        return None;
    }
    let record = format!("`{at}. CAA 0 {tag} \"{}\"`", first.corrected(wanted));
    let (why, hint) = too_narrow(first, &identity, wanted);
    advice(&why, Some(format!("{hint}: {record}")))
}

/// Why a record of this CA forbids it, and what to correct.
fn too_narrow(issuer: &Issuer<'_>, identity: &str, wanted: &Wanted<'_>) -> (String, String) {
    if !issuer.is_for(wanted.account) {
        return (
            format!("they allow {identity} for another account only"),
            "correct accounturi in the record".to_owned(),
        );
    }
    let allowed = issuer.methods.unwrap_or_default();
    let used = wanted.methods.join(", ");
    (
        format!("they allow {identity} by {allowed} only, and this order used {used}"),
        "prove the name by a challenge that they allow (--challenge), or correct validationmethods"
            .to_owned(),
    )
}

/// Why records without this CA forbid it, and how a further record can be narrow.
fn without(issuers: &[Issuer<'_>], identity: &str, wanted: &Wanted<'_>) -> (String, String) {
    let others = issuers.iter().map(|one| one.domain);
    let others: BTreeSet<&str> = others.filter(|domain| !domain.is_empty()).collect();
    let allowed = match others.is_empty() {
        true => "no CA".to_owned(),
        false => format!("{} only", Vec::from_iter(others).join(", ")),
    };
    let account = wanted.account;
    let account = account.map(|account| format!("accounturi={}", printable(account)));
    let method = wanted.methods.first();
    let method = method.map(|kind| format!("validationmethods={kind}"));
    let narrow: Vec<String> = account.into_iter().chain(method).collect();
    let narrow = match narrow.is_empty() {
        true => String::new(),
        false => format!(
            " (with `; {}` after the CA, for this alone)",
            narrow.join("; ")
        ),
    };
    (
        format!("they allow {allowed}, not {identity}"),
        format!("{narrow}, or use a CA that they allow"),
    )
}

/// The value of an `issue` or `issuewild` property.
struct Issuer<'a> {
    domain: &'a str,
    account: Option<&'a str>,
    methods: Option<&'a str>,
}

impl<'a> Issuer<'a> {
    fn of(value: &'a str) -> Self {
        let (domain, parameters) = value.split_once(';').unwrap_or((value, ""));
        let of = |name: &str| {
            let mut all = parameters.split(';').filter_map(|one| one.split_once('='));
            let found = all.find(|(key, _)| key.trim().eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.trim())
        };
        Self {
            domain: domain.trim(),
            account: of("accounturi"),
            methods: of("validationmethods"),
        }
    }

    fn is_of(&self, identities: &[String]) -> bool {
        let mut identities = identities.iter();
        identities.any(|identity| self.domain.eq_ignore_ascii_case(identity))
    }

    fn is_for(&self, account: Option<&str>) -> bool {
        self.account.is_none_or(|only| account == Some(only))
    }

    fn fits(&self, wanted: &Wanted<'_>) -> bool {
        let methods = self.methods.is_none_or(|methods| {
            let mut all = methods.split(',').map(str::trim);
            all.any(|one| wanted.methods.contains(&one))
        });
        self.is_for(wanted.account) && methods
    }

    /// The value as it would allow what is wanted.
    fn corrected(&self, wanted: &Wanted<'_>) -> String {
        let mut value = self.domain.to_owned();
        if let (Some(_), Some(account)) = (self.account, wanted.account) {
            value.push_str(&format!("; accounturi={}", printable(account)));
        }
        if self.methods.is_some() {
            let methods = wanted.methods.join(",");
            value.push_str(&format!("; validationmethods={methods}"));
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;
    use serde_json::json;

    use super::super::fake::{FakeCa, Memory, Scripted, pending};
    use super::super::{Client, Issuer as _};
    use super::*;
    use crate::net::dns::caa::{CaaError, CaaLookup};

    fn records(at: &str, records: &[(bool, &str, &str)]) -> CaaSet {
        let records = records.iter().map(|(critical, tag, value)| Caa {
            critical: *critical,
            tag: (*tag).to_owned(),
            value: (*value).to_owned(),
        });
        CaaSet {
            at: at.to_owned(),
            records: records.collect(),
        }
    }

    fn judged(all: &[(bool, &str, &str)], is_wildcard: bool) -> Option<(String, String)> {
        let identities = ["ca.test".to_owned(), "ca.example".to_owned()];
        let wanted = Wanted {
            identities: &identities,
            account: Some("https://ca.test/acct/1"),
            methods: vec!["http-01"],
            is_wildcard,
        };
        let advice = judge(&records("example.com", all), &wanted)?;
        Some((advice.note, advice.hint.unwrap()))
    }

    #[test]
    fn records_that_allow_the_ca_are_no_advice() {
        for (all, is_wildcard) in [
            (&[(false, "issue", "CA.test")][..], false),
            (
                &[
                    (false, "issue", "other.test"),
                    (false, "issue", " ca.example ; policy=ev"),
                ],
                false,
            ),
            (
                &[(false, "issue", "ca.test; validationmethods=dns-01,http-01")],
                false,
            ),
            (
                &[(false, "issue", "ca.test;accounturi=https://ca.test/acct/1")],
                false,
            ),
            (&[(false, "iodef", "mailto:a@example.com")], false),
            (&[(false, "issuewild", ";")], false),
            (&[(false, "issue", "ca.test")], true),
            (
                &[(true, "issue", "ca.test"), (false, "tbs", "unknown")],
                false,
            ),
        ] {
            assert_eq!(judged(all, is_wildcard), None, "{all:?}");
        }
    }

    #[test]
    fn records_that_forbid_the_ca_are_shown_with_the_one_that_would_allow_it() {
        for (all, is_wildcard, said, hint) in [
            (
                &[(false, "issue", "other.test")][..],
                false,
                "they allow other.test only, not ca.test",
                "`example.com. CAA 0 issue \"ca.test\"` (with `; accounturi=https://ca.test/acct/1; validationmethods=http-01` after",
            ),
            (
                &[(false, "issue", ";")],
                false,
                "they allow no CA",
                "CAA 0 issue \"ca.test\"",
            ),
            (
                &[
                    (false, "issue", "ca.test"),
                    (false, "issuewild", "other.test"),
                ],
                true,
                "other.test only",
                "CAA 0 issuewild \"ca.test\"",
            ),
            (
                &[(false, "issue", "ca.test; validationmethods=dns-01")],
                false,
                "by dns-01 only, and this order used http-01",
                "`example.com. CAA 0 issue \"ca.test; validationmethods=http-01\"`",
            ),
            (
                &[(
                    false,
                    "issue",
                    "ca.test; accounturi=https://ca.test/acct/2; validationmethods=http-01",
                )],
                false,
                "another account only",
                "\"ca.test; accounturi=https://ca.test/acct/1; validationmethods=http-01\"",
            ),
            (
                &[(false, "issue", "ca.test"), (true, "tbs", "x")],
                false,
                "does not know `tbs`",
                "remove the critical record `128 tbs \"x\"` at example.com",
            ),
        ] {
            let (note, advised) = judged(all, is_wildcard).unwrap();
            assert!(note.contains(said), "{note}");
            assert!(note.starts_with("CAA records at example.com: "), "{note}");
            assert!(advised.contains(hint), "{advised}");
        }
    }

    struct Zone(CaaSet);

    #[async_trait]
    impl CaaLookup for Zone {
        async fn records(&self, name: &str) -> Result<Option<CaaSet>, CaaError> {
            Ok(name.ends_with("example").then(|| self.0.clone()))
        }
    }

    struct Failing;

    #[async_trait]
    impl CaaLookup for Failing {
        async fn records(&self, name: &str) -> Result<Option<CaaSet>, CaaError> {
            let (at, code) = (name.to_owned(), "SERVFAIL".to_owned());
            Err(CaaError { at, code })
        }
    }

    #[tokio::test]
    async fn refusal_names_a_lookup_that_fails() {
        let ca = FakeCa::new();
        ca.script("finalize", Scripted::problem(403, "caa"));
        let client = Client::new(ca.settings()).unwrap();
        let client = client.with_caa(Arc::new(Failing));
        let mut journal = Memory::default();
        let ended = client.issue(pending(&["a.example"]), &mut journal).await;
        let error = ended.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("\n  CAA at a.example: SERVFAIL"), "{text}");
        let hint = error.cause.hint();
        assert!(hint.contains("`dig CAA a.example`"), "{hint}");
    }

    #[tokio::test]
    async fn refusal_shows_the_records_and_no_order_is_prevented() {
        let zone = || {
            Arc::new(Zone(records(
                "a.example",
                &[(false, "issue", "other.test")],
            )))
        };
        let quoting = |kind: &str, sub: &str| {
            let urn = |kind: &str| format!("urn:ietf:params:acme:error:{kind}");
            let body = json!({
                "type": urn(kind), "detail": "neither :caa: nor :unauthorized:",
                "subproblems": [{"type": urn(sub), "detail": "urn:ietf:params:acme:error:caa: no"}],
            });
            let json_type = "application/problem+json";
            Scripted(400, json_type, body.to_string(), Vec::new())
        };
        for (refusal, is_advised) in [
            (Scripted::problem(403, "caa"), true),
            (Scripted::problem(403, "unauthorized"), true),
            (Scripted::problem(400, "rejectedIdentifier"), false),
            (quoting("rejectedIdentifier", "malformed"), false),
            (quoting("rejectedIdentifier", "caa"), true),
        ] {
            let ca = FakeCa::new();
            ca.script("finalize", refusal);
            let client = Client::new(ca.settings()).unwrap().with_caa(zone());
            let mut journal = Memory::default();
            let ended = client.issue(pending(&["a.example"]), &mut journal).await;
            let error = ended.unwrap_err();
            let text = error.to_string();
            assert_eq!(
                text.contains("0 issue \"other.test\""),
                is_advised,
                "{text}"
            );
            let hint = error.cause.hint();
            assert_eq!(
                hint.contains("accounturi=https://ca.test/account/0"),
                is_advised,
                "{hint}"
            );
            // Without records that forbid it, nothing changes.
            let client = Client::new(ca.settings()).unwrap().with_caa(zone());
            client
                .issue(pending(&["a.example"]), &mut journal)
                .await
                .unwrap();
        }
    }
}
