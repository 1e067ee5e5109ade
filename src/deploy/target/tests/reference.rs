//! The generated part of docs/targets.md: a section for each kind, from the comments of
//! its settings. The test compares the page with the table, or writes it.

use std::path::Path;

use serde_json::{Value, json};

use super::super::{DeployStage, DeployTarget, Processes, TargetKind};
use super::{example_of, long_form, meaning};

const PAGE: &str = "docs/targets.md";
/// The end of the part written by hand.
const MARK: &str = "cargo test --lib -- deploy::target::tests::reference -->\n";

fn section(kind: &TargetKind) -> String {
    let (name, form, meaning) = (kind.name, kind.form(), meaning(kind));
    let rows: String = keys_of(kind).iter().map(row).collect();
    let (example, needs) = (long_form(kind), needs(&example_of(kind)));
    format!(
        "\n## `{name}`\n\nShort form: `{form}`\n\n{meaning}\n\n{needs}\n\n\
         | Key | Value | Default | Meaning |\n|---|---|---|---|\n{rows}\n\
         ```toml\n[deploy.NAME]\n{example}```\n"
    )
}

/// The rights that it has in the sandbox, and whether certificates share a reload.
fn needs(target: &DeployTarget) -> String {
    let rights = target.rights();
    let shown = |path: &Path| path.display().to_string();
    let mut needed = match rights.processes {
        Processes::Untouched => Vec::new(),
        Processes::Controls => vec!["the helper process, which controls the server".to_owned()],
        Processes::RunsProgram => vec!["the helper process, which runs the program".to_owned()],
    };
    needed.extend(
        rights
            .connects_to
            .map(|path| format!("a connection to `{}`", shown(&path))),
    );
    needed.extend(
        rights
            .reads
            .map(|path| format!("to read `{}`", shown(&path))),
    );
    let writes = target.writes_in();
    needed.extend(writes.map(|path| format!("to write in `{}`", shown(&path))));
    let rights = match needed.is_empty() {
        true => "no more than the output".to_owned(),
        false => needed.join(", "),
    };
    let shared = match target.stage() {
        DeployStage::Copy => "It is written before any server reloads.",
        DeployStage::AllCertificates => "One reload serves all certificates.",
        DeployStage::EachCertificate => "Each certificate is deployed by itself.",
    };
    format!("{shared} Rights in the sandbox, for the example: {rights}.")
}

fn row(key: &KeyDescription) -> String {
    let default = match (&key.default, key.is_required) {
        (Some(default), _) => default.as_str(),
        (None, true) => "required",
        (None, false) => "none",
    };
    let meaning = key.meaning.replace('\n', " ");
    format!(
        "| `{}` | {} | {default} | {meaning} |\n",
        key.name, key.value
    )
}

/// A key of a kind, as its settings document it.
pub(super) struct KeyDescription {
    pub(super) name: String,
    /// The type of its value, in a word.
    pub(super) value: &'static str,
    is_required: bool,
    default: Option<String>,
    pub(super) meaning: String,
}

/// The keys of a kind, those of its short form first.
pub(super) fn keys_of(kind: &TargetKind) -> Vec<KeyDescription> {
    let described = kind.described();
    let keys = kind.keys().into_iter().map(|(name, is_required)| {
        let key = &described["properties"][&name];
        KeyDescription {
            value: value_of(key),
            is_required,
            default: default_of(key),
            meaning: key["description"].as_str().unwrap_or_default().to_owned(),
            name,
        }
    });
    keys.collect()
}

/// The default of a key as a user would write it, else a description.
fn default_of(key: &Value) -> Option<String> {
    let defaults = ["default", "x-default"].map(|word| &key[word]);
    let default = defaults.into_iter().find(|default| !default.is_null())?;
    Some(default.as_str().map_or(default.to_string(), str::to_owned))
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

#[test]
#[allow(clippy::disallowed_methods)] // only this test reads it
fn targets_page_matches_the_settings() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let found = std::fs::read_to_string(&page).unwrap();
    let (by_hand, _) = found.split_once(MARK).expect("the mark is gone");
    let sections: String = DeployTarget::kinds().map(section).collect();
    let wanted = format!("{by_hand}{MARK}{sections}");
    if std::env::var_os("CERTS_UPDATE_DOCS").is_some() {
        std::fs::write(&page, wanted).unwrap();
        return;
    }
    assert!(
        found == wanted,
        "{PAGE} does not match src/deploy/targets/; write it with: \
         CERTS_UPDATE_DOCS=1 cargo test --lib -- deploy::target::tests::reference"
    );
}
