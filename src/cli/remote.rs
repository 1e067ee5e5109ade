//! The CAs at which a command acts without a certificate: the one that it names, else
//! those with a stored account; and a client for each.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Call;
use super::catalog::{as_stored, existing_store, recall};
use super::embedded;
use super::factory::{account_of, invalid, reached_by, ways_of};
use crate::acme::{Client, ClientSettings};
use crate::config::{CaSettings, DirectoryUrl, Purpose, Settings};
use crate::failure::Failure;
use crate::store::Store;
use crate::time::SystemClock;

/// The settings of every known CA, by the key of its account.
pub(super) type KnownCas = BTreeMap<String, CaSettings>;

/// The CAs of all configured and stored certificates.
async fn known(call: &Call, settings: &Settings) -> Result<KnownCas, Failure> {
    let mut certificates = call.sources.settings(&Purpose::All)?.certificates;
    for (_, stored) in recall(&call.sources, settings)? {
        certificates.extend(stored.ok());
    }
    // What an option sets here is not theirs, such as the root of another CA.
    certificates.extend(as_stored(&call.sources, settings));
    let cas = certificates
        .into_iter()
        .flat_map(|one| [Some(one.ca.clone()), one.fallback.clone()])
        .flatten()
        .map(|ca| (ca.directory.identity().to_owned(), ca));
    Ok(cas.collect())
}

/// The CAs with a stored account that the command means: that of `--ca`, else all of them.
///
/// # Errors
/// When there is none.
pub(super) async fn with_account(
    call: &Call,
    settings: &Settings,
) -> Result<(Arc<dyn Store>, Vec<CaSettings>), Failure> {
    let (given, is_named) = call.sources.ca_settings()?;
    let shown = settings.data_dir.display();
    let none = |of: &str| {
        Failure::usage(
            format!("no account{of} is stored in {shown}"),
            "certs issue NAME registers one; certs account import FILE takes an existing key; root's data directory may be another: --data-dir DIR",
        )
    };
    let store = existing_store(settings.data_dir.clone())?;
    let store = store.ok_or_else(|| none(""))?;
    let mut all = known(call, settings).await?;
    let identity = given.directory.identity().to_owned();
    if is_named {
        all.retain(|ca, _| *ca == identity);
        all.entry(identity).or_insert_with(|| given.clone());
    } else {
        for url in store.account_urls().map_err(Failure::on("accounts"))? {
            if let Ok(directory) = url.parse::<DirectoryUrl>()
                && !url.starts_with(embedded::BASE_URL)
            {
                let ca = CaSettings {
                    directory,
                    ..CaSettings::default()
                };
                all.entry(ca.directory.identity().to_owned()).or_insert(ca);
            }
        }
    }
    if let Some(fleet) = &call.fleet {
        for ca in all.keys() {
            // Copied from the fleet's store.
            fleet.account(ca).await.map_err(Failure::on("accounts"))?;
        }
    }
    all.retain(|ca, _| store.has_account(ca));
    if all.is_empty() {
        let of = match is_named {
            true => format!(" of {}", given.directory),
            false => String::new(),
        };
        return Err(none(&of));
    }
    let all = all.into_values().map(|ca| over(ca, &given));
    Ok((call.store(settings)?, all.collect()))
}

/// `ca` with what the command gives.
fn over(ca: CaSettings, given: &CaSettings) -> CaSettings {
    CaSettings {
        root: given.root.clone().or(ca.root),
        email: given.email.clone().or(ca.email),
        agree_tos: given.agree_tos || ca.agree_tos,
        ..ca
    }
}

/// The CA of `--ca` or the configuration, with what is known of it.
pub(super) async fn named(call: &Call, settings: &Settings) -> Result<CaSettings, Failure> {
    let (given, _) = call.sources.ca_settings()?;
    let mut all = known(call, settings).await?;
    let known = all.remove(given.directory.identity());
    Ok(over(known.unwrap_or_else(|| given.clone()), &given))
}

/// A client without solvers: it orders nothing. A changed e-mail address is sent only when
/// a command says so.
pub(super) fn client(settings: &Settings, ca: &CaSettings) -> Result<Client, Failure> {
    let clock = Arc::new(SystemClock);
    let (directory, exchange) = reached_by(ca, (settings, &ways_of(settings)), || {
        embedded::open(&settings.data_dir, None, clock.clone())
    })?;
    let mut account = account_of(ca)?;
    account.email = None;
    let client = Client::new(ClientSettings {
        directory,
        account,
        exchange,
        solvers: Vec::new(),
        limiters: Arc::default(),
        clock,
        observer: Arc::new(()),
        preferred_chain: None,
        notice: None,
    });
    client.map_err(invalid)
}
