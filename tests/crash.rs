//! `kill -9` at every request of a renewal, before and after the CA has acted: the live pair loads, and the
//! next run finishes the same order.

use crate::support::embedded::EmbeddedCa;
use crate::support::faults::{Endpoint, Fault, Which};
use crate::support::{Running, loads, run, until};

const NAME: &str = "example.com";

/// The orders and certificates of a renewal that is killed while `endpoint` hangs.
fn renewed_through_a_kill(ca: &EmbeddedCa, endpoint: Endpoint, fault: Fault) -> (u32, u32) {
    let live = ca.path("out/live/example.com");
    let case = format!("{endpoint:?} {fault:?}");
    let done = |endpoint| ca.script.committed(endpoint);
    let (orders, certificates) = (done(Endpoint::NewOrder), done(Endpoint::Finalize));
    let reached = match fault {
        Fault::HangAfter => ca.script.committed(endpoint),
        _ => ca.script.count(endpoint),
    };
    ca.script.add(endpoint, Which::Nth(1), fault.clone());
    let mut running = Running::start(&mut ca.issue(&[NAME, "--force"]));
    until(&case, || match fault {
        Fault::HangAfter => ca.script.committed(endpoint) > reached,
        _ => ca.script.count(endpoint) > reached,
    });
    running.kill();
    loads(&live);
    ca.script.clear();
    run(&mut ca.issue(&[NAME]), 0);
    loads(&live);
    (
        done(Endpoint::NewOrder) - orders,
        done(Endpoint::Finalize) - certificates,
    )
}

#[test]
fn issue_resumes_order_after_kill_at_any_request() {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&[NAME]), 0);
    for endpoint in [
        Endpoint::NewOrder,
        Endpoint::Authorization,
        Endpoint::Challenge,
        Endpoint::Order,
        Endpoint::Finalize,
        Endpoint::Certificate,
        Endpoint::RenewalInfo,
    ] {
        for fault in [Fault::HangBefore, Fault::HangAfter] {
            let case = format!("{endpoint:?} {fault:?}");
            let (orders, certificates) = renewed_through_a_kill(&ca, endpoint, fault.clone());
            assert_eq!(certificates, 1, "{case}");
            match (endpoint, fault) {
                // The order's URL was lost with the reply, or the listener was gone while the CA validated.
                (Endpoint::NewOrder | Endpoint::Challenge, Fault::HangAfter) => {
                    assert!((1..=2).contains(&orders), "{case}: {orders}");
                }
                _ => assert_eq!(orders, 1, "{case}"),
            }
        }
    }
}
