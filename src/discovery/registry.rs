//! The certificates that containers requested, over time: pure, and stored as one value.
//! Only a whole list without a container ends its request, and the certificate is still
//! renewed for a grace period, because containers are replaced and a list may be wrong
//! for an hour. Stored certificates are never deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::labels::Request;
use crate::lineage::Lineage;
use crate::observe::status::RequestedBy;
use crate::time::Timestamp;

/// How many certificates are remembered after their renewal has stopped.
const MOST_STOPPED: usize = 1000;

/// Every certificate that is or was requested, one for each set of names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Registry {
    certificates: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    ask: Request,
    /// The names of all containers that request it.
    containers: BTreeSet<String>,
    /// Set by the first list without any of them.
    #[serde(default)]
    gone: Option<Absence>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Absence {
    since: Timestamp,
    /// The end of the grace period.
    until: Timestamp,
    /// The certificate is no longer renewed.
    stopped: bool,
}

/// A change to log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // each message is its own documentation
pub(crate) enum Change {
    Requested {
        lineage: Lineage,
        container: String,
    },
    RequestedAgain {
        lineage: Lineage,
        container: String,
    },
    NamesChanged {
        lineage: Lineage,
        container: String,
    },
    Withdrawn {
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
    /// Whether the operator may have to act. A missing container is not a reason:
    /// most are restarted at once.
    #[must_use]
    pub(crate) fn is_a_warning(&self) -> bool {
        matches!(self, Self::Stopped { .. })
    }

    /// The certificate.
    #[must_use]
    pub(crate) fn lineage(&self) -> &Lineage {
        match self {
            Self::Requested { lineage, .. }
            | Self::RequestedAgain { lineage, .. }
            | Self::NamesChanged { lineage, .. }
            | Self::Withdrawn { lineage, .. }
            | Self::Stopped { lineage, .. } => lineage,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requested { container, .. } => write!(f, "requested by container {container}"),
            Self::RequestedAgain { container, .. } => {
                write!(f, "requested again by container {container}")
            }
            Self::NamesChanged { container, .. } => {
                write!(f, "container {container} now requests other names")
            }
            Self::Withdrawn {
                container, until, ..
            } => write!(
                f,
                "container {container} no longer requests it; renewed until {until}, unless requested again"
            ),
            Self::Stopped { container, .. } => write!(
                f,
                "no longer renewed: container {container} was the last to request it, and the grace period has ended; stored files stay; hint: name it in the configuration to keep it"
            ),
        }
    }
}

impl Registry {
    /// The requests to allow for a list's `asks`, in order of precedence: those renewed
    /// already, then those of missing containers, then new ones. A container's new labels
    /// replace its old ones.
    #[must_use]
    pub(crate) fn candidates(&self, asks: &[Request]) -> Vec<Request> {
        let (known, new): (Vec<&Request>, Vec<&Request>) = asks.iter().partition(|ask| self.knows(ask));
        let here: BTreeSet<&str> = asks.iter().map(|ask| ask.container.as_str()).collect();
        let renewed = self.renewed().into_iter();
        let gone = renewed
            .filter(|ask| asks.iter().all(|one| one.set() != ask.set()))
            .filter(|ask| !here.contains(ask.container.as_str()));
        let all = known.into_iter().chain(gone).chain(new);
        all.cloned().collect()
    }

    /// Whether a certificate of exactly these names is being renewed.
    #[must_use]
    fn knows(&self, ask: &Request) -> bool {
        let mut renewed = self.certificates.iter().filter(|one| one.is_renewed());
        renewed.any(|one| one.ask.set() == ask.set())
    }

    /// Merges the newest whole list, with at most one certificate for each lineage.
    /// Requests in the environment of a container in `unseen` count as still made.
    pub(crate) fn merge(
        &mut self,
        asks: &[Request],
        unseen: &BTreeSet<String>,
        now: Timestamp,
        grace: Duration,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut before = std::mem::take(&mut self.certificates);
        for ask in asks {
            changes.extend(self.request(ask, &mut before));
        }
        let taken: BTreeSet<_> = self
            .certificates
            .iter()
            .filter_map(|one| one.ask.lineage())
            .collect();
        // Other names may have replaced a lineage's entry.
        before.retain(|one| {
            one.ask
                .lineage()
                .is_some_and(|lineage| !taken.contains(&lineage))
        });
        for mut one in before {
            changes.extend(one.mark_missing(unseen, now, grace));
            self.certificates.push(one);
        }
        self.certificates
            .sort_by_cached_key(|one| one.ask.lineage());
        self.forget_the_oldest();
        changes
    }

    /// Adds a request of the newest list, and takes its entry out of `before` if it is
    /// known.
    fn request(&mut self, ask: &Request, before: &mut Vec<Entry>) -> Option<Change> {
        let lineage = ask.lineage()?;
        let same = |one: &Entry| one.ask.set() == ask.set();
        if let Some(listed) = self.certificates.iter_mut().find(|one| same(one)) {
            listed.containers.insert(ask.container.clone());
            return None;
        }
        let known = before
            .iter()
            .position(same)
            .map(|at| before.swap_remove(at));
        let container = ask.container.clone();
        let change = match &known {
            None if before
                .iter()
                .any(|one| one.ask.lineage().as_ref() == Some(&lineage)) =>
            {
                Some(Change::NamesChanged { lineage, container })
            }
            None => Some(Change::Requested { lineage, container }),
            Some(Entry { gone: Some(_), .. }) => {
                Some(Change::RequestedAgain { lineage, container })
            }
            Some(_) => None,
        };
        let mut ask = ask.clone();
        if let Some(known) = known {
            // The first name gives the lineage, which must not change.
            ask.names = known.ask.names;
        }
        self.certificates.push(Entry {
            containers: BTreeSet::from([ask.container.clone()]),
            ask,
            gone: None,
        });
        change
    }

    /// The requests to renew: first those made now.
    #[must_use]
    pub(crate) fn renewed(&self) -> Vec<&Request> {
        let renewed = self.certificates.iter().filter(|one| one.is_renewed());
        let (gone, here): (Vec<_>, Vec<_>) = renewed.partition(|one| one.gone.is_some());
        here.into_iter().chain(gone).map(|one| &one.ask).collect()
    }

    /// The containers that request each certificate.
    #[must_use]
    pub(crate) fn requests(&self) -> BTreeMap<Lineage, RequestedBy> {
        let shown = |one: &Entry| {
            let requested_by = RequestedBy {
                containers: one.containers.clone(),
                gone_since: one.gone.map(|gone| gone.since),
                renewed_until: one.gone.map(|gone| gone.until),
                stopped: one.gone.is_some_and(|gone| gone.stopped),
            };
            Some((one.ask.lineage()?, requested_by))
        };
        self.certificates.iter().filter_map(shown).collect()
    }

    fn forget_the_oldest(&mut self) {
        let stopped = self.certificates.iter().filter_map(Entry::stopped);
        let mut stopped: Vec<Timestamp> = stopped.collect();
        stopped.sort_unstable_by(|one, other| other.cmp(one));
        if let Some(last) = stopped.get(MOST_STOPPED).copied() {
            self.certificates
                .retain(|one| one.stopped().is_none_or(|since| since > last));
        }
    }
}

impl Entry {
    fn is_renewed(&self) -> bool {
        !self.gone.is_some_and(|gone| gone.stopped)
    }

    fn stopped(&self) -> Option<Timestamp> {
        self.gone.filter(|gone| gone.stopped).map(|gone| gone.since)
    }

    /// Marks an entry that the newest list lacks.
    fn mark_missing(
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
            self.gone = Some(Absence {
                since: now,
                until,
                stopped: false,
            });
            return Some(Change::Withdrawn {
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

    fn ask(container: &str, names: &str) -> Request {
        Request {
            container: container.to_owned(),
            created: 0,
            label: "certs.domains".to_owned(),
            names: names
                .split(' ')
                .map(|name| Identifier::parse(name).unwrap())
                .collect(),
            keys: BTreeMap::new(),
        }
    }

    fn none_unseen() -> BTreeSet<String> {
        BTreeSet::new()
    }

    fn renewed(registry: &Registry) -> Vec<String> {
        let lineages = registry.renewed().into_iter().filter_map(Request::lineage);
        lineages.map(|lineage| lineage.to_string()).collect()
    }

    #[test]
    fn registry_renews_for_the_grace_period_if_container_is_gone() {
        let mut kept = Registry::default();
        let asks = [ask("web", "a.example.com"), ask("api", "b.example.com")];
        let mut logged = Vec::new();
        let mut at = |kept: &mut Registry, asks: &[Request], now: Timestamp| {
            for change in kept.merge(asks, &none_unseen(), now, WEEK) {
                logged.push(format!("{}: {change}", change.lineage()));
            }
        };
        at(&mut kept, &asks, START);
        at(&mut kept, &asks, START + HOUR);
        at(&mut kept, &asks[1..], START + HOUR * 2);
        assert_eq!(renewed(&kept), ["b.example.com", "a.example.com"]);
        // Logged once; a new request restarts the grace period.
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
        let requests = kept.requests();
        let shown = &requests[&Lineage::parse("a.example.com").unwrap()];
        assert!(shown.stopped && shown.gone_since == Some(START + HOUR * 5));
        at(&mut kept, &asks, START + HOUR * 7 + WEEK);
        assert_eq!(renewed(&kept).len(), 2);
        insta::assert_snapshot!(logged.join("\n"), @r"
        a.example.com: requested by container web
        b.example.com: requested by container api
        a.example.com: container web no longer requests it; renewed until 2027-01-22T10:00:00Z, unless requested again
        a.example.com: requested again by container web
        a.example.com: container web no longer requests it; renewed until 2027-01-22T13:00:00Z, unless requested again
        a.example.com: no longer renewed: container web was the last to request it, and the grace period has ended; stored files stay; hint: name it in the configuration to keep it
        a.example.com: requested again by container web
        ");
        let json = serde_json::to_string(&kept).unwrap();
        assert_eq!(serde_json::from_str::<Registry>(&json).unwrap(), kept);
    }

    #[test]
    fn registry_shares_a_certificate_between_containers_of_equal_names() {
        let mut kept = Registry::default();
        let asks = [
            ask("web", "a.example.com b.example.com"),
            ask("api", "b.example.com a.example.com"),
        ];
        assert_eq!(kept.merge(&asks, &none_unseen(), START, WEEK).len(), 1);
        let lineage = Lineage::parse("a.example.com").unwrap();
        assert_eq!(kept.requests()[&lineage].containers.len(), 2);
        assert!(
            kept.merge(&asks[1..], &none_unseen(), START, WEEK)
                .is_empty()
        );
        assert_eq!(renewed(&kept), ["a.example.com"]);
    }

    #[test]
    fn registry_replaces_names_of_equal_lineage() {
        let mut kept = Registry::default();
        kept.merge(&[ask("web", "a.example.com")], &none_unseen(), START, WEEK);
        let wider = [ask("web", "a.example.com www.example.com")];
        let changes = kept.merge(&wider, &none_unseen(), START, WEEK);
        assert!(
            matches!(changes.as_slice(), [Change::NamesChanged { .. }]),
            "{changes:?}"
        );
        assert_eq!(kept.renewed(), [&wider[0]]);
    }

    #[test]
    fn registry_keeps_request_if_environment_is_unseen() {
        let mut kept = Registry::default();
        let mut web = ask("web", "a.example.com");
        web.label = "LETSENCRYPT_HOST".into();
        kept.merge(&[web], &none_unseen(), START, WEEK);
        let unseen = BTreeSet::from(["web".to_owned()]);
        assert!(kept.merge(&[], &unseen, START + WEEK * 3, WEEK).is_empty());
        assert_eq!(renewed(&kept).len(), 1);
        assert_eq!(
            kept.merge(&[], &none_unseen(), START + WEEK * 3, WEEK)
                .len(),
            1
        );
    }

    proptest::proptest! {
        /// However containers start and stop, every request within the grace period is
        /// renewed, lineages are unique, and no certificate is forgotten.
        #[test]
        fn registry_renews_every_request_within_the_grace_period(
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
                let asks: Vec<Request> = asks.map(|(_, ask)| ask.clone()).collect();
                kept.merge(&asks, &none_unseen(), now, WEEK);
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
                proptest::prop_assert_eq!(kept.requests().len(), last.len());
            }
        }
    }
}
