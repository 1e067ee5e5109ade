//! Orders, authorizations and challenges (RFC 8555 sections 7.4 and 7.5), up
//! to the signed certificate.

use std::collections::BTreeSet;

use axum::extract::{Path, State as Shared};
use axum::response::Response;
use http::StatusCode;
use http::header::{LINK, LOCATION, RETRY_AFTER};
use serde::Deserialize;

use super::Validation;
use super::jws::decode;
use super::nonces::unguessable;
use super::problem::{ErrorType, Problem, identifier_json};
use super::request::SigningRequest;
use super::server::{Server, reply};
use super::signed::Signed;
use super::state::{Authorization, Certificate, Id, NewOrder, Order, Status};
use crate::identifier::Identifier;

const MOST_IDENTIFIERS: usize = 100;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OrderRequest {
    identifiers: Vec<WireIdentifier>,
    not_before: Option<serde_json::Value>,
    not_after: Option<serde_json::Value>,
    replaces: Option<String>,
    profile: Option<String>,
}

#[derive(Deserialize)]
struct WireIdentifier {
    #[serde(rename = "type")]
    kind: String,
    value: String,
}

/// Creates an order.
pub(super) async fn new_order(
    Shared(server): Shared<Server>,
    signed: Signed,
) -> Result<Response, Problem> {
    let account = signed.account()?.clone();
    let request: OrderRequest = signed.payload()?;
    if request.not_before.is_some() || request.not_after.is_some() {
        return Err(Problem::malformed(
            "notBefore and notAfter are not supported: this CA sets the dates",
        ));
    }
    let identifiers = identifiers(&request.identifiers)?;
    if server.0.settings.validation != Validation::AlwaysValid {
        refuse_wildcards(&identifiers)?;
    }
    let settings = &server.0.settings;
    let profile = request.profile.as_deref().or(settings.default_profile());
    let profile = profile.filter(|name| settings.profiles.contains_key(*name));
    let Some(profile) = profile.map(str::to_owned) else {
        let detail = "unknown profile: the directory lists the supported ones";
        return Err(Problem::new(ErrorType::InvalidProfile, detail));
    };
    let now = server.now();
    let new = NewOrder {
        account,
        identifiers,
        profile,
        profile_named: request.profile.is_some(),
        replaces: request.replaces,
        expires: now + settings.order_lifetime,
    };
    let added = server.change(|state| {
        let id = state.add_order(new, now, unguessable)?;
        let order = state.orders.get(&id).cloned();
        Ok((id, order))
    });
    let (id, order) = added.await?;
    let order = order.ok_or_else(|| Problem::not_found("order"))?;
    Ok(shown(&server, StatusCode::CREATED, &id, &order))
}

fn identifiers(wanted: &[WireIdentifier]) -> Result<BTreeSet<Identifier>, Problem> {
    if wanted.is_empty() || wanted.len() > MOST_IDENTIFIERS {
        return Err(Problem::malformed("an order has 1 to 100 identifiers"));
    }
    let mut identifiers = BTreeSet::new();
    for wanted in wanted {
        let shown = wanted.value.chars().take(255).collect::<String>();
        let shown = shown.escape_debug();
        let parsed = Identifier::parse(&wanted.value).ok();
        let canonical =
            parsed.filter(|parsed| parsed.to_string().eq_ignore_ascii_case(&wanted.value));
        let identifier = match (wanted.kind.as_str(), canonical) {
            ("dns", Some(name @ Identifier::Dns(_))) => name,
            ("ip", Some(address @ Identifier::Ip(_))) => address,
            ("dns" | "ip", _) => {
                return Err(Problem::malformed(format!(
                    "`{shown}` is not a valid DNS name in A-label form or canonical IP address"
                )));
            }
            _ => {
                let detail = "only identifiers of type dns and ip are supported";
                return Err(Problem::new(ErrorType::RejectedIdentifier, detail));
            }
        };
        identifiers.insert(identifier);
    }
    Ok(identifiers)
}

fn refuse_wildcards(identifiers: &BTreeSet<Identifier>) -> Result<(), Problem> {
    let wildcards = identifiers.iter().filter(|name| name.is_wildcard());
    let mut problem = None;
    for wildcard in wildcards {
        let detail = "a wildcard needs dns-01, which this CA does not validate";
        let so_far = problem.take();
        let so_far = so_far.unwrap_or_else(|| Problem::new(ErrorType::RejectedIdentifier, detail));
        problem = Some(so_far.about(wildcard.clone(), detail));
    }
    problem.map_or(Ok(()), Err)
}

/// Shows an order.
pub(super) async fn order(
    Shared(server): Shared<Server>,
    Path(id): Path<Id>,
    signed: Signed,
) -> Result<Response, Problem> {
    let account = signed.reader()?;
    let now = server.now();
    let order = server.look(|state| state.order(account, &id, now).cloned())?;
    Ok(shown(&server, StatusCode::OK, &id, &order))
}

fn shown(server: &Server, status: StatusCode, id: &str, order: &Order) -> Response {
    let url = server.url(&format!("/acme/order/{id}"));
    let authorizations: Vec<_> = order
        .authorizations
        .iter()
        .map(|id| server.url(&format!("/acme/authorization/{id}")))
        .collect();
    let identifiers: Vec<_> = order.identifiers.iter().map(identifier_json).collect();
    let mut json = serde_json::json!({
        "status": order.status,
        "expires": order.expires,
        "identifiers": identifiers,
        "authorizations": authorizations,
        "finalize": format!("{url}/finalize"),
    });
    if let Some(problem) = &order.error {
        json["error"] = problem.json();
    }
    if let Some(name) = &order.certificate {
        json["certificate"] = server.url(&format!("/acme/certificate/{name}")).into();
    }
    if let Some(replaces) = &order.replaces {
        json["replaces"] = replaces.as_str().into();
    }
    if order.profile_named {
        json["profile"] = order.profile.as_str().into();
    }
    let response = reply(status, &json, [(LOCATION, url)]);
    with_retry_after(server, order.status, response)
}

fn with_retry_after(server: &Server, status: Status, mut response: Response) -> Response {
    if let (Status::Pending | Status::Processing, Some(wait)) =
        (status, server.0.settings.retry_after)
    {
        response
            .headers_mut()
            .insert(RETRY_AFTER, wait.as_secs().into());
    }
    response
}

#[derive(Deserialize)]
struct AuthorizationUpdate {
    status: String,
}

/// Shows or deactivates an authorization.
pub(super) async fn authorization(
    Shared(server): Shared<Server>,
    Path(id): Path<Id>,
    signed: Signed,
) -> Result<Response, Problem> {
    let account = signed.account()?;
    let now = server.now();
    if !signed.is_post_as_get() {
        let update: AuthorizationUpdate = signed.payload()?;
        if update.status != "deactivated" {
            let detail = "the only new status of an authorization is `deactivated`";
            return Err(Problem::malformed(detail));
        }
        let deactivated = server.change(|state| state.deactivate_authorization(account, &id, now));
        deactivated.await?;
    }
    let authorization = server.look(|state| state.authorization(account, &id, now).cloned())?;
    let name = authorization.identifier.to_string();
    let base = name.strip_prefix("*.").unwrap_or(&name);
    let mut json = serde_json::json!({
        "identifier": identifier_json(&authorization.identifier),
        "status": authorization.status,
        "expires": authorization.expires,
        "challenges": [challenge_json(&server, &id, &authorization)],
    });
    json["identifier"]["value"] = base.into();
    if authorization.identifier.is_wildcard() {
        json["wildcard"] = true.into();
    }
    let response = reply(StatusCode::OK, &json, []);
    Ok(with_retry_after(&server, authorization.status, response))
}

fn challenge_json(server: &Server, id: &str, authorization: &Authorization) -> serde_json::Value {
    let challenge = &authorization.challenge;
    let mut json = serde_json::json!({
        "type": if authorization.identifier.is_wildcard() { "dns-01" } else { "http-01" },
        "url": server.url(&format!("/acme/challenge/{id}")),
        "status": challenge.status,
        "token": challenge.token,
    });
    if let Some(validated) = challenge.validated {
        json["validated"] = serde_json::json!(validated);
    }
    if let Some(problem) = &challenge.error {
        json["error"] = problem.json();
    }
    json
}

/// Shows a challenge, or starts its validation.
pub(super) async fn challenge(
    Shared(server): Shared<Server>,
    Path(id): Path<Id>,
    signed: Signed,
) -> Result<Response, Problem> {
    let account = signed.account()?;
    let now = server.now();
    server.look(|state| state.authorization(account, &id, now).map(|_| ()))?;
    if !signed.is_post_as_get() {
        let _: serde_json::Map<String, serde_json::Value> = signed.payload()?;
        let begun = server.change(|state| {
            // Spawned before the first await: if the client disconnects now, the
            // challenge must still be validated.
            if state.begin_validation(&id) {
                server.spawn_validation(id.clone());
            }
            Ok(())
        });
        begun.await?;
    }
    let authorization = server.look(|state| state.authorization(account, &id, now).cloned())?;
    let up = server.url(&format!("/acme/authorization/{id}"));
    let up = (LINK, format!("<{up}>;rel=\"up\""));
    let response = reply(
        StatusCode::OK,
        &challenge_json(&server, &id, &authorization),
        [up],
    );
    Ok(with_retry_after(
        &server,
        authorization.challenge.status,
        response,
    ))
}

#[derive(Deserialize)]
struct Finalize {
    csr: String,
}

/// Signs a validated order.
pub(super) async fn finalize(
    Shared(server): Shared<Server>,
    Path(id): Path<Id>,
    signed: Signed,
) -> Result<Response, Problem> {
    let account = signed.account()?;
    let finalize: Finalize = signed.payload()?;
    let now = server.now();
    let (request, profile) = server.look(|state| {
        let key = state
            .accounts
            .get(account)
            .map(|account| account.key.clone());
        let key = key.ok_or_else(|| Problem::not_found("account"))?;
        let order = state.order(account, &id, now)?;
        if order.status != Status::Ready {
            let detail = format!("the order is {}", serde_json::json!(order.status));
            return Err(Problem::new(ErrorType::OrderNotReady, detail));
        }
        let request = SigningRequest::check(&decode(&finalize.csr)?, &order.identifiers, &key)?;
        // From here on a second request cannot sign the order again.
        order.status = Status::Processing;
        Ok((request, order.profile.clone()))
    })?;
    let signed = sign(&server, account, &request, &profile);
    let ended = server.change(|state| {
        match signed {
            Ok((name, certificate)) => state.complete(&id, name, certificate),
            Err(problem) => {
                state.order(account, &id, now)?.status = Status::Ready;
                return Err(problem);
            }
        }
        state.order(account, &id, now).cloned()
    });
    Ok(shown(&server, StatusCode::OK, &id, &ended.await?))
}

fn sign(
    server: &Server,
    account: &Id,
    request: &SigningRequest,
    profile: &str,
) -> Result<(String, Certificate), Problem> {
    let now = server.now();
    let profile = server.0.settings.profiles.get(profile);
    let profile = profile.ok_or_else(|| Problem::not_found("profile"))?;
    let not_before = now - profile.backdate;
    let not_after = not_before + profile.lifetime - std::time::Duration::from_secs(1);
    let leaf = server.0.authority.sign(request, not_before, not_after, now);
    let leaf = leaf.map_err(|error| Problem::internal(&error))?;
    let name = leaf.facts.renewal_id;
    let name =
        name.ok_or_else(|| Problem::internal(&"a leaf without an authority key identifier"))?;
    let certificate = Certificate {
        account: account.clone(),
        identifiers: leaf.facts.identifiers,
        chain_pem: leaf.chain_pem,
        not_before: leaf.facts.not_before,
        not_after: leaf.facts.not_after,
        issued: now,
        revoked: None,
    };
    Ok((name, certificate))
}
