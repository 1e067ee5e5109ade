//! The providers of DNS records, in one table. A provider of one's own is one file below and
//! one line of `providers!`; those of the crate dns-update come from its own table ([`upstream`]).

#[cfg_attr(not(feature = "dns-providers"), path = "provider/without.rs")]
mod upstream;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::super::Unfit;
use super::super::responses::Responses;
use super::Failed;
use crate::certificate::Secret;
use crate::net::dns::lookup::{Place, Resolver};
use crate::net::dns::{ServerAddress, shown};
use crate::text::{nearest, printable};

/// The table: each line is a module with a `KIND`. `cargo fmt` does not see these modules, so
/// that `.ci/run` names their files.
macro_rules! providers {
    ($($module:ident),* $(,)?) => {
        $(mod $module;)*

        /// The providers of this program.
        const KINDS: &[&Kind] = &[$(&$module::KIND),*];
    };
}

providers! {
    own,
    exec,
    rfc2136,
    acmedns,
}

/// The provider that answers by itself.
pub(crate) const SELF: &str = "self";

/// A kind of provider.
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) fields: &'static [Field],
    pub(super) build: Build,
}

/// Makes the provider from complete credentials, or says what is invalid in them.
type Build = fn(&Credentials, &Resolver, &Responses) -> Result<Arc<dyn Provider>, String>;

/// A key of a provider's credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) is_required: bool,
}

impl Field {
    pub(super) const fn required(name: &'static str) -> Self {
        let is_required = true;
        Self { name, is_required }
    }

    pub(super) const fn optional(name: &'static str) -> Self {
        let is_required = false;
        Self { name, is_required }
    }
}

/// Values by the names of their fields, which are secret as a whole.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Credentials(pub(super) BTreeMap<String, Secret>);

impl Credentials {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn get(&self, field: &str) -> Option<&str> {
        self.0.get(field).map(Secret::expose)
    }

    /// The value of a field whose presence is checked.
    pub(super) fn text(&self, field: &str) -> Result<&str, String> {
        let missing = || format!("`{field}` is missing");
        self.get(field).ok_or_else(missing)
    }

    /// `text` without any of the values: an error may quote the request that failed.
    pub(super) fn redacted(&self, mut text: String) -> String {
        for secret in self.0.values().flat_map(|one| parts(one.expose())) {
            let encoded =
                percent_encoding::utf8_percent_encode(secret, percent_encoding::NON_ALPHANUMERIC);
            for form in [secret, &encoded.to_string()] {
                if form.len() >= 4 {
                    text = text.replace(form, "(…)");
                }
            }
        }
        text
    }
}

/// A value, and what is in a list of pairs: a request may have one of them alone.
fn parts(secret: &str) -> impl Iterator<Item = &str> {
    let is_between = |c: char| ":,".contains(c) || c.is_whitespace();
    let is_list = !secret.contains("://") && secret.contains(is_between);
    let parts = secret.split(is_between).filter(move |_| is_list);
    std::iter::once(secret).chain(parts)
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// One value of a TXT record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Txt {
    /// `_acme-challenge.NAME`, at which the CA asks.
    pub(super) asked: String,
    /// Where aliases lead from there: the name to change, without a dot at its end.
    pub(super) fqdn: String,
    pub(super) value: String,
    /// Where its zone is.
    pub(super) place: Place,
}

impl Txt {
    pub(super) fn new(asked: String, place: &Place, value: String) -> Self {
        Self {
            asked,
            fqdn: shown(&place.name),
            value,
            place: place.clone(),
        }
    }

    /// The name of its zone, without a dot at its end.
    pub(super) fn zone(&self) -> String {
        shown(&self.place.zone.apex)
    }
}

/// Changes records. Every call may be repeated, also after a crash.
#[async_trait]
pub(super) trait Provider: Send + Sync {
    /// Its name in messages.
    fn name(&self) -> &str;

    /// Adds the value beside the others of the name.
    async fn add(&self, txt: &Txt) -> Result<(), Failed>;

    /// Removes the value, and no other one; a missing value is not an error.
    async fn remove(&self, txt: &Txt) -> Result<(), Failed>;

    /// Whether a value outlives this process.
    fn leaves_traces(&self) -> bool {
        true
    }

    /// Whether it can only change a name whose zone is known.
    fn needs_zone(&self) -> bool {
        true
    }

    /// Whether its calls end by a deadline of their own, which names the cause.
    fn has_deadline(&self) -> bool {
        false
    }

    /// A server that knows its zones, also those that the resolvers of this machine do not.
    fn resolver(&self) -> Option<ServerAddress> {
        None
    }

    /// Fails if a server of the zone will certainly not answer with the value.
    async fn reaches(&self, _txt: &Txt) -> Result<(), Failed> {
        Ok(())
    }
}

/// The program that the provider calls, if it does.
pub(super) fn program<'a>(provider: &str, credentials: &'a Credentials) -> Option<&'a Path> {
    let program = credentials.get(exec::PROGRAM).map(Path::new);
    program.filter(|_| provider == exec::KIND.name)
}

/// The names of all providers.
pub(crate) fn names() -> Vec<&'static str> {
    let own = KINDS.iter().map(|kind| kind.name);
    own.chain(upstream::names()).collect()
}

/// The fields of a provider's credentials; `None` for an unknown provider.
pub(crate) fn fields(provider: &str) -> Option<Vec<Field>> {
    let mut own = KINDS.iter().filter(|kind| kind.name == provider);
    let own = own.next().map(|kind| kind.fields.to_vec());
    own.or_else(|| upstream::fields(provider))
}

/// The provider with these credentials.
pub(super) fn build(
    provider: &str,
    credentials: &Credentials,
    resolver: &Resolver,
    responses: &Responses,
) -> Result<Arc<dyn Provider>, Failed> {
    let own = KINDS.iter().find(|kind| kind.name == provider);
    let built = match own {
        Some(kind) => (kind.build)(credentials, resolver, responses),
        None => upstream::build(provider, credentials, resolver),
    };
    built.map_err(|message| {
        let hint = "certs config check names what is missing or invalid";
        Failed::new(
            format!("DNS provider {}: {message}", printable(provider)),
            hint,
        )
    })
}

/// Checks that the provider is known and its credentials are complete and valid. They are
/// configured as `name`.
pub(super) fn check(provider: &str, name: &str, credentials: &Credentials) -> Result<(), Unfit> {
    if provider.is_empty() {
        return Err(Unfit {
            message: "dns-01 needs a DNS provider, and none is named".to_owned(),
            hint: "add --dns PROVIDER, or --dns self to answer without one; several [dns.NAME] tables need dns = \"NAME\" below [[certificate]]".into(),
        });
    }
    let Some(fields) = fields(provider) else {
        return Err(unknown(provider));
    };
    let required = fields.iter().filter(|field| field.is_required);
    let missing: Vec<&str> = required
        .map(|field| field.name)
        .filter(|field| credentials.get(field).is_none_or(str::is_empty))
        .collect();
    if let Some(first) = missing.first() {
        let all = missing.join(", ");
        return Err(Unfit {
            message: format!("DNS provider {}: {all} missing", printable(provider)),
            hint: format!(
                "set {} (or the same with _FILE), or {first} or {first}_file in [dns.{name}]",
                variable(name, first)
            )
            .into(),
        });
    }
    let (resolver, responses) = (Resolver::default(), Responses::default());
    let own = KINDS.iter().find(|kind| kind.name == provider);
    let built = own.map(|kind| (kind.build)(credentials, &resolver, &responses).map(drop));
    built
        .unwrap_or_else(|| upstream::check(provider, credentials))
        .map_err(|message| Unfit {
            message: format!("DNS provider {provider}: {message}"),
            hint: "correct it: config/dns.toml and docs/dns.md show each provider's credentials"
                .into(),
        })
}

/// The problem of a name that is not a provider's.
pub(crate) fn unknown(provider: &str) -> Unfit {
    let meant = nearest(provider, names());
    Unfit {
        message: format!("unknown DNS provider `{}`", printable(provider)),
        hint: meant.map_or_else(
            || match cfg!(feature = "dns-providers") {
                true => "docs/dns.md lists the providers; exec runs a program of yours, self needs none".into(),
                false => "this program was built without the cargo feature dns-providers: use rfc2136, acmedns, exec or self, or a program with it".into(),
            },
            |meant| format!("did you mean {meant}?").into(),
        ),
    }
}

/// The variable of a field, such as `CERTS_DNS_RFC2136_SERVER`.
pub(crate) fn variable(name: &str, field: &str) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_uppercase()
        } else {
            '_'
        }
    };
    let name: String = name.chars().map(plain).collect();
    format!("CERTS_DNS_{name}_{}", field.to_uppercase())
}
