//! The CAA records that hold for a name (RFC 8659 section 3), by the answers of a resolver.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::time::timeout;

use super::lookup::Resolver;
use super::shown;
use crate::text::printable;

/// For all questions about one name.
const DEADLINE: Duration = Duration::from_secs(10);
/// The most records of one name that are read.
const MOST: usize = 20;

/// A property of a CAA record; its texts are safe to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caa {
    /// A CA that does not know the property must not issue.
    pub(crate) critical: bool,
    pub(crate) tag: String,
    pub(crate) value: String,
}

impl fmt::Display for Caa {
    /// As in a zone file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = if self.critical { 128 } else { 0 };
        write!(f, "{flags} {} \"{}\"", self.tag, self.value)
    }
}

/// The records of the nearest name that has some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CaaSet {
    /// The name that has them.
    pub(crate) at: String,
    pub(crate) records: Vec<Caa>,
}

/// Finds CAA records.
#[async_trait]
pub(crate) trait CaaLookup: Send + Sync {
    /// Those that hold for `name`, if any are found in a short time.
    async fn records(&self, name: &str) -> Option<CaaSet>;
}

#[async_trait]
impl CaaLookup for Resolver {
    async fn records(&self, name: &str) -> Option<CaaSet> {
        self.caa(name).await
    }
}

impl Resolver {
    /// The CAA records at `name`, or at the nearest name above it; `None` if there are none,
    /// or if no resolver answers in time.
    async fn caa(&self, name: &str) -> Option<CaaSet> {
        let climb = async {
            let mut name = Name::from_ascii(format!("{name}.")).ok()?;
            while !name.is_root() {
                let reply = self.recurse(&name, RecordType::CAA).await.ok()?;
                let records = reply.answers.iter();
                let records = records.filter_map(|record| match &record.data {
                    RData::CAA(caa) => Some(Caa {
                        critical: caa.issuer_critical,
                        tag: printable(&caa.tag.to_ascii_lowercase()),
                        value: printable(&String::from_utf8_lossy(&caa.value)),
                    }),
                    _ => None,
                });
                let records: Vec<_> = records.take(MOST).collect();
                if !records.is_empty() {
                    let at = shown(&name);
                    return Some(CaaSet { at, records });
                }
                name = name.base_name();
            }
            None
        };
        timeout(DEADLINE, climb).await.ok().flatten()
    }
}
