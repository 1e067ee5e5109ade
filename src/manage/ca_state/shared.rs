//! The stored state of a CA: changed by compare-and-swap, and shown in the metrics as
//! saved. It decides nothing.

use crate::ca_state::{CaState, EVERY_CA};
use crate::fingerprint::Fingerprint;
use crate::manage::error::ManageError;
use crate::manage::services::Services;
use crate::observe::Tokens;
use crate::renew::policy::CONFLICTS;
use crate::renew::rate_limits;
use crate::store::{Store, StoreError};

/// Changes the state of `ca`, and repeats on the newest state after a conflict with another
/// process.
pub(super) async fn change<T>(
    services: &Services,
    ca: &str,
    change: impl FnMut(&mut CaState) -> T,
) -> Result<T, ManageError> {
    let (answer, changed) = change_in(services.store.as_ref(), ca, change).await?;
    if let Some(state) = changed {
        show(services, ca, state);
    }
    Ok(answer)
}

/// Keeps the key of a revoked certificate, which gets none again under any name.
pub(crate) async fn note_revoked_key(
    store: &dyn Store,
    key: &Fingerprint,
) -> Result<(), ManageError> {
    let note = |state: &mut CaState| state.note_revoked_key(key.clone());
    change_in(store, EVERY_CA, note).await.map(drop)
}

/// The same, and returns the state if it was changed.
async fn change_in<T>(
    store: &dyn Store,
    ca: &str,
    mut change: impl FnMut(&mut CaState) -> T,
) -> Result<(T, Option<CaState>), ManageError> {
    let mut faster = None;
    for _ in 0..CONFLICTS {
        let (stored, revision) = store.ca_state(ca).await?;
        let mut state = stored.clone();
        let answer = change(&mut state);
        if state == stored {
            return Ok((answer, None));
        }
        match store.save_ca_state(ca, &state, revision).await {
            Ok(_) => return Ok((answer, Some(state))),
            Err(error @ StoreError::Conflict { .. }) => faster = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    Err(faster.map_or_else(
        || ManageError::Halted("the state of the CA could not be changed".into()),
        ManageError::Store,
    ))
}

/// Shows the stored state of `ca` in the metrics.
pub(crate) async fn show_stored(services: &Services, ca: &str) {
    match services.store.ca_state(ca).await {
        Ok((state, _)) => show(services, ca, state),
        Err(error) => tracing::warn!("the stored state of {ca} cannot be read: {error}"),
    }
}

fn show(services: &Services, ca: &str, state: CaState) {
    let rules = rate_limits::rules(ca);
    if rules.is_empty() {
        return;
    }
    services.metrics.set_tokens(ca, move |now| {
        let standing = rate_limits::standing(&state, rules, now).into_iter();
        let tokens = standing.map(|left| Tokens {
            limit: left.limit.as_str().to_owned(),
            subject: left.subject,
            left: left.tokens,
        });
        tokens.collect()
    });
}
