//! Single files and directories of the store, private to its user. Each failure names the step
//! and the path.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::StoreError;
use super::{FORMAT, PRIVATE_DIRECTORY, PRIVATE_FILE};
use crate::files;

pub(super) fn open_lock(path: &Path) -> Result<File, StoreError> {
    files::open_lock(path).map_err(at("open", path))
}

/// The lock of a compare-and-swap.
pub(super) fn locked(path: &Path) -> Result<File, StoreError> {
    let lock = open_lock(path)?;
    files::lock(&lock).map_err(at("lock", path))?;
    Ok(lock)
}

pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    let text = read_text(path)?;
    text.map(|text| parsed(path, &text)).transpose()
}

/// How we begin a file: then its format need not be looked for.
const OURS: &str = "{\n  \"format\": 1,\n";

/// The value in `text`, unless a newer version wrote it: that may mean something else by it.
pub(super) fn parsed<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, StoreError> {
    // A newer value may be readable nevertheless.
    if !text.starts_with(OURS) && text.contains("\"format\"") {
        newer(path, text)?;
    }
    serde_json::from_str(text).map_err(|error| corrupt(path, &error))
}

/// Refuses a file of a newer format, which must not be replaced. One without a format is older,
/// and a damaged one is refused elsewhere.
pub(super) fn check_format(path: &Path) -> Result<(), StoreError> {
    let text = read_text(path).ok().flatten();
    text.map_or(Ok(()), |text| newer(path, &text))
}

fn newer(path: &Path, text: &str) -> Result<(), StoreError> {
    #[derive(Deserialize)]
    struct Format {
        #[serde(default)]
        format: u32,
    }
    let found = serde_json::from_str::<Format>(text).map_or(0, |it| it.format);
    match found > FORMAT {
        true => Err(StoreError::Newer {
            subject: path.display().to_string(),
            found,
            known: FORMAT,
        }),
        false => Ok(()),
    }
}

pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), StoreError> {
    let json = serde_json::to_vec_pretty(value).map_err(|error| corrupt(path, &error))?;
    replace(path, &json)
}

pub(super) fn replace(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    files::replace(path, PRIVATE_FILE, content).map_err(at("write", path))
}

pub(super) fn make_directory(path: &Path) -> Result<(), StoreError> {
    files::make_directory(path, PRIVATE_DIRECTORY).map_err(at("create", path))
}

/// Removes a directory with its files; whether it existed.
pub(super) fn remove_directory(path: &Path) -> Result<bool, StoreError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        removed => removed.map(|()| true).map_err(at("remove", path)),
    }
}

pub(super) fn corrupt(path: &Path, error: &dyn std::error::Error) -> StoreError {
    StoreError::Corrupt {
        subject: path.display().to_string(),
        detail: error.to_string(),
    }
}

/// The text of a file, if the file exists.
pub(super) fn read_text(path: &Path) -> Result<Option<String>, StoreError> {
    files::read_data(path).map_err(|error| corrupt_or_unread(path, error))
}

/// Why the file at `path` has no text.
pub(super) fn corrupt_or_unread(path: &Path, error: io::Error) -> StoreError {
    match error.kind() {
        ErrorKind::InvalidData | ErrorKind::FileTooLarge => corrupt(path, &error),
        _ => at("read", path)(error),
    }
}

pub(super) fn at(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> StoreError {
    let subject = path.display().to_string();
    move |source| StoreError::Io {
        operation,
        subject: subject.clone(),
        source,
    }
}
