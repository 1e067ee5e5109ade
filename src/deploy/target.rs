//! Whom to hand over to, as the user writes it: `KIND[:WHERE]` in short, or a table
//! of keys with its `kind` among them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::copy::{Copy, Form, Place};
use super::docker::{self, Docker, Errand};
use super::output::Output;
use super::owner::{self, Owner};
use super::signalled::Signalled;
use super::targets::exec::{self, Exec};
use super::targets::haproxy::{self, Haproxy};
use super::targets::nginx::Nginx;
use super::targets::systemd::Systemd;
use super::targets::webhook::Webhook;
use super::watched::{Caddy, Format, Watched};
use super::{Outlet, Target};
use crate::identifier::Lineage;
use crate::text::printable;

/// What a kind's short form has after its colon, and all keys of its long form.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    name: &'static str,
    /// The key that the short form's WHERE is; `None`: it has no WHERE.
    place: Option<&'static str>,
    /// Whether there is no default for it.
    needed: bool,
    others: &'static [&'static str],
}

const fn kind(
    name: &'static str,
    place: Option<&'static str>,
    needed: bool,
    others: &'static [&'static str],
) -> Kind {
    Kind {
        name,
        place,
        needed,
        others,
    }
}

const KINDS: &[Kind] = &[
    kind("nginx", Some("pid_file"), false, &[]),
    kind(
        "file",
        Some("path"),
        true,
        &["format", "password_file", "owner", "group", "mode"],
    ),
    kind("directory", Some("path"), true, &["owner", "group"]),
    kind("haproxy", Some("socket"), true, &["certificate"]),
    kind("coturn", Some("pid_file"), false, &[]),
    kind("dovecot", Some("pid_file"), false, &[]),
    kind("postfix", Some("pid_file"), false, &[]),
    kind("envoy", Some("file"), true, &[]),
    kind("traefik", Some("file"), true, &[]),
    kind("caddy", Some("admin"), false, &[]),
    kind("systemd", Some("unit"), true, &["bus"]),
    kind(
        "docker",
        Some("container"),
        true,
        &["signal", "command", "host", "accept_raw_socket"],
    ),
    kind("exec", Some("command"), true, &["timeout"]),
    kind("webhook", Some("url"), true, &["secret_file"]),
];
const PATHS: [&str; 7] = [
    "pid_file",
    "socket",
    "file",
    "path",
    "certificate",
    "secret_file",
    "password_file",
];
/// What stands for the certificate's own name in a path that is written.
pub const NAME: &str = "{name}";
const CADDY_ADMIN: &str = "localhost:2019";
const LONGEST_PROGRAM: Duration = Duration::from_secs(3600);

/// A server to hand over to. Its keys are checked when it is made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Spec {
    kind: &'static Kind,
    /// Each a list, most of one value.
    keys: Keys,
}

/// The keys of a long form but for its kind.
pub type Keys = BTreeMap<String, Vec<String>>;

/// As it is stored: in short where that says all.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Short(String),
    Long { kind: String, keys: Keys },
}

/// A long form that is none: the key that is wrong, where it is one, and why.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The key.
    pub key: Option<String>,
    /// In words.
    pub message: String,
}

fn malformed(key: Option<&str>, message: String) -> Malformed {
    Malformed {
        key: key.map(str::to_owned),
        message,
    }
}

impl Spec {
    /// The kinds of servers that are known.
    pub fn kinds() -> impl Iterator<Item = &'static str> {
        KINDS.iter().map(|kind| kind.name)
    }

    /// The keys that a kind's long form may have beside `kind`.
    #[must_use]
    pub fn keys_of(kind: &str) -> Vec<&'static str> {
        let known = KINDS.iter().filter(|known| known.name == kind);
        known
            .flat_map(|kind| kind.place.into_iter().chain(kind.others.iter().copied()))
            .collect()
    }

    /// The server that a long form means.
    ///
    /// # Errors
    /// The key that is wrong or missing.
    pub fn long(kind: &str, keys: Keys) -> Result<Self, Malformed> {
        let Some(known) = KINDS.iter().find(|known| known.name == kind) else {
            let kinds: Vec<&str> = Self::kinds().collect();
            return Err(malformed(
                Some("kind"),
                format!(
                    "`{}` is no kind of server that this version knows ({})",
                    printable(kind),
                    kinds.join(", ")
                ),
            ));
        };
        let possible = Self::keys_of(kind);
        if let Some(other) = keys.keys().find(|key| !possible.contains(&key.as_str())) {
            return Err(malformed(
                Some(other),
                format!("{kind} has no key `{}`", printable(other)),
            ));
        }
        if let (true, Some(place)) = (known.needed, known.place)
            && !keys.contains_key(place)
        {
            return Err(malformed(None, format!("{kind} needs `{place}`")));
        }
        let spec = Self { kind: known, keys };
        spec.check()?;
        Ok(spec)
    }

    fn check(&self) -> Result<(), Malformed> {
        for (key, values) in &self.keys {
            let is_list = key == "command";
            if values.is_empty()
                || values.iter().any(String::is_empty)
                || (values.len() > 1 && !is_list)
            {
                return Err(malformed(Some(key), format!("`{key}` has no single value")));
            }
        }
        let wrong = |key: &str, message: &str| Err(malformed(Some(key), message.to_owned()));
        for key in ["container", "signal"] {
            if self.value(key).is_some_and(|word| !docker::is_a_word(word)) {
                return wrong(
                    key,
                    "only letters, digits, `_`, `.` and `-` are allowed here",
                );
            }
        }
        if self.kind.name == "docker"
            && self.keys.contains_key("signal")
            && self.keys.contains_key("command")
        {
            return wrong("command", "`signal` and `command` exclude each other");
        }
        if self
            .value("url")
            .is_some_and(|url| !url.starts_with("https://") && !url.starts_with("http://"))
        {
            return wrong("url", "a webhook is an http:// or https:// URL");
        }
        if self.kind.name == "exec"
            && self
                .path("command")
                .is_some_and(|program| !program.is_absolute())
        {
            return wrong("command", "a program is named by its whole path");
        }
        if self.value("timeout").is_some() && self.within().is_none() {
            return wrong("timeout", "a program may take from 1s to 60m");
        }
        // Other transports of D-Bus start programs.
        if self
            .value("bus")
            .is_some_and(|bus| !bus.starts_with("unix:") || bus.contains(';'))
        {
            return wrong("bus", "a bus is one `unix:` address");
        }
        let certificate = self.value("certificate");
        if certificate.is_some_and(|file| !haproxy::is_a_name(file)) {
            return wrong(
                "certificate",
                "HAProxy takes no blanks and no `;`, `<` or `\\` in it",
            );
        }
        self.check_copy()?;
        match self.value("accept_raw_socket") {
            None | Some("true" | "false") => Ok(()),
            Some(_) => wrong("accept_raw_socket", "write true or false"),
        }
    }

    fn check_copy(&self) -> Result<(), Malformed> {
        let wrong = |key: &str, message: String| Err(malformed(Some(key), message));
        if self.form().is_none() {
            let forms = "combined, fullchain, key, cert, chain and pkcs12; where Java asks for JKS, it reads pkcs12";
            return wrong("format", format!("the formats are {forms}"));
        }
        if self.form() == Some(Form::Pkcs12) && !self.keys.contains_key("password_file") {
            return wrong("format", "pkcs12 needs `password_file`".to_owned());
        }
        if self.keys.contains_key("mode") && self.mode().is_none() {
            return wrong(
                "mode",
                "a mode is written in octal digits, such as \"0640\"".to_owned(),
            );
        }
        let (user, group) = (self.value("owner"), self.value("group"));
        if let Some(Err(message)) = user.map(owner::user) {
            return wrong("owner", message);
        }
        match group.map(owner::group) {
            Some(Err(message)) => wrong("group", message),
            _ => Ok(()),
        }
    }

    fn value(&self, key: &str) -> Option<&str> {
        self.keys.get(key)?.first().map(String::as_str)
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        self.value(key).map(PathBuf::from)
    }

    fn within(&self) -> Option<Duration> {
        let text = self.value("timeout")?;
        let (number, unit) = match text.strip_suffix('m') {
            Some(minutes) => (minutes, 60),
            None => (text.strip_suffix('s').unwrap_or(text), 1),
        };
        let within = Duration::from_secs(number.parse::<u64>().ok()?.checked_mul(unit)?);
        (within > Duration::ZERO && within <= LONGEST_PROGRAM).then_some(within)
    }

    /// How long it may take to be told, whatever it does.
    #[must_use]
    pub fn told_within(&self) -> Duration {
        self.within().unwrap_or(exec::WITHIN) + Duration::from_secs(60)
    }

    /// Makes its paths start at `base`, where they are relative.
    #[must_use]
    pub fn located(mut self, base: impl Fn(&Path) -> PathBuf) -> Self {
        for key in PATHS {
            if let Some(path) = self.path(key) {
                let path = base(&path).display().to_string();
                self.keys.insert(key.to_owned(), vec![path]);
            }
        }
        self
    }

    /// Uses the API of `host` for a container, unless it names another.
    #[must_use]
    pub fn at_docker(mut self, host: &str) -> Self {
        if self.kind.name == "docker" {
            let named = self.keys.entry("host".to_owned());
            named.or_insert_with(|| vec![host.to_owned()]);
        }
        self
    }

    /// Whether it starts programs or signals processes, which a sidecar leaves to
    /// another process.
    #[must_use]
    pub fn needs_a_hand(&self) -> bool {
        matches!(
            self.kind.name,
            "nginx" | "coturn" | "dovecot" | "postfix" | "exec" | "systemd"
        )
    }

    /// Whether it runs a program that the configuration names.
    #[must_use]
    pub fn runs_a_program(&self) -> bool {
        self.kind.name == "exec"
    }

    /// Whether one reload makes it load every certificate, so that several may
    /// share one.
    #[must_use]
    pub fn loads_all(&self) -> bool {
        matches!(
            self.kind.name,
            "nginx" | "coturn" | "dovecot" | "postfix" | "systemd" | "docker" | "caddy"
        )
    }

    /// The file that it writes itself, beside the output.
    #[must_use]
    pub fn writes(&self) -> Option<PathBuf> {
        ["file", "path", "certificate"]
            .into_iter()
            .find_map(|key| self.path(key))
    }

    /// The file of another program that it rewrites, with its owner as it is.
    #[must_use]
    pub fn keeps(&self) -> Option<PathBuf> {
        self.path("certificate")
    }

    /// The directory in which it does so: a file is replaced by another of its name.
    #[must_use]
    pub fn writes_in(&self) -> Option<PathBuf> {
        let path = self.writes()?;
        match self.kind.name {
            "directory" => Some(path),
            _ => path.parent().map(Path::to_owned),
        }
    }

    /// The socket of this machine that it connects to itself.
    #[must_use]
    pub fn connects_to(&self) -> Option<PathBuf> {
        match self.kind.name {
            "haproxy" => self.path("socket"),
            "docker" => self.host().strip_prefix("unix://").map(PathBuf::from),
            _ => None,
        }
    }

    /// Makes the directory that it writes, where it can be made: what is wrong with it
    /// is told by whoever writes to it.
    pub fn prepare(&self) {
        if let ("directory", Some(path)) = (self.kind.name, self.path("path")) {
            Output::new(path).owned_by(self.owner()).prepare();
        }
    }

    fn host(&self) -> &str {
        self.value("host").unwrap_or(docker::SOCKET)
    }

    /// The file that it reads itself.
    #[must_use]
    pub fn reads(&self) -> Option<PathBuf> {
        ["secret_file", "password_file"]
            .into_iter()
            .find_map(|key| self.path(key))
    }

    /// The same for one certificate, with its name where [`NAME`] stands.
    #[must_use]
    pub fn for_lineage(&self, lineage: &Lineage) -> Self {
        let mut spec = self.clone();
        for key in ["file", "path", "certificate"] {
            for value in spec.keys.get_mut(key).into_iter().flatten() {
                *value = value.replace(NAME, lineage.as_str());
            }
        }
        spec
    }

    /// Whether it is written for a consumer, and so before any server is told.
    #[must_use]
    pub fn is_a_copy(&self) -> bool {
        matches!(self.kind.name, "file" | "directory")
    }

    /// Whether what it writes is for one certificate alone.
    #[must_use]
    pub fn is_for_one(&self) -> bool {
        let written = self.writes().is_some() && self.kind.name != "directory";
        written
            && !self
                .writes()
                .is_some_and(|path| path.display().to_string().contains(NAME))
    }

    /// Whether each certificate's file is in a directory of its own name.
    #[must_use]
    pub fn is_each_in_its_own_place(&self) -> bool {
        let place = self.writes_in();
        place.is_some_and(|place| place.display().to_string().contains(NAME))
    }

    /// Whether what it writes belongs to another user or group.
    #[must_use]
    pub fn gives_away(&self) -> bool {
        self.keys.contains_key("owner") || self.keys.contains_key("group")
    }

    fn form(&self) -> Option<Form> {
        self.value("format").unwrap_or("combined").parse().ok()
    }

    fn mode(&self) -> Option<u32> {
        let mode = u32::from_str_radix(self.value("mode")?, 8).ok()?;
        (mode <= 0o777).then_some(mode)
    }

    fn owner(&self) -> Owner {
        Owner {
            user: self.value("owner").and_then(|user| owner::user(user).ok()),
            group: self
                .value("group")
                .and_then(|group| owner::group(group).ok()),
        }
    }

    fn copy(&self, name: String) -> Copy {
        let path = self.path("path").unwrap_or_default();
        let form = self.form().unwrap_or(Form::Combined);
        let place = match self.kind.name {
            "directory" => Place::Directory(path),
            _ => Place::File {
                path,
                form,
                password_file: self.path("password_file"),
                mode: self.mode().unwrap_or(form.usual_mode()),
            },
        };
        Copy::new(name, place, self.owner())
    }

    /// The server itself; nothing is touched yet.
    #[must_use]
    pub fn target(&self) -> Arc<dyn Target> {
        let (name, pid_file) = (self.to_string(), self.path("pid_file"));
        let file = || self.path("file").unwrap_or_default();
        let text = |key: &str| self.value(key).unwrap_or_default();
        match self.kind.name {
            "file" | "directory" => Arc::new(self.copy(name)),
            "coturn" => Arc::new(Signalled::coturn(pid_file)),
            "dovecot" => Arc::new(Signalled::dovecot(pid_file)),
            "postfix" => Arc::new(Signalled::postfix(pid_file)),
            "haproxy" => Arc::new(Haproxy::new(
                name,
                text("socket").into(),
                self.path("certificate"),
            )),
            "envoy" => Arc::new(Watched::new(name, Format::Envoy, file())),
            "traefik" => Arc::new(Watched::new(name, Format::Traefik, file())),
            "caddy" => {
                let admin = self.value("admin").unwrap_or(CADDY_ADMIN);
                Arc::new(Caddy::new(name, admin.to_owned()))
            }
            "systemd" => Arc::new(Systemd::new(
                text("unit"),
                self.value("bus").map(str::to_owned),
            )),
            "docker" => {
                let errand = match self.keys.get("command") {
                    Some(command) => Errand::Run(command.clone()),
                    None => Errand::Signal(self.value("signal").unwrap_or("HUP").to_owned()),
                };
                let host = self.value("host").unwrap_or(docker::SOCKET);
                let accepted = self.value("accept_raw_socket") == Some("true");
                Arc::new(Docker::new(
                    text("container").to_owned(),
                    errand,
                    host,
                    accepted,
                ))
            }
            "exec" => {
                let command = self.keys.get("command").cloned().unwrap_or_default();
                Arc::new(Exec::new(
                    name,
                    command,
                    self.within().unwrap_or(exec::WITHIN),
                ))
            }
            "webhook" => Arc::new(Webhook::new(
                text("url").to_owned(),
                self.path("secret_file"),
            )),
            _ => Arc::new(Nginx::new(pid_file)),
        }
    }
}

impl FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || {
            format!(
                "`{}` is no way to hand over that this version knows",
                text.escape_debug()
            )
        };
        if text.starts_with("https://") || text.starts_with("http://") {
            let keys = Keys::from([("url".to_owned(), vec![text.to_owned()])]);
            return Self::long("webhook", keys).map_err(|error| error.message);
        }
        let (name, place) = match text.split_once(':') {
            Some((name, place)) => (name, Some(place)),
            None => (text, None),
        };
        let kind = KINDS
            .iter()
            .find(|kind| kind.name == name && name != "webhook");
        let kind = kind.ok_or_else(unknown)?;
        let mut keys = Keys::new();
        if let Some(place) = place {
            let key = kind.place.ok_or_else(unknown)?;
            let (place, signal) = match place.split_once(':') {
                Some((container, signal)) if name == "docker" => (container, Some(signal)),
                _ => (place, None),
            };
            keys.insert(key.to_owned(), vec![place.to_owned()]);
            keys.extend(signal.map(|signal| ("signal".to_owned(), vec![signal.to_owned()])));
        }
        let made = Self::long(name, keys);
        made.map_err(|error| format!("`{}`: {}", text.escape_debug(), error.message))
    }
}

impl fmt::Display for Spec {
    /// The short form, as far as it says what is meant.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.kind.place.and_then(|place| self.value(place));
        let signal = self.value("signal");
        match (self.kind.name, place, signal) {
            ("webhook", Some(url), _) => f.write_str(url),
            (kind, Some(place), Some(signal)) => write!(f, "{kind}:{place}:{signal}"),
            (kind, Some(place), None) => write!(f, "{kind}:{place}"),
            (kind, None, _) => f.write_str(kind),
        }
    }
}

impl TryFrom<Written> for Spec {
    type Error = String;
    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::Short(text) => text.parse(),
            Written::Long { kind, keys } => Self::long(&kind, keys).map_err(|error| error.message),
        }
    }
}

impl From<Spec> for Written {
    fn from(spec: Spec) -> Self {
        let short = spec.to_string();
        match short.parse::<Spec>() {
            Ok(read) if read == spec => Self::Short(short),
            _ => Self::Long {
                kind: spec.kind.name.to_owned(),
                keys: spec.keys,
            },
        }
    }
}

#[cfg(test)]
mod tests;
