//! The live HTTP-01 answers, shared between the orders that present them and the listener
//! that serves them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::watch;

use super::{Answer, ChallengeKind, Solver, SolverError};
use crate::identifier::Identifier;

/// Live answers by token.
#[derive(Clone, Debug, Default)]
pub struct Responses {
    live: Arc<Mutex<HashMap<String, Live>>>,
}

#[derive(Debug)]
struct Live {
    identifier: Identifier,
    key_authorization: String,
    fetched: watch::Sender<bool>,
    /// The last other host for which it was requested.
    asked_as: Option<Identifier>,
}

impl Responses {
    /// The answer for `token`, if it is live and for `host`.
    #[must_use]
    pub fn lookup(&self, host: &Identifier, token: &str) -> Option<String> {
        let mut live = self.lock();
        let answer = live.get_mut(token)?;
        if answer.identifier != *host {
            answer.asked_as = Some(host.clone());
            return None;
        }
        Some(answer.key_authorization.clone())
    }

    /// Reports to [`Solver::observed`] that the answer for `token` was fetched.
    pub fn fetched(&self, token: &str) {
        if let Some(answer) = self.lock().get(token) {
            answer.fetched.send_replace(true);
        }
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
            asked_as: None,
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

    async fn explain(&self, answer: &Answer) -> Option<String> {
        let live = self.lock();
        let (name, live) = (&answer.identifier, live.get(answer.token.as_str())?);
        if *live.fetched.borrow() {
            return Some("the answer was fetched here: other requests of the CA went elsewhere, perhaps to another address of the name, or a proxy changed the reply".to_owned());
        }
        let host = live.asked_as.as_ref()?;
        Some(format!(
            "its token was requested here with `Host: {host}`: the proxy on port 80 must pass the Host of {name} on, in nginx with `proxy_set_header Host $host`"
        ))
    }
}
