//! `certs ca serve`: the embedded CA as an ACME server, for this machine or its network.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::Call;
use super::output::{say, say_json};
use super::trust::{self, Trust};
use crate::ca::{
    CaError, PRIVATE, Permitted, Ports, Profile, Resolve, Root, Server, Settings, Validation,
};
use crate::certificate::SecretBytes;
use crate::config::{self, Unusable};
use crate::failure::{Failure, hint_for};
use crate::files;
use crate::files::beneath::Directory;
use crate::identifier::Identifier;
use crate::net::dns::ServerAddress;
use crate::sandbox;
use crate::text::{duration, shell_word};
use crate::time::SystemClock;

#[derive(Debug, Subcommand)]
pub(super) enum Ca {
    /// Serve ACME (RFC 8555) until SIGTERM; the state is in DATA_DIR/ca
    #[command(after_help = "Examples:
  certs ca serve --http-port 5002 --resolve-to 127.0.0.1
  certs ca serve --listen 0.0.0.0:443 --host ca.internal")]
    Serve(Box<Serve>),
    /// Print the commands that make systems, browsers, Java and Node.js trust the root; with
    /// --install or --uninstall change the system's store
    #[command(after_help = "Examples:
  certs ca trust
  sudo certs ca trust --install --root root.pem")]
    Trust(Trust),
}

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// The address to listen on
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:14000")]
    listen: SocketAddr,
    /// The name or address under which clients reach the CA (default: that of --listen); keep it,
    /// since accounts and certificates contain it
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
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
    /// The same for many accounts: in each line of the file an ID and its HMAC key
    #[arg(long, value_name = "FILE")]
    eab_file: Option<PathBuf>,
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
    match verb {
        Ca::Serve(options) => serve(call, &options).await,
        Ca::Trust(options) => trust::run(call, options).await,
    }
}

async fn serve(call: &Call, options: &Serve) -> Result<(), Failure> {
    let host = host(options)?;
    let process = call.sources.process_settings()?;
    let listener = TcpListener::bind(options.listen).await.map_err(|error| {
        Failure::usage(
            format!("cannot listen on {}: {error}", options.listen),
            "stop the process that uses this port, or choose another with --listen 127.0.0.1:PORT",
        )
    })?;
    let address = listener.local_addr().map_err(Failure::unexpected)?;
    let directory = directory_in(&process.data_dir)?;
    let settings = settings(options, (&host, address.port()), directory.clone())?;
    let server = Server::new(settings, Arc::new(SystemClock)).map_err(|error| failed(&error))?;
    if !server.permits(&host) {
        return Err(Failure::usage(
            format!("the root of this CA does not permit {host}, its own host"),
            "choose a --host that it permits, such as ca.internal, or a new --data-dir",
        ));
    }
    let mut root = directory.join("root.pem");
    if let Some(path) = &options.root_out {
        write_root(path, server.root_pem())?;
        root.clone_from(path);
    }
    let stop = |kind| signal(kind).map_err(Failure::unexpected);
    let mut terminate = stop(SignalKind::terminate())?;
    let mut interrupt = stop(SignalKind::interrupt())?;
    announce(call, options, &server, &root)?;
    sandbox::confine_alone(&call.surroundings(), &process)?;
    tokio::select! {
        ended = server.serve(listener) => ended.map_err(|error| failed(&error)),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

/// The host of the CA's URLs.
fn host(options: &Serve) -> Result<Identifier, Failure> {
    let Some(host) = &options.host else {
        let address = options.listen.ip();
        return match address.is_unspecified() {
            false => Ok(Identifier::Ip(address)),
            true => Err(Failure::usage(
                format!("--listen {} gives clients no address", options.listen),
                "add the name by which clients reach this machine: --host ca.internal",
            )),
        };
    };
    let parsed = Identifier::parse(host.trim_matches(['[', ']']));
    let name = parsed.ok().filter(|name| !name.is_wildcard());
    name.ok_or_else(|| {
        Failure::usage(
            format!("--host `{}`: not a name or an address", host.escape_debug()),
            "for example --host ca.internal",
        )
    })
}

fn settings(
    options: &Serve,
    (host, port): (&Identifier, u16),
    directory: PathBuf,
) -> Result<Settings, Failure> {
    let authority = match host {
        Identifier::Ip(address) => SocketAddr::new(*address, port).to_string(),
        Identifier::Dns(_) => format!("{host}:{port}"),
    };
    // A client would sign the URL without the usual port.
    let shown = authority.strip_suffix(":443").unwrap_or(&authority);
    let mut settings = Settings::new(format!("https://{shown}"));
    settings.lists_url = Some(format!("http://{authority}"));
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
    if !settings.permitted.is_empty() {
        // A new root must permit the CA's own server.
        settings.permitted.extend(host.to_string().parse());
    }
    if let Some(lifetime) = options.lifetime {
        let profile = Profile::new(lifetime, "as set by --lifetime");
        settings.profiles.insert("default".into(), profile);
    }
    if let (Some(kid), Some(file)) = (&options.eab_kid, &options.eab_hmac_file) {
        let accounts = &mut settings.external_accounts;
        accounts.insert(kid.clone(), hmac_key(file)?);
    }
    if let Some(file) = &options.eab_file {
        let given = external_accounts(file)?;
        if let Some(kid) =
            { given.keys() }.find(|kid| settings.external_accounts.contains_key(*kid))
        {
            return Err(Failure::usage(
                format!(
                    "--eab-file {}: it has {kid}, too, which is that of --eab-kid",
                    file.display()
                ),
                "leave one of the two out",
            ));
        }
        settings.external_accounts.extend(given);
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

/// The shortest HMAC key in bytes.
const SHORTEST_KEY: usize = 16;

fn hmac_key(file: &Path) -> Result<SecretBytes, Failure> {
    let hint = "write an HMAC key of at least 16 bytes in base64url to the file";
    let invalid = |error| unusable("--eab-hmac-file", file, error, hint);
    match config::hmac_key(file) {
        Ok(key) if key.expose().len() >= SHORTEST_KEY => Ok(key),
        Ok(_) => Err(invalid("the key is shorter than 16 bytes".into())),
        Err(error) => Err(invalid(error)),
    }
}

fn external_accounts(file: &Path) -> Result<BTreeMap<String, SecretBytes>, Failure> {
    let hint = "write a line for each account: its ID, a space, and an HMAC key of at least 16 bytes in base64url";
    let invalid = |error| unusable("--eab-file", file, error, hint);
    let accounts = config::external_accounts(file).map_err(invalid)?;
    let mut keys = accounts.values();
    match keys.next() {
        // An empty file must not open the CA to every client.
        None => Err(invalid("no account found".into())),
        Some(first)
            if keys
                .chain([first])
                .any(|key| key.expose().len() < SHORTEST_KEY) =>
        {
            Err(invalid("a key is shorter than 16 bytes".into()))
        }
        Some(_) => Ok(accounts),
    }
}

fn unusable(option: &str, file: &Path, error: Unusable, hint: &str) -> Failure {
    let message = format!("{option} {}: {}", file.display(), error.message);
    Failure::usage(message, error.hint.unwrap_or(hint.to_owned()))
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

/// Where a client must listen, if not on the usual port.
fn listening(options: &Serve) -> String {
    let address = options.resolve_to.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
    match options.http_port {
        80 => String::new(),
        port => format!(" --http-listen {}", SocketAddr::new(address, port)),
    }
}

fn announce(call: &Call, options: &Serve, server: &Server, root: &Path) -> Result<(), Failure> {
    let sha256 = Root::parse(server.root_pem().as_bytes())
        .map_err(Failure::unexpected)?
        .sha256();
    let directory = server.directory_url();
    if call.json {
        say_json(serde_json::json!({"directory": directory, "root": root, "sha256": sha256}));
        return Ok(());
    }
    let word = shell_word(&root.display().to_string());
    say(format_args!("directory: {directory}"));
    say(format_args!("root: {}", root.display()));
    say(format_args!("root's SHA-256: {sha256}"));
    let listening = listening(options);
    say(format_args!(
        "try: certs issue NAME --ca {directory} --ca-root {word}{listening}"
    ));
    say(format_args!(
        "to trust the root: certs ca trust --root {word}"
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_to_try_listens_where_the_ca_validates() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            serve: Serve,
        }
        for (arguments, wanted) in [
            ("serve", ""),
            ("serve --resolve-to 127.0.0.1", ""),
            ("serve --http-port 5002", " --http-listen 0.0.0.0:5002"),
            (
                "serve --http-port 5002 --resolve-to ::1",
                " --http-listen [::1]:5002",
            ),
        ] {
            let line: Line = clap::Parser::parse_from(arguments.split(' '));
            assert_eq!(listening(&line.serve), wanted, "{arguments}");
        }
    }

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
