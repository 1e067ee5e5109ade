//! `certs renew`: one pass over everything that is configured or stored. One
//! certificate that fails stops no other.

use super::Call;
use super::args::Renew;
use super::issue::work;
use super::output::{Failure, say};
use super::parts::{open_store, recall, settings};
use crate::config::{CertificateSettings, Purpose, Settings};
use crate::identifier::Identifier;
use crate::manage::issue::Urge;

/// Renews what is due.
pub(super) async fn renew(call: &Call, options: &Renew) -> Result<(), Failure> {
    let configured = settings(call, &Purpose::All)?;
    // A data directory that is not there yet is not made only to be empty.
    let stored = if configured.data_dir.exists() {
        recall(&open_store(configured.data_dir)?).await?
    } else {
        Vec::new()
    };
    let mut settings = settings(call, &Purpose::Stored(stored))?;
    select(&mut settings, &options.names)?;
    if settings.certificates.is_empty() {
        say("nothing is stored or configured");
        return Ok(());
    }
    let urge = if options.force {
        Urge::Force
    } else {
        Urge::Due
    };
    work(call, &settings, urge).await
}

/// Keeps the certificates that `names` mean: by their own name, or by one
/// that they are for.
fn select(settings: &mut Settings, names: &[String]) -> Result<(), Failure> {
    if names.is_empty() {
        return Ok(());
    }
    let means = |name: &str, certificate: &CertificateSettings| {
        certificate.lineage.as_str() == name
            || Identifier::parse(name).is_ok_and(|name| certificate.names.contains(&name))
    };
    let all = &settings.certificates;
    let unknown = names
        .iter()
        .find(|name| !all.iter().any(|certificate| means(name, certificate)));
    if let Some(name) = unknown {
        return Err(Failure::usage(
            format!("{}: there is no such certificate", name.escape_debug()),
            "certs status lists what is stored; a new one is made by certs issue",
        ));
    }
    settings
        .certificates
        .retain(|certificate| names.iter().any(|name| means(name, certificate)));
    Ok(())
}
