//! The CA's directory (RFC 8555 section 7.1.1): the URL of each resource, the
//! CA's metadata, and the hints that need it. It is never stored.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::error::{AcmeError, Cause, Explained, Phase};
use super::exchange::{Transport, https};
use crate::text::printable;

/// The CA's resource URLs; all of them https.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Directory {
    pub(super) new_nonce: String,
    pub(super) new_account: String,
    pub(super) new_order: String,
    /// Present if the CA suggests renewal windows (RFC 9773). An unusable URL is ignored.
    #[serde(default, deserialize_with = "optional")]
    pub(super) renewal_info: Option<String>,
    /// Present if the CA revokes certificates.
    #[serde(default, deserialize_with = "optional")]
    pub(super) revoke_cert: Option<String>,
    /// Present if the CA changes the keys of accounts.
    #[serde(default, deserialize_with = "optional")]
    pub(super) key_change: Option<String>,
    #[serde(default, deserialize_with = "meta")]
    pub(super) meta: Meta,
}

/// The CA's metadata; issuance needs none of it.
#[derive(Debug, Default)]
pub(super) struct Meta {
    pub(super) terms_of_service: Option<String>,
    pub(super) caa_identities: Vec<String>,
    /// What the hash of an account begins with in a persistent record (a draft).
    pub(super) account_hash_prefix: Option<String>,
    /// Descriptions by name.
    pub(super) profiles: BTreeMap<String, String>,
}

fn optional<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(value.as_str().map(str::to_owned))
}

/// Reads the members of the expected shape and ignores the others.
fn meta<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Meta, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let identities = value.get("caaIdentities").and_then(Value::as_array);
    let profiles = value.get("profiles").and_then(Value::as_object);
    Ok(Meta {
        terms_of_service: value.get("termsOfService").and_then(text),
        account_hash_prefix: { value.get("accountHashPrefix").and_then(text) }
            .filter(|prefix| prefix.starts_with("https://") && prefix.parse::<http::Uri>().is_ok()),
        caa_identities: identities.into_iter().flatten().filter_map(text).collect(),
        profiles: profiles
            .into_iter()
            .flatten()
            .map(|(name, description)| (name.clone(), text(description).unwrap_or_default()))
            .collect(),
    })
}

impl Directory {
    pub(super) async fn read(transport: &Transport, url: &str) -> Result<Self, Cause> {
        let reply = transport.get("directory", url).await?;
        let mut directory: Self = reply.json()?;
        for url in directory.required() {
            *url = reply.absolute(url);
            https(url)?;
        }
        for url in [
            &mut directory.renewal_info,
            &mut directory.revoke_cert,
            &mut directory.key_change,
        ] {
            let absolute = url.take().map(|url| reply.absolute(&url));
            *url = absolute.filter(|url| https(url).is_ok());
        }
        Ok(directory)
    }

    fn required(&mut self) -> [&mut String; 3] {
        [
            &mut self.new_nonce,
            &mut self.new_account,
            &mut self.new_order,
        ]
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn urls(&self) -> impl Iterator<Item = &String> {
        let required = [&self.new_nonce, &self.new_account, &self.new_order];
        let optional = [&self.renewal_info, &self.revoke_cert, &self.key_change];
        required.into_iter().chain(optional.into_iter().flatten())
    }
}

impl Cause {
    /// A profile that the directory does not offer; no order is sent.
    pub(super) fn invalid_profile(profile: &str, meta: &Meta) -> Self {
        let message = format!("the CA does not offer the profile `{}`", printable(profile));
        let mut explained = Explained::new(message, profiles_hint(meta));
        explained.kind = "invalidProfile".into();
        Self::Refused(explained)
    }

    /// Explains the refusal of an order that requests a lifetime. CAs have no error type for it:
    /// Boulder's is `malformed`.
    pub(super) fn of_lifetime(mut self, meta: &Meta) -> Self {
        if let Self::Refused(explained) = &mut self
            && (explained.kind.as_ref() == "malformed" || explained.message.contains("otAfter"))
        {
            explained.hint = lifetime_hint(meta);
        }
        self
    }

    /// Completes a refusal's hint with what only the CA's directory says.
    pub(super) fn with_hint_from(mut self, meta: &Meta, phase: Phase) -> Self {
        let Self::Refused(explained) = &mut self else {
            return self;
        };
        let terms = meta.terms_of_service.as_deref().map(printable);
        let identity = meta.caa_identities.first().map(|name| printable(name));
        let hint = match (explained.kind.as_ref(), terms, identity) {
            ("invalidProfile", ..) => Some(profiles_hint(meta)),
            ("unauthorized", ..) if phase == Phase::Revocation => Some(Cow::Borrowed(
                "this account may not revoke it, and its own key may: repeat the command with --reason keycompromise, or for a file with --key-file KEY",
            )),
            ("caa", _, Some(name)) => Some(Cow::Owned(format!(
                "the name's CAA records forbid this CA: add `0 issue \"{name}\"`, or use a CA that they allow"
            ))),
            // Boulder reports missing agreement to its terms as `malformed`.
            ("userActionRequired" | "malformed", Some(terms), _) if phase == Phase::Account => {
                Some(Cow::Owned(format!("read {terms}, then add --agree-tos")))
            }
            // Without a page of its own, the terms are what the user can read.
            ("userActionRequired", Some(terms), _) if !explained.message.contains("://") => {
                let hint = format!(
                    "read {terms}, then agree to them: certs account update --agree-tos; then try again"
                );
                Some(Cow::Owned(hint))
            }
            _ => None,
        };
        if let Some(hint) = hint {
            explained.hint = hint;
        }
        self
    }
}

impl AcmeError {
    /// The next action. Its commands about the account name the CA: there may be accounts at
    /// others.
    #[must_use]
    pub(crate) fn hint(&self) -> String {
        let mut hint = self.cause.hint().to_owned();
        for verb in ["show", "update", "deactivate"] {
            let command = format!("certs account {verb}");
            hint = hint.replace(&command, &format!("{command} --ca {}", self.ca));
        }
        hint
    }
}

fn profiles_hint(meta: &Meta) -> Cow<'static, str> {
    if meta.profiles.is_empty() {
        return Cow::Borrowed("this CA offers no profiles: repeat certs issue with --profile none");
    }
    let names: Vec<_> = meta.profiles.keys().map(|name| printable(name)).collect();
    format!(
        "repeat certs issue with --profile and one of: {}",
        names.join(", ")
    )
    .into()
}

fn lifetime_hint(meta: &Meta) -> Cow<'static, str> {
    let other =
        "repeat certs issue with --lifetime none: this CA chooses the lifetime, or allows others";
    match meta.profiles.is_empty() {
        true => Cow::Borrowed(other),
        false => {
            let names: Vec<_> = meta.profiles.keys().map(|name| printable(name)).collect();
            format!(
                "{other}; its profiles may differ in it: {}",
                names.join(", ")
            )
            .into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_has_its_own_hint_per_kind_and_phase() {
        let meta = Meta {
            terms_of_service: Some("https://ca.test/terms".into()),
            caa_identities: vec!["ca.test".into()],
            account_hash_prefix: None,
            profiles: [("classic".to_owned(), String::new())].into(),
        };
        let hint = |kind: &str, phase| {
            let kind = format!("urn:ietf:params:acme:error:{kind}");
            let problem = serde_json::from_value(serde_json::json!({"type": kind})).unwrap();
            let cause = Cause::of_reply(&problem).with_hint_from(&meta, phase);
            assert!(matches!(cause, Cause::Refused(_)), "{kind}");
            cause.hint().to_owned()
        };
        for (kind, phase, words) in [
            ("caa", Phase::Finalize, "0 issue \"ca.test\""),
            ("rejectedIdentifier", Phase::Order, "remove that name"),
            ("userActionRequired", Phase::Account, "--agree-tos"),
            ("userActionRequired", Phase::Order, "https://ca.test/terms"),
            ("malformed", Phase::Account, "https://ca.test/terms"),
            ("externalAccountRequired", Phase::Account, "--eab-kid"),
            ("unauthorized", Phase::Order, "deactivated"),
            ("badPublicKey", Phase::Finalize, "--key"),
            ("badCSR", Phase::Finalize, "--key"),
            ("invalidContact", Phase::Account, "--email"),
            ("invalidProfile", Phase::Order, "one of: classic"),
            ("malformed", Phase::Order, "correct what the message names"),
        ] {
            let hint = hint(kind, phase);
            assert!(hint.contains(words), "{kind}: {hint}");
        }
    }
}
