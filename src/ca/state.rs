//! What the CA remembers: accounts, orders, authorizations and certificates,
//! as plain data with transitions that read neither clock nor chance (RFC 8555
//! section 7.1.6). It is bounded: what has ended is forgotten oldest first.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::jws::Jwk;
use super::problem::{Kind, Problem};
use crate::identifier::Identifier;
use crate::time::Timestamp;

const MOST_ACCOUNTS: usize = 10_000;
const MOST_ORDERS: usize = 10_000;
const MOST_CERTIFICATES: usize = 20_000;
/// What is full is worth another try after this many seconds.
const FULL_RETRY_AFTER: u64 = 3600;

/// An unguessable name, a part of a URL.
pub(super) type Id = String;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) accounts: BTreeMap<Id, Account>,
    pub(super) orders: BTreeMap<Id, Order>,
    pub(super) authorizations: BTreeMap<Id, Authorization>,
    /// By their RFC 9773 identifier.
    pub(super) certificates: BTreeMap<String, Certificate>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Account {
    pub(super) key: Jwk,
    pub(super) contact: Vec<String>,
    pub(super) deactivated: bool,
    pub(super) terms_agreed: bool,
    /// The identifier of the external account it is bound to.
    pub(super) external: Option<String>,
    /// The binding as the client sent it, which the account object shows.
    pub(super) binding: Option<serde_json::Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    Pending,
    Processing,
    Ready,
    Valid,
    Invalid,
    Deactivated,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) account: Id,
    pub(super) identifiers: BTreeSet<Identifier>,
    pub(super) profile: String,
    /// Whether the client named the profile, and the order echoes it.
    pub(super) profile_named: bool,
    pub(super) replaces: Option<String>,
    pub(super) authorizations: Vec<Id>,
    pub(super) status: Status,
    pub(super) error: Option<Problem>,
    pub(super) certificate: Option<String>,
    pub(super) created: Timestamp,
    pub(super) expires: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Authorization {
    pub(super) account: Id,
    pub(super) order: Id,
    /// Of a wildcard, too: `*.` is part of it here and not on the wire.
    pub(super) identifier: Identifier,
    pub(super) status: Status,
    pub(super) expires: Timestamp,
    pub(super) challenge: Challenge,
}

/// The one challenge of an authorization, named by the authorization's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Challenge {
    pub(super) token: String,
    pub(super) status: Status,
    pub(super) validated: Option<Timestamp>,
    pub(super) error: Option<Problem>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Certificate {
    pub(super) account: Id,
    pub(super) identifiers: BTreeSet<Identifier>,
    pub(super) chain_pem: String,
    pub(super) not_before: Timestamp,
    pub(super) not_after: Timestamp,
    pub(super) issued: Timestamp,
    pub(super) revoked: Option<Revocation>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Revocation {
    pub(super) at: Timestamp,
    /// RFC 5280 section 5.3.1.
    pub(super) reason: u8,
}

/// What a client may ask of a new order, checked already.
pub(super) struct NewOrder {
    pub(super) account: Id,
    pub(super) identifiers: BTreeSet<Identifier>,
    pub(super) profile: String,
    pub(super) profile_named: bool,
    pub(super) replaces: Option<String>,
    pub(super) expires: Timestamp,
}

impl Order {
    /// Whether it can still be finished by the client.
    fn is_open(&self) -> bool {
        matches!(self.status, Status::Pending | Status::Ready)
    }
}

impl State {
    pub(super) fn account_with_key(&self, key: &Jwk) -> Option<&Id> {
        let found = self
            .accounts
            .iter()
            .find(|(_, account)| account.key == *key);
        found.map(|(id, _)| id)
    }

    pub(super) fn add_account(&mut self, id: Id, account: Account) -> Result<(), Problem> {
        if self.accounts.len() >= MOST_ACCOUNTS {
            return Err(full("accounts"));
        }
        self.accounts.insert(id, account);
        Ok(())
    }

    /// Adds an order with an authorization for each identifier. `unguessable`
    /// gives names and tokens.
    pub(super) fn add_order(
        &mut self,
        new: NewOrder,
        now: Timestamp,
        unguessable: impl Fn() -> String,
    ) -> Result<Id, Problem> {
        if let Some(predecessor) = &new.replaces {
            self.check_replaces(predecessor, &new, now)?;
        }
        self.make_room(now)?;
        let id = unguessable();
        let mut authorizations = Vec::new();
        for identifier in &new.identifiers {
            let name = unguessable();
            let authorization = Authorization {
                account: new.account.clone(),
                order: id.clone(),
                identifier: identifier.clone(),
                status: Status::Pending,
                expires: new.expires,
                challenge: Challenge {
                    token: unguessable(),
                    status: Status::Pending,
                    validated: None,
                    error: None,
                },
            };
            self.authorizations.insert(name.clone(), authorization);
            authorizations.push(name);
        }
        let order = Order {
            account: new.account,
            identifiers: new.identifiers,
            profile: new.profile,
            profile_named: new.profile_named,
            replaces: new.replaces,
            authorizations,
            status: Status::Pending,
            error: None,
            certificate: None,
            created: now,
            expires: new.expires,
        };
        self.orders.insert(id.clone(), order);
        Ok(id)
    }

    /// RFC 9773 section 5: the same account, a name in common, and no other
    /// order that replaces it already.
    fn check_replaces(
        &self,
        predecessor: &str,
        new: &NewOrder,
        now: Timestamp,
    ) -> Result<(), Problem> {
        let refused = |detail| Err(Problem::malformed(detail));
        let Some(certificate) = self.certificates.get(predecessor) else {
            return refused("the certificate to replace is not known");
        };
        if certificate.account != new.account {
            return refused("the certificate to replace is another account's");
        }
        if certificate.identifiers.is_disjoint(&new.identifiers) {
            return refused(
                "the certificate to replace has no identifier in common with the order",
            );
        }
        let replaced = self.orders.values().any(|order| {
            order.replaces.as_deref() == Some(predecessor)
                && order.status != Status::Invalid
                && !(order.is_open() && order.expires <= now)
        });
        if replaced {
            let detail = "another order replaces that certificate already";
            return Err(Problem::new(Kind::AlreadyReplaced, detail));
        }
        Ok(())
    }

    /// Forgets the oldest order that has ended when there are too many.
    fn make_room(&mut self, now: Timestamp) -> Result<(), Problem> {
        if self.orders.len() < MOST_ORDERS {
            return Ok(());
        }
        let oldest = self
            .orders
            .iter()
            .filter(|(_, order)| !order.is_open() || order.expires <= now)
            .min_by_key(|(_, order)| order.created)
            .map(|(id, _)| id.clone());
        let Some(order) = oldest.and_then(|id| self.orders.remove(&id)) else {
            return Err(full("orders"));
        };
        for authorization in order.authorizations {
            self.authorizations.remove(&authorization);
        }
        Ok(())
    }

    /// What was not finished in time is invalid, an order with all that
    /// belongs to it.
    pub(super) fn expire(&mut self, id: &str, now: Timestamp) {
        let Some(order) = self.orders.get_mut(id) else {
            return;
        };
        if order.is_open() && order.expires <= now {
            order.status = Status::Invalid;
            order.error = Some(Problem::malformed("the order was not finished in time"));
            for name in &order.authorizations {
                match self.authorizations.get_mut(name) {
                    Some(held) if held.status == Status::Pending => held.status = Status::Invalid,
                    _ => {}
                }
            }
        }
    }

    /// An order of `account`, as it stands at `now`.
    pub(super) fn order(
        &mut self,
        account: &str,
        id: &str,
        now: Timestamp,
    ) -> Result<&mut Order, Problem> {
        self.expire(id, now);
        let order = self.orders.get_mut(id);
        order
            .filter(|order| order.account == account)
            .ok_or_else(|| Problem::not_found("order"))
    }

    /// An authorization of `account`, as it stands at `now`.
    pub(super) fn authorization(
        &mut self,
        account: &str,
        id: &str,
        now: Timestamp,
    ) -> Result<&mut Authorization, Problem> {
        let order = self.authorizations.get(id).map(|held| held.order.clone());
        self.expire(&order.unwrap_or_default(), now);
        let held = self.authorizations.get_mut(id);
        held.filter(|held| held.account == account)
            .ok_or_else(|| Problem::not_found("authorization"))
    }

    /// Takes a challenge on. `false` when it was taken on before, or has ended.
    pub(super) fn begin_validation(&mut self, id: &str) -> bool {
        let Some(authorization) = self.authorizations.get_mut(id) else {
            return false;
        };
        let waits = authorization.status == Status::Pending
            && authorization.challenge.status == Status::Pending;
        if waits {
            authorization.challenge.status = Status::Processing;
        }
        waits
    }

    /// Writes down how a validation ended, and what follows for its order.
    pub(super) fn end_validation(&mut self, id: &str, ended: Result<(), Problem>, now: Timestamp) {
        let Some(authorization) = self.authorizations.get_mut(id) else {
            return;
        };
        if authorization.status != Status::Pending {
            return;
        }
        let challenge = &mut authorization.challenge;
        let problem = ended.err();
        let status = match problem {
            None => Status::Valid,
            Some(_) => Status::Invalid,
        };
        challenge.validated = problem.is_none().then_some(now);
        challenge.error = problem;
        challenge.status = status;
        authorization.status = status;
        let order = authorization.order.clone();
        self.settle(&order);
    }

    /// The client gives an authorization up; its order falls with it.
    pub(super) fn deactivate_authorization(
        &mut self,
        account: &str,
        id: &str,
        now: Timestamp,
    ) -> Result<(), Problem> {
        let held = self.authorization(account, id, now)?;
        if !matches!(held.status, Status::Pending | Status::Valid) {
            return Err(Problem::malformed("the authorization has ended already"));
        }
        held.status = Status::Deactivated;
        let order = held.order.clone();
        self.settle(&order);
        Ok(())
    }

    fn settle(&mut self, id: &str) {
        let Some(order) = self.orders.get_mut(id) else {
            return;
        };
        if !order.is_open() {
            return;
        }
        let statuses: Vec<_> = order
            .authorizations
            .iter()
            .filter_map(|id| self.authorizations.get(id))
            .collect();
        let failed =
            |a: &&&Authorization| matches!(a.status, Status::Invalid | Status::Deactivated);
        if let Some(failed) = statuses.iter().find(failed) {
            order.status = Status::Invalid;
            let problem = failed.challenge.error.clone().unwrap_or_else(|| {
                Problem::new(Kind::Unauthorized, "an authorization was given up")
            });
            order.error = Some(problem.about(failed.identifier.clone(), "control was not proven"));
        } else if statuses.iter().all(|a| a.status == Status::Valid) {
            order.status = Status::Ready;
        }
    }

    /// The order has its certificate.
    pub(super) fn fulfil(&mut self, order: &str, name: String, certificate: Certificate) {
        let now = certificate.issued;
        if let Some(order) = self.orders.get_mut(order) {
            order.status = Status::Valid;
            order.certificate = Some(name.clone());
        }
        if self.certificates.len() >= MOST_CERTIFICATES {
            self.certificates.retain(|_, held| held.not_after >= now);
        }
        if self.certificates.len() >= MOST_CERTIFICATES {
            let oldest = self.certificates.iter().min_by_key(|(_, held)| held.issued);
            if let Some(name) = oldest.map(|(name, _)| name.clone()) {
                self.certificates.remove(&name);
            }
        }
        self.certificates.insert(name, certificate);
    }

    /// Whether `account` has proven control of all of `identifiers` and still
    /// may use that (RFC 8555 section 7.6).
    pub(super) fn is_authorized(
        &self,
        account: &str,
        identifiers: &BTreeSet<Identifier>,
        now: Timestamp,
    ) -> bool {
        identifiers.iter().all(|identifier| {
            self.authorizations.values().any(|held| {
                held.account == account
                    && held.identifier == *identifier
                    && held.status == Status::Valid
                    && held.expires > now
            })
        })
    }

    /// Takes up what a restart has cut off: an order whose certificate was
    /// not signed is ready again. Returns the validations to repeat.
    pub(super) fn recover(&mut self) -> Vec<Id> {
        for order in self.orders.values_mut() {
            if order.status == Status::Processing {
                order.status = Status::Ready;
            }
        }
        let cut_off = self.authorizations.iter().filter(|(_, authorization)| {
            authorization.status == Status::Pending
                && authorization.challenge.status == Status::Processing
        });
        cut_off.map(|(id, _)| id.clone()).collect()
    }
}

fn full(what: &str) -> Problem {
    Problem::new(Kind::RateLimited, format!("this CA holds no more {what}"))
        .with_retry_after(FULL_RETRY_AFTER)
}
