//! The accounts of an import. The store has one for each CA: of several, that with
//! which most of its certificates were ordered.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::Target;
use super::report::Report;
use crate::acme::{ForeignAccount, ForeignKey, foreign_account, is_same_account};
use crate::certificate::Secret;
use crate::config::Directory;
use crate::failure::Failure;
use crate::import::{Account, AccountKey};
use crate::store::{Store, StoreError};
use crate::text::printable;

/// All that were found, and after [`Accounts::take`] those that are ours.
#[derive(Default)]
pub(super) struct Accounts {
    found: Vec<(Directory, Account)>,
    ours: Vec<(Directory, Option<String>)>,
}

impl Accounts {
    pub(super) fn add(&mut self, directory: Directory, account: Account) {
        self.found.push((directory, account));
    }

    /// The e-mail address of our account at that CA, where it has one; `None` when
    /// there is no account.
    pub(super) fn of(&self, directory: &Directory) -> Option<Option<&str>> {
        let identity = directory.identity();
        let mut ours = self.ours.iter();
        let (_, email) = ours.find(|(known, _)| known.identity() == identity)?;
        Some(email.as_deref())
    }

    /// Takes one for each CA; `uses` are CAs with the names of the accounts that
    /// certificates were ordered with.
    pub(super) async fn take(
        &mut self,
        target: &Target,
        uses: &[(String, String)],
        report: &mut Report<'_>,
    ) {
        let mut found = std::mem::take(&mut self.found);
        let used = |directory: &Directory, account: &Account| {
            let is_it = |(ca, name): &&(String, String)| {
                ca == directory.identity() && *name == account.name
            };
            uses.iter().filter(is_it).count()
        };
        // The first of each CA is the one.
        found.sort_by_key(|(directory, account)| {
            let known = account.url.is_some();
            let identity = directory.identity().to_owned();
            (
                identity,
                std::cmp::Reverse((used(directory, account), known)),
            )
        });
        for (directory, account) in found {
            let identity = directory.identity();
            let subject = format!("account {} at {identity}", printable(&account.name));
            if self.of(&directory).is_some() {
                let text = "there is one account for each CA here: the certificates are renewed with the other";
                report.left(&subject, text);
                continue;
            }
            match take_one(target, identity, &account).await {
                Ok((is_new, text)) => {
                    report.account(&subject, is_new, &text);
                    self.ours.push((directory, account.email));
                }
                Err(why) => report.broken(&subject, &why),
            }
        }
    }
}

/// Stores it, unless there is one of that CA already; whether it is new, and how
/// that is told.
async fn take_one(target: &Target, ca: &str, account: &Account) -> Result<(bool, String), String> {
    let ForeignAccount { credentials, kind } = read(ca, account)?;
    let url = account.url.as_deref();
    let url = url.map_or("its URL is asked for when it is used".to_owned(), printable);
    let told = format!("{kind}, {url}");
    let failed = |error: StoreError| Failure::of(ca, &error.into()).in_a_line();
    let stored = match &target.store {
        Some(store) => store.account(ca).await.map_err(failed)?,
        None => None,
    };
    let stored = match (stored, &target.store) {
        (None, Some(store)) if !target.dry_run => {
            let stored = store
                .create_account(ca, &credentials)
                .await
                .map_err(failed)?;
            if stored == credentials {
                return Ok((true, told));
            }
            stored
        }
        (None, _) => return Ok((true, told)),
        (Some(stored), _) => stored,
    };
    if is_same_account(&stored, &credentials) {
        Ok((false, told))
    } else {
        Ok((
            false,
            "another one, which stays: certificates are renewed with it".to_owned(),
        ))
    }
}

fn read(ca: &str, account: &Account) -> Result<ForeignAccount, String> {
    let url = account.url.as_deref();
    match &account.key {
        AccountKey::Pem(pem) => foreign_account(ca, ForeignKey::Pem(pem.expose()), url),
        AccountKey::Jwk(jwk) => foreign_account(ca, ForeignKey::Jwk(jwk.expose()), url),
        AccountKey::Base64(text) => {
            let der = decoded(text).ok_or("its key is not base64")?;
            foreign_account(ca, ForeignKey::Der(&der), url)
        }
    }
}

fn decoded(text: &Secret) -> Option<zeroize::Zeroizing<Vec<u8>>> {
    let der = BASE64_STANDARD.decode(text.expose().trim()).ok()?;
    Some(zeroize::Zeroizing::new(der))
}
