//! The bounds of the stored state, for each account and in all. Any machine of the network
//! may order, and the whole state is written at each change. The oldest finished objects are
//! dropped first.

use std::collections::BTreeMap;

use http::header::RETRY_AFTER;

use super::problem::{ErrorType, Problem};
use super::state::{Order, SignedCertificate, State};
use crate::time::Timestamp;

const MOST_ACCOUNTS: usize = 10_000;
const MOST_ORDERS: usize = 10_000;
/// Names in all orders. One takes 0.5 KiB, and 1.2 KiB at the most.
const MOST_NAMES: usize = 50_000;
/// Finished orders of one account, and the names in them: their certificates stay.
const MOST_FINISHED: usize = 20;
const MOST_FINISHED_NAMES: usize = 500;
/// Names in all unfinished orders of one account.
const MOST_OPEN_NAMES: usize = 1000;
/// Bytes of all certificates: more than 20,000 of one name.
const MOST_CERTIFICATES: usize = 64 << 20;
/// Bytes of the revoked certificates, which stay until they expire.
const MOST_REVOKED: usize = MOST_CERTIFICATES / 2;
/// Bytes of the certificates of one account: more than 1,000 of one name, so more than one
/// machine keeps. Writing them takes a few milliseconds.
const MOST_OWN_CERTIFICATES: usize = 4 << 20;
/// `Retry-After` when the state is full, in seconds.
const FULL_RETRY_AFTER: u64 = 3600;

impl SignedCertificate {
    /// Its length in the file, without the few bytes that all have alike.
    fn size(&self) -> usize {
        let identifiers = self.identifiers.iter();
        let names: usize = identifiers.map(|name| name.to_string().len() + 3).sum();
        self.chain_pem.len() + names
    }
}

impl State {
    pub(super) fn check_accounts(&self) -> Result<(), Problem> {
        match self.accounts.len() < MOST_ACCOUNTS {
            true => Ok(()),
            false => Err(full("accounts")),
        }
    }

    /// Makes room for a new order and its certificate, for the account and in all.
    pub(super) fn make_room(&mut self, new: &Order) -> Result<(), Problem> {
        let wanted = new.identifiers.len();
        let has_ended = |order: &Order| !order.is_open() || order.is_expired(new.created);
        let is_own = |order: &Order| order.account == new.account;
        let (_, names) = self.count(|order| is_own(order) && !has_ended(order));
        if names + wanted > MOST_OPEN_NAMES {
            return Err(full("unfinished orders of this account"));
        }
        self.drop_superseded(&new.account, new.created);
        if self.size_of_certificates(|one| one.account == new.account) > MOST_OWN_CERTIFICATES {
            return Err(full("valid certificates of this account"));
        }
        if self.size_of_certificates(|one| one.revoked.is_some()) > MOST_REVOKED {
            return Err(full("revoked certificates"));
        }
        let is_finished = |order: &Order| is_own(order) && has_ended(order);
        loop {
            let (orders, names) = self.count(is_finished);
            if orders < MOST_FINISHED && names <= MOST_FINISHED_NAMES {
                break;
            }
            self.drop_oldest(is_finished)?;
        }
        loop {
            let (orders, names) = self.count(|_| true);
            if orders < MOST_ORDERS && names + wanted <= MOST_NAMES {
                return Ok(());
            }
            self.drop_oldest(has_ended)?;
        }
    }

    /// The selected orders, and the names in them.
    fn count(&self, selected: impl Fn(&Order) -> bool) -> (usize, usize) {
        let orders = self.orders.values().filter(|order| selected(order));
        orders.fold((0, 0), |(orders, names), order| {
            (orders + 1, names + order.identifiers.len())
        })
    }

    fn drop_oldest(&mut self, selected: impl Fn(&Order) -> bool) -> Result<(), Problem> {
        let orders = self.orders.iter().filter(|(_, order)| selected(order));
        let oldest = orders.min_by_key(|(_, order)| order.created);
        let oldest = oldest.map(|(id, _)| id.clone());
        let dropped = oldest.and_then(|id| self.orders.remove(&id));
        for authorization in dropped.ok_or_else(|| full("orders"))?.authorizations {
            self.authorizations.remove(&authorization);
        }
        Ok(())
    }

    fn size_of_certificates(&self, selected: impl Fn(&SignedCertificate) -> bool) -> usize {
        let certificates = self.certificates.values().filter(|one| selected(one));
        certificates.map(SignedCertificate::size).sum()
    }

    /// Drops the expired certificates of an account that has too many; if that is not
    /// enough, those that a newer one for the same identifiers supersedes. A revoked one stays
    /// until it expires: the revocation list follows from it.
    fn drop_superseded(&mut self, account: &str, now: Timestamp) {
        let is_own = |one: &SignedCertificate| one.account == account;
        if self.size_of_certificates(is_own) > MOST_OWN_CERTIFICATES {
            self.certificates
                .retain(|_, one| !is_own(one) || one.not_after >= now);
        }
        if self.size_of_certificates(is_own) > MOST_OWN_CERTIFICATES {
            let mut newest = BTreeMap::new();
            for one in self.certificates.values().filter(|one| is_own(one)) {
                let issued = newest.entry(one.identifiers.clone()).or_insert(one.issued);
                *issued = one.issued.max(*issued);
            }
            self.certificates.retain(|_, one| {
                let is_newest = newest.get(&one.identifiers) == Some(&one.issued);
                !is_own(one) || is_newest || one.revoked.is_some()
            });
        }
    }

    /// Drops certificates if there are too many in all.
    pub(super) fn make_room_for_certificate(&mut self, now: Timestamp) {
        if self.size_of_certificates(|_| true) > MOST_CERTIFICATES {
            self.certificates
                .retain(|_, certificate| certificate.not_after >= now);
        }
        while self.size_of_certificates(|_| true) > MOST_CERTIFICATES {
            let all = self.certificates.iter();
            let valid = all.filter(|(_, certificate)| certificate.revoked.is_none());
            let oldest = valid.min_by_key(|(_, certificate)| certificate.issued);
            let Some(oldest) = oldest.map(|(name, _)| name.clone()) else {
                return;
            };
            self.certificates.remove(&oldest);
        }
    }
}

fn full(what: &str) -> Problem {
    let detail = format!("the CA cannot store more {what}");
    Problem::new(ErrorType::RateLimited, detail).with_header(RETRY_AFTER, FULL_RETRY_AFTER)
}
