//! The report of an import: a line for each part, and the exit code.

use std::path::Path;

use serde_json::json;

use crate::certificate::Facts;
use crate::cli::Call;
use crate::cli::output::{say, say_json};
use crate::failure::Failure;
use crate::import::{LIVE, Remark, RemarkKind};
use crate::lineage::Lineage;
use crate::manage::import::Imported;
use crate::text::printable;
use crate::time::Timestamp;

/// Prints lines and counts them.
pub(super) struct Report<'a> {
    call: &'a Call,
    dry_run: bool,
    imported: usize,
    here: usize,
    failed: usize,
}

/// The first words of a line.
const IMPORTED: &str = "taken";
const HERE: &str = "here";
const NOT_IMPORTED: &str = "not taken";
const BY_HAND: &str = "by hand";

impl<'a> Report<'a> {
    pub(super) fn new(call: &'a Call, dry_run: bool) -> Self {
        Self {
            call,
            dry_run,
            imported: 0,
            here: 0,
            failed: 0,
        }
    }

    /// Whether a certificate was imported.
    pub(super) fn has_imported(&self) -> bool {
        self.imported > 0
    }

    /// An account or a certificate that cannot be imported.
    pub(super) fn not_imported(&mut self, subject: &str, why: &str) {
        self.failed += 1;
        self.line(NOT_IMPORTED, subject, why);
    }

    /// A part that need not be imported.
    pub(super) fn skipped(&mut self, subject: &str, why: &str) {
        self.line(NOT_IMPORTED, subject, why);
    }

    /// A step for the operator.
    pub(super) fn by_hand(&mut self, subject: &str, what: &str) {
        self.line(BY_HAND, subject, what);
    }

    /// An account that is now, or was already, in the store.
    pub(super) fn account(&mut self, subject: &str, is_new: bool, text: &str) {
        self.line(if is_new { IMPORTED } else { HERE }, subject, text);
    }

    /// The result of a certificate.
    pub(super) fn certificate(
        &mut self,
        subject: &str,
        imported: &Imported,
        facts: &Facts,
        live: &Path,
        now: Timestamp,
    ) {
        let (not_after, live) = (facts.not_after.seen_at(now), live.display());
        match imported {
            Imported::Stored(generation, at) => {
                self.imported += 1;
                let at = at.seen_at(now);
                let text = format!(
                    "generation {generation} in {live}, valid to {not_after}, renewal at {at}; not proven to be served before certs renew has deployed it"
                );
                self.line(IMPORTED, subject, &text);
            }
            Imported::Present {
                generation,
                newer,
                has_new_settings,
            } => {
                self.here += 1;
                let mut text = match newer {
                    true => format!("a newer one, generation {generation} in {live}, stays"),
                    false => format!("generation {generation} in {live}, valid to {not_after}"),
                };
                if *has_new_settings {
                    text.push_str("; renewal and deployment now use this command's options");
                }
                self.line(HERE, subject, &text);
            }
            Imported::OtherNames(names) => {
                let names: Vec<String> = names.iter().map(ToString::to_string).collect();
                let names = names.join(", ");
                let why = format!("the stored one of that name stays: it is for {names}");
                self.not_imported(subject, &why);
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
        match remark.kind {
            RemarkKind::Invalid => self.not_imported(&subject, &text),
            RemarkKind::Unsupported => self.skipped(&subject, &text),
            RemarkKind::Manual => self.by_hand(&subject, &text),
            RemarkKind::Stored => self.line(IMPORTED, &subject, &text),
        }
    }

    fn line(&self, word: &str, subject: &str, text: &str) {
        let text = self.call.terminal.hint(text);
        let (subject, text) = (printable(subject), printable(&text));
        if self.call.json {
            return say_json(json!({
                "result": word, "subject": subject, "text": text, "dry_run": self.dry_run,
            }));
        }
        let word = match (word, self.dry_run) {
            (IMPORTED, true) => "would take",
            _ => word,
        };
        say(format_args!("{word:<10}  {subject}: {text}"));
    }

    /// Prints the totals and returns the exit code.
    pub(super) fn end(self, source: &Path) -> Result<(), Failure> {
        let (imported, here, failed) = (self.imported, self.here, self.failed);
        if imported + here + failed == 0 && !self.call.json {
            say(format_args!("nothing to import in {}", source.display()));
        }
        if failed > 0 {
            let source = source.display();
            let message = format!(
                "{source}: {failed} could not be imported; {imported} certificates were, {here} were here already"
            );
            let hint = "fix the reason named above for each, and import again: imported ones stay";
            return Err(Failure::new(8, vec![(message, hint.to_owned())]));
        }
        Ok(())
    }
}
