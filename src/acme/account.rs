//! The account at a CA (RFC 8555 section 7.3). Its key is stored before its
//! registration: after a crash the same key is registered again, and the CA
//! returns the same account. It never makes a second account.

use serde::{Deserialize, Serialize};

use super::Journal;
use super::error::Cause;
use super::jws::{AccountKey, decode, encode};
use crate::certificate::{Secret, SecretBytes};

/// The registration at the CA.
#[derive(Clone, Debug, Default)]
pub struct AccountSettings {
    /// The e-mail address for the CA's notices.
    pub email: Option<String>,
    /// Whether the user agrees to the CA's terms.
    pub terms_agreed: bool,
    /// The external account binding: key identifier and decoded HMAC key, or why it cannot
    /// be read. Only a registration needs it.
    pub external: Option<(String, Result<SecretBytes, String>)>,
    /// The URL at which the CA gives such a binding for the e-mail address.
    pub credentials_by_email: Option<String>,
}

/// A registered key.
pub(super) struct Account {
    pub(super) key: AccountKey,
    /// The account's URL.
    pub(super) id: String,
    /// As it was stored when it was opened.
    pub(super) credentials: Secret,
}

/// The stored form. instant-acme can read it if it has an `id` and a P-256 key.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredAccount {
    /// The account's URL; `None` before the registration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<String>,
    /// Base64url.
    pub(super) key_pkcs8: Secret,
    pub(super) directory: Option<String>,
    /// The e-mail address that the CA has of us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) email: Option<String>,
    /// Another client's key without an account URL: the CA must look the account up
    /// before a registration.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) is_foreign: bool,
    /// The key of a rollover, stored before the CA gets it, until it is known that the CA
    /// has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) next_key_pkcs8: Option<Secret>,
}

impl StoredAccount {
    fn has_keys_of(&self, other: &Self) -> bool {
        (&self.key_pkcs8, &self.next_key_pkcs8) == (&other.key_pkcs8, &other.next_key_pkcs8)
    }

    pub(super) fn to_json(&self) -> Result<Secret, Cause> {
        let json = serde_json::to_string(self).map_err(|e| Cause::Journal(e.into()))?;
        Ok(Secret::new(json))
    }
}

/// An account, and the credentials in the store from which it was read.
pub(super) struct Kept {
    pub(super) account: StoredAccount,
    pub(super) credentials: Secret,
}

impl Kept {
    pub(super) fn of(credentials: Secret) -> Result<Self, Cause> {
        let account = serde_json::from_str(credentials.expose()).map_err(|_| unreadable())?;
        Ok(Self {
            account,
            credentials,
        })
    }

    /// The stored account, if there is one.
    pub(super) async fn load(journal: &mut dyn Journal) -> Result<Option<Self>, Cause> {
        let stored = journal.account().await.map_err(Cause::Journal)?;
        stored.map(Self::of).transpose()
    }

    /// Stores its changes.
    pub(super) async fn save(&mut self, journal: &mut dyn Journal) -> Result<(), Cause> {
        let changed = self.account.to_json()?;
        let mut saved = journal.save_account(&changed, &self.credentials).await;
        if saved.is_err()
            && let Some(stored) = Self::load(journal).await?
            && stored.account.has_keys_of(&self.account)
        {
            // Another first contact has registered the same key meanwhile: the CA has one account of it.
            saved = journal.save_account(&changed, &stored.credentials).await;
        }
        saved.map_err(Cause::Journal)?;
        self.credentials = changed;
        Ok(())
    }

    pub(super) fn key(&self) -> Result<AccountKey, Cause> {
        key_of(&self.account.key_pkcs8)
    }
}

/// A stored key.
pub(super) fn key_of(stored: &Secret) -> Result<AccountKey, Cause> {
    let key = decode(stored.expose()).and_then(|der| AccountKey::from_pkcs8(&der));
    key.ok_or_else(unreadable)
}

/// Parses stored credentials.
pub(super) fn read(credentials: &Secret) -> Result<StoredAccount, Cause> {
    Ok(Kept::of(credentials.clone())?.account)
}

/// Whether these credentials are of an account that the CA knows, as far as is stored.
#[must_use]
pub fn is_registered(credentials: &Secret) -> bool {
    read(credentials).is_ok_and(|stored| stored.id.is_some() || stored.is_foreign)
}

impl Account {
    /// The key authorization of a challenge's `token` (section 8.1).
    pub(super) fn key_authorization(&self, token: &str) -> String {
        format!("{token}.{}", self.key.thumbprint())
    }
}

/// The stored account of the CA, or a new key, stored before its registration.
pub(super) async fn stored_or_new(ca: &str, journal: &mut dyn Journal) -> Result<Kept, Cause> {
    if let Some(stored) = Kept::load(journal).await? {
        return Ok(stored);
    }
    let credentials = StoredAccount {
        id: None,
        key_pkcs8: new_key()?,
        directory: Some(ca.to_owned()),
        email: None,
        is_foreign: false,
        next_key_pkcs8: None,
    };
    let stored = journal.create_account(&credentials.to_json()?).await;
    Kept::of(stored.map_err(Cause::Journal)?)
}

/// A new key in its stored form.
pub(super) fn new_key() -> Result<Secret, Cause> {
    let key = AccountKey::generate()
        .map_err(|_| Cause::Journal("the account key could not be generated".into()))?;
    Ok(Secret::new(encode(&key)))
}

pub(super) fn unreadable() -> Cause {
    Cause::Journal("the stored account cannot be parsed".into())
}

#[cfg(test)]
mod tests {
    use super::super::fake::{FakeCa, Memory, Scripted, pending};
    use super::super::{Client, Issuer};
    use super::*;
    use serde_json::{Value, json};

    #[tokio::test]
    async fn first_contacts_at_once_keep_one_account_and_a_stale_key_is_not_put_back() {
        let mut journal = Memory::default();
        let mut first = stored_or_new("https://ca.test/directory", &mut journal)
            .await
            .unwrap();
        let mut second = Kept::load(&mut journal).await.unwrap().unwrap();
        let mut stale = Kept::load(&mut journal).await.unwrap().unwrap();
        first.account.id = Some("https://ca.test/account/0".into());
        second.account.id.clone_from(&first.account.id);
        second.account.email = Some("admin@example.com".into());
        first.save(&mut journal).await.unwrap();
        second.save(&mut journal).await.unwrap();
        second.account.key_pkcs8 = new_key().unwrap();
        second.save(&mut journal).await.unwrap();
        assert!(stale.save(&mut journal).await.is_err());
        assert_eq!(journal.account, Some(second.credentials));
    }

    #[tokio::test]
    async fn stored_key_is_registered_again_after_a_lost_reply() {
        let (ca, mut journal) = (FakeCa::new(), Memory::default());
        // The CA registers the key, but its reply is lost.
        ca.lose_reply("new-account");
        let result = ca
            .client()
            .issue(pending(&["a.example"]), &mut journal)
            .await;
        assert!(matches!(result.unwrap_err().cause, Cause::Unreachable(_)));
        let stored: Value =
            serde_json::from_str(journal.account.as_ref().unwrap().expose()).unwrap();
        assert!(stored.get("id").is_none());
        ca.client()
            .issue(pending(&["a.example"]), &mut journal)
            .await
            .unwrap();
        assert_eq!(ca.accounts(), 1);
        let registered: Value =
            serde_json::from_str(journal.account.as_ref().unwrap().expose()).unwrap();
        assert_eq!(registered["key_pkcs8"], stored["key_pkcs8"]);
        assert_eq!(registered["id"], "https://ca.test/account/0");
        ca.take_endpoints();
        ca.client()
            .issue(pending(&["a.example"]), &mut journal)
            .await
            .unwrap();
        assert_eq!(ca.count("new-account"), 0);
    }

    #[tokio::test]
    async fn imported_account_without_url_is_looked_up_by_its_key() {
        use super::super::{ForeignKey, foreign_account, is_same_account};
        let (ca, mut journal) = (FakeCa::new(), Memory::default());
        let rsa = crate::certificate::KeyType::Rsa2048.generate().unwrap();
        let key = ForeignKey::Pem(rsa.expose());
        let foreign = foreign_account("https://ca.test/dir", key, None).unwrap();
        journal.account = Some(foreign.credentials.clone());
        ca.client()
            .issue(pending(&["a.example"]), &mut journal)
            .await
            .unwrap();
        assert_eq!(ca.accounts(), 1);
        assert_eq!(ca.payloads("new-account")[0]["onlyReturnExisting"], true);
        // An unknown key is registered once.
        let (ca, mut unknown) = (FakeCa::new(), Memory::default());
        unknown.account = Some(foreign.credentials.clone());
        ca.script("new-account", Scripted::problem(400, "accountDoesNotExist"));
        let client = ca.client();
        let result = client.issue(pending(&["a.example"]), &mut unknown);
        result.await.unwrap();
        assert_eq!((ca.accounts(), ca.count("new-account")), (1, 2));
        let stored = journal.account.unwrap();
        assert!(is_same_account(&stored, &foreign.credentials));
        let stored: Value = serde_json::from_str(stored.expose()).unwrap();
        assert_eq!(stored["id"], "https://ca.test/account/0");
    }

    #[tokio::test]
    async fn forgotten_account_is_registered_again_once_with_its_key() {
        let (ca, mut journal) = (FakeCa::new(), Memory::default());
        let client = ca.client();
        client
            .issue(pending(&["a.example"]), &mut journal)
            .await
            .unwrap();
        let key = |journal: &Memory| {
            let json: Value =
                serde_json::from_str(journal.account.as_ref().unwrap().expose()).unwrap();
            json["key_pkcs8"].clone()
        };
        let before = key(&journal);
        ca.forget_accounts();
        ca.take_endpoints();
        client
            .issue(pending(&["a.example"]), &mut journal)
            .await
            .unwrap();
        assert_eq!((ca.count("new-account"), key(&journal)), (1, before));
        ca.take_endpoints();
        for _ in 0..3 {
            ca.script("new-order", Scripted::problem(400, "accountDoesNotExist"));
        }
        let result = client.issue(pending(&["a.example"]), &mut journal).await;
        assert!(matches!(result.unwrap_err().cause, Cause::Refused(_)));
        assert_eq!((ca.count("new-account"), ca.count("new-order")), (1, 2));
    }

    #[tokio::test]
    async fn registration_sends_only_the_users_settings() {
        let ca = FakeCa::new();
        let register = async |options| {
            let client = Client::new(options).unwrap();
            client
                .issue(pending(&["a.example"]), &mut Memory::default())
                .await
                .unwrap();
            ca.payloads("new-account").pop().unwrap()
        };
        assert_eq!(
            register(ca.settings()).await,
            json!({"termsOfServiceAgreed": false})
        );
        let mut options = ca.settings();
        options.account = AccountSettings {
            email: Some("me@example.com".into()),
            terms_agreed: true,
            external: Some(("customer".into(), Ok(SecretBytes::new(b"secret".to_vec())))),
            credentials_by_email: None,
        };
        let sent = register(options).await;
        assert_eq!(
            (&sent["contact"], &sent["termsOfServiceAgreed"]),
            (&json!(["mailto:me@example.com"]), &json!(true))
        );
        assert!(sent["externalAccountBinding"]["signature"].is_string());
    }

    #[tokio::test]
    async fn binding_is_needed_for_the_registration_only() {
        let (ca, mut journal) = (FakeCa::new(), Memory::default());
        let client = |key: Result<SecretBytes, String>| {
            let mut options = ca.settings();
            options.account.external = Some(("customer".into(), key));
            Client::new(options).unwrap()
        };
        let gone = || client(Err("the HMAC key /etc/hmac: no such file".into()));
        let early = gone().issue(pending(&["a.example"]), &mut journal).await;
        let cause = early.unwrap_err().cause;
        assert!(matches!(&cause, Cause::Binding(why) if why.contains("/etc/hmac")));
        assert!(cause.hint().contains("--eab-hmac-file"), "{}", cause.hint());
        assert_eq!(ca.count("new-account"), 0);
        let given = client(Ok(SecretBytes::new(b"secret".to_vec())));
        given
            .issue(pending(&["a.example"]), &mut journal)
            .await
            .unwrap();
        gone()
            .issue(pending(&["b.example"]), &mut journal)
            .await
            .unwrap();
        assert_eq!(ca.count("new-account"), 1);
    }

    #[tokio::test]
    async fn refused_binding_has_its_own_hint() {
        for (kind, external, words) in [
            ("unauthorized", true, "--eab-kid"),
            ("malformed", true, "--eab-kid"),
            ("unauthorized", false, "deactivated"),
            ("invalidContact", true, "--email"),
        ] {
            let ca = FakeCa::new();
            ca.script("new-account", Scripted::problem(403, kind));
            let mut options = ca.settings();
            options.account.terms_agreed = true;
            let key = SecretBytes::new(b"secret".to_vec());
            options.account.external = external.then(|| ("customer".into(), Ok(key)));
            let client = Client::new(options).unwrap();
            let mut journal = Memory::default();
            let refused = client.issue(pending(&["a.example"]), &mut journal).await;
            let cause = refused.unwrap_err().cause;
            assert!(cause.hint().contains(words), "{kind}: {}", cause.hint());
        }
    }

    #[tokio::test]
    async fn changed_email_is_sent_once() {
        let (ca, mut journal) = (FakeCa::new(), Memory::default());
        let client = |email: Option<&str>| {
            let mut options = ca.settings();
            options.account.email = email.map(str::to_owned);
            Client::new(options).unwrap()
        };
        for (email, sent) in [
            (Some("a@example.com"), 0),
            (Some("a@example.com"), 0),
            (Some("b@example.com"), 1),
            (Some("b@example.com"), 1),
            (None, 1),
        ] {
            let client = client(email);
            client
                .issue(pending(&["a.example"]), &mut journal)
                .await
                .unwrap();
            assert_eq!(ca.count("account"), sent, "{email:?}");
        }
        let contact = &ca.payloads("account")[0]["contact"];
        assert_eq!(*contact, json!(["mailto:b@example.com"]));
        // An address that the CA refuses must not prevent a renewal.
        ca.script("account", Scripted::problem(400, "invalidContact"));
        let invalid = client(Some("c@localhost"));
        invalid
            .issue(pending(&["a.example"]), &mut journal)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn account_is_rejected_without_an_https_url() {
        for location in [None, Some("http://ca.test/account/1"), Some("file:7")] {
            let (ca, mut journal) = (FakeCa::new(), Memory::default());
            let mut reply = Scripted::json(&json!({}));
            if let Some(location) = location {
                reply = reply.with("location", location);
            }
            ca.script("new-account", reply);
            let result = ca
                .client()
                .issue(pending(&["a.example"]), &mut journal)
                .await;
            assert!(matches!(result.unwrap_err().cause, Cause::Protocol(_)));
            assert_eq!(journal.accounts_saved, 1);
        }
    }
}
