//! Signed requests (RFC 8555 section 6): each has a fresh nonce, the right URL
//! and the signature of an active account or of the key it carries.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use bytes::Bytes;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use http_body_util::{BodyExt, Limited};
use serde::de::DeserializeOwned;

use super::jws::{Header, Jwk, Jws};
use super::problem::{ErrorType, Problem, ensure};
use super::server::Server;
use super::state::{Id, Registration};

const LARGEST_BODY: usize = 64 * 1024;
const BODY_DEADLINE: Duration = Duration::from_secs(10);

/// A request with a valid signature, URL and nonce.
pub(super) struct Signed {
    pub(super) server: Server,
    /// The active account that signed it; `None` if the request carries its key.
    pub(super) signer: Option<Id>,
    pub(super) key: Jwk,
    pub(super) url: String,
    payload: Vec<u8>,
}

impl Signed {
    pub(super) fn account(&self) -> Result<&Id, Problem> {
        let signer = self.signer.as_ref();
        signer.ok_or_else(|| Problem::malformed("this request needs a kid"))
    }

    pub(super) fn payload<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        serde_json::from_slice(&self.payload)
            .map_err(|error| Problem::malformed(format!("invalid payload: {error}")))
    }

    /// Whether the request only reads (RFC 8555 section 6.3).
    pub(super) fn is_post_as_get(&self) -> bool {
        self.payload.is_empty()
    }

    /// The account of a request to a read-only resource.
    pub(super) fn reader(&self) -> Result<&Id, Problem> {
        let detail = "this resource needs an empty payload";
        ensure(self.is_post_as_get(), ErrorType::Malformed, detail)?;
        self.account()
    }
}

impl FromRequest<Server> for Signed {
    type Rejection = Problem;

    async fn from_request(request: Request, server: &Server) -> Result<Self, Problem> {
        let content_type = request.headers().get(CONTENT_TYPE);
        if content_type.is_none_or(|kind| kind != "application/jose+json") {
            let detail = "the content type must be application/jose+json";
            return Err(Problem::malformed(detail).with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE));
        }
        let path = request.uri().path_and_query();
        let url = server.url(path.map_or("/", |path| path.as_str()));
        let jws = Jws::parse(&read(request.into_body()).await?)?;
        let header = jws.header()?;
        let is_fresh = (server.0.nonces).take(header.nonce.as_deref().unwrap_or(""));
        let detail = "the nonce is unknown or already used";
        ensure(is_fresh, ErrorType::BadNonce, detail)?;
        let is_for_url = header.url.as_deref() == Some(&url);
        let detail = "the request was signed for another URL";
        ensure(is_for_url, ErrorType::Unauthorized, detail)?;
        let (signer, key) = signer(server, &header)?;
        Ok(Self {
            payload: jws.verify(&header, &key)?,
            server: server.clone(),
            signer,
            key,
            url,
        })
    }
}

async fn read(body: Body) -> Result<Bytes, Problem> {
    let whole = Limited::new(body, LARGEST_BODY).collect();
    let (detail, status) = match tokio::time::timeout(BODY_DEADLINE, whole).await {
        Ok(Ok(body)) => return Ok(body.to_bytes()),
        Ok(Err(_)) => (
            "the body is larger than 64 KiB or incomplete",
            StatusCode::PAYLOAD_TOO_LARGE,
        ),
        Err(_) => (
            "the body did not arrive within 10 s",
            StatusCode::REQUEST_TIMEOUT,
        ),
    };
    Err(Problem::malformed(detail).with_status(status))
}

fn signer(server: &Server, header: &Header) -> Result<(Option<Id>, Jwk), Problem> {
    if let Some(key) = &header.jwk {
        return Ok((None, key.clone()));
    }
    let kid = header.kid.as_deref().unwrap_or("");
    let id = kid.strip_prefix(&server.url("/acme/account/"));
    let id = id.unwrap_or("");
    let account = server.look(|state| state.accounts.get(id).cloned());
    let account = account.ok_or_else(|| {
        let detail = "no account found for the kid";
        Problem::new(ErrorType::AccountDoesNotExist, detail)
    })?;
    check_active(&account)?;
    Ok((Some(id.to_owned()), account.key))
}

/// Refuses a deactivated account (RFC 8555 section 7.3.6).
pub(super) fn check_active(account: &Registration) -> Result<(), Problem> {
    let detail = "the account is deactivated";
    ensure(!account.deactivated, ErrorType::Unauthorized, detail)
        .map_err(|problem| problem.with_status(StatusCode::UNAUTHORIZED))
}
