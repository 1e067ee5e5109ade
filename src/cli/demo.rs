//! `certs demo`: its options, its story on standard error and its scoreboard on
//! standard output.

use std::collections::BTreeMap;
use std::io::Write;

use clap::{Args, ValueEnum};

use super::output::{Terminal, say};
use crate::demo::{self, Narrator};
use crate::failure::Failure;

/// Options of `demo`.
#[derive(Debug, Args)]
#[command(after_help = "\
Everything runs on 127.0.0.1, on ports that the system chooses, and below a
temporary directory that is removed at the end: an embedded CA with HTTP-01
validation, two certificates of 90 days whose renewal the CA asks for after
three seconds, a server that terminates TLS, and 16 clients that verify every
handshake up to the CA's root. Each certificate is renewed three times below
them. It takes about 15 seconds.

Exit code 0: at least three renewals and not one failed request; 1: otherwise;
2: there is no nginx.")]
pub struct Demo {
    /// Who terminates TLS: our own listener, or a real nginx from PATH
    #[arg(long, value_enum, value_name = "SERVER", default_value = "front")]
    with: Server,
}

/// Who terminates TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Server {
    /// Our own TLS listener
    Front,
    /// A real nginx, reloaded by HUP
    Nginx,
}

/// Plays it and prints the scoreboard.
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
    let narrator = Narrator::new(move |text: &str| {
        if !quiet {
            // A standard error that is closed needs no message.
            let mut terminal = terminal;
            let _ = terminal.write_all(text.as_bytes());
        }
    });
    let score = demo::demo(&narrator, environment, program.as_deref())?;
    if json {
        let score = serde_json::to_string(&score);
        say(score.map_err(|error| Failure::unexpected(error.to_string()))?);
    } else {
        narrator.end();
        for line in score.lines() {
            say(line);
        }
    }
    match score.missing() {
        None => Ok(()),
        Some(missing) => Err(Failure::unexpected(format!("not proven: {missing}"))),
    }
}
