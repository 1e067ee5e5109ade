//! Rules for names that become paths: each is one plain component below its root, and
//! an answer is written only there.

use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::FutureExt;

use super::stored;
use crate::challenge::responses::Responses;
use crate::challenge::{Answer, ChallengeKind, SolverSettings, Token, webroot};
use crate::deploy::Outlet;
use crate::deploy::output::Output;
use crate::identifier::Identifier;
use crate::lineage::Lineage;

/// NAME_MAX of common file systems, minus `.` and `.new` around it.
const LONGEST_NAME: usize = 255 - 5;

/// A name from the user, a certificate or a CA.
pub fn path(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    if let Ok(identifier) = Identifier::parse(text) {
        assert_eq!(stored(&identifier), identifier);
        below_its_root(&Lineage::of(&identifier));
    }
    if let Ok(lineage) = Lineage::parse(text) {
        below_its_root(&lineage);
    }
    if let Ok(token) = Token::parse(text) {
        plain(token.as_str());
        written_inside(token);
    }
}

fn below_its_root(lineage: &Lineage) {
    plain(lineage.as_str());
    assert_eq!(&stored(lineage), lineage);
    let live = Output::new(PathBuf::from("/output")).live_path(lineage);
    assert_eq!(live.parent(), Some(Path::new("/output/live")));
}

/// One component, which no command reads as an option and no file system refuses.
fn plain(name: &str) {
    let components: Vec<_> = Path::new(name).components().collect();
    assert_eq!(components, [Component::Normal(name.as_ref())], "{name:?}");
    let safe = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    assert!(safe, "{name:?}");
    assert!(name.len() <= LONGEST_NAME, "{} bytes", name.len());
}

fn written_inside(token: Token) {
    let scratch = Scratch::new();
    let root = scratch.0.join("root");
    let made = std::fs::create_dir_all(&root);
    assert!(made.is_ok(), "{}: {made:?}", root.display());
    let directory = Path::new("root/.well-known/acme-challenge");
    let answer = Answer {
        kind: ChallengeKind::Http01,
        identifier: super::facts()
            .identifiers
            .into_iter()
            .next()
            .unwrap_or_else(|| panic!("no name")),
        key_authorization: format!("{}.thumbprint", token.as_str()),
        token,
        account: Default::default(),
    };
    let webroot = webroot::Settings::new(root).solver(&Responses::default());
    assert!(matches!(
        webroot.present(&answer).now_or_never(),
        Some(Ok(()))
    ));
    let expected = directory.join(answer.token.as_str());
    assert_eq!(scratch.files(), [expected]);
    assert!(matches!(
        webroot.clean_up(&answer).now_or_never(),
        Some(Ok(()))
    ));
    assert!(scratch.files().is_empty());
}

/// A temporary directory, removed on drop.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("certs-fuzz-{}-{count}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    /// Every file in it, at any depth.
    fn files(&self) -> Vec<PathBuf> {
        let (mut open, mut found) = (vec![self.0.clone()], Vec::new());
        while let Some(directory) = open.pop() {
            for entry in std::fs::read_dir(&directory)
                .into_iter()
                .flatten()
                .flatten()
            {
                let path = entry.path();
                if path.is_dir() {
                    open.push(path);
                } else {
                    found.extend(path.strip_prefix(&self.0).map(Path::to_owned));
                }
            }
        }
        found
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A leftover is in the system's temporary directory.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
