//! Where PostgreSQL is: `postgres://USER:PASSWORD@HOST:PORT/DATABASE?prefix=…`, as for libpq,
//! with `host=/DIRECTORY` for a Unix socket, and some of its variables.

use std::path::PathBuf;

use tokio_postgres::Config;
use tokio_postgres::config::Host;

use super::super::settings::{
    ServerSettings, client_pair, invalid_prefix, is_prefix, is_private, read,
};
use crate::net::dns::lookup::Resolver;
use crate::net::roots::SystemRoots;
use crate::net::secure::{ClientPair, Secure};

const PORT: u16 = 5432;
const MODES: &str = "disable, prefer, require or verify-full";

/// Whether a connection is TLS.
#[derive(Debug)]
pub(super) enum Tls {
    Never,
    /// Where the server offers it.
    Preferred(Secure),
    Always(Secure),
}

/// A server and the place of the documents.
#[derive(Debug)]
pub(super) struct Place {
    /// Its `Debug` hides the password.
    pub(super) config: Config,
    pub(super) prefix: String,
    pub(super) tls: Tls,
    /// Looks up the hosts of its servers.
    pub(super) resolver: Resolver,
}

/// A host to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Server {
    Tcp(String, u16),
    Unix(PathBuf),
}

impl Place {
    /// # Errors
    /// What is invalid, without the password.
    pub(super) fn of(settings: &ServerSettings) -> Result<Self, String> {
        let (url, query) = settings.url.split_once('?').unwrap_or((&settings.url, ""));
        let (mut prefix, mut mode, mut roots) = ("certs", None, None);
        let (mut cert, mut key) = (None, None);
        let mut others = Vec::new();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                Some(("prefix", value)) => prefix = value,
                Some(("sslmode", value)) => mode = Some(value),
                Some(("sslrootcert", value)) => roots = Some(value),
                Some(("sslcert", value)) => cert = Some(value),
                Some(("sslkey", value)) => key = Some(value),
                _ => others.push(part),
            }
        }
        if !is_prefix(prefix) {
            return Err(invalid_prefix(prefix));
        }
        let url = format!("{url}?{}", others.join("&"));
        let mut config: Config = url
            .trim_end_matches('?')
            .parse()
            .map_err(|error| invalid(&error))?;
        if config.get_user().is_none() {
            let user = settings.variable("PGUSER");
            config.user(user.ok_or("it names no user: write postgres://USER@HOST/DATABASE")?);
        }
        if let (None, Some(password)) = (config.get_password(), settings.variable("PGPASSWORD")) {
            config.password(password);
        }
        if config.get_hosts().is_empty() {
            return Err("it names no host: write postgres://USER@HOST/DATABASE, or ?host=/DIRECTORY of a socket".to_owned());
        }
        config.application_name("certs");
        // The handshake is ours.
        config.ssl_mode(tokio_postgres::config::SslMode::Disable);
        let mode = mode.or_else(|| settings.variable("PGSSLMODE"));
        let roots = roots.or_else(|| settings.variable("PGSSLROOTCERT"));
        let cert = ("sslcert", cert.or_else(|| settings.variable("PGSSLCERT")));
        let key = ("sslkey", key.or_else(|| settings.variable("PGSSLKEY")));
        let pair = client_pair(cert, key)?;
        let tls = tls(mode, roots, pair.as_ref(), settings, &config)?;
        let prefix = prefix.to_owned();
        Ok(Self {
            config,
            prefix,
            tls,
            resolver: settings.resolver.clone(),
        })
    }

    /// The servers, to be tried in turn.
    pub(super) fn servers(&self) -> Vec<Server> {
        let ports = self.config.get_ports();
        let port = |at: usize| {
            ports
                .get(at)
                .or_else(|| ports.first())
                .copied()
                .unwrap_or(PORT)
        };
        let hosts = self.config.get_hosts().iter().enumerate();
        let servers = hosts.map(|(at, host)| match host {
            Host::Tcp(name) => Server::Tcp(name.clone(), port(at)),
            Host::Unix(path) => Server::Unix(path.join(format!(".s.PGSQL.{}", port(at)))),
        });
        servers.collect()
    }
}

/// Why the URL is invalid. The text of the error has names of parameters, and no value.
fn invalid(error: &tokio_postgres::Error) -> String {
    let cause = std::error::Error::source(error).map(ToString::to_string);
    cause.unwrap_or_else(|| "invalid URL".to_owned())
}

/// The mode `sslmode`. What is stored is sealed, but a third party on the way could replay old
/// documents: outside a private network the default verifies the server, unlike that of libpq.
fn tls(
    mode: Option<&str>,
    roots: Option<&str>,
    pair: Option<&ClientPair>,
    settings: &ServerSettings,
    config: &Config,
) -> Result<Tls, String> {
    let is_near = config.get_hosts().iter().all(|host| match host {
        Host::Tcp(name) => is_private(name),
        Host::Unix(_) => true,
    });
    let default = if is_near { "prefer" } else { "verify-full" };
    Ok(match mode.unwrap_or(default) {
        weak @ ("disable" | "prefer") if !is_near => {
            return Err(format!(
                "sslmode={weak}: without TLS the server must be in a private network"
            ));
        }
        "disable" => Tls::Never,
        "prefer" => Tls::Preferred(Secure::unverified(pair)?),
        "require" => Tls::Always(Secure::unverified(pair)?),
        "verify-full" => {
            let pem = roots.map(|file| read(("sslrootcert", file))).transpose()?;
            let pem = pem.as_ref().map(|pem| pem.expose().as_bytes());
            let system = SystemRoots::of(&settings.environment);
            Tls::Always(Secure::verified(pem, &system, pair)?)
        }
        _ => return Err(format!("sslmode is {MODES}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::proxy::Proxies;

    fn place(url: &str, variables: &[(&str, &str)]) -> Result<Place, String> {
        let pairs = variables.iter();
        Place::of(&ServerSettings {
            url: url.to_owned(),
            environment: pairs
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect(),
            proxies: Proxies::default(),
            resolver: Default::default(),
        })
    }

    #[test]
    fn url_names_servers_prefix_and_user() {
        let found = place(
            "postgres://us%40er:hid%2Fden@db:6432/certs?prefix=a/b&sslmode=disable",
            &[],
        )
        .unwrap();
        assert_eq!(found.servers(), [Server::Tcp("db".to_owned(), 6432)]);
        assert_eq!(
            (found.prefix.as_str(), found.config.get_user()),
            ("a/b", Some("us@er"))
        );
        assert_eq!(found.config.get_password(), Some(&b"hid/den"[..]));
        assert!(!format!("{found:?}").contains("hid/den"), "{found:?}");
        let variables = [
            ("PGUSER", "me"),
            ("PGPASSWORD", "hidden"),
            ("PGSSLMODE", "require"),
        ];
        let found = place("postgresql://10.0.0.1,10.0.0.2/certs", &variables).unwrap();
        let hosts = ["10.0.0.1", "10.0.0.2"].map(|host| Server::Tcp(host.to_owned(), 5432));
        assert_eq!(found.servers(), hosts);
        assert_eq!(found.prefix, "certs");
        assert_eq!(found.config.get_password(), Some(&b"hidden"[..]));
        assert!(matches!(found.tls, Tls::Always(_)), "{found:?}");
        for url in [
            "postgres://me@%2Frun%2Fpg/certs",
            "postgres:///certs?user=me&host=/run/pg",
        ] {
            let found = place(url, &[]).unwrap();
            assert_eq!(
                found.servers(),
                [Server::Unix("/run/pg/.s.PGSQL.5432".into())]
            );
        }
    }

    #[test]
    fn server_outside_a_private_network_is_verified() {
        let of = |url: &str| place(url, &[]).unwrap().tls;
        assert!(matches!(
            of("postgres://me@db.example.com/certs"),
            Tls::Always(_)
        ));
        for near in [
            "postgres://me@db/c",
            "postgres://me@127.0.0.1/c",
            "postgres://me@%2Frun/c",
        ] {
            assert!(matches!(of(near), Tls::Preferred(_)), "{near}");
        }
        let far = place("postgres://me@db.example.com/certs?sslmode=disable", &[]);
        assert!(far.is_err());
        let near = of("postgres://me@db/certs?sslmode=disable");
        assert!(matches!(near, Tls::Never));
    }

    #[test]
    fn invalid_urls_are_refused_without_the_password() {
        for (url, words) in [
            ("postgres://db/certs", "names no user"),
            ("postgres://me:hidden@db/c?prefix=../x", "prefix"),
            ("postgres://me:hidden@db/c?sslmode=verify-ca", "verify-full"),
            ("postgres://me:hidden@db:port/c", "port"),
            (
                "postgres://me:hidden@db/c?sslcert=x",
                "sslcert without sslkey",
            ),
            ("postgres://me:hidden@db/c?sslcrl=x", "sslcrl"),
            ("postgres:///c?user=me", "names no host"),
            (
                "postgres://me:hidden@db/c?sslmode=verify-full&sslrootcert=/absent",
                "/absent",
            ),
        ] {
            let why = place(url, &[]).unwrap_err();
            assert!(
                why.contains(words) && !why.contains("hidden"),
                "{url}: {why}"
            );
        }
    }
}
