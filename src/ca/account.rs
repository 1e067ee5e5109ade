//! Account requests (RFC 8555 section 7.3): create, read, update, change the
//! key, deactivate. Nothing is deleted.

use axum::extract::{Path, State as Shared};
use axum::response::Response;
use http::StatusCode;
use http::header::LOCATION;
use serde::Deserialize;

use super::jws::{Jwk, Jws};
use super::nonces::unguessable;
use super::problem::{ErrorType, Problem};
use super::server::{Server, reply};
use super::signed::{RequestSigner, Signed, check_active};
use super::state::{Account, Id, Status};

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
pub(super) async fn new_account(
    Shared(server): Shared<Server>,
    signed: Signed,
) -> Result<Response, Problem> {
    let RequestSigner::Key(key) = &signed.signer else {
        return Err(Problem::malformed("a newAccount request carries a jwk"));
    };
    let new: NewAccount = signed.payload()?;
    if let Some((id, account)) = existing(&server, key) {
        check_active(&account)?;
        return Ok(shown(&server, StatusCode::OK, &id, &account));
    }
    if new.only_return_existing {
        let detail = "no account has this key";
        return Err(Problem::new(ErrorType::AccountDoesNotExist, detail));
    }
    let external = external_account(&server, &signed.url, key, &new)?;
    check_contacts(&new.contact)?;
    if server.0.settings.terms_of_service.is_some() && !new.terms_of_service_agreed {
        let detail = "the terms of service must be agreed to";
        return Err(Problem::new(ErrorType::UserActionRequired, detail));
    }
    let account = Account {
        key: key.clone(),
        contact: new.contact,
        deactivated: false,
        terms_agreed: new.terms_of_service_agreed,
        external,
        binding: new.external_account_binding,
    };
    let made = server.change(|state| match state.account_with_key(key) {
        // Two concurrent requests create one account.
        Some(id) => Ok((id.clone(), StatusCode::OK)),
        None => {
            let id = unguessable();
            state.add_account(id.clone(), account.clone())?;
            Ok((id, StatusCode::CREATED))
        }
    });
    let (id, status) = made.await?;
    Ok(shown(&server, status, &id, &account))
}

fn existing(server: &Server, key: &Jwk) -> Option<(Id, Account)> {
    server.look(|state| {
        let id = state.account_with_key(key)?.clone();
        let account = state.accounts.get(&id)?.clone();
        Some((id, account))
    })
}

/// The external account of a new account (RFC 8555 section 7.3.4).
fn external_account(
    server: &Server,
    url: &str,
    key: &Jwk,
    new: &NewAccount,
) -> Result<Option<String>, Problem> {
    let known = &server.0.settings.external_accounts;
    let Some(binding) = &new.external_account_binding else {
        if known.is_empty() {
            return Ok(None);
        }
        let detail = "this CA requires an external account binding";
        return Err(Problem::new(ErrorType::ExternalAccountRequired, detail));
    };
    let jws: Jws = serde_json::from_value(binding.clone())
        .map_err(|_| Problem::malformed("the external account binding is not one flattened JWS"))?;
    jws.verify_binding(url, key, |kid| known.get(kid).map(Vec::as_slice))
        .map(Some)
}

fn check_contacts(contacts: &[String]) -> Result<(), Problem> {
    if contacts.len() > MOST_CONTACTS {
        return Err(Problem::malformed("an account has at most ten contacts"));
    }
    for contact in contacts {
        let Some(address) = contact.strip_prefix("mailto:") else {
            let detail = "only mailto: contacts are supported";
            return Err(Problem::new(ErrorType::UnsupportedContact, detail));
        };
        let plain = address.len() <= 254
            && address
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && !b"?,\"<>()".contains(&byte))
            && address.split('@').count() == 2
            && address.split('@').all(|part| !part.is_empty());
        if !plain {
            let detail = "a contact is not one plain e-mail address";
            return Err(Problem::new(ErrorType::InvalidContact, detail));
        }
    }
    Ok(())
}

fn shown(server: &Server, status: StatusCode, id: &str, account: &Account) -> Response {
    let url = server.url(&format!("/acme/account/{id}"));
    let mut json = serde_json::json!({
        "status": if account.deactivated { "deactivated" } else { "valid" },
        "contact": account.contact,
        "termsOfServiceAgreed": account.terms_agreed,
        "orders": format!("{url}/orders"),
    });
    if let Some(binding) = &account.binding {
        json["externalAccountBinding"] = binding.clone();
    }
    reply(status, &json, [(LOCATION, url)])
}

#[derive(Deserialize)]
struct Update {
    contact: Option<Vec<String>>,
    status: Option<String>,
}

/// Reads, updates or deactivates an account.
pub(super) async fn account(
    Shared(server): Shared<Server>,
    Path(id): Path<Id>,
    signed: Signed,
) -> Result<Response, Problem> {
    own(&signed, &id)?;
    let update = if signed.is_post_as_get() {
        Update {
            contact: None,
            status: None,
        }
    } else {
        signed.payload()?
    };
    check_contacts(update.contact.as_deref().unwrap_or_default())?;
    if update
        .status
        .as_ref()
        .is_some_and(|status| status != "deactivated" && status != "valid")
    {
        return Err(Problem::malformed(
            "the only new status of an account is `deactivated`",
        ));
    }
    let changes = update.contact.is_some() || update.status.is_some();
    let apply = |account: &mut Account| {
        if let Some(contact) = update.contact {
            account.contact = contact;
        }
        account.deactivated |= update.status.as_deref() == Some("deactivated");
        account.clone()
    };
    let gone = || Problem::new(ErrorType::AccountDoesNotExist, "no such account");
    let account = if changes {
        let changed = server.change(|state| Ok(state.accounts.get_mut(&id).map(apply)));
        changed.await?
    } else {
        server.look(|state| state.accounts.get(&id).cloned())
    };
    Ok(shown(
        &server,
        StatusCode::OK,
        &id,
        &account.ok_or_else(gone)?,
    ))
}

fn own(signed: &Signed, id: &Id) -> Result<(), Problem> {
    if signed.account()? != id {
        let detail = "the URL belongs to another account";
        return Err(Problem::new(ErrorType::Unauthorized, detail));
    }
    Ok(())
}

/// The account's orders without the invalid ones (RFC 8555 section 7.1.2.1).
pub(super) async fn orders(
    Shared(server): Shared<Server>,
    Path(id): Path<Id>,
    signed: Signed,
) -> Result<Response, Problem> {
    own(&signed, &id)?;
    signed.reader()?;
    let now = server.now();
    let ids: Vec<Id> = server.look(|state| {
        let of_account = |(_, order): &(&Id, &super::state::Order)| order.account == id;
        let ids: Vec<Id> = state
            .orders
            .iter()
            .filter(of_account)
            .map(|(order, _)| order.clone())
            .collect();
        let mut live = ids;
        live.retain(|order| {
            let order = state.order(&id, order, now);
            order.is_ok_and(|order| order.status != Status::Invalid)
        });
        live
    });
    let urls: Vec<_> = ids
        .iter()
        .map(|order| server.url(&format!("/acme/order/{order}")))
        .collect();
    Ok(reply(
        StatusCode::OK,
        &serde_json::json!({"orders": urls}),
        [],
    ))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeyChange {
    account: String,
    old_key: Jwk,
}

/// Changes the key of an account (RFC 8555 section 7.3.5): the new key signs the
/// old key, and the account's key signs both.
pub(super) async fn key_change(
    Shared(server): Shared<Server>,
    signed: Signed,
) -> Result<Response, Problem> {
    let id = signed.account()?.clone();
    let inner: Jws = signed.payload()?;
    let header = inner.header()?;
    let Some(new_key) = header.jwk.clone() else {
        return Err(Problem::malformed(
            "the inner JWS carries the new key as its jwk",
        ));
    };
    if header.url.as_deref() != Some(&signed.url) || header.nonce.is_some() {
        return Err(Problem::malformed(
            "the inner JWS has the same URL as the outer one, and no nonce",
        ));
    }
    let payload = inner.verify(&header, &new_key)?;
    let change: KeyChange = serde_json::from_slice(&payload)
        .map_err(|_| Problem::malformed("the inner payload names account and oldKey"))?;
    let url = server.url(&format!("/acme/account/{id}"));
    if change.account != url {
        return Err(Problem::malformed(
            "the inner payload names another account",
        ));
    }
    let changed = server.change(|state| {
        if let Some(other) = state.account_with_key(&new_key) {
            let other = server.url(&format!("/acme/account/{other}"));
            return Err(Problem::malformed("another account has the new key")
                .with_status(StatusCode::CONFLICT)
                .with_location(other));
        }
        let account = state.accounts.get_mut(&id);
        let account = account.filter(|account| account.key == change.old_key);
        let Some(account) = account else {
            return Err(Problem::malformed("the old key is not the account's"));
        };
        account.key = new_key;
        Ok(account.clone())
    });
    Ok(shown(&server, StatusCode::OK, &id, &changed.await?))
}
