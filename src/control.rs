//! The Unix socket over which a one-shot command delegates its work to the sidecar
//! on the same data directory: both ends. The socket has mode 0660 in a directory
//! of mode 0700. A peer must be root, this process's user or in its group, because
//! any accepted peer can order certificates. The group of root does not count: what such
//! a peer orders can run a program as root, and a process with group 0 need not be root.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Extension, Json, State};
use axum::http::{Request, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use http_body_util::Full;
use rustix::fs::Mode;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;

use crate::certificate::Facts;
use crate::config::CertificateSettings;
use crate::failure::Failure;
use crate::files::beneath::Directory;
use crate::files::{DirectoryOwner, trust};
use crate::lineage::Lineage;
use crate::manage::{ManageError, Outcome, Trigger};
use crate::net::http::{HttpError, Longest, Origin};
use crate::net::listen::{self, Limits, Peer, Socket};
use crate::net::unix;
use crate::record::Renaming;

const WORK: &str = "/v1/work";
const DELETE: &str = "/v1/delete";
const NOT_RENEWABLE: &str = "/v1/not-renewable";
const RENAME: &str = "/v1/rename";
const LARGEST_REPLY: Longest = Longest::Whole(1 << 20);

/// A pass may wait for hours, for example for the tokens of a rate limit.
const LONGEST_WORK: Duration = Duration::from_hours(24);
/// Meanwhile the other end must answer: the user of the data directory can put a socket there
/// that never does.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);
const PROBED_EVERY: Duration = Duration::from_secs(15);
const MOST_UNANSWERED: usize = 2;

/// A pass may take hours, and every command of the machine may wait for one.
const LIMITS: Limits = Limits {
    silent: 32,
    connections: 128,
    by_address: 128,
    head: Duration::from_secs(10),
    handshake: Duration::from_secs(5),
    connection: Duration::MAX,
    largest_head: 16 * 1024,
};

/// The work to do with one certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Task {
    /// One pass.
    Pass(Trigger),
    /// A test order at the CA's staging directory.
    Rehearsal,
}

impl Task {
    /// The task of a command that names its certificate.
    pub(crate) fn requested(dry_run: bool, force: bool) -> Self {
        match (dry_run, force) {
            (true, _) => Self::Rehearsal,
            (false, true) => Self::Pass(Trigger::Forced),
            (false, false) => Self::Pass(Trigger::Requested),
        }
    }
}

/// The result of a task.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Done {
    /// The result of a pass.
    Passed {
        /// The pass's outcome.
        outcome: Outcome,
        /// The pair's directory, for a proxy's configuration.
        path: PathBuf,
    },
    /// The facts of the leaf that a rehearsal obtained.
    Rehearsed(Facts),
}

/// Does the work that a command requests.
#[async_trait]
pub(crate) trait Worker: Send + Sync {
    /// Does `task` with the certificate of `settings`.
    async fn work(&self, settings: &CertificateSettings, task: Task) -> Result<Done, Failure>;

    /// Deletes a certificate and no longer manages it; returns whether it was stored.
    async fn delete(&self, lineage: &Lineage, keep_files: bool) -> Result<bool, Failure>;

    /// The certificates that cannot be renewed, and why.
    async fn not_renewable(&self) -> BTreeMap<Lineage, String>;

    /// Renames a certificate, and manages it by its new name.
    async fn rename(&self, renaming: &Renaming) -> Result<(), Failure>;
}

/// A one-shot command's request.
#[derive(Debug, Serialize, Deserialize)]
struct Work {
    certificate: CertificateSettings,
    task: Task,
}

/// A request to delete a certificate.
#[derive(Debug, Serialize, Deserialize)]
struct Deletion {
    lineage: Lineage,
    keep_files: bool,
}

/// The path of the socket in `data_dir`.
pub(crate) fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("admin.sock")
}

/// The sidecar's end; dropping it removes the socket's file.
pub(crate) struct Control {
    listener: UnixListener,
    path: RemoveOnDrop,
}

struct RemoveOnDrop(PathBuf);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        // A missing socket is fine.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Control {
    /// Binds the socket of `data_dir`. A socket left by a killed process is
    /// replaced; a live one is an error.
    pub(crate) async fn bind(data_dir: &Path) -> Result<Self, Failure> {
        if is_running(data_dir).await? {
            return Err(Failure::usage(
                format!("another `certs run` is using {}", data_dir.display()),
                "stop it, or give this one its own --data-dir",
            ));
        }
        let path = path(data_dir);
        // So that the socket belongs to the user that this process becomes.
        let _acting = DirectoryOwner::of(data_dir).act();
        bind(&path).map_err(|error| Failure::store(format!("{}: {error}", path.display())))
    }

    /// Serves until the future is dropped.
    pub(crate) async fn serve(self, worker: Arc<dyn Worker>) {
        let router = Router::new().route(WORK, post(work));
        let router = router.route(DELETE, post(deletion));
        let router = router.route(NOT_RENEWABLE, post(not_renewable));
        let router = router.route(RENAME, post(renamed)).with_state(worker);
        listen::serve_within(LIMITS, Socket::Unix(self.listener), None, router).await;
        drop(self.path);
    }
}

fn bind(path: &Path) -> io::Result<Control> {
    crate::files::remove_if_there(path)?;
    // By the umask: a mode set by path could reach another file in another user's directory.
    let before = rustix::process::umask(Mode::from_raw_mode(0o117));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    Ok(Control {
        listener: listener?,
        path: RemoveOnDrop(path.to_owned()),
    })
}

fn is_trusted(peer: &Peer) -> bool {
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    let has_group = |gid: u32| gid == group.as_raw() && !(user.is_root() && group.is_root());
    let mut process = peer.process.iter();
    process.any(|peer| trust::is_ours(peer.uid()) || has_group(peer.gid()))
}

async fn work(
    Extension(peer): Extension<Peer>,
    State(worker): State<Arc<dyn Worker>>,
    work: Result<Json<Work>, JsonRejection>,
) -> Response {
    if !is_trusted(&peer) {
        return StatusCode::FORBIDDEN.into_response();
    }
    match work {
        Ok(Json(work)) => Json(worker.work(&work.certificate, work.task).await).into_response(),
        Err(invalid) => invalid.into_response(),
    }
}

async fn deletion(
    Extension(peer): Extension<Peer>,
    State(worker): State<Arc<dyn Worker>>,
    Json(asked): Json<Deletion>,
) -> Response {
    if !is_trusted(&peer) {
        return StatusCode::FORBIDDEN.into_response();
    }
    Json(worker.delete(&asked.lineage, asked.keep_files).await).into_response()
}

async fn not_renewable(
    Extension(peer): Extension<Peer>,
    State(worker): State<Arc<dyn Worker>>,
) -> Response {
    if !is_trusted(&peer) {
        return StatusCode::FORBIDDEN.into_response();
    }
    Json(Ok::<_, Failure>(worker.not_renewable().await)).into_response()
}

async fn renamed(
    Extension(peer): Extension<Peer>,
    State(worker): State<Arc<dyn Worker>>,
    Json(asked): Json<Renaming>,
) -> Response {
    if !is_trusted(&peer) {
        return StatusCode::FORBIDDEN.into_response();
    }
    Json(worker.rename(&asked).await).into_response()
}

/// Whether a sidecar accepts connections on `data_dir`.
///
/// # Errors
/// When that cannot be seen, for example because this user may not connect: two processes
/// would do the same work. Also when something else than a trusted sidecar's socket has its
/// name: the user of the data directory can put anything there.
pub(crate) async fn is_running(data_dir: &Path) -> Result<bool, Failure> {
    const NOT_RUNNING: [ErrorKind; 4] = [
        ErrorKind::NotFound,
        ErrorKind::NotADirectory,
        ErrorKind::ConnectionRefused,
        // The path is too long for a socket, so that there is none.
        ErrorKind::InvalidInput,
    ];
    let path = path(data_dir);
    let connected = async {
        let (directory, name) = Directory::of(&path)?;
        directory.check_socket(name)?;
        unix::connect_in_data(&path).await
    };
    match connected.await {
        Ok(_) => Ok(true),
        Err(error) if NOT_RUNNING.contains(&error.kind()) => Ok(false),
        // No refusal of ours: the system says why.
        Err(error) if error.raw_os_error().is_some() => Err(Failure::unusable(&path, &error)),
        Err(error) => Err(unusable(&path, format!("no `certs run` is there: {error}"))),
    }
}

/// The failure of a socket that is not answered as by a sidecar.
fn unusable(path: &Path, message: String) -> Failure {
    let path = path.display();
    Failure::output(
        message,
        &format!(
            "if `certs run` does not use this directory, remove it: rm {path}; else restart `certs run`"
        ),
    )
}

/// The one-shot command's end: sends the work and waits for its result.
pub(crate) async fn delegate(
    data_dir: &Path,
    certificate: &CertificateSettings,
    task: Task,
) -> Result<Done, Failure> {
    let certificate = certificate.clone();
    let lineage = certificate.lineage.clone();
    let work = Work { certificate, task };
    request(data_dir, WORK, &lineage, &work).await
}

/// The same for the deletion of a certificate.
pub(crate) async fn delete(
    data_dir: &Path,
    lineage: &Lineage,
    keep_files: bool,
) -> Result<bool, Failure> {
    let asked = Deletion {
        lineage: lineage.clone(),
        keep_files,
    };
    request(data_dir, DELETE, lineage, &asked).await
}

/// The certificates that the sidecar cannot renew, and why; none if it does not say.
pub(crate) async fn stuck(data_dir: &Path) -> BTreeMap<Lineage, String> {
    let socket = &path(data_dir);
    let asked = tokio::select! {
        answer = send(socket, NOT_RENEWABLE, Vec::new()) => answer.ok(),
        _ = silence(socket) => None,
    };
    let read = asked.and_then(|(_, body)| serde_json::from_slice(&body).ok());
    let read: Option<Result<_, Failure>> = read;
    read.and_then(Result::ok).unwrap_or_default()
}

/// The same for the rename of a certificate.
pub(crate) async fn rename(data_dir: &Path, renaming: &Renaming) -> Result<(), Failure> {
    request(data_dir, RENAME, &renaming.from, renaming).await
}

async fn request<T: DeserializeOwned>(
    data_dir: &Path,
    route: &str,
    lineage: &Lineage,
    asked: &impl Serialize,
) -> Result<T, Failure> {
    let asked = serde_json::to_vec(asked).map_err(Failure::unexpected)?;
    let socket = &path(data_dir);
    let answer = tokio::select! {
        answer = send(socket, route, asked) => answer,
        error = silence(socket) => {
            let message = format!("{lineage}: the process at {} does not answer: {error}", socket.display());
            return Err(unusable(socket, message));
        }
    };
    let (status, body) = answer.map_err(|error| {
        let message = format!("{lineage}: the running `certs run` did not answer: {error}");
        Failure::broken(message, ManageError::Stopped.hint())
    })?;
    if status == StatusCode::FORBIDDEN {
        return Err(Failure::usage(
            format!("{lineage}: the running `certs run` refuses work from this user"),
            "run this command as root, as its user, or as a member of that user's group",
        ));
    }
    serde_json::from_slice(&body).unwrap_or_else(|_| {
        let reply = String::from_utf8_lossy(&body);
        Err(Failure::usage(
            format!(
                "{lineage}: the running `certs run` does not understand this command: HTTP {status}: {}",
                reply.escape_debug()
            ),
            "their versions differ: restart `certs run`",
        ))
    })
}

async fn send(
    socket: &Path,
    route: &str,
    body: Vec<u8>,
) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
    let request = Request::post(route)
        .header("host", "certs")
        .header("content-type", "application/json")
        .body(Full::from(body))?;
    let sidecar = Origin::Data(socket.to_owned());
    Ok(sidecar.send(request, LONGEST_WORK, LARGEST_REPLY).await?)
}

/// Returns when the process at the other end has answered none of a few requests in a row. A
/// sidecar answers any request at once, whatever it works on.
async fn silence(socket: &Path) -> HttpError {
    let sidecar = Origin::Data(socket.to_owned());
    let mut unanswered = 0;
    loop {
        let mut probe = Request::new(Full::default());
        *probe.uri_mut() = Uri::from_static(WORK);
        match sidecar.send(probe, ANSWERED_WITHIN, LARGEST_REPLY).await {
            Ok(_) => unanswered = 0,
            Err(error) if unanswered == MOST_UNANSWERED => return error,
            Err(_) => unanswered += 1,
        }
        tokio::time::sleep(PROBED_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn socket_that_never_answers_ends_the_command() {
        let directory = tempfile::tempdir().unwrap();
        let path = path(directory.path());
        // The backlog accepts every connection.
        let _listener = UnixListener::bind(&path).unwrap();
        assert!(is_running(directory.path()).await.unwrap());
        let lineage = Lineage::parse("example.com").unwrap();
        let failure = delete(directory.path(), &lineage, false).await.unwrap_err();
        assert_eq!(failure.code, 8);
        let shown = failure.in_a_line();
        let named = path.display().to_string();
        assert!(
            shown.contains("does not answer") && shown.contains(&format!("rm {named}")),
            "{shown}"
        );
    }

    #[tokio::test]
    async fn only_a_socket_is_a_sidecar() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!is_running(directory.path()).await.unwrap());
        let elsewhere = directory.path().join("other.sock");
        let listener = UnixListener::bind(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, path(directory.path())).unwrap();
        let refused = is_running(directory.path()).await.unwrap_err();
        assert!(
            refused.summary().contains("a symbolic link"),
            "{}",
            refused.summary()
        );
        let accepted = tokio::time::timeout(Duration::ZERO, listener.accept());
        assert!(accepted.await.is_err());
    }
}
