//! The command line, as clap reads it. Values stay texts here: they are
//! understood where the same key of the file and the environment is, so that
//! all errors of all three are told at once.

use clap::{Args, Parser, Subcommand};

use crate::config::{CommandVariables, Options};
use crate::identifier::Lineage;

/// Gets, renews, deploys and proves TLS certificates next to any proxy.
#[derive(Debug, Parser)]
#[command(name = "certs", version, arg_required_else_help = true)]
#[command(
    after_help = "Every option is also CERTS_… in the environment (CERTS_…_FILE names a file with the \
    value) and a key of the configuration; the command line wins, then the environment, then the file.\n\n\
    Exit codes: 0 done or not due, 1 unexpected, 2 usage or surroundings (nothing was sent), 3 the CA could \
    not be reached or failed, 4 the CA refused, 5 control of a name was not proven, \
    6 rate limited or waiting after a failure, 7 issued but not proven served, 8 the store or an output could \
    not be used"
)]
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
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The configuration (else $CERTS_CONFIG, ./certs.toml, /etc/certs/certs.toml)
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<String>,
    /// Private state: account keys, records (default /var/lib/certs as root, else $XDG_DATA_HOME/certs)
    #[arg(long, global = true, value_name = "DIR")]
    pub data_dir: Option<String>,
    /// Where certificates are written for the proxy (default DATA_DIR/public)
    #[arg(long, global = true, value_name = "DIR")]
    pub output_dir: Option<String>,
    /// How messages on standard error look: text (default) or json
    #[arg(long, global = true, value_name = "FORMAT")]
    pub log_format: Option<String>,
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

impl Global {
    /// In the words of the configuration.
    #[must_use]
    pub fn options(&self) -> Options {
        let mut options = Options::default();
        options.config(self.config.as_deref());
        options.text("data_dir", self.data_dir.as_deref());
        options.text("output_dir", self.output_dir.as_deref());
        options.text("log_format", self.log_format.as_deref());
        options
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Obtain one certificate for the names, deploy it and prove it served
    Issue(Issue),
    /// Keep every configured certificate issued, renewed, deployed and proven, until SIGTERM
    Run(Run),
    /// One pass over what is due, for cron or a timer
    Renew(Renew),
    /// Hand over again what there is, and prove it; takes a rollback back
    Reload {
        /// Only these, by lineage or by a name that it is for
        names: Vec<String>,
    },
    /// Publish an earlier generation and prove it: it stays until the next renewal or certs reload
    Rollback {
        /// Which, by lineage or by a name that it is for
        name: String,
        /// The generation, as certs status numbers them (default: the one before)
        #[arg(long, value_name = "GENERATION", value_parser = clap::value_parser!(u64).range(1..))]
        to: Option<u64>,
    },
    /// Show every certificate: CA, not-after, next action, generation issued and served, last error
    Status {
        /// Only this one
        name: Option<Lineage>,
        /// Ask the running certs run instead: is it alive, or ready (all is proven served); exit code 1 when not
        #[arg(
            long,
            value_name = "alive|ready",
            num_args = 0..=1,
            require_equals = true,
            default_missing_value = "alive",
            hide_possible_values = true,
            conflicts_with = "name"
        )]
        health: Option<Health>,
    },
    /// Check the configuration, or print its JSON Schema
    Config {
        /// Which of the two.
        #[command(subcommand)]
        verb: Config,
    },
    /// Show the whole story on loopback: issue, serve, renew and swap under load
    Demo(super::demo::Demo),
    /// A fleet for a year in virtual time, through faults of every kind; prints the scoreboard
    Simulate(super::simulate::Simulate),
    /// Set a server up for TLS
    #[command(subcommand)]
    Install(super::install::Install),
    /// Take over what another client keeps: certificates, accounts, and how they are renewed; nothing is ordered
    Import(super::import::Import),
    /// Be a certificate authority for this machine
    #[command(subcommand)]
    Ca(super::ca::Ca),
    /// Run by certs run alone, as the process that tells servers
    #[command(hide = true)]
    Hand {
        /// Do the errands, and start no other process for them
        #[arg(long)]
        errands: bool,
    },
    /// Print a completion script
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page (roff)
    Man,
}

/// What a health check asks.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Health {
    /// Does it answer?
    Alive,
    /// Is every certificate proven served and not late?
    Ready,
}

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub enum Config {
    /// Tell every error at once, with file, line and hint; with --json print what it resolves to
    Check {
        /// The file (default: as with --config)
        file: Option<String>,
    },
    /// Print the JSON Schema of the file
    Schema,
}

/// Options of `issue`.
#[derive(Debug, Args)]
pub struct Issue {
    /// DNS names or IP addresses; a configured certificate is named by its first ($CERTS_DOMAINS)
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// What is wanted of it.
    #[command(flatten)]
    pub wanted: Wanted,
    /// Order now, due or not
    #[arg(long)]
    pub force: bool,
    /// Rehearse at the CA's staging directory; nothing is stored or published
    #[arg(long)]
    pub dry_run: bool,
}

/// Options of `run`.
#[derive(Debug, Args)]
pub struct Run {
    /// One more certificate beside the configured ones ($CERTS_DOMAINS)
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// What is wanted of every certificate.
    #[command(flatten)]
    pub wanted: Wanted,
    /// Where the read-only endpoints are (default 127.0.0.1:9180), or off ($CERTS_ADMIN_LISTEN)
    #[arg(long, value_name = "ADDR")]
    pub admin_listen: Option<String>,
    /// Follow the labels of containers: Docker's API behind a filtering proxy, tcp://HOST:2375 or unix:///PATH ($CERTS_DOCKER_HOST)
    #[arg(long, value_name = "URL")]
    pub docker_host: Option<String>,
    /// Give up what is not needed: capabilities, files, system calls (default on) ($CERTS_HARDEN)
    #[arg(long, value_name = "on|off", value_parser = on_or_off, action = clap::ArgAction::Set)]
    pub harden: Option<bool>,
}

fn on_or_off(text: &str) -> Result<bool, &'static str> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("write on or off"),
    }
}

/// Options of `renew`.
#[derive(Debug, Args)]
pub struct Renew {
    /// Only these: certificates by name, or by a name that they are for
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Order now, due or not
    #[arg(long)]
    pub force: bool,
}

/// What may be wanted of a certificate.
#[derive(Debug, Args)]
pub struct Wanted {
    /// letsencrypt (default), letsencrypt-staging, zerossl, google, google-staging, actalis, sslcom-rsa, sslcom-ecc, embedded, or an https:// URL ($CERTS_CA)
    #[arg(long, value_name = "NAME|URL")]
    pub ca: Option<String>,
    /// Trust this root for the CA's directory, beside the public ones ($CERTS_CA_ROOT)
    #[arg(long, value_name = "PEM")]
    pub ca_root: Option<String>,
    /// Where the CA may write to ($CERTS_EMAIL)
    #[arg(long, value_name = "EMAIL")]
    pub email: Option<String>,
    /// You have read and agree to the CA's terms of service ($CERTS_AGREE_TOS)
    #[arg(long)]
    pub agree_tos: bool,
    /// External account binding: the key identifier ($CERTS_EAB_KID)
    #[arg(long, value_name = "KID")]
    pub eab_kid: Option<String>,
    /// External account binding: the file with the HMAC key in base64url ($CERTS_EAB_HMAC_FILE)
    #[arg(long, value_name = "FILE")]
    pub eab_hmac_file: Option<String>,
    /// Of several chains take the one with an issuer of this common name ($CERTS_PREFERRED_CHAIN)
    #[arg(long, value_name = "CN")]
    pub preferred_chain: Option<String>,
    /// Order there when the CA does not issue: nothing usable is left and 3 orders or 30 minutes were in vain, or it is down and a sixth of the life is left ($CERTS_FALLBACK_CA)
    #[arg(long, value_name = "NAME|URL")]
    pub fallback_ca: Option<String>,
    /// External account binding at the fallback: the key identifier ($CERTS_FALLBACK_EAB_KID)
    #[arg(long, value_name = "KID")]
    pub fallback_eab_kid: Option<String>,
    /// External account binding at the fallback: the file with the HMAC key in base64url ($CERTS_FALLBACK_EAB_HMAC_FILE)
    #[arg(long, value_name = "FILE")]
    pub fallback_eab_hmac_file: Option<String>,
    /// How to prove control: http-01 ($CERTS_CHALLENGE)
    #[arg(long, value_name = "KIND")]
    pub challenge: Option<String>,
    /// Answer HTTP-01 here (default port 80 of every address; repeatable) ($CERTS_HTTP_LISTEN)
    #[arg(long, value_name = "ADDR")]
    pub http_listen: Vec<String>,
    /// Lay HTTP-01 answers below this directory, which another server serves on port 80 ($CERTS_WEBROOT)
    #[arg(long, value_name = "DIR")]
    pub webroot: Option<String>,
    /// ecdsa-p256 (default), ecdsa-p384, rsa-2048, rsa-3072 or rsa-4096 ($CERTS_KEY)
    #[arg(long, value_name = "KIND")]
    pub key: Option<String>,
    /// Keep the key when renewing ($CERTS_REUSE_KEY)
    #[arg(long)]
    pub reuse_key: bool,
    /// Issue for the names that are proven when others fail, and try those again by itself ($CERTS_PARTIAL)
    #[arg(long)]
    pub partial: bool,
    /// The CA's certificate profile ($CERTS_PROFILE)
    #[arg(long, value_name = "PROFILE")]
    pub profile: Option<String>,
    /// The certificate's own name (default: the first NAME)
    #[arg(long, value_name = "LINEAGE")]
    pub name: Option<String>,
    /// Hand it over (repeatable): nginx or nginx:PID_FILE, haproxy:SOCKET, coturn, dovecot, postfix, caddy, envoy:FILE, traefik:FILE, systemd:UNIT, docker:CONTAINER, exec:/PROGRAM, file:/PATH, directory:/PATH or a URL ($CERTS_DEPLOY)
    #[arg(long, value_name = "SPEC")]
    pub deploy: Vec<String>,
    /// Prove by a handshake that this endpoint serves it (repeatable); smtp://, imap:// and pop3:// before it speak STARTTLS ($CERTS_VERIFY)
    #[arg(long, value_name = "HOST:PORT")]
    pub verify: Vec<String>,
}

impl Wanted {
    fn add_to(&self, options: &mut Options, names: &[String]) {
        options.names(names);
        options.lineage(self.name.as_deref());
        for (key, text) in [
            ("ca", &self.ca),
            ("ca_root", &self.ca_root),
            ("email", &self.email),
            ("eab_kid", &self.eab_kid),
            ("eab_hmac_file", &self.eab_hmac_file),
            ("preferred_chain", &self.preferred_chain),
            ("fallback_ca", &self.fallback_ca),
            ("fallback_eab_kid", &self.fallback_eab_kid),
            ("fallback_eab_hmac_file", &self.fallback_eab_hmac_file),
            ("challenge", &self.challenge),
            ("webroot", &self.webroot),
            ("key", &self.key),
            ("profile", &self.profile),
        ] {
            options.text(key, text.as_deref());
        }
        options.flag("agree_tos", self.agree_tos);
        options.flag("reuse_key", self.reuse_key);
        options.flag("partial", self.partial);
        options.list("http_listen", &self.http_listen);
        options.list("deploy", &self.deploy);
        options.list("verify", &self.verify);
    }
}

impl Arguments {
    /// Takes what the environment says of one command, where the command line
    /// is silent.
    pub fn heed(&mut self, said: &CommandVariables) {
        let global = &mut self.global;
        global.json |= said.flag("json");
        if global.verbose == 0 && !global.quiet {
            global.quiet = said.flag("quiet");
            global.verbose = u8::from(said.flag("verbose") && !global.quiet);
        }
        match &mut self.verb {
            Verb::Issue(issue) => {
                issue.force |= said.flag("force");
                issue.dry_run |= said.flag("dry_run");
            }
            Verb::Renew(renew) => renew.force |= said.flag("force"),
            Verb::Import(import) => import.dry_run |= said.flag("dry_run"),
            _ => {}
        }
    }

    /// All that is said on the command line, in the words of the configuration.
    #[must_use]
    pub fn options(&self) -> Options {
        let mut options = self.global.options();
        match &self.verb {
            Verb::Issue(issue) => issue.wanted.add_to(&mut options, &issue.names),
            Verb::Run(run) => {
                run.wanted.add_to(&mut options, &run.names);
                options.text("admin.listen", run.admin_listen.as_deref());
                options.text("docker.host", run.docker_host.as_deref());
                options.switch("harden", run.harden);
            }
            Verb::Import(import) => {
                options.text("ca_root", import.ca_root.as_deref());
                options.text("webroot", import.webroot.as_deref());
                options.list("deploy", &import.deploy);
                options.list("verify", &import.verify);
            }
            Verb::Config {
                verb: Config::Check { file: Some(file) },
            } => options.config(Some(file)),
            _ => {}
        }
        options
    }
}
