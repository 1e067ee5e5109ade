//! Files that survive a crash and never show themselves half written: mode set
//! at open, written aside, flushed, renamed, and the directory flushed.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Writes a new file with `mode` and flushes it to the disk.
///
/// # Errors
/// Also when the file exists already.
pub fn write_new(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    // The umask may have taken bits away; it can never have added any.
    file.set_permissions(PermissionsExt::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()
}

/// Replaces `path` by `content` in one step.
///
/// # Errors
/// The old content is still there then.
pub fn replace(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let aside = path.with_extension(format!("new-{}", std::process::id()));
    remove_if_there(&aside)?;
    let written = write_new(&aside, mode, content).and_then(|()| std::fs::rename(&aside, path));
    if written.is_err() {
        // The first error is the one to tell; a leftover is overwritten next time.
        let _ = std::fs::remove_file(&aside);
    }
    written?;
    sync_parent(path)
}

/// Makes the directory with `mode`, and its parents for everybody to pass
/// through, whatever the umask is, and flushes each one's name; fine when it
/// exists.
///
/// # Errors
/// As the system has them.
pub fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    let missing = path.ancestors().take_while(|path| !path.is_dir());
    let missing: Vec<&Path> = missing.filter(|path| *path != Path::new("")).collect();
    for directory in missing.into_iter().rev() {
        let mode = if directory == path { mode } else { 0o755 };
        match new_directory(directory, mode) {
            // Somebody else was faster.
            Err(error) if error.kind() == ErrorKind::AlreadyExists && directory.is_dir() => {}
            made => made?,
        }
        sync_parent(directory)?;
    }
    Ok(())
}

/// Makes one directory with `mode`, whatever the umask is, which no crash needs
/// to keep yet.
///
/// # Errors
/// Also when there is something of that name.
pub fn new_directory(path: &Path, mode: u32) -> io::Result<()> {
    const SET_GROUP: u32 = 0o2000;
    DirBuilder::new().mode(mode).create(path)?;
    // What it has from its parent stays.
    let inherited = std::fs::metadata(path)?.permissions().mode() & SET_GROUP;
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode | inherited))
}

/// Reads a short file that others may have made: what is no file, such as a pipe
/// that nobody writes to, is refused and not waited for.
///
/// # Errors
/// As the system has them, and when it is no file or no text.
pub fn read_short(path: &Path) -> io::Result<String> {
    const LONGEST: u64 = 4096;
    const NONBLOCK: i32 = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut text = String::new();
    file.take(LONGEST).read_to_string(&mut text)?;
    Ok(text)
}

/// Flushes the directory that `path` stands in.
///
/// # Errors
/// As the system has them.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if parent == Path::new("") => sync(Path::new(".")),
        Some(parent) => sync(parent),
        None => Ok(()),
    }
}

/// Flushes the directory itself: its mode, and the names in it.
///
/// # Errors
/// As the system has them.
pub fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Removes a file; fine when there is none.
///
/// # Errors
/// As the system has them.
pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_private_and_its_parents_can_be_passed() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("a/b/c");
        make_directory(&deep, 0o700).unwrap();
        make_directory(&deep, 0o700).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o711;
        assert_eq!(mode(&deep), 0o700);
        assert_eq!(mode(deep.parent().unwrap()), 0o711);
    }
}
