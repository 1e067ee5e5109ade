//! `certs ca trust`: prints what makes clients trust a root, or changes the system's store.

use std::path::{Path, PathBuf};

use clap::Args;

use super::Call;
use super::output::{say, say_json};
use crate::ca::{Root, TrustError, TrustStore};
use crate::failure::{Failure, hint_for};
use crate::files;
use crate::text::shell_word;

#[derive(Debug, Args)]
pub(super) struct Trust {
    /// The root certificate, in PEM or DER (default: that of the CA in DATA_DIR)
    #[arg(long, value_name = "FILE")]
    root: Option<PathBuf>,
    /// Add the root to the system's store, as root
    #[arg(long, conflicts_with = "uninstall")]
    install: bool,
    /// Remove it from there
    #[arg(long)]
    uninstall: bool,
}

/// Runs the verb.
pub(super) async fn run(call: &Call, options: Trust) -> Result<(), Failure> {
    let data_dir = call.sources.process_settings()?.data_dir;
    let file = options.root.unwrap_or_else(|| data_dir.join("ca/root.pem"));
    let root = read(&file)?;
    // A printed command must work in another directory.
    let file = std::path::absolute(&file).unwrap_or(file);
    let system = TrustStore::of_this_machine();
    if !options.install && !options.uninstall {
        return print(call, &root, &file, system);
    }
    let verb = if options.install {
        "--install"
    } else {
        "--uninstall"
    };
    let word = shell_word(&file.display().to_string());
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::usage(
            format!("certs ca trust {verb}: only root can change the system's store"),
            format!("run: sudo certs ca trust {verb} --root {word}"),
        ));
    }
    let system = system.ok_or_else(|| {
        Failure::usage(
            "this system has no known store of roots",
            "install its package ca-certificates, or see the commands of: certs ca trust",
        )
    })?;
    if options.install && !root.is_constrained {
        tracing::warn!("this root is not bound to private names: its key can sign for every site");
    }
    let (changed, done, nothing) = if options.install {
        (system.add(&root).await, "trusted", "already trusted")
    } else {
        (system.remove(&root).await, "removed", "not installed")
    };
    let changed = changed.map_err(|error| failed(verb, &error))?;
    let anchor = system.anchor(&root);
    if call.json {
        return described(&root, &file, Some(system));
    }
    say(format_args!(
        "{}: {} (SHA-256 {})",
        if changed { done } else { nothing },
        anchor.display(),
        root.sha256()
    ));
    if options.install {
        say(format_args!(
            "Firefox, Chromium, Java and Node.js have stores of their own: certs ca trust --root {word}"
        ));
    }
    Ok(())
}

fn read(file: &Path) -> Result<Root, Failure> {
    let absent = || {
        Failure::usage(
            format!("{}: no root found", file.display()),
            "start the CA once with `certs ca serve`, or name its root with --root FILE",
        )
    };
    let content = files::read_data_bytes(file).map_err(|error| {
        let message = format!("{}: {error}", file.display());
        Failure::of_file(&error, message, hint_for(file, &error))
    })?;
    Root::parse(&content.ok_or_else(absent)?).map_err(|why| {
        Failure::usage(
            format!("{}: {why}", file.display()),
            "name a file with the CA's root alone with --root FILE, such as its root.pem",
        )
    })
}

fn print(
    call: &Call,
    root: &Root,
    file: &Path,
    system: Option<&TrustStore>,
) -> Result<(), Failure> {
    if call.json {
        return described(root, file, system);
    }
    say(format_args!("# root: {}", file.display()));
    say(format_args!("# SHA-256: {}", root.sha256()));
    say("# For another machine, copy the root there, compare its SHA-256, and run there:");
    say("#   certs ca trust --root FILE [--install]");
    if let Some(system) = system {
        let anchor = system.anchor(root);
        say(format_args!(
            "# Begin with this machine's system: other commands name its file {}.",
            anchor.display()
        ));
    }
    say("");
    let mut file = file.to_owned();
    if root.is_der {
        let der = shell_word(&file.display().to_string());
        file.set_extension("pem");
        let pem = shell_word(&file.display().to_string());
        say("# The file is in DER; the programs below read PEM");
        say(format_args!(
            "openssl x509 -inform DER -in {der} -out {pem}"
        ));
        say(format_args!("# undo: rm {pem}"));
        say("");
    }
    root.commands(&file, system).lines().for_each(say);
    Ok(())
}

fn described(root: &Root, file: &Path, system: Option<&TrustStore>) -> Result<(), Failure> {
    let trusted = system.map(|system| system.trusts(root)).transpose();
    let trusted = trusted.map_err(|error| failed("--json", &error))?;
    say_json(serde_json::json!({
        "root": file,
        "sha256": root.fingerprint,
        "file": system.map(|system| system.anchor(root)),
        "trusted": trusted,
    }));
    Ok(())
}

fn failed(verb: &str, error: &TrustError) -> Failure {
    let message = format!("certs ca trust {verb}: {error}");
    match error {
        TrustError::File { path, source } => Failure::output(message, &hint_for(path, source)),
        TrustError::Program(_, error) => Failure::output(message, error.hint()),
        TrustError::Unchanged(_) => Failure::output(
            message,
            "run the program by hand and read its output, then repeat this command",
        ),
    }
}
