//! The commands to a running supervisor, and the replies to waiting callers. Nothing is
//! done here.

use tokio::sync::{mpsc, oneshot};

use crate::lineage::Lineage;
use crate::manage::{Certificate, ManageError, Outcome, Trigger};

const COMMANDS: usize = 64;

/// The result of a pass.
pub(crate) type Ended = Result<Outcome, ManageError>;

/// Sends commands to a running [`super::Supervisor`].
#[derive(Clone, Debug)]
pub(crate) struct Handle(mpsc::Sender<Command>);

/// Which certificates get a pass when they are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passes {
    All,
    Changed,
}

/// A command to the supervisor.
pub(super) enum Command {
    Sweep,
    Replace(Vec<Certificate>, Passes),
    Work(Box<Certificate>, Trigger, oneshot::Sender<Ended>),
    Manages(Lineage, oneshot::Sender<bool>),
    Requeue(Vec<Lineage>),
    TakeOver,
    Ping(oneshot::Sender<()>),
    Stop,
}

impl Handle {
    /// A handle, and the receiver of its commands.
    pub(super) fn new() -> (Self, mpsc::Receiver<Command>) {
        let (sender, commands) = mpsc::channel(COMMANDS);
        (Self(sender), commands)
    }

    /// Starts a pass over every certificate now.
    pub(crate) async fn sweep(&self) {
        self.send(Command::Sweep).await;
    }

    /// Manages `certificates` and no others from now on. A pass in progress over another
    /// certificate is finished.
    pub(crate) async fn replace(&self, certificates: Vec<Certificate>) {
        self.send(Command::Replace(certificates, Passes::All)).await;
    }

    /// The same, without a pass over those whose settings and records are as they were.
    pub(crate) async fn update(&self, certificates: Vec<Certificate>) {
        let changed = Passes::Changed;
        self.send(Command::Replace(certificates, changed)).await;
    }

    /// Runs one pass over `certificate`, managed or not.
    ///
    /// # Errors
    /// Those of a pass; [`ManageError::ConfiguredDifferently`] for a certificate that is
    /// managed with other settings, and [`ManageError::Stopped`] when the supervisor stopped
    /// first: the next pass then resumes the work.
    pub(crate) async fn work(&self, certificate: Certificate, trigger: Trigger) -> Ended {
        let (reply, ended) = oneshot::channel();
        self.send(Command::Work(Box::new(certificate), trigger, reply))
            .await;
        ended.await.unwrap_or(Err(ManageError::Stopped))
    }

    /// Whether `lineage` is managed.
    pub(crate) async fn manages(&self, lineage: &Lineage) -> bool {
        let (reply, managed) = oneshot::channel();
        self.send(Command::Manages(lineage.clone(), reply)).await;
        managed.await.unwrap_or_default()
    }

    /// Starts a pass over these certificates, as far as they are managed: their records have
    /// changed.
    pub(crate) async fn requeue(&self, lineages: Vec<Lineage>) {
        self.send(Command::Requeue(lineages)).await;
    }

    /// Starts a pass over what was due before: this machine does the scheduled work of its fleet
    /// from now on.
    pub(crate) async fn take_over(&self) {
        self.send(Command::TakeOver).await;
    }

    /// Waits for one iteration of the loop; false when the loop has ended.
    pub(crate) async fn ping(&self) -> bool {
        let (reply, turned) = oneshot::channel();
        self.send(Command::Ping(reply)).await;
        turned.await.is_ok()
    }

    /// Stops the supervisor: passes in progress may end within 8 s, and no other is launched.
    pub(crate) async fn stop(&self) {
        self.send(Command::Stop).await;
    }

    async fn send(&self, command: Command) {
        // If the supervisor has ended, a waiting caller sees the closed channel.
        let _ = self.0.send(command).await;
    }
}
