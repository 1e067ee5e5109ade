//! HTTP-01 answers as files below a directory that another server serves on port 80.
//! Symbolic links below it are not followed, and a token is checked before it becomes a
//! file name.

use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, fchmod, fchown, fstat, mkdirat, openat, renameat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid, geteuid};
use serde::{Deserialize, Serialize};

use super::responses::Responses;
use super::{Answer, ChallengeKind, Solver, SolverError, SolverSettings, Unfit, check_http01_name};
use crate::identifier::Identifier;

const DIRECTORIES: [&str; 2] = [".well-known", "acme-challenge"];
const DIRECTORY: Mode = Mode::from_raw_mode(0o755);
const FILE: Mode = Mode::from_raw_mode(0o644);

/// The directory that another server serves on port 80.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Settings(PathBuf);

impl Settings {
    /// Answers go below `root`.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self(root)
    }
}

impl SolverSettings for Settings {
    fn solver(&self, _responses: &Responses) -> Arc<dyn Solver> {
        Arc::new(self.clone())
    }

    fn solver_key(&self) -> String {
        format!("webroot {}", self.0.display())
    }

    fn writes_in(&self) -> Option<&Path> {
        Some(&self.0)
    }

    fn check(&self) -> Result<(), Unfit> {
        let why = match std::fs::metadata(&self.0) {
            Ok(found) if found.is_dir() => return Ok(()),
            Err(error) if error.kind() != ErrorKind::NotFound => format!("cannot be used: {error}"),
            _ => "is not a directory".to_owned(),
        };
        Err(Unfit {
            message: format!("the webroot {} {why}", self.0.display()),
            hint: "name the directory that the server on port 80 serves",
        })
    }

    fn check_name(&self, name: &Identifier) -> Result<(), Unfit> {
        check_http01_name(name)
    }
}

impl Settings {
    /// Opens the directory of the answers, which is created.
    fn challenges(&self) -> Result<rustix::fd::OwnedFd, SolverError> {
        let directory = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = openat(CWD, &self.0, directory, Mode::empty());
        let mut at = open.map_err(|error| failed("open", &self.0, error))?;
        let mut path = self.0.clone();
        for name in DIRECTORIES {
            path.push(name);
            let is_new = match mkdirat(&at, name, DIRECTORY) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(error) => return Err(failed("create", &path, error)),
            };
            let parent = fstat(&at).map_err(|error| failed("open", &path, error))?;
            let opened = openat(&at, name, directory | OFlags::NOFOLLOW, Mode::empty());
            at = opened.map_err(|error| failed("open", &path, error))?;
            if is_new {
                // Made by root in a service's webroot, it is the service's.
                if geteuid().is_root() {
                    let owner = (Uid::from_raw(parent.st_uid), Gid::from_raw(parent.st_gid));
                    fchown(&at, Some(owner.0), Some(owner.1))
                        .map_err(|error| failed("set the owner of", &path, error))?;
                }
                // The server on port 80 may run as another user: our umask must not count.
                fchmod(&at, DIRECTORY).map_err(|error| failed("set the mode of", &path, error))?;
            }
        }
        Ok(at)
    }
}

#[async_trait]
impl Solver for Settings {
    fn supports(&self, kind: ChallengeKind, identifier: &Identifier) -> bool {
        kind == ChallengeKind::Http01 && !identifier.is_wildcard()
    }

    async fn present(&self, answer: &Answer) -> Result<(), SolverError> {
        let directory = self.challenges()?;
        let name = answer.token.as_str();
        let aside = format!(".{name}");
        let failed = |operation, error: io::Error| failed(operation, &self.0.join(name), error);
        // A crash may have left this file.
        let _ = unlinkat(&directory, &aside, AtFlags::empty());
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file =
            openat(&directory, &aside, flags, FILE).map_err(|e| failed("create", e.into()))?;
        fchmod(&file, FILE).map_err(|e| failed("set the mode of", e.into()))?;
        std::fs::File::from(file)
            .write_all(answer.key_authorization.as_bytes())
            .map_err(|e| failed("write", e))?;
        renameat(&directory, &aside, &directory, name).map_err(|e| failed("rename", e.into()))
    }

    async fn observed(&self, _answer: &Answer) {
        std::future::pending().await
    }

    async fn clean_up(&self, answer: &Answer) -> Result<(), SolverError> {
        let directory = self.challenges()?;
        match unlinkat(&directory, answer.token.as_str(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(failed("remove", &self.0.join(answer.token.as_str()), error)),
        }
    }
}

fn failed(operation: &'static str, path: &Path, error: impl Into<io::Error>) -> SolverError {
    SolverError::Io {
        operation,
        path: path.display().to_string(),
        source: error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::challenge::Token;

    fn answer() -> Answer {
        Answer {
            kind: ChallengeKind::Http01,
            identifier: Identifier::parse("example.com").unwrap(),
            token: Token::parse("abcdefghijklmnopqrstuv").unwrap(),
            key_authorization: "the answer".into(),
        }
    }

    #[tokio::test]
    async fn webroot_writes_and_removes_answer_repeatedly() {
        let root = tempfile::tempdir().unwrap();
        let webroot = Settings::new(root.path().into());
        let path = root
            .path()
            .join(".well-known/acme-challenge/abcdefghijklmnopqrstuv");
        for _ in 0..2 {
            webroot.present(&answer()).await.unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "the answer");
        }
        for _ in 0..2 {
            webroot.clean_up(&answer()).await.unwrap();
            assert!(!path.exists());
        }
    }

    #[tokio::test]
    async fn webroot_follows_no_link_out() {
        let (root, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(elsewhere.path(), root.path().join(".well-known")).unwrap();
        assert!(
            Settings::new(root.path().into())
                .present(&answer())
                .await
                .is_err()
        );
        assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }

    #[test]
    fn token_is_never_a_path() {
        for text in [
            "",
            "../../../../etc/passwd-and-so-on",
            "short",
            "a/bcdefghijklmnopqrstuv",
            "abcdefghijklmnopqrstu\0",
        ] {
            assert!(Token::parse(text).is_err(), "{text:?}");
        }
    }
}
