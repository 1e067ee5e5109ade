//! The providers of the crate dns-update. [`table`] is made from that crate's source, so
//! that a new version of it brings its new providers; a test compares the two.

#[cfg(test)]
mod reference;
mod table;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dns_update::http::{HttpClient, HttpClientBuilder};
use dns_update::{DnsRecord, DnsRecordType, DnsUpdater};

use super::super::Failed;
use super::{Credentials, Field, Provider, Txt};
use crate::text::printable;

/// The lifetime of a value in caches, in seconds: several providers take no less.
const TTL: u32 = 60;
const TIMEOUT: Duration = Duration::from_secs(30);

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

    // The readers have one form, for the table.
    #[allow(clippy::unnecessary_wraps)]
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

    #[allow(clippy::unnecessary_wraps, clippy::unused_self)]
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

/// The fields of a provider's credentials; `None` for an unknown provider.
pub(super) fn fields(provider: &str) -> Option<Vec<Field>> {
    let arguments = find(provider)?.arguments.iter();
    let arguments = arguments.filter(|(_, kind)| *kind != TIMEOUT_KIND);
    let fields = arguments.map(|(name, kind)| match OPTIONAL.contains(kind) {
        true => Field::optional(name),
        false => Field::required(name),
    });
    Some(fields.collect())
}

/// Does what makes an HTTP client. The crate panics where no CA bundle is found.
fn with_roots<T>(make: impl FnOnce() -> T) -> Result<T, String> {
    let made = catch_unwind(AssertUnwindSafe(make));
    made.map_err(|_| "no CA certificates found: install ca-certificates".to_owned())
}

/// The crate's HTTP client, for a provider of ours.
pub(super) fn client(
    change: impl FnOnce(HttpClientBuilder) -> HttpClientBuilder,
) -> Result<HttpClient, String> {
    let builder = change(HttpClientBuilder::new().with_timeout(Some(TIMEOUT)));
    with_roots(|| builder.build())
}

/// Makes the updater.
fn updater(provider: &str, credentials: &Credentials) -> Result<DnsUpdater, String> {
    let found = find(provider).ok_or("it is unknown")?;
    let built = with_roots(|| (found.build)(&Given(credentials)))?;
    built.map_err(|error| printable(&credentials.redacted(error)))
}

/// Checks the values of complete credentials.
pub(super) fn check(provider: &str, credentials: &Credentials) -> Result<(), String> {
    updater(provider, credentials).map(drop)
}

/// The provider with these credentials.
pub(super) fn build(
    provider: &str,
    credentials: &Credentials,
) -> Result<Arc<dyn Provider>, String> {
    Ok(Arc::new(Api {
        name: provider.to_owned(),
        updater: updater(provider, credentials)?,
        credentials: credentials.clone(),
    }))
}

struct Api {
    name: String,
    updater: DnsUpdater,
    /// To keep them out of messages.
    credentials: Credentials,
}

impl Api {
    fn failed(&self, verb: &str, txt: &Txt, error: &dns_update::Error) -> Failed {
        use dns_update::Error;
        let (name, zone) = (&self.name, txt.zone());
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
        let detail = printable(&self.credentials.redacted(error.to_string()));
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
        &self.name
    }

    async fn add(&self, txt: &Txt) -> Result<(), Failed> {
        let record = vec![DnsRecord::TXT(txt.value.clone())];
        let (name, zone) = (txt.fqdn.as_str(), txt.zone());
        let added = self
            .updater
            .add_to_rrset(name, DnsRecordType::TXT, TTL, record, &zone);
        added.await.map_err(|error| self.failed("add", txt, &error))
    }

    async fn remove(&self, txt: &Txt) -> Result<(), Failed> {
        let record = vec![DnsRecord::TXT(txt.value.clone())];
        let (name, zone) = (txt.fqdn.as_str(), txt.zone());
        let removed = self
            .updater
            .remove_from_rrset(name, DnsRecordType::TXT, record, &zone);
        match removed.await {
            // Removed by an earlier run.
            Err(dns_update::Error::NotFound) => Ok(()),
            removed => removed.map_err(|error| self.failed("remove", txt, &error)),
        }
    }
}
