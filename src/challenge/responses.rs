//! The live answers that our own listeners give, shared between the orders that present
//! them and the listeners that serve them.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use async_trait::async_trait;
use tokio::sync::watch;

use super::zones::Zones;
use super::{Answer, ChallengeKind, Solver, SolverError};
use crate::identifier::Identifier;
use crate::program::Runner;
use crate::store::node::NodeStore;

/// Live answers by their kind and token: a CA may offer challenges of every kind with one
/// token.
#[derive(Clone, Default)]
pub struct Responses {
    live: Arc<Mutex<HashMap<(ChallengeKind, String), Live>>>,
    /// The answers of DNS-01, for our own name server.
    zones: Zones,
    runner: Arc<OnceLock<Arc<dyn Runner>>>,
    reserved: Arc<watch::Sender<BTreeSet<Identifier>>>,
    /// The machines that give each other's answers.
    fleet: Arc<OnceLock<Arc<NodeStore>>>,
}

/// The names of one order, for which no other order presents an answer. Dropping it lets the
/// next one go on.
#[derive(Debug)]
pub struct Reserved {
    names: BTreeSet<Identifier>,
    all: Arc<watch::Sender<BTreeSet<Identifier>>>,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let names = &self.names;
        self.all
            .send_modify(|all| all.retain(|name| !names.contains(name)));
    }
}

pub(super) struct Live {
    identifier: Identifier,
    key_authorization: String,
    fetched: watch::Sender<bool>,
    /// The last other host for which it was requested.
    asked_as: Option<Identifier>,
    /// Whether an order of this process presents it, and not one of another machine.
    is_own: bool,
}

impl Live {
    fn own(answer: &Answer) -> Self {
        let (name, content) = (answer.identifier.clone(), answer.key_authorization.clone());
        Self {
            is_own: true,
            ..Self::elsewhere(name, content)
        }
    }

    /// An answer of another machine.
    pub(super) fn elsewhere(identifier: Identifier, key_authorization: String) -> Self {
        Self {
            identifier,
            key_authorization,
            fetched: watch::Sender::new(false),
            asked_as: None,
            is_own: false,
        }
    }
}

impl Responses {
    /// Presents answers to challenges of `kind` here.
    #[must_use]
    pub fn solver(&self, kind: ChallengeKind) -> Arc<dyn Solver> {
        let responses = self.clone();
        Arc::new(Presenter { responses, kind })
    }

    /// The HTTP-01 answer for `token`, if it is live and for `host`.
    #[must_use]
    pub fn lookup(&self, host: &Identifier, token: &str) -> Option<String> {
        let mut live = self.lock();
        let answer = live.get_mut(&(ChallengeKind::Http01, token.to_owned()))?;
        if answer.identifier != *host {
            answer.asked_as = Some(host.clone());
            return None;
        }
        answer.fetched.send_replace(true);
        Some(answer.key_authorization.clone())
    }

    /// An identifier for which an answer of `kind` is live, and the answer.
    #[must_use]
    pub fn find(
        &self,
        kind: ChallengeKind,
        is_wanted: impl Fn(&Identifier) -> bool,
    ) -> Option<(Identifier, String)> {
        let live = self.lock();
        let mut of_kind = live.iter().filter(|((own, _), _)| *own == kind);
        let (_, answer) = of_kind.find(|(_, answer)| is_wanted(&answer.identifier))?;
        answer.fetched.send_replace(true);
        Some((answer.identifier.clone(), answer.key_authorization.clone()))
    }

    /// Whether an order of this process answers TLS-ALPN-01 for that server name.
    pub(super) fn answers_for(&self, server_name: &str) -> bool {
        let live = self.lock();
        let mut own = live
            .iter()
            .filter(|((kind, _), answer)| *kind == ChallengeKind::TlsAlpn01 && answer.is_own);
        own.any(|(_, answer)| {
            let wanted = answer.identifier.challenge_server_name();
            wanted.eq_ignore_ascii_case(server_name)
        })
    }

    /// From now on the machines of `fleet` give each other's answers.
    pub(crate) fn share_through(&self, fleet: Arc<NodeStore>) {
        // A process is of one fleet.
        let _ = self.fleet.set(fleet);
    }

    pub(super) fn fleet(&self) -> Option<&Arc<NodeStore>> {
        self.fleet.get()
    }

    /// Replaces the answers of other machines.
    pub(super) fn learn(&self, elsewhere: HashMap<(ChallengeKind, String), Live>) {
        let mut live = self.lock();
        live.retain(|key, answer| answer.is_own || elsewhere.contains_key(key));
        for (key, answer) in elsewhere {
            live.entry(key).or_insert(answer);
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

    /// What starts programs, if this process may not.
    pub(super) fn runner(&self) -> Option<&Arc<dyn Runner>> {
        self.runner.get()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(ChallengeKind, String), Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Presents answers of one kind.
struct Presenter {
    responses: Responses,
    kind: ChallengeKind,
}

fn key(answer: &Answer) -> (ChallengeKind, String) {
    (answer.kind, answer.token.as_str().to_owned())
}

#[async_trait]
impl Solver for Presenter {
    fn supports(&self, kind: ChallengeKind, identifier: &Identifier) -> bool {
        kind == self.kind && !identifier.is_wildcard()
    }

    /// A client of TLS-ALPN-01 sends a name and no token: two answers for a name could not be
    /// distinguished. All names or none, so that two orders never wait for each other.
    async fn reserve(&self, names: &BTreeSet<Identifier>) -> Option<Reserved> {
        if self.kind != ChallengeKind::TlsAlpn01 {
            return None;
        }
        let all = self.responses.reserved.clone();
        let mut changes = all.subscribe();
        let reserve = |all: &mut BTreeSet<Identifier>| {
            let is_free = all.is_disjoint(names);
            all.extend(names.iter().filter(|_| is_free).cloned());
            is_free
        };
        while !all.send_if_modified(reserve) {
            tracing::debug!("another order answers TLS-ALPN-01 for one of these names: waiting");
            let _ = changes.changed().await;
        }
        let names = names.clone();
        Some(Reserved { names, all })
    }

    async fn present(&self, answer: &Answer) -> Result<(), SolverError> {
        {
            let (live, mut all) = (Live::own(answer), self.responses.lock());
            if self.kind == ChallengeKind::TlsAlpn01 {
                // Of an order that was dropped before it could clean up.
                let name = &answer.identifier;
                all.retain(|(kind, _), one| *kind != self.kind || one.identifier != *name);
            }
            all.insert(key(answer), live);
        }
        self.responses.share(answer).await
    }

    /// In a fleet, the store keeps it.
    fn leaves_traces(&self) -> bool {
        self.responses.fleet().is_some()
    }

    async fn observed(&self, answer: &Answer) {
        let subscribe = |live: &Live| live.fetched.subscribe();
        let fetched = self.responses.lock().get(&key(answer)).map(subscribe);
        if let Some(mut fetched) = fetched
            && fetched.wait_for(|fetched| *fetched).await.is_ok()
        {
            return;
        }
        // Cleaned up before it was fetched: no fetch can follow.
        std::future::pending().await
    }

    async fn clean_up(&self, answer: &Answer) -> Result<(), SolverError> {
        self.responses.lock().remove(&key(answer));
        self.responses.withdraw(answer).await
    }

    async fn explain(&self, answer: &Answer) -> Option<String> {
        let live = self.responses.lock();
        let (name, live) = (&answer.identifier, live.get(&key(answer))?);
        if *live.fetched.borrow() {
            return Some("the answer was fetched here: other requests of the CA went elsewhere, perhaps to another address of the name, or a proxy changed the reply".to_owned());
        }
        let host = live.asked_as.as_ref()?;
        Some(format!(
            "its token was requested here with `Host: {host}`: the proxy on port 80 must pass the Host of {name} on, in nginx with `proxy_set_header Host $host`"
        ))
    }
}
