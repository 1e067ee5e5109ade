//! Every hint of the product is in `listed.txt`: below the test that follows it, or below the reason why none
//! does. A new hint fails this test until it is there.

use std::collections::{BTreeMap, BTreeSet};

use super::sources;

/// A source whose comments and literals are blank, and its literals with their places.
struct Source {
    code: String,
    texts: Vec<(usize, String)>,
}

impl Source {
    fn read(source: &str) -> Self {
        let bytes = source.as_bytes();
        let (mut code, mut texts, mut at) = (vec![b' '; bytes.len()], Vec::new(), 0);
        while at < bytes.len() {
            let rest = &bytes[at..];
            let find = |from: usize, what: &str| {
                source[at + from..]
                    .find(what)
                    .map_or(rest.len(), |found| from + found)
            };
            at += match rest {
                [b'/', b'/', ..] => find(0, "\n"),
                [b'r', b'#' | b'"', ..]
                    if rest.iter().find(|byte| **byte != b'#' && **byte != b'r') == Some(&b'"') =>
                {
                    let open = find(0, "\"") + 1;
                    let close = format!("\"{}", "#".repeat(open - 2));
                    find(open, &close) + close.len()
                }
                [b'"', ..] => {
                    let mut end = 1;
                    while rest[end] != b'"' {
                        end += if rest[end] == b'\\' { 2 } else { 1 };
                    }
                    let lines = source[at + 1..at + end]
                        .split("\\\n")
                        .map(|line| line.trim_start());
                    let first = source[at + 1..at + end]
                        .split("\\\n")
                        .next()
                        .unwrap_or_default();
                    let text = first.to_owned() + &lines.skip(1).collect::<String>();
                    texts.push((at, text));
                    code[at] = b'"';
                    end + 1
                }
                [b'\'', b'\\', ..] => find(2, "'") + 1,
                [b'\'', _, b'\'', ..] => 3,
                [byte, ..] => {
                    code[at] = if byte.is_ascii() { *byte } else { b' ' };
                    1
                }
                [] => 1,
            };
        }
        let code = String::from_utf8(code).unwrap();
        Self { code, texts }
    }

    /// The end of what begins at `at`: the first of `ends` outside of brackets.
    fn end(&self, at: usize, ends: &[char]) -> usize {
        let mut depth = 0;
        for (index, letter) in self.code[at..].char_indices() {
            match letter {
                _ if depth == 0 && ends.contains(&letter) => return at + index,
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' if depth == 0 => return at + index,
                ')' | ']' | '}' => depth -= 1,
                _ => {}
            }
        }
        self.code.len()
    }

    /// The places behind each `word` in the code.
    fn behind<'s>(&'s self, word: &'s str) -> impl Iterator<Item = usize> + 's {
        self.code
            .match_indices(word)
            .map(move |(at, _)| at + word.len())
    }

    /// Where hints are made: functions of that name, values of that name, and the last arguments of failures.
    fn places(&self) -> Vec<(usize, usize)> {
        let mut places = Vec::new();
        for at in self.behind("fn ") {
            let name: String = self.code[at..]
                .chars()
                .take_while(|one| one.is_alphanumeric() || *one == '_')
                .collect();
            if name.contains("hint") || ["advice", "remedy", "finish"].contains(&&*name) {
                let body = self.code[at..].find('{').map_or(at, |body| at + body + 1);
                places.push((body, self.end(body, &[])));
            }
        }
        let lower = self.code.to_ascii_lowercase();
        for (at, _) in lower.match_indices("hint") {
            let at = at + "hint".len();
            let behind = &lower[at..];
            let is_of_pattern =
                |letter: char| letter.is_ascii_alphanumeric() || "_, ():&<>'+".contains(letter);
            let equals = behind.find(|letter| !is_of_pattern(letter)).unwrap_or(0);
            if behind.starts_with(": ") && !behind[equals..].starts_with("= ") {
                places.push((at, self.end(at, &[','])));
            } else if behind[equals..].starts_with("= ") {
                places.push((at + equals, self.end(at + equals, &[';'])));
            }
        }
        for name in ["usage", "broken", "output", "of_file", "one"] {
            for of in ["Failure::", "Self::"] {
                let call = format!("{of}{name}(");
                places.extend(self.behind(&call).map(|at| {
                    let (mut last, end) = (at, self.end(at, &[]));
                    let mut next = self.end(at, &[',']);
                    while next < end && !self.code[next + 1..end].trim().is_empty() {
                        last = next + 1;
                        next = self.end(last, &[',']);
                    }
                    (last, end)
                }));
            }
        }
        places
    }

    fn hints(&self) -> impl Iterator<Item = String> {
        let places = self.places();
        self.texts.iter().filter_map(move |(at, text)| {
            let is_hint = places.iter().any(|(from, to)| (from..to).contains(&at));
            let hint = match text.split_once("hint: ") {
                Some((_, hint)) => hint,
                None => is_hint.then_some(text.as_str())?,
            };
            let hint = hint.trim();
            (hint.split_whitespace().count() > 1).then(|| hint.to_owned())
        })
    }
}

#[test]
fn hints_are_read_from_sources() {
    let source = r##"fn f<'a>() { let (a, hint) = ("not", "fix it"); Failure::usage(format!("no {a}"), "do
        it now"); } // "no hint at all"
        const HINT: &str = "wait a bit"; fn the_hint() { "one word".into(); r#"raw"#; 'x' }
        Self { hint: "leave it out".into(), message: "is wrong" }; say("failed; hint: try again")"##;
    let found: Vec<String> = Source::read(source).hints().collect();
    let found: Vec<String> = found
        .iter()
        .map(|one| one.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(
        found,
        [
            "fix it",
            "do it now",
            "wait a bit",
            "one word",
            "leave it out",
            "try again"
        ]
    );
}

#[test]
fn each_hint_is_followed_by_a_test_or_has_a_reason() {
    let listed = std::fs::read_to_string("tests/hints/listed.txt").unwrap();
    let (mut known, mut below, mut wrong) = (BTreeMap::new(), "", Vec::new());
    let tests: String = sources("tests")
        .into_iter()
        .chain(sources("src"))
        .map(|(_, text)| text)
        .collect();
    for line in listed
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with("# "))
    {
        match line.strip_prefix("## ") {
            Some(reason) => {
                below = reason;
                let test = reason.strip_prefix("followed by ");
                if test.is_some_and(|test| !tests.contains(&format!("fn {test}("))) {
                    wrong.push(format!("no test {reason}"));
                }
            }
            None => {
                if known.insert(line, below).is_some() {
                    wrong.push(format!("listed twice: {line}"));
                }
            }
        }
    }
    let hints = sources("src")
        .into_iter()
        .filter(|(path, _)| !path.contains("test"));
    let hints = hints.flat_map(|(_, text)| {
        let text = text
            .split("#[cfg(test)]\nmod tests {")
            .next()
            .unwrap()
            .to_owned();
        Source::read(&text).hints().collect::<Vec<_>>()
    });
    let hints: BTreeSet<String> = hints.collect();
    wrong.extend(
        hints
            .iter()
            .filter(|hint| !known.contains_key(hint.as_str()))
            .map(|hint| format!("not listed: {hint}")),
    );
    wrong.extend(
        known
            .keys()
            .filter(|hint| !hints.contains(**hint))
            .map(|hint| format!("no such hint any more: {hint}")),
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
}
