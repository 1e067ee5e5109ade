//! Checks the documentation where a program can: links lead to files and headings, and the commands that it
//! shows exist with their options.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::support::certs;

const LONGEST_README: usize = 162;

/// Every page for users, with its text.
fn pages() -> BTreeMap<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pages = ["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(|page| root.join(page));
    let docs = std::fs::read_dir(root.join("docs")).unwrap();
    let docs = docs.map(|entry| entry.unwrap().path());
    let docs = docs.filter(|page| page.extension().is_some_and(|it| it == "md"));
    let read = |page: PathBuf| (page.clone(), std::fs::read_to_string(page).unwrap());
    pages.into_iter().chain(docs).map(read).collect()
}

/// The lines of a page's code blocks, each with the language of its fence; `None` outside of blocks.
fn lines(page: &str) -> impl Iterator<Item = (Option<&str>, &str)> {
    let mut language = None;
    page.lines().map(move |line| {
        if let Some(fence) = line.trim_start().strip_prefix("```") {
            language = language.is_none().then_some(fence);
        }
        (language, line)
    })
}

#[test]
fn readme_is_short() {
    let readme = &pages()[&Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")];
    let lines = readme.lines().count();
    assert!(lines <= LONGEST_README, "{lines} lines");
}

#[test]
fn links_lead_to_files_and_headings() {
    let mut broken = Vec::new();
    for (page, text) in pages() {
        let prose = lines(&text).filter(|(language, _)| language.is_none());
        for (_, line) in prose {
            for (_, rest) in line
                .match_indices("](")
                .map(|(at, _)| line.split_at(at + 2))
            {
                let target = rest.split(')').next().unwrap_or_default();
                if target.contains("://") {
                    continue;
                }
                let (path, heading) = target.split_once('#').unwrap_or((target, ""));
                let file = match path {
                    "" => page.clone(),
                    _ => page.parent().unwrap().join(path),
                };
                let leads = file.exists() && (heading.is_empty() || has_heading(&file, heading));
                if !leads {
                    broken.push(format!("{}: {target}", page.display()));
                }
            }
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

/// Whether a heading such as `## 0: done` has the anchor `0-done`.
fn has_heading(page: &Path, anchor: &str) -> bool {
    let text = std::fs::read_to_string(page).unwrap();
    let headings = lines(&text).filter(|(language, _)| language.is_none());
    let mut headings = headings.filter_map(|(_, line)| line.strip_prefix('#'));
    headings.any(|heading| {
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = heading
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.collect::<String>().replace(' ', "-") == anchor
    })
}

#[test]
fn commands_exist_with_their_options() {
    let directory = tempfile::tempdir().unwrap();
    let (mut helps, mut wrong) = (BTreeMap::new(), Vec::new());
    for (page, text) in pages() {
        for command in commands(&text) {
            let mut words = command.split_whitespace().skip(1);
            let verb: Vec<&str> = words.by_ref().take_while(is_a_verb).take(2).collect();
            let known = helps.entry(verb.join(" ")).or_insert_with(|| {
                let mut help = certs(directory.path());
                let help = help.args(&verb).arg("--help").output().unwrap();
                let text = String::from_utf8_lossy(&help.stdout).into_owned();
                help.status.success().then(|| options(&text))
            });
            let used = options(&command);
            if !known.as_ref().is_some_and(|known| used.is_subset(known)) {
                wrong.push(format!("{}: {command}", page.display()));
            }
        }
    }
    assert!(helps.len() > 5, "{:?}", helps.keys());
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// A verb or subcommand, such as `install nginx`: neither a name nor an option.
fn is_a_verb(word: &&str) -> bool {
    word.chars().all(|letter| letter.is_ascii_lowercase())
}

/// Every `--option` in a command or its help.
fn options(text: &str) -> BTreeSet<String> {
    let found = text
        .split_whitespace()
        .filter(|word| word.starts_with("--"));
    let end = |letter: char| !letter.is_ascii_alphanumeric() && letter != '-';
    let found = found.filter_map(|word| word.split(end).next());
    found
        .map(str::to_owned)
        .filter(|option| option.len() > 2)
        .collect()
}

#[test]
fn table_for_users_of_certbot_has_its_verbs_and_main_options() {
    // `certbot --help all` of version 5.
    const VERBS: [&str; 17] = [
        "run",
        "certonly",
        "renew",
        "enhance",
        "certificates",
        "revoke",
        "delete",
        "register",
        "update_account",
        "unregister",
        "show_account",
        "install",
        "config_changes",
        "rollback",
        "plugins",
        "update_symlinks",
        "reconfigure",
    ];
    const OPTIONS: [&str; 16] = [
        "--standalone",
        "--webroot",
        "--nginx",
        "--manual",
        "--dns-PROVIDER",
        "--csr",
        "--cert-name",
        "--expand",
        "--key-type",
        "--reuse-key",
        "--preferred-challenges",
        "--preferred-chain",
        "--eab-kid",
        "--deploy-hook",
        "--server",
        "--dry-run",
    ];
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/migrating.md");
    let page = std::fs::read_to_string(page).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    let cells: Vec<&str> = rows.filter_map(|row| row.split('|').nth(1)).collect();
    for word in VERBS.into_iter().chain(OPTIONS) {
        let has = |cell: &&str| {
            let mut words = cell.split(|c: char| !(c.is_alphanumeric() || "-_".contains(c)));
            words.any(|one| one == word)
        };
        assert!(cells.iter().any(has), "no row for {word}");
    }
}

/// Each command `certs …` in shell blocks and in inline code.
fn commands(page: &str) -> Vec<String> {
    let page = page.replace("\\\n", " ");
    let mut commands = Vec::new();
    for (language, line) in lines(&page) {
        let line = line.replace("cargo run --release --", "certs");
        match language {
            Some("" | "sh") => {
                let line = line.split(" #").next().unwrap_or_default();
                let parts = line.split(['|', ';', '&']).map(|part| {
                    let is_before = |word: &&str| *word == "sudo" || word.contains('=');
                    let words = part.split_whitespace().skip_while(is_before);
                    let words: Vec<&str> = words.collect();
                    let twice = words.windows(2).position(|two| two == ["certs", "certs"]);
                    words[twice.map_or(0, |at| at + 1)..].join(" ")
                });
                commands.extend(parts);
            }
            Some(_) => {}
            None => commands.extend(line.split('`').skip(1).step_by(2).map(str::to_owned)),
        }
    }
    commands.retain(|command| command.split(' ').next() == Some("certs"));
    commands
}
