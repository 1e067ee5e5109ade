//! The listeners of a new port. What nginx shares among all blocks of an address is decided
//! for that address: an existing one keeps its options, and its other blocks their clients.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::Path;

use super::super::server::{Listen, ServerBlock, is_own, named};
use super::super::syntax::quoted;
use super::{PROBED, Planner, Reach};
use crate::failure::Failure;
use crate::net::sockets::ListenAddress;

/// A listener.
#[derive(Clone, Debug)]
pub(super) struct Listener {
    /// As in [`Listen`].
    address: String,
    port: u16,
    options: Vec<String>,
    is_proxied: bool,
    /// Whether no other block listens there.
    is_new: bool,
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address.as_str() {
            "" => write!(f, "listen {}", self.port)?,
            address => write!(f, "listen {}", quoted(&format!("{address}:{}", self.port)))?,
        }
        for option in &self.options {
            write!(f, " {option}")?;
        }
        f.write_str(";")
    }
}

/// Those of a block.
pub(super) fn existing(listens: &[&Listen]) -> Vec<Listener> {
    let listener = |listen: &&Listen| {
        Some(Listener {
            address: listen.address.clone(),
            port: listen.port?,
            options: Vec::new(),
            is_proxied: listen.is("proxy_protocol"),
            is_new: false,
        })
    };
    listens.iter().filter_map(listener).collect()
}

const EVERY_IPV4: &str = "";
const EVERY_IPV6: &str = "[::]";
const BOTH_FAMILIES: &str = "ipv6only=off";

fn is_ipv6(address: &str) -> bool {
    address.starts_with('[')
}

/// All addresses of its family.
fn every(address: &str) -> &'static str {
    if is_ipv6(address) {
        EVERY_IPV6
    } else {
        EVERY_IPV4
    }
}

impl Planner<'_> {
    /// The TCP listeners of a block on a port.
    pub(super) fn on<'s, 'b>(&self, server: &'s ServerBlock<'b>, port: u16) -> Vec<&'s Listen<'b>> {
        let listens = server.listens.iter();
        let listens = listens.filter(|listen| listen.port == Some(port) && !listen.is("quic"));
        listens.collect()
    }

    fn all_on(&self, port: u16) -> Vec<&Listen<'_>> {
        let servers = self.servers.iter();
        servers.flat_map(|server| self.on(server, port)).collect()
    }

    /// The listeners on `port` by which clients reach a block as by `from`.
    ///
    /// # Errors
    /// When the port has another use.
    pub(super) fn listeners(
        &mut self,
        server: &ServerBlock,
        from: &[&Listen],
        port: u16,
        is_tls: bool,
    ) -> Result<Vec<Listener>, Failure> {
        let others = self.all_on(port);
        let mut added: Vec<Listener> = Vec::new();
        for own in from {
            for address in addresses(own, &others, &self.all_on(own.port.unwrap_or(80))) {
                let known: Vec<&&Listen> =
                    others.iter().filter(|one| one.is_at(&address)).collect();
                if added.iter().any(|one| own_is_at(one, &address)) {
                    continue;
                }
                let mut options = Vec::new();
                options.extend(is_tls.then(|| "ssl".to_owned()));
                let mut is_proxied = known.iter().any(|one| one.is("proxy_protocol"));
                if known.is_empty() {
                    is_proxied = own.is("proxy_protocol");
                    let is_default = own.is("default_server") || own.is("default");
                    options.extend(is_default.then(|| "default_server".to_owned()));
                    options.extend(is_proxied.then(|| "proxy_protocol".to_owned()));
                    let is_for_both =
                        own.is(BOTH_FAMILIES) && !others.iter().any(|one| !is_ipv6(&one.address));
                    options.extend(is_for_both.then(|| BOTH_FAMILIES.to_owned()));
                }
                added.push(Listener {
                    address,
                    port,
                    options,
                    is_proxied,
                    is_new: known.is_empty(),
                });
            }
        }
        for one in &added {
            self.check_use(one, is_tls)?;
            self.keep_default(server, one);
        }
        Ok(added)
    }

    /// Refuses an address that speaks another protocol.
    fn check_use(&self, new: &Listener, is_tls: bool) -> Result<(), Failure> {
        let port = new.port;
        let is_other = |server: &&ServerBlock| {
            let at = self.on(server, port);
            at.iter()
                .any(|listen| listen.is_at(&new.address) && server.speaks_tls(listen) != is_tls)
        };
        if let Some(server) = self.servers.iter().find(is_other) {
            let (place, without) = (
                self.tree.place(server.at),
                if is_tls { "without" } else { "with" },
            );
            return Err(Failure::usage(
                format!(
                    "{place}: this block listens on port {port} {without} TLS, and nginx decides that for all blocks of an address"
                ),
                "move that block to another port",
            ));
        }
        for kind in ["stream", "mail"] {
            let top = self.tree.within(0, &self.tree.files[0].directives);
            for block in named(top, kind) {
                for other in named(self.tree.inside(block), "server") {
                    let listens = named(self.tree.inside(other), "listen")
                        .into_iter()
                        .map(Listen::read);
                    let overlaps = |listen: Listen| {
                        let is_every = [&*listen.address, &new.address]
                            .iter()
                            .any(|one| every(one) == *one || *one == "*");
                        listen.port == Some(port)
                            && !listen.is("udp")
                            && (is_every || listen.is_at(&new.address))
                    };
                    if { listens }.any(overlaps) {
                        let place = self.tree.place(other);
                        return Err(Failure::usage(
                            format!(
                                "{place}: a server of `{kind}` has port {port}; nginx could not listen there for http, and would not start again"
                            ),
                            "move that server to another port or address",
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// The first block of an address is its default: a block that becomes the first must not
    /// take that from another.
    fn keep_default(&mut self, server: &ServerBlock, new: &Listener) {
        let at = |one: &ServerBlock| (one.at.file, one.at.directive.span.start);
        let own = self.servers.iter().position(|one| at(one) == at(server));
        let listens = |one: &ServerBlock| -> Option<usize> {
            one.listens.iter().position(|listen| {
                listen.port == Some(new.port) && listen.is_at(&new.address) && !listen.is("quic")
            })
        };
        let mut known = self
            .servers
            .iter()
            .enumerate()
            .filter_map(|(index, one)| Some((index, one, listens(one)?)));
        let has_default = known.clone().any(|(_, one, at)| {
            let listen = &one.listens[at];
            listen.is("default_server") || listen.is("default")
        });
        let Some((index, first, listen)) = known.next() else {
            return;
        };
        if has_default || own.is_none_or(|own| own > index) {
            return;
        }
        let Some(at) = first.listens[listen].at else {
            return;
        };
        let place = self.tree.place(at);
        if is_own(first, at) {
            let end = at.directive.span.end - 1;
            self.edit(at.file, end..end, " default_server");
            self.done(format!("{place}: default_server, as before by its place"));
        } else {
            self.note(format!(
                "{place}: add default_server to it, since an earlier block now listens there"
            ));
        }
    }

    /// The sockets of listeners.
    pub(super) fn reaches(&self, listeners: &[Listener], names: &[&String]) -> Vec<Reach> {
        let mut found = Vec::new();
        for listener in listeners {
            let taken: Vec<&Listen> = self.all_on(listener.port);
            let is_taken = |ip: &IpAddr| {
                taken
                    .iter()
                    .any(|one| one.is_at(&ip.to_string()) || one.is_at(&format!("[{ip}]")))
            };
            let loopbacks = (1..=254).map(|last| IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)));
            let address = match listener.address.as_str() {
                EVERY_IPV4 | "*" | "0.0.0.0" => { loopbacks }.find(|ip| !is_taken(ip)),
                EVERY_IPV6 => Some(IpAddr::V6(Ipv6Addr::LOCALHOST)).filter(|ip| !is_taken(ip)),
                other => {
                    let resolved =
                        (other.trim_matches(['[', ']']), listener.port).to_socket_addrs();
                    resolved
                        .ok()
                        .and_then(|mut all| all.next())
                        .map(|address| address.ip())
                }
            };
            let Some(address) = address.map(|ip| SocketAddr::new(ip, listener.port)) else {
                continue;
            };
            let every = match listener.address.as_str() {
                EVERY_IPV4 | "*" | "0.0.0.0" => Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
                EVERY_IPV6 => Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
                _ => None,
            };
            let bound = SocketAddr::new(every.unwrap_or(address.ip()), listener.port);
            found.extend(names.iter().map(|name| Reach {
                address: address.into(),
                binds: listener.is_new.then_some(bound),
                is_proxied: listener.is_proxied,
                name: name.replacen("*.", PROBED, 1),
            }));
        }
        found
    }

    pub(super) fn reach_tls(&mut self, server: &ServerBlock, listeners: &[Listener]) {
        let served = self.served(server);
        let first = &served[..served.len().min(1)];
        let reaches = self.reaches(listeners, first);
        let sockets = { server.listens.iter() }.filter(|listen| server.speaks_tls(listen));
        let sockets = sockets.filter_map(|listen| {
            let path = Path::new(listen.address.strip_prefix("unix:")?);
            Some(Reach {
                // Another path is relative to a directory of nginx's own.
                address: ListenAddress::Unix(path.is_absolute().then(|| path.to_owned())?),
                binds: None,
                is_proxied: listen.is("proxy_protocol"),
                name: first.first()?.replacen("*.", PROBED, 1),
            })
        });
        let sockets: Vec<Reach> = sockets.collect();
        self.plan.tls.extend(reaches.into_iter().chain(sockets));
    }
}

fn own_is_at(listener: &Listener, address: &str) -> bool {
    let plain = |text: &str| match text {
        "*" | "0.0.0.0" => String::new(),
        other => other.to_owned(),
    };
    plain(&listener.address) == plain(address)
}

/// The addresses of another port at which clients of `own` are served. `others` listen there,
/// and `beside` on the port of `own`. A more specific address would take the connections of
/// the others, and a less specific one would not get them.
fn addresses(own: &Listen, others: &[&Listen], beside: &[&Listen]) -> Vec<String> {
    let has = |address: &str| others.iter().any(|one| one.is_at(address));
    let is_every = |address: &str| Listen::same(address, EVERY_IPV4) || address == EVERY_IPV6;
    let for_both = others
        .iter()
        .any(|one| one.is_at(EVERY_IPV6) && one.is(BOTH_FAMILIES));
    let has_ipv4 = others.iter().any(|one| !is_ipv6(&one.address));
    let mut wanted = vec![own.address.clone()];
    if own.is(BOTH_FAMILIES) && has_ipv4 {
        wanted.push(EVERY_IPV4.to_owned());
    }
    let mut found = Vec::new();
    for address in wanted {
        let every = every(&address);
        let is_beside = |one: &&Listen| beside.iter().any(|other| other.is_at(&one.address));
        let is_specific =
            |one: &&Listen| !is_every(&one.address) && is_ipv6(&one.address) == is_ipv6(&address);
        let all = others.iter().copied();
        let specific = all.filter(|one| is_every(&address) && is_specific(one) && !is_beside(one));
        let specific: Vec<String> = specific.map(|one| one.address.clone()).collect();
        match has(&address) {
            true => found.push(address.clone()),
            false if for_both && !is_ipv6(&address) => found.push(EVERY_IPV6.to_owned()),
            false if has(every) => found.push(every.to_owned()),
            // A reload cannot bind all addresses beside one of them.
            false if !specific.is_empty() => {}
            false => found.push(address.clone()),
        }
        found.extend(specific);
    }
    found
}
