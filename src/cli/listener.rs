//! The challenge listeners of a process: bound here, or by the service manager.

use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::Call;
use crate::challenge::listen::{BindError, Listener};
use crate::challenge::protocol::{Listen, Protocol};
use crate::challenge::responses::Responses;
use crate::config::CertificateSettings;
use crate::failure::Failure;
use crate::manage::CannotOrder;
use crate::net::{sockets, systemd};

/// How long a command waits for another command of ours to release the port.
const LONGEST_WAIT: Duration = Duration::from_secs(120);
/// To an address of this machine.
const LONGEST_CONNECT: Duration = Duration::from_secs(1);
const BETWEEN_TRIES: Duration = Duration::from_millis(250);
/// The further tries where no command of ours is found to have the port.
const UNOWNED_TRIES: u32 = 3;

/// The sockets of a process, and the addresses that it could not get.
#[derive(Default)]
pub(super) struct ChallengeSockets {
    /// One for each protocol.
    pub(super) listeners: Vec<Listener>,
    pub(super) refused: Refused,
    /// The protocols whose sockets the service manager has bound.
    pub(super) passed: Vec<Protocol>,
}

/// The addresses that could not be bound. Only the certificates that need one fail. Clones
/// share them.
#[derive(Clone, Default)]
pub(super) struct Refused(Arc<Mutex<Vec<(Listen, CannotOrder)>>>);

impl Refused {
    fn add(&self, error: &BindError) {
        let cause = CannotOrder {
            why: error.to_string(),
            hint: error.hint().to_owned(),
            only_when_due: true,
        };
        self.all().push((error.listen, cause));
    }

    fn all(&self) -> MutexGuard<'_, Vec<(Listen, CannotOrder)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all().is_empty()
    }

    /// Adds to each hint that `certs run` must start again.
    pub(super) fn at_start(&self) {
        for (_, cause) in self.all().iter_mut() {
            cause.hint += "; then restart certs run";
        }
    }

    /// Tries each address again. Returns the listeners that this process has got by that, and
    /// whether anything is known now that was not before.
    pub(super) async fn retry(&self, responses: &Responses) -> (Vec<Listener>, bool) {
        let (mut got, mut is_new) = (Vec::new(), false);
        let all: Vec<Listen> = self.all().iter().map(|(listen, _)| *listen).collect();
        for listen in all {
            let address = listen.address;
            if let Ok(listener) = Listener::bind(&listen, responses) {
                tracing::info!("listens on {address} by now");
                got.push(listener);
                is_new = true;
                self.all().retain(|(one, _)| *one != listen);
                continue;
            }
            if !is_free(listen).await {
                continue;
            }
            for (_, cause) in self.all().iter_mut().filter(|(one, _)| *one == listen) {
                // The sandbox denies new listeners.
                let now = CannotOrder {
                    why: format!("{address} was taken when certs run started, and is free now"),
                    hint: "restart certs run".to_owned(),
                    ..cause.clone()
                };
                is_new |= *cause != now;
                *cause = now;
            }
        }
        (got, is_new)
    }

    /// Why `settings` cannot be ordered: the first address that their challenges need.
    pub(super) fn cause(&self, settings: &CertificateSettings) -> Option<CannotOrder> {
        self.of(&settings.challenge.listens())
    }

    /// The same for a challenge at these addresses.
    pub(super) fn of(&self, needed: &[Listen]) -> Option<CannotOrder> {
        let refused = self.all();
        let refused = refused.iter().find(|(listen, _)| {
            let meets = |one: &Listen| listen.serves(one) || one.serves(listen);
            needed.iter().any(meets)
        });
        refused.map(|(_, cause)| cause.clone())
    }

    /// The failure of a command that cannot go on for any of its certificates.
    pub(super) fn failure<'a>(
        &self,
        certificates: impl IntoIterator<Item = &'a CertificateSettings>,
    ) -> Option<Failure> {
        let failed = certificates.into_iter().map(|settings| {
            let cause = self.cause(settings)?;
            let message = format!("{}: {}", settings.lineage, cause.why);
            Some((message, cause.hint))
        });
        let failed: Vec<_> = failed.collect::<Option<_>>()?;
        (!failed.is_empty()).then(|| Failure::new(2, failed))
    }
}

/// Whether no program listens there, as far as a connection shows it: none does for UDP.
async fn is_free(listen: Listen) -> bool {
    let near = sockets::reachable(listen.address);
    let connected = tokio::time::timeout(LONGEST_CONNECT, TcpStream::connect(near));
    listen.protocol != Protocol::Dns
        && matches!(connected.await, Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused)
}

/// The listeners to serve while certificates are issued, on the `needed` addresses. Bind
/// them before anything is written, so that a port in use changes nothing.
pub(super) async fn listeners(
    call: &Call,
    needed: &[Listen],
    responses: &Responses,
) -> Result<ChallengeSockets, Failure> {
    let mut bound = ChallengeSockets::default();
    if needed.is_empty() {
        return Ok(bound);
    }
    let mut passed = systemd::listeners(&call.environment)?;
    for protocol in Protocol::ALL {
        let own: Vec<&Listen> = needed
            .iter()
            .filter(|one| one.protocol == protocol)
            .collect();
        let passed = match own.is_empty() {
            true => continue,
            // systemd would have to pass the one of UDP, too.
            false if protocol == Protocol::Dns => Vec::new(),
            false => passed.take(protocol.socket_name(), protocol.port()),
        };
        let listener = match passed.is_empty() {
            true => bound.bind(&own, responses).await,
            false => {
                bound.passed.push(protocol);
                let listener = Listener::from_sockets(protocol, passed, responses);
                Some(listener.map_err(|error| Failure::usage(error.to_string(), error.hint()))?)
            }
        };
        bound.listeners.extend(listener);
    }
    Ok(bound)
}

impl ChallengeSockets {
    /// Binds the addresses of one protocol, as far as that is possible.
    async fn bind(&mut self, needed: &[&Listen], responses: &Responses) -> Option<Listener> {
        let mut listener: Option<Listener> = None;
        for listen in needed {
            match bind(listen, responses).await {
                Ok(one) => {
                    listener = Some(match listener {
                        Some(others) => others.and(one),
                        None => one,
                    });
                }
                // A machine without IPv6 is reached by IPv4 alone.
                Err(error)
                    if error.is_for_lack_of_ipv6()
                        && needed.iter().any(|one| {
                            one.address.is_ipv4() && one.address.port() == listen.address.port()
                        }) => {}
                Err(error) => self.refused.add(&error),
            }
        }
        listener
    }
}

/// Binds an address; while another command of ours has the port, waits for its end.
async fn bind(listen: &Listen, responses: &Responses) -> Result<Listener, BindError> {
    let begun = tokio::time::Instant::now();
    let mut is_announced = false;
    let mut unowned = 0;
    loop {
        let error = match Listener::bind(listen, responses) {
            Err(error) => error,
            bound => return bound,
        };
        let owner = error.owner.as_ref().map(|(_, pid)| *pid);
        match owner.filter(|pid| is_a_command_of_ours(*pid)) {
            Some(pid) if begun.elapsed() < LONGEST_WAIT => {
                if !std::mem::replace(&mut is_announced, true) {
                    let port = listen.address.port();
                    tracing::info!(
                        "waiting up to {} s for port {port}: another certs (pid {pid}) answers challenges there",
                        LONGEST_WAIT.as_secs()
                    );
                }
                tokio::time::sleep(BETWEEN_TRIES).await;
                unowned = 0;
            }
            // Its owner may have ended since.
            _ if unowned < UNOWNED_TRIES => unowned += 1,
            _ => return Err(error),
        }
    }
}

/// Whether that process is a `certs` that soon ends, and so not `certs run`.
fn is_a_command_of_ours(pid: u32) -> bool {
    let read = |pid: &str, name: &str| std::fs::read(format!("/proc/{pid}/{name}")).ok();
    let name = |pid: &str| read(pid, "comm");
    let pid = pid.to_string();
    let arguments = read(&pid, "cmdline").unwrap_or_default();
    let ends = arguments
        .split(|byte| *byte == 0)
        .all(|word| word != b"run");
    let is_other = pid != std::process::id().to_string();
    is_other && ends && name("self").is_some() && name("self") == name(&pid)
}

/// Answers challenges until the future is dropped.
pub(super) async fn serve(listeners: Vec<Listener>) {
    let mut serving: JoinSet<()> = listeners.into_iter().map(Listener::serve).collect();
    if serving.join_next().await.is_none() {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

    use tokio::net::TcpSocket;

    use super::*;

    fn refused(protocol: Protocol, address: SocketAddr) -> Refused {
        let listen = Listen { protocol, address };
        let refused = Refused::default();
        let error = Listener::bind(&listen, &Responses::default()).err();
        refused.add(&error.unwrap());
        refused
    }

    #[tokio::test]
    async fn retry_lets_other_tasks_see_the_refused_addresses() {
        let held = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let refused = refused(Protocol::Http, held.local_addr().unwrap());
        let responses = Responses::default();
        tokio::select! {
            biased;
            _ = refused.retry(&responses) => panic!("blocked the runtime"),
            () = async {} => assert!(refused.0.try_lock().is_ok()),
        }
    }

    #[tokio::test]
    async fn address_without_a_listener_is_free_unless_udp_is_used() {
        let responses = Responses::default();
        // Bound, and not listening.
        let held = TcpSocket::new_v4().unwrap();
        held.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let http = refused(Protocol::Http, held.local_addr().unwrap());
        let (got, is_new) = http.retry(&responses).await;
        assert!(got.is_empty() && is_new);
        assert!(http.all()[0].1.why.ends_with("is free now"));

        // An address that no other test connects from or listens on; TCP has the port free too.
        let own = Ipv4Addr::new(127, 73, 1, 1);
        let tcp = TcpListener::bind((own, 0)).unwrap();
        let held = UdpSocket::bind(tcp.local_addr().unwrap()).unwrap();
        drop(tcp);
        let dns = refused(Protocol::Dns, held.local_addr().unwrap());
        let before = dns.all().clone();
        let (got, is_new) = dns.retry(&responses).await;
        assert!(got.is_empty() && !is_new);
        assert_eq!(*dns.all(), before);
        drop(held);
        let (got, is_new) = dns.retry(&responses).await;
        assert!(got.len() == 1 && is_new && dns.is_empty());
    }
}
