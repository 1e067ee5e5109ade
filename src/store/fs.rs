//! The store as files in a private directory:
//!
//! ```text
//! records/NAME/record.json   the record, its revision and format, replaced by rename
//! records/NAME/0007/         an immutable pair: privkey.pem fullchain.pem
//! records/NAME/options.json  the user's options
//! records/NAME/lock          locked only during a compare-and-swap
//! leases/NAME                locked while a process works on it
//! accounts/HASH.json         account credentials of the CA with that URL
//! authorities/HASH.json      the state of that CA: rate limits used, outages
//! ```
//!
//! Locks are the kernel's (`flock`), so a killed process holds none; do not put
//! the directory on NFS. Files are small and local, so they are read and written
//! on the calling thread.

mod single;
mod together;

use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use self::single::{
    at, check_format, corrupt, locked, make_directory, open_lock, read_json, read_text,
    remove_directory, replace, write_json,
};
pub use self::together::Together;
use super::{
    Lease, OwnStore, Store, StoreError, check_account, check_save, deletable, next_revision,
};
use crate::ca_state::CaState;
use crate::certificate::{Bundle, Secret};
use crate::files::{self, DirectoryOwner};
use crate::fingerprint::Fingerprint;
use crate::lineage::Lineage;
use crate::net::url::normalized;
use crate::record::{Generation, Record, Revision};

const PRIVATE_FILE: u32 = 0o600;
const PRIVATE_DIRECTORY: u32 = 0o700;

/// A store in a directory of this machine.
#[derive(Debug)]
pub struct FileStore {
    root: PathBuf,
    owner: DirectoryOwner,
}

/// The format of the files that this version writes, and the newest that it reads. A version that
/// changes the meaning of what is stored counts on. Earlier versions wrote none, and ignore it.
const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(default)]
    format: u32,
    revision: Revision,
    record: Record,
}

#[derive(Serialize, Deserialize)]
struct StoredCa {
    #[serde(default)]
    format: u32,
    /// For an operator that reads the file.
    ca: String,
    revision: Revision,
    #[serde(rename = "authority")]
    state: CaState,
}

impl Stored {
    /// Its record under the name of its directory: a rename moves that only.
    fn of(mut self, lineage: &Lineage) -> (Record, Revision) {
        self.record.lineage = lineage.clone();
        (self.record, self.revision)
    }

    /// The same, for one of thousands that are kept: its name is held once.
    fn kept(mut self, lineage: &Lineage) -> (Record, Revision) {
        let names = std::mem::take(&mut self.record.identifiers).into_iter();
        self.record.identifiers = names.map(|name| lineage.share(name)).collect();
        self.of(lineage)
    }
}

/// How the file of a CA names it.
#[derive(Deserialize)]
struct SpelledCa {
    #[serde(alias = "directory")]
    ca: String,
}

impl FileStore {
    /// The existing store in `root`, for reading; `None`, and nothing is created,
    /// if there is none.
    ///
    /// # Errors
    /// When it cannot be seen whether there is one.
    pub fn existing(root: PathBuf) -> Result<Option<Self>, StoreError> {
        let records = root.join("records");
        let owner = DirectoryOwner::checked(&root).map_err(at("read", &root))?;
        let there = records.try_exists().map_err(at("read", &records))?;
        Ok(there.then_some(Self { root, owner }))
    }

    /// Opens the store in `root` and creates the directory (0700) if it is missing.
    ///
    /// # Errors
    /// When a directory cannot be created.
    pub fn open(root: PathBuf) -> Result<Self, StoreError> {
        let owner = files::make_data_directory(&root).map_err(at("create", &root))?;
        let _acting = owner.act();
        for part in ["records", "leases", "accounts", "authorities"] {
            make_directory(&root.join(part))?;
        }
        Ok(Self { root, owner })
    }

    fn directory(&self, lineage: &Lineage) -> PathBuf {
        self.root.join("records").join(lineage.as_str())
    }

    /// The file below `part` of the CA with that URL. An earlier version named it by another
    /// spelling of the URL.
    fn path_of(&self, part: &str, ca: &str) -> PathBuf {
        let name = format!("{}.json", Fingerprint::of(ca.as_bytes()));
        let path = self.root.join(part).join(name);
        match path.exists() {
            true => path,
            false => self.spelled_otherwise(part, ca).unwrap_or(path),
        }
    }

    /// Whether there is a record of `lineage`. An unreadable one is one: its load says why.
    #[must_use]
    pub fn has(&self, lineage: &Lineage) -> bool {
        let _acting = self.owner.act();
        let record = self.directory(lineage).join("record.json");
        record.try_exists().unwrap_or(true)
    }

    /// Whether an account of `ca` is stored.
    #[must_use]
    pub fn has_account(&self, ca: &str) -> bool {
        self.path_of("accounts", ca).exists()
    }

    /// The directory URLs of all stored accounts, as far as they can be read.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn account_urls(&self) -> Result<Vec<String>, StoreError> {
        let _acting = self.owner.act();
        let accounts = self.root.join("accounts");
        let files = match std::fs::read_dir(&accounts) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            files => files.map_err(at("read", &accounts))?,
        };
        let mut urls = Vec::new();
        for file in files {
            let path = file.map_err(at("read", &accounts))?.path();
            let is_json = path.extension().is_some_and(|end| end == "json");
            let read = is_json
                .then(|| read_json::<SpelledCa>(&path).ok())
                .flatten();
            urls.extend(read.flatten().map(|stored| stored.ca));
        }
        urls.sort();
        Ok(urls)
    }

    fn spelled_otherwise(&self, part: &str, ca: &str) -> Option<PathBuf> {
        let files = std::fs::read_dir(self.root.join(part)).ok()?;
        let files = files.filter_map(|file| Some(file.ok()?.path()));
        let is_its = |path: &PathBuf| {
            let is_json = path.extension().is_some_and(|end| end == "json");
            let read = is_json.then(|| std::fs::read(path).ok()).flatten();
            let stored = read.and_then(|json| serde_json::from_slice::<SpelledCa>(&json).ok());
            stored.is_some_and(|stored| normalized(&stored.ca) == ca)
        };
        files.filter(is_its).min()
    }

    /// Flushes the directory entries that lead to a record: the process that created
    /// the directories may have been killed before its flush.
    fn flush_directories(&self, directory: &Path) -> Result<(), StoreError> {
        for path in [directory, &self.root.join("records")] {
            files::sync_parent(path).map_err(at("write", path))?;
        }
        // The user's own data directory may be on a file system that cannot flush its parent.
        let _ = files::sync_parent(&self.root);
        Ok(())
    }

    /// Flushes the renames of the lease's last holder, which may have been killed
    /// before its flush: later steps rely on what is read from here on.
    fn flush_leftovers(&self, lineage: &Lineage) -> Result<(), StoreError> {
        let record = self.directory(lineage);
        for path in [record, self.root.join("accounts")] {
            match files::sync(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                flushed => flushed.map_err(at("write", &path))?,
            }
        }
        Ok(())
    }

    /// Stores the pair before the record points to it. A pair that a crash left
    /// there belongs to no record and is removed.
    fn write_pair(
        &self,
        lineage: &Lineage,
        generation: Generation,
        (key, chain): (&Secret, &str),
    ) -> Result<(), StoreError> {
        let directory = self.directory(lineage);
        let place = directory.join(generation.to_string());
        let staged = directory.join(format!(".new-{generation}"));
        for leftover in [&staged, &place] {
            remove_directory(leftover)?;
        }
        files::new_directory(&staged, PRIVATE_DIRECTORY).map_err(at("create", &staged))?;
        for (name, content) in [("privkey.pem", key.expose()), ("fullchain.pem", chain)] {
            let path = staged.join(name);
            let written = files::write_new(&path, PRIVATE_FILE, content.as_bytes());
            written.map_err(at("write", &path))?;
        }
        files::sync(&staged)
            .and_then(|()| std::fs::rename(&staged, &place))
            .map_err(at("write", &place))?;
        files::sync_parent(&place).map_err(at("write", &place))
    }
}

#[async_trait]
impl OwnStore for FileStore {
    async fn save_pair(
        &self,
        record: &Record,
        expected: Revision,
        pair: Option<(&Secret, &str)>,
    ) -> Result<Revision, StoreError> {
        let _acting = self.owner.act();
        let directory = self.directory(&record.lineage);
        make_directory(&directory)?;
        let _locked = locked(&directory.join("lock"))?;
        let before = self.load(&record.lineage).await?;
        let new = record.issued.as_ref().filter(|_| pair.is_some());
        let revision = check_save(record, expected, before.as_ref(), new)?;
        if let (Some(pair), Some(issued)) = (pair, new) {
            self.write_pair(&record.lineage, issued.generation, pair)?;
        }
        let record = record.clone();
        let stored = Stored {
            format: FORMAT,
            revision,
            record,
        };
        write_json(&directory.join("record.json"), &stored)?;
        if before.is_none() {
            self.flush_directories(&directory)?;
        }
        if let Some(issued) = new {
            remove_old(&directory, issued.generation, stored.record.rollback_to);
        }
        Ok(revision)
    }

    fn keep(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        let _acting = self.owner.act();
        replace(&self.root.join(name), content)
    }

    fn append(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        let _acting = self.owner.act();
        let path = self.root.join(name);
        let mut options = File::options();
        let opened = options.append(true).create(true).mode(PRIVATE_FILE);
        let written = opened
            .open(&path)
            .and_then(|mut file| file.write_all(content));
        written.map_err(at("write", &path))
    }

    fn kept(&self, name: &str) -> Option<String> {
        let _acting = self.owner.act();
        std::fs::read_to_string(self.root.join(name)).ok()
    }

    fn accounts(&self) -> Result<Vec<String>, StoreError> {
        self.account_urls()
    }
}

#[async_trait]
impl Store for FileStore {
    async fn load(&self, lineage: &Lineage) -> Result<Option<(Record, Revision)>, StoreError> {
        let _acting = self.owner.act();
        let stored: Option<Stored> = read_json(&self.directory(lineage).join("record.json"))?;
        Ok(stored.map(|stored| stored.of(lineage)))
    }

    async fn save(
        &self,
        record: &Record,
        expected: Revision,
        bundle: Option<&Bundle>,
    ) -> Result<Revision, StoreError> {
        let chain = bundle.map(Bundle::chain_pem);
        let key = bundle.map(Bundle::key_pem);
        let pair = key.zip(chain.as_deref());
        self.save_pair(record, expected, pair).await
    }

    async fn bundle(
        &self,
        lineage: &Lineage,
        generation: Generation,
    ) -> Result<Option<(Secret, String)>, StoreError> {
        let _acting = self.owner.act();
        let place = self.directory(lineage).join(generation.to_string());
        let key = read_text(&place.join("privkey.pem"))?.map(Secret::new);
        Ok(key.zip(read_text(&place.join("fullchain.pem"))?))
    }

    async fn options(&self, lineage: &Lineage) -> Result<Option<String>, StoreError> {
        let _acting = self.owner.act();
        read_text(&self.directory(lineage).join("options.json"))
    }

    async fn save_options(&self, lineage: &Lineage, json: &str) -> Result<(), StoreError> {
        let _acting = self.owner.act();
        let directory = self.directory(lineage);
        check_format(&directory.join("record.json"))?;
        make_directory(&directory)?;
        replace(&directory.join("options.json"), json.as_bytes())
    }

    async fn delete(&self, lineage: &Lineage, expected: Revision) -> Result<bool, StoreError> {
        let _acting = self.owner.act();
        let directory = self.directory(lineage);
        let aside = directory.with_file_name(format!(".{lineage}.old"));
        // A killed process may have left it, with keys.
        let mut was_there = remove_directory(&aside)?;
        let found = match directory.try_exists().map_err(at("read", &directory))? {
            true => {
                was_there = true;
                let _locked = locked(&directory.join("lock"))?;
                let found = deletable(self.load(lineage).await)?;
                if found == expected {
                    std::fs::rename(&directory, &aside).map_err(at("remove", &directory))?;
                    files::sync_parent(&directory).map_err(at("remove", &directory))?;
                }
                found
            }
            false => Revision::default(),
        };
        next_revision(format!("the record of {lineage}"), expected, found)?;
        remove_directory(&aside)?;
        Ok(was_there)
    }

    async fn rename(
        &self,
        from: &Lineage,
        to: &Lineage,
        expected: Revision,
    ) -> Result<(), StoreError> {
        let _acting = self.owner.act();
        let (directory, new) = (self.directory(from), self.directory(to));
        let _locked = locked(&directory.join("lock"))?;
        let found = self.load(from).await?.map(|(_, revision)| revision);
        let subject = format!("the record of {from}");
        next_revision(subject, expected, found.unwrap_or_default())?;
        std::fs::rename(&directory, &new).map_err(|error| match error.kind() {
            ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists => {
                let lineage = to.clone();
                StoreError::Taken { lineage }
            }
            _ => at("rename", &directory)(error),
        })?;
        files::sync_parent(&new).map_err(at("rename", &new))
    }

    async fn list(&self) -> Result<Vec<Lineage>, StoreError> {
        let _acting = self.owner.act();
        let records = self.root.join("records");
        let mut lineages = Vec::new();
        for entry in std::fs::read_dir(&records).map_err(at("read", &records))? {
            let name = entry.map_err(at("read", &records))?.file_name();
            let lineage = name.to_str().and_then(|name| Lineage::parse(name).ok());
            lineages.extend(lineage.filter(|one| self.has(one)));
        }
        lineages.sort();
        Ok(lineages)
    }

    async fn lease(&self, lineage: &Lineage) -> Result<Box<dyn Lease>, StoreError> {
        let _acting = self.owner.act();
        let path = self.root.join("leases").join(lineage.as_str());
        let locked = open_lock(&path)?;
        locked.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => StoreError::Leased {
                lineage: lineage.clone(),
            },
            TryLockError::Error(error) => at("lock", &path)(error),
        })?;
        self.flush_leftovers(lineage)?;
        Ok(Box::new(FileLease { locked }))
    }

    async fn account(&self, ca: &str) -> Result<Option<Secret>, StoreError> {
        let _acting = self.owner.act();
        let path = self.path_of("accounts", ca);
        let text = read_text(&path)?;
        if let Some(text) = &text {
            // Its path says what to restore; whose file it is, its hashed name does not.
            serde_json::from_str::<IgnoredAny>(text).map_err(|error| corrupt(&path, &error))?;
        }
        Ok(text.map(Secret::new))
    }

    async fn create_account(&self, ca: &str, credentials: &Secret) -> Result<Secret, StoreError> {
        let _acting = self.owner.act();
        let lock = self.path_of("authorities", ca).with_extension("lock");
        let _locked = locked(&lock)?;
        if let Some(stored) = self.account(ca).await? {
            // The process that made the account may have been killed before its flush.
            let accounts = self.root.join("accounts");
            files::sync(&accounts).map_err(at("write", &accounts))?;
            return Ok(stored);
        }
        let path = self.path_of("accounts", ca);
        replace(&path, credentials.expose().as_bytes())?;
        Ok(credentials.clone())
    }

    async fn save_account(
        &self,
        ca: &str,
        credentials: &Secret,
        before: &Secret,
    ) -> Result<(), StoreError> {
        let _acting = self.owner.act();
        let lock = self.path_of("authorities", ca).with_extension("lock");
        let _locked = locked(&lock)?;
        check_account(ca, self.account(ca).await?.as_ref(), before)?;
        let path = self.path_of("accounts", ca);
        replace(&path, credentials.expose().as_bytes())
    }

    async fn delete_account(&self, ca: &str, before: &Secret) -> Result<(), StoreError> {
        let _acting = self.owner.act();
        let lock = self.path_of("authorities", ca).with_extension("lock");
        let _locked = locked(&lock)?;
        check_account(ca, self.account(ca).await?.as_ref(), before)?;
        let path = self.path_of("accounts", ca);
        files::remove_if_there(&path)
            .and_then(|()| files::sync_parent(&path))
            .map_err(at("remove", &path))
    }

    async fn ca_state(&self, ca: &str) -> Result<(CaState, Revision), StoreError> {
        let _acting = self.owner.act();
        let stored: Option<StoredCa> = match read_json(&self.path_of("authorities", ca)) {
            Err(error @ StoreError::Corrupt { .. }) => {
                // No certificate may expire because a count is lost: counting restarts.
                tracing::warn!("the stored state of CA {ca} is lost: {error}");
                None
            }
            stored => stored?,
        };
        Ok(stored.map_or_else(Default::default, |known| (known.state, known.revision)))
    }

    async fn save_ca_state(
        &self,
        ca: &str,
        state: &CaState,
        expected: Revision,
    ) -> Result<Revision, StoreError> {
        let _acting = self.owner.act();
        let path = self.path_of("authorities", ca);
        let _locked = locked(&path.with_extension("lock"))?;
        let (_, found) = self.ca_state(ca).await?;
        let revision = next_revision(format!("the state of CA {ca}"), expected, found)?;
        let (ca, state) = (ca.to_owned(), state.clone());
        let stored = StoredCa {
            format: FORMAT,
            ca,
            revision,
            state,
        };
        write_json(&path, &stored)?;
        Ok(revision)
    }
}

#[derive(Debug)]
struct FileLease {
    locked: File,
}

impl Drop for FileLease {
    fn drop(&mut self) {
        // Closing is not enough while a child process that just forked has the file, too.
        let _ = self.locked.unlock();
    }
}

impl Lease for FileLease {}

/// Removes all but the newest pairs, and the staged records of killed writers, which
/// contain keys. A failure is not an error. `rollback` stays while no newer
/// generation is verified.
fn remove_old(directory: &Path, newest: Generation, rollback: Option<Generation>) {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_str().unwrap_or_default();
        if files::is_leftover(name, "record.json") {
            // No other process writes it: we hold the lock.
            let _ = std::fs::remove_file(entry.path());
        }
        if let Ok(generation) = name.parse::<u64>()
            && generation + Generation::KEPT <= newest.0
            && rollback != Some(Generation(generation))
            && let Err(error) = std::fs::remove_dir_all(entry.path())
        {
            tracing::warn!(path = %entry.path().display(), "cannot remove an old pair: {error}");
        }
    }
}

#[cfg(test)]
mod tests;
