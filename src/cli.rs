//! The only composition root: turns arguments, the environment and the
//! configuration into parts, runs one verb, and turns how it ended into what
//! the user reads and an exit code.

pub mod args;
pub mod ca;
mod config;
mod control;
mod demo;
mod issue;
mod output;
mod parts;
mod progress;
mod renew;
mod run;
mod sockets;
mod status;

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::config::{LogFormat, Options, Sources};
use args::{Arguments, Verb};
use output::{Failure, Terminal};

/// What every verb is given.
struct Call {
    json: bool,
    /// As they were given, to be read again beside a file that has changed.
    options: Options,
    sources: Sources,
    /// The environment, of which most is in `sources` already.
    environment: BTreeMap<String, String>,
    terminal: Terminal,
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
            // Nothing is left to tell when even the message cannot be written.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let terminal = Terminal::of(&environment);
    match act(arguments, environment, &terminal) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(&terminal),
    }
}

fn act(
    arguments: Arguments,
    environment: BTreeMap<String, String>,
    terminal: &Terminal,
) -> Result<(), Failure> {
    match &arguments.verb {
        Verb::Completions { shell } => {
            let mut command = Arguments::command();
            clap_complete::generate(*shell, &mut command, "certs", &mut std::io::stdout());
            return Ok(());
        }
        Verb::Man => {
            return clap_mangen::Man::new(Arguments::command())
                .render(&mut std::io::stdout())
                .map_err(|error| Failure::unexpected(error.to_string()));
        }
        // It takes no configuration, and tells its own story.
        Verb::Demo(options) => {
            if arguments.global.verbose > 0 {
                output::start_logging(&arguments.global, LogFormat::default(), terminal);
            }
            return demo::demo(&arguments.global, options, &environment);
        }
        _ => {}
    }
    let options = arguments.options();
    let call = Call {
        json: arguments.global.json,
        sources: Sources::read(&options, &environment),
        options,
        environment,
        terminal: terminal.clone(),
    };
    output::start_logging(&arguments.global, call.sources.log_format(), terminal);
    runtime()?.block_on(async {
        match arguments.verb {
            Verb::Issue(options) => issue::issue(&call, &options).await,
            Verb::Run(_) => run::run(call).await,
            Verb::Renew(options) => renew::renew(&call, &options).await,
            Verb::Status { name } => status::status(&call, name.as_ref()).await,
            Verb::Config { verb } => config::config(&call, &verb),
            Verb::Ca(verb) => ca::run(&call, verb).await,
            Verb::Completions { .. } | Verb::Man | Verb::Demo(_) => Ok(()),
        }
    })
}

/// One thread: the work is waiting, and a thread pool costs memory that a
/// sidecar does not have.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::unexpected(error.to_string()))
}
