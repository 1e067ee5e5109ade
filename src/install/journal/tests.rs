//! Undo after an install, a crash and a change by hand.

use std::os::unix::fs::PermissionsExt;

use super::*;

fn subject() -> Subject {
    Subject {
        name: "x.example".to_owned(),
        names: Vec::new(),
        main: PathBuf::from("nginx.conf"),
    }
}

struct Case {
    directory: tempfile::TempDir,
    journals: Journals,
}

impl Case {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("a"), "old a").unwrap();
        std::fs::write(directory.path().join("b"), "old b").unwrap();
        let journals = Journals::new(&directory.path().join("data"));
        Self {
            directory,
            journals,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.path(name)).ok()
    }

    fn changes(&self) -> Vec<Change> {
        let change = |name: &str| Change {
            path: self.path(name),
            content: format!("new {name}").into_bytes(),
        };
        ["a", "b", "c"].map(change).into()
    }

    fn install(&self) {
        let links = [Link {
            path: self.path("l"),
            target: self.path("c"),
        }];
        self.journals
            .write(subject(), &self.changes(), &links)
            .unwrap();
        self.journals.finish().unwrap();
    }
}

#[test]
fn undo_restores_every_byte_mode_and_absence() {
    let case = Case::new();
    std::fs::set_permissions(case.path("a"), PermissionsExt::from_mode(0o640)).unwrap();
    case.install();
    assert_eq!(case.text("a").as_deref(), Some("new a"));
    assert_eq!(case.text("l").as_deref(), Some("new c"));
    assert!(!case.journals.recover().unwrap());
    assert!(case.journals.undo(Some("other"), None).unwrap().is_empty());
    assert_eq!(case.journals.undo(None, None).unwrap().len(), 1);
    assert_eq!(case.text("a").as_deref(), Some("old a"));
    assert_eq!(case.text("b").as_deref(), Some("old b"));
    let mode = std::fs::metadata(case.path("a"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o640);
    assert!(!case.path("c").exists() && case.path("l").symlink_metadata().is_err());
    assert!(case.journals.undo(None, None).unwrap().is_empty());
    let left = std::fs::read_dir(case.directory.path()).unwrap().count();
    assert_eq!(left, 3, "a, b and the empty journals");
}

#[test]
fn lock_refuses_second_install() {
    let case = Case::new();
    let lock = case.journals.lock().unwrap();
    let other = Journals::new(&case.path("data"));
    let refused = other.lock().unwrap_err().in_a_line();
    assert!(refused.contains("another certs install"), "{refused}");
    drop(lock);
    other.lock().unwrap();
}

#[test]
fn undo_finds_install_by_any_name_of_server() {
    let case = Case::new();
    let names = ["x.example".to_owned(), "www.x.example".to_owned()];
    let named = Subject {
        names: names.into(),
        ..subject()
    };
    case.journals.write(named, &case.changes(), &[]).unwrap();
    assert!(
        case.journals
            .undo(Some("y.x.example"), None)
            .unwrap()
            .is_empty()
    );
    // A later one is undone first.
    let later = Subject {
        name: "y.example".to_owned(),
        ..subject()
    };
    let path = case.path("a");
    let content = b"newer a".to_vec();
    let change = Change { path, content };
    case.journals.write(later, &[change], &[]).unwrap();
    let refused = case.journals.undo(Some("www.x.example"), None);
    let refused = refused.unwrap_err().in_a_line();
    assert!(refused.contains("--undo --domain y.example"), "{refused}");
    case.journals.undo(Some("y.example"), None).unwrap();
    let undone = case.journals.undo(Some("www.x.example"), None).unwrap();
    assert_eq!(undone.len(), 1);
    assert_eq!(case.text("a").as_deref(), Some("old a"));
}

#[test]
fn undo_never_overwrites_change_by_hand() {
    let case = Case::new();
    case.install();
    std::fs::write(case.path("b"), "mine").unwrap();
    let refused = case.journals.undo(None, None).unwrap_err().in_a_line();
    assert!(refused.contains("data.install/0001/1"), "{refused}");
    assert_eq!(case.text("a").as_deref(), Some("new a"));
    assert_eq!(case.text("b").as_deref(), Some("mine"));
    std::fs::write(case.path("b"), "old b").unwrap();
    case.journals.undo(None, None).unwrap();
    assert_eq!(case.text("a").as_deref(), Some("old a"));
    // The other remedy in the hint keeps the change.
    case.install();
    std::fs::write(case.path("b"), "mine").unwrap();
    let refused = case.journals.undo(None, None).unwrap_err().in_a_line();
    let kept = case.journals.directory(1);
    let remedy = format!("to keep the file as it is: rm -r {}", kept.display());
    assert!(refused.contains(&remedy), "{refused}");
    std::fs::remove_dir_all(kept).unwrap();
    assert!(!case.journals.recover().unwrap());
    assert_eq!(case.text("b").as_deref(), Some("mine"));
}

#[test]
fn recover_undoes_crash_after_any_rename() {
    for renamed in 0..=3 {
        let case = Case::new();
        let changes = case.changes();
        let intent = case.journals.store(1, subject(), &changes, &[]).unwrap();
        for (entry, change) in intent.entries.iter().zip(&changes) {
            write_aside(entry, &change.content).unwrap();
        }
        for change in &changes[..renamed] {
            put_in_place(&change.path).unwrap();
        }
        assert!(case.journals.recover().unwrap());
        assert_eq!(case.text("a").as_deref(), Some("old a"));
        assert_eq!(case.text("b").as_deref(), Some("old b"));
        assert_eq!(std::fs::read_dir(case.directory.path()).unwrap().count(), 3);
    }
}

#[test]
fn edited_file_of_several_stages_is_undone_to_the_first_original() {
    let case = Case::new();
    let change = |text: &str| Change {
        path: case.path("a"),
        content: text.as_bytes().to_vec(),
    };
    let stage = |subject: Subject, text: &str| {
        case.journals.write(subject, &[change(text)], &[]).unwrap();
        case.journals.finish().unwrap();
    };
    for text in ["challenges", "tls", "redirect"] {
        stage(subject(), text);
    }
    std::fs::write(case.path("a"), "mine").unwrap();
    let refused = case.journals.undo(None, None).unwrap_err().in_a_line();
    let first = case.journals.directory(1).join("0");
    let shown = format!("cp {} {}", first.display(), case.path("a").display());
    assert!(refused.contains(&shown), "{refused}");
    let all = [1, 2, 3].map(|number| case.journals.directory(number).display().to_string());
    assert!(
        refused.contains(&format!("rm -r {}", all.join(" "))),
        "{refused}"
    );
    std::fs::copy(first, case.path("a")).unwrap();
    assert_eq!(case.journals.undo(None, None).unwrap().len(), 3);
    assert_eq!(case.text("a").as_deref(), Some("old a"));
    // An edit between two installs is the original of the second one.
    stage(subject(), "tls");
    std::fs::write(case.path("a"), "tls and mine").unwrap();
    stage(subject(), "redirect");
    std::fs::write(case.path("a"), "last").unwrap();
    let refused = case.journals.undo(None, None).unwrap_err().in_a_line();
    let second = case.journals.directory(2).join("0");
    assert!(
        refused.contains(&format!("cp {} ", second.display())),
        "{refused}"
    );
}
