//! The CA's documents, read into instant-acme's types. Where those are
//! stricter than a client may be (an unknown kind of identifier in one
//! subproblem, an oddly shaped challenge, an echo that is no certificate
//! identifier), the odd part is left out and the rest is kept.

use bytes::Bytes;
use http::Response;
use http::header::CONTENT_TYPE;
use instant_acme::{AuthorizationState, Challenge, OrderState, Problem, Subproblem};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::Cause;
use crate::text::printable;

const ACME_ERROR: &str = "urn:ietf:params:acme:error:";

/// The last part of an ACME problem's type, or the whole of another's.
pub(super) fn kind(problem: &Problem) -> &str {
    let kind = problem.r#type.as_deref().unwrap_or("");
    kind.strip_prefix(ACME_ERROR).unwrap_or(kind)
}

/// Whether names are paused: Boulder, after 1,152 failures of one in a row, calls
/// that a rate limit too, but only a person who opens the URL it gives ends it.
pub(super) fn is_pause(problem: &Problem) -> bool {
    let detail = problem.detail.as_deref().unwrap_or("");
    is_rate_limit(problem) && detail.contains("/unpause?")
}

pub(super) fn is_rate_limit(problem: &Problem) -> bool {
    kind(problem) == "rateLimited"
}

/// Whether the CA rejects the nonce alone, whatever status it says so with.
pub(super) fn is_bad_nonce(reply: &Response<Bytes>) -> bool {
    let content_type = reply.headers().get(CONTENT_TYPE);
    let content_type = content_type.and_then(|value| value.to_str().ok());
    !reply.status().is_success()
        && problem(content_type.unwrap_or(""), reply.body())
            .is_some_and(|problem| kind(&problem) == "badNonce")
}

/// The problem document in `body`, if it is one.
pub(super) fn problem(content_type: &str, body: &[u8]) -> Option<Problem> {
    if !content_type.contains("json") {
        return None;
    }
    let value: Value = serde_json::from_slice(body).ok()?;
    if !value.is_object() {
        return None;
    }
    Some(lenient_problem(&value))
}

fn lenient_problem(value: &Value) -> Problem {
    let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    let subproblems = value.get("subproblems").and_then(Value::as_array);
    Problem {
        r#type: text("type"),
        detail: text("detail"),
        status: None,
        subproblems: subproblems
            .into_iter()
            .flatten()
            .take(100)
            .map(|sub| Subproblem {
                identifier: sub
                    .get("identifier")
                    .and_then(|identifier| read(identifier).ok()),
                r#type: sub.get("type").and_then(Value::as_str).map(str::to_owned),
                detail: sub.get("detail").and_then(Value::as_str).map(str::to_owned),
            })
            .collect(),
    }
}

/// An order (RFC 8555 section 7.1.3).
pub(super) fn order(body: &[u8]) -> Result<OrderState, Cause> {
    let mut value = object(body)?;
    // What was replaced is our knowledge; the echo is not needed.
    value.remove("replaces");
    let error = value.remove("error").filter(Value::is_object);
    let mut state: OrderState = read(&Value::Object(value))?;
    state.error = error.as_ref().map(lenient_problem);
    Ok(state)
}

/// An authorization (RFC 8555 section 7.1.4), with the challenges that can be
/// read.
pub(super) fn authorization(body: &[u8]) -> Result<AuthorizationState, Cause> {
    let mut value = object(body)?;
    let challenges = value.insert("challenges".into(), Value::Array(Vec::new()));
    let mut state: AuthorizationState = read(&Value::Object(value))?;
    let Some(Value::Array(challenges)) = challenges else {
        return Ok(state);
    };
    state.challenges = challenges
        .into_iter()
        .filter_map(|mut challenge| {
            let error = challenge
                .as_object_mut()?
                .remove("error")
                .filter(Value::is_object);
            let mut challenge: Challenge = read(&challenge).ok()?;
            challenge.error = error.as_ref().map(lenient_problem);
            Some(challenge)
        })
        .collect();
    Ok(state)
}

fn object(body: &[u8]) -> Result<serde_json::Map<String, Value>, Cause> {
    serde_json::from_slice(body).map_err(|error| Cause::Protocol(printable(&error.to_string())))
}

fn read<T: DeserializeOwned>(value: &Value) -> Result<T, Cause> {
    T::deserialize(value).map_err(|error| Cause::Protocol(printable(&error.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use instant_acme::{ChallengeType, OrderStatus};
    use serde_json::json;

    fn bytes(value: &Value) -> Vec<u8> {
        value.to_string().into_bytes()
    }

    #[test]
    fn an_odd_echo_or_error_does_not_lose_the_order() {
        for replaces in [json!(null), json!("no dot"), json!(7), json!("a.b")] {
            let order = order(&bytes(&json!({
                "status": "pending", "authorizations": ["https://ca/1"], "finalize": "https://ca/f",
                "replaces": replaces, "error": {"type": 7, "subproblems": [{"identifier": {"type": "new", "value": []}}]},
            })))
            .unwrap();
            assert_eq!(order.status, OrderStatus::Pending);
            assert_eq!(order.error.unwrap().subproblems.len(), 1);
        }
        assert!(order(b"[]").is_err());
        assert!(order(b"{\"status\":\"pending\"}").is_err());
    }

    #[test]
    fn unknown_and_misshapen_challenges_leave_the_others() {
        let state = authorization(&bytes(&json!({
            "status": "pending", "identifier": {"type": "dns", "value": "a.example"},
            "challenges": [
                {"type": "dns-persist-01", "url": "https://ca/1", "status": "pending", "issuer-domain-names": ["ca"]},
                {"type": "quantum-01"}, 7,
                {"type": "http-01", "url": "https://ca/2", "status": "pending", "token": "t", "error": {"status": "x"}},
            ],
        })))
        .unwrap();
        let kinds: Vec<_> = state.challenges.into_iter().map(|c| c.r#type).collect();
        assert_eq!(
            kinds,
            [
                ChallengeType::Unknown("dns-persist-01".into()),
                ChallengeType::Http01
            ]
        );
    }
}
