//! Revocation lists (RFC 5280 section 5): one for the root and one for each intermediate,
//! signed when a client asks and what they say has changed, or an hour has passed. Every list
//! follows from the stored certificates, so a restart loses nothing.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber,
};

use super::authority::{CaKey, instant};
use super::jws::decode;
use super::problem::Problem;
use super::state::{Revocation, State};
use super::{DAY, HOUR, lock};
use crate::time::Timestamp;

/// A client may keep a list this long, also while the CA does not run.
const LIFETIME: Duration = Duration::from_secs(7 * 86_400);

/// The revoked certificates of an issuer, by serial number.
pub(super) type Revoked = BTreeMap<Vec<u8>, Revocation>;

/// The last list of each issuer.
#[derive(Default)]
pub(super) struct Lists(Mutex<BTreeMap<String, List>>);

struct List {
    revoked: Revoked,
    der: Bytes,
    number: u64,
    signed: Timestamp,
}

impl State {
    /// Those that `key_id` has signed and that have not expired for a day: a certificate is on
    /// one list after its expiry (RFC 5280 section 3.3).
    pub(super) fn revoked_by(&self, key_id: &str, now: Timestamp) -> Revoked {
        let prefix = format!("{key_id}.");
        let own = self.certificates.range(prefix.clone()..);
        let own = own.map_while(|(name, one)| Some((name.strip_prefix(&prefix)?, one)));
        let current = own.filter(|(_, one)| one.not_after + DAY >= now);
        current
            .filter_map(|(serial, one)| Some((decode(serial).ok()?, one.revoked.clone()?)))
            .collect()
    }
}

impl Lists {
    /// The list of `issuer` that names `revoked`.
    pub(super) fn current(
        &self,
        issuer: &CaKey,
        revoked: Revoked,
        now: Timestamp,
    ) -> Result<Bytes, Problem> {
        let mut lists = lock(&self.0);
        let last = lists.get(&issuer.key_id);
        let is_fresh = |last: &List| last.revoked == revoked && now.apart(last.signed) < HOUR;
        if let Some(last) = last.filter(|last| is_fresh(last)) {
            return Ok(last.der.clone());
        }
        // Numbers increase, also over a restart.
        let number = u64::try_from(now.seconds() * 1000).unwrap_or(0);
        let number = last.map_or(number, |last| number.max(last.number + 1));
        let der = sign(issuer, &revoked, number, now).map_err(|error| Problem::internal(&error))?;
        let list = List {
            revoked,
            der: der.clone(),
            number,
            signed: now,
        };
        lists.insert(issuer.key_id.clone(), list);
        Ok(der)
    }
}

fn sign(
    issuer: &CaKey,
    revoked: &Revoked,
    number: u64,
    now: Timestamp,
) -> Result<Bytes, rcgen::Error> {
    let entry = |(serial, revocation): (&Vec<u8>, &Revocation)| RevokedCertParams {
        serial_number: SerialNumber::from_slice(serial),
        revocation_time: instant(revocation.at),
        reason_code: reason(revocation.reason),
        invalidity_date: None,
    };
    let list = CertificateRevocationListParams {
        this_update: instant(now),
        next_update: instant(now + LIFETIME),
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs: revoked.iter().map(entry).collect(),
        key_identifier_method: KeyIdMethod::PreSpecified(
            decode(&issuer.key_id).unwrap_or_default(),
        ),
    };
    let signed = list.signed_by(&issuer.issuer)?;
    Ok(Bytes::copy_from_slice(signed.der()))
}

/// That of a subscriber; a list leaves out the unspecified one.
fn reason(code: u8) -> Option<RevocationReason> {
    match code {
        1 => Some(RevocationReason::KeyCompromise),
        3 => Some(RevocationReason::AffiliationChanged),
        4 => Some(RevocationReason::Superseded),
        5 => Some(RevocationReason::CessationOfOperation),
        _ => None,
    }
}
