//! A disk that loses power. It gets the system calls of a run step by step, and returns its content after a
//! crash: flushed data, and of the rest nothing, all but the data, or a part. A flush of a file keeps its
//! content and mode, a flush of a directory its entries. No order between two steps is assumed.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use certs::random::{Random, SeededRandom};

pub(super) type Inode = usize;

/// The content of one inode.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Node {
    File {
        mode: u32,
        bytes: Vec<u8>,
    },
    Directory {
        mode: u32,
        entries: BTreeMap<String, Inode>,
    },
    Link(String),
}

/// One step; each depends on the flush of one node.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Enter {
        directory: Inode,
        name: String,
        node: Inode,
    },
    Leave {
        directory: Inode,
        name: String,
    },
    /// Within one directory.
    Rename {
        directory: Inode,
        from: String,
        to: String,
        node: Inode,
    },
    Exchange {
        directory: Inode,
        names: [String; 2],
        nodes: [Inode; 2],
    },
    Write {
        node: Inode,
        at: usize,
        bytes: Vec<u8>,
    },
    Cut {
        node: Inode,
        length: usize,
    },
    Mode {
        node: Inode,
        mode: u32,
    },
    Flush(Inode),
    /// Data sent to the CA: no earlier step may be lost.
    Send,
}

/// The fate of steps that were not flushed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Loss {
    All,
    /// The data is lost; names, modes and truncations are kept.
    Data,
    /// The second half of each write is lost.
    HalfOfData,
    /// Each step is lost or kept at random, by the seed.
    Some(u64),
}

/// The flushes without effect, as on a disk that lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IgnoredFlushes {
    None,
    All,
    /// The nth, from 0.
    One(usize),
}

#[derive(Clone, Debug)]
pub(crate) struct Disk {
    /// The nodes before the first step, and each new node as created.
    pub(super) nodes: BTreeMap<Inode, Node>,
    pub(super) steps: Vec<Step>,
    /// The path of each flush, for messages.
    pub(super) flushed: Vec<String>,
}

pub(super) const ROOT: Inode = 0;

/// The content of the disk, by path.
pub(crate) type Tree = BTreeMap<PathBuf, Node>;

impl Disk {
    /// A disk with the files below `root`, all of them flushed.
    pub(crate) fn of(root: &Path) -> Self {
        let mut disk = Self {
            nodes: BTreeMap::new(),
            steps: Vec::new(),
            flushed: Vec::new(),
        };
        disk.read(root);
        disk
    }

    fn read(&mut self, path: &Path) -> Inode {
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

    pub(super) fn add(&mut self, node: Node) -> Inode {
        let number = self.nodes.len();
        self.nodes.insert(number, node);
        number
    }

    /// The number of steps before the last possible crash.
    pub(crate) fn steps(&self) -> usize {
        self.steps.len()
    }

    /// Whether the last of the first `steps` sends data to the CA.
    pub(crate) fn sends(&self, steps: usize) -> bool {
        steps > 0 && matches!(self.steps[steps - 1], Step::Send)
    }

    /// The path of each flush, in order.
    pub(crate) fn flushes(&self) -> &[String] {
        &self.flushed
    }

    /// The content that a process sees after the first `steps`.
    pub(crate) fn seen(&self, steps: usize) -> Tree {
        self.after(steps, |_, _| Some(true))
    }

    /// The content after a crash behind the first `steps`.
    pub(crate) fn left(&self, steps: usize, loss: Loss, ignored: IgnoredFlushes) -> Tree {
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
    fn kept(&self, steps: usize, ignored: IgnoredFlushes) -> Vec<bool> {
        let mut kept = vec![false; steps];
        let mut open: BTreeMap<Inode, Vec<usize>> = BTreeMap::new();
        let mut flush = 0;
        for (index, step) in self.steps[..steps].iter().enumerate() {
            let Step::Flush(node) = step else {
                if let Some(node) = step.needs() {
                    open.entry(node).or_default().push(index);
                }
                continue;
            };
            let does_nothing = match ignored {
                IgnoredFlushes::None => false,
                IgnoredFlushes::All => true,
                IgnoredFlushes::One(nth) => nth == flush,
            };
            flush += 1;
            if !does_nothing {
                let done = open.remove(node).unwrap_or_default();
                done.into_iter().for_each(|index| kept[index] = true);
            }
        }
        kept
    }

    /// Applies those of the first `steps` that `survives` keeps: whole, or (`false`) the first half of the
    /// data.
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
    fn needs(&self) -> Option<Inode> {
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

    pub(super) fn apply(&self, nodes: &mut BTreeMap<Inode, Node>, whole: bool) {
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

fn entries(nodes: &mut BTreeMap<Inode, Node>, number: Inode) -> &mut BTreeMap<String, Inode> {
    match nodes.get_mut(&number) {
        Some(Node::Directory { entries, .. }) => entries,
        other => panic!("{other:?} is not a directory"),
    }
}

fn content(nodes: &mut BTreeMap<Inode, Node>, number: Inode) -> &mut Vec<u8> {
    match nodes.get_mut(&number) {
        Some(Node::File { bytes, .. }) => bytes,
        other => panic!("{other:?} is not a file"),
    }
}

fn spread(nodes: &BTreeMap<Inode, Node>, number: Inode, path: &Path, tree: &mut Tree) {
    let mut node = nodes[&number].clone();
    if let Node::Directory { entries, .. } = &mut node {
        for (name, child) in std::mem::take(entries) {
            spread(nodes, child, &path.join(name), tree);
        }
    }
    tree.insert(path.to_owned(), node);
}

/// Writes `tree` below `root`.
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
    // The deepest path first: the new mode of a directory may deny us access.
    for (path, mode) in modes.into_iter().rev() {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }
}
