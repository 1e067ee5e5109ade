//! One directory, read within bounds. Links that lead out of it, anything but regular
//! files, and files that are too large are refused by name.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use crate::certificate::Secret;
use crate::text::printable;

/// Far more than any key, chain or settings of one certificate, in bytes.
const LARGEST: u64 = 1 << 20;
/// A directory with more entries is not the state of an ACME client.
const MOST_ENTRIES: usize = 20_000;

/// A directory that no read leaves.
pub(super) struct StateTree {
    pub(super) root: PathBuf,
    /// Directories that could not be read, and why: they may not be empty.
    pub(super) unreadable: RefCell<BTreeSet<String>>,
}

/// Why a path is not read.
struct Refusal {
    text: String,
    /// Whether the path may exist.
    may_exist: bool,
}

impl Refusal {
    fn system(path: &Path, error: &std::io::Error) -> Self {
        Self {
            text: format!("{}: {error}", shown(path)),
            may_exist: error.kind() != ErrorKind::NotADirectory,
        }
    }
}

impl StateTree {
    /// The directory at `path`, which may itself be a link.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let root = std::fs::canonicalize(path);
        let root = root.map_err(|error| format!("{}: {error}", path.display()))?;
        if !root.is_dir() {
            return Err(format!("{} is not a directory", path.display()));
        }
        let unreadable = RefCell::default();
        Ok(Self { root, unreadable })
    }

    /// The text of a file; `None` if it does not exist.
    pub(super) fn text(&self, path: impl AsRef<Path>) -> Result<Option<Secret>, String> {
        let path = path.as_ref();
        match self.resolve(path).map_err(|refusal| refusal.text)? {
            Some(inside) => text_of(&inside, LARGEST).map(Some),
            None => Ok(None),
        }
    }

    /// The text of a file that must exist.
    pub(super) fn required(&self, path: impl AsRef<Path>) -> Result<Secret, String> {
        let path = path.as_ref();
        let text = self.text(path)?;
        text.ok_or_else(|| format!("{} not found", shown(path)))
    }

    /// The JSON of a file that must exist.
    pub(super) fn json(&self, path: &str) -> Result<Value, String> {
        let text = self.required(path)?;
        let json = serde_json::from_str(text.expose());
        json.map_err(|_| format!("invalid JSON in {}", printable(path)))
    }

    /// The names in a directory, sorted; empty if it does not exist. Names that are not
    /// UTF-8 are skipped.
    pub(super) fn names(&self, path: impl AsRef<Path>) -> Vec<String> {
        let path = path.as_ref();
        let entries = self.resolve(path).and_then(|inside| {
            let entries = inside.map(std::fs::read_dir).transpose();
            entries.map_err(|error| Refusal::system(path, &error))
        });
        let entries = entries.unwrap_or_else(|refusal| self.not_read(refusal));
        let names = entries.into_iter().flatten().take(MOST_ENTRIES).flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    /// Whether a directory of that name exists, as far as this user may see.
    pub(super) fn has_directory(&self, path: impl AsRef<Path>) -> bool {
        let inside = self.resolve(path.as_ref());
        let inside = inside.unwrap_or_else(|refusal| self.not_read(refusal));
        inside.is_some_and(|inside| inside.is_dir())
    }

    /// Notes what may exist and cannot be read.
    fn not_read<T>(&self, refusal: Refusal) -> Option<T> {
        let text = Some(refusal.text).filter(|_| refusal.may_exist);
        self.unreadable.borrow_mut().extend(text);
        None
    }

    /// Every directory below `path`, at most `depth` levels down, that has a file of
    /// that name, as a path below `path`.
    pub(super) fn directories_with(&self, path: &str, file: &str, depth: usize) -> Vec<PathBuf> {
        let (mut found, mut open) = (Vec::new(), vec![PathBuf::new()]);
        let mut visited = 0;
        while let Some(directory) = open.pop() {
            visited += 1;
            if visited > MOST_ENTRIES {
                break;
            }
            let names = self.names(Path::new(path).join(&directory));
            if names.iter().any(|name| name == file) {
                found.push(directory.clone());
            }
            if directory.components().count() < depth && open.len() < MOST_ENTRIES {
                let inner = names.iter().map(|name| directory.join(name));
                open.extend(inner.filter(|inner| self.can_enter(Path::new(path), inner)));
            }
        }
        found.sort();
        found
    }

    /// Whether `inner` is a directory, but not a link to one of its own parents.
    fn can_enter(&self, path: &Path, inner: &Path) -> bool {
        let real = |inner: &Path| self.resolve(&path.join(inner)).ok().flatten();
        let Some(there) = real(inner).filter(|there| there.is_dir()) else {
            return false;
        };
        let here = inner.parent().and_then(real);
        here.is_some_and(|here| !here.starts_with(there))
    }

    /// The real path of `path`, inside the tree; `None` if it does not exist.
    fn resolve(&self, path: &Path) -> Result<Option<PathBuf>, Refusal> {
        let plain = |part| matches!(part, Component::Normal(_));
        let refused = |why: &str| {
            let text = format!("{} {why}", shown(path));
            let may_exist = false;
            Err(Refusal { text, may_exist })
        };
        if !path.components().all(plain) {
            return refused("leads out of the directory");
        }
        match std::fs::canonicalize(self.root.join(path)) {
            Ok(inside) if inside.starts_with(&self.root) => Ok(Some(inside)),
            Ok(_) => refused("leads out of the directory"),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                match std::fs::symlink_metadata(self.root.join(path)) {
                    Ok(_) => refused("is a dangling link"),
                    Err(_) => Ok(None),
                }
            }
            Err(error) => Err(Refusal::system(path, &error)),
        }
    }
}

/// The text of one regular file of at most `largest` bytes. Opens without blocking, since
/// the path may be a pipe.
pub(super) fn text_of(path: &Path, largest: u64) -> Result<Secret, String> {
    const NONBLOCK: i32 = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let failed = |what: &str| format!("{}: {what}", shown(path));
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(NONBLOCK).open(path);
    let file = file.map_err(|error| failed(&error.to_string()))?;
    let is_file = file.metadata().is_ok_and(|found| found.is_file());
    if !is_file {
        return Err(failed("not a regular file"));
    }
    let mut text = String::new();
    let read = file.take(largest + 1).read_to_string(&mut text);
    let text = Secret::new(text);
    match read {
        Ok(length) if length as u64 > largest => Err(failed("the file is too large")),
        Ok(_) => Ok(text),
        Err(error) => Err(failed(&error.to_string())),
    }
}

fn shown(path: &Path) -> String {
    printable(&path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn tree_reads_only_text_files_inside() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::create_dir(at("in")).unwrap();
        std::fs::write(at("secret"), "outside").unwrap();
        symlink("../secret", at("in/out")).unwrap();
        symlink("/etc/passwd", at("in/away")).unwrap();
        symlink("nowhere", at("in/broken")).unwrap();
        symlink("there", at("in/inside")).unwrap();
        symlink(".", at("in/circle")).unwrap();
        std::fs::write(at("in/there"), "text").unwrap();
        std::fs::write(at("in/binary"), [0xff, 0]).unwrap();
        std::fs::write(at("in/huge"), vec![b'x'; 1 + (1 << 20)]).unwrap();
        let tree = StateTree::open(&at("in")).unwrap();
        for (path, why) in [
            ("out", "leads out"),
            ("away", "leads out"),
            ("../secret", "leads out"),
            ("/etc/passwd", "leads out"),
            ("broken", "dangling link"),
            ("binary", "UTF-8"),
            ("huge", "too large"),
            ("circle", "not a regular file"),
            ("there/below", "Not a directory"),
            ("a\0b", ""),
        ] {
            let error = tree.text(path).unwrap_err();
            assert!(error.contains(why), "{path}: {error}");
        }
        assert!(tree.text("absent").unwrap().is_none());
        assert_eq!(tree.text("inside").unwrap().unwrap().expose(), "text");
        assert_eq!(tree.directories_with("", "there", 4), [PathBuf::new()]);
        assert_eq!(tree.names("../").len(), 0);
        assert_eq!(tree.names("there").len() + tree.names("absent").len(), 0);
        assert!(tree.unreadable.borrow().is_empty());
        // A directory that cannot be read is not treated as empty.
        assert_eq!(tree.names("x".repeat(300)).len(), 0);
        assert_eq!(tree.unreadable.borrow().len(), 1);
        assert!(StateTree::open(&at("secret")).is_err());
        assert!(StateTree::open(&at("absent")).is_err());
    }
}
