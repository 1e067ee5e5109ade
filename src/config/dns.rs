//! The credentials of DNS providers: a table `[dns.NAME]` of the file, and the variables
//! `CERTS_DNS_NAME_FIELD`, which are stronger. Both may name a file instead of the value; it
//! is read here, so that what is stored with a certificate names no file.

use std::collections::BTreeMap;
use std::path::Path;

use super::layer::{Raw, Value, absolute};
use super::problem::{Given, Problems, SettingOrigin, nearest};
use crate::certificate::Secret;
use crate::challenge::dns01;
use crate::files::named;

/// The key of a table that names its provider.
pub(super) const PROVIDER: &str = "provider";
const FILE: &str = "_file";

/// The values of the environment by their variables.
pub(super) type DnsVariables = BTreeMap<String, Secret>;

/// `[dns.NAME]`.
#[derive(Clone, Debug)]
pub(super) struct DnsTable {
    pub(super) provider: String,
    pub(super) credentials: BTreeMap<String, Secret>,
}

/// Reads the keys of `[dns.NAME]`.
pub(super) fn table(
    name: &str,
    origin: &SettingOrigin,
    keys: &[(String, Value)],
    problems: &mut Problems,
) -> Option<DnsTable> {
    let mut texts = BTreeMap::new();
    for (key, value) in keys {
        let text = match &value.value {
            Raw::Text(text) | Raw::Number(text) => text.clone(),
            Raw::Boolean(value) => value.to_string(),
            _ => {
                let message = format!("`{key}` of [dns.{name}] is not a text");
                problems.add(&value.origin, message, "a text belongs here, in quotes");
                continue;
            }
        };
        texts.insert(key.as_str(), Given::new(text, &value.origin));
    }
    let named = texts.remove(PROVIDER);
    let at = named.as_ref().map_or(origin, |named| &named.origin);
    let provider = named.as_ref().map_or(name, |named| &named.value).to_owned();
    let Some(fields) = dns01::fields(&provider) else {
        let unfit = dns01::unknown(&provider);
        problems.add(at, unfit.message, unfit.hint);
        return None;
    };
    let mut credentials = BTreeMap::new();
    for (key, text) in texts {
        let bare = key.strip_suffix(FILE).unwrap_or(key);
        if !fields.iter().any(|field| field.name == bare) {
            let known = fields.iter().map(|field| field.name);
            let hint = match nearest(bare, known.clone()) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!(
                    "the keys of {provider}: {}",
                    known.collect::<Vec<_>>().join(", ")
                ),
            };
            let message = format!(
                "unknown key `{}` of DNS provider {provider}",
                key.escape_debug()
            );
            problems.add(&text.origin, message, hint);
            continue;
        }
        let value = match key == bare {
            true => Some(Secret::new(text.value.clone())),
            false => content(&text, problems),
        };
        credentials.extend(value.map(|value| (bare.to_owned(), value)));
    }
    Some(DnsTable {
        provider,
        credentials,
    })
}

/// The content of a named file.
fn content(path: &Given<String>, problems: &mut Problems) -> Option<Secret> {
    let file = absolute(&path.origin, Path::new(&path.value));
    let read = named::read_data(&file);
    let read = read.map_err(|error| {
        let hint = error.hint().unwrap_or("name a readable file".to_owned());
        let message = format!("{}: {error}", file.display());
        problems.add(&path.origin, message, hint);
    });
    read.ok()
        .map(|text| Secret::new(text.expose().trim().to_owned()))
}

/// The variables of all fields of all providers.
pub(super) fn variables() -> impl Iterator<Item = String> {
    dns01::names().into_iter().flat_map(|name| {
        let fields = dns01::fields(name).unwrap_or_default().into_iter();
        fields.map(move |field| dns01::variable(name, field.name))
    })
}
