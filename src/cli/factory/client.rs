//! The parts of a client for one CA: its account, and how it is reached.

use std::sync::Arc;

use crate::acme::{AccountSettings, Exchange, Https, InProcess};
use crate::ca;
use crate::config::{CaSettings, Settings, Unusable};
use crate::failure::Failure;
use crate::net::dns::lookup::Resolver;
use crate::net::proxy::{FORMS, Proxies, Proxy, Ways};
use crate::text::printable;

/// The registration at a CA.
pub(in super::super) fn account_of(ca: &CaSettings) -> Result<AccountSettings, Failure> {
    let binding = ca.read_binding();
    let binding = binding.map_err(|error| unusable(error, "--eab-hmac-file"))?;
    Ok(AccountSettings {
        email: ca.email.clone(),
        terms_agreed: ca.agree_tos,
        external: binding.map(|(kid, key)| (kid, key.map_err(|error| error.message))),
        credentials_by_email: ca.directory.credentials_by_email().map(str::to_owned),
    })
}

/// The directory's URL and the way to it; `embedded` opens the CA inside this process.
pub(in super::super) fn reached_by(
    ca: &CaSettings,
    (process, ways): (&Settings, &Arc<Ways>),
    embedded: impl FnOnce() -> Result<ca::Server, Failure>,
) -> Result<(String, Arc<dyn Exchange>), Failure> {
    if ca.directory.is_embedded() {
        let server = embedded()?;
        return Ok((server.directory_url(), Arc::new(InProcess(server.router()))));
    }
    proxy_to(ca, &ways.proxies())?;
    let roots = ca.read_root();
    let roots = roots.map_err(|error| unusable(error, "--ca-root"))?;
    let https = Https::through(ways.clone(), roots.as_deref(), Some(&process.roots));
    let https = https.map_err(invalid)?;
    Ok((ca.directory.identity().to_owned(), Arc::new(https)))
}

/// How the servers of a process with these settings are reached.
pub(in super::super) fn ways_of(process: &Settings) -> Arc<Ways> {
    let resolver = Resolver::new(process.resolver);
    Arc::new(Ways::new(process.proxies.clone(), resolver))
}

/// The proxy to a CA, if there is one.
///
/// # Errors
/// When the environment names one that cannot be used.
pub(in super::super) fn proxy_to<'s>(
    ca: &CaSettings,
    proxies: &'s Proxies,
) -> Result<Option<&'s Proxy>, Failure> {
    if ca.directory.is_embedded() {
        return Ok(None);
    }
    let url = ca.directory.identity().parse::<http::Uri>().ok();
    let host = url.as_ref().and_then(http::Uri::host).unwrap_or_default();
    proxies.to(host).map_err(|why| {
        let hint = format!("set CERTS_PROXY to an HTTP proxy, {FORMS}; CERTS_PROXY=none uses none");
        Failure::usage(printable(why), hint)
    })
}

pub(in super::super) fn invalid(message: String) -> Failure {
    Failure::usage(message, "check the file of --ca-root")
}

fn unusable(error: Unusable, option: &str) -> Failure {
    let hint = || format!("check the file of {option}: its path and its content");
    Failure::usage(error.message, error.hint.unwrap_or_else(hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_zerossl_gives_credentials_for_an_email_address() {
        for (ca, url) in [
            (
                "zerossl",
                Some("https://api.zerossl.com/acme/eab-credentials-email"),
            ),
            ("google", None),
            ("https://ca.test/dir", None),
        ] {
            let settings = CaSettings {
                directory: ca.parse().unwrap(),
                ..CaSettings::default()
            };
            let account = account_of(&settings).unwrap();
            assert_eq!(account.credentials_by_email.as_deref(), url, "{ca}");
        }
    }
}
