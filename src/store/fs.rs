//! The store as files in a private directory:
//!
//! ```text
//! records/NAME/record.json   the record and its revision, replaced by rename
//! records/NAME/0007/         an immutable pair: privkey.pem fullchain.pem
//! records/NAME/options.json  the user's options
//! records/NAME/lock          locked only during a compare-and-swap
//! leases/NAME                locked while a process works on it; the fencing token
//! accounts/HASH.json         account credentials of the CA with that URL
//! authorities/HASH.json      the state of that CA: rate limits used, outages
//! ```
//!
//! Locks are the kernel's (`flock`), so a killed process holds none; do not put
//! the directory on NFS. Files are small and local, so they are read and written
//! on the calling thread.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{KEPT_GENERATIONS, Lease, Store, StoreError};
use crate::ca_state::CaState;
use crate::certificate::{Bundle, Secret};
use crate::files;
use crate::fingerprint::Fingerprint;
use crate::lineage::Lineage;
use crate::record::{Generation, Record, Revision};

const PRIVATE_FILE: u32 = 0o600;
const PRIVATE_DIRECTORY: u32 = 0o700;

/// A store in a directory of this machine.
#[derive(Debug)]
pub struct FileStore {
    root: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    revision: Revision,
    record: Record,
}

#[derive(Serialize, Deserialize)]
struct StoredCa {
    /// For a person who reads the file.
    ca: String,
    revision: Revision,
    #[serde(rename = "authority")]
    state: CaState,
}

impl FileStore {
    /// The existing store in `root`, for reading; `None`, and nothing is created,
    /// if there is none.
    #[must_use]
    pub fn existing(root: PathBuf) -> Option<Self> {
        root.join("records").is_dir().then_some(Self { root })
    }

    /// Opens the store in `root` and creates the directory (0700) if it is missing.
    ///
    /// # Errors
    /// When a directory cannot be created.
    pub fn open(root: PathBuf) -> Result<Self, StoreError> {
        files::make_directory(&root, PRIVATE_DIRECTORY).map_err(at("create", &root))?;
        // The mount point of a new volume is open to all users. A directory that has
        // files may belong to another user, who chose its mode.
        if is_empty(&root).map_err(at("read", &root))? {
            let private = PermissionsExt::from_mode(PRIVATE_DIRECTORY);
            if let Err(error) = std::fs::set_permissions(&root, private) {
                // Another user owns the directory; the files in it are private all the same.
                tracing::warn!(path = %root.display(), "cannot make the data directory private: {error}");
            }
        }
        for part in ["records", "leases", "accounts", "authorities"] {
            let path = root.join(part);
            files::make_directory(&path, PRIVATE_DIRECTORY).map_err(at("create", &path))?;
        }
        Ok(Self { root })
    }

    fn directory(&self, lineage: &Lineage) -> PathBuf {
        self.root.join("records").join(lineage.as_str())
    }

    /// The file below `part` of the CA with that URL.
    fn path_of(&self, part: &str, ca: &str) -> PathBuf {
        let name = format!("{}.json", Fingerprint::of(ca.as_bytes()));
        self.root.join(part).join(name)
    }

    fn read(&self, lineage: &Lineage) -> Result<Option<Stored>, StoreError> {
        read_json(&self.directory(lineage).join("record.json"))
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
            if path.is_dir() {
                files::sync(&path).map_err(at("write", &path))?;
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
        bundle: &Bundle,
    ) -> Result<(), StoreError> {
        let directory = self.directory(lineage);
        let place = directory.join(generation.to_string());
        let staged = directory.join(format!(".new-{generation}"));
        for leftover in [&staged, &place] {
            remove_directory(leftover)?;
        }
        files::new_directory(&staged, PRIVATE_DIRECTORY).map_err(at("create", &staged))?;
        let key = bundle.key_pem().expose().as_bytes().to_vec();
        for (name, content) in [
            ("privkey.pem", key),
            ("fullchain.pem", bundle.chain_pem().into_bytes()),
        ] {
            let path = staged.join(name);
            files::write_new(&path, PRIVATE_FILE, &content).map_err(at("write", &path))?;
        }
        files::sync(&staged)
            .and_then(|()| std::fs::rename(&staged, &place))
            .map_err(at("write", &place))?;
        files::sync_parent(&place).map_err(at("write", &place))
    }
}

#[async_trait]
impl Store for FileStore {
    async fn load(&self, lineage: &Lineage) -> Result<Option<(Record, Revision)>, StoreError> {
        Ok(self
            .read(lineage)?
            .map(|stored| (stored.record, stored.revision)))
    }

    async fn save(
        &self,
        record: &Record,
        expected: Revision,
        bundle: Option<&Bundle>,
    ) -> Result<Revision, StoreError> {
        let directory = self.directory(&record.lineage);
        files::make_directory(&directory, PRIVATE_DIRECTORY).map_err(at("create", &directory))?;
        let _locked = locked(&directory.join("lock"))?;
        let before = self.read(&record.lineage)?;
        let is_first = before.is_none();
        let found = before
            .as_ref()
            .map_or(Revision::default(), |stored| stored.revision);
        if found != expected {
            return Err(StoreError::Conflict {
                subject: format!("the record of {}", record.lineage),
                found: found.0,
            });
        }
        if let (Some(bundle), Some(issued)) = (bundle, &record.issued) {
            let newest = before.and_then(|stored| stored.record.issued);
            if newest.is_some_and(|newest| newest.generation >= issued.generation) {
                return Err(StoreError::GenerationExists {
                    lineage: record.lineage.clone(),
                    generation: issued.generation,
                });
            }
            self.write_pair(&record.lineage, issued.generation, bundle)?;
        }
        let revision = Revision(expected.0 + 1);
        let record = record.clone();
        let stored = Stored { revision, record };
        write_json(&directory.join("record.json"), &stored)?;
        let record = stored.record;
        if is_first {
            self.flush_directories(&directory)?;
        }
        if let (Some(_), Some(issued)) = (bundle, &record.issued) {
            remove_old(&directory, issued.generation, record.rollback_to);
        }
        Ok(revision)
    }

    async fn bundle(
        &self,
        lineage: &Lineage,
        generation: Generation,
    ) -> Result<Option<(Secret, String)>, StoreError> {
        let place = self.directory(lineage).join(generation.to_string());
        let key = read_text(&place.join("privkey.pem"))?.map(Secret::new);
        Ok(key.zip(read_text(&place.join("fullchain.pem"))?))
    }

    async fn options(&self, lineage: &Lineage) -> Result<Option<String>, StoreError> {
        read_text(&self.directory(lineage).join("options.json"))
    }

    async fn save_options(&self, lineage: &Lineage, json: &str) -> Result<(), StoreError> {
        let directory = self.directory(lineage);
        files::make_directory(&directory, PRIVATE_DIRECTORY).map_err(at("create", &directory))?;
        let path = directory.join("options.json");
        files::replace(&path, PRIVATE_FILE, json.as_bytes()).map_err(at("write", &path))
    }

    async fn list(&self) -> Result<Vec<Lineage>, StoreError> {
        let records = self.root.join("records");
        let mut lineages = Vec::new();
        for entry in std::fs::read_dir(&records).map_err(at("read", &records))? {
            let name = entry.map_err(at("read", &records))?.file_name();
            let lineage = name.to_str().and_then(|name| Lineage::parse(name).ok());
            lineages.extend(
                lineage.filter(|lineage| self.directory(lineage).join("record.json").exists()),
            );
        }
        lineages.sort();
        Ok(lineages)
    }

    async fn lease(&self, lineage: &Lineage) -> Result<Box<dyn Lease>, StoreError> {
        let path = self.root.join("leases").join(lineage.as_str());
        let mut file = open_lock(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::Leased {
                    lineage: lineage.clone(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(at("lock", &path)(error)),
        }
        let token = next_token(&mut file).map_err(at("write", &path))?;
        self.flush_leftovers(lineage)?;
        Ok(Box::new(FileLease {
            locked: file,
            token,
        }))
    }

    async fn account(&self, ca: &str) -> Result<Option<Secret>, StoreError> {
        Ok(read_text(&self.path_of("accounts", ca))?.map(Secret::new))
    }

    async fn create_account(&self, ca: &str, credentials: &Secret) -> Result<Secret, StoreError> {
        let lock = self.path_of("authorities", ca).with_extension("lock");
        let _locked = locked(&lock)?;
        if let Some(stored) = self.account(ca).await? {
            // The process that made the account may have been killed before its flush.
            let accounts = self.root.join("accounts");
            files::sync(&accounts).map_err(at("write", &accounts))?;
            return Ok(stored);
        }
        self.save_account(ca, credentials).await?;
        Ok(credentials.clone())
    }

    async fn save_account(&self, ca: &str, credentials: &Secret) -> Result<(), StoreError> {
        let path = self.path_of("accounts", ca);
        files::replace(&path, PRIVATE_FILE, credentials.expose().as_bytes())
            .map_err(at("write", &path))
    }

    async fn ca_state(&self, ca: &str) -> Result<(CaState, Revision), StoreError> {
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
        let path = self.path_of("authorities", ca);
        let _locked = locked(&path.with_extension("lock"))?;
        let (_, found) = self.ca_state(ca).await?;
        if found != expected {
            return Err(StoreError::Conflict {
                subject: format!("the state of CA {ca}"),
                found: found.0,
            });
        }
        let known = StoredCa {
            ca: ca.to_owned(),
            revision: Revision(expected.0 + 1),
            state: state.clone(),
        };
        write_json(&path, &known)?;
        Ok(known.revision)
    }
}

#[derive(Debug)]
struct FileLease {
    locked: File,
    token: u64,
}

impl Drop for FileLease {
    fn drop(&mut self) {
        // Closing is not enough while a child process that just forked has the file, too.
        let _ = self.locked.unlock();
    }
}

impl Lease for FileLease {
    fn token(&self) -> u64 {
        self.token
    }
}

/// The count in the file, plus one. An invalid count restarts at 1: on one
/// machine the kernel's lock alone excludes every other process.
fn next_token(file: &mut File) -> io::Result<u64> {
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let token = text.trim().parse::<u64>().unwrap_or(0).saturating_add(1);
    file.rewind()?;
    file.set_len(0)?;
    write!(file, "{token}")?;
    file.sync_all()?;
    Ok(token)
}

fn is_empty(directory: &Path) -> io::Result<bool> {
    Ok(std::fs::read_dir(directory)?.next().is_none())
}

fn open_lock(path: &Path) -> Result<File, StoreError> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(PRIVATE_FILE);
    options.open(path).map_err(at("open", path))
}

/// The lock of a compare-and-swap.
fn locked(path: &Path) -> Result<File, StoreError> {
    let lock = open_lock(path)?;
    lock.lock().map_err(at("lock", path))?;
    Ok(lock)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    let bytes = read_existing(path)?;
    let read = bytes
        .map(|bytes| serde_json::from_slice(&bytes))
        .transpose();
    read.map_err(|error| corrupt(path, &error))
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), StoreError> {
    let json = serde_json::to_vec_pretty(value).map_err(|error| corrupt(path, &error))?;
    files::replace(path, PRIVATE_FILE, &json).map_err(at("write", path))
}

fn corrupt(path: &Path, error: &dyn std::error::Error) -> StoreError {
    StoreError::Corrupt {
        subject: path.display().to_string(),
        detail: error.to_string(),
    }
}

fn read_existing(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at("read", path)(error)),
    }
}

fn read_text(path: &Path) -> Result<Option<String>, StoreError> {
    let text = read_existing(path)?.map(String::from_utf8).transpose();
    text.map_err(|error| corrupt(path, &error))
}

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
        let generation = name.parse::<u64>().ok();
        let is_old = |generation: &u64| generation + KEPT_GENERATIONS <= newest.0;
        let is_unused = |generation: &u64| rollback != Some(Generation(*generation));
        if generation.filter(is_old).is_some_and(|one| is_unused(&one))
            && let Err(error) = std::fs::remove_dir_all(entry.path())
        {
            tracing::warn!(path = %entry.path().display(), "cannot remove an old pair: {error}");
        }
    }
}

fn remove_directory(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(at("remove", path)(error)),
        _ => Ok(()),
    }
}

fn at(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> StoreError {
    let subject = path.display().to_string();
    move |source| StoreError::Io {
        operation,
        subject: subject.clone(),
        source,
    }
}

#[cfg(test)]
mod tests;
