//! The HTTP-01 listener of a command: bound here, or by the service manager.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Call;
use crate::challenge::http01::{BindError, Listener};
use crate::challenge::responses::Responses;
use crate::config::Settings;
use crate::failure::Failure;
use crate::net::systemd;

/// The listener to serve while certificates of `settings` are issued. Bind it before
/// anything is written, so that a port in use changes nothing.
pub(super) fn listener(
    call: &Call,
    settings: &Settings,
    responses: &Responses,
) -> Result<Option<Listener>, Failure> {
    let Some(addresses) = settings.http_listen() else {
        return Ok(None);
    };
    let passed = systemd::listeners(&call.environment)?;
    let bound = match passed.is_empty() {
        true => bind(&addresses, responses),
        false => Listener::from_sockets(passed, responses.clone()),
    };
    let listener = bound.map_err(|error| Failure::usage(error.to_string(), error.hint()))?;
    Ok(Some(listener))
}

fn bind(addresses: &[SocketAddr], responses: &Responses) -> Result<Listener, BindError> {
    if !addresses.is_empty() {
        return Listener::bind(addresses, responses.clone());
    }
    let everywhere = [
        (Ipv4Addr::UNSPECIFIED, 80).into(),
        (Ipv6Addr::UNSPECIFIED, 80).into(),
    ];
    // A machine without IPv6 has only the first.
    match Listener::bind(&everywhere, responses.clone()) {
        Err(error) if error.is_for_lack_of_ipv6() => {
            Listener::bind(&everywhere[..1], responses.clone())
        }
        bound => bound,
    }
}

/// Answers challenges until the future is dropped.
pub(super) async fn serve(listener: Option<Listener>) {
    match listener {
        Some(listener) => listener.serve().await,
        None => std::future::pending().await,
    }
}
