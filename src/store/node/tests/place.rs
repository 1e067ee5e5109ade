//! An issuer that is hindered gives up its place.

use super::*;
use crate::ca_state::{CaState, Outage};

#[tokio::test(start_paused = true)]
async fn issuer_that_reaches_no_ca_gives_another_machine_its_place() {
    let documents = MemoryDocuments::default();
    let (one, other) = (machine(&documents, "one"), machine(&documents, "other"));
    assert!(turn(&one).await.promoted);
    let outage = Outage {
        since: Timestamp::from_seconds(1),
        probes: 1,
        probe_at: Timestamp::from_seconds(1),
        by_retry_after: false,
        answered: false,
        windows_only: false,
        last: "refused".into(),
    };
    let state = CaState {
        outage: Some(outage),
        ..CaState::default()
    };
    one.save_ca_state(CA, &state, Revision(0)).await.unwrap();
    let mut changes = Vec::new();
    for look in 0..400 {
        tokio::time::advance(Duration::from_secs(15)).await;
        for machine in [&one, &other] {
            if turn(machine).await.promoted {
                changes.push((look, std::ptr::eq(machine, &one)));
            }
        }
    }
    // After half an hour; the other one reaches its CA, and keeps the place.
    assert_eq!(changes, [(119, false)]);
    assert!(other.is_issuer() && !one.is_issuer());
    // One that is alone takes its place again.
    drop(other);
    for _ in 0..6 {
        tokio::time::advance(Duration::from_secs(15)).await;
        turn(&one).await;
    }
    assert!(one.is_issuer());
    let (_, revision) = one.ca_state(CA).await.unwrap();
    one.save_ca_state(CA, &state, revision).await.unwrap();
    let mut without = 0;
    for _ in 0..130 {
        tokio::time::advance(Duration::from_secs(15)).await;
        turn(&one).await;
        without += u32::from(!one.is_issuer());
    }
    assert!(without > 0 && without < 6 && one.is_issuer(), "{without}");
}
