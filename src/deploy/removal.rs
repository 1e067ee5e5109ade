//! Removes the files of one certificate from the output: the live link first, since a
//! consumer must not follow it to files that are gone. Nothing is removed that has another
//! name. The store is not touched.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::output::OutputError;
use crate::files;
use crate::lineage::Lineage;

/// The existing live link and archive of `lineage` in the output at `root`.
///
/// # Errors
/// When it cannot be seen whether they exist.
pub(crate) fn present(root: &Path, lineage: &Lineage) -> Result<Vec<PathBuf>, OutputError> {
    let mut found = Vec::new();
    for path in places(root, lineage) {
        match path.symlink_metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(failed("read", &path, error)),
            Ok(_) => found.push(path),
        }
    }
    Ok(found)
}

/// Removes them; succeeds if they do not exist.
///
/// # Errors
/// The first that cannot be removed. The next call continues.
pub(crate) fn remove(root: &Path, lineage: &Lineage) -> Result<(), OutputError> {
    let [link, archive] = places(root, lineage);
    for path in [link.with_file_name(format!(".{lineage}.new")), link] {
        files::remove_if_there(&path).map_err(|error| failed("remove", &path, error))?;
        flush(&path)?;
    }
    match std::fs::remove_dir_all(&archive) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        removed => removed.map_err(|error| failed("remove", &archive, error))?,
    }
    flush(&archive)
}

fn places(root: &Path, lineage: &Lineage) -> [PathBuf; 2] {
    ["live", "archive"].map(|part| root.join(part).join(lineage.as_str()))
}

fn flush(path: &Path) -> Result<(), OutputError> {
    match files::sync_parent(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        flushed => flushed.map_err(|error| failed("flush", path, error)),
    }
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> OutputError {
    OutputError::Io {
        operation,
        path: path.display().to_string(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remove_takes_one_certificate_and_follows_no_link() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let (gone, kept) = (
            Lineage::parse("gone").unwrap(),
            Lineage::parse("kept").unwrap(),
        );
        for lineage in [&gone, &kept] {
            std::fs::create_dir_all(root.join(format!("archive/{lineage}/0001"))).unwrap();
            std::fs::create_dir_all(root.join("live")).unwrap();
            let target = format!("../archive/{lineage}/0001");
            std::os::unix::fs::symlink(target, root.join(format!("live/{lineage}"))).unwrap();
        }
        std::os::unix::fs::symlink(root.join("archive/kept"), root.join("archive/gone/0002"))
            .unwrap();
        assert_eq!(present(root, &gone).unwrap().len(), 2);
        for _ in 0..2 {
            remove(root, &gone).unwrap();
            assert_eq!(present(root, &gone).unwrap().len(), 0);
        }
        assert_eq!(present(root, &kept).unwrap().len(), 2);
        assert!(root.join("archive/kept/0001").is_dir());
    }
}
