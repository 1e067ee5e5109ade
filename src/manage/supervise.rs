//! The sidecar's loop: every certificate has its own task, which passes over it
//! when it is due and sleeps in between.

use std::time::Duration;

use tokio::sync::Semaphore;

use super::issue::{Urge, pass};
use super::{Certificate, ManageError, Parts};

/// Certificates worked on at once.
const IN_FLIGHT: usize = 4;
/// A clock that jumps, or another process's renewal, is noticed within this.
const SWEEP: Duration = Duration::from_secs(60);
/// After a failure that the record does not date, such as a server that does
/// not serve the new certificate: heals by itself, and says so meanwhile.
const AFTER_FAILURE: Duration = Duration::from_secs(15);

/// Keeps every certificate of `wanted` issued, deployed and proven; returns
/// only when it cannot start.
///
/// # Errors
/// When no placeholder could be written: the output is not usable.
pub async fn supervise(parts: &Parts, certificates: &[Certificate]) -> Result<(), ManageError> {
    for Certificate { wanted, .. } in certificates {
        let (lineage, identifiers) = (&wanted.lineage, &wanted.identifiers);
        if parts
            .output
            .placeholder(lineage, identifiers, parts.clock.now())?
        {
            tracing::info!(%lineage, "a placeholder stands in until the certificate is issued");
        }
    }
    let places = std::sync::Arc::new(Semaphore::new(IN_FLIGHT));
    let mut keeping = tokio::task::JoinSet::new();
    for certificate in certificates {
        keeping.spawn(keep(parts.clone(), certificate.clone(), places.clone()));
    }
    while keeping.join_next().await.is_some() {}
    Ok(())
}

async fn keep(parts: Parts, certificate: Certificate, places: std::sync::Arc<Semaphore>) {
    let lineage = &certificate.wanted.lineage;
    loop {
        let ended = {
            // The semaphore is never closed.
            let _place = places.acquire().await;
            pass(&parts, &certificate, Urge::Due).await
        };
        let now = parts.clock.now();
        let until = match ended {
            Ok(outcome) => {
                if outcome.issued {
                    tracing::info!(%lineage, generation = %outcome.generation, not_after = %outcome.not_after, "issued, deployed and proven");
                }
                outcome.next
            }
            Err(ManageError::BackingOff { until, .. }) => until,
            Err(error) => {
                tracing::error!(%lineage, "{error}");
                now + AFTER_FAILURE
            }
        };
        parts.clock.sleep_until(until.min(now + SWEEP)).await;
    }
}
