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
use super::problem::{ErrorType, Problem};
use super::server::Server;
use super::state::{Account, Id};

const LARGEST_BODY: usize = 64 * 1024;
const BODY_DEADLINE: Duration = Duration::from_secs(10);

/// A request with a valid signature, URL and nonce.
pub(super) struct Signed {
    pub(super) signer: RequestSigner,
    payload: Vec<u8>,
    pub(super) url: String,
}

/// The signer of a request.
pub(super) enum RequestSigner {
    /// An active account.
    Account(Id),
    /// The key that the request carries.
    Key(Jwk),
}

impl Signed {
    /// The account that signed it.
    pub(super) fn account(&self) -> Result<&Id, Problem> {
        match &self.signer {
            RequestSigner::Account(id) => Ok(id),
            RequestSigner::Key(_) => Err(Problem::malformed("this request needs a kid")),
        }
    }

    /// The payload, parsed as JSON.
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
        if !self.is_post_as_get() {
            return Err(Problem::malformed("this resource needs an empty payload"));
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
                Problem::malformed("the content type must be application/jose+json")
                    .with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE),
            );
        }
        let url = server.url(
            request
                .uri()
                .path_and_query()
                .map_or("/", |path| path.as_str()),
        );
        let body = read(request.into_body()).await?;
        let jws = Jws::parse(&body)?;
        let header = jws.header()?;
        let nonce = header.nonce.as_deref().unwrap_or("");
        if !server.0.nonces.take(nonce) {
            return Err(Problem::new(
                ErrorType::BadNonce,
                "the nonce is unknown or already used",
            ));
        }
        if header.url.as_deref() != Some(&url) {
            return Err(Problem::new(
                ErrorType::Unauthorized,
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

async fn read(body: Body) -> Result<Bytes, Problem> {
    let whole = Limited::new(body, LARGEST_BODY).collect();
    match tokio::time::timeout(BODY_DEADLINE, whole).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(_)) => Err(
            Problem::malformed("the body is larger than 64 KiB or incomplete")
                .with_status(StatusCode::PAYLOAD_TOO_LARGE),
        ),
        Err(_) => Err(Problem::malformed("the body did not arrive within 10 s")
            .with_status(StatusCode::REQUEST_TIMEOUT)),
    }
}

fn signer(server: &Server, header: &Header) -> Result<(RequestSigner, Jwk), Problem> {
    if let Some(key) = &header.jwk {
        return Ok((RequestSigner::Key(key.clone()), key.clone()));
    }
    let kid = header.kid.as_deref().unwrap_or("");
    let id = kid
        .strip_prefix(&server.url("/acme/account/"))
        .unwrap_or("");
    let account = server.look(|state| state.accounts.get(id).cloned());
    let account = account.ok_or_else(|| {
        Problem::new(
            ErrorType::AccountDoesNotExist,
            "no account found for the kid",
        )
    })?;
    check_active(&account)?;
    Ok((RequestSigner::Account(id.to_owned()), account.key))
}

/// Refuses a deactivated account (RFC 8555 section 7.3.6).
pub(super) fn check_active(account: &Account) -> Result<(), Problem> {
    if account.deactivated {
        return Err(
            Problem::new(ErrorType::Unauthorized, "the account is deactivated")
                .with_status(StatusCode::UNAUTHORIZED),
        );
    }
    Ok(())
}
