//! `certs ca trust`: the printed commands work, and the system's store gets the root and loses it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::support::embedded::EmbeddedCa;
use crate::support::{as_nobody, certs, program, run, text};

fn trust(ca: &EmbeddedCa, arguments: &[&str]) -> Command {
    let mut command = certs(&ca.path(""));
    command
        .args(["ca", "trust", "--root"])
        .arg(ca.path("root.pem"))
        .args(arguments);
    command
}

/// The commands below the comment that begins with `title`, and those that undo them.
fn commands(printed: &str, title: &str) -> (String, String) {
    let block = printed.split("\n\n").find(|block| block.starts_with(title));
    let block = block.unwrap_or_else(|| panic!("no `{title}` in {printed}"));
    let (mut done, mut undone) = (String::new(), String::new());
    for line in block.lines() {
        match line.strip_prefix("# undo: ") {
            Some(line) => undone += &format!("{line}\n"),
            None => done += &format!("{line}\n"),
        }
    }
    (done, undone)
}

fn shell(ca: &EmbeddedCa, script: &str, code: i32) -> String {
    let mut command = Command::new("sh");
    command.args(["-e", "-u", "-c", script]).env_clear();
    command
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", ca.path("home"));
    run(&mut command, code)
}

#[test]
fn system_trusts_the_root_until_it_is_removed() {
    let is_root = rustix::process::geteuid().is_root();
    let all = [
        "/usr/bin/unshare",
        "/usr/bin/curl",
        "/usr/sbin/update-ca-certificates",
    ];
    if !is_root || !all.iter().all(|one| Path::new(one).exists()) {
        eprintln!("SKIPPED: the system's trust store: it takes root, unshare, curl and a Debian");
        return;
    }
    let ca = EmbeddedCa::start();
    let certs = |verb: &str| {
        let command = trust(&ca, &[verb]);
        let words = command
            .get_args()
            .map(|word| format!(" '{}'", word.display()));
        let words: String = words.collect();
        let data = ca.path("data");
        format!(
            "CERTS_DATA_DIR='{}' '{}'{words}",
            data.display(),
            command.get_program().display()
        )
    };
    // The machine's own store stays as it is: copies take its place in a namespace.
    let (install, uninstall) = (certs("--install"), certs("--uninstall"));
    let (scratch, url) = (ca.path("store"), ca.server.directory_url());
    let script = format!(
        "mkdir {scratch}; cp -a /etc/ssl/certs {scratch}/certs; cp -a /usr/local/share/ca-certificates {scratch}/own\n\
         mount --bind {scratch}/certs /etc/ssl/certs; mount --bind {scratch}/own /usr/local/share/ca-certificates\n\
         update-ca-certificates >/dev/null 2>&1; cp -a /etc/ssl/certs {scratch}/before\n\
         ask() {{ curl -sS {url} >/dev/null && echo reached; }}\n\
         ask || echo refused\n\
         {install}; ask; {install}; {install} --json\n\
         {uninstall}; ask || echo refused again; {uninstall}\n\
         diff -r -x java --no-dereference {scratch}/before /etc/ssl/certs && echo nothing is left\n",
        scratch = scratch.display(),
    );
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-e", "-u", "-c", &script]);
    let output = command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .unwrap();
    let printed = text(&output);
    if printed.contains("unshare failed") || printed.contains("mount:") {
        eprintln!("SKIPPED: the system's trust store: no mount namespace here: {printed}");
        return;
    }
    assert!(printed.contains("not bound to private names"), "{printed}");
    let mut rest = printed.as_str();
    for expected in [
        "refused",
        "\ntrusted: /usr/local/share/ca-certificates/certs-",
        "stores of their own",
        "reached",
        "already trusted: ",
        "\"trusted\":true",
        "removed: ",
        "refused again",
        "not installed: ",
        "nothing is left",
    ] {
        let at = rest.find(expected);
        let at = at.unwrap_or_else(|| panic!("no `{expected}` there in {printed}"));
        rest = &rest[at..];
    }
}

#[test]
fn failed_installation_leaves_nothing_behind() {
    let is_root = rustix::process::geteuid().is_root();
    let all = ["/usr/bin/unshare", "/usr/sbin/update-ca-certificates"];
    if !is_root || !all.iter().all(|one| Path::new(one).exists()) {
        eprintln!("SKIPPED: a failed installation: it takes root, unshare and a Debian");
        return;
    }
    let ca = EmbeddedCa::start();
    let command = trust(&ca, &["--install"]);
    let words = command
        .get_args()
        .map(|word| format!(" '{}'", word.display()));
    let install = format!(
        "CERTS_DATA_DIR='{}' '{}'{}",
        ca.path("data").display(),
        command.get_program().display(),
        words.collect::<String>()
    );
    let script = format!(
        "mkdir {scratch}; cp -a /usr/local/share/ca-certificates {scratch}/own\n\
         mount --bind {scratch}/own /usr/local/share/ca-certificates\n\
         mount --bind /bin/false /usr/sbin/update-ca-certificates\n\
         {install} || echo the program: $?\n\
         ls /usr/local/share/ca-certificates | grep certs- || echo nothing is left\n\
         mount -o remount,ro,bind /usr/local/share/ca-certificates\n\
         {install} || echo read-only: $?\n",
        scratch = ca.path("store").display(),
    );
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-u", "-c", &script]);
    let path = "/usr/sbin:/usr/bin:/sbin:/bin";
    let printed = text(&command.env_clear().env("PATH", path).output().unwrap());
    if printed.contains("unshare failed") || printed.contains("mount:") {
        eprintln!("SKIPPED: a failed installation: no mount namespace here: {printed}");
        return;
    }
    for expected in ["the program: 8", "nothing is left", "read-only: 8"] {
        assert!(printed.contains(expected), "no `{expected}` in {printed}");
    }
}

#[test]
fn root_in_der_is_printed_with_the_command_that_converts_it() {
    let ca = EmbeddedCa::start();
    let pem = std::fs::read(ca.path("root.pem")).unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
    std::fs::write(ca.path("root.der"), pem.contents).unwrap();
    std::fs::remove_file(ca.path("root.pem")).unwrap();
    let mut command = certs(&ca.path(""));
    command
        .args(["ca", "trust", "--root"])
        .arg(ca.path("root.der"));
    let printed = run(&mut command, 0);
    assert!(printed.contains("# SHA-256: "), "{printed}");
    if !Path::new("/usr/bin/openssl").exists() {
        return eprintln!("SKIPPED: openssl is not installed");
    }
    let (done, undone) = commands(&printed, "# The file is in DER");
    shell(&ca, &done, 0);
    let root = ca.path("root.pem");
    assert!(
        std::fs::read_to_string(&root)
            .unwrap()
            .contains("BEGIN CERTIFICATE")
    );
    let install = format!("install -m 644 {} /", root.display());
    assert!(printed.contains(&install), "{printed}");
    shell(&ca, &undone, 0);
    assert!(!root.exists());
}

#[test]
fn only_a_root_is_installed_and_only_by_root() {
    let ca = EmbeddedCa::start();
    let wrong = ca.path("leaf.pem");
    let leaf = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
    std::fs::write(&wrong, leaf.cert.pem()).unwrap();
    let root = std::fs::read_to_string(ca.path("root.pem")).unwrap();
    std::fs::write(ca.path("two.pem"), root + &leaf.cert.pem()).unwrap();
    for (file, words) in [
        ("absent.pem", "no root found"),
        ("leaf.pem", "is not a root"),
        ("two.pem", "it has 2 certificates"),
    ] {
        let mut command = certs(&ca.path(""));
        command.args(["ca", "trust", "--root"]).arg(ca.path(file));
        let printed = run(&mut command, 2);
        assert!(
            printed.contains(words) && printed.contains("hint:"),
            "{printed}"
        );
    }
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let mut public = tempfile::Builder::new();
    let public = public.permissions(PermissionsExt::from_mode(0o755));
    let public = public.tempdir().unwrap();
    let root = public.path().join("root.pem");
    std::fs::copy(ca.path("root.pem"), &root).unwrap();
    for verb in ["--install", "--uninstall"] {
        let mut command = certs(public.path());
        command.args(["ca", "trust", verb, "--root"]).arg(&root);
        let printed = run(&mut as_nobody(&command, public.path()), 2);
        assert!(printed.contains("only root can change"), "{printed}");
        let hint = format!("sudo certs ca trust {verb} --root {}", root.display());
        assert!(printed.contains(&hint), "{printed}");
    }
}

#[test]
fn printed_commands_for_browsers_and_runtimes_work() {
    let ca = EmbeddedCa::start();
    let mut relative = certs(&ca.path(""));
    relative.args(["ca", "trust", "--root", "root.pem"]);
    let printed = run(relative.current_dir(ca.path("")), 0);
    let install = format!("install -m 644 {} /", ca.path("root.pem").display());
    assert!(printed.contains(&install), "{printed}");
    assert!(printed.contains("# SHA-256: "), "{printed}");
    std::fs::create_dir(ca.path("home")).unwrap();
    // The commands of users name the file in the system's store, which the test does not change.
    let root = ca.path("root.pem").display().to_string();
    let own = |commands: String| {
        let words = commands.split(' ').map(|word| {
            let (word, end) = word.split_at(word.trim_end_matches(['\n', ';']).len());
            let is_anchor = word.ends_with(".crt") && word.contains("certs-");
            let (before, path) = word.split_at(word.find('/').unwrap_or(0));
            format!("{before}{}{end}", if is_anchor { &root } else { path })
        });
        words.collect::<Vec<_>>().join(" ")
    };
    if program("CERTS_LAB_CERTUTIL", "/usr/bin/certutil").is_some() {
        let (done, undone) = commands(&printed, "# Chromium");
        let list = "certutil -d \"sql:$HOME/.pki/nssdb\" -L\n";
        let shown = shell(&ca, &(own(done) + list), 0);
        assert!(shown.contains("certs-") && shown.contains("C,,"), "{shown}");
        if let Some(chromium) = program("CERTS_LAB_CHROMIUM", "/usr/bin/chromium") {
            let (chromium, url) = (chromium.display(), ca.server.directory_url());
            let options =
                "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --dump-dom";
            let shown = shell(&ca, &format!("{chromium} {options} {url}\n"), 0);
            assert!(shown.contains("newNonce"), "{shown}");
        }
        let shown = shell(&ca, &(undone + list), 0);
        assert!(!shown.contains("certs-"), "{shown}");
        let (done, undone) = commands(&printed, "# Firefox");
        let profile = "p=\"$HOME/.mozilla/firefox/a b.default\"; mkdir -p \"$p\"; certutil -N -d \"sql:$p\" --empty-password\n";
        let list = "certutil -d \"sql:$HOME/.mozilla/firefox/a b.default\" -L\n";
        let shown = shell(&ca, &(profile.to_owned() + &own(done) + list), 0);
        assert!(shown.contains("certs-") && shown.contains("C,,"), "{shown}");
        assert!(!shell(&ca, &(undone + list), 0).contains("certs-"));
    }
    let (node, _) = commands(&printed, "# Node.js");
    let url = ca.server.directory_url();
    let ask = format!(
        "node -e \"require('https').get('{url}',()=>console.log('reached')).on('error',e=>console.log(e.code))\"\n"
    );
    if Path::new("/usr/bin/node").exists() {
        assert!(!shell(&ca, &ask, 0).contains("reached"));
        let shown = shell(&ca, &(own(node) + &ask), 0);
        assert!(shown.contains("reached"), "{shown}");
    } else {
        eprintln!("SKIPPED: Node.js is not installed");
    }
    if Path::new("/usr/bin/keytool").exists() {
        let (done, undone) = commands(&printed, "# Java");
        let scratch = format!("-keystore {}", ca.path("cacerts").display());
        let in_scratch =
            |text: String| own(text).replace("sudo ", "").replace("-cacerts", &scratch);
        let list = format!("keytool -list -storepass changeit {scratch}\n");
        let shown = shell(&ca, &(in_scratch(done) + &list), 0);
        assert!(
            shown.contains("certs-") && shown.contains("trustedCertEntry"),
            "{shown}"
        );
        assert!(!shell(&ca, &(in_scratch(undone) + &list), 0).contains("trustedCertEntry"));
    } else {
        eprintln!("SKIPPED: Java is not installed");
    }
}
