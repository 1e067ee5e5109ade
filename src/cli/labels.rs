//! Certificates for the labels of containers: each whole list is checked against the
//! configuration, merged into the registry of earlier requests, and stored.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::config::{CertificateSettings, ConfigProblem, Settings, Sources};
use crate::discovery::Listing;
use crate::discovery::labels::Request;
use crate::discovery::registry::Registry;
use crate::discovery::stored;
use crate::failure::Failure;
use crate::files::DirectoryOwner;
use crate::lineage::Lineage;
use crate::observe::RequestedBy;
use crate::time::Timestamp;

/// The certificates that containers request.
pub(super) struct Labels {
    path: PathBuf,
    owner: DirectoryOwner,
    registry: Registry,
    /// The problems logged last.
    logged: BTreeSet<String>,
}

impl Labels {
    /// Reads the registry stored in `data_dir`.
    ///
    /// # Errors
    /// When the file cannot be read: the next write would forget what it holds.
    pub(super) fn open(data_dir: &Path) -> Result<Self, Failure> {
        let path = stored::path(data_dir);
        let owner = DirectoryOwner::of(data_dir);
        let read = {
            let _acting = owner.act();
            stored::read(&path)
        };
        Ok(Self {
            registry: read.map_err(|error| Failure::unusable(&path, &error))?,
            path,
            owner,
            logged: BTreeSet::new(),
        })
    }

    /// The containers that request each certificate.
    pub(super) fn requests(&self) -> BTreeMap<Lineage, RequestedBy> {
        self.registry.requesters()
    }

    /// The certificates of all allowed requests that `configured` does not cover.
    pub(super) fn certificates(
        &self,
        sources: &Sources,
        configured: &Settings,
    ) -> Vec<CertificateSettings> {
        let granted = sources.granted(&self.registry.renewed(), configured);
        let mut certificates = granted.certificates;
        // Callers compare the list, so its order must not vary.
        certificates.sort_by(|one, other| one.lineage.cmp(&other.lineage));
        certificates
    }

    /// Applies the newest whole list; whether the requests have changed.
    pub(super) fn apply(
        &mut self,
        listing: &Listing,
        sources: &Sources,
        configured: &Settings,
        now: Timestamp,
    ) -> bool {
        let Some(docker) = &configured.docker else {
            return false;
        };
        let listed = self.registry.as_known(&listing.requests);
        let candidates = self.registry.candidates(&listed);
        let requests: Vec<&Request> = candidates.iter().collect();
        let granted = sources.granted(&requests, configured);
        let complaints = listing.invalid.iter().map(ConfigProblem::from);
        let refused = granted.refused.iter().chain(&granted.remarks);
        self.log_problems(complaints.chain(refused.cloned()));
        let requests = allowed(listed, &granted.certificates, &configured.certificates);
        let before = self.registry.clone();
        let registry = &mut self.registry;
        for change in registry.merge(&requests, &listing.unseen, now, docker.grace) {
            let lineage = &change.lineage;
            match change.is_a_warning() {
                true => tracing::warn!(%lineage, "{change}"),
                false => tracing::info!(%lineage, "{change}"),
            }
        }
        if self.registry == before {
            return false;
        }
        let _acting = self.owner.act();
        stored::write(&self.path, &self.registry);
        true
    }

    /// Logs each problem once, until it is fixed.
    fn log_problems(&mut self, problems: impl Iterator<Item = ConfigProblem>) {
        let lines: BTreeSet<String> = problems
            .map(|one| one.shown())
            .map(|(message, hint)| crate::text::printable(&format!("{message}; hint: {hint}")))
            .collect();
        for line in lines.difference(&self.logged) {
            tracing::warn!("{line}");
        }
        self.logged = lines;
    }
}

/// Those of `requests` that are granted or configured, under the names of the certificates:
/// also those that another container made first.
fn allowed(
    mut requests: Vec<Request>,
    granted: &[CertificateSettings],
    configured: &[CertificateSettings],
) -> Vec<Request> {
    let set = |one: &CertificateSettings| one.names.iter().cloned().collect::<BTreeSet<_>>();
    let named: BTreeMap<_, _> = granted.iter().map(|one| (set(one), &one.names)).collect();
    let configured: BTreeSet<_> = configured.iter().map(set).collect();
    requests.retain_mut(|request| {
        let set: BTreeSet<_> = request.names.iter().cloned().collect();
        if let Some(names) = named.get(&set) {
            request.names.clone_from(names);
        }
        named.contains_key(&set) || configured.contains(&set)
    });
    requests
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Options, Purpose};

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

    fn sources(file: &str, directory: &Path) -> Sources {
        let path = directory.join("certs.toml");
        let docker = "agree_tos = true\nemail = 'a@example.com'\n[docker]\nhost = 'tcp://proxy:2375'\nlimit = 2\n";
        std::fs::write(&path, format!("{docker}{file}")).unwrap();
        let mut options = Options::default();
        options.config(path.to_str());
        Sources::read(&options, &BTreeMap::new())
    }

    fn listing(requests: &[(&str, &str)]) -> Listing {
        let request = |(container, names): &(&str, &str)| Request {
            container: (*container).to_owned(),
            created: 0,
            label: "certs.domains".into(),
            names: names.split(' ').map(|name| name.parse().unwrap()).collect(),
            keys: BTreeMap::new(),
        };
        Listing {
            requests: requests.iter().map(request).collect(),
            ..Listing::default()
        }
    }

    fn lineages(labels: &Labels) -> Vec<String> {
        labels.requests().keys().map(ToString::to_string).collect()
    }

    #[test]
    fn request_keeps_precedence_while_its_container_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let sources = sources("", directory.path());
        let settings = sources.settings(&Purpose::All).unwrap();
        let mut labels = Labels::open(directory.path()).unwrap();
        let apply = |labels: &mut Labels, requests: &[(&str, &str)]| {
            labels.apply(&listing(requests), &sources, &settings, NOW);
        };
        let (first, other) = (
            ("a", "x.example.com www.example.com"),
            ("b", "x.example.com"),
        );
        apply(&mut labels, &[first, other]);
        // Container a restarts.
        apply(&mut labels, &[other]);
        apply(
            &mut labels,
            &[other, ("c", "c.example.com"), ("d", "d.example.com")],
        );
        assert_eq!(lineages(&labels), ["c.example.com", "x.example.com"]);
        let kept = labels.registry.renewed();
        let x = kept.iter().find(|one| one.container == "a").unwrap();
        assert_eq!(x.names.len(), 2);
        // A container's new labels replace its own request.
        apply(
            &mut labels,
            &[("a", "x.example.com"), ("c", "c.example.com")],
        );
        let kept = labels.registry.renewed();
        let x = kept.iter().find(|one| one.container == "a").unwrap();
        assert_eq!(x.names.len(), 1);
    }

    #[test]
    fn each_container_gets_its_names_in_whatever_order_they_are_shared() {
        let directory = tempfile::tempdir().unwrap();
        let sources = sources("", directory.path());
        let settings = sources.settings(&Purpose::All).unwrap();
        let (a, b) = (
            ("1", "a.example.com b.example.com"),
            ("2", "b.example.com a.example.com"),
        );
        for (third, lineage) in [
            ("a.example.com b.example.com c.example.com", "c.example.com"),
            ("b.example.com d.example.com a.example.com", "b.example.com"),
        ] {
            let mut labels = Labels::open(directory.path()).unwrap();
            let all = [a, b, ("3", third), ("4", third)];
            for requests in [&all[..2], &all, &all[1..], &all] {
                labels.apply(&listing(requests), &sources, &settings, NOW);
                assert!(labels.logged.is_empty(), "{:?}", labels.logged);
                // As after a restart.
                labels = Labels::open(directory.path()).unwrap();
            }
            let shown = |labels: &Labels| -> Vec<String> {
                let certificates = labels.certificates(&sources, &settings).into_iter();
                let shown =
                    |one: CertificateSettings| format!("{} {}", one.lineage, one.names.len());
                certificates.map(shown).collect()
            };
            assert_eq!(
                shown(&labels),
                ["a.example.com 2".to_owned(), format!("{lineage} 3")]
            );
            assert_eq!(lineages(&labels), ["a.example.com", lineage]);
            let requested = &labels.requests()[&"a.example.com".parse().unwrap()];
            assert_eq!(requested.containers.len(), 2);
            std::fs::remove_file(directory.path().join("labels.json")).unwrap();
        }
    }

    #[test]
    fn request_stays_after_its_names_are_configured() {
        let directory = tempfile::tempdir().unwrap();
        let before = sources("", directory.path());
        let settings = before.settings(&Purpose::All).unwrap();
        let mut labels = Labels::open(directory.path()).unwrap();
        let requests = listing(&[("a", "x.example.com")]);
        assert!(labels.apply(&requests, &before, &settings, NOW));
        let after = sources(
            "[[certificate]]\nnames = 'x.example.com'\n",
            directory.path(),
        );
        let settings = after.settings(&Purpose::All).unwrap();
        assert!(
            !labels.apply(&requests, &after, &settings, NOW),
            "nothing has changed"
        );
        assert!(
            labels
                .requests()
                .values()
                .all(|one| one.gone_since.is_none())
        );
        assert!(
            labels.certificates(&after, &settings).is_empty(),
            "the table has it"
        );
    }
}
