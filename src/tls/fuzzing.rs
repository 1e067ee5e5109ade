//! The checks of `fuzz/` on the selection of a certificate. A client's first bytes
//! get the pair of their server name, or none, and never complete a handshake.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use rcgen::{CertificateParams, KeyPair};
use rustls::server::{Acceptor, ResolvesServerCert, ServerConfig, ServerConnection};

use super::credentials::{Credentials, Publisher};
use crate::certificate::{Bundle, Freshness, Secret};
use crate::fingerprint::Fingerprint;
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::time::{Timestamp, VirtualClock};

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
const SERVED: [&[&str]; 3] = [
    &["example.com", "www.example.com"],
    &["*.example.org"],
    &["192.0.2.1"],
];

struct ServedFront {
    credentials: Arc<Credentials>,
    config: Arc<ServerConfig>,
    /// In the order of [`SERVED`].
    leaves: Vec<Fingerprint>,
    _publisher: Publisher,
}

/// Checks the first bytes of a connection.
pub(crate) fn client_hello(bytes: &[u8]) {
    let front = front();
    if let Some((name, leaf)) = selection(front, bytes) {
        check(front, name.as_deref(), leaf.as_ref());
    }
    if let Ok(connection) = ServerConnection::new(front.config.clone()) {
        handshake(connection, bytes);
    }
}

/// The server name and the selected leaf, once the ClientHello is complete.
fn selection(front: &ServedFront, bytes: &[u8]) -> Option<(Option<String>, Option<Fingerprint>)> {
    let mut acceptor = Acceptor::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        acceptor.read_tls(&mut rest).ok()?;
        if let Some(accepted) = acceptor.accept().ok()? {
            let name = accepted.client_hello().server_name().map(str::to_owned);
            let selected = front.credentials.resolve(accepted.client_hello());
            let leaf = selected.and_then(|pair| Some(Fingerprint::of(pair.cert.first()?)));
            return Some((name, leaf));
        }
    }
    None
}

fn check(front: &ServedFront, name: Option<&str>, leaf: Option<&Fingerprint>) {
    let expected = covering(name).map(|index| &front.leaves[index]);
    if let Some(leaf) = leaf {
        assert_eq!(Some(leaf), expected, "mismatched certificate for {name:?}");
    }
    let is_plain = |name: &str| {
        name.bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'.')
    };
    if expected.is_some() && name.is_none_or(is_plain) {
        assert_eq!(leaf, expected, "no certificate for {name:?}");
    }
}

/// The index in [`SERVED`] for `name`, found without our own parser.
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

fn handshake(mut connection: ServerConnection, bytes: &[u8]) {
    let (mut rest, mut answered) = (bytes, Vec::new());
    while !rest.is_empty() {
        let read = connection.read_tls(&mut rest);
        if !matches!(read, Ok(count) if count > 0) || connection.process_new_packets().is_err() {
            break;
        }
    }
    while connection.wants_write() && connection.write_tls(&mut answered).is_ok() {}
    assert!(
        connection.is_handshaking(),
        "the handshake completed without a key"
    );
}

fn front() -> &'static ServedFront {
    static FRONT: OnceLock<ServedFront> = OnceLock::new();
    FRONT.get_or_init(|| match build() {
        Ok(front) => front,
        Err(error) => panic!("the front cannot be built: {error}"),
    })
}

fn build() -> Result<ServedFront, Box<dyn std::error::Error>> {
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
    Ok(ServedFront {
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
    fn seeds_are_complete_hellos_and_select_by_their_name() {
        let front = front();
        let selected = |bytes: &[u8]| {
            let (_, leaf) = selection(front, bytes).unwrap();
            leaf.map(|leaf| front.leaves.iter().position(|one| *one == leaf).unwrap())
        };
        macro_rules! seed {
            ($name:literal) => {
                include_bytes!(concat!("../../fuzz/seeds/client_hello/", $name, ".bin"))
            };
        }
        assert_eq!(selected(seed!("tls13-example-com")), Some(0));
        assert_eq!(selected(seed!("tls13-wildcard")), Some(1));
        assert_eq!(selected(seed!("tls12-no-name")), Some(0));
        assert_eq!(selected(seed!("two-records")), Some(0));
        assert_eq!(selected(seed!("tls13-unknown-name")), None);
        assert_eq!(selection(front, seed!("cut-off")), None);
    }
}
