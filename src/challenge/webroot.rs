//! HTTP-01 answers as files below a directory that another server serves on port 80.
//! It may belong to another user: everything below it goes by descriptors, symbolic links
//! are not followed, and a token is checked before it becomes a file name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use http::header::HOST;
use http::{Request, StatusCode};
use http_body_util::Full;
use rustix::fs::{Gid, Uid, fchown};
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};

use super::responses::Responses;
use super::{Answer, ChallengeKind, Solver, SolverError, SolverSettings, Unfit, check_http01_name};
use crate::files::beneath::Directory;
use crate::files::is_leftover;
use crate::identifier::Identifier;
use crate::net::dns::lookup::Resolver;
use crate::net::http::{HttpError, Longest, Origin};

const DIRECTORIES: [&str; 2] = [".well-known", "acme-challenge"];
// The server on port 80 may run as another user: our umask must not count.
const DIRECTORY: u32 = 0o755;
const FILE: u32 = 0o644;
/// More than a token and a thumbprint.
const LARGEST: usize = 1024;
const FETCH_WITHIN: Duration = Duration::from_secs(3);

/// The directories that another server serves on port 80.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Settings {
    /// One for all names.
    One(PathBuf),
    /// One for each name.
    Each(BTreeMap<Identifier, PathBuf>),
}

impl Settings {
    /// The answers for all names go below `root`.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self::One(root)
    }

    /// The answers for each name go below its own root.
    #[must_use]
    pub fn of_each(roots: BTreeMap<Identifier, PathBuf>) -> Self {
        Self::Each(roots)
    }

    fn roots(&self) -> BTreeSet<&Path> {
        match self {
            Self::One(root) => BTreeSet::from([root.as_path()]),
            Self::Each(roots) => roots.values().map(PathBuf::as_path).collect(),
        }
    }

    fn root_of(&self, name: &Identifier) -> Option<&Path> {
        match self {
            Self::One(root) => Some(root),
            Self::Each(roots) => roots.get(name).map(PathBuf::as_path),
        }
    }
}

impl SolverSettings for Settings {
    fn solver(&self, _responses: &Responses) -> Arc<dyn Solver> {
        Arc::new(Webroot {
            settings: self.clone(),
            presented: Mutex::default(),
        })
    }

    fn kind(&self) -> ChallengeKind {
        ChallengeKind::Http01
    }

    fn solver_key(&self) -> String {
        format!("webroot {self:?}")
    }

    fn writes_in(&self) -> Vec<&Path> {
        self.roots().into_iter().collect()
    }

    fn open_answers(&self) -> Vec<io::Result<File>> {
        let open = |root: &Path| challenges(root).map_err(io::Error::other)?.opened();
        self.roots().into_iter().map(open).collect()
    }

    fn check(&self) -> Result<(), Unfit> {
        for root in self.roots() {
            let why = match std::fs::metadata(root) {
                Ok(found) if found.is_dir() => continue,
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    format!("cannot be examined: {error}")
                }
                _ => "is not a directory".to_owned(),
            };
            return Err(Unfit {
                message: format!("the webroot {} {why}", root.display()),
                hint: "name the directory that the server on port 80 serves".into(),
            });
        }
        Ok(())
    }

    fn check_name(&self, name: &Identifier) -> Result<(), Unfit> {
        check_http01_name(name)?;
        match self.root_of(name) {
            Some(_) => Ok(()),
            None => Err(Unfit {
                message: format!("{name}: no webroot is named for it"),
                hint: "name each webroot before its names: --webroot DIR NAME… --webroot DIR NAME…"
                    .into(),
            }),
        }
    }
}

/// The first directory on the way to the answers that only its owner and group may enter.
fn closed(root: &Path) -> Option<(PathBuf, u32)> {
    let answers = root.join(DIRECTORIES.join("/"));
    let above: Vec<&Path> = answers.ancestors().collect();
    above.into_iter().rev().find_map(|path| {
        let mode = std::fs::metadata(path).ok()?.mode() & 0o7777;
        (mode & 0o001 == 0).then(|| (path.to_owned(), mode))
    })
}

/// Opens the directory of the answers, which is created.
fn challenges(root: &Path) -> Result<Directory, SolverError> {
    let mut at = Directory::open(root).map_err(|error| failed("open", root, error))?;
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

/// What root makes in a service's webroot is the service's.
fn give_to_owner_of(webroot: &Directory, made: &Directory) -> io::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let owner = webroot.stat()?;
    let (user, group) = (Uid::from_raw(owner.st_uid), Gid::from_raw(owner.st_gid));
    Ok(fchown(made.opened()?, Some(user), Some(group))?)
}

/// Writes answers.
struct Webroot {
    settings: Settings,
    /// The webroots of the presented answers.
    presented: Mutex<BTreeMap<String, PathBuf>>,
}

impl Webroot {
    fn presented(&self) -> MutexGuard<'_, BTreeMap<String, PathBuf>> {
        self.presented
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn root(&self, answer: &Answer) -> Result<&Path, SolverError> {
        let root = self.settings.root_of(&answer.identifier);
        let name = answer.identifier.to_string();
        let missing = || {
            failed(
                "find the webroot of",
                name.as_ref(),
                ErrorKind::NotFound.into(),
            )
        };
        root.ok_or_else(missing)
    }
}

#[async_trait]
impl Solver for Webroot {
    fn supports(&self, kind: ChallengeKind, identifier: &Identifier) -> bool {
        kind == ChallengeKind::Http01 && !identifier.is_wildcard()
    }

    fn leaves_traces(&self) -> bool {
        true
    }

    async fn present(&self, answer: &Answer) -> Result<(), SolverError> {
        let (root, name) = (self.root(answer)?, answer.token.as_str());
        let content = answer.key_authorization.as_bytes();
        let written = challenges(root)?.replace(name, FILE, content, |_| Ok(()));
        written.map_err(|error| failed("write", &root.join(name), error))?;
        self.presented().insert(name.to_owned(), root.to_owned());
        Ok(())
    }

    async fn observed(&self, _answer: &Answer) {
        std::future::pending().await
    }

    async fn clean_up(&self, answer: &Answer) -> Result<(), SolverError> {
        let (root, name) = (self.root(answer)?, answer.token.as_str());
        self.presented().remove(name);
        let directory = challenges(root)?;
        // A process that was killed may have left it half written.
        let mut all = directory.names().unwrap_or_default();
        all.retain(|found| is_leftover(&found.to_string_lossy(), name));
        all.push(name.into());
        let removed = all.iter().try_for_each(|one| directory.remove(one));
        removed.map_err(|error| failed("remove", &root.join(name), error))
    }

    async fn explain(&self, answer: &Answer) -> Option<String> {
        let root = self.root(answer).ok()?;
        let (root, closed) = (root.display(), closed(root));
        if let Some((directory, mode)) = closed {
            let directory = directory.display();
            return Some(format!(
                "the webroot {root} may be closed to the server on port 80: {directory} has mode {mode:04o}"
            ));
        }
        let (name, seen) = (&answer.identifier, fetch(answer).await?);
        Some(match seen {
            Seen::Answer => format!(
                "port 80 of this machine serves the answer from the webroot {root}: the CA reaches another machine or server for {name}"
            ),
            Seen::Nothing(why) => format!(
                "port 80 of this machine does not respond ({why}): no server there serves the webroot {root}"
            ),
            Seen::Other(status) => format!(
                "port 80 of this machine replies {status} for {name} and not with the answer: its server does not serve {root}/.well-known/acme-challenge/ at that path; compare its root or alias for {name}"
            ),
        })
    }
}

impl Drop for Webroot {
    /// Removes at once what an interrupted command has presented.
    fn drop(&mut self) {
        let presented = std::mem::take(&mut *self.presented());
        for (name, root) in presented {
            // The next run removes what stays here.
            let _ = challenges(&root).map(|directory| directory.remove(name));
        }
    }
}

/// What port 80 of this machine replies for an answer.
enum Seen {
    Answer,
    Other(StatusCode),
    Nothing(String),
}

/// Fetches an answer from port 80 of this machine, as the CA does from the name's address;
/// `None` if this process may not. Nothing of the reply is shown.
async fn fetch(answer: &Answer) -> Option<Seen> {
    let path = format!("/{}/{}", DIRECTORIES.join("/"), answer.token.as_str());
    let mut refused = None;
    for address in ["127.0.0.1:80", "[::1]:80"] {
        let request = Request::get(&path).header(HOST, answer.identifier.to_string());
        let request = request.body(Full::default()).ok()?;
        let origin = Origin::Tcp(address.to_owned(), Resolver::default());
        match origin
            .send(request, FETCH_WITHIN, Longest::Cut(LARGEST))
            .await
        {
            Ok((status, body)) => {
                let is_answer = status.is_success() && body == answer.key_authorization;
                return Some(if is_answer {
                    Seen::Answer
                } else {
                    Seen::Other(status)
                });
            }
            Err(HttpError::Connect(error)) if error.kind() == ErrorKind::PermissionDenied => {
                return None;
            }
            Err(error) => refused = refused.or(Some(Seen::Nothing(error.to_string()))),
        }
    }
    refused
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
    use std::os::unix::fs::PermissionsExt;

    use super::super::Token;
    use super::*;

    const KEY_AUTHORIZATION: &str = "abcdefghijklmnopqrstuv.thumbprint";

    fn answer() -> Answer {
        Answer {
            kind: ChallengeKind::Http01,
            identifier: Identifier::parse("example.com").unwrap(),
            token: Token::parse("abcdefghijklmnopqrstuv").unwrap(),
            key_authorization: KEY_AUTHORIZATION.into(),
            account: Default::default(),
        }
    }

    /// A solver for `root`, and the path of the answer.
    fn solver(root: &Path) -> (Arc<dyn Solver>, PathBuf) {
        let solver = Settings::new(root.into()).solver(&Responses::default());
        let path = root.join(".well-known/acme-challenge/abcdefghijklmnopqrstuv");
        (solver, path)
    }

    #[tokio::test]
    async fn webroot_writes_and_removes_answer_repeatedly() {
        let root = tempfile::tempdir().unwrap();
        let (webroot, path) = solver(root.path());
        for _ in 0..2 {
            webroot.present(&answer()).await.unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), KEY_AUTHORIZATION);
        }
        for _ in 0..2 {
            webroot.clean_up(&answer()).await.unwrap();
            assert!(!path.exists());
        }
        webroot.present(&answer()).await.unwrap();
        drop(webroot);
        assert!(!path.exists(), "an interrupted order left its answer");
    }

    #[tokio::test]
    async fn each_name_has_its_own_webroot() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let name = |text| Identifier::parse(text).unwrap();
        let roots = [
            (name("example.com"), one.path().to_owned()),
            (name("example.org"), other.path().to_owned()),
        ];
        let settings = Settings::of_each(roots.into());
        assert_eq!(settings.check(), Ok(()));
        assert_eq!(settings.writes_in().len(), 2);
        assert!(settings.check_name(&name("example.net")).is_err());
        let webroot = settings.solver(&Responses::default());
        let second = Answer {
            identifier: name("example.org"),
            ..answer()
        };
        let files = |root: &Path| {
            let found = std::fs::read_dir(root.join(".well-known/acme-challenge"));
            found.map_or(0, Iterator::count)
        };
        webroot.present(&second).await.unwrap();
        assert_eq!((files(one.path()), files(other.path())), (0, 1));
        webroot.clean_up(&second).await.unwrap();
        assert_eq!((files(one.path()), files(other.path())), (0, 0));
    }

    #[tokio::test]
    async fn webroot_removes_answer_that_the_record_of_a_killed_process_names() {
        let root = tempfile::tempdir().unwrap();
        let (webroot, path) = solver(root.path());
        webroot.present(&answer()).await.unwrap();
        // As a process that is killed leaves it, or the next one while it writes.
        std::mem::forget(webroot);
        let half = format!(".{}.new-1", answer().token.as_str());
        std::fs::write(path.with_file_name(&half), "abc").unwrap();
        let foreign = path.with_file_name("foreign-token-of-22-chars");
        std::fs::write(&foreign, "foreign").unwrap();
        let (second, _) = solver(root.path());
        assert!(second.leaves_traces() && path.exists());
        second.clean_up(&answer()).await.unwrap();
        let left = std::fs::read_dir(path.parent().unwrap()).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, [foreign]);
    }

    #[tokio::test]
    async fn webroot_explains_a_directory_closed_to_the_server() {
        let root = tempfile::tempdir().unwrap();
        std::fs::set_permissions(root.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let (webroot, path) = solver(root.path());
        webroot.present(&answer()).await.unwrap();
        let closed = path.parent().unwrap();
        std::fs::set_permissions(closed, PermissionsExt::from_mode(0o700)).unwrap();
        let explained = webroot.explain(&answer()).await.unwrap();
        let words = format!("{} has mode 0700", closed.display());
        assert!(explained.contains(&words), "{explained}");
    }

    #[tokio::test]
    async fn webroot_follows_no_link_out() {
        let (root, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(elsewhere.path(), root.path().join(".well-known")).unwrap();
        assert!(solver(root.path()).0.present(&answer()).await.is_err());
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
