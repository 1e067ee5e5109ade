//! The keys of a deploy target: serde reads them into typed settings and writes them back.
//! Every value is a text or a list of texts, as in the configuration and the stored
//! options. An error names the invalid key, so that the configuration can show its line.
//! It never touches a file.

pub(in crate::deploy) mod address;
pub(crate) mod values;

use std::collections::{BTreeMap, btree_map};
use std::fmt;

use serde::de::value::{MapAccessDeserializer, SeqDeserializer};
use serde::de::{DeserializeSeed, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserializer, Serialize, de};
use thiserror::Error;

use crate::text::{nearest, printable};

/// The keys of a long form, without its kind.
pub(crate) type TargetKeys = BTreeMap<String, Vec<String>>;

/// An invalid deploy target, with the invalid key if there is one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InvalidTarget {
    /// The invalid key.
    pub key: Option<String>,
    /// The problem.
    pub message: String,
}

impl InvalidTarget {
    /// `key` has an invalid value.
    pub(super) fn key(key: &str, message: impl Into<String>) -> Self {
        Self {
            key: Some(key.to_owned()),
            message: message.into(),
        }
    }
}

/// Reads the settings of a target of `kind` from `keys`.
pub(super) fn read<T: de::DeserializeOwned>(
    kind: &str,
    keys: TargetKeys,
) -> Result<T, InvalidTarget> {
    let entries = Entries {
        rest: keys.into_iter(),
        current: Default::default(),
    };
    let read = T::deserialize(MapAccessDeserializer::new(entries));
    read.map_err(|error| InvalidTarget {
        key: error.key,
        message: match error.is_of_kind {
            true => format!("{kind} {}", error.message),
            false => error.message,
        },
    })
}

/// The keys of `settings`.
pub(super) fn written<T: Serialize>(settings: &T) -> TargetKeys {
    use serde_json::Value;
    let text = |value: Value| match value {
        Value::String(text) => text,
        other => other.to_string(),
    };
    // Settings are a struct of texts, lists and booleans: JSON can express all of it.
    let Ok(Value::Object(keys)) = serde_json::to_value(settings) else {
        return TargetKeys::new();
    };
    let given = keys.into_iter().filter(|(_, value)| !value.is_null());
    given
        .map(|(key, value)| match value {
            Value::Array(values) => (key, values.into_iter().map(text).collect()),
            value => (key, vec![text(value)]),
        })
        .collect()
}

/// Why keys are invalid.
#[derive(Debug, Error)]
#[error("{message}")]
struct KeyError {
    key: Option<String>,
    message: String,
    /// Whether the message continues the name of the kind.
    is_of_kind: bool,
}

impl de::Error for KeyError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self {
            key: None,
            message: message.to_string(),
            is_of_kind: false,
        }
    }

    fn unknown_field(field: &str, known: &'static [&'static str]) -> Self {
        let mut message = format!("has no key `{}`", printable(field));
        if let Some(meant) = nearest(field, known.iter().copied()) {
            message += &format!("; did you mean `{meant}`?");
        }
        Self {
            key: Some(field.to_owned()),
            message,
            is_of_kind: true,
        }
    }

    fn missing_field(field: &'static str) -> Self {
        Self {
            key: None,
            message: format!("needs `{field}`"),
            is_of_kind: true,
        }
    }
}

struct Entries {
    rest: btree_map::IntoIter<String, Vec<String>>,
    current: (String, Vec<String>),
}

impl<'de> MapAccess<'de> for Entries {
    type Error = KeyError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, KeyError> {
        let Some(next) = self.rest.next() else {
            return Ok(None);
        };
        self.current = next;
        let key = self.current.0.as_str().into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, KeyError> {
        let (key, values) = &self.current;
        let read = seed.deserialize(KeyValue { key, values });
        read.map_err(|error| KeyError {
            key: error.key.or(Some(key.clone())),
            ..error
        })
    }
}

/// A value: one text, or several for a list.
#[derive(Clone, Copy)]
struct KeyValue<'a> {
    key: &'a str,
    values: &'a [String],
}

impl KeyValue<'_> {
    fn no_single(self) -> KeyError {
        de::Error::custom(format!("`{}` has no single value", self.key))
    }

    fn text(self) -> Result<String, KeyError> {
        match self.values {
            [text] if !text.is_empty() => Ok(text.clone()),
            _ => Err(self.no_single()),
        }
    }
}

impl<'de> Deserializer<'de> for KeyValue<'_> {
    type Error = KeyError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, KeyError> {
        visitor.visit_string(self.text()?)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, KeyError> {
        match self.text()?.parse() {
            Ok(value) => visitor.visit_bool(value),
            Err(_) => Err(de::Error::custom("write true or false")),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, KeyError> {
        if self.values.is_empty() || self.values.iter().any(String::is_empty) {
            return Err(self.no_single());
        }
        visitor.visit_seq(SeqDeserializer::new(self.values.iter().cloned()))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, KeyError> {
        visitor.visit_some(self)
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct newtype_struct tuple tuple_struct map struct enum identifier ignored_any
    }
}
