//! The Unix socket over which a one-shot command hands its work to the sidecar
//! that runs on the same data directory: both ends. The socket is 0660 in a
//! directory of 0700, and its peer must be root, this process's own user or in
//! its group: a peer that can talk here can order certificates.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{Json, State};
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::serve::IncomingStream;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::unix::UCred;
use tokio::net::{UnixListener, UnixStream};

use crate::certificate::Facts;
use crate::config::CertificateSettings;
use crate::failure::Failure;
use crate::manage::{ManageError, Outcome, Trigger};

const WORK: &str = "/v1/work";
const LARGEST_REPLY: usize = 1 << 20;

/// What is done with each certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Task {
    /// One pass.
    Pass(Trigger),
    /// An order for show at the staging directory.
    Rehearsal,
}

/// How that ended.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Done {
    /// The pass, and where the pair stands.
    Passed {
        /// How it ended.
        outcome: Outcome,
        /// The directory to name in a proxy's configuration.
        path: PathBuf,
    },
    /// The rehearsal, and what its leaf said.
    Rehearsed(Facts),
}

/// Does what a command asks for.
#[async_trait]
pub(crate) trait Worker: Send + Sync {
    /// Does `task` with the certificate of `settings`.
    async fn work(&self, settings: &CertificateSettings, task: Task) -> Result<Done, Failure>;
}

/// What a one-shot command asks for.
#[derive(Debug, Serialize, Deserialize)]
struct Work {
    certificate: CertificateSettings,
    task: Task,
}

/// Where the socket of `data_dir` stands.
pub(crate) fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("admin.sock")
}

/// The sidecar's end; the socket's file is gone when this is dropped.
pub(crate) struct Control {
    listener: UnixListener,
    path: Remove,
}

struct Remove(PathBuf);

impl Drop for Remove {
    fn drop(&mut self) {
        // A socket that is gone already is what was wanted.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Control {
    /// Binds the socket of `data_dir`. One that a killed process left is
    /// replaced; one that answers is not.
    pub(crate) async fn bind(data_dir: &Path) -> Result<Self, Failure> {
        let path = path(data_dir);
        if UnixStream::connect(&path).await.is_ok() {
            return Err(Failure::usage(
                format!("another `certs run` works in {}", data_dir.display()),
                "stop it first, or give this one its own --data-dir",
            ));
        }
        bind(&path).map_err(|error| Failure::store(format!("{}: {error}", path.display())))
    }

    /// Serves until it is dropped.
    pub(crate) async fn serve(self, worker: Arc<dyn Worker>) {
        let router = Router::new()
            .route(WORK, post(work))
            .with_state(worker)
            .into_make_service_with_connect_info::<Peer>();
        if let Err(error) = axum::serve(self.listener, router).await {
            tracing::error!("the control socket has failed: {error}");
        }
        drop(self.path);
    }
}

fn bind(path: &Path) -> io::Result<Control> {
    crate::files::remove_if_there(path)?;
    let listener = UnixListener::bind(path)?;
    let remove = Remove(path.to_owned());
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o660))?;
    Ok(Control {
        listener,
        path: remove,
    })
}

#[derive(Clone, Debug)]
struct Peer(Option<UCred>);

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self(stream.io().peer_cred().ok())
    }
}

impl Peer {
    fn is_trusted(&self) -> bool {
        let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
        self.0.as_ref().is_some_and(|peer| {
            peer.uid() == 0 || peer.uid() == user.as_raw() || peer.gid() == group.as_raw()
        })
    }
}

async fn work(
    ConnectInfo(peer): ConnectInfo<Peer>,
    State(worker): State<Arc<dyn Worker>>,
    Json(work): Json<Work>,
) -> Response {
    if !peer.is_trusted() {
        return StatusCode::FORBIDDEN.into_response();
    }
    Json(worker.work(&work.certificate, work.task).await).into_response()
}

/// Whether a sidecar runs on `data_dir` that we may talk to.
pub(crate) async fn answers(data_dir: &Path) -> bool {
    UnixStream::connect(path(data_dir)).await.is_ok()
}

/// The one-shot command's end: hands the work over and waits for how it ended.
pub(crate) async fn hand_over(
    data_dir: &Path,
    certificate: &CertificateSettings,
    task: Task,
) -> Result<Done, Failure> {
    let certificate = certificate.clone();
    let lineage = certificate.lineage.clone();
    let work = Work { certificate, task };
    let answer = exchange(&path(data_dir), &work).await;
    let (status, body) = answer.map_err(|error| {
        let message = format!("{lineage}: the running `certs run` did not answer: {error}");
        Failure::broken(message, ManageError::Stopped.hint())
    })?;
    if status == StatusCode::FORBIDDEN {
        return Err(Failure::usage(
            format!("{lineage}: the running `certs run` takes no work from this user"),
            "be root, the user that it runs as, or in that user's group",
        ));
    }
    serde_json::from_slice(&body).unwrap_or_else(|_| {
        let said = String::from_utf8_lossy(&body);
        Err(Failure::usage(
            format!(
                "{lineage}: the running `certs run` does not understand this command: HTTP {status}: {}",
                said.escape_debug()
            ),
            "they are of different versions: restart `certs run`",
        ))
    })
}

async fn exchange(
    socket: &Path,
    work: &Work,
) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
    let stream = UnixStream::connect(socket).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::post(WORK)
        .header("host", "certs")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(serde_json::to_vec(work)?)))?;
    let reply = sender.send_request(request).await?;
    let status = reply.status();
    let body = Limited::new(reply.into_body(), LARGEST_REPLY)
        .collect()
        .await?
        .to_bytes();
    connection.abort();
    Ok((status, body))
}
