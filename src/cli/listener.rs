//! The HTTP-01 listener of a process: bound here, or by the service manager.

use std::net::SocketAddr;
use std::time::Duration;

use super::Call;
use crate::challenge::http01::{BindError, Listener};
use crate::challenge::responses::Responses;
use crate::config::CertificateSettings;
use crate::failure::Failure;
use crate::manage::CannotOrder;
use crate::net::sockets::serves;
use crate::net::systemd;

/// How long a command waits for another command of ours to release the port.
const LONGEST_WAIT: Duration = Duration::from_secs(120);
const BETWEEN_TRIES: Duration = Duration::from_millis(250);

/// The sockets of a process, and the addresses that it could not get.
#[derive(Default)]
pub(super) struct ChallengeSockets {
    pub(super) listener: Option<Listener>,
    pub(super) refused: Refused,
}

/// The addresses that could not be bound. Only the certificates that need one fail.
#[derive(Default)]
pub(super) struct Refused(Vec<(SocketAddr, CannotOrder)>);

impl Refused {
    fn add(&mut self, error: &BindError) {
        let cause = CannotOrder {
            why: error.to_string(),
            hint: error.hint().to_owned(),
            only_when_due: true,
        };
        self.0.push((error.address, cause));
    }

    /// Why `settings` cannot be ordered: the first address that their challenges need.
    pub(super) fn cause(&self, settings: &CertificateSettings) -> Option<&CannotOrder> {
        self.of(settings.challenge.http_listen()?)
    }

    /// The same for a challenge at these addresses.
    pub(super) fn of(&self, needed: &[SocketAddr]) -> Option<&CannotOrder> {
        let mut refused = self.0.iter();
        let refused = refused.find(|(address, _)| {
            let meets = |one: &SocketAddr| serves(*address, *one) || serves(*one, *address);
            needed.iter().any(meets)
        });
        refused.map(|(_, cause)| cause)
    }

    /// The failure of a command that cannot go on for any of its certificates.
    pub(super) fn failure<'a>(
        &self,
        certificates: impl IntoIterator<Item = &'a CertificateSettings>,
    ) -> Option<Failure> {
        let failed = certificates.into_iter().map(|settings| {
            let cause = self.cause(settings)?;
            let message = format!("{}: {}", settings.lineage, cause.why);
            Some((message, cause.hint.clone()))
        });
        let failed: Vec<_> = failed.collect::<Option<_>>()?;
        (!failed.is_empty()).then(|| Failure::new(2, failed))
    }
}

/// The listener to serve while certificates are issued, on the `needed` addresses. Bind it
/// before anything is written, so that a port in use changes nothing.
pub(super) async fn listener(
    call: &Call,
    needed: Option<Vec<SocketAddr>>,
    responses: &Responses,
) -> Result<ChallengeSockets, Failure> {
    let Some(needed) = needed else {
        return Ok(ChallengeSockets::default());
    };
    let passed = systemd::listeners(&call.environment)?;
    if !passed.is_empty() {
        let listener = Listener::from_sockets(passed, responses.clone());
        let listener = listener.map_err(|error| Failure::usage(error.to_string(), error.hint()));
        return Ok(ChallengeSockets {
            listener: Some(listener?),
            refused: Refused::default(),
        });
    }
    let mut bound = ChallengeSockets::default();
    for address in &needed {
        match bind(*address, responses).await {
            Ok(one) => {
                bound.listener = Some(match bound.listener.take() {
                    Some(others) => others.and(one),
                    None => one,
                });
            }
            // A machine without IPv6 is reached by IPv4 alone.
            Err(error)
                if error.is_for_lack_of_ipv6()
                    && needed
                        .iter()
                        .any(|one| one.is_ipv4() && one.port() == address.port()) => {}
            Err(error) => bound.refused.add(&error),
        }
    }
    Ok(bound)
}

/// Binds `address`; while another command of ours has the port, waits for its end.
async fn bind(address: SocketAddr, responses: &Responses) -> Result<Listener, BindError> {
    let begun = tokio::time::Instant::now();
    let mut is_announced = false;
    loop {
        let error = match Listener::bind(&[address], responses.clone()) {
            Err(error) => error,
            bound => return bound,
        };
        let owner = error.owner.as_ref().map(|(_, pid)| *pid);
        match owner.filter(|pid| is_a_command_of_ours(*pid)) {
            Some(pid) if begun.elapsed() < LONGEST_WAIT => {
                if !std::mem::replace(&mut is_announced, true) {
                    let port = address.port();
                    tracing::info!(
                        "waiting up to {} s for port {port}: another certs (pid {pid}) answers challenges there",
                        LONGEST_WAIT.as_secs()
                    );
                }
                tokio::time::sleep(BETWEEN_TRIES).await;
            }
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
    ends && name("self").is_some() && name("self") == name(&pid)
}

/// Answers challenges until the future is dropped.
pub(super) async fn serve(listener: Option<Listener>) {
    match listener {
        Some(listener) => listener.serve().await,
        None => std::future::pending().await,
    }
}
