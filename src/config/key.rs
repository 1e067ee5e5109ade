//! The description of a configuration key, and the macro that makes code from a table of
//! keys: the layer that one source fills, the reader of each value, and the setting that
//! the strongest value becomes. It knows no key by name.

use super::layer::Value;
use super::problem::{Problems, SettingOrigin};

/// One key of the configuration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    /// Its name in the file, with a `.` between a table and its key.
    pub(super) name: &'static str,
    /// Its heading in the help and in the reference.
    pub(super) group: &'static str,
    pub(super) scope: Scope,
    pub(super) value_type: ValueType,
    /// Its meaning in one line, for help, schema and reference.
    pub(super) doc: &'static str,
    /// The forms that its text can have, if another table lists them.
    forms: Option<fn() -> String>,
    pub(super) default: Default,
    /// The option of the command line, if it has one.
    pub(super) option: Option<CommandLine>,
    /// Whether each of several options holds for the names that follow it.
    pub(super) is_by_name: bool,
    /// Words that its text may be, among others.
    suggested: Option<fn() -> Vec<&'static str>>,
    hint: &'static str,
}

/// The scope of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// For the whole process.
    Process,
    /// For one certificate, and as the default for all.
    Certificate,
}

/// The type of a key's value.
#[derive(Clone, Copy, Debug)]
pub(super) enum ValueType {
    Text,
    /// One of these words.
    Choice(fn() -> Vec<&'static str>),
    List,
    /// A list of endpoints, each a text or a table.
    Endpoints,
    Boolean,
    /// A positive number of 16 bits.
    Number,
}

/// The value of a key that no source sets.
#[derive(Clone, Copy, Debug)]
pub(super) enum Default {
    Unset,
    /// This value, as a user would write it.
    Value(&'static str),
    /// A value that only words can describe.
    Described(&'static str),
}

/// The option of a key.
#[derive(Clone, Copy, Debug)]
pub(super) struct CommandLine {
    /// The verbs that take it: a sum of [`EVERY`] and the others.
    pub(super) verbs: u8,
    /// The placeholder of its value in the help; a boolean without one is a flag.
    pub(super) value_name: &'static str,
}

/// Every verb.
pub(crate) const EVERY: u8 = 1;
/// `certs issue`.
pub(crate) const ISSUE: u8 = 2;
/// `certs run`.
pub(crate) const RUN: u8 = 4;
/// `certs import`.
pub(crate) const IMPORT: u8 = 8;
/// `certs account` and `certs revoke`.
pub(crate) const ACCOUNT: u8 = 16;
/// `certs account update`.
pub(crate) const UPDATE: u8 = 32;

pub(super) const TEXT: Key = Key::new(ValueType::Text).hint("a text belongs here");
pub(super) const PATH: Key = Key::new(ValueType::Text).hint("a path belongs here");
pub(super) const LIST: Key = Key::new(ValueType::List);
pub(super) const ENDPOINTS: Key = Key::new(ValueType::Endpoints);
pub(super) const BOOLEAN: Key = Key::new(ValueType::Boolean);
pub(super) const NUMBER: Key = Key::new(ValueType::Number).hint("a number from 1 to 65535");

pub(super) const fn choice(words: fn() -> Vec<&'static str>) -> Key {
    Key::new(ValueType::Choice(words))
}

impl Key {
    const fn new(value_type: ValueType) -> Self {
        Self {
            name: "",
            group: "",
            scope: Scope::Certificate,
            value_type,
            doc: "",
            forms: None,
            is_by_name: false,
            suggested: None,
            default: Default::Unset,
            option: None,
            hint: "",
        }
    }

    pub(super) const fn named(
        mut self,
        name: &'static str,
        group: &'static str,
        scope: Scope,
    ) -> Self {
        (self.name, self.group) = (name, group);
        if let Scope::Process = scope {
            self.scope = scope;
        }
        self
    }

    pub(super) const fn doc(mut self, doc: &'static str) -> Self {
        self.doc = doc;
        self
    }

    pub(super) const fn forms(mut self, forms: fn() -> String) -> Self {
        self.forms = Some(forms);
        self
    }

    pub(super) const fn by_name(mut self) -> Self {
        self.is_by_name = true;
        self
    }

    pub(super) const fn suggests(mut self, words: fn() -> Vec<&'static str>) -> Self {
        self.suggested = Some(words);
        self
    }

    /// The words that a completion script offers for its value.
    pub(super) fn suggestions(&self) -> Option<fn() -> Vec<&'static str>> {
        match self.value_type {
            ValueType::Choice(words) => Some(words),
            _ => self.suggested,
        }
    }

    /// The hint for an invalid value.
    pub(super) const fn hint(mut self, hint: &'static str) -> Self {
        self.hint = hint;
        self
    }

    pub(super) const fn default(mut self, value: &'static str) -> Self {
        self.default = Default::Value(value);
        self
    }

    pub(super) const fn default_is(mut self, description: &'static str) -> Self {
        self.default = Default::Described(description);
        self
    }

    pub(super) const fn option(mut self, verbs: u8, value_name: &'static str) -> Self {
        self.option = Some(CommandLine { verbs, value_name });
        self
    }

    pub(super) const fn flag(self, verbs: u8) -> Self {
        self.option(verbs, "")
    }

    /// Narrows a certificate's key: it is the same for all of them.
    pub(super) const fn for_the_process(mut self) -> Self {
        self.scope = Scope::Process;
        self
    }

    /// `output.owner` is `CERTS_OUTPUT_OWNER`.
    pub(super) fn variable(&self) -> String {
        format!("CERTS_{}", self.name.replace('.', "_").to_uppercase())
    }

    /// `admin.listen` is `admin-listen`.
    pub(super) fn option_name(&self) -> String {
        self.name.replace(['_', '.'], "-")
    }

    /// Its table in the file, and its name there.
    pub(super) fn section(&self) -> Option<(&'static str, &'static str)> {
        self.name.split_once('.')
    }

    /// The hint for an invalid value; a choice lists its words.
    pub(super) fn expected(&self) -> String {
        match self.value_type {
            ValueType::Choice(words) if self.hint.is_empty() => {
                format!("write {}", alternatives(&words()))
            }
            _ => self.hint.to_owned(),
        }
    }

    /// Its meaning, with the forms of its text.
    pub(super) fn described(&self) -> String {
        let forms = self.forms.map(|forms| format!(": {}", forms()));
        self.doc.to_owned() + &forms.unwrap_or_default()
    }

    /// The same, with the words of a choice.
    pub(super) fn full_doc(&self) -> String {
        match self.value_type {
            ValueType::Choice(words) => format!("{}: {}", self.doc, alternatives(&words())),
            _ => self.described(),
        }
    }
}

/// `a, b or c`.
fn alternatives(words: &[&str]) -> String {
    match words {
        [all @ .., one, last] if !all.is_empty() => {
            format!("{}, {one} or {last}", all.join(", "))
        }
        _ => words.join(" or "),
    }
}

/// The values of one source, key by key and not yet combined with the others.
pub(super) trait KeyTable: Sized + 'static {
    /// The settings that the strongest values make.
    type Settings;
    const KEYS: &'static [Key];

    /// Reads the value of `key`. Returns whether the layer has that key.
    fn read(&mut self, key: &Key, value: &Value, problems: &mut Problems) -> bool;

    /// Sets the strongest value of each key; the strongest of `layers` is the first.
    fn apply(layers: &[&Self], settings: &mut Self::Settings);

    /// The layer of these `settings`, with `origin` for every value.
    fn holding(settings: &Self::Settings, origin: &SettingOrigin) -> Self;
}

/// A layer from its table. A key is
/// `"name", field: Type, reader, Key => .where.it.is.stored;`
/// where the reader is a function of [`super::layer`] that makes a `Given<Type>`.
/// [`super::combine`] stores the keys that only together make a setting.
macro_rules! layer {
    (
        $(#[$about:meta])*
        $layer:ident of a $scope:ident sets $settings:ident;
        $( group $group:literal { $(
            $name:literal, $field:ident: $type:ty, $read:expr, $key:expr $(=> $(.$part:ident)+)?;
        )+ } )+
        besides { $( $(#[$more:meta])* $other:ident: $other_type:ty, )* }
    ) => {
        $(#[$about])*
        #[derive(Clone, Debug, Default)]
        pub(super) struct $layer {
            $( $( pub(super) $field: Option<Given<$type>>, )+ )+
            $( $(#[$more])* pub(super) $other: $other_type, )*
        }

        impl KeyTable for $layer {
            type Settings = $settings;
            const KEYS: &'static [Key] = &[ $( $( ($key).named($name, $group, Scope::$scope), )+ )+ ];

            fn read(&mut self, key: &Key, value: &Value, problems: &mut Problems) -> bool {
                match key.name {
                    $( $( $name => self.$field = $read(value, &key.expected(), problems), )+ )+
                    _ => return false,
                }
                true
            }

            fn apply(layers: &[&Self], settings: &mut $settings) {
                $( $( $(
                    if let Some(given) = layers.iter().find_map(|layer| layer.$field.as_ref()) {
                        settings$(.$part)+ = given.value.clone().into();
                    }
                )? )+ )+
            }

            fn holding(settings: &$settings, origin: &SettingOrigin) -> Self {
                let mut layer = Self::default();
                $( $( $(
                    let value: Option<$type> = settings$(.$part)+.clone().into();
                    layer.$field = value.map(|value| Given::new(value, origin));
                )? )+ )+
                layer
            }
        }
    };
}
pub(super) use layer;
