//! What an import says, a line for each thing, and how it ends.

use std::path::Path;

use serde_json::json;

use crate::certificate::Facts;
use crate::cli::Call;
use crate::cli::output::say;
use crate::failure::Failure;
use crate::identifier::Lineage;
use crate::import::{LIVE, Remark, Verdict};
use crate::manage::import::Taken;
use crate::text::printable;

/// Lines as they come, and what they come to.
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

    /// An account or a certificate that cannot be taken.
    pub(super) fn broken(&mut self, subject: &str, why: &str) {
        self.failed += 1;
        self.line(Word::NotTaken, subject, why);
    }

    /// The same, told by what has failed.
    pub(super) fn failed(&mut self, subject: &str, failure: &Failure) {
        self.broken(subject, &failure.in_a_line());
    }

    /// Something that need not be taken.
    pub(super) fn left(&mut self, subject: &str, why: &str) {
        self.line(Word::NotTaken, subject, why);
    }

    /// What the owner has to do.
    pub(super) fn by_hand(&mut self, subject: &str, what: &str) {
        self.line(Word::ByHand, subject, what);
    }

    /// An account that is ours from here on, or was before.
    pub(super) fn account(&mut self, subject: &str, is_new: bool, text: &str) {
        let word = if is_new { Word::Taken } else { Word::Here };
        self.line(word, subject, text);
    }

    /// A certificate, whatever has become of it.
    pub(super) fn certificate(&mut self, subject: &str, taken: &Taken, facts: &Facts, live: &Path) {
        let (not_after, live) = (facts.not_after, live.display());
        match taken {
            Taken::Stored(generation, at) => {
                self.taken += 1;
                let text = format!(
                    "generation {generation} in {live}, valid to {not_after}, to be renewed at {at}"
                );
                self.line(Word::Taken, subject, &text);
            }
            Taken::Here {
                generation,
                newer,
                resettled,
            } => {
                self.here += 1;
                let mut text = match newer {
                    true => format!("a newer one, generation {generation} in {live}, which stays"),
                    false => format!("generation {generation} in {live}, valid to {not_after}"),
                };
                if *resettled {
                    text.push_str("; it is renewed and handed over as this command says");
                }
                self.line(Word::Here, subject, &text);
            }
            Taken::OtherNames(names) => {
                let names: Vec<String> = names.iter().map(ToString::to_string).collect();
                let names = names.join(", ");
                self.broken(
                    subject,
                    &format!("one of that name is here for {names}, and stays"),
                );
            }
        }
    }

    /// What the reader has to say, of one certificate or of all.
    pub(super) fn remark(&mut self, lineage: Option<&Lineage>, remark: &Remark, live: &Path) {
        let text = remark.text.replace(LIVE, &live.display().to_string());
        let subject = match lineage {
            Some(lineage) => format!("certificate {lineage}, {}", remark.subject),
            None => remark.subject.clone(),
        };
        match remark.verdict {
            Verdict::Broken => self.broken(&subject, &text),
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

    /// The sum, and the exit code.
    pub(super) fn end(self, source: &Path) -> Result<(), Failure> {
        let (taken, here, failed) = (self.taken, self.here, self.failed);
        if taken + here + failed == 0 && !self.call.json {
            say(format_args!("nothing to take over in {}", source.display()));
        }
        if failed > 0 {
            let message = format!(
                "{}: {failed} could not be taken; {taken} certificates were, {here} are here already",
                source.display()
            );
            return Err(Failure::left_behind(message));
        }
        Ok(())
    }
}
