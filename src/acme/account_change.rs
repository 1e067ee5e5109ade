//! A registered account: read, updated, deactivated, and given another key (RFC 8555
//! sections 7.3.2, 7.3.5 and 7.3.6).
//!
//! A rollover stores the new key beside the old one before the CA gets it. If its reply is
//! lost or the process killed, the next contact asks the CA for the account of the new key:
//! the old key is dropped only when the CA has the new one.

use serde::Serialize;
use serde_json::{Value, json};

use super::account::{Account, Kept, key_of, new_key};
use super::directory::Directory;
use super::error::{AcmeError, Cause, Phase};
use super::exchange::Reply;
use super::jws::{Signer, decode, key_change};
use super::retry::patiently;
use super::{Client, Journal};
use crate::text::printable;

/// More contacts than any CA keeps.
const MOST_CONTACTS: usize = 20;

/// An account as the CA shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AccountState {
    /// Its URL.
    pub url: String,
    /// `valid`, `deactivated` or `revoked`.
    pub status: String,
    /// Its contacts, such as `mailto:` URLs.
    pub contacts: Vec<String>,
    /// The RFC 7638 thumbprint of its key.
    pub thumbprint: String,
    /// The kind of its key.
    pub key: String,
    /// The key identifier of the external account that it is bound to.
    pub external_account: Option<String>,
    /// Whether the CA's answer to a key change is still unknown.
    pub rollover_pending: bool,
}

/// A change of an account.
#[derive(Clone, Debug, Default)]
pub struct AccountChange {
    /// The new e-mail address.
    pub email: Option<String>,
    /// Whether the user agrees to the CA's terms.
    pub agree: bool,
}

impl Client {
    /// The account as the CA shows it.
    ///
    /// # Errors
    /// The CA's.
    pub async fn account_state(
        &self,
        journal: &mut dyn Journal,
    ) -> Result<AccountState, AcmeError> {
        let directory = self.directory().await?;
        let account = self.account(&directory, journal, None).await?;
        let shown = async {
            let reply = self.post_to_account(&directory, &account, None).await?;
            let kept = Kept::of(account.credentials.clone())?;
            state(&account, &kept, &reply)
        };
        self.explained(&directory, shown.await)
    }

    /// Sends a change to the CA, and stores it.
    ///
    /// # Errors
    /// The CA's, and those of the store.
    pub async fn change_account(
        &self,
        change: &AccountChange,
        journal: &mut dyn Journal,
    ) -> Result<(), AcmeError> {
        let directory = self.directory().await?;
        let account = self.account(&directory, journal, None).await?;
        let mut payload = json!({});
        if let Some(email) = &change.email {
            payload["contact"] = json!([format!("mailto:{email}")]);
        }
        if change.agree {
            payload["termsOfServiceAgreed"] = true.into();
        }
        let changed = async {
            self.post_to_account(&directory, &account, Some(&payload))
                .await?;
            let mut kept = Kept::of(account.credentials.clone())?;
            if change.email.is_some() && kept.account.email != change.email {
                kept.account.email.clone_from(&change.email);
                kept.save(journal).await?;
            }
            Ok(())
        };
        self.explained(&directory, changed.await)
    }

    /// Deactivates the account for ever. An account that the CA lets do nothing any more
    /// counts as done: the reply to an earlier request may have been lost.
    ///
    /// # Errors
    /// The CA's.
    pub async fn deactivate_account(&self, journal: &mut dyn Journal) -> Result<(), AcmeError> {
        let directory = self.directory().await?;
        let account = self.account(&directory, journal, None).await?;
        let payload = json!({"status": "deactivated"});
        let sent = self.post_to_account(&directory, &account, Some(&payload));
        let ended = match sent.await {
            Err(cause) if cause.refusal() == Some("unauthorized") => {
                tracing::warn!("{} no longer accepts the account: {cause}", account.id);
                Ok(())
            }
            sent => sent.map(drop),
        };
        self.explained(&directory, ended)
    }

    /// Gives the account a new key, and returns the state with the new one.
    ///
    /// # Errors
    /// The CA's, and those of the store. If it is not known which key the CA has, the next
    /// contact finds out.
    pub async fn roll_over(&self, journal: &mut dyn Journal) -> Result<AccountState, AcmeError> {
        let directory = self.directory().await?;
        let account = self.account(&directory, journal, None).await?;
        let changed = self.change_key(&directory, &account, journal).await;
        self.explained(&directory, changed)?;
        self.account_state(journal).await
    }

    async fn change_key(
        &self,
        directory: &Directory,
        account: &Account,
        journal: &mut dyn Journal,
    ) -> Result<(), Cause> {
        let url = directory.key_change.as_ref();
        let url = url.ok_or_else(|| Cause::Protocol("the CA offers no key change".into()))?;
        let mut kept = Kept::of(account.credentials.clone())?;
        if kept.account.next_key_pkcs8.is_none() {
            kept.account.next_key_pkcs8 = Some(new_key()?);
            kept.save(journal).await?;
        }
        let next = kept.account.next_key_pkcs8.clone();
        let next = key_of(&next.ok_or_else(super::account::unreadable)?)?;
        let inner = key_change(&next, &account.key, &account.id, url);
        let inner =
            inner.map_err(|_| Cause::Protocol("the new key could not sign the request".into()))?;
        // Never repeated as it is: after a lost reply the old key signs nothing any more.
        let signer = Signer::Account(&account.key, &account.id);
        let new_nonce = &directory.new_nonce;
        let sent = self
            .transport
            .post("key-change", url, signer, new_nonce, Some(&inner))
            .await;
        if self.settle_rollover(directory, &mut kept, journal).await? {
            return Ok(());
        }
        let refused = || Cause::Protocol("the CA has not taken the new key".into());
        Err(sent.err().unwrap_or_else(refused))
    }

    /// Finds out whether the CA has the key of a rollover, and then drops the old one. Until
    /// then both stay: the request may still arrive.
    pub(super) async fn settle_rollover(
        &self,
        directory: &Directory,
        kept: &mut Kept,
        journal: &mut dyn Journal,
    ) -> Result<bool, Cause> {
        let Some(next) = kept.account.next_key_pkcs8.clone() else {
            return Ok(false);
        };
        match self.register(directory, &key_of(&next)?, true).await {
            Ok(id) => {
                kept.account.key_pkcs8 = next;
                kept.account.next_key_pkcs8 = None;
                kept.account.id = Some(id);
                kept.save(journal).await?;
                tracing::info!("{} has the new account key", self.settings.directory);
                Ok(true)
            }
            Err(cause) if cause.refusal().is_some() => Ok(false),
            Err(cause) => Err(cause),
        }
    }

    /// A POST to the account's URL; a POST-as-GET without `payload`.
    pub(super) async fn post_to_account(
        &self,
        directory: &Directory,
        account: &Account,
        payload: Option<&Value>,
    ) -> Result<Reply, Cause> {
        let (transport, new_nonce) = (&self.transport, &directory.new_nonce);
        let send = || {
            let signer = Signer::Account(&account.key, &account.id);
            transport.post("account", &account.id, signer, new_nonce, payload)
        };
        patiently(self.settings.clock.as_ref(), |_| true, send).await
    }

    fn explained<T>(&self, directory: &Directory, ended: Result<T, Cause>) -> Result<T, AcmeError> {
        ended.map_err(|cause| {
            let cause = cause.with_hint_from(&directory.meta, Phase::AccountChange);
            self.at(Phase::AccountChange)(cause)
        })
    }
}

fn state(account: &Account, kept: &Kept, reply: &Reply) -> Result<AccountState, Cause> {
    let json: Value = reply.json()?;
    let contacts = json["contact"].as_array().into_iter().flatten();
    let contacts = contacts.filter_map(Value::as_str).map(printable);
    let status = json["status"].as_str().unwrap_or("unknown");
    let binding = json["externalAccountBinding"]["protected"].as_str();
    let protected = binding.and_then(decode);
    let protected: Option<Value> = protected.and_then(|it| serde_json::from_slice(&it).ok());
    let kid = protected.and_then(|protected| protected["kid"].as_str().map(printable));
    Ok(AccountState {
        url: printable(&account.id),
        status: printable(status),
        contacts: contacts.take(MOST_CONTACTS).collect(),
        thumbprint: account.key.thumbprint(),
        key: account.key.kind(),
        external_account: kid,
        rollover_pending: kept.account.next_key_pkcs8.is_some(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::fake::{FakeCa, Memory, Scripted, pending};
    use super::super::{Issuer, JournalError};
    use super::*;
    use crate::certificate::Secret;

    fn stored(journal: &Memory) -> Value {
        serde_json::from_str(journal.account.as_ref().unwrap().expose()).unwrap()
    }

    async fn registered() -> (std::sync::Arc<FakeCa>, Memory) {
        let (ca, mut journal) = (FakeCa::new(), Memory::default());
        let client = ca.client();
        let issued = client.issue(pending(&["a.example"]), &mut journal);
        issued.await.unwrap();
        (ca, journal)
    }

    #[tokio::test]
    async fn rollover_replaces_the_key_once_the_ca_has_it() {
        let (ca, mut journal) = registered().await;
        let before = stored(&journal);
        let client = ca.client();
        let state = client.roll_over(&mut journal).await.unwrap();
        let after = stored(&journal);
        assert_ne!(after["key_pkcs8"], before["key_pkcs8"]);
        assert!(after.get("next_key_pkcs8").is_none() && !state.rollover_pending);
        assert_eq!((&after["id"], ca.accounts()), (&before["id"], 1));
        let issued = client.issue(pending(&["a.example"]), &mut journal);
        issued.await.unwrap();
    }

    #[tokio::test]
    async fn lost_reply_to_a_rollover_is_settled_by_the_same_command() {
        let (ca, mut journal) = registered().await;
        let before = stored(&journal);
        ca.lose_replies("key-change", 1);
        ca.client().roll_over(&mut journal).await.unwrap();
        assert_ne!(stored(&journal)["key_pkcs8"], before["key_pkcs8"]);
        assert!(stored(&journal).get("next_key_pkcs8").is_none());
    }

    #[tokio::test]
    async fn interrupted_rollover_is_settled_by_the_next_contact() {
        for was_taken in [true, false] {
            let (ca, mut journal) = registered().await;
            // Neither the reply nor the question afterwards gets through.
            match was_taken {
                true => ca.lose_replies("key-change", 1),
                false => ca.persist("key-change", &Scripted::problem(500, "serverInternal")),
            }
            ca.persist("new-account", &Scripted::problem(500, "serverInternal"));
            ca.client().roll_over(&mut journal).await.unwrap_err();
            let both = stored(&journal);
            assert!(both["next_key_pkcs8"].is_string());
            ca.forget_scripts();
            let client = ca.client();
            let issued = client.issue(pending(&["a.example"]), &mut journal);
            issued.await.unwrap();
            let after = stored(&journal);
            let next = if was_taken {
                "next_key_pkcs8"
            } else {
                "key_pkcs8"
            };
            assert_eq!(after["key_pkcs8"], both[next]);
            assert_eq!(ca.accounts(), 1);
            // The same key is sent again, so that a third one is never needed.
            let state = client.roll_over(&mut journal).await.unwrap();
            assert!(!state.rollover_pending);
            let last = stored(&journal)["key_pkcs8"].clone();
            assert_eq!(last == both["next_key_pkcs8"], !was_taken);
        }
    }

    #[tokio::test]
    async fn running_client_uses_a_key_that_another_process_changed() {
        let (ca, mut journal) = registered().await;
        let running = ca.client();
        let issue = async |journal: &mut Memory| {
            let issued = running.issue(pending(&["a.example"]), journal).await;
            issued.unwrap();
        };
        issue(&mut journal).await;
        ca.client().roll_over(&mut journal).await.unwrap();
        issue(&mut journal).await;
        assert_eq!(ca.accounts(), 1);
    }

    /// A journal in which another process has the last word.
    struct Stale<'m>(&'m mut Memory);

    #[async_trait::async_trait]
    impl Journal for Stale<'_> {
        async fn order(&mut self, _: &crate::record::PendingOrder) -> Result<(), JournalError> {
            Ok(())
        }
        async fn account(&mut self) -> Result<Option<Secret>, JournalError> {
            self.0.account().await
        }
        async fn create_account(&mut self, one: &Secret) -> Result<Secret, JournalError> {
            self.0.create_account(one).await
        }
        async fn save_account(&mut self, _: &Secret, _: &Secret) -> Result<(), JournalError> {
            Err("changed by another process".into())
        }
    }

    #[tokio::test]
    async fn key_is_not_sent_before_it_is_stored() {
        let (ca, mut journal) = registered().await;
        let rolled = ca.client();
        let error = rolled.roll_over(&mut Stale(&mut journal)).await;
        assert!(matches!(error.unwrap_err().cause, Cause::Journal(_)));
        assert_eq!(ca.count("key-change"), 0);
    }

    #[tokio::test]
    async fn changes_and_state_are_the_cas() {
        let (ca, mut journal) = registered().await;
        let client = ca.client();
        let change = AccountChange {
            email: Some("new@example.com".into()),
            agree: true,
        };
        client.change_account(&change, &mut journal).await.unwrap();
        let sent = ca.payloads("account").pop().unwrap();
        let expected = json!({"contact": ["mailto:new@example.com"], "termsOfServiceAgreed": true});
        assert_eq!(sent, expected);
        assert_eq!(stored(&journal)["email"], "new@example.com");
        let protected = super::super::jws::encode(br#"{"kid":"customer\u001b"}"#);
        ca.script(
            "account",
            Scripted::json(&json!({
                "status": "valid", "contact": ["mailto:new@example.com", 7],
                "externalAccountBinding": {"protected": protected},
            })),
        );
        let state = client.account_state(&mut journal).await.unwrap();
        assert_eq!(state.contacts, ["mailto:new@example.com"]);
        assert_eq!(state.external_account.as_deref(), Some("customer\\u{1b}"));
        ca.script("account", Scripted::problem(401, "unauthorized"));
        client.deactivate_account(&mut journal).await.unwrap();
    }
}
