//! The ACME server: routes, the check that every signed request passes (RFC
//! 8555 section 6), and the headers that every reply carries. What a request
//! then does stands in [`super::account`], [`super::order`] and
//! [`super::certificates`].

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequest, Request, State as Shared};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, LINK};
use http::{HeaderValue, Method, StatusCode};
use http_body_util::{BodyExt, Limited};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

use super::authority::Authority;
use super::jws::{Header, Jwk, Jws};
use super::nonces::Nonces;
use super::problem::{Kind, Problem};
use super::state::{Account, Id, State};
use super::{CaError, RenewalWindows, Settings, account, certificates, order};
use crate::files;
use crate::record::Window;
use crate::time::{Clock, Timestamp};

const LARGEST_BODY: usize = 64 * 1024;
const VALIDATIONS_AT_ONCE: usize = 64;
const NEW_NONCE: &str = "/acme/new-nonce";
const DIRECTORY: &str = "/directory";

/// The embedded CA. Clones are the same CA.
#[derive(Clone)]
pub struct Server(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) settings: Settings,
    pub(super) authority: Authority,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) validations: Semaphore,
    nonces: Nonces,
    kept: Mutex<Kept>,
    /// The version that is on disk; held while a newer one is written.
    written: tokio::sync::Mutex<u64>,
    suggestions: Mutex<Suggestions>,
    /// Held for as long as the directory is ours.
    _lock: Option<File>,
}

struct Kept {
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
    /// When the settings contradict themselves, or the directory cannot be
    /// used or holds something unreadable; nothing is overwritten then.
    pub fn new(settings: Settings, clock: Arc<dyn Clock>) -> Result<Self, CaError> {
        settings.check()?;
        let directory = settings.directory.as_deref();
        let lock = directory.map(lock_directory).transpose()?;
        let authority = Authority::open(directory, clock.now())?;
        let mut state = directory.map(load).transpose()?.unwrap_or_default();
        let cut_off = state.recover();
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
            kept: Mutex::new(Kept { state, version: 0 }),
            written: tokio::sync::Mutex::new(0),
            suggestions: Mutex::new(suggestions),
            _lock: lock,
        }));
        if tokio::runtime::Handle::try_current().is_ok() {
            for id in cut_off {
                order::spawn_validation(&server, id);
            }
        }
        Ok(server)
    }

    /// The root certificate in PEM, for clients to trust.
    #[must_use]
    pub fn root_pem(&self) -> &str {
        self.0.authority.root_pem()
    }

    /// The URL of the ACME directory.
    #[must_use]
    pub fn directory_url(&self) -> String {
        self.url(DIRECTORY)
    }

    /// Suggests `window` for the certificate that RFC 9773 names `renewal_id`,
    /// whatever the policy says, as a CA does before a mass revocation.
    pub fn suggest(&self, renewal_id: impl Into<String>, window: Window) {
        let mut suggestions = lock(&self.0.suggestions);
        suggestions.by_certificate.insert(renewal_id.into(), window);
    }

    /// Suggests windows by `policy` from now on; single suggestions stay.
    pub fn suggest_by(&self, policy: RenewalWindows) {
        lock(&self.0.suggestions).policy = policy;
    }

    pub(super) fn suggestion(&self, renewal_id: &str) -> Result<Window, RenewalWindows> {
        let suggestions = lock(&self.0.suggestions);
        let single = suggestions.by_certificate.get(renewal_id).cloned();
        single.ok_or(suggestions.policy)
    }

    /// The ACME server as a service. It speaks for [`Settings::base_url`] and
    /// needs no socket; it must run inside a tokio runtime.
    pub fn router(&self) -> Router {
        Router::new()
            .route(DIRECTORY, get(directory))
            .route(NEW_NONCE, get(new_nonce))
            .route("/acme/new-account", post(account::new_account))
            .route("/acme/account/{id}", post(account::account))
            .route("/acme/account/{id}/orders", post(account::orders))
            .route("/acme/key-change", post(account::key_change))
            .route("/acme/new-order", post(order::new_order))
            .route("/acme/order/{id}", post(order::order))
            .route("/acme/order/{id}/finalize", post(order::finalize))
            .route("/acme/authorization/{id}", post(order::authorization))
            .route("/acme/challenge/{id}", post(order::challenge))
            .route("/acme/certificate/{id}", post(certificates::certificate))
            .route("/acme/revoke-certificate", post(certificates::revoke))
            .route("/acme/renewal-info/{id}", get(certificates::renewal_info))
            .fallback(async || Problem::not_found("resource"))
            .method_not_allowed_fallback(async || {
                Problem::malformed("this method is not for this resource")
                    .with_status(StatusCode::METHOD_NOT_ALLOWED)
            })
            .layer(from_fn_with_state(self.clone(), dress))
            .with_state(self.clone())
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.0.settings.base_url)
    }

    pub(super) fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// Looks at the state. What only the time has changed needs no writing.
    pub(super) fn look<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut lock(&self.0.kept).state)
    }

    /// Changes the state; the change is durable when this returns.
    pub(super) async fn change<T>(
        &self,
        transition: impl FnOnce(&mut State) -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        let (changed, version) = {
            let mut kept = lock(&self.0.kept);
            let changed = transition(&mut kept.state)?;
            kept.version += 1;
            (changed, kept.version)
        };
        self.write(version).await?;
        Ok(changed)
    }

    /// Writes the state unless another request has written this version with
    /// its own: changes that come together cost one write.
    async fn write(&self, version: u64) -> Result<(), Problem> {
        let Some(directory) = &self.0.settings.directory else {
            return Ok(());
        };
        let mut written = self.0.written.lock().await;
        if *written >= version {
            return Ok(());
        }
        let (json, version) = {
            let kept = lock(&self.0.kept);
            (serde_json::to_vec(&kept.state), kept.version)
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

/// RFC 8555 section 7.1.1.
async fn directory(Shared(server): Shared<Server>) -> Response {
    let settings = &server.0.settings;
    let profiles: BTreeMap<_, _> = settings
        .profiles
        .iter()
        .map(|(name, profile)| (name, &profile.description))
        .collect();
    let mut meta = serde_json::json!({
        "externalAccountRequired": !settings.external_accounts.is_empty(),
        "profiles": profiles,
    });
    if let Some(terms) = &settings.terms_of_service {
        meta["termsOfService"] = terms.as_str().into();
    }
    let json = serde_json::json!({
        "newNonce": server.url(NEW_NONCE),
        "newAccount": server.url("/acme/new-account"),
        "newOrder": server.url("/acme/new-order"),
        "revokeCert": server.url("/acme/revoke-certificate"),
        "keyChange": server.url("/acme/key-change"),
        "renewalInfo": server.url("/acme/renewal-info"),
        "meta": meta,
    });
    reply(StatusCode::OK, &json, [])
}

/// RFC 8555 section 7.2; the nonce is in the headers of the reply.
async fn new_nonce(method: Method) -> StatusCode {
    if method == Method::HEAD {
        StatusCode::OK
    } else {
        StatusCode::NO_CONTENT
    }
}

/// Gives every reply the headers that RFC 8555 sections 6.5 and 7.1 want.
async fn dress(Shared(server): Shared<Server>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let (nonce, index) = (
        request.method() == Method::POST || path == NEW_NONCE,
        path != DIRECTORY,
    );
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    if nonce {
        if let Ok(nonce) = HeaderValue::try_from(server.0.nonces.give()) {
            headers.insert("replay-nonce", nonce);
        }
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    if index
        && let Ok(link) =
            HeaderValue::try_from(format!("<{}>;rel=\"index\"", server.url(DIRECTORY)))
    {
        headers.append(LINK, link);
    }
    response
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

/// A request whose signature, URL and nonce were checked.
pub(super) struct Signed {
    pub(super) signer: Signer,
    payload: Vec<u8>,
    pub(super) url: String,
}

/// Who has signed a request.
pub(super) enum Signer {
    /// An account that is in use.
    Account(Id),
    /// A key that came with the request.
    Key(Jwk),
}

impl Signed {
    /// The account that signed it.
    pub(super) fn account(&self) -> Result<&Id, Problem> {
        match &self.signer {
            Signer::Account(id) => Ok(id),
            Signer::Key(_) => Err(Problem::malformed("this request is signed with a kid")),
        }
    }

    /// The payload as JSON of that form.
    pub(super) fn payload<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        serde_json::from_slice(&self.payload)
            .map_err(|error| Problem::malformed(format!("the payload is not as expected: {error}")))
    }

    /// Whether it only wants to read (RFC 8555 section 6.3).
    pub(super) fn is_post_as_get(&self) -> bool {
        self.payload.is_empty()
    }

    /// The account, of a request that may only read.
    pub(super) fn reader(&self) -> Result<&Id, Problem> {
        if !self.is_post_as_get() {
            return Err(Problem::malformed("this resource takes an empty payload"));
        }
        self.account()
    }
}

impl FromRequest<Server> for Signed {
    type Rejection = Problem;

    async fn from_request(request: Request, server: &Server) -> Result<Self, Problem> {
        let content_type = request.headers().get(CONTENT_TYPE);
        if content_type.is_none_or(|kind| kind != "application/jose+json") {
            return Err(
                Problem::malformed("the content type is application/jose+json")
                    .with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE),
            );
        }
        let url = server.url(
            request
                .uri()
                .path_and_query()
                .map_or("/", |path| path.as_str()),
        );
        let body = Limited::new(request.into_body(), LARGEST_BODY)
            .collect()
            .await;
        let body = body.map_err(|_| {
            Problem::malformed("the body is larger than 64 KiB, or was cut off")
                .with_status(StatusCode::PAYLOAD_TOO_LARGE)
        })?;
        let jws = Jws::parse(&body.to_bytes())?;
        let header = jws.header()?;
        let nonce = header.nonce.as_deref().unwrap_or("");
        if !server.0.nonces.take(nonce) {
            return Err(Problem::new(Kind::BadNonce, "the nonce is not fresh"));
        }
        if header.url.as_deref() != Some(&url) {
            return Err(Problem::new(
                Kind::Unauthorized,
                "the request was signed for another URL",
            ));
        }
        let (signer, key) = signer(server, &header)?;
        Ok(Self {
            payload: jws.verify(&header, &key)?,
            signer,
            url,
        })
    }
}

fn signer(server: &Server, header: &Header) -> Result<(Signer, Jwk), Problem> {
    if let Some(key) = &header.jwk {
        return Ok((Signer::Key(key.clone()), key.clone()));
    }
    let kid = header.kid.as_deref().unwrap_or("");
    let id = kid
        .strip_prefix(&server.url("/acme/account/"))
        .unwrap_or("");
    let account = server.look(|state| state.accounts.get(id).cloned());
    let account = account.ok_or_else(|| {
        Problem::new(
            Kind::AccountDoesNotExist,
            "the kid names no account of this CA",
        )
    })?;
    check_active(&account)?;
    Ok((Signer::Account(id.to_owned()), account.key))
}

/// RFC 8555 section 7.3.6.
pub(super) fn check_active(account: &Account) -> Result<(), Problem> {
    if account.deactivated {
        return Err(
            Problem::new(Kind::Unauthorized, "the account is deactivated")
                .with_status(StatusCode::UNAUTHORIZED),
        );
    }
    Ok(())
}
