//! The configuration file: read whole, every error at once with its line and a
//! hint, and only then used. What one key means is checked where its type is
//! defined; this room only knows which keys there are.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;

use schemars::JsonSchema;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::certificate::KeyType;
use crate::deploy::verify::Endpoint;
use crate::identifier::{Identifier, Lineage};

/// A configuration without errors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// The private state.
    pub data_dir: Option<PathBuf>,
    /// Where consumers read certificates.
    pub output_dir: Option<PathBuf>,
    /// The contact for the CA.
    pub email: Option<String>,
    /// Whether the CA's terms are agreed to.
    pub agree_tos: Option<bool>,
    /// A private CA's root in PEM.
    pub ca_root: Option<PathBuf>,
    /// Where HTTP-01 is answered.
    pub http_listen: Vec<SocketAddr>,
    /// A directory that another server serves on port 80.
    pub webroot: Option<PathBuf>,
    /// What holds for every certificate that does not say otherwise.
    pub defaults: Settings,
    /// The certificates, in the file's order.
    pub certificates: Vec<Certificate>,
}

/// What may be said for all certificates, and again for one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// A CA's name or directory URL.
    pub ca: Option<String>,
    /// The CA's certificate profile.
    pub profile: Option<String>,
    /// The kind of key.
    pub key: Option<KeyType>,
    /// Whom to hand over to.
    pub deploy: Option<Vec<String>>,
    /// Where it must be seen served.
    pub verify: Option<Vec<Endpoint>>,
}

/// One `[[certificate]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// What it is for, in the file's order.
    pub names: Vec<Identifier>,
    /// Its name.
    pub lineage: Lineage,
    /// What it says for itself.
    pub settings: Settings,
}

/// One error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// From 1.
    pub line: usize,
    /// What is wrong.
    pub message: String,
    /// What belongs there.
    pub hint: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "line {}: {}\n  hint: {}",
            self.line, self.message, self.hint
        )
    }
}

/// The file's shape, for its JSON Schema.
#[derive(JsonSchema)]
#[schemars(title = "certs configuration", deny_unknown_fields)]
#[allow(dead_code)] // only its shape is used
struct Document {
    /// Private state: account keys and records
    data_dir: Option<String>,
    /// Where certificates are written for the proxy
    output_dir: Option<String>,
    /// Where the CA may write to
    email: Option<String>,
    /// You have read and agree to the CA's terms of service
    agree_tos: Option<bool>,
    /// The root of a private CA's directory, in PEM
    ca_root: Option<String>,
    /// Addresses (IP:PORT) on which HTTP-01 is answered
    http_listen: Option<Vec<String>>,
    /// A directory that another server serves on port 80
    webroot: Option<String>,
    /// A CA's name or https:// directory URL
    ca: Option<String>,
    /// The CA's certificate profile
    profile: Option<String>,
    /// ecdsa-p256, ecdsa-p384, rsa-2048, rsa-3072 or rsa-4096
    key: Option<String>,
    /// Whom to hand over to: nginx or nginx:PID_FILE
    deploy: Option<Vec<String>>,
    /// HOST:PORT where it must be seen served
    verify: Option<Vec<String>>,
    /// The certificates
    certificate: Vec<CertificateDocument>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code)] // only its shape is used
struct CertificateDocument {
    /// DNS names or IP addresses
    names: Vec<String>,
    /// The certificate's name (default: the first of names)
    name: Option<String>,
    /// A CA's name or https:// directory URL
    ca: Option<String>,
    /// The CA's certificate profile
    profile: Option<String>,
    /// ecdsa-p256, ecdsa-p384, rsa-2048, rsa-3072 or rsa-4096
    key: Option<String>,
    /// Whom to hand over to: nginx or nginx:PID_FILE
    deploy: Option<Vec<String>>,
    /// HOST:PORT where it must be seen served
    verify: Option<Vec<String>>,
}

/// The file's JSON Schema.
#[must_use]
pub fn schema() -> String {
    format!("{:#}", schemars::schema_for!(Document).as_value())
}

/// Reads a configuration.
///
/// # Errors
/// Every problem, by line.
pub fn read(source: &str) -> Result<Configuration, Vec<Problem>> {
    let mut reader = Reader {
        source,
        problems: Vec::new(),
    };
    let (document, mistakes) = DeTable::parse_recoverable(source);
    for mistake in mistakes {
        reader.problem(
            mistake.span().unwrap_or_default(),
            mistake.message(),
            "this is TOML: key = value, strings in quotes",
        );
    }
    let configuration = reader.document(document.get_ref());
    if reader.problems.is_empty() {
        return Ok(configuration);
    }
    reader.problems.sort_by_key(|problem| problem.line);
    Err(reader.problems)
}

struct Reader<'a> {
    source: &'a str,
    problems: Vec<Problem>,
}

type Value<'i> = Spanned<DeValue<'i>>;

impl Reader<'_> {
    fn problem(&mut self, at: Range<usize>, message: impl Into<String>, hint: &str) {
        let before = self.source.as_bytes().iter().take(at.start);
        let line = before.filter(|byte| **byte == b'\n').count() + 1;
        self.problems.push(Problem {
            line,
            message: message.into(),
            hint: hint.to_owned(),
        });
    }

    fn document(&mut self, table: &DeTable<'_>) -> Configuration {
        let mut all = Configuration::default();
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "data_dir" => all.data_dir = self.path(value),
                "output_dir" => all.output_dir = self.path(value),
                "email" => all.email = self.text(value),
                "agree_tos" => all.agree_tos = self.truth(value),
                "ca_root" => all.ca_root = self.path(value),
                "http_listen" => all.http_listen = self.list(value, "an address such as 0.0.0.0:80 belongs here"),
                "webroot" => all.webroot = self.path(value),
                "certificate" => all.certificates = self.certificates(value),
                shared if self.shared(&mut all.defaults, shared, value) => {}
                unknown => self.unknown(
                    key.span(),
                    unknown,
                    "data_dir, output_dir, email, agree_tos, ca_root, http_listen, webroot, ca, profile, key, deploy, verify and [[certificate]] are known",
                ),
            }
        }
        if let (Some(_), Some((key, _))) = (&all.webroot, find(table, "http_listen")) {
            self.problem(
                key,
                "webroot and http_listen exclude each other",
                "keep the one that answers on port 80",
            );
        }
        all
    }

    fn certificates(&mut self, value: &Value<'_>) -> Vec<Certificate> {
        let DeValue::Array(array) = value.get_ref() else {
            self.problem(
                value.span(),
                "`certificate` is not a list of tables",
                "write [[certificate]], with two brackets",
            );
            return Vec::new();
        };
        let mut seen = BTreeSet::new();
        let mut certificates = Vec::new();
        for item in array.iter() {
            let Some(certificate) = self.certificate(item) else {
                continue;
            };
            if !seen.insert(certificate.lineage.clone()) {
                let message = format!("there are two certificates `{}`", certificate.lineage);
                self.problem(
                    item.span(),
                    message,
                    "remove one, or give one of them a `name`",
                );
            }
            certificates.push(certificate);
        }
        certificates
    }

    fn certificate(&mut self, item: &Value<'_>) -> Option<Certificate> {
        let DeValue::Table(table) = item.get_ref() else {
            self.problem(
                item.span(),
                "a certificate is a table",
                "write [[certificate]] above its keys",
            );
            return None;
        };
        let (mut names, mut lineage, mut settings): (Vec<Identifier>, Option<Lineage>, _) =
            (Vec::new(), None, Settings::default());
        let before = self.problems.len();
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "names" => names = self.list(value, "a DNS name or an IP address belongs here"),
                "name" => lineage = self.parsed(value, "letters a to z, digits, `.`, `_` and `-`"),
                shared if self.shared(&mut settings, shared, value) => {}
                unknown => self.unknown(
                    key.span(),
                    unknown,
                    "names, name, ca, profile, key, deploy and verify are known in a certificate",
                ),
            }
        }
        let distinct: BTreeSet<_> = names.iter().collect();
        if distinct.len() < names.len() {
            self.problem(item.span(), "a name is listed twice", "list each name once");
        }
        let Some(first) = names.first() else {
            if self.problems.len() == before {
                self.problem(
                    item.span(),
                    "a certificate without names",
                    "add names = [\"example.com\"]",
                );
            }
            return None;
        };
        let lineage = lineage.unwrap_or_else(|| Lineage::of(first));
        Some(Certificate {
            names,
            lineage,
            settings,
        })
    }

    /// Whether `key` may stand for all certificates as well as for one.
    fn shared(&mut self, settings: &mut Settings, key: &str, value: &Value<'_>) -> bool {
        match key {
            "ca" => settings.ca = self.text(value),
            "profile" => settings.profile = self.text(value),
            "key" => {
                settings.key = self.parsed(
                    value,
                    "ecdsa-p256, ecdsa-p384, rsa-2048, rsa-3072 or rsa-4096",
                )
            }
            "deploy" => {
                settings.deploy = Some(self.list(value, "nginx or nginx:/path/to/nginx.pid"))
            }
            "verify" => {
                settings.verify = Some(self.list(value, "HOST:PORT, for example example.com:443"))
            }
            _ => return false,
        }
        true
    }

    fn unknown(&mut self, at: Range<usize>, key: &str, hint: &str) {
        self.problem(at, format!("`{}` is no key here", key.escape_debug()), hint);
    }

    fn text(&mut self, value: &Value<'_>) -> Option<String> {
        self.parsed(value, "a text in quotes belongs here")
    }

    fn path(&mut self, value: &Value<'_>) -> Option<PathBuf> {
        self.parsed(value, "a path in quotes belongs here")
    }

    fn truth(&mut self, value: &Value<'_>) -> Option<bool> {
        let truth = value.get_ref().as_bool();
        if truth.is_none() {
            self.problem(
                value.span(),
                "this is neither true nor false",
                "write true or false, without quotes",
            );
        }
        truth
    }

    fn parsed<T: FromStr>(&mut self, value: &Value<'_>, hint: &str) -> Option<T>
    where
        T::Err: fmt::Display,
    {
        let Some(text) = value.get_ref().as_str() else {
            self.problem(value.span(), "this is not a text", hint);
            return None;
        };
        if text.is_empty() {
            self.problem(value.span(), "this is empty", hint);
            return None;
        }
        text.parse()
            .map_err(|error: T::Err| self.problem(value.span(), error.to_string(), hint))
            .ok()
    }

    fn list<T: FromStr>(&mut self, value: &Value<'_>, hint: &str) -> Vec<T>
    where
        T::Err: fmt::Display,
    {
        match value.get_ref() {
            DeValue::Array(array) => array
                .iter()
                .filter_map(|item| self.parsed(item, hint))
                .collect(),
            _ => self.parsed(value, hint).into_iter().collect(),
        }
    }
}

fn find(table: &DeTable<'_>, name: &str) -> Option<(Range<usize>, ())> {
    table
        .keys()
        .find(|key| key.get_ref().as_ref() == name)
        .map(|key| (key.span(), ()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_whole_configuration() {
        let read = read(
            "email = 'a@example.com'\nagree_tos = true\nhttp_listen = '0.0.0.0:80'\nkey = 'ecdsa-p384'\n\
             [[certificate]]\nnames = ['example.com', 'www.example.com']\nverify = ['example.com:443']\n\
             [[certificate]]\nnames = ['10.0.0.1']\nname = 'inside'\nca = 'https://ca.internal/dir'\n",
        )
        .unwrap();
        assert_eq!(read.defaults.key, Some(KeyType::EcdsaP384));
        assert_eq!(read.http_listen.len(), 1);
        let lineages: Vec<_> = read
            .certificates
            .iter()
            .map(|c| c.lineage.to_string())
            .collect();
        assert_eq!(lineages, ["example.com", "inside"]);
    }

    #[test]
    fn every_problem_is_told_at_once_with_its_line() {
        let problems = read(
            "emial = 'a@example.com'\nagree_tos = 'yes'\nkey = 'dsa'\nwebroot = '/srv'\nhttp_listen = ['0.0.0.0:80', 'nowhere']\n\
             [[certificate]]\nnames = ['a..b', 'example.com']\nverify = 7\n\
             [[certificate]]\nname = 'empty'\n\
             [[certificate]]\nnames = ['example.com', 'example.com']\nname = '../x'\n",
        )
        .unwrap_err();
        let told: Vec<String> = problems
            .iter()
            .map(|p| format!("{}: {}", p.line, p.message))
            .collect();
        insta_like(
            &told,
            &[
                "1: `emial` is no key here",
                "2: this is neither true nor false",
                "3: `dsa` is no kind of key",
                "5: invalid socket address syntax",
                "5: webroot and http_listen exclude each other",
                "7: `a..b` is not a valid DNS name",
                "8: this is not a text",
                "9: a certificate without names",
                "11: a name is listed twice",
                "11: there are two certificates `example.com`",
                "13: `../x` is not a valid DNS name",
            ],
        );
        assert!(problems.iter().all(|problem| !problem.hint.is_empty()));
    }

    fn insta_like(told: &[String], wanted: &[&str]) {
        assert_eq!(told, wanted, "{told:#?}");
    }

    #[test]
    fn broken_toml_is_told_with_its_line() {
        let problems = read("email = 'a'\nagree_tos =\nkey = = 1\n").unwrap_err();
        assert_eq!(problems.iter().map(|p| p.line).collect::<Vec<_>>(), [2, 3]);
    }

    #[test]
    fn the_schema_knows_the_keys_that_the_reader_knows() {
        let schema: serde_json::Value = serde_json::from_str(&schema()).unwrap();
        let keys = |value: &serde_json::Value| {
            value["properties"]
                .as_object()
                .unwrap()
                .keys()
                .cloned()
                .collect::<Vec<_>>()
        };
        for key in keys(&schema).iter().filter(|key| *key != "certificate") {
            let problems = read(&format!("{key} = []\n")).err().unwrap_or_default();
            assert!(
                problems.iter().all(|p| !p.message.contains("no key")),
                "{key}"
            );
        }
        for key in keys(&schema["$defs"]["CertificateDocument"]) {
            let problems = read(&format!("[[certificate]]\n{key} = []\n"))
                .err()
                .unwrap_or_default();
            assert!(
                problems.iter().all(|p| !p.message.contains("no key")),
                "{key}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "(\\PC|\n|\\[|\\]|=|'){0,80}") {
            let _ = read(&text);
        }
    }
}
