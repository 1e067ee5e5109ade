//! Directories as clients create them, for tests of the readers.

use std::path::Path;

use tempfile::TempDir;

use super::{Found, RemarkKind, Tool, read};

/// A directory with these files; a content of `-> TARGET` makes a link.
pub(super) fn laid_out(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = directory.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        match content.strip_prefix("-> ") {
            Some(target) => std::os::unix::fs::symlink(target, path).unwrap(),
            None => std::fs::write(path, content).unwrap(),
        }
    }
    directory
}

/// The result of a read of such a directory.
pub(super) fn found(tool: Tool, files: &[(&str, &str)]) -> Found {
    let directory = laid_out(files);
    read(tool, directory.path()).unwrap()
}

/// The remarks, one a line, without the directory's own name.
pub(super) fn remark_lines(found: &Found, root: &Path) -> Vec<String> {
    let own = found.certificates.iter().flat_map(|one| &one.remarks);
    let all = found.remarks.iter().chain(own);
    let root = root.display().to_string();
    let line = |remark: &super::Remark| {
        let kind = match remark.kind {
            RemarkKind::Invalid => "invalid",
            RemarkKind::Unsupported => "unsupported",
            RemarkKind::Manual => "manual",
            RemarkKind::Stored => "stored",
        };
        format!("{kind}: {}: {}", remark.subject, remark.text).replace(&root, "ROOT")
    };
    all.map(line).collect()
}

/// The invalid entries, each with its reason.
pub(super) fn invalid(found: &Found) -> Vec<(String, String)> {
    let remarks = found.remarks.iter();
    let invalid = remarks.filter(|remark| remark.kind == RemarkKind::Invalid);
    let pair = |remark: &super::Remark| (remark.subject.clone(), remark.text.clone());
    invalid.map(pair).collect()
}
