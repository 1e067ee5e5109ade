//! The file's JSON Schema, for editors, made from the table of keys. Only the shape of
//! `[deploy.NAME]` is written here.

use std::collections::BTreeMap;

use schemars::SchemaGenerator;
use serde_json::{Map, Value, json};

use super::dns::PROVIDER;
use super::key::{Default, Key, Scope, ValueType};
use super::keys::{NAMING, SECTIONS, keys};
use super::read::ENDPOINTS;
use crate::challenge::dns01;
use crate::deploy::target::DeployTarget;

/// The file's JSON Schema.
pub(crate) fn schema() -> String {
    let mut generator = SchemaGenerator::default();
    let targets = generator.subschema_for::<BTreeMap<String, DeployTarget>>();
    let texts = json!({ "type": "array", "items": { "type": "string" } });
    let one_or_many = json!({ "anyOf": [{ "type": "string" }, texts] });
    let property = |key: &Key| {
        let mut shape = match key.value_type {
            ValueType::Text => json!({ "type": "string" }),
            ValueType::Choice(words) => json!({ "enum": words() }),
            ValueType::List => one_or_many.clone(),
            ValueType::Endpoints => endpoints(),
            ValueType::Boolean => json!({ "type": "boolean" }),
            ValueType::Number => json!({ "type": "integer", "minimum": 1, "maximum": u16::MAX }),
        };
        shape["description"] = key.described().into();
        if let Default::Value(value) = key.default {
            shape["default"] = match key.value_type {
                ValueType::Boolean | ValueType::Number => value.parse().unwrap_or_default(),
                _ => value.into(),
            };
        }
        shape
    };
    let named = |key: &Key| (key.name.to_owned(), property(key));
    let own = keys().filter(|key| key.scope == Scope::Certificate);
    let mut certificate = table(NAMING.iter().chain(own).map(named).collect());
    certificate["required"] = json!(["names"]);
    let mut root: Map<String, Value> = keys()
        .filter(|key| key.section().is_none())
        .map(named)
        .collect();
    for (section, about) in SECTIONS {
        let of_it = keys().filter_map(|key| Some((key, key.section()?)));
        let of_it = of_it.filter(|(_, (table, _))| *table == section);
        let of_it = of_it.map(|(key, (_, name))| (name.to_owned(), property(key)));
        let plain = root.remove(section);
        let plain = plain.iter().map(|key| (ENDPOINTS.to_owned(), key.clone()));
        let mut table = table(of_it.chain(plain.clone()).collect());
        table["description"] = about.into();
        let either = plain
            .map(|(_, key)| json!({ "anyOf": [key, table] }))
            .next();
        root.insert(section.to_owned(), either.unwrap_or(table));
    }
    let description = root["deploy"]["description"].clone();
    let deploy = json!({ "anyOf": [one_or_many, targets], "description": description });
    root.insert("deploy".to_owned(), deploy);
    let dns = dns(&root["dns"]["description"]);
    root.insert("dns".to_owned(), dns);
    let certificates = json!({ "type": "array", "description": "The certificates",
        "items": { "$ref": "#/$defs/Certificate" } });
    root.insert("certificate".to_owned(), certificates);
    let mut definitions = generator.take_definitions(true);
    definitions.insert("Certificate".to_owned(), certificate);
    let mut schema = table(root);
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    schema["title"] = "certs configuration".into();
    schema["$defs"] = definitions.into();
    format!("{schema:#}")
}

/// A table with these keys and no others.
fn table(properties: Map<String, Value>) -> Value {
    json!({ "type": "object", "properties": properties, "additionalProperties": false })
}
/// One endpoint or several, each a text or a table.
fn endpoints() -> Value {
    let names = json!({ "type": "array", "items": { "type": "string" } });
    let one = json!({ "anyOf": [{ "type": "string" }, {
        "type": "object",
        "additionalProperties": false,
        "required": ["address"],
        "properties": {
            "address": { "type": "string" },
            "names": names,
            "proxy_protocol": { "enum": ["v1", "v2"] },
        },
    }] });
    json!({ "anyOf": [one, { "type": "array", "items": one }] })
}

/// The name of a provider, or the tables of several.
fn dns(description: &Value) -> Value {
    let provider = json!({ "enum": dns01::names() });
    let value = json!({ "type": ["string", "boolean", "integer"] });
    let credentials = json!({ "type": "object", "properties": { PROVIDER: provider },
        "additionalProperties": value });
    let tables = json!({ "type": "object", "additionalProperties": credentials });
    json!({ "anyOf": [{ "type": "string" }, tables], "description": description })
}
