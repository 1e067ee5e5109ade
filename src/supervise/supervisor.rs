//! The loop itself: manages certificates, launches passes and settles their results. It
//! decides nothing about a certificate.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};

use super::agenda::{Agenda, Entry, difference};
use super::clock::Watch;
use super::files::Files;
use super::handle::{Command, Ended, Handle, Passes};
use super::pass::{Finished, Recheck, log_failure, one_pass};
use crate::deploy::output::OutputError;
use crate::lineage::Lineage;
use crate::manage::ca_state::show_stored;
use crate::manage::concurrency::Concurrency;
use crate::manage::status::status;
use crate::manage::{Certificate, Keeper, ManageError, Services, Trigger, stored, stored_or_new};
use crate::observe::{Board, Read};
use crate::record::Generation;
use crate::renew::backoff::local_pause;
use crate::renew::policy::{
    CLOCK_READING, MANY, RESTING_PAUSE, SIDE_BY_SIDE, SPREAD_OF_MANY, STOP_GRACE,
};
use crate::time::Timestamp;

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
        if let Some(looks) = &mut services.looks {
            looks.at_once = false;
        }
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
        self.take(certificates, Passes::All).await
    }

    async fn take(
        &mut self,
        certificates: Vec<Certificate>,
        passes: Passes,
    ) -> Result<(), ManageError> {
        let lineages: BTreeSet<Lineage> = certificates
            .iter()
            .map(|certificate| certificate.wanted.lineage.clone())
            .collect();
        self.agenda.retain(|lineage, entry| {
            entry.managed = lineages.contains(lineage);
            entry.managed || entry.busy || !entry.waiting.is_empty()
        });
        self.board.retain(&lineages);
        self.files
            .watch(&certificates, self.services.output.as_ref());
        if lineages.len() > MANY {
            let spread = self.services.spread.max(SPREAD_OF_MANY);
            Arc::make_mut(&mut self.services).spread = spread;
        }
        let cas = certificates.iter().flat_map(Certificate::cas);
        for ca in cas.map(|(ca, _)| ca).collect::<BTreeSet<_>>() {
            show_stored(&self.services, ca).await;
        }
        let mut live = self.live(&certificates);
        let (mut first, mut prepared) = (None, certificates.is_empty());
        let mut resting = 0;
        for certificate in certificates {
            let lineage = &certificate.wanted.lineage;
            let read = self.board.take_read(lineage);
            let live = live.remove(lineage).unwrap_or(Ok(None));
            let found = live.as_ref().ok().copied().flatten();
            match self.prepare(&certificate, read.is_none(), live).await {
                Ok(()) => prepared = true,
                Err(error) => {
                    log_failure(lineage, &error);
                    first = first.or(Some(error));
                }
            }
            let is_as_read = passes == Passes::Changed && read == Some(Read::Known);
            let due = self.first_pass(&certificate, found, &mut resting);
            self.adopt(certificate, is_as_read, due);
        }
        self.agenda.compact();
        self.board.compact();
        match first {
            Some(error) if !prepared => Err(error),
            _ => Ok(()),
        }
    }

    /// The live generations of those that are kept.
    fn live(
        &self,
        certificates: &[Certificate],
    ) -> BTreeMap<Lineage, Result<Option<Generation>, OutputError>> {
        let kept = certificates.iter().filter(|one| !one.is_orphaned());
        let kept: Vec<Lineage> = kept.map(|one| one.wanted.lineage.clone()).collect();
        self.services.output.live_of_all(&kept)
    }

    /// When the first pass over a certificate is due that `live` is published of. Of many that a
    /// command made, those that need nothing come one after the other: all at once, they would
    /// keep the machine busy for minutes after each start.
    fn first_pass(
        &self,
        certificate: &Certificate,
        live: Option<Generation>,
        resting: &mut u32,
    ) -> Timestamp {
        let (wanted, now) = (&certificate.wanted, self.services.clock.now());
        let rests_until = self.board.rests_until(&wanted.lineage, live, now);
        let is_kept_as_it_is = certificate.keeper == Keeper::Command;
        match rests_until.filter(|_| is_kept_as_it_is) {
            Some(until) => {
                *resting = resting.saturating_add(1);
                let behind = resting.saturating_sub(MANY as u32);
                (now + RESTING_PAUSE.saturating_mul(behind)).min(until)
            }
            None => now,
        }
    }

    /// Manages the certificate. One that is managed already and `is_as_read` goes on as before,
    /// unless its settings are new; the pass over any other is `due`.
    fn adopt(&mut self, certificate: Certificate, is_as_read: bool, due: Timestamp) {
        let lineage = certificate.wanted.lineage.clone();
        let certificate = Arc::new(certificate);
        let known = self.agenda.change(&lineage, |entry| {
            let goes_on = is_as_read && entry.managed && entry.certificate.is_same(&certificate);
            entry.certificate = certificate.clone();
            entry.managed = true;
            if !goes_on {
                entry.restart(due);
            }
        });
        if known.is_none() {
            self.agenda.insert(Entry::new(certificate, due, true));
        }
    }

    /// Shows what is stored of the certificate, unless the board has `read` it, and publishes it
    /// where nothing is live.
    async fn prepare(
        &self,
        certificate: &Certificate,
        is_unread: bool,
        live: Result<Option<Generation>, OutputError>,
    ) -> Result<(), ManageError> {
        let wanted = &certificate.wanted;
        let (lineage, now) = (&wanted.lineage, self.services.clock.now());
        let mut known = None;
        if is_unread {
            let (record, _) = stored_or_new(&self.services, wanted).await?;
            let status = status(&record, now, self.services.random.as_ref());
            match self.services.looks {
                Some(_) => self.board.post_stored(status),
                None => self.board.post(status),
            }
            known = Some(record);
        }
        if certificate.is_orphaned() || live?.is_some() {
            return Ok(());
        }
        let record = match known {
            Some(record) => record,
            None => stored_or_new(&self.services, wanted).await?.0,
        };
        if let Some((generation, facts)) = record.to_be_served(now)
            && let Ok(bundle) = stored(&self.services, lineage, generation, facts).await
        {
            // On a new volume the stored pair is better than a placeholder.
            self.services.publish(lineage, generation, &bundle).await?;
        }
        let output = &self.services.output;
        // Without the user's key there is nothing to serve yet.
        if wanted.request.is_none()
            && output.placeholder(lineage, &wanted.identifiers.tree(), now)?
        {
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
                Some(repeat) = self.watch.answered(self.services.clock.as_ref()) => if repeat {
                    self.obey(Command::Sweep).await;
                },
                () = self.services.clock.sleep(pause) => {}
            }
        }
        self.finish().await;
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Sweep => self.agenda.restart(self.services.clock.now()),
            Command::Replace(certificates, passes) => {
                // Each failure was logged; the passes retry.
                let _ = self.take(certificates, passes).await;
            }
            Command::Work(certificate, trigger, reply) => {
                self.enqueue(*certificate, trigger, reply)
            }
            Command::Manages(lineage, reply) => {
                let entry = self.agenda.get(&lineage);
                let _ = reply.send(entry.is_some_and(Entry::is_configured));
            }
            Command::Requeue(lineages) => self.restart(&lineages),
            Command::TakeOver => {
                let (mut due, now) = (Vec::new(), self.services.clock.now());
                self.board.each(|status| {
                    if status.next_at <= now {
                        due.push(status.name);
                    }
                });
                self.restart(&due);
            }
            Command::Ping(reply) => {
                let _ = reply.send(());
            }
            Command::Stop => {}
        }
    }

    fn restart(&mut self, lineages: &[Lineage]) {
        let now = self.services.clock.now();
        for lineage in lineages {
            self.agenda.change(lineage, |entry| entry.restart(now));
        }
    }

    fn enqueue(
        &mut self,
        certificate: Certificate,
        trigger: Trigger,
        reply: oneshot::Sender<Ended>,
    ) {
        let (lineage, certificate) = (certificate.wanted.lineage.clone(), Arc::new(certificate));
        let due = self.services.clock.now() + CLOCK_READING;
        if self.agenda.get(&lineage).is_none() {
            self.agenda
                .insert(Entry::new(certificate.clone(), due, false));
        }
        self.agenda.change(&lineage, |entry| {
            if !entry.is_configured() {
                entry.waiting.push_back((certificate, trigger, reply));
                return;
            }
            // Two different settings for one certificate would order in turn.
            match difference(&entry.certificate, &certificate) {
                Some(current) => {
                    let _ = reply.send(Err(ManageError::ConfiguredDifferently { current }));
                }
                None => {
                    let certificate = entry.certificate.clone();
                    entry.waiting.push_back((certificate, trigger, reply));
                }
            }
        });
    }

    /// Launches due passes while permits are free, first those with a user waiting.
    fn launch(&mut self) {
        let now = self.services.clock.now();
        if now + CLOCK_READING < self.latest {
            tracing::warn!("the clock was set back, from {} to {now}", self.latest);
            self.agenda.restart(now);
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
            let begun = self.agenda.change(&lineage, |entry| {
                entry.busy = true;
                match entry.waiting.pop_front() {
                    Some((certificate, trigger, reply)) => {
                        let both = [&entry.certificate, &certificate];
                        if both.iter().all(|one| one.keeper == Keeper::Command) {
                            // No scheduled pass may go back before the store is read again.
                            entry.certificate = certificate.clone();
                        }
                        (certificate, trigger, Some(reply))
                    }
                    None => (entry.certificate.clone(), Trigger::Scheduled, None),
                }
            });
            let Some((certificate, trigger, reply)) = begun else {
                return;
            };
            let services = self.services_for(reply.is_some(), &lineage);
            let task = one_pass(services, certificate, trigger, permit, reply);
            let id = self.passes.spawn(task).id();
            self.lineages.insert(id, lineage);
        }
    }

    /// The services of a pass. A user's pass looks at the endpoints at once, and so does the
    /// first pass of this process.
    fn services_for(&self, a_user: bool, lineage: &Lineage) -> Arc<Services> {
        let mut services = self.services.clone();
        let first = self.board.is_unlooked(lineage);
        if (a_user || first) && self.services.looks.is_some() {
            let own = Arc::make_mut(&mut services);
            let looks = own.looks.iter_mut();
            looks.for_each(|looks| (looks.at_once, looks.first) = (a_user, first));
        }
        services
    }

    /// The time until the next launch, at most until the next reading of the clock.
    fn pause(&self) -> Duration {
        let now = self.services.clock.now();
        if self.passes.len() >= SIDE_BY_SIDE || !self.concurrency.any() {
            return CLOCK_READING;
        }
        let due = self.agenda.first_due();
        due.map_or(CLOCK_READING, |due| due.since(now).min(CLOCK_READING))
    }

    fn settle(&mut self, ended: Result<(tokio::task::Id, Finished), JoinError>) {
        let (lineage, recheck) = match ended {
            Ok((id, pass)) => {
                self.lineages.remove(&id);
                if let Some(ca) = pass.answering_ca() {
                    self.wake_waiting(&ca);
                }
                let lineage = pass.lineage.clone();
                (Some(lineage), self.report(pass))
            }
            Err(error) => {
                tracing::error!("a pass failed unexpectedly: {error}");
                (self.lineages.remove(&error.id()), Recheck::default())
            }
        };
        let Some(lineage) = lineage else { return };
        let now = self.services.clock.now();
        let forgotten = self.agenda.change(&lineage, |entry| {
            entry.busy = false;
            entry.waits_for_ca = recheck.waits_for_ca;
            (entry.due, entry.undated) = match recheck.at {
                Some(instant) => (instant, 0),
                None => {
                    let undated = entry.undated;
                    (now + local_pause(undated), undated.saturating_add(1))
                }
            };
            if std::mem::take(&mut entry.stale) {
                entry.due = now;
            }
            !entry.managed && entry.waiting.is_empty()
        });
        if forgotten == Some(true) {
            self.agenda.remove(&lineage);
        }
    }

    fn requeue(&mut self, lineages: &[Lineage]) {
        let now = self.services.clock.now();
        for lineage in lineages {
            self.agenda.change(lineage, |entry| entry.due = now);
        }
    }

    /// `ca` is working: makes the certificates that wait for it due now.
    fn wake_waiting(&mut self, ca: &str) {
        let now = self.services.clock.now();
        for lineage in self.agenda.waiting_for(ca) {
            self.agenda.change(&lineage, |entry| {
                (entry.waits_for_ca, entry.due) = (false, now);
            });
        }
    }

    /// Waits for the passes in progress. A longer pass is resumed after the next start, since
    /// its intent is stored.
    async fn finish(mut self) {
        let clock = self.services.clock.clone();
        let mut over = clock.sleep(STOP_GRACE);
        while !self.passes.is_empty() {
            tokio::select! {
                biased;
                Some(ended) = self.passes.join_next_with_id() => self.settle(ended),
                () = &mut over => return,
            }
        }
    }
}
