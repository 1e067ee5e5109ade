//! Parses the certificates that containers request from Docker's responses. Pure.
//! Neither the API nor the author of a label is trusted: every size is bounded, an
//! invalid list is an error as a whole, and an invalid label affects only its own
//! container.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::text::printable_within;

/// Names the certificates: spaces or commas between names, `;` between certificates.
pub(crate) const DOMAINS: &str = "certs.domains";
/// acme-companion's variable for the same, in a container's environment.
pub(crate) const COMPANION: &str = "LETSENCRYPT_HOST";
const OTHERS: [&str; 4] = [
    "certs.email",
    "certs.deploy",
    "certs.challenge",
    "certs.profile",
];
const PREFIX: &str = "certs.";
const MOST_CONTAINERS: usize = 10_000;
/// The limit of one label's value, in bytes.
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
    pub(crate) fn is_of_the_environment(&self) -> bool {
        !self.label.starts_with(PREFIX)
    }
}

/// An invalid label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct InvalidLabel {
    /// The container's name.
    pub container: String,
    /// The label or variable.
    pub label: String,
    /// The error.
    pub message: String,
    /// A valid value.
    pub hint: String,
}

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
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
}

/// Reads the response to `GET /containers/json`.
///
/// # Errors
/// Why the list is invalid; no part of it may be used then.
pub(crate) fn read_list(answer: &[u8]) -> Result<Vec<Container>, String> {
    let listed: Vec<Listed> = serde_json::from_slice(answer)
        .map_err(|error| format!("invalid list of containers: {error}"))?;
    if listed.len() > MOST_CONTAINERS {
        return Err(format!(
            "more than {MOST_CONTAINERS} containers in the list"
        ));
    }
    let mut seen = BTreeSet::new();
    listed
        .into_iter()
        .map(|listed| {
            let is_id = listed.id.len() <= LONGEST_NAME
                && !listed.id.is_empty()
                && listed.id.bytes().all(|byte| byte.is_ascii_alphanumeric());
            if !is_id || !seen.insert(listed.id.clone()) {
                return Err("a container without a unique identifier in the list".to_owned());
            }
            let name = listed.names.first().map_or(listed.id.as_str(), |name| {
                name.strip_prefix('/').unwrap_or(name)
            });
            let labels = listed.labels.unwrap_or_default().into_iter();
            Ok(Container {
                name: printable_within(name, LONGEST_NAME),
                id: listed.id,
                created: listed.created,
                labels: labels.filter(|(key, _)| key.starts_with(PREFIX)).collect(),
            })
        })
        .collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    config: Configured,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Configured {
    #[serde(default)]
    env: Option<Vec<String>>,
}

/// Reads acme-companion's variables from the response to `GET /containers/ID/json`.
///
/// # Errors
/// Why the response is invalid.
pub(crate) fn read_environment(answer: &[u8]) -> Result<BTreeMap<String, String>, String> {
    let inspected: Inspected =
        serde_json::from_slice(answer).map_err(|error| format!("invalid container: {error}"))?;
    let variables = inspected.config.env.unwrap_or_default().into_iter();
    Ok(variables
        .filter(|variable| variable.starts_with("LETSENCRYPT_"))
        .filter_map(|variable| {
            let (key, value) = variable.split_once('=')?;
            Some((key.to_owned(), value.to_owned()))
        })
        .collect())
}

impl Container {
    /// Whether its labels request certificates, so that its environment is ignored.
    #[must_use]
    pub(crate) fn is_labelled(&self) -> bool {
        self.labels.contains_key(DOMAINS)
    }

    /// Orders by age, the oldest first, then by name.
    #[must_use]
    pub(crate) fn by_age(&self, other: &Self) -> std::cmp::Ordering {
        let key = |one: &Self| (one.created, one.name.clone());
        key(self).cmp(&key(other))
    }

    /// The requests of its labels.
    #[must_use]
    pub(crate) fn asks(&self) -> (Vec<Request>, Vec<InvalidLabel>) {
        let mut complaints: Vec<InvalidLabel> = self
            .labels
            .keys()
            .filter_map(|key| self.misplaced(key))
            .collect();
        let Some(domains) = self.labels.get(DOMAINS) else {
            return (Vec::new(), complaints);
        };
        let others = OTHERS.iter().filter_map(|key| {
            let value = self.labels.get(*key)?.trim();
            let key = key.strip_prefix(PREFIX)?;
            (!value.is_empty()).then(|| (key.to_owned(), value.to_owned()))
        });
        let keys: BTreeMap<String, String> = others.collect();
        if let Some(key) = keys.iter().find(|(_, value)| value.len() > LONGEST_VALUE) {
            let label = format!("{PREFIX}{}", key.0);
            complaints.push(self.complaint(&label, "the value is too long", "shorten it"));
            return (Vec::new(), complaints);
        }
        let asks = self.groups(DOMAINS, domains.split(';'), &keys, &mut complaints);
        (asks, complaints)
    }

    /// The requests of `variables`, as acme-companion reads them: one certificate for all
    /// of LETSENCRYPT_HOST, or with LETSENCRYPT_SINGLE_DOMAIN_CERTS one for each.
    /// VIRTUAL_HOST alone requests nothing.
    #[must_use]
    pub(crate) fn asks_of(
        &self,
        variables: &BTreeMap<String, String>,
    ) -> (Vec<Request>, Vec<InvalidLabel>) {
        let mut complaints = Vec::new();
        let variable = |key: &str| {
            let value = variables.get(key).map(|value| value.trim());
            value.filter(|value| !value.is_empty())
        };
        let Some(hosts) = variable(COMPANION) else {
            return (Vec::new(), complaints);
        };
        let email = variable("LETSENCRYPT_EMAIL").filter(|email| email.len() <= LONGEST_VALUE);
        let keys = email.map(|email| ("email".to_owned(), email.to_owned()));
        let keys = keys.into_iter().collect();
        let each = variable("LETSENCRYPT_SINGLE_DOMAIN_CERTS");
        let asks = match each.is_some_and(|each| each.eq_ignore_ascii_case("true")) {
            true => self.groups(COMPANION, hosts.split(','), &keys, &mut complaints),
            false => self.groups(COMPANION, [hosts].into_iter(), &keys, &mut complaints),
        };
        (asks, complaints)
    }

    /// One request for each of `groups`. An invalid group does not affect the others.
    fn groups<'a>(
        &self,
        label: &str,
        groups: impl Iterator<Item = &'a str>,
        keys: &BTreeMap<String, String>,
        complaints: &mut Vec<InvalidLabel>,
    ) -> Vec<Request> {
        let hint = "names as in `example.com www.example.com; api.example.com`";
        let mut asks: Vec<Request> = Vec::new();
        let mut has_names = false;
        for group in groups {
            let words = group.split(|c: char| c.is_whitespace() || c == ',');
            let mut words = words.filter(|word| !word.is_empty()).peekable();
            if words.peek().is_none() {
                continue;
            }
            has_names = true;
            if group.len() > LONGEST_VALUE {
                complaints.push(self.complaint(label, "the value is too long", hint));
                continue;
            }
            let names: Result<Vec<Identifier>, _> = words.map(Identifier::parse).collect();
            match names {
                Ok(names) => asks.push(Request {
                    container: self.name.clone(),
                    created: self.created,
                    label: label.to_owned(),
                    names: once_each(names),
                    keys: keys.clone(),
                }),
                Err(error) => {
                    complaints.push(self.complaint(label, &error.to_string(), error.hint()));
                }
            }
        }
        if !has_names {
            complaints.push(self.complaint(label, "no names", hint));
        }
        asks
    }

    /// The error if the label `key` is unknown or lacks `certs.domains` beside it.
    fn misplaced(&self, key: &str) -> Option<InvalidLabel> {
        let known = OTHERS.iter().chain([&DOMAINS]).any(|known| known == &key);
        if !known {
            let hint = format!("use {DOMAINS}, {}", OTHERS.join(", "));
            return Some(self.complaint(key, "unknown label", &hint));
        }
        (!self.is_labelled()).then(|| {
            let hint = format!("add {DOMAINS}, such as example.com");
            self.complaint(key, &format!("no {DOMAINS} beside it"), &hint)
        })
    }

    fn complaint(&self, label: &str, message: &str, hint: &str) -> InvalidLabel {
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
    use super::*;

    fn container(labels: &[(&str, &str)]) -> Container {
        let labels: BTreeMap<_, _> = labels.iter().copied().collect();
        let list = serde_json::json!([{
            "Id": "4f1e", "Names": ["/web"], "Created": 7, "State": "running",
            "Labels": labels, "Ports": [{"PrivatePort": 80}],
        }]);
        read_list(list.to_string().as_bytes()).unwrap().remove(0)
    }

    fn names(asks: &[Request]) -> Vec<String> {
        let shown = |ask: &Request| {
            let names = ask.names.iter().map(ToString::to_string);
            names.collect::<Vec<_>>().join(" ")
        };
        asks.iter().map(shown).collect()
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
        let (asks, complaints) = web.asks();
        assert_eq!(complaints, []);
        assert_eq!(
            names(&asks),
            ["example.com www.example.com", "api.example.com"]
        );
        for ask in &asks {
            assert_eq!((ask.container.as_str(), ask.created), ("web", 7));
            assert_eq!(ask.keys["email"], "a@example.com");
            assert_eq!(ask.keys.len(), 1);
        }
        assert!(web.is_labelled() && !container(&[]).is_labelled());
        assert_eq!(container(&[]).asks(), (vec![], vec![]));
    }

    #[test]
    fn invalid_label_is_reported_and_affects_no_other() {
        let (asks, complaints) = container(&[
            (DOMAINS, "a_b!.example.com; api.example.com"),
            ("certs.domain", "x"),
        ])
        .asks();
        assert_eq!(names(&asks), ["api.example.com"]);
        let shown: Vec<_> = complaints
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
        let (asks, complaints) = container(&[("certs.email", "a@example.com")]).asks();
        assert_eq!((asks.len(), complaints.len()), (0, 1));
        assert!(complaints[0].message.contains("no certs.domains"));
        assert!(
            container(&[(DOMAINS, " ; ")]).asks().1[0]
                .message
                .contains("no names")
        );
        let long = "a.example.com ".repeat(2000);
        assert!(container(&[(DOMAINS, &long)]).asks().0.is_empty());
        let long = container(&[(DOMAINS, "a.example.com"), ("certs.deploy", &long)]);
        assert!(long.asks().0.is_empty());
    }

    #[test]
    fn companion_variables_are_read_as_acme_companion_does() {
        let web = container(&[]);
        let of = |variables: &[&str]| {
            let inspected = serde_json::json!({"Config": {"Env": variables}}).to_string();
            let variables = read_environment(inspected.as_bytes()).unwrap();
            assert!(variables.keys().all(|key| key.starts_with("LETSENCRYPT_")));
            web.asks_of(&variables)
        };
        let hosts = "LETSENCRYPT_HOST=a.example.com,b.example.com";
        let (asks, complaints) = of(&["PATH=/bin", hosts, "LETSENCRYPT_EMAIL=a@example.com"]);
        assert_eq!(
            (names(&asks), complaints),
            (vec!["a.example.com b.example.com".into()], vec![])
        );
        assert_eq!(asks[0].keys["email"], "a@example.com");
        assert!(asks[0].is_of_the_environment());
        let (asks, _) = of(&[hosts, "LETSENCRYPT_SINGLE_DOMAIN_CERTS=true"]);
        assert_eq!(names(&asks), ["a.example.com", "b.example.com"]);
        assert_eq!(of(&["VIRTUAL_HOST=a.example.com"]), (vec![], vec![]));
        let (asks, complaints) = of(&["LETSENCRYPT_HOST=~^www\\..*"]);
        assert_eq!((asks.len(), complaints[0].label.as_str()), (0, COMPANION));
    }

    #[test]
    fn list_is_rejected_whole_if_invalid() {
        let read = |text: &str| read_list(text.as_bytes());
        assert_eq!(read("[]"), Ok(vec![]));
        assert!(read(r#"[{"Id": "4f1e", "Labels": null}]"#).is_ok());
        for wrong in [
            "",
            "{}",
            "null",
            "[{}]",
            "[null]",
            "[[]]",
            "[",
            "<html>",
            r#"{"message": "forbidden"}"#,
            r#"[{"Id": "../../etc"}]"#,
            r#"[{"Id": ""}]"#,
            r#"[{"Id": "4f1e"}, {"Id": "4f1e"}]"#,
            r#"[{"Id": "4f1e", "Labels": []}]"#,
            r#"[{"Id": "4f1e", "Labels": {"certs.domains": 7}}]"#,
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        let many: Vec<_> = (0..=MOST_CONTAINERS)
            .map(|n| serde_json::json!({"Id": format!("{n:x}")}))
            .collect();
        assert!(read(&serde_json::Value::from(many).to_string()).is_err());
        assert!(read(&"[".repeat(100_000)).is_err());
        assert!(read_environment(b"[]").is_err());
        assert!(read_environment(br#"{"Config": {"Env": null}}"#).is_ok());
    }

    proptest::proptest! {
        #[test]
        fn label_parser_never_panics_and_deduplicates_names(text in "\\PC{0,80}") {
            let (asks, _) = container(&[(DOMAINS, &text), ("certs.deploy", &text)]).asks();
            for ask in asks {
                proptest::prop_assert!(ask.lineage().is_some());
                proptest::prop_assert_eq!(ask.set().len(), ask.names.len());
            }
        }
    }
}
