//! The types of a certificate's keys: one, or an ECDSA and an RSA type for two certificates
//! of the same names, of which a server shows each client the one that it understands. Each
//! of the two is a certificate of its own in all else.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::layer::{Raw, Value, list, split};
use super::problem::{Given, Problems};
use crate::certificate::KeyType;

/// One type, or one of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Written", try_from = "Written")]
pub(crate) struct KeyTypes {
    first: KeyType,
    second: Option<KeyType>,
}

/// A single type is stored as earlier versions stored it.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    One(KeyType),
    Several(Vec<KeyType>),
}

impl From<KeyTypes> for Written {
    fn from(types: KeyTypes) -> Self {
        match types.second {
            None => Self::One(types.first),
            Some(second) => Self::Several(vec![types.first, second]),
        }
    }
}

impl TryFrom<Written> for KeyTypes {
    type Error = String;
    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::One(only) => Ok(only.into()),
            Written::Several(types) => Self::of(&types),
        }
    }
}

impl fmt::Display for KeyTypes {
    /// As `--key` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.second {
            None => self.first.fmt(f),
            Some(second) => write!(f, "{},{second}", self.first),
        }
    }
}

impl From<KeyType> for KeyTypes {
    fn from(first: KeyType) -> Self {
        Self {
            first,
            second: None,
        }
    }
}

impl KeyTypes {
    fn of(types: &[KeyType]) -> Result<Self, String> {
        match *types {
            [only] => Ok(only.into()),
            [first, second] if first.kind() != second.kind() => Ok(Self {
                first,
                second: Some(second),
            }),
            _ => Err("not one key type, nor one of each kind".to_owned()),
        }
    }

    /// The type of the first certificate, or of the second one.
    pub(crate) fn of_certificate(self, is_second: bool) -> KeyType {
        let second = self.second.filter(|_| is_second);
        second.unwrap_or(self.first)
    }

    /// The same two types, the second one first.
    pub(crate) fn turned(self) -> Self {
        match self.second {
            None => self,
            Some(second) => Self {
                first: second,
                second: Some(self.first),
            },
        }
    }

    /// The kinds of keys, first that of the first certificate or of the second one.
    pub(crate) fn kinds(self, is_second: bool) -> Vec<&'static str> {
        let other = self.second.map(|_| self.of_certificate(!is_second));
        let all = [Some(self.of_certificate(is_second)), other].into_iter();
        all.flatten().map(KeyType::kind).collect()
    }

    /// The type of the second certificate, if there is one.
    pub(crate) fn second(self) -> Option<KeyType> {
        self.second
    }
}

/// Reads one type, or one of each kind.
pub(super) fn key_types(
    value: &Value,
    hint: &str,
    problems: &mut Problems,
) -> Option<Given<KeyTypes>> {
    let before = problems.len();
    let words = match &value.value {
        Raw::Text(text) => Value::list(split(text), &value.origin),
        // Each option may have several, too.
        Raw::List(items) => {
            let items = items.iter().flat_map(|item| match &item.value {
                Raw::Text(text) => split(text)
                    .map(|word| Value::text(word, &item.origin))
                    .collect(),
                _ => vec![item.clone()],
            });
            Value::new(Raw::List(items.collect()), &value.origin)
        }
        _ => value.clone(),
    };
    let types: Given<Vec<KeyType>> = list(&words, hint, problems)?;
    if problems.len() > before {
        return None;
    }
    match KeyTypes::of(&types.value) {
        Ok(types) => Some(Given::new(types, &value.origin)),
        Err(message) => {
            let hint = "write one type, or an ECDSA and an RSA type: a server chooses by the kind";
            problems.add(&value.origin, message, hint);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::problem::SettingOrigin;
    use super::*;

    fn read(value: &Value) -> Result<KeyTypes, usize> {
        let mut problems = Problems::default();
        let read = key_types(value, "hint", &mut problems);
        read.map(|given| given.value).ok_or(problems.len())
    }

    #[test]
    fn keys_are_one_type_or_one_of_each_kind() {
        let nowhere = &SettingOrigin::Nowhere;
        let both = KeyTypes::of(&[KeyType::EcdsaP256, KeyType::Rsa2048]).unwrap();
        for both_ways in [
            Value::text("ecdsa-p256,rsa-2048", nowhere),
            Value::list(["ecdsa-p256", "rsa-2048"], nowhere),
            Value::list(["ecdsa-p256, rsa-2048"], nowhere),
        ] {
            assert_eq!(read(&both_ways), Ok(both));
        }
        let one = read(&Value::text("rsa-4096", nowhere));
        assert_eq!(one, Ok(KeyType::Rsa4096.into()));
        for invalid in [
            vec!["rsa-2048", "rsa-4096"],
            vec!["ecdsa-p256", "ecdsa-p384"],
            vec!["ecdsa-p256", "rsa-2048", "rsa-4096"],
            vec!["ecdsa-p256", "dsa"],
            vec![],
        ] {
            assert_eq!(
                read(&Value::list(invalid.clone(), nowhere)),
                Err(1),
                "{invalid:?}"
            );
        }
    }

    #[test]
    fn keys_are_stored_as_earlier_versions_read_them() {
        let one = KeyTypes::from(KeyType::Rsa2048);
        assert_eq!(serde_json::to_string(&one).unwrap(), r#""rsa-2048""#);
        let both = r#"["rsa-2048","ecdsa-p384"]"#;
        let read: KeyTypes = serde_json::from_str(both).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), both);
        assert_eq!(read.of_certificate(true), KeyType::EcdsaP384);
        assert_eq!(read.turned().to_string(), "ecdsa-p384,rsa-2048");
        assert_eq!(read.kinds(false), ["rsa", "ecdsa"]);
        assert_eq!(read.kinds(true), ["ecdsa", "rsa"]);
        assert_eq!((one.turned(), one.kinds(false)), (one, vec!["rsa"]));
        assert_eq!(one.of_certificate(true), KeyType::Rsa2048);
        for invalid in ["[]", r#"["rsa-2048","rsa-3072"]"#] {
            assert!(serde_json::from_str::<KeyTypes>(invalid).is_err());
        }
    }
}
