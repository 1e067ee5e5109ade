//! Follows the fleet: which certificates have changed elsewhere, and whether this machine
//! does the scheduled work. One document says both. The issuer counts in it at every turn;
//! another machine takes over when the count has stood still for a minute of its own clock,
//! so that the machines' clocks may differ.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Change, NodeStore, Role, lock};
use crate::lineage::Lineage;
use crate::store::StoreError;
use crate::store::documents::Version;
use crate::store::shared::fleet::{Fleet, FleetNode, Issuer};
use crate::time::Timestamp;

/// Between two descriptions of this machine.
const DESCRIBED: Duration = Duration::from_secs(120);
/// Between two comparisons of all certificates: a machine that was killed may have changed one
/// and informed no other.
const WHOLE: Duration = Duration::from_secs(3600);
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
    /// Readings of the stopwatch.
    compared: Option<Duration>,
    described: Option<Duration>,
    /// The issuer's count, and since when it stands there.
    beat: Option<(u64, u64, Duration)>,
    /// Those that must be compared again.
    failed: Vec<Lineage>,
    /// Whether the store was seen to compare and swap.
    is_probed: bool,
    /// When this machine gave up its place.
    gave_up: Option<Duration>,
    /// Whether the last look failed.
    is_down: bool,
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

impl NodeStore {
    /// Returns when the next look is due: after some seconds, at a change elsewhere where the
    /// shared store tells of it, or at a change of our own.
    pub async fn until_due(&self) {
        let version = self.follow.lock().await.version.clone();
        tokio::select! {
            // A fixed order keeps the simulation deterministic.
            biased;
            () = self.announce.notified() => {}
            () = self.shared.fleet_changed(version.as_ref()) => {}
            () = self.stopwatch().sleep(self.every) => {}
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

    /// The first look, before the start: its failure is news for the caller.
    ///
    /// # Errors
    /// When the shared store cannot be read or written.
    pub async fn join(&self) -> Result<Vec<(Lineage, Change)>, StoreError> {
        match self.follow().await {
            Followed::Turn(turn) => Ok(turn.changed),
            Followed::Down(error, _) => Err(error),
        }
    }

    async fn turn(&self, following: &mut Following) -> Result<Turn, StoreError> {
        if !following.is_probed {
            // First, so that nothing is written where another fleet is.
            self.shared.claim().await?;
            self.shared.probe().await?;
            following.is_probed = true;
        }
        let promoted = self.announce_changes(following).await?;
        if promoted {
            tracing::info!("this machine does the scheduled work of its fleet");
        }
        let is_whole = |at| self.stopwatch().since(at) < WHOLE;
        let missed = following
            .copied
            .filter(|_| following.compared.is_some_and(is_whole));
        let missed = missed.and_then(|sequence| following.fleet.since(sequence));
        let sequence = following.fleet.sequence;
        let synced = match missed {
            Some(mut missed) => {
                missed.append(&mut following.failed);
                missed.sort();
                missed.dedup();
                self.sync_each(missed).await
            }
            None => {
                let synced = self.sync_all().await?;
                following.compared = Some(self.stopwatch().read());
                self.check_clock().await;
                synced
            }
        };
        (following.copied, following.failed) = (Some(sequence), synced.failed);
        // Those that this machine deletes must be gone at the next look.
        let deleted = synced.changed.iter();
        let deleted = deleted.filter(|(_, change)| *change == Change::Deleted);
        let deleted: Vec<Lineage> = deleted.map(|(lineage, _)| lineage.clone()).collect();
        following.failed.extend(deleted);
        Ok(Turn {
            changed: synced.changed,
            promoted,
        })
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
        let written = self.write_fleet(following, &unannounced).await;
        if written.is_err() {
            lock(&self.unannounced).extend(unannounced);
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
            tracing::warn!("the other machines see the change within an hour: {error}");
        }
    }

    /// Brings the document of the fleet up to date, and returns whether this machine has
    /// become the issuer.
    async fn write_fleet(
        &self,
        following: &mut Following,
        unannounced: &BTreeSet<Lineage>,
    ) -> Result<bool, StoreError> {
        let was_issuer = self.is_issuer.load(Ordering::SeqCst);
        // The issuer most often knows the document: no other machine writes it.
        let mut is_known = was_issuer && following.version.is_some();
        for _ in 0..ATTEMPTS {
            if !is_known {
                (following.fleet, following.version) = self.shared.fleet().await?;
                following.note_beat(self.stopwatch().read());
            }
            let mut fleet = following.fleet.clone();
            for lineage in unannounced {
                fleet.announce(lineage.clone());
            }
            let gives_up = self.seat(&mut fleet, following);
            if fleet != following.fleet {
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
        self.stopwatch().since(since) >= self.gone
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
                issuer.beat + 1
            }
            Some(_) if !is_gone => return false,
            // The others look first.
            None if following.gave_up.is_some_and(|at| now < at + self.every) => return false,
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
        if following.described.is_some_and(is_recent) {
            return Ok(());
        }
        let node = describe(self.process);
        let before = self.shared.describe(&node).await?;
        let first = following
            .described
            .replace(self.stopwatch().read())
            .is_none();
        let other = before.filter(|before| before.process != self.process);
        if let (false, Some(_)) = (first, other) {
            tracing::error!(
                "another machine of the fleet is named {} too; hint: give each its own --node",
                node.node
            );
        }
        Ok(())
    }

    /// Frees the issuer's place, for good: another machine does the scheduled work.
    pub async fn resign(&self) {
        self.has_resigned.store(true, Ordering::SeqCst);
        let mut following = self.follow.lock().await;
        if self.is_issuer.load(Ordering::SeqCst) {
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
