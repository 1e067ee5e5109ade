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
    #[serde(rename = "ask")]
    request: Request,
    /// The names of all containers that request it.
    containers: BTreeSet<String>,
    /// Set by the first list without any of them.
    #[serde(default)]
    gone: Option<Absence>,
    /// When the container of `request`, its first one, was first missing while others still
    /// requested it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    first_gone: Option<Timestamp>,
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
pub(crate) struct RequestChange {
    /// The certificate.
    pub lineage: Lineage,
    container: String,
    kind: ChangeKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum ChangeKind {
    Requested,
    RequestedAgain,
    NamesChanged,
    Withdrawn { until: Timestamp },
    Stopped,
}

impl RequestChange {
    /// Whether the operator may have to act. A missing container is not a reason:
    /// most are restarted at once.
    #[must_use]
    pub(crate) fn is_a_warning(&self) -> bool {
        self.kind == ChangeKind::Stopped
    }
}

impl fmt::Display for RequestChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let container = &self.container;
        match self.kind {
            ChangeKind::Requested => write!(f, "requested by container {container}"),
            ChangeKind::RequestedAgain => write!(f, "requested again by container {container}"),
            ChangeKind::NamesChanged => {
                write!(f, "container {container} now requests other names")
            }
            ChangeKind::Withdrawn { until } => write!(
                f,
                "container {container} no longer requests it; renewed until {until}, unless requested again"
            ),
            ChangeKind::Stopped => write!(
                f,
                "no longer renewed: container {container} was the last to request it, and the grace period has ended; stored files stay; hint: name it in the configuration to keep it"
            ),
        }
    }
}

impl Registry {
    /// The `requests` with their names in the order in which they are known: the first one
    /// names the certificate.
    #[must_use]
    pub(crate) fn as_known(&self, requests: &[Request]) -> Vec<Request> {
        let known = self.certificates.iter().map(|one| &one.request);
        let known: BTreeMap<_, _> = known.map(|one| (one.set(), &one.names)).collect();
        let named = requests.iter().map(|request| {
            let names = known.get(&request.set()).copied();
            let names = names.unwrap_or(&request.names).clone();
            Request {
                names,
                ..request.clone()
            }
        });
        named.collect()
    }

    /// The requests to allow for a list's `requests`, in order of precedence: those of the
    /// first container of a certificate, then those renewed already, then those of missing
    /// containers, then new ones. A container's new labels for a certificate replace its old
    /// ones.
    #[must_use]
    pub(crate) fn candidates(&self, requests: &[Request]) -> Vec<Request> {
        let renewed = self.renewed();
        let sets: BTreeSet<_> = renewed.iter().map(|one| one.set()).collect();
        let is_first = |one: &&Request| {
            let mut renewed = renewed.iter();
            renewed
                .any(|known| known.container == one.container && known.lineage() == one.lineage())
        };
        let (first, others): (Vec<&Request>, Vec<&Request>) = requests.iter().partition(is_first);
        let (known, new): (Vec<&Request>, Vec<&Request>) = others
            .into_iter()
            .partition(|one| sets.contains(&one.set()));
        let gone = renewed.iter().copied().filter(|gone| {
            let is_replaced = |one: &Request| {
                let is_its = one.container == gone.container && one.lineage() == gone.lineage();
                one.set() == gone.set() || is_its
            };
            !requests.iter().any(is_replaced)
        });
        let all = first.into_iter().chain(known).chain(gone).chain(new);
        all.cloned().collect()
    }

    /// Merges the newest whole list, with at most one certificate for each lineage.
    /// Requests in the environment of a container in `unseen` count as still made.
    pub(crate) fn merge(
        &mut self,
        requests: &[Request],
        unseen: &BTreeSet<String>,
        now: Timestamp,
        grace: Duration,
    ) -> Vec<RequestChange> {
        let mut changes = Vec::new();
        let mut before = std::mem::take(&mut self.certificates);
        let is_first = |request: &&Request| {
            let mut known = before.iter().map(|one| &one.request);
            known
                .any(|one| one.container == request.container && one.lineage() == request.lineage())
        };
        let (first, others): (Vec<_>, Vec<_>) = requests.iter().partition(is_first);
        for request in first.into_iter().chain(others) {
            changes.extend(self.request(request, &mut before, now, grace));
        }
        // Other names may have replaced a lineage's entry.
        let listed = self.certificates.iter();
        let listed: BTreeSet<_> = listed.map(|one| one.request.lineage()).collect();
        before.retain(|one| {
            let lineage = one.request.lineage();
            lineage.is_some() && !listed.contains(&lineage)
        });
        for mut one in before {
            changes.extend(one.mark_missing(unseen, now, grace));
            self.certificates.push(one);
        }
        let by_name = |one: &Entry| one.request.lineage();
        self.certificates.sort_by_cached_key(by_name);
        self.forget_the_oldest();
        changes
    }

    /// Adds a request of the newest list, and takes its entry out of `before` if it is
    /// known.
    fn request(
        &mut self,
        request: &Request,
        before: &mut Vec<Entry>,
        now: Timestamp,
        grace: Duration,
    ) -> Option<RequestChange> {
        let lineage = request.lineage()?;
        let same = |one: &Entry| one.request.set() == request.set();
        if let Some(listed) = self.certificates.iter_mut().find(|one| same(one)) {
            listed.containers.insert(request.container.clone());
            return None;
        }
        let known = before.iter().position(same);
        let known = known.map(|at| before.swap_remove(at));
        let mut others = before.iter().filter_map(|one| one.request.lineage());
        let kind = match &known {
            None if others.any(|other| other == lineage) => Some(ChangeKind::NamesChanged),
            None => Some(ChangeKind::Requested),
            Some(known) => known.gone.map(|_| ChangeKind::RequestedAgain),
        };
        let (mut request, container) = (request.clone(), request.container.clone());
        let mut first_gone = None;
        if let Some(known) = known {
            // The first name gives the lineage, which must not change.
            request.names.clone_from(&known.request.names);
            if known.request.container != container && known.is_renewed() {
                // Another container does not replace the first one before its grace has passed.
                let gone = known.gone.map(|gone| gone.since);
                let since = known.first_gone.or(gone).unwrap_or(now);
                if now < since + grace {
                    first_gone = Some(since);
                    request = known.request;
                }
            }
        }
        self.certificates.push(Entry {
            containers: BTreeSet::from([container.clone()]),
            request,
            gone: None,
            first_gone,
        });
        kind.map(|kind| RequestChange {
            lineage,
            container,
            kind,
        })
    }

    /// The requests to renew: first those made now.
    #[must_use]
    pub(crate) fn renewed(&self) -> Vec<&Request> {
        let renewed = self.certificates.iter().filter(|one| one.is_renewed());
        let (gone, here): (Vec<_>, Vec<_>) = renewed.partition(|one| one.gone.is_some());
        here.into_iter()
            .chain(gone)
            .map(|one| &one.request)
            .collect()
    }

    /// The containers that request each certificate.
    #[must_use]
    pub(crate) fn requesters(&self) -> BTreeMap<Lineage, RequestedBy> {
        let shown = |one: &Entry| {
            let shown = RequestedBy {
                containers: one.containers.clone(),
                gone_since: one.gone.map(|gone| gone.since),
                renewed_until: one.gone.map(|gone| gone.until),
                stopped: one.gone.is_some_and(|gone| gone.stopped),
            };
            Some((one.request.lineage()?, shown))
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
    ) -> Option<RequestChange> {
        if self.request.is_from_environment() && !self.containers.is_disjoint(unseen) {
            return None;
        }
        let kind = match &mut self.gone {
            None => {
                let until = now + grace;
                self.gone = Some(Absence {
                    since: now,
                    until,
                    stopped: false,
                });
                ChangeKind::Withdrawn { until }
            }
            Some(gone) if gone.stopped => return None,
            Some(gone) => {
                gone.until = gone.since + grace;
                gone.stopped = gone.until <= now;
                gone.stopped.then_some(ChangeKind::Stopped)?
            }
        };
        Some(RequestChange {
            lineage: self.request.lineage()?,
            container: self.request.container.clone(),
            kind,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identifier::Identifier;

    const START: Timestamp = Timestamp::from_seconds(1_800_000_000);
    const HOUR: Duration = Duration::from_secs(3600);
    const WEEK: Duration = Duration::from_secs(7 * 86_400);

    fn request(container: &str, names: &str) -> Request {
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
        let mut registry = Registry::default();
        let requests = [
            request("web", "a.example.com"),
            request("api", "b.example.com"),
        ];
        let mut logged = Vec::new();
        let mut at = |registry: &mut Registry, requests: &[Request], now: Timestamp| {
            for change in registry.merge(requests, &none_unseen(), now, WEEK) {
                logged.push(format!("{}: {change}", change.lineage));
            }
        };
        at(&mut registry, &requests, START);
        at(&mut registry, &requests, START + HOUR);
        at(&mut registry, &requests[1..], START + HOUR * 2);
        assert_eq!(renewed(&registry), ["b.example.com", "a.example.com"]);
        // Logged once; a new request restarts the grace period.
        at(&mut registry, &requests[1..], START + HOUR * 3);
        at(&mut registry, &requests, START + HOUR * 4);
        at(&mut registry, &requests[1..], START + HOUR * 5);
        at(
            &mut registry,
            &requests[1..],
            START + HOUR * 5 + WEEK - Duration::from_secs(1),
        );
        assert_eq!(renewed(&registry).len(), 2);
        at(&mut registry, &requests[1..], START + HOUR * 5 + WEEK);
        assert_eq!(renewed(&registry), ["b.example.com"]);
        at(&mut registry, &requests[1..], START + HOUR * 6 + WEEK);
        let asked = registry.requesters();
        let shown = &asked[&Lineage::parse("a.example.com").unwrap()];
        assert!(shown.stopped && shown.gone_since == Some(START + HOUR * 5));
        at(&mut registry, &requests, START + HOUR * 7 + WEEK);
        assert_eq!(renewed(&registry).len(), 2);
        insta::assert_snapshot!(logged.join("\n"), @r"
        a.example.com: requested by container web
        b.example.com: requested by container api
        a.example.com: container web no longer requests it; renewed until 2027-01-22T10:00:00Z, unless requested again
        a.example.com: requested again by container web
        a.example.com: container web no longer requests it; renewed until 2027-01-22T13:00:00Z, unless requested again
        a.example.com: no longer renewed: container web was the last to request it, and the grace period has ended; stored files stay; hint: name it in the configuration to keep it
        a.example.com: requested again by container web
        ");
        let json = serde_json::to_string(&registry).unwrap();
        assert_eq!(serde_json::from_str::<Registry>(&json).unwrap(), registry);
    }

    #[test]
    fn registry_shares_a_certificate_between_containers_of_equal_names() {
        let mut registry = Registry::default();
        let requests = [
            request("web", "a.example.com b.example.com"),
            request("api", "b.example.com a.example.com"),
        ];
        assert_eq!(
            registry.merge(&requests, &none_unseen(), START, WEEK).len(),
            1
        );
        let lineage = Lineage::parse("a.example.com").unwrap();
        assert_eq!(registry.requesters()[&lineage].containers.len(), 2);
        assert!(
            registry
                .merge(&requests[1..], &none_unseen(), START, WEEK)
                .is_empty()
        );
        assert_eq!(renewed(&registry), ["a.example.com"]);
    }

    /// What `certs run` does with a list of which all requests are valid.
    fn granted(registry: &mut Registry, requests: &[Request], now: Timestamp) -> Vec<String> {
        let (mut lineages, mut sets) = (BTreeSet::new(), Vec::new());
        for one in registry.candidates(requests) {
            if lineages.insert(one.lineage()) {
                sets.push(one);
            }
        }
        let is_allowed = |one: &&Request| sets.iter().any(|set| set.set() == one.set());
        let allowed: Vec<_> = requests.iter().filter(is_allowed).cloned().collect();
        registry.merge(&allowed, &none_unseen(), now, WEEK);
        let stored = serde_json::to_string(registry).unwrap();
        *registry = serde_json::from_str(&stored).unwrap();
        let shown = |one: &Request| format!("{} of {}", one.names.len(), one.container);
        registry.renewed().into_iter().map(shown).collect()
    }

    #[test]
    fn certificate_belongs_to_its_first_container_until_that_is_gone() {
        let web = request("web", "b.example.com");
        let wider = request("web", "b.example.com www.b.example.com");
        for other in ["b.example.com a.blocked.example", "b.example.com"] {
            let other = request("other", other);
            let mut registry = Registry::default();
            granted(&mut registry, std::slice::from_ref(&web), START);
            let both = [other.clone(), web.clone()];
            assert_eq!(granted(&mut registry, &both, START + HOUR), ["1 of web"]);
            // The container is deployed again, with other names, after a restart of ours.
            let alone = std::slice::from_ref(&other);
            assert_eq!(
                granted(&mut registry, alone, START + HOUR * 2),
                ["1 of web"]
            );
            let both = [other.clone(), wider.clone()];
            assert_eq!(
                granted(&mut registry, &both, START + HOUR * 3),
                ["2 of web"]
            );
            // It is gone for good.
            let gone = START + HOUR * 4;
            assert_eq!(granted(&mut registry, alone, gone), ["2 of web"]);
            assert_eq!(
                granted(&mut registry, alone, gone + WEEK - HOUR),
                ["2 of web"]
            );
            granted(&mut registry, alone, gone + WEEK);
            let last = granted(&mut registry, alone, gone + WEEK + HOUR);
            assert_eq!(last, [format!("{} of other", other.names.len())]);
        }
    }

    #[test]
    fn registry_replaces_names_of_equal_lineage() {
        let mut registry = Registry::default();
        registry.merge(
            &[request("web", "a.example.com")],
            &none_unseen(),
            START,
            WEEK,
        );
        let wider = [request("web", "a.example.com www.example.com")];
        let changes = registry.merge(&wider, &none_unseen(), START, WEEK);
        assert!(
            matches!(
                changes.as_slice(),
                [RequestChange {
                    kind: ChangeKind::NamesChanged,
                    ..
                }]
            ),
            "{changes:?}"
        );
        assert_eq!(registry.renewed(), [&wider[0]]);
    }

    #[test]
    fn registry_keeps_request_if_environment_is_unseen() {
        let mut registry = Registry::default();
        let mut web = request("web", "a.example.com");
        web.label = "LETSENCRYPT_HOST".into();
        registry.merge(&[web], &none_unseen(), START, WEEK);
        let unseen = BTreeSet::from(["web".to_owned()]);
        assert!(
            registry
                .merge(&[], &unseen, START + WEEK * 3, WEEK)
                .is_empty()
        );
        assert_eq!(renewed(&registry).len(), 1);
        assert_eq!(
            registry
                .merge(&[], &none_unseen(), START + WEEK * 3, WEEK)
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
                request("a", "a.example.com"),
                request("b", "a.example.com"),
                request("c", "c.example.com www.example.com"),
                request("d", "d.example.com"),
            ];
            let (mut registry, mut now) = (Registry::default(), START);
            let mut last: BTreeMap<String, Timestamp> = BTreeMap::new();
            for (here, hours) in story {
                now = now + HOUR * u32::try_from(hours).unwrap();
                let requests = all.iter().enumerate().filter(|(n, _)| here & (1 << n) != 0);
                let requests: Vec<Request> = requests.map(|(_, request)| request.clone()).collect();
                registry.merge(&requests, &none_unseen(), now, WEEK);
                for request in &requests {
                    last.insert(request.lineage().unwrap().to_string(), now);
                }
                let renewed = renewed(&registry);
                let distinct: BTreeSet<_> = renewed.iter().collect();
                proptest::prop_assert_eq!(distinct.len(), renewed.len());
                for (lineage, seen) in &last {
                    if now.since(*seen) < WEEK {
                        proptest::prop_assert!(renewed.contains(lineage), "{} {:?}", lineage, renewed);
                    }
                }
                proptest::prop_assert_eq!(registry.requesters().len(), last.len());
            }
        }
    }
}
