//! The generated part of docs/targets.md: a section for each kind, out of the comments of
//! its settings. It holds the page against the table, and writes it when asked to.

use std::path::Path;

use super::{DeployStage, DeployTarget, Processes, TargetKind};

const PAGE: &str = "docs/targets.md";
/// The end of the part that is written by hand.
const MARK: &str = "cargo test --lib -- deploy::target::reference -->\n";

fn section(kind: &TargetKind) -> String {
    let (name, form, meaning) = (kind.name, kind.form(), kind.meaning());
    let rows: String = kind.keys().iter().map(row).collect();
    let (example, needs) = (kind.example, needs(&super::tests::example_of(kind)));
    format!(
        "\n## `{name}`\n\nShort form: `{form}`\n\n{meaning}\n\n{needs}\n\n\
         | Key | Value | Default | Meaning |\n|---|---|---|---|\n{rows}\n\
         ```toml\n[deploy.NAME]\n{example}\n```\n"
    )
}

/// What the sandbox leaves it, and what certificates share.
fn needs(target: &DeployTarget) -> String {
    let rights = target.rights();
    let shown = |path: &Path| path.display().to_string();
    let mut said = match rights.processes {
        Processes::Untouched => Vec::new(),
        Processes::Controls => vec!["the helper process, which controls the server".to_owned()],
        Processes::RunsProgram => vec!["the helper process, which runs the program".to_owned()],
    };
    said.extend(
        rights
            .connects_to
            .map(|path| format!("a connection to `{}`", shown(&path))),
    );
    said.extend(
        rights
            .reads
            .map(|path| format!("to read `{}`", shown(&path))),
    );
    let writes = target.writes_in();
    said.extend(writes.map(|path| format!("to write in `{}`", shown(&path))));
    let rights = match said.is_empty() {
        true => "no more than the output".to_owned(),
        false => said.join(", "),
    };
    let shared = match (target.stage(), target.coalesces()) {
        (DeployStage::Copy, _) => "It is written before any server reloads.",
        (DeployStage::Server, true) => "One reload serves all certificates.",
        (DeployStage::Server, false) => "Each certificate is deployed by itself.",
    };
    format!("{shared} Rights in the sandbox, for the example: {rights}.")
}

fn row(key: &super::description::KeyDescription) -> String {
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

#[test]
#[allow(clippy::disallowed_methods)] // a switch of the test, and nothing of the program
fn page_is_what_the_settings_say() {
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
        "{PAGE} is not what src/deploy/targets/ says; write it with: \
         CERTS_UPDATE_DOCS=1 cargo test --lib -- deploy::target::reference"
    );
}
