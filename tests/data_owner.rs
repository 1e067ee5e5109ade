//! Attacks by the owner of the data directory on the commands that root runs in it, each beside the everyday
//! case: root's files stay as they are, no command hangs, and the service can use what root's commands made.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::support::{NOBODY, Running, as_nobody, certs, free_port, run, until};

const NAME: &str = "example.com";

/// The data and output directories of a service's user, below a directory of root's.
struct Service(TempDir);

impl Service {
    /// `None`, and a line that says so, without root.
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: attacks on root need root");
            return None;
        }
        let service = Self(tempfile::tempdir().unwrap());
        let open = PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(service.0.path(), open).unwrap();
        for name in ["data", "out"] {
            std::fs::create_dir(service.path(name)).unwrap();
            chown(service.path(name), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        Some(service)
    }

    /// With a certificate of the embedded CA.
    fn issued() -> Option<Self> {
        let service = Self::new()?;
        run(&mut service.issue(), 0);
        Some(service)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn shown(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn issue(&self) -> Command {
        let mut issue = certs(self.0.path());
        let listen = format!("--http-listen=127.0.0.1:{}", free_port());
        issue.args(["issue", NAME, "--ca", "embedded", "--force", &listen]);
        issue
    }

    /// Root's command, with an end.
    fn root(&self, arguments: &[&str]) -> Command {
        let mut command = certs(self.0.path());
        within(command.args(arguments))
    }

    /// A file of root's, and its path.
    fn secret(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, "root's own").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        path
    }

    /// Puts a link of the service's user at `place`.
    fn link(&self, target: impl AsRef<Path>, place: &str) {
        symlink(target, self.path(place)).unwrap();
        std::os::unix::fs::lchown(self.path(place), Some(NOBODY), Some(NOBODY)).unwrap();
    }

    fn pipe(&self, place: &str) {
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, self.path(place), mode).unwrap();
        chown(self.path(place), Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

/// The same command, killed after a minute.
fn within(command: &Command) -> Command {
    let mut bounded = Command::new("timeout");
    bounded.args(["--signal=KILL", "60"]);
    bounded.arg(command.get_program()).args(command.get_args());
    let set = command.get_envs();
    bounded.env_clear();
    bounded.envs(set.filter_map(|(name, value)| Some((name, value?))));
    bounded
}

/// What is below `path`: owner, and the content of files.
fn below(path: &Path) -> Vec<(PathBuf, u32, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            found.extend(below(&path));
        }
        let content = if metadata.is_file() {
            std::fs::read(&path).unwrap()
        } else {
            Vec::new()
        };
        found.push((path, metadata.uid(), content));
    }
    found.sort();
    found
}

const SERVE: [&str; 4] = ["ca", "serve", "--listen", "127.0.0.1:0"];

#[test]
fn ca_of_the_service_reaches_no_file_of_roots() {
    let Some(service) = Service::new() else {
        return;
    };
    // A CA of root's own.
    let mut own = certs(&service.path("root"));
    own.args([
        "issue",
        NAME,
        "--ca",
        "embedded",
        &format!("--http-listen=127.0.0.1:{}", free_port()),
    ]);
    run(&mut own, 0);
    let roots = service.path("root/data/ca");
    service.secret("root/secret");
    let before = below(&service.path("root"));
    let make = || {
        std::fs::create_dir(service.path("data/ca")).unwrap();
        chown(service.path("data/ca"), Some(NOBODY), Some(NOBODY)).unwrap();
    };
    let attacks: [(&str, &dyn Fn()); 5] = [
        ("ca", &|| service.link(&roots, "data/ca")),
        ("an empty directory", &|| {
            std::fs::create_dir_all(service.path("root/empty")).unwrap();
            service.link(service.path("root/empty"), "data/ca");
        }),
        ("lock", &|| {
            make();
            service.link(service.path("root/secret"), "data/ca/lock");
        }),
        ("keys", &|| {
            make();
            service.link(roots.join("root.key"), "data/ca/root.key");
            service.link(roots.join("root.pem"), "data/ca/root.pem");
        }),
        ("state.json", &|| {
            make();
            service.link(service.path("root/secret"), "data/ca/state.json");
        }),
    ];
    for (name, attack) in attacks {
        attack();
        for command in [&mut service.root(&SERVE), &mut within(&service.issue())] {
            let printed = run(command, 8);
            assert!(printed.contains("is a symbolic link"), "{name}: {printed}");
            assert!(
                printed.contains("certs did not make it: move it away"),
                "{printed}"
            );
        }
        let _ = std::fs::remove_dir(service.path("root/empty"));
        assert_eq!(below(&service.path("root")), before, "{name}");
        // Nothing was signed by root's CA.
        assert!(
            !service.path("data/ca/intermediate.pem").exists()
                || name == "state.json"
                || name == "ca"
        );
        std::fs::rename(
            service.path("data/ca"),
            service.path(&format!("aside {name}")),
        )
        .unwrap();
    }
}

#[test]
fn service_can_use_the_ca_that_roots_command_used() {
    let Some(service) = Service::issued() else {
        return;
    };
    for file in [
        "lock",
        "root.pem",
        "root.key",
        "intermediate.pem",
        "state.json",
    ] {
        let found = std::fs::metadata(service.path("data/ca").join(file)).unwrap();
        assert_eq!((found.uid(), found.gid()), (NOBODY, NOBODY), "{file}");
    }
    for path in ["out/live", "out/archive"] {
        run(
            Command::new("chown")
                .arg("-Rh")
                .arg(format!("{NOBODY}:{NOBODY}"))
                .arg(service.path(path)),
            0,
        );
    }
    run(&mut as_nobody(&service.issue(), service.0.path()), 0);
    run(&mut service.issue(), 0);
}

/// Changes the stored settings as the service's user can.
fn with_output(service: &Service, output: serde_json::Value) {
    let options = service.path("data/records/example.com/options.json");
    let json = std::fs::read(&options).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    json["output"] = output;
    std::fs::write(&options, json.to_string()).unwrap();
}

#[test]
fn delete_removes_no_files_where_only_the_store_says_so() {
    let Some(service) = Service::issued() else {
        return;
    };
    let victim = service.path("victim");
    std::fs::create_dir_all(victim.join("archive/example.com/0001")).unwrap();
    std::fs::create_dir(victim.join("live")).unwrap();
    symlink(
        "../archive/example.com/0001",
        victim.join("live/example.com"),
    )
    .unwrap();
    std::fs::write(
        victim.join("archive/example.com/0001/privkey.pem"),
        "root's own",
    )
    .unwrap();
    let before = below(&victim);
    service.link(&victim, "data/below");
    for (directory, owner, code) in [
        (service.shown("victim"), None, 8),
        ("../victim".to_owned(), None, 8),
        ("below".to_owned(), Some("root"), 8),
        ("below".to_owned(), None, 8),
    ] {
        let output = serde_json::json!({"directory": directory, "owner": owner, "group": null});
        with_output(&service, output);
        let printed = run(&mut service.root(&["delete", NAME, "--yes"]), code);
        assert!(printed.contains("hint:"), "{printed}");
        assert_eq!(below(&victim), before, "{directory}: {printed}");
        assert!(
            service
                .path("data/records/example.com/record.json")
                .exists(),
            "{printed}"
        );
    }
    with_output(
        &service,
        serde_json::json!({"directory": victim, "owner": null, "group": null}),
    );
    let printed = run(&mut service.root(&["delete", NAME, "--yes"]), 8);
    assert!(printed.contains("--keep-files"), "{printed}");
    // The hint works.
    run(
        &mut service.root(&["delete", NAME, "--yes", "--keep-files"]),
        0,
    );
    assert_eq!(below(&victim), before);
    assert!(!service.path("data/records/example.com").exists());
}

#[test]
fn pipes_and_endless_files_hang_no_command_of_roots() {
    let Some(service) = Service::issued() else {
        return;
    };
    let record = "data/records/example.com";
    for place in [
        &format!("{record}/record.json"),
        &format!("{record}/options.json"),
        &format!("{record}/lock"),
        "data/labels.json",
        "data/leases/example.com",
        "data/accounts",
        "data/authorities",
        "data/ca/root.pem",
        "data/ca/state.json",
        "data/ca/lock",
        "data/admin.sock",
    ] {
        for is_pipe in [true, false] {
            // As it was.
            let copied = |from: &str, to: &str| {
                let _ = std::fs::remove_dir_all(service.path(to));
                let mut copy = Command::new("cp");
                run(
                    copy.arg("-a").args([service.path(from), service.path(to)]),
                    0,
                );
            };
            match service.path("before").exists() {
                true => copied("before", "data"),
                false => copied("data", "before"),
            }
            let _ = std::fs::rename(service.path(place), service.path("data/aside"));
            match is_pipe {
                true => service.pipe(place),
                false => service.link("/dev/zero", place),
            }
            let mut refused = 0;
            for arguments in [
                &["status"][..],
                &["renew", "--force"],
                &["reload"],
                &SERVE,
                &["delete", NAME, "--yes", "--keep-files"],
            ] {
                if arguments == SERVE && !place.contains("data/ca") {
                    continue;
                }
                let output = service.root(arguments).output().unwrap();
                let printed = String::from_utf8_lossy(&output.stderr);
                // Another code would be that of `timeout`, or of a panic.
                let code = output.status.code();
                assert!(
                    matches!(code, Some(0 | 8)),
                    "{place} {arguments:?}: {code:?} {printed}"
                );
                let is_named = printed.contains("refused: ") || printed.contains("Not a directory");
                refused += usize::from(code == Some(8) && is_named);
            }
            assert!(refused > 0, "{place}");
        }
    }
}

#[test]
fn pipe_in_place_of_the_labels_hangs_no_start() {
    let Some(service) = Service::new() else {
        return;
    };
    service.pipe("data/labels.json");
    let printed = run(&mut service.root(&["run", "--admin-listen", "off"]), 8);
    assert!(
        printed.contains("is a named pipe") && printed.contains("hint:"),
        "{printed}"
    );
}

#[test]
fn held_lock_ends_a_command_of_roots_and_is_named() {
    let Some(service) = Service::issued() else {
        return;
    };
    let authority = std::fs::read_dir(service.path("data/authorities")).unwrap();
    let mut authority = authority.map(|entry| entry.unwrap().path());
    let authority = authority.find(|path| path.extension().is_some_and(|end| end == "lock"));
    for path in [
        service.path("data/records/example.com/lock"),
        authority.unwrap(),
    ] {
        // The next command registers an account, under the lock of its CA.
        for account in std::fs::read_dir(service.path("data/accounts")).unwrap() {
            std::fs::remove_file(account.unwrap().path()).unwrap();
        }
        let held = std::fs::File::open(&path).unwrap();
        held.lock().unwrap();
        let printed = run(&mut service.root(&["renew", "--force"]), 8);
        assert!(
            printed.contains(&format!("cannot lock {}", path.display()))
                && printed.contains("fuser -v "),
            "{printed}"
        );
    }
}

#[test]
fn labels_and_socket_lead_root_to_no_file_of_its_own() {
    let Some(service) = Service::issued() else {
        return;
    };
    let secret = service.secret("secret");
    service.link(&secret, "data/labels.json");
    let printed = run(&mut service.root(&["status"]), 8);
    assert!(printed.contains("is a symbolic link"), "{printed}");
    std::fs::remove_file(service.path("data/labels.json")).unwrap();
    // Where the kernel lets users link files of others.
    std::fs::hard_link(&secret, service.path("data/labels.json")).unwrap();
    let printed = run(&mut service.root(&["status"]), 8);
    assert!(printed.contains("Permission denied"), "{printed}");
    std::fs::remove_file(service.path("data/labels.json")).unwrap();
    let socket = UnixListener::bind(service.path("roots.sock")).unwrap();
    socket.set_nonblocking(true).unwrap();
    service.link(service.path("roots.sock"), "data/admin.sock");
    for arguments in [
        &["status"][..],
        &["renew"],
        &["delete", NAME, "--yes"],
        &[
            "run",
            "--admin-listen",
            "off",
            "--http-listen",
            "127.0.0.1:0",
        ],
    ] {
        let printed = run(&mut service.root(arguments), 8);
        assert!(
            printed.contains("is a symbolic link") && printed.contains("remove it: rm "),
            "{printed}"
        );
    }
    assert!(socket.accept().is_err(), "root connected");
}

#[test]
fn key_of_roots_reaches_no_output_of_the_service() {
    let Some(service) = Service::issued() else {
        return;
    };
    let mut own = certs(&service.path("root"));
    let listen = format!("--http-listen=127.0.0.1:{}", free_port());
    own.args(["issue", NAME, "--ca", "embedded", &listen]);
    run(&mut own, 0);
    // Its group is root's, which opens it to a login of root's.
    let (stored, roots) = (
        format!("data/records/{NAME}/0001"),
        service.path(&format!("root/out/archive/{NAME}/0001")),
    );
    std::fs::rename(service.path(&stored), service.path("aside")).unwrap();
    service.link(&roots, &stored);
    let mut login = Command::new("setpriv");
    login.args(["--groups", "0"]);
    let reload = service.root(&["reload", NAME]);
    login.arg(reload.get_program()).args(reload.get_args());
    login.env_clear();
    let set = reload.get_envs();
    login.envs(set.filter_map(|(name, value)| Some((name, value?))));
    run(&mut login, 8);
    let key = std::fs::read(roots.join("privkey.pem")).unwrap();
    let outputs = [below(&service.path("out")), below(&service.path("data"))];
    let mut files = outputs.iter().flatten();
    assert!(files.all(|(_, _, content)| *content != key));
}

#[test]
fn command_refuses_a_data_directory_that_another_user_can_lead_elsewhere() {
    let Some(service) = Service::issued() else {
        return;
    };
    for name in ["home", "roots"] {
        std::fs::create_dir(service.path(name)).unwrap();
    }
    chown(service.path("home"), Some(NOBODY), Some(NOBODY)).unwrap();
    service.link(service.path("roots"), "home/certs");
    service.secret("roots/records");
    let before = below(&service.path("roots"));
    for arguments in [
        &["status"][..],
        &["reload", NAME],
        &["renew", "--force"],
        &["delete", NAME, "--yes"],
        &["run"],
        &["ca", "serve", "--listen", "127.0.0.1:0"],
        &["issue", NAME, "--ca", "embedded"],
    ] {
        let mut command = service.root(arguments);
        command.env("CERTS_DATA_DIR", service.path("home/certs"));
        let printed = run(&mut command, 8);
        assert!(printed.contains("hint: "), "{arguments:?}: {printed}");
        assert_eq!(below(&service.path("roots")), before, "{arguments:?}");
    }
}

#[test]
fn sidecar_gets_the_pairs_of_roots_in_an_output_of_another_user() {
    let Some(service) = Service::new() else {
        return;
    };
    const CONSUMER: u32 = 33;
    chown(service.path("data"), Some(0), Some(0)).unwrap();
    chown(service.path("out"), Some(CONSUMER), Some(CONSUMER)).unwrap();
    run(&mut service.issue(), 0);
    let pair = service.path(&format!("out/archive/{NAME}/0001"));
    let note = service.secret(&format!("out/archive/{NAME}/0001/note"));
    let owner = |path: &Path| std::fs::metadata(path).unwrap().uid();
    assert_eq!(owner(&pair.join("privkey.pem")), 0);
    let log = sidecar(&service);
    assert!(log.contains(" ready"), "{log}");
    let user = owner(&service.path("data"));
    assert_ne!(user, 0);
    for ours in [&pair, &pair.join("privkey.pem"), &service.path("out/live")] {
        assert_eq!(owner(ours), user, "{}", ours.display());
    }
    assert_eq!((owner(&note), owner(&service.path("out"))), (0, CONSUMER));
    run(&mut service.root(&["renew", "--force"]), 0);
}

#[test]
fn commands_reach_a_sidecar_whose_directory_is_in_a_shared_one() {
    let Some(service) = Service::new() else {
        return;
    };
    let shared = PermissionsExt::from_mode(0o1777);
    std::fs::set_permissions(service.0.path(), shared).unwrap();
    for name in ["data", "out"] {
        chown(service.path(name), Some(0), Some(0)).unwrap();
    }
    let mut command = certs(service.0.path());
    command.args(["run", "--admin-listen", "off"]);
    let listen = format!("127.0.0.1:{}", free_port());
    command.args(["--http-listen", &listen]);
    let log = service.path("log");
    let running = std::fs::File::create(&log).unwrap().into();
    let running = Running::start_logging(&mut command, running);
    let is_ready = || std::fs::read_to_string(&log).unwrap().contains(" ready");
    until("the sidecar", is_ready);
    for verb in ["status", "renew"] {
        run(&mut service.root(&[verb]), 0);
    }
    let issue = ["issue", NAME, "--ca", "embedded", "--http-listen", &listen];
    run(&mut service.root(&issue), 0);
    drop(running);
}

/// Runs root's sidecar until it is ready or ends; its log.
fn sidecar(service: &Service) -> String {
    let log = service.path("log");
    let mut command = certs(service.0.path());
    command.args(["run", "--admin-listen", "off"]);
    command.args(["--http-listen", &format!("127.0.0.1:{}", free_port())]);
    let mut running =
        Running::start_logging(&mut command, std::fs::File::create(&log).unwrap().into());
    let logged = || std::fs::read_to_string(&log).unwrap();
    until("the sidecar", || {
        running.has_ended() || logged().contains(" ready")
    });
    logged()
}

#[test]
fn sidecar_gives_away_no_file_of_roots_that_it_did_not_make() {
    let Some(service) = Service::issued() else {
        return;
    };
    // Moved there by the service's user, from a directory of its own.
    let moved = service.secret(&format!("data/records/{NAME}/note"));
    let owner = || std::fs::metadata(&moved).unwrap().uid();
    let log = sidecar(&service);
    assert!(log.contains(" ready"), "{log}");
    assert_eq!(owner(), 0);
    // A directory of root's with files of another program.
    std::fs::rename(service.path("data"), service.path("aside")).unwrap();
    std::fs::create_dir_all(service.path("data/accounts/payroll")).unwrap();
    service.secret("data/accounts/payroll/db");
    service.secret("data/.bashrc");
    let private = PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(service.path("data"), private).unwrap();
    let before = below(&service.path("data"));
    let log = sidecar(&service);
    assert!(log.contains("it has `.bashrc`"), "{log}");
    let mut after = below(&service.path("data"));
    // What the start makes itself.
    after.retain(|(path, ..)| before.iter().any(|(known, ..)| known == path));
    assert_eq!(after, before);
}
