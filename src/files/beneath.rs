//! Files below a directory that is not ours alone: an output, a copy, a webroot, the
//! configuration of another program. Everything there goes through a [`Directory`], an
//! open descriptor, and no path is used twice.
//!
//! The owner of such a directory may rename, replace and link its names at any moment.
//! Guaranteed is that we then change nothing but names in that very directory and files
//! that we have just created: no link is followed, no existing file is opened for writing
//! or given another owner or mode, and a removal stays below the descriptor. Anything else
//! in the way is refused. Not guaranteed is that the names stay: that owner can always
//! remove what we wrote, or replace it by a file of its own.

mod walk;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, Stat, fchmod, fstat, mkdirat, openat,
    readlinkat, renameat, renameat_with, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use thiserror::Error;

use super::{ABANDONED, aside_name, fill, is_leftover, trust};
pub(crate) use walk::refused_way;

/// The next action after a [`Refusal`].
pub(crate) const REFUSED_HINT: &str = "certs did not make it: move it away or, for a link in a configured path, configure the real path; then run the command again";

/// Why a name is not used.
#[derive(Debug, Error)]
#[error("refused: {path} is {what}")]
struct Refusal {
    path: String,
    what: &'static str,
}

fn refusal(path: &Path, what: &'static str) -> io::Error {
    let path = path.display().to_string();
    io::Error::other(Refusal { path, what })
}

/// Whether `error` says that something is in the way that we did not make.
#[must_use]
pub(crate) fn is_refusal(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Refusal>())
}

/// An open directory.
#[derive(Debug)]
pub(crate) struct Directory {
    handle: OwnedFd,
    /// For messages only.
    path: PathBuf,
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

impl Directory {
    /// A directory in this one.
    pub(crate) fn child(&self, name: impl AsRef<OsStr>) -> io::Result<Self> {
        let name = name.as_ref();
        self.enter(name)
            .map_err(|error| self.or_refused(name, error))
    }

    /// Creates a directory in this one with `mode`, whatever the umask is; the set-group-id
    /// bit from this one stays.
    pub(crate) fn make_child(&self, name: impl AsRef<OsStr>, mode: u32) -> io::Result<Self> {
        const SET_GROUP: u32 = 0o2000;
        let name = name.as_ref();
        mkdirat(self, name, Mode::from_raw_mode(mode))?;
        let made = self.child(name)?;
        if !made.names()?.is_empty() {
            // Swapped since it was made.
            return Err(refusal(&made.path, "a directory with other files in it"));
        }
        let opened = made.opened()?;
        let inherited = fstat(&opened)?.st_mode & SET_GROUP;
        fchmod(&opened, Mode::from_raw_mode(mode | inherited))?;
        Ok(made)
    }

    /// A directory in this one, created with `mode` if it is missing. The mode of one that
    /// exists stays, also if another process was faster.
    pub(crate) fn child_or_make(&self, name: impl AsRef<OsStr>, mode: u32) -> io::Result<Self> {
        let name = name.as_ref();
        match self.child(name) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let made = self.make_child(name, mode);
                made.or_else(|error| self.child(name).map_err(|_| error))
            }
            found => found,
        }
    }

    /// The directory itself, open for reading.
    pub(crate) fn opened(&self) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(openat(self, ".", flags, Mode::empty())?.into())
    }

    /// Flushes its mode and entries.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.opened()?.sync_all()
    }

    /// The names in it, in no order.
    pub(crate) fn names(&self) -> io::Result<Vec<OsString>> {
        names_in(self.opened()?)
    }

    /// The path, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its owner and mode.
    pub(crate) fn stat(&self) -> io::Result<Stat> {
        Ok(fstat(self)?)
    }

    /// Refuses it if its user is neither root, nor this process's, nor one of `users`.
    pub(crate) fn belongs_to(self, users: &[Option<u32>]) -> io::Result<Self> {
        let owner = self.stat()?.st_uid;
        match trust::is_ours(owner) || users.contains(&Some(owner)) {
            true => Ok(self),
            false => Err(refusal(&self.path, "a directory of another user")),
        }
    }

    fn status(&self, name: &OsStr) -> io::Result<Stat> {
        Ok(statat(self, name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// A regular file in it, open for reading.
    pub(crate) fn file(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        self.regular(name.as_ref(), OFlags::RDONLY, Mode::empty())
    }

    /// A regular file in it to lock, created with `mode` if it is missing. Its content stays.
    pub(crate) fn lock_file(&self, name: impl AsRef<OsStr>, mode: u32) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE;
        self.regular(name.as_ref(), flags, Mode::from_raw_mode(mode))
    }

    fn regular(&self, name: &OsStr, flags: OFlags, mode: Mode) -> io::Result<File> {
        // A pipe without a writer would block.
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = openat(self, name, flags, mode);
        let file = File::from(opened.map_err(|error| self.or_refused(name, error))?);
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(self.or_refused(name, Errno::INVAL)),
        }
    }

    /// Refuses anything but a socket of that name.
    pub(crate) fn check_socket(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        let name = name.as_ref();
        match FileType::from_raw_mode(self.status(name)?.st_mode) {
            FileType::Socket => Ok(()),
            _ => Err(self.or_refused(name, Errno::INVAL)),
        }
    }

    /// The content of a regular file of at most `largest` bytes.
    pub(crate) fn read(&self, name: impl AsRef<OsStr>, largest: u64) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        self.read_into(name, largest, &mut content)?;
        Ok(content)
    }

    /// The same, in place of `content`.
    fn read_into(
        &self,
        name: impl AsRef<OsStr>,
        largest: u64,
        content: &mut Vec<u8>,
    ) -> io::Result<()> {
        content.clear();
        // Most files are read by one call, and one more finds their end.
        content.reserve(4096);
        let file = self.file(name)?;
        let length = file.take(largest + 1).read_to_end(content)?;
        match length as u64 > largest {
            true => Err(io::Error::new(
                ErrorKind::FileTooLarge,
                "the file is too large",
            )),
            false => Ok(()),
        }
    }

    /// The text of a regular file of at most `largest` bytes; `None` if it does not exist.
    pub(crate) fn text(&self, name: impl AsRef<OsStr>, largest: u64) -> io::Result<Option<String>> {
        let text = self
            .text_in(name, largest, &mut Vec::new())?
            .map(str::to_owned);
        Ok(text)
    }

    /// The same, read into `memory`.
    pub(crate) fn text_in<'m>(
        &self,
        name: impl AsRef<OsStr>,
        largest: u64,
        memory: &'m mut Vec<u8>,
    ) -> io::Result<Option<&'m str>> {
        match self.read_into(name, largest, memory) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            read => {
                let text = read.map(|()| std::str::from_utf8(memory))?;
                text.map(Some)
                    .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
            }
        }
    }

    /// Whether a regular file has that content.
    pub(crate) fn holds(&self, name: impl AsRef<OsStr>, content: &[u8]) -> bool {
        let found = self.read(name, content.len() as u64);
        found.is_ok_and(|found| found == content)
    }

    /// Whether there is anything of that name.
    pub(crate) fn has(&self, name: impl AsRef<OsStr>) -> bool {
        self.status(name.as_ref()).is_ok()
    }

    /// The target of a link in it.
    pub(crate) fn read_link(&self, name: impl AsRef<OsStr>) -> io::Result<PathBuf> {
        let target = readlinkat(self, name.as_ref(), Vec::new())?;
        Ok(OsString::from_vec(target.into_bytes()).into())
    }

    /// Creates a file with `mode` that no other process has opened, gives it away, and
    /// flushes it. Only `give` and later changes reach another owner.
    pub(crate) fn write_new(
        &self,
        name: impl AsRef<OsStr>,
        mode: u32,
        content: &[u8],
        give: impl FnOnce(&File) -> io::Result<()>,
    ) -> io::Result<()> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode);
        let file = File::from(openat(self, name.as_ref(), flags, mode)?);
        // The umask may have removed bits.
        fchmod(&file, mode)?;
        give(&file)?;
        fill(file, content)
    }

    /// Replaces a file in one step, as [`super::replace`] does. `give` sets the owner and
    /// the mode before the file gets its name.
    pub(crate) fn replace(
        &self,
        name: impl AsRef<OsStr>,
        mode: u32,
        content: &[u8],
        give: impl FnOnce(&File) -> io::Result<()>,
    ) -> io::Result<()> {
        let name = name.as_ref();
        match self.status(name) {
            Ok(found) if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile => {
                return Err(self.or_refused(name, Errno::INVAL));
            }
            _ => {}
        }
        let text = name.to_string_lossy();
        let aside = aside_name(&text);
        self.remove(&aside)?;
        let written = self.write_new(&aside, mode, content, give);
        let written = written.and_then(|()| self.rename(&aside, name));
        if written.is_err() {
            // The first error is the one to report.
            let _ = self.remove(&aside);
        }
        written?;
        self.remove_leftovers(&text);
        self.sync()
    }

    /// Removes the temporary files of processes that were killed while they wrote `name`, which
    /// may contain a key. A younger one may belong to a process at work.
    pub(super) fn remove_leftovers(&self, name: &str) {
        let written = |name: &OsStr| self.file(name)?.metadata()?.modified();
        let (Ok(now), Ok(mut names)) = (written(name.as_ref()), self.names()) else {
            return;
        };
        names.retain(|found| is_leftover(&found.to_string_lossy(), name));
        for leftover in names {
            let age = written(&leftover).map(|at| now.duration_since(at).unwrap_or_default());
            if age.is_ok_and(|age| age > ABANDONED) {
                // The next write tries again.
                let _ = self.remove(&leftover);
            }
        }
    }

    /// Removes the temporary files of every killed process: for a directory that this process
    /// alone writes to.
    pub(crate) fn remove_all_leftovers(&self) -> io::Result<()> {
        for found in self.names()? {
            let text = found.to_string_lossy();
            let name = text
                .strip_prefix('.')
                .and_then(|rest| rest.rsplit_once(".new-"));
            if name.is_some_and(|(name, _)| is_leftover(&text, name)) {
                self.remove(&found)?;
            }
        }
        Ok(())
    }

    /// Gives a name to a file or directory in it, in place of another file or link.
    pub(crate) fn rename(&self, from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) -> io::Result<()> {
        let to = to.as_ref();
        renameat(self, from.as_ref(), self, to).map_err(|error| self.or_refused(to, error))
    }

    /// The same, and never over something: a rename replaces even a directory, while it is
    /// empty.
    pub(crate) fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        match renameat_with(self, from, self, to, RenameFlags::NOREPLACE) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => self.rename(from, to),
            renamed => Ok(renamed?),
        }
    }

    /// Swaps two names in one step, or in three if the file system cannot do that.
    pub(crate) fn exchange(&self, one: &str, other: &str) -> io::Result<()> {
        match renameat_with(self, one, self, other, RenameFlags::EXCHANGE) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                let aside = format!("{one}.old");
                self.rename(other, &aside)?;
                self.rename(one, other)?;
                self.rename(&aside, one)
            }
            exchanged => Ok(exchanged?),
        }
    }

    /// Creates a link in it.
    pub(crate) fn link(&self, target: &Path, name: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(symlinkat(target, self, name.as_ref())?)
    }

    /// Removes the name of a file or link; succeeds if it does not exist.
    pub(crate) fn remove(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        let name = name.as_ref();
        match unlinkat(self, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(self.or_refused(name, error)),
        }
    }

    /// Removes a directory with the files in it; succeeds if it does not exist. A directory
    /// in it is not ours, and is refused.
    pub(crate) fn prune(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        let name = name.as_ref();
        let doomed = match self.child(name) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            doomed => doomed?,
        };
        for entry in doomed.names()? {
            doomed.remove(&entry)?;
        }
        Ok(unlinkat(self, name, AtFlags::REMOVEDIR)?)
    }

    /// `error`, or what is there if that is the cause.
    fn or_refused(&self, name: &OsStr, error: Errno) -> io::Error {
        const ABOUT_KIND: [Errno; 6] = [
            Errno::NOTDIR,
            Errno::LOOP,
            Errno::ISDIR,
            Errno::NXIO,
            Errno::INVAL,
            Errno::NODEV,
        ];
        let found = self
            .status(name)
            .ok()
            .filter(|_| ABOUT_KIND.contains(&error));
        let what = match found.map(|found| FileType::from_raw_mode(found.st_mode)) {
            None => return error.into(),
            Some(FileType::Symlink) => "a symbolic link",
            Some(FileType::Directory) => "a directory",
            Some(FileType::RegularFile) => "a regular file",
            Some(FileType::Fifo) => "a named pipe",
            Some(_) => "a socket or a device",
        };
        refusal(&self.path.join(name), what)
    }
}

/// The names in a directory that is open for reading, in no order.
pub(crate) fn names_in(directory: impl AsFd) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        names.push(OsString::from_vec(name));
    }
    names.retain(|name| name != "." && name != "..");
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn opened() -> (tempfile::TempDir, PathBuf, Directory) {
        let scratch = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(scratch.path()).unwrap();
        let directory = Directory::open(&root).unwrap();
        (scratch, root, directory)
    }

    #[test]
    fn links_below_are_refused_and_never_followed() {
        let (_scratch, root, directory) = opened();
        std::fs::create_dir(root.join("other")).unwrap();
        std::fs::write(root.join("other/file"), "theirs").unwrap();
        symlink("other", root.join("directory")).unwrap();
        symlink("other/file", root.join("link")).unwrap();
        let refused = |done: io::Result<()>| {
            let error = done.unwrap_err();
            assert!(is_refusal(&error), "{error}");
        };
        refused(directory.child("directory").map(drop));
        refused(directory.prune("directory"));
        refused(directory.file("link").map(drop));
        refused(directory.file("other").map(drop));
        refused(directory.replace("link", 0o600, b"ours", |_| Ok(())));
        refused(directory.remove("other"));
        assert!(!directory.holds("link", b"theirs"));
        assert!(
            directory
                .write_new("link", 0o600, b"ours", |_| Ok(()))
                .is_err()
        );
        assert!(directory.make_child("directory", 0o700).is_err());
        // A directory below is not ours.
        std::fs::create_dir_all(root.join("0001/inner")).unwrap();
        refused(directory.prune("0001"));
        std::fs::remove_dir(root.join("0001/inner")).unwrap();
        symlink("../other/file", root.join("0001/link")).unwrap();
        directory.prune("0001").unwrap();
        directory.prune("0001").unwrap();
        assert_eq!(std::fs::read(root.join("other/file")).unwrap(), b"theirs");
    }

    #[test]
    fn replace_keeps_old_file_when_owner_cannot_be_set() {
        let (_scratch, root, directory) = opened();
        let replace = |content: &[u8], give: fn(&File) -> io::Result<()>| {
            directory.replace("pair", 0o600, content, give)
        };
        replace(b"old", |_| Ok(())).unwrap();
        let refused = replace(b"new", |_| Err(ErrorKind::PermissionDenied.into()));
        assert!(refused.is_err());
        assert!(directory.holds("pair", b"old") && !directory.holds("pair", b"older"));
        assert_eq!(std::fs::read_dir(&root).unwrap().count(), 1);
        assert!(directory.read("pair", 2).is_err());
    }
}
