//! The parts of a client for one CA: its account, and how it is reached.

use std::sync::Arc;

use crate::acme::{AccountSettings, Exchange, Https, InProcess};
use crate::ca;
use crate::config::{CaSettings, Unusable};
use crate::failure::Failure;

/// The registration at a CA.
pub(in super::super) fn account_of(ca: &CaSettings) -> Result<AccountSettings, Failure> {
    let binding = ca.read_binding();
    let binding = binding.map_err(|error| unusable(error, "--eab-hmac-file"))?;
    Ok(AccountSettings {
        email: ca.email.clone(),
        terms_agreed: ca.agree_tos,
        external: binding.map(|(kid, key)| (kid, key.map_err(|error| error.message))),
    })
}

/// The directory's URL and the way to it; `embedded` opens the CA inside this process.
pub(in super::super) fn reached_by(
    ca: &CaSettings,
    embedded: impl FnOnce() -> Result<ca::Server, Failure>,
) -> Result<(String, Arc<dyn Exchange>), Failure> {
    if ca.directory.is_embedded() {
        let server = embedded()?;
        return Ok((server.directory_url(), Arc::new(InProcess(server.router()))));
    }
    let roots = ca.read_root();
    let roots = roots.map_err(|error| unusable(error, "--ca-root"))?;
    let https = Https::new(roots.as_deref()).map_err(invalid)?;
    Ok((ca.directory.identity().to_owned(), Arc::new(https)))
}

pub(in super::super) fn invalid(message: String) -> Failure {
    Failure::usage(message, "check the file of --ca-root")
}

fn unusable(error: Unusable, option: &str) -> Failure {
    let hint = || format!("check the file of {option}: its path, owner and mode");
    Failure::usage(error.message, error.hint.unwrap_or_else(hint))
}
