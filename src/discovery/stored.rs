//! The registry as it is stored in `DATA_DIR/labels.json`.

use std::io;
use std::path::{Path, PathBuf};

use super::registry::Registry;
use crate::files;

const FILE: &str = "labels.json";

/// The path of the stored registry in `data_dir`.
pub(crate) fn path(data_dir: &Path) -> PathBuf {
    data_dir.join(FILE)
}

/// Reads the registry stored at `path`. A damaged one is logged and replaced by an
/// empty one, which the running containers fill again.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn read(path: &Path) -> io::Result<Registry> {
    let Some(text) = files::read_data(path)? else {
        return Ok(Registry::default());
    };
    Ok(serde_json::from_str(&text).unwrap_or_else(|error| {
        tracing::error!(
            "{}: {error}; certificates of removed containers are not renewed; hint: restore it from a backup",
            path.display()
        );
        Registry::default()
    }))
}

/// Stores the registry, so that a restart remembers the containers that are gone.
pub(crate) fn write(path: &Path, registry: &Registry) {
    let written = serde_json::to_vec_pretty(registry).map_err(std::io::Error::from);
    let written = written.and_then(|json| files::replace(path, 0o600, &json));
    if let Err(error) = written {
        tracing::error!(
            "{}: {error}; hint: make it writable, or a restart forgets the certificates of removed containers",
            path.display()
        );
    }
}
