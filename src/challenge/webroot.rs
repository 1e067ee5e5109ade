//! HTTP-01 answers as files below a directory that another server serves on port 80.
//! It may belong to another user: everything below it goes by descriptors, symbolic links
//! are not followed, and a token is checked before it becomes a file name.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use rustix::fs::{Gid, Uid, fchown};
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};

use super::responses::Responses;
use super::{Answer, ChallengeKind, Solver, SolverError, SolverSettings, Unfit, check_http01_name};
use crate::files::beneath::Directory;
use crate::identifier::Identifier;

const DIRECTORIES: [&str; 2] = [".well-known", "acme-challenge"];
// The server on port 80 may run as another user: our umask must not count.
const DIRECTORY: u32 = 0o755;
const FILE: u32 = 0o644;

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

    fn open_answers(&self) -> Option<io::Result<File>> {
        let directory = self.challenges().map_err(io::Error::other);
        Some(directory.and_then(|directory| directory.opened()))
    }

    fn check(&self) -> Result<(), Unfit> {
        let why = match std::fs::metadata(&self.0) {
            Ok(found) if found.is_dir() => return Ok(()),
            Err(error) if error.kind() != ErrorKind::NotFound => format!("cannot be used: {error}"),
            _ => "is not a directory".to_owned(),
        };
        Err(Unfit {
            message: format!("the webroot {} {why}", self.0.display()),
            hint: "name the directory that the server on port 80 serves".into(),
        })
    }

    fn check_name(&self, name: &Identifier) -> Result<(), Unfit> {
        check_http01_name(name)
    }
}

impl Settings {
    /// Opens the directory of the answers, which is created.
    fn challenges(&self) -> Result<Directory, SolverError> {
        let mut at = Directory::open(&self.0).map_err(|error| failed("open", &self.0, error))?;
        for name in DIRECTORIES {
            let path = at.path().join(name);
            let below = match at.make_child(name, DIRECTORY) {
                Ok(made) => {
                    give_to_owner_of(&at, &made)
                        .map_err(|error| failed("set the owner of", &path, error))?;
                    Ok(made)
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => at.child(name),
                made => made,
            };
            let below = below.map_err(|error| failed("open", &path, error))?;
            at = below;
        }
        Ok(at)
    }
}

/// What root makes in a service's webroot is the service's.
fn give_to_owner_of(webroot: &Directory, made: &Directory) -> io::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let owner = webroot.stat()?;
    let (user, group) = (Uid::from_raw(owner.st_uid), Gid::from_raw(owner.st_gid));
    Ok(fchown(made.opened()?, Some(user), Some(group))?)
}

#[async_trait]
impl Solver for Settings {
    fn supports(&self, kind: ChallengeKind, identifier: &Identifier) -> bool {
        kind == ChallengeKind::Http01 && !identifier.is_wildcard()
    }

    async fn present(&self, answer: &Answer) -> Result<(), SolverError> {
        let (directory, name) = (self.challenges()?, answer.token.as_str());
        let content = answer.key_authorization.as_bytes();
        let written = directory.replace(name, FILE, content, |_| Ok(()));
        written.map_err(|error| failed("write", &self.0.join(name), error))
    }

    fn leaves_traces(&self) -> bool {
        true
    }

    async fn observed(&self, _answer: &Answer) {
        std::future::pending().await
    }

    async fn clean_up(&self, answer: &Answer) -> Result<(), SolverError> {
        let (directory, name) = (self.challenges()?, answer.token.as_str());
        let removed = directory.remove(name);
        removed.map_err(|error| failed("remove", &self.0.join(name), error))
    }
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> SolverError {
    SolverError::Io {
        operation,
        path: path.display().to_string(),
        source,
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
