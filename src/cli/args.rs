//! The command line, as clap reads it. Every option has its long name here
//! once; `CERTS_…` in the environment stands in for what is not given.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::certificate::KeyType;
use crate::identifier::{Identifier, Lineage};

/// Gets, renews, deploys and proves TLS certificates next to any proxy.
#[derive(Debug, Parser)]
#[command(name = "certs", version, arg_required_else_help = true)]
pub struct Arguments {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Options of every command.
#[derive(Debug, Args)]
pub struct Global {
    /// Private state: account keys, records (default /var/lib/certs as root, else $XDG_DATA_HOME/certs)
    #[arg(long, global = true, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where certificates are written for the proxy (default DATA_DIR/public)
    #[arg(long, global = true, value_name = "DIR")]
    pub output_dir: Option<PathBuf>,
    /// How messages on standard error look
    #[arg(long, global = true, value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// Say more; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Say errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Print the result as JSON
    #[arg(long, global = true)]
    pub json: bool,
}

/// How messages look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line for a person.
    Text,
    /// A JSON object a line.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Obtain one certificate for the names, deploy it and prove it served
    Issue(Issue),
    /// Keep the certificate for the names issued, renewed, deployed and proven, until SIGTERM
    Run(Issue),
    /// Show every certificate: CA, not-after, next action, generation issued and served, last error
    Status {
        /// Only this one
        name: Option<Lineage>,
    },
    /// Show it all on loopback within half a minute: issue, serve, renew and swap under load
    Demo(super::demo::Demo),
    /// Print a completion script
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page (roff)
    Man,
}

/// Options of `issue` and `run`.
#[derive(Debug, Args)]
pub struct Issue {
    /// DNS names or IP addresses ($CERTS_DOMAINS)
    #[arg(value_name = "NAME")]
    pub names: Vec<Identifier>,
    /// The CA: letsencrypt (default), letsencrypt-staging, zerossl, google, google-staging, actalis, sslcom-rsa, sslcom-ecc, or an https:// URL ($CERTS_CA)
    #[arg(long, value_name = "NAME|URL")]
    pub ca: Option<String>,
    /// Trust this root for a private CA's directory, beside the public ones ($CERTS_CA_ROOT)
    #[arg(long, value_name = "PEM")]
    pub ca_root: Option<PathBuf>,
    /// Where the CA may write to ($CERTS_EMAIL)
    #[arg(long)]
    pub email: Option<String>,
    /// You have read and agree to the CA's terms of service ($CERTS_AGREE_TOS)
    #[arg(long)]
    pub agree_tos: bool,
    /// How to prove control ($CERTS_CHALLENGE)
    #[arg(long, value_enum, value_name = "KIND")]
    pub challenge: Option<Challenge>,
    /// Answer HTTP-01 here (default port 80 of every address; repeatable) ($CERTS_HTTP_LISTEN)
    #[arg(long, value_name = "ADDR")]
    pub http_listen: Vec<SocketAddr>,
    /// Lay HTTP-01 answers below this directory, which another server serves on port 80
    #[arg(long, value_name = "DIR", conflicts_with = "http_listen")]
    pub webroot: Option<PathBuf>,
    /// The kind of key
    #[arg(long, value_name = "KIND", value_parser = key_type, default_value = "ecdsa-p256")]
    pub key: KeyType,
    /// The CA's certificate profile ($CERTS_PROFILE)
    #[arg(long)]
    pub profile: Option<String>,
    /// The certificate's name (default: the first NAME)
    #[arg(long, value_name = "LINEAGE")]
    pub name: Option<Lineage>,
    /// Hand it over: `nginx` or `nginx:PID_FILE` (repeatable) ($CERTS_DEPLOY)
    #[arg(long, value_name = "SPEC")]
    pub deploy: Vec<String>,
    /// Prove by a handshake that this endpoint serves it (repeatable) ($CERTS_VERIFY)
    #[arg(long, value_name = "HOST:PORT")]
    pub verify: Vec<String>,
    /// Order now, due or not
    #[arg(long)]
    pub force: bool,
}

/// The ways of proving control.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Challenge {
    /// RFC 8555 section 8.3, on port 80.
    #[value(name = "http-01")]
    Http01,
}

fn key_type(text: &str) -> Result<KeyType, String> {
    serde_json::from_value(serde_json::Value::from(text)).map_err(|_| {
        "one of ecdsa-p256, ecdsa-p384, rsa-2048, rsa-3072, rsa-4096 belongs here".to_owned()
    })
}
