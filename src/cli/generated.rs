//! What is generated from the command line's own description: completion scripts, manual
//! pages, and the answer to an unknown command.

use std::io::Write;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory};

use super::args::Arguments;
use super::verbs;
use crate::failure::Failure;
use crate::text::{nearest, printable};

/// Prints the completion script of `shell`.
pub(super) fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let (mut command, mut script) = (shown(&Arguments::command()), Vec::new());
    clap_complete::generate(shell, &mut command, "certs", &mut script);
    print(&script);
    Ok(())
}

/// Prints the manual page of `certs`, or of the command that `words` name.
pub(super) fn manual(words: &[String]) -> Result<(), Failure> {
    let mut command = shown(&Arguments::command());
    command.build();
    for word in words {
        let below = command.find_subcommand(word).cloned();
        command = below.ok_or_else(|| unknown(word))?;
        command = command.version(env!("CARGO_PKG_VERSION"));
    }
    let mut page = Vec::new();
    let rendered = clap_mangen::Man::new(command).render(&mut page);
    rendered.map_err(Failure::unexpected)?;
    print(&page);
    Ok(())
}

/// `command` without its hidden commands and options, which are not for use by hand.
fn shown(command: &Command) -> Command {
    let all = command.get_subcommands().filter(|one| !one.is_hide_set());
    let below: Vec<Command> = all.map(shown).collect();
    let options = command.get_arguments().filter(|one| !one.is_hide_set());
    let mut bare = Command::new(command.get_name().to_owned())
        .args(options)
        .subcommands(below)
        .visible_aliases(
            command
                .get_visible_aliases()
                .map(str::to_owned)
                .collect::<Vec<_>>(),
        )
        .subcommand_required(command.is_subcommand_required_set());
    if let Some(version) = command.get_version() {
        bare = bare.version(version.to_owned());
    }
    if let Some(about) = command.get_about() {
        bare = bare.about(about.clone());
    }
    if let Some(text) = command.get_after_help() {
        bare = bare.after_help(text.clone());
    }
    bare
}

/// A closed standard output (`certs completions bash | head`) is not a failure.
fn print(text: &[u8]) {
    let _ = std::io::stdout().write_all(text);
}

/// Commands of other clients, or of later versions, and what does their work meanwhile.
const ELSEWHERE: [(&str, &str); 1] = [("certonly", "certs issue does its work")];

/// The answer to an unknown command that resembles none, whatever clap suggests for it.
pub(super) fn unknown_command(error: &clap::Error) -> Option<Failure> {
    let ErrorKind::InvalidSubcommand = error.kind() else {
        return None;
    };
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else {
        return None;
    };
    let verbs: Vec<String> = verbs().collect();
    let resembles = nearest(word, verbs.iter().map(String::as_str)).is_some();
    (!resembles).then(|| unknown(word))
}

fn unknown(word: &str) -> Failure {
    let hint = { ELSEWHERE.iter() }.find(|(name, _)| *name == word);
    let hint = hint.map_or("certs --help lists the commands", |(_, hint)| hint);
    let message = format!("unknown command `{}`", printable(word));
    Failure::usage(message, hint)
}
