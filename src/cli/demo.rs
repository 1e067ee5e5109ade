//! `certs demo`: its options, its log on standard error and its scoreboard on
//! standard output.

use std::collections::BTreeMap;
use std::io::Write;

use clap::{Args, ValueEnum};

use super::output::{Terminal, say, say_json};
use crate::demo::{self, Log};
use crate::failure::Failure;

#[derive(Debug, Args)]
#[command(after_help = "\
Everything runs on 127.0.0.1, on ports that the system chooses, and below a
temporary directory that is removed at the end: an embedded CA with HTTP-01
validation, two certificates of 90 days for which the CA suggests renewal after
three seconds, a server that terminates TLS, and 16 clients that verify every
handshake up to the CA's root. Each certificate is renewed three times under
their load. It takes about 15 seconds.

Exit code 0: at least three renewals and no failed request; 1: otherwise;
2: no nginx found.

Example: certs demo --with nginx")]
pub(super) struct Demo {
    /// The server that terminates TLS: our own listener, or a real nginx from PATH
    #[arg(long, value_enum, value_name = "SERVER", default_value = "front")]
    with: Server,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Server {
    /// Our own TLS listener
    Front,
    /// A real nginx, reloaded by HUP
    Nginx,
}

/// Runs the demonstration and prints the scoreboard.
pub(super) fn demo(
    options: &Demo,
    environment: &BTreeMap<String, String>,
    terminal: &Terminal,
    (quiet, json): (bool, bool),
) -> Result<(), Failure> {
    let program = match options.with {
        Server::Front => None,
        Server::Nginx => Some(demo::find_nginx(environment)?),
    };
    let log = Log::new(move |text: &str| {
        if !quiet {
            // There is no way to report a closed standard error.
            let mut terminal = terminal;
            let _ = terminal.write_all(text.as_bytes());
        }
    });
    let score = demo::demo(&log, environment, program.as_deref())?;
    if json {
        say_json(serde_json::to_string(&score)?);
    } else {
        log.end();
        for line in score.lines() {
            say(line);
        }
    }
    match score.missing() {
        None => Ok(()),
        Some(missing) => {
            let message = format!("the demonstration failed: {missing}");
            Err(Failure::unexpected(message))
        }
    }
}
