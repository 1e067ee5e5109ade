//! The answers of a fleet: each machine gives those of all. An answer is stored before the CA
//! is asked to validate, and is looked for in the store when a request finds none here, so that it is
//! visible at once wherever the CA asks.

use std::io;
use std::time::Duration;

use hickory_proto::rr::Name;
use tokio::time::timeout;

use super::responses::{Live, Responses};
use super::{Answer, ChallengeKind, SolverError};
use crate::identifier::Identifier;
use crate::net::dns::lookup::{Place, Zone};
use crate::store::StoreError;
use crate::store::shared::fleet::SharedAnswer;

/// A CA waits about as long for a reply.
const WITHIN: Duration = Duration::from_secs(5);

fn shared(answer: &Answer) -> SharedAnswer {
    SharedAnswer {
        kind: answer.kind.name().to_owned(),
        identifier: answer.identifier.to_string(),
        token: answer.token.as_str().to_owned(),
        content: answer.key_authorization.clone(),
    }
}

/// A value of our name server: the content is its zone, and the zone's servers.
fn of_value(place: &Place, value: &str) -> SharedAnswer {
    let zone = [&place.zone.apex].into_iter().chain(&place.zone.names);
    let zone: Vec<String> = zone.map(Name::to_ascii).collect();
    SharedAnswer {
        kind: ChallengeKind::Dns01.name().to_owned(),
        identifier: place.name.to_ascii(),
        token: value.to_owned(),
        content: zone.join(" "),
    }
}

fn value_of(answer: &SharedAnswer) -> Option<(Place, String)> {
    if answer.kind != ChallengeKind::Dns01.name() {
        return None;
    }
    let mut names = answer.content.split(' ').map(Name::from_ascii);
    let apex = names.next()?.ok()?;
    let zone = Zone {
        apex,
        names: names.flatten().collect(),
        servers: Vec::new(),
    };
    let name = Name::from_ascii(&answer.identifier).ok()?;
    Some((Place { name, zone }, answer.token.clone()))
}

fn failed(error: StoreError) -> SolverError {
    SolverError::Io {
        operation: "share",
        path: "the challenge answer".to_owned(),
        source: io::Error::other(error),
    }
}

impl Responses {
    /// Gives `answer` to every machine of the fleet.
    pub(super) async fn share(&self, answer: &Answer) -> Result<(), SolverError> {
        match self.fleet() {
            Some(fleet) => fleet.put_answer(&shared(answer)).await.map_err(failed),
            None => Ok(()),
        }
    }

    /// Takes `answer` back from every machine.
    pub(super) async fn withdraw(&self, answer: &Answer) -> Result<(), SolverError> {
        match self.fleet() {
            Some(fleet) => fleet.remove_answer(&shared(answer)).await.map_err(failed),
            None => Ok(()),
        }
    }

    /// Gives a value of our name server to every machine of the fleet.
    pub(super) async fn share_value(&self, place: &Place, value: &str) -> Result<(), SolverError> {
        match self.fleet() {
            Some(fleet) => fleet
                .put_answer(&of_value(place, value))
                .await
                .map_err(failed),
            None => Ok(()),
        }
    }

    /// Takes the value back from every machine.
    pub(super) async fn withdraw_value(
        &self,
        place: &Place,
        value: &str,
    ) -> Result<(), SolverError> {
        match self.fleet() {
            Some(fleet) => fleet
                .remove_answer(&of_value(place, value))
                .await
                .map_err(failed),
            None => Ok(()),
        }
    }

    /// Learns the answers of the other machines, at most once a second.
    pub(super) async fn refresh(&self) {
        let Some(fleet) = self.fleet() else {
            return;
        };
        let answers = match timeout(WITHIN, fleet.answers()).await {
            Ok(Ok(answers)) => answers,
            Ok(Err(error)) => {
                tracing::debug!("the fleet's challenge answers are unknown: {error}");
                return;
            }
            Err(_) => return,
        };
        let values: Vec<_> = answers.iter().filter_map(value_of).collect();
        self.zones().learn(&values);
        let live = answers.into_iter().filter_map(|answer| {
            let kind: ChallengeKind = answer.kind.parse().ok()?;
            let identifier = Identifier::parse(&answer.identifier).ok()?;
            Some((
                (kind, answer.token),
                Live::elsewhere(identifier, answer.content),
            ))
        });
        self.learn(live.collect());
    }

    /// The HTTP-01 answer for `token`, if it is live on a machine of the fleet and for `host`.
    pub(super) async fn lookup_anywhere(&self, host: &Identifier, token: &str) -> Option<String> {
        if let Some(found) = self.lookup(host, token) {
            return Some(found);
        }
        self.refresh().await;
        self.lookup(host, token)
    }
}
