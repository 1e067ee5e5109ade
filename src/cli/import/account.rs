//! The accounts of an import. The store has one account for each CA: of several, it gets
//! the one with the most certificates.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use zeroize::Zeroizing;

use super::report::Report;
use super::{Destination, Valid};
use crate::acme::{ForeignAccount, ForeignKey, foreign_account, is_same_account};
use crate::config::DirectoryUrl;
use crate::failure::Failure;
use crate::import::{ImportedAccount, ImportedKey, Remark};
use crate::store::{Store, StoreError};
use crate::text::printable;

/// The accounts found, and after [`Accounts::import`] those in the store.
#[derive(Default)]
pub(super) struct Accounts {
    found: Vec<(DirectoryUrl, ImportedAccount)>,
    ours: Vec<(DirectoryUrl, Option<String>)>,
    /// The CA and the name of each account in the source.
    names: BTreeSet<(String, String)>,
}

impl Accounts {
    pub(super) fn add(&mut self, directory: DirectoryUrl, account: ImportedAccount) {
        let identity = directory.identity().to_owned();
        self.names.insert((identity, account.name.clone()));
        self.found.push((directory, account));
    }

    /// What renews a certificate whose account the source lacks.
    pub(super) fn remark(&self, one: &Valid) -> Option<Remark> {
        let (name, directory) = (one.certificate.account.as_ref()?, &one.directory);
        let key = (directory.identity().to_owned(), name.clone());
        let instead = match self.of(directory) {
            _ if self.names.contains(&key) => return None,
            Some(_) => "another account of its CA renews it",
            // Without an agreement to its terms: that is reported by itself.
            None if directory.is_public() => return None,
            None => "its renewal registers a new one, or uses the one that is stored",
        };
        let text = format!("the source has no account {}: {instead}", printable(name));
        Some(Remark::unsupported("its account", text))
    }

    /// The e-mail address, if any, of our account at that CA; `None` if there is no
    /// account.
    pub(super) fn of(&self, directory: &DirectoryUrl) -> Option<Option<&str>> {
        let identity = directory.identity();
        let mut ours = self.ours.iter();
        let (_, email) = ours.find(|(known, _)| known.identity() == identity)?;
        Some(email.as_deref())
    }

    /// Imports one account for each CA; `uses` has the CA and the account's name of each
    /// certificate.
    pub(super) async fn import(
        &mut self,
        target: &Destination,
        uses: &[(String, String)],
        report: &mut Report<'_>,
    ) {
        let mut found = std::mem::take(&mut self.found);
        let used = |directory: &DirectoryUrl, account: &ImportedAccount| {
            let is_it = |(ca, name): &&(String, String)| {
                ca == directory.identity() && *name == account.name
            };
            uses.iter().filter(is_it).count()
        };
        // The first account of each CA is imported.
        found.sort_by_key(|(directory, account)| {
            let rank = (used(directory, account), account.url.is_some());
            (directory.identity().to_owned(), Reverse(rank))
        });
        for (directory, account) in found {
            let identity = directory.identity();
            let subject = format!("account {} at {identity}", printable(&account.name));
            if self.of(&directory).is_some() {
                let text =
                    "only one account for each CA is stored: the other one renews the certificates";
                report.skipped(&subject, text);
                continue;
            }
            match import_one(target, identity, &account).await {
                Ok((is_new, text)) => {
                    report.account(&subject, is_new, &text);
                    self.ours.push((directory, account.email));
                }
                Err(why) => report.not_imported(&subject, &why),
            }
        }
    }
}

/// Stores the account unless one of that CA is stored; returns whether it is new, and a
/// text for the report.
async fn import_one(
    target: &Destination,
    ca: &str,
    account: &ImportedAccount,
) -> Result<(bool, String), String> {
    let ForeignAccount { credentials, kind } = read(ca, account)?;
    let url = account.url.as_deref().map(printable);
    let url = url.unwrap_or_else(|| "its URL is looked up at its first use".to_owned());
    let text = format!("{kind}, {url}");
    let failed = |error: StoreError| Failure::on(ca)(error).in_a_line();
    let stored = match &target.store {
        Some(store) => store.account(ca).await.map_err(failed)?,
        None => None,
    };
    let stored = match (stored, &target.store) {
        (None, Some(store)) if !target.dry_run => {
            let stored = store.create_account(ca, &credentials).await;
            let stored = stored.map_err(failed)?;
            if stored == credentials {
                return Ok((true, text));
            }
            stored
        }
        (None, _) => return Ok((true, text)),
        (Some(stored), _) => stored,
    };
    let other = "another account is stored and stays: it renews the certificates";
    match is_same_account(&stored, &credentials) {
        true => Ok((false, text)),
        false => Ok((false, other.to_owned())),
    }
}

fn read(ca: &str, account: &ImportedAccount) -> Result<ForeignAccount, String> {
    let url = account.url.as_deref();
    let read = match &account.key {
        ImportedKey::Pem(pem) => foreign_account(ca, ForeignKey::Pem(pem.expose()), url),
        ImportedKey::Jwk(jwk) => foreign_account(ca, ForeignKey::Jwk(jwk.expose()), url),
        ImportedKey::Base64(text) => {
            let der = BASE64_STANDARD.decode(text.expose().trim());
            let der = der.map(Zeroizing::new);
            let der = der.map_err(|_| "its key is not valid base64")?;
            foreign_account(ca, ForeignKey::Der(&der), url)
        }
    };
    Ok(read?.with_email(account.email.as_deref()))
}
