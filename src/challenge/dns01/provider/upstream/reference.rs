//! `table.rs` and the list of docs/dns.md, made from the source of dns-update: the
//! committed files must match it, so that a new version of the crate is taken whole.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::super::{SELF, fields, names};

/// The type of an argument, and the reader of [`super::Given`] for it.
const READERS: [(&str, &str); 13] = [
    ("impl AsRef<str>", "text"),
    ("impl Into<String>", "text"),
    ("String", "text"),
    ("Option<impl AsRef<str>>", "maybe"),
    ("Option<String>", "maybe"),
    ("bool", "flag"),
    ("Option<bool>", "maybe_flag"),
    ("Option<u32>", "maybe_number"),
    ("Option<Duration>", "timeout"),
    ("OvhEndpoint", "word"),
    ("AzureEnvironment", "azure"),
    ("HashMap<String, String>", "map"),
    ("JokerAuth", "joker"),
];
/// Ours, and those for the crate's own tests.
const LEFT_OUT: [&str; 3] = ["rfc2136_tsig", "pebble", "in_memory"];
const LIST: &str = "<!-- Made from the tables of providers; CERTS_UPDATE_DOCS=1 cargo test --lib -- provider::upstream writes it. -->\n";

/// The crate's version and the directory of its source.
fn source() -> (String, PathBuf) {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--offline", "--locked", "--format-version", "1"]);
    // Crates of other systems need not be there.
    cargo.args(["--filter-platform", "x86_64-unknown-linux-gnu"]);
    cargo.args([
        "--manifest-path",
        concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
    ]);
    let output = cargo.output().unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let found = packages.iter().find(|one| one["name"] == "dns-update");
    let found = found.expect("dns-update is a dependency");
    let manifest = Path::new(found["manifest_path"].as_str().unwrap());
    let version = found["version"].as_str().unwrap().to_owned();
    (version, manifest.parent().unwrap().join("src"))
}

/// `name: type` pairs.
fn pairs(text: &str) -> Vec<(String, String)> {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut pairs: Vec<(String, String)> = Vec::new();
    for part in text.trim_end_matches(',').split(", ") {
        match (part.split_once(": "), pairs.last_mut()) {
            (Some((name, kind)), _) => pairs.push((name.trim().to_owned(), kind.to_owned())),
            // The comma was within the type.
            (None, Some((_, kind))) => *kind += &format!(", {part}"),
            (None, None) => {}
        }
    }
    pairs
}

/// The settings' structs by their names, each with its module and its fields.
fn settings(source: &Path) -> BTreeMap<String, (String, Vec<(String, String)>)> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(source.join("providers")).unwrap() {
        let path = entry.unwrap().path();
        let module = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        for part in text.split("\npub struct ").skip(1) {
            let (name, rest) = part.split_once(['<', ' ', '(', ';']).unwrap();
            let body = rest.split_once("\n}").map_or("", |(body, _)| body);
            let fields = body
                .lines()
                .filter_map(|line| line.strip_prefix("    pub "));
            let fields = fields.flat_map(|field| pairs(field.trim_end_matches(',')));
            all.insert(name.to_owned(), (module.clone(), fields.collect()));
        }
    }
    all
}

fn table() -> String {
    let (version, source) = source();
    let (update, settings) = (
        std::fs::read_to_string(source.join("update.rs")).unwrap(),
        settings(&source),
    );
    let mut lines = BTreeMap::new();
    for part in update.split("pub fn new_").skip(1) {
        let (name, rest) = part.split_once('(').unwrap();
        if LEFT_OUT.contains(&name) {
            continue;
        }
        let mut arguments = pairs(rest.split_once(") ->").unwrap().0);
        let (mut open, mut close) = ("(".to_owned(), ")");
        if let [(_, kind)] = arguments.as_slice()
            && let Some((module, fields)) = settings.get(kind.rsplit("::").next().unwrap())
            && kind.ends_with("Config")
        {
            let config = kind.rsplit("::").next().unwrap();
            open = format!("{{ dns_update::providers::{module}::{config}, ");
            (arguments, close) = (fields.clone(), " }");
        }
        let reader = |kind: &str| READERS.iter().find(|(known, _)| *known == kind);
        let unknown = arguments.iter().find(|(_, kind)| reader(kind).is_none());
        let line = match unknown {
            Some((_, kind)) => format!("    // \"{name}\": no reader for {kind}"),
            None => {
                let read = |(name, kind): &(String, String)| {
                    format!("{name}: {}", reader(kind).map_or("", |(_, reader)| reader))
                };
                let read = arguments.iter().map(read).collect::<Vec<_>>().join(", ");
                format!("    \"{name}\" new_{name} {open}{read}{close};")
            }
        };
        lines.insert(name.to_owned(), line);
    }
    let lines = lines.into_values().collect::<Vec<_>>().join("\n");
    format!(
        "//! Made from the source of dns-update {version}:\n\
         //! `CERTS_UPDATE_DOCS=1 cargo test --lib -- provider::upstream` writes it.\n\n\
         super::upstream! {{\n{lines}\n}}\n"
    )
}

/// The page of the documentation, with the list after its mark.
fn page(path: &str) -> String {
    let page = std::fs::read_to_string(path).unwrap_or_default();
    let mut page = page.split(LIST).next().unwrap_or_default().to_owned();
    page += LIST;
    page += "| provider | credentials | optional |\n|---|---|---|\n";
    for name in names().into_iter().filter(|name| *name != SELF) {
        let fields = fields(name).unwrap();
        let cell = |is_required: bool| {
            let fields = fields
                .iter()
                .filter(|field| field.is_required == is_required);
            let fields = fields.map(|field| format!("`{}`", field.name));
            fields.collect::<Vec<_>>().join(", ")
        };
        writeln!(page, "| `{name}` | {} | {} |", cell(true), cell(false)).unwrap();
    }
    page
}

#[test]
#[allow(clippy::disallowed_methods)] // as for the page of the configuration
fn providers_match_source_of_dns_update() {
    let root = env!("CARGO_MANIFEST_DIR");
    let code = format!("{root}/src/challenge/dns01/provider/upstream/table.rs");
    let docs = format!("{root}/docs/dns.md");
    for (path, made) in [(&code, table()), (&docs, page(&docs))] {
        if std::env::var("CERTS_UPDATE_DOCS").is_ok_and(|value| value == "1") {
            std::fs::write(path, &made).unwrap();
        }
        assert!(
            std::fs::read_to_string(path).unwrap_or_default() == made,
            "{path} does not match dns-update; write it with CERTS_UPDATE_DOCS=1 cargo test --lib -- provider::upstream"
        );
    }
}
