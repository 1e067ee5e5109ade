//! Changes several files as one. The originals and the intent are stored below the
//! private data directory before the first rename, so that a crash, or the whole
//! install, can be undone byte for byte. Each install has a numbered directory; the
//! newest is undone first.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::InstallError;
use crate::files;
use crate::fingerprint::Fingerprint;

const INTENT: &str = "journal.json";
const DONE: &str = "done";

/// One file to write.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    /// Its real path, not a link.
    pub path: PathBuf,
    /// The whole content.
    pub content: Vec<u8>,
}

/// A link to create, as in sites-enabled.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Link {
    /// The path of the link.
    pub path: PathBuf,
    /// Its target.
    pub target: PathBuf,
}

/// The intent of an install, as it is stored.
#[derive(Debug, Serialize, Deserialize)]
struct Intent {
    /// The name of its certificate.
    name: String,
    /// All names of its server.
    #[serde(default)]
    names: Vec<String>,
    /// nginx's main file.
    main: PathBuf,
    entries: Vec<Entry>,
    links: Vec<Link>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    path: PathBuf,
    /// The original's; `None` if there was no file.
    before: Option<Fingerprint>,
    after: Fingerprint,
    mode: u32,
    owner: (u32, u32),
}

/// The installs that can be undone.
#[derive(Debug)]
pub(crate) struct Journals {
    root: PathBuf,
}

/// The subject of an install.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    /// The name of its certificate.
    pub name: &'a str,
    /// All names of its server.
    pub names: &'a [String],
    /// nginx's main file.
    pub main: &'a Path,
}

/// While it exists, no other install or undo can start.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// An install that was undone.
#[derive(Debug)]
pub(crate) struct Undone {
    /// The name of its certificate.
    pub name: String,
    /// nginx's main file.
    pub main: PathBuf,
    /// The restored files.
    pub files: Vec<PathBuf>,
}

impl Journals {
    /// The journals below the data directory.
    #[must_use]
    pub(crate) fn new(data_dir: &Path) -> Self {
        Self {
            root: data_dir.join("install"),
        }
    }

    /// Blocks other installs and undos until the lock is dropped or its process ends.
    ///
    /// # Errors
    /// When another process has the lock, or the directory cannot be created.
    pub(crate) fn lock(&self) -> Result<Lock, InstallError> {
        let path = self.root.join("lock");
        files::make_directory(&self.root, 0o700).map_err(store_error(&self.root))?;
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path).map_err(store_error(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(Lock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(InstallError::refused(
                "another certs install is running; nothing was changed",
                "wait for its end and run this command again",
            )),
            Err(TryLockError::Error(error)) => Err(store_error(&path)(error)),
        }
    }

    /// An empty directory of our own, for copies under test.
    ///
    /// # Errors
    /// When it cannot be created.
    pub(crate) fn scratch(&self) -> Result<PathBuf, InstallError> {
        let path = self.root.join(".scratch");
        remove_all(&path).map_err(store_error(&path))?;
        files::make_directory(&path, 0o700).map_err(store_error(&path))?;
        Ok(path)
    }

    /// Undoes an install that a crash interrupted; returns whether there was one.
    ///
    /// # Errors
    /// When a file was changed by hand since then.
    pub(crate) fn recover(&self) -> Result<bool, InstallError> {
        let Some(number) = self.newest()? else {
            return Ok(false);
        };
        if self.directory(number).join(DONE).exists() {
            return Ok(false);
        }
        self.undo_one(number)?;
        Ok(true)
    }

    /// Writes all changes or none.
    ///
    /// # Errors
    /// All files are as before.
    pub(crate) fn write(
        &self,
        subject: Subject<'_>,
        changes: &[Change],
        links: &[Link],
    ) -> Result<(), InstallError> {
        let number = self.newest()?.unwrap_or(0) + 1;
        let directory = self.store(number, subject, changes, links)?;
        let staged = changes.iter().try_for_each(|change| {
            stage(change).map_err(|error| {
                InstallError::refused(
                    format!(
                        "{}: cannot be written: {error}; nothing was changed",
                        change.path.display()
                    ),
                    "run as a user who may write the file, usually root",
                )
            })
        });
        let written = staged.and_then(|()| self.go_live(changes, links));
        if let Err(error) = written {
            self.undo_one(number)?;
            return Err(error);
        }
        files::write_new(&directory.join(DONE), 0o600, b"").map_err(store_error(&directory))?;
        files::sync(&directory).map_err(store_error(&directory))
    }

    fn go_live(&self, changes: &[Change], links: &[Link]) -> Result<(), InstallError> {
        let refused = |path: &Path, error: io::Error| {
            let message = format!("{}: {error}; nothing was changed", path.display());
            InstallError::refused(
                message,
                "check the owner of the file and the free space on the disk",
            )
        };
        for change in changes {
            let path = &change.path;
            let renamed =
                std::fs::rename(aside(path), path).and_then(|()| files::sync_parent(path));
            renamed.map_err(|error| refused(path, error))?;
        }
        for link in links {
            let made = symlink(&link.target, &link.path);
            let made = made.and_then(|()| files::sync_parent(&link.path));
            made.map_err(|error| refused(&link.path, error))?;
        }
        Ok(())
    }

    /// Stores the originals and the intent, all or nothing.
    fn store(
        &self,
        number: u64,
        subject: Subject<'_>,
        changes: &[Change],
        links: &[Link],
    ) -> Result<PathBuf, InstallError> {
        let directory = self.directory(number);
        let staged = self.root.join(format!(".new-{number}"));
        remove_all(&staged).map_err(store_error(&staged))?;
        files::make_directory(&staged, 0o700).map_err(store_error(&staged))?;
        let mut entries = Vec::new();
        for (index, change) in changes.iter().enumerate() {
            entries.push(store_original(&staged.join(index.to_string()), change)?);
        }
        let intent = Intent {
            name: subject.name.to_owned(),
            names: subject.names.to_vec(),
            main: subject.main.to_owned(),
            entries,
            links: links.to_vec(),
        };
        let json = serde_json::to_vec_pretty(&intent);
        let json = json.map_err(|error| InstallError::Store(error.to_string()))?;
        let result = files::write_new(&staged.join(INTENT), 0o600, &json)
            .and_then(|()| files::sync(&staged))
            .and_then(|()| std::fs::rename(&staged, &directory))
            .and_then(|()| files::sync_parent(&directory));
        result.map_err(store_error(&directory))?;
        Ok(directory)
    }

    /// Undoes the newest install.
    ///
    /// # Errors
    /// As [`Journals::undo`].
    pub(crate) fn undo_newest(&self) -> Result<(), InstallError> {
        if let Some(number) = self.newest()? {
            self.undo_one(number)?;
        }
        Ok(())
    }

    /// Undoes every install, newest first; with `name` only those of the server of
    /// that name, with `main` only those in that configuration.
    ///
    /// # Errors
    /// When a file was changed by hand since then: it is left as it is.
    pub(crate) fn undo(
        &self,
        name: Option<&str>,
        main: Option<&Path>,
    ) -> Result<Vec<Undone>, InstallError> {
        let mut undone = Vec::new();
        for number in self.numbers()?.into_iter().rev() {
            let intent = self.intent(number)?;
            if name.is_some_and(|name| !intent.is_of(name))
                || main.is_some_and(|main| main != intent.main)
            {
                continue;
            }
            undone.push(self.undo_one(number)?);
        }
        Ok(undone)
    }

    /// Checks all files before the first change; may be repeated after a crash.
    fn undo_one(&self, number: u64) -> Result<Undone, InstallError> {
        let (intent, directory) = (self.intent(number)?, self.directory(number));
        let mut changed = Vec::new();
        for (index, entry) in intent.entries.iter().enumerate() {
            let found = read(&entry.path)?.map(|text| Fingerprint::of(&text));
            if found == entry.before {
                continue;
            }
            if found.as_ref() != Some(&entry.after) {
                return Err(changed_by_hand(entry, &directory.join(index.to_string())));
            }
            changed.push((index, entry));
        }
        for link in &intent.links {
            if std::fs::read_link(&link.path).is_ok_and(|target| target == link.target) {
                let removed = files::remove_if_there(&link.path);
                removed
                    .and_then(|()| files::sync_parent(&link.path))
                    .map_err(undo_error(&link.path))?;
            }
        }
        for (index, entry) in changed {
            restore(entry, &directory.join(index.to_string())).map_err(undo_error(&entry.path))?;
        }
        for entry in &intent.entries {
            files::remove_if_there(&aside(&entry.path)).map_err(undo_error(&entry.path))?;
        }
        remove_all(&directory)
            .and_then(|()| files::sync(&self.root))
            .map_err(store_error(&directory))?;
        Ok(Undone {
            name: intent.name,
            main: intent.main,
            files: intent.entries.into_iter().map(|entry| entry.path).collect(),
        })
    }

    fn intent(&self, number: u64) -> Result<Intent, InstallError> {
        let path = self.directory(number).join(INTENT);
        let json = std::fs::read(&path).map_err(store_error(&path))?;
        serde_json::from_slice(&json).map_err(|error| store_error(&path)(error.into()))
    }

    fn directory(&self, number: u64) -> PathBuf {
        self.root.join(format!("{number:04}"))
    }

    fn newest(&self) -> Result<Option<u64>, InstallError> {
        Ok(self.numbers()?.last().copied())
    }

    fn numbers(&self) -> Result<Vec<u64>, InstallError> {
        let entries = match std::fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(store_error(&self.root))?,
        };
        let number =
            |entry: io::Result<std::fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
        let mut numbers: Vec<u64> = entries.filter_map(number).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }
}

impl Intent {
    fn is_of(&self, name: &str) -> bool {
        self.name == name || self.names.iter().any(|one| one == name)
    }
}

fn store_original(copy: &Path, change: &Change) -> Result<Entry, InstallError> {
    let original = read(&change.path)?;
    let (mut mode, mut owner) = (0o644, (u32::MAX, u32::MAX));
    if let Some(original) = &original {
        let found = std::fs::metadata(&change.path).map_err(store_error(&change.path))?;
        (mode, owner) = (
            found.permissions().mode() & 0o7777,
            (found.uid(), found.gid()),
        );
        files::write_new(copy, 0o600, original).map_err(store_error(copy))?;
    }
    Ok(Entry {
        path: change.path.clone(),
        before: original.map(|original| Fingerprint::of(&original)),
        after: Fingerprint::of(&change.content),
        mode,
        owner,
    })
}

/// A leading dot, since no pattern of an `include` matches such names.
fn aside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.certs-new"))
}

fn stage(change: &Change) -> io::Result<()> {
    let found = std::fs::metadata(&change.path).ok();
    let mode = found
        .as_ref()
        .map_or(0o644, |found| found.permissions().mode() & 0o7777);
    let owner = found.map(|found| (found.uid(), found.gid()));
    write_aside(&change.path, mode, owner, &change.content)
}

fn write_aside(
    path: &Path,
    mode: u32,
    owner: Option<(u32, u32)>,
    content: &[u8],
) -> io::Result<()> {
    let aside = aside(path);
    files::remove_if_there(&aside)?;
    files::write_new(&aside, mode, content)?;
    let Some((user, group)) = owner else {
        return Ok(());
    };
    let own = std::fs::metadata(&aside)?;
    if (own.uid(), own.gid()) != (user, group) {
        chown(&aside, Some(user), Some(group))?;
        // A change of the owner may clear bits of the mode.
        std::fs::set_permissions(&aside, PermissionsExt::from_mode(mode))?;
    }
    Ok(())
}

fn restore(entry: &Entry, original: &Path) -> io::Result<()> {
    if entry.before.is_none() {
        files::remove_if_there(&entry.path)?;
        return files::sync_parent(&entry.path);
    }
    let content = std::fs::read(original)?;
    write_aside(&entry.path, entry.mode, Some(entry.owner), &content)?;
    std::fs::rename(aside(&entry.path), &entry.path)?;
    files::sync_parent(&entry.path)
}

fn changed_by_hand(entry: &Entry, original: &Path) -> InstallError {
    let path = entry.path.display();
    let (message, hint) = if entry.before.is_some() {
        (
            format!(
                "{path}: changed since certs install; the original is in {}",
                original.display()
            ),
            format!(
                "compare the two (diff {} {path}) and, if you want the original, copy it back by hand",
                original.display()
            ),
        )
    } else {
        (
            format!("{path}: written by certs install and changed since then"),
            format!("remove {path} by hand if you do not need it"),
        )
    };
    InstallError::refused(message, hint)
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, InstallError> {
    match std::fs::read(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(InstallError::refused(
            format!("{}: {error}", path.display()),
            "run as a user who may read the file",
        )),
    }
}

fn remove_all(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn store_error(path: &Path) -> impl Fn(io::Error) -> InstallError {
    let path = path.display().to_string();
    move |error| InstallError::Store(format!("{path}: {error}"))
}

fn undo_error(path: &Path) -> impl Fn(io::Error) -> InstallError {
    let path = path.display().to_string();
    move |error| {
        InstallError::refused(
            format!("{path}: cannot be restored: {error}"),
            "fix that and run certs install nginx --undo again: it continues from here",
        )
    }
}

#[cfg(test)]
mod tests;
