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
    ("who", "the process, the user, the CA that"),
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

/// `is no X` is retired, except with one of these words before or after it.
const IS_NO: (&str, &str) = ("is no", "invalid, unknown, is not a valid, does not");
const BEFORE_IS_NO: &str = "there";
const AFTER_IS_NO: [&str; 2] = ["longer", "more"];

/// Keys of stored records, names of metrics and scenarios, and an option of systemctl: what
/// others store or read keeps its words.
const STORED: [&str; 9] = [
    "\"handover\"",
    "\"handover_at\"",
    "\"quarantine\"",
    "\"taken_back\"",
    "\"told\"",
    "--kill-who",
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
    let found = found.chain(is_no(&text).into_iter().map(|line| (line, IS_NO)));
    let shown = |(line, (retired, instead))| {
        format!("{}:{line}: `{retired}`; say: {instead}", path.display())
    };
    found.map(shown).collect()
}

fn retired(line: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let stored = STORED.iter();
    let plain = words(&stored.fold(line.to_owned(), |line, key| line.replace(key, "")));
    // In code `nobody` is the user of Unix.
    let is_prose = |word: &str| matches!(bare(word), "nobody" | "Nobody");
    let in_prose = line.split_whitespace().any(is_prose);
    let used = move |(retired, _): &&(&str, &str)| match *retired {
        "nobody" => in_prose,
        _ => plain.contains(&format!(" {retired} ")),
    };
    RETIRED.iter().filter(used).copied()
}

/// `word` without the punctuation of prose. A quote at the end stays, as in `"nobody"`.
fn bare(word: &str) -> &str {
    let word = word.trim_start_matches(['(', '"']);
    word.trim_end_matches([',', '.', ';', ':', '!', '?', ')'])
}

/// The lines with `is no X` or `are no X`, which may continue on the next line.
fn is_no(text: &str) -> Vec<usize> {
    let numbered = text.lines().zip(1..);
    let all = numbered.flat_map(|(line, at)| line.split_whitespace().map(move |word| (at, word)));
    let has_letter = |word: &str| word.contains(|letter: char| letter.is_alphanumeric());
    let all: Vec<_> = all.filter(|(_, word)| has_letter(word)).collect();
    let retired = (1..all.len().saturating_sub(2)).filter_map(|at| {
        let (line, verb) = all[at];
        let [before, no, after] = [at - 1, at + 1, at + 2].map(|at| all[at].1);
        let before = before.rsplit(['(', '"']).next().unwrap_or_default();
        let is_retired = matches!(verb, "is" | "are")
            && no == "no"
            && !before.eq_ignore_ascii_case(BEFORE_IS_NO)
            && !AFTER_IS_NO.contains(&bare(after));
        is_retired.then_some(line)
    });
    retired.collect()
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
        "a file that belongs to nobody.",
        "a user who waits",
        "/// Who waits.",
    ] {
        assert_eq!(retired(line).count(), 1, "{line}");
    }
    for line in [
        "manewtwo",
        "the handle, over",
        "standing",
        "as_nobody()",
        "(\"nobody\", NOBODY)",
        "a user whose key",
        "systemctl kill --kill-who=main",
    ] {
        assert_eq!(retired(line).count(), 0, "{line}");
    }
}

#[test]
fn is_no_is_found_across_lines_and_allowed_where_english_needs_it() {
    for text in [
        "// This is no certificate.",
        "/// Roots that are\n/// no certificate.",
        "- Then it is\n  no loss",
        "(\"it is no file\")",
    ] {
        assert_eq!(is_no(text).len(), 1, "{text}");
    }
    for text in [
        "it is no longer read",
        "// a pair that is\n// no more, though",
        "and there is no file",
        "where there\n// are no names",
        "Err(\"there is no file\")",
        "There is no file",
        "the answer is no. Then",
        "say what it is: no file",
        "let is_none = 1",
    ] {
        assert_eq!(is_no(text).len(), 0, "{text}");
    }
}
