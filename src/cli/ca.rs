//! `certs ca serve`: the embedded CA as an ACME server on loopback.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use clap::{Args, Subcommand};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::Call;
use crate::ca::{CaError, Profile, Resolve, Server, Settings, Validation};
use crate::failure::Failure;
use crate::files;
use crate::sandbox;
use crate::time::SystemClock;

/// The embedded CA.
#[derive(Debug, Subcommand)]
pub enum Ca {
    /// Serve ACME (RFC 8555) to this machine until SIGTERM; the state is kept in DATA_DIR/ca
    Serve(Serve),
}

/// Options of `ca serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// Where to listen, on loopback
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:14000")]
    listen: SocketAddr,
    /// The port that HTTP-01 answers are fetched from
    #[arg(long, value_name = "N", default_value_t = 80)]
    http_port: u16,
    /// Fetch every answer from this address, whatever a name resolves to
    #[arg(long, value_name = "IP")]
    resolve_to: Option<IpAddr>,
    /// The lifetime of a certificate whose order names no profile: 90d, 160h, 10m, 30s
    #[arg(long, value_name = "DURATION", value_parser = lifetime)]
    lifetime: Option<Duration>,
    /// Take accounts with this external account key only
    #[arg(long, value_name = "ID", requires = "eab_hmac_file")]
    eab_kid: Option<String>,
    /// Its HMAC key in base64url
    #[arg(long, value_name = "FILE", requires = "eab_kid")]
    eab_hmac_file: Option<PathBuf>,
    /// Write the root certificate here, too
    #[arg(long, value_name = "FILE")]
    root_out: Option<PathBuf>,
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let wrong = || "a number with s, m, h or d belongs here, from 1s to 3650d".to_owned();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text.trim_end_matches(unit).parse().map_err(|_| wrong())?;
    number
        .checked_mul(seconds)
        .filter(|seconds| (1..=3650 * 86_400).contains(seconds))
        .map(Duration::from_secs)
        .ok_or_else(wrong)
}

/// Runs the verb.
pub(super) async fn run(call: &Call, verb: Ca) -> Result<(), Failure> {
    let Ca::Serve(options) = verb;
    if !options.listen.ip().is_loopback() {
        return Err(Failure::usage(
            format!("{} is not a loopback address", options.listen),
            "the embedded CA serves its own machine: use 127.0.0.1 or [::1]",
        ));
    }
    let process = call.sources.process_settings();
    let process = process.map_err(Failure::configuration)?;
    let directory = process.data_dir.join("ca");
    let listener = TcpListener::bind(options.listen).await.map_err(|error| {
        Failure::usage(
            format!("cannot listen on {}: {error}", options.listen),
            "stop what uses that port, or give another with --listen 127.0.0.1:PORT",
        )
    })?;
    let address = listener
        .local_addr()
        .map_err(|error| Failure::unexpected(error.to_string()))?;
    let settings = settings(&options, address, directory.clone())?;
    let server = Server::new(settings, Arc::new(SystemClock)).map_err(|error| failed(&error))?;
    let mut root = directory.join("root.pem");
    if let Some(path) = &options.root_out {
        write_root(path, server.root_pem())?;
        root.clone_from(path);
    }
    tell(call, &server.directory_url(), &root);
    let stop = |kind| signal(kind).map_err(|error| Failure::unexpected(error.to_string()));
    let (mut terminate, mut interrupt) = (
        stop(SignalKind::terminate())?,
        stop(SignalKind::interrupt())?,
    );
    sandbox::confine_alone(&call.surroundings(), &process);
    tokio::select! {
        ended = server.serve(listener) => ended.map_err(|error| failed(&error)),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

fn settings(options: &Serve, address: SocketAddr, directory: PathBuf) -> Result<Settings, Failure> {
    let mut settings = Settings::new(format!("https://{address}"));
    settings.directory = Some(directory);
    settings.validation = Validation::Http {
        port: options.http_port,
        resolve: options.resolve_to.map_or(Resolve::System, Resolve::Fixed),
    };
    if let Some(lifetime) = options.lifetime {
        let profile = Profile::new(lifetime, "as --lifetime says");
        settings.profiles.insert("default".into(), profile);
    }
    if let (Some(kid), Some(file)) = (&options.eab_kid, &options.eab_hmac_file) {
        settings
            .external_accounts
            .insert(kid.clone(), hmac_key(file)?);
    }
    Ok(settings)
}

fn hmac_key(file: &Path) -> Result<Vec<u8>, Failure> {
    let told = |what: String| {
        Failure::usage(
            format!("--eab-hmac-file {}: {what}", file.display()),
            "the file holds an HMAC key of 16 bytes or more in base64url",
        )
    };
    let text = std::fs::read_to_string(file).map_err(|error| told(error.to_string()))?;
    let text = text.trim().trim_end_matches('=');
    match BASE64_URL_SAFE_NO_PAD.decode(text) {
        Ok(key) if key.len() >= 16 => Ok(key),
        Ok(_) => Err(told("the key is shorter than 16 bytes".into())),
        Err(error) => Err(told(error.to_string())),
    }
}

fn write_root(path: &Path, pem: &str) -> Result<(), Failure> {
    files::replace(path, 0o644, pem.as_bytes()).map_err(|error| {
        Failure::usage(
            format!("--root-out {}: {error}", path.display()),
            "name a file in a directory that is writable",
        )
    })
}

/// The failure of the CA itself.
pub(super) fn failed(error: &CaError) -> Failure {
    Failure::usage(format!("the embedded CA: {error}"), error.hint())
}

fn tell(call: &Call, directory: &str, root: &Path) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    // Whoever started it may not read on; that is no reason to stop.
    let _ = if call.json {
        let json = serde_json::json!({"directory": directory, "root": root});
        writeln!(out, "{json}")
    } else {
        writeln!(
            out,
            "directory: {directory}\nroot: {}\ntry: certs issue NAME --ca {directory} --ca-root {} --http-listen 127.0.0.1:PORT",
            root.display(),
            root.display()
        )
    };
    let _ = out.flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_has_a_unit_and_bounds() {
        assert_eq!(lifetime("90d"), Ok(Duration::from_secs(90 * 86_400)));
        assert_eq!(lifetime("160h"), Ok(Duration::from_secs(160 * 3600)));
        assert_eq!(lifetime("30s"), Ok(Duration::from_secs(30)));
        for text in ["", "0s", "90", "d", "-1d", "1.5h", "9999999d", "1w", "ä"] {
            assert!(lifetime(text).is_err(), "{text}");
        }
    }
}
