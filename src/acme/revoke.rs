//! Revocation of a certificate (RFC 8555 section 7.6): signed by the account, or by the
//! certificate's own key, which needs no account. A revoked certificate counts as done.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

use super::account::Kept;
use super::directory::Directory;
use super::error::{AcmeError, Cause, Phase};
use super::exchange::Reply;
use super::imported::{ForeignKey, read};
use super::jws::{Signer, encode};
use super::retry::patiently;
use super::{Client, Journal, RevocationRequest};
use crate::certificate::Secret;
use crate::record::RevocationReason;

impl Client {
    pub(super) async fn send_revocation(
        &self,
        request: &RevocationRequest<'_>,
        journal: &mut dyn Journal,
    ) -> Result<(), AcmeError> {
        let directory = self.directory().await?;
        let failed = |cause: Cause| {
            let cause = cause.with_hint_from(&directory.meta, Phase::Revocation);
            self.at(Phase::Revocation)(cause)
        };
        let sent = match request.key_pem {
            Some(key) => self.revoke_by_key(&directory, request, key).await,
            None => {
                let stored = Kept::load(journal).await.map_err(failed)?;
                if stored.is_none() {
                    return Err(failed(Cause::Journal(
                        "no account of this CA is stored".into(),
                    )));
                }
                let account = self.account(&directory, journal, None).await?;
                let signer = Signer::Account(&account.key, &account.id);
                self.post_revocation(&directory, request, signer).await
            }
        };
        match sent {
            Err(cause) if cause.objection() == Some("alreadyRevoked") => Ok(()),
            sent => sent.map(drop).map_err(failed),
        }
    }

    async fn revoke_by_key(
        &self,
        directory: &Directory,
        request: &RevocationRequest<'_>,
        key: &Secret,
    ) -> Result<Reply, Cause> {
        let key = read(ForeignKey::Pem(key.expose()));
        let unusable = "the certificate's key cannot sign requests: only ECDSA P-256 and P-384 and RSA of 2048 to 4096 bits can";
        let key = key.ok_or_else(|| Cause::Protocol(unusable.into()))?;
        self.post_revocation(directory, request, Signer::Key(&key))
            .await
    }

    async fn post_revocation(
        &self,
        directory: &Directory,
        request: &RevocationRequest<'_>,
        signer: Signer<'_>,
    ) -> Result<Reply, Cause> {
        let url = directory.revoke_cert.as_ref();
        let url = url.ok_or_else(|| Cause::Protocol("the CA offers no revocation".into()))?;
        let payload = payload(request)?;
        let send = || {
            let (transport, new_nonce) = (&self.transport, &directory.new_nonce);
            transport.post("revoke-cert", url, signer, new_nonce, Some(&payload))
        };
        patiently(self.settings.clock.as_ref(), |_| true, send).await
    }
}

fn payload(request: &RevocationRequest<'_>) -> Result<Value, Cause> {
    let leaf = CertificateDer::from_pem_slice(request.chain_pem.as_bytes());
    let leaf = leaf.map_err(|_| Cause::Protocol("the certificate is not valid PEM".into()))?;
    let mut payload = json!({"certificate": encode(&leaf)});
    if request.reason != RevocationReason::Unspecified {
        payload["reason"] = request.reason.code().into();
    }
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use super::super::fake::{FakeCa, Memory, Scripted, pem};
    use super::super::{Issuer, fake};
    use super::*;
    use crate::certificate::KeyType;

    #[tokio::test]
    async fn revocation_is_signed_by_account_or_key_and_repeated_without_harm() {
        let (ca, mut journal) = (FakeCa::new(), Memory::default());
        let (client, chain_pem) = (ca.client(), pem("leaf"));
        let mut request = RevocationRequest {
            chain_pem: &chain_pem,
            reason: RevocationReason::Unspecified,
            key_pem: None,
        };
        // No account is registered only to revoke.
        let error = client.revoke(&request, &mut journal).await.unwrap_err();
        assert!(matches!(error.cause, Cause::Journal(_)), "{error}");
        assert_eq!((ca.accounts(), ca.count("revoke-cert")), (0, 0));
        client
            .issue(fake::pending(&["a.example"]), &mut journal)
            .await
            .unwrap();
        client.revoke(&request, &mut journal).await.unwrap();
        let sent = ca.payloads("revoke-cert").pop().unwrap();
        assert!(sent["certificate"].is_string() && sent.get("reason").is_none());
        ca.script("revoke-cert", Scripted::problem(400, "alreadyRevoked"));
        client.revoke(&request, &mut journal).await.unwrap();
        let key = KeyType::EcdsaP384.generate().unwrap();
        (request.key_pem, request.reason) = (Some(&key), RevocationReason::KeyCompromise);
        let mut nothing = Memory::default();
        client.revoke(&request, &mut nothing).await.unwrap();
        assert_eq!(ca.payloads("revoke-cert").pop().unwrap()["reason"], 1);
        assert_eq!(nothing.accounts_saved, 0);
        ca.script("revoke-cert", Scripted::problem(403, "unauthorized"));
        request.key_pem = None;
        let error = client.revoke(&request, &mut journal).await.unwrap_err();
        let hint = error.cause.hint();
        assert!(hint.contains("--key-file"), "{hint}");
    }
}
