//! What the machines share of each CA: the account there, and its state. Both count their
//! changes, so that a machine sees when the store has an older one than itself.

use serde::{Deserialize, Serialize};

use super::sealed::busy;
use super::{ATTEMPTS, SharedStore};
use crate::ca_state::CaState;
use crate::certificate::Secret;
use crate::fingerprint::Fingerprint;
use crate::record::Revision;
use crate::store::documents::Version;
use crate::store::{StoreError, check_account, next_revision};

/// The account at a CA. One that was removed leaves its revision, so that no older one counts.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(in crate::store) struct StoredAccount {
    pub(in crate::store) revision: Revision,
    pub(in crate::store) credentials: Option<Secret>,
}

#[derive(Default, Serialize, Deserialize)]
struct StoredCa {
    revision: Revision,
    state: CaState,
}

fn of_ca(part: &str, ca: &str) -> String {
    format!("{part}/{}", Fingerprint::of(ca.as_bytes()))
}

impl SharedStore {
    /// The account at `ca`, and the version to write it against.
    pub(in crate::store) async fn stored_account(
        &self,
        ca: &str,
    ) -> Result<(StoredAccount, Option<Version>), StoreError> {
        let key = of_ca("accounts", ca);
        let (stored, version) = self.documents.load::<StoredAccount>(&key).await?.unzip();
        Ok((stored.unwrap_or_default(), version))
    }

    /// The same for one that cannot be opened: its next writer makes it again.
    pub(in crate::store) async fn damaged_account(
        &self,
        ca: &str,
    ) -> Result<(StoredAccount, Option<Version>), StoreError> {
        let key = of_ca("accounts", ca);
        let (stored, version) = self.documents.load_if_whole::<StoredAccount>(&key).await?;
        Ok((stored.unwrap_or_default(), version))
    }

    /// Writes the account at `ca`. False if another machine was faster.
    pub(in crate::store) async fn swap_account(
        &self,
        ca: &str,
        account: &StoredAccount,
        before: Option<&Version>,
    ) -> Result<bool, StoreError> {
        let key = of_ca("accounts", ca);
        Ok(self.documents.swap(&key, account, before).await?.is_some())
    }

    pub(super) async fn replace_account(
        &self,
        ca: &str,
        before: &Secret,
        after: Option<&Secret>,
    ) -> Result<(), StoreError> {
        let (stored, version) = self.stored_account(ca).await?;
        check_account(ca, stored.credentials.as_ref(), before)?;
        match self
            .swap_account(ca, &stored.next(after), version.as_ref())
            .await?
        {
            true => Ok(()),
            false => Err(StoreError::AccountChanged { ca: ca.to_owned() }),
        }
    }

    /// Writes the state of a CA that this machine knows, in place of an older one.
    pub(in crate::store) async fn put_ca_state_back(
        &self,
        ca: &str,
        (state, revision): (CaState, Revision),
    ) -> Result<(), StoreError> {
        let key = of_ca("cas", ca);
        let (stored, version) = self.documents.load_if_whole::<StoredCa>(&key).await?;
        if stored.is_none_or(|stored| stored.revision < revision) {
            let stored = StoredCa { revision, state };
            // If another machine is faster, the next read compares again.
            self.documents.swap(&key, &stored, version.as_ref()).await?;
        }
        Ok(())
    }

    /// Stores the credentials of a new account, unless there are some: these are returned.
    pub(super) async fn new_account(
        &self,
        ca: &str,
        credentials: &Secret,
    ) -> Result<Secret, StoreError> {
        for _ in 0..ATTEMPTS {
            let (stored, version) = self.stored_account(ca).await?;
            if let Some(stored) = stored.credentials {
                return Ok(stored);
            }
            let next = stored.next(Some(credentials));
            if self.swap_account(ca, &next, version.as_ref()).await? {
                return Ok(credentials.clone());
            }
        }
        Err(busy(&of_ca("accounts", ca)))
    }

    pub(super) async fn stored_ca_state(
        &self,
        ca: &str,
    ) -> Result<(CaState, Revision), StoreError> {
        let loaded = self.documents.load::<StoredCa>(&of_ca("cas", ca)).await?;
        let (stored, _) = loaded.unzip();
        let stored: StoredCa = stored.unwrap_or_default();
        Ok((stored.state, stored.revision))
    }

    pub(super) async fn swap_ca_state(
        &self,
        ca: &str,
        state: &CaState,
        expected: Revision,
    ) -> Result<Revision, StoreError> {
        let (key, subject) = (of_ca("cas", ca), format!("the state of CA {ca}"));
        let (stored, version) = self.documents.load::<StoredCa>(&key).await?.unzip();
        let found = stored.unwrap_or_default().revision;
        let revision = next_revision(subject.clone(), expected, found)?;
        let state = state.clone();
        let stored = StoredCa { revision, state };
        let written = self.documents.swap(&key, &stored, version.as_ref());
        match written.await? {
            Some(_) => Ok(revision),
            None => Err(StoreError::Conflict {
                subject,
                found: revision.0,
            }),
        }
    }
}

impl StoredAccount {
    fn next(&self, credentials: Option<&Secret>) -> Self {
        Self {
            revision: Revision(self.revision.0 + 1),
            credentials: credentials.cloned(),
        }
    }
}
