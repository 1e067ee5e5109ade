//! A deploy target as the user writes it: `KIND[:WHERE]` in short, or a table of keys
//! with its `kind` among them. Each kind has a file below `targets/` with its typed
//! settings, which implement every question of this module; a kind without an answer does
//! not compile. No file or server is touched before [`DeployTarget::target`] is used.

pub(crate) mod description;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

pub(crate) use super::keys::{InvalidTarget, TargetKeys};
pub(crate) use super::target_settings::NAME;
pub(crate) use super::targets::{DeployTarget, TargetKind};

use super::Outlet;
use super::output::Output;
use super::owner::Owner;
use super::target_settings::{DeployStage, Processes, ShortForm, Writes};
use super::targets::StoredForm;
use crate::lineage::Lineage;
use crate::text::{nearest, printable};

/// Shows the kind only: the rest may be a mistyped URL with secrets.
fn unknown(kind: &str) -> String {
    let mut message = format!("unknown deploy target `{}`", printable(kind));
    if let Some(meant) = nearest(kind, DeployTarget::kinds().map(|kind| kind.name)) {
        message += &format!("; did you mean `{meant}`?");
    }
    message
}

impl DeployTarget {
    /// The known kinds.
    pub(crate) fn kinds() -> impl Iterator<Item = &'static TargetKind> {
        Self::KINDS.iter()
    }

    /// The short forms of all kinds, for a help text.
    #[must_use]
    pub(crate) fn forms() -> String {
        let forms: Vec<String> = Self::kinds().map(TargetKind::form).collect();
        forms.join(", ")
    }

    /// The keys of a kind's long form beside `kind`, those of its short form first; empty
    /// for an unknown kind.
    #[must_use]
    pub(crate) fn keys_of(kind: &str) -> Vec<String> {
        let known = Self::kinds().find(|known| known.name == kind);
        let keys = known.map(TargetKind::keys).unwrap_or_default();
        keys.into_iter().map(|(name, _)| name).collect()
    }

    /// Whether it is of the kind with that name.
    pub(crate) fn is_of(&self, kind: &str) -> bool {
        self.kind() == kind
    }

    /// Parses a long form.
    pub(crate) fn long(kind: &str, keys: TargetKeys) -> Result<Self, InvalidTarget> {
        let known = Self::kinds().find(|known| known.name == kind);
        let known = known.ok_or_else(|| InvalidTarget::key("kind", unknown(kind)))?;
        (known.read)(keys)
    }

    /// The deadline of the helper process for one request.
    #[must_use]
    pub(crate) fn answers_within(&self) -> Duration {
        self.deadline() + Duration::from_secs(60)
    }

    /// Makes its relative paths start at `base`.
    #[must_use]
    pub(crate) fn located(mut self, base: impl Fn(&Path) -> PathBuf) -> Self {
        for path in self.paths() {
            path.change(&base);
        }
        self
    }

    /// Sets the Docker API of a container that names none.
    #[must_use]
    pub(crate) fn at_docker(mut self, host: &str) -> Self {
        if let Self::Docker(docker) = &mut self {
            docker.at(host);
        }
        self
    }

    /// The server, whatever is configured for one certificate alone: what has the same
    /// server shares its reloads and its turns.
    #[must_use]
    pub(crate) fn server(&self) -> Self {
        match self {
            Self::Haproxy(haproxy) => Self::Haproxy(haproxy.server()),
            _ => self.clone(),
        }
    }

    /// The target for one certificate, whose name replaces [`NAME`].
    #[must_use]
    pub(crate) fn for_lineage(&self, lineage: &Lineage) -> Self {
        let (mut target, written) = (self.clone(), self.writes());
        for path in target.paths() {
            if written.as_ref() == Some(path) {
                let text = path.display().to_string();
                path.change(|_| text.replace(NAME, lineage.as_str()).into());
            }
        }
        target
    }

    /// Whether it starts programs or signals processes, so that a sidecar needs the helper
    /// process for it.
    #[must_use]
    pub(crate) fn needs_helper(&self) -> bool {
        self.rights().processes != Processes::Untouched
    }

    /// Whether it uses files or sockets beside the output.
    #[must_use]
    pub(crate) fn uses_files(&self) -> bool {
        let rights = self.rights();
        rights.writes != Writes::Nothing || rights.connects_to.is_some()
    }

    /// Whether it can do more than reload a server that it recognizes, or send a request over
    /// the network.
    #[must_use]
    pub(crate) fn is_privileged(&self) -> bool {
        self.runs_program() || self.uses_files() || self.rights().reads.is_some()
    }

    /// Whether it runs a program that the configuration names.
    #[must_use]
    pub(crate) fn runs_program(&self) -> bool {
        self.rights().processes == Processes::RunsProgram
    }

    /// The program that it runs, if the configuration names it.
    #[must_use]
    pub(crate) fn program(&self) -> Option<&Path> {
        match self {
            Self::Exec(exec) => exec.named(),
            _ => None,
        }
    }

    /// Whether it is a copy for a consumer, written before any server reloads.
    #[must_use]
    pub(crate) fn is_copy(&self) -> bool {
        self.stage() == DeployStage::Copy
    }

    /// The file or directory that it writes itself, beside the output.
    #[must_use]
    pub(crate) fn writes(&self) -> Option<PathBuf> {
        self.rights().writes.path().map(Path::to_owned)
    }

    /// The directory in which it writes: a file is replaced by a rename.
    #[must_use]
    pub(crate) fn writes_in(&self) -> Option<PathBuf> {
        match self.rights().writes {
            Writes::Directory(path, _) => Some(path),
            writes => writes.path()?.parent().map(Path::to_owned),
        }
    }

    /// Creates the directory that it writes if possible; the first deployment reports an
    /// error.
    pub(crate) fn prepare(&self) {
        if let Writes::Directory(path, owner) = self.rights().writes {
            Output::new(path).owned_by(owner).prepare();
        }
    }

    /// Whether its file is for one certificate alone.
    #[must_use]
    pub(crate) fn is_for_one(&self) -> bool {
        let writes = self.rights().writes;
        let is_file = !matches!(writes, Writes::Directory(..));
        is_file && writes.path().is_some_and(|path| !has_name(path))
    }

    /// Whether each certificate's file is in a directory of its own name.
    #[must_use]
    pub(crate) fn has_directory_for_each(&self) -> bool {
        self.writes_in()
            .is_some_and(|directory| has_name(&directory))
    }

    /// Whether it changes the owner of a file. `is_foreign` says so of the file of a
    /// server, which keeps its owner.
    pub(crate) fn needs_chown(&self, is_foreign: impl Fn(&Path) -> bool) -> bool {
        match self.rights().writes {
            Writes::File(_, owner) | Writes::Directory(_, owner) => owner != Owner::default(),
            Writes::ServersFile(file) => is_foreign(&file),
            Writes::Nothing => false,
        }
    }
}

fn has_name(path: &Path) -> bool {
    path.display().to_string().contains(NAME)
}

impl FromStr for DeployTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shown = text.escape_debug();
        let is_url = text.starts_with("https://") || text.starts_with("http://");
        let (name, values) = match text.split_once(':') {
            Some((name, values)) if !is_url => (name, Some(values)),
            _ => (text, is_url.then_some(text)),
        };
        let mut kinds = Self::kinds();
        let kind = kinds.find(|kind| match kind.short {
            ShortForm::Url => is_url,
            ShortForm::Keys(_) => kind.name == name,
        });
        let kind = kind.ok_or_else(|| unknown(name))?;
        let short = kind.short.keys();
        let values = values.map(|values| values.splitn(short.len(), ':'));
        let keys = short.iter().zip(values.into_iter().flatten());
        let keys = keys.map(|(key, value)| ((*key).to_owned(), vec![value.to_owned()]));
        let keys = keys.collect();
        (kind.read)(keys).map_err(|error| match is_url {
            true => error.message,
            false => format!("`{shown}`: {}", error.message),
        })
    }
}

impl fmt::Display for DeployTarget {
    /// The short form without secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

impl TryFrom<StoredForm> for DeployTarget {
    type Error = String;

    fn try_from(stored: StoredForm) -> Result<Self, String> {
        match stored {
            StoredForm::Short(text) => text.parse(),
            StoredForm::Long { kind, keys } => {
                Self::long(&kind, keys).map_err(|error| error.message)
            }
        }
    }
}

impl From<DeployTarget> for StoredForm {
    fn from(target: DeployTarget) -> Self {
        let short = target.short_form();
        match short.parse::<DeployTarget>() {
            Ok(read) if read == target => Self::Short(short),
            _ => Self::Long {
                kind: target.kind().to_owned(),
                keys: target.keys(),
            },
        }
    }
}

#[cfg(test)]
mod tests;
