//! A disk that loses power. It is told what a run asked of the kernel, step by
//! step, and answers what stands on it after a crash: what was flushed, and of
//! the rest nothing, or all but the data, or a part. A flush of a file keeps its
//! content and mode, a flush of a directory its entries, and nothing keeps
//! anything else: no order between two steps is taken for granted.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use certs::random::{Random, SeededRandom};

use super::strace::Call;

type Number = usize;

/// What a number of the disk stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Node {
    File {
        mode: u32,
        bytes: Vec<u8>,
    },
    Directory {
        mode: u32,
        entries: BTreeMap<String, Number>,
    },
    Link(String),
}

/// One step, and the one thing that a flush must hit for it to be kept.
#[derive(Clone, Debug)]
enum Step {
    Enter {
        directory: Number,
        name: String,
        node: Number,
    },
    Leave {
        directory: Number,
        name: String,
    },
    /// Within one directory.
    Rename {
        directory: Number,
        from: String,
        to: String,
        node: Number,
    },
    Exchange {
        directory: Number,
        names: [String; 2],
        nodes: [Number; 2],
    },
    Write {
        node: Number,
        at: usize,
        bytes: Vec<u8>,
    },
    Cut {
        node: Number,
        length: usize,
    },
    Mode {
        node: Number,
        mode: u32,
    },
    Flush(Number),
    /// To the CA: nothing that came before may be lost.
    Send,
}

/// What becomes of that which was not flushed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Loss {
    All,
    /// The data; names, modes and lengths of nothing are kept.
    Data,
    /// The second half of each piece of data.
    HalfOfData,
    /// By the seed, each step on its own.
    Some(u64),
}

/// Which flushes do nothing, as on a disk that lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ignored {
    None,
    All,
    /// The nth, from 0.
    One(usize),
}

#[derive(Clone, Debug)]
pub(crate) struct Disk {
    /// Before the first step, and each new node as it was made.
    nodes: BTreeMap<Number, Node>,
    steps: Vec<Step>,
    /// The path of each flush, for whoever reads of it.
    flushed: Vec<String>,
}

const ROOT: Number = 0;

/// All that is on the disk, by path.
pub(crate) type Tree = BTreeMap<PathBuf, Node>;

impl Disk {
    /// What stands below `root`, all of it long since flushed.
    pub(crate) fn of(root: &Path) -> Self {
        let mut disk = Self {
            nodes: BTreeMap::new(),
            steps: Vec::new(),
            flushed: Vec::new(),
        };
        disk.read(root);
        disk
    }

    fn read(&mut self, path: &Path) -> Number {
        let found = std::fs::symlink_metadata(path).unwrap();
        let number = self.add(Node::Link(String::new()));
        let mode = found.mode() & 0o7777;
        let node = if found.is_symlink() {
            let target = std::fs::read_link(path).unwrap();
            Node::Link(target.to_str().unwrap().to_owned())
        } else if found.is_dir() {
            let mut entries = BTreeMap::new();
            for entry in std::fs::read_dir(path).unwrap() {
                let entry = entry.unwrap();
                let name = entry.file_name().into_string().unwrap();
                entries.insert(name, self.read(&entry.path()));
            }
            Node::Directory { mode, entries }
        } else if found.is_file() {
            let bytes = std::fs::read(path).unwrap();
            Node::File { mode, bytes }
        } else {
            Node::File {
                mode,
                bytes: Vec::new(),
            } // a socket
        };
        self.nodes.insert(number, node);
        number
    }

    fn add(&mut self, node: Node) -> Number {
        let number = self.nodes.len();
        self.nodes.insert(number, node);
        number
    }

    /// How many steps can come before a crash.
    pub(crate) fn steps(&self) -> usize {
        self.steps.len()
    }

    /// Whether the last of the first `steps` was to send something to the CA.
    pub(crate) fn sends(&self, steps: usize) -> bool {
        steps > 0 && matches!(self.steps[steps - 1], Step::Send)
    }

    /// What was flushed, in order.
    pub(crate) fn flushes(&self) -> &[String] {
        &self.flushed
    }

    /// What a process sees after the first `steps`.
    pub(crate) fn seen(&self, steps: usize) -> Tree {
        self.after(steps, |_, _| Some(true))
    }

    /// What a crash after the first `steps` leaves.
    pub(crate) fn left(&self, steps: usize, loss: Loss, ignored: Ignored) -> Tree {
        let kept = self.kept(steps, ignored);
        let dice = match loss {
            Loss::Some(seed) => SeededRandom::new(seed),
            _ => SeededRandom::new(0),
        };
        self.after(steps, |index, step| {
            let data = matches!(step, Step::Write { .. });
            match loss {
                _ if kept[index] => Some(true),
                Loss::All => None,
                Loss::Data => (!data).then_some(true),
                Loss::HalfOfData => Some(!data),
                Loss::Some(_) => (dice.below(2) == 0).then_some(true),
            }
        })
    }

    /// Which of the first `steps` a flush has made durable.
    fn kept(&self, steps: usize, ignored: Ignored) -> Vec<bool> {
        let mut kept = vec![false; steps];
        let mut open: BTreeMap<Number, Vec<usize>> = BTreeMap::new();
        let mut flush = 0;
        for (index, step) in self.steps[..steps].iter().enumerate() {
            let Step::Flush(node) = step else {
                if let Some(node) = step.needs() {
                    open.entry(node).or_default().push(index);
                }
                continue;
            };
            let does_nothing = match ignored {
                Ignored::None => false,
                Ignored::All => true,
                Ignored::One(nth) => nth == flush,
            };
            flush += 1;
            if !does_nothing {
                let done = open.remove(node).unwrap_or_default();
                done.into_iter().for_each(|index| kept[index] = true);
            }
        }
        kept
    }

    /// Applies those of the first `steps` that `survives` keeps: whole, or
    /// (`false`) the first half of the data.
    fn after(&self, steps: usize, survives: impl Fn(usize, &Step) -> Option<bool>) -> Tree {
        let mut nodes = self.nodes.clone();
        for (index, step) in self.steps[..steps].iter().enumerate() {
            if let Some(whole) = survives(index, step) {
                step.apply(&mut nodes, whole);
            }
        }
        let mut tree = Tree::new();
        spread(&nodes, ROOT, Path::new(""), &mut tree);
        tree
    }
}

impl Step {
    fn needs(&self) -> Option<Number> {
        match self {
            Self::Enter { directory, .. }
            | Self::Leave { directory, .. }
            | Self::Rename { directory, .. }
            | Self::Exchange { directory, .. } => Some(*directory),
            Self::Write { node, .. } | Self::Cut { node, .. } | Self::Mode { node, .. } => {
                Some(*node)
            }
            Self::Flush(_) | Self::Send => None,
        }
    }

    fn apply(&self, nodes: &mut BTreeMap<Number, Node>, whole: bool) {
        match self {
            Self::Enter {
                directory,
                name,
                node,
            } => {
                entries(nodes, *directory).insert(name.clone(), *node);
            }
            Self::Leave { directory, name } => {
                entries(nodes, *directory).remove(name);
            }
            Self::Rename {
                directory,
                from,
                to,
                node,
            } => {
                let entries = entries(nodes, *directory);
                entries.remove(from);
                entries.insert(to.clone(), *node);
            }
            Self::Exchange {
                directory,
                names,
                nodes: two,
            } => {
                let entries = entries(nodes, *directory);
                entries.insert(names[0].clone(), two[1]);
                entries.insert(names[1].clone(), two[0]);
            }
            Self::Write { node, at, bytes } => {
                let length = if whole { bytes.len() } else { bytes.len() / 2 };
                let content = content(nodes, *node);
                content.resize(content.len().max(at + length), 0);
                content[*at..at + length].copy_from_slice(&bytes[..length]);
            }
            Self::Cut { node, length } => content(nodes, *node).resize(*length, 0),
            Self::Mode { node, mode: new } => match nodes.get_mut(node).unwrap() {
                Node::File { mode, .. } | Node::Directory { mode, .. } => *mode = *new,
                Node::Link(_) => unreachable!("a link has no mode"),
            },
            Self::Flush(_) | Self::Send => {}
        }
    }
}

fn entries(nodes: &mut BTreeMap<Number, Node>, number: Number) -> &mut BTreeMap<String, Number> {
    match nodes.get_mut(&number) {
        Some(Node::Directory { entries, .. }) => entries,
        other => panic!("{other:?} is no directory"),
    }
}

fn content(nodes: &mut BTreeMap<Number, Node>, number: Number) -> &mut Vec<u8> {
    match nodes.get_mut(&number) {
        Some(Node::File { bytes, .. }) => bytes,
        other => panic!("{other:?} is no file"),
    }
}

fn spread(nodes: &BTreeMap<Number, Node>, number: Number, path: &Path, tree: &mut Tree) {
    let mut node = nodes[&number].clone();
    if let Node::Directory { entries, .. } = &mut node {
        for (name, child) in std::mem::take(entries) {
            spread(nodes, child, &path.join(name), tree);
        }
    }
    tree.insert(path.to_owned(), node);
}

/// Writes `tree` down below `root`.
pub(crate) fn write_down(tree: &Tree, root: &Path) {
    let mut modes = Vec::new();
    for (path, node) in tree {
        let path = root.join(path);
        match node {
            Node::Directory { mode, .. } => {
                std::fs::create_dir_all(&path).unwrap();
                modes.push((path, *mode));
            }
            Node::File { mode, bytes } => {
                std::fs::write(&path, bytes).unwrap();
                modes.push((path, *mode));
            }
            Node::Link(target) => symlink(target, &path).unwrap(),
        }
    }
    // The deepest first: a directory may be closed to us in the end.
    for (path, mode) in modes.into_iter().rev() {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }
}

/// Turns the calls of a run into steps.
pub(crate) struct Replay<'a> {
    disk: Disk,
    root: &'a Path,
    /// The nodes as the process sees them.
    nodes: BTreeMap<Number, Node>,
    open: BTreeMap<i64, Open>,
}

#[derive(Clone, Copy)]
enum Open {
    File { node: Number, at: usize },
    Ca,
}

/// What strace must record, beside its points, for a replay.
pub(crate) const FOR_REPLAY: [&str; 3] = ["read", "lseek", "close"];

impl<'a> Replay<'a> {
    /// Below `root`, from what `disk` holds.
    pub(crate) fn new(disk: Disk, root: &'a Path) -> Self {
        Self {
            nodes: disk.nodes.clone(),
            disk,
            root,
            open: BTreeMap::new(),
        }
    }

    pub(crate) fn all(mut self, calls: &[Call]) -> Disk {
        for call in calls {
            if let Some(returned) = call.returned {
                self.call(call, &arguments(&call.arguments), returned);
            } else if call.name == "connect" && call.arguments.contains("AF_INET") {
                // It is under way.
                let descriptor = arguments(&call.arguments)[0].parse().unwrap();
                self.open.insert(descriptor, Open::Ca);
            }
        }
        self.disk
    }

    fn call(&mut self, call: &Call, arguments: &[String], returned: i64) {
        let argument = |index: usize| arguments[index].as_str();
        let number = |index: usize| arguments[index].parse::<i64>().unwrap_or(-1);
        let length = usize::try_from(returned).unwrap();
        match call.name.as_str() {
            "openat" => self.open(&arguments[..], returned),
            "close" => {
                self.open.remove(&number(0));
            }
            "read" => self.moved(number(0), |at| at + length),
            "lseek" => self.moved(number(0), |_| length),
            "write" | "writev" | "sendto" | "sendmsg" => {
                self.write(number(0), &bytes(argument(1)), length);
            }
            "connect" if argument(1).contains("AF_INET") => {
                self.open.insert(number(0), Open::Ca);
            }
            "ftruncate" => {
                let length = usize::try_from(number(1)).unwrap();
                self.on(number(0), |node| Step::Cut { node, length });
            }
            "fsync" | "fdatasync" => {
                if let Some(node) = self.file(number(0)) {
                    self.disk.flushed.push(self.path_of(node));
                    self.step(Step::Flush(node));
                }
            }
            "fchmod" => {
                let mode = octal(argument(1));
                self.on(number(0), |node| Step::Mode { node, mode });
            }
            "chmod" => self.mode(self.at("AT_FDCWD", argument(0)), argument(1)),
            "fchmodat" => self.mode(self.at(argument(0), argument(1)), argument(2)),
            "mkdir" => self.make_directory(self.at("AT_FDCWD", argument(0)), argument(1)),
            "mkdirat" => self.make_directory(self.at(argument(0), argument(1)), argument(2)),
            "symlink" => self.link(argument(0), self.at("AT_FDCWD", argument(1))),
            "symlinkat" => self.link(argument(0), self.at(argument(1), argument(2))),
            "unlink" | "rmdir" => self.leave(self.at("AT_FDCWD", argument(0))),
            "unlinkat" => self.leave(self.at(argument(0), argument(1))),
            "rename" => {
                let from = self.at("AT_FDCWD", argument(0));
                self.rename(from, self.at("AT_FDCWD", argument(1)), false);
            }
            "renameat" | "renameat2" => {
                let from = self.at(argument(0), argument(1));
                let exchange = arguments
                    .get(4)
                    .is_some_and(|flags| flags.contains("EXCHANGE"));
                self.rename(from, self.at(argument(2), argument(3)), exchange);
            }
            "flock" | "recvfrom" | "recvmsg" => {}
            name => self.is_none_of_ours(name, arguments),
        }
    }

    /// A call that is not known here must not be about our files.
    fn is_none_of_ours(&self, name: &str, arguments: &[String]) {
        let paths = arguments.iter().filter(|text| text.starts_with('"'));
        let about = paths.map(|text| PathBuf::from(string(text)));
        let about = about.filter(|path| path.starts_with(self.root)).count();
        let first = arguments.first().and_then(|text| text.parse().ok());
        let file = first.and_then(|descriptor| self.file(descriptor));
        // The socket that a running sidecar would answer at is looked for.
        assert!(
            about == 0 && file.is_none(),
            "the replay does not know {name}({})",
            arguments.join(", ")
        );
    }

    fn open(&mut self, arguments: &[String], descriptor: i64) {
        self.open.remove(&descriptor);
        let flags = &arguments[2];
        let creates = flags.contains("O_CREAT");
        let Some((directory, name)) = self.at(&arguments[0], &arguments[1]) else {
            return;
        };
        let found = if name.is_empty() {
            Some(directory)
        } else {
            self.entry(directory, &name)
        };
        let node = match found {
            Some(node) => node,
            None if creates => {
                let mode = octal(&arguments[3]) & !0o022;
                let node = self.enter(
                    directory,
                    name,
                    Node::File {
                        mode,
                        bytes: Vec::new(),
                    },
                );
                node
            }
            None => panic!("{} is not known to the replay", string(&arguments[1])),
        };
        if flags.contains("O_TRUNC") {
            self.step(Step::Cut { node, length: 0 });
        }
        assert!(!flags.contains("O_APPEND"), "the replay does not know it");
        self.open.insert(descriptor, Open::File { node, at: 0 });
    }

    fn file(&self, descriptor: i64) -> Option<Number> {
        match self.open.get(&descriptor)? {
            Open::File { node, .. } => Some(*node),
            Open::Ca => None,
        }
    }

    fn on(&mut self, descriptor: i64, step: impl FnOnce(Number) -> Step) {
        if let Some(node) = self.file(descriptor) {
            self.step(step(node));
        }
    }

    fn moved(&mut self, descriptor: i64, to: impl FnOnce(usize) -> usize) {
        if let Some(Open::File { at, .. }) = self.open.get_mut(&descriptor) {
            *at = to(*at);
        }
    }

    fn write(&mut self, descriptor: i64, bytes: &[u8], length: usize) {
        match self.open.get(&descriptor).copied() {
            Some(Open::File { node, at }) => {
                assert!(bytes.len() >= length, "strace has cut {bytes:?} off");
                let bytes = bytes[..length].to_vec();
                self.step(Step::Write { node, at, bytes });
                self.moved(descriptor, |at| at + length);
            }
            Some(Open::Ca) => self.step(Step::Send),
            None => {}
        }
    }

    fn mode(&mut self, place: Option<(Number, String)>, mode: &str) {
        if let Some((directory, name)) = place {
            let node = self.entry(directory, &name).unwrap();
            let mode = octal(mode);
            self.step(Step::Mode { node, mode });
        }
    }

    fn make_directory(&mut self, place: Option<(Number, String)>, mode: &str) {
        if let Some((directory, name)) = place {
            let mode = octal(mode) & !0o022;
            let entries = BTreeMap::new();
            self.enter(directory, name, Node::Directory { mode, entries });
        }
    }

    fn link(&mut self, target: &str, place: Option<(Number, String)>) {
        if let Some((directory, name)) = place {
            self.enter(directory, name, Node::Link(string(target)));
        }
    }

    fn enter(&mut self, directory: Number, name: String, node: Node) -> Number {
        let number = self.disk.add(node.clone());
        self.nodes.insert(number, node);
        self.step(Step::Enter {
            directory,
            name,
            node: number,
        });
        number
    }

    fn leave(&mut self, place: Option<(Number, String)>) {
        if let Some((directory, name)) = place {
            self.step(Step::Leave { directory, name });
        }
    }

    fn rename(
        &mut self,
        from: Option<(Number, String)>,
        to: Option<(Number, String)>,
        exchange: bool,
    ) {
        let (Some((directory, from)), Some((other, to))) = (from, to) else {
            return;
        };
        assert_eq!(
            directory, other,
            "the replay knows renames within a directory"
        );
        let node = self.entry(directory, &from).unwrap();
        let step = if exchange {
            let nodes = [node, self.entry(directory, &to).unwrap()];
            let names = [from, to];
            Step::Exchange {
                directory,
                names,
                nodes,
            }
        } else {
            Step::Rename {
                directory,
                from,
                to,
                node,
            }
        };
        self.step(step);
    }

    fn step(&mut self, step: Step) {
        step.apply(&mut self.nodes, true);
        self.disk.steps.push(step);
    }

    /// The directory and the last name of a path below the root; the name is
    /// empty for the root itself.
    fn at(&self, from: &str, path: &str) -> Option<(Number, String)> {
        let path = PathBuf::from(string(path));
        let (mut directory, path) = match from.parse::<i64>() {
            Ok(descriptor) => (self.file(descriptor)?, path),
            Err(_) => (ROOT, path.strip_prefix(self.root).ok()?.to_owned()),
        };
        let names = path.components().map(|part| match part {
            Component::Normal(name) => name.to_str().unwrap().to_owned(),
            other => panic!("the replay does not know {other:?}"),
        });
        let mut names: Vec<String> = names.collect();
        let last = names.pop().unwrap_or_default();
        for name in names {
            directory = self.follow(directory, &name);
        }
        Some((directory, last))
    }

    /// Through the one kind of link that there is: `live/NAME`.
    fn follow(&self, directory: Number, name: &str) -> Number {
        let node = self.entry(directory, name);
        let node = node.unwrap_or_else(|| panic!("the replay knows no {name}"));
        let Node::Link(target) = &self.nodes[&node] else {
            return node;
        };
        let below = target.strip_prefix("../").unwrap().split('/');
        below.fold(self.output(), |at, name| self.entry(at, name).unwrap())
    }

    fn output(&self) -> Number {
        self.entry(ROOT, "out").unwrap()
    }

    fn entry(&self, directory: Number, name: &str) -> Option<Number> {
        match &self.nodes[&directory] {
            Node::Directory { entries, .. } => entries.get(name).copied(),
            other => panic!("{other:?} is no directory"),
        }
    }

    fn path_of(&self, node: Number) -> String {
        fn search(nodes: &BTreeMap<Number, Node>, at: Number, wanted: Number) -> Option<String> {
            if at == wanted {
                return Some(String::new());
            }
            let Node::Directory { entries, .. } = &nodes[&at] else {
                return None;
            };
            let mut found = entries.iter().filter_map(|(name, child)| {
                search(nodes, *child, wanted).map(|below| format!("/{name}{below}"))
            });
            found.next()
        }
        search(&self.nodes, ROOT, node).unwrap_or_default()
    }
}

/// Splits at the commas outside of all brackets. With `-xx` no text has one.
fn arguments(text: &str) -> Vec<String> {
    let (mut parts, mut depth) = (vec![String::new()], 0_i32);
    for letter in text.chars() {
        match letter {
            '[' | '{' => depth += 1,
            ']' | '}' => depth -= 1,
            _ => {}
        }
        match parts.last_mut() {
            Some(_) if letter == ',' && depth == 0 => parts.push(String::new()),
            Some(part) => part.push(letter),
            None => {}
        }
    }
    parts.iter().map(|part| part.trim().to_owned()).collect()
}

/// Every text of an argument, one after the other.
fn bytes(argument: &str) -> Vec<u8> {
    let texts = argument.split('"').skip(1).step_by(2);
    let digits = texts.flat_map(|text| text.split("\\x").skip(1));
    digits
        .map(|digits| u8::from_str_radix(digits, 16).unwrap())
        .collect()
}

fn string(argument: &str) -> String {
    String::from_utf8(bytes(argument)).unwrap()
}

fn octal(argument: &str) -> u32 {
    u32::from_str_radix(argument, 8).unwrap()
}
