//! Documents in a directory that several machines share, such as one on NFS. It relies on no
//! lock: version N of a document is the file `KEY/N`, which a hard link makes and never
//! replaces. The highest number counts; a first byte of 0 says that the document was removed.
//! It never makes the directory itself: what is not mounted would become a store of its own.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use super::{Document, Documents, DocumentsError, Version};
use crate::files::{self, DirectoryOwner};
use crate::time::Timestamp;

const FILE: u32 = 0o600;
const DIRECTORY: u32 = 0o700;
const REMOVED: u8 = 0;
const STORED: u8 = 1;
/// A reader may be about to open the version before the newest.
const KEPT: u64 = 2;
/// After this time a removed challenge answer leaves nothing behind.
const FORGOTTEN: Duration = Duration::from_secs(3600);
/// A version that is removed between its listing and its opening is followed by a newer one.
const TRIES: u32 = 20;

#[derive(Clone, Debug)]
pub(in super::super) struct DirectoryDocuments(Arc<Root>);

/// A call of a file system that takes longer is given up: it may be one of the network.
const WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Root {
    root: PathBuf,
    owner: DirectoryOwner,
    /// Distinguishes the temporary files of this process, beside the machine and the process.
    written: AtomicU64,
    node: String,
}

impl DirectoryDocuments {
    /// The documents below `root`, which must exist; `node` is this machine's name.
    pub(in super::super) fn open(root: PathBuf, node: &str) -> io::Result<Self> {
        check_there(&root)?;
        let owner = files::make_data_directory(&root)?;
        Ok(Self(Arc::new(Root {
            root,
            owner,
            written: AtomicU64::default(),
            node: node.to_owned(),
        })))
    }

    /// Does `work` on a thread of its own; a server that hangs stops nothing else.
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Root) -> Result<T, DocumentsError> + Send + 'static,
    ) -> Result<T, DocumentsError> {
        let root = self.0.clone();
        let working = tokio::task::spawn_blocking(move || {
            let _acting = root.owner.act();
            check_there(&root.root).map_err(DocumentsError::Failed)?;
            work(&root)
        });
        match tokio::time::timeout(WITHIN, working).await {
            Ok(Ok(done)) => done,
            Ok(Err(stopped)) => Err(DocumentsError::Unanswered(io::Error::other(stopped))),
            Err(_) => Err(DocumentsError::Unanswered(ErrorKind::TimedOut.into())),
        }
    }
}

impl Root {
    /// The newest version of the document in `directory`, and its content unless removed.
    fn newest(&self, directory: &Path) -> Result<Option<(u64, Vec<u8>)>, DocumentsError> {
        for _ in 0..TRIES {
            let Some(newest) = highest(directory).map_err(DocumentsError::Failed)? else {
                return Ok(None);
            };
            match fs::read(directory.join(name_of(newest))) {
                Ok(content) => return Ok(Some((newest, content))),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(DocumentsError::Failed(error)),
            }
        }
        let busy = io::Error::other("it changes faster than it can be read");
        Err(DocumentsError::Failed(busy))
    }

    /// Makes the version after `before`.
    fn put(&self, key: &str, before: u64, content: &[u8]) -> Result<Version, DocumentsError> {
        let directory = self.root.join(key);
        files::make_directory(&directory, DIRECTORY).map_err(DocumentsError::Failed)?;
        let number = self.written.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        let aside = format!(".new-{}-{process}-{number}", self.node);
        let aside = directory.join(aside);
        let version = before + 1;
        let linked = files::write_new(&aside, FILE, content)
            .and_then(|()| fs::hard_link(&aside, directory.join(name_of(version))));
        let _ = fs::remove_file(&aside);
        linked.map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => DocumentsError::Conflict,
            _ => DocumentsError::Unanswered(error),
        })?;
        files::sync(&directory).map_err(DocumentsError::Unanswered)?;
        self.check_newest(&directory, version)?;
        Ok(Version(version.to_string()))
    }

    /// A version that was removed long ago can be made again: then a higher one is there.
    fn check_newest(&self, directory: &Path, version: u64) -> Result<(), DocumentsError> {
        let newest = highest(directory).map_err(DocumentsError::Unanswered)?;
        // The next one was made from this one, which is there.
        if newest > Some(version + 1) {
            let overtaken = io::Error::other("another process has written a newer version");
            return Err(DocumentsError::Unanswered(overtaken));
        }
        for old in numbers(directory).map_err(DocumentsError::Unanswered)? {
            if old + KEPT <= version {
                let _ = fs::remove_file(directory.join(name_of(old)));
            }
        }
        Ok(())
    }

    fn stored(&self, key: &str) -> Result<(u64, Option<Vec<u8>>), DocumentsError> {
        Ok(match self.newest(&self.root.join(key))? {
            None => (0, None),
            Some((version, content)) => match content.split_first() {
                Some((&STORED, content)) => (version, Some(content.to_vec())),
                Some((&REMOVED, [])) => (version, None),
                // Not ours, or damaged: it opens under no name.
                _ => (version, Some(content)),
            },
        })
    }

    /// Whether it is a challenge answer that was removed long ago: no writer comes any more,
    /// since its token is not used again.
    fn is_forgotten(&self, below: &Path) -> bool {
        let Ok(Some(newest)) = highest(below) else {
            return false;
        };
        let file = below.join(name_of(newest));
        let is_removed = fs::read(&file).is_ok_and(|content| content == [REMOVED]);
        let age = fs::metadata(&file).and_then(|found| found.modified());
        let age = age.ok().and_then(|at| at.elapsed().ok());
        let is_answer = below
            .strip_prefix(&self.root)
            .is_ok_and(|key| key.starts_with("challenges"));
        is_answer && is_removed && age.is_some_and(|age| age > FORGOTTEN)
    }

    fn collect(
        &self,
        below: &Path,
        found: &mut BTreeMap<String, Version>,
    ) -> Result<(), DocumentsError> {
        let entries = match fs::read_dir(below) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(DocumentsError::Failed)?,
        };
        for entry in entries {
            let path = entry.map_err(DocumentsError::Failed)?.path();
            if path.is_dir() {
                self.collect(&path, found)?;
            }
        }
        if self.is_forgotten(below) {
            let _ = fs::remove_dir_all(below);
            return Ok(());
        }
        let key = below.strip_prefix(&self.root).ok().and_then(Path::to_str);
        if let Some(key) = key
            && let (version, Some(_)) = self.stored(key)?
        {
            found.insert(key.to_owned(), Version(version.to_string()));
        }
        Ok(())
    }
}

/// Refuses a directory that is missing: what was stored there is not gone.
fn check_there(root: &Path) -> io::Result<()> {
    match fs::metadata(root) {
        Ok(found) if found.is_dir() => Ok(()),
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Err(io::Error::new(
            ErrorKind::NotADirectory,
            "the directory is missing",
        )),
    }
}

fn name_of(version: u64) -> String {
    format!("{version:020}")
}

fn numbers(directory: &Path) -> io::Result<Vec<u64>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names
        .filter(|name| name.len() == 20)
        .filter_map(|name| name.parse().ok())
        .collect())
}

fn highest(directory: &Path) -> io::Result<Option<u64>> {
    Ok(numbers(directory)?.into_iter().max())
}

fn with_mark(mark: u8, content: &[u8]) -> Vec<u8> {
    [&[mark][..], content].concat()
}

impl Root {
    fn write(
        &self,
        key: &str,
        content: &[u8],
        expected: Option<&Version>,
    ) -> Result<Version, DocumentsError> {
        let (version, stored) = self.stored(key)?;
        let found = stored.map(|_| Version(version.to_string()));
        if found.as_ref() != expected {
            return Err(DocumentsError::Conflict);
        }
        self.put(key, version, &with_mark(STORED, content))
    }

    fn remove(&self, key: &str, expected: &Version) -> Result<(), DocumentsError> {
        let (version, stored) = self.stored(key)?;
        if stored.is_none() || Version(version.to_string()) != *expected {
            return Err(DocumentsError::Conflict);
        }
        self.put(key, version, &with_mark(REMOVED, b"")).map(drop)
    }

    fn list(&self, prefix: &str) -> Result<BTreeMap<String, Version>, DocumentsError> {
        let mut found = BTreeMap::new();
        let (directory, _) = prefix.rsplit_once('/').unwrap_or_default();
        self.collect(&self.root.join(directory), &mut found)?;
        found.retain(|key, _| key.starts_with(prefix));
        Ok(found)
    }

    fn time(&self) -> Result<Timestamp, DocumentsError> {
        // The time of a file is that of the machine with the disk.
        let path = self.root.join(format!(".time-{}", self.node));
        let written = files::replace(&path, FILE, b"").and_then(|()| fs::metadata(&path));
        let written = written.map_err(DocumentsError::Failed)?;
        Ok(Timestamp::from_seconds(written.mtime()))
    }
}

#[async_trait]
impl Documents for DirectoryDocuments {
    async fn read(&self, key: &str) -> Result<Option<Document>, DocumentsError> {
        let key = key.to_owned();
        let (version, content) = self.work(move |root| root.stored(&key)).await?;
        let version = Version(version.to_string());
        Ok(content.map(|content| Document { content, version }))
    }

    async fn write(
        &self,
        key: &str,
        content: &[u8],
        expected: Option<&Version>,
    ) -> Result<Version, DocumentsError> {
        let (key, content, expected) = (key.to_owned(), content.to_vec(), expected.cloned());
        self.work(move |root| root.write(&key, &content, expected.as_ref()))
            .await
    }

    async fn remove(&self, key: &str, expected: &Version) -> Result<(), DocumentsError> {
        let (key, expected) = (key.to_owned(), expected.clone());
        self.work(move |root| root.remove(&key, &expected)).await
    }

    async fn list(&self, prefix: &str) -> Result<BTreeMap<String, Version>, DocumentsError> {
        let prefix = prefix.to_owned();
        self.work(move |root| root.list(&prefix)).await
    }

    async fn time(&self) -> Result<Timestamp, DocumentsError> {
        self.work(Root::time).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn directory_documents_keep_contract() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("shared");
        fs::create_dir(&root).unwrap();
        let documents = DirectoryDocuments::open(root, "one").unwrap();
        super::super::tests::check(Arc::new(documents)).await;
    }

    #[tokio::test]
    async fn directory_is_never_made_and_fails_each_call_while_it_is_missing() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("mnt/certs");
        let open = || DirectoryDocuments::open(root.clone(), "one");
        assert_eq!(open().unwrap_err().kind(), ErrorKind::NotADirectory);
        assert!(!directory.path().join("mnt").exists());
        fs::create_dir_all(&root).unwrap();
        let documents = open().unwrap();
        let version = documents.write("key", b"x", None).await.unwrap();
        // As when its server is unmounted.
        let aside = directory.path().join("aside");
        fs::rename(&root, &aside).unwrap();
        let is_missing = |error: DocumentsError| {
            let DocumentsError::Failed(error) = error else {
                return false;
            };
            error.kind() == ErrorKind::NotADirectory
        };
        assert!(is_missing(documents.read("key").await.unwrap_err()));
        assert!(is_missing(documents.list("").await.unwrap_err()));
        assert!(is_missing(documents.time().await.unwrap_err()));
        let write = documents.write("key", b"y", Some(&version)).await;
        assert!(is_missing(write.unwrap_err()));
        let removed = documents.remove("key", &version).await;
        assert!(is_missing(removed.unwrap_err()));
        assert!(!root.exists());
        fs::rename(&aside, &root).unwrap();
        let read = documents.read("key").await.unwrap().unwrap();
        assert_eq!((&read.content[..], read.version), (&b"x"[..], version));
    }

    #[tokio::test]
    async fn late_writer_of_a_removed_version_does_not_count() {
        let directory = tempfile::tempdir().unwrap();
        let open = |node| DirectoryDocuments::open(directory.path().into(), node).unwrap();
        let (one, other) = (open("one"), open("other"));
        let mut version = one.write("key", b"first", None).await.unwrap();
        let (before, _) = other.0.stored("key").unwrap();
        for content in [b"2", b"3", b"4", b"5"] {
            version = one.write("key", content, Some(&version)).await.unwrap();
        }
        let late = other.0.put("key", before, &with_mark(STORED, b"late"));
        assert!(
            matches!(late, Err(DocumentsError::Unanswered(_))),
            "{late:?}"
        );
        let read = one.read("key").await.unwrap().unwrap();
        assert_eq!((&read.content[..], read.version), (&b"5"[..], version));
    }
}
