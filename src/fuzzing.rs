//! The fuzz targets of `fuzz/`: one function for each kind of input, with the rules
//! that hold for any input. Compiled only for tests and with the feature `fuzzing`;
//! no shipped program has it.
//!
//! A broken rule panics, which the fuzzer reports. The rules of a private parser are
//! beside it, in a module `fuzzing`.

mod labels;
mod path;
mod record;
#[cfg(test)]
mod replay;

use std::time::Duration;

use crate::certificate::Facts;
use crate::fingerprint::Fingerprint;
use crate::identifier::Identifier;
use crate::random::SeededRandom;
use crate::record::{Failures, Renewal};
use crate::renew::backoff::{FailureKind, after_failure};
use crate::renew::window::{Moment, accept, clamp_retry_after, redraw};
use crate::time::Timestamp;
use crate::{acme, certificate, challenge, config, deploy, tls};

pub use labels::labels;
pub use path::path;
pub use record::record;

/// Takes one input and panics if a rule is broken.
pub type Target = fn(&[u8]);

/// Every target with its name, which is also the name of its seeds' directory.
pub const TARGETS: [(&str, Target); 13] = [
    ("acme_json", acme_json),
    ("ari", ari),
    ("client_hello", client_hello),
    ("config", config),
    ("haproxy", haproxy),
    ("http1", http1),
    ("import", import),
    ("labels", labels),
    ("nginx", nginx),
    ("path", path),
    ("pem", pem),
    ("record", record),
    ("retry_after", retry_after),
];

/// An instant in the validity of every certificate of the seeds.
const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
const DAY: Duration = Duration::from_secs(86_400);

/// The body of a reply, read as each document of RFC 8555 in turn.
pub fn acme_json(body: &[u8]) {
    acme::fuzzing::documents(body);
}

/// The first bytes of a connection to port 443.
pub fn client_hello(bytes: &[u8]) {
    tls::fuzzing::client_hello(bytes);
}

/// A configuration file; its comments `#env NAME=VALUE` are the environment.
pub fn config(source: &[u8]) {
    config::fuzzing::file(source);
}

/// HAProxy's answer on its runtime socket to any command.
pub fn haproxy(answer: &[u8]) {
    deploy::targets::haproxy::replies::fuzzing::answer(answer);
}

/// A file of another ACME client: settings, state, or an account's key.
pub fn import(bytes: &[u8]) {
    use acme::ForeignKey::{Der, Jwk, Pem};
    crate::import::fuzzing::file(bytes);
    let read = |key| acme::foreign_account("https://ca.example/dir", key, None);
    let text = String::from_utf8_lossy(bytes);
    for account in [read(Der(bytes)), read(Pem(&text)), read(Jwk(&text))] {
        let Ok(account) = account else { continue };
        // An imported account is stored and recognised again.
        let same = acme::is_same_account(&account.credentials, &account.credentials);
        assert!(same);
    }
}

/// A key and a chain in PEM, or one certificate in DER.
pub fn pem(bytes: &[u8]) {
    certificate::fuzzing::pair(bytes, NOW);
}

/// A file of an nginx configuration.
pub fn nginx(text: &[u8]) {
    crate::install::fuzzing::file(text);
}

/// The bytes of a connection to port 80.
pub fn http1(bytes: &[u8]) {
    challenge::http01::fuzzing::conversation(bytes);
}

/// A renewalInfo document: its window is ignored, or it yields an instant that can be
/// stored and is neither late nor outside the window.
pub fn ari(body: &[u8]) {
    let Some((suggested, retry_after)) = acme::fuzzing::renewal_info(body, NOW) else {
        return;
    };
    let pause = clamp_retry_after(retry_after);
    let facts = facts();
    let window = accept(suggested.start, suggested.end, &facts);
    for previous in [None, Some(earlier())] {
        let moment = Moment {
            now: NOW,
            spread: Duration::from_secs(300),
        };
        let refresh_at = Some(NOW + pause);
        let random = SeededRandom::new(1);
        let (one, window) = (previous.as_ref(), window.clone());
        let drawn = redraw(one, window, refresh_at, &facts, moment, &random);
        if let Some(window) = &drawn.window {
            let inside = (window.start..window.end).contains(&drawn.at);
            let soon = window.end <= NOW && drawn.at <= NOW + moment.spread;
            assert!(inside || soon, "{drawn:?}");
            assert!(window.end <= facts.not_after, "{drawn:?}");
        }
        assert_eq!(stored(&drawn), drawn);
    }
}

/// `Retry-After`, and on a second line `Date`: parsed as in RFC 9110, and bounded, so that
/// no CA can block orders forever.
pub fn retry_after(text: &[u8]) {
    let Some(requested) = acme::fuzzing::retry_after(text, NOW) else {
        return;
    };
    let pause = clamp_retry_after(requested);
    assert!((Duration::from_secs(60)..=DAY).contains(&pause));
    let kind = FailureKind::RateLimited {
        retry_after: Some(requested),
    };
    let random = SeededRandom::new(1);
    let none = Failures::default();
    let failed = after_failure(&none, kind, String::new(), None, NOW, &random);
    let pause = failed.retry_at.map(|at| at.since(NOW));
    let least = requested.min(DAY).max(Duration::from_secs(60));
    assert!(pause.is_some_and(|pause| pause >= least && pause <= DAY * 8));
    assert_eq!(stored(&failed), failed);
}

/// A certificate of ninety days, thirty days old.
fn facts() -> Facts {
    Facts {
        identifiers: Identifier::parse("example.com").into_iter().collect(),
        not_before: NOW - DAY * 30,
        not_after: NOW + DAY * 60,
        fingerprint: Fingerprint::of(b"leaf"),
        renewal_id: Some("YQ.Yg".to_owned()),
    }
}

/// The draw from the previous request.
fn earlier() -> Renewal {
    Renewal {
        at: NOW + DAY * 30,
        window: accept(NOW + DAY * 29, NOW + DAY * 31, &facts()),
        refresh_at: Some(NOW),
        asked: None,
    }
}

/// `value` after a round trip through the store.
fn stored<T: serde::Serialize + serde::de::DeserializeOwned>(value: &T) -> T {
    let read = serde_json::to_vec(value).and_then(|json| serde_json::from_slice(&json));
    match read {
        Ok(value) => value,
        Err(error) => panic!("the value cannot be stored: {error}"),
    }
}
