//! How a running supervisor is steered: commands, and replies to those that wait.

use tokio::sync::{mpsc, oneshot};

use crate::identifier::Lineage;
use crate::manage::{Certificate, ManageError, Outcome, Trigger};

const COMMANDS: usize = 64;

/// How a pass ended.
pub(crate) type Ended = Result<Outcome, ManageError>;

/// Steers a running [`super::Supervisor`].
#[derive(Clone, Debug)]
pub(crate) struct Handle(mpsc::Sender<Command>);

/// What a supervisor is asked to do.
pub(super) enum Command {
    Sweep,
    Replace(Vec<Certificate>),
    Work(Box<Certificate>, Trigger, oneshot::Sender<Ended>),
    Keeps(Lineage, oneshot::Sender<bool>),
    Ping(oneshot::Sender<()>),
    Stop,
}

impl Handle {
    /// A handle, and the end at which its commands arrive.
    pub(super) fn new() -> (Self, mpsc::Receiver<Command>) {
        let (sender, commands) = mpsc::channel(COMMANDS);
        (Self(sender), commands)
    }

    /// Looks at every certificate now.
    pub(crate) async fn sweep(&self) {
        self.send(Command::Sweep).await;
    }

    /// Keeps `certificates` from here on, and no others. What is under way for
    /// one that is left out is finished.
    pub(crate) async fn replace(&self, certificates: Vec<Certificate>) {
        self.send(Command::Replace(certificates)).await;
    }

    /// Passes over `certificate` once, whether it is one of those kept or not.
    ///
    /// # Errors
    /// Those of a pass; [`ManageError::KeptOtherwise`] for a certificate that
    /// is kept for other names or from another CA, and [`ManageError::Stopped`]
    /// when the supervisor ended first: the next pass then resumes the work.
    pub(crate) async fn work(&self, certificate: Certificate, trigger: Trigger) -> Ended {
        let (reply, ended) = oneshot::channel();
        self.send(Command::Work(Box::new(certificate), trigger, reply))
            .await;
        ended.await.unwrap_or(Err(ManageError::Stopped))
    }

    /// Whether `lineage` is one of those kept.
    pub(crate) async fn keeps(&self, lineage: &Lineage) -> bool {
        let (reply, kept) = oneshot::channel();
        self.send(Command::Keeps(lineage.clone(), reply)).await;
        kept.await.unwrap_or_default()
    }

    /// Returns once the loop has turned; false when it is gone.
    pub(crate) async fn ping(&self) -> bool {
        let (reply, turned) = oneshot::channel();
        self.send(Command::Ping(reply)).await;
        turned.await.is_ok()
    }

    /// Lets the steps under way end, within 8 s, and launches no other.
    pub(crate) async fn stop(&self) {
        self.send(Command::Stop).await;
    }

    async fn send(&self, command: Command) {
        // The supervisor has ended: a caller that waits for a reply sees that.
        let _ = self.0.send(command).await;
    }
}
