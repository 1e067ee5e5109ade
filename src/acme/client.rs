//! One CA: its directory, its account, and orders taken from intent to chain.
//! A client serves any number of certificates side by side.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Mutex;

use super::account::{Account, AccountOptions};
use super::directory::{Cached, Directory, Meta};
use super::error::{AcmeError, Cause, Phase};
use super::exchange::{Exchange, Session, https};
use super::order::{During, Failed, Flow};
use super::pace::Paces;
use super::{Dated, Issuer, Journal, Observer, renewal_info};
use crate::challenge::Solver;
use crate::record::{PendingOrder, Window};
use crate::time::Clock;

/// What a client is made of.
pub struct Options {
    /// The https URL of the CA's directory.
    pub directory: String,
    /// How to register there.
    pub account: AccountOptions,
    /// The way there.
    pub exchange: Arc<dyn Exchange>,
    /// Who answers challenges; the first that can is taken.
    pub solvers: Vec<Arc<dyn Solver>>,
    /// How fast requests may follow one another, shared by all clients of a
    /// process.
    pub paces: Arc<Paces>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Who counts requests.
    pub observer: Arc<dyn Observer>,
    /// Among alternate chains, take the one whose topmost certificate has an
    /// issuer of this common name.
    pub preferred_chain: Option<String>,
}

/// An ACME client for one directory.
pub struct Client {
    options: Options,
    session: Session,
    directory: Cached,
    account: Mutex<Option<Arc<Account>>>,
}

impl Client {
    /// A client for one CA; nothing is sent yet.
    ///
    /// # Errors
    /// When the directory's URL is not https.
    pub fn new(options: Options) -> Result<Self, String> {
        https(&options.directory).map_err(|_| {
            let url = crate::text::printable(&options.directory);
            format!("the directory `{url}` is not an https:// URL")
        })?;
        let session = Session::new(
            options.exchange.clone(),
            options.observer.clone(),
            options.clock.clone(),
        );
        let session = session.at(options.paces.at(&options.directory));
        Ok(Self {
            options,
            session,
            directory: Cached::default(),
            account: Mutex::default(),
        })
    }

    async fn directory(&self) -> Result<Arc<Directory>, AcmeError> {
        let (url, clock) = (&self.options.directory, self.options.clock.as_ref());
        let read = self.directory.read(&self.session, url, clock).await;
        read.map_err(|cause| self.failed(Phase::Directory, cause))
    }

    /// The account, opened once. One that the CA has `forgotten` is registered
    /// again, unless somebody else has done so meanwhile.
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
        let anew = forgotten.is_some();
        let opened = Account::open(&self.session, directory, ca, options, journal, anew).await;
        let account = Arc::new(opened.during(Phase::Account)?);
        *kept = Some(account.clone());
        Ok(account)
    }

    async fn take_to_its_end(
        &self,
        directory: &Directory,
        mut pending: PendingOrder,
        journal: &mut dyn Journal,
    ) -> Result<String, Failed> {
        let account = self.account(directory, journal, None).await?;
        let ended = self
            .flow(directory, &account)
            .run(&mut pending, journal)
            .await;
        match ended {
            Err(failed) if failed.cause.refusal() == Some("accountDoesNotExist") => {
                let account = self.account(directory, journal, Some(&account)).await?;
                self.flow(directory, &account)
                    .run(&mut pending, journal)
                    .await
            }
            ended => ended,
        }
    }

    fn flow<'a>(&'a self, directory: &'a Directory, account: &'a Account) -> Flow<'a> {
        Flow {
            session: &self.session,
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

    fn informed(&self, failed: Failed, meta: &Meta) -> AcmeError {
        self.failed(failed.phase, failed.cause.informed_by(meta, failed.phase))
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
        let ended = self.take_to_its_end(&directory, pending, journal).await;
        ended.map_err(|failed| self.informed(failed, &directory.meta))
    }

    fn dated(&self) -> Option<Dated> {
        self.session.dated()
    }

    async fn time(&self, newest: Duration) -> Result<Option<Dated>, AcmeError> {
        let now = self.options.clock.now();
        let dated = self.dated();
        // A clock that was set since has made it a reply of another time.
        if dated.is_some_and(|dated| dated.ours <= now && now.since(dated.ours) <= newest) {
            return Ok(dated);
        }
        self.probe().await?;
        Ok(self.dated())
    }

    async fn probe(&self) -> Result<(), AcmeError> {
        let (url, clock) = (&self.options.directory, self.options.clock.as_ref());
        let read = self.directory.renew(&self.session, url, clock).await;
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
        let asked = renewal_info::ask(&self.session, url, renewal_id, clock).await;
        asked.map_err(|cause| self.failed(Phase::RenewalInfo, cause))
    }
}
