//! The live answers, shared between the orders that present them and the listeners that
//! serve them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use async_trait::async_trait;
use tokio::sync::watch;

use super::zones::Zones;
use super::{Answer, ChallengeKind, Solver, SolverError};
use crate::identifier::Identifier;
use crate::program::Runner;

/// Live answers: those of HTTP-01 by token.
#[derive(Clone, Default)]
pub struct Responses {
    live: Arc<Mutex<HashMap<String, Live>>>,
    /// The answers of DNS-01, for our own name server.
    zones: Zones,
    runner: Arc<OnceLock<Arc<dyn Runner>>>,
}

struct Live {
    identifier: Identifier,
    key_authorization: String,
    fetched: watch::Sender<bool>,
}

impl Responses {
    /// The answer for `token`, if it is live and for `host`.
    #[must_use]
    pub fn lookup(&self, host: &Identifier, token: &str) -> Option<String> {
        let live = self.lock();
        let answer = live
            .get(token)
            .filter(|answer| answer.identifier == *host)?;
        Some(answer.key_authorization.clone())
    }

    /// Reports to [`Solver::observed`] that the answer for `token` was fetched.
    pub fn fetched(&self, token: &str) {
        if let Some(answer) = self.lock().get(token) {
            answer.fetched.send_replace(true);
        }
    }

    /// The zones of our own name server.
    pub(crate) fn zones(&self) -> &Zones {
        &self.zones
    }

    /// From now on `runner` starts the programs that present answers.
    pub(crate) fn run_programs_by(&self, runner: Arc<dyn Runner>) {
        // A process is sandboxed once.
        let _ = self.runner.set(runner);
    }

    /// Who starts programs, if this process may not.
    pub(super) fn runner(&self) -> Option<&Arc<dyn Runner>> {
        self.runner.get()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Solver for Responses {
    fn supports(&self, kind: ChallengeKind, identifier: &Identifier) -> bool {
        kind == ChallengeKind::Http01 && !identifier.is_wildcard()
    }

    async fn present(&self, answer: &Answer) -> Result<(), SolverError> {
        let live = Live {
            identifier: answer.identifier.clone(),
            key_authorization: answer.key_authorization.clone(),
            fetched: watch::Sender::new(false),
        };
        self.lock().insert(answer.token.as_str().to_owned(), live);
        Ok(())
    }

    async fn observed(&self, answer: &Answer) {
        let subscribe = |live: &Live| live.fetched.subscribe();
        let fetched = self.lock().get(answer.token.as_str()).map(subscribe);
        if let Some(mut fetched) = fetched
            && fetched.wait_for(|fetched| *fetched).await.is_ok()
        {
            return;
        }
        // Cleaned up before it was fetched: no fetch can follow.
        std::future::pending().await
    }

    async fn clean_up(&self, answer: &Answer) -> Result<(), SolverError> {
        self.lock().remove(answer.token.as_str());
        Ok(())
    }
}
