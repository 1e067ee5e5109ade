//! Files that survive a crash and are never seen half written: the mode is set at
//! open, the content is written to a temporary file, flushed and renamed, and the
//! directory is flushed. The functions here take paths, and are for directories that are
//! ours alone; [`beneath`] is for all others, [`trust`] is the rule for files that may be
//! obeyed, and [`named`] reads them.

pub(crate) mod accounts;
pub(crate) mod beneath;
pub(crate) mod named;
mod owner;

pub(crate) mod trust;

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::beneath::Directory;
pub(crate) use owner::{DirectoryOwner, may_search};

/// Writes a file that does not exist with `mode` and flushes it to the disk.
pub(crate) fn write_new(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(mode).open(path)?;
    // The umask may have removed bits.
    file.set_permissions(PermissionsExt::from_mode(mode))?;
    fill(file, content)
}

/// Writes the content of a new file and flushes it.
fn fill(mut file: File, content: &[u8]) -> io::Result<()> {
    file.write_all(content)?;
    file.sync_all()
}

/// Replaces `path` by `content` in one step. After an error the old content is still
/// there, unless only the flush failed.
pub(crate) fn replace(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let name = path
        .file_name()
        .ok_or(ErrorKind::InvalidInput)?
        .to_string_lossy();
    let aside = path.with_file_name(aside_name(&name));
    remove_if_there(&aside)?;
    let written = write_new(&aside, mode, content).and_then(|()| std::fs::rename(&aside, path));
    if written.is_err() {
        // The first error is the one to report.
        let _ = remove_if_there(&aside);
    }
    written?;
    // Harmless if they stay: the next write tries again.
    let _ = Directory::of(path).map(|(directory, _)| directory.remove_leftovers(&name));
    sync_parent(path)
}

/// The name of the temporary file for `name`.
fn aside_name(name: &str) -> String {
    format!(".{name}.new-{}", std::process::id())
}

/// No process takes this long to write a file.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Whether `found` is a temporary file that [`replace`] would have renamed to `name`.
#[must_use]
pub(crate) fn is_leftover(found: &str, name: &str) -> bool {
    let process = found.strip_prefix(&format!(".{name}.new-"));
    process.is_some_and(|number| number.parse::<u32>().is_ok())
}

/// Creates the directory with `mode` and missing parents with 0755, whatever the umask
/// is, and flushes each entry; succeeds if the directory exists.
pub(crate) fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    Directory::make(path, mode).map(drop)
}

/// Creates one directory with `mode`, whatever the umask is, without a flush.
pub(crate) fn new_directory(path: &Path, mode: u32) -> io::Result<()> {
    let (parent, name) = Directory::of(path)?;
    parent.make_child(name, mode).map(drop)
}

/// The first file named `name` in these directories. An empty one would mean the working
/// directory.
pub(crate) fn in_directories<'a>(
    name: &str,
    mut directories: impl Iterator<Item = &'a str>,
) -> Option<PathBuf> {
    directories.find_map(|directory| {
        let file = Path::new(directory).join(name);
        (!directory.is_empty() && file.is_file()).then_some(file)
    })
}

/// Reads a short file that another user may have made. Anything but a regular file is
/// refused, since a pipe without a writer would block.
pub(crate) fn read_short(path: &Path) -> io::Result<(String, Metadata)> {
    const LONGEST: u64 = 4096;
    const NONBLOCK: i32 = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(NONBLOCK).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut text = String::new();
    file.take(LONGEST).read_to_string(&mut text)?;
    Ok((text, found))
}

/// More than any file of the data directory, in bytes.
pub(crate) const LARGEST_DATA: u64 = 16 << 20;

/// The text of a file of the data directory; `None` if it does not exist. The directory's
/// owner can put a link, a pipe or an endless file in its place: they are refused.
pub(crate) fn read_data(path: &Path) -> io::Result<Option<String>> {
    match Directory::of(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        found => found.and_then(|(directory, name)| directory.text(name, LARGEST_DATA)),
    }
}

/// The same for a file that need not be text.
pub(crate) fn read_data_bytes(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let read = Directory::of(path).and_then(|(directory, name)| directory.read(name, LARGEST_DATA));
    match read {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

/// Opens a file of the data directory to lock it.
pub(crate) fn open_lock(path: &Path) -> io::Result<File> {
    let (directory, name) = Directory::of(path)?;
    directory.lock_file(name, 0o600)
}

/// Waits for a lock that is held only while a few files are written. The owner of the data
/// directory could hold it for ever.
pub(crate) fn lock(file: &File) -> io::Result<()> {
    const PAUSE: Duration = Duration::from_millis(5);
    const TRIES: usize = 2000;
    for _ in 0..TRIES {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
            locked => return Ok(locked?),
        }
    }
    let message = "another process has held the lock for more than 10 s";
    Err(io::Error::new(ErrorKind::ResourceBusy, message))
}

/// The path beside `directory` with a suffix: what belongs to it, and its user may not change.
pub(crate) fn beside(directory: &Path, suffix: &str) -> PathBuf {
    let directory = std::fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
    let mut name = directory.into_os_string();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// Creates the data directory with mode 0700, and gives an empty one that mode: the mount
/// point of a new volume is open to all users. A directory that has files may belong to
/// another user, and keeps the mode that this user chose.
pub(crate) fn make_data_directory(path: &Path) -> io::Result<DirectoryOwner> {
    const PRIVATE: u32 = 0o700;
    let above = DirectoryOwner::checked(path)?;
    let acting = above.act();
    let directory = Directory::make(path, PRIVATE)?.opened()?;
    if beneath::names_in(&directory)?.is_empty()
        && let Err(error) = directory.set_permissions(PermissionsExt::from_mode(PRIVATE))
    {
        // Another user owns the directory; the files in it are private all the same.
        tracing::warn!(path = %path.display(), "cannot make the data directory private: {error}");
    }
    drop(acting);
    // Another user may have been faster in a shared directory.
    DirectoryOwner::checked(path)
}

/// Flushes the directory that contains `path`.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    directory_of(path).map_or(Ok(()), sync)
}

fn directory_of(path: &Path) -> Option<&Path> {
    match path.parent()? {
        here if here.as_os_str().is_empty() => Some(Path::new(".")),
        parent => Some(parent),
    }
}

/// Flushes the directory itself: its mode and its entries.
pub(crate) fn sync(directory: &Path) -> io::Result<()> {
    // A pipe in its place would block.
    let flags = rustix::fs::OFlags::DIRECTORY.bits().cast_signed();
    let mut options = OpenOptions::new();
    let directory = options.read(true).custom_flags(flags).open(directory)?;
    directory.sync_all()
}

/// Removes a file; succeeds if it does not exist.
pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn make_directory_is_private_below_passable_parents() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("a/b/c");
        make_directory(&deep, 0o700).unwrap();
        make_directory(&deep, 0o700).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o711;
        assert_eq!(mode(&deep), 0o700);
        assert_eq!(mode(deep.parent().unwrap()), 0o711);
    }

    #[test]
    fn file_is_the_first_one_in_the_directories() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name).display().to_string();
        let [one, two, three] = ["one", "two", "three"].map(at);
        for directory in [&one, &two, &three] {
            std::fs::create_dir(directory).unwrap();
        }
        let found = || in_directories("nginx", ["", &one, &two, &three].into_iter());
        assert_eq!(found(), None);
        // A directory of that name is skipped.
        std::fs::create_dir(format!("{one}/nginx")).unwrap();
        std::fs::write(format!("{two}/nginx"), "").unwrap();
        std::fs::write(format!("{three}/nginx"), "").unwrap();
        assert_eq!(found(), Some(format!("{two}/nginx").into()));
    }

    #[test]
    fn data_directory_is_private_unless_it_has_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/data");
        let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        make_data_directory(&path).unwrap();
        assert_eq!(mode(), 0o700);
        let open = |path: &Path| std::fs::set_permissions(path, PermissionsExt::from_mode(0o755));
        open(&path).unwrap();
        make_data_directory(&path).unwrap();
        assert_eq!(mode(), 0o700);
        open(&path).unwrap();
        std::fs::write(path.join("file"), "").unwrap();
        make_data_directory(&path).unwrap();
        assert_eq!(mode(), 0o755);
    }

    #[test]
    fn replace_removes_abandoned_leftovers_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let other = ["other", ".other.new-1", "pair.new-1", ".pair.new-backup"];
        for name in [&other[..], &[".pair.new-1", ".pair.new-2"]].concat() {
            std::fs::write(path(name), "a key").unwrap();
        }
        for old in [&other[..], &[".pair.new-1"]].concat() {
            let file = File::options().write(true).open(path(old)).unwrap();
            let now = file.metadata().unwrap().modified().unwrap();
            file.set_modified(now - ABANDONED * 2).unwrap();
        }
        replace(&path("pair"), 0o600, b"new").unwrap();
        let left = std::fs::read_dir(directory.path()).unwrap();
        let mut left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        // `.pair.new-2` is young: a process may be about to rename it.
        let wanted = [
            ".other.new-1",
            ".pair.new-2",
            ".pair.new-backup",
            "other",
            "pair",
            "pair.new-1",
        ];
        assert_eq!(left, wanted);
        assert_eq!(std::fs::read(path("pair")).unwrap(), b"new");
    }
}
