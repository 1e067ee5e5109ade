//! The account at a CA (RFC 8555 section 7.3). Its key is made and stored
//! before it is registered, so that after a crash the same key is registered
//! again, which answers with the same account: there is never a second one.

use instant_acme::NewAccount;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Journal;
use super::directory::Directory;
use super::error::Cause;
use super::exchange::{Reply, Session, https};
use super::jws::{AccountKey, Signer, decode, encode};
use crate::certificate::Secret;

/// How to register at the CA.
#[derive(Clone, Debug, Default)]
pub struct AccountOptions {
    /// E-mail address for the CA's notices.
    pub email: Option<String>,
    /// The user has agreed to the CA's terms.
    pub terms_agreed: bool,
    /// External account binding: key identifier and HMAC key (decoded).
    pub external: Option<(String, Vec<u8>)>,
}

/// A registered key.
pub(super) struct Account {
    key: AccountKey,
    id: String,
}

/// The stored form; instant-acme reads it too, once it has an `id` and if its key is on P-256.
#[derive(Serialize, Deserialize)]
pub(super) struct Credentials {
    /// The account's URL; none before it is registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<String>,
    /// Base64url.
    pub(super) key_pkcs8: Secret,
    pub(super) directory: Option<String>,
    /// It is another client's, whose URL is not known: the CA is asked for it before
    /// anything is registered.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) is_foreign: bool,
}

/// The key of a stored account.
pub(super) fn stored_key(credentials: &Secret) -> Option<Secret> {
    let credentials: Credentials = serde_json::from_str(credentials.expose()).ok()?;
    Some(credentials.key_pkcs8)
}

impl Account {
    /// The stored account, or a new one; with `anew` its key is registered
    /// again, since the CA has forgotten it.
    pub(super) async fn open(
        session: &Session,
        directory: &Directory,
        ca: &str,
        options: &AccountOptions,
        journal: &mut dyn Journal,
        anew: bool,
    ) -> Result<Self, Cause> {
        let mut credentials = stored_or_new(ca, journal).await?;
        let key = decode(credentials.key_pkcs8.expose())
            .and_then(|der| AccountKey::from_pkcs8(&der).ok())
            .ok_or_else(unreadable)?;
        if let (Some(id), false) = (&credentials.id, anew) {
            let id = id.clone();
            return Ok(Self { key, id });
        }
        let id = match credentials.is_foreign {
            true => find(session, directory, options, &key).await?,
            false => register(session, directory, options, &key, false).await?,
        };
        credentials.id = Some(id.clone());
        credentials.is_foreign = false;
        save(&credentials, journal).await?;
        Ok(Self { key, id })
    }

    /// A signed POST in this account's name; a POST-as-GET without `payload`.
    pub(super) async fn post(
        &self,
        session: &Session,
        directory: &Directory,
        endpoint: &'static str,
        url: &str,
        payload: Option<&Value>,
    ) -> Result<Reply, Cause> {
        let signer = Signer::Account(&self.key, &self.id);
        session
            .post(endpoint, url, signer, &directory.new_nonce, payload)
            .await
    }

    /// What the answer to a challenge with `token` is (section 8.1).
    pub(super) fn key_authorization(&self, token: &str) -> String {
        format!("{token}.{}", self.key.thumbprint())
    }
}

async fn stored_or_new(ca: &str, journal: &mut dyn Journal) -> Result<Credentials, Cause> {
    if let Some(stored) = journal.account().await.map_err(Cause::Journal)? {
        return serde_json::from_str(stored.expose()).map_err(|_| unreadable());
    }
    let key = AccountKey::generate()
        .map_err(|_| Cause::Journal("no key could be made for the account".into()))?;
    let credentials = Credentials {
        id: None,
        key_pkcs8: Secret::new(encode(&key)),
        directory: Some(ca.to_owned()),
        is_foreign: false,
    };
    let stored = journal.create_account(&to_json(&credentials)?).await;
    let stored = stored.map_err(Cause::Journal)?;
    serde_json::from_str(stored.expose()).map_err(|_| unreadable())
}

/// The account that the CA has for `key` already (section 7.3.1), else a new one.
async fn find(
    session: &Session,
    directory: &Directory,
    options: &AccountOptions,
    key: &AccountKey,
) -> Result<String, Cause> {
    match register(session, directory, options, key, true).await {
        Err(cause) if cause.objection() == Some("accountDoesNotExist") => {
            tracing::warn!(
                "the CA knows no account of the key that was taken over; it is registered there"
            );
            register(session, directory, options, key, false).await
        }
        found => found,
    }
}

async fn register(
    session: &Session,
    directory: &Directory,
    options: &AccountOptions,
    key: &AccountKey,
    only_existing: bool,
) -> Result<String, Cause> {
    let url = &directory.new_account;
    let contact = options
        .email
        .as_ref()
        .map(|email| format!("mailto:{email}"));
    let contacts: Vec<&str> = contact.as_deref().into_iter().collect();
    let new = NewAccount {
        contact: &contacts,
        terms_of_service_agreed: options.terms_agreed,
        only_return_existing: only_existing,
    };
    let mut payload = serde_json::to_value(&new).map_err(|e| Cause::Protocol(e.to_string()))?;
    if let (true, Some(members)) = (contacts.is_empty(), payload.as_object_mut()) {
        members.remove("contact");
    }
    if let Some((id, secret)) = &options.external {
        payload["externalAccountBinding"] = key.bind(id, secret, url);
    }
    let signer = Signer::Key(key);
    let reply = session
        .post(
            "new-account",
            url,
            signer,
            &directory.new_nonce,
            Some(&payload),
        )
        .await?;
    let id = reply
        .location
        .ok_or_else(|| Cause::Protocol("a new account without its URL".into()))?;
    https(&id)?;
    Ok(id)
}

async fn save(credentials: &Credentials, journal: &mut dyn Journal) -> Result<(), Cause> {
    let saved = journal.save_account(&to_json(credentials)?).await;
    saved.map_err(Cause::Journal)
}

fn to_json(credentials: &Credentials) -> Result<Secret, Cause> {
    let json = serde_json::to_string(credentials).map_err(|e| Cause::Journal(e.into()))?;
    Ok(Secret::new(json))
}

fn unreadable() -> Cause {
    Cause::Journal("the stored account is not readable".into())
}

#[cfg(test)]
mod tests {
    use super::super::fake::{FakeCa, Memory, Scripted, pending};
    use super::super::{Cause, Client, Issuer};
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn a_key_that_was_stored_but_not_registered_is_registered_again() {
        let (ca, mut journal) = (FakeCa::new(), Memory::default());
        // The CA has registered the key and its reply is lost.
        ca.lose_reply("new-account");
        let ended = ca
            .client()
            .issue(pending(&["a.example"]), &mut journal)
            .await;
        assert!(matches!(ended.unwrap_err().cause, Cause::Unreachable(_)));
        let stored: Value =
            serde_json::from_str(journal.account.as_ref().unwrap().expose()).unwrap();
        assert!(stored.get("id").is_none());
        ca.client()
            .issue(pending(&["a.example"]), &mut journal)
            .await
            .unwrap();
        assert_eq!(ca.accounts(), 1);
        let again: Value =
            serde_json::from_str(journal.account.as_ref().unwrap().expose()).unwrap();
        assert_eq!(again["key_pkcs8"], stored["key_pkcs8"]);
        assert_eq!(again["id"], "https://ca.test/account/0");
        ca.seen();
        ca.client()
            .issue(pending(&["a.example"]), &mut journal)
            .await
            .unwrap();
        assert_eq!(ca.count("new-account"), 0);
    }

    #[tokio::test]
    async fn an_account_of_another_client_is_asked_for_by_its_key_where_its_url_is_lost() {
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
        // One that the CA does not know is registered, and no other.
        let (ca, mut unknown) = (FakeCa::new(), Memory::default());
        unknown.account = Some(foreign.credentials.clone());
        ca.script("new-account", Scripted::problem(400, "accountDoesNotExist"));
        let client = ca.client();
        let ended = client.issue(pending(&["a.example"]), &mut unknown);
        ended.await.unwrap();
        assert_eq!((ca.accounts(), ca.count("new-account")), (1, 2));
        let stored = journal.account.unwrap();
        assert!(is_same_account(&stored, &foreign.credentials));
        let stored: Value = serde_json::from_str(stored.expose()).unwrap();
        assert_eq!(stored["id"], "https://ca.test/account/0");
    }

    #[tokio::test]
    async fn a_forgotten_account_is_registered_again_once_with_its_key() {
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
        ca.seen();
        client
            .issue(pending(&["a.example"]), &mut journal)
            .await
            .unwrap();
        assert_eq!((ca.count("new-account"), key(&journal)), (1, before));
        ca.seen();
        for _ in 0..3 {
            ca.script("new-order", Scripted::problem(400, "accountDoesNotExist"));
        }
        let ended = client.issue(pending(&["a.example"]), &mut journal).await;
        assert!(matches!(ended.unwrap_err().cause, Cause::Refused(_)));
        assert_eq!((ca.count("new-account"), ca.count("new-order")), (1, 2));
    }

    #[tokio::test]
    async fn what_the_user_gave_is_registered_and_nothing_else() {
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
            register(ca.options()).await,
            json!({"termsOfServiceAgreed": false})
        );
        let mut options = ca.options();
        options.account = AccountOptions {
            email: Some("me@example.com".into()),
            terms_agreed: true,
            external: Some(("customer".into(), b"secret".to_vec())),
        };
        let sent = register(options).await;
        assert_eq!(
            (&sent["contact"], &sent["termsOfServiceAgreed"]),
            (&json!(["mailto:me@example.com"]), &json!(true))
        );
        assert!(sent["externalAccountBinding"]["signature"].is_string());
    }

    #[tokio::test]
    async fn an_account_without_an_https_url_is_none() {
        for location in [None, Some("http://ca.test/account/1"), Some("7")] {
            let (ca, mut journal) = (FakeCa::new(), Memory::default());
            let mut reply = Scripted::json(&json!({}));
            if let Some(location) = location {
                reply = reply.with("location", location);
            }
            ca.script("new-account", reply);
            let ended = ca
                .client()
                .issue(pending(&["a.example"]), &mut journal)
                .await;
            assert!(matches!(ended.unwrap_err().cause, Cause::Protocol(_)));
            assert_eq!(journal.accounts_saved, 1);
        }
    }
}
