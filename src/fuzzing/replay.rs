//! Runs the seeds of `fuzz/` as an ordinary test, so that a regression shows without
//! a fuzzer.

use std::path::{Path, PathBuf};

use super::TARGETS;
use crate::ca_state::CaState;
use crate::record::Record;

fn files_of(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn names_of(directory: &str) -> Vec<String> {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let names = files_of(&fuzz.join(directory)).into_iter();
    names
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect()
}

#[test]
fn seeds_keep_every_rule() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    let (mut size, mut broken) = (0, Vec::new());
    for (name, target) in TARGETS {
        let files = files_of(&seeds.join(name));
        assert!(
            (3..=40).contains(&files.len()),
            "{name}: {} seeds",
            files.len()
        );
        for file in files {
            let seed = std::fs::read(&file).unwrap();
            size += seed.len();
            let result = std::panic::catch_unwind(|| target(&seed));
            broken.extend(result.is_err().then_some(file));
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(
        size < 200_000,
        "{size} bytes of seeds are too many to commit"
    );
}

#[test]
fn targets_have_program_and_seeds() {
    let names = TARGETS.map(|(name, _)| name.to_owned());
    assert_eq!(names_of("fuzz_targets"), names);
    assert_eq!(names_of("seeds"), names);
}

/// A new field of the record must not make the seeds invalid, and so useless.
#[test]
fn record_seeds_are_valid() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/record");
    for file in files_of(&seeds) {
        let json = std::fs::read(&file).unwrap();
        let read = if file
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with("authority")
        {
            serde_json::from_slice::<CaState>(&json).err()
        } else {
            serde_json::from_slice::<Record>(&json).err()
        };
        assert!(read.is_none(), "{}: {read:?}", file.display());
    }
}
