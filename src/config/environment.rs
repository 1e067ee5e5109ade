//! The variables of the environment: `CERTS_` and the key in capitals, or the same with
//! `_FILE` and the path of a file that holds the value. A service manager or an
//! orchestrator adds variables of its own, so that only a near miss is an error.

use std::collections::BTreeMap;
use std::path::Path;

use super::dns::{self, DnsVariables};
use super::key::{Key, ValueType};
use super::keys::{Layer, keys};
use super::layer::{Raw, Value, split};
use super::problem::{ConfigProblem, Given, Problems, SettingOrigin, nearest};
use crate::certificate::Secret;
use crate::files::named;

/// The values of the environment: keys, and the names of `CERTS_DOMAINS`, certificate by
/// certificate.
#[derive(Clone, Debug, Default)]
pub(super) struct Variables {
    pub(super) layer: Layer,
    pub(super) domains: Vec<Value>,
    /// The credentials of DNS providers.
    pub(super) dns: DnsVariables,
    /// The name of the only certificate of `domains`, or of the command line.
    pub(super) name: Option<Value>,
}

pub(super) fn read(environment: &BTreeMap<String, String>, problems: &mut Problems) -> Variables {
    let mut variables = Variables::default();
    for key in keys() {
        let Some(text) = value(environment, &key.variable(), problems) else {
            continue;
        };
        let value = match key.value_type {
            ValueType::List | ValueType::Endpoints => Value::list(split(&text.value), &text.origin),
            ValueType::Boolean => text.map(|text| boolean(&text).map_or(Raw::Other, Raw::Boolean)),
            ValueType::Text | ValueType::Choice(_) | ValueType::Number => text.map(Raw::Text),
        };
        variables.layer.put(key.name, &value, problems);
    }
    if let Some(text) = value(environment, "CERTS_DOMAINS", problems) {
        variables.domains = text
            .value
            .split(';')
            .filter(|group| !group.trim().is_empty())
            .map(|group| Value::list(split(group), &text.origin))
            .collect();
    }
    for name in environment.keys().filter(|name| name.starts_with(DNS)) {
        let bare = name.strip_suffix("_FILE").unwrap_or(name);
        let value = value(environment, bare, problems);
        let secret = value.map(|value| Secret::new(value.value));
        variables
            .dns
            .extend(secret.map(|secret| (bare.to_owned(), secret)));
    }
    let name = value(environment, "CERTS_NAME", problems);
    variables.name = name.map(|given| given.map(Raw::Text));
    near_misses(environment, problems);
    variables
}

fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Some(true),
        "false" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// Before the name of a DNS provider and of a field of its credentials.
const DNS: &str = "CERTS_DNS_";

/// Options of a command that have a variable and no key in the file.
const COMMANDS: [&str; 5] = ["force", "dry_run", "json", "quiet", "verbose"];

fn command_variable(option: &str) -> String {
    format!("CERTS_{}", option.to_uppercase())
}

/// Options of one command from the environment, such as `CERTS_FORCE`; the file has no
/// such keys.
#[derive(Clone, Debug, Default)]
pub(crate) struct CommandVariables(BTreeMap<&'static str, bool>);

impl CommandVariables {
    /// Reads the variables.
    ///
    /// # Errors
    /// A problem for each value that is neither true nor false.
    pub(crate) fn read(environment: &BTreeMap<String, String>) -> Result<Self, Vec<ConfigProblem>> {
        let (mut all, mut problems) = (Self::default(), Problems::default());
        for key in COMMANDS {
            let name = command_variable(key);
            let Some(text) = value(environment, &name, &mut problems) else {
                continue;
            };
            if let Some(value) = boolean(&text.value) {
                all.0.insert(key, value);
            } else {
                let value = text.value.escape_debug();
                let message = format!("`{value}` is neither true nor false");
                problems.add(&text.origin, message, "true or false belongs here");
            }
        }
        problems.or(all)
    }

    /// Whether `key` is switched on.
    pub(crate) fn flag(&self, key: &str) -> bool {
        self.0.get(key).copied().unwrap_or_default()
    }
}

/// The value of the variable, or the content of its `_FILE`; an empty one counts as
/// unset.
fn value(
    environment: &BTreeMap<String, String>,
    name: &str,
    problems: &mut Problems,
) -> Option<Given<String>> {
    let given = |text: &str, name: &str| {
        let text = text.trim();
        let origin = SettingOrigin::Variable(name.to_owned());
        (!text.is_empty()).then(|| Given::new(text.to_owned(), &origin))
    };
    if let Some(text) = environment.get(name) {
        return given(text, name);
    }
    let file_name = format!("{name}_FILE");
    let file = environment.get(&file_name);
    let file = file.filter(|file| !file.is_empty())?;
    match named::read(Path::new(file)) {
        Ok(text) => given(text.expose(), &file_name),
        Err(error) => {
            let message = format!("{}: {error}", file.escape_debug());
            let origin = SettingOrigin::Variable(file_name);
            let hint = error.hint().unwrap_or("name a readable file".to_owned());
            problems.add(&origin, message, hint);
            None
        }
    }
}

fn near_misses(environment: &BTreeMap<String, String>, problems: &mut Problems) {
    let mut known: Vec<String> = keys().map(Key::variable).collect();
    known.extend(["CERTS_CONFIG", "CERTS_DOMAINS", "CERTS_NAME"].map(str::to_owned));
    known.extend(COMMANDS.map(command_variable));
    known.extend(dns::variables());
    for name in environment.keys() {
        let bare = name.strip_suffix("_FILE").unwrap_or(name);
        let Some(word) = bare.strip_prefix("CERTS_") else {
            continue;
        };
        if known.iter().any(|known| known == name || known == bare) {
            continue;
        }
        let words = known.iter().filter_map(|name| name.strip_prefix("CERTS_"));
        if let Some(meant) = nearest(word, words) {
            let origin = SettingOrigin::Variable(name.clone());
            let hint = format!("did you mean CERTS_{meant}?");
            problems.add(&origin, "unknown variable", hint);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_of(pairs: &[(&str, &str)]) -> (Variables, Vec<String>) {
        let environment = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let mut problems = Problems::default();
        let variables = read(&environment, &mut problems);
        let messages = problems.sorted().iter().map(|one| one.shown().0).collect();
        (variables, messages)
    }

    #[test]
    fn environment_reads_files_and_splits_lists() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("email");
        std::fs::write(&file, "a@example.com\n").unwrap();
        let (variables, messages) = read_of(&[
            ("CERTS_EMAIL_FILE", file.to_str().unwrap()),
            (
                "CERTS_DOMAINS",
                "example.com, www.example.com; api.example.com;",
            ),
            ("CERTS_AGREE_TOS", "True"),
            ("CERTS_CA", ""),
            ("CERTS_PORT", "tcp://10.0.0.1:80"),
        ]);
        assert_eq!(messages, Vec::<String>::new());
        let shared = variables.layer.shared;
        assert_eq!(shared.email.unwrap().value, "a@example.com");
        assert!(shared.agree_tos.unwrap().value);
        assert!(shared.ca.is_none(), "an empty variable counts as unset");
        assert_eq!(variables.domains.len(), 2);
    }

    #[test]
    fn environment_problems_name_their_variable() {
        let (_, messages) = read_of(&[
            ("CERTS_AGREE_TOS", "perhaps"),
            ("CERTS_HTTP_LISTEN", "0.0.0.0:80 nowhere"),
            ("CERTS_EMIAL", "a@example.com"),
            ("CERTS_CA_FILE", "/nonexistent/file"),
        ]);
        for name in [
            "CERTS_AGREE_TOS:",
            "CERTS_HTTP_LISTEN:",
            "CERTS_EMIAL:",
            "CERTS_CA_FILE:",
        ] {
            assert!(
                messages.iter().any(|line| line.starts_with(name)),
                "{messages:?}"
            );
        }
        assert_eq!(messages.len(), 4, "{messages:?}");
    }

    #[test]
    fn command_variables_take_booleans_only() {
        let read = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().copied();
            let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
            CommandVariables::read(&pairs.collect())
        };
        let flags = read(&[("CERTS_FORCE", "yes"), ("CERTS_JSON", "0")]);
        let flags = flags.unwrap();
        assert!(flags.flag("force") && !flags.flag("json") && !flags.flag("quiet"));
        let problems = read(&[("CERTS_FORCE", "often"), ("CERTS_QUIET", "2")]).unwrap_err();
        assert_eq!(problems.len(), 2, "{problems:?}");
    }
}
