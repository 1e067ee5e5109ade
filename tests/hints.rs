//! The commands that hints name work as they are written, on the same files; and the names that commands take.

mod listed;

use std::process::Command;

use certs::identifier::Identifier;
use certs::lineage::Lineage;
use certs::record::{Record, Revision};
use certs::store::{Store, fs::FileStore};

use crate::support::embedded::EmbeddedCa;
use crate::support::{NOBODY, certs, run};

/// The command without any variable for its files.
fn bare(ca: &EmbeddedCa, arguments: &[&str]) -> Command {
    let mut command = certs(&ca.path(""));
    command
        .env_remove("CERTS_DATA_DIR")
        .env_remove("CERTS_OUTPUT_DIR");
    command.args(arguments);
    command
}

#[test]
fn hints_repeat_the_options_that_choose_files() {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&["shop.example.com"]), 0);
    let (data, out) = (ca.path("data"), ca.path("out"));
    let (data, out) = (data.display().to_string(), out.display().to_string());
    let printed = run(
        &mut bare(&ca, &["status", "absent.example.com", "--data-dir", &data]),
        2,
    );
    assert!(
        printed.contains(&format!("hint: certs --data-dir {data} status lists")),
        "{printed}"
    );
    let printed = run(
        &mut bare(&ca, &["--data-dir", "/tmp/it's", "status", "absent"]),
        2,
    );
    assert!(
        printed.contains(r"certs --data-dir '/tmp/it'\''s' status"),
        "{printed}"
    );
    let printed = run(certs(&ca.path("")).args(["status", "absent"]), 2);
    assert!(printed.contains("hint: certs status lists"), "{printed}");
    // The hint is the command that does it.
    let places = ["--data-dir", &data, "--output-dir", &out];
    let mut delete = bare(&ca, &places);
    let printed = run(delete.args(["delete", "shop.example.com"]), 2);
    let (_, hint) = printed.split_once("to delete it: certs ").unwrap();
    let hint: Vec<&str> = hint.split_whitespace().collect();
    assert_eq!(hint[..4], places);
    run(&mut bare(&ca, &hint), 0);
    assert!(!ca.path("data/records/shop.example.com").exists());
}

#[test]
fn refusal_of_fewer_names_suggests_a_name_that_is_free() {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&["a.example.com", "b.example.com"]), 0);
    run(
        &mut ca.issue(&["d.example.com", "--name", "b.example.com"]),
        0,
    );
    let printed = run(&mut ca.issue(&["b.example.com"]), 2);
    let (_, rest) = printed
        .split_once("for a second certificate: certs issue ")
        .unwrap();
    let (suggested, _) = rest.split_once(';').unwrap();
    let suggested: Vec<&str> = suggested.split_whitespace().collect();
    assert_eq!(
        suggested[..3],
        ["b.example.com", "--name", "b.example.com-2"]
    );
    // With the CA of the refused command.
    let listen = format!("127.0.0.1:{}", ca.http_port);
    let mut issue = certs(&ca.path(""));
    issue.args(["issue", "--http-listen", &listen]);
    run(issue.args(&suggested), 0);
    assert!(ca.path("out/live/b.example.com-2").exists());
}

#[test]
fn every_command_takes_a_lineage_or_a_name_of_the_certificate() {
    let ca = EmbeddedCa::start();
    let verb = |arguments: &[&str], code| run(certs(&ca.path("")).args(arguments), code);
    let both = ["a.example.com", "b.example.com", "--name", "shop"];
    run(&mut ca.issue(&both), 0);
    run(
        &mut ca.issue(&["b.example.com", "c.example.com", "--name", "second"]),
        0,
    );
    for name in ["shop", "a.example.com", "A.example.com"] {
        let printed = verb(&["status", name, "--json"], 0);
        assert!(printed.contains(r#""name":"shop""#), "{name}: {printed}");
    }
    let all = verb(&["list", "--json"], 0);
    let shared = verb(&["status", "b.example.com", "--json"], 0);
    for name in ["shop", "second"] {
        assert!(
            all.contains(name) && shared.contains(name),
            "{all} {shared}"
        );
    }
    let printed = verb(&["delete", "b.example.com", "--yes"], 2);
    assert!(
        printed.contains(
            "second, shop; nothing was deleted\nhint: delete one of them by its own name"
        ),
        "{printed}"
    );
    verb(&["delete", "shop", "--yes"], 0);
    verb(&["status", "shop"], 2);
    verb(&["delete", "c.example.com", "--yes"], 0);
    assert_eq!(verb(&["list", "--json"], 0).trim(), "[]");
}

#[tokio::test]
async fn reload_before_the_first_issuance_names_the_command_that_issues() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path().join("data")).unwrap();
    let name = Identifier::parse("a.example.com").unwrap();
    let record = Record::new(
        Lineage::of(&name),
        [name].into(),
        "https://ca.invalid".into(),
    );
    store.save(&record, Revision(0), None).await.unwrap();
    for verb in ["reload", "rollback"] {
        let mut command = certs(directory.path());
        let printed = run(
            command
                .args([verb, "a.example.com"])
                .env("CERTS_AGREE_TOS", "true"),
            2,
        );
        assert!(
            printed.contains("nothing is issued yet"),
            "{verb}: {printed}"
        );
        assert!(
            printed.contains("hint: certs renew a.example.com issues it"),
            "{verb}: {printed}"
        );
    }
}

/// `[output] group` is the remedy for a key that a server's user cannot read: the next command of any kind
/// opens what is published already.
#[test]
fn output_group_opens_published_files_to_it() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can give files to another group");
        return;
    }
    let readable = |ca: &EmbeddedCa| {
        let key = ca.path("out/live/a.example.com/privkey.pem");
        let mut cat = Command::new("cat");
        let read = cat.arg(key).uid(NOBODY).gid(4242).output().unwrap();
        read.status.success()
    };
    for verb in [&["renew"][..], &["reload"], &["issue"]] {
        let ca = EmbeddedCa::start();
        std::fs::set_permissions(ca.path(""), PermissionsExt::from_mode(0o755)).unwrap();
        run(&mut ca.issue(&["a.example.com"]), 0);
        assert!(!readable(&ca));
        let mut command = match verb {
            ["issue"] => ca.issue(&["a.example.com"]),
            verb => {
                let mut command = certs(&ca.path(""));
                command.args(verb);
                command
            }
        };
        run(command.env("CERTS_OUTPUT_GROUP", "4242"), 0);
        assert!(readable(&ca), "{verb:?}");
        for path in [
            "out",
            "out/live",
            "out/archive",
            "out/archive/a.example.com",
        ] {
            let mode = std::fs::metadata(ca.path(path))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o7777, 0o2750, "{path}");
        }
    }
}

/// The Rust files below a directory, with their texts.
fn sources(directory: &str) -> Vec<(String, String)> {
    let (mut open, mut found) = (vec![std::path::PathBuf::from(directory)], Vec::new());
    while let Some(path) = open.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(&path).unwrap();
            open.extend(entries.map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            found.push((path.display().to_string(), text));
        }
    }
    found
}

/// The texts of string literals in our sources, without those of tests.
fn texts() -> Vec<String> {
    let mut texts = Vec::new();
    for (path, source) in sources("src") {
        if path.contains("test") {
            continue;
        }
        let code = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let code = code
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        let code = code.collect::<Vec<_>>().join("\n").replace("\\\"", "'");
        texts.extend(code.split('"').skip(1).step_by(2).map(str::to_owned));
    }
    texts
}

/// Each command and option that a message names exists: `certs VERB --option …` up to the end of its phrase.
#[test]
fn commands_and_options_in_texts_exist() {
    let directory = tempfile::tempdir().unwrap();
    let help = |verb: &[&str]| {
        let mut command = certs(directory.path());
        run(command.args(verb).arg("--help"), 0)
    };
    let verbs: Vec<&[&str]> = vec![
        &["issue"],
        &["run"],
        &["renew"],
        &["reload"],
        &["rollback"],
        &["status"],
        &["delete"],
        &["rename"],
        &["revoke"],
        &["account", "update"],
        &["account", "deactivate"],
        &["import"],
        &["install", "nginx"],
        &["ca", "serve"],
        &["ca", "trust"],
        &["simulate"],
        &["demo"],
        &["config", "check"],
    ];
    let pages: Vec<(&str, String)> = verbs.iter().map(|verb| (verb[0], help(verb))).collect();
    let has = |page: &str, option: &str| {
        let mut words = page.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-');
        words.any(|word| word == option)
    };
    // Of other programs.
    const OTHERS: [&str; 21] = [
        "--filter-platform",
        "--fresh",
        "--use-system-ca",
        "--cert-path",
        "--key-path",
        "--now",
        "--uninstall-cronjob",
        "--no-bundle",
        "--run-hook",
        "--renew-hook",
        "--standalone",
        "--conf-path",
        "--prefix",
        "--pid-path",
        "--error-log-path",
        "--serve",
        "--lib",
        "--offline",
        "--locked",
        "--format-version",
        "--manifest-path",
    ];
    let mut wrong = Vec::new();
    for text in texts() {
        let words = |phrase: &str| -> Vec<String> {
            let parts =
                phrase.split(|letter: char| letter.is_whitespace() || ",()`'=…".contains(letter));
            parts.map(str::to_owned).collect()
        };
        let options = |phrase: &str| -> Vec<String> {
            let all = words(phrase).into_iter();
            let is_option = |word: &String| {
                let name = word.strip_prefix("--").unwrap_or_default();
                name.starts_with(|first: char| first.is_ascii_lowercase())
            };
            all.filter(is_option).collect()
        };
        for option in options(&text) {
            let option = option.trim_end_matches([';', ':', '.']);
            let is_known = OTHERS.contains(&option) || option.contains(['{', '[']);
            if !is_known && !pages.iter().any(|(_, page)| has(page, option)) {
                wrong.push(format!("{option} in `{text}`"));
            }
        }
        for phrase in text.split("certs ").skip(1) {
            let phrase = phrase.split([';', ':', '`']).next().unwrap();
            let phrase = phrase.split(". ").next().unwrap();
            let verb = words(phrase).into_iter().next().unwrap_or_default();
            let own = || pages.iter().filter(|(known, _)| *known == verb);
            if own().next().is_none() {
                continue;
            }
            for option in options(phrase) {
                let is_known = |(_, page): &(_, String)| has(page, option.trim_end_matches('.'));
                if !option.contains(['{', '[']) && !own().any(is_known) {
                    wrong.push(format!("certs {verb} {option} in `{text}`"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
