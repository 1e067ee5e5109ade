//! The CAA records that hold for a name (RFC 8659 section 3), by the answers of a resolver.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, RecordType};
use thiserror::Error;
use tokio::time::timeout;

use super::lookup::{Resolver, rcode};
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
    /// The name that has them: an alias (CNAME) may lead to it.
    pub(crate) at: String,
    pub(crate) records: Vec<Caa>,
}

/// A resolver answers with an error: then a CA does not look further up either.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("CAA at {at}: {code}")]
pub(crate) struct CaaError {
    pub(crate) at: String,
    /// Such as `SERVFAIL`.
    pub(crate) code: String,
}

impl CaaError {
    /// The next thing to do. Another code says more about the resolver than about the zone.
    pub(crate) fn hint(&self) -> Option<String> {
        (self.code == "SERVFAIL").then(|| {
            format!(
                "no CA issues while `dig CAA {}` fails: correct the name servers of its zone, or its DNSSEC",
                self.at
            )
        })
    }
}

/// Finds CAA records.
#[async_trait]
pub(crate) trait CaaLookup: Send + Sync {
    /// Those that hold for `name`, if any are found in a short time.
    async fn records(&self, name: &str) -> Result<Option<CaaSet>, CaaError>;
}

#[async_trait]
impl CaaLookup for Resolver {
    async fn records(&self, name: &str) -> Result<Option<CaaSet>, CaaError> {
        let climbed = timeout(DEADLINE, self.caa(name)).await;
        climbed.unwrap_or(Ok(None))
    }
}

impl Resolver {
    /// The CAA records at `name`, or at the nearest name above it; `None` if there are none,
    /// or if no resolver answers.
    async fn caa(&self, name: &str) -> Result<Option<CaaSet>, CaaError> {
        let Ok(mut name) = Name::from_ascii(format!("{name}.")) else {
            return Ok(None);
        };
        while !name.is_root() {
            let Ok(reply) = self.recurse(&name, RecordType::CAA).await else {
                return Ok(None);
            };
            let code = reply.response_code;
            if !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
                let (at, code) = (shown(&name), rcode(code));
                return Err(CaaError { at, code });
            }
            let records = reply.answers.iter();
            let records = records.filter_map(|record| match &record.data {
                RData::CAA(caa) => Some((
                    &record.name,
                    Caa {
                        critical: caa.issuer_critical,
                        tag: printable(&caa.tag.to_ascii_lowercase()),
                        value: printable(&String::from_utf8_lossy(&caa.value)),
                    },
                )),
                _ => None,
            });
            let (at, records): (Vec<_>, Vec<_>) = records.take(MOST).unzip();
            if let Some(at) = at.first().copied().map(shown) {
                return Ok(Some(CaaSet { at, records }));
            }
            name = name.base_name();
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Message;
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::{CAA, CNAME};
    use tokio::net::UdpSocket;

    use super::super::ServerAddress;
    use super::*;

    /// A resolver that answers until the test ends.
    async fn resolver(answer: fn(&Name, &mut Message)) -> Resolver {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let question = Message::from_vec(&buffer[..length]).unwrap();
                let mut reply = Message::response(question.id, question.op_code);
                reply.queries.clone_from(&question.queries);
                answer(question.queries[0].name(), &mut reply);
                let _ = socket.send_to(&reply.to_vec().unwrap(), from).await;
            }
        });
        Resolver::new(Some(ServerAddress(address)))
    }

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn record(owner: &Name, value: &str) -> Record {
        let mut caa = CAA::new_issue(false, None, Vec::new());
        caa.value = value.as_bytes().to_vec();
        Record::from_rdata(owner.clone(), 60, RData::CAA(caa))
    }

    #[tokio::test]
    async fn records_behind_an_alias_are_those_of_its_target() {
        let resolver = resolver(|asked, reply| {
            let target = name("cdn.test.");
            let alias = RData::CNAME(CNAME(target.clone()));
            reply.add_answer(Record::from_rdata(asked.clone(), 60, alias));
            reply.add_answer(record(&target, "other.test"));
        })
        .await;
        let set = resolver.records("www.example.com").await.unwrap().unwrap();
        assert_eq!(set.at, "cdn.test");
        assert_eq!(set.records[0].to_string(), "0 issue \"other.test\"");
    }

    #[tokio::test]
    async fn error_of_a_resolver_ends_the_climb_and_an_absent_name_does_not() {
        let resolver = resolver(|asked, reply| {
            reply.metadata.response_code = match asked.to_ascii().split('.').next() {
                Some("broken") => ResponseCode::ServFail,
                Some("refused") => ResponseCode::Refused,
                Some("absent") => ResponseCode::NXDomain,
                _ => ResponseCode::NoError,
            };
            if *asked == name("example.com.") {
                reply.add_answer(record(asked, "other.test"));
            }
        })
        .await;
        let absent = resolver.records("absent.example.com").await;
        assert_eq!(absent.unwrap().unwrap().at, "example.com");
        let broken = resolver.records("broken.example.com").await.unwrap_err();
        assert_eq!(broken.to_string(), "CAA at broken.example.com: SERVFAIL");
        let hint = broken.hint().unwrap();
        assert!(hint.contains("`dig CAA broken.example.com`"), "{hint}");
        let refused = resolver.records("refused.example.com").await.unwrap_err();
        assert_eq!(refused.to_string(), "CAA at refused.example.com: REFUSED");
        assert_eq!(refused.hint(), None);
    }
}
