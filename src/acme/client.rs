//! One CA: its account, and orders taken from intent to chain.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use instant_acme::{
    Account, AuthorizationStatus, CertificateIdentifier, ChallengeStatus, ChallengeType,
    ExternalAccountKey, NewAccount, NewOrder, Order, OrderStatus,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use tokio::sync::OnceCell;

use super::error::{AcmeError, Cause, Phase, describe, printable};
use super::transport::Transport;
use super::{Issuer, Journal};
use crate::certificate::Secret;
use crate::challenge::{Answer, ChallengeKind, Solver, Token};
use crate::identifier::Identifier;
use crate::record::{PendingOrder, Window};
use crate::time::{Clock, Timestamp};

/// After the CA was seen to fetch an answer it still has to write it down.
const SETTLING: Duration = Duration::from_millis(50);
const FIRST_POLL: Duration = Duration::from_millis(250);
const LONGEST_POLL: Duration = Duration::from_secs(5);
/// No CA may keep us waiting for longer with a `Retry-After` inside an order.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);
/// An order that has not ended by then is left to be resumed.
const PATIENCE: Duration = Duration::from_secs(300);
/// instant-acme tries each request three times; seven rounds make 21.
const NONCE_ROUNDS: u32 = 7;

/// Repeats an instant-acme call while the CA rejects its nonces.
macro_rules! with_nonces {
    ($call:expr) => {{
        let mut rounds = 1;
        loop {
            match $call.await {
                Err(instant_acme::Error::Api(problem))
                    if rounds < NONCE_ROUNDS && is_bad_nonce(&problem) =>
                {
                    rounds += 1;
                }
                ended => break ended,
            }
        }
    }};
}

fn is_bad_nonce(problem: &instant_acme::Problem) -> bool {
    problem.r#type.as_deref() == Some("urn:ietf:params:acme:error:badNonce")
}

/// How to register at the CA.
#[derive(Clone, Debug, Default)]
pub struct AccountOptions {
    /// E-mail address for the CA's notices.
    pub email: Option<String>,
    /// The user has agreed to the CA's terms.
    pub terms_agreed: bool,
    /// External account binding: key identifier and HMAC key (decoded).
    pub external: Option<(String, Vec<u8>)>,
}

/// An ACME client for one directory.
pub struct Client {
    directory: String,
    options: AccountOptions,
    transport: Transport,
    solvers: Vec<Arc<dyn Solver>>,
    clock: Arc<dyn Clock>,
    account: OnceCell<Account>,
    profile: Option<String>,
}

impl Client {
    /// A client for the https URL `directory`; nothing is sent yet.
    /// `roots` (PEM) are trusted beside the public ones.
    ///
    /// # Errors
    /// When the URL is not https or the roots are not readable.
    pub fn new(
        directory: &str,
        roots: Option<&[u8]>,
        options: AccountOptions,
        profile: Option<String>,
        solvers: Vec<Arc<dyn Solver>>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, String> {
        if !directory.starts_with("https://") {
            return Err(format!(
                "the directory `{}` is not an https:// URL",
                printable(directory)
            ));
        }
        Ok(Self {
            directory: directory.to_owned(),
            options,
            transport: Transport::new(roots).map_err(|error| error.to_string())?,
            solvers,
            clock,
            account: OnceCell::new(),
            profile,
        })
    }

    async fn account(&self, journal: &mut dyn Journal) -> Result<&Account, AcmeError> {
        self.account
            .get_or_try_init(|| self.open_account(journal))
            .await
    }

    async fn open_account(&self, journal: &mut dyn Journal) -> Result<Account, AcmeError> {
        let at = |cause| self.error(Phase::Account, cause);
        let builder = || Account::builder_with_http(Box::new(self.transport.clone()));
        if let Some(stored) = journal.account().await.map_err(|e| at(Cause::Journal(e)))? {
            let credentials = serde_json::from_str(stored.expose())
                .map_err(|_| at(Cause::Journal("the stored account is not readable".into())))?;
            return builder()
                .from_credentials(credentials)
                .await
                .map_err(|e| self.failed(Phase::Directory, e));
        }
        let contact = self
            .options
            .email
            .as_ref()
            .map(|email| format!("mailto:{email}"));
        let contacts: Vec<&str> = contact.as_deref().into_iter().collect();
        let new = NewAccount {
            contact: &contacts,
            terms_of_service_agreed: self.options.terms_agreed,
            only_return_existing: false,
        };
        let external = self
            .options
            .external
            .as_ref()
            .map(|(id, key)| ExternalAccountKey::new(id.clone(), key));
        let created =
            with_nonces!(builder().create(&new, self.directory.clone(), external.as_ref()));
        let (account, credentials) = created.map_err(|e| self.failed(Phase::Account, e))?;
        let credentials =
            serde_json::to_string(&credentials).map_err(|e| at(Cause::Protocol(e.to_string())))?;
        journal
            .save_account(&Secret::new(credentials))
            .await
            .map_err(|e| at(Cause::Journal(e)))?;
        Ok(account)
    }

    /// The order that `pending` names, or a new one when it has no URL or the
    /// CA no longer knows it.
    async fn open_order(
        &self,
        account: &Account,
        pending: &mut PendingOrder,
        journal: &mut dyn Journal,
    ) -> Result<Order, AcmeError> {
        if let Some(url) = pending.url.take() {
            match with_nonces!(account.order(url.clone())) {
                Ok(mut order) => {
                    if order.state().status != OrderStatus::Invalid {
                        pending.url = Some(url);
                        return Ok(order);
                    }
                }
                Err(instant_acme::Error::Api(_)) => {}
                Err(error) => return Err(self.failed(Phase::Order, error)),
            }
        }
        let order = self.new_order(account, pending).await?;
        pending.url = Some(order.url().to_owned());
        let stored = journal.order(pending).await;
        stored.map_err(|error| self.error(Phase::Order, Cause::Journal(error)))?;
        Ok(order)
    }

    async fn new_order(
        &self,
        account: &Account,
        pending: &mut PendingOrder,
    ) -> Result<Order, AcmeError> {
        let identifiers: Vec<_> = pending.identifiers.iter().map(to_acme).collect();
        let replaces = pending.replaces.as_deref().and_then(renewal_identifier);
        let plain = || {
            let order = NewOrder::new(&identifiers);
            match &self.profile {
                Some(profile) => order.profile(profile),
                None => order,
            }
        };
        if let Some(replaces) = replaces {
            let order = plain().replaces(replaces);
            match with_nonces!(account.new_order(&order)) {
                Ok(order) => return Ok(order),
                Err(error) if self.refused_replaces(&error) => pending.replaces = None,
                Err(error) => return Err(self.failed(Phase::Order, error)),
            }
        }
        with_nonces!(account.new_order(&plain())).map_err(|error| self.failed(Phase::Order, error))
    }

    /// Any client error but a rate limit: ask again at once, without
    /// `replaces` (a predecessor that was replaced or forgotten must never
    /// keep a certificate from being renewed).
    fn refused_replaces(&self, error: &instant_acme::Error) -> bool {
        match error {
            instant_acme::Error::Api(problem) => {
                !problem
                    .r#type
                    .as_deref()
                    .is_some_and(|kind| kind.ends_with(":rateLimited"))
                    && problem
                        .status
                        .is_none_or(|status| (400..500).contains(&status) && status != 429)
            }
            instant_acme::Error::Unsupported(_) => true,
            // The CA took the order and did not echo the field.
            instant_acme::Error::Other(other) => {
                other.to_string().starts_with("replaces field mismatch")
            }
            _ => false,
        }
    }

    /// Answers every authorization that is still pending and waits until the
    /// order is ready. The answers are taken away however it ends.
    async fn authorize(&self, order: &mut Order) -> Result<(), AcmeError> {
        let mut laid_out = Vec::new();
        let ended = match self.answer(order, &mut laid_out).await {
            Ok(()) => self.until_authorized(order, &laid_out).await,
            Err(error) => Err(error),
        };
        for (solver, answer) in &laid_out {
            if let Err(error) = solver.clean_up(answer).await {
                tracing::warn!(%error, "a challenge answer could not be taken away");
            }
        }
        ended
    }

    async fn answer(
        &self,
        order: &mut Order,
        laid_out: &mut Vec<(Arc<dyn Solver>, Answer)>,
    ) -> Result<(), AcmeError> {
        let at = |cause| self.error(Phase::Authorization, cause);
        self.fetch_authorizations(order).await?;
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization =
                authorization.map_err(|e| self.failed(Phase::Authorization, e))?;
            if authorization.status != AuthorizationStatus::Pending {
                continue;
            }
            let identifier = printable(&authorization.identifier().to_string());
            let offered = authorization
                .challenges
                .iter()
                .map(|c| format!("{:?}", c.r#type))
                .collect::<Vec<_>>();
            let none = || Cause::NoChallenge {
                identifier: identifier.clone(),
                offered: printable(&offered.join(", ")),
            };
            let parsed = Identifier::parse(&identifier).map_err(|_| at(none()))?;
            let solver = self
                .solvers
                .iter()
                .find(|solver| solver.supports(ChallengeKind::Http01, &parsed));
            let (Some(solver), Some(mut challenge)) =
                (solver, authorization.challenge(ChallengeType::Http01))
            else {
                return Err(at(none()));
            };
            let answer = Answer {
                kind: ChallengeKind::Http01,
                identifier: parsed,
                token: Token::parse(&challenge.token).map_err(|e| at(e.into()))?,
                key_authorization: challenge.key_authorization().as_str().to_owned(),
            };
            laid_out.push((solver.clone(), answer.clone()));
            solver.present(&answer).await.map_err(|e| at(e.into()))?;
            // A resumed order may have been answered before.
            if challenge.status == ChallengeStatus::Pending {
                with_nonces!(challenge.set_ready())
                    .map_err(|e| self.failed(Phase::Authorization, e))?;
            }
        }
        Ok(())
    }

    /// instant-acme keeps what it has fetched but loses its place on an error:
    /// so they are all fetched first, from the start again after a bad nonce.
    async fn fetch_authorizations(&self, order: &mut Order) -> Result<(), AcmeError> {
        with_nonces!(fetch_all(order)).map_err(|error| self.failed(Phase::Authorization, error))
    }

    async fn until_authorized(
        &self,
        order: &mut Order,
        laid_out: &[(Arc<dyn Solver>, Answer)],
    ) -> Result<(), AcmeError> {
        if !laid_out.is_empty() {
            let fetched = async {
                for (solver, answer) in laid_out {
                    solver.observed(answer).await;
                }
            };
            let soon = self.clock.now() + FIRST_POLL;
            tokio::select! {
                () = fetched => self.clock.sleep_until(self.clock.now() + SETTLING).await,
                () = self.clock.sleep_until(soon) => {}
            }
        } else if order.state().status == OrderStatus::Ready {
            return Ok(());
        }
        let still = [OrderStatus::Pending];
        match self.poll(order, Phase::Authorization, &still).await? {
            OrderStatus::Invalid => Err(self.not_proven(order).await),
            _ => Ok(()),
        }
    }

    /// Refreshes the order until it has left the states in `still`.
    async fn poll(
        &self,
        order: &mut Order,
        phase: Phase,
        still: &[OrderStatus],
    ) -> Result<OrderStatus, AcmeError> {
        let begun = self.clock.now();
        let mut pause = FIRST_POLL;
        loop {
            let status = with_nonces!(order.refresh())
                .map_err(|e| self.failed(phase, e))?
                .status;
            if !still.contains(&status) {
                return Ok(status);
            }
            if self.clock.now().since(begun) > PATIENCE {
                return Err(self.error(phase, Cause::TimedOut(PATIENCE)));
            }
            let wait = self
                .transport
                .retry_after()
                .map_or(pause, |asked| asked.clamp(SETTLING, LONGEST_RETRY_AFTER));
            self.clock.sleep_until(self.clock.now() + wait).await;
            pause = (pause * 2).min(LONGEST_POLL);
        }
    }

    /// What the CA found, identifier by identifier.
    async fn not_proven(&self, order: &mut Order) -> AcmeError {
        let mut found = BTreeMap::new();
        let mut causes = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(Ok(mut authorization)) = authorizations.next().await {
            let name = printable(&authorization.identifier().to_string());
            let Ok(state) = with_nonces!(authorization.refresh()) else {
                continue;
            };
            for problem in state
                .challenges
                .iter()
                .filter_map(|challenge| challenge.error.as_ref())
            {
                causes.push(Cause::of_problem(problem, None));
                found.insert(name.clone(), describe(problem));
            }
        }
        if let (true, Some(problem)) = (found.is_empty(), &order.state().error) {
            return self.error(Phase::Authorization, Cause::of_problem(problem, None));
        }
        let text = found
            .iter()
            .map(|(name, problem)| format!("\n  {name}: {problem}"))
            .collect::<String>();
        let refused = causes
            .iter()
            .all(|cause| matches!(cause, Cause::Refused(_)))
            && !causes.is_empty();
        let text = format!("control was not proven{text}");
        self.error(
            Phase::Authorization,
            if refused {
                Cause::Refused(text)
            } else {
                Cause::NotProven(text)
            },
        )
    }

    async fn finalize(&self, order: &mut Order, pending: &PendingOrder) -> Result<(), AcmeError> {
        let csr = signing_request(pending)
            .map_err(|e| self.error(Phase::Finalize, Cause::Protocol(e.to_string())))?;
        with_nonces!(order.finalize_csr(&csr)).map_err(|e| self.failed(Phase::Finalize, e))
    }

    async fn download(&self, order: &mut Order) -> Result<String, AcmeError> {
        if order.state().status == OrderStatus::Processing {
            self.clock.sleep_until(self.clock.now() + SETTLING).await;
            self.poll(order, Phase::Finalize, &[OrderStatus::Processing])
                .await?;
        }
        let chain =
            with_nonces!(order.certificate()).map_err(|e| self.failed(Phase::Certificate, e))?;
        chain.ok_or_else(|| {
            self.error(
                Phase::Certificate,
                Cause::Protocol("a valid order without a certificate".into()),
            )
        })
    }

    fn failed(&self, phase: Phase, error: instant_acme::Error) -> AcmeError {
        self.error(phase, Cause::of(error, self.transport.retry_after()))
    }

    fn error(&self, phase: Phase, cause: Cause) -> AcmeError {
        AcmeError {
            ca: self.directory.clone(),
            phase,
            cause,
        }
    }
}

#[async_trait]
impl Issuer for Client {
    async fn issue(
        &self,
        mut pending: PendingOrder,
        journal: &mut dyn Journal,
    ) -> Result<String, AcmeError> {
        let account = self.account(journal).await?;
        let mut order = self.open_order(account, &mut pending, journal).await?;
        if order.state().status == OrderStatus::Pending {
            self.authorize(&mut order).await?;
        }
        if order.state().status == OrderStatus::Ready {
            self.finalize(&mut order, &pending).await?;
        }
        self.download(&mut order).await
    }

    async fn renewal_info(
        &self,
        renewal_id: &str,
        journal: &mut dyn Journal,
    ) -> Result<Option<(Window, Duration)>, AcmeError> {
        let Some(identifier) = renewal_identifier(renewal_id) else {
            return Ok(None);
        };
        let account = self.account(journal).await?;
        match account.renewal_info(&identifier).await {
            Ok((info, again)) => {
                let window = info.suggested_window;
                let (start, end) = (Timestamp::from(window.start), Timestamp::from(window.end));
                Ok(Some((Window { start, end }, again)))
            }
            Err(instant_acme::Error::Unsupported(_)) => Ok(None),
            Err(error) => Err(self.failed(Phase::RenewalInfo, error)),
        }
    }
}

async fn fetch_all(order: &mut Order) -> Result<(), instant_acme::Error> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        authorization?;
    }
    Ok(())
}

fn to_acme(identifier: &Identifier) -> instant_acme::Identifier {
    match identifier {
        Identifier::Dns(name) => instant_acme::Identifier::Dns(name.as_str().to_owned()),
        Identifier::Ip(address) => instant_acme::Identifier::Ip(*address),
    }
}

fn renewal_identifier(text: &str) -> Option<CertificateIdentifier<'_>> {
    let (authority, serial) = text.split_once('.')?;
    Some(CertificateIdentifier {
        authority_key_identifier: authority.into(),
        serial: serial.into(),
    })
}

fn signing_request(pending: &PendingOrder) -> Result<Vec<u8>, rcgen::Error> {
    let key = KeyPair::from_pem(pending.key_pem.expose())?;
    let names: Vec<String> = pending
        .identifiers
        .iter()
        .map(ToString::to_string)
        .collect();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(&key)?.der().to_vec())
}
