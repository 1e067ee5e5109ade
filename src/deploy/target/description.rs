//! The documentation of the kinds for users: short forms for the help, the JSON Schema of
//! the long forms, and each kind's keys with their meaning. All of it is generated from
//! the fields and comments of the settings.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::{DeployTarget, ShortForm, TargetKind};

/// A key of a kind, as its settings document it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyDescription {
    /// Its name.
    pub name: String,
    /// The type of its value, in a word.
    pub value: &'static str,
    /// Whether it is required.
    pub is_required: bool,
    /// Its default.
    pub default: Option<String>,
    /// Its meaning.
    pub meaning: String,
}

impl TargetKind {
    /// The schema of its long form, its `kind` included.
    fn long_form(&self, generator: &mut SchemaGenerator) -> Schema {
        let mut schema = (self.schema)(generator);
        let object = schema.ensure_object();
        let keys = object.entry("properties").or_insert_with(|| json!({}));
        keys["kind"] = json!({"const": self.name});
        let required = object.entry("required").or_insert_with(|| json!([]));
        if let Some(required) = required.as_array_mut() {
            required.insert(0, json!("kind"));
        }
        schema
    }

    /// Its own schema, which documents it and its keys.
    fn described(&self) -> Value {
        let schema = (self.schema)(&mut SchemaGenerator::default());
        schema.to_value()
    }

    /// Its meaning, for users.
    #[cfg(test)]
    pub(crate) fn meaning(&self) -> String {
        self.described()["description"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// Its keys, those of its short form first.
    #[must_use]
    pub(crate) fn keys(&self) -> Vec<KeyDescription> {
        let schema = self.described();
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        let properties = schema["properties"].as_object();
        let keys = properties
            .into_iter()
            .flatten()
            .map(|(name, key)| KeyDescription {
                name: name.clone(),
                value: value_of(key),
                is_required: required.contains(&json!(name)),
                default: default_of(key),
                meaning: key["description"].as_str().unwrap_or_default().to_owned(),
            });
        let mut keys: Vec<_> = keys.collect();
        keys.sort_by_key(|key| match self.short {
            short if key.name == short.key() => 0,
            ShortForm::WhereAnd(_, more) if key.name == more => 1,
            _ => 2,
        });
        keys
    }

    /// Its short form, with the optional parts in brackets.
    #[must_use]
    pub(crate) fn form(&self) -> String {
        let place = |key: &str| key.to_uppercase();
        let is_required = |name: &str| {
            let keys = self.keys();
            keys.iter().any(|key| key.name == name && key.is_required)
        };
        match self.short {
            ShortForm::Url(_) => "https://…".to_owned(),
            ShortForm::Where(key) | ShortForm::WhereAnd(key, _) if !is_required(key) => {
                format!("{}[:{}]", self.name, place(key))
            }
            ShortForm::Where(key) => format!("{}:{}", self.name, place(key)),
            ShortForm::WhereAnd(key, more) => {
                format!("{}:{}[:{}]", self.name, place(key), place(more))
            }
        }
    }
}

/// The default of a key as a user would write it, else a description.
fn default_of(key: &Value) -> Option<String> {
    ["default", "x-default"]
        .iter()
        .find_map(|word| match &key[word] {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        })
}

fn value_of(key: &Value) -> &'static str {
    let has = |of: &Value, word: &str| match &of["type"] {
        Value::Array(words) => words.contains(&json!(word)),
        of => of == word,
    };
    match key {
        key if key["format"] == "path" => "path",
        key if has(key, "boolean") => "true or false",
        key if has(key, "string") => "text",
        _ => "text or list",
    }
}

impl JsonSchema for DeployTarget {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "DeployTarget".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let kinds = Self::kinds().map(|kind| kind.long_form(generator));
        json_schema!({"oneOf": kinds.collect::<Vec<_>>()})
    }
}
