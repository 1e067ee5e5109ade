//! The store of one machine of a fleet: a copy of the shared store in its own directory, with
//! its own deployments. It reads the copy, so that it goes on without the shared store; what
//! the machines share is written there first, by compare-and-swap, and then to the copy. A
//! stale copy does no harm: a write against it is refused, and the copy is renewed.

mod copies;
mod follow;
mod options;
mod repair;
mod sync;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, OwnedMutexGuard};

use self::copies::{Change as Noted, Copied, Copies};
pub(crate) use self::follow::Pace;
pub use self::follow::{Followed, Turn};
pub use self::sync::Change;
use super::documents::Version;
use super::fs::FileStore;
use super::shared::fleet::SharedAnswer;
use super::shared::{SharedStore, Stopwatch, StoredAccount};
use super::{Lease, OwnStore, Store, StoreError, deletable, next_revision};
use crate::ca_state::CaState;
use crate::certificate::{Bundle, Secret};
use crate::lineage::Lineage;
use crate::random::{Random, SystemRandom};
use crate::record::{Generation, Record, Revision};

/// Reads of a CA's state that follow each other use one reply: a save is compared anyway.
const STATE_FOR: Duration = Duration::from_secs(15);
/// Challenge answers are listed at most this often, whatever requests come.
const ANSWERS_EVERY: Duration = Duration::from_secs(1);

/// What a machine does for its fleet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It orders certificates, and serves them.
    #[default]
    Full,
    /// It only serves them, and never reads an account.
    Serve,
}

impl Role {
    /// The words of the configuration.
    pub const NAMES: [&'static str; 2] = ["full", "serve"];

    /// Its word in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => Self::NAMES[0],
            Self::Serve => Self::NAMES[1],
        }
    }
}

impl std::str::FromStr for Role {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "full" => Ok(Self::Full),
            "serve" => Ok(Self::Serve),
            _ => Err(format!("unknown role `{}`", text.escape_debug())),
        }
    }
}

/// Live answers by key, with their versions.
type Answers = BTreeMap<String, (Version, SharedAnswer)>;

/// The store of one machine of a fleet.
#[derive(Debug)]
pub struct NodeStore {
    own: Arc<dyn OwnStore>,
    shared: SharedStore,
    role: Role,
    pace: Pace,
    /// Drawn at the start.
    process: u64,
    copies: Mutex<Copies>,
    /// Held while a certificate and its copy differ.
    changing: Mutex<BTreeMap<Lineage, Arc<tokio::sync::Mutex<()>>>>,
    /// Own changes that the others do not know of yet.
    unannounced: Mutex<BTreeSet<Lineage>>,
    /// Those of which the shared store has something damaged or missing.
    damaged: Mutex<BTreeSet<Lineage>>,
    /// What was last said of each.
    said: Mutex<BTreeMap<Lineage, String>>,
    /// Those whose options a pass has copied, for the next look to report.
    unreported: Mutex<BTreeSet<Lineage>>,
    announce: Notify,
    is_issuer: AtomicBool,
    /// Whether this is one command, which takes no issuer's place and waits for none.
    is_command: AtomicBool,
    /// Whether it takes the issuer's place no more.
    has_resigned: AtomicBool,
    follow: tokio::sync::Mutex<follow::Following>,
    trouble: Mutex<follow::Trouble>,
    watching: tokio::sync::Mutex<Option<follow::Watching>>,
    states: Mutex<BTreeMap<String, (Duration, CaState, Revision)>>,
    answers: tokio::sync::Mutex<Option<(Duration, Answers)>>,
}

/// The states of CAs that a machine with these copies knew last.
pub(crate) fn known_ca_states(own: &dyn OwnStore) -> BTreeMap<String, CaState> {
    let copies = Copies::read(own);
    let states = copies.cas().iter();
    { states.map(|(ca, (state, _))| (ca.clone(), state.clone())) }.collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl NodeStore {
    /// The copy in `root`, which is created, of `shared`.
    pub(super) fn open(root: PathBuf, shared: SharedStore, role: Role) -> Result<Self, StoreError> {
        let own = Arc::new(FileStore::open(root)?);
        Ok(Self::over(own, shared, role, Pace::USUAL))
    }

    /// The same with the copy in `own`.
    pub(crate) fn over(
        own: Arc<dyn OwnStore>,
        shared: SharedStore,
        role: Role,
        pace: Pace,
    ) -> Self {
        let copies = Copies::read(&*own);
        // A process of this machine was killed before it announced these changes.
        let unknown = copies.certificates.iter();
        let unknown = unknown.filter(|(_, copied)| copied.version.is_empty());
        let unknown: BTreeSet<Lineage> = unknown.map(|(lineage, _)| lineage.clone()).collect();
        Self {
            copies: Mutex::new(copies),
            own,
            shared,
            role,
            pace,
            process: SystemRandom.below(u64::MAX),
            changing: Mutex::default(),
            unannounced: Mutex::new(unknown),
            damaged: Mutex::default(),
            said: Mutex::default(),
            unreported: Mutex::default(),
            announce: Notify::new(),
            is_issuer: AtomicBool::default(),
            is_command: AtomicBool::default(),
            has_resigned: AtomicBool::default(),
            follow: tokio::sync::Mutex::default(),
            trouble: Mutex::default(),
            watching: tokio::sync::Mutex::default(),
            states: Mutex::default(),
            answers: tokio::sync::Mutex::default(),
        }
    }

    fn stopwatch(&self) -> &Stopwatch {
        self.shared.stopwatch()
    }

    /// The shared store itself.
    #[must_use]
    pub fn shared(&self) -> &SharedStore {
        &self.shared
    }

    /// From now on this is the store of one command.
    pub fn serve_command(&self) {
        self.is_command.store(true, Ordering::SeqCst);
    }

    /// What this machine does for its fleet.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// The live answers of all machines, as the store has them after this call began. A flood
    /// of requests costs the store one list a second, for which the requests wait.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn answers(&self) -> Result<Vec<SharedAnswer>, StoreError> {
        let called = self.stopwatch().read();
        let mut known = self.answers.lock().await;
        let listed = known.as_ref().map(|(at, _)| *at);
        if listed.is_none_or(|at| at <= called) {
            if let Some(at) = listed {
                let pause = ANSWERS_EVERY.saturating_sub(self.stopwatch().since(at));
                self.stopwatch().sleep(pause).await;
            }
            let now = self.stopwatch().read();
            // A caller that stops waiting leaves what is known.
            let before = known.as_ref().map(|(_, answers)| answers.clone());
            let before = before.unwrap_or_default();
            let read = self.shared.answers(&before).await;
            // A store that is down is asked once a second too.
            *known = Some((now, read.as_ref().cloned().unwrap_or_default()));
            read?;
        }
        let answers = known.iter().flat_map(|(_, answers)| answers.values());
        Ok(answers.map(|(_, answer)| answer.clone()).collect())
    }

    /// Gives `answer` to every machine.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn put_answer(&self, answer: &SharedAnswer) -> Result<(), StoreError> {
        self.shared.put_answer(answer).await
    }

    /// Takes `answer` back from every machine.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn remove_answer(&self, answer: &SharedAnswer) -> Result<(), StoreError> {
        self.shared.remove_answer(answer).await
    }

    /// Keeps other tasks of this process from this certificate's copy.
    async fn changing(&self, lineage: &Lineage) -> OwnedMutexGuard<()> {
        let one = {
            let mut all = lock(&self.changing);
            all.retain(|_, one| Arc::strong_count(one) > 1);
            all.entry(lineage.clone()).or_default().clone()
        };
        one.lock_owned().await
    }

    /// Tells the other machines of a change, at their next look.
    fn changed(&self, lineage: &Lineage) {
        lock(&self.unannounced).insert(lineage.clone());
        self.announce.notify_one();
    }

    /// Refuses a stale revision before anything is shared.
    async fn check_own(&self, lineage: &Lineage, expected: Revision) -> Result<(), StoreError> {
        let found = deletable(self.own.load(lineage).await)?;
        next_revision(format!("the record of {lineage}"), expected, found).map(drop)
    }

    /// Keeps a copy of an account, for a store that is wiped.
    async fn copy_account(&self, ca: &str, account: &StoredAccount) -> Result<(), StoreError> {
        match (self.own.account(ca).await?, &account.credentials) {
            (own, stored) if own == *stored => {}
            (Some(own), Some(stored)) => self.own.save_account(ca, stored, &own).await?,
            (Some(own), None) => self.own.delete_account(ca, &own).await?,
            (None, Some(stored)) => drop(self.own.create_account(ca, stored).await?),
            (None, None) => {}
        }
        if lock(&self.copies).account(ca) != account.revision {
            self.note(Noted::Account(ca.to_owned(), account.revision));
        }
        Ok(())
    }

    /// The same for the state of the fleet's account, which was just changed.
    async fn copy_changed_account(&self, ca: &str) -> Result<(), StoreError> {
        let (stored, _) = self.shared.stored_account(ca).await?;
        self.copy_account(ca, &stored).await
    }

    fn note_ca_state(&self, ca: &str, state: &CaState, revision: Revision) {
        let known = (self.stopwatch().read(), state.clone(), revision);
        lock(&self.states).insert(ca.to_owned(), known);
        let is_kept = lock(&self.copies)
            .ca(ca)
            .is_some_and(|(_, kept)| *kept == revision);
        if !is_kept {
            self.note(Noted::Ca(ca.to_owned(), revision, state.clone()));
        }
    }

    /// The name that a certificate has got, which is gone under the name `lineage`.
    #[must_use]
    pub fn renamed_to(&self, lineage: &Lineage) -> Option<Lineage> {
        let copies = lock(&self.copies);
        let id = copies.certificates.get(lineage)?.id;
        let mut others = { copies.certificates.iter() }.filter(|(name, _)| *name != lineage);
        let (name, _) = others.find(|(_, copied)| copied.id == id)?;
        Some(name.clone())
    }

    fn copied(&self, lineage: &Lineage) -> Option<Copied> {
        lock(&self.copies).certificates.get(lineage).cloned()
    }

    /// Notes what is copied from now on.
    fn note(&self, change: Noted) {
        lock(&self.copies).note(change, &*self.own);
    }

    fn note_copy(&self, lineage: &Lineage, copied: Option<Copied>) {
        self.note(Noted::Certificate(lineage.clone(), copied));
    }

    /// Finds out the number of the fleet, which must be that of the copies.
    ///
    /// # Errors
    /// When the store is of another fleet, or cannot compare and swap: nothing is written then.
    async fn claim(&self) -> Result<(), StoreError> {
        let own = lock(&self.copies).fleet();
        let id = self.shared.claim(own, self.repairs()).await?;
        if !lock(&self.copies).is_of(id) {
            self.note(Noted::Fleet(id));
        }
        if self.role == Role::Full {
            self.share_accounts().await?;
        }
        Ok(())
    }

    /// Shares the accounts that this machine had on its own: the first order of another machine
    /// would register one more.
    async fn share_accounts(&self) -> Result<(), StoreError> {
        for ca in self.own.accounts()? {
            let is_shared = lock(&self.copies).account(&ca) > Revision(0);
            if !is_shared && let Err(error) = self.shared_account(&ca).await {
                tracing::warn!("the account at {ca} is not shared with the fleet yet: {error}");
            }
        }
        Ok(())
    }

    /// The account at `ca`; an older one than this machine has seen is replaced.
    async fn shared_account(&self, ca: &str) -> Result<Option<Secret>, StoreError> {
        let known = lock(&self.copies).account(ca);
        let (mut stored, version) = match self.shared.stored_account(ca).await {
            Err(StoreError::Corrupt { .. }) if known > Revision(0) => {
                self.shared.damaged_account(ca).await?
            }
            read => read?,
        };
        let own = self.own.account(ca).await?;
        // That of a machine that was on its own before.
        let is_new = known == Revision(0) && own.is_some() && stored.credentials.is_none();
        if stored.revision < known || is_new {
            let newer = StoredAccount {
                revision: known.max(Revision(stored.revision.0 + 1)),
                credentials: own,
            };
            if !self
                .shared
                .swap_account(ca, &newer, version.as_ref())
                .await?
            {
                return Err(super::shared::busy("an account"));
            }
            if version.is_some() {
                tracing::warn!(
                    "the shared store had an older account of {ca}: it has this machine's again"
                );
            }
            stored = newer;
        }
        self.copy_account(ca, &stored).await?;
        Ok(stored.credentials)
    }
}

#[async_trait]
impl Store for NodeStore {
    async fn load(&self, lineage: &Lineage) -> Result<Option<(Record, Revision)>, StoreError> {
        self.own.load(lineage).await
    }

    async fn save(
        &self,
        record: &Record,
        expected: Revision,
        bundle: Option<&Bundle>,
    ) -> Result<Revision, StoreError> {
        let lineage = &record.lineage;
        let _changing = self.changing(lineage).await;
        let before = self.own.load(lineage).await?;
        let own = before.as_ref().map(|(record, _)| record);
        let is_own = bundle.is_none() && own.is_some_and(|own| sync::is_same(own, record));
        if !is_own {
            self.check_own(lineage, expected).await?;
            self.save_shared(record, bundle).await?;
        }
        let saved = self.own.save(record, expected, bundle).await;
        let is_full = matches!(saved, Err(StoreError::Io { .. }));
        lock(&self.trouble)
            .own
            .note(is_full, self.stopwatch().read());
        saved
    }

    async fn bundle(
        &self,
        lineage: &Lineage,
        generation: Generation,
    ) -> Result<Option<(Secret, String)>, StoreError> {
        match self.own.bundle(lineage, generation).await? {
            Some(pair) => Ok(Some(pair)),
            // An earlier one than this machine has followed.
            None => self.shared.bundle(lineage, generation).await,
        }
    }

    async fn options(&self, lineage: &Lineage) -> Result<Option<String>, StoreError> {
        self.own.options(lineage).await
    }

    async fn save_options(&self, lineage: &Lineage, json: &str) -> Result<(), StoreError> {
        let _changing = self.changing(lineage).await;
        if self.own.options(lineage).await?.as_deref() == Some(json) {
            return Ok(());
        }
        let shared = options::shared(json);
        let known = self.own.options(lineage).await?;
        let is_news = known.is_none_or(|known| options::shared(&known) != shared);
        if self.role == Role::Full && is_news {
            self.shared.save_options(lineage, &shared).await?;
            self.changed(lineage);
        }
        self.own.save_options(lineage, json).await
    }

    async fn delete(&self, lineage: &Lineage, expected: Revision) -> Result<bool, StoreError> {
        let _changing = self.changing(lineage).await;
        self.check_own(lineage, expected).await?;
        if let Some(copied) = self.copied(lineage) {
            let there = self.shared.copy(lineage).await?;
            if let Some(there) = there.filter(|there| there.id == copied.id) {
                let revision = there.record.map_or(Revision(0), |_| there.revision);
                self.shared.delete(lineage, revision).await?;
                self.changed(lineage);
            }
            self.note_copy(lineage, None);
        }
        self.own.delete(lineage, expected).await
    }

    async fn rename(
        &self,
        from: &Lineage,
        to: &Lineage,
        expected: Revision,
    ) -> Result<(), StoreError> {
        let _changing = self.changing(from).await;
        self.check_own(from, expected).await?;
        if self.copied(from).is_some()
            && let Some(there) = self.shared.copy(from).await?
        {
            self.shared.rename(from, to, there.revision).await?;
            self.note_copy(to, self.copied(from));
            self.note_copy(from, None);
            self.changed(from);
            self.changed(to);
        }
        self.own.rename(from, to, expected).await
    }

    async fn list(&self) -> Result<Vec<Lineage>, StoreError> {
        self.own.list().await
    }

    async fn lease(&self, lineage: &Lineage) -> Result<Box<dyn Lease>, StoreError> {
        self.own.lease(lineage).await
    }

    fn is_issuer(&self) -> bool {
        let is = |one: &AtomicBool| one.load(Ordering::SeqCst);
        let is_issuer = is(&self.is_issuer) && !is(&self.has_resigned);
        self.role == Role::Full && (is_issuer || is(&self.is_command))
    }

    async fn share(
        &self,
        lineage: &Lineage,
        requested: bool,
    ) -> Result<Option<Box<dyn Lease>>, StoreError> {
        match (self.role, requested) {
            (Role::Serve, true) => return Err(StoreError::OnlyServes),
            (_, false) if !self.is_issuer() => return Ok(None),
            _ => {}
        }
        let (lease, was_let_end) = match self.shared.take_lease(lineage).await {
            Err(StoreError::Leased { .. }) if !requested => return Ok(None),
            taken => taken?,
        };
        if self.sync(lineage).await? == Change::Stored {
            // This process may have old settings of it.
            lock(&self.unreported).insert(lineage.clone());
            self.announce.notify_one();
        }
        if was_let_end {
            self.fence(lineage).await?;
        }
        Ok(Some(lease))
    }

    async fn account(&self, ca: &str) -> Result<Option<Secret>, StoreError> {
        if self.role == Role::Serve {
            return Ok(None);
        }
        self.shared_account(ca).await
    }

    async fn create_account(&self, ca: &str, credentials: &Secret) -> Result<Secret, StoreError> {
        let account = self.shared.create_account(ca, credentials).await?;
        self.copy_changed_account(ca).await?;
        Ok(account)
    }

    async fn save_account(
        &self,
        ca: &str,
        credentials: &Secret,
        before: &Secret,
    ) -> Result<(), StoreError> {
        self.shared.save_account(ca, credentials, before).await?;
        self.copy_changed_account(ca).await
    }

    async fn delete_account(&self, ca: &str, before: &Secret) -> Result<(), StoreError> {
        self.shared.delete_account(ca, before).await?;
        // Otherwise it would be shared again.
        self.copy_changed_account(ca).await
    }

    async fn ca_state(&self, ca: &str) -> Result<(CaState, Revision), StoreError> {
        let known = lock(&self.states).get(ca).cloned();
        if let Some((_, state, revision)) =
            known.filter(|(at, ..)| self.stopwatch().since(*at) < STATE_FOR)
        {
            return Ok((state, revision));
        }
        let read = self.shared.ca_state(ca).await;
        let newer = lock(&self.copies).ca(ca).cloned();
        let newer = newer.filter(|(_, known)| match &read {
            Ok((_, revision)) => known > revision,
            Err(error) => matches!(error, StoreError::Corrupt { .. }),
        });
        if let Some(newer) = newer.clone().filter(|_| self.role == Role::Full) {
            self.shared.put_ca_state_back(ca, newer).await?;
            tracing::warn!(
                "the shared store had an older state of the CA {ca}: it has this machine's again"
            );
        }
        let (state, revision) = newer.map_or(read, Ok)?;
        self.note_ca_state(ca, &state, revision);
        Ok((state, revision))
    }

    async fn save_ca_state(
        &self,
        ca: &str,
        state: &CaState,
        expected: Revision,
    ) -> Result<Revision, StoreError> {
        lock(&self.states).remove(ca);
        let saved = self.shared.save_ca_state(ca, state, expected).await?;
        let is_out = { state.outage.as_ref() }.is_some_and(|outage| !outage.windows_only);
        let now = self.stopwatch().read();
        (lock(&self.trouble).cas.entry(ca.to_owned()).or_default()).note(is_out, now);
        self.note_ca_state(ca, state, saved);
        Ok(saved)
    }
}
