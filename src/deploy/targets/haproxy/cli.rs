//! HAProxy's command line on its runtime socket, or on the socket of its master, where `@1`
//! begins a command for the worker. HAProxy has one transaction for all certificates, all of
//! its sockets and all of their clients, and HAProxy 2.6 mixes up the pairs of clients that
//! alternate, and replies `Success!`. So all of our tasks and processes take turns.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::process::geteuid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::replies;
use crate::deploy::DeployCause;
use crate::deploy::keys::address::Address;
use crate::net::dns::lookup::Resolver;
use crate::net::{Stream, sockets, unix};
use crate::text::printable;

const REPLY_WITHIN: Duration = Duration::from_secs(10);
const LONGEST_REPLY: u64 = 4 << 20;
const PAUSE: Duration = Duration::from_millis(50);
/// HAProxy refuses commands on certificates while it loads one.
const LOCKED_FOR: Duration = Duration::from_secs(10);
/// The longest time that one transaction stays open between its commands; after it, its
/// client has ended.
const LEFT_OPEN: Duration = Duration::from_secs(5);
/// The longest wait for our turn. Any user of this machine could keep it, so that it is not
/// waited for for ever.
const TURN_WITHIN: Duration = Duration::from_secs(20);
/// The longest wait for the transactions of others.
const TRANSACTION_WITHIN: Duration = Duration::from_secs(20);
const LIST: &str = "show ssl cert";

/// A refusal in HAProxy's words.
pub(super) fn refused(detail: &str) -> DeployCause {
    DeployCause::Refused(printable(detail.trim()))
}

/// A socket that takes commands.
pub(super) struct Cli<'a> {
    socket: &'a Address,
    /// Looks up its host.
    resolver: Resolver,
    /// Begins each command.
    prefix: &'static str,
}

impl<'a> Cli<'a> {
    /// The command line of `socket`, and the names of all certificates.
    pub(super) async fn open(
        socket: &'a Address,
        resolver: &Resolver,
    ) -> Result<(Self, Vec<String>), DeployCause> {
        for prefix in ["", "@1 "] {
            let cli = Self::at(socket, resolver, prefix);
            let reply = cli.command(LIST).await?;
            if !replies::is_unknown(&reply) {
                return Ok((cli, replies::listed(&reply)));
            }
        }
        Err(refused(
            "its socket does not know `show ssl cert`: HAProxy 2.2 or newer is needed",
        ))
    }

    fn at(socket: &'a Address, resolver: &Resolver, prefix: &'static str) -> Self {
        let resolver = resolver.clone();
        Self {
            socket,
            resolver,
            prefix,
        }
    }

    /// The names of all certificates.
    pub(super) async fn names(&self) -> Result<Vec<String>, DeployCause> {
        let reply = self.command(LIST).await?;
        Ok(replies::listed(&reply))
    }

    /// Sends one command, on a connection of its own; repeated while HAProxy is busy.
    pub(super) async fn command(&self, command: &str) -> Result<String, DeployCause> {
        let end = Instant::now() + LOCKED_FOR;
        loop {
            match tokio::time::timeout(REPLY_WITHIN, self.exchange(command)).await {
                Ok(Ok(reply)) if reply.starts_with("Permission denied") => {
                    return Err(refused(
                        "its socket is not of `level admin`: write `stats socket PATH mode 660 level admin`",
                    ));
                }
                Ok(Ok(reply)) if replies::is_locked(&reply) && Instant::now() < end => {
                    tokio::time::sleep(PAUSE).await;
                }
                Ok(Ok(reply)) => return Ok(reply),
                Ok(Err(error)) => return Err(DeployCause::Unreachable(error.to_string())),
                Err(_) => {
                    return Err(DeployCause::Unreachable(format!(
                        "no reply within {} s: it hangs or is stopped",
                        REPLY_WITHIN.as_secs()
                    )));
                }
            }
        }
    }

    /// The process number of HAProxy, as it sees itself.
    pub(super) async fn pid(&self) -> Result<Option<u32>, DeployCause> {
        let info = self.command("show info").await?;
        let pid = info.lines().find_map(|line| line.strip_prefix("Pid: "));
        Ok(pid.and_then(|pid| pid.trim().parse().ok()))
    }

    /// Waits until no other task or process of ours changes certificates of this HAProxy, by
    /// whatever socket: each holds an abstract name, which the kernel frees when it ends.
    pub(super) async fn turn(&self) -> Result<Option<UnixDatagram>, DeployCause> {
        let pid = self.pid().await?.unwrap_or_default();
        let end = Instant::now() + TURN_WITHIN;
        loop {
            let name = SocketAddr::from_abstract_name(format!("certs/haproxy/{pid}"));
            match name.and_then(|name| UnixDatagram::bind_addr(&name)) {
                Ok(turn) => return Ok(Some(turn)),
                Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                    tracing::debug!("no turn at HAProxy's certificates: {error}");
                    return Ok(None);
                }
                Err(_) if Instant::now() >= end => {
                    tracing::warn!(
                        "another process has held its turn at HAProxy's certificates for {} s: it is not waited for",
                        TURN_WITHIN.as_secs()
                    );
                    return Ok(None);
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    async fn exchange(&self, command: &str) -> io::Result<String> {
        let mut stream = connect(self.socket, &self.resolver).await?;
        let line = format!("{}{command}\n", self.prefix);
        // In one write: HAProxy closes as soon as it has parsed the command. Its master
        // waits for the next one until this end is closed.
        stream.write_all(line.as_bytes()).await?;
        // The other end may have closed first.
        let _ = stream.shutdown().await;
        let mut reply = Vec::new();
        stream.take(LONGEST_REPLY).read_to_end(&mut reply).await?;
        Ok(String::from_utf8_lossy(&reply).into_owned())
    }

    /// Replaces the pair of `name` in one transaction. Those of others are waited for, and
    /// one that was left open is aborted.
    pub(super) async fn replace(&self, name: &str, pair: &str) -> Result<(), DeployCause> {
        let payload = replies::without_empty_lines(pair);
        let set = format!("set ssl cert {name} <<\n{payload}");
        let end = Instant::now() + TRANSACTION_WITHIN;
        let mut other: Option<(String, Instant)> = None;
        while Instant::now() < end {
            let listed = self.command(LIST).await?;
            // HAProxy 2.6 mixes up pairs more often if it must refuse a `set`.
            let Some(open) = replies::pending(&listed).filter(|open| *open != name) else {
                let mut reply = self.command(&set).await?;
                if reply.contains("Transaction created") || reply.contains("Transaction updated") {
                    reply = self.command(&format!("commit ssl cert {name}")).await?;
                }
                if reply.contains("Success!") {
                    return Ok(());
                }
                if !replies::is_taken(&reply) {
                    // The refusal is reported, whatever the abort replies.
                    let _ = self.command(&format!("abort ssl cert {name}")).await;
                    return Err(refused(&reply));
                }
                other = None;
                continue;
            };
            let known = other.take().filter(|(known, _)| known == open);
            let (open, since) = known.unwrap_or_else(|| (open.to_owned(), Instant::now()));
            if since.elapsed() > LEFT_OPEN {
                tracing::warn!("HAProxy's transaction for {open} was left open: it is aborted");
                let _ = self.command(&format!("abort ssl cert {open}")).await;
            }
            other = Some((open, since));
            tokio::time::sleep(PAUSE).await;
        }
        let other = other.map_or("other certificates".to_owned(), |(open, _)| open);
        Err(refused(&format!(
            "its transactions for {other} left no time for another within {} s",
            TRANSACTION_WITHIN.as_secs()
        )))
    }
}

/// Whether HAProxy's socket takes connections, and nothing answers there.
pub(super) async fn hangs(socket: &Address, resolver: &Resolver) -> bool {
    let cli = Cli::at(socket, resolver, "");
    let asked = tokio::time::timeout(REPLY_WITHIN, cli.exchange("show info"));
    asked.await.is_err()
}

/// Connects; over TCP on this machine, root sends keys to no port of another user.
async fn connect(socket: &Address, resolver: &Resolver) -> io::Result<Box<dyn Stream>> {
    let address = match socket {
        Address::Unix(path) => return Ok(Box::new(unix::connect(path).await?)),
        Address::Tcp(address) => address,
    };
    let stream = resolver.connect_to(address).await?;
    let foreign = match geteuid().is_root() {
        true => sockets::foreign_listener(stream.peer_addr()?, stream.local_addr()?.ip()),
        false => None,
    };
    match foreign {
        None => Ok(Box::new(stream)),
        Some(user) => Err(io::Error::other(format!(
            "{address}: the process that listens there is of user {user}, and not root's; use a Unix socket in a directory of the server's user"
        ))),
    }
}
