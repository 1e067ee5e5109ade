//! A dry run of an order: the CA does everything as for a real one, and the certificate
//! is dropped. It needs no record, takes no lease and publishes nothing.

use async_trait::async_trait;

use super::error::ManageError;
use super::services::{FreshKeys, Keys, Wanted};
use crate::acme::{Issuer, Journal, JournalError};
use crate::certificate::{Bundle, Facts, Freshness, Secret};
use crate::record::PendingOrder;
use crate::store::Store;
use crate::time::Clock;

/// Orders `wanted` from `issuer` and returns the facts of the issued leaf. Only the account
/// is written, to `store`; with a store in memory nothing remains.
///
/// # Errors
/// Those of a real order.
pub(crate) async fn rehearse(
    wanted: &Wanted,
    issuer: &dyn Issuer,
    store: &dyn Store,
    clock: &dyn Clock,
) -> Result<Facts, ManageError> {
    let key_pem = match &wanted.request {
        Some(request) => request.in_place_of_key(),
        None => FreshKeys.make(wanted.terms.key).await?,
    };
    let order = PendingOrder {
        ca: wanted.ca.clone(),
        identifiers: wanted.identifiers.tree(),
        key_pem: key_pem.clone(),
        url: None,
        replaces: None,
        profile: wanted.terms.profile.clone(),
        not_after: wanted
            .terms
            .lifetime
            .map(|lifetime| clock.now() + lifetime.length()),
        terms: None,
        begun: clock.now(),
        counted: crate::ca_state::Counted::default(),
    };
    let mut journal = AccountJournal {
        store,
        ca: &wanted.ca,
    };
    let chain = issuer.issue(order, &mut journal).await?;
    let names = &wanted.identifiers.tree();
    let bundle = Bundle::new(key_pem, &chain, names, clock.now(), Freshness::Issued);
    match bundle {
        Ok(bundle) => Ok(bundle.facts().clone()),
        Err(source) => Err(ManageError::Bundle {
            ca: wanted.ca.clone(),
            source,
        }),
    }
}

/// Keeps the account in a store, and no order.
pub(crate) struct AccountJournal<'a> {
    pub(crate) store: &'a dyn Store,
    /// The key of the account in the store.
    pub(crate) ca: &'a str,
}

#[async_trait]
impl Journal for AccountJournal<'_> {
    async fn order(&mut self, _order: &PendingOrder) -> Result<(), JournalError> {
        Ok(())
    }

    async fn account(&mut self) -> Result<Option<Secret>, JournalError> {
        let stored = self.store.account(self.ca).await;
        Ok(stored.map_err(ManageError::from)?)
    }

    async fn create_account(&mut self, credentials: &Secret) -> Result<Secret, JournalError> {
        let stored = self.store.create_account(self.ca, credentials).await;
        Ok(stored.map_err(ManageError::from)?)
    }

    async fn save_account(
        &mut self,
        credentials: &Secret,
        before: &Secret,
    ) -> Result<(), JournalError> {
        let saved = self.store.save_account(self.ca, credentials, before).await;
        Ok(saved.map_err(ManageError::from)?)
    }
}
