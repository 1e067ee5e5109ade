//! The only composition root: builds the services from arguments, the environment
//! and the configuration, runs one command, and turns its result into messages and
//! an exit code.

mod account;
pub(crate) mod args;
mod ca;
mod catalog;
mod config;
mod csr;
mod delete;
mod demo;
mod embedded;
mod factory;
mod fleet;
mod generated;
mod import;
mod install;
mod inventory;
mod issue;
mod kept;
mod labels;
mod listener;
mod meant;
mod output;
mod progress;
mod remote;
mod rename;
mod renew;
mod revoke;
mod run;
mod simulate;
mod status;
mod trust;
mod volume;
mod watcher;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{CommandFactory, Parser};

use crate::config::{CommandVariables, LogFormat, Options, Sources};
use crate::failure::Failure;
use crate::sandbox::{self, Surroundings};
use crate::store::node::NodeStore;
use args::{Arguments, Verb};
use output::Terminal;

/// The threads of a file system that hangs are left behind.
const THREADS_END: Duration = Duration::from_secs(2);

/// The input of every command.
struct Call {
    json: bool,
    /// The command line's options, needed again to reload a changed file.
    options: Options,
    sources: Sources,
    /// The environment.
    environment: BTreeMap<String, String>,
    terminal: Terminal,
    /// The store of this machine's fleet, once the command has joined it.
    fleet: Option<Arc<NodeStore>>,
}

impl Call {
    /// The environment and the configuration files.
    fn surroundings(&self) -> Surroundings<'_> {
        Surroundings {
            environment: &self.environment,
            files: self.sources.files(),
        }
    }
}

/// Runs the command that `arguments` name; `environment` holds `CERTS_…`.
#[must_use]
pub fn run(
    arguments: impl IntoIterator<Item = std::ffi::OsString>,
    environment: BTreeMap<String, String>,
) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            if let Some(failure) = generated::unknown_command(&error) {
                let terminal = Terminal::new(&environment, false, LogFormat::default());
                return failure.report(&terminal);
            }
            // There is no way to report that this message cannot be written.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    match &arguments.verb {
        Verb::Completions { .. } | Verb::Man { .. } | Verb::Demo(_) | Verb::Simulate(_) => {
            play(arguments, &environment)
        }
        _ => act(arguments, environment),
    }
}

/// The verbs of all commands.
fn verbs() -> impl Iterator<Item = String> {
    let command = Arguments::command();
    let verbs = command.get_subcommands();
    let verbs: Vec<String> = verbs.map(|verb| verb.get_name().to_owned()).collect();
    verbs.into_iter()
}

fn act(mut arguments: Arguments, environment: BTreeMap<String, String>) -> ExitCode {
    let variables = CommandVariables::read(&environment);
    if let Ok(variables) = &variables {
        arguments.complete(variables);
    }
    let options = arguments.options();
    let sources = Sources::read(&options, &environment);
    let mut call = Call {
        json: arguments.global.json,
        terminal: Terminal::new(&environment, arguments.global.quiet, sources.log_format())
            .repeating(arguments.repeated(&options, verbs().collect())),
        fleet: None,
        options,
        environment,
        sources,
    };
    let terminal = call.terminal.clone();
    output::start_logging(arguments.global.quiet, arguments.global.verbose, &terminal);
    for warning in &call.sources.warnings {
        tracing::warn!("{warning}");
    }
    sandbox::harden();
    match variables {
        Err(problems) => return Failure::from(problems).report(&terminal),
        Ok(variables) if variables.flag("dry_run") && cannot_rehearse(&arguments.verb) => {
            let message = "CERTS_DRY_RUN: this command has no dry run";
            return Failure::usage(
                message,
                "use certs issue NAME --dry-run, or certs renew --dry-run",
            )
            .report(&terminal);
        }
        Ok(_) => {}
    }
    let joined = runtime().and_then(|runtime| {
        let joined = runtime.block_on(call.join_fleet(&arguments.verb));
        // Root can be given up only while no other thread runs.
        runtime.shutdown_timeout(THREADS_END);
        joined
    });
    let joined = joined.and_then(|refused| Ok((runtime()?, refused)));
    let ended = joined.and_then(|(runtime, refused)| {
        let fleet = call.fleet.clone();
        let ended = runtime.block_on(async {
            let ended = work(call, arguments.verb).await;
            if let Some(fleet) = fleet {
                fleet.announce().await;
            }
            ended
        });
        // A look-up that hangs in the system's resolver must not delay the exit.
        runtime.shutdown_background();
        ended.and(refused.map_or(Ok(()), Err))
    });
    exit_code(ended, &terminal)
}

fn cannot_rehearse(verb: &Verb) -> bool {
    match verb {
        Verb::Renew(renew) => renew.force,
        verb => matches!(
            verb,
            Verb::Run(_) | Verb::Reload { .. } | Verb::Rollback { .. } | Verb::Revoke(_)
        ),
    }
}

async fn work(call: Call, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Issue(options) => issue::issue(&call, options.once.task()).await,
        Verb::Csr(options) => csr::csr(&call, &options).await,
        Verb::Run(_) => run::run(call).await,
        Verb::Renew(options) => renew::renew(&call, &options.names, options.task()).await,
        Verb::Reload { names } => renew::reload(&call, &names).await,
        Verb::Rollback { name, to } => renew::rollback(&call, &name, to).await,
        Verb::Status {
            health: Some(health),
            ..
        } => status::health(&call, health).await,
        Verb::Status { name, .. } => status::status(&call, name.as_deref()).await,
        Verb::Config { verb } => config::config(&call, &verb).await,
        Verb::Ca(verb) => ca::run(&call, verb).await,
        Verb::Import(options) => import::import(&call, &options).await,
        Verb::Delete(options) => delete::delete(&call, &options).await,
        Verb::Rename(options) => rename::rename(&call, &options).await,
        Verb::Revoke(options) => revoke::revoke(&call, &options).await,
        Verb::Account(verb) => account::account(&call, &verb).await,
        Verb::Install(verb) => install::run(&call, verb).await,
        Verb::Helper { serve: false } => sandbox::helper::keep().await,
        Verb::Helper { serve: true } => sandbox::helper::serve().await,
        Verb::Completions { .. } | Verb::Man { .. } | Verb::Demo(_) | Verb::Simulate(_) => Ok(()),
    }
}

/// Runs a command that has no configuration; -v adds the log.
fn play(arguments: Arguments, environment: &BTreeMap<String, String>) -> ExitCode {
    let global = &arguments.global;
    let terminal = Terminal::new(environment, global.quiet, LogFormat::default());
    if global.verbose > 0 {
        output::start_logging(global.quiet, global.verbose, &terminal);
    }
    let ended = match &arguments.verb {
        Verb::Demo(options) => {
            let (quiet, json) = (global.quiet, global.json);
            demo::demo(options, environment, &terminal, (quiet, json))
        }
        Verb::Simulate(options) => simulate::simulate(options, global.json),
        Verb::Completions { shell } => generated::completions(*shell),
        Verb::Man { verb } => generated::manual(verb),
        _ => Ok(()),
    };
    exit_code(ended, &terminal)
}

fn exit_code(ended: Result<(), Failure>, terminal: &Terminal) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(terminal),
    }
}

/// One thread: the program mostly waits, and a thread pool costs a sidecar memory.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::unexpected)
}
