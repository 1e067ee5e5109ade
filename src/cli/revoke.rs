//! `certs revoke`: has the CA revoke a stored certificate, as a rule once its replacement is
//! served; or the certificate of a file, signed by its key or by the account.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::Call;
use super::catalog::existing_store;
use super::meant;
use super::output::{say, say_json};
use super::{remote, renew};
use crate::acme::{Issuer, RevocationRequest};
use crate::certificate::{Bundle, Facts, Freshness, Secret, certified_key};
use crate::config::{ACCOUNT, KeyOptions, Settings};
use crate::failure::Failure;
use crate::files::named;
use crate::lineage::Lineage;
use crate::manage::Trigger;
use crate::manage::ca_state::note_revoked_key;
use crate::manage::rehearse::AccountJournal;
use crate::record::{Generation, RevocationReason};
use crate::store::Store;
use crate::store::memory::MemoryStore;
use crate::time::{Clock, SystemClock};

#[derive(Debug, Args)]
#[command(
    after_help = "Without --now it first issues a replacement with a new key, deploys it and verifies that it is \
    served; only then is the old certificate revoked. If that fails, the printed command continues. With \
    --reason keycompromise the certificate's own key signs the request, and every certificate stored under NAME with that \
    key is revoked. After --now, certs renew NAME replaces the certificate (certs csr with a new request, if it has the key \
    of one), and certs delete NAME ends it; a running certs run replaces it by itself. While the replacement is waited for, \
    --cancel gives the revocation up.\n\n\
    Examples: certs revoke example.com --reason keycompromise\n          \
    certs revoke --cert-file cert.pem --key-file privkey.pem --ca letsencrypt"
)]
pub(super) struct Revoke {
    /// The certificate, by lineage or by one of its names
    #[arg(
        required_unless_present = "cert_file",
        conflicts_with_all = ["cert_file", "key_file"]
    )]
    pub name: Option<String>,
    /// Why: unspecified (0), keycompromise (1), affiliationchanged (3), superseded (4), cessationofoperation (5)
    #[arg(long, value_name = "REASON", default_value = "unspecified")]
    pub reason: RevocationReason,
    /// Revoke at once, before a replacement is served; orders nothing
    #[arg(long)]
    pub now: bool,
    /// Revoke this generation alone; does nothing once it is revoked
    #[arg(long, value_name = "N", conflicts_with_all = ["cancel", "cert_file", "key_file"])]
    pub generation: Option<u64>,
    /// Give up a revocation that waits for its replacement, or for the CA
    #[arg(long, conflicts_with_all = ["now", "reason", "cert_file", "key_file"])]
    pub cancel: bool,
    /// Revoke the certificate in this file (PEM), which need not be stored
    #[arg(long, value_name = "CERT")]
    pub cert_file: Option<PathBuf>,
    /// Sign with the certificate's key in this file (PEM); else the stored account of the CA signs
    #[arg(long, value_name = "KEY", requires = "cert_file")]
    pub key_file: Option<PathBuf>,
    #[command(flatten)]
    pub keys: KeyOptions<ACCOUNT>,
}

/// Revokes the certificate, by the running sidecar if there is one.
pub(super) async fn revoke(call: &Call, options: &Revoke) -> Result<(), Failure> {
    let name = match (&options.name, &options.cert_file) {
        (Some(name), _) => name,
        (None, Some(file)) => return Box::pin(revoke_file(call, options, file)).await,
        // The parser requires one of the two.
        (None, None) => return Err(Failure::unexpected("no certificate is given")),
    };
    // A proxy is for this command, whichever CA it is.
    if options.keys.gives_besides(&["proxy"]) {
        return Err(Failure::usage(
            "a stored certificate is revoked at the CA that issued it; nothing was revoked",
            "leave out --ca and --ca-root: they belong to --cert-file",
        ));
    }
    let settings = call.sources.process_settings()?;
    let lineage = meant::one(&settings.data_dir, name, "revoked").await?;
    let (reason, at_once) = (options.reason, options.now);
    if reason == RevocationReason::KeyCompromise && reuses_key(&settings, &lineage).await {
        let note = format!(
            "{lineage}: --reuse-key does not hold for the next order: the key is compromised"
        );
        call.terminal.print(&note);
    }
    let trigger = match options.cancel {
        true => Trigger::CancelRevocation,
        false => Trigger::Revoke {
            reason,
            at_once,
            generation: options.generation.map(Generation),
        },
    };
    let ended = renew::alone(call, &lineage, trigger).await;
    if options.cancel {
        return ended;
    }
    if ended.is_err()
        && let Some(generation) = pending(&settings, &lineage).await
    {
        let now = match at_once {
            true => String::new(),
            false => {
                format!("certs revoke {lineage} --now --reason {reason} waits for no replacement, ")
            }
        };
        let note = format!(
            "{lineage}: not revoked; once the cause is repaired, certs revoke {lineage} --generation {generation} --reason {reason} continues; hint: {now}certs revoke {lineage} --cancel gives it up"
        );
        call.terminal.print(&call.terminal.hint(&note));
    }
    for (other, why) in others(&settings, &lineage, reason).await {
        let note =
            format!("{other}, {why}, is not revoked; hint: certs revoke {other} --reason {reason}");
        call.terminal.print(&call.terminal.hint(&note));
    }
    ended
}

/// Certificates that a user may expect to be revoked with `lineage`: that for the other key of
/// its names, and after a compromise those with the same key.
async fn others(
    settings: &Settings,
    lineage: &Lineage,
    reason: RevocationReason,
) -> Vec<(Lineage, &'static str)> {
    let found = async {
        let mut found = Vec::new();
        if let Some(other) = meant::other_key(&settings.data_dir, lineage).await? {
            found.push((other, "for the other key"));
        }
        let Some(store) = existing_store(settings.data_dir.clone())? else {
            return Ok(found);
        };
        if reason == RevocationReason::KeyCompromise {
            let own = keys_of(&store, lineage).await;
            for other in store.list().await.map_err(Failure::on("store"))? {
                let is_shared =
                    other != *lineage && !own.is_disjoint(&keys_of(&store, &other).await);
                found.extend(is_shared.then_some((other, "with the same key")));
            }
        }
        Ok::<_, Failure>(found)
    };
    found.await.unwrap_or_default()
}

/// The public keys of the stored generations.
async fn keys_of(store: &dyn Store, lineage: &Lineage) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    let Ok(Some((record, _))) = store.load(lineage).await else {
        return keys;
    };
    let newest = record.issued.map_or(0, |issued| issued.generation.0);
    for generation in newest.saturating_sub(Generation::KEPT).max(1)..=newest {
        let stored = store.bundle(lineage, Generation(generation)).await;
        if let Ok(Some((_, chain))) = stored {
            keys.extend(certified_key(&chain).map(|key| key.to_string()));
        }
    }
    keys
}

/// Whether the settings ask to keep the key; unreadable ones count as not.
async fn reuses_key(settings: &Settings, lineage: &Lineage) -> bool {
    let stored = async {
        let store = existing_store(settings.data_dir.clone()).ok()??;
        let json = store.options(lineage).await.ok()??;
        crate::config::CertificateSettings::stored_as(lineage, &json).ok()
    };
    stored.await.is_some_and(|stored| stored.reuse_key)
}

/// The generation whose revocation waits for its replacement, or for the CA.
async fn pending(settings: &Settings, lineage: &Lineage) -> Option<Generation> {
    let stored = async {
        let store = existing_store(settings.data_dir.clone()).ok()??;
        store.load(lineage).await.ok()?
    };
    let record = stored.await.map(|(record, _)| record);
    let pending = record.and_then(|record| record.revocation);
    pending.map(|pending| pending.generation)
}

/// A certificate and perhaps its key, from files.
struct Files<'o> {
    file: &'o Path,
    chain: Secret,
    facts: Facts,
    key: Option<Secret>,
}

impl<'o> Files<'o> {
    fn read(options: &Revoke, file: &'o Path) -> Result<Self, Failure> {
        let invalid = |message: String| {
            let hint = "give the certificate in PEM, and its own key; nothing was sent";
            Failure::usage(format!("{}: {message}", file.display()), hint)
        };
        let chain = read(file)?;
        let facts = Facts::of_chain(chain.expose()).map_err(|error| invalid(error.to_string()))?;
        let (now, not_after) = (SystemClock.now(), facts.not_after);
        if not_after <= now {
            let why = format!("it expired at {not_after}, and needs no revocation");
            return Err(invalid(why));
        }
        let key = options.key_file.as_deref().map(read).transpose()?;
        if let Some(key) = &key {
            let names = &facts.identifiers;
            let pair = Bundle::new(key.clone(), chain.expose(), names, now, Freshness::Any);
            pair.map_err(|error| invalid(error.to_string()))?;
        }
        Ok(Self {
            file,
            chain,
            facts,
            key,
        })
    }

    /// Refuses a stored certificate, which would be served on, and a request that nothing
    /// can sign.
    async fn check(
        &self,
        store: &dyn Store,
        ca: &str,
        reason: RevocationReason,
    ) -> Result<(), Failure> {
        if let Some(lineage) = stored_with(store, &self.facts).await? {
            let file = self.file.display();
            return Err(Failure::usage(
                format!(
                    "{file}: it is the stored certificate {lineage}, which would be served on; nothing was revoked"
                ),
                format!("certs revoke {lineage} --reason {reason} replaces it first"),
            ));
        }
        let account = store.account(ca).await.map_err(Failure::on(ca))?;
        match self.key.is_some() || account.is_some() {
            true => Ok(()),
            false => Err(Failure::usage(
                format!("no account of {ca} is stored, and no key is given; nothing was revoked"),
                "add the certificate's own key with --key-file, or name its CA with --ca",
            )),
        }
    }
}

async fn revoke_file(call: &Call, options: &Revoke, file: &Path) -> Result<(), Failure> {
    let settings = call.sources.process_settings()?;
    let files = Files::read(options, file)?;
    let ca = remote::named(call, &settings).await?;
    let (identity, reason) = (ca.directory.identity(), options.reason);
    let store = existing_store(settings.data_dir.clone())?;
    let nothing = MemoryStore::default();
    let store = store.as_ref().map_or(&nothing as &dyn Store, |store| store);
    files.check(store, identity, reason).await?;
    let client = remote::client(&settings, &ca)?;
    let mut journal = AccountJournal {
        store,
        ca: identity,
    };
    let request = RevocationRequest {
        chain_pem: files.chain.expose(),
        reason,
        key_pem: files.key.as_ref(),
    };
    let revoked = client.revoke(&request, &mut journal).await;
    let subject = file.display().to_string();
    revoked.map_err(Failure::on(&subject))?;
    if let Some(key) = certified_key(files.chain.expose())
        && let Err(error) = note_revoked_key(store, &key).await
    {
        tracing::warn!("the key of {subject} is revoked, and that could not be stored: {error}");
    }
    match call.json {
        true => say_json(json!({
            "file": file, "revoked": true, "reason": reason, "ca": identity,
            "fingerprint": files.facts.fingerprint,
        })),
        false => say(format_args!(
            "{subject}: revoked at {} ({reason})",
            ca.directory
        )),
    }
    Ok(())
}

/// The stored certificate whose newest generation it is.
async fn stored_with(store: &dyn Store, facts: &Facts) -> Result<Option<Lineage>, Failure> {
    for lineage in store.list().await.map_err(Failure::on("store"))? {
        let loaded = store.load(&lineage).await.ok().flatten();
        let issued = loaded.and_then(|(record, _)| record.issued);
        if issued.is_some_and(|issued| issued.facts.fingerprint == facts.fingerprint) {
            return Ok(Some(lineage));
        }
    }
    Ok(None)
}

pub(super) fn read(path: &Path) -> Result<Secret, Failure> {
    named::read_data(path).map_err(|error| {
        let hint = error.hint();
        let hint = hint.unwrap_or_else(|| "name a readable file in PEM".to_owned());
        Failure::usage(format!("{}: {error}", path.display()), hint)
    })
}
