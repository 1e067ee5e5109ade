//! The stored state of the CA: accounts, orders, authorizations, certificates,
//! and their transitions (RFC 8555 section 7.1.6). It reads no clock and no random
//! source. Its size is bounded by [`super::bounds`].

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::jws::Jwk;
use super::problem::{ErrorType, Problem, ensure};
use crate::identifier::Identifier;
use crate::time::Timestamp;

/// An unguessable name, a part of a URL.
pub(super) type Id = String;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) accounts: BTreeMap<Id, Registration>,
    pub(super) orders: BTreeMap<Id, Order>,
    pub(super) authorizations: BTreeMap<Id, Authorization>,
    /// Certificates by their RFC 9773 identifiers.
    pub(super) certificates: BTreeMap<String, SignedCertificate>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Registration {
    pub(super) key: Jwk,
    pub(super) contact: Vec<String>,
    pub(super) deactivated: bool,
    pub(super) terms_agreed: bool,
    /// The binding as sent; the account object repeats it.
    pub(super) binding: Option<serde_json::Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ObjectStatus {
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
    /// Whether the client named the profile; the order then repeats it.
    pub(super) profile_named: bool,
    pub(super) replaces: Option<String>,
    pub(super) authorizations: Vec<Id>,
    pub(super) status: ObjectStatus,
    pub(super) error: Option<Problem>,
    pub(super) certificate: Option<String>,
    /// The validity that the client requests; the profile sets what it leaves out.
    #[serde(default)]
    pub(super) not_before: Option<Timestamp>,
    #[serde(default)]
    pub(super) not_after: Option<Timestamp>,
    pub(super) created: Timestamp,
    pub(super) expires: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Authorization {
    pub(super) account: Id,
    pub(super) order: Id,
    /// A wildcard keeps its `*.` here, but not on the wire.
    pub(super) identifier: Identifier,
    pub(super) status: ObjectStatus,
    pub(super) expires: Timestamp,
    pub(super) challenge: Challenge,
}

/// The kinds of challenge that this CA validates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ChallengeKind {
    /// RFC 8555 section 8.3.
    #[default]
    #[serde(rename = "http-01")]
    Http01,
    /// RFC 8737.
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
    /// RFC 8555 section 8.4.
    #[serde(rename = "dns-01")]
    Dns01,
}

impl ChallengeKind {
    /// Those that can prove control of `identifier`.
    pub(super) fn offered(identifier: &Identifier) -> &'static [Self] {
        match identifier {
            Identifier::Ip(_) => &[Self::Http01, Self::TlsAlpn01],
            Identifier::Dns(_) if identifier.is_wildcard() => &[Self::Dns01],
            Identifier::Dns(_) => &[Self::Http01, Self::TlsAlpn01, Self::Dns01],
        }
    }
}

/// The challenge of an authorization that the client has started. Until then any kind is
/// offered with this token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Challenge {
    #[serde(default)]
    pub(super) kind: ChallengeKind,
    pub(super) token: String,
    pub(super) status: ObjectStatus,
    pub(super) validated: Option<Timestamp>,
    pub(super) error: Option<Problem>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SignedCertificate {
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

impl Order {
    /// Whether the client can still finish the order.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.status, ObjectStatus::Pending | ObjectStatus::Ready)
    }

    pub(super) fn is_expired(&self, now: Timestamp) -> bool {
        self.is_open() && self.expires <= now
    }
}

impl State {
    pub(super) fn account_with_key(&self, key: &Jwk) -> Option<(&Id, &Registration)> {
        let mut accounts = self.accounts.iter();
        accounts.find(|(_, account)| account.key == *key)
    }

    pub(super) fn add_account(&mut self, id: Id, account: Registration) -> Result<(), Problem> {
        self.check_accounts()?;
        self.accounts.insert(id, account);
        Ok(())
    }

    /// Adds a new order with an authorization for each identifier. `unguessable`
    /// makes names and tokens.
    pub(super) fn add_order(
        &mut self,
        mut order: Order,
        unguessable: impl Fn() -> String,
    ) -> Result<(Id, Order), Problem> {
        if let Some(predecessor) = &order.replaces {
            self.check_replaces(predecessor, &order)?;
        }
        self.make_room(&order)?;
        let id = unguessable();
        for identifier in &order.identifiers {
            let name = unguessable();
            let authorization = Authorization {
                account: order.account.clone(),
                order: id.clone(),
                identifier: identifier.clone(),
                status: ObjectStatus::Pending,
                expires: order.expires,
                challenge: Challenge {
                    kind: ChallengeKind::offered(identifier)[0],
                    token: unguessable(),
                    status: ObjectStatus::Pending,
                    validated: None,
                    error: None,
                },
            };
            self.authorizations.insert(name.clone(), authorization);
            order.authorizations.push(name);
        }
        self.orders.insert(id.clone(), order.clone());
        Ok((id, order))
    }

    /// RFC 9773 section 5: the predecessor has the same account and a name in
    /// common, and no other order replaces it.
    fn check_replaces(&self, predecessor: &str, new: &Order) -> Result<(), Problem> {
        let Some(certificate) = self.certificates.get(predecessor) else {
            return Err(Problem::malformed("unknown certificate to replace"));
        };
        let is_own = certificate.account == new.account;
        let detail = "the certificate to replace belongs to another account";
        ensure(is_own, ErrorType::Malformed, detail)?;
        let has_common_name = !certificate.identifiers.is_disjoint(&new.identifiers);
        let detail = "the certificate to replace has no identifier in common with the order";
        ensure(has_common_name, ErrorType::Malformed, detail)?;
        let is_replaced = self.orders.values().any(|order| {
            order.replaces.as_deref() == Some(predecessor)
                && order.status != ObjectStatus::Invalid
                && !order.is_expired(new.created)
        });
        let detail = "another order already replaces that certificate";
        ensure(!is_replaced, ErrorType::AlreadyReplaced, detail)
    }

    /// Makes an expired order invalid, with its pending authorizations.
    pub(super) fn expire(&mut self, id: &str, now: Timestamp) {
        let Some(order) = self.orders.get_mut(id) else {
            return;
        };
        if order.is_expired(now) {
            order.status = ObjectStatus::Invalid;
            order.error = Some(Problem::malformed("the order was not finished in time"));
            for name in &order.authorizations {
                if let Some(authorization) = self.authorizations.get_mut(name)
                    && authorization.status == ObjectStatus::Pending
                {
                    authorization.status = ObjectStatus::Invalid;
                }
            }
        }
    }

    /// Ends what a deactivated account has not finished (RFC 8555 section 7.3.6).
    pub(super) fn cancel_orders(&mut self, account: &str) {
        let orders = self.orders.values_mut();
        for order in orders.filter(|order| order.account == account && order.is_open()) {
            order.status = ObjectStatus::Invalid;
            let detail = "the account was deactivated";
            order.error = Some(Problem::new(ErrorType::Unauthorized, detail));
        }
        let authorizations = self.authorizations.values_mut();
        for one in authorizations.filter(|one| one.account == account) {
            one.status = ObjectStatus::Deactivated;
        }
    }

    /// An order of `account`, with its state at `now`.
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

    /// An authorization of `account`, with its state at `now`.
    pub(super) fn authorization(
        &mut self,
        account: &str,
        id: &str,
        now: Timestamp,
    ) -> Result<&mut Authorization, Problem> {
        let order = self.authorizations.get(id).map(|one| one.order.clone());
        self.expire(&order.unwrap_or_default(), now);
        let authorization = self.authorizations.get_mut(id);
        authorization
            .filter(|authorization| authorization.account == account)
            .ok_or_else(|| Problem::not_found("authorization"))
    }

    /// Starts a challenge. `false` when it was started before, or has ended.
    pub(super) fn begin_validation(&mut self, id: &str, kind: ChallengeKind) -> bool {
        let Some(authorization) = self.authorizations.get_mut(id) else {
            return false;
        };
        let pending = authorization.status == ObjectStatus::Pending
            && authorization.challenge.status == ObjectStatus::Pending;
        if pending {
            authorization.challenge.kind = kind;
            authorization.challenge.status = ObjectStatus::Processing;
        }
        pending
    }

    /// Records the outcome of a validation and updates its order.
    pub(super) fn end_validation(
        &mut self,
        id: &str,
        outcome: Result<(), Problem>,
        now: Timestamp,
    ) {
        let authorization = self.authorizations.get_mut(id);
        let pending = authorization.filter(|one| one.status == ObjectStatus::Pending);
        let Some(authorization) = pending else {
            return;
        };
        authorization.status = match outcome {
            Ok(()) => ObjectStatus::Valid,
            Err(_) => ObjectStatus::Invalid,
        };
        let challenge = &mut authorization.challenge;
        challenge.status = authorization.status;
        challenge.validated = outcome.is_ok().then_some(now);
        challenge.error = outcome.err();
        let order = authorization.order.clone();
        self.settle(&order);
    }

    /// Deactivates an authorization; its order becomes invalid.
    pub(super) fn deactivate_authorization(
        &mut self,
        account: &str,
        id: &str,
        now: Timestamp,
    ) -> Result<(), Problem> {
        let authorization = self.authorization(account, id, now)?;
        let has_not_ended = matches!(
            authorization.status,
            ObjectStatus::Pending | ObjectStatus::Valid
        );
        let detail = "the authorization has already ended";
        ensure(has_not_ended, ErrorType::Malformed, detail)?;
        authorization.status = ObjectStatus::Deactivated;
        let order = authorization.order.clone();
        self.settle(&order);
        Ok(())
    }

    fn settle(&mut self, id: &str) {
        let order = self.orders.get_mut(id).filter(|order| order.is_open());
        let Some(order) = order else {
            return;
        };
        let mut all = (order.authorizations.iter()).filter_map(|id| self.authorizations.get(id));
        let failed = |one: &&Authorization| {
            matches!(
                one.status,
                ObjectStatus::Invalid | ObjectStatus::Deactivated
            )
        };
        if let Some(failed) = all.clone().find(failed) {
            order.status = ObjectStatus::Invalid;
            let problem = failed.challenge.error.clone().unwrap_or_else(|| {
                Problem::new(ErrorType::Unauthorized, "an authorization was deactivated")
            });
            order.error = Some(problem.about(&failed.identifier, "the validation failed"));
        } else if all.all(|one| one.status == ObjectStatus::Valid) {
            order.status = ObjectStatus::Ready;
        }
    }

    /// Completes an order with its certificate.
    pub(super) fn complete(&mut self, order: &str, name: String, certificate: SignedCertificate) {
        let now = certificate.issued;
        if let Some(order) = self.orders.get_mut(order) {
            order.status = ObjectStatus::Valid;
            order.certificate = Some(name.clone());
        }
        self.make_room_for_certificate(now);
        self.certificates.insert(name, certificate);
    }

    /// Whether `account` has a valid authorization for each of `identifiers` (RFC
    /// 8555 section 7.6).
    pub(super) fn is_authorized(
        &self,
        account: &str,
        identifiers: &BTreeSet<Identifier>,
        now: Timestamp,
    ) -> bool {
        identifiers.iter().all(|identifier| {
            self.authorizations.values().any(|authorization| {
                authorization.account == account
                    && authorization.identifier == *identifier
                    && authorization.status == ObjectStatus::Valid
                    && authorization.expires > now
            })
        })
    }

    /// Repairs the state after a restart: an order without its certificate is
    /// ready again. Returns the validations to repeat.
    pub(super) fn recover(&mut self) -> Vec<Id> {
        for order in self.orders.values_mut() {
            if order.status == ObjectStatus::Processing {
                order.status = ObjectStatus::Ready;
            }
        }
        let interrupted = self.authorizations.iter().filter(|(_, authorization)| {
            authorization.status == ObjectStatus::Pending
                && authorization.challenge.status == ObjectStatus::Processing
        });
        interrupted.map(|(id, _)| id.clone()).collect()
    }
}
