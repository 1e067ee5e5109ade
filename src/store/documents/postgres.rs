//! Documents as rows of a table of PostgreSQL 11 or later. A version is a random number: one
//! of a sequence would be given again after the database was restored from a backup. Each write
//! is one statement, with a notice of the change in the same transaction.

mod meaning;
mod place;
mod session;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Mutex, watch};
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use self::meaning::{ends_connection, meaning};
use self::place::Place;
use self::session::Session;
use super::exchange::{Effect, WITHIN, failed, unusable};
use super::settings::ServerSettings;
use super::{Document, Documents, DocumentsError, Notice, Version, drawn};
use crate::time::Timestamp;

const CHANNEL: &str = "certs_documents";
/// A statement ends on the server after ten seconds; its answer needs some time, too.
const ANSWER: Duration = WITHIN.saturating_add(Duration::from_secs(2));
/// Before a watch that failed is repeated.
const PAUSE: Duration = Duration::from_secs(5);
const LONGEST: i32 = 16 * 1024 * 1024;

const READ: &str = "SELECT CASE WHEN octet_length(content) <= $3 THEN content END, version
    FROM certs_documents WHERE prefix = $1 AND key = $2";
const LIST: &str =
    "SELECT key, version FROM certs_documents WHERE prefix = $1 AND starts_with(key, $2)";
const INSERT: &str = "WITH done AS (INSERT INTO certs_documents (prefix, key, content, version)
    VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING RETURNING prefix, key)
    SELECT pg_notify('certs_documents', prefix || '/' || key || ' ' || $4) FROM done";
const UPDATE: &str = "WITH done AS (UPDATE certs_documents SET content = $3, version = $4
    WHERE prefix = $1 AND key = $2 AND version = $5 RETURNING prefix, key)
    SELECT pg_notify('certs_documents', prefix || '/' || key || ' ' || $4) FROM done";
const DELETE: &str = "WITH done AS (DELETE FROM certs_documents
    WHERE prefix = $1 AND key = $2 AND version = $3 RETURNING prefix, key)
    SELECT pg_notify('certs_documents', prefix || '/' || key || ' ') FROM done";
const TIME: &str = "SELECT floor(extract(epoch FROM clock_timestamp()))::bigint";
const READ_ONLY_SERVER: &str =
    "it is read-only: a replica, or default_transaction_read_only is on; name the primary server";
const READ_ONLY: &str = "SELECT current_setting('transaction_read_only') = 'on'";

/// A parameter of a statement.
type Parameter<'p> = (&'p (dyn ToSql + Sync), Type);

/// A database, below a prefix that is ours.
#[derive(Debug)]
pub(super) struct PostgresDocuments {
    place: Place,
    session: Mutex<Option<Arc<Session>>>,
}

impl PostgresDocuments {
    /// The documents of `postgres://…`.
    ///
    /// # Errors
    /// What is invalid in the settings.
    pub(super) fn new(settings: &ServerSettings) -> Result<Self, String> {
        Ok(Self {
            place: Place::of(settings)?,
            session: Mutex::default(),
        })
    }

    async fn session(&self) -> Result<Arc<Session>, DocumentsError> {
        let mut kept = self.session.lock().await;
        if let Some(session) = kept.as_ref().filter(|session| !session.client.is_closed()) {
            return Ok(session.clone());
        }
        let connected = tokio::time::timeout(WITHIN, Session::connect(&self.place)).await;
        let late = |_| failed(format!("no answer within {} s", WITHIN.as_secs()));
        let session = Arc::new(connected.map_err(late)??);
        *kept = Some(session.clone());
        Ok(session)
    }

    /// The rows of a statement.
    async fn rows(
        &self,
        sql: &str,
        parameters: &[Parameter<'_>],
        effect: Effect,
    ) -> Result<Vec<Row>, DocumentsError> {
        let session = self.session().await?;
        let answer =
            tokio::time::timeout(ANSWER, session.client.query_typed(sql, parameters)).await;
        let error = match answer {
            Ok(Ok(rows)) => return Ok(rows),
            Ok(Err(error)) if !ends_connection(&error) => return Err(meaning(&error, effect)),
            Ok(Err(error)) => meaning(&error, effect),
            Err(_) => effect.unknown(format!("no answer within {} s", ANSWER.as_secs())),
        };
        // The next call has a new connection.
        let mut kept = self.session.lock().await;
        kept.take_if(|kept| Arc::ptr_eq(kept, &session));
        Err(error)
    }

    /// Writes by a statement that returns a row if it has written.
    async fn change(&self, sql: &str, parameters: &[Parameter<'_>]) -> Result<(), DocumentsError> {
        match self.rows(sql, parameters, Effect::Writes).await?.is_empty() {
            true => Err(DocumentsError::Conflict),
            false => Ok(()),
        }
    }

    /// The first column of the only row.
    async fn value<T>(&self, sql: &str) -> Result<T, DocumentsError>
    where
        T: for<'r> tokio_postgres::types::FromSql<'r>,
    {
        let rows = self.rows(sql, &[], Effect::Reads).await?;
        let row = rows.first().ok_or_else(|| failed("it gives no row"))?;
        row.try_get(0).map_err(failed)
    }

    /// Tells of changes until the connection ends. What a pooler that has none would miss is
    /// in no notice: the first one shows that there are some.
    async fn watch_once(
        &self,
        key: &str,
        notices: &watch::Sender<Notice>,
    ) -> Result<(), DocumentsError> {
        let mut changes = self.session().await?.changes();
        let ours = format!("{}/{key}", self.place.prefix);
        loop {
            match changes.recv().await {
                Ok(change) => {
                    if let Some((changed, version)) = change.rsplit_once(' ')
                        && changed == ours
                    {
                        let version = Some(version).filter(|version| !version.is_empty());
                        let version = version.map(|version| Version(version.to_owned()));
                        notices.send_replace(Notice::Newest(version));
                    }
                }
                Err(RecvError::Lagged(_)) => drop(notices.send_replace(Notice::Nothing)),
                Err(RecvError::Closed) => return Err(failed("the connection has ended")),
            }
        }
    }
}

#[async_trait]
impl Documents for PostgresDocuments {
    async fn read(&self, key: &str) -> Result<Option<Document>, DocumentsError> {
        let parameters: [Parameter<'_>; 3] = [
            (&self.place.prefix, Type::TEXT),
            (&key, Type::TEXT),
            (&LONGEST, Type::INT4),
        ];
        let rows = self.rows(READ, &parameters, Effect::Reads).await?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        let content: Option<Vec<u8>> = row.try_get(0).map_err(failed)?;
        Ok(Some(Document {
            content: content.ok_or_else(|| failed(format!("it has more than {LONGEST} bytes")))?,
            version: Version(row.try_get(1).map_err(failed)?),
        }))
    }

    async fn write(
        &self,
        key: &str,
        content: &[u8],
        expected: Option<&Version>,
    ) -> Result<Version, DocumentsError> {
        let version = drawn();
        let mut parameters: Vec<Parameter<'_>> = vec![
            (&self.place.prefix, Type::TEXT),
            (&key, Type::TEXT),
            (&content, Type::BYTEA),
            (&version, Type::TEXT),
        ];
        let sql = match expected {
            None => INSERT,
            Some(expected) => {
                parameters.push((&expected.0, Type::TEXT));
                UPDATE
            }
        };
        self.change(sql, &parameters).await?;
        Ok(Version(version))
    }

    async fn remove(&self, key: &str, expected: &Version) -> Result<(), DocumentsError> {
        let parameters: [Parameter<'_>; 3] = [
            (&self.place.prefix, Type::TEXT),
            (&key, Type::TEXT),
            (&expected.0, Type::TEXT),
        ];
        self.change(DELETE, &parameters).await
    }

    async fn list(&self, prefix: &str) -> Result<BTreeMap<String, Version>, DocumentsError> {
        let parameters: [Parameter<'_>; 2] =
            [(&self.place.prefix, Type::TEXT), (&prefix, Type::TEXT)];
        let rows = self.rows(LIST, &parameters, Effect::Reads).await?;
        let pair = |row: &Row| Ok((row.try_get(0)?, Version(row.try_get(1)?)));
        let listed: Result<_, tokio_postgres::Error> = rows.iter().map(pair).collect();
        listed.map_err(failed)
    }

    async fn time(&self) -> Result<Timestamp, DocumentsError> {
        Ok(Timestamp::from_seconds(self.value(TIME).await?))
    }

    async fn probe(&self) -> Result<(), DocumentsError> {
        match self.value(READ_ONLY).await? {
            true => Err(unusable(READ_ONLY_SERVER.to_owned())),
            false => Ok(()),
        }
    }

    async fn watch(&self, key: &str, notices: &watch::Sender<Notice>) {
        while self.watch_once(key, notices).await.is_err() {
            notices.send_replace(Notice::Nothing);
            tokio::time::sleep(PAUSE).await;
        }
    }
}
