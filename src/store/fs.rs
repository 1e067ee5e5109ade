//! The store as files in a private directory:
//!
//! ```text
//! records/NAME/record.json   the record and its revision, replaced by rename
//! records/NAME/0007/         an immutable pair: privkey.pem fullchain.pem
//! records/NAME/options.json  what the user asked for
//! records/NAME/lock          held for the moments of a compare-and-swap
//! leases/NAME                held while somebody works on it; its fencing token
//! accounts/HASH.json         account credentials of the CA with that URL
//! authorities/HASH.json      what is known of that CA: limits spent, outages
//! ```
//!
//! Locks are the kernel's (`flock`), so that a killed holder holds nothing; do
//! not put the directory on NFS. Files are small and local: they are read and
//! written in place, without a detour through other threads.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Lease, Store, StoreError};
use crate::ca_state::CaState;
use crate::certificate::{Bundle, Fingerprint, Secret};
use crate::files;
use crate::identifier::Lineage;
use crate::record::{Generation, Record, Revision};

const PRIVATE_FILE: u32 = 0o600;
const PRIVATE_DIRECTORY: u32 = 0o700;
/// Pairs of a lineage, for a way back.
const KEPT: u64 = 3;

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
struct Known {
    /// For whoever looks at the file.
    ca: String,
    revision: Revision,
    #[serde(rename = "authority")]
    state: CaState,
}

impl FileStore {
    /// The store that is in `root` already, to be read; `None` when there is
    /// none, and then none is made.
    #[must_use]
    pub fn existing(root: PathBuf) -> Option<Self> {
        root.join("records").is_dir().then_some(Self { root })
    }

    /// Opens the store in `root`, making the directory (0700) if need be.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(root: PathBuf) -> Result<Self, StoreError> {
        files::make_directory(&root, PRIVATE_DIRECTORY).map_err(at("create", &root))?;
        // The mount point of a new volume is for everybody. A directory with
        // something in it may be anybody's, and its mode is theirs.
        if is_empty(&root).map_err(at("read", &root))? {
            let private = PermissionsExt::from_mode(PRIVATE_DIRECTORY);
            if let Err(error) = std::fs::set_permissions(&root, private) {
                // It is somebody else's; what is in it is private all the same.
                tracing::warn!(path = %root.display(), "it stays open to others: {error}");
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

    /// The file of the CA with that URL below `part`.
    fn path_of(&self, part: &str, ca: &str) -> PathBuf {
        let name = format!("{}.json", Fingerprint::of(ca.as_bytes()));
        self.root.join(part).join(name)
    }

    fn read(&self, lineage: &Lineage) -> Result<Option<Stored>, StoreError> {
        read_json(&self.directory(lineage).join("record.json"))
    }

    /// Flushes the names that a record is found by: whoever made the directories
    /// may have been killed before he came to it.
    fn flush_places(&self, directory: &Path) -> Result<(), StoreError> {
        for path in [directory, &self.root.join("records")] {
            files::sync_parent(path).map_err(at("write", path))?;
        }
        // The user's own may stand where nothing can be flushed.
        let _ = files::sync_parent(&self.root);
        Ok(())
    }

    /// Flushes what the last holder of the lease may have put in its place and
    /// was killed before he flushed it: what is read from here on is relied on.
    fn flush_leftovers(&self, lineage: &Lineage) -> Result<(), StoreError> {
        let record = self.directory(lineage);
        for path in [record, self.root.join("accounts")] {
            if path.is_dir() {
                files::sync(&path).map_err(at("write", &path))?;
            }
        }
        Ok(())
    }

    /// Puts the pair in place before the record points to it. What a crash
    /// left there belongs to no record and is put aside.
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
            self.flush_places(&directory)?;
        }
        if let (Some(_), Some(issued)) = (bundle, &record.issued) {
            forget_old(&directory, issued.generation, record.going_back_to);
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
            // Whoever made it may have been killed before he flushed its name.
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
        let stored: Option<Known> = match read_json(&self.path_of("authorities", ca)) {
            Err(error @ StoreError::Corrupt { .. }) => {
                // No certificate may lapse for want of a count: it begins anew.
                tracing::warn!("what was known of {ca} is lost: {error}");
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
                subject: format!("what is known of {ca}"),
                found: found.0,
            });
        }
        let known = Known {
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
        // Closing it is not enough while a child that is being started has it, too.
        let _ = self.locked.unlock();
    }
}

impl Lease for FileLease {
    fn token(&self) -> u64 {
        self.token
    }
}

/// The count in the file, plus one. An unreadable count starts again at 1: on
/// one machine the kernel's lock alone already excludes every other holder.
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

/// Held for the moments of a compare-and-swap.
fn locked(path: &Path) -> Result<File, StoreError> {
    let lock = open_lock(path)?;
    lock.lock().map_err(at("lock", path))?;
    Ok(lock)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    let bytes = read_if_there(path)?;
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

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at("read", path)(error)),
    }
}

fn read_text(path: &Path) -> Result<Option<String>, StoreError> {
    let text = read_if_there(path)?.map(String::from_utf8).transpose();
    text.map_err(|error| corrupt(path, &error))
}

/// Removes all but the newest pairs, and the records that killed writers never
/// put in place: there are keys in them. One that stays is only untidy. `served` stays
/// for as long as nothing newer could be proven.
fn forget_old(directory: &Path, newest: Generation, served: Option<Generation>) {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_str().unwrap_or_default();
        if files::is_leftover(name, "record.json") {
            // Nobody writes it: the lock is ours.
            let _ = std::fs::remove_file(entry.path());
        }
        let generation = name.parse::<u64>().ok();
        let is_old = |generation: &u64| generation + KEPT <= newest.0;
        let is_over = |generation: &u64| served != Some(Generation(*generation));
        if generation.filter(is_old).is_some_and(|one| is_over(&one))
            && let Err(error) = std::fs::remove_dir_all(entry.path())
        {
            tracing::warn!(path = %entry.path().display(), "an old pair could not be removed: {error}");
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
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::*;
    use crate::identifier::Identifier;
    use crate::store::contract;

    fn record(name: &str) -> Record {
        let identifier = Identifier::parse(name).unwrap();
        Record::new(
            Lineage::of(&identifier),
            BTreeSet::from([identifier]),
            "https://ca".into(),
        )
    }

    fn store() -> (tempfile::TempDir, FileStore) {
        let directory = tempfile::tempdir().unwrap();
        let store = FileStore::open(directory.path().join("data")).unwrap();
        (directory, store)
    }

    #[test]
    fn the_newest_pairs_are_kept_and_nothing_else_is_touched() {
        let directory = tempfile::tempdir().unwrap();
        let names = ["0001", "0002", "0003", "0004", "record.json", ".new-0005"];
        for name in names {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        let cut_off = directory.path().join(".record.json.new-4711");
        std::fs::write(&cut_off, "a key").unwrap();
        forget_old(directory.path(), Generation(4), None);
        assert!(!cut_off.exists());
        let left = names.map(|name| directory.path().join(name).exists());
        assert_eq!(left, [false, true, true, true, true, true]);
    }

    #[tokio::test]
    async fn it_keeps_the_contract() {
        let directory = tempfile::tempdir().unwrap();
        let made = std::cell::Cell::new(0);
        contract::keeps(|| {
            made.set(made.get() + 1);
            FileStore::open(directory.path().join(made.get().to_string())).unwrap()
        })
        .await;
    }

    #[test]
    fn of_many_writers_of_one_revision_exactly_one_wins() {
        let (_directory, store) = store();
        let store = Arc::new(store);
        let writers: Vec<_> = (0..8)
            .map(|_| {
                let store = store.clone();
                std::thread::spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .build()
                        .unwrap();
                    runtime
                        .block_on(store.save(&record("example.com"), Revision(0), None))
                        .is_ok()
                })
            })
            .collect();
        let winners = writers
            .into_iter()
            .filter(|_| true)
            .map(|w| w.join().unwrap())
            .filter(|won| *won)
            .count();
        assert_eq!(winners, 1);
    }

    #[tokio::test]
    async fn what_is_stored_is_for_the_owner_alone() {
        let (directory, store) = store();
        let secret = Secret::new("credentials".into());
        store.save_account("https://ca", &secret).await.unwrap();
        store
            .save(&record("example.com"), Revision(0), None)
            .await
            .unwrap();
        let lineage = record("example.com").lineage;
        store.save_options(&lineage, "{}").await.unwrap();
        let mut open = vec![directory.path().join("data")];
        while let Some(path) = open.pop() {
            let metadata = std::fs::metadata(&path).unwrap();
            assert_eq!(
                metadata.permissions().mode() & 0o077,
                0,
                "{}",
                path.display()
            );
            if metadata.is_dir() {
                open.extend(
                    std::fs::read_dir(&path)
                        .unwrap()
                        .map(|entry| entry.unwrap().path()),
                );
            }
        }
    }

    #[test]
    fn an_empty_directory_becomes_private_and_a_used_one_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        for (name, used, mode) in [("new", false, 0o700), ("used", true, 0o755)] {
            let root = directory.path().join(name);
            std::fs::create_dir(&root).unwrap();
            std::fs::set_permissions(&root, PermissionsExt::from_mode(0o755)).unwrap();
            if used {
                std::fs::write(root.join("a file"), "").unwrap();
            }
            FileStore::open(root.clone()).unwrap();
            let found = std::fs::metadata(&root).unwrap().permissions().mode();
            assert_eq!(found & 0o777, mode, "{name}");
        }
    }

    #[tokio::test]
    async fn a_damaged_record_is_named_and_left_alone() {
        let (directory, store) = store();
        let record = record("example.com");
        store.save(&record, Revision(0), None).await.unwrap();
        let path = directory
            .path()
            .join("data/records/example.com/record.json");
        for damage in ["", "{\"revision\":"] {
            std::fs::write(&path, damage).unwrap();
            let error = store.load(&record.lineage).await.unwrap_err().to_string();
            assert!(error.contains("record.json"), "{error}");
            assert!(store.save(&record, Revision(0), None).await.is_err());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), damage);
        }
    }
}
