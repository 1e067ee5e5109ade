//! What can go wrong between us and a CA: which CA, in which phase, and what
//! it said of each identifier, made safe to show.

use std::fmt;
use std::time::Duration;

use thiserror::Error;

use super::JournalError;
use super::transport::TransportError;
use crate::challenge::SolverError;

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

/// What happened.
#[derive(Debug, Error)]
#[allow(missing_docs)] // each message is its own documentation
pub enum Cause {
    #[error("{0}")]
    Unreachable(String),
    #[error("the CA's answer makes no sense: {0}")]
    Protocol(String),
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    NotProven(String),
    #[error("{message}")]
    RateLimited {
        message: String,
        retry_after: Option<Duration>,
    },
    #[error("no answer could be laid out: {0}")]
    Solver(#[from] SolverError),
    #[error("the intent could not be stored: {0}")]
    Journal(JournalError),
    #[error("no end after {0:?}")]
    TimedOut(Duration),
    #[error(
        "the CA offers no challenge that is configured here for {identifier} (it offers {offered})"
    )]
    NoChallenge { identifier: String, offered: String },
}

impl Cause {
    /// The next thing for the user to do.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => {
                "check the network, the directory URL, and with a private CA that --ca-root names its root"
            }
            Self::Protocol(_) => "check that the URL is an ACME directory; try again later",
            Self::Refused(_) => {
                "the CA will not sign this as asked; change what it names and try again"
            }
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

    /// Sorts an instant-acme error. `retry_after` is what the transport saw.
    pub(super) fn of(error: instant_acme::Error, retry_after: Option<Duration>) -> Self {
        match error {
            instant_acme::Error::Api(problem) => Self::of_problem(&problem, retry_after),
            instant_acme::Error::Other(inner) => match inner.downcast::<TransportError>() {
                Ok(transport) => match *transport {
                    TransportError::Unavailable { .. }
                    | TransportError::Io(_)
                    | TransportError::TimedOut(_) => Self::Unreachable(transport.to_string()),
                    _ => Self::Protocol(transport.to_string()),
                },
                Err(other) => Self::Protocol(printable(&other.to_string())),
            },
            other => Self::Protocol(printable(&other.to_string())),
        }
    }

    pub(super) fn of_problem(
        problem: &instant_acme::Problem,
        retry_after: Option<Duration>,
    ) -> Self {
        let message = describe(problem);
        let kind = problem.r#type.as_deref().unwrap_or("");
        match kind
            .strip_prefix("urn:ietf:params:acme:error:")
            .unwrap_or(kind)
        {
            "rateLimited" => Self::RateLimited {
                message,
                retry_after,
            },
            "serverInternal" => Self::Unreachable(message),
            "badNonce" => Self::Protocol(message),
            "connection" | "dns" | "incorrectResponse" | "tls" | "unauthorized" => {
                Self::NotProven(message)
            }
            _ => Self::Refused(message),
        }
    }
}

/// The CA's `type` and `detail`, and those of its subproblems by identifier.
pub(super) fn describe(problem: &instant_acme::Problem) -> String {
    let part = |kind: Option<&str>, detail: Option<&str>| {
        format!(
            "{}: {}",
            printable(kind.unwrap_or("no type")),
            printable(detail.unwrap_or("no detail"))
        )
    };
    let mut text = part(problem.r#type.as_deref(), problem.detail.as_deref());
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

/// Escapes control characters and cuts at 1,000 characters: what a CA says
/// must not be able to steer a terminal or flood a log.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .take(1000)
        .flat_map(|c| {
            let escaped = c.is_control() || ('\u{202a}'..='\u{2069}').contains(&c);
            let (plain, special) = if escaped {
                (None, Some(c.escape_unicode()))
            } else {
                (Some(c), None)
            };
            plain.into_iter().chain(special.into_iter().flatten())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_ca_says_is_escaped_and_bounded() {
        assert_eq!(printable("a\x1b[31m\nb"), "a\\u{1b}[31m\\u{a}b");
        assert_eq!(printable(&"x".repeat(5000)).len(), 1000);
    }

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
            Cause::of_problem(&problem("rateLimited"), None),
            Cause::RateLimited { .. }
        ));
        assert!(matches!(
            Cause::of_problem(&problem("connection"), None),
            Cause::NotProven(_)
        ));
        let Cause::Refused(text) = Cause::of_problem(&problem("rejectedIdentifier"), None) else {
            panic!()
        };
        assert!(
            text.contains("a.example: urn:ietf:params:acme:error:caa: no\\u{1b}"),
            "{text}"
        );
    }
}
