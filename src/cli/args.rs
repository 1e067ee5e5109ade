//! The command line for clap. Options that are configuration keys come from the
//! table of keys and are read with the file and the environment, so that all errors
//! of all three are reported at once.

use clap::{Args, Parser, Subcommand};

use super::csr::{Csr, Once};
use super::output::Repeated;
use crate::config::{CommandVariables, EVERY, ISSUE, KeyOptions, Options, RUN};
use crate::control::Task;
use crate::manage::Trigger;

/// Gets, renews, deploys and verifies TLS certificates next to any proxy.
#[derive(Debug, Parser)]
#[command(name = "certs", version, arg_required_else_help = true)]
#[command(
    after_help = "Every setting is also CERTS_… in the environment (CERTS_…_FILE names a file with the \
    value) and a key of the configuration; the command line wins, then the environment, then the file.\n\n\
    Exit codes: 0 done or not due, 1 unexpected, 2 usage or environment (nothing was sent), 3 the CA could \
    not be reached or failed, 4 the CA refused, 5 the CA could not validate a name, \
    6 rate limited or waiting after a failure, 7 issued but not verified as served, 8 the store or an output could \
    not be used"
)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(super) struct Global {
    /// The configuration (else $CERTS_CONFIG, ./certs.toml, /etc/certs/certs.toml)
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<String>,
    #[command(flatten)]
    pub keys: KeyOptions<EVERY>,
    /// Log more; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Log errors only, and print no result that needs nothing
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Print the result as JSON
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Obtain one certificate for the names, deploy it and verify that it is served
    #[command(
        after_help = "Example: certs issue example.com www.example.com --agree-tos --deploy nginx"
    )]
    Issue(Issue),
    /// Obtain a certificate for the key of a signing request, which stays where it is
    Csr(Csr),
    /// Keep every configured certificate issued, renewed, deployed and verified, until SIGTERM
    #[command(after_help = "Example: certs run --config /etc/certs/certs.toml")]
    Run(Run),
    /// One pass over what is due, for cron or a timer
    #[command(after_help = "Example: certs renew example.com --force")]
    Renew(Renew),
    /// Deploy the latest generation again and verify it; ends a rollback
    #[command(after_help = "Example: certs reload example.com")]
    Reload {
        /// Only these certificates, by lineage or by one of their names
        names: Vec<String>,
    },
    /// Deploy an earlier generation and verify it; it stays live until the next renewal or certs reload
    #[command(
        after_help = "Generations are counted for each certificate: of two keys, only the certificate that NAME names \
        is rolled back.\n\nExample: certs rollback example.com --to 3"
    )]
    Rollback {
        /// The certificate, by lineage or by one of its names
        name: String,
        /// The generation, as numbered by certs status (default: the previous one)
        #[arg(long, value_name = "GENERATION", value_parser = clap::value_parser!(u64).range(1..))]
        to: Option<u64>,
    },
    /// Show every certificate: CA, not-after, next action, generation issued and served, last error
    #[command(
        visible_alias = "list",
        after_help = "Example: certs status example.com --json"
    )]
    Status {
        /// Only this certificate, by lineage or by one of its names
        name: Option<String>,
        /// Query the running certs run instead: alive, or ready (every certificate is verified); exit code 1 if not
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
    /// Forget a certificate: its record and its files
    Delete(super::delete::Delete),
    /// Give a certificate another name of its own, and its files with it
    Rename(super::rename::Rename),
    /// Revoke a certificate, once its replacement is verified as served
    Revoke(super::revoke::Revoke),
    /// Show and change the accounts at CAs
    #[command(subcommand)]
    Account(super::account::Account),
    /// Check the configuration, or print its JSON Schema
    Config {
        #[command(subcommand)]
        verb: Config,
    },
    /// Demonstrate on loopback: issue, serve, renew and swap certificates under load
    Demo(super::demo::Demo),
    /// Simulate a fleet for a year in virtual time, with faults of every kind; print the scoreboard
    Simulate(super::simulate::Simulate),
    /// Set a server up for TLS
    #[command(subcommand)]
    Install(super::install::Install),
    /// Import certificates, accounts and renewal settings of another client; orders nothing
    Import(super::import::Import),
    /// Run a certificate authority for this machine or its network, and trust it
    #[command(subcommand)]
    Ca(super::ca::Ca),
    /// The helper process of certs run; not for use by hand
    #[command(hide = true)]
    Helper {
        /// Serve requests in this process
        #[arg(long)]
        serve: bool,
    },
    /// Print a completion script
    #[command(after_help = "Example: certs completions bash > /etc/bash_completion.d/certs")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page of certs, or of one command (roff)
    #[command(after_help = "Example: certs man issue > /usr/share/man/man1/certs-issue.1")]
    Man {
        /// The command, such as `issue` or `ca serve`
        #[arg(value_name = "COMMAND")]
        verb: Vec<String>,
    },
}

/// The question of a health check.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum Health {
    /// Does the process respond?
    Alive,
    /// Is every certificate verified and none overdue?
    Ready,
}

/// Actions on the configuration.
#[derive(Debug, Subcommand)]
pub(super) enum Config {
    /// Report all errors at once, with file, line and hint; with --json print the resolved configuration
    #[command(after_help = "Example: certs config check certs.toml")]
    Check {
        /// The file (default: as with --config)
        file: Option<String>,
    },
    /// Print the JSON Schema of the file
    #[command(after_help = "Example: certs config schema > certs.schema.json")]
    Schema,
    /// Print the sealing key of a fleet for a machine of role serve: it opens certificates, and no accounts
    #[command(
        after_help = "Example: certs config serve-key | ssh web-2 'umask 077 && cat > /etc/certs/seal.key'"
    )]
    ServeKey,
}

#[derive(Debug, Args)]
pub(super) struct Issue {
    // First: it reads where the names are between the options, before clap takes them out.
    #[command(flatten)]
    pub keys: KeyOptions<ISSUE>,
    /// DNS names or IP addresses; the first one of a configured certificate selects it ($CERTS_DOMAINS)
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    #[command(flatten)]
    pub once: Once,
}

#[derive(Debug, Args)]
pub(super) struct Run {
    // First, as for `issue`.
    #[command(flatten)]
    pub keys: KeyOptions<RUN>,
    /// One more certificate in addition to the configured ones ($CERTS_DOMAINS)
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// The certificate's own name (default: the first NAME)
    #[arg(long, value_name = "LINEAGE")]
    pub name: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Renew {
    /// Only these certificates, by lineage or by one of their names
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Order now, even if not due
    #[arg(long, conflicts_with = "dry_run")]
    pub force: bool,
    /// Order each from its CA's staging directory; nothing is stored or deployed
    #[arg(long)]
    pub dry_run: bool,
}

impl Renew {
    pub(super) fn task(&self) -> Task {
        match (self.dry_run, self.force) {
            (true, _) => Task::Rehearsal,
            (false, true) => Task::Pass(Trigger::Forced),
            (false, false) => Task::Pass(Trigger::Scheduled),
        }
    }
}

impl Arguments {
    /// Applies the environment variables of the command's options, where the command
    /// line does not set them.
    pub(super) fn complete(&mut self, variables: &CommandVariables) {
        let global = &mut self.global;
        global.json |= variables.flag("json");
        if global.verbose == 0 && !global.quiet {
            global.quiet = variables.flag("quiet");
            global.verbose = u8::from(variables.flag("verbose") && !global.quiet);
        }
        match &mut self.verb {
            Verb::Issue(Issue { once, .. }) | Verb::Csr(Csr { once, .. }) => {
                once.force |= variables.flag("force");
                once.dry_run |= variables.flag("dry_run");
            }
            Verb::Renew(renew) => {
                renew.force |= variables.flag("force");
                renew.dry_run |= variables.flag("dry_run");
            }
            Verb::Import(import) => import.dry_run |= variables.flag("dry_run"),
            _ => {}
        }
    }

    /// What hints of this command repeat.
    pub(super) fn repeated(&self, options: &Options, verbs: Vec<String>) -> Repeated {
        let given = |of: &'static [&'static str], names: &[&str]| {
            let given = options.given(names).into_iter();
            given.map(move |option| (of, option))
        };
        let ca = given(&["issue", "csr", "account"], &["ca", "ca_root"]);
        let further = ca.chain(given(&["issue", "csr"], &["email", "agree_tos"]));
        let mut further: Vec<_> = further.collect();
        if let Verb::Install(super::install::Install::Nginx(install)) = &self.verb {
            let program = install.repeated().into_iter();
            further.extend(program.map(|option| (&["install"][..], option)));
        }
        Repeated {
            places: options.places(),
            verbs,
            further,
        }
    }

    /// The command line as configuration keys.
    pub(super) fn options(&self) -> Options {
        let mut options = Options::default();
        options.config(self.global.config.as_deref());
        options.keys(&self.global.keys);
        match &self.verb {
            Verb::Issue(issue) => {
                options.names(&issue.names);
                options.lineage(issue.once.name.as_deref());
                options.keys(&issue.keys);
            }
            Verb::Csr(csr) => {
                options.request(&csr.file, &csr.names);
                options.lineage(csr.once.name.as_deref());
                options.keys(&csr.keys);
            }
            Verb::Run(run) => {
                options.names(&run.names);
                options.lineage(run.name.as_deref());
                options.keys(&run.keys);
            }
            Verb::Import(import) => options.keys(&import.keys),
            Verb::Install(super::install::Install::Nginx(install)) => options.keys(&install.keys),
            Verb::Revoke(revoke) => options.keys(&revoke.keys),
            Verb::Account(verb) => verb.options(&mut options),
            Verb::Config {
                verb: Config::Check { file: Some(file) },
            } => options.config(Some(file)),
            _ => {}
        }
        options
    }
}
