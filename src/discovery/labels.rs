//! Parses the certificates that containers request from Docker's responses. Pure.
//! Neither the API nor the author of a label is trusted: every size is bounded, and an
//! invalid label affects only its own container.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::companion::{variable_of, wanted};
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::text::printable_within;

/// Names the certificates: spaces or commas between names, `;` between certificates.
pub(crate) const DOMAINS: &str = "certs.domains";
const OTHERS: [&str; 4] = [
    "certs.email",
    "certs.deploy",
    "certs.challenge",
    "certs.profile",
];
const PREFIX: &str = "certs.";
/// The certificates and the misplaced labels of one container.
const MOST_OF_ONE: usize = 100;
/// The limit of one label's or variable's value, in bytes.
const LONGEST_VALUE: usize = 16 * 1024;
const LONGEST_NAME: usize = 128;

/// A certificate that a container requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Request {
    /// The container's name.
    pub container: String,
    /// When the container was created, in seconds since 1970.
    pub created: i64,
    /// The label or variable that lists the names.
    #[serde(rename = "said_in")]
    pub label: String,
    /// The names in their order in the label; at least one.
    pub names: Vec<Identifier>,
    /// The other labels' values, by their key without `certs.`.
    #[serde(default)]
    pub keys: BTreeMap<String, String>,
}

impl Request {
    /// The certificate's own name.
    #[must_use]
    pub(crate) fn lineage(&self) -> Option<Lineage> {
        self.names.first().map(Lineage::of)
    }

    /// The names as a set.
    #[must_use]
    pub(crate) fn set(&self) -> BTreeSet<&Identifier> {
        self.names.iter().collect()
    }

    /// Whether it comes from the container's environment, which may be unreadable
    /// while the container is listed.
    #[must_use]
    pub(crate) fn is_from_environment(&self) -> bool {
        !self.label.starts_with(PREFIX)
    }

    /// The label or variable that set `key`.
    #[must_use]
    pub(crate) fn label_of(&self, key: &str) -> String {
        match self.is_from_environment() {
            true => variable_of(&self.label, key),
            false => format!("{PREFIX}{key}"),
        }
    }
}

/// An invalid label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct InvalidLabel {
    /// The container's name.
    pub container: String,
    /// The label or variable.
    pub label: String,
    pub message: String,
    pub hint: String,
}

impl InvalidLabel {
    /// A container of which no label can be read.
    pub(super) fn of_container(name: &str, message: String) -> Self {
        Self {
            container: printable_within(name, LONGEST_NAME),
            label: "all labels".to_owned(),
            message,
            hint: "its labels are ignored: shorten or remove them".to_owned(),
        }
    }
}

/// The requests of one container, and its invalid labels.
pub(crate) type Requests = (Vec<Request>, Vec<InvalidLabel>);

/// A running container from the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Container {
    /// Its identifier in the API.
    pub id: String,
    /// Its name without the leading slash.
    pub name: String,
    created: i64,
    labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    created: i64,
    /// Null for a container without labels.
    labels: Option<BTreeMap<String, String>>,
}

impl Container {
    /// Reads its part of the response to `GET /containers/json`.
    ///
    /// # Errors
    /// Why it is invalid.
    pub(super) fn read(part: &[u8]) -> Result<Self, String> {
        let listed: Listed = serde_json::from_slice(part)
            .map_err(|error| format!("its description is invalid: {error}"))?;
        let id = listed.id;
        let is_id = (1..=LONGEST_NAME).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !is_id {
            return Err("its identifier is invalid".to_owned());
        }
        let name = listed.names.first().unwrap_or(&id);
        let name = name.strip_prefix('/').unwrap_or(name);
        let labels = listed.labels.unwrap_or_default().into_iter();
        Ok(Self {
            name: printable_within(name, LONGEST_NAME),
            id,
            created: listed.created,
            labels: labels.filter(|(key, _)| key.starts_with(PREFIX)).collect(),
        })
    }

    /// Whether its labels request certificates, so that its environment is ignored.
    #[must_use]
    pub(crate) fn is_labelled(&self) -> bool {
        self.labels.contains_key(DOMAINS)
    }

    /// The order of a list: the oldest first, then by name.
    #[must_use]
    pub(crate) fn age(&self) -> (i64, String) {
        (self.created, self.name.clone())
    }

    /// The requests of its labels.
    #[must_use]
    pub(crate) fn requests(&self) -> Requests {
        let keys = self.labels.keys().take(MOST_OF_ONE);
        let misplaced = keys.filter_map(|key| self.misplaced(key));
        let mut invalid: Vec<InvalidLabel> = misplaced.collect();
        let Some(domains) = self.labels.get(DOMAINS) else {
            return (Vec::new(), invalid);
        };
        let others = OTHERS.iter().filter_map(|key| {
            let value = self.labels.get(*key)?.trim();
            let key = key.strip_prefix(PREFIX)?;
            (!value.is_empty()).then(|| (key.to_owned(), value.to_owned()))
        });
        let keys: BTreeMap<String, String> = others.collect();
        let domains_key = DOMAINS.strip_prefix(PREFIX).unwrap_or(DOMAINS);
        let mut all = keys.iter().map(|(key, value)| (key.as_str(), value));
        let mut all = all.by_ref().chain([(domains_key, domains)]);
        if let Some((key, _)) = all.find(|(_, value)| value.len() > LONGEST_VALUE) {
            let label = format!("{PREFIX}{key}");
            invalid.push(self.invalid(&label, "the value is too long", "shorten it"));
            return (Vec::new(), invalid);
        }
        let (requests, more) = self.groups(DOMAINS, domains.split(';'), &keys);
        invalid.extend(more);
        (requests, invalid)
    }

    /// The requests of `variables`, as acme-companion reads them: one certificate for all
    /// names of its list, or one for each.
    #[must_use]
    pub(crate) fn requests_of(&self, variables: &BTreeMap<String, String>) -> Requests {
        let Some(mut wanted) = wanted(variables) else {
            return Requests::default();
        };
        let variable = &wanted.variable;
        if wanted.hosts.len() > LONGEST_VALUE {
            let invalid = self.invalid(variable, "the value is too long", "shorten it");
            return (Vec::new(), vec![invalid]);
        }
        wanted.keys.retain(|_, value| value.len() <= LONGEST_VALUE);
        match wanted.is_single {
            true => self.groups(variable, wanted.hosts.split(','), &wanted.keys),
            false => self.groups(variable, [wanted.hosts].into_iter(), &wanted.keys),
        }
    }

    /// One request for each of `groups`. An invalid group does not affect the others.
    fn groups<'a>(
        &self,
        label: &str,
        groups: impl Iterator<Item = &'a str>,
        keys: &BTreeMap<String, String>,
    ) -> Requests {
        let hint = "names as in `example.com www.example.com; api.example.com`";
        let (mut requests, mut invalid) = Requests::default();
        for group in groups {
            let words = group.split(|c: char| c.is_whitespace() || c == ',');
            let mut words = words.filter(|word| !word.is_empty()).peekable();
            if words.peek().is_none() {
                continue;
            }
            if requests.len() + invalid.len() >= MOST_OF_ONE {
                let message = format!("more than {MOST_OF_ONE} certificates");
                invalid.push(self.invalid(label, &message, "use several containers"));
                break;
            }
            match words.map(Identifier::parse).collect::<Result<_, _>>() {
                Ok(names) => requests.push(Request {
                    container: self.name.clone(),
                    created: self.created,
                    label: label.to_owned(),
                    names: once_each(names),
                    keys: keys.clone(),
                }),
                Err(error) => invalid.push(self.invalid(label, &error.to_string(), error.hint())),
            }
        }
        if requests.is_empty() && invalid.is_empty() {
            invalid.push(self.invalid(label, "no names", hint));
        }
        (requests, invalid)
    }

    /// The error if the label `key` is unknown or lacks `certs.domains` beside it.
    fn misplaced(&self, key: &str) -> Option<InvalidLabel> {
        if key != DOMAINS && !OTHERS.contains(&key) {
            let hint = format!("use {DOMAINS}, {}", OTHERS.join(", "));
            return Some(self.invalid(key, "unknown label", &hint));
        }
        (!self.is_labelled()).then(|| {
            let hint = format!("add {DOMAINS}, such as example.com");
            self.invalid(key, &format!("no {DOMAINS} beside it"), &hint)
        })
    }

    fn invalid(&self, label: &str, message: &str, hint: &str) -> InvalidLabel {
        InvalidLabel {
            container: self.name.clone(),
            label: printable_within(label, LONGEST_NAME),
            message: message.to_owned(),
            hint: hint.to_owned(),
        }
    }
}

fn once_each(names: Vec<Identifier>) -> Vec<Identifier> {
    let mut seen = BTreeSet::new();
    let first = |name: &Identifier| seen.insert(name.clone());
    names.into_iter().filter(first).collect()
}

#[cfg(test)]
mod tests {
    use super::super::companion::read_environment;
    use super::*;

    fn container(labels: &[(&str, &str)]) -> Container {
        let labels: BTreeMap<_, _> = labels.iter().copied().collect();
        let list = serde_json::json!([{
            "Id": "4f1e", "Names": ["/web"], "Created": 7, "State": "running",
            "Labels": labels, "Ports": [{"PrivatePort": 80}],
        }]);
        Container::read(list[0].to_string().as_bytes()).unwrap()
    }

    fn names(requests: &[Request]) -> Vec<String> {
        let shown = |request: &Request| {
            let names = request.names.iter().map(ToString::to_string);
            names.collect::<Vec<_>>().join(" ")
        };
        requests.iter().map(shown).collect()
    }

    #[test]
    fn labels_are_parsed_into_certificates() {
        let web = container(&[
            (
                DOMAINS,
                "Example.com, www.example.com www.example.com; api.example.com;",
            ),
            ("certs.email", " a@example.com "),
            ("certs.profile", ""),
            ("org.example.other", "x"),
        ]);
        let (requests, invalid) = web.requests();
        assert_eq!(invalid, []);
        assert_eq!(
            names(&requests),
            ["example.com www.example.com", "api.example.com"]
        );
        for request in &requests {
            assert_eq!((request.container.as_str(), request.created), ("web", 7));
            assert_eq!(request.keys["email"], "a@example.com");
            assert_eq!(request.keys.len(), 1);
        }
        assert!(web.is_labelled() && !container(&[]).is_labelled());
        assert_eq!(container(&[]).requests(), (vec![], vec![]));
    }

    #[test]
    fn invalid_label_is_reported_and_affects_no_other() {
        let (requests, invalid) = container(&[
            (DOMAINS, "a_b!.example.com; api.example.com"),
            ("certs.domain", "x"),
        ])
        .requests();
        assert_eq!(names(&requests), ["api.example.com"]);
        let shown: Vec<_> = invalid
            .iter()
            .map(|one| {
                format!(
                    "{}, {}: {}; hint: {}",
                    one.container, one.label, one.message, one.hint
                )
            })
            .collect();
        insta::assert_snapshot!(shown.join("\n"), @r"
        web, certs.domain: unknown label; hint: use certs.domains, certs.email, certs.deploy, certs.challenge, certs.profile
        web, certs.domains: `a_b!.example.com` is not a valid DNS name: it has an underscore; hint: CAs sign host names only: letters, digits and hyphens
        ");
        let (requests, invalid) = container(&[("certs.email", "a@example.com")]).requests();
        assert_eq!((requests.len(), invalid.len()), (0, 1));
        assert!(invalid[0].message.contains("no certs.domains"));
        assert!(
            container(&[(DOMAINS, " ; ")]).requests().1[0]
                .message
                .contains("no names")
        );
        let long = "a.example.com ".repeat(2000);
        assert!(container(&[(DOMAINS, &long)]).requests().0.is_empty());
        let long = container(&[(DOMAINS, "a.example.com"), ("certs.deploy", &long)]);
        assert!(long.requests().0.is_empty());
    }

    #[test]
    fn companion_variables_are_read_as_acme_companion_does() {
        let web = container(&[]);
        let of = |variables: &[&str]| {
            let inspected = serde_json::json!({"Config": {"Env": variables}}).to_string();
            web.requests_of(&read_environment(inspected.as_bytes()).unwrap())
        };
        let hosts = "LETSENCRYPT_HOST=a.example.com,b.example.com";
        let (requests, invalid) = of(&["PATH=/bin", hosts, "LETSENCRYPT_EMAIL=a@example.com"]);
        assert_eq!(
            (names(&requests), invalid),
            (vec!["a.example.com b.example.com".into()], vec![])
        );
        assert_eq!(requests[0].keys["email"], "a@example.com");
        assert!(requests[0].is_from_environment());
        assert_eq!(requests[0].label_of("email"), "LETSENCRYPT_EMAIL");
        let (requests, _) = of(&[hosts, "LETSENCRYPT_SINGLE_DOMAIN_CERTS=true"]);
        assert_eq!(names(&requests), ["a.example.com", "b.example.com"]);
        assert_eq!(of(&["VIRTUAL_HOST=a.example.com"]), (vec![], vec![]));
        let (requests, invalid) = of(&["LETSENCRYPT_HOST=~^www\\..*"]);
        assert_eq!(
            (requests.len(), invalid[0].label.as_str()),
            (0, "LETSENCRYPT_HOST")
        );
    }

    #[test]
    fn requests_of_one_container_are_bounded() {
        let many: String = (0..900).map(|n| format!("n{n}.example;")).collect();
        let (requests, invalid) = container(&[(DOMAINS, &many)]).requests();
        assert_eq!((requests.len(), invalid.len()), (MOST_OF_ONE, 1));
        let (requests, invalid) = container(&[(DOMAINS, &"!;".repeat(8000))]).requests();
        assert_eq!((requests.len(), invalid.len()), (0, MOST_OF_ONE + 1));
        let long = "a.example;".repeat(700_000);
        let (requests, invalid) = container(&[(DOMAINS, &long)]).requests();
        assert_eq!((requests.len(), invalid.len()), (0, 1));
        let variables = BTreeMap::from([("ACME_HOST".to_owned(), long)]);
        let (requests, invalid) = container(&[]).requests_of(&variables);
        assert_eq!((requests.len(), invalid.len()), (0, 1));
        let labels: Vec<_> = (0..900).map(|n| (format!("certs.x{n}"), "x")).collect();
        let labels: Vec<_> = labels.iter().map(|(key, value)| (&**key, *value)).collect();
        assert!(container(&labels).requests().1.len() <= MOST_OF_ONE);
    }

    proptest::proptest! {
        #[test]
        fn label_parser_never_panics_and_deduplicates_names(text in "\\PC{0,80}") {
            let (requests, _) = container(&[(DOMAINS, &text), ("certs.deploy", &text)]).requests();
            for request in requests {
                proptest::prop_assert!(request.lineage().is_some());
                proptest::prop_assert_eq!(request.set().len(), request.names.len());
            }
        }
    }
}
