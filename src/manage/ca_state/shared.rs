//! The stored state of a CA: changed by compare-and-swap, and shown in the metrics as
//! saved. It decides nothing.

use crate::ca_state::CaState;
use crate::manage::error::ManageError;
use crate::manage::services::Services;
use crate::observe::Tokens;
use crate::renew::policy::CONFLICTS;
use crate::renew::rate_limits;
use crate::store::StoreError;

/// Changes the state of `ca`, and repeats on the newest state after a conflict with another
/// process.
pub(super) async fn change<T>(
    services: &Services,
    ca: &str,
    mut change: impl FnMut(&mut CaState) -> T,
) -> Result<T, ManageError> {
    let mut faster = None;
    for _ in 0..CONFLICTS {
        let (stored, revision) = services.store.ca_state(ca).await?;
        let mut state = stored.clone();
        let answer = change(&mut state);
        if state == stored {
            return Ok(answer);
        }
        match services.store.save_ca_state(ca, &state, revision).await {
            Ok(_) => {
                show(services, ca, state);
                return Ok(answer);
            }
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
