//! The content of an object: a line of `certs`, and the document.

use super::super::exchange::failed;
use super::super::{DocumentsError, drawn};

const FORMAT: &str = "certs/1 ";
const STORED: &str = "stored ";
const GONE: &str = "gone ";
/// Hexadecimal digits, and the end of the line.
const NUMBER: usize = 32 + 1;
/// The size of the mark of a removed document; a stored one is larger.
pub(super) const GONE_SIZE: u64 = (FORMAT.len() + GONE.len() + NUMBER) as u64;

/// What an object holds.
pub(super) enum Object {
    Stored(Vec<u8>),
    Gone,
}

/// The object of a document, or of a removed one.
pub(super) fn object_of(content: Option<&[u8]>) -> Vec<u8> {
    let mark = if content.is_some() { STORED } else { GONE };
    let line = format!("{FORMAT}{mark}{}\n", drawn());
    [line.as_bytes(), content.unwrap_or_default()].concat()
}

pub(super) fn opened(object: &[u8]) -> Result<Object, DocumentsError> {
    if let Some(rest) = object.strip_prefix(FORMAT.as_bytes()) {
        if rest.starts_with(GONE.as_bytes()) && object.len() as u64 == GONE_SIZE {
            return Ok(Object::Gone);
        }
        let content = rest.strip_prefix(STORED.as_bytes());
        if let Some(content) = content.and_then(|content| content.get(NUMBER..)) {
            return Ok(Object::Stored(content.to_vec()));
        }
    }
    Err(failed(match object.starts_with(b"certs/") {
        true => "it was written by a newer version of certs",
        false => "another program has stored something there",
    }))
}
