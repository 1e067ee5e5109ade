//! A configuration with all included files, each once and by its real path: a link
//! in sites-enabled is the file that it points to. Reads files, writes none. An
//! overlay can replace the content of files that are not written yet.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::syntax::{Directive, Span, line_of, parse};
use crate::failure::Failure;
use crate::files::beneath::Directory;

/// More files than any configuration has; stops patterns that include themselves.
const MOST_VISITS: usize = 20_000;
const LARGEST: u64 = 16 << 20;

/// One file.
#[derive(Debug)]
pub(crate) struct SourceFile {
    /// Its real path.
    pub path: PathBuf,
    pub text: Vec<u8>,
    pub directives: Vec<Directive>,
}

/// A directive and its file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed<'a> {
    /// The number of the file.
    pub file: usize,
    pub directive: &'a Directive,
}

/// Future contents of files, by path.
pub(crate) type Overlay = BTreeMap<PathBuf, Vec<u8>>;

/// nginx's main file and all included files.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    /// The first is the main file.
    pub files: Vec<SourceFile>,
    /// The `include` at this byte of this file: its span, and the files that it matches.
    includes: BTreeMap<(usize, usize), (Span, Vec<usize>)>,
}

impl Tree {
    /// Reads `main` and all included files, as if `overlay` were written. An error names
    /// the file and the line.
    pub(crate) fn load(main: &Path, overlay: &Overlay) -> Result<Self, Failure> {
        let base = main.parent().unwrap_or(Path::new("/")).to_owned();
        let mut loader = Loader {
            overlay,
            base,
            tree: Self::default(),
            known: BTreeMap::new(),
            stack: Vec::new(),
            visits: 0,
        };
        loader.visit(main, None)?;
        Ok(loader.tree)
    }

    /// The directives of a block or file, with those of included files in their place.
    #[must_use]
    pub(crate) fn within<'a>(
        &'a self,
        file: usize,
        directives: &'a [Directive],
    ) -> Vec<Placed<'a>> {
        let mut found = Vec::new();
        for directive in directives {
            match self.includes.get(&(file, directive.span.start)) {
                Some((_, included)) => found.extend(
                    included
                        .iter()
                        .flat_map(|number| self.within(*number, &self.files[*number].directives)),
                ),
                None => found.push(Placed { file, directive }),
            }
        }
        found
    }

    /// Whether a file has a path below `directory` in it.
    #[must_use]
    pub(crate) fn names(&self, directory: &Path) -> bool {
        let below = directory.join("").into_os_string().into_encoded_bytes();
        let mut texts = self.files.iter().map(|file| &file.text);
        texts.any(|text| text.windows(below.len()).any(|part| part == below))
    }

    /// For messages: `FILE:LINE`.
    #[must_use]
    pub(crate) fn place(&self, placed: Placed) -> String {
        let source = &self.files[placed.file];
        let line = line_of(&source.text, placed.directive.span.start);
        format!("{}:{line}", source.path.display())
    }

    /// The directives of a directive's block.
    #[must_use]
    pub(crate) fn inside<'a>(&'a self, placed: Placed<'a>) -> Vec<Placed<'a>> {
        let block = placed.directive.block.as_ref();
        block.map_or_else(Vec::new, |block| {
            self.within(placed.file, &block.directives)
        })
    }

    /// The includes of this file: the span of each and the files that it matches.
    pub(crate) fn includes_of(&self, file: usize) -> impl Iterator<Item = &(Span, Vec<usize>)> {
        let found = self.includes.range((file, 0)..(file + 1, 0));
        found.map(|(_, include)| include)
    }
}

struct Loader<'a> {
    overlay: &'a Overlay,
    base: PathBuf,
    tree: Tree,
    known: BTreeMap<PathBuf, usize>,
    stack: Vec<PathBuf>,
    visits: usize,
}

impl Loader<'_> {
    fn visit(&mut self, path: &Path, by: Option<&str>) -> Result<usize, Failure> {
        let (real, text) = self.read(path, by)?;
        self.visits += 1;
        if self.stack.contains(&real) || self.visits > MOST_VISITS {
            return Err(Failure::usage(
                format!("{}: the file includes itself", real.display()),
                format!("remove the include ({})", by.unwrap_or_default()),
            ));
        }
        if let Some(number) = self.known.get(&real) {
            return Ok(*number);
        }
        let directives = parse(&text).map_err(|error| {
            let message = format!("{}: {error}", real.display());
            Failure::usage(message, "fix it and test it with nginx -t")
        })?;
        let number = self.tree.files.len();
        self.tree.files.push(SourceFile {
            path: real.clone(),
            text,
            directives: directives.clone(),
        });
        self.stack.push(real.clone());
        self.follow(number, &directives)?;
        self.stack.pop();
        self.known.insert(real, number);
        Ok(number)
    }

    fn follow(&mut self, number: usize, directives: &[Directive]) -> Result<(), Failure> {
        for directive in directives {
            if let Some(block) = &directive.block {
                self.follow(number, &block.directives)?;
                continue;
            }
            let (true, Some(word)) = (directive.name() == "include", directive.words.get(1)) else {
                continue;
            };
            let (file, span) = (number, directive.span.clone());
            let by = self.tree.place(Placed { file, directive });
            let pattern = self.base.join(&word.text);
            let mut included = Vec::new();
            for path in self.expand(&pattern)? {
                included.push(self.visit(&path, Some(&by))?);
            }
            let at = (file, span.start);
            self.tree.includes.insert(at, (span, included));
        }
        Ok(())
    }

    fn read(&self, path: &Path, by: Option<&str>) -> Result<(PathBuf, Vec<u8>), Failure> {
        if let Some(text) = self.overlay.get(path) {
            return Ok((path.to_owned(), text.clone()));
        }
        let failed = |error: std::io::Error| {
            let by = by.map_or_else(String::new, |by| format!(", included at {by}"));
            Failure::of_file(
                &error,
                format!("{}: {error}{by}", path.display()),
                "name nginx's main file with --conf FILE, and run as a user that may read all files",
            )
        };
        let real = std::fs::canonicalize(path).map_err(failed)?;
        if let Some(text) = self.overlay.get(&real) {
            return Ok((real, text.clone()));
        }
        let read = Directory::of(&real).and_then(|(place, name)| place.read(name, LARGEST));
        let text = read.map_err(failed)?;
        Ok((real, text))
    }

    /// The files of an `include`, in glob(3)'s order; a path without a pattern is
    /// returned even if it does not exist.
    ///
    /// # Errors
    /// When a directory cannot be read: what it holds may be what is looked for.
    fn expand(&self, pattern: &Path) -> Result<Vec<PathBuf>, Failure> {
        let text = pattern.to_string_lossy();
        if !text.contains(['*', '?', '[']) {
            return Ok(vec![pattern.to_owned()]);
        }
        let mut found = vec![PathBuf::from("/")];
        for segment in text.split('/').filter(|segment| !segment.is_empty()) {
            let mut next = Vec::new();
            for directory in &found {
                if segment.contains(['*', '?', '[']) {
                    let names = self.names_in(directory)?;
                    let fitting = names.iter().filter(|name| matches(segment, name));
                    next.extend(fitting.map(|name| directory.join(name)));
                } else {
                    next.push(directory.join(segment));
                }
            }
            found = next;
        }
        let mut there = Vec::new();
        for path in found {
            let known = self.overlay.contains_key(&path);
            let found = match path.try_exists() {
                Err(error) if is_missing(&error) => false,
                found => found.map_err(|error| unread(&path, &error))?,
            };
            if known || found {
                there.push(path);
            }
        }
        there.sort();
        Ok(there)
    }

    fn names_in(&self, directory: &Path) -> Result<BTreeSet<String>, Failure> {
        let entries = match std::fs::read_dir(directory) {
            Err(error) if is_missing(&error) => Vec::new(),
            entries => {
                let entries = entries.and_then(Iterator::collect::<io::Result<Vec<_>>>);
                entries.map_err(|error| unread(directory, &error))?
            }
        };
        let names = entries.into_iter();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let future = self.overlay.keys();
        let future = future.filter(|path| path.parent() == Some(directory));
        let future = future.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()));
        Ok(names.chain(future).collect())
    }
}

/// A pattern can also match files where directories are needed.
fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn unread(path: &Path, error: &io::Error) -> Failure {
    Failure::usage(
        format!("{}: {error}", path.display()),
        "run as a user that may read nginx's whole configuration, usually root",
    )
}

/// glob(3) for one name: only a literal dot matches a leading dot.
fn matches(pattern: &str, name: &str) -> bool {
    let hidden = name.starts_with('.') && !pattern.starts_with('.');
    !hidden && fits(pattern.as_bytes(), name.as_bytes())
}

/// Backtracks only to the last `*`, so a match takes at most pattern times name steps.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n, mut back) = (0, 0, None);
    while n < name.len() {
        let step = match pattern.get(p) {
            Some(b'*') => {
                back = Some((p + 1, n));
                p += 1;
                continue;
            }
            Some(b'?') => Some(1),
            Some(b'[') => class(&pattern[p..], name[n]),
            Some(byte) => (*byte == name[n]).then_some(1),
            None => None,
        };
        match (step, back) {
            (Some(step), _) => (p, n) = (p + step, n + 1),
            (None, Some((after, at))) => {
                (p, n) = (after, at + 1);
                back = Some((after, at + 1));
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// The length of `[…]` if it contains `byte`.
fn class(pattern: &[u8], byte: u8) -> Option<usize> {
    let Some(end) = pattern.iter().skip(2).position(|byte| *byte == b']') else {
        return (byte == b'[').then_some(1);
    };
    let set = &pattern[1..end + 2];
    let (negated, set) = match set {
        [b'!' | b'^', rest @ ..] => (true, rest),
        _ => (false, set),
    };
    let in_range = |range: &[u8]| range[1] == b'-' && range[0] <= byte && byte <= range[2];
    let has = set.contains(&byte) || set.windows(3).any(in_range);
    (has != negated).then_some(end + 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_glob() {
        for (pattern, name, expected) in [
            ("*.conf", "a.conf", true),
            ("*.conf", ".a.conf", false),
            ("*", "default", true),
            ("*", ".hidden", false),
            ("a*b*c", "a__b__b_c", true),
            ("a?c", "abc", true),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("*.conf", "a.conf~", false),
            ("**", "", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn files_that_cannot_be_read_are_corrected_as_the_hints_say() {
        let directory = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(directory.path()).unwrap();
        let (main, part) = (root.join("nginx.conf"), root.join("part"));
        std::fs::write(&main, "http { include part; }").unwrap();
        let load = |file: &str| Tree::load(&root.join(file), &Overlay::new());
        for (text, words) in [
            ("server {", "fix it and test it with nginx -t"),
            ("include part;", "remove the include ("),
            (
                "include absent;",
                "and run as a user that may read all files",
            ),
        ] {
            std::fs::write(&part, text).unwrap();
            let hints = load("nginx.conf").unwrap_err().in_a_line();
            assert!(hints.contains(words), "{hints}");
        }
        std::fs::write(&part, "listen 80;").unwrap();
        let hints = load("absent.conf").unwrap_err().in_a_line();
        assert!(
            hints.contains("name nginx's main file with --conf FILE"),
            "{hints}"
        );
        load("nginx.conf").unwrap();
    }

    #[test]
    fn includes_follow_links_and_refuse_loops() {
        let directory = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(directory.path()).unwrap();
        let write = |name: &str, text: &str| {
            std::fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            std::fs::write(root.join(name), text).unwrap();
        };
        write(
            "nginx.conf",
            "http { include enabled/*; include mime.types; }",
        );
        write("mime.types", "types { }");
        write("available/b", "server { include snippet; }");
        write("snippet", "listen 80;");
        std::fs::create_dir(root.join("enabled")).unwrap();
        std::os::unix::fs::symlink("../available/b", root.join("enabled/b")).unwrap();
        let tree = Tree::load(&root.join("nginx.conf"), &Overlay::new()).unwrap();
        let paths: Vec<_> = tree.files.iter().map(|file| file.path.clone()).collect();
        let expected = ["nginx.conf", "available/b", "snippet", "mime.types"];
        assert_eq!(paths, expected.map(|name| root.join(name)));
        let http = tree.within(0, &tree.files[0].directives)[0];
        let names: Vec<_> = tree
            .inside(http)
            .iter()
            .map(|one| one.directive.name())
            .collect();
        assert_eq!(names, ["server", "types"]);

        write("snippet", "include available/b;");
        let refused = Tree::load(&root.join("nginx.conf"), &Overlay::new()).unwrap_err();
        assert!(refused.summary().contains("includes itself"), "{refused:?}");
        write("snippet", "include absent;");
        let refused = Tree::load(&root.join("nginx.conf"), &Overlay::new()).unwrap_err();
        assert!(refused.summary().contains("snippet:1"), "{refused:?}");

        let overlay = Overlay::from([
            (root.join("enabled/new"), b"server { }".to_vec()),
            (root.join("snippet"), b"listen 81;".to_vec()),
        ]);
        let tree = Tree::load(&root.join("nginx.conf"), &overlay).unwrap();
        assert_eq!(tree.files.len(), 5);
    }
}
