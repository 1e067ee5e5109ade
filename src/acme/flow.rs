//! What the steps of one order share: the transport to the CA, its directory and account,
//! the solvers and the clock. The steps are in [`super::order`],
//! [`super::authorization`] and [`super::poll`]; nothing here decides.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::account::Account;
use super::directory::Directory;
use super::error::{Cause, Phase};
use super::exchange::{Reply, Transport};
use crate::challenge::Solver;
use crate::time::Clock;

/// A cause with its phase.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) phase: Phase,
    pub(super) cause: Cause,
}

/// Adds the phase to a cause.
pub(super) trait During<T> {
    fn during(self, phase: Phase) -> Result<T, Failed>;
}

impl<T> During<T> for Result<T, Cause> {
    fn during(self, phase: Phase) -> Result<T, Failed> {
        self.map_err(|cause| Failed { phase, cause })
    }
}

/// The parts that the steps of one order use.
pub(super) struct Flow<'a> {
    pub(super) transport: &'a Transport,
    pub(super) directory: &'a Directory,
    pub(super) account: &'a Account,
    pub(super) solvers: &'a [Arc<dyn Solver>],
    pub(super) clock: &'a dyn Clock,
    pub(super) preferred_chain: Option<&'a str>,
}

impl Flow<'_> {
    /// A POST signed by the account; a POST-as-GET without `payload`.
    pub(super) async fn post(
        &self,
        endpoint: &'static str,
        url: &str,
        payload: Option<&Value>,
    ) -> Result<Reply, Cause> {
        self.account
            .post(self.transport, self.directory, endpoint, url, payload)
            .await
    }

    pub(super) async fn pause(&self, length: Duration) {
        self.clock.sleep(length).await;
    }
}
