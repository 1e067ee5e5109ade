//! The file's JSON Schema, for editors. Only the shapes here are used; a test
//! holds them against the keys that the reader knows.

use schemars::JsonSchema;

use crate::deploy::target::DeployTarget;

/// The file's JSON Schema.
#[must_use]
pub fn schema() -> String {
    format!("{:#}", schemars::schema_for!(Document).as_value())
}

#[derive(JsonSchema)]
#[schemars(title = "certs configuration", deny_unknown_fields)]
#[allow(dead_code)] // only its shape is used
struct Document {
    /// Private state: account keys and records
    data_dir: Option<String>,
    /// Where certificates are written for the proxy
    output_dir: Option<String>,
    /// How messages look
    log_format: Option<LogFormat>,
    /// Whether certs run gives up what it does not need
    harden: Option<bool>,
    /// Addresses (IP:PORT) on which HTTP-01 is answered
    http_listen: Option<OneOrMany>,
    /// Who owns what is written for the proxy
    output: Option<Output>,
    /// The read-only endpoints
    admin: Option<Admin>,
    /// When work is done
    renew: Option<Renew>,
    /// Containers that ask for certificates by their labels
    docker: Option<Docker>,
    /// Where every certificate is deployed to: nginx or nginx:PID_FILE; or tables by name
    deploy: Option<Deploy>,
    #[serde(flatten)]
    shared: Shared,
    /// The certificates
    certificate: Option<Vec<Certificate>>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code)] // only its shape is used
struct Certificate {
    /// DNS names or IP addresses
    names: OneOrMany,
    /// The certificate's name (default: the first of names)
    name: Option<String>,
    /// Where to deploy to: KIND, KIND:WHERE, a URL or the NAME of a [deploy.NAME]
    deploy: Option<OneOrMany>,
    #[serde(flatten)]
    shared: Shared,
}

/// What may be said for all certificates, and again for one.
#[derive(JsonSchema)]
#[allow(dead_code)] // only its shape is used
struct Shared {
    /// A CA's name, embedded, or an https:// directory URL
    ca: Option<String>,
    /// A root in PEM to trust for the CA's directory
    ca_root: Option<String>,
    /// Where the CA may write to
    email: Option<String>,
    /// You have read and agree to the CA's terms of service
    agree_tos: Option<bool>,
    /// The key identifier of an external account binding
    eab_kid: Option<String>,
    /// The file with its HMAC key in base64url
    eab_hmac_file: Option<String>,
    /// The chain to take, by an issuer's common name
    preferred_chain: Option<String>,
    /// The CA that issues when the first one does not
    fallback_ca: Option<String>,
    /// The key identifier of an external account binding there
    fallback_eab_kid: Option<String>,
    /// The file with its HMAC key in base64url
    fallback_eab_hmac_file: Option<String>,
    /// How control is proven
    challenge: Option<Challenge>,
    /// A directory that another server serves on port 80
    webroot: Option<String>,
    /// The CA's certificate profile
    profile: Option<String>,
    /// The kind of key
    key: Option<Key>,
    /// Whether a renewal keeps the key
    reuse_key: Option<bool>,
    /// Whether names that fail may be left out, so that they do not sink the rest
    partial: Option<bool>,
    /// HOST:PORT where it must be seen served
    verify: Option<OneOrMany>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code)] // only its shape is used
struct Output {
    /// A user's name or number
    owner: Option<String>,
    /// A group's name or number
    group: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code)] // only its shape is used
struct Admin {
    /// IP:PORT, or off
    listen: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code)] // only its shape is used
struct Renew {
    /// A cron expression of 5 fields, or 6 with the seconds first
    schedule: Option<String>,
    /// When a renewed certificate is handed over
    deploy: Option<DeployWhen>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code)] // only its shape is used
struct Docker {
    /// Where Docker's API is, behind a proxy: tcp://HOST:PORT or unix:///PATH
    host: Option<String>,
    /// Whether an API that nothing filters may be used
    accept_raw_socket: Option<bool>,
    /// How long a certificate is renewed whose container is gone, such as 7d
    grace: Option<String>,
    /// What may be asked for: names, or *.example.com for all below it (default: all)
    allow: Option<OneOrMany>,
    /// How many certificates may be asked for (default 100)
    limit: Option<u16>,
}

#[derive(JsonSchema)]
#[serde(untagged)]
#[allow(dead_code)] // only its shape is used
enum Deploy {
    Short(OneOrMany),
    Long(std::collections::BTreeMap<String, DeployTarget>),
}

#[derive(JsonSchema)]
#[serde(untagged)]
#[allow(dead_code)] // only its shape is used
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[allow(dead_code)] // only its shape is used
enum DeployWhen {
    AtOnce,
    OnSchedule,
}

#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(dead_code)] // only its shape is used
enum LogFormat {
    Text,
    Json,
}

#[derive(JsonSchema)]
#[allow(dead_code)] // only its shape is used
enum Challenge {
    #[serde(rename = "http-01")]
    Http01,
}

#[derive(JsonSchema)]
#[allow(dead_code)] // only its shape is used
enum Key {
    #[serde(rename = "ecdsa-p256")]
    EcdsaP256,
    #[serde(rename = "ecdsa-p384")]
    EcdsaP384,
    #[serde(rename = "rsa-2048")]
    Rsa2048,
    #[serde(rename = "rsa-3072")]
    Rsa3072,
    #[serde(rename = "rsa-4096")]
    Rsa4096,
}
