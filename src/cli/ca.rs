//! `certs ca serve`: the embedded CA as an ACME server on loopback.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::Call;
use super::output::{say, say_json};
use crate::ca::{
    CaError, PRIVATE, Permitted, Ports, Profile, Resolve, Server, Settings, Validation,
};
use crate::certificate::SecretBytes;
use crate::config::{self, Unusable};
use crate::failure::{Failure, hint_for};
use crate::files;
use crate::files::beneath::Directory;
use crate::net::dns::ServerAddress;
use crate::sandbox;
use crate::text::duration;
use crate::time::SystemClock;

#[derive(Debug, Subcommand)]
pub(super) enum Ca {
    /// Serve ACME (RFC 8555) to this machine until SIGTERM; the state is in DATA_DIR/ca
    #[command(after_help = "Example: certs ca serve --http-port 5002 --resolve-to 127.0.0.1")]
    Serve(Serve),
}

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// The loopback address to listen on
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:14000")]
    listen: SocketAddr,
    /// The port for HTTP-01 validation
    #[arg(long, value_name = "N", default_value_t = 80)]
    http_port: u16,
    /// The port for TLS-ALPN-01 validation
    #[arg(long, value_name = "N", default_value_t = 443)]
    tls_port: u16,
    /// Validate every name at this address, without resolving it
    #[arg(long, value_name = "IP")]
    resolve_to: Option<IpAddr>,
    /// Ask this DNS resolver for the zones of names that are validated by DNS-01
    #[arg(long, value_name = "ADDR:PORT")]
    resolver: Option<ServerAddress>,
    /// The lifetime of a certificate whose order names no profile: 90d, 160h, 10m, 30s
    #[arg(long, value_name = "DURATION", value_parser = lifetime)]
    lifetime: Option<Duration>,
    /// Accept only accounts with this external account key
    #[arg(long, value_name = "ID", requires = "eab_hmac_file")]
    eab_kid: Option<String>,
    /// Its HMAC key in base64url
    #[arg(long, value_name = "FILE", requires = "eab_kid")]
    eab_hmac_file: Option<PathBuf>,
    /// A name, with all below it, or a network that a new root permits beside private ones
    /// (localhost, *.test, *.example.com, *.internal, *.local, *.lan, *.home.arpa and the like, private addresses); `*` for all
    #[arg(long, value_name = "NAME|*")]
    permit: Vec<String>,
    /// Also write the root certificate to this file
    #[arg(long, value_name = "FILE")]
    root_out: Option<PathBuf>,
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let bounds = Duration::from_secs(1)..=Duration::from_secs(3650 * 86_400);
    let lifetime = duration(text).filter(|lifetime| bounds.contains(lifetime));
    lifetime.ok_or_else(|| "write a number with s, m, h or d, from 1s to 3650d".to_owned())
}

/// The CA's directory in `data_dir`, which is created if it is missing.
pub(super) fn directory_in(data_dir: &Path) -> Result<PathBuf, Failure> {
    files::make_data_directory(data_dir)
        .map_err(|error| Failure::store(format!("{}: {error}", data_dir.display())))?;
    Ok(data_dir.join("ca"))
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
    let process = call.sources.process_settings()?;
    let listener = TcpListener::bind(options.listen).await.map_err(|error| {
        Failure::usage(
            format!("cannot listen on {}: {error}", options.listen),
            "stop the process that uses this port, or choose another with --listen 127.0.0.1:PORT",
        )
    })?;
    let address = listener.local_addr().map_err(Failure::unexpected)?;
    let directory = directory_in(&process.data_dir)?;
    let settings = settings(&options, address, directory.clone())?;
    let server = Server::new(settings, Arc::new(SystemClock)).map_err(|error| failed(&error))?;
    let mut root = directory.join("root.pem");
    if let Some(path) = &options.root_out {
        write_root(path, server.root_pem())?;
        root.clone_from(path);
    }
    announce(call, &server.directory_url(), &root);
    let stop = |kind| signal(kind).map_err(Failure::unexpected);
    let mut terminate = stop(SignalKind::terminate())?;
    let mut interrupt = stop(SignalKind::interrupt())?;
    sandbox::confine_alone(&call.surroundings(), &process)?;
    tokio::select! {
        ended = server.serve(listener) => ended.map_err(|error| failed(&error)),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

fn settings(options: &Serve, address: SocketAddr, directory: PathBuf) -> Result<Settings, Failure> {
    let mut settings = Settings::new(format!("https://{address}"));
    settings.directory = Some(directory);
    settings.validation = Validation::Connect {
        ports: Ports {
            http: options.http_port,
            tls: options.tls_port,
        },
        resolve: options.resolve_to.map_or(Resolve::System, Resolve::Fixed),
    };
    settings.resolver = options.resolver.map(|resolver| resolver.0);
    settings.permitted = permitted(&options.permit)?;
    if let Some(lifetime) = options.lifetime {
        let profile = Profile::new(lifetime, "as set by --lifetime");
        settings.profiles.insert("default".into(), profile);
    }
    if let (Some(kid), Some(file)) = (&options.eab_kid, &options.eab_hmac_file) {
        let accounts = &mut settings.external_accounts;
        accounts.insert(kid.clone(), hmac_key(file)?);
    }
    Ok(settings)
}

/// The names of a new root: the private ones and those of `--permit`.
fn permitted(further: &[String]) -> Result<Vec<Permitted>, Failure> {
    if further.iter().any(|name| name == "*") {
        return Ok(Vec::new());
    }
    let all = PRIVATE
        .into_iter()
        .chain(further.iter().map(String::as_str));
    let read = |name: &str| {
        name.parse().map_err(|error: String| {
            let name = name.escape_debug();
            Failure::usage(
                format!("--permit `{name}`: {error}"),
                "for example --permit example.com",
            )
        })
    };
    all.map(read).collect()
}

fn hmac_key(file: &Path) -> Result<SecretBytes, Failure> {
    let invalid = |error: Unusable| {
        let hint = "write an HMAC key of at least 16 bytes in base64url to the file";
        Failure::usage(
            format!("--eab-hmac-file {}: {}", file.display(), error.message),
            error.hint.unwrap_or(hint.to_owned()),
        )
    };
    match config::hmac_key(file) {
        Ok(key) if key.expose().len() >= 16 => Ok(key),
        Ok(_) => Err(invalid("the key is shorter than 16 bytes".into())),
        Err(error) => Err(invalid(error)),
    }
}

fn write_root(path: &Path, pem: &str) -> Result<(), Failure> {
    let written = Directory::of(path)
        .and_then(|(directory, name)| directory.replace(name, 0o644, pem.as_bytes(), |_| Ok(())));
    written.map_err(|error| {
        Failure::of_file(
            &error,
            format!("--root-out {}: {error}", path.display()),
            "name a file in a writable directory",
        )
    })
}

/// The failure of the CA itself.
pub(super) fn failed(error: &CaError) -> Failure {
    let message = format!("the embedded CA: {error}");
    match error {
        CaError::Io { path, source } => Failure::output(message, &hint_for(path, source)),
        CaError::Corrupt { .. } => Failure::output(message, error.hint()),
        _ => Failure::usage(message, error.hint()),
    }
}

fn announce(call: &Call, directory: &str, root: &Path) {
    if call.json {
        return say_json(serde_json::json!({"directory": directory, "root": root}));
    }
    let root = root.display();
    say(format_args!("directory: {directory}"));
    say(format_args!("root: {root}"));
    say(format_args!(
        "try: certs issue NAME --ca {directory} --ca-root {root} --http-listen 127.0.0.1:PORT"
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetime_requires_a_unit_and_has_bounds() {
        assert_eq!(lifetime("90d"), Ok(Duration::from_secs(90 * 86_400)));
        assert_eq!(lifetime("160h"), Ok(Duration::from_secs(160 * 3600)));
        assert_eq!(lifetime("30s"), Ok(Duration::from_secs(30)));
        for text in ["", "0s", "90", "d", "-1d", "1.5h", "9999999d", "1w", "ä"] {
            assert!(lifetime(text).is_err(), "{text}");
        }
    }
}
