//! Faults around the program. The live pair stays unchanged byte for byte, the message names the cause, and
//! once it is gone nothing is ordered a second time.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{NOBODY, Nginx, Pebble, Running, as_nobody, run, until};

/// A small file system, unmounted with the test.
pub(crate) struct Tmpfs(PathBuf);

impl Tmpfs {
    /// `None`, and a `SKIPPED` line, without permission to mount.
    pub(crate) fn mount(path: &Path, kilobytes: u32) -> Option<Self> {
        std::fs::create_dir_all(path).unwrap();
        let size = format!("size={kilobytes}k,mode=0755");
        let mounted = mount(&["-t", "tmpfs", "-o", &size, "none"], path);
        if !mounted {
            eprintln!("SKIPPED: full and read-only file systems: no permission to mount");
            return None;
        }
        Some(Self(path.to_owned()))
    }

    fn remount(&self, options: &str) {
        assert!(mount(&["-o", &format!("remount,{options}")], &self.0));
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // A lazy unmount: a failed test may still have files open there.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn mount(arguments: &[&str], path: &Path) -> bool {
    let status = Command::new("mount").args(arguments).arg(path).output();
    status.is_ok_and(|output| output.status.success())
}

fn pair(live: &Path) -> [Vec<u8>; 2] {
    ["fullchain.pem", "privkey.pem"].map(|name| std::fs::read(live.join(name)).unwrap())
}

/// Breaks the output, renews into it, repairs it, and runs once more.
fn output_fails(break_it: impl FnOnce(&Tmpfs), message: &str, mend: impl FnOnce(&Tmpfs)) {
    let Some(pebble) = Pebble::start(5) else {
        return;
    };
    let Some(tmpfs) = Tmpfs::mount(&pebble.path("out"), 64) else {
        return;
    };
    run(&mut pebble.issue(&["example.com"]), 0);
    let live = pebble.path("out/live/example.com");
    let before = pair(&live);
    break_it(&tmpfs);
    let printed = run(&mut pebble.issue(&["example.com", "--force"]), 8);
    assert!(
        printed.contains(message) && printed.contains("hint:"),
        "{printed}"
    );
    assert_eq!(pair(&live), before);
    mend(&tmpfs);
    let printed = run(&mut pebble.issue(&["example.com"]), 0);
    assert!(printed.contains("not due; generation 0002"), "{printed}");
    assert_ne!(pair(&live), before);
}

#[test]
fn full_output_exits_8_and_recovers_without_order() {
    let filler = |tmpfs: &Tmpfs| tmpfs.0.join("filler");
    output_fails(
        |tmpfs| {
            // Fills the file system.
            let _ = std::fs::write(filler(tmpfs), vec![0; 128 * 1024]);
        },
        "No space left on device",
        |tmpfs| std::fs::remove_file(filler(tmpfs)).unwrap(),
    );
}

#[test]
fn read_only_output_exits_8_and_recovers_without_order() {
    output_fails(
        |tmpfs| tmpfs.remount("ro"),
        "Read-only file system",
        |tmpfs| tmpfs.remount("rw"),
    );
}

#[test]
fn wrong_pid_file_exits_7_and_signals_no_process() {
    let Some(pebble) = Pebble::start(5) else {
        return;
    };
    let file = pebble.path("server.pid");
    let deploy = format!("nginx:{}", file.display());
    let arguments = ["example.com", "--deploy", &deploy];
    let own = std::process::id().to_string();
    for (content, message) in [
        (None, "no pid file"),
        (Some("4194305"), "is not running"),
        (Some("nonsense"), "no process number in the pid file"),
        // HUP would end this very process.
        (Some(own.as_str()), "not nginx"),
    ] {
        if let Some(content) = content {
            std::fs::write(&file, content).unwrap();
        }
        let printed = run(&mut pebble.issue(&arguments), 7);
        assert!(
            printed.contains(message) && printed.contains("hint:"),
            "{printed}"
        );
    }
    let live = pebble.path("out/live/example.com");
    let Some(nginx) = Nginx::start(&live) else {
        return;
    };
    let deploy = format!("nginx:{}", nginx.pid_file.display());
    let printed = run(&mut pebble.issue(&["example.com", "--deploy", &deploy]), 0);
    assert!(printed.contains("not due; generation 0001"), "{printed}");
}

#[test]
fn data_directory_exits_8_when_it_is_a_file() {
    let Some(pebble) = Pebble::start(5) else {
        return;
    };
    std::fs::write(pebble.path("data"), "").unwrap();
    let printed = run(&mut pebble.issue(&["example.com"]), 8);
    assert!(printed.contains("hint:"), "{printed}");
}

#[test]
fn process_with_keys_cannot_be_traced_or_dumped() {
    use std::os::unix::fs::MetadataExt;

    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_certs"));
    command.arg("run").env_clear();
    command.env("CERTS_DATA_DIR", directory.path().join("data"));
    command.env("CERTS_ADMIN_LISTEN", "off");
    command.env("CERTS_HTTP_LISTEN", "127.0.0.1:0");
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(directory.path(), Some(NOBODY), None).unwrap();
        command = as_nobody(&command, directory.path());
    }
    let running = Running::start(&mut command);
    until("the sidecar", || {
        directory.path().join("data/admin.sock").exists()
    });
    let proc = PathBuf::from(format!("/proc/{}", running.id()));
    let read = |name: &str| std::fs::read_to_string(proc.join(name)).unwrap();
    assert!(read("status").contains("NoNewPrivs:\t1\n"));
    let limits = read("limits");
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let core: Vec<&str> = core.unwrap().split_whitespace().collect();
    assert_eq!(core[4..6], ["0", "0"]);
    // The kernel gives root the /proc files of a process that cannot be dumped.
    assert_eq!(std::fs::metadata(proc.join("maps")).unwrap().uid(), 0);
}
