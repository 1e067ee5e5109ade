//! The listening sockets of this machine's processes, read from /proc. Without root only
//! the processes of our own user are visible.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::{TcpStream, UnixStream};

use super::Stream;
use crate::files::trust;

/// Connections that may wait to be accepted: the kernel's default maximum
/// (`net.core.somaxconn`). If a burst fills the queue, TCP retries after a second.
pub(crate) const BACKLOG: u32 = 4096;

/// In the title of an nginx that obeys signals and `nginx -s`.
pub(crate) const NGINX_MASTER: &str = ": master process ";
pub(crate) const NGINX_WORKER: &str = ": worker process";
/// In the title of a worker that accepts no connections any more.
pub(crate) const NGINX_ENDING: &str = "worker process is shutting down";

/// Where a server of this machine listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ListenAddress {
    /// A port.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
    /// The path of a Unix socket, at which root or this user must listen: the table of the
    /// kernel shows what any user writes into the name of a socket, and a path can be replaced.
    UnixOf(PathBuf, u32),
}

impl ListenAddress {
    /// The address of a port.
    #[must_use]
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) | Self::UnixOf(..) => None,
        }
    }

    /// Connects to it. The ends of the connection are those of TCP.
    ///
    /// # Errors
    /// Those of the connection.
    pub(crate) async fn connect(&self) -> io::Result<(Box<dyn Stream>, Option<Ends>)> {
        match self {
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                let ends = (stream.local_addr()?, stream.peer_addr()?);
                Ok((Box::new(stream), Some(ends)))
            }
            Self::Unix(path) => Ok((Box::new(connect_to(path).await?), None)),
            Self::UnixOf(path, user) => {
                let stream = connect_to(path).await?;
                match stream.peer_cred()?.uid() {
                    0 => {}
                    peer if peer == *user => {}
                    peer => {
                        let why =
                            format!("user {peer} listens there, and not user {user} of the server");
                        return Err(io::Error::other(why));
                    }
                }
                Ok((Box::new(stream), None))
            }
        }
    }
}

/// Waits while a burst fills the queue of the server, as TCP does. The caller bounds the time.
async fn connect_to(path: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            ended => return ended,
        }
    }
}

/// Our address, and that of the server.
pub(crate) type Ends = (SocketAddr, SocketAddr);

impl From<SocketAddr> for ListenAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) | Self::UnixOf(path, _) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A listening socket.
struct Listening {
    address: SocketAddr,
    user: u32,
    /// `socket:[INODE]`, the link target in /proc/PID/fd.
    link: String,
}

/// The program name and process id of the listener that keeps others from `address`.
#[must_use]
pub(crate) fn owner_at(address: SocketAddr) -> Option<(String, u32)> {
    let ip = |of: SocketAddr| of.ip().to_canonical();
    let keeps = |taken: SocketAddr| {
        let is_any = ip(taken).is_unspecified() || ip(address).is_unspecified();
        taken.port() == address.port() && (is_any || ip(taken) == ip(address))
    };
    let mut listening = table(Path::new("/proc/self/net"));
    listening.retain(|socket| keeps(socket.address));
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let open = descriptors(pid).unwrap_or_default();
        if listening.iter().any(|socket| open.contains(&socket.link)) {
            let program = std::fs::read_to_string(process.path().join("comm")).ok()?;
            return Some((program.trim().to_owned(), pid));
        }
    }
    None
}

/// The addresses on which process `pid` can be reached from here; `None` if
/// its sockets are not visible or it runs in another network namespace.
#[must_use]
pub(crate) fn listened_on_by(pid: u32) -> Option<Vec<ListenAddress>> {
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    if namespace(&pid.to_string())? != namespace("self")? {
        return None;
    }
    let open = descriptors(pid)?;
    let found: BTreeSet<SocketAddr> = table(Path::new("/proc/self/net"))
        .into_iter()
        .filter(|socket| open.contains(&socket.link))
        .map(|socket| reachable(socket.address))
        .collect();
    Some(found.into_iter().map(ListenAddress::Tcp).collect())
}

/// The Unix sockets on which process `pid` can be reached from here, by their paths. Those of
/// another root directory are left out: the same path may lead to another server.
#[must_use]
pub(crate) fn unix_sockets_of(pid: u32) -> BTreeSet<ListenAddress> {
    let Some(user) = user_of(pid) else {
        return BTreeSet::new();
    };
    let open = descriptors(pid).unwrap_or_default();
    let table = std::fs::read(format!("/proc/{pid}/net/unix")).unwrap_or_default();
    let table = String::from_utf8_lossy(&table);
    let is_same = |path: &PathBuf| {
        let theirs = format!("/proc/{pid}/root{}", path.display());
        let both = [path.as_path(), Path::new(&theirs)].map(|path| {
            let found = std::fs::metadata(path).ok()?;
            let is_socket = found.file_type().is_socket();
            is_socket.then(|| (found.dev(), found.ino()))
        });
        both[0].is_some() && both[0] == both[1]
    };
    let listening = table.lines().filter_map(listening_at);
    let own = listening.filter(|(_, link)| open.contains(link));
    let own = own.map(|(path, _)| path).filter(is_same);
    own.map(|path| ListenAddress::UnixOf(path, user)).collect()
}

/// The effective user of process `pid`.
fn user_of(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    users.split_whitespace().nth(1)?.parse().ok()
}

/// Parses a line of /proc/net/unix: the absolute path of a listening stream socket, and the
/// target of its link in /proc/PID/fd.
fn listening_at(line: &str) -> Option<(PathBuf, String)> {
    const LISTENS: &str = "00010000";
    const STREAM: &str = "0001";
    let (fields, path) = line.split_once(" /")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let [_, _, _, LISTENS, STREAM, _, inode] = fields.as_slice() else {
        return None;
    };
    Some((format!("/{path}").into(), format!("socket:[{inode}]")))
}

/// The child processes of process `pid`.
#[must_use]
pub(crate) fn children_of(pid: u32) -> BTreeSet<u32> {
    let children = format!("/proc/{pid}/task/{pid}/children");
    let children = std::fs::read_to_string(children).unwrap_or_default();
    let children = children.split_whitespace();
    children.filter_map(|pid| pid.parse().ok()).collect()
}

/// Those with `part` in their title.
#[must_use]
pub(crate) fn children_titled(pid: u32, part: &str) -> BTreeSet<u32> {
    let mut children = children_of(pid);
    children.retain(|pid| title_of(*pid).is_some_and(|title| title.contains(part)));
    children
}

/// The title of process `pid`: its arguments, or what it has written over them.
#[must_use]
pub(crate) fn title_of(pid: u32) -> Option<String> {
    let title = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some(String::from_utf8_lossy(&title).into_owned())
}

/// The user, neither root nor ours, that listens on a port of this machine to which a
/// connection from `own` to `address` may lead. Any user may listen on a port above 1023.
#[must_use]
pub(crate) fn foreign_listener(address: SocketAddr, own: IpAddr) -> Option<u32> {
    // The kernel connects to each address of this machine from that same address.
    let is_here = address.ip().is_loopback() || address.ip() == own;
    let leads_to = |to: IpAddr| {
        let is_any = [
            IpAddr::from(Ipv4Addr::UNSPECIFIED),
            Ipv6Addr::UNSPECIFIED.into(),
        ];
        to.to_canonical() == address.ip().to_canonical() || is_any.contains(&to)
    };
    let listening = table(Path::new("/proc/self/net")).into_iter();
    let mut users = listening
        .filter(|socket| socket.address.port() == address.port() && leads_to(socket.address.ip()))
        .map(|socket| socket.user);
    is_here.then(|| users.find(|user| !trust::is_ours(*user)))?
}

fn descriptors(pid: u32) -> Option<BTreeSet<String>> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let links = entries.flatten().filter_map(|entry| {
        let target = std::fs::read_link(entry.path()).ok()?;
        target.into_os_string().into_string().ok()
    });
    Some(links.filter(|link| link.starts_with("socket:")).collect())
}

/// Whether a socket on `one` also gets the connections to `other`.
pub(crate) fn serves(one: SocketAddr, other: SocketAddr) -> bool {
    let is_everywhere = one.ip().is_unspecified() && one.is_ipv4() == other.is_ipv4();
    one == other || is_everywhere && one.port() == other.port()
}

/// A socket bound to the unspecified address is reached through the loopback.
pub(crate) fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => (Ipv4Addr::LOCALHOST, address.port()).into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => (Ipv6Addr::LOCALHOST, address.port()).into(),
        _ => address,
    }
}

fn table(directory: &Path) -> Vec<Listening> {
    ["tcp", "tcp6"]
        .iter()
        .filter_map(|name| std::fs::read_to_string(directory.join(name)).ok())
        .flat_map(|text| text.lines().filter_map(listening).collect::<Vec<_>>())
        .collect()
}

/// Parses a line of /proc/net/tcp; `None` if the socket is not listening.
fn listening(line: &str) -> Option<Listening> {
    const LISTEN: &str = "0A";
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (ip, port) = fields.get(1)?.split_once(':')?;
    if *fields.get(3)? != LISTEN {
        return None;
    }
    Some(Listening {
        address: SocketAddr::new(ip_of(ip)?, u16::from_str_radix(port, 16).ok()?),
        user: fields.get(7)?.parse().ok()?,
        link: format!("socket:[{}]", fields.get(9)?),
    })
}

/// The kernel prints the address as 32-bit words in the machine's byte order.
fn ip_of(hex: &str) -> Option<IpAddr> {
    let words: Option<Vec<[u8; 4]>> = hex
        .as_bytes()
        .chunks(8)
        .map(|word| {
            let word = std::str::from_utf8(word).ok()?;
            u32::from_str_radix(word, 16).ok().map(u32::to_ne_bytes)
        })
        .collect();
    let bytes = words?.concat();
    if let Ok(v4) = <[u8; 4]>::try_from(bytes.as_slice()) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(bytes.as_slice())
        .ok()
        .map(IpAddr::from)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn listeners_of_own_process_are_found_with_reachable_addresses() {
        let one = TcpListener::bind("127.0.0.1:0").unwrap();
        let any = TcpListener::bind("0.0.0.0:0").unwrap();
        let found = listened_on_by(std::process::id()).unwrap();
        assert!(
            found.contains(&one.local_addr().unwrap().into()),
            "{found:?}"
        );
        let port = any.local_addr().unwrap().port();
        assert!(
            found.contains(&ListenAddress::Tcp((Ipv4Addr::LOCALHOST, port).into())),
            "{found:?}"
        );
        let (program, pid) = owner_at(any.local_addr().unwrap()).unwrap();
        assert_eq!((pid, program.is_empty()), (std::process::id(), false));
    }

    #[test]
    fn unix_sockets_of_own_process_are_found_while_their_files_are_there() {
        use std::os::unix::net::{UnixListener, UnixStream};
        let directory = tempfile::tempdir().unwrap();
        let [served, replaced] = ["a b.sock", "c.sock"].map(|name| directory.path().join(name));
        let _listeners = [&served, &replaced].map(|path| UnixListener::bind(path).unwrap());
        let _connected = UnixStream::connect(&served).unwrap();
        std::fs::remove_file(&replaced).unwrap();
        std::fs::write(&replaced, "").unwrap();
        let user = rustix::process::geteuid().as_raw();
        let mut found = unix_sockets_of(std::process::id());
        let shown = directory.path().display().to_string();
        found.retain(|address| address.to_string().contains(&shown));
        let expected = ListenAddress::UnixOf(served, user);
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [expected]);
    }

    #[tokio::test]
    async fn socket_of_another_user_than_the_servers_is_refused() {
        use rustix::process::Uid;
        use std::os::unix::fs::PermissionsExt;
        use std::os::unix::net::UnixListener;
        const NOBODY: u32 = 65_534;
        let directory = tempfile::tempdir().unwrap();
        let open = PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(directory.path(), open).unwrap();
        let [own, foreign] = ["own", "foreign"].map(|name| directory.path().join(name));
        let _own = UnixListener::bind(&own).unwrap();
        let user = rustix::process::geteuid();
        let is_refused = async |path: &PathBuf, user| {
            let address = ListenAddress::UnixOf(path.clone(), user);
            address.connect().await.is_err()
        };
        assert!(!is_refused(&own, user.as_raw()).await);
        if !user.is_root() {
            return assert!(is_refused(&own, NOBODY).await);
        }
        // Root is trusted in the place of any user.
        assert!(!is_refused(&own, NOBODY).await);
        let path = foreign.clone();
        let bound = std::thread::spawn(move || {
            let other = Uid::from_raw(NOBODY);
            rustix::thread::set_thread_res_uid(None, other, None).unwrap();
            UnixListener::bind(path).unwrap()
        });
        let _foreign = bound.join().unwrap();
        assert!(!is_refused(&foreign, NOBODY).await);
        for user in [0, NOBODY - 1] {
            assert!(is_refused(&foreign, user).await, "{user}");
        }
    }

    #[tokio::test]
    async fn full_queue_of_a_socket_is_waited_for() {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let queue = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        bind(&queue, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        listen(&queue, 0).unwrap();
        let address = ListenAddress::Unix(path);
        let _first = address.connect().await.unwrap();
        let accepting = std::os::unix::net::UnixListener::from(queue);
        let (second, ()) = tokio::join!(address.connect(), async {
            tokio::task::yield_now().await;
            accepting.accept().unwrap();
        });
        second.unwrap();
    }

    #[test]
    fn owner_at_address_is_no_listener_of_another_address() {
        let one = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = one.local_addr().unwrap();
        let other = |ip: &str| SocketAddr::new(ip.parse().unwrap(), taken.port());
        let ours = |at| owner_at(at).is_some_and(|(_, pid)| pid == std::process::id());
        assert!(ours(taken));
        assert!(ours(other("0.0.0.0")) && ours(other("::ffff:127.0.0.1")));
        assert!(!ours(other("127.0.0.2")) && !ours(other("::1")));
    }

    #[test]
    fn table_parses_both_families_and_skips_connections() {
        let line = |local: &str, state: &str| {
            format!(
                "0: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 0 0 4711 1"
            )
        };
        let v6 = listening(&line("00000000000000000000000001000000:01BB", "0A")).unwrap();
        assert_eq!(
            (v6.address, v6.link.as_str()),
            ("[::1]:443".parse().unwrap(), "socket:[4711]")
        );
        let v4 = listening(&line("0100007F:0050", "0A")).unwrap();
        assert_eq!(v4.address, "127.0.0.1:80".parse().unwrap());
        assert!(listening(&line("0100007F:0050", "01")).is_none());
        assert!(listening("sl local_address").is_none());
    }
}
