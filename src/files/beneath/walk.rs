//! The walk along a path that the administrator has configured, to an open directory: once,
//! one component after the other. A link in it is followed only if no other user can place
//! or replace it; [`trust`] has the rule, and every directory on the way counts. Each name
//! is opened alone with `O_NOFOLLOW`, which needs no `openat2`: kernels and sandboxes
//! without it give the same guarantee.

use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use super::super::trust::{self, Steps};
use super::{Directory, is_refusal, refusal};

/// Needs no right on the directory itself; a link in its place is not followed.
const PASS: OFlags = OFlags::PATH
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// The link in `path` that is not followed, as a message. Another user can replace it, or it is
/// below `distrusted`: real paths where even our own links lead nowhere.
pub(crate) fn refused_way(path: &Path, distrusted: &[&Path]) -> Option<io::Error> {
    let opened = Directory::walk(path, None, distrusted);
    opened.err().filter(is_refusal)
}

impl Directory {
    /// The directory at a configured path.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Self::walk(path, None, &[])
    }

    /// The same, created with `mode` if it is missing, and missing parents with 0755.
    pub(crate) fn make(path: &Path, mode: u32) -> io::Result<Self> {
        Self::walk(path, Some(mode), &[])
    }

    /// The directory of a configured file, and the file's name.
    pub(crate) fn of(file: &Path) -> io::Result<(Self, &OsStr)> {
        let name = file.file_name().ok_or(ErrorKind::InvalidInput)?;
        let parent = file.parent().filter(|path| !path.as_os_str().is_empty());
        Ok((Self::open(parent.unwrap_or(Path::new(".")))?, name))
    }

    fn walk(path: &Path, missing: Option<u32>, distrusted: &[&Path]) -> io::Result<Self> {
        let mut steps = Steps::new(path)?;
        let (handle, path) = (openat(CWD, "/", PASS, Mode::empty())?, PathBuf::from("/"));
        let mut at = Self { handle, path };
        // Whether another user could have led us here.
        let mut is_foreign = false;
        while let Some(name) = steps.next() {
            is_foreign |= !trust::is_ours_alone(&at.stat()?);
            at = match (at.enter(&name), missing) {
                (Err(Errno::NOENT), Some(mode)) => {
                    let mode = if steps.left() == 0 { mode } else { 0o755 };
                    let made = at.child_or_make(&name, mode)?;
                    at.sync()?;
                    made
                }
                (Err(error @ (Errno::NOTDIR | Errno::LOOP)), _) => {
                    let target = at.read_link(&name).map_err(|_| error)?;
                    let is_own = distrusted.iter().any(|below| at.path.starts_with(below));
                    let is_ours = !is_foreign && trust::is_own(at.status(&name)?.st_uid);
                    let fault = match (is_own, is_ours) {
                        (true, _) => Some("a link in a directory of certs"),
                        (false, false) => Some("a link that another user can replace"),
                        (false, true) => None,
                    };
                    if let Some(fault) = fault {
                        return Err(refusal(&at.path.join(name), fault));
                    }
                    steps.follow(&target)?;
                    at
                }
                (entered, _) => entered?,
            };
        }
        Ok(at)
    }

    /// One step, to a directory and through no link. `/` leads to the root from everywhere.
    pub(super) fn enter(&self, name: &OsStr) -> Result<Self, Errno> {
        let handle = openat(self, name, PASS, Mode::empty())?;
        let path = trust::stepped(&self.path, name);
        Ok(Self { handle, path })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

    use super::*;

    #[test]
    fn configured_path_is_walked_through_own_links_only() {
        let scratch = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(scratch.path()).unwrap();
        std::fs::create_dir_all(root.join("real/deep")).unwrap();
        symlink("real", root.join("relative")).unwrap();
        symlink(root.join("relative/../relative"), root.join("absolute")).unwrap();
        symlink("circle", root.join("circle")).unwrap();
        let open = |path: &str| Directory::open(&root.join(path));
        for path in ["relative/deep", "absolute/deep", "real/../absolute/deep/."] {
            assert!(open(path).is_ok(), "{path}");
        }
        let error = open("circle/deep").unwrap_err();
        assert_eq!(Errno::from_io_error(&error), Some(Errno::LOOP));
        assert_eq!(open("absent").unwrap_err().kind(), ErrorKind::NotFound);
        let mode = |mode| std::fs::set_permissions(&root, PermissionsExt::from_mode(mode));
        mode(0o777).unwrap();
        assert!(is_refusal(&open("relative/deep").unwrap_err()));
        assert!(open("real/deep").is_ok());
        // Also a link further down: that user can replace the directory which has it.
        symlink("deep", root.join("real/link")).unwrap();
        assert!(is_refusal(&open("real/link").unwrap_err()));
        mode(0o1777).unwrap();
        assert!(open("relative/link").is_ok());
        if rustix::process::geteuid().is_root() {
            chown(&root, Some(4321), None).unwrap();
            assert!(is_refusal(&open("real/link").unwrap_err()));
            chown(&root, Some(0), None).unwrap();
        }
        // Below a directory of this process's own, no link counts.
        let distrusted = root.join("real");
        let refused = |path: &str| refused_way(&root.join(path), &[&distrusted]);
        assert!(refused("real/deep").is_none() && refused("relative/deep").is_none());
        for path in ["real/link", "relative/link", "real/deep/../link"] {
            assert!(refused(path).is_some(), "{path}");
        }
        let made = Directory::make(&root.join("relative/new/deep"), 0o700).unwrap();
        assert_eq!(made.stat().unwrap().st_mode & 0o777, 0o700);
        let above = std::fs::metadata(root.join("real/new")).unwrap();
        assert_eq!(above.mode() & 0o777, 0o755);
    }

    #[test]
    fn links_of_the_owner_are_refused_while_root_acts() {
        if !rustix::process::geteuid().is_root() {
            return println!("SKIPPED: acting as another user needs root");
        }
        let scratch = tempfile::tempdir().unwrap();
        let theirs = std::fs::canonicalize(scratch.path()).unwrap().join("data");
        std::fs::create_dir_all(theirs.join("real")).unwrap();
        symlink("real", theirs.join("link")).unwrap();
        for path in [&theirs, &theirs.join("real"), &theirs.join("link")] {
            std::os::unix::fs::lchown(path, Some(1234), Some(1234)).unwrap();
        }
        let owner = crate::files::DirectoryOwner::of(&theirs);
        // That user can replace root's own link, too.
        for maker in [1234, 0] {
            std::os::unix::fs::lchown(theirs.join("link"), Some(maker), None).unwrap();
            let _acting = owner.act();
            assert!(Directory::open(&theirs.join("real")).is_ok());
            let refused = Directory::open(&theirs.join("link")).unwrap_err();
            assert!(is_refusal(&refused), "{refused}");
        }
    }
}
