//! The rights that a running sidecar has given up, seen from outside, and everything that still works without
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::{NOBODY, Running, as_nobody, certs, free_port, until};
use crate::targets::script;

const NONE: &str = "0000000000000000";

/// `certs run` with the embedded CA, and its log.
struct SandboxedSidecar {
    running: Running,
    directory: TempDir,
}

impl SandboxedSidecar {
    fn start(prepare: impl FnOnce(&Path, &mut Command)) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), prepare)
    }

    fn start_in(directory: TempDir, prepare: impl FnOnce(&Path, &mut Command)) -> Self {
        let mut command = certs(directory.path());
        command
            .args(["run", "-v"])
            .env("CERTS_DOMAINS", "example.com")
            .env("CERTS_CA", "embedded")
            .env("CERTS_ADMIN_LISTEN", "off")
            .env("CERTS_HTTP_LISTEN", format!("127.0.0.1:{}", free_port()));
        prepare(directory.path(), &mut command);
        let running = Running::start_logging(&mut command, log_at(&directory.path().join("log")));
        Self { running, directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap()
    }

    fn until_logged(&self, what: &str) {
        let log = std::cell::RefCell::new(String::new());
        let _shown = printed_on_failure(&log);
        until(what, || {
            *log.borrow_mut() = self.log();
            log.borrow().contains(what)
        });
    }

    fn until_issued(&self) {
        until("the certificate", || {
            let live = std::fs::read_link(self.path("out/live/example.com"));
            live.is_ok_and(|target| target.ends_with("0001"))
        });
    }

    fn status(&self) -> BTreeMap<String, String> {
        status(&format!("{}", self.running.id()))
    }

    /// The pid of the helper process.
    fn helper(&self) -> u32 {
        child_of(self.running.id()).unwrap()
    }
}

/// Prints the log of a test that fails.
fn printed_on_failure(log: &std::cell::RefCell<String>) -> impl Drop {
    struct Printed<'a>(&'a std::cell::RefCell<String>);
    impl Drop for Printed<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("{}", self.0.borrow());
            }
        }
    }
    Printed(log)
}

/// The only child of `id`.
fn child_of(id: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
    children.ok()?.trim().parse().ok()
}

fn status(process: &str) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect()
}

/// Probes in a thread of its own, since the probe restricts the thread.
fn has_landlock() -> bool {
    use landlock::{AccessFs, LandlockStatus, Ruleset, RulesetAttr};
    let asked = std::thread::spawn(|| {
        let ruleset = Ruleset::default().handle_access(AccessFs::Execute);
        ruleset
            .unwrap()
            .create()
            .unwrap()
            .restrict_self()
            .unwrap()
            .landlock
    });
    matches!(asked.join().unwrap(), LandlockStatus::Available { .. })
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn sandbox_keeps_only_needed_rights_in_sidecar() {
    let sidecar = SandboxedSidecar::start(|_, _| ());
    sidecar.until_issued();
    let id = sidecar.running.id();
    let threads = std::fs::read_dir(format!("/proc/{id}/task")).unwrap();
    for thread in threads {
        let thread = thread.unwrap().file_name().into_string().unwrap();
        let status = status(&format!("{id}/task/{thread}"));
        for (name, wanted) in [
            ("CapInh", NONE),
            ("CapPrm", NONE),
            ("CapEff", NONE),
            ("CapAmb", NONE),
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
            ("Seccomp_filters", "1"),
            ("Umask", "0077"),
        ] {
            assert_eq!(status[name], wanted, "{name} of thread {thread}");
        }
        // Only a process with CAP_SETPCAP can drop its bounding set.
        assert!(!is_root() || status["CapBnd"] == NONE, "{status:?}");
    }
    let log = sidecar.log();
    assert!(
        log.contains("system calls are restricted by seccomp"),
        "{log}"
    );
    assert_eq!(
        log.contains("files are restricted by Landlock"),
        has_landlock(),
        "{log}"
    );
}

#[test]
fn helper_process_keeps_reload_rights_and_ends_with_parent() {
    let sidecar = SandboxedSidecar::start(|_, command| {
        command
            .env("CERTS_EMAIL", "a@example.com")
            .env("ANOTHER", "one");
    });
    sidecar.until_logged("ready");
    let helper = sidecar.helper();
    let (of_helper, own) = (status(&helper.to_string()), status("self"));
    for name in ["CapPrm", "CapEff", "CapBnd", "Umask", "Seccomp"] {
        assert_eq!(of_helper[name], own[name], "{name}");
    }
    assert_eq!(of_helper["NoNewPrivs"], "1");
    let environment = std::fs::read(format!("/proc/{helper}/environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment);
    assert!(environment.contains("ANOTHER=one"), "{environment}");
    assert!(!environment.contains("CERTS_"), "{environment}");
    let sockets = || -> BTreeSet<_> {
        let descriptors = std::fs::read_dir(format!("/proc/{helper}/fd")).unwrap();
        descriptors
            .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
            .filter(|link| link.to_string_lossy().starts_with("socket:"))
            .collect()
    };
    // One to its parent, one to its child, and two for its runtime's signals; the child's own
    // end is closed once the child runs.
    until("the helper's sockets", || sockets().len() <= 4);
    // The helper process ignores the signals of a service manager or terminal.
    let pid = rustix::process::Pid::from_raw(i32::try_from(helper).unwrap()).unwrap();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        rustix::process::kill_process(pid, signal).unwrap();
    }
    let is_there = || {
        let status = std::fs::read_to_string(format!("/proc/{helper}/status"));
        status.is_ok_and(|status| !status.contains("State:\tZ"))
    };
    assert!(is_there());
    drop(sidecar);
    until("the process's end", || !is_there());
}

#[test]
fn helper_process_restarts_after_death() {
    let (hook, seen) = ("hook", "seen");
    let sidecar = SandboxedSidecar::start(|directory, command| {
        let log = directory.join(seen);
        let deploy = script(
            &directory.join(hook),
            &format!("echo printed >>{}", log.display()),
        );
        command.env("CERTS_DEPLOY", deploy.strip_prefix("--deploy=").unwrap());
    });
    sidecar.until_issued();
    let printed =
        || std::fs::read_to_string(sidecar.path(seen)).map_or(0, |log| log.lines().count());
    until("the hook", || printed() == 1);
    let keeper = sidecar.helper();
    let first = child_of(keeper).unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(first).unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    until("another helper process", || {
        child_of(keeper).is_some_and(|id| id != first)
    });
    let mut renew = certs(&sidecar.path(""));
    crate::support::run(renew.args(["renew", "--force"]), 0);
    assert_eq!(printed(), 2);
    sidecar.until_logged("has ended (signal: 9");
    // When the helper process cannot be restarted, the log says so before it is needed.
    let pid = rustix::process::Pid::from_raw(i32::try_from(keeper).unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    sidecar.until_logged("the helper process is gone; hint: restart certs run");
    let mut renew = certs(&sidecar.path(""));
    let printed = crate::support::run(renew.args(["renew", "--force"]), 7);
    assert!(printed.contains("restart certs run"), "{printed}");
}

#[test]
fn sandbox_confines_ca_server() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = certs(directory.path());
    command.args(["ca", "serve", "--listen", "127.0.0.1:0"]);
    let log = directory.path().join("log");
    let running = Running::start_logging(&mut command, log_at(&log));
    let restricted = || {
        std::fs::read_to_string(&log)
            .unwrap()
            .contains("by seccomp")
    };
    until("the sandbox", restricted);
    let status = status(&running.id().to_string());
    assert_eq!((&*status["CapPrm"], &*status["Seccomp"]), (NONE, "2"));
}

#[test]
fn sandbox_can_be_switched_off() {
    let sidecar = SandboxedSidecar::start(|_, command| {
        command.args(["--harden", "off"]);
    });
    sidecar.until_issued();
    assert_eq!(sidecar.status()["Seccomp"], status("self")["Seccomp"]);
    assert_eq!(sidecar.status()["CapEff"], status("self")["CapEff"]);
    assert!(sidecar.log().contains("no sandbox: harden is off"));
    let id = sidecar.running.id();
    let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
    assert_eq!(children.unwrap(), "");
}

#[test]
fn sandbox_blocks_file_behind_symlink() {
    let elsewhere = tempfile::tempdir().unwrap();
    let outside = elsewhere.path().join("email");
    std::fs::write(&outside, "other@example.com").unwrap();
    let mut link = PathBuf::new();
    let sidecar = SandboxedSidecar::start(|directory, command| {
        let secrets = directory.join("secrets");
        std::fs::create_dir(&secrets).unwrap();
        std::fs::write(secrets.join("email"), "admin@example.com").unwrap();
        link = secrets.join("link");
        symlink("email", &link).unwrap();
        command.env("CERTS_EMAIL_FILE", &link);
    });
    sidecar.until_logged("ready");
    if !has_landlock() {
        eprintln!("SKIPPED: files outside of the sandbox: this kernel has no Landlock");
        return;
    }
    sidecar.running.signal(Signal::HUP);
    sidecar.until_logged("the configuration was reloaded");
    std::fs::remove_file(&link).unwrap();
    symlink(&outside, &link).unwrap();
    sidecar.running.signal(Signal::HUP);
    sidecar.until_logged("the old configuration stays: ");
    let log = sidecar.log();
    assert!(
        log.contains("CERTS_EMAIL_FILE") && log.contains("Permission denied"),
        "{log}"
    );
}

#[test]
fn sandbox_allows_files_of_fallback_ca() {
    let elsewhere = tempfile::tempdir().unwrap();
    let key = elsewhere.path().join("second.hmac");
    std::fs::write(&key, "c2VjcmV0").unwrap();
    let sidecar = SandboxedSidecar::start(|directory, command| {
        let file = directory.join("certs.toml");
        let text = format!(
            "fallback_ca = 'https://ca.invalid/directory'\nfallback_eab_kid = 'kid-2'\n\
             fallback_eab_hmac_file = '{}'\nagree_tos = true\n",
            key.display()
        );
        std::fs::write(&file, text).unwrap();
        command.env("CERTS_CONFIG", &file);
    });
    sidecar.until_logged("ready");
    sidecar.running.signal(Signal::HUP);
    sidecar.until_logged("the configuration was reloaded");
}

#[test]
fn reload_with_new_path_asks_for_restart_and_names_path() {
    let elsewhere = tempfile::tempdir().unwrap();
    let mut file = PathBuf::new();
    let sidecar = SandboxedSidecar::start(|directory, command| {
        file = directory.join("certs.toml");
        std::fs::write(&file, "ca = 'embedded'").unwrap();
        command.env_remove("CERTS_CA").env("CERTS_CONFIG", &file);
    });
    sidecar.until_logged("ready");
    if !has_landlock() {
        eprintln!("SKIPPED: a path outside of the sandbox: this kernel has no Landlock");
        return;
    }
    let root = elsewhere.path().join("root.pem");
    std::fs::write(&root, "").unwrap();
    let text = format!(
        "ca = 'https://ca.invalid/directory'\nagree_tos = true\nca_root = '{}'\n",
        root.display()
    );
    std::fs::write(&file, text).unwrap();
    sidecar.running.signal(Signal::HUP);
    sidecar.until_logged("the old configuration stays: ");
    let named = format!("{} is outside the sandbox", root.display());
    assert!(sidecar.log().contains(&named), "{}", sidecar.log());
    assert!(
        sidecar
            .log()
            .contains("hint: configure it and restart certs run")
    );
}

#[test]
fn file_modes_hold_under_any_umask() {
    let sidecar = SandboxedSidecar::start(|_, _| ());
    sidecar.until_issued();
    for (path, wanted) in [
        ("out", 0o2750),
        ("out/live", 0o2750),
        ("out/archive/example.com", 0o2750),
        ("out/archive/example.com/0001", 0o2750),
        ("out/archive/example.com/0001/privkey.pem", 0o640),
        ("out/archive/example.com/0001/fullchain.pem", 0o644),
        ("data", 0o700),
        ("data/admin.sock", 0o660),
        ("data/records/example.com/record.json", 0o600),
    ] {
        let mode = std::fs::metadata(sidecar.path(path))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, wanted, "{path}");
    }
}

#[test]
fn sidecar_of_root_becomes_another_user() {
    if !is_root() {
        eprintln!("SKIPPED: a sidecar of root: this user is not root");
        return;
    }
    let sidecar = SandboxedSidecar::start(|_, command| {
        command.env("CERTS_OUTPUT_OWNER", NOBODY.to_string());
        command.env("CERTS_OUTPUT_GROUP", NOBODY.to_string());
    });
    sidecar.until_issued();
    let status = sidecar.status();
    let user: u32 = status["Uid"].split('\t').next().unwrap().parse().unwrap();
    assert_ne!(user, 0);
    assert_eq!(status["Uid"], [user; 4].map(|id| id.to_string()).join("\t"));
    assert_ne!(status["Gid"].split('\t').next(), Some("0"));
    // The consumers' group, and no group of root's.
    assert_eq!(status["Groups"], NOBODY.to_string());
    for name in ["CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status[name], NONE, "{name}");
    }
    for path in ["data", "data/records/example.com/record.json", "out/live"] {
        let found = std::fs::metadata(sidecar.path(path)).unwrap();
        assert_eq!(found.uid(), user, "{path}");
    }
    // Only the helper process can give files to another user.
    let key = || std::fs::metadata(sidecar.path("out/live/example.com/privkey.pem")).unwrap();
    until("the owner", || key().uid() == NOBODY);
    assert_eq!((key().gid(), key().mode() & 0o777), (NOBODY, 0o640));
    // A command of root's finds the same store, before and after the sidecar.
    let renew = |directory: &Path| {
        let mut renew = certs(directory);
        renew.env("CERTS_OUTPUT_OWNER", NOBODY.to_string());
        renew.env("CERTS_OUTPUT_GROUP", NOBODY.to_string());
        crate::support::run(renew.args(["renew", "--force"]), 0);
    };
    renew(&sidecar.path(""));
    let SandboxedSidecar { running, directory } = sidecar;
    drop(running);
    renew(directory.path());
    let sidecar = SandboxedSidecar::start_in(directory, |_, command| {
        command.env("CERTS_OUTPUT_OWNER", NOBODY.to_string());
        command.env("CERTS_OUTPUT_GROUP", NOBODY.to_string());
    });
    sidecar.until_logged("ready");
    renew(&sidecar.path(""));
}

#[test]
fn root_of_a_container_becomes_another_user() {
    if !is_root() {
        eprintln!("SKIPPED: a root with few capabilities: this user is not root");
        return;
    }
    let sidecar = SandboxedSidecar::start(|_, command| {
        // Those of deploy/compose.existing-nginx.yaml.
        let mut few = Command::new("setpriv");
        few.arg("--bounding-set=-all,+chown,+dac_override,+setgid,+setuid");
        few.arg(command.get_program()).args(command.get_args());
        let set = command.get_envs();
        few.env_clear()
            .envs(set.filter_map(|(name, value)| Some((name, value?))));
        *command = few;
    });
    sidecar.until_issued();
    let status = sidecar.status();
    assert_ne!(status["Uid"].split('\t').next(), Some("0"));
    assert_eq!((&*status["CapPrm"], &*status["CapEff"]), (NONE, NONE));
}

#[test]
fn webroot_of_another_user_is_written_without_capability() {
    if !is_root() {
        eprintln!("SKIPPED: a webroot of another user: only root may write there");
        return;
    }
    let mut webroot = PathBuf::new();
    let sidecar = SandboxedSidecar::start(|directory, command| {
        webroot = directory.join("webroot");
        std::fs::create_dir(&webroot).unwrap();
        chown(&webroot, Some(NOBODY), None).unwrap();
        command
            .env_remove("CERTS_HTTP_LISTEN")
            .env("CERTS_WEBROOT", &webroot);
    });
    sidecar.until_logged("ready");
    assert_eq!(sidecar.status()["CapEff"], NONE);
    // The webroot is used: the answer was written, and only then the CA came to port 80.
    sidecar.until_logged("control was not proven");
    let answers = std::fs::metadata(webroot.join(".well-known/acme-challenge")).unwrap();
    // It stays the service's, and the sidecar writes by its group.
    let group = sidecar.status()["Gid"]
        .split('\t')
        .next()
        .map(str::to_owned);
    let found = (answers.uid(), Some(answers.gid().to_string()));
    assert_eq!(found, (NOBODY, group));
    assert_eq!(answers.mode() & 0o7777, 0o2775);
}

#[test]
fn root_finds_its_store_below_a_directory_of_its_own() {
    if !is_root() {
        eprintln!("SKIPPED: a sidecar of root: this user is not root");
        return;
    }
    let sidecar = SandboxedSidecar::start(|directory, _| {
        let private = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(directory, private).unwrap();
    });
    sidecar.until_issued();
    assert_ne!(sidecar.status()["Uid"].split('\t').next(), Some("0"));
    // CAP_DAC_READ_SEARCH: it reads and searches, but writes nothing more.
    assert_eq!(sidecar.status()["CapEff"], "0000000000000004");
    assert!(
        sidecar.log().contains("hint: chmod o+x"),
        "{}",
        sidecar.log()
    );
    assert!(!sidecar.log().contains("read /etc,"), "{}", sidecar.log());
    let SandboxedSidecar { running, directory } = sidecar;
    drop(running);
    crate::support::run(certs(directory.path()).args(["renew", "--force"]), 0);
    let sidecar = SandboxedSidecar::start_in(directory, |_, _| ());
    sidecar.until_logged("ready");
    crate::support::run(certs(&sidecar.path("")).args(["renew", "--force"]), 0);
}

/// What a sidecar could have stored before it was stopped.
fn with_stored_target(directory: &Path, spec: &serde_json::Value) {
    let options = directory.join("data/records/example.com/options.json");
    let json = std::fs::read(&options).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    json["deploy"] = serde_json::json!([spec]);
    std::fs::write(&options, json.to_string()).unwrap();
}

#[test]
fn stored_target_is_no_right_until_it_is_confirmed() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let issue = ["issue", "example.com", "--ca", "embedded"];
    let listen = format!("--http-listen=127.0.0.1:{}", free_port());
    crate::support::run(certs(directory.path()).args(issue).arg(&listen), 0);
    let seen = path("seen");
    let deploy = script(&path("data/hook"), &format!("touch {}", seen.display()));
    let spec = deploy.strip_prefix("--deploy=").unwrap();
    for stored in [
        serde_json::json!(spec),
        serde_json::json!(format!("file:{}", path("outside.pem").display())),
    ] {
        with_stored_target(directory.path(), &stored);
        let printed = crate::support::run(certs(directory.path()).args(["renew", "--force"]), 7);
        assert!(
            printed.contains("is stored, but neither configured nor confirmed"),
            "{printed}"
        );
        assert!(!seen.exists() && !path("outside.pem").exists());
    }
    // The hint works.
    with_stored_target(directory.path(), &serde_json::json!(spec));
    let mut repeated = certs(directory.path());
    crate::support::run(repeated.args(issue).args([&listen, &deploy]), 0);
    std::fs::remove_file(&seen).unwrap();
    crate::support::run(certs(directory.path()).args(["reload"]), 0);
    assert!(seen.exists());
}

#[test]
fn stored_group_is_no_right_of_the_next_start() {
    if !is_root() {
        eprintln!("SKIPPED: a stored group: only root can join groups");
        return;
    }
    let sidecar = SandboxedSidecar::start(|_, _| ());
    sidecar.until_issued();
    let SandboxedSidecar { running, directory } = sidecar;
    drop(running);
    let options = directory
        .path()
        .join("data/records/example.com/options.json");
    let json = std::fs::read(&options).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    json["origin"] = "command".into();
    json["names"] = serde_json::json!(["other.example.com"]);
    json["lineage"] = "other".into();
    json["output"] = serde_json::json!({"directory": "x", "owner": null, "group": "42"});
    let other = directory.path().join("data/records/other");
    std::fs::rename(directory.path().join("data/records/example.com"), &other).unwrap();
    std::fs::write(other.join("options.json"), json.to_string()).unwrap();
    let sidecar = SandboxedSidecar::start_in(directory, |_, _| ());
    sidecar.until_logged("ready");
    assert_eq!(sidecar.status()["Groups"], "");
}

/// A directory of root's with a file, and its owner and content.
fn of_root(directory: &Path) -> PathBuf {
    let victim = directory.join("victim");
    std::fs::create_dir_all(victim.join("example.com/0001")).unwrap();
    std::fs::write(victim.join("example.com/0001/file"), "root's own").unwrap();
    victim
}

fn assert_untouched(victim: &Path, case: &str) {
    let file = victim.join("example.com/0001/file");
    assert_eq!(
        std::fs::read_to_string(&file).unwrap(),
        "root's own",
        "{case}"
    );
    for path in [victim, &victim.join("example.com"), &file] {
        let found = std::fs::symlink_metadata(path).unwrap();
        assert_eq!(
            (found.uid(), found.gid()),
            (0, 0),
            "{case}: {}",
            path.display()
        );
    }
    let entries = std::fs::read_dir(victim).unwrap().count();
    assert_eq!(entries, 1, "{case}");
}

#[test]
fn links_in_the_data_directory_lead_root_nowhere() {
    if !is_root() {
        eprintln!("SKIPPED: links before root: this user is not root");
        return;
    }
    for place in [
        "records",
        "leases",
        "accounts",
        "ca",
        "out/archive",
        "out/live",
    ] {
        for owner in [0, NOBODY] {
            let directory = tempfile::tempdir().unwrap();
            let path = |name: &str| directory.path().join(name);
            let listen = format!("--http-listen=127.0.0.1:{}", free_port());
            let issue = ["issue", "example.com", "--ca", "embedded"];
            crate::support::run(certs(directory.path()).args(issue).arg(&listen), 0);
            let victim = of_root(directory.path());
            let link = match place.strip_prefix("out/") {
                Some(part) => path("out").join(part),
                None => path("data").join(place),
            };
            std::fs::rename(&link, path("aside")).unwrap();
            symlink(&victim, &link).unwrap();
            for name in ["data", "out"] {
                let mut chown = Command::new("chown");
                let owner = format!("{NOBODY}:{NOBODY}");
                let done = chown.args(["-R", "-h", &owner]).arg(path(name)).status();
                assert!(done.unwrap().success());
            }
            std::os::unix::fs::lchown(&link, Some(owner), Some(owner)).unwrap();
            let case = format!("{place} of user {owner}");
            for arguments in [
                &["renew", "--force"][..],
                &[
                    "issue",
                    "example.com",
                    "--ca",
                    "embedded",
                    "--force",
                    &listen,
                ],
                &["delete", "example.com", "--yes"],
            ] {
                // Success or not: nothing of root's is reached.
                let _ = certs(directory.path()).args(arguments).output().unwrap();
                assert_untouched(&victim, &format!("{case}: {arguments:?}"));
            }
            let mut run = certs(directory.path());
            run.args(["run", &listen, "--admin-listen", "off"]);
            run.env("CERTS_DOMAINS", "example.com")
                .env("CERTS_CA", "embedded");
            let log = path("log");
            let running = Running::start_logging(&mut run, log_at(&log));
            until("the start or its refusal", || {
                let log = std::fs::read_to_string(&log).unwrap();
                log.contains("ready") || log.contains("error: ")
            });
            drop(running);
            assert_untouched(&victim, &format!("{case}: run"));
        }
    }
}

#[test]
fn journal_of_the_data_directory_is_not_obeyed() {
    if !is_root() {
        eprintln!("SKIPPED: a journal before root: this user is not root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    std::fs::create_dir_all(data.join("install/0001")).unwrap();
    let mut chown = Command::new("chown");
    let done = chown
        .args(["-R", &format!("{NOBODY}:{NOBODY}")])
        .arg(&data)
        .status();
    assert!(done.unwrap().success());
    let mut undo = certs(directory.path());
    let printed = crate::support::run(undo.args(["install", "nginx", "--undo"]), 2);
    assert!(printed.contains("belongs to user"), "{printed}");
    assert!(!directory.path().join("data.install/0001").exists());
}

#[test]
fn link_in_the_data_directory_opens_nothing() {
    let mut outside = PathBuf::new();
    let sidecar = SandboxedSidecar::start(|directory, _| {
        outside = directory.join("outside");
        std::fs::create_dir(&outside).unwrap();
        for name in ["data", "out"] {
            std::fs::create_dir(directory.join(name)).unwrap();
            let private = std::fs::Permissions::from_mode(0o700);
            std::fs::set_permissions(directory.join(name), private).unwrap();
            chown(directory.join(name), Some(NOBODY), Some(NOBODY)).unwrap();
            let link = directory.join(name).join("x");
            symlink("/", &link).unwrap();
            std::os::unix::fs::lchown(&link, Some(NOBODY), None).unwrap();
        }
    });
    sidecar.until_logged("ready");
    let log = sidecar.log();
    let allowed = log
        .lines()
        .find(|line| line.contains("allowed paths: write"));
    let allowed = allowed.unwrap().split("; read").next().unwrap();
    for path in ["write /,", "write / ", ", /,"] {
        assert!(
            !allowed.contains(path) && !allowed.ends_with(", /"),
            "{allowed}"
        );
    }
}

#[test]
fn sidecar_of_unprivileged_user_needs_no_capability() {
    if !is_root() {
        eprintln!("SKIPPED: another user: this user is not root, so all other tests cover it");
        return;
    }
    let sidecar = SandboxedSidecar::start(|directory, command| {
        chown(directory, Some(NOBODY), Some(NOBODY)).unwrap();
        *command = as_nobody(command, directory);
    });
    sidecar.until_issued();
    let status = sidecar.status();
    for (name, wanted) in [
        ("CapEff", NONE),
        ("CapPrm", NONE),
        ("Seccomp", "2"),
        ("Umask", "0077"),
    ] {
        assert_eq!(status[name], wanted, "{name}");
    }
    let key = std::fs::metadata(sidecar.path("out/live/example.com/privkey.pem")).unwrap();
    assert_eq!((key.uid(), key.mode() & 0o777), (NOBODY, 0o640));
}

fn log_at(path: &Path) -> Stdio {
    std::fs::File::create(path).unwrap().into()
}

#[test]
fn renew_of_root_gives_up_root_where_the_state_is_another_users() {
    if !is_root() {
        eprintln!("SKIPPED: renew as root: this process is not root");
        return;
    }
    const NAME: &str = "gives-up-root.example.com";
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let path = |name: &str| directory.path().join(name);
    let (seen, users) = (path("seen"), path("users"));
    let lines = format!(
        "id -u >{}\nfor process in /proc/[0-9]*; do\n  \
         if tr '\\0' ' ' <$process/cmdline | grep -q 'renew --force {NAME}'; then grep ^Uid: $process/status; fi\n\
         done >{} 2>/dev/null",
        seen.display(),
        users.display(),
    );
    let deploy = script(&path("hook"), &lines);
    let listen = format!("--http-listen=127.0.0.1:{}", free_port());
    let issue = ["issue", NAME, "--ca", "embedded", &listen, &deploy];
    crate::support::run(certs(directory.path()).args(issue), 0);
    let renew = || {
        let printed =
            crate::support::run(certs(directory.path()).args(["renew", "--force", NAME]), 0);
        assert!(printed.contains(": issued; "), "{printed}");
        assert_eq!(std::fs::read_to_string(&seen).unwrap(), "0\n");
        std::fs::read_to_string(&users).unwrap()
    };
    // Root's own state stays root's.
    let of = |user: u32| format!("Uid:\t{user}\t{user}\t{user}\t{user}\n");
    assert_eq!(renew(), of(0));
    assert_eq!(std::fs::metadata(path("data")).unwrap().uid(), 0);
    let mut give = Command::new("chown");
    give.args(["-R", &format!("{NOBODY}:{NOBODY}")]);
    give.args([path("data"), path("out")]);
    crate::support::run(&mut give, 0);
    // The hook has root's rights from the helper.
    assert_eq!(renew(), of(NOBODY));
    let record = path("data/records").join(NAME).join("record.json");
    assert_eq!(std::fs::metadata(record).unwrap().uid(), NOBODY);
}
