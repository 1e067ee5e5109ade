//! What can go wrong between us and a CA: which CA, in which phase, and what
//! it said of each identifier, made safe to show.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use thiserror::Error;

use super::JournalError;
use super::directory::Meta;
use super::wire;
use crate::challenge::SolverError;
use crate::identifier::Identifier;
use crate::text::{printable, printable_within};
use crate::time::Timestamp;

/// The step that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are RFC 8555's
pub enum Phase {
    Directory,
    Account,
    Order,
    Authorization,
    Finalize,
    Certificate,
    RenewalInfo,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Directory => "reading the directory",
            Self::Account => "registering the account",
            Self::Order => "placing the order",
            Self::Authorization => "proving control",
            Self::Finalize => "finalizing the order",
            Self::Certificate => "downloading the certificate",
            Self::RenewalInfo => "asking for the renewal window",
        })
    }
}

/// A failure at a CA.
#[derive(Debug, Error)]
#[error("{phase} at {ca} failed: {cause}")]
pub struct AcmeError {
    /// The directory URL.
    pub ca: String,
    /// The step.
    pub phase: Phase,
    /// What happened.
    #[source]
    pub cause: Cause,
}

impl AcmeError {
    /// Whether the CA has nothing against the order but the certificate's key:
    /// one that somebody has leaked, or that it finds weak.
    #[must_use]
    pub fn is_about_the_key(&self) -> bool {
        let refusal = self.cause.refusal();
        self.phase == Phase::Finalize && matches!(refusal, Some("badCSR" | "badPublicKey"))
    }
}

/// What happened.
#[derive(Debug, Error)]
#[allow(missing_docs)] // each message is its own documentation
pub enum Cause {
    #[error("{0}")]
    Unreachable(Explained),
    #[error("the CA's answer makes no sense: {0}")]
    Protocol(String),
    #[error("{0}")]
    Refused(Explained),
    #[error("{0}")]
    NotProven(Unproven),
    #[error("{message}")]
    RateLimited {
        message: String,
        retry_after: Option<Duration>,
    },
    #[error("no answer could be laid out: {0}")]
    Solver(SolverError),
    #[error("the intent could not be stored: {0}")]
    Journal(JournalError),
    #[error("no end after {0:?}")]
    TimedOut(Duration),
    #[error(
        "the CA offers no challenge that is configured here for {identifier} (it offers {offered})"
    )]
    NoChallenge { identifier: String, offered: String },
}

/// A name that an order came to nothing for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedName {
    /// The name.
    pub identifier: Identifier,
    /// The CA's `type` and `detail`, fit to be shown.
    pub reason: String,
}

/// Control that was not proven, with the names where the CA tells them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unproven {
    message: String,
    names: Vec<FailedName>,
}

impl<T: Into<String>> From<T> for Unproven {
    fn from(message: T) -> Self {
        Self {
            message: message.into(),
            names: Vec::new(),
        }
    }
}

impl fmt::Display for Unproven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Behind a pointer, so that no error is large for their sake.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Names(Vec<FailedName>);

/// A message with the next thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    message: String,
    hint: Cow<'static, str>,
    /// The CA's word for it (`caa`, `rejectedIdentifier`); empty for our own.
    kind: String,
    /// The names that it is about, where the CA tells them.
    names: Box<Names>,
}

impl Explained {
    pub(super) fn new(message: String, hint: &'static str) -> Self {
        Self {
            message,
            hint: Cow::Borrowed(hint),
            kind: String::new(),
            names: Box::default(),
        }
    }
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Why there is no reply.
#[derive(Debug, Error)]
#[allow(missing_docs)] // each message is its own documentation
pub enum ExchangeError {
    #[error("the CA's host name does not resolve: {0}")]
    Unresolved(String),
    #[error("no connection to the CA: {0}")]
    Connect(String),
    #[error("the CA's own server is not trusted: its certificate is not valid ({0})")]
    Untrusted(String),
    #[error(transparent)]
    Untimely(#[from] Untimely),
    #[error("no TLS with the CA: {0}")]
    Tls(String),
    #[error("the connection to the CA broke: {0}")]
    Broken(String),
    #[error("no answer from the CA within {0:?}")]
    TimedOut(Duration),
    #[error("a body of more than {0} bytes")]
    TooLarge(usize),
}

/// By this machine's clock the certificate of the CA's server does not hold: one of the
/// two is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)] // each message is its own documentation
pub enum Untimely {
    #[error(
        "the certificate of the CA's own server ended at {end}, and this machine's clock shows {ours}"
    )]
    Over { ours: Timestamp, end: Timestamp },
    #[error(
        "the certificate of the CA's own server begins at {begin}, and this machine's clock shows {ours}"
    )]
    NotYet { ours: Timestamp, begin: Timestamp },
}

impl Untimely {
    /// What our clock shows.
    #[must_use]
    pub fn ours(&self) -> Timestamp {
        let (Self::Over { ours, .. } | Self::NotYet { ours, .. }) = self;
        *ours
    }
}

impl From<ExchangeError> for Cause {
    fn from(error: ExchangeError) -> Self {
        let hint = match &error {
            ExchangeError::TooLarge(_) => return Self::Protocol(error.to_string()),
            ExchangeError::Unresolved(_) => "check the directory URL and this machine's DNS",
            ExchangeError::Connect(_) => {
                "check the directory URL, the network, and that a firewall lets this machine out"
            }
            ExchangeError::Untrusted(_) => {
                "with a private CA name its root: --ca-root root.pem; with a public one check this machine's clock, and for a proxy that opens TLS"
            }
            ExchangeError::Untimely(_) => {
                "set this machine's clock, best by NTP; if it is right, the CA's certificate is not, and only its operator can help"
            }
            ExchangeError::Tls(_) => "check that the directory URL leads to an https server",
            ExchangeError::Broken(_) | ExchangeError::TimedOut(_) => {
                "run the same command again: an order that was begun is resumed"
            }
        };
        Self::Unreachable(Explained::new(error.to_string(), hint))
    }
}

impl From<SolverError> for Cause {
    fn from(error: SolverError) -> Self {
        match error {
            SolverError::Token => Self::Protocol(error.to_string()),
            other => Self::Solver(other),
        }
    }
}

impl Cause {
    /// The next thing for the user to do.
    #[must_use]
    pub fn hint(&self) -> &str {
        match self {
            Self::Unreachable(explained) | Self::Refused(explained) => &explained.hint,
            Self::Protocol(_) => "check that the URL is an ACME directory; try again later",
            Self::NotProven(_) => {
                "port 80 of each name must lead here from the internet: check its DNS records, firewalls and forwardings"
            }
            Self::RateLimited { .. } => "wait until then; trying earlier only makes it longer",
            Self::Solver(_) => "check the --webroot directory and its owner",
            Self::Journal(_) => "check the data directory: owner, mode, free space",
            Self::TimedOut(_) => "run the same command again: the order is resumed, not repeated",
            Self::NoChallenge { .. } => {
                "a wildcard needs DNS-01; for other names ask the CA which challenges it offers"
            }
        }
    }

    /// The same cause, told in other words.
    pub(super) fn with_message(mut self, told: String) -> Self {
        match &mut self {
            Self::Unreachable(explained) | Self::Refused(explained) => explained.message = told,
            Self::NotProven(unproven) => unproven.message = told,
            Self::Protocol(message) | Self::RateLimited { message, .. } => *message = told,
            _ => {}
        }
        self
    }

    /// The same cause, for these names.
    #[must_use]
    pub fn for_names(mut self, failed: Vec<FailedName>) -> Self {
        match &mut self {
            Self::Refused(explained) => explained.names.0 = failed,
            Self::NotProven(unproven) => unproven.names = failed,
            _ => {}
        }
        self
    }

    /// The names that the order came to nothing for, where the CA tells them:
    /// the others may well be fine.
    #[must_use]
    pub fn failed_names(&self) -> &[FailedName] {
        match self {
            Self::Refused(explained) => &explained.names.0,
            Self::NotProven(unproven) => &unproven.names,
            _ => &[],
        }
    }

    /// The CA's word for a refusal, such as `caa`.
    pub(super) fn refusal(&self) -> Option<&str> {
        match self {
            Self::Refused(explained) => Some(&explained.kind),
            _ => None,
        }
    }

    /// The CA's word for whatever it has against a request, `serverInternal`
    /// among them; `None` when it says nothing, or to wait.
    pub(super) fn objection(&self) -> Option<&str> {
        match self {
            Self::Unreachable(explained) if !explained.kind.is_empty() => Some(&explained.kind),
            _ => self.refusal(),
        }
    }

    /// The CA answers, and fails.
    pub(super) fn failing(message: String, problem: Option<&instant_acme::Problem>) -> Self {
        let explained = Explained::new(message, "try again later: the CA is failing");
        let kind = problem.map_or("", wire::kind).to_owned();
        Self::Unreachable(Explained { kind, ..explained })
    }

    /// Sorts the problem document that a request was answered with.
    pub(super) fn of_reply(problem: &instant_acme::Problem) -> Self {
        match wire::kind(problem) {
            // About the account, while in a challenge it is about the name.
            "unauthorized" => Self::refused(problem),
            _ => Self::of_challenge(problem),
        }
    }

    /// Sorts what the CA found when it validated a name.
    pub(super) fn of_challenge(problem: &instant_acme::Problem) -> Self {
        match wire::kind(problem) {
            "rateLimited" if wire::is_pause(problem) => Self::refused(problem),
            "rateLimited" => Self::RateLimited {
                message: describe(problem),
                retry_after: None,
            },
            "serverInternal" => Self::failing(describe(problem), Some(problem)),
            "badNonce" => Self::Protocol(describe(problem)),
            "connection" | "dns" | "incorrectResponse" | "tls" | "unauthorized" => {
                Self::NotProven(describe(problem).into()).for_names(names_of(problem))
            }
            _ => Self::refused(problem),
        }
    }

    fn refused(problem: &instant_acme::Problem) -> Self {
        let kind = match (wire::kind(problem), problem.subproblems.first()) {
            ("compound", Some(first)) => {
                let kind = first.r#type.as_deref().unwrap_or("");
                kind.rsplit(':').next().unwrap_or(kind)
            }
            _ if wire::is_pause(problem) => "paused",
            (kind, _) => kind,
        };
        Self::Refused(Explained {
            message: describe(problem),
            hint: Cow::Borrowed(refusal_hint(kind)),
            kind: kind.to_owned(),
            names: Box::new(Names(names_of(problem))),
        })
    }

    /// A refusal of our own making, before anything is sent.
    pub(super) fn invalid_profile(profile: &str, meta: &Meta) -> Self {
        Self::Refused(Explained {
            message: format!("the CA does not offer the profile `{}`", printable(profile)),
            hint: profiles_hint(meta),
            kind: "invalidProfile".into(),
            names: Box::default(),
        })
    }

    /// Adds what only the CA's directory knows to the hint of a refusal.
    pub(super) fn informed_by(mut self, meta: &Meta, phase: Phase) -> Self {
        let Self::Refused(explained) = &mut self else {
            return self;
        };
        let terms = meta.terms_of_service.as_deref().map(printable);
        let identity = meta.caa_identities.first().map(|name| printable(name));
        let hint = match (explained.kind.as_str(), terms, identity) {
            ("invalidProfile", ..) => Some(profiles_hint(meta)),
            ("caa", _, Some(name)) => Some(Cow::Owned(format!(
                "the name's CAA records forbid this CA; add `0 issue \"{name}\"`, or use a CA that they allow"
            ))),
            // Boulder calls terms that were not agreed to malformed.
            ("userActionRequired" | "malformed", Some(terms), _) if phase == Phase::Account => {
                Some(Cow::Owned(format!("read {terms}, then add --agree-tos")))
            }
            _ => None,
        };
        if let Some(hint) = hint {
            explained.hint = hint;
        }
        self
    }

    /// A rate limit that says until when, where that is known.
    pub(super) fn rate_limited(
        message: String,
        retry_after: Option<Duration>,
        now: Timestamp,
    ) -> Self {
        let until = retry_after.map_or_else(String::new, |wait| {
            format!(" (the CA asks to come back at {})", now + wait)
        });
        Self::RateLimited {
            message: format!("{message}{until}"),
            retry_after,
        }
    }
}

fn refusal_hint(kind: &str) -> &'static str {
    match kind {
        "caa" => {
            "the name's CAA records forbid this CA; add it there (its documentation names the value), or use a CA that they allow"
        }
        "rejectedIdentifier" | "unsupportedIdentifier" => {
            "the CA will never sign one of these names; leave that one out, or use another CA"
        }
        "userActionRequired" => "open the URL in the message and do what it asks, then try again",
        "paused" => {
            "validations of these names have failed too often in a row: see that port 80 of each leads here, then open the URL in the message to be let in again"
        }
        "externalAccountRequired" => {
            "this CA wants the account bound to one of its customers: get the key from its web site and give --eab-kid and --eab-hmac-file (for a fallback --fallback-eab-kid and --fallback-eab-hmac-file)"
        }
        "unauthorized" | "accountDoesNotExist" => {
            "the account may be deactivated or revoked: look it up at the CA; with its file below accounts/ moved away a new one is made"
        }
        "badPublicKey" | "badCSR" => {
            "the CA will not take this kind of key: try another --key, without --reuse-key"
        }
        "invalidContact" | "unsupportedContact" => "correct --email, or leave it out",
        _ => "the CA will not sign this as asked; change what it names and try again",
    }
}

fn profiles_hint(meta: &Meta) -> Cow<'static, str> {
    if meta.profiles.is_empty() {
        return Cow::Borrowed("this CA has no profiles: leave --profile out");
    }
    let names: Vec<_> = meta.profiles.keys().map(|name| printable(name)).collect();
    format!("--profile must be one of: {}", names.join(", ")).into()
}

/// The names that a problem has subproblems for.
fn names_of(problem: &instant_acme::Problem) -> Vec<FailedName> {
    let subproblems = problem.subproblems.iter().take(100);
    let named = subproblems.filter_map(|sub| {
        let name = sub.identifier.clone()?.authorized(false).to_string();
        Some(FailedName {
            identifier: Identifier::parse(&name).ok()?,
            reason: part(sub.r#type.as_deref(), sub.detail.as_deref()),
        })
    });
    named.collect()
}

fn part(kind: Option<&str>, detail: Option<&str>) -> String {
    format!(
        "{}: {}",
        printable(kind.unwrap_or("no type")),
        printable(detail.unwrap_or("no detail"))
    )
}

/// The CA's `type` and `detail`, and those of its subproblems by identifier.
pub(super) fn describe(problem: &instant_acme::Problem) -> String {
    let mut text = part(problem.r#type.as_deref(), problem.detail.as_deref());
    if wire::is_pause(problem) {
        // The URL at its end names every name that is paused.
        text = printable_within(problem.detail.as_deref().unwrap_or_default(), 8192);
        text.insert_str(0, "rateLimited: ");
    }
    for sub in problem.subproblems.iter().take(100) {
        let name = match &sub.identifier {
            Some(identifier) => printable(&identifier.clone().authorized(false).to_string()),
            None => "the order".to_owned(),
        };
        text.push_str(&format!(
            "\n  {name}: {}",
            part(sub.r#type.as_deref(), sub.detail.as_deref())
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_sorted_by_their_type_and_show_each_identifier() {
        let problem = |kind: &str| -> instant_acme::Problem {
            serde_json::from_value(serde_json::json!({
                "type": format!("urn:ietf:params:acme:error:{kind}"), "detail": "why",
                "subproblems": [{"type": "urn:ietf:params:acme:error:caa", "detail": "no\u{1b}",
                    "identifier": {"type": "dns", "value": "a.example"}}],
            }))
            .unwrap()
        };
        assert!(matches!(
            Cause::of_reply(&problem("rateLimited")),
            Cause::RateLimited { .. }
        ));
        assert!(matches!(
            Cause::of_challenge(&problem("connection")),
            Cause::NotProven(_)
        ));
        let Cause::Refused(text) = Cause::of_reply(&problem("rejectedIdentifier")) else {
            panic!()
        };
        assert!(
            text.to_string()
                .contains("a.example: urn:ietf:params:acme:error:caa: no\\u{1b}"),
            "{text}"
        );
        let named = Cause::Refused(text);
        let [failed] = named.failed_names() else {
            panic!("{named:?}");
        };
        assert_eq!(failed.identifier, Identifier::parse("a.example").unwrap());
        assert_eq!(failed.reason, "urn:ietf:params:acme:error:caa: no\\u{1b}");
    }

    #[test]
    fn each_refusal_has_a_hint_of_its_own() {
        let meta = Meta {
            terms_of_service: Some("https://ca.test/terms".into()),
            caa_identities: vec!["ca.test".into()],
            profiles: [("classic".to_owned(), String::new())].into(),
        };
        let hint = |kind: &str, phase| {
            let kind = format!("urn:ietf:params:acme:error:{kind}");
            let problem = serde_json::from_value(serde_json::json!({"type": kind})).unwrap();
            let cause = Cause::of_reply(&problem).informed_by(&meta, phase);
            assert!(matches!(cause, Cause::Refused(_)), "{kind}");
            cause.hint().to_owned()
        };
        for (kind, phase, words) in [
            ("caa", Phase::Finalize, "0 issue \"ca.test\""),
            ("rejectedIdentifier", Phase::Order, "leave that one out"),
            ("userActionRequired", Phase::Account, "--agree-tos"),
            ("userActionRequired", Phase::Order, "open the URL"),
            ("malformed", Phase::Account, "https://ca.test/terms"),
            ("externalAccountRequired", Phase::Account, "--eab-kid"),
            ("unauthorized", Phase::Order, "deactivated"),
            ("badPublicKey", Phase::Finalize, "--key"),
            ("badCSR", Phase::Finalize, "--key"),
            ("invalidContact", Phase::Account, "--email"),
            ("invalidProfile", Phase::Order, "one of: classic"),
            ("malformed", Phase::Order, "change what it names"),
        ] {
            let hint = hint(kind, phase);
            assert!(hint.contains(words), "{kind}: {hint}");
        }
    }
}
