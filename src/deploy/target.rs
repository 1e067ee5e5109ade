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
use super::target_settings::{DeployStage, Paths, Processes, ShortForm, Writes};
use super::targets::StoredForm;
use crate::lineage::Lineage;
use crate::text::{nearest, printable};

fn unknown(written: &str, kind: &str) -> String {
    let mut message = format!("unknown deploy target `{}`", printable(written));
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
        keys.into_iter().map(|key| key.name).collect()
    }

    /// Parses a long form.
    ///
    /// # Errors
    /// The invalid or missing key.
    pub(crate) fn long(kind: &str, keys: TargetKeys) -> Result<Self, InvalidTarget> {
        let known = Self::kinds().find(|known| known.name == kind);
        let known = known.ok_or_else(|| InvalidTarget::key("kind", unknown(kind, kind)))?;
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
        let Paths { read, written } = self.paths();
        for path in read.into_iter().chain(written) {
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

    /// The target for one certificate, whose name replaces [`NAME`].
    #[must_use]
    pub(crate) fn for_lineage(&self, lineage: &Lineage) -> Self {
        let mut target = self.clone();
        if let Some(path) = target.paths().written {
            path.change(|path| {
                let path = path.display().to_string();
                path.replace(NAME, lineage.as_str()).into()
            });
        }
        target
    }

    /// Whether it starts programs or signals processes, so that a sidecar needs the helper
    /// process for it.
    #[must_use]
    pub(crate) fn needs_helper(&self) -> bool {
        self.rights().processes != Processes::Untouched
    }

    /// Whether it runs a program that the configuration names.
    #[must_use]
    pub(crate) fn runs_program(&self) -> bool {
        self.rights().processes == Processes::RunsProgram
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

    /// The file of the server that it rewrites without a change of owner.
    #[must_use]
    pub(crate) fn servers_file(&self) -> Option<PathBuf> {
        match self.rights().writes {
            Writes::ServersFile(path) => Some(path),
            _ => None,
        }
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

    /// Whether its files belong to another user or group.
    #[must_use]
    pub(crate) fn changes_owner(&self) -> bool {
        match self.rights().writes {
            Writes::File(_, owner) | Writes::Directory(_, owner) => owner != Owner::default(),
            Writes::Nothing | Writes::ServersFile(_) => false,
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
        let (name, place) = match text.split_once(':') {
            Some((name, place)) if !is_url => (name, Some(place)),
            _ => (text, None),
        };
        let mut kinds = Self::kinds();
        let kind = kinds.find(|kind| match kind.short {
            ShortForm::Url(_) => is_url,
            ShortForm::Where(_) | ShortForm::WhereAnd(..) => kind.name == name,
        });
        let kind = kind.ok_or_else(|| unknown(text, name))?;
        let one = |key: &str, value: &str| (key.to_owned(), vec![value.to_owned()]);
        let keys = match (kind.short, place) {
            (ShortForm::Url(key), _) => TargetKeys::from([one(key, text)]),
            (_, None) => TargetKeys::new(),
            (ShortForm::Where(key), Some(place)) => TargetKeys::from([one(key, place)]),
            (ShortForm::WhereAnd(key, more), Some(place)) => match place.split_once(':') {
                Some((place, value)) => TargetKeys::from([one(key, place), one(more, value)]),
                None => TargetKeys::from([one(key, place)]),
            },
        };
        (kind.read)(keys).map_err(|error| match is_url {
            true => error.message,
            false => format!("`{shown}`: {}", error.message),
        })
    }
}

impl fmt::Display for DeployTarget {
    /// The short form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.keys();
        let value = |key: &str| keys.get(key).and_then(|values| values.first());
        let (kind, short) = (self.kind(), self.short());
        match (short, value(short.key())) {
            (ShortForm::Url(_), Some(url)) => f.write_str(url),
            (_, None) => f.write_str(kind),
            (ShortForm::Where(_), Some(place)) => write!(f, "{kind}:{place}"),
            (ShortForm::WhereAnd(_, more), Some(place)) => {
                write!(f, "{kind}:{place}")?;
                value(more).map_or(Ok(()), |more| write!(f, ":{more}"))
            }
        }
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
        let short = target.to_string();
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
mod reference;
#[cfg(test)]
mod tests;
