//! Orders, authorizations and challenges (RFC 8555 sections 7.4 and 7.5), up
//! to the signed certificate.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::extract::Path;
use axum::response::Response;
use http::StatusCode;
use http::header::{LINK, LOCATION};
use rcgen::SubjectPublicKeyInfo;
use serde::Deserialize;
use serde_json::{Value, json};

use super::jws::decode;
use super::nonces::unguessable;
use super::problem::ErrorType::{self, Malformed};
use super::problem::{Problem, ensure, identifier_json, without_nulls};
use super::server::{HandlerResult, Server, reply};
use super::signed::Signed;
use super::state::{Challenge, ChallengeKind, Id, ObjectStatus, Order, SignedCertificate};
use super::{DAY, HOUR, Profile, request};
use crate::identifier::Identifier;
use crate::time::Timestamp;

const MOST_IDENTIFIERS: usize = 100;
/// The time within which an order and its authorizations must be finished.
const ORDER_LIFETIME: Duration = DAY;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OrderRequest {
    identifiers: Vec<WireIdentifier>,
    not_before: Option<Timestamp>,
    not_after: Option<Timestamp>,
    replaces: Option<String>,
    profile: Option<String>,
}

#[derive(Deserialize)]
struct WireIdentifier {
    #[serde(rename = "type")]
    kind: String,
    value: String,
}

pub(super) async fn new_order(signed: Signed) -> HandlerResult {
    let (server, account) = (&signed.server, signed.account()?);
    let request: OrderRequest = signed.payload()?;
    let identifiers = identifiers(&request.identifiers)?;
    let settings = &server.0.settings;
    refuse_not_permitted(server, &identifiers)?;
    let profile = request.profile.as_deref().or(settings.default_profile());
    let profile = profile.filter(|name| settings.profiles.contains_key(*name));
    let Some(profile) = profile else {
        let detail = "unknown profile: the directory lists the supported ones";
        return Err(Problem::new(ErrorType::InvalidProfile, detail));
    };
    let now = server.now();
    let (not_before, not_after) = (request.not_before, request.not_after);
    refuse_dates(&settings.profiles[profile], not_before, not_after, now)?;
    let order = Order {
        account: account.clone(),
        identifiers,
        profile: profile.to_owned(),
        profile_named: request.profile.is_some(),
        replaces: request.replaces,
        authorizations: Vec::new(),
        status: ObjectStatus::Pending,
        error: None,
        certificate: None,
        not_before,
        not_after,
        created: now,
        expires: now + ORDER_LIFETIME,
    };
    let added = server.change(|state| state.add_order(order, unguessable));
    let (id, order) = added.await?;
    Ok(shown(server, StatusCode::CREATED, &id, &order))
}

fn identifiers(wanted: &[WireIdentifier]) -> Result<BTreeSet<Identifier>, Problem> {
    let is_allowed = (1..=MOST_IDENTIFIERS).contains(&wanted.len());
    ensure(is_allowed, Malformed, "an order has 1 to 100 identifiers")?;
    let parse = |wanted: &WireIdentifier| {
        let parsed = Identifier::parse(&wanted.value).ok();
        let canonical =
            parsed.filter(|parsed| parsed.to_string().eq_ignore_ascii_case(&wanted.value));
        match (wanted.kind.as_str(), canonical) {
            ("dns", Some(name @ Identifier::Dns(_))) => Ok(name),
            ("ip", Some(address @ Identifier::Ip(_))) => Ok(address),
            ("dns" | "ip", _) => {
                let shown = wanted.value.chars().take(255).collect::<String>();
                let shown = shown.escape_debug();
                Err(Problem::malformed(format!(
                    "`{shown}` is not a valid DNS name in A-label form or canonical IP address"
                )))
            }
            _ => {
                let detail = "only identifiers of type dns and ip are supported";
                Err(Problem::new(ErrorType::RejectedIdentifier, detail))
            }
        }
    };
    wanted.iter().map(parse).collect()
}

/// Refuses dates outside of what the profile allows: from an hour ago on, for its lifetime.
fn refuse_dates(
    profile: &Profile,
    not_before: Option<Timestamp>,
    not_after: Option<Timestamp>,
    now: Timestamp,
) -> Result<(), Problem> {
    if not_before.is_none() && not_after.is_none() {
        // A profile may be for a second.
        return Ok(());
    }
    let (begin, end) = profile.validity(not_before, not_after, now);
    let is_allowed = begin >= now - HOUR && begin < end && end > now;
    let is_short = end <= now + profile.lifetime;
    let detail =
        "notBefore is an hour ago at the earliest, and notAfter later than both it and now";
    ensure(is_allowed, Malformed, detail)?;
    let longest = profile.lifetime.as_secs() / 3600;
    let detail =
        format!("notAfter is in {longest} hours at the latest, the lifetime of the profile");
    ensure(is_short, Malformed, &detail)
}

fn refuse_not_permitted(
    server: &Server,
    identifiers: &BTreeSet<Identifier>,
) -> Result<(), Problem> {
    let detail = "the root of this CA permits private names only: start it with --permit NAME and a new --data-dir";
    let authority = &server.0.authority;
    let refused = identifiers.iter().filter(|name| !authority.permits(name));
    let problem = refused.fold(None, |problem: Option<Problem>, name| {
        let first = || Problem::new(ErrorType::RejectedIdentifier, detail);
        Some(problem.unwrap_or_else(first).about(name, detail))
    });
    problem.map_or(Ok(()), Err)
}

pub(super) async fn order(Path(id): Path<Id>, signed: Signed) -> HandlerResult {
    let (server, account) = (&signed.server, signed.reader()?);
    let order = server.look(|state| state.order(account, &id, server.now()).cloned())?;
    Ok(shown(server, StatusCode::OK, &id, &order))
}

fn shown(server: &Server, status: StatusCode, id: &str, order: &Order) -> Response {
    let url = server.object("order", id);
    let authorizations = order.authorizations.iter();
    let authorizations = authorizations.map(|id| server.object("authorization", id));
    let identifiers = order.identifiers.iter().map(identifier_json);
    let certificate = order.certificate.as_ref();
    let json = json!({
        "status": order.status,
        "expires": order.expires,
        "identifiers": identifiers.collect::<Vec<_>>(),
        "authorizations": authorizations.collect::<Vec<_>>(),
        "finalize": format!("{url}/finalize"),
        "error": order.error.as_ref().map(Problem::json),
        "certificate": certificate.map(|name| server.object("certificate", name)),
        "notBefore": order.not_before,
        "notAfter": order.not_after,
        "replaces": order.replaces,
        "profile": order.profile_named.then_some(&order.profile),
    });
    reply(status, json, [(LOCATION, url)])
}

#[derive(Deserialize)]
struct AuthorizationUpdate {
    status: String,
}

/// Shows or deactivates an authorization.
pub(super) async fn authorization(Path(id): Path<Id>, signed: Signed) -> HandlerResult {
    let (server, account) = (&signed.server, signed.account()?);
    let now = server.now();
    if !signed.is_post_as_get() {
        let update: AuthorizationUpdate = signed.payload()?;
        let detail = "the only new status of an authorization is `deactivated`";
        ensure(update.status == "deactivated", Malformed, detail)?;
        let deactivated = server.change(|state| state.deactivate_authorization(account, &id, now));
        deactivated.await?;
    }
    let authorization = server.look(|state| state.authorization(account, &id, now).cloned())?;
    let name = authorization.identifier.to_string();
    let mut identifier = identifier_json(&authorization.identifier);
    identifier["value"] = name.strip_prefix("*.").unwrap_or(&name).into();
    let challenge = &authorization.challenge;
    let kinds = match challenge.status {
        ObjectStatus::Pending => ChallengeKind::offered(&authorization.identifier),
        _ => std::slice::from_ref(&challenge.kind),
    };
    let challenges = kinds
        .iter()
        .map(|kind| challenge_json(server, &id, challenge, *kind));
    let challenges: Vec<Value> = challenges.collect();
    let json = json!({
        "identifier": identifier,
        "status": authorization.status,
        "expires": authorization.expires,
        "challenges": challenges,
        "wildcard": authorization.identifier.is_wildcard().then_some(true),
    });
    Ok(reply(StatusCode::OK, json, ()))
}

fn challenge_json(server: &Server, id: &str, challenge: &Challenge, kind: ChallengeKind) -> Value {
    let kind = json!(kind);
    let name = kind.as_str().unwrap_or_default();
    without_nulls(json!({
        "type": name,
        "url": server.object("challenge", &format!("{id}/{name}")),
        "status": challenge.status,
        "token": challenge.token,
        "validated": challenge.validated,
        "error": challenge.error.as_ref().map(Problem::json),
    }))
}

/// Shows a challenge, or starts its validation.
pub(super) async fn challenge(
    Path((id, kind)): Path<(Id, ChallengeKind)>,
    signed: Signed,
) -> HandlerResult {
    let (server, account) = (&signed.server, signed.account()?);
    let now = server.now();
    let identifier = server.look(|state| {
        let authorization = state.authorization(account, &id, now);
        authorization.map(|authorization| authorization.identifier.clone())
    })?;
    if !ChallengeKind::offered(&identifier).contains(&kind) {
        return Err(Problem::not_found("challenge"));
    }
    if !signed.is_post_as_get() {
        let _: serde_json::Map<String, Value> = signed.payload()?;
        let begun = server.change(|state| {
            // Spawned before the first await: if the client disconnects now, the
            // challenge must still be validated.
            if state.begin_validation(&id, kind) {
                server.spawn_validation(id.clone());
            }
            Ok(())
        });
        begun.await?;
    }
    let authorization = server.look(|state| state.authorization(account, &id, now).cloned())?;
    let up = server.object("authorization", &id);
    let up = [(LINK, format!("<{up}>;rel=\"up\""))];
    let json = challenge_json(server, &id, &authorization.challenge, kind);
    Ok(reply(StatusCode::OK, json, up))
}

#[derive(Deserialize)]
struct Finalize {
    csr: String,
}

/// Signs a validated order.
pub(super) async fn finalize(Path(id): Path<Id>, signed: Signed) -> HandlerResult {
    let (server, account) = (&signed.server, signed.account()?);
    let finalize: Finalize = signed.payload()?;
    let now = server.now();
    let (key, order) = server.look(|state| {
        let order = state.order(account, &id, now)?;
        let is_ready = order.status == ObjectStatus::Ready;
        let detail = format!("the order is {}", json!(order.status));
        ensure(is_ready, ErrorType::OrderNotReady, &detail)?;
        let csr = decode(&finalize.csr)?;
        let key = request::check(&csr, &order.identifiers, &signed.key)?;
        // From here on a second request cannot sign the order again.
        order.status = ObjectStatus::Processing;
        Ok((key, order.clone()))
    })?;
    let certificate = sign(server, &order, &key);
    let ended = server.change(|state| {
        match certificate {
            Ok((name, certificate)) => state.complete(&id, name, certificate),
            Err(problem) => {
                state.order(account, &id, now)?.status = ObjectStatus::Ready;
                return Err(problem);
            }
        }
        state.order(account, &id, now).cloned()
    });
    Ok(shown(server, StatusCode::OK, &id, &ended.await?))
}

fn sign(
    server: &Server,
    order: &Order,
    key: &SubjectPublicKeyInfo,
) -> Result<(String, SignedCertificate), Problem> {
    let (now, inner) = (server.now(), &server.0);
    let profile = inner.settings.profiles.get(&order.profile);
    let profile = profile.ok_or_else(|| Problem::not_found("profile"))?;
    let validity = profile.validity(order.not_before, order.not_after, now);
    let signed = (inner.authority).sign(key, &order.identifiers, validity, now);
    let (facts, chain_pem) = signed.map_err(|error| Problem::internal(&error))?;
    let nameless = || Problem::internal(&"a leaf without an authority key identifier");
    let name = facts.renewal_id.ok_or_else(nameless)?;
    let certificate = SignedCertificate {
        account: order.account.clone(),
        identifiers: facts.identifiers,
        chain_pem,
        not_before: facts.not_before,
        not_after: facts.not_after,
        issued: now,
        revoked: None,
    };
    Ok((name, certificate))
}
