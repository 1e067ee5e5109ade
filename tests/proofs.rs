//! Checks that `tests/proofs`, the table of the slow proofs, is complete: every test with a longer form is in
//! it, and a proof guards each source.

use std::path::{Path, PathBuf};

/// The time of `.ci/run` for proofs, in minutes, so that any one proof runs beside the one that every change
/// touches.
const BUDGET: u32 = 11;

struct Proof {
    name: String,
    minutes: u32,
    command: Vec<String>,
    sources: Vec<String>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    String::from_utf8_lossy(&std::fs::read(root().join(path)).unwrap()).into_owned()
}

fn table() -> Vec<Proof> {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
    let table = read("tests/proofs");
    let rows = table
        .lines()
        .filter(|row| !row.is_empty() && !row.starts_with('#'));
    let proofs = rows.map(|row| {
        let fields: Vec<_> = row.split('|').map(str::trim).collect();
        let [name, minutes, command, sources] = fields[..] else {
            panic!("not four fields: {row}");
        };
        Proof {
            name: name.to_owned(),
            minutes: minutes.parse().unwrap(),
            command: words(command),
            sources: words(sources),
        }
    });
    proofs.collect()
}

/// All files below a directory, as paths from the root of the repository.
fn files_below(directory: &str) -> Vec<String> {
    let (mut folders, mut files) = (vec![PathBuf::from(directory)], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root().join(&folder)).unwrap() {
            let path = folder.join(entry.unwrap().file_name());
            match root().join(&path).is_dir() {
                true => folders.push(path),
                false => files.push(path.display().to_string()),
            }
        }
    }
    files.sort();
    files
}

#[test]
fn proof_rows_name_existing_files_and_fit_ci_time() {
    let budget = format!("--minutes {BUDGET} ");
    assert!(
        read(".ci/run").contains(&budget),
        "not in .ci/run: {budget}"
    );
    let proofs = table();
    let mutants = proofs.iter().find(|proof| proof.name == "mutants").unwrap();
    for proof in &proofs {
        let (name, minutes) = (&proof.name, proof.minutes);
        let beside = if name == "mutants" {
            0
        } else {
            mutants.minutes
        };
        assert!(minutes + beside <= BUDGET, "{name} takes {minutes} minutes");
        for source in &proof.sources {
            let exists = |path: &str| root().join(path).exists();
            let module = format!("{source}.rs");
            assert!(
                exists(source) || exists(&module),
                "{name}: no such source: {source}"
            );
        }
        match proof.command.split_first().unwrap() {
            (first, filters) if first == "blackbox" => {
                let modules = read("tests/main.rs");
                for filter in filters {
                    let module = format!("mod {};", filter.trim_end_matches("::"));
                    assert!(modules.contains(&module), "{name}: no tests {filter}");
                }
            }
            (program, _) => assert!(root().join(program).exists(), "{name}: no {program}"),
        }
    }
}

#[test]
fn tests_with_longer_form_are_listed_as_proofs() {
    let proofs = table();
    let commands = || proofs.iter().flat_map(|proof| &proof.command);
    let tests = files_below("tests").into_iter();
    for file in tests.filter(|file| !NO_PROOFS.contains(&&**file)) {
        let text = read(&file);
        let has_longer_form = match file.ends_with(".rs") {
            true => text.contains("by_depth("),
            // A script that prints counts.
            false => text.starts_with("#!") && text.contains(" failed, "),
        };
        let module = file.trim_start_matches("tests/").split(['/', '.']).next();
        let filter = format!("{}::", module.unwrap());
        let is_proof = commands().any(|word| *word == filter || *word == file);
        assert!(
            !has_longer_form || is_proof,
            "{file} is in no row of tests/proofs"
        );
    }
    assert!(commands().any(|word| word == "fuzz/run"));
}

/// Files that run or support the proofs.
const NO_PROOFS: [&str; 5] = [
    "tests/run",
    "tests/prove",
    "tests/tally",
    "tests/support.rs",
    "tests/proofs.rs",
];

#[test]
fn sources_are_guarded_by_a_proof_beside_mutants() {
    let proofs = table();
    let guards = |file: &str| {
        let own = proofs.iter().filter(|proof| proof.name != "mutants");
        let mut sources = own.flat_map(|proof| &proof.sources);
        sources.any(|source| {
            let rest = file.strip_prefix(source.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest == ".rs" || rest.starts_with('/'))
        })
    };
    let unguarded = { files_below("src").into_iter().chain(files_below("deploy")) }
        .filter(|file| !guards(file) && !QUICK.iter().any(|quick| file.starts_with(quick)));
    assert_eq!(
        unguarded.collect::<Vec<_>>(),
        [""; 0],
        "in no row of tests/proofs"
    );
}

/// Sources that `tests/run` alone covers.
const QUICK: [&str; 0] = [];

/// All checkouts on a machine share one build directory. Cargo must not take the build of another tree for this
/// one's: a script either calls `tests/checkout` first or builds a tree with a version of its own.
#[test]
fn scripts_that_build_keep_checkouts_apart() {
    let builds = ["build", "test", "check", "clippy", "doc"].map(|verb| format!("cargo {verb} "));
    let quiet = builds
        .each_ref()
        .map(|build| build.replace("cargo ", "cargo --quiet "));
    let mut found = 0;
    for file in ["tests", ".ci"].into_iter().flat_map(files_below) {
        let text = read(&file);
        let code = text
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'));
        let code = code.collect::<Vec<_>>().join("\n");
        let is_script = text.starts_with("#!") && code.contains("CARGO_TARGET_DIR");
        if is_script
            && builds
                .iter()
                .chain(&quiet)
                .any(|build| code.contains(build))
        {
            found += 1;
            let has_own_version =
                code.contains("tree=$CARGO_TARGET_DIR/") && code.contains("s//&+");
            assert!(code.contains("tests/checkout") || has_own_version, "{file}");
        }
    }
    assert!(found >= 5, "{found} scripts");
}
