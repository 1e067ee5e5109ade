//! The registry as it is stored in `DATA_DIR/labels.json`.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::registry::Registry;

const FILE: &str = "labels.json";

/// Where it lies in `data_dir`.
pub(crate) fn path(data_dir: &Path) -> PathBuf {
    data_dir.join(FILE)
}

/// As it was stored at `path`. What cannot be read is told, and asked for again
/// by the containers that are still there.
pub(crate) fn read(path: &Path) -> Registry {
    let read = std::fs::read_to_string(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => None,
        _ => Some(error.to_string()),
    });
    let read =
        read.and_then(|text| serde_json::from_str(&text).map_err(|error| Some(error.to_string())));
    read.unwrap_or_else(|detail: Option<String>| {
        if let Some(detail) = detail {
            tracing::error!(
                "{}: {detail}; hint: what containers ask for now is managed; what is gone is not",
                path.display()
            );
        }
        Registry::default()
    })
}

/// Stores it. Without it the next start would forget which containers are gone; what is
/// asked for now it would see again.
pub(crate) fn write(path: &Path, registry: &Registry) {
    let written = serde_json::to_vec_pretty(registry).map_err(std::io::Error::from);
    let written = written.and_then(|json| crate::files::replace(path, 0o600, &json));
    if let Err(error) = written {
        tracing::error!(
            "{}: {error}; hint: until it can be written, a restart forgets which containers are gone",
            path.display()
        );
    }
}
