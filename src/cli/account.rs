//! `certs account`: the accounts at CAs, one for each CA of the data directory. A running
//! sidecar reads a changed account from the store before its next order.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::Call;
use super::output::{say, say_json};
use super::{remote, revoke};
use crate::acme::{AccountChange, AccountState, Client, ForeignKey, foreign_account};
use crate::acme::{is_registered, is_same_account};
use crate::config::{
    ACCOUNT, CaSettings, CertificateSettings, KeyOptions, Options, Settings, SharedSettings, UPDATE,
};
use crate::failure::Failure;
use crate::lineage::Lineage;
use crate::manage::rehearse::AccountJournal;
use crate::store::Store;

const UPDATE_KEYS: u8 = ACCOUNT | UPDATE;

/// Shows and changes the accounts at CAs.
#[derive(Debug, Subcommand)]
pub(super) enum Account {
    /// Show each account: its URL, status, contacts, the thumbprint of its key, its external account
    #[command(after_help = "Example: certs account show --ca letsencrypt")]
    Show(Which),
    /// Send an e-mail address (--email), or agree to the CA's terms again (--agree-tos)
    #[command(after_help = "Example: certs account update --email admin@example.com")]
    Update(Update),
    /// Give the account a new key; a crash loses neither key
    #[command(after_help = "Example: certs account rollover --ca letsencrypt")]
    Rollover(Which),
    /// Deactivate the account at the CA, for ever, and forget it
    #[command(
        after_help = "Certificates stay valid. The next order at this CA registers a new account.\n\n\
        Example: certs account deactivate --ca zerossl --yes"
    )]
    Deactivate(Deactivate),
    /// Take over the account of a key (PEM) for a CA that has no account here
    #[command(after_help = "Example: certs account import account.pem --ca letsencrypt")]
    Import(Import),
}

impl Account {
    /// The command line as configuration keys.
    pub(super) fn options(&self, options: &mut Options) {
        match self {
            Self::Show(which) | Self::Rollover(which) => options.keys(&which.keys),
            Self::Update(update) => options.keys(&update.keys),
            Self::Deactivate(deactivate) => options.keys(&deactivate.keys),
            Self::Import(import) => options.keys(&import.keys),
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Which {
    #[command(flatten)]
    pub keys: KeyOptions<ACCOUNT>,
}

#[derive(Debug, Args)]
pub(super) struct Update {
    #[command(flatten)]
    pub keys: KeyOptions<UPDATE_KEYS>,
}

#[derive(Debug, Args)]
pub(super) struct Deactivate {
    /// Deactivate without a question
    #[arg(long)]
    pub yes: bool,
    #[command(flatten)]
    pub keys: KeyOptions<ACCOUNT>,
}

#[derive(Debug, Args)]
pub(super) struct Import {
    /// The key: ECDSA P-256 or P-384, or RSA of 2048 to 4096 bits
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    #[command(flatten)]
    pub keys: KeyOptions<ACCOUNT>,
}

/// One account, and the way to its CA.
struct Opened<'s> {
    client: Client,
    journal: AccountJournal<'s>,
}

impl<'s> Opened<'s> {
    async fn new(
        settings: &Settings,
        store: &'s dyn Store,
        ca: &'s CaSettings,
    ) -> Result<Self, Failure> {
        let identity = ca.directory.identity();
        let stored = store.account(identity).await;
        let stored = stored.map_err(Failure::on(identity))?;
        if !stored.is_some_and(|stored| is_registered(&stored)) {
            return Err(Failure::usage(
                format!("{identity}: the stored key is not registered yet"),
                format!("the first order registers it: certs issue NAME --ca {identity}"),
            ));
        }
        Ok(Self {
            client: remote::client(settings, ca)?,
            journal: AccountJournal {
                store,
                ca: identity,
            },
        })
    }
}

pub(super) async fn account(call: &Call, verb: &Account) -> Result<(), Failure> {
    let settings = call.sources.process_settings()?;
    if let Account::Import(import) = verb {
        return import_key(call, &settings, import).await;
    }
    let (store, cas) = remote::with_account(call, &settings).await?;
    if let Account::Show(_) = verb {
        return show(call, &settings, store.as_ref(), &cas).await;
    }
    let [ca] = cas.as_slice() else {
        let names: Vec<_> = cas.iter().map(|ca| ca.directory.to_string()).collect();
        return Err(Failure::usage(
            format!(
                "several accounts are stored; nothing was sent: {}",
                names.join(", ")
            ),
            "name one with --ca",
        ));
    };
    match verb {
        Account::Update(_) => update(call, &settings, store.as_ref(), ca).await,
        Account::Rollover(_) => rollover(call, &settings, store.as_ref(), ca).await,
        Account::Deactivate(options) => {
            deactivate(call, &settings, store.as_ref(), ca, options).await
        }
        Account::Show(_) | Account::Import(_) => Ok(()),
    }
}

/// Shows every account; one that fails does not stop the others.
async fn show(
    call: &Call,
    settings: &Settings,
    store: &dyn Store,
    cas: &[CaSettings],
) -> Result<(), Failure> {
    let (mut shown, mut ended) = (Vec::new(), Ok(()));
    for ca in cas {
        let state = async {
            let mut opened = Opened::new(settings, store, ca).await?;
            let state = opened.client.account_state(&mut opened.journal).await;
            state.map_err(Failure::on(ca.directory.identity()))
        };
        match state.await {
            Ok(state) => {
                let used_by = dependents(store, ca.directory.identity()).await?;
                match call.json {
                    true => shown.push(as_json(ca, &state, &used_by)?),
                    false => print(call, ca, &state, &used_by),
                }
            }
            Err(failure) => {
                failure.show(&call.terminal);
                ended = ended.and(Err(failure.code_only()));
            }
        }
    }
    if call.json {
        say_json(serde_json::to_string(&shown)?);
    }
    ended
}

fn as_json(
    ca: &CaSettings,
    state: &AccountState,
    used_by: &[Lineage],
) -> Result<serde_json::Value, Failure> {
    let mut json = serde_json::to_value(state)?;
    json["ca"] = ca.directory.identity().into();
    json["certificates"] = serde_json::to_value(used_by)?;
    Ok(json)
}

fn print(call: &Call, ca: &CaSettings, state: &AccountState, used_by: &[Lineage]) {
    let or_none = |text: String| {
        if text.is_empty() {
            "none".to_owned()
        } else {
            text
        }
    };
    say(format_args!("{}: {}", ca.directory, state.status));
    say(format_args!("  URL: {}", state.url));
    say(format_args!(
        "  contacts: {}",
        or_none(state.contacts.join(", "))
    ));
    say(format_args!(
        "  key: {}, thumbprint {}",
        state.key, state.thumbprint
    ));
    if let Some(kid) = &state.external_account {
        say(format_args!("  bound to the external account {kid}"));
    }
    say(format_args!("  certificates: {}", or_none(list(used_by))));
    if state.rollover_pending {
        let identity = ca.directory.identity();
        say(call.terminal.hint(&format!(
            "  a key change was interrupted; hint: certs account rollover --ca {identity} completes it"
        )));
    }
}

fn list(lineages: &[Lineage]) -> String {
    let names = lineages.iter().map(ToString::to_string);
    names.collect::<Vec<_>>().join(", ")
}

/// The stored certificates that order from this CA or come from it.
async fn dependents(store: &dyn Store, ca: &str) -> Result<Vec<Lineage>, Failure> {
    let mut found = Vec::new();
    for lineage in store.list().await.map_err(Failure::on("store"))? {
        // A damaged record is reported where it is used.
        let Ok(Some((record, _))) = store.load(&lineage).await else {
            continue;
        };
        let issued = record.issued.map(|issued| issued.ca);
        let fallback = record.fallback.map(|fallback| fallback.ca);
        let mut cas = [Some(record.ca), issued, fallback].into_iter().flatten();
        if cas.any(|known| known == ca) {
            found.push(lineage);
        }
    }
    Ok(found)
}

async fn update(
    call: &Call,
    settings: &Settings,
    store: &dyn Store,
    ca: &CaSettings,
) -> Result<(), Failure> {
    let (given, _) = call.sources.ca_settings()?;
    let change = AccountChange {
        email: given.email,
        agree: given.agree_tos,
    };
    if change.email.is_none() && !change.agree {
        return Err(Failure::usage(
            "nothing to update",
            "give --email ADDRESS, --agree-tos, or both",
        ));
    }
    let identity = ca.directory.identity();
    let mut opened = Opened::new(settings, store, ca).await?;
    let changed = opened.client.change_account(&change, &mut opened.journal);
    changed.await.map_err(Failure::on(identity))?;
    if let Some(email) = &change.email {
        remember_email(call, store, ca, email).await?;
    }
    let mut done = Vec::new();
    done.extend(
        change
            .email
            .as_ref()
            .map(|email| format!("e-mail address {email}")),
    );
    done.extend(
        change
            .agree
            .then(|| "agreed to the terms of service".to_owned()),
    );
    match call.json {
        true => say_json(json!({
            "ca": identity, "email": change.email, "agreed": change.agree,
        })),
        false => say(format_args!("{}: {}", ca.directory, done.join("; "))),
    }
    Ok(())
}

/// Puts the address into the stored settings of certificates, which would send the old one
/// again.
async fn remember_email(
    call: &Call,
    store: &dyn Store,
    ca: &CaSettings,
    email: &str,
) -> Result<(), Failure> {
    let identity = ca.directory.identity();
    for lineage in store.list().await.map_err(Failure::on("store"))? {
        let failed = Failure::on::<crate::store::StoreError>(lineage.as_str());
        let Ok(Some(json)) = store.options(&lineage).await else {
            continue;
        };
        let Ok(mut own) = CertificateSettings::stored_as(&lineage, &json) else {
            continue;
        };
        let mut is_changed = false;
        let shared: &mut SharedSettings = &mut own;
        let cas = [Some(&mut shared.ca), shared.fallback.as_mut()];
        for ca in cas.into_iter().flatten() {
            let is_it = ca.directory.identity() == identity && ca.email.is_some();
            if is_it && ca.email.as_deref() != Some(email) {
                (ca.email, is_changed) = (Some(email.to_owned()), true);
            }
        }
        if !is_changed {
            continue;
        }
        if call.sources.configures(&lineage) {
            tracing::warn!(%lineage, "the configuration has another e-mail address, and would send it again; hint: change `email` there");
        }
        let json = serde_json::to_string_pretty(&own)?;
        store.save_options(&lineage, &json).await.map_err(failed)?;
    }
    Ok(())
}

async fn rollover(
    call: &Call,
    settings: &Settings,
    store: &dyn Store,
    ca: &CaSettings,
) -> Result<(), Failure> {
    let identity = ca.directory.identity();
    let mut opened = Opened::new(settings, store, ca).await?;
    let changed = opened.client.roll_over(&mut opened.journal).await;
    let state = changed.map_err(Failure::on(identity))?;
    match call.json {
        true => say_json(as_json(ca, &state, &dependents(store, identity).await?)?),
        false => say(format_args!(
            "{}: new key, {}, thumbprint {}",
            ca.directory, state.key, state.thumbprint
        )),
    }
    Ok(())
}

async fn deactivate(
    call: &Call,
    settings: &Settings,
    store: &dyn Store,
    ca: &CaSettings,
    options: &Deactivate,
) -> Result<(), Failure> {
    let identity = ca.directory.identity();
    let used_by = dependents(store, identity).await?;
    let note = match used_by.is_empty() {
        true => "no certificate depends on it".to_owned(),
        false => format!(
            "{} depend on it: they stay valid, their next renewal registers a new account, and this account can revoke them no more",
            list(&used_by)
        ),
    };
    call.terminal.print(&format!("{}: {note}", ca.directory));
    if !options.yes {
        let question = format!(
            "Deactivate the account at {} for ever? [y/N] ",
            ca.directory
        );
        call.terminal.confirmed(&question).map_err(|why| {
            Failure::usage(
                format!("{identity}: nothing was deactivated: {why}"),
                format!("to deactivate it: certs account deactivate --ca {identity} --yes"),
            )
        })?;
    }
    let mut opened = Opened::new(settings, store, ca).await?;
    let ended = opened.client.deactivate_account(&mut opened.journal).await;
    ended.map_err(Failure::on(identity))?;
    let failed = Failure::on::<crate::store::StoreError>(identity);
    if let Some(stored) = store.account(identity).await.map_err(&failed)? {
        let deleted = store.delete_account(identity, &stored).await;
        deleted.map_err(failed)?;
    }
    match call.json {
        true => say_json(json!({
            "ca": identity, "deactivated": true, "certificates": used_by,
        })),
        false => say(format_args!("{}: deactivated", ca.directory)),
    }
    Ok(())
}

async fn import_key(call: &Call, settings: &Settings, import: &Import) -> Result<(), Failure> {
    let ca = remote::named(call, settings).await?;
    let identity = ca.directory.identity();
    let key = revoke::read(&import.file)?;
    let account = foreign_account(identity, ForeignKey::Pem(key.expose()), None);
    let account = account.map_err(|error| {
        let message = format!("{}: {error}", import.file.display());
        Failure::usage(message, "give the account's private key in PEM")
    })?;
    let store = call.store(settings)?;
    let stored = store.create_account(identity, &account.credentials).await;
    let stored = stored.map_err(Failure::on(identity))?;
    if !is_same_account(&stored, &account.credentials) {
        return Err(Failure::usage(
            format!("{identity}: another account is stored, and stays"),
            "certs account show shows it; certs account deactivate ends it",
        ));
    }
    match call.json {
        true => say_json(json!({ "ca": identity, "imported": true, "key": account.kind })),
        false => say(format_args!(
            "{}: account key imported ({}); the CA looks it up at the first use",
            ca.directory, account.kind
        )),
    }
    Ok(())
}
