//! acme-companion's variables in a container's environment, so that its containers need no
//! labels: `ACME_…` since its version 2.8, `LETSENCRYPT_…` before. All other variables are
//! dropped at once, since they may be secrets. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The newer prefix comes first, and wins.
const PREFIXES: [&str; 2] = ["ACME_", "LETSENCRYPT_"];
/// Lists the names.
const HOST: &str = "HOST";
/// With `true`, each name gets a certificate of its own.
const SINGLE: &str = "SINGLE_DOMAIN_CERTS";
/// The other variables, without their prefix, and the key of a certificate that each sets.
const KEYS: [(&str, &str); 7] = [
    ("EMAIL", "email"),
    ("TEST", "ca"),
    ("KEYSIZE", "key"),
    ("CERT_PROFILE", "profile"),
    ("CHALLENGE", "challenge"),
    ("PREFERRED_CHAIN", "preferred_chain"),
    ("RENEW_PRIVATE_KEYS", "reuse_key"),
];
/// acme-companion's test certificates come from here, whatever its CA is.
const TEST_CA: &str = "letsencrypt-staging";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    config: Configured,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Configured {
    env: Option<Vec<String>>,
}

/// What the variables of a container request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted<'v> {
    /// The variable that lists the names.
    pub(super) variable: String,
    pub(super) hosts: &'v str,
    /// Whether each name gets a certificate of its own.
    pub(super) is_single: bool,
    /// The other values, by the key that each sets.
    pub(super) keys: BTreeMap<String, String>,
}

/// Reads acme-companion's variables from the response to `GET /containers/ID/json`.
pub(crate) fn read_environment(answer: &[u8]) -> Result<BTreeMap<String, String>, String> {
    let inspected: Inspected =
        serde_json::from_slice(answer).map_err(|error| format!("invalid container: {error}"))?;
    let variables = inspected.config.env.unwrap_or_default().into_iter();
    let pairs = variables.filter_map(|variable| {
        let (key, value) = variable.split_once('=')?;
        is_known(key).then(|| (key.to_owned(), value.to_owned()))
    });
    Ok(pairs.collect())
}

fn is_known(variable: &str) -> bool {
    let mut names = PREFIXES.iter().filter_map(|it| variable.strip_prefix(it));
    names.any(|name| name == HOST || name == SINGLE || KEYS.iter().any(|(key, _)| *key == name))
}

/// What `variables` request; `None` without a list of names. `VIRTUAL_HOST` alone requests
/// nothing.
pub(super) fn wanted(variables: &BTreeMap<String, String>) -> Option<Wanted<'_>> {
    let given = |name: &str| {
        PREFIXES.iter().find_map(|prefix| {
            let variable = format!("{prefix}{name}");
            let value = variables.get(&variable)?.trim();
            (!value.is_empty()).then_some((variable, value))
        })
    };
    let (variable, hosts) = given(HOST)?;
    let keys = KEYS.iter().filter_map(|(name, key)| {
        let value = as_ours(name, given(name)?.1)?;
        Some(((*key).to_owned(), value))
    });
    Some(Wanted {
        variable,
        hosts,
        is_single: given(SINGLE).is_some_and(|(_, value)| is_true(value)),
        keys: keys.collect(),
    })
}

/// The value for our key; `None` where it changes nothing.
fn as_ours(name: &str, value: &str) -> Option<String> {
    let ours = match (name, value) {
        ("TEST", _) => return is_true(value).then(|| TEST_CA.to_owned()),
        ("RENEW_PRIVATE_KEYS", _) => {
            let keeps = value.eq_ignore_ascii_case("false");
            return keeps.then(|| "true".to_owned());
        }
        ("CHALLENGE", _) => value.to_ascii_lowercase(),
        ("KEYSIZE", "2048" | "3072" | "4096") => format!("rsa-{value}"),
        ("KEYSIZE", "ec-256" | "ec-384") => value.replace("ec-", "ecdsa-p"),
        _ => value.to_owned(),
    };
    Some(ours)
}

fn is_true(value: &str) -> bool {
    value.eq_ignore_ascii_case("true")
}

/// The variable that set `key`, beside that with the names.
pub(super) fn variable_of(names: &str, key: &str) -> String {
    let prefix = names.strip_suffix(HOST).unwrap_or(PREFIXES[0]);
    let known = KEYS.iter().find(|(_, known)| *known == key);
    known.map_or_else(|| names.to_owned(), |(name, _)| format!("{prefix}{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(all: &[&str]) -> BTreeMap<String, String> {
        let inspected = serde_json::json!({"Config": {"Env": all}}).to_string();
        read_environment(inspected.as_bytes()).unwrap()
    }

    /// The list, whether each name is alone, and the keys.
    fn shown(all: &[&str]) -> String {
        let variables = variables(all);
        wanted(&variables).map_or_else(String::new, |it| {
            let keys = it.keys.iter().map(|(key, value)| format!(" {key}={value}"));
            let keys: String = keys.collect();
            format!("{}: {} {}{keys}", it.variable, it.hosts, it.is_single)
        })
    }

    #[test]
    fn names_of_both_versions_are_read_and_the_newer_wins() {
        let [host, old] = ["ACME_HOST=a.example", "LETSENCRYPT_HOST=b.example"];
        assert_eq!(shown(&["VIRTUAL_HOST=a.example"]), "");
        assert_eq!(shown(&[old]), "LETSENCRYPT_HOST: b.example false");
        assert_eq!(shown(&[old, host]), "ACME_HOST: a.example false");
        for prefix in PREFIXES {
            let all = [
                "HOST=a.example",
                "EMAIL= a@example.com ",
                "SINGLE_DOMAIN_CERTS=True",
                "TEST=true",
                "KEYSIZE=ec-384",
                "CERT_PROFILE=shortlived",
                "CHALLENGE=HTTP-01",
                "PREFERRED_CHAIN=ISRG Root X2",
                "RENEW_PRIVATE_KEYS=false",
            ];
            let all = all.map(|one| format!("{prefix}{one}"));
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            let expected = "a.example true ca=letsencrypt-staging challenge=http-01 email=a@example.com key=ecdsa-p384 preferred_chain=ISRG Root X2 profile=shortlived reuse_key=true";
            assert_eq!(shown(&all), format!("{prefix}HOST: {expected}"));
        }
        let defaults = ["ACME_TEST=false", "ACME_RENEW_PRIVATE_KEYS=true", host];
        assert_eq!(shown(&defaults), "ACME_HOST: a.example false");
        let key = shown(&["LETSENCRYPT_KEYSIZE=3072", host]);
        assert_eq!(key, "ACME_HOST: a.example false key=rsa-3072");
    }

    #[test]
    fn secrets_are_dropped_and_a_variable_is_named_as_it_was_given() {
        let secrets = ["ACME_EAB_HMAC_KEY=x", "ACMESH_DNS_API_CONFIG=y", "SECRET=z"];
        assert!(variables(&secrets).is_empty());
        let named = |names, key| variable_of(names, key);
        assert_eq!(named("LETSENCRYPT_HOST", "key"), "LETSENCRYPT_KEYSIZE");
        assert_eq!(named("ACME_HOST", "ca"), "ACME_TEST");
        assert_eq!(named("ACME_HOST", "deploy"), "ACME_HOST");
    }

    #[test]
    fn environment_is_read_whole_or_not() {
        assert!(read_environment(b"[]").is_err());
        assert!(read_environment(br#"{"Config": {"Env": null}}"#).is_ok());
    }
}
