//! How a record of DNS refers to our account (draft-ietf-acme-dns-account-label,
//! draft-ietf-acme-dns-persist).

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Uri;

use super::account::Account;
use super::client::Flow;
use super::documents::Authorization;
use super::error::Cause;
use super::poll::PlacedOrder;
use crate::challenge::{AccountReference, ChallengeKind};
use crate::identifier::Identifier;
use crate::text::printable;

impl Flow<'_> {
    /// The reference for a record that proves `identifier`.
    pub(super) fn account_reference(
        &self,
        kind: ChallengeKind,
        identifier: &Identifier,
        order: &PlacedOrder,
        authorization: &Authorization,
    ) -> Result<AccountReference, Cause> {
        let url = self.account.id.clone();
        if kind.is_persistent() {
            same_host(&url, &self.client.settings.directory)?;
        }
        let name = identifier.to_string();
        let base = name.strip_prefix("*.").unwrap_or(&name);
        let wildcard = Identifier::parse(&format!("*.{base}"));
        let prefix = self.directory.meta.account_hash_prefix.as_deref();
        Ok(AccountReference {
            uri: prefix.map_or_else(|| url.clone(), |prefix| hashed(prefix, base, self.account)),
            issuers: authorization.issuers.clone(),
            with_wildcard: wildcard.is_ok_and(|wildcard| order.identifiers.contains(&wildcard)),
            url,
        })
    }
}

/// A CA that named the account of another CA could have us ask for a record that allows that
/// account to get certificates there.
fn same_host(account: &str, directory: &str) -> Result<(), Cause> {
    let host = |url: &str| Some(url.parse::<Uri>().ok()?.host()?.to_ascii_lowercase());
    match host(account) == host(directory) {
        true => Ok(()),
        false => Err(Cause::Protocol(format!(
            "the CA's directory is {}, and the account that it gave us {}: no persistent record is asked for an account of another host",
            printable(directory),
            printable(account)
        ))),
    }
}

/// The URI that binds the account to one domain and does not show it.
fn hashed(prefix: &str, domain: &str, account: &Account) -> String {
    let thumbprint = account.key.thumbprint();
    hash_uri(prefix, domain, &thumbprint, &account.id)
}

fn hash_uri(prefix: &str, domain: &str, thumbprint: &str, url: &str) -> String {
    // A name of DNS is shorter than 256 bytes.
    let length = u8::try_from(domain.len()).unwrap_or(u8::MAX);
    let parts = [
        &[length],
        domain.as_bytes(),
        thumbprint.as_bytes(),
        url.as_bytes(),
    ];
    let hash = digest(&SHA256, &parts.concat());
    format!("{prefix}sha-256/{}", URL_SAFE_NO_PAD.encode(hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashed_uri_has_length_domain_thumbprint_and_account() {
        // By another implementation of SHA-256 and base64url.
        let uri = hash_uri(
            "https://ca.example/h/",
            "example.com",
            "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs",
            "https://ca.example/acct/123",
        );
        assert_eq!(
            uri,
            "https://ca.example/h/sha-256/5SQm7n6tPh2-PlLbCKGnViTXX5z19SCN4cPGQHSk-kw"
        );
    }

    #[test]
    fn account_of_another_host_gets_no_persistent_record() {
        let directory = "https://CA.example:14000/dir";
        assert!(same_host("https://ca.example/acct/1", directory).is_ok());
        for other in [
            "https://ca.example.org/acct/1",
            "https://other.example/1",
            "nonsense",
        ] {
            assert!(same_host(other, directory).is_err(), "{other}");
        }
    }
}
