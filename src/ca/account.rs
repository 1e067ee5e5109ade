//! Account requests (RFC 8555 section 7.3): create, read, update, change the
//! key, deactivate. Nothing is deleted.

use axum::extract::Path;
use axum::response::Response;
use http::StatusCode;
use http::header::LOCATION;
use serde::Deserialize;
use serde_json::json;

use super::jws::{Jwk, Jws};
use super::nonces::unguessable;
use super::problem::ErrorType::{self, Malformed};
use super::problem::{Problem, ensure};
use super::server::{HandlerResult, Server, reply};
use super::signed::{Signed, check_active};
use super::state::{Id, ObjectStatus, Registration, State};

const MOST_CONTACTS: usize = 10;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NewAccount {
    #[serde(default)]
    contact: Vec<String>,
    #[serde(default)]
    terms_of_service_agreed: bool,
    #[serde(default)]
    only_return_existing: bool,
    external_account_binding: Option<serde_json::Value>,
}

/// Creates an account for the signing key, or returns the existing one.
pub(super) async fn new_account(signed: Signed) -> HandlerResult {
    let (server, key) = (&signed.server, &signed.key);
    let carries_key = signed.signer.is_none();
    ensure(carries_key, Malformed, "a newAccount request carries a jwk")?;
    let new: NewAccount = signed.payload()?;
    let existing = server.look(|state| {
        let (id, account) = state.account_with_key(key)?;
        Some((id.clone(), account.clone()))
    });
    if let Some((id, account)) = existing {
        check_active(&account)?;
        return Ok(shown(server, StatusCode::OK, &id, &account));
    }
    let (may_be_new, detail) = (!new.only_return_existing, "no account has this key");
    ensure(may_be_new, ErrorType::AccountDoesNotExist, detail)?;
    check_binding(&signed, &new)?;
    check_contacts(&new.contact)?;
    let account = Registration {
        key: key.clone(),
        contact: new.contact,
        deactivated: false,
        terms_agreed: new.terms_of_service_agreed,
        binding: new.external_account_binding,
    };
    let made = server.change(|state| match state.account_with_key(key) {
        // Two concurrent requests create one account.
        Some((id, _)) => Ok((id.clone(), StatusCode::OK)),
        None => {
            let id = unguessable();
            state.add_account(id.clone(), account.clone())?;
            Ok((id, StatusCode::CREATED))
        }
    });
    let (id, status) = made.await?;
    Ok(shown(server, status, &id, &account))
}

/// Checks the external account binding (RFC 8555 section 7.3.4).
fn check_binding(signed: &Signed, new: &NewAccount) -> Result<(), Problem> {
    let known = &signed.server.0.settings.external_accounts;
    let Some(binding) = &new.external_account_binding else {
        let detail = "this CA requires an external account binding";
        return ensure(known.is_empty(), ErrorType::ExternalAccountRequired, detail);
    };
    let jws: Jws = serde_json::from_value(binding.clone())
        .map_err(|_| Problem::malformed("the external account binding is not one flattened JWS"))?;
    jws.verify_binding(&signed.url, &signed.key, known)
}

fn check_contacts(contacts: &[String]) -> Result<(), Problem> {
    let is_short = contacts.len() <= MOST_CONTACTS;
    ensure(is_short, Malformed, "an account has at most ten contacts")?;
    for contact in contacts {
        let Some(address) = contact.strip_prefix("mailto:") else {
            let detail = "only mailto: contacts are supported";
            return Err(Problem::new(ErrorType::UnsupportedContact, detail));
        };
        let is_plain = address.len() <= 254
            && address
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && !b"?,\"<>()".contains(&byte))
            && address.split('@').count() == 2
            && address.split('@').all(|part| !part.is_empty());
        let detail = "a contact is not one plain e-mail address";
        ensure(is_plain, ErrorType::InvalidContact, detail)?;
    }
    Ok(())
}

fn shown(server: &Server, status: StatusCode, id: &str, account: &Registration) -> Response {
    let url = server.object("account", id);
    let json = json!({
        "status": if account.deactivated { "deactivated" } else { "valid" },
        "contact": account.contact,
        "termsOfServiceAgreed": account.terms_agreed,
        "orders": format!("{url}/orders"),
        "externalAccountBinding": account.binding,
    });
    reply(status, json, [(LOCATION, url)])
}

#[derive(Default, Deserialize)]
struct Update {
    contact: Option<Vec<String>>,
    status: Option<String>,
}

/// Reads, updates or deactivates an account.
pub(super) async fn account(Path(id): Path<Id>, signed: Signed) -> HandlerResult {
    check_own(&signed, &id)?;
    let update = match signed.is_post_as_get() {
        true => Update::default(),
        false => signed.payload()?,
    };
    check_contacts(update.contact.as_deref().unwrap_or_default())?;
    let is_valid = matches!(
        update.status.as_deref(),
        None | Some("valid" | "deactivated")
    );
    let detail = "the only new status of an account is `deactivated`";
    ensure(is_valid, Malformed, detail)?;
    let changes = update.contact.is_some() || update.status.is_some();
    let apply = |state: &mut State| {
        let account = state.accounts.get_mut(&id)?;
        if let Some(contact) = update.contact {
            account.contact = contact;
        }
        if update.status.as_deref() == Some("deactivated") {
            account.deactivated = true;
            state.cancel_orders(&id);
        }
        state.accounts.get(&id).cloned()
    };
    let account = if changes {
        (signed.server).change(|state| Ok(apply(state))).await?
    } else {
        signed.server.look(|state| state.accounts.get(&id).cloned())
    };
    let gone = || Problem::new(ErrorType::AccountDoesNotExist, "no such account");
    let account = account.ok_or_else(gone)?;
    Ok(shown(&signed.server, StatusCode::OK, &id, &account))
}

fn check_own(signed: &Signed, id: &Id) -> Result<(), Problem> {
    let detail = "the URL belongs to another account";
    ensure(signed.account()? == id, ErrorType::Unauthorized, detail)
}

/// The account's orders without the invalid ones (RFC 8555 section 7.1.2.1).
pub(super) async fn orders(Path(id): Path<Id>, signed: Signed) -> HandlerResult {
    check_own(&signed, &id)?;
    signed.reader()?;
    let (server, now) = (&signed.server, signed.server.now());
    let ids = server.look(|state| {
        let of_account = state.orders.iter().filter(|(_, order)| order.account == id);
        let mut ids: Vec<Id> = of_account.map(|(order, _)| order.clone()).collect();
        ids.retain(|order| {
            let order = state.order(&id, order, now);
            order.is_ok_and(|order| order.status != ObjectStatus::Invalid)
        });
        ids
    });
    let urls: Vec<_> = ids.iter().map(|id| server.object("order", id)).collect();
    Ok(reply(StatusCode::OK, json!({"orders": urls}), ()))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeyChange {
    account: String,
    old_key: Jwk,
}

/// Changes the key of an account (RFC 8555 section 7.3.5): the new key signs the
/// old key, and the account's key signs both.
pub(super) async fn key_change(signed: Signed) -> HandlerResult {
    let (server, id) = (&signed.server, signed.account()?);
    let inner: Jws = signed.payload()?;
    let header = inner.header()?;
    let Some(new_key) = header.jwk.clone() else {
        let detail = "the inner JWS carries the new key as its jwk";
        return Err(Problem::malformed(detail));
    };
    let is_bound = header.url.as_deref() == Some(&signed.url) && header.nonce.is_none();
    let detail = "the inner JWS has the same URL as the outer one, and no nonce";
    ensure(is_bound, Malformed, detail)?;
    let payload = inner.verify(&header, &new_key)?;
    let change: KeyChange = serde_json::from_slice(&payload)
        .map_err(|_| Problem::malformed("the inner payload names account and oldKey"))?;
    let is_own = change.account == server.object("account", id);
    ensure(is_own, Malformed, "the inner payload names another account")?;
    let changed = server.change(|state| {
        if let Some((other, _)) = state.account_with_key(&new_key) {
            return Err(Problem::malformed("another account has the new key")
                .with_status(StatusCode::CONFLICT)
                .with_header(LOCATION, server.object("account", other)));
        }
        let account = state.accounts.get_mut(id);
        let account = account.filter(|account| account.key == change.old_key);
        let wrong = || Problem::malformed("the old key is not the account's");
        let account = account.ok_or_else(wrong)?;
        account.key = new_key;
        Ok(account.clone())
    });
    Ok(shown(server, StatusCode::OK, id, &changed.await?))
}
