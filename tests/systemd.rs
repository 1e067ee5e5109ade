//! The units below `deploy/`: systemd accepts them, and the service's exposure stays at its measured value.

use std::path::Path;
use std::process::{Command, Output};

use crate::support::text;

/// The exposure by `systemd-analyze security` in tenths: 2.0 by systemd 252. Most of it is network access,
/// which the service needs.
const EXPOSURE: u32 = 20;
/// The same with `certs.service.d/nginx.conf`, for the process that reloads nginx.
const EXPOSURE_WITH_NGINX: u32 = 35;

/// `None`, and a `SKIPPED` line, without systemd.
fn analyze(arguments: &[&str], unit: &Path) -> Option<Output> {
    let mut command = Command::new("systemd-analyze");
    let output = command.args(arguments).arg(unit).output();
    let Ok(output) = output else {
        eprintln!("SKIPPED: the systemd units: there is no systemd-analyze");
        return None;
    };
    if text(&output).contains("unrecognized option") {
        let arguments = arguments.join(" ");
        eprintln!("SKIPPED: the systemd units: `systemd-analyze {arguments}` is unknown here");
        return None;
    }
    Some(output)
}

/// The units in a directory of their own, with an existing program.
fn units(with: &[&str]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    for name in with {
        let unit = std::fs::read_to_string(deploy.join(name)).unwrap();
        let unit = unit.replace("/usr/bin/certs", env!("CARGO_BIN_EXE_certs"));
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, unit).unwrap();
    }
    directory
}

#[test]
fn systemd_accepts_units() {
    let all = [
        "certs.service",
        "certs.socket",
        "certs.service.d/nginx.conf",
        "certs-renew.service",
        "certs-renew.timer",
    ];
    let directory = units(&all);
    for name in ["certs.service", "certs.socket", "certs-renew.timer"] {
        let Some(output) = analyze(&["verify"], &directory.path().join(name)) else {
            return;
        };
        let printed = text(&output);
        assert!(
            output.status.success()
                && !printed.contains("certs.")
                && !printed.contains("certs-renew."),
            "{name}: {printed}"
        );
    }
    // An unknown key is reported.
    let service = directory.path().join("certs.service");
    let unit = std::fs::read_to_string(&service).unwrap();
    std::fs::write(&service, unit.replace("UMask=", "Umask=")).unwrap();
    let printed = text(&analyze(&["verify"], &service).unwrap());
    assert!(printed.contains("Umask"), "{printed}");
}

#[test]
fn service_exposure_does_not_grow() {
    for (with, exposure) in [
        (&["certs.service"][..], EXPOSURE),
        (&["certs-renew.service"], EXPOSURE),
        (
            &["certs.service", "certs.service.d/nginx.conf"],
            EXPOSURE_WITH_NGINX,
        ),
    ] {
        let directory = units(with);
        let judged = |threshold: u32| {
            let threshold = format!("--threshold={threshold}");
            let arguments = ["security", "--offline=yes", "--no-pager", &threshold];
            analyze(&arguments, &directory.path().join(with[0]))
        };
        let Some(output) = judged(exposure) else {
            return;
        };
        assert!(output.status.success(), "{}", text(&output));
        // No service with network access is below this threshold.
        assert!(!judged(1).unwrap().status.success());
    }
}
