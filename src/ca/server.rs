//! The state of the embedded CA behind one lock: read, changed and durably saved,
//! and the validations in progress. The requests are in [`super::routes`].

use std::sync::{Arc, Mutex};

use axum::Json;
use axum::response::{IntoResponse, IntoResponseParts, Response};
use http::{StatusCode, Uri};
use tokio::sync::Semaphore;

use super::authority::Authority;
use super::directory::StateDirectory;
use super::nonces::Nonces;
use super::problem::{Problem, without_nulls};
use super::revocation::Lists;
use super::state::{Authorization, Id, State};
use super::{CaError, Settings, Validation, lock, validate};
use crate::identifier::Identifier;
use crate::time::{Clock, Timestamp};

const VALIDATIONS_AT_ONCE: usize = 64;
const STATE_FILE: &str = "state.json";

/// The embedded CA. Clones are the same CA.
#[derive(Clone)]
pub struct Server(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) settings: Settings,
    pub(super) authority: Authority,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) validations: Semaphore,
    pub(super) nonces: Nonces,
    pub(super) lists: Lists,
    /// The state and its version, which counts the changes.
    versioned: Mutex<(State, u64)>,
    /// The version on disk; locked while a newer one is written.
    written: tokio::sync::Mutex<u64>,
    /// `None` keeps the state in memory.
    directory: Option<Arc<StateDirectory>>,
}

impl Server {
    /// Loads or makes the CA's keys and loads its accounts and orders.
    ///
    /// # Errors
    /// When the settings are invalid, or the directory is unusable or holds an
    /// unreadable file; nothing is overwritten then.
    pub fn new(settings: Settings, clock: Arc<dyn Clock>) -> Result<Self, CaError> {
        settings.check()?;
        let directory = settings.directory.as_deref();
        let directory = directory.map(StateDirectory::open).transpose()?;
        let directory = directory.map(Arc::new);
        let lists_url = settings.lists_url.clone();
        let permitted = &settings.permitted;
        let authority = Authority::open(directory.clone(), permitted, lists_url, clock.now())?;
        let state = directory.as_deref().map(load).transpose()?;
        let mut state = state.unwrap_or_default();
        let interrupted = state.recover();
        let server = Self(Arc::new(Inner {
            settings,
            authority,
            clock,
            validations: Semaphore::new(VALIDATIONS_AT_ONCE),
            nonces: Nonces::default(),
            lists: Lists::default(),
            versioned: Mutex::new((state, 0)),
            written: tokio::sync::Mutex::new(0),
            directory,
        }));
        if tokio::runtime::Handle::try_current().is_ok() {
            for id in interrupted {
                server.spawn_validation(id);
            }
        }
        Ok(server)
    }

    /// The root certificate in PEM, for clients to trust.
    #[must_use]
    pub fn root_pem(&self) -> &str {
        self.0.authority.root_pem()
    }

    /// Whether the root was created by [`Server::new`].
    #[must_use]
    pub fn has_new_root(&self) -> bool {
        self.0.authority.has_new_root()
    }

    /// The host of its URLs.
    pub(super) fn host(&self) -> Option<Identifier> {
        let url = self.0.settings.base_url.parse::<Uri>().ok()?;
        Identifier::parse(url.host()?.trim_matches(['[', ']'])).ok()
    }

    /// Whether the root permits a certificate for `name`.
    #[must_use]
    pub fn permits(&self, name: &Identifier) -> bool {
        self.0.authority.permits(name)
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.0.settings.base_url)
    }

    /// The URL of an object, such as an order.
    pub(super) fn object(&self, kind: &str, id: &str) -> String {
        self.url(&format!("/acme/{kind}/{id}"))
    }

    pub(super) fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// Reads the state. A change that follows from the time alone is not saved.
    pub(super) fn look<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut lock(&self.0.versioned).0)
    }

    /// Changes the state; the change is durable when this returns.
    pub(super) async fn change<T>(
        &self,
        transition: impl FnOnce(&mut State) -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        let (changed, version) = {
            let mut versioned = lock(&self.0.versioned);
            let changed = transition(&mut versioned.0)?;
            versioned.1 += 1;
            (changed, versioned.1)
        };
        self.write(version).await?;
        Ok(changed)
    }

    /// Starts the validation of a processing challenge in its own task.
    pub(super) fn spawn_validation(&self, id: Id) {
        let server = self.clone();
        tokio::spawn(async move {
            let Some((authorization, expected)) = server.key_authorization(&id) else {
                return;
            };
            let outcome = match server.0.settings.validation {
                Validation::AlwaysValid => Ok(()),
                Validation::Connect { ports, resolve } => {
                    // The semaphore is never closed.
                    let _permit = server.0.validations.acquire().await;
                    let resolver = server.0.settings.resolver;
                    validate::validate(&authorization, &expected, ports, (resolve, resolver)).await
                }
            };
            let now = server.now();
            let saved = server.change(|state| {
                state.end_validation(&id, outcome, now);
                Ok(())
            });
            // A failed save was logged; a restart repeats the validation.
            let _ = saved.await;
        });
    }

    fn key_authorization(&self, id: &str) -> Option<(Authorization, String)> {
        self.look(|state| {
            let authorization = state.authorizations.get(id)?.clone();
            let account = state.accounts.get(&authorization.account)?;
            let token = &authorization.challenge.token;
            let expected = format!("{token}.{}", account.key.thumbprint());
            Some((authorization, expected))
        })
    }

    /// Saves the state unless another request already saved this version:
    /// concurrent changes cost one write.
    async fn write(&self, version: u64) -> Result<(), Problem> {
        let Some(directory) = self.0.directory.clone() else {
            return Ok(());
        };
        let mut written = self.0.written.lock().await;
        if *written >= version {
            return Ok(());
        }
        let (json, version) = {
            let (state, version) = &*lock(&self.0.versioned);
            (serde_json::to_vec(state), *version)
        };
        let json = json.map_err(|error| Problem::internal(&error))?;
        let writing = move || directory.write(STATE_FILE, 0o600, &json);
        let ended = tokio::task::spawn_blocking(writing).await;
        let ended = ended.map_err(|error| Problem::internal(&error))?;
        ended.map_err(|error| Problem::internal(&error))?;
        *written = version;
        Ok(())
    }
}

fn load(directory: &StateDirectory) -> Result<State, CaError> {
    let json = directory.read(STATE_FILE)?;
    let state = json.map(|json| serde_json::from_str(&json)).transpose();
    let state = state.map_err(|error| directory.corrupt(STATE_FILE, error))?;
    Ok(state.unwrap_or_default())
}

/// The reply to a signed request.
pub(super) type HandlerResult = Result<Response, Problem>;

/// A reply in JSON, without the members that are null.
pub(super) fn reply(
    status: StatusCode,
    json: serde_json::Value,
    headers: impl IntoResponseParts,
) -> Response {
    (status, headers, Json(without_nulls(json))).into_response()
}
