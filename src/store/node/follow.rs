//! Follows the fleet: which certificates have changed elsewhere, and whether this machine
//! does the scheduled work. One document says both. The issuer counts in it several times a
//! minute; another machine takes over when the count has stood still for a minute of its own
//! clock, so that the machines' clocks may differ.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{Change, NodeStore, Role, lock};
use crate::lineage::Lineage;
use crate::random::{Random, SystemRandom};
use crate::store::StoreError;
use crate::store::documents::{Notice, Version};
use crate::store::shared::fleet::{Fleet, FleetNode, Issuer};
use crate::time::Timestamp;

/// How often a machine looks at the document of the fleet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Between two looks, where the server tells of no changes. With the time of a deployment, a
    /// change is served within 15 seconds.
    pub(crate) polled: Duration,
    /// Between two counts of the issuer, where the others get notice of each.
    pub(crate) counted: Duration,
    /// Then another machine looks by itself after this time: it had no notice of a count.
    pub(crate) notified: Duration,
    /// An issuer that has not counted for this time is replaced.
    pub(crate) gone: Duration,
}

impl Pace {
    /// That of `certs run`.
    pub(super) const USUAL: Self = Self {
        polled: Duration::from_millis(12_800),
        counted: Duration::from_secs(20),
        notified: Duration::from_secs(30),
        gone: Duration::from_secs(60),
    };
}

/// Between two descriptions of this machine.
const DESCRIBED: Duration = Duration::from_secs(300);
/// Between two comparisons of all certificates: a machine that was killed may have changed one
/// and informed no other. A listing of a hundred thousand takes a hundred calls of S3.
const WHOLE: Duration = Duration::from_secs(24 * 3600);
/// The certificates that are compared at one look at first; each further look takes twice as
/// many, so that the first of many are deployed soon.
const FIRST: usize = 64;
const ATTEMPTS: u32 = 20;
/// An issuer that has reached no CA, or has written nothing to its own disk, for this time gives
/// another machine its place: that one may be able to.
const HINDERED: Duration = Duration::from_secs(1800);

/// Since when something hinders this machine; `None`: nothing does.
#[derive(Debug, Default)]
pub(super) struct Hindrance(Option<Duration>);

impl Hindrance {
    pub(super) fn note(&mut self, is_there: bool, now: Duration) {
        self.0 = is_there.then(|| self.0.unwrap_or(now));
    }
}

/// What hinders this machine from the scheduled work of its fleet.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    /// Its copy cannot be written.
    pub(super) own: Hindrance,
    /// A CA is unreachable.
    pub(super) cas: BTreeMap<String, Hindrance>,
}

impl Trouble {
    fn is_long(&self, now: Duration) -> bool {
        let all = self.cas.values().chain([&self.own]);
        let mut since = all.filter_map(|one| one.0);
        since.any(|since| now.saturating_sub(since) >= HINDERED)
    }
}
/// Clocks that are further apart are an alarm.
const CLOCKS_APART: Duration = Duration::from_secs(60);

/// What the last look has shown.
#[derive(Debug, Default)]
pub(super) struct Following {
    fleet: Fleet,
    version: Option<Version>,
    /// The number of the last change that is copied; `None`: compare everything.
    copied: Option<u64>,
    /// A reading of the stopwatch, as those below.
    compared: Option<Duration>,
    /// The document in which the changes are counted.
    begun: Option<u64>,
    /// Our own description, and when it was written.
    described: Option<(Duration, Version)>,
    /// The descriptions of all machines at the last comparison of everything.
    nodes: BTreeMap<String, Version>,
    /// The issuer's count, and since when it stands there.
    beat: Option<(u64, u64, Duration)>,
    /// Those that must be compared again, or at all.
    failed: Vec<Lineage>,
    /// The damaged ones that were looked at.
    examined: BTreeSet<Lineage>,
    /// Those that are compared before others, at the first look.
    first: BTreeSet<Lineage>,
    /// The most certificates of the next look; 0: as at the first.
    most: usize,
    /// Whether some are left for the next look.
    has_more: bool,
    /// Whether the store was seen to compare and swap.
    is_probed: bool,
    /// When this machine gave up its place.
    gave_up: Option<Duration>,
    /// Whether the last look failed.
    is_down: bool,
}

/// What the server tells of the document of the fleet.
#[derive(Debug)]
pub(super) struct Watching {
    notices: watch::Receiver<Notice>,
    _task: JoinSet<()>,
}

/// The result of one look.
#[derive(Debug, Default)]
pub struct Turn {
    /// What has changed here.
    pub changed: Vec<(Lineage, Change)>,
    /// Whether this machine has just become the issuer.
    pub promoted: bool,
}

/// What follows a look.
#[derive(Debug)]
pub enum Followed {
    /// The shared store was reached.
    Turn(Turn),
    /// It was not reached; whether this is news.
    Down(StoreError, bool),
}

impl Watching {
    /// Returns when the server tells of another version than `known`.
    async fn news(&mut self, known: Option<&Version>) {
        while self.notices.changed().await.is_ok() {
            let notices = self.notices.borrow_and_update();
            if matches!(&*notices, Notice::Newest(newest) if newest.as_ref() != known) {
                return;
            }
        }
        // The server tells nothing.
        std::future::pending().await
    }
}

impl NodeStore {
    /// Returns when the next look is due: at a change elsewhere where the shared store tells of
    /// it, else after 12.8 seconds; at a change of our own; and at once if some are left.
    pub async fn until_due(&self) {
        let (version, has_more, is_down) = {
            let following = self.follow.lock().await;
            let version = following.version.clone();
            (version, following.has_more, following.is_down)
        };
        let mut watching = self.watching.lock().await;
        let watching = watching.get_or_insert_with(|| {
            let (sender, notices) = watch::channel(Notice::Nothing);
            let _task = self.shared.watch_fleet(sender);
            Watching { notices, _task }
        });
        let is_notified = *watching.notices.borrow() != Notice::Nothing && !is_down;
        let pause = match (is_notified, self.is_issuer.load(Ordering::SeqCst)) {
            _ if has_more && !is_down => return,
            (false, _) => self.pace.polled,
            (true, true) => self.pace.counted,
            (true, false) => self.pace.notified,
        };
        tokio::select! {
            // A fixed order keeps the simulation deterministic.
            biased;
            () = self.announce.notified() => {}
            () = watching.news(version.as_ref()), if !is_down => {}
            () = self.stopwatch().sleep(pause) => {}
        }
    }

    /// Looks at the fleet: copies what has changed, tells of own changes, and takes or keeps
    /// the issuer's place.
    pub async fn follow(&self) -> Followed {
        let mut following = self.follow.lock().await;
        match self.turn(&mut following).await {
            Ok(turn) => {
                if std::mem::take(&mut following.is_down) {
                    tracing::info!("the shared store is reached again");
                }
                Followed::Turn(turn)
            }
            Err(error) => {
                if following.beat.is_none_or(|beat| self.is_gone(beat)) {
                    // Another machine has taken over by now.
                    self.is_issuer.store(false, Ordering::SeqCst);
                }
                let is_news = !std::mem::replace(&mut following.is_down, true);
                Followed::Down(error, is_news)
            }
        }
    }

    /// The first look, before the start: its failure is news for the caller. Of many
    /// certificates it takes those of `first`, and some others; the next looks take the rest.
    ///
    /// # Errors
    /// When the shared store cannot be read or written.
    pub async fn join(
        &self,
        first: BTreeSet<Lineage>,
    ) -> Result<Vec<(Lineage, Change)>, StoreError> {
        self.follow.lock().await.first = first;
        match self.follow().await {
            Followed::Turn(turn) => Ok(turn.changed),
            Followed::Down(error, _) => Err(error),
        }
    }

    async fn turn(&self, following: &mut Following) -> Result<Turn, StoreError> {
        if !following.is_probed {
            // First, so that nothing is written where another fleet is.
            self.claim().await?;
            self.shared.probe().await?;
            following.is_probed = true;
        }
        let promoted = self.announce_changes(following).await?;
        if promoted {
            tracing::info!("this machine does the scheduled work of its fleet");
            // The one before may have been killed before it announced a change.
            following.compared = None;
        }
        let sequence = following.fleet.sequence;
        let due = self.due(following).await?;
        following.copied = Some(sequence);
        let mut synced = self.sync_each(due).await;
        following.failed.extend(synced.failed);
        let unreported = std::mem::take(&mut *lock(&self.unreported));
        let stored = unreported.into_iter().map(|one| (one, Change::Stored));
        synced.changed.extend(stored);
        // Those that this machine deletes must be gone at the next look.
        let deleted = synced.changed.iter();
        let deleted = deleted.filter(|(_, change)| *change == Change::Deleted);
        let deleted: Vec<Lineage> = deleted.map(|(lineage, _)| lineage.clone()).collect();
        following.failed.extend(deleted);
        let damaged = &following.fleet.damaged;
        let new: BTreeSet<Lineage> = damaged - &following.examined;
        following.examined = damaged - &self.repair_each(&new).await;
        Ok(Turn {
            changed: synced.changed,
            promoted,
        })
    }

    /// The certificates to compare at this look; the rest is left for the next ones.
    async fn due(&self, following: &mut Following) -> Result<Vec<Lineage>, StoreError> {
        let is_whole = |at| self.stopwatch().since(at) < WHOLE;
        if following.begun.replace(following.fleet.begun) != Some(following.fleet.begun) {
            // The store was wiped: another document counts again.
            following.copied = None;
        }
        let missed = following
            .copied
            .filter(|_| following.compared.is_some_and(is_whole));
        let missed = missed.and_then(|sequence| following.fleet.since(sequence));
        // What was left before comes first.
        let mut due = std::mem::take(&mut following.failed);
        let mut known: BTreeSet<Lineage> = due.iter().cloned().collect();
        let more = match missed {
            Some(missed) => missed,
            None => {
                let stale = self.stale().await?;
                following.compared = Some(self.stopwatch().read());
                self.check_clock().await;
                self.forget_nodes(following).await?;
                let wanted = std::mem::take(&mut following.first);
                let is_first = |one: &Lineage| wanted.contains(one);
                let (mut first, others): (Vec<_>, Vec<_>) = stale.into_iter().partition(is_first);
                if !first.is_empty() {
                    following.most = first.len().min(FIRST);
                }
                first.extend(others);
                first
            }
        };
        due.extend(more.into_iter().filter(|one| known.insert(one.clone())));
        let most = match following.most {
            0 => FIRST,
            most => most,
        };
        let rest = due.split_off(due.len().min(most));
        following.has_more = !rest.is_empty();
        following.most = match following.has_more {
            true => FIRST.max(2 * most),
            false => FIRST,
        };
        following.failed = rest;
        Ok(due)
    }

    /// The issuer removes the descriptions of machines that have been gone for a week: they
    /// have not changed since the last comparison either, whatever the machine's clock says.
    async fn forget_nodes(&self, following: &mut Following) -> Result<(), StoreError> {
        if !self.is_issuer.load(Ordering::SeqCst) {
            return Ok(());
        }
        let nodes = self.shared.keys("nodes/").await?;
        for (key, version) in &nodes {
            if following.nodes.get(key) == Some(version) {
                self.shared.forget_node(key).await?;
            }
        }
        following.nodes = nodes;
        Ok(())
    }

    /// Says when this machine's clock and that of the store are apart. Leases end by the store's
    /// clock alone, and S3 refuses a machine that is a quarter of an hour off.
    async fn check_clock(&self) {
        let (theirs, ours) = (self.shared.time().await, self.stopwatch().now());
        if let Some(alarm) = theirs.ok().and_then(|theirs| clock_alarm(ours, theirs)) {
            tracing::error!("{alarm}");
        }
    }

    /// Announces own changes to the other machines; whether this machine has become the
    /// issuer.
    async fn announce_changes(&self, following: &mut Following) -> Result<bool, StoreError> {
        let unannounced = std::mem::take(&mut *lock(&self.unannounced));
        let damaged = std::mem::take(&mut *lock(&self.damaged));
        let written = self.write_fleet(following, (&unannounced, &damaged)).await;
        if written.is_err() {
            lock(&self.unannounced).extend(unannounced);
            lock(&self.damaged).extend(damaged);
        }
        written
    }

    /// Announces to the other machines what a command has changed.
    pub async fn announce(&self) {
        self.shared.settle().await;
        let mut following = self.follow.lock().await;
        if lock(&self.unannounced).is_empty() {
            return;
        }
        if let Err(error) = self.announce_changes(&mut following).await {
            tracing::warn!("the other machines see the change within a day: {error}");
        }
    }

    /// Brings the document of the fleet up to date, and returns whether this machine has
    /// become the issuer.
    async fn write_fleet(
        &self,
        following: &mut Following,
        (unannounced, damaged): (&BTreeSet<Lineage>, &BTreeSet<Lineage>),
    ) -> Result<bool, StoreError> {
        let was_issuer = self.is_issuer.load(Ordering::SeqCst);
        // The issuer most often knows the document: no other machine writes it.
        let mut is_known = was_issuer && following.version.is_some() && self.must_count(following);
        for _ in 0..ATTEMPTS {
            if !is_known {
                let read = self.shared.fleet().await;
                let is_ours = match &read {
                    Ok((fleet, _)) => lock(&self.copies).is_of(fleet.id),
                    Err(error) => !matches!(error, StoreError::Corrupt { .. }),
                };
                if !is_ours {
                    // Another store is there, or one that was wiped or damaged.
                    self.claim().await?;
                    continue;
                }
                (following.fleet, following.version) = read?;
                following.note_beat(self.stopwatch().read());
            }
            let mut fleet = following.fleet.clone();
            for lineage in unannounced {
                fleet.announce(lineage.clone());
            }
            for lineage in damaged {
                fleet.note_damage(lineage.clone());
            }
            let gives_up = self.seat(&mut fleet, following);
            let is_new = following.version.is_none();
            if is_new {
                fleet.begun = SystemRandom.below(u64::MAX);
            }
            if is_new || fleet != following.fleet {
                let written = self.shared.swap_fleet(&fleet, following.version.as_ref());
                let Some(version) = written.await? else {
                    is_known = false;
                    continue;
                };
                (following.fleet, following.version) = (fleet, Some(version));
                following.note_beat(self.stopwatch().read());
            }
            if gives_up {
                following.gave_up = Some(self.stopwatch().read());
                *lock(&self.trouble) = Trouble::default();
                tracing::warn!(
                    "this machine leaves the scheduled work to another one: it has reached no CA, or could not write its own files"
                );
            }
            let issuer = following.fleet.issuer.as_ref();
            let is_issuer = issuer.is_some_and(|issuer| issuer.holder == self.process);
            self.is_issuer.store(is_issuer, Ordering::SeqCst);
            return Ok(is_issuer && !was_issuer);
        }
        Err(crate::store::shared::busy("fleet"))
    }

    /// Whether that count stands since too long.
    fn is_gone(&self, (_, _, since): (u64, u64, Duration)) -> bool {
        self.stopwatch().since(since) >= self.pace.gone
    }

    /// Whether the issuer's next count is due.
    fn must_count(&self, following: &Following) -> bool {
        let counted = following
            .beat
            .filter(|(holder, ..)| *holder == self.process);
        counted.is_none_or(|(_, _, since)| self.stopwatch().since(since) >= self.pace.polled)
    }

    /// Takes or keeps the issuer's place, if it is this machine's or free. True if this machine
    /// gives it up.
    fn seat(&self, fleet: &mut Fleet, following: &Following) -> bool {
        let now = self.stopwatch().read();
        let is_command = self.is_command.load(Ordering::SeqCst);
        if self.role == Role::Serve || is_command {
            return false;
        }
        let own = |issuer: &Issuer| issuer.holder == self.process;
        if self.has_resigned.load(Ordering::SeqCst) {
            fleet.issuer.take_if(|issuer| own(issuer));
            return false;
        }
        let is_gone = following.beat.is_some_and(|beat| self.is_gone(beat));
        let beat = match &fleet.issuer {
            Some(issuer) if own(issuer) => {
                if lock(&self.trouble).is_long(now) {
                    fleet.issuer = None;
                    return true;
                }
                issuer.beat + u64::from(self.must_count(following))
            }
            Some(_) if !is_gone => return false,
            // The others look first.
            None if following
                .gave_up
                .is_some_and(|at| now < at + self.pace.polled) =>
            {
                return false;
            }
            _ => 1,
        };
        fleet.issuer = Some(Issuer {
            node: self.shared.node().to_owned(),
            holder: self.process,
            beat,
        });
        false
    }

    /// Describes this machine to the others, if that is due; `describe` makes the description.
    ///
    /// # Errors
    /// When the shared store cannot be written.
    pub async fn describe(
        &self,
        describe: impl FnOnce(u64) -> FleetNode,
    ) -> Result<(), StoreError> {
        let mut following = self.follow.lock().await;
        let is_recent = |at| self.stopwatch().since(at) < DESCRIBED;
        let known = following.described.take();
        if let Some((at, version)) = &known
            && is_recent(*at)
        {
            following.described = Some((*at, version.clone()));
            return Ok(());
        }
        let mut node = describe(self.process);
        let known = known.map(|(_, version)| version);
        let written = self.shared.describe(&mut node, known.as_ref()).await?;
        following.described = Some((self.stopwatch().read(), written));
        if let Some(host) = &node.rival {
            tracing::error!(
                "another machine of the fleet, with the host name {host}, is named {} too; hint: give each its own --node",
                node.node
            );
        }
        Ok(())
    }

    /// Frees the issuer's place, for good: another machine does the scheduled work.
    pub async fn resign(&self) {
        // A look at the same time may free the place before this one does.
        let was_issuer = self.is_issuer.load(Ordering::SeqCst);
        self.has_resigned.store(true, Ordering::SeqCst);
        let mut following = self.follow.lock().await;
        if was_issuer {
            match self.announce_changes(&mut following).await {
                Ok(_) => tracing::info!(
                    "another machine of the fleet does the scheduled work from now on"
                ),
                Err(error) => {
                    tracing::warn!("another machine does the scheduled work in a minute: {error}")
                }
            }
        }
    }

    /// Frees the issuer's place, and takes this machine out of the fleet.
    pub async fn leave(&self) {
        self.resign().await;
        self.shared.settle().await;
        self.shared.leave(self.process).await;
    }
}

fn clock_alarm(ours: Timestamp, theirs: Timestamp) -> Option<String> {
    (ours.apart(theirs) > CLOCKS_APART).then(|| {
        format!(
            "this machine's clock says {ours}, and that of the shared store {theirs}; hint: set this machine's clock, best by NTP"
        )
    })
}

impl Following {
    /// Notes since when the issuer's count stands where it is.
    fn note_beat(&mut self, now: Duration) {
        let beat = self.fleet.issuer.as_ref();
        let beat = beat.map(|issuer| (issuer.holder, issuer.beat));
        let stands = self
            .beat
            .is_some_and(|(holder, count, _)| Some((holder, count)) == beat);
        if !stands {
            self.beat = beat.map(|(holder, count)| (holder, count, now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_that_is_minutes_off_is_an_alarm() {
        let at = |seconds: i64| Timestamp::from_seconds(1_800_000_000 + seconds);
        for (ahead, is_alarm) in [
            (0, false),
            (-60, false),
            (60, false),
            (300, true),
            (-300, true),
        ] {
            let alarm = clock_alarm(at(ahead), at(0));
            assert_eq!(alarm.is_some(), is_alarm, "{ahead}: {alarm:?}");
        }
    }
}
