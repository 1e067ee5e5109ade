//! `docs/configuration.md`, rendered from the table of keys. Only tests use it: the
//! committed page must match the rendered one.

use std::fmt::Write;

use crate::config::key::{
    CommandLine, Default, EVERY, IMPORT, ISSUE, Key, KeyTable, RUN, Scope, ValueType,
};
use crate::config::keys::{CertificateLayer, Layer, NAMING};

const INTRODUCTION: &str = "\
# Configuration

<!-- Made from src/config/keys.rs; CERTS_UPDATE_DOCS=1 cargo test --lib config::tests::reference writes it. -->

Every key can be set in three sources. The command line wins, then the environment, then the file; a key
that no source sets has its default. `certs config check` reports every error of all three at once, and
`certs config schema` prints the file's JSON Schema. [config/certs.toml](../config/certs.toml) is an
annotated example with every key of this page. The keys of deploy targets are in [targets.md](targets.md).

- **File**: TOML, named by `--config FILE`, else `$CERTS_CONFIG`, `./certs.toml` or `/etc/certs/certs.toml`.
  `./certs.toml` is read only if it and its directory are your own or root's. Root reads no file that
  [another user can change](hardening.md#what-root-obeys).
  A relative path in it starts at the file.
- **Environment**: the variable of the key. The same name with `_FILE` names a file that holds the value. A
  list has spaces or commas between its items; a boolean is true, yes, on or 1, or their opposites. An empty
  variable counts as unset.
- **Command line**: the option of the key, where a verb has one. An option of a list can be repeated.

The options `--force`, `--dry-run`, `--json`, `--quiet` and `--verbose` have a variable too, such as
`CERTS_JSON=true`, and no key in the file.

## Certificates

Each `[[certificate]]` table of the file is one certificate. `CERTS_DOMAINS` names certificates without a
file: spaces or commas between the names of one, `;` between certificates. `CERTS_NAME` is the name of the
only one. `certs issue NAME...` and `--name` name one on the command line.

";

const TARGETS: &str = "\
A server that needs more than the short form has a table of its own, `[deploy.NAME]`, with its `kind` and
its keys: see [targets.md](targets.md).

";

fn page() -> String {
    let mut page = INTRODUCTION.to_owned();
    rows(&mut page, NAMING.iter());
    let for_one = "In a `[[certificate]]` for that one, or above the first table for all.";
    sections(&mut page, CertificateLayer::KEYS, for_one);
    page.push_str(TARGETS);
    sections(&mut page, Layer::KEYS, "For the whole process.");
    page.truncate(page.trim_end().len());
    page + "\n"
}

fn sections(page: &mut String, keys: &[Key], about: &str) {
    for group in keys.chunk_by(|one, other| one.group == other.group) {
        let title = group.first().map_or("", |key| key.group);
        writeln!(page, "## {title}\n\n{about}\n").unwrap();
        rows(page, group.iter());
    }
}

fn rows<'a>(page: &mut String, keys: impl Iterator<Item = &'a Key>) {
    page.push_str(
        "| key | value | default | environment, option | meaning |\n|---|---|---|---|---|\n",
    );
    for key in keys {
        let cells = [
            format!("`{}`", key.name),
            value(key),
            default(key),
            sources(key),
            meaning(key),
        ];
        let cells = cells.map(|cell| cell.replace('|', "\\|"));
        writeln!(page, "| {} |", cells.join(" | ")).unwrap();
    }
    page.push('\n');
}

fn value(key: &Key) -> String {
    match key.value_type {
        ValueType::Text => "text".to_owned(),
        ValueType::Choice(words) => {
            let words = words().into_iter().map(|word| format!("`{word}`"));
            words.collect::<Vec<_>>().join(", ")
        }
        ValueType::List | ValueType::Endpoints => "list".to_owned(),
        ValueType::Boolean => "boolean".to_owned(),
        ValueType::Number => "number".to_owned(),
    }
}

fn default(key: &Key) -> String {
    match key.default {
        Default::Unset => String::new(),
        Default::Value(value) => format!("`{value}`"),
        Default::Described(text) => text.to_owned(),
    }
}

fn sources(key: &Key) -> String {
    // `names` and `name` have neither a variable nor an option.
    if NAMING.iter().any(|naming| naming.name == key.name) {
        return String::new();
    }
    let mut sources = format!("`{}`", key.variable());
    if let Some(CommandLine { verbs, value_name }) = key.option {
        let option = format!("--{} {value_name}", key.option_name());
        let all = [(ISSUE, "issue"), (RUN, "run"), (IMPORT, "import")];
        let of = all.iter().filter(|(verb, _)| verbs & verb != 0);
        let of: Vec<&str> = match verbs {
            EVERY => vec!["every verb"],
            _ => of.map(|(_, name)| *name).collect(),
        };
        write!(sources, ", `{}` ({})", option.trim_end(), of.join(", ")).unwrap();
    }
    sources
}

fn meaning(key: &Key) -> String {
    let is_shared = CertificateLayer::KEYS
        .iter()
        .any(|one| one.name == key.name);
    match (is_shared, key.scope) {
        (true, Scope::Process) => format!("{} (only for all certificates)", key.doc),
        // docs/targets.md has their forms.
        _ if key.name == "deploy" => format!("{}: see [targets.md](targets.md)", key.doc),
        _ => key.described(),
    }
}

#[test]
#[allow(clippy::disallowed_methods)] // only this test reads it
fn configuration_page_matches_table_of_keys() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
    if std::env::var("CERTS_UPDATE_DOCS").is_ok_and(|value| value == "1") {
        std::fs::write(path, page()).unwrap();
    }
    assert!(
        std::fs::read_to_string(path).unwrap_or_default() == page(),
        "docs/configuration.md does not match src/config/keys.rs; write it with \
         CERTS_UPDATE_DOCS=1 cargo test --lib config::tests::reference"
    );
}
