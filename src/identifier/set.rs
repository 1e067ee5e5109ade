//! A set of identifiers that is kept for months, thousands of times: a tree would take ten times
//! its memory for the one name of most certificates.

use std::collections::BTreeSet;

use super::Identifier;

/// Identifiers in order, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct IdentifierSet(Box<[Identifier]>);

impl IdentifierSet {
    /// The identifiers in order.
    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Identifier> {
        self.0.iter()
    }

    /// Whether `identifier` is in it.
    pub(crate) fn contains(&self, identifier: &Identifier) -> bool {
        self.0.binary_search(identifier).is_ok()
    }

    /// The same as a tree, to be changed or stored.
    pub(crate) fn tree(&self) -> BTreeSet<Identifier> {
        self.iter().cloned().collect()
    }
}

impl FromIterator<Identifier> for IdentifierSet {
    fn from_iter<T: IntoIterator<Item = Identifier>>(identifiers: T) -> Self {
        let mut all: Vec<Identifier> = identifiers.into_iter().collect();
        all.sort_unstable();
        all.dedup();
        Self(all.into())
    }
}

impl<const N: usize> From<[Identifier; N]> for IdentifierSet {
    fn from(identifiers: [Identifier; N]) -> Self {
        identifiers.into_iter().collect()
    }
}

impl PartialEq<BTreeSet<Identifier>> for IdentifierSet {
    fn eq(&self, tree: &BTreeSet<Identifier>) -> bool {
        self.iter().eq(tree)
    }
}

impl<'s> IntoIterator for &'s IdentifierSet {
    type Item = &'s Identifier;
    type IntoIter = std::slice::Iter<'s, Identifier>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn set_is_what_a_tree_of_the_same_identifiers_is(numbers in proptest::collection::vec(0..9_u8, 0..12)) {
            let name = |number: u8| Identifier::parse(&format!("n{number}.example")).unwrap();
            let names = || numbers.iter().copied().map(name);
            let (set, tree) = (names().collect::<IdentifierSet>(), names().collect::<BTreeSet<_>>());
            prop_assert_eq!(set.tree(), tree.clone());
            prop_assert!(set == tree && set != IdentifierSet::from([name(10)]));
            for number in 0..9 {
                prop_assert_eq!(set.contains(&name(number)), tree.contains(&name(number)));
            }
        }
    }
}
