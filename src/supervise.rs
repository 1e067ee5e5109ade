//! The sidecar's loop: it launches a pass over each certificate at its instant,
//! a few at a time and more that hand over, and obeys what comes through its [`Handle`]. It decides
//! nothing: each pass asks [`crate::renew`], and says when to come back.

mod agenda;
mod copies;
mod pass;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};

use self::agenda::{Agenda, Kept, difference};
use self::copies::Copies;
use self::pass::{Pass, one_pass};
use self::watch::Watch;
use crate::identifier::Lineage;
use crate::manage::ca_state::{show_stored, waits_until, who_answered};
use crate::manage::deploy::stored;
use crate::manage::issue::Urge;
use crate::manage::order::is_silence;
use crate::manage::status::status;
use crate::manage::turns::{SIDE_BY_SIDE, Turns};
use crate::manage::{Certificate, MANY, ManageError, Outcome, Parts, SPREAD_OF_MANY};
use crate::observe::{Board, Status};
use crate::record::Record;
use crate::renew::decide::{Next, next};
use crate::store::StoreError;
use crate::time::Timestamp;

/// The wall clock is read again this often: it may jump, and the machine may
/// have been suspended.
const SWEEP: Duration = Duration::from_secs(60);
/// After a failure that the record could not date, such as a full disk; it
/// doubles with each in a row, up to the longest pause.
const AFTER_FAILURE: Duration = Duration::from_secs(15);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// While another process works on it, at most; a quarter of it at least.
const ELSEWHERE: Duration = Duration::from_secs(20);
/// Looks that can wait are so far apart, at most, in a fleet whose certificates are
/// looked at at one instant: the first has done by then what all would come for.
const APART: Duration = Duration::from_secs(10);
/// Looks in a row that found another process at work, until the owner is told.
const LONG_ELSEWHERE: u32 = 50;
/// After any failure: what the record says may be older than what is wanted.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);
/// After a look that found nothing to do, at most.
const LONGEST_REST: Duration = Duration::from_secs(86_400);
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
    Keeps(Lineage, oneshot::Sender<bool>),
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
    ///
    /// # Errors
    /// Those of a pass; [`ManageError::KeptOtherwise`] for a certificate that
    /// is kept for other names or from another CA, and [`ManageError::Stopped`]
    /// when the supervisor ended first: the next pass then resumes the work.
    pub async fn work(&self, certificate: Certificate, urge: Urge) -> Ended {
        let (reply, ended) = oneshot::channel();
        self.send(Command::Work(Box::new(certificate), urge, reply))
            .await;
        ended.await.unwrap_or(Err(ManageError::Stopped))
    }

    /// Whether `lineage` is one of those kept.
    pub async fn keeps(&self, lineage: &Lineage) -> bool {
        let (reply, kept) = oneshot::channel();
        self.send(Command::Keeps(lineage.clone(), reply)).await;
        kept.await.unwrap_or_default()
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

/// Keeps certificates until it is stopped.
pub struct Supervisor {
    parts: Arc<Parts>,
    board: Board,
    commands: mpsc::Receiver<Command>,
    agenda: Agenda,
    passes: JoinSet<Pass>,
    turns: Turns,
    copies: Copies,
    lineages: BTreeMap<tokio::task::Id, Lineage>,
    /// The latest instant that the clock has shown: it may be set back.
    latest: Timestamp,
    watch: Watch,
}

impl Supervisor {
    /// A supervisor without certificates, that shows their state on `board`.
    #[must_use]
    pub fn new(mut parts: Parts, board: Board) -> (Self, Handle) {
        parts.board = Some(board.clone());
        let (sender, commands) = mpsc::channel(COMMANDS);
        let supervisor = Self {
            latest: parts.clock.now(),
            watch: Watch::new(parts.clock.as_ref()),
            parts: Arc::new(parts),
            board,
            commands,
            agenda: Agenda::default(),
            passes: JoinSet::new(),
            turns: Turns::default(),
            copies: Copies::default(),
            lineages: BTreeMap::new(),
        };
        (supervisor, Handle(sender))
    }

    /// Takes `certificates` over: each has at least a placeholder when this
    /// returns, and its state is on the board. One that could not be prepared
    /// is told and tried again with the others.
    ///
    /// # Errors
    /// The first placeholder that could not be written, or record not read,
    /// when that is so for all of them.
    pub async fn keep(&mut self, certificates: Vec<Certificate>) -> Result<(), ManageError> {
        let lineages: BTreeSet<Lineage> = certificates
            .iter()
            .map(|certificate| certificate.wanted.lineage.clone())
            .collect();
        self.agenda.retain(|lineage, kept| {
            kept.managed = lineages.contains(lineage);
            kept.managed || kept.busy || !kept.waiting.is_empty()
        });
        self.board.retain(&lineages);
        self.copies
            .are_those_of(&certificates, self.parts.output.as_ref());
        if lineages.len() > MANY {
            let spread = self.parts.spread.max(SPREAD_OF_MANY);
            Arc::make_mut(&mut self.parts).spread = spread;
        }
        let seconds = certificates.iter().filter_map(|one| one.fallback.as_ref());
        let cas = certificates.iter().map(|one| &one.wanted.ca);
        let cas: BTreeSet<&String> = cas.chain(seconds.map(|second| &second.ca)).collect();
        for ca in cas {
            show_stored(&self.parts, ca).await;
        }
        let (mut first, mut prepared) = (None, certificates.is_empty());
        for certificate in certificates {
            match self.prepare(&certificate).await {
                Ok(()) => prepared = true,
                Err(error) => {
                    tell(&certificate.wanted.lineage, &error);
                    first = first.or(Some(error));
                }
            }
            self.adopt(certificate);
        }
        match first {
            Some(error) if !prepared => Err(error),
            _ => Ok(()),
        }
    }

    fn adopt(&mut self, certificate: Certificate) {
        let now = self.parts.clock.now();
        let lineage = certificate.wanted.lineage.clone();
        let kept = self.agenda.get(&lineage).is_some();
        if !kept {
            self.agenda
                .insert(Kept::new(Arc::new(certificate), now, true));
            return;
        }
        self.agenda.change(&lineage, |kept| {
            kept.certificate = Arc::new(certificate);
            kept.managed = true;
            kept.due = now;
            kept.stale = kept.busy;
        });
    }

    async fn prepare(&self, certificate: &Certificate) -> Result<(), ManageError> {
        let wanted = &certificate.wanted;
        let (lineage, now) = (&wanted.lineage, self.parts.clock.now());
        let loaded = self.parts.store.load(lineage).await?;
        let record = loaded.map_or_else(
            || {
                Record::new(
                    lineage.clone(),
                    wanted.identifiers.clone(),
                    wanted.ca.clone(),
                )
            },
            |(record, _)| record,
        );
        let random = self.parts.random.as_ref();
        self.board.post(status(&record, now, random));
        let output = &self.parts.output;
        if output.live(lineage).is_none()
            && let Some((generation, facts)) = record.to_be_served(now)
            && let Ok(bundle) = stored(&self.parts, lineage, generation, facts).await
        {
            // The volume is new: what is stored is better than a placeholder.
            output.publish(lineage, generation, &bundle)?;
        }
        if output.placeholder(lineage, &wanted.identifiers, now)? {
            tracing::info!(%lineage, "a placeholder stands in until the certificate is issued");
        }
        Ok(())
    }

    /// Works until it is stopped, or every [`Handle`] is gone.
    pub async fn run(mut self) {
        self.watch.begin(self.parts.clock.as_ref());
        loop {
            self.launch();
            self.watch.look(&self.parts, &self.agenda);
            let (output, now) = (&self.parts.output, self.parts.clock.now());
            self.copies.look(&self.agenda, output, now);
            let pause = self
                .pause()
                .min(self.watch.pause(self.parts.clock.as_ref()));
            // In this order: two runs of one history are the same.
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(Command::Stop) | None => break,
                    Some(command) => self.obey(command).await,
                },
                Some(ended) = self.passes.join_next_with_id() => self.settle(ended),
                () = self.turns.given_back() => {}
                gone = self.copies.gone() => self.look_again(&gone),
                // What was decided by a clock that was in doubt is decided again.
                Some(again) = self.watch.answered() => if again {
                    self.obey(Command::Sweep).await;
                },
                () = self.parts.clock.sleep(pause) => {}
            }
        }
        self.finish().await;
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Sweep => {
                let now = self.parts.clock.now();
                self.agenda.retain(|_, kept| {
                    kept.due = now;
                    kept.stale = kept.busy;
                    true
                });
            }
            Command::Replace(certificates) => {
                // Each failure was told; the passes try again.
                let _ = self.keep(certificates).await;
            }
            Command::Work(certificate, urge, reply) => self.enqueue(*certificate, urge, reply),
            Command::Keeps(lineage, reply) => {
                let kept = self.agenda.get(&lineage);
                let _ = reply.send(kept.is_some_and(|kept| kept.managed));
            }
            Command::Ping(reply) => {
                let _ = reply.send(());
            }
            Command::Stop => {}
        }
    }

    fn enqueue(&mut self, certificate: Certificate, urge: Urge, reply: oneshot::Sender<Ended>) {
        let (lineage, certificate) = (certificate.wanted.lineage.clone(), Arc::new(certificate));
        let due = self.parts.clock.now() + SWEEP;
        if self.agenda.get(&lineage).is_none() {
            self.agenda
                .insert(Kept::new(certificate.clone(), due, false));
        }
        self.agenda.change(&lineage, |kept| {
            if !kept.managed {
                kept.waiting.push_back((certificate, urge, reply));
                return;
            }
            // Two who want different things of one certificate would order in turn.
            match difference(&kept.certificate, &certificate) {
                Some(kept) => {
                    let _ = reply.send(Err(ManageError::KeptOtherwise { kept }));
                }
                None => {
                    let certificate = kept.certificate.clone();
                    kept.waiting.push_back((certificate, urge, reply));
                }
            }
        });
    }

    /// Starts passes while there is room: those that somebody waits for first.
    fn launch(&mut self) {
        let now = self.parts.clock.now();
        if now + SWEEP < self.latest {
            tracing::warn!("the clock was set back, from {} to {now}", self.latest);
            self.agenda.retain(|_, kept| {
                kept.due = now;
                kept.stale = kept.busy;
                true
            });
            self.latest = now;
        }
        self.latest = self.latest.max(now);
        while self.passes.len() < SIDE_BY_SIDE {
            let Some(lineage) = self.agenda.ready(now) else {
                return;
            };
            let Some(turn) = self.turns.try_take() else {
                return;
            };
            let begun = self.agenda.change(&lineage, |kept| {
                kept.busy = true;
                match kept.waiting.pop_front() {
                    Some((certificate, urge, reply)) => (certificate, urge, Some(reply)),
                    None => (kept.certificate.clone(), Urge::Due, None),
                }
            });
            let Some((certificate, urge, reply)) = begun else {
                return;
            };
            let task = one_pass(self.parts.clone(), certificate, urge, turn, reply);
            let id = self.passes.spawn(task).id();
            self.lineages.insert(id, lineage);
        }
    }

    /// How long there is nothing to launch, at most until the clock is to be read again.
    fn pause(&self) -> Duration {
        let now = self.parts.clock.now();
        if self.passes.len() >= SIDE_BY_SIDE || !self.turns.any() {
            return SWEEP;
        }
        let due = self.agenda.first_due();
        due.map_or(SWEEP, |due| due.since(now).min(SWEEP))
    }

    fn settle(&mut self, ended: Result<(tokio::task::Id, Pass), JoinError>) {
        let (lineage, again) = match ended {
            Ok((id, pass)) => {
                self.lineages.remove(&id);
                if let Some(ca) = who_answered(&pass.ended, pass.record.as_ref()) {
                    self.answers(&ca);
                }
                (Some(pass.lineage.clone()), self.report(pass))
            }
            Err(error) => {
                tracing::error!("a pass has failed in a way nobody foresaw: {error}");
                (self.lineages.remove(&error.id()), Again::Undated)
            }
        };
        let Some(lineage) = lineage else { return };
        let now = self.parts.clock.now();
        let forgotten = self.agenda.change(&lineage, |kept| {
            kept.busy = false;
            kept.waits_for_ca = matches!(again, Again::Answered(_));
            (kept.due, kept.undated) = match again {
                Again::At(instant) | Again::Answered(instant) => (instant, 0),
                Again::Undated => {
                    let pause = AFTER_FAILURE * (1 << kept.undated.min(5));
                    (
                        now + pause.min(LONGEST_PAUSE),
                        kept.undated.saturating_add(1),
                    )
                }
                Again::Elsewhere(pause) => (now + pause, kept.undated),
            };
            if std::mem::take(&mut kept.stale) {
                kept.due = now;
            }
            !kept.managed && kept.waiting.is_empty()
        });
        if forgotten == Some(true) {
            self.agenda.remove(&lineage);
        }
    }

    fn look_again(&mut self, lineages: &[Lineage]) {
        let now = self.parts.clock.now();
        for lineage in lineages {
            self.agenda.change(lineage, |kept| kept.due = now);
        }
    }

    /// `ca` does its work: whoever waits for it need not wait longer.
    fn answers(&mut self, ca: &str) {
        let now = self.parts.clock.now();
        for lineage in self.agenda.waiting_for_a_ca() {
            self.agenda.change(&lineage, |kept| {
                let certificate = &kept.certificate;
                let second = certificate.fallback.as_ref();
                let second = second.is_some_and(|second| second.ca == ca);
                if second || certificate.wanted.ca == ca {
                    (kept.waits_for_ca, kept.due) = (false, now);
                }
            });
        }
    }

    /// Tells how it ended, and when the certificate is to be looked at again.
    fn report(&mut self, pass: Pass) -> Again {
        let (lineage, now) = (&pass.lineage, pass.at);
        let ours = self.parts.clock.now();
        // The time to wait is the same by either clock.
        let ours = |instant: Timestamp| ours + instant.since(now);
        let random = self.parts.random.as_ref();
        if let Some(record) = &pass.record
            && self.agenda.get(lineage).is_some_and(|kept| kept.managed)
        {
            let shown = status(record, now, random);
            let level = alarm_level(&shown);
            let told = self
                .agenda
                .change(lineage, |kept| std::mem::replace(&mut kept.told, level));
            if told.is_some_and(|told| level > told) {
                let error = pass.ended.as_ref().err();
                let why = shown.last_error.clone();
                let why = why.or_else(|| error.map(ToString::to_string));
                tracing::error!(%lineage, "{}", alarm(&shown, level, why));
            }
            self.board.post(shown);
        }
        self.agenda.change(lineage, |kept| {
            kept.whole = pass.ended.is_ok();
            kept.silences = match &pass.ended {
                Err(error) if is_silence(error) => kept.silences.saturating_add(1),
                Err(ManageError::Down { .. }) => kept.silences,
                _ => 0,
            };
            kept.elsewhere = match is_elsewhere(&pass.ended) {
                true => kept.elsewhere.saturating_add(1),
                false => 0,
            };
        });
        let again = match &pass.ended {
            Ok(outcome) => {
                if outcome.issued {
                    tracing::info!(%lineage, generation = %outcome.generation, not_after = %outcome.not_after, "issued");
                }
                // A clock that was years ahead for a moment would put it off as long.
                let next = outcome.next.min(now + LONGEST_REST);
                Again::At(ours(next) + self.apart(outcome, pass.record.as_ref()))
            }
            Err(error) => {
                // What waits after a failure was told when it failed, and an
                // outage by the certificate that met it.
                let waits = matches!(
                    error,
                    ManageError::BackingOff { .. }
                        | ManageError::NotHandedOver { .. }
                        | ManageError::Down { .. }
                        | ManageError::NotDueThere { .. }
                );
                let elsewhere = self.agenda.get(lineage).map_or(0, |kept| kept.elsewhere);
                if !waits && (elsewhere == 0 || elsewhere == LONG_ELSEWHERE) {
                    tell(lineage, error);
                }
                let record = pass.record.as_ref();
                let next = record.map(|record| next(record, now, random));
                match (waits_until(error), next) {
                    _ if elsewhere > 0 => {
                        // Many wait for the same one: not all come back at once.
                        let drawn = random.below(ELSEWHERE.as_secs() * 3 / 4 + 1);
                        Again::Elsewhere(ELSEWHERE / 4 + Duration::from_secs(drawn))
                    }
                    (Some(until), _) if matches!(error, ManageError::Down { .. }) => {
                        Again::Answered(ours(until.min(now + LOOK_AGAIN)))
                    }
                    (Some(until), _) => {
                        Again::At(ours(self.agenda.in_line(lineage, error, until, now)))
                    }
                    (None, Some(Next::Wait(until))) => Again::At(ours(until.min(now + LOOK_AGAIN))),
                    _ => Again::Undated,
                }
            }
        };
        if let Some(reply) = pass.reply {
            // Whoever waited may have gone away meanwhile.
            let _ = reply.send(pass.ended);
        }
        again
    }

    /// How much later than at its instant the question for a window may come: whoever
    /// is first asks it for the whole fleet. Nothing else is put off.
    fn apart(&self, outcome: &Outcome, record: Option<&Record>) -> Duration {
        let issued = record.and_then(|record| record.issued.as_ref());
        let asked_at = issued.and_then(|issued| issued.renewal.as_ref()?.refresh_at);
        let (Some(due), true) = (outcome.renewal, asked_at == Some(outcome.next)) else {
            return Duration::ZERO;
        };
        let most = APART.min(due.since(outcome.next)).as_millis();
        let most = u64::try_from(most).unwrap_or(u64::MAX);
        Duration::from_millis(self.parts.random.below(most))
    }

    /// Lets what is under way end. What takes longer is resumed by the next
    /// start: its intent is stored.
    async fn finish(mut self) {
        let clock = self.parts.clock.clone();
        let mut over = clock.sleep(GRACE);
        while !self.passes.is_empty() {
            tokio::select! {
                biased;
                Some(ended) = self.passes.join_next_with_id() => self.settle(ended),
                () = &mut over => return,
            }
        }
    }
}

/// How bad it is: 1 late, 2 critical.
fn alarm_level(shown: &Status) -> usize {
    match shown {
        Status { critical: true, .. } => 2,
        Status { late: true, .. } => 1,
        _ => 0,
    }
}

fn alarm(shown: &Status, level: usize, why: Option<String>) -> String {
    let what = if level == 2 { "critical" } else { "late" };
    let why = why.unwrap_or_else(|| "no failure is known".into());
    let end = shown.not_after.map(|at| at.to_string()).unwrap_or_default();
    format!(
        "{what}: it ends at {end} and is not renewed: {why}; hint: certs status tells what it waits for; certs issue with the same names tries at once"
    )
}

/// When a certificate is looked at again.
enum Again {
    At(Timestamp),
    /// When its CA answers, or else to see whether it does.
    Answered(Timestamp),
    /// After a failure that the record could not date.
    Undated,
    /// After that time, since another process works on it.
    Elsewhere(Duration),
}

/// Whether another process has its lease. In a fleet that is nobody's failure.
fn is_elsewhere(ended: &Ended) -> bool {
    matches!(ended, Err(ManageError::Store(StoreError::Leased { .. })))
}

fn tell(lineage: &Lineage, error: &ManageError) {
    tracing::error!(%lineage, "{error}; hint: {}", error.hint());
}

#[cfg(test)]
mod tests;
