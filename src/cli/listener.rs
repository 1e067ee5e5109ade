//! The listeners of a command for challenges: bound here, or by the service manager.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Call;
use crate::challenge::dns01::responder;
use crate::challenge::http01::{BindError, Listener};
use crate::challenge::responses::Responses;
use crate::config::Settings;
use crate::failure::Failure;
use crate::net::systemd;

/// The listeners for both kinds of challenge that need one.
pub(super) struct Listeners {
    pub(super) http: Option<Listener>,
    dns: Option<responder::Listener>,
}

impl Listeners {
    /// Binds those that `settings` need. Do it before anything is written, so that a port in
    /// use changes nothing.
    pub(super) fn bind(
        call: &Call,
        settings: &Settings,
        responses: &Responses,
    ) -> Result<Self, Failure> {
        Ok(Self {
            http: listener(call, settings, responses)?,
            dns: dns_listener(settings, responses)?,
        })
    }

    /// None: nothing is ordered.
    pub(super) fn none() -> Self {
        let (http, dns) = (None, None);
        Self { http, dns }
    }

    /// Answers challenges until the future is dropped.
    pub(super) async fn serve(self) {
        tokio::select! {
            () = serve_http(self.http) => {}
            () = serve_dns(self.dns) => {}
        }
    }

    /// Answers DNS until the future is dropped, without the other listener.
    pub(super) fn take_dns(&mut self) -> Option<impl Future<Output = ()> + use<>> {
        self.dns.take().map(responder::Listener::serve)
    }
}

fn dns_listener(
    settings: &Settings,
    responses: &Responses,
) -> Result<Option<responder::Listener>, Failure> {
    let Some(addresses) = settings.dns_listen() else {
        return Ok(None);
    };
    let bound = responder::Listener::bind(&addresses, responses.zones().clone());
    let bound = bound.map_err(|(address, error)| {
        let hint = match error.kind() {
            ErrorKind::AddrInUse => {
                "another DNS server has the port: let certs answer at another address of this machine, --dns-listen ADDRESS:53, or use that server with --dns rfc2136"
            }
            ErrorKind::PermissionDenied => {
                "ports below 1024 need CAP_NET_BIND_SERVICE, or root"
            }
            _ => "check the address given with --dns-listen",
        };
        let message = format!("cannot listen on {address} for DNS: {error}");
        Failure::usage(message, hint)
    });
    bound.map(Some)
}

async fn serve_dns(listener: Option<responder::Listener>) {
    match listener {
        Some(listener) => listener.serve().await,
        None => std::future::pending().await,
    }
}

/// The listener to serve while certificates of `settings` are issued. Bind it before
/// anything is written, so that a port in use changes nothing.
fn listener(
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

async fn serve_http(listener: Option<Listener>) {
    match listener {
        Some(listener) => listener.serve().await,
        None => std::future::pending().await,
    }
}
