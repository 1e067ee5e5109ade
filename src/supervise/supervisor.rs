//! The loop itself: manages certificates, launches passes and settles their results. It
//! decides nothing about a certificate.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};

use super::agenda::{Agenda, Entry, SWEEP, difference};
use super::clock::Watch;
use super::files::Files;
use super::handle::{Command, Ended, Handle};
use super::pass::{Finished, one_pass};
use super::report::{Recheck, log_failure, report};
use crate::lineage::Lineage;
use crate::manage::ca_state::show_stored;
use crate::manage::concurrency::{Concurrency, SIDE_BY_SIDE};
use crate::manage::status::status;
use crate::manage::{Certificate, MANY, ManageError, SPREAD_OF_MANY, Services, Trigger, stored};
use crate::observe::Board;
use crate::record::Record;
use crate::time::Timestamp;

/// The pause after a failure without a stored time for the retry, such as a full disk. It
/// doubles with each failure in a row, up to the longest pause.
const AFTER_FAILURE: Duration = Duration::from_secs(15);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// How long passes in progress may take to end at a stop.
const GRACE: Duration = Duration::from_secs(8);

/// Manages certificates until it is stopped.
pub(crate) struct Supervisor {
    pub(super) services: Arc<Services>,
    pub(super) board: Board,
    commands: mpsc::Receiver<Command>,
    pub(super) agenda: Agenda,
    passes: JoinSet<Finished>,
    concurrency: Concurrency,
    files: Files,
    lineages: BTreeMap<tokio::task::Id, Lineage>,
    /// The latest reading of the clock, to detect that it is set back.
    latest: Timestamp,
    watch: Watch,
}

impl Supervisor {
    /// A supervisor without certificates, which shows their status on `board`.
    #[must_use]
    pub(crate) fn new(mut services: Services, board: Board) -> (Self, Handle) {
        services.board = Some(board.clone());
        let (handle, commands) = Handle::new();
        let supervisor = Self {
            latest: services.clock.now(),
            watch: Watch::new(services.clock.as_ref()),
            services: Arc::new(services),
            board,
            commands,
            agenda: Agenda::default(),
            passes: JoinSet::new(),
            concurrency: Concurrency::default(),
            files: Files::default(),
            lineages: BTreeMap::new(),
        };
        (supervisor, handle)
    }

    /// Manages `certificates` from now on: when this returns, each has at least a
    /// placeholder and its status is on the board. A failure is logged, and the certificate
    /// is retried with the others.
    ///
    /// # Errors
    /// The first failure to write a placeholder or to read a record, if all certificates
    /// failed.
    pub(crate) async fn keep(&mut self, certificates: Vec<Certificate>) -> Result<(), ManageError> {
        let lineages: BTreeSet<Lineage> = certificates
            .iter()
            .map(|certificate| certificate.wanted.lineage.clone())
            .collect();
        self.agenda.retain(|lineage, kept| {
            kept.managed = lineages.contains(lineage);
            kept.managed || kept.busy || !kept.waiting.is_empty()
        });
        self.board.retain(&lineages);
        self.files
            .watch(&certificates, self.services.output.as_ref());
        if lineages.len() > MANY {
            let spread = self.services.spread.max(SPREAD_OF_MANY);
            Arc::make_mut(&mut self.services).spread = spread;
        }
        let fallbacks = certificates.iter().filter_map(|one| one.fallback.as_ref());
        let cas = certificates.iter().map(|one| &one.wanted.ca);
        let cas: BTreeSet<&String> = cas.chain(fallbacks.map(|fallback| &fallback.ca)).collect();
        for ca in cas {
            show_stored(&self.services, ca).await;
        }
        let (mut first, mut prepared) = (None, certificates.is_empty());
        for certificate in certificates {
            match self.prepare(&certificate).await {
                Ok(()) => prepared = true,
                Err(error) => {
                    log_failure(&certificate.wanted.lineage, &error);
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
        let now = self.services.clock.now();
        let lineage = certificate.wanted.lineage.clone();
        let kept = self.agenda.get(&lineage).is_some();
        if !kept {
            self.agenda
                .insert(Entry::new(Arc::new(certificate), now, true));
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
        let (lineage, now) = (&wanted.lineage, self.services.clock.now());
        let loaded = self.services.store.load(lineage).await?;
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
        let random = self.services.random.as_ref();
        self.board.post(status(&record, now, random));
        let output = &self.services.output;
        if output.live(lineage).is_none()
            && let Some((generation, facts)) = record.to_be_served(now)
            && let Ok(bundle) = stored(&self.services, lineage, generation, facts).await
        {
            // On a new volume the stored pair is better than a placeholder.
            output.publish(lineage, generation, &bundle)?;
        }
        if output.placeholder(lineage, &wanted.identifiers, now)? {
            tracing::info!(%lineage, "a placeholder is live until the certificate is issued");
        }
        Ok(())
    }

    /// Runs until it is stopped, or every [`Handle`] is dropped.
    pub(crate) async fn run(mut self) {
        self.watch.begin(self.services.clock.as_ref());
        loop {
            self.launch();
            self.watch.look(&self.services, &self.agenda);
            let (output, now) = (&self.services.output, self.services.clock.now());
            self.files.look(&self.agenda, output, now);
            let pause = self
                .pause()
                .min(self.watch.pause(self.services.clock.as_ref()));
            // A fixed order keeps the simulation deterministic.
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(Command::Stop) | None => break,
                    Some(command) => self.obey(command).await,
                },
                Some(ended) = self.passes.join_next_with_id() => self.settle(ended),
                () = self.concurrency.released() => {}
                gone = self.files.gone() => self.requeue(&gone),
                // Decisions made by a wrong clock are repeated.
                Some(repeat) = self.watch.answered() => if repeat {
                    self.obey(Command::Sweep).await;
                },
                () = self.services.clock.sleep(pause) => {}
            }
        }
        self.finish().await;
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Sweep => {
                let now = self.services.clock.now();
                self.agenda.retain(|_, kept| {
                    kept.due = now;
                    kept.stale = kept.busy;
                    true
                });
            }
            Command::Replace(certificates) => {
                // Each failure was logged; the passes retry.
                let _ = self.keep(certificates).await;
            }
            Command::Work(certificate, trigger, reply) => {
                self.enqueue(*certificate, trigger, reply)
            }
            Command::Manages(lineage, reply) => {
                let kept = self.agenda.get(&lineage);
                let _ = reply.send(kept.is_some_and(|kept| kept.managed));
            }
            Command::Ping(reply) => {
                let _ = reply.send(());
            }
            Command::Stop => {}
        }
    }

    fn enqueue(
        &mut self,
        certificate: Certificate,
        trigger: Trigger,
        reply: oneshot::Sender<Ended>,
    ) {
        let (lineage, certificate) = (certificate.wanted.lineage.clone(), Arc::new(certificate));
        let due = self.services.clock.now() + SWEEP;
        if self.agenda.get(&lineage).is_none() {
            self.agenda
                .insert(Entry::new(certificate.clone(), due, false));
        }
        self.agenda.change(&lineage, |kept| {
            if !kept.managed {
                kept.waiting.push_back((certificate, trigger, reply));
                return;
            }
            // Two different settings for one certificate would order in turn.
            match difference(&kept.certificate, &certificate) {
                Some(current) => {
                    let _ = reply.send(Err(ManageError::ConfiguredDifferently { current }));
                }
                None => {
                    let certificate = kept.certificate.clone();
                    kept.waiting.push_back((certificate, trigger, reply));
                }
            }
        });
    }

    /// Launches due passes while permits are free, first those with a user waiting.
    fn launch(&mut self) {
        let now = self.services.clock.now();
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
            let Some(permit) = self.concurrency.try_acquire() else {
                return;
            };
            let begun = self.agenda.change(&lineage, |kept| {
                kept.busy = true;
                match kept.waiting.pop_front() {
                    Some((certificate, trigger, reply)) => (certificate, trigger, Some(reply)),
                    None => (kept.certificate.clone(), Trigger::Scheduled, None),
                }
            });
            let Some((certificate, trigger, reply)) = begun else {
                return;
            };
            let task = one_pass(self.services.clone(), certificate, trigger, permit, reply);
            let id = self.passes.spawn(task).id();
            self.lineages.insert(id, lineage);
        }
    }

    /// The time until the next launch, at most until the next reading of the clock.
    fn pause(&self) -> Duration {
        let now = self.services.clock.now();
        if self.passes.len() >= SIDE_BY_SIDE || !self.concurrency.any() {
            return SWEEP;
        }
        let due = self.agenda.first_due();
        due.map_or(SWEEP, |due| due.since(now).min(SWEEP))
    }

    fn settle(&mut self, ended: Result<(tokio::task::Id, Finished), JoinError>) {
        let (lineage, recheck) = match ended {
            Ok((id, pass)) => {
                self.lineages.remove(&id);
                if let Some(ca) = pass.answering_ca() {
                    self.wake_waiting(&ca);
                }
                let lineage = pass.lineage.clone();
                let recheck = report(&self.services, &self.board, &mut self.agenda, pass);
                (Some(lineage), recheck)
            }
            Err(error) => {
                tracing::error!("a pass failed unexpectedly: {error}");
                (self.lineages.remove(&error.id()), Recheck::Undated)
            }
        };
        let Some(lineage) = lineage else { return };
        let now = self.services.clock.now();
        let forgotten = self.agenda.change(&lineage, |kept| {
            kept.busy = false;
            kept.waits_for_ca = matches!(recheck, Recheck::WhenAnswered(_));
            (kept.due, kept.undated) = match recheck {
                Recheck::At(instant) | Recheck::WhenAnswered(instant) => (instant, 0),
                Recheck::Undated => {
                    let pause = AFTER_FAILURE * (1 << kept.undated.min(5));
                    (
                        now + pause.min(LONGEST_PAUSE),
                        kept.undated.saturating_add(1),
                    )
                }
                Recheck::Elsewhere(pause) => (now + pause, kept.undated),
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

    fn requeue(&mut self, lineages: &[Lineage]) {
        let now = self.services.clock.now();
        for lineage in lineages {
            self.agenda.change(lineage, |kept| kept.due = now);
        }
    }

    /// `ca` is working: makes the certificates that wait for it due now.
    fn wake_waiting(&mut self, ca: &str) {
        let now = self.services.clock.now();
        for lineage in self.agenda.waiting_for_a_ca() {
            self.agenda.change(&lineage, |kept| {
                let certificate = &kept.certificate;
                let fallback = certificate.fallback.as_ref();
                let fallback = fallback.is_some_and(|fallback| fallback.ca == ca);
                if fallback || certificate.wanted.ca == ca {
                    (kept.waits_for_ca, kept.due) = (false, now);
                }
            });
        }
    }

    /// Waits for the passes in progress. A longer pass is resumed after the next start, since
    /// its intent is stored.
    async fn finish(mut self) {
        let clock = self.services.clock.clone();
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
