//! Changes several files as one. The originals and the intent are stored below the
//! private data directory before the first rename, so that a crash, or the whole
//! install, can be undone byte for byte. Each install has a numbered directory; the
//! newest is undone first.

mod configured;

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use self::configured::{
    changed_by_hand, is_other, open, put_in_place, remove, remove_aside, restore, store_original,
    write_aside,
};
use crate::failure::{Failure, is_full};
use crate::files::beneath::Directory;
use crate::files::{self, beside, trust};
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
    pub path: PathBuf,
    pub target: PathBuf,
}

/// The subject of an install.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Subject {
    /// The name of its certificate.
    pub name: String,
    /// All names of its server; empty in journals of old versions.
    #[serde(default)]
    pub names: Vec<String>,
    /// nginx's main file.
    pub main: PathBuf,
}

/// The intent of an install, as it is stored.
#[derive(Debug, Serialize, Deserialize)]
struct Intent {
    #[serde(flatten)]
    subject: Subject,
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

/// The owner of a file that does not exist.
const NO_OWNER: (u32, u32) = (u32::MAX, u32::MAX);

/// The installs that can be undone.
#[derive(Debug)]
pub(crate) struct Journals {
    data_dir: PathBuf,
    root: PathBuf,
}

/// An install that was undone.
#[derive(Debug)]
pub(crate) struct Undone {
    pub subject: Subject,
    /// The restored files.
    pub files: Vec<PathBuf>,
}

impl Journals {
    /// The journals of a data directory: beside it, with the suffix `.install`. Root obeys
    /// them, and the data directory belongs to the user of `certs run`.
    #[must_use]
    pub(crate) fn new(data_dir: &Path) -> Self {
        Self {
            data_dir: data_dir.to_owned(),
            root: beside(data_dir, "install"),
        }
    }

    /// Blocks other installs and undos until the file is closed or its process ends.
    ///
    /// # Errors
    /// When another process has the lock, or the directory cannot be created.
    pub(crate) fn lock(&self) -> Result<File, Failure> {
        let path = self.root.join("lock");
        files::make_data_directory(&self.data_dir).map_err(store_error(&self.data_dir))?;
        self.move_old_place()?;
        files::make_directory(&self.root, 0o700).map_err(store_error(&self.root))?;
        trust::resolve(&self.root)?;
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path).map_err(store_error(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(Failure::usage(
                "another certs install is running; nothing was changed",
                "wait for its end and run this command again",
            )),
            Err(TryLockError::Error(error)) => Err(store_error(&path)(error)),
        }
    }

    /// Earlier versions kept them in the data directory, whose user must not have changed them.
    fn move_old_place(&self) -> Result<(), Failure> {
        let old = self.data_dir.join("install");
        if !old.is_dir() || self.root.exists() {
            return Ok(());
        }
        trust::resolve(&old)?;
        std::fs::rename(&old, &self.root).map_err(store_error(&old))
    }

    /// An empty directory of our own, for copies under test.
    pub(crate) fn scratch(&self) -> Result<PathBuf, Failure> {
        self.empty_directory(".scratch")
    }

    fn empty_directory(&self, name: &str) -> Result<PathBuf, Failure> {
        let path = self.root.join(name);
        let emptied = remove_all(&path).and_then(|()| files::make_directory(&path, 0o700));
        emptied.map_err(store_error(&path))?;
        Ok(path)
    }

    /// Undoes an install that a crash interrupted; returns whether there was one.
    ///
    /// # Errors
    /// When a file was changed by hand since then.
    pub(crate) fn recover(&self) -> Result<bool, Failure> {
        let newest = self.numbers()?.pop();
        let Some(number) = newest else {
            return Ok(false);
        };
        let done = self.directory(number).join(DONE);
        if done.try_exists().map_err(store_error(&done))? {
            return Ok(false);
        }
        self.undo_one(number)?;
        Ok(true)
    }

    /// Writes all changes or none. Until [`Self::finish`] the install counts as cut off.
    ///
    /// # Errors
    /// All files are as before.
    pub(crate) fn write(
        &self,
        subject: Subject,
        changes: &[Change],
        links: &[Link],
    ) -> Result<(), Failure> {
        let number = self.newest()? + 1;
        let intent = self.store(number, subject, changes, links)?;
        if let Err(error) = go_live(&intent, changes) {
            self.undo_one(number)?;
            return Err(error);
        }
        Ok(())
    }

    /// Ends the newest install: nginx serves what it has written.
    pub(crate) fn finish(&self) -> Result<(), Failure> {
        let directory = self.directory(self.newest()?);
        if !directory.exists() || directory.join(DONE).exists() {
            return Ok(());
        }
        files::write_new(&directory.join(DONE), 0o600, b"")
            .and_then(|()| files::sync(&directory))
            .map_err(store_error(&directory))
    }

    /// Stores the originals and the intent, all or nothing.
    fn store(
        &self,
        number: u64,
        subject: Subject,
        changes: &[Change],
        links: &[Link],
    ) -> Result<Intent, Failure> {
        let directory = self.directory(number);
        let staged = self.empty_directory(&format!(".new-{number}"))?;
        let mut entries = Vec::new();
        for (index, change) in changes.iter().enumerate() {
            entries.push(store_original(&staged.join(index.to_string()), change)?);
        }
        let intent = Intent {
            subject,
            entries,
            links: links.to_vec(),
        };
        serde_json::to_vec_pretty(&intent)
            .map_err(io::Error::from)
            .and_then(|json| files::write_new(&staged.join(INTENT), 0o600, &json))
            .and_then(|()| files::sync(&staged))
            .and_then(|()| std::fs::rename(&staged, &directory))
            .and_then(|()| files::sync_parent(&directory))
            .map_err(store_error(&directory))?;
        Ok(intent)
    }

    /// The number of the newest install; zero if there is none.
    pub(crate) fn newest(&self) -> Result<u64, Failure> {
        Ok(self.numbers()?.pop().unwrap_or(0))
    }

    /// Undoes the installs after this one; returns whether there were any.
    pub(crate) fn undo_after(&self, number: u64) -> Result<bool, Failure> {
        let mut later = self.numbers()?;
        later.retain(|one| *one > number);
        for one in later.iter().rev() {
            self.undo_one(*one)?;
        }
        Ok(!later.is_empty())
    }

    /// The subjects of the installs that can be undone; those that cannot be read are left out.
    pub(crate) fn subjects(&self) -> Vec<Subject> {
        let numbers = self.numbers().unwrap_or_default().into_iter();
        let intents = numbers.filter_map(|number| self.intent(number).ok());
        intents.map(|intent| intent.subject).collect()
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
    ) -> Result<Vec<Undone>, Failure> {
        let mut undone = Vec::new();
        for number in self.numbers()?.into_iter().rev() {
            let Subject {
                name: own,
                names,
                main: own_main,
            } = self.intent(number)?.subject;
            let is_named =
                name.is_none_or(|name| own == name || names.iter().any(|one| one == name));
            if is_named && main.is_none_or(|main| main == own_main) {
                undone.push(self.undo_one(number)?);
            }
        }
        Ok(undone)
    }

    /// Checks all files before the first change; may be repeated after a crash.
    fn undo_one(&self, number: u64) -> Result<Undone, Failure> {
        let (intent, directory) = (self.intent(number)?, self.directory(number));
        let mut changed = Vec::new();
        for (index, entry) in intent.entries.iter().enumerate() {
            let original = directory.join(index.to_string());
            let found = open(&entry.path)?.map(|(text, _)| Fingerprint::of(&text));
            let stages = self.stages(number, &intent.subject, &entry.path)?;
            // Its original may have been copied back by hand.
            if stages.iter().any(|(_, stage)| stage.before == found) {
                continue;
            }
            if found.as_ref() != Some(&entry.after) {
                let later = self.later(number, &entry.path)?;
                return Err(changed_by_hand(&stages, later.as_ref()));
            }
            changed.push((entry, original));
        }
        for Link { path, target } in &intent.links {
            let found = Directory::of(path).and_then(|(place, name)| place.read_link(name));
            match found {
                Ok(found) if found == *target => remove(path).map_err(undo_error(path))?,
                // Gone, or no link of ours.
                Ok(_) => {}
                Err(error) if is_other(&error) => {}
                Err(error) => return Err(undo_error(path)(error)),
            }
        }
        for (entry, original) in changed {
            restore(entry, &original).map_err(undo_error(&entry.path))?;
        }
        for entry in &intent.entries {
            remove_aside(&entry.path).map_err(undo_error(&entry.path))?;
        }
        remove_all(&directory)
            .and_then(|()| files::sync(&self.root))
            .map_err(store_error(&directory))?;
        Ok(Undone {
            subject: intent.subject,
            files: intent.entries.into_iter().map(|entry| entry.path).collect(),
        })
    }

    /// What the stages of an install up to `number` did to a file, each with its original.
    fn stages(
        &self,
        number: u64,
        subject: &Subject,
        path: &Path,
    ) -> Result<Vec<(PathBuf, Entry)>, Failure> {
        let mut stages: Vec<(PathBuf, Entry)> = Vec::new();
        for earlier in self.numbers()?.into_iter().filter(|one| *one <= number) {
            let intent = self.intent(earlier)?;
            let entries = intent.entries.into_iter().enumerate();
            let found = { entries }.find(|(_, entry)| entry.path == path);
            let is_same =
                intent.subject.name == subject.name && intent.subject.main == subject.main;
            let Some((index, entry)) = found.filter(|_| is_same) else {
                continue;
            };
            let last = stages.last().map(|(_, last)| &last.after);
            if last.is_some_and(|last| Some(last) != entry.before.as_ref()) {
                // It was edited between two installs.
                stages.clear();
            }
            stages.push((self.directory(earlier).join(index.to_string()), entry));
        }
        Ok(stages)
    }

    /// The newest install after this one that changed the same file.
    fn later(&self, number: u64, path: &Path) -> Result<Option<Subject>, Failure> {
        for later in self.numbers()?.into_iter().rev() {
            let intent = self.intent(later)?;
            if later > number && intent.entries.iter().any(|entry| entry.path == path) {
                return Ok(Some(intent.subject));
            }
        }
        Ok(None)
    }

    fn intent(&self, number: u64) -> Result<Intent, Failure> {
        let path = self.directory(number).join(INTENT);
        let json = std::fs::read(&path).map_err(store_error(&path))?;
        serde_json::from_slice(&json).map_err(|error| store_error(&path)(error.into()))
    }

    fn directory(&self, number: u64) -> PathBuf {
        self.root.join(format!("{number:04}"))
    }

    fn numbers(&self) -> Result<Vec<u64>, Failure> {
        let entries = match std::fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(store_error(&self.root))?,
        };
        let mut numbers = Vec::<u64>::new();
        for entry in entries {
            let name = entry.map_err(store_error(&self.root))?.file_name();
            numbers.extend(name.to_str().and_then(|name| name.parse::<u64>().ok()));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }
}

/// Writes every file beside its place before the first one is renamed.
fn go_live(intent: &Intent, changes: &[Change]) -> Result<(), Failure> {
    for (entry, change) in intent.entries.iter().zip(changes) {
        write_aside(entry, &change.content).map_err(|error| {
            let path = entry.path.display();
            Failure::of_file(
                &error,
                format!("{path}: cannot be written: {error}; nothing was changed"),
                "run as a user that may write the file, usually root",
            )
        })?;
    }
    let files = intent.entries.iter().map(|entry| &entry.path);
    let renamed = files.map(|path| (path, put_in_place(path)));
    let links = intent.links.iter().map(|link| {
        let linked = Directory::of(&link.path)
            .and_then(|(place, name)| place.link(&link.target, name).and_then(|()| place.sync()));
        (&link.path, linked)
    });
    for (path, done) in renamed.chain(links) {
        done.map_err(|error| {
            Failure::of_file(
                &error,
                format!("{}: {error}; nothing was changed", path.display()),
                "check the owner of the file and of its directory",
            )
        })?;
    }
    Ok(())
}

fn remove_all(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn store_error(path: &Path) -> impl Fn(io::Error) -> Failure {
    move |error| Failure::unusable(path, &error)
}

fn undo_error(path: &Path) -> impl Fn(io::Error) -> Failure {
    move |error| {
        let message = format!("{}: cannot be restored: {error}", path.display());
        let hint = "fix that and run certs install nginx --undo again: it continues from here";
        match is_full(&error) {
            true => Failure::output(message, hint),
            false => Failure::of_file(&error, message, hint),
        }
    }
}

#[cfg(test)]
mod tests;
