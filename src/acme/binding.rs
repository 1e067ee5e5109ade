//! The credentials of an external account that a CA gives for an e-mail address alone, before
//! it registers an account (RFC 8555 section 7.3.4 leaves that to each CA).

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Request, Response};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::client::Client;
use super::error::{Cause, Explained};
use super::jws::decode;
use super::retry::patiently;
use crate::certificate::SecretBytes;
use crate::text::printable;

impl Client {
    /// The key identifier and the HMAC key of the external account: the user's, else those
    /// that the CA gives for the e-mail address; `None` if it wants none.
    pub(super) async fn external_account(&self) -> Result<Option<(String, SecretBytes)>, Cause> {
        let settings = &self.settings.account;
        if let Some((id, secret)) = &settings.external {
            let secret = secret.as_ref();
            let secret = secret.map_err(|why| Cause::Binding(why.clone()))?;
            return Ok(Some((id.clone(), secret.clone())));
        }
        let (Some(url), Some(email)) = (&settings.credentials_by_email, &settings.email) else {
            return Ok(None);
        };
        let send = async || {
            let email = utf8_percent_encode(email, NON_ALPHANUMERIC);
            let request = Request::post(url)
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(Bytes::from(format!("email={email}")));
            let request = request.map_err(|error| Cause::Protocol(error.to_string()))?;
            read(&self.settings.exchange.exchange(request).await?)
        };
        let given = patiently(self.settings.clock.as_ref(), |_| true, send).await?;
        tracing::info!(
            "{} gave the credentials of an external account",
            self.settings.directory
        );
        Ok(Some(given))
    }
}

/// The key identifier and the HMAC key in the CA's reply.
fn read(reply: &Response<Bytes>) -> Result<(String, SecretBytes), Cause> {
    let status = reply.status();
    if status.is_server_error() {
        let message = format!("the CA gives no external account: HTTP {}", status.as_u16());
        return Err(Cause::failing(message, None));
    }
    let json: Value = serde_json::from_slice(reply.body()).unwrap_or_default();
    let key = json["eab_hmac_key"].as_str().and_then(|key| {
        let key = key.trim_end_matches('=');
        decode(key).or_else(|| STANDARD_NO_PAD.decode(key).ok())
    });
    match (json["eab_kid"].as_str(), key) {
        (Some(id), Some(key)) if status.is_success() && !id.is_empty() && !key.is_empty() => {
            Ok((id.to_owned(), SecretBytes::new(key)))
        }
        _ => {
            let why = json["error"]["type"].as_str();
            let why = why.map_or_else(|| format!("HTTP {}", status.as_u16()), printable);
            let message =
                format!("the CA gives no external account for this e-mail address: {why}");
            let hint = "correct --email, or get a pair from the CA's web site for --eab-kid and --eab-hmac-file";
            Err(Cause::Refused(Explained::new(message, hint)))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fake::{FakeCa, Memory, Scripted, pending};
    use super::super::{AccountSettings, Client, Issuer};
    use super::*;

    fn client(ca: &std::sync::Arc<FakeCa>) -> Client {
        let mut options = ca.settings();
        options.account = AccountSettings {
            email: Some("me+certs@example.com".into()),
            credentials_by_email: Some("https://api.ca.test/credentials".into()),
            ..AccountSettings::default()
        };
        Client::new(options).unwrap()
    }

    #[tokio::test]
    async fn external_account_is_fetched_by_email_for_the_registration_only() {
        let (ca, mut journal) = (FakeCa::new(), Memory::default());
        let given = json!({"success": true, "eab_kid": "kid-7", "eab_hmac_key": "c2VjcmV0"});
        // The first try meets a gateway.
        ca.script(
            "credentials",
            Scripted(502, "text/html", "<p>".into(), vec![]),
        );
        ca.script("credentials", Scripted::json(&given));
        for name in ["a.example", "b.example"] {
            let client = client(&ca);
            client.issue(pending(&[name]), &mut journal).await.unwrap();
        }
        assert_eq!((ca.count("credentials"), ca.count("new-account")), (2, 1));
        assert_eq!(
            ca.bodies("credentials")[1],
            "email=me%2Bcerts%40example%2Ecom"
        );
        let sent = &ca.payloads("new-account")[0]["externalAccountBinding"];
        let protected = decode(sent["protected"].as_str().unwrap()).unwrap();
        let protected: Value = serde_json::from_slice(&protected).unwrap();
        assert_eq!(protected["kid"], "kid-7");
    }

    #[tokio::test]
    async fn refused_email_ends_before_the_registration() {
        for (reply, words) in [
            (
                json!({"success": false, "error": {"code": 2900, "type": "invalid_email"}}),
                "invalid_email",
            ),
            (json!({"success": true, "eab_kid": "kid"}), "HTTP 200"),
            (
                json!({"eab_kid": "", "eab_hmac_key": "c2VjcmV0"}),
                "HTTP 200",
            ),
            (json!([]), "HTTP 200"),
        ] {
            let ca = FakeCa::new();
            ca.script("credentials", Scripted::json(&reply));
            let mut journal = Memory::default();
            let ended = client(&ca)
                .issue(pending(&["a.example"]), &mut journal)
                .await;
            let cause = ended.unwrap_err().cause;
            assert!(matches!(&cause, Cause::Refused(_)), "{cause:?}");
            assert!(cause.to_string().contains(words), "{cause}");
            assert!(cause.hint().contains("--eab-kid"), "{}", cause.hint());
            assert_eq!(ca.count("new-account"), 0);
        }
    }
}
