//! The providers of the crate dns-update. [`table`] is made from that crate's source, so
//! that a new version of it brings its new providers; a test compares the two.

#[cfg(test)]
mod reference;
mod scope;
mod table;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dns_update::providers::joker::JokerAuth;
use dns_update::{DnsRecord, DnsRecordType, DnsUpdater};

use self::scope::Scope;
use super::super::Failed;
use super::{Credentials, Field, Provider, Resolver, Txt};
use crate::certificate::Secret;
use crate::net::aws::{self, Role};
use crate::text::printable;

/// The lifetime of a value in caches, in seconds: several providers take no less.
const TTL: u32 = 60;
/// Of each request. Nothing here bounds the size of a reply: the crate makes its own client
/// for each provider, takes no other, and reads bodies whole. This time alone bounds them, and
/// only the provider, by a verified certificate, can send one.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The fields of an access key of AWS. A provider with all three also takes the temporary
/// keys of a role, if the first two are not given.
const ACCESS_KEY: [&str; 3] = ["access_key_id", "secret_access_key", "session_token"];

/// A provider of the table.
struct Upstream {
    name: &'static str,
    /// Its arguments, each with its kind.
    arguments: &'static [(&'static str, &'static str)],
    build: fn(&Given<'_>) -> Result<DnsUpdater, String>,
}

/// The kinds of arguments that need not be given. The time-out is not a user's.
const OPTIONAL: [&str; 4] = ["maybe", "flag", "maybe_flag", "maybe_number"];
const TIMEOUT_KIND: &str = "timeout";

/// The table: each line is a provider, a constructor, and its arguments or the fields of its
/// settings, each with the name of the reader of [`Given`] for its type.
macro_rules! upstream {
    ($( $name:literal $build:ident $arguments:tt; )*) => {
        pub(super) const ALL: &[super::Upstream] = &[ $(
            super::Upstream {
                name: $name,
                arguments: super::upstream!(@names $arguments),
                build: |given| super::upstream!(@build given $build $arguments)
                    .map_err(|error| error.to_string()),
            },
        )* ];
    };
    (@names ($( $field:ident: $kind:ident ),*)) => {
        &[ $( (stringify!($field), stringify!($kind)) ),* ]
    };
    (@names { $config:path, $( $field:ident: $kind:ident ),* }) => {
        &[ $( (stringify!($field), stringify!($kind)) ),* ]
    };
    (@build $given:ident $build:ident ($( $field:ident: $kind:ident ),*)) => {
        dns_update::DnsUpdater::$build($( $given.$kind(stringify!($field))? ),*)
    };
    (@build $given:ident $build:ident { $config:path, $( $field:ident: $kind:ident ),* }) => {{
        use $config as Config;
        dns_update::DnsUpdater::$build(Config { $( $field: $given.$kind(stringify!($field))? ),* })
    }};
}
use upstream;

/// Credentials, read by the types of arguments.
struct Given<'a>(&'a Credentials);

impl Given<'_> {
    fn text(&self, name: &str) -> Result<String, String> {
        self.0.text(name).map(|text| text.trim().to_owned())
    }

    #[allow(clippy::unnecessary_wraps)] // the readers have one form, for the table
    fn maybe(&self, name: &str) -> Result<Option<String>, String> {
        Ok(self.0.get(name).map(|text| text.trim().to_owned()))
    }

    fn maybe_parsed<T: FromStr>(&self, name: &str, wanted: &str) -> Result<Option<T>, String> {
        let text = self.maybe(name)?;
        let parse = |text: String| {
            text.parse()
                .map_err(|_| format!("`{name}` is not {wanted}"))
        };
        text.map(parse).transpose()
    }

    fn maybe_flag(&self, name: &str) -> Result<Option<bool>, String> {
        self.maybe_parsed(name, "true or false")
    }

    fn flag(&self, name: &str) -> Result<bool, String> {
        self.maybe_flag(name).map(Option::unwrap_or_default)
    }

    fn maybe_number(&self, name: &str) -> Result<Option<u32>, String> {
        self.maybe_parsed(name, "a number")
    }

    /// A word that the crate knows.
    fn word<T: FromStr<Err: ToString>>(&self, name: &str) -> Result<T, String> {
        self.text(name)?
            .parse()
            .map_err(|error: T::Err| error.to_string())
    }

    fn azure(
        &self,
        name: &str,
    ) -> Result<dns_update::providers::azuredns::AzureEnvironment, String> {
        use dns_update::providers::azuredns::AzureEnvironment;
        self.text(name)
            .map(|text| AzureEnvironment::from_str_lossy(&text))
    }

    /// `HOST:TOKEN` for each host, as lego takes them.
    fn map(&self, name: &str) -> Result<HashMap<String, String>, String> {
        let text = self.text(name)?;
        let pairs = text.split(|c: char| c == ',' || c.is_whitespace());
        let pairs = pairs.filter(|pair| !pair.is_empty()).map(|pair| {
            let pair = pair.split_once(':');
            let pair = pair.filter(|(host, token)| !host.is_empty() && !token.is_empty());
            let (host, token) =
                pair.ok_or_else(|| format!("`{name}` is not HOST:TOKEN,HOST:TOKEN"))?;
            Ok((host.to_owned(), token.to_owned()))
        });
        pairs.collect()
    }

    /// A key, or `USER:PASSWORD`.
    fn joker(&self, name: &str) -> Result<JokerAuth, String> {
        let text = self.text(name)?;
        Ok(match text.split_once(':') {
            Some((user, password)) => JokerAuth::username_password(user, password),
            None => JokerAuth::api_key(text),
        })
    }

    #[allow(clippy::unnecessary_wraps, clippy::unused_self)] // as above
    fn timeout(&self, _name: &str) -> Result<Option<Duration>, String> {
        Ok(Some(TIMEOUT))
    }
}

/// The names of the providers.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    table::ALL.iter().map(|one| one.name)
}

fn find(provider: &str) -> Option<&'static Upstream> {
    table::ALL.iter().find(|one| one.name == provider)
}

/// Whether it takes the keys of a role.
fn takes_role(found: &Upstream) -> bool {
    let has = |field: &&str| found.arguments.iter().any(|(name, _)| name == field);
    ACCESS_KEY.iter().all(has)
}

/// Whether the keys of a role are to be used.
fn needs_role(found: &Upstream, credentials: &Credentials) -> bool {
    let is_missing = |field: &str| credentials.get(field).is_none_or(str::is_empty);
    takes_role(found) && is_missing(ACCESS_KEY[0]) && is_missing(ACCESS_KEY[1])
}

/// The fields of a provider's credentials; `None` for an unknown provider.
pub(super) fn fields(provider: &str) -> Option<Vec<Field>> {
    let found = find(provider)?;
    let arguments = found.arguments.iter();
    let arguments = arguments.filter(|(_, kind)| *kind != TIMEOUT_KIND);
    let is_of_role = |name: &str| takes_role(found) && ACCESS_KEY.contains(&name);
    let fields = arguments.map(
        |(name, kind)| match OPTIONAL.contains(kind) || is_of_role(name) {
            true => Field::optional(name),
            false => Field::required(name),
        },
    );
    Some(fields.collect())
}

/// Makes the updater. The crate panics where no CA bundle is found.
fn updater(found: &Upstream, credentials: &Credentials) -> Result<DnsUpdater, String> {
    let built = catch_unwind(AssertUnwindSafe(|| (found.build)(&Given(credentials))));
    let built = built.map_err(|_| "no CA certificates found: install ca-certificates")?;
    built.map_err(|error| printable(&credentials.redacted(error)))
}

/// The credentials with the keys of a role.
fn with_keys(credentials: &Credentials, keys: &aws::Keys) -> Credentials {
    let mut all = credentials.clone();
    let token = keys.token.as_ref();
    let values = [
        Some(&Secret::new(keys.id.clone())),
        Some(&keys.secret),
        token,
    ]
    .map(|one| one.cloned());
    let given = ACCESS_KEY.iter().zip(values);
    let given = given.filter_map(|(name, value)| Some(((*name).to_owned(), value?)));
    all.0.extend(given);
    all
}

/// Checks the values of complete credentials.
pub(super) fn check(provider: &str, credentials: &Credentials) -> Result<(), String> {
    let found = find(provider).ok_or("it is unknown")?;
    match needs_role(found, credentials) {
        true => updater(found, &with_keys(credentials, &aws::Keys::placeholder())).map(drop),
        false => updater(found, credentials).map(drop),
    }
}

/// The provider with these credentials.
pub(super) fn build(
    provider: &str,
    credentials: &Credentials,
    resolver: &Resolver,
) -> Result<Arc<dyn Provider>, String> {
    let found = find(provider).ok_or("it is unknown")?;
    let login = match needs_role(found, credentials) {
        true => Login::Role(Role::of_this_process(resolver.clone())),
        false => Login::Own(updater(found, credentials)?),
    };
    Ok(Arc::new(Api {
        found,
        login,
        credentials: credentials.clone(),
        scope: Scope::default(),
    }))
}

/// How a provider knows us.
enum Login {
    /// By the configured credentials.
    Own(DnsUpdater),
    /// By the keys of today.
    Role(Role),
}

struct Api {
    found: &'static Upstream,
    login: Login,
    credentials: Credentials,
    scope: Scope,
}

impl Api {
    /// The updater, with the credentials to keep out of messages.
    async fn updater(&self) -> Result<(DnsUpdater, Credentials), Failed> {
        let role = match &self.login {
            Login::Own(updater) => return Ok((updater.clone(), self.credentials.clone())),
            Login::Role(role) => role,
        };
        let name = self.found.name;
        let keys = role.keys().await;
        let keys = keys.map_err(|error| {
            let [id, secret, _] = ACCESS_KEY.map(|field| super::variable(name, field));
            let hint = format!("{}: {id} and {secret}", error.hint);
            Failed::new(format!("{name}: {error}"), hint)
        })?;
        let all = with_keys(&self.credentials, &keys);
        match updater(self.found, &all) {
            Ok(updater) => Ok((updater, all)),
            Err(why) => Err(Failed::new(
                format!("{name}: {why}"),
                "certs config check names what is invalid",
            )),
        }
    }

    fn failed(
        &self,
        verb: &str,
        txt: &Txt,
        error: &dns_update::Error,
        secrets: &Credentials,
    ) -> Failed {
        use dns_update::Error;
        let (name, zone) = (self.found.name, txt.zone());
        let hint = match error {
            Error::Unauthorized => format!(
                "the provider does not accept the credentials: check them, and that they may change the zone {zone}"
            ),
            Error::NotFound => format!(
                "the account has no zone {zone}: use the credentials of the account that has it"
            ),
            Error::Client(_) => {
                "check this machine's network, and the provider's status page".to_owned()
            }
            _ => format!("check that the credentials may change TXT records of the zone {zone}"),
        };
        let detail = printable(&secrets.redacted(error.to_string()));
        Failed::new(
            format!(
                "{name} did not {verb} the TXT record {} in zone {zone}: {detail}",
                txt.fqdn
            ),
            hint,
        )
    }
}

#[async_trait]
impl Provider for Api {
    fn name(&self) -> &str {
        self.found.name
    }

    async fn add(&self, txt: &Txt) -> Result<(), Failed> {
        let record = vec![DnsRecord::TXT(txt.value.clone())];
        let (name, zone) = (txt.fqdn.as_str(), txt.zone());
        let (updater, secrets) = self.updater().await?;
        let added = updater.add_to_rrset(name, DnsRecordType::TXT, TTL, record, zone.as_str());
        added
            .await
            .map_err(|error| self.failed("add", txt, &error, &secrets))?;
        self.scope
            .look(self.found.name, &self.credentials, &zone)
            .await;
        Ok(())
    }

    async fn remove(&self, txt: &Txt) -> Result<(), Failed> {
        let record = vec![DnsRecord::TXT(txt.value.clone())];
        let (name, zone) = (txt.fqdn.as_str(), txt.zone());
        let (updater, secrets) = self.updater().await?;
        let removed = updater.remove_from_rrset(name, DnsRecordType::TXT, record, zone.as_str());
        match removed.await {
            // Removed by an earlier run.
            Err(dns_update::Error::NotFound) => Ok(()),
            removed => removed.map_err(|error| self.failed("remove", txt, &error, &secrets)),
        }
    }
}
