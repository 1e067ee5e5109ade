//! What containers have asked for, through time: pure, and stored by its owner as
//! one value. Only a whole list that lacks a container takes anything away, and even
//! then its certificate is renewed for a while: containers are replaced, and a list
//! may be wrong for an hour. Nothing is ever deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::labels::Ask;
use crate::identifier::Lineage;
use crate::observe::status::Asked;
use crate::time::Timestamp;

/// How many are remembered that no container asks for any more.
const MOST_STOPPED: usize = 1000;

/// Every certificate that is or was asked for, one for each set of names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Registry {
    certificates: Vec<One>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct One {
    ask: Ask,
    /// All that ask for it, by name.
    containers: BTreeSet<String>,
    /// When a list first lacked all of them.
    #[serde(default)]
    gone: Option<Gone>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Gone {
    since: Timestamp,
    /// Until then it is renewed.
    until: Timestamp,
    /// It is not renewed any more.
    stopped: bool,
}

/// A change that the owner is told of.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // each message is its own documentation
pub(crate) enum Change {
    Asked {
        lineage: Lineage,
        container: String,
    },
    Back {
        lineage: Lineage,
        container: String,
    },
    /// With other names than before.
    Instead {
        lineage: Lineage,
        container: String,
    },
    Gone {
        lineage: Lineage,
        container: String,
        until: Timestamp,
    },
    Stopped {
        lineage: Lineage,
        container: String,
    },
}

impl Change {
    /// Whether the owner may have to act. That a container is gone is no reason: most
    /// come back in a moment.
    #[must_use]
    pub(crate) fn is_a_warning(&self) -> bool {
        matches!(self, Self::Stopped { .. })
    }

    /// The certificate.
    #[must_use]
    pub(crate) fn lineage(&self) -> &Lineage {
        match self {
            Self::Asked { lineage, .. }
            | Self::Back { lineage, .. }
            | Self::Instead { lineage, .. }
            | Self::Gone { lineage, .. }
            | Self::Stopped { lineage, .. } => lineage,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked { container, .. } => write!(f, "asked for by container {container}"),
            Self::Back { container, .. } => write!(f, "asked for again by container {container}"),
            Self::Instead { container, .. } => {
                write!(f, "container {container} asks for other names from here on")
            }
            Self::Gone {
                container, until, ..
            } => write!(
                f,
                "container {container} asks for it no longer; it is renewed until {until}, unless it is asked for again"
            ),
            Self::Stopped { container, .. } => write!(
                f,
                "not renewed any more: container {container} was the last to ask for it, and the grace period is over; what is stored stays; hint: name it in the configuration to keep it"
            ),
        }
    }
}

impl Registry {
    /// What there is to grant of a list's `asks`, in this order: what is renewed already is
    /// not pushed out by what is new, nor what is gone for a moment, but by the container's
    /// own new words.
    #[must_use]
    pub(crate) fn candidates(&self, asks: &[Ask]) -> Vec<Ask> {
        let (known, new): (Vec<&Ask>, Vec<&Ask>) = asks.iter().partition(|ask| self.knows(ask));
        let here: BTreeSet<&str> = asks.iter().map(|ask| ask.container.as_str()).collect();
        let renewed = self.renewed().into_iter();
        let gone = renewed
            .filter(|ask| asks.iter().all(|one| one.set() != ask.set()))
            .filter(|ask| !here.contains(ask.container.as_str()));
        let all = known.into_iter().chain(gone).chain(new);
        all.cloned().collect()
    }

    /// Whether this very set of names is asked for, or was a short while ago.
    #[must_use]
    fn knows(&self, ask: &Ask) -> bool {
        let mut renewed = self.certificates.iter().filter(|one| one.is_renewed());
        renewed.any(|one| one.ask.set() == ask.set())
    }

    /// Takes the newest whole list over: what it asks for, without two of one name.
    /// What containers of `unseen` asked for in their environment is not known now, and
    /// so still asked for.
    pub(crate) fn merge(
        &mut self,
        asks: &[Ask],
        unseen: &BTreeSet<String>,
        now: Timestamp,
        grace: Duration,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut before = std::mem::take(&mut self.certificates);
        for ask in asks {
            let Some(lineage) = ask.lineage() else {
                continue;
            };
            let same = |one: &One| one.ask.set() == ask.set();
            if let Some(listed) = self.certificates.iter_mut().find(|one| same(one)) {
                listed.containers.insert(ask.container.clone());
                continue;
            }
            let known = before
                .iter()
                .position(same)
                .map(|at| before.swap_remove(at));
            let container = ask.container.clone();
            match &known {
                None if before
                    .iter()
                    .any(|one| one.ask.lineage().as_ref() == Some(&lineage)) =>
                {
                    changes.push(Change::Instead { lineage, container });
                }
                None => changes.push(Change::Asked { lineage, container }),
                Some(One { gone: Some(_), .. }) => {
                    changes.push(Change::Back { lineage, container });
                }
                Some(_) => {}
            }
            let mut ask = ask.clone();
            if let Some(known) = known {
                // Their order names the certificate, which keeps its name.
                ask.names = known.ask.names;
            }
            self.certificates.push(One {
                containers: BTreeSet::from([ask.container.clone()]),
                ask,
                gone: None,
            });
        }
        let taken: BTreeSet<_> = self
            .certificates
            .iter()
            .filter_map(|one| one.ask.lineage())
            .collect();
        // One name, one certificate: its successor has it.
        before.retain(|one| {
            one.ask
                .lineage()
                .is_some_and(|lineage| !taken.contains(&lineage))
        });
        for mut one in before {
            changes.extend(one.age(unseen, now, grace));
            self.certificates.push(one);
        }
        self.certificates
            .sort_by_cached_key(|one| one.ask.lineage());
        self.forget_the_oldest();
        changes
    }

    /// What is to be renewed: first what is asked for now.
    #[must_use]
    pub(crate) fn renewed(&self) -> Vec<&Ask> {
        let renewed = self.certificates.iter().filter(|one| one.is_renewed());
        let (gone, here): (Vec<_>, Vec<_>) = renewed.partition(|one| one.gone.is_some());
        here.into_iter().chain(gone).map(|one| &one.ask).collect()
    }

    /// The containers that ask for each certificate.
    #[must_use]
    pub(crate) fn asked(&self) -> BTreeMap<Lineage, Asked> {
        let shown = |one: &One| {
            let asked = Asked {
                containers: one.containers.clone(),
                gone_since: one.gone.map(|gone| gone.since),
                renewed_until: one.gone.map(|gone| gone.until),
                stopped: one.gone.is_some_and(|gone| gone.stopped),
            };
            Some((one.ask.lineage()?, asked))
        };
        self.certificates.iter().filter_map(shown).collect()
    }

    fn forget_the_oldest(&mut self) {
        let stopped = self.certificates.iter().filter_map(One::stopped);
        let mut stopped: Vec<Timestamp> = stopped.collect();
        stopped.sort_unstable_by(|one, other| other.cmp(one));
        if let Some(last) = stopped.get(MOST_STOPPED).copied() {
            self.certificates
                .retain(|one| one.stopped().is_none_or(|since| since > last));
        }
    }
}

impl One {
    fn is_renewed(&self) -> bool {
        !self.gone.is_some_and(|gone| gone.stopped)
    }

    fn stopped(&self) -> Option<Timestamp> {
        self.gone.filter(|gone| gone.stopped).map(|gone| gone.since)
    }

    /// A list lacks it.
    fn age(
        &mut self,
        unseen: &BTreeSet<String>,
        now: Timestamp,
        grace: Duration,
    ) -> Option<Change> {
        if self.ask.is_of_the_environment()
            && self
                .containers
                .iter()
                .any(|container| unseen.contains(container))
        {
            return None;
        }
        let lineage = self.ask.lineage()?;
        let container = self.ask.container.clone();
        let Some(gone) = &mut self.gone else {
            let until = now + grace;
            self.gone = Some(Gone {
                since: now,
                until,
                stopped: false,
            });
            return Some(Change::Gone {
                lineage,
                container,
                until,
            });
        };
        if gone.stopped {
            return None;
        }
        gone.until = gone.since + grace;
        gone.stopped = gone.until <= now;
        gone.stopped
            .then_some(Change::Stopped { lineage, container })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identifier::Identifier;

    const START: Timestamp = Timestamp::from_seconds(1_800_000_000);
    const HOUR: Duration = Duration::from_secs(3600);
    const WEEK: Duration = Duration::from_secs(7 * 86_400);

    fn ask(container: &str, names: &str) -> Ask {
        Ask {
            container: container.to_owned(),
            created: 0,
            said_in: "certs.domains".to_owned(),
            names: names
                .split(' ')
                .map(|name| Identifier::parse(name).unwrap())
                .collect(),
            keys: BTreeMap::new(),
        }
    }

    fn nobody() -> BTreeSet<String> {
        BTreeSet::new()
    }

    fn renewed(kept: &Registry) -> Vec<String> {
        let lineages = kept.renewed().into_iter().filter_map(Ask::lineage);
        lineages.map(|lineage| lineage.to_string()).collect()
    }

    #[test]
    fn a_container_that_is_gone_is_renewed_for_the_grace_period_and_no_longer() {
        let mut kept = Registry::default();
        let asks = [ask("web", "a.example.com"), ask("api", "b.example.com")];
        let mut told = Vec::new();
        let mut at = |kept: &mut Registry, asks: &[Ask], now: Timestamp| {
            for change in kept.merge(asks, &nobody(), now, WEEK) {
                told.push(format!("{}: {change}", change.lineage()));
            }
        };
        at(&mut kept, &asks, START);
        at(&mut kept, &asks, START + HOUR);
        at(&mut kept, &asks[1..], START + HOUR * 2);
        assert_eq!(renewed(&kept), ["b.example.com", "a.example.com"]);
        // Told once, and again when it comes back, which begins anew.
        at(&mut kept, &asks[1..], START + HOUR * 3);
        at(&mut kept, &asks, START + HOUR * 4);
        at(&mut kept, &asks[1..], START + HOUR * 5);
        at(
            &mut kept,
            &asks[1..],
            START + HOUR * 5 + WEEK - Duration::from_secs(1),
        );
        assert_eq!(renewed(&kept).len(), 2);
        at(&mut kept, &asks[1..], START + HOUR * 5 + WEEK);
        assert_eq!(renewed(&kept), ["b.example.com"]);
        at(&mut kept, &asks[1..], START + HOUR * 6 + WEEK);
        let asked = kept.asked();
        let shown = &asked[&Lineage::parse("a.example.com").unwrap()];
        assert!(shown.stopped && shown.gone_since == Some(START + HOUR * 5));
        at(&mut kept, &asks, START + HOUR * 7 + WEEK);
        assert_eq!(renewed(&kept).len(), 2);
        insta::assert_snapshot!(told.join("\n"), @r"
        a.example.com: asked for by container web
        b.example.com: asked for by container api
        a.example.com: container web asks for it no longer; it is renewed until 2027-01-22T10:00:00Z, unless it is asked for again
        a.example.com: asked for again by container web
        a.example.com: container web asks for it no longer; it is renewed until 2027-01-22T13:00:00Z, unless it is asked for again
        a.example.com: not renewed any more: container web was the last to ask for it, and the grace period is over; what is stored stays; hint: name it in the configuration to keep it
        a.example.com: asked for again by container web
        ");
        let json = serde_json::to_string(&kept).unwrap();
        assert_eq!(serde_json::from_str::<Registry>(&json).unwrap(), kept);
    }

    #[test]
    fn one_set_is_one_certificate_as_long_as_anybody_asks_for_it() {
        let mut kept = Registry::default();
        let asks = [
            ask("web", "a.example.com b.example.com"),
            ask("api", "b.example.com a.example.com"),
        ];
        assert_eq!(kept.merge(&asks, &nobody(), START, WEEK).len(), 1);
        let lineage = Lineage::parse("a.example.com").unwrap();
        assert_eq!(kept.asked()[&lineage].containers.len(), 2);
        assert!(kept.merge(&asks[1..], &nobody(), START, WEEK).is_empty());
        assert_eq!(renewed(&kept), ["a.example.com"]);
    }

    #[test]
    fn other_names_replace_what_had_the_same_first_one() {
        let mut kept = Registry::default();
        kept.merge(&[ask("web", "a.example.com")], &nobody(), START, WEEK);
        let wider = [ask("web", "a.example.com www.example.com")];
        let changes = kept.merge(&wider, &nobody(), START, WEEK);
        assert!(
            matches!(changes.as_slice(), [Change::Instead { .. }]),
            "{changes:?}"
        );
        assert_eq!(kept.renewed(), [&wider[0]]);
    }

    #[test]
    fn what_cannot_be_seen_is_not_gone() {
        let mut kept = Registry::default();
        let mut web = ask("web", "a.example.com");
        web.said_in = "LETSENCRYPT_HOST".into();
        kept.merge(&[web], &nobody(), START, WEEK);
        let unseen = BTreeSet::from(["web".to_owned()]);
        assert!(kept.merge(&[], &unseen, START + WEEK * 3, WEEK).is_empty());
        assert_eq!(renewed(&kept).len(), 1);
        assert_eq!(kept.merge(&[], &nobody(), START + WEEK * 3, WEEK).len(), 1);
    }

    proptest::proptest! {
        /// However containers come and go, what was asked for within the grace period is
        /// renewed, no two certificates have one name, and nothing is forgotten.
        #[test]
        fn what_was_asked_for_within_the_grace_period_is_renewed(
            story in proptest::collection::vec((0_u8..16, 1_u64..200), 1..40)
        ) {
            let all = [
                ask("a", "a.example.com"),
                ask("b", "a.example.com"),
                ask("c", "c.example.com www.example.com"),
                ask("d", "d.example.com"),
            ];
            let (mut kept, mut now) = (Registry::default(), START);
            let mut last: BTreeMap<String, Timestamp> = BTreeMap::new();
            for (here, hours) in story {
                now = now + HOUR * u32::try_from(hours).unwrap();
                let asks = all.iter().enumerate().filter(|(n, _)| here & (1 << n) != 0);
                let asks: Vec<Ask> = asks.map(|(_, ask)| ask.clone()).collect();
                kept.merge(&asks, &nobody(), now, WEEK);
                for ask in &asks {
                    last.insert(ask.lineage().unwrap().to_string(), now);
                }
                let renewed = renewed(&kept);
                let distinct: BTreeSet<_> = renewed.iter().collect();
                proptest::prop_assert_eq!(distinct.len(), renewed.len());
                for (lineage, seen) in &last {
                    if now.since(*seen) < WEEK {
                        proptest::prop_assert!(renewed.contains(lineage), "{} {:?}", lineage, renewed);
                    }
                }
                proptest::prop_assert_eq!(kept.asked().len(), last.len());
            }
        }
    }
}
