//! The rights that the administrator has confirmed for stored certificates.
//!
//! A record in the data directory is written by the sidecar, which talks to the network. What
//! it names (programs, files, sockets) must not become a right of the next start. So each
//! command of the administrator that stores such a right also writes it into a file beside
//! the data directory, which the sandbox lets the sidecar read and not write. What the
//! configuration names needs no entry. `certs delete` withdraws the rights that nothing else uses.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::target::DeployTarget;
use crate::files::{self, trust};
use crate::text::printable;

const MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o755;
const LONGEST: u64 = 1 << 20;

/// A right beyond a certificate's own files.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Right {
    /// To deploy to a target that runs a program or uses files or sockets.
    Deploy(DeployTarget),
    /// To write below a directory.
    Write(PathBuf),
    /// To read a file.
    Read(PathBuf),
    /// To run a program that presents challenge answers.
    Run(PathBuf),
    /// To let this user and group read keys.
    Give {
        owner: Option<String>,
        group: Option<String>,
    },
}

impl Right {
    /// The right that `target` needs; `None` for one that reaches only a server which it
    /// recognizes, or the network.
    #[must_use]
    pub(crate) fn to_deploy(target: &DeployTarget) -> Option<Self> {
        target.is_privileged().then(|| Self::Deploy(target.clone()))
    }

    /// The program that it permits to run.
    #[must_use]
    pub(crate) fn program(&self) -> Option<&Path> {
        match self {
            Self::Deploy(target) => target.program(),
            Self::Run(program) => Some(program),
            _ => None,
        }
    }
}

impl std::fmt::Display for Right {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Deploy(target) => write!(f, "deploy to {target}"),
            Self::Write(path) => write!(f, "write below {}", path.display()),
            Self::Read(path) => write!(f, "read {}", path.display()),
            Self::Run(program) => write!(f, "run {}", program.display()),
            Self::Give { owner, group } => {
                let shown = |name: &Option<String>| printable(name.as_deref().unwrap_or("any"));
                let (owner, group) = (shown(owner), shown(group));
                write!(f, "give keys to user {owner} and group {group}")
            }
        }
    }
}

/// The confirmed rights.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Confirmed {
    rights: BTreeSet<Right>,
}

impl Confirmed {
    /// The file for a data directory, in the directory beside it with the suffix `.confirmed`:
    /// the sandbox lets the sidecar read what is in there, also a file that comes later.
    #[must_use]
    pub(crate) fn file_for(data_dir: &Path) -> PathBuf {
        files::beside(data_dir, "confirmed").join("rights.json")
    }

    /// Makes the directory of `file`, so that a sandbox can allow it.
    ///
    /// # Errors
    /// When this user may not make it.
    pub(crate) fn prepare(file: &Path) -> io::Result<()> {
        let directory = file.parent().unwrap_or(file);
        match directory.is_dir() {
            true => Ok(()),
            false => files::make_directory(directory, DIRECTORY_MODE),
        }
    }

    /// Those in `file`; none if it is missing.
    ///
    /// # Errors
    /// When it cannot be read, is damaged, or another user than root or ours could have
    /// written it.
    pub(crate) fn read(file: &Path) -> io::Result<Self> {
        if file
            .symlink_metadata()
            .is_err_and(|error| error.kind() == ErrorKind::NotFound)
        {
            return Ok(Self::default());
        }
        // Only root or we can change where the path leads, so that it may be used again.
        let file = match trust::resolve(file) {
            Err(error) if error.is_absent() => return Ok(Self::default()),
            Err(error) => {
                let message = format!("{error}; hint: {}", error.hint());
                return Err(io::Error::other(message));
            }
            Ok(file) => file,
        };
        let mut json = Vec::new();
        File::open(file)?.take(LONGEST).read_to_end(&mut json)?;
        serde_json::from_slice(&json).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
    }

    /// Adds `rights` to those in `file`.
    ///
    /// # Errors
    /// As for [`Confirmed::read`], and when the file cannot be written.
    pub(crate) fn add(file: &Path, rights: BTreeSet<Right>) -> io::Result<()> {
        Self::change(file, |confirmed| {
            let before = confirmed.len();
            confirmed.extend(rights.iter().cloned());
            confirmed.len() > before
        })
    }

    /// Removes `rights` from those in `file`, and returns the removed ones.
    ///
    /// # Errors
    /// As for [`Confirmed::add`].
    pub(crate) fn withdraw(file: &Path, rights: &BTreeSet<Right>) -> io::Result<BTreeSet<Right>> {
        let mut removed = BTreeSet::new();
        Self::change(file, |confirmed| {
            removed = rights.intersection(confirmed).cloned().collect();
            confirmed.retain(|right| !removed.contains(right));
            !removed.is_empty()
        })?;
        Ok(removed)
    }

    /// Changes the rights in `file` if `change` says so. Another command may do the same at
    /// the same time.
    fn change(file: &Path, mut change: impl FnMut(&mut BTreeSet<Right>) -> bool) -> io::Result<()> {
        // Without a change nothing need be writable, and no lock is made.
        if !change(&mut Self::read(file)?.rights) {
            return Ok(());
        }
        let _locked = locked(file)?;
        let mut confirmed = Self::read(file)?;
        match change(&mut confirmed.rights) {
            true => files::replace(file, MODE, &serde_json::to_vec_pretty(&confirmed)?),
            false => Ok(()),
        }
    }

    /// Whether `right` is confirmed.
    #[must_use]
    pub(crate) fn has(&self, right: &Right) -> bool {
        self.rights.contains(right)
    }
}

/// Locks the changes of `file`, by a file that no other user can open.
fn locked(file: &Path) -> io::Result<File> {
    let directory = file.parent().unwrap_or(file);
    Confirmed::prepare(file)?;
    trust::resolve(directory).map_err(io::Error::other)?;
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(false).mode(0o600);
    let lock = options.open(file.with_added_extension("lock"))?;
    lock.lock()?;
    Ok(lock)
}

impl FromIterator<Right> for Confirmed {
    fn from_iter<I: IntoIterator<Item = Right>>(rights: I) -> Self {
        let rights = rights.into_iter().collect();
        Self { rights }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concurrent_changes_lose_no_right() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("data.confirmed");
        let right = |n: usize| Right::Write(format!("/srv/{n}").into());
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let (file, right) = (&file, &right);
                scope.spawn(move || {
                    for n in 0..20 {
                        let own = right(worker * 100 + n);
                        Confirmed::add(file, [own.clone()].into()).unwrap();
                        if n % 2 == 1 {
                            let withdrawn = Confirmed::withdraw(file, &[own].into());
                            assert_eq!(withdrawn.unwrap().len(), 1);
                        }
                    }
                });
            }
        });
        let left = Confirmed::read(&file).unwrap();
        assert_eq!(left.rights.len(), 4 * 10);
        assert!(left.has(&right(302)) && !left.has(&right(303)));
    }
}
