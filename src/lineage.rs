//! The name of a certificate through its renewals, safe as a file name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::fingerprint::Fingerprint;
use crate::identifier::{Identifier, IdentifierError};
use crate::text::{shell_word, stored_as_text};

/// The name of a certificate through its renewals. It is also a directory's name: it
/// has only `[a-z0-9._-]` and never starts with a dot or a hyphen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lineage(Arc<str>);

/// A stored or configured certificate, as far as its names say which one is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub lineage: Lineage,
    /// The names that were requested last.
    pub wanted: BTreeSet<Identifier>,
    /// The names in its certificate; none if it was never issued.
    pub issued: BTreeSet<Identifier>,
    /// Whether it is the certificate for the second key of its names.
    pub is_second: bool,
    /// The kinds of keys that were requested: its own first, then the other one's.
    pub kinds: Vec<&'static str>,
}

impl Known {
    fn has(&self, names: &BTreeSet<Identifier>) -> bool {
        self.wanted == *names || self.issued == *names
    }

    /// Whether it has the name of the certificate for the second key of `first`.
    fn bears(&self, first: &Lineage) -> bool {
        KINDS.iter().any(|kind| first.beside(kind) == self.lineage)
    }
}

/// The command that requests `names` as this certificate again: its other options are stored.
pub(crate) fn reissue<'n>(
    lineage: &Lineage,
    names: impl IntoIterator<Item = &'n Identifier>,
) -> String {
    let names: Vec<&Identifier> = names.into_iter().collect();
    let words = names.iter().map(|name| shell_word(&name.to_string()));
    let words = words.collect::<Vec<_>>().join(" ");
    match names
        .first()
        .is_some_and(|first| Lineage::of(first) == *lineage)
    {
        true => format!("certs issue {words}"),
        false => format!("certs issue {words} --name {lineage}"),
    }
}

/// The kinds of keys, which name the certificates for the second of two.
pub(crate) const KINDS: [&str; 2] = ["ecdsa", "rsa"];

/// The certificate that names without a name of its own mean.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Meant<'k> {
    /// A new one.
    New,
    /// This one: the names are the same in any order, or more than it has.
    Known(&'k Lineage),
    /// They share names with this one, and lack others of it.
    Lacks(&'k Known),
}

/// The one of `known` that `names` mean; that for their second key is meant with it. Their
/// order decides only between several: then it is the one that bears the first name.
pub(crate) fn meant<'k>(names: &[Identifier], known: &'k [Known]) -> Meant<'k> {
    let set: BTreeSet<Identifier> = names.iter().cloned().collect();
    let first = names.first().map(Lineage::of);
    let best = |fits: &dyn Fn(&Known) -> bool| {
        let rank = |one: &&Known| (first.as_ref() == Some(&one.lineage), one.issued.len());
        let first = known.iter().filter(|one| !one.is_second);
        first.filter(|one| fits(one)).max_by_key(rank)
    };
    let same = |one: &Known| one.wanted == set || one.issued == set;
    let grows = |one: &Known| !one.issued.is_empty() && one.issued.is_subset(&set);
    if let Some(one) = best(&same) {
        return Meant::Known(&one.lineage);
    }
    let own = |one: &Known| Some(&one.lineage) == first.as_ref() && !one.issued.is_empty();
    match best(&own).or_else(|| best(&grows)) {
        Some(one) if grows(one) => Meant::Known(&one.lineage),
        Some(one) => Meant::Lacks(one),
        None => best(&|one| !one.issued.is_disjoint(&set)).map_or(Meant::New, Meant::Lacks),
    }
}

/// Many certificates, found by the names in them: only those that share a name with a request
/// can be meant by it.
pub(crate) struct ByName<'k> {
    known: &'k [Known],
    by_name: BTreeMap<&'k Identifier, Vec<usize>>,
    by_lineage: BTreeMap<&'k Lineage, usize>,
}

impl<'k> ByName<'k> {
    pub(crate) fn new(known: &'k [Known]) -> Self {
        let mut by_name: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for (place, one) in known.iter().enumerate() {
            for name in one.wanted.union(&one.issued) {
                by_name.entry(name).or_default().push(place);
            }
        }
        let lineages = known.iter().enumerate();
        Self {
            known,
            by_name,
            by_lineage: lineages.map(|(place, one)| (&one.lineage, place)).collect(),
        }
    }

    /// The one of that name.
    pub(crate) fn named(&self, lineage: &Lineage) -> Option<&'k Known> {
        let place = self.by_lineage.get(lineage)?;
        self.known.get(*place)
    }

    /// The certificate for the second key of `first`, which may have been renamed.
    pub(crate) fn second_of(&self, first: &Known) -> Option<&'k Known> {
        if first.is_second || first.kinds.len() < 2 {
            return None;
        }
        let names: Vec<Identifier> = first.wanted.union(&first.issued).cloned().collect();
        let near = self.near(&names);
        let near = near.filter(|one| one.is_second);
        let seconds = near.filter(|one| one.has(&first.wanted) || one.has(&first.issued));
        let seconds: Vec<&Known> = seconds.collect();
        let own = seconds.iter().find(|one| one.bears(&first.lineage));
        let own = own.copied();
        own.or_else(|| {
            let is_anothers = |one: &&Known| {
                let mut firsts = self.named_by(&one.lineage);
                firsts.any(|it| {
                    !it.is_second && it.lineage != first.lineage && one.bears(&it.lineage)
                })
            };
            seconds.into_iter().find(|one| !is_anothers(one))
        })
    }

    /// Those whose names the name of a second certificate may come from: a name that was cut
    /// does not show it.
    fn named_by(&self, second: &Lineage) -> impl Iterator<Item = &'k Known> {
        let text = second.as_str();
        let bases = KINDS
            .iter()
            .filter_map(|kind| text.strip_suffix(kind)?.strip_suffix('_'));
        let bases = bases.filter_map(|base| self.named(&Lineage::parse(base).ok()?));
        let cut = (text.len() == LONGEST_LINEAGE).then_some(self.known);
        bases.chain(cut.into_iter().flatten())
    }

    /// Those that `names` may mean, in the order of all.
    pub(crate) fn near(&self, names: &[Identifier]) -> impl Iterator<Item = &'k Known> {
        let shared = names.iter().filter_map(|name| self.by_name.get(name));
        let mut near: BTreeSet<usize> = shared.flatten().copied().collect();
        let first = names.first().map(Lineage::of);
        near.extend(first.and_then(|first| self.by_lineage.get(&first)));
        let known = self.known;
        near.into_iter().filter_map(|place| known.get(place))
    }
}

/// The longest file name, minus `.` and `.new` around it.
const LONGEST_LINEAGE: usize = 255 - 5;

impl Lineage {
    /// The default name for a certificate whose first identifier is `first`:
    /// `*.` becomes `_wildcard_.`, an IPv6 `:` becomes `-`. A name that is too long for
    /// a file name is cut and ends in a hash.
    #[must_use]
    pub fn of(first: &Identifier) -> Self {
        let text = first.to_string();
        let text = match text.strip_prefix("*.") {
            Some(base) => format!("_wildcard_.{base}"),
            None => text.replace(':', "-"),
        };
        // `::1` would start with a hyphen, which commands read as an option.
        if text.starts_with('-') {
            return Self(format!("0{text}").into());
        }
        Self::cut(&text)
    }

    /// The name of the certificate for the same names with the other kind of key. No DNS name
    /// has an underscore, so that it never is another certificate's default name.
    #[must_use]
    pub(crate) fn beside(&self, kind: &str) -> Self {
        Self::cut(&format!("{self}_{kind}"))
    }

    /// `text`, with a hash for its end if it is too long.
    fn cut(text: &str) -> Self {
        if text.len() <= LONGEST_LINEAGE {
            return Self(text.into());
        }
        let hash = Fingerprint::of(text.as_bytes()).to_string();
        let prefix: String = text
            .chars()
            .take(LONGEST_LINEAGE - 1 - hash.len())
            .collect();
        Self(format!("{prefix}-{hash}").into())
    }

    /// Reads a name that the user chose.
    ///
    /// # Errors
    /// [`IdentifierError`] if it is not a safe file name.
    pub fn parse(text: &str) -> Result<Self, IdentifierError> {
        let is_valid = (1..=LONGEST_LINEAGE).contains(&text.len())
            && !text.starts_with(['.', '-'])
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b));
        match is_valid {
            true => Ok(Self(text.into())),
            false => Err(IdentifierError::new(
                text,
                "is not a valid name of a certificate",
                "letters a to z, digits, `.`, `_` and `-`, and none of `.` and `-` first",
            )),
        }
    }

    /// `identifier` in the memory of this name, if their texts are the same.
    #[must_use]
    pub(crate) fn share(&self, identifier: Identifier) -> Identifier {
        identifier.sharing(&self.0)
    }

    /// The name as text, fit for a path component.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Lineage {
    type Err = IdentifierError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

stored_as_text!(Lineage);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lineage_is_safe_directory_name() {
        let of = |text: &str| Lineage::of(&Identifier::parse(text).unwrap()).to_string();
        assert_eq!(of("*.example.com"), "_wildcard_.example.com");
        assert_eq!(of("2001:db8::1"), "2001-db8--1");
        assert_eq!(of("::1"), "0--1");
        for text in ["", ".", "..", "../x", "a/b", "-x", "A", "a\0b", ".hidden"] {
            assert!(Lineage::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn names_mean_the_same_among_those_nearby_as_among_all() {
        let set = |names: &[usize]| -> BTreeSet<Identifier> {
            let names = names.iter().map(|n| format!("n{n}.example"));
            names
                .map(|name| Identifier::parse(&name).unwrap())
                .collect()
        };
        // Every certificate shares names with its neighbours, and some have another's name.
        let known: Vec<Known> = (0..60)
            .map(|n| Known {
                lineage: Lineage::parse(&format!("n{}.example", (n * 7) % 60)).unwrap(),
                wanted: set(&[n, n + 1, n + n % 3]),
                issued: if n % 4 == 0 {
                    BTreeSet::new()
                } else {
                    set(&[n, n + n % 2])
                },
                is_second: n % 5 == 0,
                kinds: vec!["ecdsa"],
            })
            .collect();
        let index = ByName::new(&known);
        for first in 0..62 {
            for other in [first, first + 1, first + 2, 61 - first.min(61)] {
                let names = [set(&[first]), set(&[other])].into_iter().flatten();
                let names: Vec<Identifier> = names.collect();
                let near: Vec<Known> = index.near(&names).cloned().collect();
                assert_eq!(meant(&names, &near), meant(&names, &known), "{names:?}");
            }
        }
        let near = index.near(&["n3.example".parse().unwrap()]).count();
        assert!(near < 8, "{near} of 60");
        let named = index.named(&known[9].lineage).unwrap();
        assert_eq!(named, &known[9]);
    }

    #[test]
    fn meant_is_the_same_set_or_a_smaller_one_in_any_order() {
        let set = |names: &str| -> Vec<Identifier> {
            names
                .split_whitespace()
                .map(|name| name.parse().unwrap())
                .collect()
        };
        let known = |lineage: &str, wanted: &str, issued: &str| Known {
            lineage: Lineage::parse(lineage).unwrap(),
            wanted: set(wanted).into_iter().collect(),
            issued: set(issued).into_iter().collect(),
            is_second: lineage.ends_with("_rsa"),
            kinds: vec!["ecdsa"],
        };
        let all = [
            known("a", "a b", "a b"),
            known("c", "c typo", ""),
            known("x", "e", "e f"),
            known("own", "a b", "a b"),
            known("z", "g", "g"),
            known("a_rsa", "a b", "a b"),
            known("s_rsa", "s", "s"),
        ];
        for (names, expected) in [
            ("a b", "Known a"),
            ("b a", "Known own"),
            ("b d a", "Known own"),
            ("a d b", "Known a"),
            // Nothing is lost where nothing was issued.
            ("c", "New"),
            ("typo c", "Known c"),
            ("c typo d", "New"),
            ("a", "Lacks a"),
            ("a d", "Lacks a"),
            ("d a", "Lacks own"),
            ("e", "Known x"),
            ("f e", "Known x"),
            ("f", "Lacks x"),
            ("d", "New"),
            ("g h", "Known z"),
            ("a g", "Lacks a"),
            ("z", "Lacks z"),
            ("s", "New"),
        ] {
            let found = match meant(&set(names), &all) {
                Meant::New => "New".to_owned(),
                Meant::Known(lineage) => format!("Known {lineage}"),
                Meant::Lacks(one) => format!("Lacks {}", one.lineage),
            };
            assert_eq!(found, expected, "{names}");
        }
    }

    #[test]
    fn second_certificate_belongs_to_the_first_of_its_names() {
        let names: BTreeSet<Identifier> = ["a".parse().unwrap()].into();
        let known = |lineage: &str, is_second| Known {
            lineage: Lineage::parse(lineage).unwrap(),
            wanted: names.clone(),
            issued: BTreeSet::new(),
            is_second,
            kinds: KINDS.to_vec(),
        };
        let [a, b, new] = ["a", "b", "new"].map(|name| known(name, false));
        let all = [
            a.clone(),
            b.clone(),
            known("a_rsa", true),
            known("old_rsa", true),
        ];
        let second = |first: &Known| {
            let index = ByName::new(&all);
            let found = index.second_of(first);
            found.map(|one| one.lineage.to_string())
        };
        assert_eq!(second(&a).as_deref(), Some("a_rsa"));
        // It was renamed, and its second certificate not.
        assert_eq!(second(&b).as_deref(), Some("old_rsa"));
        assert_eq!(ByName::new(&all[..3]).second_of(&new), None);
    }

    #[test]
    fn lineage_of_longest_name_fits_file_name() {
        let labels = format!("{0}.{0}.{0}.", "a".repeat(63));
        let mut seen = std::collections::BTreeSet::new();
        for name in [
            format!("{labels}{}.com", "b".repeat(57)),
            format!("{labels}{}.net", "b".repeat(57)),
            format!("*.{labels}{}.com", "b".repeat(55)),
        ] {
            let lineage = Lineage::of(&Identifier::parse(&name).unwrap());
            assert_eq!(Lineage::parse(lineage.as_str()).unwrap(), lineage);
            assert!(format!(".{lineage}.new").len() <= 255, "{lineage}");
            assert!(seen.insert(lineage), "two names share a lineage");
        }
        assert!(Lineage::parse(&"x".repeat(LONGEST_LINEAGE)).is_ok());
        assert!(Lineage::parse(&"x".repeat(LONGEST_LINEAGE + 1)).is_err());
    }

    #[test]
    fn lineage_errors_escape_control_characters() {
        let error = Lineage::parse("a\u{7}").unwrap_err().to_string();
        assert!(error.contains("`a\\u{7}`"), "{error:?}");
    }
}
