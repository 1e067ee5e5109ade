//! Every key of the configuration, and the settings that they make. The file, the
//! environment, the options of the command line, the JSON Schema and
//! `docs/configuration.md` all follow from the two tables here. No file is read here,
//! and contradictions among keys are found by [`super::check`].

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::ca::{self, DirectoryUrl};
use super::docker::{DockerSettings, Grace, Pattern};
use super::interval::{DrainTime, Interval};
use super::key::{
    ACCOUNT, BOOLEAN, ENDPOINTS, EVERY, IMPORT, ISSUE, Key, KeyTable, LIST, NUMBER, PATH, RUN,
    Scope, TEXT, UPDATE, choice, layer,
};
use super::key_types::{KeyTypes, key_types};
use super::layer::{
    Value, address_or_off, boolean, directory, docker_host, email, endpoints, list, number, parsed,
    path, proxy_or_none, store_place, webroots, words_or_none,
};
use super::origin::Origin;
use super::problem::{Given, Problems, SettingOrigin};
use super::{CaSettings, DEPLOY_HINT, DeployWhen, LogFormat};
use crate::certificate::{KeyType, SigningRequest};
use crate::challenge::{ChallengeKind, ChallengeSettings, http01, tls_alpn01, webroot};
use crate::deploy::confirmed::Right;
use crate::deploy::endpoint::Endpoint;
use crate::deploy::target::DeployTarget;
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::manage::CannotOrder;
use crate::manage::schedule::Schedule;
use crate::net::dns::ServerAddress;
use crate::net::proxy::{Proxies, Proxy};
use crate::net::roots::SystemRoots;
use crate::record::Lifetime;
use crate::store::node::Role;
use crate::store::place::{FleetSettings, NodeName, StorePlace};

layer! {
    /// The values of one source for one certificate, or for all of them.
    CertificateLayer of a Certificate sets CertificateSettings;

    group "CA and account" {
        "ca", ca: DirectoryUrl, directory, TEXT
            .doc("The CA that issues")
            .forms(|| format!("{}, or an https:// directory URL", ca::names().join(", ")))
            .suggests(ca::names).default("letsencrypt").option(ISSUE | RUN | ACCOUNT, "NAME|URL")
            => .ca.directory;
        "ca_root", root: PathBuf, path, PATH
            .doc("Trust this root (PEM) for the CA's directory, beside the public ones")
            .option(ISSUE | RUN | IMPORT | ACCOUNT, "PEM")
            => .ca.root;
        "email", email: String, email, TEXT.hint("for example admin@example.com")
            .doc("The address that the CA may write to").option(ISSUE | RUN | UPDATE, "EMAIL")
            => .ca.email;
        "agree_tos", agree_tos: bool, boolean, BOOLEAN
            .doc("You have read and agree to the CA's terms of service")
            .default("false").flag(ISSUE | RUN | UPDATE)
            => .ca.agree_tos;
        "eab_kid", eab_kid: String, parsed, TEXT
            .doc("External account binding: the key identifier").option(ISSUE | RUN, "KID")
            => .ca.eab_kid;
        "eab_hmac_file", eab_hmac_file: PathBuf, path, PATH
            .doc("External account binding: the file with the HMAC key in base64url, needed until the account exists")
            .option(ISSUE | RUN, "FILE")
            => .ca.eab_hmac_file;
        "preferred_chain", preferred_chain: String, parsed, TEXT
            .doc("Of several chains take the one whose topmost issuer has this common name; `none` drops a stored one")
            .option(ISSUE | RUN, "CN")
            => .ca.preferred_chain;
    }

    group "Fallback CA" {
        "fallback_ca", fallback: DirectoryUrl, directory, TEXT
            .doc("Order from this CA when the first one does not issue: no usable certificate is left and 3 orders or 30 minutes have failed, or the first CA is unreachable and a sixth of the lifetime is left")
            .suggests(ca::names).option(ISSUE | RUN, "NAME|URL");
        "fallback_eab_kid", fallback_eab_kid: String, parsed, TEXT
            .doc("External account binding at the fallback CA: the key identifier")
            .option(ISSUE | RUN, "KID");
        "fallback_eab_hmac_file", fallback_eab_hmac_file: PathBuf, path, PATH
            .doc("External account binding at the fallback CA: the file with the HMAC key in base64url, needed until the account exists")
            .option(ISSUE | RUN, "FILE");
    }

    group "Challenge" {
        "challenge", challenge: ChallengeKind, parsed, choice(ChallengeKind::names)
            .doc("The challenge with which the CA validates the names")
            .default("http-01").option(ISSUE | RUN, "KIND");
        "experimental", experimental: Vec<ChallengeKind>, list, LIST
            .hint("dns-account-01 or dns-persist-01 belongs here")
            .doc("Challenges of drafts, which CAs may still change, that may be used: dns-account-01, dns-persist-01")
            .option(ISSUE | RUN, "KIND");
        "http_listen", http_listen: Vec<SocketAddr>, list, LIST
            .hint("an address such as 0.0.0.0:80 belongs here")
            .doc("Answer HTTP-01 at this address; sockets of systemd come first")
            .default_is("port 80 of every address").option(ISSUE | RUN, "ADDR").for_the_process();
        "tls_listen", tls_listen: Vec<SocketAddr>, list, LIST
            .hint("an address such as 0.0.0.0:443 belongs here")
            .doc("Answer TLS-ALPN-01 at this address; sockets of systemd come first")
            .default_is("port 443 of every address").option(ISSUE | RUN, "ADDR").for_the_process();
        "webroot", webroot: webroot::Settings, webroots, PATH.by_name()
            .doc("Write HTTP-01 answers below this directory, which another server serves on port 80; of several, each is for the names that follow it")
            .option(ISSUE | RUN | IMPORT, "DIR");
        "dns", dns: String, parsed, TEXT.hint("the name of a DNS provider, or self")
            .doc("Prove names by DNS-01: this DNS provider, with the credentials of [dns.NAME] or CERTS_DNS_NAME_..., adds the records; `exec` calls a program, and `self` answers from here")
            .default_is("the only [dns.NAME]").option(ISSUE | RUN, "PROVIDER|self");
        "dns_listen", dns_listen: Vec<SocketAddr>, list, LIST
            .hint("an address such as 192.0.2.1:53 belongs here")
            .doc("Answer DNS for `self` at this address, over UDP and TCP")
            .default_is("port 53 of every address").option(ISSUE | RUN, "ADDR").for_the_process();
        "resolver", resolver: ServerAddress, parsed, TEXT
            .hint("an address such as 192.0.2.1 or 192.0.2.1:53 belongs here")
            .doc("Ask this DNS resolver: for the zones of names to prove by DNS-01, the CAA records of refused names, and the hosts of CAs, proxies, endpoints, deploy targets and stores")
            .default_is("those of /etc/resolv.conf").option(ISSUE | RUN, "ADDR:PORT").for_the_process();
    }

    group "Key and certificate" {
        "key", key: KeyTypes, key_types, LIST.hint("write ecdsa-p256, ecdsa-p384, rsa-2048, rsa-3072 or rsa-4096, or one of each kind")
            .doc("The key: one of these types, or an ECDSA and an RSA type for a certificate of each (NAME, and NAME_rsa or NAME_ecdsa)")
            .forms(|| KeyType::ALL.map(KeyType::name).join(", "))
            .suggests(|| KeyType::ALL.map(KeyType::name).to_vec())
            .default("ecdsa-p256").option(ISSUE | RUN, "TYPE")
            => .key;
        "reuse_key", reuse_key: bool, boolean, BOOLEAN
            .doc("Keep the key when renewing").default("false").flag(ISSUE | RUN)
            => .reuse_key;
        "partial", partial: bool, boolean, BOOLEAN
            .doc("Issue for the names that the CA validates when others fail, and retry those later")
            .default("false").flag(ISSUE | RUN)
            => .partial;
        "profile", profile: String, parsed, TEXT
            .doc("The CA's certificate profile, such as shortlived; `none` drops a stored one").option(ISSUE | RUN, "PROFILE")
            => .profile;
        "lifetime", lifetime: Lifetime, parsed, TEXT.hint("write 30d or 12h")
            .doc("Request certificates of this lifetime, for which few CAs allow (`none`: the CA chooses)")
            .default("none").option(ISSUE | RUN, "DURATION")
            => .lifetime;
    }

    group "Deployment" {
        "deploy", deploy: Vec<Given<String>>, words_or_none, LIST.hint(DEPLOY_HINT)
            .doc("Deploy to this target, by the NAME of its [deploy.NAME] or in its short form, or to `none`")
            .forms(DeployTarget::forms)
            .suggests(|| DeployTarget::kinds().map(|kind| kind.name).collect())
            .default_is("every [deploy.NAME]").option(ISSUE | RUN | IMPORT, "SPEC");
        "verify", verify: Vec<Endpoint>, endpoints, ENDPOINTS.hint("HOST:PORT or unix:/PATH, for example example.com:443, with ?names=NAME or ?proxy_protocol=v2 after it where needed")
            .doc("Verify by a handshake that this endpoint, HOST:PORT or unix:/PATH, serves the certificate; smtp://, imap:// and pop3:// before it speak STARTTLS, ?names=NAME&proxy_protocol=v1|v2 after it says how to ask, and `none` drops stored ones")
            .option(ISSUE | RUN | IMPORT, "HOST:PORT")
            => .verify;
    }

    besides {
        /// Instead of what the keys of its challenge say: that of a stored certificate.
        stored_challenge: Option<Given<ChallengeSettings>>,
        /// Instead of a key: the signing request of `certs csr`, which is stored.
        request: Option<Given<SigningRequest>>,
        /// Instead of `deploy`: the whole specs of a stored certificate.
        stored_deploy: Option<Given<Vec<DeployTarget>>>,
        /// Where a stored certificate is published.
        stored_output: Option<Given<OutputSettings>>,
        /// Keys with an invalid value: what follows from their absence is not worth
        /// reporting.
        invalid: BTreeSet<&'static str>,
    }
}

layer! {
    /// The values of one source for the whole process.
    Layer of a Process sets Settings;

    group "Files and messages" {
        "data_dir", data_dir: PathBuf, path, PATH
            .doc("Private state: account keys, records")
            .default_is("/var/lib/certs as root and its owner, else $XDG_DATA_HOME/certs").option(EVERY, "DIR")
            => .data_dir;
        "output_dir", output_dir: PathBuf, path, PATH
            .doc("Where certificates are written for the proxy")
            .default_is("DATA_DIR/public").option(EVERY, "DIR")
            => .output.directory;
        "log_format", log_format: LogFormat, parsed, choice(|| vec!["text", "json"])
            .doc("The format of messages on standard error").default("text").option(EVERY, "FORMAT")
            => .log_format;
        "output.owner", output_owner: String, parsed, TEXT
            .doc("The owner of the files for the proxy: a user's name or number")
            .default_is("the user of the process")
            => .output.owner;
        "output.group", output_group: String, parsed, TEXT
            .doc("The group of these files, which may enter their directories: a name or a number")
            .default_is("the owner's own group, else that of the process")
            => .output.group;
        "output.links", output_links: bool, boolean, BOOLEAN
            .doc("Link live/NAME for every further name of a certificate, so that a server finds it by the name that a client sends; a certificate whose own name that is takes it")
            .default_is("true for the certificates of labels, else false")
            => .output.links;
    }

    group "Fleet" {
        "store", store: StorePlace, store_place, TEXT
            .hint("write s3://BUCKET/PREFIX, etcd://HOST:PORT/PREFIX, postgres://USER@HOST/DATABASE?prefix=PREFIX, or the path of a directory that all machines mount")
            .doc("Share certificates with other machines through this store: s3://BUCKET/PREFIX, etcd://HOST:PORT/PREFIX, postgres://USER@HOST/DATABASE?prefix=PREFIX, or a directory that all of them mount")
            .option(EVERY, "URL|DIR")
            => .fleet.store;
        "seal_key_file", seal_key_file: PathBuf, path, PATH
            .doc("The file with the key that seals what the store gets: 32 bytes in base64; further lines hold earlier keys")
            .option(EVERY, "FILE")
            => .fleet.seal_key_file;
        "seal_key_exec", seal_key_exec: Vec<String>, list, LIST
            .hint("a program by its absolute path, and its arguments, belong here")
            .doc("Instead of seal_key_file, this program prints the key; it is started by its arguments and never by a shell")
            => .fleet.seal_key_exec;
        "node", node: NodeName, parsed, TEXT.hint("letters, digits, -, _ and . belong here")
            .doc("The name of this machine in the fleet").default_is("the host name").option(EVERY, "NAME")
            => .fleet.node;
        "role", role: Role, parsed, choice(|| Role::NAMES.to_vec())
            .doc("What this machine does for the fleet: order and serve, or only serve")
            .default("full").option(EVERY, "ROLE")
            => .fleet.role;
    }

    group "Network" {
        "proxy", proxy: Option<Proxy>, proxy_or_none, TEXT
            .hint("write http://HOST:PORT, with USER:PASSWORD@ before HOST where the proxy wants them, or none")
            .doc("Reach CAs through this HTTP proxy, but for the hosts of NO_PROXY; CERTS_PROXY_FILE keeps its password out of sight, and none means no proxy of the environment either")
            .default_is("HTTPS_PROXY or ALL_PROXY")
            .option(ISSUE | RUN | ACCOUNT, "URL");
    }

    group "Service" {
        "admin.listen", admin_listen: Option<SocketAddr>, address_or_off, TEXT
            .hint("write 127.0.0.1:9180, or off")
            .doc("Where the read-only endpoints are, or off")
            .default("127.0.0.1:9180").option(RUN, "ADDR")
            => .admin_listen;
        "admin.hosts", admin_hosts: Vec<String>, list, LIST.hint("for example certs.internal")
            .doc("Further names under which the read-only endpoints are requested")
            .default_is("the addresses and the host name of this machine")
            => .admin_hosts;
        "drain", drain: DrainTime, parsed, TEXT.hint("write 30s, 2m or 0s")
            .doc("How long certs run still answers after SIGTERM, while /readyz says 503, so that a load balancer sends it nothing more")
            .default("0s").option(RUN, "DURATION")
            => .drain;
        "harden", harden: bool, boolean, BOOLEAN
            .doc("Give up what certs run does not need: capabilities, files, system calls")
            .default("true").option(RUN, "on|off")
            => .harden;
        "verify.every", verify_every: Interval, parsed, TEXT
            .hint("write 10m, 1h or 30s")
            .doc("How often every endpoint is looked at again: by one handshake, at least this often")
            .default("10m").option(RUN, "DURATION")
            => .verify_every;
        "verify.within", verify_within: Interval, parsed, TEXT
            .hint("write 30s, 2m or 1h")
            .doc("How long a deployment waits until every endpoint serves the new certificate")
            .default_is("30s")
            => .verify_within;
        "renew.schedule", schedule: Schedule, parsed, TEXT
            .hint("for example 30 3 * * * for 3:30 every night")
            .doc("One more pass over all certificates, and the maintenance window: a cron expression of 5 fields, or 6 with the seconds first")
            => .renew.schedule;
        "renew.deploy", deploy_when: DeployWhen, parsed, choice(|| vec!["at-once", "on-schedule"])
            .doc("When a renewed certificate is deployed").default("at-once")
            => .renew.deploy;
    }

    group "Containers" {
        "docker.host", docker_host: String, docker_host, TEXT
            .hint("write tcp://HOST:2375, or unix:///PATH")
            .doc("Follow the labels of containers: Docker's API behind a filtering proxy, tcp://HOST:2375 or unix:///PATH")
            .option(RUN, "URL");
        "docker.accept_raw_socket", docker_accepts_raw: bool, boolean, BOOLEAN
            .doc("Whether an unfiltered API may be used").default("false");
        "docker.grace", docker_grace: Grace, parsed, TEXT.hint("write 7d, 12h or 30m")
            .doc("How long a certificate is still renewed after its container has gone").default("7d");
        "docker.allow", docker_allow: Vec<Pattern>, list, LIST
            .hint("a name belongs here, or *.example.com for all below it")
            .doc("The names that labels may request; *.example.com means all below it")
            .default_is("every name");
        "docker.limit", docker_limit: NonZeroU16, number, NUMBER
            .doc("How many certificates labels may request").default("100");
    }

    besides {
        /// For every certificate.
        shared: CertificateLayer,
        /// Keys with an invalid value.
        invalid: BTreeSet<&'static str>,
    }
}

/// Tables of the file that only hold keys, and what these are about.
pub(super) const SECTIONS: [(&str, &str); 5] = [
    ("output", "The owner of the files for the proxy"),
    ("admin", "The read-only endpoints"),
    ("verify", "The endpoints, for all certificates"),
    ("renew", "When certificates are renewed and deployed"),
    (
        "docker",
        "Containers that request certificates by their labels",
    ),
];

/// Keys that only a `[[certificate]]` has.
pub(super) const NAMING: [Key; 2] = [
    LIST.doc("DNS names or IP addresses")
        .named("names", "The certificate", Scope::Certificate),
    TEXT.doc("The certificate's name, a directory below live/")
        .default_is("the first of names")
        .named("name", "The certificate", Scope::Certificate),
];

/// Keys that choose how challenges are answered: one source may set one of them.
pub(super) const EXCLUSIVE: &[&str] = &["webroot", "http_listen"];

impl CertificateLayer {
    /// How challenges are answered, as far as this source says it: the first one of each kind of
    /// challenge holds.
    pub(super) fn challenges(&self) -> impl Iterator<Item = ChallengeSettings> {
        let stored = self
            .stored_challenge
            .as_ref()
            .map(|stored| stored.value.clone());
        let webroot = self.webroot.as_ref();
        let webroot = webroot.map(|given| ChallengeSettings::Webroot(given.value.clone()));
        let http = self.http_listen.as_ref().map(|addresses| {
            ChallengeSettings::Listen(http01::Settings::new(addresses.value.clone()))
        });
        let tls = self.tls_listen.as_ref().map(|addresses| {
            ChallengeSettings::TlsListen(tls_alpn01::Settings::new(addresses.value.clone()))
        });
        [stored, webroot, http, tls].into_iter().flatten()
    }
}

impl Layer {
    /// Reads the value of the key `name`. Returns whether the key exists.
    pub(super) fn put(&mut self, name: &str, value: &Value, problems: &mut Problems) -> bool {
        let key = keys().find(|key| key.name == name);
        let before = problems.len();
        key.is_some_and(|key| {
            let is_own = self.read(key, value, problems);
            self.invalid
                .extend((problems.len() > before).then_some(key.name));
            is_own || self.shared.take(key, value, problems)
        })
    }
}

impl CertificateLayer {
    /// Reads the value of the key `name`. Returns whether a certificate has that key.
    pub(super) fn put(&mut self, name: &str, value: &Value, problems: &mut Problems) -> bool {
        let mut own = Self::KEYS
            .iter()
            .filter(|key| key.scope == Scope::Certificate);
        let key = own.find(|key| key.name == name);
        key.is_some_and(|key| self.take(key, value, problems))
    }

    fn take(&mut self, key: &Key, value: &Value, problems: &mut Problems) -> bool {
        let before = problems.len();
        let known = self.read(key, value, problems);
        if problems.len() > before {
            self.invalid.insert(key.name);
        }
        known
    }
}

/// Every key of both tables.
pub(super) fn keys() -> impl Iterator<Item = &'static Key> {
    CertificateLayer::KEYS.iter().chain(Layer::KEYS)
}

/// The resolved configuration. The keys above document its fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// The configuration that was read, if there is one.
    pub file: Option<PathBuf>,
    pub data_dir: PathBuf,
    pub output: OutputSettings,
    pub log_format: LogFormat,
    pub harden: bool,
    /// How this machine takes part in a fleet.
    #[serde(default)]
    pub fleet: FleetSettings,
    /// The address of the read-only endpoints; `None` turns them off.
    pub admin_listen: Option<SocketAddr>,
    /// Further names in the `Host` of a request there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub admin_hosts: Vec<String>,
    /// The longest time between two looks at an endpoint.
    #[serde(default)]
    pub verify_every: Interval,
    /// How long a deployment waits for all endpoints, if a source says so.
    #[serde(default)]
    pub verify_within: Option<Interval>,
    pub renew: RenewSettings,
    /// How long `certs run` still answers after SIGTERM.
    #[serde(default)]
    pub drain: DrainTime,
    /// How CAs are reached.
    #[serde(default)]
    pub proxies: Proxies,
    /// The roots of this machine.
    #[serde(default)]
    pub roots: SystemRoots,
    /// The resolver for CAA records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolver: Option<ServerAddress>,
    pub challenge: ChallengeSettings,
    /// Whether containers may request certificates by their labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub docker: Option<DockerSettings>,
    /// The certificates, in the order in which they were named.
    pub certificates: Vec<CertificateSettings>,
    /// Whether this process is root and becomes another user: only its helper can then give
    /// files to the owner of an output.
    pub gives_up_root: bool,
}

impl Settings {
    /// The defaults for a process with its state in `data_dir`.
    pub(super) fn new(data_dir: PathBuf) -> Self {
        Self {
            file: None,
            output: OutputSettings {
                directory: data_dir.join("public"),
                owner: None,
                group: None,
                links: None,
            },
            gives_up_root: false,
            data_dir,
            log_format: LogFormat::default(),
            harden: true,
            fleet: FleetSettings::default(),
            admin_listen: Some(([127, 0, 0, 1], 9180).into()),
            admin_hosts: Vec::new(),
            verify_every: Interval::default(),
            verify_within: None,
            renew: RenewSettings::default(),
            drain: DrainTime::default(),
            proxies: Proxies::default(),
            roots: SystemRoots::default(),
            resolver: None,
            challenge: ChallengeSettings::default(),
            docker: None,
            certificates: Vec::new(),
        }
    }
}

/// The directory that is shared with the proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OutputSettings {
    pub directory: PathBuf,
    pub owner: Option<String>,
    pub group: Option<String>,
    /// Whether every further name of a certificate is linked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub links: Option<bool>,
}

/// When certificates are renewed and deployed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RenewSettings {
    pub schedule: Option<Schedule>,
    pub deploy: DeployWhen,
}

/// The complete settings of one certificate: a process that has not read the
/// configuration needs nothing else. They are stored with the certificate, so that a new
/// field needs a default for stored settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CertificateSettings {
    pub lineage: Lineage,
    /// The names in it, in the order in which they were given.
    pub names: Vec<Identifier>,
    /// All others, which thousands of certificates may share.
    #[serde(flatten)]
    pub shared: Arc<SharedSettings>,
}

/// The settings of a certificate but for its names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SharedSettings {
    pub ca: CaSettings,
    #[serde(default)]
    pub fallback: Option<CaSettings>,
    pub profile: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime: Option<Lifetime>,
    pub key: KeyTypes,
    /// Whether it has the second of two keys: the first is that of another certificate for
    /// the same names.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_second: bool,
    pub reuse_key: bool,
    /// The signing request, if the key is elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<SigningRequest>,
    #[serde(default)]
    pub partial: bool,
    pub challenge: ChallengeSettings,
    /// In a fleet, each machine has its own.
    #[serde(default)]
    pub deploy: Vec<DeployTarget>,
    /// The same.
    #[serde(default)]
    pub verify: Vec<Endpoint>,
    /// Where it is published; a relative directory is below the data directory. `None`:
    /// stored by a version that did not keep it, so that the process decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<OutputSettings>,
    /// The client that it was imported from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imported: Option<String>,
    /// The source that requested it; settings of an earlier version do not name one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Why nothing keeps it, as `certs run` found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orphaned: Option<String>,
    /// The rights that only the store names, which are denied.
    #[serde(skip)]
    pub unconfirmed: BTreeSet<Right>,
    /// Why it cannot be ordered, although it is stored.
    #[serde(skip)]
    pub cannot_order: Option<CannotOrder>,
}

impl Deref for CertificateSettings {
    type Target = SharedSettings;
    fn deref(&self) -> &SharedSettings {
        &self.shared
    }
}

impl DerefMut for CertificateSettings {
    /// A change is for this certificate alone.
    fn deref_mut(&mut self) -> &mut SharedSettings {
        Arc::make_mut(&mut self.shared)
    }
}

impl CertificateSettings {
    /// Reads what is stored for `lineage`: a rename moves what is stored and does not change
    /// it.
    ///
    /// # Errors
    /// When it is damaged.
    pub(crate) fn stored_as(lineage: &Lineage, json: &str) -> serde_json::Result<Self> {
        let stored: Self = serde_json::from_str(json)?;
        Ok(Self {
            lineage: lineage.clone(),
            ..stored
        })
    }

    /// The defaults for a certificate.
    pub(super) fn new(lineage: Lineage, names: Vec<Identifier>) -> Self {
        Self {
            lineage,
            names,
            shared: Arc::default(),
        }
    }

    /// Shares the memory of `other` if only the names differ.
    pub(crate) fn share(&mut self, other: &Self) {
        if self.shared == other.shared {
            self.shared = other.shared.clone();
        }
    }

    /// The type of its key.
    pub(crate) fn key_type(&self) -> KeyType {
        self.key.of_certificate(self.is_second)
    }

    /// The source that requested it, if that is known.
    pub(crate) fn asked_by(&self) -> Option<Origin> {
        let imported = self.imported.as_ref().map(|_| Origin::Import);
        self.origin.or(imported)
    }

    /// The files of its CAs: roots and keys of external accounts.
    pub(crate) fn ca_files(&self) -> impl Iterator<Item = &PathBuf> {
        let cas = [Some(&self.ca), self.fallback.as_ref()];
        let files = cas.into_iter().flatten();
        let files = files.flat_map(|ca| [ca.root.as_ref(), ca.eab_hmac_file.as_ref()]);
        files.flatten()
    }
}
