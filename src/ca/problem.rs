//! Problem documents (RFC 7807, RFC 8555 section 6.7): every refusal of the CA.

use std::fmt;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{CONTENT_TYPE, LOCATION, RETRY_AFTER};
use serde::{Deserialize, Serialize};

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
    Unauthorized,
    UnsupportedContact,
    UserActionRequired,
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
            | Self::RejectedIdentifier
            | Self::UserActionRequired => StatusCode::FORBIDDEN,
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
    /// Seconds.
    #[serde(default)]
    retry_after: Option<u64>,
    #[serde(default)]
    location: Option<String>,
}

impl Problem {
    pub(super) fn new(kind: ErrorType, detail: impl Into<String>) -> Self {
        Self {
            kind,
            status: kind.status().as_u16(),
            detail: detail.into(),
            subproblems: Vec::new(),
            retry_after: None,
            location: None,
        }
    }

    pub(super) fn malformed(detail: impl Into<String>) -> Self {
        Self::new(ErrorType::Malformed, detail)
    }

    /// An unknown object, or one of another account: the reply is the same.
    pub(super) fn not_found(what: &str) -> Self {
        Self::malformed(format!("no {what} found")).with_status(StatusCode::NOT_FOUND)
    }

    pub(super) fn internal(error: &dyn std::fmt::Display) -> Self {
        tracing::error!("the embedded CA failed: {error}");
        Self::new(ErrorType::ServerInternal, "the CA failed internally")
    }

    pub(super) fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status.as_u16();
        self
    }

    pub(super) fn with_retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    pub(super) fn with_location(mut self, url: String) -> Self {
        self.location = Some(url);
        self
    }

    pub(super) fn about(mut self, identifier: Identifier, detail: impl Into<String>) -> Self {
        self.subproblems
            .push((identifier, self.kind, detail.into()));
        self
    }

    pub(super) fn json(&self) -> serde_json::Value {
        let mut json = serde_json::json!({
            "type": self.kind.urn(), "detail": self.detail, "status": self.status,
        });
        if !self.subproblems.is_empty() {
            let subproblem = |(identifier, kind, detail): &(Identifier, ErrorType, String)| {
                serde_json::json!({
                    "type": kind.urn(), "detail": detail, "identifier": identifier_json(identifier),
                })
            };
            json["subproblems"] = self.subproblems.iter().map(subproblem).collect();
        }
        if self.kind == ErrorType::BadSignatureAlgorithm {
            json["algorithms"] = serde_json::json!(ALGORITHMS);
        }
        json
    }
}

/// An identifier as RFC 8555 section 9.7.7 and RFC 8738 write it.
pub(super) fn identifier_json(identifier: &Identifier) -> serde_json::Value {
    let kind = match identifier {
        Identifier::Dns(_) => "dns",
        Identifier::Ip(_) => "ip",
    };
    serde_json::json!({"type": kind, "value": identifier.to_string()})
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.json().to_string()));
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            http::HeaderValue::from_static("application/problem+json"),
        );
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if let Some(Ok(url)) = self.location.map(http::HeaderValue::try_from) {
            headers.insert(LOCATION, url);
        }
        response
    }
}
