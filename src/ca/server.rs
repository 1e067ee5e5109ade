//! The state of the embedded CA behind one lock: read, changed and durably saved,
//! and the validations in progress. The requests are in [`super::routes`].

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderValue, StatusCode};
use tokio::sync::Semaphore;

use super::authority::Authority;
use super::nonces::Nonces;
use super::problem::Problem;
use super::state::{Authorization, Id, State};
use super::{CaError, RenewalWindows, Settings, Validation, validate};
use crate::files;
use crate::record::Window;
use crate::time::{Clock, Timestamp};

const VALIDATIONS_AT_ONCE: usize = 64;

/// The embedded CA. Clones are the same CA.
#[derive(Clone)]
pub struct Server(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) settings: Settings,
    pub(super) authority: Authority,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) validations: Semaphore,
    pub(super) nonces: Nonces,
    versioned: Mutex<Versioned>,
    /// The version on disk; locked while a newer one is written.
    written: tokio::sync::Mutex<u64>,
    suggestions: Mutex<Suggestions>,
    /// Locks the directory for the lifetime of the server.
    _lock: Option<File>,
}

struct Versioned {
    state: State,
    /// Counts the changes.
    version: u64,
}

struct Suggestions {
    policy: RenewalWindows,
    by_certificate: BTreeMap<String, Window>,
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
        let lock = directory.map(lock_directory).transpose()?;
        let authority = Authority::open(directory, clock.now())?;
        let mut state = directory.map(load).transpose()?.unwrap_or_default();
        let interrupted = state.recover();
        let suggestions = Suggestions {
            policy: settings.windows,
            by_certificate: BTreeMap::new(),
        };
        let server = Self(Arc::new(Inner {
            settings,
            authority,
            clock,
            validations: Semaphore::new(VALIDATIONS_AT_ONCE),
            nonces: Nonces::default(),
            versioned: Mutex::new(Versioned { state, version: 0 }),
            written: tokio::sync::Mutex::new(0),
            suggestions: Mutex::new(suggestions),
            _lock: lock,
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

    /// Suggests `window` for the certificate with the RFC 9773 identifier
    /// `renewal_id`, against the policy, as a CA does before a mass revocation.
    pub fn suggest(&self, renewal_id: impl Into<String>, window: Window) {
        let mut suggestions = lock(&self.0.suggestions);
        suggestions.by_certificate.insert(renewal_id.into(), window);
    }

    /// Suggests windows by `policy` from now on; [`Self::suggest`] still wins.
    pub fn suggest_by(&self, policy: RenewalWindows) {
        lock(&self.0.suggestions).policy = policy;
    }

    pub(super) fn suggestion(&self, renewal_id: &str) -> Result<Window, RenewalWindows> {
        let suggestions = lock(&self.0.suggestions);
        let single = suggestions.by_certificate.get(renewal_id).cloned();
        single.ok_or(suggestions.policy)
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.0.settings.base_url)
    }

    pub(super) fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// Reads the state. A change that follows from the time alone is not saved.
    pub(super) fn look<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut lock(&self.0.versioned).state)
    }

    /// Changes the state; the change is durable when this returns.
    pub(super) async fn change<T>(
        &self,
        transition: impl FnOnce(&mut State) -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        let (changed, version) = {
            let mut versioned = lock(&self.0.versioned);
            let changed = transition(&mut versioned.state)?;
            versioned.version += 1;
            (changed, versioned.version)
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
                Validation::Http { port, resolve } => {
                    // The semaphore is never closed.
                    let _permit = server.0.validations.acquire().await;
                    let token = &authorization.challenge.token;
                    let name = &authorization.identifier;
                    validate::http01(name, token, &expected, port, resolve).await
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
        let Some(directory) = &self.0.settings.directory else {
            return Ok(());
        };
        let mut written = self.0.written.lock().await;
        if *written >= version {
            return Ok(());
        }
        let (json, version) = {
            let versioned = lock(&self.0.versioned);
            (serde_json::to_vec(&versioned.state), versioned.version)
        };
        let json = json.map_err(|error| Problem::internal(&error))?;
        let path = state_path(directory);
        let ended = tokio::task::spawn_blocking(move || files::replace(&path, 0o600, &json)).await;
        ended
            .map_err(|error| Problem::internal(&error))?
            .map_err(|error| Problem::internal(&error))?;
        *written = version;
        Ok(())
    }
}

fn state_path(directory: &Path) -> PathBuf {
    directory.join("state.json")
}

fn lock_directory(directory: &Path) -> Result<File, CaError> {
    let failed = |source| CaError::Io {
        path: directory.to_owned(),
        source,
    };
    files::make_directory(directory, 0o700).map_err(failed)?;
    let file = File::create(directory.join("lock")).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(CaError::InUse(directory.to_owned())),
        Err(std::fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}

fn load(directory: &Path) -> Result<State, CaError> {
    let path = state_path(directory);
    match std::fs::read(&path) {
        Ok(json) => serde_json::from_slice(&json).map_err(|error| CaError::Corrupt {
            path,
            detail: error.to_string(),
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(State::default()),
        Err(source) => Err(CaError::Io { path, source }),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A reply in JSON.
pub(super) fn reply<const N: usize>(
    status: StatusCode,
    json: &serde_json::Value,
    headers: [(HeaderName, String); N],
) -> Response {
    let mut response = Response::new(Body::from(json.to_string()));
    *response.status_mut() = status;
    let fields = response.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, value) in headers {
        match HeaderValue::try_from(value) {
            Ok(value) => fields.append(name, value),
            Err(error) => return Problem::internal(&error).into_response(),
        };
    }
    response
}
