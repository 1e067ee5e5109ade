//! Volumes that are really full or really read-only, as a one-shot command and
//! the sidecar meet them: told at once, nothing that is live is touched, and
//! mended unaided once there is room again.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::embedded::EmbeddedCa;
use crate::support::faults::{Endpoint, Fault, Which};
use crate::support::renewal::Renewal;
use crate::support::{Running, certs, free_port, run, text, until, until_within};

const NAMES: [&str; 1] = ["example.com"];

/// A small file system in memory, taken away with its test.
struct Volume(PathBuf);

impl Volume {
    /// `None`, and a line that says why `what` was left out.
    fn mount(path: &Path, what: &str) -> Option<Self> {
        std::fs::create_dir_all(path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=256k,mode=2750", "tmpfs"]);
        match mount.arg(path).output() {
            Ok(output) if output.status.success() => Some(Self(path.to_owned())),
            Ok(output) => skipped(what, text(&output).trim()),
            Err(error) => skipped(what, &error.to_string()),
        }
    }

    /// Takes every free byte, and leaves none for the smallest file.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.0.join("filler")).unwrap();
        while file.write(&[0; 4096]).is_ok() {}
    }

    fn empty(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }

    fn remount(&self, how: &str) {
        let options = format!("remount,{how}");
        let mount = Command::new("mount")
            .args(["-o", &options])
            .arg(&self.0)
            .output();
        let output = mount.unwrap();
        assert!(output.status.success(), "{}", text(&output));
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Detached, or a process that has not ended yet would keep it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn skipped<T>(what: &str, why: &str) -> Option<T> {
    eprintln!("SKIPPED: {what}: no file system can be mounted: {why}");
    None
}

/// What a one-shot renewal says while `volume` is as `disturb` makes it; then
/// `mend`, and all is well.
fn told_and_healed(ca: &EmbeddedCa, case: &str, disturb: impl Fn(), mend: impl Fn()) -> String {
    let mut renewal = Renewal::begin(ca, &NAMES, case.to_owned());
    disturb();
    let told = run(&mut ca.issue(&[NAMES[0], "--force"]), 8);
    assert!(told.contains("hint:"), "{case}: {told}");
    renewal.is_whole();
    mend();
    let orders = renewal.ends_well();
    assert!(orders.placed <= 1, "{case}: {orders:?}: {told}");
    told
}

#[test]
fn a_full_or_read_only_volume_is_exit_8_and_healed_by_the_next_run() {
    for place in ["data", "out"] {
        let ca = EmbeddedCa::start();
        let what = format!("a full or read-only {place} directory");
        let Some(volume) = Volume::mount(&ca.path(place), &what) else {
            return;
        };
        run(&mut ca.issue(&NAMES), 0);
        let (fill, empty) = (|| volume.fill(), || volume.empty());
        let told = told_and_healed(&ca, &format!("{place} is full"), fill, empty);
        assert!(told.contains("No space left on device"), "{told}");
        let (shut, open) = (|| volume.remount("ro"), || volume.remount("rw"));
        let told = told_and_healed(&ca, &format!("{place} is read-only"), shut, open);
        assert!(told.contains("Read-only file system"), "{told}");
    }
}

/// `certs run` with its log.
pub(crate) struct Sidecar {
    pub(crate) running: Running,
    log: PathBuf,
    admin: u16,
}

impl Sidecar {
    pub(crate) fn start(ca: &EmbeddedCa) -> Self {
        let (log, admin) = (ca.path("run.log"), free_port());
        let mut command = certs(&ca.path(""));
        let http = format!("127.0.0.1:{}", ca.http_port);
        command
            .args(["run", "--agree-tos", "--ca", &ca.server.directory_url()])
            .env("CERTS_DOMAINS", NAMES[0])
            .env("CERTS_CA_ROOT", ca.path("root.pem"))
            .env("CERTS_HTTP_LISTEN", http)
            .env("CERTS_ADMIN_LISTEN", format!("127.0.0.1:{admin}"));
        let log_file = std::fs::File::create(&log).unwrap();
        let running = Running::start_logging(&mut command, Stdio::from(log_file));
        Self {
            running,
            log,
            admin,
        }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// The status that `/readyz` gives; 0 when it does not.
    pub(crate) fn readiness(&self) -> u16 {
        let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.admin)) else {
            return 0;
        };
        let request = "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let mut reply = String::new();
        let asked = stream.write_all(request.as_bytes());
        asked
            .and_then(|()| stream.read_to_string(&mut reply))
            .unwrap();
        reply.get(9..12).unwrap_or("0").parse().unwrap()
    }
}

/// Meets `disturb` when it is about to issue, tells `words` within a minute, and
/// is ready without any help within one after `mend`.
fn alarm_and_recovery(place: &str, words: &str, disturb: impl Fn(&Volume), mend: impl Fn(&Volume)) {
    let ca = EmbeddedCa::start();
    let what = format!("the sidecar and its {place} directory: {words}");
    let Some(volume) = Volume::mount(&ca.path(place), &what) else {
        return;
    };
    ca.script
        .add(Endpoint::NewOrder, Which::Nth(1), Fault::Held);
    let mut sidecar = Sidecar::start(&ca);
    until("an order", || ca.script.count(Endpoint::NewOrder) == 1);
    disturb(&volume);
    ca.script.clear();
    let minute = Duration::from_secs(60);
    let log = sidecar.log.clone();
    let is_told = || {
        let log = std::fs::read_to_string(&log).unwrap();
        log.lines()
            .any(|line| line.contains("ERROR") && line.contains(words) && line.contains("hint:"))
    };
    until_within("an alarm", minute, is_told);
    assert_eq!(sidecar.readiness(), 503, "{}", sidecar.log());
    mend(&volume);
    until_within("recovery", 2 * minute, || sidecar.readiness() == 200);
    assert!(!sidecar.running.has_ended());
    assert_eq!(ca.script.committed(Endpoint::Finalize), 1);
}

#[test]
fn the_sidecar_tells_a_volume_that_is_read_only_and_recovers_unaided() {
    // The store cannot be shut while its lease is held: the kernel refuses.
    let words = "Read-only file system";
    alarm_and_recovery("out", words, |it| it.remount("ro"), |it| it.remount("rw"));
}

#[test]
fn the_sidecar_tells_a_volume_that_is_full_and_recovers_unaided() {
    for place in ["data", "out"] {
        let words = "No space left on device";
        alarm_and_recovery(place, words, Volume::fill, Volume::empty);
    }
}
