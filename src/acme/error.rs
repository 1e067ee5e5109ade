//! Failures at a CA: which CA, in which phase, and what the CA reports for each
//! identifier, made safe to show. Nothing here retries or sends.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use thiserror::Error;

use super::JournalError;
use super::problem::{self, describe, type_and_detail};
use crate::challenge::{ChallengeKind, SolverError};
use crate::files::beneath;
use crate::identifier::Identifier;
use crate::text::{cut, printable, printable_lines};
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
    AccountChange,
    Revocation,
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
            Self::RenewalInfo => "fetching the renewal window",
            Self::AccountChange => "changing the account",
            Self::Revocation => "revoking the certificate",
        })
    }
}

/// A failure at a CA.
#[derive(Debug, Error)]
#[error("{phase} at {ca} failed: {cause}")]
pub struct AcmeError {
    /// The directory URL.
    pub ca: String,
    /// The step that failed.
    pub phase: Phase,
    /// Why the step failed.
    #[source]
    pub cause: Cause,
}

impl AcmeError {
    /// Whether the CA rejects only the certificate's key, for example as weak or
    /// compromised.
    #[must_use]
    pub fn is_about_the_key(&self) -> bool {
        let refusal = self.cause.refusal();
        self.phase == Phase::Finalize && matches!(refusal, Some("badCSR" | "badPublicKey"))
    }
}

/// Why a step at the CA failed.
#[derive(Debug, Error)]
#[allow(missing_docs)] // each message is its own documentation
pub enum Cause {
    #[error("{0}")]
    Unreachable(Explained),
    #[error("invalid reply from the CA: {0}")]
    Protocol(String),
    #[error("{0}")]
    Refused(Explained),
    #[error("{0}")]
    NotValidated(Explained),
    #[error("{message}")]
    RateLimited {
        message: String,
        retry_after: Option<Duration>,
    },
    #[error("the challenge answer could not be published: {0}")]
    Solver(SolverError),
    #[error("the stored order or account could not be read or written: {0}")]
    Journal(JournalError),
    #[error("the registration needs the external account binding: {0}")]
    Binding(String),
    #[error("the CA did not complete the order within {} s", .0.as_secs())]
    TimedOut(Duration),
    #[error(
        "the CA offers no challenge that is configured here for {identifier} (it offers {offered})"
    )]
    NoChallenge { identifier: String, offered: String },
}

/// A name for which an order failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedName {
    /// The name.
    pub identifier: Identifier,
    /// The CA's `type` and `detail`, safe to show.
    pub reason: String,
}

/// A message with its hint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    pub(super) message: Box<str>,
    pub(super) hint: Cow<'static, str>,
    /// The CA's error type (`caa`, `rejectedIdentifier`); empty for an error of ours.
    /// Boxed as the names are, so that errors stay small.
    pub(super) kind: Box<str>,
    /// A retry within the run may succeed.
    pub(super) is_temporary: bool,
    /// By the types of the CA's problems.
    pub(super) may_be_caa: bool,
    /// The failed names, if the CA reports them.
    names: Box<[FailedName]>,
}

impl Explained {
    pub(super) fn new(message: impl Into<String>, hint: impl Into<Cow<'static, str>>) -> Self {
        Self {
            message: message.into().into(),
            hint: hint.into(),
            kind: Box::default(),
            is_temporary: false,
            may_be_caa: false,
            names: Box::default(),
        }
    }
}

impl<T: Into<String>> From<T> for Explained {
    fn from(message: T) -> Self {
        Self::new(message, "")
    }
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Why a request got no reply.
#[derive(Debug, Error)]
#[allow(missing_docs)] // each message is its own documentation
pub enum ExchangeError {
    #[error("the CA's host name does not resolve: {0}")]
    Unresolved(String),
    #[error("cannot connect to the CA: {0}")]
    Connect(String),
    #[error("the certificate of the CA's server is not trusted: {0}")]
    Untrusted(String),
    #[error(transparent)]
    OutsideValidity(#[from] OutsideValidity),
    #[error("the TLS handshake with the CA failed: {0}")]
    Tls(String),
    #[error("the connection to the CA was interrupted: {0}")]
    Broken(String),
    #[error("no answer from the CA within {} s", .0.as_secs())]
    TimedOut(Duration),
    #[error("the reply is longer than {0} bytes")]
    TooLarge(usize),
    #[error("{message}")]
    Proxy {
        message: String,
        hint: String,
        is_temporary: bool,
    },
    #[error("{error}, through the proxy {proxy}")]
    Through { proxy: String, error: Box<Self> },
}

impl ExchangeError {
    /// The same, of a server that is reached through `proxy`.
    pub(super) fn through(self, proxy: Option<String>) -> Self {
        match (self, proxy) {
            (error @ (Self::Proxy { .. } | Self::OutsideValidity(_) | Self::TooLarge(_)), _)
            | (error, None) => error,
            (error, Some(proxy)) => Self::Through {
                proxy,
                error: Box::new(error),
            },
        }
    }
}

/// By this machine's clock, the certificate of the CA's server is not valid: the clock
/// or the certificate is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)] // each message is its own documentation
pub enum OutsideValidity {
    #[error(
        "the certificate of the CA's server expired at {end}, and this machine's clock shows {ours}"
    )]
    Expired { ours: Timestamp, end: Timestamp },
    #[error(
        "the certificate of the CA's server is valid from {begin}, and this machine's clock shows {ours}"
    )]
    NotYetValid { ours: Timestamp, begin: Timestamp },
}

impl OutsideValidity {
    /// The time by our clock.
    #[must_use]
    pub fn ours(&self) -> Timestamp {
        let (Self::Expired { ours, .. } | Self::NotYetValid { ours, .. }) = self;
        *ours
    }
}

impl From<ExchangeError> for Cause {
    fn from(error: ExchangeError) -> Self {
        let direct = match &error {
            ExchangeError::Through { error, .. } => error,
            direct => direct,
        };
        let hint = match direct {
            ExchangeError::TooLarge(_) => return Self::Protocol(error.to_string()),
            ExchangeError::Proxy {
                message,
                hint,
                is_temporary,
            } => {
                return Self::Unreachable(Explained {
                    is_temporary: *is_temporary,
                    ..Explained::new(message.as_str(), hint.clone())
                });
            }
            ExchangeError::Through { .. } => "check the proxy",
            ExchangeError::Unresolved(_) => "check the directory URL and this machine's DNS",
            ExchangeError::Connect(_) => {
                "check the directory URL, the network, and this machine's outgoing firewall"
            }
            ExchangeError::Untrusted(_) => {
                "for a private CA, name its root: --ca-root root.pem; for a public CA, check this machine's clock and look for a proxy that opens TLS"
            }
            ExchangeError::OutsideValidity(_) => {
                "set this machine's clock, best by NTP; if the clock is right, report the certificate to the CA"
            }
            ExchangeError::Tls(_) => "check that the directory URL names an https server",
            ExchangeError::Broken(_) | ExchangeError::TimedOut(_) => {
                "run the same command again: an order that was placed is resumed"
            }
        };
        let is_temporary = matches!(direct, ExchangeError::Connect(_) | ExchangeError::Broken(_));
        Self::Unreachable(Explained {
            is_temporary,
            ..Explained::new(error.to_string(), hint)
        })
    }
}

impl From<serde_json::Error> for Cause {
    fn from(error: serde_json::Error) -> Self {
        Self::Protocol(printable(&error.to_string()))
    }
}

impl From<SolverError> for Cause {
    fn from(error: SolverError) -> Self {
        match error {
            SolverError::Token => Self::Protocol(error.to_string()),
            SolverError::Dns { message, hint } => {
                Self::NotValidated(Explained::new(printable_lines(&message), hint))
            }
            other => Self::Solver(other),
        }
    }
}

impl Cause {
    /// The user's next action.
    #[must_use]
    pub fn hint(&self) -> &str {
        match self {
            Self::Unreachable(explained) | Self::Refused(explained) => &explained.hint,
            Self::NotValidated(explained) if !explained.hint.is_empty() => &explained.hint,
            Self::Protocol(_) => "check that the URL is an ACME directory; try again later",
            Self::NotValidated(_) => ChallengeKind::Http01.advice(),
            Self::RateLimited { .. } => "wait until the limit ends: an earlier retry can extend it",
            Self::Solver(SolverError::Io { source, .. }) if beneath::is_refusal(source) => {
                beneath::REFUSED_HINT
            }
            Self::Solver(error) => crate::failure::advice(error)
                .unwrap_or("check the --webroot directory and its owner"),
            Self::Journal(error) => crate::failure::advice(error.as_ref())
                .unwrap_or("run again with -v and report the output"),
            Self::Binding(_) => {
                "restore the file of --eab-hmac-file, or get a new pair from the CA's web site"
            }
            Self::TimedOut(_) => "run the same command again: the order is resumed, not repeated",
            Self::NoChallenge { .. } => {
                "a wildcard needs DNS-01, --dns PROVIDER or --dns self; for other names ask the CA which challenges it offers"
            }
        }
    }

    /// The same cause, with the advice for the kind of challenge that the CA validated.
    pub(super) fn advised_by(mut self, kind: Option<ChallengeKind>) -> Self {
        if let (Self::NotValidated(explained), Some(kind)) = (&mut self, kind)
            && explained.hint.is_empty()
        {
            explained.hint = kind.advice().into();
        }
        self
    }

    /// The same cause with another message.
    pub(super) fn with_message(mut self, text: String) -> Self {
        match &mut self {
            Self::Unreachable(explained)
            | Self::Refused(explained)
            | Self::NotValidated(explained) => explained.message = text.into(),
            Self::Protocol(message) | Self::RateLimited { message, .. } => *message = text,
            _ => {}
        }
        self
    }

    /// Joins two failed validations into one report, with the hint of the first. Any other
    /// cause takes precedence over a failed validation; of two such causes, the first one does.
    pub(super) fn joined(self, other: Self) -> Self {
        match (self, other) {
            (Self::NotValidated(mut first), Self::NotValidated(second)) => {
                if first.message != second.message {
                    first.message = cut(format!("{}\n{}", first.message, second.message)).into();
                }
                first.names = first
                    .names
                    .iter()
                    .chain(second.names.iter())
                    .cloned()
                    .collect();
                first.may_be_caa |= second.may_be_caa;
                Self::NotValidated(first)
            }
            (first @ Self::NotValidated(_), second) if !matches!(second, Self::NotValidated(_)) => {
                drop(first);
                second
            }
            (first, _) => first,
        }
    }

    /// The same cause, with what this machine saw of a validation.
    pub(super) fn with_notes(self, notes: &[String]) -> Self {
        let text = match &self {
            Self::NotValidated(explained) if !notes.is_empty() => explained.to_string(),
            _ => return self,
        };
        let notes: BTreeSet<&String> = notes.iter().collect();
        let notes: String = { notes.iter() }
            .map(|note| format!("\n  seen here: {note}"))
            .collect();
        self.with_message(cut(text + &notes))
    }

    /// The same cause, with what CAA records say, and the hint that follows from them.
    pub(super) fn with_caa(self, notes: BTreeSet<String>, hint: Option<String>) -> Self {
        if notes.is_empty() {
            return self;
        }
        let notes: String = notes.iter().map(|note| format!("\n  {note}")).collect();
        let mut cause = {
            let text = self.to_string();
            self.with_message(cut(text + &notes))
        };
        if let (Self::Refused(explained) | Self::NotValidated(explained), Some(hint)) =
            (&mut cause, hint)
        {
            explained.hint = hint.into();
        }
        cause
    }

    /// The same cause, with the names that failed.
    #[must_use]
    pub fn for_names(mut self, failed: Vec<FailedName>) -> Self {
        match &mut self {
            Self::Refused(explained) | Self::NotValidated(explained) => {
                explained.names = failed.into();
            }
            _ => {}
        }
        self
    }

    /// The names that failed, if the CA reports them: an order without them may
    /// succeed.
    #[must_use]
    pub fn failed_names(&self) -> &[FailedName] {
        match self {
            Self::Refused(explained) | Self::NotValidated(explained) => &explained.names,
            _ => &[],
        }
    }

    /// The CA's error type of a refusal, such as `caa`.
    pub(super) fn refusal(&self) -> Option<&str> {
        match self {
            Self::Refused(explained) => Some(&explained.kind),
            _ => None,
        }
    }

    /// The CA's error type of any objection to a request, including
    /// `serverInternal`; `None` for an outage without a problem document and for a
    /// rate limit.
    pub(super) fn objection(&self) -> Option<&str> {
        match self {
            Self::Unreachable(explained) if !explained.kind.is_empty() => Some(&explained.kind),
            _ => self.refusal(),
        }
    }

    /// A refused registration with an external account binding, which is the likeliest
    /// reason: CAs report it under several types.
    pub(super) fn of_binding(mut self, terms_agreed: bool) -> Self {
        if let Self::Refused(explained) = &mut self {
            match explained.kind.as_ref() {
                "malformed" if !terms_agreed => {}
                "malformed" | "unauthorized" | "externalAccountRequired" => {
                    explained.hint = BINDING_HINT.into();
                    explained.kind = "externalAccountBinding".into();
                }
                _ => {}
            }
        }
        self
    }

    /// The CA answers with a server error.
    pub(super) fn failing(message: String, problem: Option<&instant_acme::Problem>) -> Self {
        let explained = Explained::new(message, "try again later: the CA is failing");
        let kind = problem.map_or("", problem::kind).into();
        Self::Unreachable(Explained {
            kind,
            is_temporary: true,
            ..explained
        })
    }

    /// Classifies the problem document of a reply.
    pub(super) fn of_reply(problem: &instant_acme::Problem) -> Self {
        match problem::kind(problem) {
            // In a reply it is about the account, in a challenge about the name.
            "unauthorized" => Self::refused(problem),
            _ => Self::of_challenge(problem),
        }
    }

    /// Classifies the problem that the CA found when it validated a name.
    pub(super) fn of_challenge(problem: &instant_acme::Problem) -> Self {
        match problem::kind(problem) {
            "rateLimited" if problem::is_pause(problem) => Self::refused(problem),
            "rateLimited" => Self::RateLimited {
                message: describe(problem),
                retry_after: None,
            },
            "serverInternal" => Self::failing(describe(problem), Some(problem)),
            "badNonce" => Self::Protocol(describe(problem)),
            "connection" | "dns" | "incorrectResponse" | "tls" | "unauthorized" => {
                let cause = Self::NotValidated(describe(problem).into());
                cause
                    .for_names(names_of(problem))
                    .or_caa(problem::may_be_caa(problem))
            }
            _ => Self::refused(problem),
        }
    }

    fn refused(problem: &instant_acme::Problem) -> Self {
        let kind = match (problem::kind(problem), problem.subproblems.first()) {
            ("compound", Some(first)) => {
                let kind = first.r#type.as_deref().unwrap_or("");
                kind.rsplit(':').next().unwrap_or(kind)
            }
            _ if problem::is_pause(problem) => "paused",
            (kind, _) => kind,
        };
        let explained = Explained::new(describe(problem), refusal_hint(kind));
        Self::Refused(Explained {
            kind: kind.into(),
            names: names_of(problem).into(),
            may_be_caa: problem::may_be_caa(problem),
            ..explained
        })
    }

    /// A rate limit; the message says when to retry, if the CA does.
    pub(super) fn rate_limited(
        message: String,
        retry_after: Option<Duration>,
        now: Timestamp,
    ) -> Self {
        let message = match retry_after {
            Some(wait) => format!("{message} (retry after {})", now + wait),
            None => message,
        };
        Self::RateLimited {
            message,
            retry_after,
        }
    }
}

const BINDING_HINT: &str = "the CA does not accept the external account binding: correct --eab-kid and --eab-hmac-file, or get a new pair from its web site, since many CAs take each pair once";

fn refusal_hint(kind: &str) -> &'static str {
    match kind {
        "caa" => {
            "the name's CAA records forbid this CA: add the value from the CA's documentation, or use a CA that they allow"
        }
        "rejectedIdentifier" | "unsupportedIdentifier" => {
            "the CA does not sign one of these names: remove that name, or use another CA"
        }
        "userActionRequired" => {
            "open the URL in the message and follow its instructions, or agree to new terms: certs account update --agree-tos; then try again"
        }
        "paused" => {
            "the CA paused these names after too many failed validations: make sure that port 80 of each reaches this machine, then open the URL in the message to unpause them"
        }
        "externalAccountRequired" => {
            "this CA requires an external account binding: get a key from its web site, then set --eab-kid and --eab-hmac-file (for a fallback CA, --fallback-eab-kid and --fallback-eab-hmac-file)"
        }
        "unauthorized" | "accountDoesNotExist" => {
            "the account may be deactivated or revoked: certs account show shows it, and certs account deactivate forgets it, so that the next order registers a new one"
        }
        "badRevocationReason" => "the CA does not take this reason: give another --reason",
        "badPublicKey" | "badCSR" => {
            "the CA rejects this kind of key: use another --key, without --reuse-key"
        }
        "invalidContact" | "unsupportedContact" => "correct or remove --email",
        _ => "the CA refuses this request: correct what the message names, then try again",
    }
}

/// The names with a subproblem of their own.
fn names_of(problem: &instant_acme::Problem) -> Vec<FailedName> {
    let named = problem.subproblems.iter().filter_map(|sub| {
        let name = sub.identifier.clone()?.authorized(false).to_string();
        Some(FailedName {
            identifier: Identifier::parse(&name).ok()?,
            reason: type_and_detail(sub.r#type.as_deref(), sub.detail.as_deref()),
        })
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problem_is_classified_by_type_and_described_per_identifier() {
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
            Cause::NotValidated(_)
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
}
