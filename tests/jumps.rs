//! This machine's own clock, set by hours, days and years under the program, and a machine that is suspended.
//! The sidecar orders nothing, raises an alarm, and recovers by itself once the clock is right.

use std::process::Stdio;
use std::time::Duration;

use certs::ca::Profile;
use rustix::process::Signal;

use crate::clocks::{alarms, renews_before_expiry};
use crate::support::clock::Clocks;
use crate::support::embedded::EmbeddedCa;
use crate::support::faults::{Endpoint, Fault, Which};
use crate::support::oracle::{Oracle, Pair};
use crate::support::renewal::Renewal;
use crate::support::sidecar::{Sidecar, configured};
use crate::support::{certs, free_port, run, text, until};
use crate::targets::{NAME, issued};

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
const TEN_YEARS: i64 = 3652 * DAY;
const JUMPS: [i64; 6] = [HOUR, -HOUR, DAY, -DAY, TEN_YEARS, -TEN_YEARS];

/// Longer than the minute between two looks at the clock.
const A_MINUTE: Duration = Duration::from_secs(61);

/// A sidecar with adjustable clocks, and its CA.
struct ClockedSidecar<'t> {
    ca: &'t EmbeddedCa,
    clocks: &'t Clocks,
    sidecar: Sidecar,
}

impl<'t> ClockedSidecar<'t> {
    fn start(ca: &'t EmbeddedCa, clocks: &'t Clocks) -> Self {
        let clocked = Self::begin(ca, clocks);
        clocked.is_ready("at its start");
        clocked.sidecar.settle(clocks, ca);
        clocked
    }

    fn begin(ca: &'t EmbeddedCa, clocks: &'t Clocks) -> Self {
        let admin = free_port();
        let mut command = configured(ca, &[NAME], admin);
        let sidecar = Sidecar::start_as(ca, clocks.preload(&mut command), admin);
        Self {
            ca,
            clocks,
            sidecar,
        }
    }

    fn is_ready(&self, case: &str) {
        until(case, || self.sidecar.readiness() == 200);
    }

    /// Two minutes pass: a task may read the clock just before it is set, and start its sleep just after.
    fn a_minute_passes(&self) {
        for _ in 0..2 {
            self.clocks.pass(A_MINUTE, || {
                self.sidecar.readiness();
            });
        }
    }

    /// The number of alarms about a clock.
    fn alarm_count(&self) -> usize {
        alarms(&self.sidecar.log()).len()
    }

    /// Sets the clock right, and waits a minute for the sidecar to ask the CA.
    fn set_clock_right(&self) {
        let asked = self.ca.script.count(Endpoint::Directory);
        self.clocks.set_ahead(0);
        self.a_minute_passes();
        let asks = || self.ca.script.count(Endpoint::Directory) > asked;
        until("a clock probe", asks);
    }

    /// Asserts that the sidecar finds its certificate not due and says so.
    fn finds_nothing_due(&self, case: &str) {
        let printed = run(certs(&self.ca.path("")).arg("renew"), 0);
        assert!(printed.contains("not due"), "{case}: {printed}");
    }

    /// Moves all clocks to the time of the renewal, and expects exactly one.
    fn renews_once_when_due(&self) {
        let (ordered, pair) = (orders(self.ca), live(self.ca));
        self.ca.set_time_ahead(62 * DAY);
        self.clocks.set_ahead(62 * DAY);
        self.a_minute_passes();
        until("a renewal", || live(self.ca).generation > pair.generation);
        self.finds_nothing_due("after its time");
        let log = self.sidecar.log();
        assert_eq!(orders(self.ca), ordered + 1, "{log}");
        assert_eq!(live(self.ca).generation.0, pair.generation.0 + 1, "{log}");
    }
}

impl Drop for ClockedSidecar<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.sidecar.log());
        }
    }
}

fn orders(ca: &EmbeddedCa) -> u32 {
    ca.script.count(Endpoint::NewOrder)
}

fn live(ca: &EmbeddedCa) -> Pair {
    let oracle = Oracle::new(&ca.path(""), &[NAME]);
    oracle.live().unwrap().unwrap()
}

#[test]
fn clock_jump_under_sidecar_raises_alarm_and_no_order() {
    let Some(clocks) = Clocks::find("clock jumps under a sidecar") else {
        return;
    };
    let ca = issued();
    let clocked = ClockedSidecar::start(&ca, &clocks);
    for ahead in JUMPS {
        let case = format!("{ahead} s");
        let (ordered, pair, printed) = (orders(&ca), live(&ca), clocked.alarm_count());
        clocks.set_ahead(ahead);
        clocked.a_minute_passes();
        until(&case, || clocked.alarm_count() > printed);
        // With a clock that is years wrong, only a connection from before the jump reaches the CA.
        let is_far = ahead.abs() == TEN_YEARS;
        if !is_far {
            clocked.finds_nothing_due(&case);
            clocked.is_ready(&case);
        }
        let log = clocked.sidecar.log();
        let [.., alarm] = alarms(&log)[..] else {
            unreachable!()
        };
        let direction = if ahead > 0 { "ahead of" } else { "behind" };
        let fit = alarm.contains("ERROR")
            && alarm.contains("; hint: set this machine's clock, best by NTP");
        assert!(fit && (is_far || alarm.contains(direction)), "{alarm}");
        // The clock is set right.
        clocked.set_clock_right();
        clocked.finds_nothing_due(&case);
        clocked.is_ready(&case);
        let log = clocked.sidecar.log();
        assert_eq!(clocked.alarm_count(), printed + 1, "{case}: {log}");
        assert_eq!(orders(&ca), ordered, "{case}: {log}");
        assert_eq!(live(&ca), pair, "{case}");
        run(certs(&ca.path("")).args(["renew", "--force"]), 0);
        assert_eq!(orders(&ca), ordered + 1, "{case}");
        assert_eq!(live(&ca).generation.0, pair.generation.0 + 1, "{case}");
    }
    clocked.renews_once_when_due();
}

#[test]
fn start_with_wrong_clock_raises_alarm_and_no_order() {
    let Some(clocks) = Clocks::find("starts by a wrong clock") else {
        return;
    };
    for ahead in JUMPS {
        let ca = old();
        run(&mut ca.issue(&[NAME]), 0);
        let (pair, windows) = (live(&ca), ca.script.count(Endpoint::RenewalInfo));
        clocks.set_ahead(ahead);
        let clocked = ClockedSidecar::begin(&ca, &clocks);
        // Not a minute passes.
        until("an alarm", || clocked.alarm_count() > 0);
        // With a clock an hour ahead, no other request is due.
        let asked = ca.script.count(Endpoint::RenewalInfo) > windows;
        assert!(ahead != HOUR || !asked, "{}", clocked.sidecar.log());
        for _ in 0..5 {
            clocked.a_minute_passes();
        }
        let log = clocked.sidecar.log();
        let [alarm] = alarms(&log)[..] else {
            panic!("not one alarm for {ahead} s: {log}");
        };
        let words = match ahead {
            TEN_YEARS => " expired at ",
            ahead if ahead > 0 => "ahead of",
            ahead if ahead == -TEN_YEARS => " valid from ",
            _ => "behind",
        };
        assert!(alarm.contains(words), "{ahead} s: {alarm}");
        assert_eq!((orders(&ca), live(&ca)), (1, pair), "{ahead} s: {log}");
        renews_before_expiry(&ca, ahead);
    }
}

#[test]
fn clock_outside_every_ca_validity_is_reported_and_retried_once_right() {
    let Some(clocks) = Clocks::find("clocks ten years off") else {
        return;
    };
    for ahead in [TEN_YEARS, -TEN_YEARS] {
        clocks.set_ahead(0);
        let ca = issued();
        let clocked = ClockedSidecar::start(&ca, &clocks);
        let (pair, asked) = (live(&ca), ca.script.count(Endpoint::Directory));
        clocks.set_ahead(ahead);
        clocked.a_minute_passes();
        until("an alarm", || clocked.alarm_count() > 0);
        for _ in 0..4 {
            clocked.a_minute_passes();
        }
        // Afterwards no pass is in progress, whatever its result.
        certs(&ca.path("")).arg("renew").output().unwrap();
        // With a clock that is behind, a TLS session from before the jump is still valid.
        let asks = ca.script.count(Endpoint::Directory) > asked;
        assert!(ahead < 0 || !asks, "{ahead} s");
        // No signal or request reaches the sidecar.
        clocked.set_clock_right();
        clocked.is_ready("after ten years");
        let log = clocked.sidecar.log();
        let [alarm] = alarms(&log)[..] else {
            panic!("not one alarm for {ahead} s: {log}");
        };
        let words = if ahead > 0 {
            " expired at "
        } else {
            " behind "
        };
        let fit = alarm.contains("ERROR")
            && alarm.contains("; hint: set this machine's clock, best by NTP");
        assert!(fit && alarm.contains(words), "{alarm}");
        assert_eq!((orders(&ca), live(&ca)), (1, pair), "{ahead} s: {log}");
        renews_before_expiry(&ca, ahead);
        clocked.finds_nothing_due("after ten years");
        clocked.renews_once_when_due();
    }
}

#[test]
fn clock_jump_in_pending_order_costs_no_second_certificate() {
    let Some(clocks) = Clocks::find("clock jumps in a pending order") else {
        return;
    };
    let ca = issued();
    let clocked = ClockedSidecar::start(&ca, &clocks);
    for at in [
        Endpoint::NewOrder,
        Endpoint::Finalize,
        Endpoint::Certificate,
    ] {
        for ahead in JUMPS {
            let renewal = Renewal::begin(&ca, &[NAME], format!("{at:?}, {ahead} s"));
            let (before, printed) = (ca.script.count(at), clocked.alarm_count());
            ca.script.add(at, Which::Every, Fault::Held);
            let mut force = certs(&ca.path(""));
            let force = force.args(["renew", "--force"]).stderr(Stdio::piped());
            let force = force.stdout(Stdio::piped()).spawn().unwrap();
            until("the order", || ca.script.count(at) > before);
            clocks.set_ahead(ahead);
            clocked.a_minute_passes();
            until("an alarm", || clocked.alarm_count() > printed);
            ca.script.clear();
            renewal.finish_by(|case| {
                let ended = force.wait_with_output().unwrap();
                let mut printed = text(&ended);
                clocked.set_clock_right();
                // With a clock that is ten years wrong only a kept connection to the CA works. Where that has
                // ended, the order is resumed.
                if ended.status.code() == Some(3) && ahead.abs() >= TEN_YEARS {
                    printed += &run(certs(&ca.path("")).args(["renew", "--force"]), 0);
                } else {
                    assert_eq!(ended.status.code(), Some(0), "{case}: {printed}");
                }
                clocked.finds_nothing_due(case);
                clocked.is_ready(case);
                printed
            });
            renews_before_expiry(&ca, ahead);
        }
    }
}

#[test]
fn certificates_due_in_suspend_are_renewed_once() {
    let Some(clocks) = Clocks::find("a suspend") else {
        return;
    };
    // The certificate is renewed after half of this time.
    let life = Duration::from_secs(12 * 3600);
    let ca = EmbeddedCa::with(|settings| {
        let profile = Profile::new(life, "twelve hours");
        settings.profiles = [("default".to_owned(), profile)].into();
    });
    run(&mut ca.issue(&[NAME]), 0);
    let clocked = ClockedSidecar::start(&ca, &clocks);
    let mut ordered = orders(&ca);
    for (hour, renewals) in [(2, 0), (10, 1), (12, 0), (20, 1)] {
        let case = format!("{hour} h");
        let (pair, held) = (live(&ca), clocked.sidecar.time_requests());
        clocked.sidecar.running.signal(Signal::STOP);
        ca.set_time_ahead(hour * HOUR);
        clocks.set_ahead(hour * HOUR);
        clocked.sidecar.running.signal(Signal::CONT);
        clocked.a_minute_passes();
        until(&case, || clocked.sidecar.time_requests() > held);
        let wanted = pair.generation.0 + u64::from(renewals);
        until(&case, || live(&ca).generation.0 == wanted);
        clocked.finds_nothing_due(&case);
        clocked.is_ready(&case);
        ordered += renewals;
        assert_eq!(orders(&ca), ordered, "{case}: {}", clocked.sidecar.log());
        assert_eq!(live(&ca).generation.0, wanted, "{case}");
    }
    assert_eq!(clocked.alarm_count(), 0, "{}", clocked.sidecar.log());
}

/// A CA whose server certificate is older than any clock here is behind, except by ten years.
fn old() -> EmbeddedCa {
    EmbeddedCa::created_ago(5 * DAY, |_| ())
}

#[test]
fn renew_with_wrong_clock_orders_nothing_not_due() {
    let Some(clocks) = Clocks::find("commands with a wrong clock") else {
        return;
    };
    let ca = old();
    run(&mut ca.issue(&[NAME]), 0);
    let pair = live(&ca);
    for ahead in JUMPS {
        clocks.set_ahead(ahead);
        let mut renew = certs(&ca.path(""));
        renew.arg("renew");
        // Ten years ahead the certificate has expired and no CA is trusted. The command reports this, and
        // waits before it retries.
        let [first, then] = if ahead == TEN_YEARS { [3, 6] } else { [0, 0] };
        for (command, code) in [(&mut ca.issue(&[NAME]), first), (&mut renew, then)] {
            let printed = run(clocks.preload(command), code);
            let fit = match code {
                0 => printed.contains("not due"),
                _ => printed.contains("this machine's clock shows"),
            };
            assert!(fit, "{ahead} s: {printed}");
        }
        clocks.set_ahead(0);
        let printed = run(clocks.preload(&mut renew), 0);
        assert!(printed.contains("not due"), "{ahead} s: {printed}");
        assert_eq!((orders(&ca), live(&ca)), (1, pair.clone()), "{ahead} s");
        renews_before_expiry(&ca, ahead);
    }
}

#[test]
fn first_certificate_with_wrong_clock_is_issued_or_explained() {
    let Some(clocks) = Clocks::find("first certificates with a wrong clock") else {
        return;
    };
    for ahead in JUMPS {
        let ca = old();
        clocks.set_ahead(ahead);
        let is_trusted = ahead.abs() < TEN_YEARS;
        let code = if is_trusted { 0 } else { 3 };
        let printed = run(clocks.preload(&mut ca.issue(&[NAME])), code);
        assert_eq!(alarms(&printed).len(), 1, "{ahead} s: {printed}");
        assert!(
            printed.contains("hint: set this machine's clock, best by NTP"),
            "{printed}"
        );
        assert_eq!(orders(&ca), u32::from(is_trusted), "{ahead} s: {printed}");
        for ahead in [ahead, 0] {
            clocks.set_ahead(ahead);
            // Once the clock is right, the first certificate is issued.
            if is_trusted || ahead == 0 {
                run(clocks.preload(&mut ca.issue(&[NAME])), 0);
                renews_before_expiry(&ca, ahead);
                assert_eq!(orders(&ca), 1, "{ahead} s");
                live(&ca);
            }
        }
    }
}
