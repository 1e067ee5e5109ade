//! A failure for the user: an exit code, and messages with one hint each. It also
//! crosses the control socket. Nothing is printed here.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error as Message;

use crate::files::accounts;
use crate::files::beneath;
use crate::files::trust::Untrusted;

/// The hint for a store or an output that cannot be used.
pub(crate) const STORE_HINT: &str =
    "check the directory's owner, mode and free space; nothing that is served was changed";

const FULL_HINT: &str = "free space on that disk, then run this command again";

/// Whether a disk, or a user's share of it, is full.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded
    )
}

/// The message of an error, and what to do about it.
#[derive(Debug, Message)]
#[error("{message}")]
pub(crate) struct Advised {
    pub message: String,
    pub hint: &'static str,
}

/// What to do about an error, if one of its causes says so.
pub(crate) fn advice(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(advised) = cause.downcast_ref::<Advised>() {
            return Some(advised.hint);
        }
        let inner = cause
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        if let Some(hint) = inner.and_then(|inner| advice(inner)) {
            return Some(hint);
        }
        next = cause.source();
    }
    None
}

/// Finds out why something cannot work; `None` if it can.
pub(crate) type Check = Arc<dyn Fn() -> Option<&'static str> + Send + Sync>;

/// An exit code, and messages with hints.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// The exit code.
    pub code: u8,
    /// Each message with its hint.
    #[serde(rename = "told")]
    messages: Vec<(String, String)>,
}

impl Failure {
    /// A failure with several messages.
    pub(crate) fn new(code: u8, messages: Vec<(String, String)>) -> Self {
        Self { code, messages }
    }

    fn one(code: u8, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(code, vec![(message.into(), hint.into())])
    }

    /// A failure without a known cause.
    pub(crate) fn unexpected(message: impl ToString) -> Self {
        let hint = "run again with -v and report what it says";
        Self::broken(message.to_string(), hint)
    }

    /// A failure with a known next step.
    pub(crate) fn broken(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::one(1, message, hint)
    }

    /// Invalid usage, configuration or environment; nothing was sent.
    pub(crate) fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::one(2, message, hint)
    }

    /// The same, or the refusal of a file that `certs` did not make, or a full disk.
    pub(crate) fn of_file(error: &io::Error, message: String, hint: impl Into<String>) -> Self {
        match beneath::is_refusal(error) {
            true => Self::one(8, message, beneath::REFUSED_HINT),
            false if is_full(error) => Self::one(8, message, FULL_HINT),
            false => Self::usage(message, hint),
        }
    }

    /// An output that could not be used, with its own hint.
    pub(crate) fn output(message: String, hint: &str) -> Self {
        Self::one(8, message, hint)
    }

    /// The store or an output could not be used.
    pub(crate) fn store(message: String) -> Self {
        Self::one(8, message, STORE_HINT)
    }

    /// A path of the store, or another one that a command needs, could not be used.
    pub(crate) fn unusable(path: &Path, error: &io::Error) -> Self {
        let message = format!("{}: {error}", path.display());
        Self::one(8, message, hint_for(path, error))
    }

    /// Replaces the first `text` of each message.
    pub(crate) fn replace(&mut self, text: &str, by: &str) {
        for (message, _) in &mut self.messages {
            *message = message.replacen(text, by, 1);
        }
    }

    /// The same with another hint.
    pub(crate) fn with_hint(mut self, hint: &str) -> Self {
        for (_, own) in &mut self.messages {
            hint.clone_into(own);
        }
        self
    }

    /// The exit code alone, for a failure whose messages were already shown.
    pub(crate) fn code_only(&self) -> Self {
        Self::new(self.code, Vec::new())
    }

    /// Each message with its hint.
    pub(crate) fn messages(&self) -> impl Iterator<Item = (&str, &str)> {
        let messages = self.messages.iter();
        messages.map(|(message, hint)| (message.as_str(), hint.as_str()))
    }

    /// The first line of the first message.
    pub(crate) fn summary(&self) -> &str {
        let first = self.messages().next();
        first.map_or("", |(message, _)| {
            message.lines().next().unwrap_or_default()
        })
    }

    /// Every message with its hint, for a log.
    pub(crate) fn in_a_line(&self) -> String {
        let lines = self.messages();
        let lines = lines.map(|(message, hint)| format!("{message}; hint: {hint}"));
        lines.collect::<Vec<_>>().join("; ")
    }
}

impl From<Untrusted> for Failure {
    fn from(error: Untrusted) -> Self {
        Self::usage(error.to_string(), error.hint())
    }
}

/// The hint for a path that cannot be used. Another user's path is for that user's commands.
pub(crate) fn hint_for(path: &Path, error: &io::Error) -> String {
    if beneath::is_refusal(error) {
        return beneath::REFUSED_HINT.to_owned();
    }
    if error.kind() == ErrorKind::ResourceBusy {
        let path = path.display();
        return format!("`fuser -v {path}` shows the process; stop it and run this command again");
    }
    let nearest = path.ancestors().filter(|path| !path.as_os_str().is_empty());
    let mut nearest = nearest.filter_map(|path| Some((path, std::fs::metadata(path).ok()?.uid())));
    let own = rustix::process::geteuid().as_raw();
    match nearest.next() {
        Some((path, 0)) if denied(error) && own != 0 => {
            let path = path.display();
            format!("{path} is root's: run the same command as root, sudo certs …")
        }
        Some((path, owner)) if denied(error) && owner != own => {
            let (path, user) = (path.display(), user_name(owner));
            format!(
                "{path} is of user {user}: run the same command as that user, sudo -u {user} certs …, or as root, sudo certs …"
            )
        }
        _ => STORE_HINT.to_owned(),
    }
}

fn denied(error: &io::Error) -> bool {
    error.kind() == ErrorKind::PermissionDenied
}

/// The name of a user as `sudo -u` takes it.
pub(crate) fn user_name(uid: u32) -> String {
    let name = accounts::users().find(|user| user.number == uid);
    name.map_or_else(|| format!("'#{uid}'"), |user| user.name)
}
