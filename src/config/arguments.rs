//! The options of the command line that are configuration keys, made from the table of
//! keys. A value stays a text here; the same reader parses it as for the file and the
//! environment.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::Path;

use clap::builder::{PossibleValue, TypedValueParser};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, ValueHint};

use super::key::{CommandLine, Default as DefaultValue, EVERY, Key, ValueType};
use super::keys::{EXCLUSIVE, Layer, keys};
use super::layer::{Raw, Value};
use super::problem::{Given, Problems, SettingOrigin};
use crate::certificate::SigningRequest;
use crate::files::named;
use crate::identifier::Identifier;
use crate::text::shell_word;

/// As the largest that is read.
const LARGEST_REQUEST: u64 = 64 << 10;

/// The given options of one verb that are configuration keys.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeyOptions<const VERB: u8>(Vec<(&'static Key, Value)>);

impl<const VERB: u8> KeyOptions<VERB> {
    /// Whether no option was given.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the option of this key was given.
    pub(crate) fn gives(&self, name: &str) -> bool {
        self.0.iter().any(|(key, _)| key.name == name)
    }

    /// The keys of the given options.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().map(|(key, _)| key.name)
    }

    /// Whether another option than those of these keys was given.
    pub(crate) fn gives_besides(&self, names: &[&str]) -> bool {
        self.0.iter().any(|(key, _)| !names.contains(&key.name))
    }

    fn taken() -> impl Iterator<Item = (&'static Key, CommandLine)> {
        keys().filter_map(|key| Some((key, key.option.filter(|option| option.verbs & VERB != 0)?)))
    }
}

impl<const VERB: u8> Args for KeyOptions<VERB> {
    fn augment_args(command: Command) -> Command {
        Self::taken().fold(command, |command, (key, option)| {
            command.arg(argument(key, option))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<const VERB: u8> FromArgMatches for KeyOptions<VERB> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = Self::taken()
            .filter(|(key, _)| matches.value_source(key.name) == Some(ValueSource::CommandLine));
        let values = given.map(|(key, option)| (key, value(key, option, matches)));
        Ok(Self(values.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn argument(key: &'static Key, option: CommandLine) -> Arg {
    let argument = Arg::new(key.name).long(key.option_name()).help(help(key));
    let argument = match option.verbs {
        EVERY => argument.global(true).help_heading("Global options"),
        _ => argument.help_heading(key.group),
    };
    let argument = match key.value_type {
        ValueType::Boolean if option.value_name.is_empty() => {
            return argument.action(ArgAction::SetTrue);
        }
        ValueType::Boolean => argument.value_parser(on_or_off),
        ValueType::List | ValueType::Endpoints => argument.action(ArgAction::Append),
        ValueType::Text if key.is_by_name => argument.action(ArgAction::Append),
        ValueType::Text | ValueType::Choice(_) | ValueType::Number => argument,
    };
    let argument = match key.suggestions() {
        Some(words) => argument
            .value_parser(Suggested(words))
            .hide_possible_values(true),
        None => argument,
    };
    argument
        .value_name(option.value_name)
        .value_hint(match option.value_name {
            "DIR" => ValueHint::DirPath,
            "FILE" | "PEM" => ValueHint::FilePath,
            _ => ValueHint::Unknown,
        })
}

/// Words that a completion script offers. Any text is taken here: the key's own reader
/// refuses what is invalid, with all other errors of the configuration.
#[derive(Clone)]
struct Suggested(fn() -> Vec<&'static str>);

impl TypedValueParser for Suggested {
    type Value = String;

    fn parse_ref(
        &self,
        _command: &Command,
        _argument: Option<&Arg>,
        value: &OsStr,
    ) -> Result<String, clap::Error> {
        let text = value.to_str().map(str::to_owned);
        text.ok_or_else(|| clap::Error::new(ErrorKind::InvalidUtf8))
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new((self.0)().into_iter().map(PossibleValue::new)))
    }
}

/// The meaning of the key, its default and its variable.
fn help(key: &Key) -> String {
    let mut notes = Vec::new();
    match key.default {
        // A flag is off by default.
        DefaultValue::Unset | DefaultValue::Value("false") => {}
        DefaultValue::Value("true") => notes.push("default on".to_owned()),
        DefaultValue::Value(value) | DefaultValue::Described(value) => {
            notes.push(format!("default {value}"));
        }
    }
    if matches!(key.value_type, ValueType::List | ValueType::Endpoints) {
        notes.push("repeatable".to_owned());
    }
    let mut help = key.full_doc();
    if !notes.is_empty() {
        help += &format!(" ({})", notes.join("; "));
    }
    help + &format!(" (${})", key.variable())
}

fn on_or_off(text: &str) -> Result<bool, &'static str> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("write on or off"),
    }
}

fn value(key: &Key, option: CommandLine, matches: &ArgMatches) -> Value {
    let origin = SettingOrigin::option(key);
    let texts = || matches.get_many::<String>(key.name).unwrap_or_default();
    let value = match key.value_type {
        ValueType::Boolean if option.value_name.is_empty() => {
            Raw::Boolean(matches.get_flag(key.name))
        }
        ValueType::Boolean => Raw::Boolean(matches.get_one(key.name).copied().unwrap_or_default()),
        ValueType::List | ValueType::Endpoints => {
            return Value::list(texts().map(String::as_str), &origin);
        }
        ValueType::Text if texts().len() > 1 => by_name(key, matches, &origin),
        ValueType::Text | ValueType::Choice(_) | ValueType::Number => {
            Raw::Text(texts().next().cloned().unwrap_or_default())
        }
    };
    Value::new(value, &origin)
}

/// Each name with the last value before it.
fn by_name(key: &Key, matches: &ArgMatches, origin: &SettingOrigin) -> Raw {
    const NAMES: &str = "names";
    let all = |id: &str| -> Vec<(usize, String)> {
        let is_given = matches.ids().any(|given| given == id);
        let indices = is_given.then(|| matches.indices_of(id)).flatten();
        let texts = is_given.then(|| matches.get_many::<String>(id)).flatten();
        let indices = indices.into_iter().flatten();
        indices.zip(texts.into_iter().flatten().cloned()).collect()
    };
    let values = all(key.name);
    let named = all(NAMES).into_iter().filter_map(|(index, name)| {
        let before = values.iter().take_while(|(at, _)| *at < index);
        let (_, text) = before.last()?;
        Some((name, Value::text(text, origin)))
    });
    Raw::Table(named.collect())
}

/// An option as it was given, with a blank before it.
fn shown(key: &Key, value: &Value) -> String {
    let name = key.option_name();
    let is_flag = key
        .option
        .is_some_and(|option| option.value_name.is_empty());
    match &value.value {
        Raw::Text(text) | Raw::Number(text) => format!(" --{name} {}", shell_word(text)),
        Raw::Boolean(true) if is_flag => format!(" --{name}"),
        Raw::Boolean(is_on) => format!(" --{name} {}", if *is_on { "on" } else { "off" }),
        Raw::List(items) => items.iter().map(|item| shown(key, item)).collect(),
        // Options between names depend on their place.
        Raw::Table(_) | Raw::Other => String::new(),
    }
}

/// The values of the command line.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(super) values: Vec<(&'static Key, Value)>,
    pub(super) names: Vec<Value>,
    pub(super) lineage: Option<Value>,
    pub(super) config: Option<String>,
    /// The signing request of `certs csr`, or why it cannot be used.
    pub(super) request: Option<Given<Result<SigningRequest, (String, String)>>>,
}

impl Options {
    /// Adds the options that are keys.
    pub(crate) fn keys<const VERB: u8>(&mut self, given: &KeyOptions<VERB>) {
        self.values.extend_from_slice(&given.0);
    }

    /// Sets the names of one certificate.
    pub(crate) fn names(&mut self, names: &[String]) {
        let origin = SettingOrigin::Option("NAME".to_owned());
        let names = names.iter().map(|name| Value::text(name, &origin));
        self.names = names.collect();
    }

    /// Sets the signing request in `file`, for `names` or those in it.
    pub(crate) fn request(&mut self, file: &Path, names: &[String]) {
        let origin = SettingOrigin::Option(file.display().to_string());
        let request = read_request(file, names);
        let own = request.iter().flat_map(SigningRequest::names);
        let own: Vec<String> = own.map(ToString::to_string).collect();
        self.names(if names.is_empty() { &own } else { names });
        self.request = Some(Given::new(request, &origin));
    }

    /// Sets the certificate's own name, `--name`.
    pub(crate) fn lineage(&mut self, lineage: Option<&str>) {
        let origin = SettingOrigin::Option("--name".to_owned());
        self.lineage = lineage.map(|lineage| Value::text(lineage, &origin));
    }

    /// Sets the file, `--config FILE`.
    pub(crate) fn config(&mut self, file: Option<&str>) {
        self.config = file.map(str::to_owned);
    }

    /// The global options that choose files, as given: a hint repeats them in its commands.
    pub(crate) fn places(&self) -> String {
        let config = self.config.iter();
        let config = config.map(|file| format!(" --config {}", shell_word(file)));
        config
            .chain(self.given(&["data_dir", "output_dir"]))
            .collect()
    }

    /// The options of these keys as given, each with a blank before it.
    pub(crate) fn given(&self, names: &[&str]) -> Vec<String> {
        let given = self.values.iter();
        let given = given.filter(|(key, _)| names.contains(&key.name));
        given.map(|(key, value)| shown(key, value)).collect()
    }

    /// The same with those of `given` alone that have these names.
    pub(crate) fn with_only<const VERB: u8>(
        &self,
        given: &KeyOptions<VERB>,
        names: &[&str],
    ) -> Self {
        let mut options = self.clone();
        let is_kept = |key: &Key| names.contains(&key.name) || !given.gives(key.name);
        options.values.retain(|(key, _)| is_kept(key));
        options
    }

    pub(super) fn layer(&self, problems: &mut Problems) -> Layer {
        let mut layer = Layer::default();
        for (key, value) in &self.values {
            layer.put(key.name, value, problems);
        }
        match &self.request {
            Some(Given {
                value: Ok(request),
                origin,
            }) => layer.shared.request = Some(Given::new(request.clone(), origin)),
            Some(Given {
                value: Err((message, hint)),
                origin,
            }) => problems.add(origin, message.as_str(), hint.as_str()),
            None => {}
        }
        let given = |name: &&str| self.values.iter().find(|(key, _)| key.name == *name);
        let mut exclusive = EXCLUSIVE.iter().filter_map(given).map(|(key, _)| key);
        if let (Some(one), Some(other)) = (exclusive.next(), exclusive.next()) {
            let message = format!("cannot be combined with --{}", other.option_name());
            let hint = "keep the one that answers on port 80";
            problems.add(&SettingOrigin::option(one), message, hint);
        }
        layer
    }
}

/// The signing request in `file`, for exactly `names` if there are any.
fn read_request(file: &Path, names: &[String]) -> Result<SigningRequest, (String, String)> {
    let content = named::read_bytes(file, LARGEST_REQUEST).map_err(|error| {
        let hint = error.hint();
        let hint = hint.unwrap_or("name a signing request in PEM or DER".to_owned());
        (error.to_string(), hint)
    })?;
    let request = SigningRequest::read(&content).map_err(|message| {
        let hint = "openssl req -new -key KEY -subj / -addext subjectAltName=DNS:example.com makes one that CAs take";
        (message, hint.to_owned())
    })?;
    let given: BTreeSet<_> = names
        .iter()
        .flat_map(|name| Identifier::parse(name))
        .collect();
    let own: BTreeSet<_> = request.names().iter().cloned().collect();
    if names.is_empty() || given == own {
        return Ok(request);
    }
    let own: Vec<String> = own.iter().map(ToString::to_string).collect();
    let message = format!("it is for {}, and other names are given", own.join(", "));
    Err((
        message,
        "leave the names out: a request has its own".to_owned(),
    ))
}

impl SettingOrigin {
    pub(super) fn option(key: &Key) -> Self {
        Self::Option(format!("--{}", key.option_name()))
    }
}
