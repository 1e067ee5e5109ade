//! The helper process, which reloads servers for a sidecar in its sandbox. What a program
//! such as `nginx -t` needs, its parent must be allowed as well; so the process that
//! holds keys and talks to the network sends requests to another one, started before it
//! gave up its rights. A request names a target and one of four actions. The helper takes
//! no process number from here. A target that runs a program or uses files must have been
//! configured when the helper was started, or be confirmed ([`super::confirmed`]).

mod relay;
pub(crate) mod restart;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;

use super::confirmed::{Confirmed, Right};
use super::output::Output;
use super::owner::Owner;
use super::target::DeployTarget;
use super::target_settings::USUAL_DEADLINE;
use super::{Delivery, DeployCause, Outlet, Target, copy};
use crate::lineage::Lineage;
use crate::net::sockets::ListenAddress;
use crate::program::{self, Call, ProgramError, Runner};

/// A request to the helper.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum HelperRequest {
    Check(DeployTarget, Delivery),
    Apply(DeployTarget, Delivery),
    ListensOn(DeployTarget),
    Obstacle(DeployTarget, Delivery),
    /// To run a program that presents challenge answers.
    Run(Call),
    /// To give the files of the published pair to the owner of the output.
    GiveFiles(Delivery),
}

/// The reply of the helper, with the field that the request asks for.
#[derive(Debug, Default, Serialize, Deserialize)]
struct HelperReply {
    addresses: Option<Vec<ListenAddress>>,
    obstacle: Option<String>,
    program: Option<ProgramError>,
}

type HelperResult = Result<HelperReply, DeployCause>;

/// One line in each direction.
#[derive(Serialize, Deserialize)]
struct Numbered<T> {
    number: u64,
    value: T,
}

/// The rights of the helper, which it gets before its parent reads data from the network.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Permits {
    /// The configured targets.
    pub targets: Vec<DeployTarget>,
    /// The configured programs that present challenge answers.
    #[serde(default)]
    pub programs: BTreeSet<PathBuf>,
    /// The file with the confirmed rights.
    pub confirmed: PathBuf,
    /// The directories of the pairs to deploy, and the owners of the files in them.
    pub outputs: BTreeMap<PathBuf, Owner>,
    /// Docker's socket, to which connections are relayed.
    pub docker: Option<PathBuf>,
}

impl Permits {
    /// Whether the helper may deploy `lineage` to `target`.
    fn allow(&self, target: &DeployTarget, lineage: Option<&Lineage>) -> Result<(), DeployCause> {
        let Some(right) = Right::to_deploy(target) else {
            return Ok(());
        };
        let is_meant = |one: &DeployTarget| {
            one == target || lineage.is_some_and(|lineage| one.for_lineage(lineage) == *target)
        };
        if self.targets.iter().any(is_meant) {
            return Ok(());
        }
        // Read again each time: a command of the administrator may have added it.
        let confirmed = Confirmed::read(&self.confirmed).map_err(|error| {
            DeployCause::Unconfirmed(format!("{target} ({}: {error})", self.confirmed.display()))
        })?;
        match confirmed.has(&right) {
            true => Ok(()),
            false => Err(DeployCause::Unconfirmed(right.to_string())),
        }
    }

    /// Whether the helper may make `call`, whose arguments come from the network.
    fn allow_call(&self, call: &Call) -> Result<(), DeployCause> {
        let right = Right::Run(call.program.clone());
        let is_configured = self.programs.contains(&call.program);
        let is_confirmed =
            || Confirmed::read(&self.confirmed).is_ok_and(|confirmed| confirmed.has(&right));
        match call.is_plain() && (is_configured || is_confirmed()) {
            true => Ok(()),
            false => Err(DeployCause::Unconfirmed(right.to_string())),
        }
    }

    /// The output of a delivery; no pair from elsewhere is deployed.
    fn output(&self, delivery: &Delivery) -> Result<Output, DeployCause> {
        let is_its = |output: &Output| output.live_path(&delivery.lineage) == delivery.live;
        let outputs = self.outputs.iter();
        let mut outputs = outputs.map(|(path, owner)| Output::new(path.clone()).owned_by(*owner));
        outputs.find(is_its).ok_or_else(|| {
            DeployCause::Unconfirmed(format!("deploy from {}", delivery.live.display()))
        })
    }
}

/// `value` as a line of JSON.
fn line_of(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

/// The connection to the helper process, which serves requests concurrently: one that
/// hangs delays no other.
#[derive(Debug)]
pub(crate) struct Helper {
    sender: tokio::sync::Mutex<OwnedWriteHalf>,
    last: AtomicU64,
    pending: Arc<PendingRequests>,
}

/// The requests without a reply by number; `None` once the helper has ended.
#[derive(Debug)]
struct PendingRequests(Mutex<Option<BTreeMap<u64, oneshot::Sender<HelperResult>>>>);

impl PendingRequests {
    fn lock(&self) -> MutexGuard<'_, Option<BTreeMap<u64, oneshot::Sender<HelperResult>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Helper {
    /// Sends requests through `stream`, whose other end runs [`serve`] with `permits`.
    pub(crate) fn new(
        mut stream: std::os::unix::net::UnixStream,
        permits: &Permits,
    ) -> io::Result<Arc<Self>> {
        // Before any data from the network is read; the helper accepts them only once.
        stream.write_all(&line_of(permits)?)?;
        let (receiver, sender) = asynchronous(stream)?.into_split();
        let pending = Arc::new(PendingRequests(Mutex::new(Some(BTreeMap::new()))));
        tokio::spawn(receive(receiver, pending.clone()));
        Ok(Arc::new(Self {
            sender: tokio::sync::Mutex::new(sender),
            last: AtomicU64::new(0),
            pending,
        }))
    }

    /// Whether it has ended, and the process that restarts it: nothing is deployed by it.
    #[must_use]
    pub(crate) fn has_ended(&self) -> bool {
        self.pending.lock().is_none()
    }

    /// The target of `spec`, reloaded by the helper.
    #[must_use]
    pub(crate) fn target(self: &Arc<Self>, spec: &DeployTarget) -> Arc<dyn Target> {
        let (helper, spec) = (self.clone(), spec.clone());
        Arc::new(RemoteTarget { helper, spec })
    }

    /// A target that gives the published files to the configured owner of the output.
    #[must_use]
    pub(crate) fn file_owner(self: &Arc<Self>) -> Arc<dyn Target> {
        Arc::new(FileOwner(self.clone()))
    }

    /// Sends a request in a task of its own: a dropped caller must not leave half a line.
    async fn request(self: &Arc<Self>, request: HelperRequest, within: Duration) -> HelperResult {
        let helper = self.clone();
        let exchange = tokio::spawn(async move { helper.exchange(request).await });
        let late = |_| DeployCause::Helper(format!("no answer within {} s", within.as_secs()));
        let ended = tokio::time::timeout(within, exchange).await.map_err(late)?;
        let reply = ended.map_err(|error| DeployCause::Helper(error.to_string()))?;
        reply.map_err(|error| DeployCause::Helper(error.to_string()))?
    }

    async fn exchange(&self, value: HelperRequest) -> io::Result<HelperResult> {
        let ended = || io::Error::other("it has ended");
        let (sender, reply) = oneshot::channel();
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let known = self
            .pending
            .lock()
            .as_mut()
            .map(|all| all.insert(number, sender));
        known.ok_or_else(ended)?;
        let line = line_of(&Numbered { number, value })?;
        self.sender.lock().await.write_all(&line).await?;
        reply.await.map_err(|_| ended())
    }
}

async fn receive(receiver: OwnedReadHalf, pending: Arc<PendingRequests>) {
    let mut lines = BufReader::new(receiver).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str::<Numbered<HelperResult>>(&line) {
            Ok(Numbered { number, value }) => {
                let caller = pending.lock().as_mut().and_then(|all| all.remove(&number));
                // The caller may have stopped waiting.
                let _ = caller.map(|caller| caller.send(value));
            }
            Err(error) => tracing::error!("the helper process: {error}"),
        }
    }
    pending.lock().take();
    tracing::error!(
        "the helper process is gone; hint: restart certs run: until then no server is reloaded"
    );
}

/// A target at the other end of a [`Helper`].
struct RemoteTarget {
    helper: Arc<Helper>,
    spec: DeployTarget,
}

impl RemoteTarget {
    async fn request(
        &self,
        request: impl FnOnce(DeployTarget) -> HelperRequest + Send,
    ) -> HelperResult {
        let within = self.spec.answers_within();
        self.helper
            .request(request(self.spec.clone()), within)
            .await
    }
}

#[async_trait]
impl Target for RemoteTarget {
    fn name(&self) -> String {
        self.spec.target().name()
    }

    async fn check(&self, delivery: &Delivery) -> Result<(), DeployCause> {
        let request = |spec| HelperRequest::Check(spec, delivery.clone());
        self.request(request).await.map(drop)
    }

    async fn apply(&self, delivery: &Delivery) -> Result<(), DeployCause> {
        let request = |spec| HelperRequest::Apply(spec, delivery.clone());
        self.request(request).await.map(drop)
    }

    async fn listens_on(&self) -> Option<Vec<ListenAddress>> {
        let reply = self.request(HelperRequest::ListensOn).await;
        reply.ok()?.addresses
    }

    fn check_phase(&self) -> String {
        self.spec.target().check_phase()
    }

    fn copy_of(&self, lineage: &Lineage) -> Option<PathBuf> {
        self.spec.target().copy_of(lineage)
    }

    async fn obstacle(&self, delivery: &Delivery) -> Option<String> {
        let request = |spec| HelperRequest::Obstacle(spec, delivery.clone());
        self.request(request).await.ok()?.obstacle
    }
}

#[async_trait]
impl Runner for Arc<Helper> {
    async fn run(&self, call: Call) -> Result<(), ProgramError> {
        let reply = self.request(HelperRequest::Run(call), program::DEADLINE + USUAL_DEADLINE);
        match reply.await {
            Ok(HelperReply { program: None, .. }) => Ok(()),
            Ok(HelperReply {
                program: Some(error),
                ..
            }) => Err(error),
            Err(cause) => Err(ProgramError::Untrusted {
                message: cause.to_string(),
                hint: cause.hint().to_string(),
            }),
        }
    }
}

/// The owner of the output: only the helper can give files to another user.
struct FileOwner(Arc<Helper>);

#[async_trait]
impl Target for FileOwner {
    fn name(&self) -> String {
        "output".to_owned()
    }

    async fn check(&self, _: &Delivery) -> Result<(), DeployCause> {
        Ok(())
    }

    async fn apply(&self, delivery: &Delivery) -> Result<(), DeployCause> {
        let request = HelperRequest::GiveFiles(delivery.clone());
        self.0.request(request, USUAL_DEADLINE).await.map(drop)
    }
}

/// Serves requests concurrently until the other end is closed, and the connections of
/// `relayed`. An invalid line is logged
/// and skipped.
///
/// # Errors
/// Those of the socket, and a first line that is not [`Permits`].
pub(crate) async fn serve(
    stream: std::os::unix::net::UnixStream,
    relayed: Option<std::os::unix::net::UnixListener>,
) -> io::Result<()> {
    let (receiver, sender) = asynchronous(stream)?.into_split();
    let sender = Arc::new(tokio::sync::Mutex::new(sender));
    let mut lines = BufReader::new(receiver).lines();
    let Some(permits) = lines.next_line().await? else {
        return Ok(());
    };
    let permits: Arc<Permits> = Arc::new(serde_json::from_str(&permits)?);
    if let Some((listener, socket)) = relayed.zip(permits.docker.clone()) {
        tokio::spawn(relay::relay(listener, socket));
    }
    while let Some(line) = lines.next_line().await? {
        let Numbered { number, value } = match serde_json::from_str(&line) {
            Ok(request) => request,
            Err(error) => {
                tracing::error!("invalid request: {error}");
                continue;
            }
        };
        let (sender, permits) = (sender.clone(), permits.clone());
        tokio::spawn(async move {
            let value = run(value, &permits).await;
            let line = line_of(&Numbered { number, value }).unwrap_or_default();
            // The parent may have ended.
            let _ = sender.lock().await.write_all(&line).await;
        });
    }
    Ok(())
}

async fn run(request: HelperRequest, permits: &Permits) -> HelperResult {
    let permitted = |spec: &DeployTarget, delivery: Option<&Delivery>| {
        if !spec.needs_helper() && !spec.uses_files() {
            let detail = "this target does not need the helper process";
            return Err(DeployCause::Helper(detail.to_owned()));
        }
        permits.allow(spec, delivery.map(|delivery| &delivery.lineage))?;
        delivery
            .map(|delivery| permits.output(delivery))
            .transpose()?;
        Ok(spec.target())
    };
    let mut reply = HelperReply::default();
    match request {
        HelperRequest::Check(spec, delivery) => {
            permitted(&spec, Some(&delivery))?.check(&delivery).await?;
        }
        HelperRequest::Apply(spec, delivery) => {
            permitted(&spec, Some(&delivery))?.apply(&delivery).await?;
        }
        HelperRequest::ListensOn(spec) => {
            reply.addresses = permitted(&spec, None)?.listens_on().await;
        }
        HelperRequest::Obstacle(spec, delivery) => {
            let target = permitted(&spec, Some(&delivery))?;
            reply.obstacle = target.obstacle(&delivery).await;
        }
        HelperRequest::Run(call) => {
            permits.allow_call(&call)?;
            reply.program = call.run(&[], program::DEADLINE).await.err();
        }
        HelperRequest::GiveFiles(delivery) => {
            let given = permits.output(&delivery)?;
            let given = given.give_files(&delivery.lineage, delivery.generation);
            given.map_err(|error| copy::failed(&delivery.live, error.is_refusal(), error))?;
        }
    }
    Ok(reply)
}

fn asynchronous(stream: std::os::unix::net::UnixStream) -> io::Result<UnixStream> {
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::super::sample;
    use super::*;

    /// The output of the sample.
    fn permits() -> Permits {
        Permits {
            outputs: [("/certs".into(), Owner::default())].into(),
            ..Permits::default()
        }
    }

    fn pair() -> (Arc<Helper>, tokio::task::JoinHandle<io::Result<()>>) {
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        (
            Helper::new(one, &permits()).unwrap(),
            tokio::spawn(serve(other, None)),
        )
    }

    #[tokio::test]
    async fn helper_returns_the_targets_own_errors() {
        let (helper, served) = pair();
        let spec: DeployTarget = "nginx:/absent/nginx.pid".parse().unwrap();
        let (near, remote) = (spec.target(), helper.target(&spec));
        assert_eq!(near.name(), remote.name());
        for (one, other) in [
            (near.check(&sample()).await, remote.check(&sample()).await),
            (near.apply(&sample()).await, remote.apply(&sample()).await),
        ] {
            let (one, other) = (one.unwrap_err(), other.unwrap_err());
            assert!(matches!(one, DeployCause::NoPidFile(_)));
            assert_eq!(one.to_string(), other.to_string());
            assert_eq!(one.hint(), other.hint());
        }
        assert_eq!(remote.listens_on().await, None);
        drop((helper, remote));
        served.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn abandoned_request_leaves_no_reply_for_the_next() {
        let (helper, _served) = pair();
        let target = helper.target(&"nginx:/absent/nginx.pid".parse().unwrap());
        for _ in 0..3 {
            // Pending for once, and dropped before the answer is there.
            assert_eq!(target.listens_on().now_or_never(), None);
            let error = target.check(&sample()).await.unwrap_err();
            assert!(matches!(error, DeployCause::NoPidFile(_)), "{error}");
        }
    }

    #[tokio::test]
    async fn helper_serves_on_after_an_invalid_line() {
        let (helper, served) = pair();
        let target = helper.target(&"nginx:/absent/nginx.pid".parse().unwrap());
        for bad in ["", "{", "[1]", "{\"number\":1,\"value\":null}"] {
            let line = format!("{bad}\n");
            helper
                .sender
                .lock()
                .await
                .write_all(line.as_bytes())
                .await
                .unwrap();
            let error = target.check(&sample()).await.unwrap_err();
            assert!(matches!(error, DeployCause::NoPidFile(_)), "{error}");
        }
        assert!(!served.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn request_fails_when_the_helper_never_replies() {
        let (one, _never_answers) = std::os::unix::net::UnixStream::pair().unwrap();
        let spec: DeployTarget = "nginx".parse().unwrap();
        let target = Helper::new(one, &permits()).unwrap().target(&spec);
        let begun = tokio::time::Instant::now();
        let error = target.apply(&sample()).await.unwrap_err();
        assert!(error.to_string().contains("no answer within"), "{error}");
        assert_eq!(begun.elapsed().as_secs(), spec.answers_within().as_secs());
    }

    #[tokio::test]
    async fn request_fails_with_a_hint_after_the_helper_ended() {
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let target = Helper::new(one, &permits())
            .unwrap()
            .target(&"nginx".parse().unwrap());
        drop(other);
        let error = target.apply(&sample()).await.unwrap_err();
        assert!(matches!(error, DeployCause::Helper(_)), "{error}");
        assert!(error.hint().contains("restart certs run"));
    }

    #[tokio::test]
    async fn helper_serves_concurrently_and_refuses_an_unknown_program() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        let hook = directory.path().join("hook");
        // A shell writes it: a process that another test starts now would hold it open.
        let make =
            r#"mkfifo "$1" && printf '#!/bin/sh\nread line <%s\n' "$1" >"$0" && chmod 755 "$0""#;
        let mut sh = std::process::Command::new("/bin/sh");
        let made = sh.args(["-c", make]).arg(&hook).arg(&fifo).status();
        assert!(made.unwrap().success());
        let spec: DeployTarget = format!("exec:{}", hook.display()).parse().unwrap();
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let permits = Permits {
            targets: vec![spec.clone()],
            confirmed: directory.path().join("confirmed"),
            ..permits()
        };
        let helper = Helper::new(one, &permits).unwrap();
        tokio::spawn(serve(other, None));

        let hangs = helper.target(&spec);
        let waits = tokio::spawn(async move { hangs.apply(&sample()).await });
        let absent = helper.target(&"nginx:/absent/nginx.pid".parse().unwrap());
        assert!(absent.check(&sample()).await.is_err());
        // A compromised sidecar cannot make the helper run programs or write files.
        for unknown in ["exec:/bin/true", "file:/absent/file.pem", "systemd:sshd"] {
            let unknown: DeployTarget = unknown.parse().unwrap();
            let error = helper.target(&unknown).check(&sample()).await.unwrap_err();
            assert!(matches!(error, DeployCause::Unconfirmed(_)), "{error}");
        }
        let confirmed: DeployTarget = "exec:/bin/true".parse().unwrap();
        let right = Right::to_deploy(&confirmed).unwrap();
        Confirmed::add(&permits.confirmed, [right].into()).unwrap();
        helper.target(&confirmed).apply(&sample()).await.unwrap();
        // Nor any program that presents challenge answers.
        let call = |argument: &str| Call {
            program: "/bin/true".into(),
            arguments: vec![argument.to_owned()],
        };
        let refused = Runner::run(&helper, call("present")).await.unwrap_err();
        assert!(refused.to_string().contains("/bin/true"), "{refused:?}");
        let right = Right::Run("/bin/true".into());
        Confirmed::add(&permits.confirmed, [right].into()).unwrap();
        assert_eq!(Runner::run(&helper, call("present")).await, Ok(()));
        assert!(Runner::run(&helper, call("$(id)")).await.is_err());
        assert!(!waits.is_finished());
        tokio::fs::write(&fifo, "go\n").await.unwrap();
        waits.await.unwrap().unwrap();
    }
}
