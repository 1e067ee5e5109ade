//! Reads a file that a configuration, an option or the environment names: a configuration, a
//! CA's root, a secret. Root obeys none that another user can change ([`trust`]); other users
//! read what they name. A pipe or a device must not stop a start or a deployment for ever, so
//! only a regular file is read, up to a largest size, or a descriptor of the caller's.
//!
//! A secret may be readable for all users: in a container its mount is private, and Docker
//! and Kubernetes give it that mode.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::process::geteuid;
use thiserror::Error;

use super::accounts::service_user;
use super::trust::{self, Untrusted};
use crate::certificate::Secret;

const LARGEST: u64 = 16 << 20;

/// Why a file was not read.
#[derive(Debug, Error)]
pub(crate) enum Unread {
    #[error(transparent)]
    Untrusted(#[from] Untrusted),
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Unread {
    /// The command that helps, if the cause shows one.
    #[must_use]
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Untrusted(error) => Some(error.hint()),
            Self::Io(_) => None,
        }
    }
}

/// The text of a file that can say which programs run: root's own, when root reads it.
///
/// # Errors
/// When another user can change it, or when it cannot be read.
pub(crate) fn read(path: &Path) -> Result<Secret, Unread> {
    read_of(path, None)
}

/// The text of a file with a secret or a certificate. It may also belong to the user that
/// `certs run` becomes: that user has all keys anyway, and `certs ca serve` has its root.
///
/// # Errors
/// As for [`read`].
pub(crate) fn read_data(path: &Path) -> Result<Secret, Unread> {
    read_of(path, Some(service_user()))
}

/// The same for content that may be binary, of `largest` bytes at most.
///
/// # Errors
/// As for [`read`].
pub(crate) fn read_bytes(path: &Path, largest: u64) -> Result<Vec<u8>, Unread> {
    let mut content = Vec::new();
    let length = open(path, Some(service_user()))?
        .take(largest + 1)
        .read_to_end(&mut content);
    match length? as u64 > largest {
        true => Err(io::Error::other(format!("it is larger than {largest} bytes")).into()),
        false => Ok(content),
    }
}

fn read_of(path: &Path, service: Option<u32>) -> Result<Secret, Unread> {
    let mut text = String::new();
    let file = open(path, service)?;
    let length = file.take(LARGEST + 1).read_to_string(&mut text);
    let text = Secret::new(text);
    match length? as u64 > LARGEST {
        true => Err(io::Error::other("it is larger than 16 MiB").into()),
        false => Ok(text),
    }
}

fn open(path: &Path, service: Option<u32>) -> Result<File, Unread> {
    if geteuid().is_root() {
        trust::resolve_for(path, service)?;
    }
    let is_descriptor = path.starts_with("/dev/fd") || path == Path::new("/dev/stdin");
    let is_descriptor = is_descriptor || path.starts_with("/proc/self/fd");
    let mut options = OpenOptions::new();
    if !is_descriptor {
        options.custom_flags(OFlags::NONBLOCK.bits().cast_signed());
    }
    let file = options.read(true).open(path)?;
    if !is_descriptor && file.metadata()?.file_type().is_fifo() {
        return Err(io::Error::other("it is a pipe, not a regular file").into());
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    #[test]
    fn pipe_and_endless_device_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, mode).unwrap();
        let refused = |path: &Path| read_data(path).unwrap_err().to_string();
        assert!(refused(&pipe).contains("pipe"));
        assert!(refused(Path::new("/dev/zero")).contains("larger"));
        assert_eq!(read(Path::new("/dev/null")).unwrap().expose(), "");
    }

    #[test]
    fn root_reads_no_file_that_another_user_can_change() {
        if !geteuid().is_root() {
            return println!("SKIPPED: owners need root");
        }
        let directory = tempfile::tempdir().unwrap();
        let at = |path: &str| directory.path().join(path);
        std::fs::create_dir_all(at("secrets/..data")).unwrap();
        std::fs::write(at("secrets/..data/token"), "x").unwrap();
        symlink("..data/token", at("secrets/token")).unwrap();
        let secret = at("secrets/token");
        // As Kubernetes mounts one.
        std::fs::set_permissions(at("secrets"), PermissionsExt::from_mode(0o1777)).unwrap();
        std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o644)).unwrap();
        assert_eq!(read_data(&secret).unwrap().expose(), "x");
        let other = service_user() - 1;
        for part in ["secrets/..data", "secrets/..data/token"] {
            chown(at(part), Some(other), None).unwrap();
            let refused = read_data(&secret).unwrap_err();
            let hint = format!("chown root: {}", at(part).display());
            assert_eq!(refused.hint(), Some(hint));
            chown(at(part), Some(service_user()), None).unwrap();
            assert!(read_data(&secret).is_ok() && read(&secret).is_err());
            chown(at(part), Some(0), None).unwrap();
        }
        std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o666)).unwrap();
        assert!(read_data(&secret).is_err());
    }
}
