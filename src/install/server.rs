//! The server blocks of a configuration: their names, their listeners, and their
//! directives for TLS and challenges.

use std::collections::BTreeSet;

use super::tree::{Placed, Tree};
use crate::failure::Failure;
use crate::identifier::Identifier;

/// The path of HTTP-01 answers.
pub(crate) const CHALLENGES: &str = "/.well-known/acme-challenge/";

/// A `server` block of `http`.
#[derive(Debug)]
pub(crate) struct ServerBlock<'a> {
    /// The block itself.
    pub at: Placed<'a>,
    /// Its directives, including those of included files.
    pub directives: Vec<Placed<'a>>,
    /// Directives of `http` that hold here, if the block has none of that name.
    inherited: Vec<Placed<'a>>,
    /// Every `server_name`, in lower case and in A-labels.
    pub names: Vec<String>,
    /// Every `listen`; nginx's default if there is none.
    pub listens: Vec<Listen<'a>>,
}

/// A listener of a block.
#[derive(Clone, Debug)]
pub(crate) struct Listen<'a> {
    /// The directive; `None` for nginx's default.
    pub at: Option<Placed<'a>>,
    /// The address without the port: empty for all of IPv4, `[::]`, `127.0.0.1`, a name.
    pub address: String,
    /// `None` for a Unix socket.
    pub port: Option<u16>,
    /// The options after the address.
    pub options: Vec<String>,
}

impl<'a> Listen<'a> {
    pub(super) fn read(at: Placed<'a>) -> Self {
        let mut arguments = at.directive.arguments();
        let (address, port) = address(arguments.next().unwrap_or_default());
        Self {
            at: Some(at),
            address,
            port,
            options: arguments.map(str::to_owned).collect(),
        }
    }

    /// Whether it has this option.
    #[must_use]
    pub(crate) fn is(&self, option: &str) -> bool {
        self.options.iter().any(|one| one == option)
    }

    /// Whether it is the same address, however it is written.
    #[must_use]
    pub(crate) fn is_at(&self, address: &str) -> bool {
        Self::same(&self.address, address)
    }

    /// Whether both are the same address.
    #[must_use]
    pub(super) fn same(one: &str, other: &str) -> bool {
        let plain = |text: &str| match text {
            "*" | "0.0.0.0" => String::new(),
            other => other.to_ascii_lowercase(),
        };
        plain(one) == plain(other)
    }
}

impl<'a> ServerBlock<'a> {
    /// Every `server` block of a configuration, in nginx's order.
    #[must_use]
    pub(crate) fn all(tree: &'a Tree) -> Vec<Self> {
        let mut seen = BTreeSet::new();
        let mut servers = Vec::new();
        for http in named(tree.within(0, &tree.files[0].directives), "http") {
            let all = tree.inside(http);
            let inherited = all.iter().copied();
            let inherited = inherited.filter(|one| INHERITED.contains(&one.directive.name()));
            let inherited: Vec<_> = inherited.collect();
            for at in named(all, "server") {
                // A block that is included twice is edited once.
                if at.directive.block.is_some() && seen.insert((at.file, at.directive.span.start)) {
                    servers.push(Self::read(tree, at, inherited.clone()));
                }
            }
        }
        servers
    }

    fn read(tree: &'a Tree, at: Placed<'a>, inherited: Vec<Placed<'a>>) -> Self {
        let mut server = Self {
            at,
            inherited,
            directives: tree.inside(at),
            names: Vec::new(),
            listens: Vec::new(),
        };
        let names = server.of("server_name");
        let names = names.flat_map(|one| one.directive.arguments());
        let mut seen = BTreeSet::new();
        let names = names.flat_map(each_name).collect::<Vec<_>>().into_iter();
        server.names = names.filter(|name| seen.insert(name.clone())).collect();
        server.listens = server.of("listen").map(Listen::read).collect();
        if server.listens.is_empty() {
            server.listens.push(Listen {
                at: None,
                address: String::new(),
                port: Some(80),
                options: Vec::new(),
            });
        }
        server
    }

    /// Whether it has exactly this name.
    #[must_use]
    pub(crate) fn is_named(&self, name: &str) -> bool {
        self.names.iter().any(|own| own == name)
    }

    /// Its pattern that matches this host, if there is one.
    #[must_use]
    pub(crate) fn pattern_for(&self, host: &str) -> Option<&str> {
        let fits = |name: &&String| {
            let begins = name.strip_suffix(".*");
            let ends = name.strip_prefix('*');
            begins.is_some_and(|begin| host.starts_with(&format!("{begin}.")))
                || ends.is_some_and(|end| host.ends_with(end) && host.len() > end.len())
        };
        self.names.iter().find(fits).map(String::as_str)
    }

    /// Whether it listens on a port, and not on Unix sockets alone.
    #[must_use]
    pub(crate) fn is_on_a_port(&self) -> bool {
        self.listens.iter().any(|listen| listen.port.is_some())
    }

    /// Whether any of its listeners has TLS.
    #[must_use]
    pub(crate) fn has_tls(&self) -> bool {
        self.listens.iter().any(|listen| self.speaks_tls(listen))
    }

    /// Whether this listener of it has TLS.
    #[must_use]
    pub(super) fn speaks_tls(&self, listen: &Listen) -> bool {
        listen.is("ssl") || self.of("ssl").any(|one| one.directive.argument() == "on")
    }

    /// Its directives of this name.
    pub(crate) fn of<'b>(&'b self, name: &'b str) -> impl Iterator<Item = Placed<'a>> + 'b {
        let directives = self.directives.iter().copied();
        directives.filter(move |one| one.directive.name() == name)
    }

    /// Directives of `http` of this name.
    pub(super) fn inherited<'b>(&'b self, name: &'b str) -> impl Iterator<Item = Placed<'a>> + 'b {
        let inherited = self.inherited.iter().copied();
        inherited.filter(move |one| one.directive.name() == name)
    }

    /// Its location for all challenges.
    #[must_use]
    pub(crate) fn challenges(&self) -> Option<Placed<'a>> {
        let prefix = CHALLENGES.trim_end_matches('/');
        let is_for = |one: &Placed| {
            let arguments: Vec<&str> = one.directive.arguments().collect();
            match arguments.as_slice() {
                [path] | ["^~", path] => path.trim_end_matches('/') == prefix,
                ["~" | "~*", pattern] => {
                    let plain = pattern.replace('\\', "");
                    plain.trim_start_matches('^').starts_with(prefix)
                }
                // A location with `=` is for one token.
                _ => false,
            }
        };
        self.of("location").find(is_for)
    }
}

/// The names of directives that a block inherits, as far as they matter here.
const INHERITED: [&str; 3] = ["root", "auth_request", "ssl_certificate"];

/// The names of a `server_name` as clients send them: `.example.com` is `example.com` and
/// `*.example.com`.
fn each_name(name: &str) -> Vec<String> {
    let name = name.to_lowercase();
    let base = name.strip_prefix('.');
    let label = match Identifier::parse(base.unwrap_or(&name)) {
        Ok(parsed) if !name.is_ascii() => parsed.to_string(),
        _ => base.unwrap_or(&name).to_owned(),
    };
    match base {
        Some(_) => vec![label.clone(), format!("*.{label}")],
        None => vec![label],
    }
}

/// Those of this name.
pub(super) fn named<'a>(all: Vec<Placed<'a>>, name: &str) -> Vec<Placed<'a>> {
    let all = all.into_iter();
    all.filter(|one| one.directive.name() == name).collect()
}

/// Parses `80`, `*:80`, `[::]:80`, `[::1]`, `127.0.0.1`, `localhost:80`, `unix:PATH`; a range
/// of ports yields its first.
fn address(text: &str) -> (String, Option<u16>) {
    if text.starts_with("unix:") {
        return (text.to_owned(), None);
    }
    let first = |port: &str| port.split('-').next().and_then(|port| port.parse().ok());
    if let Some(port) = first(text) {
        return (String::new(), Some(port));
    }
    match text.rsplit_once(':') {
        Some((address, port)) if !port.contains(']') => (address.to_owned(), first(port)),
        _ => (text.to_owned(), Some(80)),
    }
}

/// The names of all blocks that `--domain` takes, for messages.
#[must_use]
pub(crate) fn list_names(servers: &[ServerBlock]) -> Option<String> {
    let names = servers.iter().flat_map(|server| &server.names);
    let names: BTreeSet<_> = names
        .filter(|name| Identifier::parse(name).is_ok())
        .collect();
    let shown: Vec<_> = names.iter().take(50).map(|name| name.as_str()).collect();
    match names.len() - shown.len() {
        _ if shown.is_empty() => None,
        0 => Some(shown.join(", ")),
        more => Some(format!("{} and {more} more", shown.join(", "))),
    }
}

/// The blocks of this name. An error lists the existing names, or the pattern that
/// matches the name.
pub(crate) fn find<'t, 's>(
    tree: &Tree,
    servers: &'s [ServerBlock<'t>],
    name: &str,
) -> Result<Vec<&'s ServerBlock<'t>>, Failure> {
    let all = servers.iter();
    let found: Vec<_> = all.filter(|server| server.is_named(name)).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    for server in servers {
        if let Some(pattern) = server.pattern_for(name) {
            let place = tree.place(server.at);
            return Err(Failure::usage(
                format!(
                    "{name}: only the pattern `{pattern}` at {place} matches it, and that block serves other names, too"
                ),
                format!(
                    "give {name} a server block of its own, or add it to that block's server_name"
                ),
            ));
        }
    }
    let mut names = servers.iter().flat_map(|server| &server.names);
    let untried = match names.any(|name| name.starts_with('~')) {
        true => "; regular expressions are not tried",
        false => "",
    };
    Err(Failure::usage(
        format!(
            "{name}: no server block has this name; the names are: {}{untried}",
            list_names(servers).unwrap_or_else(|| "(none)".to_owned())
        ),
        format!(
            "add `server_name {name};` to its block, or write a new site with --site --root DIR"
        ),
    ))
}

/// Whether the directive is inside the braces of `server`, in the same file.
#[must_use]
pub(crate) fn is_own(server: &ServerBlock, placed: Placed) -> bool {
    let (outer, inner) = (&server.at.directive.span, &placed.directive.span);
    server.at.file == placed.file && outer.start < inner.start && inner.end < outer.end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_addresses_are_read_in_every_form() {
        for (text, expected, port) in [
            ("80", "", Some(80)),
            ("*:8080", "*", Some(8080)),
            ("[::]:80", "[::]", Some(80)),
            ("[::1]", "[::1]", Some(80)),
            ("127.0.0.1", "127.0.0.1", Some(80)),
            ("localhost:81", "localhost", Some(81)),
            ("8000-8005", "", Some(8000)),
            ("unix:/run/x.sock", "unix:/run/x.sock", None),
        ] {
            assert_eq!(address(text), (expected.to_owned(), port), "{text}");
        }
    }
}
