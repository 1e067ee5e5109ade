//! The keys of a deploy target: serde reads them into typed settings and writes them back.
//! Every value is a text or a list of texts, as in the configuration and the stored
//! options. An error names the invalid key, so that the configuration can show its line.
//! It never touches a file.

pub(crate) mod values;

use std::collections::{BTreeMap, btree_map};
use std::fmt;

use serde::de::value::{MapAccessDeserializer, SeqDeserializer};
use serde::de::{DeserializeSeed, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserializer, Serialize, de};

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
        current: None,
    };
    let read = T::deserialize(MapAccessDeserializer::new(entries));
    read.map_err(|error| error.of(kind))
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
#[derive(Debug)]
enum KeyError {
    Unknown {
        key: String,
        known: &'static [&'static str],
    },
    Missing(&'static str),
    Invalid {
        key: Option<String>,
        message: String,
    },
}

impl KeyError {
    /// The same error, in the value of `key`.
    fn at(self, of: &str) -> Self {
        match self {
            Self::Invalid { key: None, message } => Self::Invalid {
                key: Some(of.to_owned()),
                message,
            },
            other => other,
        }
    }

    fn of(self, kind: &str) -> InvalidTarget {
        match self {
            Self::Unknown { key, known } => {
                let mut message = format!("{kind} has no key `{}`", printable(&key));
                if let Some(meant) = nearest(&key, known.iter().copied()) {
                    message += &format!("; did you mean `{meant}`?");
                }
                InvalidTarget::key(&key, message)
            }
            Self::Missing(key) => InvalidTarget {
                key: None,
                message: format!("{kind} needs `{key}`"),
            },
            Self::Invalid { key, message } => InvalidTarget { key, message },
        }
    }
}

impl de::Error for KeyError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::Invalid {
            key: None,
            message: message.to_string(),
        }
    }

    fn unknown_field(field: &str, known: &'static [&'static str]) -> Self {
        let key = field.to_owned();
        Self::Unknown { key, known }
    }

    fn missing_field(field: &'static str) -> Self {
        Self::Missing(field)
    }
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { key, .. } => write!(f, "unknown key `{key}`"),
            Self::Missing(key) => write!(f, "no `{key}`"),
            Self::Invalid { message, .. } => f.write_str(message),
        }
    }
}

impl std::error::Error for KeyError {}

struct Entries {
    rest: btree_map::IntoIter<String, Vec<String>>,
    current: Option<(String, Vec<String>)>,
}

impl<'de> MapAccess<'de> for Entries {
    type Error = KeyError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, KeyError> {
        self.current = self.rest.next();
        let key = self.current.as_ref().map(|(key, _)| key.as_str());
        key.map(|key| seed.deserialize(key.into_deserializer()))
            .transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, KeyError> {
        let (key, values) = self.current.take().unwrap_or_default();
        let value = KeyValue {
            key: &key,
            values: &values,
        };
        seed.deserialize(value).map_err(|error| error.at(&key))
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
        match self.text()?.as_str() {
            "true" => visitor.visit_bool(true),
            "false" => visitor.visit_bool(false),
            _ => Err(de::Error::custom("write true or false")),
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

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, KeyError> {
        visitor.visit_newtype_struct(self)
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct tuple tuple_struct map struct enum identifier ignored_any
    }
}
