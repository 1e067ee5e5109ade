//! Problem documents (RFC 7807, RFC 8555 section 6.7): every refusal of the CA.

use std::fmt;

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderName};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::identifier::Identifier;

/// The JWS algorithms that this CA verifies.
pub(super) const ALGORITHMS: [&str; 3] = ["ES256", "ES384", "RS256"];

/// The error types of RFC 8555 section 6.7, RFC 9773 and the profiles draft
/// that this CA uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum ErrorType {
    AccountDoesNotExist,
    AlreadyReplaced,
    AlreadyRevoked,
    #[serde(rename = "badCSR")]
    BadCsr,
    BadNonce,
    BadPublicKey,
    BadRevocationReason,
    BadSignatureAlgorithm,
    Connection,
    Dns,
    ExternalAccountRequired,
    IncorrectResponse,
    InvalidContact,
    InvalidProfile,
    Malformed,
    OrderNotReady,
    RateLimited,
    RejectedIdentifier,
    ServerInternal,
    Tls,
    Unauthorized,
    UnsupportedContact,
}

impl ErrorType {
    fn urn(self) -> String {
        let name = serde_json::to_value(self).unwrap_or_default();
        let name = name.as_str().unwrap_or("serverInternal");
        format!("urn:ietf:params:acme:error:{name}")
    }

    fn status(self) -> StatusCode {
        match self {
            Self::AlreadyReplaced => StatusCode::CONFLICT,
            Self::ExternalAccountRequired
            | Self::OrderNotReady
            | Self::Unauthorized
            | Self::RejectedIdentifier => StatusCode::FORBIDDEN,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::ServerInternal => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// A refusal, or a failed validation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Problem {
    pub(super) kind: ErrorType,
    status: u16,
    detail: String,
    #[serde(default)]
    subproblems: Vec<(Identifier, ErrorType, String)>,
    #[serde(skip)]
    header: Option<(HeaderName, String)>,
}

impl Problem {
    pub(super) fn new(kind: ErrorType, detail: impl Into<String>) -> Self {
        Self {
            kind,
            status: kind.status().as_u16(),
            detail: detail.into(),
            subproblems: Vec::new(),
            header: None,
        }
    }

    pub(super) fn malformed(detail: impl Into<String>) -> Self {
        Self::new(ErrorType::Malformed, detail)
    }

    /// An unknown object, or one of another account: the reply is the same.
    pub(super) fn not_found(what: &str) -> Self {
        Self::malformed(format!("no {what} found")).with_status(StatusCode::NOT_FOUND)
    }

    pub(super) fn internal(error: &dyn fmt::Display) -> Self {
        tracing::error!("the embedded CA failed: {error}");
        Self::new(ErrorType::ServerInternal, "the CA failed internally")
    }

    pub(super) fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status.as_u16();
        self
    }

    pub(super) fn with_header(mut self, name: HeaderName, value: impl ToString) -> Self {
        self.header = Some((name, value.to_string()));
        self
    }

    pub(super) fn about(mut self, identifier: &Identifier, detail: &str) -> Self {
        let subproblem = (identifier.clone(), self.kind, detail.to_owned());
        self.subproblems.push(subproblem);
        self
    }

    pub(super) fn json(&self) -> Value {
        let subproblem = |(identifier, kind, detail): &(Identifier, ErrorType, String)| json!({"type": kind.urn(), "detail": detail, "identifier": identifier_json(identifier)});
        let subproblems: Vec<_> = self.subproblems.iter().map(subproblem).collect();
        let is_of_algorithm = self.kind == ErrorType::BadSignatureAlgorithm;
        without_nulls(json!({
            "type": self.kind.urn(),
            "detail": self.detail,
            "status": self.status,
            "subproblems": (!subproblems.is_empty()).then_some(subproblems),
            "algorithms": is_of_algorithm.then_some(ALGORITHMS),
        }))
    }
}

/// Refuses a request unless `condition` holds.
pub(super) fn ensure(condition: bool, kind: ErrorType, detail: &str) -> Result<(), Problem> {
    match condition {
        true => Ok(()),
        false => Err(Problem::new(kind, detail)),
    }
}

/// An object without its absent members.
pub(super) fn without_nulls(mut object: Value) -> Value {
    if let Some(members) = object.as_object_mut() {
        members.retain(|_, member| !member.is_null());
    }
    object
}

/// An identifier as RFC 8555 section 9.7.7 and RFC 8738 write it.
pub(super) fn identifier_json(identifier: &Identifier) -> Value {
    let kind = match identifier {
        Identifier::Dns(_) => "dns",
        Identifier::Ip(_) => "ip",
    };
    json!({"type": kind, "value": identifier.to_string()})
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status);
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let kind = [(CONTENT_TYPE, "application/problem+json")];
        let json = self.json().to_string();
        (status, kind, self.header.map(|header| [header]), json).into_response()
    }
}
