//! The CA's directory on disk, locked while the CA runs. The directory above may belong to
//! another user than root: files are made and read as that user, by descriptors, so that no
//! link in the place of a file, or of the directory, leads root anywhere.

use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::Path;

use super::CaError;
use crate::files::DirectoryOwner;
use crate::files::beneath::Directory;

/// More than the largest state takes; see [`super::bounds`].
const LARGEST: u64 = 256 << 20;

pub(super) struct StateDirectory {
    directory: Directory,
    owner: DirectoryOwner,
    _lock: File,
}

impl StateDirectory {
    /// Opens the directory and locks it; it is created (0700) if it is missing.
    ///
    /// # Errors
    /// When it cannot be used, or another process uses it.
    pub(super) fn open(path: &Path) -> Result<Self, CaError> {
        let failed = |source| CaError::io(path, source);
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(failed(ErrorKind::InvalidInput.into()));
        };
        let parent = Directory::make(above, 0o700).map_err(failed)?;
        let owner = DirectoryOwner::of(above);
        let _acting = owner.act();
        let directory = match parent.child(name) {
            Err(error) if error.kind() == ErrorKind::NotFound => parent
                .child_or_make(name, 0o700)
                .and_then(|made| parent.sync().map(|()| made)),
            found => found,
        };
        let directory = directory.map_err(failed)?;
        let lock = directory.lock_file("lock", 0o600).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(CaError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        directory.remove_all_leftovers().map_err(failed)?;
        Ok(Self {
            directory,
            owner,
            _lock: lock,
        })
    }

    /// The text of a file; `None` if it does not exist.
    pub(super) fn read(&self, name: &str) -> Result<Option<String>, CaError> {
        let _acting = self.owner.act();
        let text = self.directory.text(name, LARGEST);
        text.map_err(|error| match error.kind() {
            ErrorKind::InvalidData | ErrorKind::FileTooLarge => self.corrupt(name, error),
            _ => CaError::io(&self.directory.path().join(name), error),
        })
    }

    /// Replaces a file in one step.
    pub(super) fn write(&self, name: &str, mode: u32, content: &[u8]) -> Result<(), CaError> {
        let _acting = self.owner.act();
        let written = self.directory.replace(name, mode, content, |_| Ok(()));
        written.map_err(|error| CaError::io(&self.directory.path().join(name), error))
    }

    /// The error of a file with invalid content.
    pub(super) fn corrupt(&self, name: &str, detail: impl ToString) -> CaError {
        CaError::corrupt(&self.directory.path().join(name), detail)
    }
}
