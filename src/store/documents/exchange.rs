//! HTTP exchanges with a server of documents, and what a failure says of a write.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::header::DATE;
use http::{HeaderMap, Request, Response};
use http_body_util::Full;
use time::OffsetDateTime;

use super::DocumentsError;
use crate::net::http::HttpError;
use crate::net::pool::Pool;
use crate::time::Timestamp;

/// For one exchange, connecting included.
pub(super) const WITHIN: Duration = Duration::from_secs(10);
/// A document has some KiB, and a page of a listing some hundred.
const LONGEST: usize = 16 * 1024 * 1024;

/// What a call does on the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Reads,
    Writes,
}

impl Effect {
    /// The error of a call that may have had this effect.
    pub(super) fn unknown(
        self,
        error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> DocumentsError {
        let error = io::Error::other(error);
        match self {
            Self::Reads => DocumentsError::Failed(error),
            Self::Writes => DocumentsError::Unanswered(error),
        }
    }
}

/// The error of a call that did nothing.
pub(super) fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> DocumentsError {
    DocumentsError::Failed(io::Error::other(error))
}

/// The error of a server that refuses this machine, such as its credentials: waiting does not
/// help.
pub(super) fn denied(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> DocumentsError {
    DocumentsError::Failed(io::Error::new(io::ErrorKind::PermissionDenied, error))
}

/// The error of a server that cannot be used, though it answers.
pub(super) fn unusable(why: String) -> DocumentsError {
    DocumentsError::Failed(io::Error::new(io::ErrorKind::Unsupported, why))
}

/// Sends `request` and reads the reply, whatever its status, all `within` this time.
pub(super) async fn exchange(
    pool: &Pool,
    request: Request<Full<Bytes>>,
    within: Duration,
    effect: Effect,
) -> Result<Response<Bytes>, DocumentsError> {
    let sent = pool.send(request, within, LONGEST).await;
    sent.map_err(|error| match error {
        HttpError::Connect(error) => DocumentsError::Failed(error),
        error => effect.unknown(error),
    })
}

/// The clock of the server.
pub(super) fn date(headers: &HeaderMap) -> Result<Timestamp, DocumentsError> {
    let date = headers.get(DATE).and_then(|date| date.to_str().ok());
    let date = date.and_then(|date| httpdate::parse_http_date(date).ok());
    date.map(|date| OffsetDateTime::from(date).into())
        .ok_or_else(|| failed("its reply has no Date"))
}
