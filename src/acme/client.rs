//! The client of one CA: its directory, its account, and orders from intent to
//! chain. One client serves any number of certificates concurrently. It never
//! decides whether to order.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Mutex;

use super::account::{Account, AccountSettings};
use super::directory::{CachedDirectory, Directory, Meta};
use super::error::{AcmeError, Cause, Phase};
use super::exchange::{Exchange, Transport, https};
use super::flow::{During, Failed, Flow};
use super::rate::Paces;
use super::{Dated, Issuer, Journal, Observer, renewal_info};
use crate::challenge::Solver;
use crate::record::{PendingOrder, Window};
use crate::time::Clock;

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
    pub paces: Arc<Paces>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The counter of requests.
    pub observer: Arc<dyn Observer>,
    /// The common name of the topmost issuer to prefer among alternate chains.
    pub preferred_chain: Option<String>,
}

/// An ACME client for one directory.
pub struct Client {
    options: ClientSettings,
    transport: Transport,
    directory: CachedDirectory,
    account: Mutex<Option<Arc<Account>>>,
}

impl Client {
    /// A client for one CA; nothing is sent yet.
    ///
    /// # Errors
    /// When the directory's URL is not https.
    pub fn new(options: ClientSettings) -> Result<Self, String> {
        https(&options.directory).map_err(|_| {
            let url = crate::text::printable(&options.directory);
            format!("the directory `{url}` is not an https:// URL")
        })?;
        let transport = Transport::new(
            options.exchange.clone(),
            options.observer.clone(),
            options.clock.clone(),
        );
        let transport = transport.limited_by(options.paces.at(&options.directory));
        Ok(Self {
            options,
            transport,
            directory: CachedDirectory::default(),
            account: Mutex::default(),
        })
    }

    async fn directory(&self) -> Result<Arc<Directory>, AcmeError> {
        let (url, clock) = (&self.options.directory, self.options.clock.as_ref());
        let read = self.directory.read(&self.transport, url, clock).await;
        read.map_err(|cause| self.failed(Phase::Directory, cause))
    }

    /// The account, opened once. An account `forgotten` by the CA is registered
    /// again, unless a concurrent order has done so.
    async fn account(
        &self,
        directory: &Directory,
        journal: &mut dyn Journal,
        forgotten: Option<&Arc<Account>>,
    ) -> Result<Arc<Account>, Failed> {
        let mut kept = self.account.lock().await;
        if let Some(account) = kept.as_ref()
            && forgotten.is_none_or(|forgotten| !Arc::ptr_eq(forgotten, account))
        {
            return Ok(account.clone());
        }
        let (ca, options) = (&self.options.directory, &self.options.account);
        let is_forgotten = forgotten.is_some();
        let opened = Account::open(
            &self.transport,
            directory,
            ca,
            options,
            journal,
            is_forgotten,
        )
        .await;
        let account = Arc::new(opened.during(Phase::Account)?);
        *kept = Some(account.clone());
        Ok(account)
    }

    async fn complete(
        &self,
        directory: &Directory,
        mut pending: PendingOrder,
        journal: &mut dyn Journal,
    ) -> Result<String, Failed> {
        let account = self.account(directory, journal, None).await?;
        let result = self
            .flow(directory, &account)
            .run(&mut pending, journal)
            .await;
        match result {
            Err(failed) if failed.cause.refusal() == Some("accountDoesNotExist") => {
                let account = self.account(directory, journal, Some(&account)).await?;
                self.flow(directory, &account)
                    .run(&mut pending, journal)
                    .await
            }
            result => result,
        }
    }

    fn flow<'a>(&'a self, directory: &'a Directory, account: &'a Account) -> Flow<'a> {
        Flow {
            transport: &self.transport,
            directory,
            account,
            solvers: &self.options.solvers,
            clock: self.options.clock.as_ref(),
            preferred_chain: self.options.preferred_chain.as_deref(),
        }
    }

    fn failed(&self, phase: Phase, cause: Cause) -> AcmeError {
        AcmeError {
            ca: self.options.directory.clone(),
            phase,
            cause,
        }
    }

    fn with_hint(&self, failed: Failed, meta: &Meta) -> AcmeError {
        self.failed(
            failed.phase,
            failed.cause.with_hint_from(meta, failed.phase),
        )
    }
}

#[async_trait]
impl Issuer for Client {
    async fn issue(
        &self,
        pending: PendingOrder,
        journal: &mut dyn Journal,
    ) -> Result<String, AcmeError> {
        let directory = self.directory().await?;
        let result = self.complete(&directory, pending, journal).await;
        result.map_err(|failed| self.with_hint(failed, &directory.meta))
    }

    fn dated(&self) -> Option<Dated> {
        self.transport.dated()
    }

    async fn time(&self, newest: Duration) -> Result<Option<Dated>, AcmeError> {
        let now = self.options.clock.now();
        let dated = self.dated();
        // After the clock was set back, the age of the reply is unknown.
        if dated.is_some_and(|dated| dated.ours <= now && now.since(dated.ours) <= newest) {
            return Ok(dated);
        }
        self.probe().await?;
        Ok(self.dated())
    }

    async fn probe(&self) -> Result<(), AcmeError> {
        let (url, clock) = (&self.options.directory, self.options.clock.as_ref());
        let read = self.directory.refresh(&self.transport, url, clock).await;
        read.map_err(|cause| self.failed(Phase::Directory, cause))
    }

    async fn renewal_info(
        &self,
        renewal_id: &str,
        _journal: &mut dyn Journal,
    ) -> Result<Option<(Window, Duration)>, AcmeError> {
        let directory = self.directory().await?;
        let Some(url) = &directory.renewal_info else {
            return Ok(None);
        };
        let clock = self.options.clock.as_ref();
        let fetched = renewal_info::fetch(&self.transport, url, renewal_id, clock).await;
        fetched.map_err(|cause| self.failed(Phase::RenewalInfo, cause))
    }
}
