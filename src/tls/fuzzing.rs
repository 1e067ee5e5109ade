//! What `fuzz/` holds against the choice of a certificate: a stranger's first
//! bytes get the pair of the name that they ask for, or none; they never end a
//! handshake by themselves.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use rcgen::{CertificateParams, KeyPair};
use rustls::server::{Acceptor, ResolvesServerCert, ServerConfig, ServerConnection};

use super::credentials::{Credentials, Publisher};
use crate::certificate::{Bundle, Fingerprint, Freshness, Secret};
use crate::identifier::{Identifier, Lineage};
use crate::time::{Timestamp, VirtualClock};

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
const SERVED: [&[&str]; 3] = [
    &["example.com", "www.example.com"],
    &["*.example.org"],
    &["192.0.2.1"],
];

struct Front {
    credentials: Arc<Credentials>,
    config: Arc<ServerConfig>,
    /// In the order of [`SERVED`].
    leaves: Vec<Fingerprint>,
    _publisher: Publisher,
}

/// The first bytes on a connection.
pub(crate) fn client_hello(bytes: &[u8]) {
    let front = front();
    if let Some((name, shown)) = choice(front, bytes) {
        judge(front, name.as_deref(), shown.as_ref());
    }
    if let Ok(connection) = ServerConnection::new(front.config.clone()) {
        shake(connection, bytes);
    }
}

/// The name that is asked for and the leaf that is shown, once there is a whole
/// ClientHello.
fn choice(front: &Front, bytes: &[u8]) -> Option<(Option<String>, Option<Fingerprint>)> {
    let mut acceptor = Acceptor::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        acceptor.read_tls(&mut rest).ok()?;
        if let Some(accepted) = acceptor.accept().ok()? {
            let name = accepted.client_hello().server_name().map(str::to_owned);
            let picked = front.credentials.resolve(accepted.client_hello());
            let shown = picked.and_then(|pair| Some(Fingerprint::of(pair.cert.first()?)));
            return Some((name, shown));
        }
    }
    None
}

fn judge(front: &Front, name: Option<&str>, shown: Option<&Fingerprint>) {
    let due = covering(name).map(|index| &front.leaves[index]);
    if let Some(shown) = shown {
        assert_eq!(Some(shown), due, "{name:?} is shown another's certificate");
    }
    let letters = |name: &str| {
        name.bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'.')
    };
    if due.is_some() && name.is_none_or(letters) {
        assert_eq!(shown, due, "{name:?} is shown none");
    }
}

/// Which of [`SERVED`] is for `name`, told without our own parser.
fn covering(name: Option<&str>) -> Option<usize> {
    let Some(name) = name else {
        return Some(0);
    };
    let name = name.to_ascii_lowercase();
    match name.strip_suffix('.').unwrap_or(&name) {
        "example.com" | "www.example.com" => Some(0),
        "192.0.2.1" => Some(2),
        name => name
            .strip_suffix(".example.org")
            .filter(|label| !label.is_empty() && !label.contains('.'))
            .map(|_| 1),
    }
}

fn shake(mut connection: ServerConnection, bytes: &[u8]) {
    let (mut rest, mut answered) = (bytes, Vec::new());
    while !rest.is_empty() {
        let read = connection.read_tls(&mut rest);
        if !matches!(read, Ok(count) if count > 0) || connection.process_new_packets().is_err() {
            break;
        }
    }
    while connection.wants_write() && connection.write_tls(&mut answered).is_ok() {}
    assert!(connection.is_handshaking(), "nobody proved to hold a key");
}

fn front() -> &'static Front {
    static FRONT: OnceLock<Front> = OnceLock::new();
    FRONT.get_or_init(|| match build() {
        Ok(front) => front,
        Err(error) => panic!("there is nothing to serve: {error}"),
    })
}

fn build() -> Result<Front, Box<dyn std::error::Error>> {
    let mut served = Vec::new();
    for texts in SERVED {
        let names = texts.iter().map(|name| Identifier::parse(name));
        let first = Identifier::parse(texts[0])?;
        served.push((
            Lineage::of(&first),
            names.collect::<Result<BTreeSet<_>, _>>()?,
        ));
    }
    let clock = Arc::new(VirtualClock::new(NOW));
    let (publisher, credentials) = Publisher::new(served.clone(), clock);
    let mut leaves = Vec::new();
    for (lineage, names) in &served {
        let key = KeyPair::generate()?;
        let texts: Vec<_> = names.iter().map(ToString::to_string).collect();
        let leaf = CertificateParams::new(texts)?.self_signed(&key)?.pem();
        let key = Secret::new(key.serialize_pem());
        let bundle = Bundle::new(key, &leaf, names, NOW, Freshness::Stored)?;
        publisher.publish(lineage, &bundle)?;
        leaves.push(bundle.facts().fingerprint.clone());
    }
    Ok(Front {
        config: credentials.server_config()?,
        credentials,
        leaves,
        _publisher: publisher,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_whole_hellos_and_pick_by_their_name() {
        let front = front();
        let shown = |bytes: &[u8]| {
            let (_, shown) = choice(front, bytes).unwrap();
            shown.map(|shown| front.leaves.iter().position(|leaf| *leaf == shown).unwrap())
        };
        macro_rules! seed {
            ($name:literal) => {
                include_bytes!(concat!("../../fuzz/seeds/client_hello/", $name, ".bin"))
            };
        }
        assert_eq!(shown(seed!("tls13-example-com")), Some(0));
        assert_eq!(shown(seed!("tls13-wildcard")), Some(1));
        assert_eq!(shown(seed!("tls12-no-name")), Some(0));
        assert_eq!(shown(seed!("two-records")), Some(0));
        assert_eq!(shown(seed!("tls13-unknown-name")), None);
        assert_eq!(choice(front, seed!("cut-off")), None);
    }
}
