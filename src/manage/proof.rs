//! Whether a certificate is proven to be served, from its record: by the last handshake
//! with each endpoint. Without an endpoint nothing was checked, and that is not a success. It
//! asks no server.

use crate::observe::{Proof, ProofState};
use crate::record::{Generation, Record};
use crate::time::Timestamp;

/// The name of the output files in [`Record::deployed`].
pub(super) const FILES: &str = "files";

/// The proof of the generation of `record` to be served at `now`.
#[must_use]
pub(crate) fn proof(record: &Record, now: Timestamp) -> Proof {
    let at = record.served.values().map(|seen| seen.at).min();
    let (state, at, detail) = match (obstacle(record, now), unchecked(record)) {
        (Some(why), _) => (ProofState::NotProven, at, why),
        (None, Some(why)) => (ProofState::NotChecked, at, why),
        (None, None) => (ProofState::Proven, at, endpoints(record)),
    };
    Proof { state, at, detail }
}

/// Why the certificate is not, or not seen, served.
fn obstacle(record: &Record, now: Timestamp) -> Option<String> {
    let Some((wanted, _)) = record.to_be_served(now) else {
        return Some("not issued yet".to_owned());
    };
    let problem = record.served.iter().find_map(|(endpoint, seen)| {
        let problem = seen.problem.as_ref()?;
        Some(located(endpoint, problem))
    });
    let failed = || {
        let deployed = record.deployed.iter().map(|(name, on)| (name, *on));
        let served = record.served.iter();
        let served = served.map(|(endpoint, seen)| (endpoint, seen.generation));
        let (place, _) = deployed.chain(served).find(|(_, on)| *on != wanted)?;
        let last = record.deployment_failures.last.clone();
        Some(last.unwrap_or_else(|| pending(place, wanted)))
    };
    problem.or_else(failed)
}

/// `problem` with its endpoint, unless the address that it begins with is the same.
pub(super) fn located(endpoint: &str, problem: &str) -> String {
    let rest = problem.strip_prefix(endpoint);
    match rest.is_some_and(|rest| rest.starts_with(": ")) {
        true => problem.to_owned(),
        false => format!("{endpoint}: {problem}"),
    }
}

fn pending(place: &str, wanted: Generation) -> String {
    match place {
        FILES => format!("the files of generation {wanted} are not published yet"),
        _ => format!("generation {wanted} is not deployed to {place} yet"),
    }
}

/// Why a part of the certificate's servers was not checked.
fn unchecked(record: &Record) -> Option<String> {
    let servers: Vec<&str> = record.unchecked.iter().map(String::as_str).collect();
    let servers = servers.join(", ");
    match (record.served.is_empty(), record.unchecked.is_empty()) {
        (false, true) => None,
        (true, true) => Some("no endpoint is configured".to_owned()),
        (true, false) => Some(format!(
            "no endpoint is configured, and the ports of {servers} are unknown"
        )),
        (false, false) => Some(format!(
            "no endpoint is configured for {servers}; proven at {} only",
            endpoints(record)
        )),
    }
}

fn endpoints(record: &Record) -> String {
    let endpoints: Vec<&str> = record.served.keys().map(String::as_str).collect();
    endpoints.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::Facts;
    use crate::fingerprint::Fingerprint;
    use crate::identifier::Identifier;
    use crate::lineage::Lineage;
    use crate::record::{Issued, Served};

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

    fn issued() -> Record {
        let name = Identifier::parse("example.com").unwrap();
        let mut record = Record::new(Lineage::of(&name), [name].into(), "https://ca".into());
        record.issued = Some(Issued {
            generation: Generation(2),
            facts: Facts {
                identifiers: record.identifiers.clone(),
                not_before: NOW,
                not_after: NOW + std::time::Duration::from_secs(86_400),
                fingerprint: Fingerprint::of(b""),
                renewal_id: None,
            },
            ca: record.ca.clone(),
            at: NOW,
            renewal: None,
            renewable_from: None,
            early: 0,
            deploy_at: None,
            instead_of: None,
            terms: None,
        });
        record.deployed.insert(FILES.into(), Generation(2));
        record
    }

    fn serve(record: &mut Record, endpoint: &str, generation: u64) {
        let seen = Served {
            generation: Generation(generation),
            ..Served::none(NOW)
        };
        record.served.insert(endpoint.into(), seen);
    }

    fn shown(record: &Record) -> String {
        proof(record, NOW).seen_at(NOW)
    }

    #[test]
    fn proof_needs_a_handshake_with_every_server() {
        let mut record = issued();
        assert_eq!(
            shown(&record),
            "not checked: no endpoint is configured; hint: --verify HOST:PORT"
        );
        record.unchecked.insert("docker:web".into());
        assert!(shown(&record).contains("the ports of docker:web are unknown; hint: "));
        serve(&mut record, "nginx", 2);
        assert!(shown(&record).starts_with(
            "not checked: no endpoint is configured for docker:web; proven at nginx only"
        ));
        record.unchecked.clear();
        assert!(shown(&record).starts_with("proven by handshake at nginx, "));
        assert_eq!(proof(&record, NOW).at, Some(NOW));
    }

    #[test]
    fn proof_names_what_is_missing() {
        let mut record = issued();
        record.deployed.insert("nginx".into(), Generation(1));
        assert_eq!(
            shown(&record),
            "not proven: generation 0002 is not deployed to nginx yet"
        );
        record.deployed.insert("nginx".into(), Generation(2));
        record.deployed.insert(FILES.into(), Generation(0));
        assert!(shown(&record).contains("not published"));
        record.deployed.insert(FILES.into(), Generation(2));
        serve(&mut record, "a:443", 2);
        serve(&mut record, "b:443", 2);
        record.served.get_mut("b:443").unwrap().problem = Some("connection refused".into());
        assert_eq!(shown(&record), "not proven: b:443: connection refused");
        for (found, said) in [
            ("b:443: no answer", "b:443: no answer"),
            ("b:4433: no answer", "b:443: b:4433: no answer"),
            (
                "192.0.2.1:443: no answer",
                "b:443: 192.0.2.1:443: no answer",
            ),
        ] {
            record.served.get_mut("b:443").unwrap().problem = Some(found.into());
            assert_eq!(shown(&record), format!("not proven: {said}"));
        }
        record.issued = None;
        assert_eq!(shown(&record), "not proven: not issued yet");
    }
}
