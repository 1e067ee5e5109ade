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
/// An answer of our own waits for further ones of its name for this time: answers are listed at
/// most once a second, and a store that is down must not keep ours back.
const OTHERS_WITHIN: Duration = Duration::from_millis(1500);

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

    /// The same for a handshake with this server name, unless an order of this process answers
    /// it: what is known waits for no store.
    pub(super) async fn refresh_for(&self, server_name: &str) {
        if !self.answers_for(server_name) {
            self.refresh().await;
        }
    }

    /// The reply of our name server to a request of at most `most` bytes, with the values of all
    /// machines: two of them may order for one name. It waits only a little for others where an
    /// order of this process has one.
    pub(super) async fn reply(&self, request: &[u8], most: Option<u16>) -> Option<Vec<u8>> {
        let within = match self.zones().has_own_value(request) {
            true => OTHERS_WITHIN,
            false => WITHIN,
        };
        let _ = timeout(within, self.refresh()).await;
        self.zones().reply(request, most)
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    use hickory_proto::rr::RecordType;
    use tokio::net::TcpStream;

    use super::*;
    use crate::challenge::listen::Listener;
    use crate::challenge::protocol::{Listen, Protocol};
    use crate::challenge::{AccountReference, Token};
    use crate::net::dns::wire;
    use crate::net::tls;
    use crate::store::place::FleetSettings;

    const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    const SOON: Duration = Duration::from_secs(1);

    /// Answers in a fleet whose store takes connections and never replies.
    async fn with_silent_store(data: &std::path::Path) -> (Responses, std::net::TcpListener) {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let key = data.join("seal.key");
        std::fs::write(&key, KEY).unwrap();
        std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
        let settings = FleetSettings {
            store: Some(
                format!("etcd://{}/p", silent.local_addr().unwrap())
                    .parse()
                    .unwrap(),
            ),
            seal_key_file: Some(key),
            ..FleetSettings::default()
        };
        let node = settings.open(data.join("data")).await.unwrap().unwrap();
        let responses = Responses::default();
        responses.share_through(Arc::new(node));
        (responses, silent)
    }

    fn serve(responses: &Responses, protocol: Protocol) -> std::net::SocketAddr {
        let address = ([127, 0, 0, 1], 0).into();
        let listener = Listener::bind(&Listen { protocol, address }, responses).unwrap();
        let address = listener.addresses()[0];
        tokio::spawn(listener.serve());
        address
    }

    async fn handshake(address: std::net::SocketAddr, name: &'static str) -> bool {
        let mut config = tls::accepting_any().unwrap();
        config.alpn_protocols = vec![b"acme-tls/1".to_vec()];
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = TcpStream::connect(address).await.unwrap();
        let shaken = connector.connect(name.try_into().unwrap(), stream);
        timeout(SOON, shaken)
            .await
            .is_ok_and(|shaken| shaken.is_ok())
    }

    #[tokio::test]
    async fn known_answer_waits_for_no_store() {
        let data = tempfile::tempdir().unwrap();
        let (responses, _silent) = with_silent_store(data.path()).await;
        for kind in [ChallengeKind::Http01, ChallengeKind::TlsAlpn01] {
            let answer = Answer {
                identifier: "known.example.com".parse().unwrap(),
                token: Token::parse(&"t".repeat(22)).unwrap(),
                key_authorization: "t.thumbprint".into(),
                kind,
                account: AccountReference::default(),
            };
            let solver = responses.solver(kind);
            // The store never replies.
            tokio::spawn(async move { solver.present(&answer).await });
        }
        tokio::task::yield_now().await;
        let (host, token) = ("known.example.com".parse().unwrap(), "t".repeat(22));
        let found = timeout(SOON, responses.lookup_anywhere(&host, &token)).await;
        assert!(found.unwrap().is_some());
        let tls = serve(&responses, Protocol::Tls);
        assert!(handshake(tls, "known.example.com").await);
        assert!(!handshake(tls, "unknown.example.com").await);
        let name = |text: &str| Name::from_ascii(text).unwrap();
        let known = name("_acme-challenge.example.com.");
        let place = Place {
            zone: Zone {
                apex: known.clone(),
                names: Vec::new(),
                servers: Vec::new(),
            },
            name: known.clone(),
        };
        responses.zones().add(&place, "value");
        let dns = serve(&responses, Protocol::Dns);
        let reply = wire::ask(dns, &known, RecordType::TXT, false).await;
        assert_eq!(reply.unwrap().answers.len(), 1);
    }

    #[tokio::test]
    async fn name_server_gives_the_values_of_all_machines_for_one_name() {
        let shared = tempfile::tempdir().unwrap();
        let key = shared.path().join("seal.key");
        std::fs::write(&key, KEY).unwrap();
        std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
        let name = Name::from_ascii("_acme-challenge.example.com.").unwrap();
        let place = Place {
            zone: Zone {
                apex: name.clone(),
                names: Vec::new(),
                servers: Vec::new(),
            },
            name: name.clone(),
        };
        let store = shared.path().join("store");
        std::fs::create_dir(&store).unwrap();
        let mut machines = Vec::new();
        for machine in ["one", "two"] {
            let settings = FleetSettings {
                store: Some(store.display().to_string().parse().unwrap()),
                seal_key_file: Some(key.clone()),
                node: Some(machine.parse().unwrap()),
                ..FleetSettings::default()
            };
            let node = settings.open(shared.path().join(machine)).await;
            let responses = Responses::default();
            responses.share_through(Arc::new(node.unwrap().unwrap()));
            // As an order does.
            responses.zones().add(&place, machine);
            responses.share_value(&place, machine).await.unwrap();
            machines.push(responses);
        }
        for responses in machines {
            let dns = serve(&responses, Protocol::Dns);
            let reply = wire::ask(dns, &name, RecordType::TXT, false).await;
            assert_eq!(reply.unwrap().answers.len(), 2);
        }
    }
}
