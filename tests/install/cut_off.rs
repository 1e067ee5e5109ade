//! An install that ends early, at one of its calls of nginx, leaves nothing behind.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use super::issued::{ca_of, started, whole};
use super::{Machine, PLAIN, write};
use crate::environment::Tmpfs;
use crate::support::{Running, assert_says, certs, listens, run, until};

/// Replaces the machine's nginx by a script that counts its calls.
fn counted(machine: &mut Machine) {
    let place = machine.path("cut").display().to_string();
    let script = machine.path("cut/nginx");
    let text = format!(
        "#!/bin/sh\nread -r count <{place}/count\ncount=$((count + 1))\necho $count >{place}/count\n\
         read -r at signal <{place}/at\n\
         if [ $count = $at ]; then case $signal in\n\
         FULL) cat /dev/zero >{place}/../sites-available/filler 2>{place}/full ;;\n\
         IDLE) echo '[emerg] refused' >>{place}/../error.log; exit 0 ;;\n\
         INT) kill -INT $PPID ;; TERM) kill -TERM $PPID; exec sleep 600 ;; *) kill -$signal $PPID; exit 1 ;; esac; fi\n\
         exec {} \"$@\"\n",
        machine.nginx.display()
    );
    write(&script, &text);
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    machine.nginx = script;
    end_at(machine, 0, "KILL");
}

/// The next command ends by this signal at that call of nginx; or the disk is full then, or the call does nothing.
fn end_at(machine: &Machine, call: u32, signal: &str) {
    write(&machine.path("cut/count"), "0\n");
    write(&machine.path("cut/at"), &format!("{call} {signal}\n"));
}

#[test]
fn killed_install_is_undone_and_repeated() {
    let Some((mut machine, ca)) = started(PLAIN) else {
        return;
    };
    let before = machine.files();
    counted(&mut machine);
    let arguments = ["--domain", "www.example.com"];
    // The test of the copy, the reload for challenges and that for the redirect.
    for call in [3, 5, 11] {
        end_at(&machine, call, "KILL");
        let ended = whole(&machine, &ca, &arguments).output().unwrap();
        assert_eq!(ended.status.code(), None, "{call}: {ended:?}");
        let plain = machine.ask("http://www.example.com:HTTP/", &[]);
        assert!(plain.ends_with("hello"), "{call}: {plain}");
    }
    end_at(&machine, 0, "KILL");
    let printed = run(&mut whole(&machine, &ca, &arguments), 0);
    assert!(printed.contains("cut off has been undone"), "{printed}");
    let moved = machine.ask("http://www.example.com:HTTP/", &[]);
    assert!(moved.contains(" 308 "), "{moved}");
    run(&mut machine.install(&["--undo"]), 0);
    assert_eq!(machine.files(), before);
    end_at(&machine, 3, "KILL");
    let ended = whole(&machine, &ca, &arguments).output().unwrap();
    assert_eq!(ended.status.code(), None, "{ended:?}");
    end_at(&machine, 0, "KILL");
    run(&mut whole(&machine, &ca, &arguments), 0);
    run(&mut machine.install(&["--undo"]), 0);
    assert_eq!(machine.files(), before);
}

#[test]
fn interrupted_install_is_undone() {
    let Some((mut machine, ca)) = started(PLAIN) else {
        return;
    };
    let before = machine.files();
    counted(&mut machine);
    // The reloads for challenges and for TLS.
    for call in [5, 8] {
        end_at(&machine, call, "INT");
        let printed = run(&mut whole(&machine, &ca, &["--domain", "example.com"]), 130);
        assert!(printed.contains("interrupted by signal 2"), "{printed}");
        assert_eq!(machine.files(), before);
        until("the former configuration", || !listens(machine.https));
    }
}

#[test]
fn terminated_install_waits_for_no_slow_nginx() {
    let Some((mut machine, ca)) = started(PLAIN) else {
        return;
    };
    let before = machine.files();
    counted(&mut machine);
    // The tests of the copy and of the configuration.
    for call in [3, 4] {
        end_at(&machine, call, "TERM");
        let printed = run(&mut whole(&machine, &ca, &["--domain", "example.com"]), 143);
        assert!(printed.contains("interrupted by signal 15"), "{printed}");
        assert_eq!(machine.files(), before);
    }
}

#[test]
fn process_of_a_stale_pid_file_is_not_signalled() {
    let Some(machine) = Machine::new(PLAIN) else {
        return;
    };
    let ca = ca_of(&machine);
    let other = Running::start(Command::new("sleep").arg("600"));
    write(&machine.path("nginx.pid"), &format!("{}\n", other.id()));
    let before = machine.files();
    let arguments = ["--domain", "example.com"];
    let printed = run(&mut whole(&machine, &ca, &arguments), 2);
    assert_says(&printed, &["nginx.pid is stale", "hint: start nginx"]);
    assert_eq!(machine.files(), before);
    run(&mut machine.install(&arguments), 0);
    run(&mut machine.install(&["--undo"]), 0);
    let alive = std::fs::read(format!("/proc/{}/cmdline", other.id())).unwrap();
    assert!(alive.starts_with(b"sleep"), "{alive:?}");
    std::fs::remove_file(machine.path("nginx.pid")).unwrap();
}

#[test]
fn failure_after_the_order_has_the_code_of_a_certificate_that_is_issued() {
    let Some(mut machine) = Machine::new(PLAIN) else {
        return;
    };
    let Some(disk) = Tmpfs::mount(&machine.path("sites-available"), 64) else {
        return;
    };
    machine.write_site(PLAIN);
    let ca = ca_of(&machine);
    machine.start();
    let before = machine.files();
    counted(&mut machine);
    let arguments = ["--domain", "example.com"];
    // The reload for TLS, which the old workers survive.
    end_at(&machine, 8, "IDLE");
    let printed = run(&mut whole(&machine, &ca, &arguments), 7);
    assert_says(
        &printed,
        &[
            "its old workers still serve",
            "nginx: [emerg] refused",
            "the certificate is stored, and nothing renews it",
        ],
    );
    assert_eq!(machine.files(), before);
    // The test of the copy for TLS, after which nothing can be written.
    run(
        certs(machine.directory.path()).args(["delete", "example.com", "--yes"]),
        0,
    );
    end_at(&machine, 6, "FULL");
    let printed = run(&mut whole(&machine, &ca, &arguments), 8);
    assert_says(
        &printed,
        &["No space left on device", "hint: free space on that disk"],
    );
    std::fs::remove_file(machine.path("sites-available/filler")).unwrap();
    run(&mut machine.install(&["--undo"]), 0);
    assert_eq!(machine.files(), before);
    run(&mut whole(&machine, &ca, &arguments), 0);
    let _ = machine.signal(&["-s", "stop"]);
    drop(disk);
}
