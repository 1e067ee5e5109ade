//! Which modules may import which, as data. Reads the sources without comments, strings and test code, and
//! checks every path into another module against the table. A module at the root of the crate, with all below
//! it, is a `room` in the names of this file. Also: which modules may name certain crates, and the form of files.

mod circles;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// These modules import only each other, and every module may import them.
const VOCABULARY: &[&str] = &[
    "identifier",
    "lineage",
    "fingerprint",
    "certificate",
    "record",
    "ca_state",
    "time",
    "random",
    "failure",
    "files",
    "program",
    "net",
    "text",
];

/// The modules that a module may import besides itself and the vocabulary.
const ROOMS: &[(&str, &[&str])] = &[
    ("renew", &[]),
    ("store", &[]),
    ("deploy", &[]),
    ("install", &[]),
    // Reads a foreign directory only; other modules act on the result.
    ("import", &[]),
    ("observe", &[]),
    ("ca", &[]),
    ("challenge", &["store"]),
    ("tls", &[]),
    ("acme", &["challenge"]),
    ("manage", &["renew", "store", "acme", "deploy", "observe"]),
    (
        "supervise",
        &["manage", "renew", "store", "acme", "deploy", "observe"],
    ),
    ("discovery", &["deploy", "observe"]),
    // Reads each module's own settings; no module imports `config`.
    (
        "config",
        &["challenge", "deploy", "discovery", "manage", "store"],
    ),
    ("sandbox", &["config", "deploy", "store"]),
    ("control", &["config", "manage"]),
    (
        "simulate",
        &[
            "manage",
            "supervise",
            "store",
            "acme",
            "deploy",
            "ca",
            "observe",
        ],
    ),
    (
        "demo",
        &[
            "manage",
            "supervise",
            "store",
            "challenge",
            "acme",
            "deploy",
            "tls",
            "ca",
            "observe",
        ],
    ),
    (
        "cli",
        &[
            "import",
            "install",
            "renew",
            "store",
            "challenge",
            "acme",
            "deploy",
            "ca",
            "observe",
            "manage",
            "supervise",
            "discovery",
            "sandbox",
            "control",
            "demo",
            "simulate",
            "config",
        ],
    ),
    // Not in any program: everything that fuzz/ may call.
    (
        "fuzzing",
        &[
            "import",
            "install",
            "renew",
            "challenge",
            "acme",
            "deploy",
            "tls",
            "discovery",
            "config",
        ],
    ),
    ("main", &["cli"]),
    ("lib", &[]),
];

/// Crates whose types stay in certain modules.
struct CratePlacement {
    crates: &'static [&'static str],
    /// Each a module with all below it, and the reason.
    modules: &'static [(&'static str, &'static str)],
}

const PLACEMENTS: &[CratePlacement] = &[
    CratePlacement {
        crates: &["instant_acme"],
        modules: &[("acme", "the one room that speaks ACME to a CA")],
    },
    CratePlacement {
        crates: &["landlock", "seccompiler", "libc"],
        modules: &[("sandbox", "one module defines the sandbox")],
    },
    CratePlacement {
        crates: &["hickory_proto"],
        modules: &[
            ("net/dns", "the one client of DNS"),
            (
                "challenge",
                "changes records, and answers for delegated names",
            ),
            ("ca", "validates DNS-01"),
        ],
    },
    CratePlacement {
        crates: &["dns_update"],
        modules: &[(
            "challenge/dns01/provider",
            "its providers, and its HTTP client",
        )],
    },
    CratePlacement {
        crates: &["rustls", "tokio_rustls", "hyper_rustls"],
        modules: &[
            ("tls", "selects the served pair"),
            ("net", "the one client and the one listener"),
            ("certificate", "checks that a key can serve TLS"),
            ("deploy/verify", "verifies by a handshake"),
            ("acme", "https to the CA, with the roots that we trust"),
            ("challenge", "answers TLS-ALPN-01 in a handshake"),
            ("ca", "its own port has a certificate of its own"),
        ],
    },
];

/// Names of real time, threads and randomness, which a replayed seed must not depend on.
const NOT_REPLAYABLE: &[&str] = &[
    "spawn_blocking",
    "block_in_place",
    "tokio::time",
    "std::thread",
    "SystemTime",
    "SystemRandom",
    "SystemClock",
    "Instant",
    "new_multi_thread",
    "HashMap",
    "HashSet",
];

const LONGEST: usize = 600;

#[test]
fn rooms_import_only_what_the_table_permits() {
    let house = read_house();
    let faults: Vec<_> = house.iter().flat_map(imports_at_fault).collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn crate_types_stay_in_their_rooms() {
    let house = read_house();
    let faults: Vec<_> = house.iter().flat_map(crates_at_fault).collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn simulated_code_reads_no_real_time_or_randomness() {
    let house = read_house();
    let printed = house.iter().filter(|source| source.room() == "simulate");
    let faults: Vec<_> = printed.flat_map(pace_at_fault).collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
    let wrong = "fn f() { tokio::task::spawn_blocking(g); }";
    assert_eq!(pace_at_fault(&Source::new("simulate/f.rs", wrong)).len(), 1);
}

#[test]
fn files_state_their_purpose_and_stay_short() {
    let house = read_house();
    let faults: Vec<_> = house.iter().flat_map(form_at_fault).collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// One file of `src/`.
struct Source {
    /// Relative to `src/`.
    path: PathBuf,
    text: String,
    /// The text, line by line, with comments, strings and tests blanked.
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        Self {
            path: path.into(),
            text: text.to_owned(),
            code: without_tests(&without_prose(text)),
        }
    }

    /// The path from the root of the crate: `manage/issue` for `crate::manage::issue`.
    fn module(&self) -> String {
        self.path.with_extension("").display().to_string()
    }

    fn room(&self) -> String {
        let module = self.module();
        module
            .split_once('/')
            .map_or(module.clone(), |(room, _)| room.to_owned())
    }
}

/// The sources, read once for all tests of this process.
fn read_house() -> &'static [Source] {
    static HOUSE: LazyLock<Vec<Source>> = LazyLock::new(read_sources);
    &HOUSE
}

fn read_sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut folders, mut house) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let below = path.strip_prefix(&root).unwrap();
                let text = std::fs::read_to_string(&path).unwrap();
                house.push(Source::new(below.to_str().unwrap(), &text));
            }
        }
    }
    house.sort_by(|one, other| one.path.cmp(&other.path));
    let for_tests: BTreeSet<_> = house.iter().flat_map(modules_for_tests).collect();
    for source in &mut house {
        let module = source.module();
        let inside = |test: &String| module == *test || module.starts_with(&format!("{test}/"));
        if for_tests.iter().any(inside) {
            source.code.clear();
        }
    }
    assert!(house.len() > 20, "only {} files were found", house.len());
    house
}

/// The forbidden imports of one file, each with its line and what is allowed.
fn imports_at_fault(source: &Source) -> Vec<String> {
    let room = source.room();
    let Some(allowed) = allowed(&room) else {
        let path = source.path.display();
        return vec![format!(
            "src/{path}: the table in tests/house.rs has no room `{room}`; say there what it may import"
        )];
    };
    let mut faults = Vec::new();
    for (line, named) in rooms_named(source) {
        if named == room || allowed.contains(&named.as_str()) {
            continue;
        }
        let mut fault = String::new();
        let path = source.path.display();
        let allowed = allowed.join(", ");
        write!(
            fault,
            "src/{path}:{line}: `{room}` may not import `{named}`"
        )
        .unwrap();
        write!(fault, "; allowed: {allowed}").unwrap();
        faults.push(fault);
    }
    faults
}

fn allowed(room: &str) -> Option<Vec<&'static str>> {
    if VOCABULARY.contains(&room) {
        return Some(VOCABULARY.to_vec());
    }
    let (_, more) = ROOMS.iter().find(|(name, _)| *name == room)?;
    Some([VOCABULARY, more].concat())
}

/// The modules at the root that the code names, each with its line.
fn rooms_named(source: &Source) -> Vec<(usize, String)> {
    let depth = source.path.components().count();
    // main.rs names the crate `certs`, and `super` leads to modules at the root too.
    let upward = vec!["super"; depth].join("::");
    let roots = ["crate", "certs", &upward];
    let mut named = Vec::new();
    for (at, root) in roots.iter().flat_map(|root| words(&source.code, root)) {
        if source.code[..at].ends_with("super::") && root == upward {
            continue;
        }
        let Some(rest) = after_colons(&source.code[at + root.len()..]) else {
            continue;
        };
        let line = line_of(&source.code, at);
        named.extend(first_segments(rest).into_iter().map(|room| (line, room)));
    }
    named.sort();
    named
}

/// `a` of `a::b`, `a` and `c` of `{a::b, c::{d, e}}`, `*` of `*`.
fn first_segments(path: &str) -> Vec<String> {
    let word = |text: &str| {
        let text = text.trim_start();
        let end = text.find(|letter: char| !is_of_word(letter));
        match text[..end.unwrap_or(text.len())].to_owned() {
            word if word.is_empty() => text.chars().take(1).collect(),
            word => word,
        }
    };
    let Some(group) = path.strip_prefix('{') else {
        return vec![word(path)];
    };
    let (mut depth, mut start, mut segments) = (0_usize, 0, Vec::new());
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                segments.push(word(&group[start..at]));
                start = at + 1;
                if letter == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    // After a trailing comma only the closing brace follows.
    segments.retain(|segment| !segment.is_empty() && segment != "self");
    segments
}

fn crates_at_fault(source: &Source) -> Vec<String> {
    let module = source.module();
    let mut faults = Vec::new();
    for CratePlacement { crates, modules } in PLACEMENTS {
        let is_below = |other: &str| module == other || module.starts_with(&format!("{other}/"));
        if modules.iter().any(|(other, _)| is_below(other)) {
            continue;
        }
        for (at, name) in crates.iter().flat_map(|name| words(&source.code, name)) {
            let (path, line) = (source.path.display(), line_of(&source.code, at));
            let modules = modules
                .iter()
                .map(|(module, why)| format!("{module} ({why})"))
                .collect::<Vec<_>>()
                .join(", ");
            faults.push(format!(
                "src/{path}:{line}: `{name}` may be named only in {modules}"
            ));
        }
    }
    faults
}

fn pace_at_fault(source: &Source) -> Vec<String> {
    let found = NOT_REPLAYABLE.iter().flat_map(|name| {
        let found = words(&source.code, name);
        found.map(move |(at, _)| (line_of(&source.code, at), name))
    });
    let path = source.path.display();
    let fault = |(line, name)| {
        format!("src/{path}:{line}: `{name}` is not allowed in code that a seed must replay")
    };
    found.map(fault).collect()
}

fn form_at_fault(source: &Source) -> Vec<String> {
    let (path, lines) = (source.path.display(), source.text.lines().count());
    let mut faults = Vec::new();
    if !source.text.starts_with("//! ") {
        faults.push(format!(
            "src/{path}:1: opens without `//!`: say its purpose and what it never does"
        ));
    }
    if lines > LONGEST {
        faults.push(format!(
            "src/{path}:{lines}: {lines} lines, and {LONGEST} are allowed: divide it by topic"
        ));
    }
    faults
}

fn line_of(code: &str, at: usize) -> usize {
    1 + code[..at].matches('\n').count()
}

fn is_of_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// The offsets of `word` as a whole word.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = (usize, &'a str)> {
    code.match_indices(word).filter(move |(at, _)| {
        let (before, after) = (&code[..*at], &code[at + word.len()..]);
        !before.ends_with(is_of_word) && !after.starts_with(is_of_word)
    })
}

fn after_colons(code: &str) -> Option<&str> {
    Some(code.trim_start().strip_prefix("::")?.trim_start())
}

/// `code` with comments, strings and characters blanked, every line in place.
fn without_prose(text: &str) -> String {
    let (mut code, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(letter) = rest.chars().next() {
        let prose = prose_length(rest, code.chars().next_back());
        let kept = if prose == 0 { letter.len_utf8() } else { 0 };
        code.push_str(&rest[..kept]);
        blank(&mut code, &rest[kept..kept + prose]);
        rest = &rest[kept + prose..];
    }
    code
}

fn blank(code: &mut String, prose: &str) {
    code.extend(
        prose
            .chars()
            .map(|letter| if letter == '\n' { '\n' } else { ' ' }),
    );
}

/// The length in bytes of the comment or literal that `text` begins with.
fn prose_length(text: &str, before: Option<char>) -> usize {
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return block_comment_length(text);
    }
    if text.starts_with('"') {
        return quoted_length(text, '"');
    }
    let raw = text.strip_prefix('r').unwrap_or_default();
    let quoted = raw.trim_start_matches('#').starts_with('"');
    // `br"…"` is a raw string, `var"` is not.
    if quoted && !before.is_some_and(|letter| is_of_word(letter) && letter != 'b') {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        let end = format!("\"{}", "#".repeat(hashes));
        let body = 1 + hashes + 1;
        return text[body..]
            .find(&end)
            .map_or(text.len(), |at| body + at + end.len());
    }
    // A lifetime is a quote without a second one after its first letter.
    let is_character = text.strip_prefix('\'').is_some_and(|body| {
        let mut letters = body.chars();
        letters.next() == Some('\\') || letters.next() == Some('\'')
    });
    if is_character {
        quoted_length(text, '\'')
    } else {
        0
    }
}

fn block_comment_length(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    loop {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest.starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
        } else {
            match rest.chars().next() {
                Some(letter) => at += letter.len_utf8(),
                None => return at,
            }
        }
        if depth == 0 {
            return at;
        }
    }
}

fn quoted_length(text: &str, quote: char) -> usize {
    let mut letters = text.char_indices().skip(1);
    while let Some((at, letter)) = letters.next() {
        if letter == '\\' {
            letters.next();
        } else if letter == quote {
            return at + 1;
        }
    }
    text.len()
}

const FOR_TESTS: &str = "#[cfg(test)]";

/// `code` with every item under `#[cfg(test)]` blanked.
fn without_tests(code: &str) -> String {
    let (mut kept, mut rest) = (String::with_capacity(code.len()), code);
    while let Some(at) = rest.find(FOR_TESTS) {
        kept.push_str(&rest[..at]);
        let end = at + FOR_TESTS.len() + item_length(&rest[at + FOR_TESTS.len()..]);
        blank(&mut kept, &rest[at..end]);
        rest = &rest[end..];
    }
    kept + rest
}

/// The length up to the item's closing brace, or up to the semicolon of an item without braces.
fn item_length(code: &str) -> usize {
    let (mut braces, mut brackets) = (0_usize, 0_usize);
    for (at, letter) in code.char_indices() {
        match letter {
            '{' => braces += 1,
            '}' if braces <= 1 => return at + 1,
            '}' => braces -= 1,
            '[' | '(' => brackets += 1,
            ']' | ')' => brackets = brackets.saturating_sub(1),
            ';' if braces == 0 && brackets == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

/// The modules declared by `#[cfg(test)] mod tests;`, such as `manage/issue/tests`.
fn modules_for_tests(source: &Source) -> Vec<String> {
    let code = without_prose(&source.text);
    let declared = code.match_indices(FOR_TESTS).filter_map(|(at, _)| {
        let rest = &code[at + FOR_TESTS.len()..];
        let item = rest[..item_length(rest)].strip_suffix(';')?;
        let (_, name) = item.rsplit_once("mod ")?;
        Some(match source.module().as_str() {
            "lib" | "main" => name.trim().to_owned(),
            module => format!("{module}/{}", name.trim()),
        })
    });
    declared.collect()
}

fn named(path: &str, text: &str) -> Vec<(usize, String)> {
    rooms_named(&Source::new(path, text))
}

#[test]
fn import_search_finds_every_spelling() {
    let plain = "//! x\nuse crate::cli::factory;\n";
    let fault = imports_at_fault(&Source::new("store/fs.rs", plain)).remove(0);
    assert!(
        fault.starts_with("src/store/fs.rs:2: `store` may not import `cli`; allowed: identifier,"),
        "{fault}"
    );
    for text in [
        "use crate::{time::Clock, cli};",
        "use crate::{\n    time::{Clock, Timestamp},\n    cli::{self, factory},\n};",
        "use crate :: cli;",
        "use super::super::cli;",
        "fn f() { crate::cli::run() }",
        "fn f<'a>(x: &'a str) { let q = ['\"', '\\'']; crate::cli::run() }",
        "#[cfg(test)]\nmod tests { fn f() { if x { } } }\nuse crate::cli;",
        "#[cfg(test)]\nmod tests;\nuse crate::cli;",
        "#[cfg(test)]\nconst X: [u8; 2] = [0; 2];\nuse crate::cli;",
        "const X: &str = \"\\\"\"; use crate::cli;",
        "const X: &str = r#\"\"\"#; use crate::cli;",
        "/* /* */ */ use crate::cli;",
    ] {
        let faults = imports_at_fault(&Source::new("store/fs.rs", text));
        assert_eq!(faults.len(), 1, "{text}: {faults:?}");
        assert!(faults[0].contains("may not import `cli`"), "{faults:?}");
    }
    for (path, text) in [
        ("time.rs", "use super::store;"),
        ("time.rs", "use crate::renew::window;"),
        ("deploy.rs", "use crate::config::Settings;"),
        ("challenge/http01.rs", "use crate::acme::Client;"),
        ("manage/issue.rs", "use crate::cli::args;"),
        ("main.rs", "fn f() { certs::store::open() }"),
        ("store.rs", "use crate::*;"),
        ("attic.rs", ""),
    ] {
        let faults = imports_at_fault(&Source::new(path, text));
        assert_eq!(faults.len(), 1, "{path}: {text}: {faults:?}");
    }
}

#[test]
fn import_search_ignores_lookalikes() {
    for text in [
        "// use crate::cli;",
        "/// See [`crate::cli`].",
        "/* use crate::cli; */",
        "const X: &str = \"crate::cli\";",
        "const X: &str = r##\"\"# crate::cli\"##;",
        "#[cfg(test)]\nmod tests { use crate::cli; fn f() { g(\"}\") } }",
        "#[cfg(test)]\nuse crate::cli;",
        "use my_crate::cli;",
        "pub(crate) fn cli() {}",
        "use super::cli;",
    ] {
        assert_eq!(named("store/fs.rs", text), [], "{text}");
    }
    let own = "use crate::store::fs;\nuse crate::{record, time::{self}};";
    let source = Source::new("store/fs.rs", own);
    assert_eq!(imports_at_fault(&source), [""; 0]);
    let rooms = [(1, "store"), (2, "record"), (2, "time")];
    let rooms = rooms.map(|(line, room)| (line, room.to_owned()));
    assert_eq!(rooms_named(&source), rooms);
}

#[test]
fn crate_search_finds_planted_crates_and_calls() {
    let found = |path: &str, text: &str| crates_at_fault(&Source::new(path, text));
    let fault = found("manage/issue.rs", "\nuse instant_acme::Order;").remove(0);
    assert!(fault.starts_with("src/manage/issue.rs:2: `instant_acme`"));
    assert_eq!(found("acme/order.rs", "use instant_acme::Order;"), [""; 0]);
    assert_eq!(
        found("deploy/nginx.rs", "fn f(_: rustls::Error) {}").len(),
        1
    );
    assert_eq!(found("deploy/verify.rs", "use rustls::Error;"), [""; 0]);
    assert_eq!(found("cli.rs", "use tokio_rustls::TlsAcceptor;").len(), 1);

    let form = |text: &str| form_at_fault(&Source::new("time.rs", text)).len();
    assert_eq!(form("//! Why.\n"), 0);
    assert_eq!(form("use std::time;\n"), 1);
    assert_eq!(form(&"//! Why.\n".repeat(LONGEST)), 0);
    assert_eq!(form(&"//! Why.\n".repeat(LONGEST + 1)), 1);
}

#[test]
fn module_search_knows_modules_for_tests_only() {
    let declared = "mod real;\n#[cfg(test)]\npub(super) mod fake;\n#[cfg(test)]\nmod tests { }";
    let modules = modules_for_tests(&Source::new("acme.rs", declared));
    assert_eq!(modules, ["acme/fake"]);
}

/// Checks the count of mutants in `docs/reliability.md`, and that each names the tests that catch it.
#[test]
fn mutants_match_documented_count_and_name_their_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mutants = std::fs::read_dir(root.join("tests/mutants")).unwrap();
    let mutants: Vec<String> = mutants
        .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    let page = std::fs::read_to_string(root.join("docs/reliability.md")).unwrap();
    let printed = format!("`tests/mutate`: {} ways", mutants.len());
    assert!(
        page.contains(&printed),
        "docs/reliability.md does not say: {printed}"
    );
    for mutant in mutants {
        assert!(mutant.contains("\ncaught by: cargo test --"), "{mutant}");
    }
}

#[test]
fn dependencies_are_all_used() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let (_, dependencies) = manifest.split_once("\n[dependencies]\n").unwrap();
    let dependencies = dependencies.split("\n[").next().unwrap();
    // `cfg(any())` is never true: what stands there only pins a version, and is in no path.
    let targets = manifest.lines().filter(|line| line.starts_with("[target."));
    for target in targets {
        assert_eq!(target, "[target.'cfg(any())'.dependencies]");
    }
    let house = read_house();
    let is_named = |name: &str| {
        let is_path = |source: &Source| {
            words(&source.code, name).any(|(at, name)| {
                let (before, after) = (&source.code[..at], &source.code[at + name.len()..]);
                after_colons(after).is_some() || before.trim_end().ends_with("use")
            })
        };
        house.iter().any(is_path)
    };
    let names = dependencies
        .lines()
        .filter_map(|line| line.split_once(" = "));
    let unused: Vec<_> = { names.map(|(name, _)| name.trim().replace('-', "_")) }
        .filter(|name| !is_named(name))
        .collect();
    assert!(
        unused.is_empty(),
        "in Cargo.toml, and in no path: {unused:?}"
    );
    assert!(is_named("tokio") && !is_named("no_such_crate"));
}
