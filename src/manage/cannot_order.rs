//! Why a stored certificate cannot be ordered, although it can be deployed and looked at. It
//! decides nothing.

use std::path::Path;

use crate::program;

/// Why a certificate cannot be ordered by its settings, or on this machine now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CannotOrder {
    /// The cause.
    pub why: String,
    /// The next thing to do.
    pub hint: String,
    /// Whether it fails no pass before the order is due.
    pub only_when_due: bool,
}

impl CannotOrder {
    /// The fault of the program that presents the challenge answers.
    pub(super) fn by_program(program: &Path) -> Option<Self> {
        let fault = program::fault(program)?;
        Some(Self {
            why: format!(
                "the program of the DNS provider, {}: {fault}",
                program.display()
            ),
            hint: fault.hint().to_owned(),
            only_when_due: true,
        })
    }

    /// The cause and its hint in one text.
    pub(crate) fn shown(&self) -> String {
        format!("{}; hint: {}", self.why, self.hint)
    }

    /// The warning while the order is not due.
    pub(crate) fn warning(&self) -> String {
        let (why, hint) = (&self.why, &self.hint);
        format!("not renewable: {why}; it is deployed until it expires; hint: {hint}")
    }
}
