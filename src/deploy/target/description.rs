//! The documentation of the kinds for users: short forms for the help, the JSON Schema of
//! the long forms, and each kind's keys with their meaning. All of it is generated from
//! the fields and comments of the settings.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::{DeployTarget, ShortForm, TargetKind};

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
    pub(super) fn described(&self) -> Value {
        let schema = (self.schema)(&mut SchemaGenerator::default());
        schema.to_value()
    }

    /// Its keys, those of its short form first, and whether each is required.
    pub(super) fn keys(&self) -> Vec<(String, bool)> {
        let schema = self.described();
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        let keys = schema["properties"].as_object().into_iter().flatten();
        let keys = keys.map(|(name, _)| (name.clone(), required.contains(&json!(name))));
        let (mut keys, short) = (Vec::from_iter(keys), self.short.keys());
        keys.sort_by_key(|(name, _)| {
            let place = short.iter().position(|key| key == name);
            place.unwrap_or(short.len())
        });
        keys
    }

    /// Its short form, with the optional parts in brackets.
    #[must_use]
    pub(crate) fn form(&self) -> String {
        if self.short == ShortForm::Url {
            return "https://…".to_owned();
        }
        let keys = self.keys();
        let short = keys.iter().take(self.short.keys().len());
        let short = short.map(|(name, is_required)| match is_required {
            true => format!(":{}", name.to_uppercase()),
            false => format!("[:{}]", name.to_uppercase()),
        });
        format!("{}{}", self.name, short.collect::<String>())
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
