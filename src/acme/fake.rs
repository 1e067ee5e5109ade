//! A CA for the tests of this module. It issues by RFC 8555 without delay, unless a
//! test scripts another reply. It never checks signatures: the tests of
//! [`super::jws`] and real CAs do.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderName, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::Barrier;

use super::exchange::Exchange;
use super::jws::decode;
use super::retry::TRIES;
use super::{
    AccountSettings, Client, ClientSettings, ExchangeError, Issuer, Journal, JournalError,
};
use crate::certificate::{KeyType, Secret};
use crate::challenge::ChallengeKind;
use crate::challenge::responses::Responses;
use crate::identifier::Identifier;
use crate::random::{Random, SeededRandom};
use crate::record::{PendingOrder, PresentedAnswer};
use crate::time::fake::SetClock;
use crate::time::{Clock, Timestamp, VirtualClock};

pub(super) const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

/// A scripted reply: status, content type, body, further headers.
#[derive(Clone, Debug)]
pub(super) struct Scripted(
    pub(super) u16,
    pub(super) &'static str,
    pub(super) String,
    pub(super) Vec<(&'static str, String)>,
);

impl Scripted {
    pub(super) fn problem(status: u16, kind: &str) -> Self {
        let body =
            json!({"type": format!("urn:ietf:params:acme:error:{kind}"), "detail": "as scripted"});
        Self(status, "application/problem+json", body.to_string(), vec![])
    }

    pub(super) fn json(body: &Value) -> Self {
        Self(200, "application/json", body.to_string(), vec![])
    }

    pub(super) fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.3.push((name, value.to_string()));
        self
    }
}

#[derive(Default)]
struct State {
    requests: Vec<(String, Timestamp, Value)>,
    /// The unsigned bodies, by endpoint.
    bodies: Vec<(String, String)>,
    nonces: HashSet<String>,
    nonces_made: u64,
    accounts: HashMap<String, String>,
    orders: Vec<FakeOrder>,
    scripts: Vec<(&'static str, Scripted)>,
    rejected_nonces: Option<(SeededRandom, u64)>,
    gate: Option<(&'static str, Arc<Barrier>)>,
    lost_replies: Option<(&'static str, usize)>,
    delayed: Option<(&'static str, u32)>,
    valid_at_once: bool,
}

struct FakeOrder {
    identifiers: Vec<Value>,
    validated: Vec<bool>,
    status: &'static str,
}

pub(super) struct FakeCa {
    state: Mutex<State>,
    pub(super) responses: Responses,
    pub(super) clock: Arc<SleepingClock>,
}

/// A clock whose sleepers advance the time.
pub(super) struct SleepingClock(SetClock);

impl SleepingClock {
    /// Sets the clock back by this much after so many readings.
    pub(super) fn set_back_after(&self, readings: u32, by: Duration) {
        let seconds = i64::try_from(by.as_secs()).unwrap();
        self.0.by_after(-seconds, readings);
    }
}

#[async_trait]
impl Clock for SleepingClock {
    fn now(&self) -> Timestamp {
        self.0.now()
    }

    fn monotonic(&self) -> Option<Duration> {
        self.0.monotonic()
    }

    async fn sleep(&self, length: Duration) {
        let passes = &self.0.passes;
        let instant = passes.now() + length;
        tokio::task::yield_now().await;
        if passes.now() < instant {
            passes.set(instant);
        }
    }
}

impl FakeCa {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            responses: Responses::default(),
            clock: Arc::new(SleepingClock(SetClock::new(Arc::new(VirtualClock::new(
                NOW,
            ))))),
        })
    }

    pub(super) fn settings(self: &Arc<Self>) -> ClientSettings {
        ClientSettings {
            directory: "https://ca.test/directory".into(),
            account: AccountSettings::default(),
            exchange: self.clone(),
            solvers: vec![self.responses.solver(ChallengeKind::Http01)],
            limiters: Arc::default(),
            clock: self.clock.clone(),
            observer: Arc::new(()),
            preferred_chain: None,
            notice: None,
        }
    }

    pub(super) fn client(self: &Arc<Self>) -> Client {
        Client::new(self.settings()).unwrap()
    }

    /// Scripts the reply to the next request for `endpoint`, after earlier scripts.
    pub(super) fn script(&self, endpoint: &'static str, scripted: Scripted) {
        self.lock().scripts.push((endpoint, scripted));
    }

    /// Adds this `Retry-After` to every reply of `endpoint`.
    pub(super) fn delay(&self, endpoint: &'static str, seconds: u32) {
        self.lock().delayed = Some((endpoint, seconds));
    }

    /// Rejects `percent` of the nonces, drawn from `seed`.
    pub(super) fn reject_nonces(&self, seed: u64, percent: u64) {
        self.lock().rejected_nonces = Some((SeededRandom::new(seed), percent));
    }

    /// Holds requests for `endpoint` until `number` of them have arrived.
    pub(super) fn hold(&self, endpoint: &'static str, number: usize) {
        self.lock().gate = Some((endpoint, Arc::new(Barrier::new(number))));
    }

    /// Scripts the same reply to all tries of the next request for `endpoint`.
    pub(super) fn persist(&self, endpoint: &'static str, scripted: &Scripted) {
        for _ in 0..TRIES {
            self.script(endpoint, scripted.clone());
        }
    }

    /// Processes the next request for `endpoint` but loses the replies to all of its tries.
    pub(super) fn lose_reply(&self, endpoint: &'static str) {
        self.lose_replies(endpoint, TRIES);
    }

    /// Processes the next `number` requests for `endpoint` but loses their replies.
    pub(super) fn lose_replies(&self, endpoint: &'static str, number: usize) {
        self.lock().lost_replies = Some((endpoint, number));
    }

    /// Answers a finalization with the valid order.
    pub(super) fn issue_at_once(&self) {
        self.lock().valid_at_once = true;
    }

    /// Forgets the scripts that were not used.
    pub(super) fn forget_scripts(&self) {
        self.lock().scripts.clear();
    }

    /// Forgets every account.
    pub(super) fn forget_accounts(&self) {
        self.lock().accounts.clear();
    }

    pub(super) fn accounts(&self) -> usize {
        self.lock().accounts.len()
    }

    pub(super) fn orders(&self) -> usize {
        self.lock().orders.len()
    }

    /// The endpoints requested so far, in order; clears the list.
    pub(super) fn take_endpoints(&self) -> Vec<String> {
        let requests = std::mem::take(&mut self.lock().requests);
        requests
            .into_iter()
            .map(|(endpoint, ..)| endpoint)
            .collect()
    }

    /// The number of requests for `endpoint`.
    pub(super) fn count(&self, endpoint: &str) -> usize {
        self.times(endpoint).len()
    }

    /// The times of the requests for `endpoint`.
    pub(super) fn times(&self, endpoint: &str) -> Vec<Timestamp> {
        let state = self.lock();
        let matching = state.requests.iter().filter(|(name, ..)| name == endpoint);
        matching.map(|(_, at, _)| *at).collect()
    }

    /// The payloads sent to `endpoint`.
    pub(super) fn payloads(&self, endpoint: &str) -> Vec<Value> {
        let state = self.lock();
        let matching = state.requests.iter().filter(|(name, ..)| name == endpoint);
        matching.map(|(.., payload)| payload.clone()).collect()
    }

    /// The bodies of the unsigned requests for `endpoint`.
    pub(super) fn bodies(&self, endpoint: &str) -> Vec<String> {
        let state = self.lock();
        let matching = state.bodies.iter().filter(|(name, _)| name == endpoint);
        matching.map(|(_, body)| body.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn answer(&self, endpoint: &str, request: &Request<Bytes>) -> Scripted {
        let mut state = self.lock();
        let (protected, payload) = open(request);
        let now = self.clock.now();
        state
            .requests
            .push((endpoint.to_owned(), now, payload.clone()));
        let body = String::from_utf8_lossy(request.body()).into_owned();
        if protected.is_null() {
            state.bodies.push((endpoint.to_owned(), body));
        } else {
            let nonce = protected["nonce"].as_str().unwrap();
            let known = state.nonces.remove(nonce);
            let rejected = state.rejected_nonces.as_ref();
            if !known || rejected.is_some_and(|(random, percent)| random.below(100) < *percent) {
                return Scripted::problem(400, "badNonce");
            }
        }
        let mut scripts = state.scripts.iter();
        if let Some(index) = scripts.position(|(name, _)| *name == endpoint) {
            return state.scripts.remove(index).1;
        }
        if let Some(id) = protected["kid"].as_str()
            && !state.accounts.values().any(|known| known == id)
        {
            return Scripted::problem(400, "accountDoesNotExist");
        }
        let path: Vec<&str> = request.uri().path().split('/').skip(2).collect();
        let number = |index: usize| path.get(index).and_then(|part| part.parse().ok());
        match endpoint {
            "directory" => directory(),
            "new-nonce" => Scripted(200, "", String::new(), vec![]),
            "new-account" => state.register(&protected, &payload),
            "key-change" => state.change_key(&payload),
            "revoke-cert" => Scripted(200, "", String::new(), vec![]),
            "account" => Scripted::json(&json!({"status": "valid"})),
            "new-order" => state.place(&payload),
            "renewal-info" => Scripted::json(&json!({"suggestedWindow": {
                "start": "2027-02-01T00:00:00Z", "end": "2027-02-02T00:00:00Z"}})),
            endpoint => match number(0).filter(|order| *order < state.orders.len()) {
                Some(order) => {
                    self.answer_for_order(&mut state, endpoint, order, number(1).unwrap_or(0))
                }
                None => Scripted::problem(404, "malformed"),
            },
        }
    }

    fn answer_for_order(
        &self,
        state: &mut State,
        endpoint: &str,
        number: usize,
        name: usize,
    ) -> Scripted {
        let at_once = state.valid_at_once;
        let order = &mut state.orders[number];
        match endpoint {
            "order" => {
                let shown = order.show(number);
                if order.status == "processing" {
                    order.status = "valid";
                    return order.show(number);
                }
                shown
            }
            "authorization" => order.authorization(number, name),
            "challenge" => {
                order.validated[name] = true;
                if order.validated.iter().all(|valid| *valid) {
                    order.status = "ready";
                }
                let host = order.identifiers[name]["value"]
                    .as_str()
                    .unwrap()
                    .parse()
                    .unwrap();
                // A test may present nothing.
                let _ = self.responses.lookup(&host, &token(number, name));
                Scripted::json(&challenge(number, name, "processing"))
            }
            "finalize" if order.status == "ready" => {
                order.status = if at_once { "valid" } else { "processing" };
                order.show(number)
            }
            "finalize" => Scripted::problem(403, "orderNotReady"),
            "certificate" => Scripted(
                200,
                "application/pem-certificate-chain",
                pem(&format!("Issuer {number}")),
                vec![],
            ),
            _ => Scripted::problem(404, "malformed"),
        }
    }
}

impl State {
    fn nonce(&mut self) -> String {
        self.nonces_made += 1;
        let nonce = format!("nonce-{}", self.nonces_made);
        self.nonces.insert(nonce.clone());
        nonce
    }

    /// Trusts the inner request, whose signature it does not check.
    fn change_key(&mut self, inner: &Value) -> Scripted {
        let part = |name: &str| -> Value {
            serde_json::from_slice(&decode(inner[name].as_str().unwrap()).unwrap()).unwrap()
        };
        let (old, new) = (part("payload")["oldKey"].to_string(), part("protected"));
        let id = self.accounts.remove(&old).unwrap();
        assert_eq!(part("payload")["account"], id);
        self.accounts.insert(new["jwk"].to_string(), id);
        Scripted::json(&json!({"status": "valid"}))
    }

    fn register(&mut self, protected: &Value, payload: &Value) -> Scripted {
        let next = format!("https://ca.test/account/{}", self.accounts.len());
        let key = protected["jwk"].to_string();
        if payload["onlyReturnExisting"] == true && !self.accounts.contains_key(&key) {
            return Scripted::problem(400, "accountDoesNotExist");
        }
        let id = self.accounts.entry(key).or_insert(next).clone();
        Scripted(201, "application/json", "{}".into(), vec![("location", id)])
    }

    fn place(&mut self, payload: &Value) -> Scripted {
        let identifiers = payload["identifiers"].as_array().unwrap().clone();
        let order = FakeOrder {
            validated: vec![false; identifiers.len()],
            identifiers,
            status: "pending",
        };
        let number = self.orders.len();
        let mut reply = order.show(number);
        self.orders.push(order);
        reply.0 = 201;
        reply.with("location", format!("https://ca.test/order/{number}"))
    }
}

impl FakeOrder {
    fn show(&self, number: usize) -> Scripted {
        let url = |kind: &str| format!("https://ca.test/{kind}/{number}");
        let authorizations = 0..self.identifiers.len();
        let authorizations = authorizations.map(|name| format!("{}/{name}", url("authorization")));
        let mut shown = json!({
            "status": self.status, "identifiers": self.identifiers, "finalize": url("finalize"),
            "authorizations": authorizations.collect::<Vec<_>>(),
        });
        if self.status == "valid" {
            shown["certificate"] = url("certificate").into();
        }
        Scripted::json(&shown)
    }

    fn authorization(&self, number: usize, name: usize) -> Scripted {
        let status = if self.validated[name] {
            "valid"
        } else {
            "pending"
        };
        Scripted::json(&json!({
            "status": status, "identifier": self.identifiers[name],
            "challenges": [
                {"type": "dns-persist-01", "url": "https://ca.test/challenge/x", "status": "pending"},
                challenge(number, name, status),
            ],
        }))
    }
}

fn directory() -> Scripted {
    let url = |endpoint: &str| format!("https://ca.test/{endpoint}");
    Scripted::json(&json!({
        "newNonce": url("new-nonce"), "newAccount": url("new-account"), "newOrder": url("new-order"),
        "renewalInfo": url("renewal-info"), "revokeCert": url("revoke-cert"), "keyChange": url("key-change"),
        "meta": {"profiles": {"classic": "90 days", "shortlived": "6 days"}, "caaIdentities": ["ca.test"]},
    }))
}

fn challenge(order: usize, name: usize, status: &str) -> Value {
    json!({"type": "http-01", "status": status, "token": token(order, name),
        "url": format!("https://ca.test/challenge/{order}/{name}")})
}

fn token(order: usize, name: usize) -> String {
    format!("a-token-of-enough-length-{order}-{name}")
}

/// A self-signed certificate with the common name `name`.
pub(super) fn pem(name: &str) -> String {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    let common_name = rcgen::DnType::CommonName;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(common_name, name);
    let key = rcgen::KeyPair::generate().unwrap();
    params.self_signed(&key).unwrap().pem()
}

/// The protected header and the payload of a signed request.
fn open(request: &Request<Bytes>) -> (Value, Value) {
    let Ok(jws) = serde_json::from_slice::<Value>(request.body()) else {
        return (Value::Null, Value::Null);
    };
    let part = |name: &str| {
        let bytes = decode(jws[name].as_str().unwrap()).unwrap();
        serde_json::from_slice(&bytes).unwrap_or(Value::Null)
    };
    let protected: Value = part("protected");
    assert_eq!(protected["url"], request.uri().to_string());
    (protected, part("payload"))
}

#[async_trait]
impl Exchange for FakeCa {
    async fn exchange(&self, request: Request<Bytes>) -> Result<Response<Bytes>, ExchangeError> {
        assert_eq!(request.uri().scheme_str(), Some("https"));
        let endpoint = request.uri().path().split('/').nth(1).unwrap().to_owned();
        let gate = self.lock().gate.clone();
        if let Some((_, barrier)) = gate.filter(|(name, _)| *name == endpoint) {
            barrier.wait().await;
        }
        let Scripted(status, content_type, body, more) = self.answer(&endpoint, &request);
        let mut state = self.lock();
        if let Some((lost, left)) = &mut state.lost_replies
            && *lost == endpoint
            && *left > 0
        {
            *left -= 1;
            return Err(ExchangeError::Broken("as scripted".into()));
        }
        let mut reply = Response::builder()
            .status(StatusCode::from_u16(status).unwrap())
            .header("content-type", content_type);
        if endpoint != "directory" && endpoint != "renewal-info" {
            reply = reply.header("replay-nonce", state.nonce());
        }
        if let Some((_, seconds)) = state.delayed.filter(|(name, _)| *name == endpoint) {
            reply = reply.header("retry-after", seconds);
        }
        for (name, value) in more {
            reply = reply.header(HeaderName::from_static(name), value);
        }
        Ok(reply.body(body.into()).unwrap())
    }
}

/// A journal in memory.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) account: Option<Secret>,
    pub(super) accounts_saved: usize,
    pub(super) orders: Vec<PendingOrder>,
    pub(super) answers: Vec<PresentedAnswer>,
    /// Every list of answers that was saved.
    pub(super) saved_answers: Vec<Vec<PresentedAnswer>>,
}

#[async_trait]
impl Journal for Memory {
    fn answers(&self) -> Vec<PresentedAnswer> {
        self.answers.clone()
    }

    async fn save_answers(&mut self, answers: Vec<PresentedAnswer>) -> Result<(), JournalError> {
        self.answers.clone_from(&answers);
        self.saved_answers.push(answers);
        Ok(())
    }

    async fn keep_answers(&mut self, left: Vec<PresentedAnswer>) {
        self.save_answers(left).await.unwrap();
    }

    async fn order(&mut self, order: &PendingOrder) -> Result<(), JournalError> {
        self.orders.push(order.clone());
        Ok(())
    }

    async fn account(&mut self) -> Result<Option<Secret>, JournalError> {
        Ok(self.account.clone())
    }

    async fn create_account(&mut self, credentials: &Secret) -> Result<Secret, JournalError> {
        self.account = Some(credentials.clone());
        self.accounts_saved += 1;
        Ok(credentials.clone())
    }

    async fn save_account(
        &mut self,
        credentials: &Secret,
        before: &Secret,
    ) -> Result<(), JournalError> {
        if self.account.as_ref() != Some(before) {
            return Err("the account was changed".into());
        }
        self.account = Some(credentials.clone());
        self.accounts_saved += 1;
        Ok(())
    }
}

/// A pending order for `names`, without a URL.
pub(super) fn pending(names: &[&str]) -> PendingOrder {
    let identifiers = names.iter().map(|name| Identifier::parse(name).unwrap());
    PendingOrder {
        ca: "https://ca.test/directory".into(),
        identifiers: identifiers.collect(),
        profile: None,
        not_after: None,
        terms: None,
        key_pem: KeyType::EcdsaP256.generate().unwrap(),
        url: None,
        replaces: None,
        begun: NOW,
        counted: crate::ca_state::Counted::default(),
    }
}

/// Issues a certificate for one name with a new journal.
pub(super) async fn issue(client: &Client) -> Result<String, super::AcmeError> {
    client
        .issue(pending(&["a.example"]), &mut Memory::default())
        .await
}
