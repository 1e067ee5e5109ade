//! The report of an import: a line for each part, and the exit code.

use std::path::Path;

use serde_json::json;

use crate::certificate::Facts;
use crate::cli::Call;
use crate::cli::output::say;
use crate::failure::Failure;
use crate::import::{LIVE, Remark, Verdict};
use crate::lineage::Lineage;
use crate::manage::import::ImportOutcome;
use crate::text::printable;

/// Prints lines and counts them.
pub(super) struct Report<'a> {
    call: &'a Call,
    dry_run: bool,
    taken: usize,
    here: usize,
    failed: usize,
}

/// The first word of a line.
#[derive(Clone, Copy)]
enum Word {
    Taken,
    Here,
    NotTaken,
    ByHand,
}

impl Word {
    fn text(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Here => "here",
            Self::NotTaken => "not taken",
            Self::ByHand => "by hand",
        }
    }
}

impl<'a> Report<'a> {
    pub(super) fn new(call: &'a Call, dry_run: bool) -> Self {
        Self {
            call,
            dry_run,
            taken: 0,
            here: 0,
            failed: 0,
        }
    }

    /// Whether a certificate was taken.
    pub(super) fn has_taken(&self) -> bool {
        self.taken > 0
    }

    /// An account or a certificate that cannot be imported.
    pub(super) fn not_taken(&mut self, subject: &str, why: &str) {
        self.failed += 1;
        self.line(Word::NotTaken, subject, why);
    }

    /// The same, for a failure.
    pub(super) fn failed(&mut self, subject: &str, failure: &Failure) {
        self.not_taken(subject, &failure.in_a_line());
    }

    /// A part that need not be imported.
    pub(super) fn skipped(&mut self, subject: &str, why: &str) {
        self.line(Word::NotTaken, subject, why);
    }

    /// A step for the operator.
    pub(super) fn by_hand(&mut self, subject: &str, what: &str) {
        self.line(Word::ByHand, subject, what);
    }

    /// An account that is now, or was already, in the store.
    pub(super) fn account(&mut self, subject: &str, is_new: bool, text: &str) {
        let word = if is_new { Word::Taken } else { Word::Here };
        self.line(word, subject, text);
    }

    /// The result of a certificate.
    pub(super) fn certificate(
        &mut self,
        subject: &str,
        taken: &ImportOutcome,
        facts: &Facts,
        live: &Path,
    ) {
        let (not_after, live) = (facts.not_after, live.display());
        match taken {
            ImportOutcome::Stored(generation, at) => {
                self.taken += 1;
                let text = format!(
                    "generation {generation} in {live}, valid to {not_after}, renewal at {at}"
                );
                self.line(Word::Taken, subject, &text);
            }
            ImportOutcome::Here {
                generation,
                newer,
                resettled,
            } => {
                self.here += 1;
                let mut text = match newer {
                    true => format!("a newer one, generation {generation} in {live}, stays"),
                    false => format!("generation {generation} in {live}, valid to {not_after}"),
                };
                if *resettled {
                    text.push_str("; renewal and deployment now use this command's options");
                }
                self.line(Word::Here, subject, &text);
            }
            ImportOutcome::OtherNames(names) => {
                let names: Vec<String> = names.iter().map(ToString::to_string).collect();
                let names = names.join(", ");
                self.not_taken(
                    subject,
                    &format!("the stored one of that name stays: it is for {names}"),
                );
            }
        }
    }

    /// A remark on one certificate or on all.
    pub(super) fn remark(&mut self, lineage: Option<&Lineage>, remark: &Remark, live: &Path) {
        let text = remark.text.replace(LIVE, &live.display().to_string());
        let subject = match lineage {
            Some(lineage) => format!("certificate {lineage}, {}", remark.subject),
            None => remark.subject.clone(),
        };
        match remark.verdict {
            Verdict::Broken => self.not_taken(&subject, &text),
            Verdict::NotTaken => self.line(Word::NotTaken, &subject, &text),
            Verdict::ByHand => self.line(Word::ByHand, &subject, &text),
        }
    }

    fn line(&self, word: Word, subject: &str, text: &str) {
        let (subject, text) = (printable(subject), printable(text));
        if self.call.json {
            say(json!({
                "result": word.text(), "subject": subject, "text": text, "dry_run": self.dry_run,
            }));
        } else {
            let word = match (word, self.dry_run) {
                (Word::Taken, true) => "would take",
                _ => word.text(),
            };
            say(format_args!("{word:<10}  {subject}: {text}"));
        }
    }

    /// Prints the totals and returns the exit code.
    pub(super) fn end(self, source: &Path) -> Result<(), Failure> {
        let (taken, here, failed) = (self.taken, self.here, self.failed);
        if taken + here + failed == 0 && !self.call.json {
            say(format_args!("nothing to import in {}", source.display()));
        }
        if failed > 0 {
            let message = format!(
                "{}: {failed} could not be imported; {taken} certificates were, {here} were here already",
                source.display()
            );
            return Err(Failure::import_incomplete(message));
        }
        Ok(())
    }
}
