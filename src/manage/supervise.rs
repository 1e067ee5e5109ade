//! The sidecar's loop: it launches a pass over each certificate at its instant,
//! a few at a time, and obeys what comes through its [`Handle`]. It decides
//! nothing: each pass asks [`crate::renew`], and says when to come back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};

use super::issue::{Urge, pass};
use super::status::status;
use super::{Certificate, ManageError, Outcome, Parts};
use crate::identifier::Lineage;
use crate::observe::Board;
use crate::record::Record;
use crate::time::Timestamp;

/// Certificates worked on at once.
const IN_FLIGHT: usize = 4;
/// The wall clock is read again this often: it may jump, and the machine may
/// have been suspended.
const SWEEP: Duration = Duration::from_secs(60);
/// After a failure that the record could not date, such as a full disk.
const AFTER_FAILURE: Duration = Duration::from_secs(15);
/// Steps under way get this long to end when the process is asked to.
const GRACE: Duration = Duration::from_secs(8);
const COMMANDS: usize = 64;

/// How a pass ended that somebody waits for.
pub type Ended = Result<Outcome, ManageError>;

/// Steers a running [`Supervisor`].
#[derive(Clone, Debug)]
pub struct Handle(mpsc::Sender<Command>);

enum Command {
    Sweep,
    Replace(Vec<Certificate>),
    Work(Box<Certificate>, Urge, oneshot::Sender<Ended>),
    Ping(oneshot::Sender<()>),
    Stop,
}

impl Handle {
    /// Looks at every certificate now.
    pub async fn sweep(&self) {
        self.send(Command::Sweep).await;
    }

    /// Keeps `certificates` from here on, and no others. What is under way for
    /// one that is left out is finished.
    pub async fn replace(&self, certificates: Vec<Certificate>) {
        self.send(Command::Replace(certificates)).await;
    }

    /// Passes over `certificate` once, whether it is one of those kept or not.
    /// `None` when the supervisor ended first; the work is then resumed by the
    /// next start, where it is kept.
    pub async fn work(&self, certificate: Certificate, urge: Urge) -> Option<Ended> {
        let (reply, ended) = oneshot::channel();
        self.send(Command::Work(Box::new(certificate), urge, reply))
            .await;
        ended.await.ok()
    }

    /// Returns once the loop has turned; false when it is gone.
    pub async fn ping(&self) -> bool {
        let (reply, turned) = oneshot::channel();
        self.send(Command::Ping(reply)).await;
        turned.await.is_ok()
    }

    /// Lets the steps under way end, within 8 s, and launches no other.
    pub async fn stop(&self) {
        self.send(Command::Stop).await;
    }

    async fn send(&self, command: Command) {
        // The supervisor has ended: whoever waits for a reply sees that.
        let _ = self.0.send(command).await;
    }
}

struct Kept {
    certificate: Certificate,
    /// When the next pass is launched.
    due: Timestamp,
    /// Whether a pass is under way.
    busy: bool,
    /// Whether it is passed over again and again, or only for those who wait.
    managed: bool,
    waiting: VecDeque<(Certificate, Urge, oneshot::Sender<Ended>)>,
}

struct Pass {
    lineage: Lineage,
    ended: Ended,
    record: Option<Record>,
    reply: Option<oneshot::Sender<Ended>>,
}

/// Keeps certificates until it is stopped.
pub struct Supervisor {
    parts: Parts,
    board: Board,
    commands: mpsc::Receiver<Command>,
    kept: BTreeMap<Lineage, Kept>,
    passes: JoinSet<Pass>,
    lineages: BTreeMap<tokio::task::Id, Lineage>,
}

impl Supervisor {
    /// A supervisor without certificates, that shows their state on `board`.
    #[must_use]
    pub fn new(mut parts: Parts, board: Board) -> (Self, Handle) {
        parts.board = Some(board.clone());
        let (sender, commands) = mpsc::channel(COMMANDS);
        let supervisor = Self {
            parts,
            board,
            commands,
            kept: BTreeMap::new(),
            passes: JoinSet::new(),
            lineages: BTreeMap::new(),
        };
        (supervisor, Handle(sender))
    }

    /// Takes `certificates` over: each has at least a placeholder when this
    /// returns, and its state is on the board.
    ///
    /// # Errors
    /// The first placeholder that could not be written, or record not read.
    pub async fn keep(&mut self, certificates: Vec<Certificate>) -> Result<(), ManageError> {
        let lineages: BTreeSet<Lineage> = certificates
            .iter()
            .map(|certificate| certificate.wanted.lineage.clone())
            .collect();
        self.kept.retain(|lineage, kept| {
            kept.managed = lineages.contains(lineage);
            kept.managed || kept.busy || !kept.waiting.is_empty()
        });
        self.board.retain(&lineages);
        let mut first = Ok(());
        for certificate in certificates {
            let prepared = self.prepare(&certificate).await;
            first = first.and(prepared);
            self.adopt(certificate);
        }
        first
    }

    fn adopt(&mut self, certificate: Certificate) {
        let now = self.parts.clock.now();
        let lineage = certificate.wanted.lineage.clone();
        match self.kept.get_mut(&lineage) {
            Some(kept) => {
                kept.certificate = certificate;
                kept.managed = true;
                kept.due = now;
            }
            None => {
                let kept = Kept {
                    certificate,
                    due: now,
                    busy: false,
                    managed: true,
                    waiting: VecDeque::new(),
                };
                self.kept.insert(lineage, kept);
            }
        }
    }

    async fn prepare(&self, certificate: &Certificate) -> Result<(), ManageError> {
        let wanted = &certificate.wanted;
        let (lineage, now) = (&wanted.lineage, self.parts.clock.now());
        let stored = self.parts.store.load(lineage).await?;
        let record = stored.map_or_else(
            || {
                Record::new(
                    lineage.clone(),
                    wanted.identifiers.clone(),
                    wanted.ca.clone(),
                )
            },
            |(record, _)| record,
        );
        self.board
            .post(status(&record, now, self.parts.random.as_ref()));
        let output = &self.parts.output;
        if output.placeholder(lineage, &wanted.identifiers, now)? {
            tracing::info!(%lineage, "a placeholder stands in until the certificate is issued");
        }
        Ok(())
    }

    /// Works until it is stopped, or every [`Handle`] is gone.
    pub async fn run(mut self) {
        loop {
            self.launch();
            let wake = self.wake();
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(Command::Stop) | None => break,
                    Some(command) => self.obey(command).await,
                },
                Some(ended) = self.passes.join_next_with_id() => self.settle(ended),
                () = self.parts.clock.sleep_until(wake) => {}
            }
        }
        self.finish().await;
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Sweep => {
                let now = self.parts.clock.now();
                for kept in self.kept.values_mut() {
                    kept.due = now;
                }
            }
            Command::Replace(certificates) => {
                if let Err(error) = self.keep(certificates).await {
                    tracing::error!("{error}");
                }
            }
            Command::Work(certificate, urge, reply) => self.enqueue(*certificate, urge, reply),
            Command::Ping(reply) => {
                let _ = reply.send(());
            }
            Command::Stop => {}
        }
    }

    fn enqueue(&mut self, certificate: Certificate, urge: Urge, reply: oneshot::Sender<Ended>) {
        let lineage = certificate.wanted.lineage.clone();
        let due = self.parts.clock.now() + SWEEP;
        let kept = self.kept.entry(lineage).or_insert_with(|| Kept {
            certificate: certificate.clone(),
            due,
            busy: false,
            managed: false,
            waiting: VecDeque::new(),
        });
        kept.waiting.push_back((certificate, urge, reply));
    }

    /// Starts passes while there is room: those that somebody waits for first.
    fn launch(&mut self) {
        let now = self.parts.clock.now();
        while self.passes.len() < IN_FLIGHT {
            let ready = |kept: &&mut Kept| {
                !kept.busy && (!kept.waiting.is_empty() || (kept.managed && kept.due <= now))
            };
            let candidates = self.kept.values_mut().filter(ready);
            let Some(kept) = candidates.min_by_key(|kept| (kept.waiting.is_empty(), kept.due))
            else {
                return;
            };
            kept.busy = true;
            let (certificate, urge, reply) = match kept.waiting.pop_front() {
                Some((certificate, urge, reply)) => (certificate, urge, Some(reply)),
                None => (kept.certificate.clone(), Urge::Due, None),
            };
            let lineage = certificate.wanted.lineage.clone();
            let task = one_pass(self.parts.clone(), certificate, urge, reply);
            let id = self.passes.spawn(task).id();
            self.lineages.insert(id, lineage);
        }
    }

    /// The next instant at which there may be something to launch.
    fn wake(&self) -> Timestamp {
        let idle = self.kept.values().filter(|kept| kept.managed && !kept.busy);
        let sweep = self.parts.clock.now() + SWEEP;
        if self.passes.len() >= IN_FLIGHT {
            return sweep;
        }
        idle.map(|kept| kept.due)
            .min()
            .map_or(sweep, |due| due.min(sweep))
    }

    fn settle(&mut self, ended: Result<(tokio::task::Id, Pass), JoinError>) {
        let now = self.parts.clock.now();
        let (lineage, until) = match ended {
            Ok((id, pass)) => {
                self.lineages.remove(&id);
                let lineage = pass.lineage.clone();
                (Some(lineage), self.report(pass, now))
            }
            Err(error) => {
                tracing::error!("a pass has failed in a way nobody foresaw: {error}");
                (self.lineages.remove(&error.id()), now + AFTER_FAILURE)
            }
        };
        let Some(lineage) = lineage else { return };
        if let Some(kept) = self.kept.get_mut(&lineage) {
            kept.busy = false;
            kept.due = until;
            if !kept.managed && kept.waiting.is_empty() {
                self.kept.remove(&lineage);
            }
        }
    }

    /// Tells how it ended, and when the certificate is to be looked at again.
    fn report(&self, pass: Pass, now: Timestamp) -> Timestamp {
        let lineage = &pass.lineage;
        let random = self.parts.random.as_ref();
        let shown = pass.record.map(|record| status(&record, now, random));
        let next_at = shown.as_ref().map(|shown| shown.next_at);
        if let Some(shown) = shown
            && self.kept.get(lineage).is_some_and(|kept| kept.managed)
        {
            self.board.post(shown);
        }
        let until = match &pass.ended {
            Ok(outcome) => {
                if outcome.issued {
                    tracing::info!(%lineage, generation = %outcome.generation, not_after = %outcome.not_after, "issued");
                }
                outcome.next
            }
            Err(ManageError::BackingOff { until, .. }) => *until,
            Err(error) => {
                tracing::error!(%lineage, "{error}");
                next_at
                    .filter(|at| *at > now)
                    .unwrap_or(now + AFTER_FAILURE)
            }
        };
        if let Some(reply) = pass.reply {
            // Whoever waited may have gone away meanwhile.
            let _ = reply.send(pass.ended);
        }
        until
    }

    /// Lets what is under way end. What takes longer is resumed by the next
    /// start: its intent is stored.
    async fn finish(mut self) {
        let end = self.parts.clock.now() + GRACE;
        while !self.passes.is_empty() {
            tokio::select! {
                Some(ended) = self.passes.join_next_with_id() => self.settle(ended),
                () = self.parts.clock.sleep_until(end) => return,
            }
        }
    }
}

async fn one_pass(
    parts: Parts,
    certificate: Certificate,
    urge: Urge,
    reply: Option<oneshot::Sender<Ended>>,
) -> Pass {
    let ended = pass(&parts, &certificate, urge).await;
    let lineage = certificate.wanted.lineage;
    let record = match parts.store.load(&lineage).await {
        Ok(stored) => stored.map(|(record, _)| record),
        Err(error) => {
            tracing::warn!(%lineage, "its state cannot be shown: {error}");
            None
        }
    };
    Pass {
        lineage,
        ended,
        record,
        reply,
    }
}

#[cfg(test)]
mod tests;
