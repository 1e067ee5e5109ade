//! The only composition root: turns arguments, the environment and the
//! configuration into parts, runs one verb, and turns how it ended into what
//! the user reads and an exit code.

pub mod args;
mod demo;
mod issue;
mod output;
mod parts;
mod status;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Arguments, Verb};
use output::Failure;

/// Runs the command that `arguments` name; `environment` holds `CERTS_…`.
#[must_use]
pub fn run(
    arguments: impl IntoIterator<Item = std::ffi::OsString>,
    environment: std::collections::BTreeMap<String, String>,
) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nothing is left to tell when even the message cannot be written.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    // The demonstration tells its own story; -v adds what the parts say.
    if !matches!(arguments.verb, Verb::Demo(_)) || arguments.global.verbose > 0 {
        output::start_logging(&arguments.global);
    }
    let ended = match arguments.verb {
        Verb::Completions { shell } => {
            clap_complete::generate(
                shell,
                &mut Arguments::command(),
                "certs",
                &mut std::io::stdout(),
            );
            Ok(())
        }
        Verb::Man => clap_mangen::Man::new(Arguments::command())
            .render(&mut std::io::stdout())
            .map_err(|error| Failure::unexpected(error.to_string())),
        Verb::Demo(options) => demo::demo(&arguments.global, &options, &environment),
        verb => runtime()
            .and_then(|runtime| runtime.block_on(act(&arguments.global, verb, &environment))),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

async fn act(
    global: &args::Global,
    verb: Verb,
    environment: &std::collections::BTreeMap<String, String>,
) -> Result<(), Failure> {
    match verb {
        Verb::Issue(options) => issue::issue(global, options, environment).await,
        Verb::Run(options) => issue::run(global, options, environment).await,
        Verb::Status { name } => status::status(global, name.as_ref(), environment).await,
        Verb::Completions { .. } | Verb::Man | Verb::Demo(_) => Ok(()),
    }
}

/// One thread: the work is waiting, and a thread pool costs memory that a
/// sidecar does not have.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::unexpected(error.to_string()))
}
