//! Turns the trace of a run into the steps of a disk. Paths and descriptors are followed as the process saw
//! them, also a path that is walked one descriptor after the other, and an unknown call about our files fails
//! the test.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::disk::{Disk, Inode, Node, ROOT, Step};
use super::strace::Call;

/// Turns the calls of a run into steps.
pub(crate) struct Replay<'a> {
    disk: Disk,
    root: &'a Path,
    /// The nodes as the process sees them.
    nodes: BTreeMap<Inode, Node>,
    open: BTreeMap<i64, Open>,
    /// The permission bits that a new file may have.
    mask: u32,
}

#[derive(Clone)]
enum Open {
    File {
        node: Inode,
        at: usize,
    },
    Ca,
    /// A directory above the root, or beside it.
    Elsewhere(PathBuf),
}

/// The calls that strace must record for a replay, besides its points.
pub(crate) const FOR_REPLAY: [&str; 3] = ["read", "lseek", "close"];

impl<'a> Replay<'a> {
    /// Starts from the files below `root` on `disk`.
    pub(crate) fn new(disk: Disk, root: &'a Path) -> Self {
        Self {
            nodes: disk.nodes.clone(),
            disk,
            root,
            open: BTreeMap::new(),
            mask: !umask(),
        }
    }

    /// Replays one process after the other.
    pub(crate) fn all(mut self, runs: &[Vec<Call>]) -> Disk {
        for calls in runs {
            self.open.clear();
            self.run(calls);
        }
        self.disk
    }

    fn run(&mut self, calls: &[Call]) {
        for call in calls {
            if let Some(returned) = call.returned {
                self.call(call, &arguments(&call.arguments), returned);
            } else if call.name == "connect" && call.arguments.contains("AF_INET") {
                // The connection is in progress.
                let descriptor = arguments(&call.arguments)[0].parse().unwrap();
                self.open.insert(descriptor, Open::Ca);
            }
        }
    }

    fn call(&mut self, call: &Call, arguments: &[String], returned: i64) {
        let argument = |index: usize| arguments[index].as_str();
        let number = |index: usize| arguments[index].parse::<i64>().unwrap_or(-1);
        let length = usize::try_from(returned).unwrap();
        match call.name.as_str() {
            "openat" => self.open(arguments, returned),
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

    /// An unknown call must not be about our files.
    fn is_none_of_ours(&self, name: &str, arguments: &[String]) {
        let paths = arguments.iter().filter(|text| text.starts_with('"'));
        let about = paths.map(|text| PathBuf::from(string(text)));
        let about = about.filter(|path| path.starts_with(self.root)).count();
        let first = arguments.first().and_then(|text| text.parse().ok());
        let file = first.and_then(|descriptor| self.file(descriptor));
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
            let elsewhere = self.elsewhere(&arguments[0], &arguments[1]);
            self.open.extend(elsewhere.map(|open| (descriptor, open)));
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
                let mode = octal(&arguments[3]) & self.mask;
                self.enter(
                    directory,
                    name,
                    Node::File {
                        mode,
                        bytes: Vec::new(),
                    },
                )
            }
            None => panic!("{} is not known to the replay", string(&arguments[1])),
        };
        if flags.contains("O_TRUNC") {
            self.step(Step::Cut { node, length: 0 });
        }
        assert!(!flags.contains("O_APPEND"), "the replay does not know it");
        self.open.insert(descriptor, Open::File { node, at: 0 });
    }

    fn file(&self, descriptor: i64) -> Option<Inode> {
        match self.open.get(&descriptor)? {
            Open::File { node, .. } => Some(*node),
            Open::Ca | Open::Elsewhere(_) => None,
        }
    }

    fn on(&mut self, descriptor: i64, step: impl FnOnce(Inode) -> Step) {
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
        match self.open.get(&descriptor).cloned() {
            Some(Open::File { node, at }) => {
                assert!(bytes.len() >= length, "strace has cut {bytes:?} off");
                let bytes = bytes[..length].to_vec();
                self.step(Step::Write { node, at, bytes });
                self.moved(descriptor, |at| at + length);
            }
            Some(Open::Ca) => self.step(Step::Send),
            Some(Open::Elsewhere(_)) | None => {}
        }
    }

    fn mode(&mut self, place: Option<(Inode, String)>, mode: &str) {
        if let Some((directory, name)) = place {
            let node = self.entry(directory, &name).unwrap();
            let mode = octal(mode);
            self.step(Step::Mode { node, mode });
        }
    }

    fn make_directory(&mut self, place: Option<(Inode, String)>, mode: &str) {
        if let Some((directory, name)) = place {
            let Node::Directory { mode: above, .. } = self.nodes[&directory] else {
                panic!("{name}: its parent is not a directory");
            };
            // A new directory inherits the set-group-id bit.
            let mode = octal(mode) & self.mask | above & 0o2000;
            let entries = BTreeMap::new();
            self.enter(directory, name, Node::Directory { mode, entries });
        }
    }

    fn link(&mut self, target: &str, place: Option<(Inode, String)>) {
        if let Some((directory, name)) = place {
            self.enter(directory, name, Node::Link(string(target)));
        }
    }

    fn enter(&mut self, directory: Inode, name: String, node: Node) -> Inode {
        let number = self.disk.add(node.clone());
        self.nodes.insert(number, node);
        self.step(Step::Enter {
            directory,
            name,
            node: number,
        });
        number
    }

    fn leave(&mut self, place: Option<(Inode, String)>) {
        if let Some((directory, name)) = place {
            self.step(Step::Leave { directory, name });
        }
    }

    fn rename(
        &mut self,
        from: Option<(Inode, String)>,
        to: Option<(Inode, String)>,
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

    /// The directory and the last name of a path below the root; the name is empty for the root itself.
    fn at(&self, from: &str, path: &str) -> Option<(Inode, String)> {
        let (mut directory, path) = match self.elsewhere(from, path) {
            Some(Open::Elsewhere(path)) => (ROOT, path.strip_prefix(self.root).ok()?.to_owned()),
            _ => (self.file(from.parse().ok()?)?, string(path).into()),
        };
        let names = path.components().filter(|part| *part != Component::CurDir);
        let names = names.map(|part| match part {
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

    /// The absolute path, unless it starts at a descriptor below the root.
    fn elsewhere(&self, from: &str, path: &str) -> Option<Open> {
        let above = match from.parse::<i64>() {
            Ok(descriptor) => match self.open.get(&descriptor)? {
                Open::Elsewhere(above) => above.clone(),
                Open::File { .. } | Open::Ca => return None,
            },
            Err(_) => PathBuf::new(),
        };
        Some(Open::Elsewhere(above.join(string(path))))
    }

    /// Follows the only kind of link: `live/NAME`.
    fn follow(&self, directory: Inode, name: &str) -> Inode {
        let node = self.entry(directory, name);
        let node = node.unwrap_or_else(|| panic!("the replay knows no {name}"));
        let Node::Link(target) = &self.nodes[&node] else {
            return node;
        };
        let below = target.strip_prefix("../").unwrap().split('/');
        below.fold(self.output(), |at, name| self.entry(at, name).unwrap())
    }

    fn output(&self) -> Inode {
        self.entry(ROOT, "out").unwrap()
    }

    fn entry(&self, directory: Inode, name: &str) -> Option<Inode> {
        match &self.nodes[&directory] {
            Node::Directory { entries, .. } => entries.get(name).copied(),
            other => panic!("{other:?} is not a directory"),
        }
    }

    fn path_of(&self, node: Inode) -> String {
        fn search(nodes: &BTreeMap<Inode, Node>, at: Inode, wanted: Inode) -> Option<String> {
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

/// Splits at the commas outside of all brackets. With `-xx`, strings contain none.
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

/// Every string of an argument, in order.
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

/// The umask of this process, which its children inherit.
fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    octal(line.unwrap().trim())
}

fn octal(argument: &str) -> u32 {
    u32::from_str_radix(argument, 8).unwrap()
}
