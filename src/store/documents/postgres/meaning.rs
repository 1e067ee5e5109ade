//! What an error of PostgreSQL says of a write.

use tokio_postgres::error::{DbError, SqlState};

use super::super::DocumentsError;
use super::super::exchange::{Effect, denied, failed};
use crate::text::printable;

/// The meaning of an error for a statement with this effect: one that the server reports has
/// undone the statement, unless it ends the connection, too.
pub(super) fn meaning(error: &tokio_postgres::Error, effect: Effect) -> DocumentsError {
    let Some(said) = error.as_db_error() else {
        let cause = std::error::Error::source(error).map(ToString::to_string);
        return effect.unknown(printable(&cause.unwrap_or_else(|| error.to_string())));
    };
    let code = said.code();
    if [
        &SqlState::T_R_SERIALIZATION_FAILURE,
        &SqlState::T_R_DEADLOCK_DETECTED,
    ]
    .contains(&code)
    {
        return DocumentsError::Conflict;
    }
    let shown = shown(said);
    let is_denied = code.code().starts_with("28")
        || [
            &SqlState::INSUFFICIENT_PRIVILEGE,
            &SqlState::INVALID_CATALOG_NAME,
        ]
        .contains(&code);
    if is_denied {
        return denied(shown);
    }
    match ends_connection(error) || code == &SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN {
        true => effect.unknown(shown),
        false => failed(shown),
    }
}

/// Whether the connection has ended with this error, or is about to.
pub(super) fn ends_connection(error: &tokio_postgres::Error) -> bool {
    let said = error.as_db_error();
    said.is_none_or(|said| ["FATAL", "PANIC"].contains(&said.severity()))
}

fn shown(said: &DbError) -> String {
    let code = said.code();
    let mut shown = format!("PostgreSQL: {} ({})", said.message(), code.code());
    if code == &SqlState::READ_ONLY_SQL_TRANSACTION {
        shown +=
            ": it is a replica, or default_transaction_read_only is on; name the primary server";
    }
    printable(&shown)
}
