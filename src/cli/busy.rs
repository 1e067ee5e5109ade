//! Waits for the work in progress on a certificate, as a request to a running sidecar does.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::manage::ManageError;
use crate::store::StoreError;

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(200);
/// Few passes take longer, and a stopped process must not block a command for ever.
const WITHIN: Duration = Duration::from_secs(60);

/// Does `work`, which needs the lease of a certificate, once no other process has it.
///
/// # Errors
/// Those of `work`; also when the lease is held for too long.
pub(super) async fn when_free<T, F>(work: impl Fn() -> F) -> Result<T, ManageError>
where
    F: Future<Output = Result<T, ManageError>>,
{
    let begun = Instant::now();
    loop {
        match work().await {
            Err(ManageError::Store(StoreError::Leased { .. })) if begun.elapsed() < WITHIN => {
                sleep(PAUSE).await;
            }
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::lineage::Lineage;

    #[tokio::test(start_paused = true)]
    async fn work_waits_for_a_lease_and_for_nothing_else() {
        let (tries, lineage) = (Cell::new(0), Lineage::parse("a.example").unwrap());
        let leased = || {
            ManageError::Store(StoreError::Leased {
                lineage: lineage.clone(),
            })
        };
        let work = |free_after: u32, failure: &dyn Fn() -> ManageError| {
            tries.set(tries.get() + 1);
            std::future::ready(match tries.get() > free_after {
                true => Ok(()),
                false => Err(failure()),
            })
        };
        when_free(|| work(3, &leased)).await.unwrap();
        assert_eq!(tries.replace(0), 4);
        when_free(|| work(3, &|| ManageError::Stopped))
            .await
            .unwrap_err();
        assert_eq!(tries.replace(0), 1);
        let ended = when_free(|| work(u32::MAX, &leased)).await.unwrap_err();
        assert!(matches!(
            ended,
            ManageError::Store(StoreError::Leased { .. })
        ));
        assert!((300..=302).contains(&tries.get()), "{}", tries.get());
    }
}
