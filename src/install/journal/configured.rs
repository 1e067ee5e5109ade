//! The files that an install changes. Their directories may belong to other users, and are
//! used by descriptors alone. New content is written beside its place, and renamed last.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};
use rustix::io::Errno;

use super::{Change, Entry, NO_OWNER, Subject, store_error};
use crate::failure::Failure;
use crate::files;
use crate::files::beneath::Directory;
use crate::fingerprint::Fingerprint;
use crate::text::shell_word;

/// More than any configuration file, in bytes.
const LARGEST: u64 = 16 << 20;
/// The largest list of extended attributes, and the largest value. See xattr(7).
const LARGEST_ATTRIBUTE: usize = 64 * 1024;

pub(super) fn store_original(copy: &Path, change: &Change) -> Result<Entry, Failure> {
    let original = open(&change.path)?;
    let (mut mode, mut owner) = (0o644, NO_OWNER);
    let original = original.map(|(original, found)| {
        mode = found.permissions().mode() & 0o7777;
        owner = (found.uid(), found.gid());
        original
    });
    if let Some(original) = &original {
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
fn aside(name: &OsStr) -> String {
    format!(".{}.certs-new", name.to_string_lossy())
}

pub(super) fn write_aside(entry: &Entry, content: &[u8]) -> io::Result<()> {
    let (place, name) = Directory::of(&entry.path)?;
    let aside = aside(name);
    place.remove(&aside)?;
    place.write_new(&aside, entry.mode, content, |file| {
        let own = file.metadata()?;
        if entry.owner != NO_OWNER && entry.owner != (own.uid(), own.gid()) {
            fchown(file, Some(entry.owner.0), Some(entry.owner.1))?;
            // A change of the owner may clear bits of the mode.
            file.set_permissions(PermissionsExt::from_mode(entry.mode))?;
        }
        match place.file(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            former => copy_attributes(&former?, file),
        }
    })
}

/// Copies extended attributes: ACLs, SELinux labels and those of users.
fn copy_attributes(from: &File, to: &File) -> io::Result<()> {
    let mut names = vec![0; LARGEST_ATTRIBUTE];
    let length = match flistxattr(from, &mut names) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        length => length?,
    };
    for name in names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let mut value = vec![0; LARGEST_ATTRIBUTE];
        let copied = fgetxattr(from, name, &mut value)
            .and_then(|length| fsetxattr(to, name, &value[..length], XattrFlags::empty()));
        match copied {
            // Labels of the kernel's, which a new file gets by rule where we may not set them.
            Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::NODATA)
                if !name.starts_with(b"system.") && !name.starts_with(b"user.") => {}
            copied => copied?,
        }
    }
    Ok(())
}

/// Renames the file beside its place to its own name.
pub(super) fn put_in_place(path: &Path) -> io::Result<()> {
    let (place, name) = Directory::of(path)?;
    place.rename(aside(name), name)?;
    place.sync()
}

pub(super) fn remove_aside(path: &Path) -> io::Result<()> {
    let (place, name) = Directory::of(path)?;
    let aside = aside(name);
    // A read-only file system refuses even the removal of what is not there.
    match place.has(&aside) {
        true => place.remove(aside),
        false => Ok(()),
    }
}

pub(super) fn restore(entry: &Entry, original: &Path) -> io::Result<()> {
    if entry.before.is_none() {
        return remove(&entry.path);
    }
    write_aside(entry, &std::fs::read(original)?)?;
    put_in_place(&entry.path)
}

pub(super) fn remove(path: &Path) -> io::Result<()> {
    let (place, name) = Directory::of(path)?;
    place.remove(name)?;
    place.sync()
}

/// The content and status of a file, if it exists.
pub(super) fn open(path: &Path) -> Result<Option<(Vec<u8>, Metadata)>, Failure> {
    let read = || -> io::Result<(Vec<u8>, Metadata)> {
        let (place, name) = Directory::of(path)?;
        let (file, mut text) = (place.file(name)?, Vec::new());
        let found = file.metadata()?;
        file.take(LARGEST).read_to_end(&mut text)?;
        Ok((text, found))
    };
    match read() {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::of_file(
            &error,
            format!("{}: {error}", path.display()),
            "run as a user that may read the file",
        )),
    }
}

/// The failure for a file that has another content than the last of these stages of an install
/// wrote; `later` has written it, too.
pub(super) fn changed_by_hand(stages: &[(PathBuf, Entry)], later: Option<&Subject>) -> Failure {
    let word = |path: &Path| shell_word(&path.to_string_lossy());
    let Some((original, entry)) = stages.first() else {
        return Failure::unexpected("no install changed the file");
    };
    let journals = stages.iter().filter_map(|(original, _)| original.parent());
    let journals: Vec<String> = journals.map(word).collect();
    let (path, journals) = (entry.path.display(), journals.join(" "));
    if let Some(Subject { name, .. }) = later {
        return Failure::usage(
            format!("{path}: the later install for {name} changed it, too"),
            format!(
                "undo that first: certs install nginx --undo --domain {}",
                shell_word(name)
            ),
        );
    }
    if entry.before.is_none() {
        return Failure::usage(
            format!("{path}: written by certs install and changed since then"),
            format!(
                "without the file: rm {0}, then certs install nginx --undo again; to keep it as it is: rm -r {journals}",
                word(&entry.path)
            ),
        );
    }
    let (file, original) = (word(&entry.path), word(original));
    Failure::usage(
        format!("{path}: changed since certs install; the original is in {original}"),
        format!(
            "diff {original} {file} shows both; to have the original: cp {original} {file}, then certs install nginx --undo again; to keep the file as it is: rm -r {journals}"
        ),
    )
}

/// Whether there is no link: nothing, or a file.
pub(super) fn is_other(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::InvalidInput
    )
}
