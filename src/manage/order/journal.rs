//! The journal of an ACME client: its order goes into the record, its account into the
//! store. It sends nothing.

use async_trait::async_trait;

use crate::acme::{Journal, JournalError};
use crate::certificate::Secret;
use crate::manage::ca_state;
use crate::manage::error::ManageError;
use crate::manage::session::Pass;
use crate::record::{PendingOrder, PresentedAnswer};

pub(in crate::manage) struct RecordJournal<'a, 'p> {
    pass: &'a mut Pass<'p>,
    ca: String,
}

impl<'a, 'p> RecordJournal<'a, 'p> {
    pub(in crate::manage) fn new(pass: &'a mut Pass<'p>, ca: &str) -> Self {
        let ca = ca.to_owned();
        Self { pass, ca }
    }
}

#[async_trait]
impl Journal for RecordJournal<'_, '_> {
    async fn order(&mut self, order: &PendingOrder) -> Result<(), JournalError> {
        self.pass.record.order = Some(order.clone());
        self.pass.phase("waiting for the CA to validate and sign");
        Ok(self.pass.save(None).await?)
    }

    fn answers(&self) -> Vec<PresentedAnswer> {
        self.pass.record.answers.clone()
    }

    async fn save_answers(&mut self, answers: Vec<PresentedAnswer>) -> Result<(), JournalError> {
        self.pass.record.answers = answers;
        Ok(self.pass.save(None).await?)
    }

    async fn keep_answers(&mut self, left: Vec<PresentedAnswer>) {
        self.pass.record.answers = left;
        self.pass.save_or_warn().await;
    }

    fn phase(&mut self, phase: &str) {
        self.pass.phase(phase);
    }

    async fn account(&mut self) -> Result<Option<Secret>, JournalError> {
        let stored = self.pass.services.store.account(&self.ca).await;
        Ok(stored.map_err(ManageError::from)?)
    }

    async fn create_account(&mut self, credentials: &Secret) -> Result<Secret, JournalError> {
        let services = self.pass.services;
        // Another process may have registered an account meanwhile.
        if let Some(stored) = self.account().await? {
            return Ok(stored);
        }
        ca_state::register(services, &self.ca).await?;
        let stored = services.store.create_account(&self.ca, credentials).await;
        Ok(stored.map_err(ManageError::from)?)
    }

    async fn save_account(
        &mut self,
        credentials: &Secret,
        before: &Secret,
    ) -> Result<(), JournalError> {
        let store = &self.pass.services.store;
        let saved = store.save_account(&self.ca, credentials, before).await;
        Ok(saved.map_err(ManageError::from)?)
    }
}
