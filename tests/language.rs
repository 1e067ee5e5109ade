//! The words that the project has retired stay retired: in code, comments, messages and
//! documentation. The glossary of `src/lib.rs` has the words that replace them.

use std::path::{Path, PathBuf};

/// Each with what to say instead. `_` and `-` count as blanks, and so does the border
/// between `handed` and `Over` in `HandedOver`.
const RETIRED: &[(&str, &str)] = &[
    ("hand over", "deploy"),
    ("hands over", "deploys"),
    ("handed over", "deployed"),
    ("handing over", "deploying"),
    ("handover", "deployment"),
    ("take back", "roll back"),
    ("takes back", "rolls back"),
    ("taken back", "rolled back"),
    ("took back", "rolled back"),
    ("in vain", "failed, without result"),
    ("anew", "again, new"),
    ("nobody", "no process, no user, no CA"),
    ("whoever", "the process, the user, the CA that"),
    ("whom", "the server, the CA that"),
    ("stands in", "is the fallback"),
    ("under way", "in progress"),
    ("foresee", "preflight"),
    ("foreseen", "preflight"),
    ("errand", "request"),
    ("errands", "requests"),
    ("stranger", "peer, other user"),
    ("strangers", "peers, other users"),
    ("told", "shown, printed, refused"),
    ("quarantine", "excluded"),
    ("dead name", "excluded name"),
    ("heals", "is validated again"),
    ("steady", "monotonic"),
    ("unproven", "not validated, not verified"),
    ("ledger", "rate limits, tokens"),
];

/// Keys of stored records, and names of metrics and scenarios: what others store or read
/// keeps its words.
const STORED: [&str; 8] = [
    "\"handover\"",
    "\"handover_at\"",
    "\"quarantine\"",
    "\"taken_back\"",
    "\"told\"",
    "ledger_breaches",
    "ledger_tokens",
    "unproven-names",
];

/// What is read, from the root of the repository.
const READ: [&str; 14] = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "Cargo.toml",
    ".ci",
    "benches",
    "config",
    "deploy",
    "docs",
    "fuzz/fuzz_targets",
    "fuzz/run",
    "src",
    "tests",
];

/// This file, and the words of a licence.
const UNREAD: [&str; 2] = ["tests/language.rs", "deploy/debian/copyright"];

#[test]
fn retired_words_are_not_used() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut open, mut found) = (Vec::from(READ.map(|path| root.join(path))), Vec::new());
    while let Some(path) = open.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(&path).unwrap();
            open.extend(entries.map(|entry| entry.unwrap().path()));
        } else if !UNREAD.iter().any(|unread| path.ends_with(unread)) {
            found.extend(retired_in(&path));
        }
    }
    found.sort();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

fn retired_in(path: &PathBuf) -> Vec<String> {
    let bytes = std::fs::read(path).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    let numbered = text.lines().enumerate();
    let found = numbered.flat_map(|(at, line)| retired(line).map(move |words| (at + 1, words)));
    let shown = |(line, (retired, instead))| {
        format!("{}:{line}: `{retired}`; say: {instead}", path.display())
    };
    found.map(shown).collect()
}

fn retired(line: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let stored = STORED.iter();
    let plain = words(&stored.fold(line.to_owned(), |line, key| line.replace(key, "")));
    // In code `nobody` is the user of Unix.
    let in_prose = line.to_lowercase().contains(" nobody ");
    let used = move |(retired, _): &&(&str, &str)| match *retired {
        "nobody" => in_prose,
        _ => plain.contains(&format!(" {retired} ")),
    };
    RETIRED.iter().filter(used).copied()
}

/// `line` as words in lower case, a blank before and after each.
fn words(line: &str) -> String {
    let (mut words, mut before) = (String::from(" "), ' ');
    for letter in line.chars() {
        let begins_word = letter.is_uppercase() && before.is_lowercase();
        if (begins_word || !letter.is_alphanumeric()) && !words.ends_with(' ') {
            words.push(' ');
        }
        if letter.is_alphanumeric() {
            words.extend(letter.to_lowercase());
        }
        before = letter;
    }
    words + " "
}

#[test]
fn retired_words_are_found_in_every_spelling() {
    for line in [
        "/// Whom to ask.",
        "struct HandedOver;",
        "fn hand_over() {}",
        "a hand-over",
        "if nobody is there",
    ] {
        assert_eq!(retired(line).count(), 1, "{line}");
    }
    for line in ["manewtwo", "the handle, over", "standing", "as_nobody()"] {
        assert_eq!(retired(line).count(), 0, "{line}");
    }
}
