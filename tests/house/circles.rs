//! The modules of a folder name each other in one direction only, so that each can be read with the modules
//! below it. A folder and its own modules do not count, since it declares them. Also: the table of imports
//! permits only imports that are used.

use std::collections::{BTreeMap, BTreeSet};

use super::{ROOMS, Source, VOCABULARY, after_colons, is_of_word, read_house, rooms_named, words};

#[test]
fn modules_of_one_folder_form_no_cycle() {
    let faults = circles(read_house()).into_iter().map(|(folder, circle)| {
        let circle = Vec::from_iter(circle).join(", ");
        format!("src/{folder}/: a circle among {circle}")
    });
    let faults = Vec::from_iter(faults);
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn room_table_permits_only_used_imports() {
    let house = read_house();
    let rooms: BTreeSet<String> = house.iter().map(Source::room).collect();
    let mut faults = Vec::new();
    let names = ROOMS.iter().map(|(room, _)| room).chain(VOCABULARY);
    for gone in names.filter(|room| !rooms.contains(**room)) {
        faults.push(format!("`{gone}` is in the table and not in src/"));
    }
    for (room, allowed) in ROOMS {
        let of_room = house.iter().filter(|source| source.room() == *room);
        let used: BTreeSet<String> = of_room
            .flat_map(rooms_named)
            .map(|(_, named)| named)
            .collect();
        for unused in allowed.iter().filter(|named| !used.contains(**named)) {
            faults.push(format!(
                "`{room}` may import `{unused}`, and does not: take it off"
            ));
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// By folder, the modules that reach themselves.
fn circles(house: &[Source]) -> BTreeMap<String, BTreeSet<String>> {
    let compiled = house.iter().filter(|source| !source.code.is_empty());
    let modules: BTreeSet<String> = compiled.map(Source::module).collect();
    let shown = re_exports(house, &modules);
    let mut edges: BTreeMap<String, BTreeSet<(String, String)>> = BTreeMap::new();
    for source in house {
        let from = source.module();
        for path in paths_named(source) {
            let to = defined_in(&path, &modules, &shown);
            if let Some((folder, pair)) = siblings(&from, &to) {
                edges.entry(folder).or_default().insert(pair);
            }
        }
    }
    edges.retain(|_, pairs| {
        let all = pairs.clone();
        pairs.retain(|(one, other)| reaches(&all, other, one));
        !pairs.is_empty()
    });
    let members = |pairs: BTreeSet<(String, String)>| pairs.into_iter().map(|(one, _)| one);
    let all = edges.into_iter();
    all.map(|(folder, pairs)| (folder, members(pairs).collect()))
        .collect()
}

fn reaches(pairs: &BTreeSet<(String, String)>, from: &str, to: &str) -> bool {
    let (mut open, mut seen) = (vec![from], BTreeSet::from([from]));
    while let Some(here) = open.pop() {
        if here == to {
            return true;
        }
        let next = pairs.iter().filter(|(one, _)| one == here);
        open.extend(
            next.map(|(_, other)| other.as_str())
                .filter(|other| seen.insert(*other)),
        );
    }
    false
}

/// The folder that contains both, and the module in it that each belongs to.
fn siblings(from: &str, to: &str) -> Option<(String, (String, String))> {
    let (from, to): (Vec<&str>, Vec<&str>) = (from.split('/').collect(), to.split('/').collect());
    let same = from.iter().zip(&to).take_while(|(one, other)| one == other);
    let depth = same.count();
    // A parent declares its child, and the modules at the root have a table of their own.
    let (one, other) = (from.get(depth)?, to.get(depth)?);
    let folder = from[..depth].join("/");
    (depth > 0).then(|| (folder, ((*one).to_owned(), (*other).to_owned())))
}

/// The module that defines the item of `path`, even if another one re-exports it.
fn defined_in(
    path: &[String],
    modules: &BTreeSet<String>,
    shown: &BTreeMap<(String, String), String>,
) -> String {
    let depth = (0..=path.len()).rev();
    let mut longest = depth.filter(|depth| modules.contains(&path[..*depth].join("/")));
    let depth = longest.next().unwrap_or(0);
    let mut module = path[..depth].join("/");
    if let Some(item) = path.get(depth) {
        while let Some(home) = shown.get(&(module.clone(), item.clone())) {
            if *home == module {
                break;
            }
            module.clone_from(home);
        }
    }
    module
}

/// The module in which an item of a `pub use` is defined.
fn re_exports(house: &[Source], modules: &BTreeSet<String>) -> BTreeMap<(String, String), String> {
    let mut shown = BTreeMap::new();
    for source in house {
        let module = source.module();
        for (at, _) in words(&source.code, "use") {
            let before = source.code[..at].trim_end();
            let statement = source.code[at + "use".len()..].split(';').next();
            if !before.ends_with("pub") && !before.ends_with(')') {
                continue;
            }
            let Some(statement) = statement.map(str::trim_start) else {
                continue;
            };
            let is_rooted = ["crate", "self", "super"].iter().any(|root| {
                let rest = statement.strip_prefix(root);
                rest.is_some_and(|rest| after_colons(rest).is_some())
            });
            let statement = match is_rooted {
                true => statement.to_owned(),
                false => format!("self::{statement}"),
            };
            for path in absolute(&module, &statement) {
                let Some((item, home)) = path.split_last() else {
                    continue;
                };
                let home = home.join("/");
                if modules.contains(&home) {
                    shown.insert((module.clone(), item.clone()), home);
                }
            }
        }
    }
    shown
}

/// Every path that begins with `crate`, `super` or `self`, from the root of the crate.
fn paths_named(source: &Source) -> Vec<Vec<String>> {
    let module = source.module();
    let roots = ["crate", "super", "self"].into_iter();
    let found = roots.flat_map(|root| words(&source.code, root));
    let begins = found.filter(|(at, _)| !source.code[..*at].trim_end().ends_with("::"));
    begins
        .flat_map(|(at, _)| absolute(&module, &source.code[at..]))
        .collect()
}

/// `text` begins with a path: every path in it, with groups expanded.
fn absolute(module: &str, text: &str) -> Vec<Vec<String>> {
    let mut here: Vec<String> = module.split('/').map(str::to_owned).collect();
    let mut rest = text;
    loop {
        let end = rest
            .find(|letter| !is_of_word(letter))
            .unwrap_or(rest.len());
        match &rest[..end] {
            "crate" => here.clear(),
            "super" => {
                here.pop();
            }
            "self" => {}
            _ => break,
        }
        let Some(further) = after_colons(&rest[end..]) else {
            return Vec::new();
        };
        rest = further;
    }
    let mut paths = Vec::new();
    expand(&here, rest, &mut paths);
    paths
}

/// Adds the paths that `text` names below `prefix`, and returns the text after them.
fn expand<'t>(prefix: &[String], text: &'t str, paths: &mut Vec<Vec<String>>) -> &'t str {
    let text = text.trim_start();
    if let Some(mut group) = text.strip_prefix('{') {
        loop {
            group = expand(prefix, group, paths).trim_start();
            match group.strip_prefix(',') {
                Some(further) => group = further,
                None => return group.strip_prefix('}').unwrap_or(group),
            }
        }
    }
    let end = text
        .find(|letter| !is_of_word(letter))
        .unwrap_or(text.len());
    let mut path = prefix.to_vec();
    if end > 0 && &text[..end] != "self" {
        path.push(text[..end].to_owned());
    }
    match after_colons(&text[end..]) {
        Some(further) if end > 0 => expand(&path, further, paths),
        _ => {
            paths.push(path);
            let rest = text[end..].trim_start();
            let renamed = rest.strip_prefix("as ").map(str::trim_start);
            let renamed = renamed.map(|name| name.trim_start_matches(is_of_word));
            renamed.unwrap_or(rest)
        }
    }
}

#[test]
fn cycle_search_finds_every_spelling() {
    let of = |files: &[(&str, &str)]| {
        let house = files.iter().map(|(path, text)| Source::new(path, text));
        let found = circles(&Vec::from_iter(house));
        Vec::from_iter(
            found
                .into_iter()
                .map(|(folder, circle)| format!("{folder}: {}", Vec::from_iter(circle).join(" "))),
        )
    };
    let root = ("a.rs", "mod b; mod c; mod d; pub use c::Item;");
    for text in [
        "use super::c::Item;",
        "use crate::a::c::Item;",
        "use crate::{x, a::{d, c::{self, Item}}};",
        "use super::{d::Thing as Other, Item};",
        "use super::Item;",
        "fn f() { super::c::f() }",
        "fn f() -> crate::a::Item { }",
    ] {
        let files = [
            root,
            ("a/b.rs", text),
            ("a/c.rs", "use super::b;"),
            ("a/d.rs", ""),
        ];
        assert_eq!(of(&files), ["a: b c"], "{text}");
        let ladder = [root, ("a/b.rs", text), ("a/c.rs", ""), ("a/d.rs", "")];
        assert_eq!(of(&ladder), [""; 0], "{text}");
    }
    let long = [
        root,
        ("a/b.rs", "use super::c::inner::f;"),
        ("a/c.rs", "mod inner;"),
        ("a/c/inner.rs", "use super::super::d;"),
        ("a/d.rs", "use crate::a::b;"),
    ];
    assert_eq!(of(&long), ["a: b c d"]);
    let of_tests = [
        root,
        ("a/b.rs", "use super::c;"),
        ("a/c.rs", "#[cfg(test)]\nuse super::b;"),
    ];
    assert_eq!(of(&of_tests), [""; 0]);
}
