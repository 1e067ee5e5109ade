//! Clocks that disagree. When a CA's replies show another time than this machine, the sidecar raises an alarm
//! and nothing else: it orders nothing, stays ready, and renews on request.

use certs::time::Timestamp;
use serde_json::Value;

use crate::support::embedded::EmbeddedCa;
use crate::support::faults::Endpoint;
use crate::support::sidecar::Sidecar;
use crate::support::{certs, run, until};
use crate::targets::{NAME, generation, issued};

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
const TEN_YEARS: i64 = 3652 * DAY;

/// Makes the stored renewal window expired, as after a long downtime, so that the sidecar asks the CA at its
/// start.
fn expire_window(ca: &EmbeddedCa) {
    let file = ca.path("data/records").join(NAME).join("record.json");
    let text = std::fs::read_to_string(&file).unwrap();
    let mut record: Value = serde_json::from_str(&text).unwrap();
    let issued = &mut record["record"]["issued"];
    let at = issued["at"].clone();
    assert!(!at.is_null() && !issued["renewal"]["refresh_at"].is_null());
    issued["renewal"]["refresh_at"] = at;
    std::fs::write(&file, record.to_string()).unwrap();
}

/// The log lines about a wrong clock.
pub(crate) fn alarms(log: &str) -> Vec<&str> {
    // A pass that failed by the clock says so too, and does not count as an alarm.
    let is_alarm = |line: &&str| {
        let message = line.split("hint:").next().unwrap();
        message.contains("this machine's clock") && !message.contains(" failed: ")
    };
    log.lines().filter(is_alarm).collect()
}

/// Asserts that the stored renewal times lie within the certificate's validity.
pub(crate) fn renews_before_expiry(ca: &EmbeddedCa, ahead: i64) {
    let file = ca.path("data/records").join(NAME).join("record.json");
    let record: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let issued = &record["record"]["issued"];
    let time = |value: &Value| serde_json::from_value::<Timestamp>(value.clone()).unwrap();
    let (from, to) = (
        &issued["facts"]["not_before"],
        &issued["facts"]["not_after"],
    );
    for next in [&issued["renewable_from"], &issued["renewal"]["at"]] {
        let inside = time(from)..time(to);
        assert!(inside.contains(&time(next)), "{ahead}: {issued}");
    }
}

/// Starts a sidecar against a CA whose clock is `ahead` seconds ahead. The sidecar has read the CA's time and
/// checked what is due, has placed no order, and is ready.
fn sidecar_with_ca_time(ca: &EmbeddedCa, ahead: i64) -> Sidecar {
    ca.script.set_ahead(ahead);
    expire_window(ca);
    let counts = || [Endpoint::RenewalInfo, Endpoint::NewOrder].map(|of| ca.script.committed(of));
    let [asked, orders] = counts();
    let mut sidecar = Sidecar::start(ca, &[NAME]);
    until("a reply", || counts()[0] > asked);
    until("readiness", || {
        assert_eq!(counts()[1], orders, "{ahead}: {}", sidecar.log());
        sidecar.readiness() == 200
    });
    let printed = run(certs(&ca.path("")).arg("renew"), 0);
    assert!(printed.contains("not due"), "{ahead}: {printed}");
    assert_eq!(counts()[1], orders, "{ahead}: {}", sidecar.log());
    assert_eq!(sidecar.readiness(), 200, "{ahead}: {}", sidecar.log());
    assert!(!sidecar.running.has_ended());
    sidecar
}

#[test]
fn clock_mismatch_with_ca_raises_alarm_and_no_order() {
    let ca = issued();
    for ahead in [HOUR, DAY, TEN_YEARS] {
        for (ahead, direction) in [(ahead, "behind"), (-ahead, "ahead of")] {
            let sidecar = sidecar_with_ca_time(&ca, ahead);
            let log = sidecar.log();
            let [alarm] = alarms(&log)[..] else {
                panic!("not one alarm for {ahead} s: {log}");
            };
            // A reply shows whole seconds.
            let minutes = [1, 0].map(|less| ahead.abs() / 60 - less);
            let apart = minutes.map(|minutes| format!(" {minutes} minutes {direction} the CA's"));
            assert!(apart.iter().any(|it| alarm.contains(it)), "{alarm}");
            let fit = alarm.contains("ERROR")
                && alarm.contains("; hint: set this machine's clock, best by NTP");
            assert!(fit, "{alarm}");
            // A certificate that is not due is skipped; a forced renewal is not.
            let (orders, before) = (ca.script.committed(Endpoint::NewOrder), generation(&ca));
            run(certs(&ca.path("")).args(["renew", "--force"]), 0);
            assert_eq!(ca.script.committed(Endpoint::NewOrder), orders + 1);
            assert_eq!(generation(&ca), before + 1);
            renews_before_expiry(&ca, ahead);
            assert_eq!(sidecar.readiness(), 200, "{ahead}: {}", sidecar.log());
        }
    }
}

#[test]
fn small_clock_skew_raises_no_alarm() {
    let ca = issued();
    for ahead in [0, 20, -20] {
        let log = sidecar_with_ca_time(&ca, ahead).log();
        assert_eq!(alarms(&log), [""; 0], "{ahead} s");
    }
}

#[test]
fn first_certificate_is_issued_when_only_date_header_is_wrong() {
    // A proxy before the CA sets the `Date` of its replies.
    for ahead in [HOUR, DAY, 50 * DAY, TEN_YEARS].map(|ahead| [ahead, -ahead]) {
        for ahead in ahead {
            let ca = EmbeddedCa::start();
            ca.script.set_ahead(ahead);
            let printed = run(&mut ca.issue(&[NAME]), 0);
            assert_eq!(alarms(&printed).len(), 1, "{ahead} s: {printed}");
            let printed = run(&mut ca.issue(&[NAME]), 0);
            assert!(printed.contains("not due"), "{ahead} s: {printed}");
            assert_eq!(ca.script.count(Endpoint::NewOrder), 1, "{ahead} s");
            renews_before_expiry(&ca, ahead);
        }
    }
}
