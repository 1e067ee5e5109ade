//! Orders and authorizations, parsed into instant-acme's types. Those types are
//! stricter than a client may be: an unknown challenge or an unexpected echo
//! fails the whole document. Here the unexpected part is dropped, the rest kept.

use std::ops::{Deref, DerefMut};

use instant_acme::{AuthorizationState, Challenge, OrderState, Problem};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::error::Cause;
use super::problem::from_value;
use crate::challenge::ChallengeKind;
use crate::time::Timestamp;

/// Far above the kinds of challenges that exist.
const MOST_CHALLENGES: usize = 32;

/// The member of a persistent challenge that names its CA, by the texts of its draft, and the
/// most names that they allow.
const ISSUERS: [&str; 2] = ["issuerDomainNames", "issuer-domain-names"];
const MOST_ISSUERS: usize = 10;

/// An authorization, with what a draft adds to it.
pub(super) struct Authorization {
    state: AuthorizationState,
    /// The names that its persistent challenge has for the CA.
    pub(super) issuers: Vec<String>,
}

impl Deref for Authorization {
    type Target = AuthorizationState;
    fn deref(&self) -> &Self::Target {
        &self.state
    }
}

impl DerefMut for Authorization {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.state
    }
}

/// An order (RFC 8555 section 7.1.3).
pub(super) fn order(body: &[u8]) -> Result<OrderState, Cause> {
    let mut order: Map<String, Value> = serde_json::from_slice(body)?;
    // We know what the order replaces; an unexpected echo must not fail it.
    order.remove("replaces");
    let error = take_error(&mut order);
    let mut state = OrderState::deserialize(order)?;
    state.error = error;
    Ok(state)
}

/// The end of an order's time, if its document tells a valid one.
pub(super) fn expires(body: &[u8]) -> Option<Timestamp> {
    let order: Value = serde_json::from_slice(body).ok()?;
    Timestamp::deserialize(&order["expires"]).ok()
}

/// An authorization (RFC 8555 section 7.1.4), with the challenges that parse.
pub(super) fn authorization(body: &[u8]) -> Result<Authorization, Cause> {
    let mut authorization: Map<String, Value> = serde_json::from_slice(body)?;
    let challenges = authorization.insert("challenges".into(), json!([]));
    let mut state = AuthorizationState::deserialize(authorization)?;
    let mut issuers = Vec::new();
    if let Some(Value::Array(challenges)) = challenges {
        let parsed = challenges
            .into_iter()
            .take(MOST_CHALLENGES)
            .filter_map(|mut challenge| {
                let error = take_error(challenge.as_object_mut()?);
                if is_persistent(&challenge) {
                    issuers = issuers_of(&challenge)?;
                }
                let challenge = Challenge::deserialize(challenge).ok()?;
                Some(Challenge { error, ..challenge })
            });
        state.challenges = parsed.collect();
    }
    Ok(Authorization { state, issuers })
}

fn is_persistent(challenge: &Value) -> bool {
    let kind = challenge["type"].as_str();
    kind.is_some_and(|kind| kind.parse().is_ok_and(ChallengeKind::is_persistent))
}

/// The names of the CA in a persistent challenge, if they are valid: the challenge is not
/// without.
fn issuers_of(challenge: &Value) -> Option<Vec<String>> {
    let listed = ISSUERS.iter().find_map(|member| challenge.get(member));
    let listed = listed.and_then(Value::as_array)?;
    let is_letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
    let is_name = |name: &&str| {
        let has_labels = !name.split('.').any(str::is_empty);
        name.len() <= 253 && has_labels && name.chars().all(is_letter)
    };
    let names = listed.iter().map(|name| name.as_str().filter(is_name));
    let names: Option<Vec<&str>> = names.collect();
    let names = names.filter(|names| (1..=MOST_ISSUERS).contains(&names.len()))?;
    Some(names.into_iter().map(str::to_owned).collect())
}

/// Removes and returns the problem in `object`, which need not parse.
fn take_error(object: &mut Map<String, Value>) -> Option<Problem> {
    let error = object.remove("error").filter(Value::is_object)?;
    Some(from_value(&error))
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
    fn order_is_read_despite_unexpected_echo_or_error() {
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
    fn authorization_keeps_valid_challenges_beside_unknown_and_invalid_ones() {
        let state = authorization(&bytes(&json!({
            "status": "pending", "identifier": {"type": "dns", "value": "a.example"},
            "challenges": [
                {"type": "dns-persist-01", "url": "https://ca/1", "status": "pending", "issuer-domain-names": ["ca"]},
                {"type": "quantum-01"}, 7,
                {"type": "http-01", "url": "https://ca/2", "status": "pending", "token": "t", "error": {"status": "x"}},
            ],
        })))
        .unwrap();
        assert_eq!(state.issuers, ["ca"]);
        let kinds: Vec<_> = state.challenges.iter().map(|c| c.r#type.clone()).collect();
        assert_eq!(
            kinds,
            [
                ChallengeType::Unknown("dns-persist-01".into()),
                ChallengeType::Http01
            ]
        );
    }

    #[test]
    fn persistent_challenge_without_valid_issuers_is_dropped() {
        for (member, issuers, is_kept) in [
            (
                "issuerDomainNames",
                json!(["ca.example", "b.example"]),
                true,
            ),
            ("issuer-domain-names", json!(["ca.example"]), true),
            ("issuers", json!(["ca.example"]), false),
            ("issuerDomainNames", json!([]), false),
            ("issuerDomainNames", json!(["CA.example"]), false),
            ("issuerDomainNames", json!(["ca.example."]), false),
            (
                "issuerDomainNames",
                json!(["ca.example; accounturi=x"]),
                false,
            ),
            ("issuerDomainNames", json!(vec!["ca.example"; 11]), false),
            ("issuerDomainNames", json!([7]), false),
        ] {
            let challenge =
                json!({"type": "dns-persist-01", "url": "u", "status": "pending", member: issuers});
            let state = authorization(&bytes(&json!({
                "status": "pending", "identifier": {"type": "dns", "value": "a.example"}, "challenges": [challenge],
            })));
            assert_eq!(
                !state.unwrap().challenges.is_empty(),
                is_kept,
                "{member} {issuers}"
            );
        }
    }
}
