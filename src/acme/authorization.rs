//! Proving control of an order's names (RFC 8555 section 7.5): the authorizations
//! are fetched concurrently, every answer is published, then every challenge is
//! started concurrently. The answers are cleaned up on success and on failure.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use instant_acme::{
    AuthorizationState, AuthorizationStatus, Challenge, ChallengeStatus, ChallengeType, OrderStatus,
};
use serde_json::json;

use super::Journal;
use super::answers::{PlannedAnswer, announce, until_visible};
use super::client::Flow;
use super::documents::{self, Authorization};
use super::error::{Cause, FailedName};
use super::poll::{FIRST_POLL, PlacedOrder, SETTLING, Watch, is_usable};
use super::problem::describe;
use crate::challenge::{Answer, ChallengeKind, Solver, Token};
use crate::identifier::Identifier;
use crate::text::{cut, printable};

/// Concurrent requests of one order.
const CONCURRENCY: usize = 8;
/// The pauses between looks at an invalid order: its first failed name makes it
/// invalid while the CA still validates the others.
const VALIDATION_PAUSES: [Duration; 6] = [
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_millis(600),
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(5),
];

impl Flow<'_> {
    /// Answers the pending authorizations and waits until the order is not pending.
    pub(super) async fn authorize(
        &self,
        order: &mut PlacedOrder,
        journal: &mut dyn Journal,
    ) -> Result<(), Cause> {
        let mut reserved = Vec::new();
        for solver in &self.client.settings.solvers {
            reserved.push(solver.reserve(&order.identifiers).await);
        }
        let planned = self.plan(order).await?;
        announce(&planned, journal).await?;
        let mut result = self.answer(order, &planned, journal).await;
        if result.is_ok() && order.state.status == OrderStatus::Invalid {
            result = Err(self.why_invalid(order).await);
        }
        if let Err(cause @ Cause::NotValidated(_)) = result {
            let explains = planned.iter().map(|one| one.solver.explain(&one.answer));
            let seen: Vec<String> = join_all(explains).await.into_iter().flatten().collect();
            result = Err(cause.with_notes(&seen));
        }
        self.clean_up(&planned, journal).await;
        drop(reserved);
        let kind = planned.first().map(|planned| planned.answer.kind);
        result.map_err(|cause| cause.advised_by(kind))
    }

    async fn plan(&self, order: &PlacedOrder) -> Result<Vec<PlannedAnswer>, Cause> {
        let authorizations = self.authorizations(order).await?;
        let mut planned = Vec::new();
        for authorization in &authorizations {
            match authorization.status {
                AuthorizationStatus::Valid => {}
                AuthorizationStatus::Pending => planned.push(self.choose(order, authorization)?),
                status => return Err(not_usable(authorization, status)),
            }
        }
        Ok(planned)
    }

    pub(super) async fn authorizations(
        &self,
        order: &PlacedOrder,
    ) -> Result<Vec<Authorization>, Cause> {
        let urls = &order.state.authorizations;
        let (number, names) = (urls.len(), order.identifiers.len());
        if number > names {
            let message = format!("an order of {names} names with {number} authorizations");
            return Err(Cause::Protocol(message));
        }
        let fetch = async |url| {
            let reply = self.post("authorization", url, None).await?;
            let mut authorization = documents::authorization(&reply.body)?;
            for challenge in &mut authorization.challenges {
                challenge.url = reply.absolute(&challenge.url);
            }
            is_of(&authorization, &order.identifiers)?;
            Ok(authorization)
        };
        concurrently(urls.iter().map(|one| fetch(&one.url)).collect()).await
    }

    /// The first offered challenge that a solver supports, in the solvers' order.
    fn choose(
        &self,
        order: &PlacedOrder,
        authorization: &Authorization,
    ) -> Result<PlannedAnswer, Cause> {
        let name = authorization.identifier().to_string();
        let identifier = Identifier::parse(&name)
            .map_err(|error| Cause::Protocol(printable(&error.to_string())))?;
        let answerable = |solver: &Arc<dyn Solver>, challenge: &Challenge| {
            let kind: ChallengeKind = name_of(&challenge.r#type).parse().ok()?;
            solver.supports(kind, &identifier).then_some(kind)
        };
        let chosen = self.client.settings.solvers.iter().find_map(|solver| {
            let challenges = authorization.challenges.iter();
            let challenges = challenges.filter(|one| one.status != ChallengeStatus::Invalid);
            let mut fitting = challenges.filter_map(|c| Some((solver, answerable(solver, c)?, c)));
            fitting.next()
        });
        let Some((solver, kind, challenge)) = chosen else {
            return Err(none_fits(&identifier, &authorization.challenges));
        };
        Ok(PlannedAnswer {
            solver: solver.clone(),
            answer: Answer {
                kind,
                token: match kind.is_persistent() {
                    true => Token::absent(),
                    false => Token::parse(&challenge.token)?,
                },
                account: self.account_reference(kind, &identifier, order, authorization)?,
                key_authorization: self.account.key_authorization(&challenge.token),
                identifier,
            },
            url: challenge.url.clone(),
            is_started: challenge.status != ChallengeStatus::Pending,
        })
    }

    /// Publishes the answers, starts the challenges and waits for the CA.
    async fn answer(
        &self,
        order: &mut PlacedOrder,
        planned: &[PlannedAnswer],
        journal: &mut dyn Journal,
    ) -> Result<(), Cause> {
        present(planned).await?;
        until_visible(planned, journal).await?;
        order.retry_after = self.start_challenges(order, planned).await?;
        let (still, observed) = ([OrderStatus::Pending], all_observed(planned));
        // Every name server has the records already, and the CA's look at them is not seen.
        let first = match planned.iter().all(|one| one.answer.kind.proves_by_zone()) {
            true => SETTLING,
            false => FIRST_POLL,
        };
        let watch = Watch::of(planned.iter().map(|planned| planned.url.clone()));
        self.poll(order, &still, first, observed, watch).await
    }

    /// Starts the challenges that no earlier run has started; returns the longest
    /// `Retry-After`.
    async fn start_challenges(
        &self,
        order: &PlacedOrder,
        planned: &[PlannedAnswer],
    ) -> Result<Option<Duration>, Cause> {
        let open = planned.iter().filter(|planned| !planned.is_started);
        let starts = open.map(|planned| self.start(order, planned));
        let asked = concurrently(starts.collect()).await?;
        Ok(asked.into_iter().flatten().max())
    }

    /// Starts a challenge, unless the CA validates it already.
    async fn start(
        &self,
        order: &PlacedOrder,
        planned: &PlannedAnswer,
    ) -> Result<Option<Duration>, Cause> {
        let cause = match self.post("challenge", &planned.url, Some(&json!({}))).await {
            Ok(reply) => return Ok(reply.retry_after),
            Err(cause) => cause,
        };
        match cause.refusal() {
            // Boulder, for a challenge that it validates already.
            Some("conflict") => Ok(None),
            // Others name no such type: then the challenge shows it.
            Some(_) if self.is_started(order, planned).await => Ok(None),
            _ => Err(cause),
        }
    }

    async fn is_started(&self, order: &PlacedOrder, planned: &PlannedAnswer) -> bool {
        let seen = self.authorizations(order).await.unwrap_or_default();
        let mut all = seen.iter().flat_map(|one| &one.challenges);
        all.any(|one| one.url == planned.url && one.status != ChallengeStatus::Pending)
    }

    /// The authorizations of an invalid order, once the CA has validated each or the
    /// pauses have passed.
    async fn validated(&self, order: &PlacedOrder) -> Vec<Authorization> {
        let mut seen = Vec::new();
        for pause in VALIDATION_PAUSES {
            seen = self.authorizations(order).await.unwrap_or_default();
            if !seen.iter().any(has_failed) || seen.iter().all(is_validated) {
                break;
            }
            self.client.settings.clock.sleep(pause).await;
        }
        seen
    }

    /// Why the order is invalid, with the CA's problem for each identifier.
    pub(super) async fn why_invalid(&self, order: &PlacedOrder) -> Cause {
        let mut causes = Vec::new();
        let mut text = String::new();
        let mut names = Vec::new();
        for authorization in self.validated(order).await {
            let name = printable(&authorization.identifier().to_string());
            if has_failed(&authorization) {
                let unexplained = "the authorization is not valid";
                names.extend(failed_name(&authorization, unexplained));
            }
            for problem in errors(&authorization) {
                causes.push(Cause::of_challenge(problem));
                text.push_str(&format!("\n  {name}: {}", describe(problem)));
            }
        }
        if let Some(problem) = &order.state.error {
            if causes.is_empty() {
                return Cause::of_challenge(problem);
            }
            text.push_str(&format!("\n  the order: {}", describe(problem)));
        }
        match most_retryable(causes) {
            Some(cause) => cause
                .with_message(cut(format!("control was not proven{text}")))
                .for_names(names),
            None => {
                Cause::NotValidated("the CA calls the order invalid and gives no reason".into())
            }
        }
    }
}

/// Whether `authorization` is for a name of the order: nothing else is ever answered.
fn is_of(
    authorization: &AuthorizationState,
    identifiers: &BTreeSet<Identifier>,
) -> Result<(), Cause> {
    let name = authorization.identifier().to_string();
    let parse = |name: &str| Identifier::parse(name).ok();
    // Not every CA marks the authorization of a wildcard.
    let mut forms = [parse(&name), parse(&format!("*.{name}"))]
        .into_iter()
        .flatten();
    match forms.any(|form| identifiers.contains(&form)) {
        true => Ok(()),
        false => Err(Cause::Protocol(format!(
            "an authorization of `{}`, which is not in the order",
            printable(&name)
        ))),
    }
}

/// Presents the answers. Persistent records that are missing fail together, so that a user
/// reads at once what each of the names needs.
async fn present(planned: &[PlannedAnswer]) -> Result<(), Cause> {
    let presents = planned.iter().map(async |one| {
        let presented = one.solver.present(&one.answer).await;
        let failed = presented.err().map(|error| one.failed(error));
        match failed {
            Some(cause) if !one.answer.kind.is_persistent() => Err(cause),
            failed => Ok(failed),
        }
    });
    let failed = concurrently(presents.collect()).await?;
    match failed.into_iter().flatten().reduce(Cause::joined) {
        None => Ok(()),
        Some(cause) => Err(cause),
    }
}

/// Awaits `requests`, a few at a time, up to the first error.
async fn concurrently<T, E>(
    requests: Vec<impl Future<Output = Result<T, E>>>,
) -> Result<Vec<T>, E> {
    let results = stream::iter(requests).buffered(CONCURRENCY);
    results.try_collect().await
}

fn errors(authorization: &AuthorizationState) -> impl Iterator<Item = &instant_acme::Problem> {
    let challenges = authorization.challenges.iter();
    challenges.filter_map(|challenge| challenge.error.as_ref())
}

/// The name of a failed authorization, with the CA's problem.
fn failed_name(authorization: &AuthorizationState, unexplained: &str) -> Option<FailedName> {
    let identifier = Identifier::parse(&authorization.identifier().to_string()).ok()?;
    let problem = errors(authorization).next();
    let reason = problem.map_or_else(|| unexplained.to_owned(), describe);
    Some(FailedName { identifier, reason })
}

fn has_failed(authorization: &Authorization) -> bool {
    errors(authorization).next().is_some() || !is_usable(authorization)
}

fn is_validated(authorization: &Authorization) -> bool {
    authorization.status != AuthorizationStatus::Pending || has_failed(authorization)
}

/// The cause to report for several names: a retryable one before a refusal.
fn most_retryable(causes: Vec<Cause>) -> Option<Cause> {
    let may_be_caa = causes.iter().any(Cause::may_be_caa);
    let is_refusal = |cause: &Cause| matches!(cause, Cause::Refused(_));
    let cause = causes.into_iter().min_by_key(is_refusal)?;
    Some(cause.or_caa(may_be_caa))
}

/// The registered name of a kind of challenge, as the CA offers it.
fn name_of(kind: &ChallengeType) -> String {
    match kind {
        ChallengeType::Http01 => "http-01".to_owned(),
        ChallengeType::Dns01 => "dns-01".to_owned(),
        ChallengeType::TlsAlpn01 => "tls-alpn-01".to_owned(),
        ChallengeType::Unknown(name) => printable(name),
        other => format!("{other:?}"),
    }
}

fn none_fits(identifier: &Identifier, challenges: &[Challenge]) -> Cause {
    let offered = challenges.iter().map(|one| name_of(&one.r#type));
    let offered = match offered.collect::<Vec<_>>().join(", ") {
        none if none.is_empty() => "none".to_owned(),
        offered => printable(&offered),
    };
    Cause::NoChallenge {
        identifier: identifier.to_string(),
        offered,
    }
}

/// The cause for an invalid, expired, deactivated or revoked authorization.
fn not_usable(authorization: &AuthorizationState, status: AuthorizationStatus) -> Cause {
    let name = printable(&authorization.identifier().to_string());
    let failed = failed_name(authorization, &format!("{status:?}").to_lowercase());
    let cause = match errors(authorization).next() {
        Some(problem) => Cause::of_challenge(problem).with_message(format!(
            "control was not proven\n  {name}: {}",
            describe(problem)
        )),
        None => {
            let message = format!("the authorization of {name} is {status:?}").to_lowercase();
            Cause::NotValidated(message.into())
        }
    };
    cause.for_names(failed.into_iter().collect())
}

/// Ends when every answer has been fetched.
async fn all_observed(planned: &[PlannedAnswer]) {
    if planned.is_empty() {
        return std::future::pending().await;
    }
    for planned in planned {
        planned.solver.observed(&planned.answer).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use async_trait::async_trait;

    use super::super::fake::{FakeCa, Memory, Scripted, issue, pending};
    use super::super::{Client, Issuer};
    use super::*;
    use crate::challenge::SolverError;

    const FIVE: [&str; 5] = [
        "a.example",
        "b.example",
        "c.example",
        "d.example",
        "e.example",
    ];

    #[tokio::test(start_paused = true)]
    async fn authorizations_and_challenges_are_requested_concurrently() {
        for endpoint in ["authorization", "challenge"] {
            let ca = FakeCa::new();
            ca.hold(endpoint, FIVE.len());
            let (client, mut journal) = (ca.client(), Memory::default());
            let issued = client.issue(pending(&FIVE), &mut journal);
            let result = tokio::time::timeout(Duration::from_secs(60), issued).await;
            result.expect(endpoint).unwrap();
            assert_eq!((ca.count("authorization"), ca.count("challenge")), (5, 5));
        }
    }

    fn authorization(identifier: &str, challenges: serde_json::Value) -> Scripted {
        Scripted::json(&json!({"status": "pending", "challenges": challenges,
            "identifier": {"type": "dns", "value": identifier}}))
    }

    async fn cause_of(scripted: Scripted) -> Cause {
        let ca = FakeCa::new();
        ca.script("authorization", scripted);
        let result = issue(&ca.client()).await;
        assert_eq!(ca.count("challenge"), 0);
        result.unwrap_err().cause
    }

    #[tokio::test]
    async fn unsupported_challenges_are_reported_with_the_offered_ones() {
        let offered = json!([
            {"type": "dns-01", "url": "https://ca.test/challenge/1", "status": "pending", "token": "t"},
            {"type": "moon-01\u{1b}[31m", "url": "https://ca.test/challenge/2", "status": "pending"},
        ]);
        let cause = cause_of(authorization("a.example", offered)).await;
        let Cause::NoChallenge {
            identifier,
            offered,
        } = cause
        else {
            panic!("{cause:?}")
        };
        assert_eq!(identifier, "a.example");
        assert_eq!(offered, "dns-01, moon-01\\u{1b}[31m");
    }

    #[tokio::test]
    async fn hostile_tokens_and_names_are_rejected_before_any_solver() {
        for token in [
            "../../../../etc/passwd-and-so-on",
            "",
            "short",
            "a b c d e f g h i j k l m",
            "x\n",
        ] {
            let challenge = json!([{"type": "http-01", "url": "https://ca.test/challenge/1",
                "status": "pending", "token": token}]);
            let cause = cause_of(authorization("a.example", challenge)).await;
            assert!(matches!(cause, Cause::Protocol(_)), "{token}: {cause:?}");
        }
        let cause = cause_of(authorization("a/../b", json!([]))).await;
        assert!(matches!(cause, Cause::Protocol(_)), "{cause:?}");
    }

    #[tokio::test]
    async fn invalid_order_reports_every_name_and_cleans_up_its_answers() {
        let ca = FakeCa::new();
        let invalid = json!({"status": "invalid", "finalize": "https://ca.test/f",
            "authorizations": ["https://ca.test/authorization/0/0", "https://ca.test/authorization/0/1"]});
        // The first two are fetched before the order is invalid.
        let failed = |name: &str, kind: &str| {
            authorization(
                name,
                json!([{"type": "http-01", "url": "https://ca.test/challenge/1",
                "status": "invalid", "token": "t", "error": {"detail": "why",
                "type": format!("urn:ietf:params:acme:error:{kind}")}}]),
            )
        };
        let unanswered = |number: usize| {
            let name = ["a.example", "b.example"][number];
            authorization(
                name,
                json!([{"type": "http-01", "status": "pending",
                "token": format!("a-token-of-enough-length-0-{number}"),
                "url": format!("https://ca.test/challenge/0/{number}")}]),
            )
        };
        for scripted in [
            unanswered(0),
            unanswered(1),
            failed("a.example", "caa"),
            failed("b.example", "connection"),
        ] {
            ca.script("authorization", scripted);
        }
        ca.script("order", Scripted::json(&invalid));
        let names = pending(&["a.example", "b.example"]);
        let result = ca.client().issue(names, &mut Memory::default()).await;
        let error = result.unwrap_err();
        assert!(matches!(error.cause, Cause::NotValidated(_)), "{error}");
        assert!(error.cause.may_be_caa(), "{error}");
        let failed = error.cause.failed_names().iter();
        let failed: Vec<_> = failed.map(|one| one.identifier.to_string()).collect();
        assert_eq!(failed, ["a.example", "b.example"]);
        for line in [
            "a.example: urn:ietf:params:acme:error:caa: why",
            "b.example: urn:ietf:params:acme:error:connection: why",
        ] {
            assert!(error.to_string().contains(line), "{error}");
        }
        let host = Identifier::parse("a.example").unwrap();
        assert_eq!(
            ca.responses.lookup(&host, "a-token-of-enough-length-0-0"),
            None
        );
    }

    #[tokio::test]
    async fn other_names_are_validated_after_the_first_one_fails() {
        let ca = FakeCa::new();
        let invalid = json!({"status": "invalid", "finalize": "https://ca.test/f",
            "authorizations": ["https://ca.test/authorization/0/0", "https://ca.test/authorization/0/1"]});
        let shown = |name: &str, number: usize, status: &str, kind: Option<&str>| {
            let error = kind.map(|kind| {
                json!({"type": format!("urn:ietf:params:acme:error:{kind}"), "detail": "why"})
            });
            Scripted::json(
                &json!({"status": status, "identifier": {"type": "dns", "value": name},
                "challenges": [{"type": "http-01", "status": "pending", "error": error,
                    "token": format!("a-token-of-enough-length-0-{number}"),
                    "url": format!("https://ca.test/challenge/0/{number}")}]}),
            )
        };
        // Fetched before, after the first name failed, and after the second is validated.
        for (failing, valid) in [
            (("pending", None), "pending"),
            (("invalid", Some("dns")), "pending"),
            (("invalid", Some("dns")), "valid"),
        ] {
            ca.script("authorization", shown("a.example", 0, failing.0, failing.1));
            ca.script("authorization", shown("b.example", 1, valid, None));
        }
        ca.script("order", Scripted::json(&invalid));
        let names = pending(&["a.example", "b.example"]);
        let result = ca.client().issue(names, &mut Memory::default()).await;
        let error = result.unwrap_err();
        let failed = error.cause.failed_names();
        assert_eq!(failed.len(), 1, "{failed:?}");
        assert_eq!(failed[0].identifier.to_string(), "a.example");
        assert_eq!(failed[0].reason, "urn:ietf:params:acme:error:dns: why");
        assert_eq!(ca.count("authorization"), 6);
    }

    #[tokio::test]
    async fn valid_authorization_is_not_answered_again() {
        let ca = FakeCa::new();
        let valid = json!({"status": "valid", "challenges": [], "identifier": {"type": "dns", "value": "a.example"}});
        ca.script("authorization", Scripted::json(&valid));
        let ready = json!({"status": "valid", "authorizations": [], "finalize": "https://ca.test/f",
            "certificate": "https://ca.test/certificate/0"});
        ca.script("order", Scripted::json(&ready));
        issue(&ca.client()).await.unwrap();
        assert_eq!((ca.count("challenge"), ca.count("order")), (0, 1));
    }

    /// Publishes no answer and observes no fetch.
    struct UnobservedSolver;

    #[async_trait]
    impl Solver for UnobservedSolver {
        fn supports(&self, _: ChallengeKind, _: &Identifier) -> bool {
            true
        }

        async fn present(&self, _: &Answer) -> Result<(), SolverError> {
            Ok(())
        }

        async fn observed(&self, _: &Answer) {
            std::future::pending().await
        }

        async fn clean_up(&self, _: &Answer) -> Result<(), SolverError> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn unobserved_validation_is_polled_after_the_challenges_retry_after() {
        for (retry_after, expected) in [(None, 250), (Some(3), 3000)] {
            let ca = FakeCa::new();
            let mut options = ca.settings();
            options.solvers = vec![Arc::new(UnobservedSolver)];
            if let Some(retry_after) = retry_after {
                ca.script(
                    "challenge",
                    Scripted::json(&json!({})).with("retry-after", retry_after),
                );
                ca.script("order", Scripted::json(&json!({"status": "valid", "authorizations": [],
                    "finalize": "https://ca.test/f", "certificate": "https://ca.test/certificate/0"})));
            }
            issue(&Client::new(options).unwrap()).await.unwrap();
            let waited = ca.times("order")[0].since(ca.times("challenge")[0]);
            assert_eq!(waited, Duration::from_millis(expected));
        }
    }
}
