//! Reads the file as TOML, and keeps the line of every value for messages.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::dns::{self, DnsTable};
use super::key::{Key, Scope};
use super::keys::{CertificateLayer, EXCLUSIVE, Layer, NAMING, SECTIONS, keys};
use super::layer::{Raw, Value, identifiers, lineage, list, of_home};
use super::problem::{Given, Problems, SettingOrigin, nearest};
use crate::deploy::target::{DeployTarget, TargetKeys};
use crate::identifier::Identifier;
use crate::lineage::Lineage;

/// The key in `[verify]` that says what `verify` does.
pub(super) const ENDPOINTS: &str = "endpoints";

/// The values of the file.
#[derive(Clone, Debug, Default)]
pub(super) struct Document {
    pub(super) layer: Layer,
    pub(super) entries: Vec<Entry>,
    /// `[deploy.NAME]`.
    pub(super) targets: BTreeMap<String, Given<DeployTarget>>,
    /// `[dns.NAME]`.
    pub(super) dns: BTreeMap<String, Given<DnsTable>>,
}

/// One configured certificate, with the keys that are set for it alone.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) origin: SettingOrigin,
    pub(super) names: Vec<Identifier>,
    pub(super) lineage: Lineage,
    /// Whether the lineage was given, and does not follow from the names.
    pub(super) is_named: bool,
    pub(super) layer: CertificateLayer,
    pub(super) strength: Strength,
    /// Whether it is the certificate for the second of two keys.
    pub(super) is_second: bool,
}

/// How strong the own keys of a certificate are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Strength {
    /// A container's label: stronger than the defaults for all certificates.
    Label,
    /// A table of the file: stronger than the other keys of the file.
    Table,
    /// What is stored when a command names the certificate again: what no source sets.
    Stored,
}

/// Reads `source`; messages name it `file`.
pub(super) fn read(file: &str, source: &str, problems: &mut Problems) -> Document {
    let mut reader = Reader {
        file,
        source,
        problems: Problems::default(),
    };
    let (document, mistakes) = DeTable::parse_recoverable(source);
    // One mistake makes the parser report several for its line; only the first is shown,
    // and no further problem of that line.
    let mut reported = BTreeSet::new();
    for mistake in mistakes {
        let origin = reader.origin(mistake.span().unwrap_or_default());
        if reported.insert(origin.to_string()) {
            let hint = match mistake.message().starts_with("cannot extend") {
                // As `dns` beside [dns.NAME], or `deploy` beside [deploy.NAME].
                true => "a key and a table cannot have one name: put the key below [[certificate]]",
                false => "this is TOML: key = value, texts in quotes, each key once",
            };
            problems.add(&origin, mistake.message(), hint);
        }
    }
    let document = reader.document(document.get_ref());
    for problem in reader.problems.sorted() {
        if !reported.contains(&problem.origin.to_string()) {
            problems.add(&problem.origin, problem.message, problem.hint);
        }
    }
    document
}

struct Reader<'a> {
    file: &'a str,
    source: &'a str,
    problems: Problems,
}

type Item<'i> = Spanned<DeValue<'i>>;

impl Reader<'_> {
    fn origin(&self, at: Range<usize>) -> SettingOrigin {
        let before = self.source.as_bytes().iter().take(at.start);
        SettingOrigin::Line {
            file: self.file.to_owned(),
            line: before.filter(|byte| **byte == b'\n').count() + 1,
        }
    }

    fn add(&mut self, origin: &SettingOrigin, message: impl Into<String>, hint: impl Into<String>) {
        self.problems.add(origin, message, hint);
    }

    fn document(&mut self, table: &DeTable<'_>) -> Document {
        let mut all = Document::default();
        for (key, item) in table {
            let name = key.get_ref().as_ref();
            match (name, item.get_ref()) {
                ("certificate", _) => all.entries = self.certificates(item),
                ("deploy", DeValue::Table(targets)) => all.targets = self.targets(targets),
                ("dns", DeValue::Table(tables)) => all.dns = self.dns(tables),
                (section, DeValue::Table(keys)) if is_section(section) => {
                    self.section(section, keys, &mut all.layer);
                }
                (section, _) if is_section(section) && !is_key(section) => {
                    let origin = self.origin(key.span());
                    let hint = format!("write [{section}] above its keys");
                    self.add(&origin, format!("`{section}` is a table"), hint);
                }
                _ => {
                    let value = self.value(key.span(), item);
                    if name.contains('.') || !all.layer.put(name, &value, &mut self.problems) {
                        self.unknown(key.span(), name, &top_level());
                    }
                }
            }
        }
        self.contradiction(table);
        all
    }

    fn section(&mut self, section: &str, table: &DeTable<'_>, layer: &mut Layer) {
        for (key, item) in table {
            let value = self.value(key.span(), item);
            let full = match (key.get_ref().as_ref(), is_key(section)) {
                // TOML has no room for a key beside a table of the same name.
                (ENDPOINTS, true) => section.to_owned(),
                (name, _) => format!("{section}.{name}"),
            };
            if !layer.put(&full, &value, &mut self.problems) {
                let known = keys().filter_map(Key::section);
                let known = known.filter(|(table, _)| *table == section);
                let known = known.map(|(_, name)| name);
                let known: Vec<&str> = known.chain(is_key(section).then_some(ENDPOINTS)).collect();
                self.unknown(key.span(), key.get_ref(), &known);
            }
        }
    }

    fn targets(&mut self, table: &DeTable<'_>) -> BTreeMap<String, Given<DeployTarget>> {
        let mut targets = BTreeMap::new();
        for (name, item) in table {
            let origin = self.origin(name.span());
            let DeValue::Table(keys) = item.get_ref() else {
                let hint = "write deploy = [\"nginx\"], or [deploy.NAME] with kind = \"nginx\"";
                let message = format!("`deploy.{}` is not a table", name.get_ref());
                self.add(&origin, message, hint);
                continue;
            };
            if let Some(value) = self.target(&origin, keys) {
                targets.insert(name.get_ref().to_string(), Given { value, origin });
            }
        }
        targets
    }

    fn dns(&mut self, table: &DeTable<'_>) -> BTreeMap<String, Given<DnsTable>> {
        let mut tables = BTreeMap::new();
        for (name, item) in table {
            let origin = self.origin(name.span());
            let name = name.get_ref().to_string();
            let value = self.value(item.span(), item);
            let Raw::Table(keys) = &value.value else {
                let hint = "write [dns.NAME] above the credentials, with provider = \"…\"";
                self.add(&origin, format!("`dns.{name}` is not a table"), hint);
                continue;
            };
            if let Some(value) = dns::table(&name, &origin, keys, &mut self.problems) {
                tables.insert(name, Given { value, origin });
            }
        }
        tables
    }

    fn target(&mut self, origin: &SettingOrigin, keys: &DeTable<'_>) -> Option<DeployTarget> {
        let (mut given, mut origins) = (TargetKeys::new(), BTreeMap::new());
        for (key, item) in keys {
            let value = self.value(key.span(), item);
            let name = key.get_ref().to_string();
            origins.insert(name.clone(), value.origin.clone());
            let words = match value.value {
                Raw::Boolean(value) => vec![value.to_string()],
                _ => {
                    let words: Vec<String> =
                        list(&value, super::DEPLOY_HINT, &mut self.problems)?.value;
                    words.iter().map(|word| of_home(word)).collect()
                }
            };
            given.insert(name, words);
        }
        let kind = given.remove("kind").and_then(|mut words| words.pop());
        let Some(kind) = kind else {
            let message = "a deploy target without `kind`";
            self.add(origin, message, "add kind = \"nginx\"");
            return None;
        };
        let invalid = match DeployTarget::long(&kind, given) {
            Ok(target) => return Some(target),
            Err(invalid) => invalid,
        };
        let key = invalid.key.as_ref();
        let origin = key.and_then(|key| origins.get(key)).unwrap_or(origin);
        let hint = match key.map(String::as_str) {
            Some("kind") => {
                let kinds: Vec<_> = DeployTarget::kinds().map(|kind| kind.name).collect();
                format!("the kinds: {}", kinds.join(", "))
            }
            _ => {
                let keys = DeployTarget::keys_of(&kind).join(", ");
                format!("the keys of {kind}: {keys}")
            }
        };
        self.add(origin, invalid.message, hint);
        None
    }

    fn certificates(&mut self, item: &Item<'_>) -> Vec<Entry> {
        let DeValue::Array(array) = item.get_ref() else {
            let origin = self.origin(item.span());
            let hint = "write [[certificate]], with two brackets";
            self.add(&origin, "`certificate` is not a list of tables", hint);
            return Vec::new();
        };
        let mut seen = BTreeSet::new();
        let mut entries = Vec::new();
        for item in array.iter() {
            let Some(entry) = self.certificate(item) else {
                continue;
            };
            if !seen.insert(entry.lineage.clone()) {
                let message = format!("two certificates are named `{}`", entry.lineage);
                let hint = "remove one, or give one of them a `name`";
                self.add(&entry.origin, message, hint);
            }
            entries.push(entry);
        }
        entries
    }

    fn certificate(&mut self, item: &Item<'_>) -> Option<Entry> {
        let origin = self.origin(item.span());
        let DeValue::Table(table) = item.get_ref() else {
            let hint = "write [[certificate]] above its keys";
            self.add(&origin, "a certificate is a table", hint);
            return None;
        };
        let mut layer = CertificateLayer::default();
        let (mut names, mut named) = (None, None);
        for (key, item) in table {
            let value = self.value(key.span(), item);
            match key.get_ref().as_ref() {
                "names" => names = Some(identifiers(&value, &mut self.problems)),
                "name" => named = lineage(&value, &mut self.problems),
                shared if layer.put(shared, &value, &mut self.problems) => {}
                unknown => self.unknown(key.span(), unknown, &of_a_certificate()),
            }
        }
        if names.is_none() || is_empty_list(table) {
            let hint = "add names = [\"example.com\"]";
            self.add(&origin, "the certificate has no names", hint);
        }
        let names = names?;
        let is_named = named.is_some();
        let lineage = match named {
            Some(named) => named.value,
            None => Lineage::of(names.first()?),
        };
        Some(Entry {
            origin,
            names,
            lineage,
            is_named,
            layer,
            strength: Strength::Table,
            is_second: false,
        })
    }

    fn contradiction(&mut self, table: &DeTable<'_>) {
        let written = |name: &&'static str| {
            let mut all = table.keys();
            Some((*name, all.find(|key| key.get_ref() == name)?.span()))
        };
        let mut found = EXCLUSIVE.iter().filter_map(written);
        if let (Some((first, one)), Some((second, other))) = (found.next(), found.next()) {
            let origin = self.origin(if one.start < other.start { other } else { one });
            let message = format!("{first} and {second} exclude each other");
            let hint = "keep the one that answers on port 80";
            self.add(&origin, message, hint);
        }
    }

    fn unknown(&mut self, at: Range<usize>, key: &str, known: &[&str]) {
        let origin = self.origin(at);
        let everywhere = top_level();
        let hint = match nearest(key, known.iter().copied()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None if everywhere.contains(&key) => {
                "it belongs to the whole file: put it above the first [table]".to_owned()
            }
            None if NAMING.iter().any(|naming| naming.name == key) => {
                "it belongs to one certificate: put it below [[certificate]]".to_owned()
            }
            None => format!("known here: {}", known.join(", ")),
        };
        let message = format!("unknown key `{}`", key.escape_debug());
        self.add(&origin, message, hint);
    }

    /// A value that the parser assumed has no span: its line is that of its key.
    fn value(&self, key: Range<usize>, item: &Item<'_>) -> Value {
        let value = match item.get_ref() {
            DeValue::String(text) => Raw::Text(text.to_string()),
            DeValue::Boolean(value) => Raw::Boolean(*value),
            DeValue::Integer(number) if number.radix() == 10 => {
                Raw::Number(number.as_str().to_owned())
            }
            DeValue::Array(items) => {
                let items = items.iter();
                Raw::List(items.map(|item| self.value(key.clone(), item)).collect())
            }
            DeValue::Table(keys) => {
                let keys = keys.iter();
                let keys = keys.map(|(name, item)| {
                    let value = self.value(name.span(), item);
                    (name.get_ref().to_string(), value)
                });
                Raw::Table(keys.collect())
            }
            _ => Raw::Other,
        };
        let at = item.span();
        let origin = self.origin(if at.is_empty() { key } else { at });
        Given { value, origin }
    }
}

fn is_empty_list(table: &DeTable<'_>) -> bool {
    let names = table
        .get("names")
        .and_then(|item| item.get_ref().as_array());
    names.is_some_and(|names| names.is_empty())
}

fn is_section(name: &str) -> bool {
    SECTIONS.iter().any(|(section, _)| *section == name)
}

/// Whether a key has the name of a table too.
fn is_key(section: &str) -> bool {
    keys().any(|key| key.name == section)
}

fn top_level() -> Vec<&'static str> {
    let plain = keys().filter(|key| key.section().is_none());
    let plain = plain.map(|key| key.name);
    let sections = SECTIONS.iter().map(|(name, _)| *name);
    plain.chain(sections).chain(["certificate"]).collect()
}

fn of_a_certificate() -> Vec<&'static str> {
    let own = keys().filter(|key| key.scope == Scope::Certificate);
    NAMING.iter().chain(own).map(|key| key.name).collect()
}
