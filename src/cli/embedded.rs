//! `--ca embedded`: the CA inside this process, reached without a socket under a
//! fixed URL. It validates every name at this machine's challenge listener, so that
//! names need not resolve.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use super::ca::{directory_in, failed};
use crate::ca::{Ports, Resolve, Server, Settings, Validation};
use crate::failure::Failure;
use crate::net::sockets::reachable;
use crate::time::Clock;

pub(super) const BASE_URL: &str = "https://embedded.certs.internal";

/// Opens the CA of `data_dir`. It validates at `answers_at`, or on port 80.
pub(super) fn open(
    data_dir: &Path,
    answers_at: Option<SocketAddr>,
    clock: Arc<dyn Clock>,
) -> Result<Server, Failure> {
    let directory = directory_in(data_dir)?;
    let root = directory.join("root.pem");
    let mut settings = Settings::new(BASE_URL);
    settings.directory = Some(directory);
    let answers_at = answers_at.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, 80).into());
    settings.validation = Validation::Connect {
        ports: Ports::both(answers_at.port()),
        resolve: Resolve::Fixed(reachable(answers_at).ip()),
    };
    let server = Server::new(settings, clock).map_err(|error| failed(&error))?;
    if server.has_new_root() {
        tracing::info!(
            "a new CA was created: clients must trust {}",
            root.display()
        );
    }
    Ok(server)
}
