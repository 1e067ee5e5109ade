//! The routes of the ACME server, its directory, and the headers of every reply
//! (RFC 8555 sections 6.5 and 7.1). The handlers are in [`super::account`],
//! [`super::order`] and [`super::certificates`].

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::{Request, State as Shared};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};
use http::header::{CACHE_CONTROL, LINK};
use http::{HeaderValue, Method, StatusCode};
use serde_json::json;

use super::problem::Problem;
use super::server::{Server, reply};
use super::{account, certificates, order};

const NEW_NONCE: &str = "/acme/new-nonce";
const DIRECTORY: &str = "/directory";

impl Server {
    /// The URL of the ACME directory.
    #[must_use]
    pub fn directory_url(&self) -> String {
        self.url(DIRECTORY)
    }

    /// The ACME server as a service for [`super::Settings::base_url`]. It needs no
    /// socket, but a tokio runtime.
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
            .route("/acme/challenge/{id}/{kind}", post(order::challenge))
            .route("/acme/certificate/{id}", post(certificates::certificate))
            .route("/acme/revoke-certificate", post(certificates::revoke))
            .route("/acme/renewal-info/{id}", get(certificates::renewal_info))
            .merge(self.public_routes())
            .fallback(async || Problem::not_found("resource"))
            .method_not_allowed_fallback(async || {
                Problem::malformed("the resource does not support this method")
                    .with_status(StatusCode::METHOD_NOT_ALLOWED)
            })
            .layer(from_fn_with_state(self.clone(), add_headers))
            .with_state(self.clone())
    }

    /// The public and signed files only: a client can check them without TLS.
    pub(super) fn public_router(&self) -> Router {
        let other = "without TLS this CA serves /crl/ and /root.pem only: use https\n";
        let routes = self
            .public_routes()
            .fallback(async move || (StatusCode::NOT_FOUND, other));
        routes.with_state(self.clone())
    }

    fn public_routes(&self) -> Router<Self> {
        Router::new()
            .route("/crl/{file}", get(certificates::list))
            .route("/root.pem", get(certificates::root))
    }
}

/// The directory object (RFC 8555 section 7.1.1).
async fn directory(Shared(server): Shared<Server>) -> Response {
    let settings = &server.0.settings;
    let profiles = settings.profiles.iter();
    let profiles = profiles.map(|(name, profile)| (name, &profile.description));
    let meta = json!({
        "externalAccountRequired": !settings.external_accounts.is_empty(),
        "profiles": profiles.collect::<BTreeMap<_, _>>(),
    });
    let json = json!({
        "newNonce": server.url(NEW_NONCE),
        "newAccount": server.url("/acme/new-account"),
        "newOrder": server.url("/acme/new-order"),
        "revokeCert": server.url("/acme/revoke-certificate"),
        "keyChange": server.url("/acme/key-change"),
        "renewalInfo": server.url("/acme/renewal-info"),
        "meta": meta,
    });
    reply(StatusCode::OK, json, ())
}

/// RFC 8555 section 7.2; [`add_headers`] adds the nonce to the reply.
async fn new_nonce(method: Method) -> StatusCode {
    match method {
        Method::HEAD => StatusCode::OK,
        _ => StatusCode::NO_CONTENT,
    }
}

/// Adds the headers of RFC 8555 sections 6.5 and 7.1.
async fn add_headers(Shared(server): Shared<Server>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let nonce = request.method() == Method::POST || path == NEW_NONCE;
    let index = path != DIRECTORY;
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    if nonce {
        if let Ok(nonce) = HeaderValue::try_from(server.0.nonces.issue()) {
            headers.insert("replay-nonce", nonce);
        }
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    let link = format!("<{}>;rel=\"index\"", server.url(DIRECTORY));
    if index && let Ok(link) = HeaderValue::try_from(link) {
        headers.append(LINK, link);
    }
    response
}
