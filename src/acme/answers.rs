//! The answers of an order: stored before they are presented if they outlive this process,
//! waited for, and cleaned up, also after an earlier run that was interrupted.

use std::sync::Arc;

use futures_util::future::{join_all, try_join_all};
use tokio::sync::mpsc::unbounded_channel;

use super::Journal;
use super::client::Flow;
use super::error::{Cause, FailedName};
use crate::challenge::{AccountReference, Answer, Report, Solver, SolverError, Token, dns01};
use crate::record::PresentedAnswer;
use crate::text::printable;

/// An answer with its solver and its challenge's URL.
pub(super) struct PlannedAnswer {
    pub(super) solver: Arc<dyn Solver>,
    pub(super) answer: Answer,
    pub(super) url: String,
    /// An earlier run has started the challenge.
    pub(super) is_started: bool,
}

impl PlannedAnswer {
    /// The cause that the answer's name failed.
    pub(super) fn failed(&self, error: SolverError) -> Cause {
        let identifier = self.answer.identifier.clone();
        let reason = error.to_string();
        Cause::from(error).for_names(vec![FailedName { identifier, reason }])
    }
}

impl Flow<'_> {
    /// Removes the `planned` answers, and those of earlier runs that were interrupted. One
    /// that cannot be removed stays in the journal for the next run, and for no other.
    pub(super) async fn clean_up(&self, planned: &[PlannedAnswer], journal: &mut dyn Journal) {
        let stored = journal.answers();
        let own: Vec<_> = planned.iter().map(|one| presented(&one.answer)).collect();
        let others = planned.iter().zip(&own);
        let others = others.filter(|(_, presented)| !stored.contains(presented));
        let others = others.map(|(one, _)| clean_up(one.solver.as_ref(), &one.answer));
        join_all(others).await;
        if stored.is_empty() {
            return;
        }
        let removals = join_all(stored.iter().map(|answer| self.clean_up_stored(answer))).await;
        let left = stored.into_iter().zip(removals);
        let left = left.filter(|(answer, is_removed)| !is_removed && own.contains(answer));
        let left = left.map(|(answer, _)| answer).collect();
        journal.keep_answers(left).await;
    }

    /// Whether nothing is left to do for an answer.
    async fn clean_up_stored(&self, stored: &PresentedAnswer) -> bool {
        let Some(answer) = answer_of(stored) else {
            return true;
        };
        let kind = answer.kind;
        let mut solvers = self.client.settings.solvers.iter();
        let solver = solvers
            .find(|solver| solver.leaves_traces() && solver.supports(kind, &answer.identifier));
        match solver {
            Some(solver) => clean_up(solver.as_ref(), &answer).await,
            None => {
                tracing::warn!(
                    "an answer to {} for {} was left behind by an interrupted run with other settings",
                    kind.name(),
                    answer.identifier
                );
                true
            }
        }
    }
}

/// Stores the answers that outlive this process, before the first is presented.
pub(super) async fn announce(
    planned: &[PlannedAnswer],
    journal: &mut dyn Journal,
) -> Result<(), Cause> {
    let mut all = journal.answers();
    let lasting = planned.iter().filter(|one| one.solver.leaves_traces());
    let lasting = lasting.map(|one| presented(&one.answer));
    let new: Vec<_> = lasting.filter(|answer| !all.contains(answer)).collect();
    if new.is_empty() {
        return Ok(());
    }
    all.extend(new);
    journal.save_answers(all).await.map_err(Cause::Journal)
}

/// Waits until the CA can fetch every answer, and shows what is waited for.
pub(super) async fn until_visible(
    planned: &[PlannedAnswer],
    journal: &mut dyn Journal,
) -> Result<(), Cause> {
    let (sender, mut phases) = unbounded_channel();
    let report = Report::new(sender);
    let waits = planned.iter().map(async |one| {
        let visible = one.solver.visible(&one.answer, &report).await;
        visible.map_err(|error| one.failed(error))
    });
    let mut waits = std::pin::pin!(try_join_all(waits));
    let mut shown = false;
    loop {
        tokio::select! {
            ended = &mut waits => {
                if shown {
                    journal.phase("waiting for the CA to validate and sign");
                }
                return ended.map(drop);
            }
            Some(phase) = phases.recv() => {
                journal.phase(&phase);
                shown = true;
            }
        }
    }
}

/// The DNS record of a stored answer that an interrupted run may have left behind.
pub(crate) fn left_record(stored: &PresentedAnswer) -> Option<String> {
    let answer = answer_of(stored)?;
    let is_record = answer.kind.proves_by_zone() && !answer.kind.is_persistent();
    is_record.then(|| dns01::record_of(&answer))
}

/// Removes the answer that an interrupted run may have left behind; whether nothing is left.
pub(crate) async fn remove_left(solver: &dyn Solver, stored: &PresentedAnswer) -> bool {
    match answer_of(stored) {
        Some(answer) if solver.supports(answer.kind, &answer.identifier) => {
            clean_up(solver, &answer).await
        }
        answer => answer.is_none(),
    }
}

/// The answer that the journal holds.
fn answer_of(stored: &PresentedAnswer) -> Option<Answer> {
    Some(Answer {
        kind: stored.kind.parse().ok()?,
        token: Token::parse(&stored.token).ok()?,
        identifier: stored.identifier.clone(),
        key_authorization: stored.key_authorization.clone(),
        account: AccountReference {
            url: stored.account.clone(),
            ..AccountReference::default()
        },
    })
}

/// The form of an answer in the journal.
fn presented(answer: &Answer) -> PresentedAnswer {
    PresentedAnswer {
        kind: answer.kind.name().to_owned(),
        identifier: answer.identifier.clone(),
        token: answer.token.as_str().to_owned(),
        key_authorization: answer.key_authorization.clone(),
        account: match answer.kind.names_account() {
            true => answer.account.url.clone(),
            false => String::new(),
        },
    }
}

/// Removes an answer; whether that succeeded.
async fn clean_up(solver: &dyn Solver, answer: &Answer) -> bool {
    let removed = solver.clean_up(answer).await;
    if let Err(error) = &removed {
        let name = &answer.identifier;
        tracing::warn!(
            "the challenge answer for {name} could not be cleaned up: {}",
            printable(&error.to_string())
        );
    }
    removed.is_ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use async_trait::async_trait;

    use super::super::fake::{FakeCa, Memory, pending};
    use super::super::{Client, Issuer};
    use super::*;
    use crate::challenge::ChallengeKind;
    use crate::identifier::Identifier;

    /// Keeps its answers where they outlive a process.
    #[derive(Default)]
    struct Lasting {
        there: Mutex<Vec<String>>,
        fails: AtomicBool,
    }

    #[async_trait]
    impl Solver for Lasting {
        fn supports(&self, kind: ChallengeKind, _: &Identifier) -> bool {
            kind == ChallengeKind::Http01
        }

        fn leaves_traces(&self) -> bool {
            true
        }

        async fn present(&self, answer: &Answer) -> Result<(), SolverError> {
            let token = answer.token.as_str().to_owned();
            self.there.lock().unwrap().push(token);
            Ok(())
        }

        async fn observed(&self, _: &Answer) {
            std::future::pending().await
        }

        async fn clean_up(&self, answer: &Answer) -> Result<(), SolverError> {
            if self.fails.load(Ordering::Relaxed) {
                return Err(SolverError::Token);
            }
            let mut there = self.there.lock().unwrap();
            there.retain(|token| token != answer.token.as_str());
            Ok(())
        }
    }

    fn left(token: &str, kind: &str) -> PresentedAnswer {
        PresentedAnswer {
            kind: kind.to_owned(),
            identifier: Identifier::parse("old.example").unwrap(),
            token: token.to_owned(),
            key_authorization: "public".to_owned(),
            account: String::new(),
        }
    }

    #[tokio::test]
    async fn answers_are_stored_before_and_removed_after_also_for_earlier_runs() {
        let (ca, solver) = (FakeCa::new(), Arc::new(Lasting::default()));
        let old = "an-answer-of-an-earlier-run";
        solver.there.lock().unwrap().push(old.to_owned());
        let mut options = ca.settings();
        options.solvers = vec![solver.clone()];
        let client = Client::new(options).unwrap();
        let mut journal = Memory {
            answers: vec![
                left(old, "http-01"),
                left("of-another-kind-of-challenge", "dns-01"),
            ],
            ..Memory::default()
        };
        let order = || pending(&["a.example"]);
        client.issue(order(), &mut journal).await.unwrap();
        assert!(solver.there.lock().unwrap().is_empty() && journal.answers.is_empty());
        let saved: Vec<usize> = journal.saved_answers.iter().map(Vec::len).collect();
        assert_eq!(saved, [3, 0], "before the first is presented, and after");
        // What cannot be removed is kept for the next run.
        solver.fails.store(true, Ordering::Relaxed);
        client.issue(order(), &mut journal).await.unwrap();
        assert_eq!(
            (solver.there.lock().unwrap().len(), journal.answers.len()),
            (1, 1)
        );
        solver.fails.store(false, Ordering::Relaxed);
        client.issue(order(), &mut journal).await.unwrap();
        assert!(solver.there.lock().unwrap().is_empty() && journal.answers.is_empty());
    }
}
