//! The client of one CA: its directory, its account, and orders from intent to
//! chain. One client serves any number of certificates concurrently. It never
//! decides whether to order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::account::{self, Account, AccountSettings, Kept};
use super::directory::Directory;
use super::error::{AcmeError, Cause, Phase};
use super::exchange::{Exchange, Reply, Transport, https};
use super::jws::{AccountKey, Signer};
use super::rate::Limiters;
use super::retry::patiently;
use super::{ClockReading, Issuer, Journal, Observer, RevocationRequest, renewal_info};
use crate::certificate::Secret;
use crate::challenge::Solver;
use crate::net::dns::caa::CaaLookup;
use crate::record::{PendingOrder, Window};
use crate::time::Clock;

/// The directory is read again at this age.
const MAX_AGE: Duration = Duration::from_secs(86_400);

/// The parts and settings of a client.
pub struct ClientSettings {
    /// The https URL of the CA's directory.
    pub directory: String,
    /// The registration at the CA.
    pub account: AccountSettings,
    /// The transport of requests.
    pub exchange: Arc<dyn Exchange>,
    /// The solvers; the first that supports an offered challenge is used.
    pub solvers: Vec<Arc<dyn Solver>>,
    /// The limiters of requests, shared by all clients of a process.
    pub limiters: Arc<Limiters>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The counter of requests.
    pub observer: Arc<dyn Observer>,
    /// The common name of the topmost issuer to prefer among alternate chains.
    pub preferred_chain: Option<String>,
    /// Logged before the first order, such as its price.
    pub notice: Option<&'static str>,
}

/// An ACME client for one directory.
pub struct Client {
    pub(super) settings: ClientSettings,
    pub(super) transport: Transport,
    /// The directory, and the stopwatch's time when it was read.
    directory: Mutex<Option<(Duration, Arc<Directory>)>>,
    account: Mutex<Option<Arc<Account>>>,
    /// Whether the notice was logged.
    is_noticed: AtomicBool,
    /// Finds the CAA records of refused names.
    pub(super) caa: Option<Arc<dyn CaaLookup>>,
}

/// One order in progress. Its steps are in [`super::order`], [`super::authorization`]
/// and [`super::poll`].
pub(super) struct Flow<'a> {
    pub(super) client: &'a Client,
    pub(super) directory: &'a Directory,
    pub(super) account: &'a Account,
    /// The bytes that the CA may still send for this order.
    pub(super) left: AtomicUsize,
}

/// The replies of one order, for all of its names, with five minutes of polls twice.
const LARGEST_ORDER: usize = 2 << 20;
/// The further replies for each of its names.
const LARGEST_NAME: usize = 64 << 10;

impl Client {
    /// A client for one CA; nothing is sent yet.
    ///
    /// # Errors
    /// When the directory's URL is not https.
    pub fn new(settings: ClientSettings) -> Result<Self, String> {
        https(&settings.directory).map_err(|_| {
            let url = crate::text::printable(&settings.directory);
            format!("the directory `{url}` is not an https:// URL")
        })?;
        Ok(Self {
            transport: Transport::new(
                settings.exchange.clone(),
                settings.observer.clone(),
                settings.clock.clone(),
                settings.limiters.at(&settings.directory),
            ),
            settings,
            directory: Mutex::default(),
            account: Mutex::default(),
            is_noticed: AtomicBool::new(false),
            caa: None,
        })
    }

    /// The same, and looks up the CAA records of names that the CA refuses.
    #[must_use]
    pub(crate) fn with_caa(self, caa: Arc<dyn CaaLookup>) -> Self {
        Self {
            caa: Some(caa),
            ..self
        }
    }

    /// The URL of the account, once it is known.
    pub(super) async fn known_account(&self) -> Option<String> {
        let account = self.account.lock().await;
        account.as_ref().map(|account| account.id.clone())
    }

    /// The directory. Concurrent callers wait for one request.
    pub(super) async fn directory(&self) -> Result<Arc<Directory>, AcmeError> {
        let mut cached = self.directory.lock().await;
        let now = self.settings.clock.stopwatch();
        if let Some((at, directory)) = cached.as_ref()
            && now.saturating_sub(*at) < MAX_AGE
        {
            return Ok(directory.clone());
        }
        let read = patiently(
            self.settings.clock.as_ref(),
            |_| true,
            || self.read_directory(),
        );
        let directory = read.await.map_err(self.at(Phase::Directory))?;
        *cached = Some((now, directory.clone()));
        Ok(directory)
    }

    /// Reads the directory, once.
    async fn read_directory(&self) -> Result<Arc<Directory>, Cause> {
        let read = Directory::read(&self.transport, &self.settings.directory).await;
        read.map(Arc::new)
    }

    async fn keep_directory(&self, read: Result<Arc<Directory>, Cause>) -> Result<(), AcmeError> {
        let directory = read.map_err(self.at(Phase::Directory))?;
        let now = self.settings.clock.stopwatch();
        *self.directory.lock().await = Some((now, directory));
        Ok(())
    }

    /// The account, opened once. An account `forgotten` by the CA is registered
    /// again, unless a concurrent order has done so.
    pub(super) async fn account(
        &self,
        directory: &Directory,
        journal: &mut dyn Journal,
        forgotten: Option<&Arc<Account>>,
    ) -> Result<Arc<Account>, AcmeError> {
        let mut cached = self.account.lock().await;
        // A command may have changed its key.
        let stored = self.stored_account(journal).await?;
        if let Some(account) = cached.as_ref()
            && stored.is_none_or(|stored| stored == account.credentials)
            && forgotten.is_none_or(|forgotten| !Arc::ptr_eq(forgotten, account))
        {
            return Ok(account.clone());
        }
        let opened = self.open_account(directory, journal, forgotten.is_some());
        let account = Arc::new(opened.await.map_err(self.at(Phase::Account))?);
        *cached = Some(account.clone());
        Ok(account)
    }

    async fn stored_account(&self, journal: &mut dyn Journal) -> Result<Option<Secret>, AcmeError> {
        let stored = journal.account().await;
        stored.map_err(|error| self.at(Phase::Account)(Cause::Journal(error)))
    }

    /// The stored account, or a new one. If the CA has forgotten it, its key is
    /// registered again.
    async fn open_account(
        &self,
        directory: &Directory,
        journal: &mut dyn Journal,
        is_forgotten: bool,
    ) -> Result<Account, Cause> {
        let mut kept = account::stored_or_new(&self.settings.directory, journal).await?;
        self.settle_rollover(directory, &mut kept, journal).await?;
        let key = kept.key()?;
        if let (Some(id), false) = (&kept.account.id, is_forgotten) {
            let (id, credentials) = (id.clone(), kept.credentials.clone());
            let mut account = Account {
                key,
                id,
                credentials,
            };
            self.update_email(directory, &account, &mut kept, journal)
                .await;
            account.credentials = kept.credentials;
            return Ok(account);
        }
        let stored = &mut kept.account;
        let found = self.register(directory, &key, stored.is_foreign).await;
        let is_known = stored.is_foreign && found.is_ok();
        let id = match found {
            Err(cause) if stored.is_foreign && cause.objection() == Some("accountDoesNotExist") => {
                tracing::warn!("the CA has no account for the imported key; registering it");
                self.register(directory, &key, false).await?
            }
            found => found?,
        };
        stored.id = Some(id.clone());
        if !is_known {
            stored.email.clone_from(&self.settings.account.email);
        }
        stored.is_foreign = false;
        kept.save(journal).await?;
        let credentials = kept.credentials;
        Ok(Account {
            key,
            id,
            credentials,
        })
    }

    /// Sends a changed e-mail address to the CA (section 7.3.2). A failure is only logged: no
    /// certificate may expire because of it.
    async fn update_email(
        &self,
        directory: &Directory,
        account: &Account,
        kept: &mut Kept,
        journal: &mut dyn Journal,
    ) {
        let email = self.settings.account.email.as_ref();
        let Some(email) = email.filter(|email| kept.account.email.as_ref() != Some(email)) else {
            return;
        };
        let payload = json!({"contact": [format!("mailto:{email}")]});
        let sent = self.post_to_account(directory, account, Some(&payload));
        let saved = match sent.await {
            Ok(_) => {
                kept.account.email = Some(email.clone());
                kept.save(journal).await
            }
            Err(cause) => Err(cause),
        };
        match saved {
            Ok(()) => tracing::info!("{} knows the new e-mail address", self.settings.directory),
            Err(cause) => tracing::warn!(
                "{} did not take the new e-mail address: {cause}; hint: {}",
                self.settings.directory,
                cause.hint()
            ),
        }
    }

    /// Registers `key`, or only looks up its existing account (section 7.3.1). Returns
    /// the account's URL.
    pub(super) async fn register(
        &self,
        directory: &Directory,
        key: &AccountKey,
        only_existing: bool,
    ) -> Result<String, Cause> {
        let (url, settings) = (&directory.new_account, &self.settings.account);
        let mut payload = json!({"termsOfServiceAgreed": settings.terms_agreed});
        if only_existing {
            payload["onlyReturnExisting"] = true.into();
        }
        if let Some(email) = &settings.email {
            payload["contact"] = json!([format!("mailto:{email}")]);
        }
        if !only_existing && let Some((id, secret)) = self.external_account().await? {
            payload["externalAccountBinding"] = key.bind(&id, secret.expose(), url);
        }
        let new_nonce = &directory.new_nonce;
        let send = || {
            let (transport, signer) = (&self.transport, Signer::Key(key));
            transport.post("new-account", url, signer, new_nonce, Some(&payload))
        };
        let reply = patiently(self.settings.clock.as_ref(), |_| true, send);
        let has_binding = payload.get("externalAccountBinding").is_some();
        let reply = reply.await;
        let reply = reply.map_err(|cause| match has_binding {
            true => cause.of_binding(settings.terms_agreed),
            false => cause,
        });
        let id = reply?.location;
        let id = id.ok_or_else(|| Cause::Protocol("a new account without a URL".into()))?;
        https(&id)?;
        Ok(id)
    }

    async fn complete(
        &self,
        directory: &Directory,
        mut pending: PendingOrder,
        journal: &mut dyn Journal,
    ) -> Result<String, AcmeError> {
        let account = self.account(directory, journal, None).await?;
        let most = LARGEST_ORDER + LARGEST_NAME * pending.identifiers.len();
        let flow = |account| Flow {
            client: self,
            directory,
            account,
            left: most.into(),
        };
        match flow(&account).run(&mut pending, journal).await {
            Err(error) if error.cause.refusal() == Some("accountDoesNotExist") => {
                let account = self.account(directory, journal, Some(&account)).await?;
                flow(&account).run(&mut pending, journal).await
            }
            // A command may have changed its key or ended it meanwhile.
            Err(error) if error.cause.refusal().is_some() => {
                let stored = self.stored_account(journal).await?;
                if stored.as_ref() == Some(&account.credentials) {
                    return Err(error);
                }
                let now = self.account(directory, journal, Some(&account)).await?;
                flow(&now).run(&mut pending, journal).await
            }
            result => result,
        }
    }

    /// Adds the CA and the phase to a cause.
    pub(super) fn at(&self, phase: Phase) -> impl Fn(Cause) -> AcmeError {
        move |cause| AcmeError {
            ca: self.settings.directory.clone(),
            phase,
            cause,
        }
    }
}

impl Flow<'_> {
    /// A POST signed by the account; a POST-as-GET without `payload`.
    pub(super) async fn post(
        &self,
        endpoint: &'static str,
        url: &str,
        payload: Option<&Value>,
    ) -> Result<Reply, Cause> {
        let (transport, new_nonce) = (&self.client.transport, &self.directory.new_nonce);
        let send = || {
            let signer = Signer::Account(&self.account.key, &self.account.id);
            transport.post(endpoint, url, signer, new_nonce, payload)
        };
        // Pebble objects to an unknown predecessor as to an error of its own.
        let replaces = payload.is_some_and(|payload| payload.get("replaces").is_some());
        let may_retry = |cause: &Cause| !replaces || cause.objection().is_none();
        let reply = patiently(transport.clock.as_ref(), may_retry, send).await?;
        let spend = |left: usize| left.checked_sub(reply.body.len());
        let spent = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend);
        match spent {
            Ok(_) => Ok(reply),
            Err(_) => Err(Cause::Protocol(
                "its replies to one order are too large".into(),
            )),
        }
    }
}

#[async_trait]
impl Issuer for Client {
    async fn issue(
        &self,
        pending: PendingOrder,
        journal: &mut dyn Journal,
    ) -> Result<String, AcmeError> {
        if let Some(notice) = self.settings.notice
            && !self.is_noticed.swap(true, Ordering::Relaxed)
        {
            tracing::warn!("{notice}");
        }
        let directory = self.directory().await?;
        let names = pending.identifiers.clone();
        let has_request = pending.key_pem.signing_request().is_some();
        let result = self.complete(&directory, pending, journal).await;
        let Err(error) = result else {
            return result;
        };
        let cause = match has_request {
            true => error.cause.of_signing_request(),
            false => error.cause,
        };
        let cause = cause.with_hint_from(&directory.meta, error.phase);
        let error = AcmeError { cause, ..error };
        Err(self.advise(error, &names, &directory.meta).await)
    }

    async fn update_account(&self, journal: &mut dyn Journal) -> Result<(), AcmeError> {
        let at = self.at(Phase::Account);
        let Some(stored) = journal.account().await.map_err(|e| at(Cause::Journal(e)))? else {
            return Ok(());
        };
        let stored = account::read(&stored).map_err(at)?;
        let email = self.settings.account.email.as_ref();
        if stored.id.is_some() && email.is_some() && stored.email.as_ref() != email {
            let directory = self.directory().await?;
            self.account(&directory, journal, None).await?;
        }
        Ok(())
    }

    async fn revoke(
        &self,
        request: &RevocationRequest<'_>,
        journal: &mut dyn Journal,
    ) -> Result<(), AcmeError> {
        self.send_revocation(request, journal).await
    }

    fn clocks(&self) -> Option<ClockReading> {
        self.transport.clocks()
    }

    async fn time(&self, newest: Duration) -> Result<Option<ClockReading>, AcmeError> {
        let now = self.settings.clock.now();
        let reading = self.clocks();
        // After the clock was set back, the age of the reply is unknown.
        if reading.is_some_and(|reading| reading.ours <= now && now.since(reading.ours) <= newest) {
            return Ok(reading);
        }
        let read = patiently(
            self.settings.clock.as_ref(),
            |_| true,
            || self.read_directory(),
        );
        self.keep_directory(read.await).await?;
        Ok(self.clocks())
    }

    async fn probe(&self) -> Result<(), AcmeError> {
        self.keep_directory(self.read_directory().await).await
    }

    async fn renewal_info(
        &self,
        renewal_id: &str,
    ) -> Result<Option<(Window, Duration)>, AcmeError> {
        let directory = self.directory().await?;
        let Some(url) = &directory.renewal_info else {
            return Ok(None);
        };
        let read = renewal_info::read(&self.transport, url, renewal_id).await;
        read.map_err(self.at(Phase::RenewalInfo))
    }
}
